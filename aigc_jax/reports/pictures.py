"""What a person looks at: samples/, plots/, made from one replica's state. PICTURES is the table of plots/."""

import functools
import io
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from aigc_jax.core import npy, processes
from aigc_jax.core.capabilities import (
    CausalText,
    Codebook,
    LatentSpace,
    Reconstructs,
    Samples,
    ScalarField,
    SplitStatistic,
)
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.files import atomic_write
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.data import Images, Points, Tokenizer, Tokens
from aigc_jax.data.labels import in_turn
from aigc_jax.metrics import latent_codes
from aigc_jax.metrics.text import until_end
from aigc_jax.plots import curves as plots_curves
from aigc_jax.plots import images as plots_images
from aigc_jax.plots import points as plots_points
from aigc_jax.plots import text as plots_text
from aigc_jax.reports.base import able
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.image_splits import extractor_of
from aigc_jax.runs.experiment import Experiment

_POINTS_SHOWN = 2000
_TOKENS_SHOWN = 32  # of an attention map
_ROWS_SHOWN, _COLUMNS_SHOWN = 10, 12  # of samples over training time
_NEIGHBOURS_SHOWN = 32
_WALKS, _WALK_STEPS = 10, 11  # rows and columns of a picture of ways through a latent space


class Look:
    """What a picture is made of: one evaluation of one replica's state.

    name: of the evaluation in samples/, STEP or STEP_seedSEED. rows: of metrics.jsonl, up to now. final: whether it is
    the final evaluation.
    """

    def __init__(
        self, evaluator: Evaluator, name: str, state: TrainState, seed: int, rows: list[dict[str, Any]], final: bool
    ):
        self.evaluator, self.name, self.state, self.seed, self.rows = evaluator, name, state, seed, rows
        self.final, self.experiment, self.plots = final, evaluator.experiment, evaluator.paths.plots
        self.config = self.experiment.config.eval

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """Those of samples/NAME.npz, (n, *shape), of a model that draws some: for the first process, which wrote it."""
        return _samples(self.evaluator.paths.samples / f'{self.name}.npz')

    @property
    def splits(self) -> dict[str, str]:
        """The names of those that the rows of 'eval' and of 'final' are of."""
        each, last = self.config.split, self.config.final_split
        return {'eval': each, 'final': last if last != each else f'{last}, at the end'}

    @property
    def labels(self) -> np.ndarray | None:
        """Of `samples` (n,); None of an unconditional model."""
        return in_turn(len(self.samples), self.experiment.num_classes)


Picture = Iterator[None]


def curves(look: Look) -> Picture:
    """curves.png: each metric over training. What the final evaluation alone measures is left out: one point is no
    curve."""
    yield
    known = {'step', 'split', 'seed'}.union(*(row for row in look.rows if row['split'] != 'final'))
    rows = [{name: value for name, value in row.items() if name in known} for row in look.rows]
    plots_curves.curves(rows, look.plots / 'curves.png', look.splits)


def loss(look: Look) -> Picture:
    """loss.png: nats a token over the tokens read, beside the baselines."""
    yield
    dataset = look.experiment.dataset
    read, epoch = look.experiment.config.batch_size * dataset.spec.block, len(dataset.splits['train'].tokens)
    plots_text.loss_against_tokens(look.rows, look.plots / 'loss.png', read, epoch, look.splits)


def attention(look: Look) -> Picture:
    """attention.png: where each head looks, over the first tokens of the split."""
    dataset = look.experiment.dataset
    if look.experiment.task.get(CausalText).attention is None:
        return
    tokens = dataset.splits[look.config.split][np.int64(0)]['tokens'][: min(_TOKENS_SHOWN, dataset.spec.block)]
    weights = look.evaluator.attention(look.state, tokens)
    yield
    plots_text.attention(weights, texts_of_each(dataset.spec.tokenizer, tokens), look.plots / 'attention.png')


def texts_of_each(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """The text of each token. A letter of several tokens stands at the last of them, and ◌ at those before it."""
    found, begin = [], 0  # begin: of the tokens with bytes that are no letters by themselves
    for i, token in enumerate(tokens):
        text = tokenizer.decode([token])
        if '\ufffd' in text:
            before, now = (tokenizer.decode(tokens[begin:end], behind=True) for end in (i, i + 1))
            text = now[len(before.rstrip('\ufffd')) :].strip('\ufffd') + '◌' * now.endswith('\ufffd')
        else:
            begin = i + 1
        found.append(text)
    return found


def rate_distortion(look: Look) -> Picture:
    """rate_distortion.png: the decoder's curve by annealing, where it was measured, and the model's own place."""
    yield
    row = next((row for row in reversed(look.rows) if row['split'] == 'final'), {})
    rates = [name for name in row if 'ais_rate_b' in name]
    curve = [(row[name], row[name.replace('rate', 'distortion')]) for name in rates]
    if curve and None not in np.ravel(curve):
        own = row['model/kl'], row['model/reconstruction']
        plots_curves.rate_distortion(sorted(curve), own, look.plots / 'rate_distortion.png')


def sampled_images(look: Look) -> Picture:
    """samples.png: the images of samples/NAME. progress.png: the first of them, at each evaluation. By class where the
    model is conditional."""
    yield
    labels, path = look.labels, look.plots / 'progress.png'
    _grid(look.plots / 'samples.png', look.experiment, look.samples, labels)
    earlier = _over_time(look.evaluator.paths.samples, look.name)
    if labels is None:
        return plots_images.image_rows(earlier, path)
    columns = _by_class(labels[: len(earlier[0][1])], look.experiment.num_classes)
    earlier = [(step, x[columns]) for step, x in earlier]
    plots_images.image_rows(earlier, path, len(earlier), [_names(look.experiment, labels[columns])])


def reconstructions(look: Look) -> Picture:
    """reconstructions.png: images of the split, each above what the model keeps of it."""
    pair = look.evaluator.reconstruct(look.state, look.seed, look.config.split, look.config.num_shown)
    yield
    classes, *pair = _in_order(look.experiment, _labels(look.experiment, len(pair[0])), *pair)
    plots_images.reconstructions(*pair, look.plots / 'reconstructions.png', classes)


def latent_walks(look: Look) -> Picture:
    """traversals.png: the first example of the split, a row for each of the dimensions of its code that vary most, over
    ± 3 standard deviations. interpolations.png: a row from each of some examples to the next, with the label of the
    first. Rows of a conditional model are in order of the classes, and name them."""
    z = look.evaluator.encode(look.state, look.seed, look.config.split, look.config.batch_size)
    if not (pairs := min(_WALKS, len(z) // 2)):
        return
    ends, labels = (z[: 2 * pairs : 2], z[1 : 2 * pairs : 2]), _labels(look.experiment, 2 * pairs)
    around = latent_codes.traversals(z, _WALKS, _WALK_STEPS)
    between = latent_codes.interpolations(*ends, _WALK_STEPS, look.config.interpolation)
    first, each = (None, None) if labels is None else (labels[:1].repeat(len(around)), labels[::2])
    shown = []
    for name, codes, own in (('traversals', around, first), ('interpolations', between, each)):
        classes, codes, own = _in_order(look.experiment, own, codes, own)
        own = None if own is None else own.repeat(_WALK_STEPS)
        images = look.evaluator.decode(look.state, codes.reshape(-1, z.shape[1]), own)
        shown.append((look.plots / f'{name}.png', classes, images.reshape(*codes.shape[:2], *images.shape[1:])))
    yield
    for path, classes, images in shown:
        if classes is None:
            plots_images.image_grid(images.reshape(-1, *images.shape[2:]), path, _WALK_STEPS)
        else:
            plots_images.image_rows([(f'class {one}', row) for one, row in zip(classes, images, strict=True)], path)


def code_use(look: Look) -> Picture:
    """codes.png: how often each code of a codebook is used."""
    use = look.evaluator.code_use(look.state, look.seed, look.config.split)
    yield
    plots_curves.code_use(use, look.plots / 'codes.png')


def plane(look: Look) -> Picture:
    """points.png: samples of 2-D points beside real ones, over the model's score where it has one."""
    evaluator, spec, reconstructed, surface = look.evaluator, look.experiment.dataset.spec, None, None
    if spec.dim != 2:
        return
    real = _real_points(look.experiment)
    if evaluator.task.get(Reconstructs):
        _, reconstructed = evaluator.reconstruct(look.state, look.seed, look.config.split, _POINTS_SHOWN)
    if evaluator.task.get(ScalarField):
        low, high = real.min(axis=0), real.max(axis=0)
        pad = 0.15 * (high - low)
        around = low[0] - pad[0], high[0] + pad[0], low[1] - pad[1], high[1] + pad[1]
        surface = evaluator.surface(look.state, look.seed, around)
    yield
    plots_points.points(look.plots / 'points.png', real, look.samples, reconstructed, spec.density, surface)


def neighbours(look: Look) -> Picture:
    """neighbours.png, of the final evaluation: the first images of samples/NAME, each above the training image nearest
    to it. None of streamed data without metrics of images, which need not be read once more for a picture."""
    if not look.final or (look.experiment.config.data.stream and not extractor_of(look.experiment)):
        return
    yield
    labels = None if look.labels is None else look.labels[:_NEIGHBOURS_SHOWN]
    classes, samples = _in_order(look.experiment, labels, look.samples[:_NEIGHBOURS_SHOWN])
    nearest, path = look.evaluator.image_splits.neighbours(samples), look.plots / 'neighbours.png'
    plots_images.image_pairs(samples, nearest, path, ('sample', 'nearest trained'), classes)


# A new picture is a function and a line here: (function, what it needs as reports.base.able has it). Every process runs
# the function to its `yield`, and so computes what is shown; the first process alone runs the rest, which draws it. A
# function that returns before has nothing to show.
PICTURES: tuple[tuple[Callable[[Look], Picture], tuple[type, ...]], ...] = (
    (curves, ()),
    (loss, (CausalText,)),
    (attention, (CausalText,)),
    (rate_distortion, (SplitStatistic,)),
    (sampled_images, (Samples, Images)),
    (reconstructions, (Reconstructs, Images)),
    (latent_walks, (LatentSpace, Images)),
    (code_use, (Codebook,)),
    (plane, (Samples, Points)),
    (neighbours, (Samples, Images)),
)


def draw(
    evaluator: Evaluator, name: str, state: TrainState, seed: int, rows: list | None, final: bool = False
) -> None:
    """samples/NAME.npz with its picture or text and, in plots/, those of PICTURES that the model can give; of `Look`'s
    arguments. rows: None for the samples alone. Every process calls it."""
    experiment, samples, drawn = evaluator.experiment, None, []
    if experiment.task.get(Samples):
        is_points = isinstance(experiment.dataset.spec, Points)
        samples = evaluator.sample(state, seed, _POINTS_SHOWN if is_points else experiment.config.eval.num_shown)
    if rows is not None:
        look = Look(evaluator, name, state, seed, rows, final)
        drawn = [picture(look) for picture, needs in PICTURES if able(experiment, needs)]
    for picture in drawn:
        next(picture, None)
    with processes.together('pictures'):
        if processes.first():
            if samples is not None:
                labels = in_turn(len(samples), experiment.num_classes)
                save_samples(evaluator.paths.samples / name, experiment, samples, labels)
            for picture in drawn:
                next(picture, None)


def save_samples(path: pathlib.Path, experiment: Experiment, samples: np.ndarray, labels: np.ndarray | None) -> None:
    """`path`.npz with key samples (n, *shape) (and labels), and `path`.png, or .txt, beside it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples, **({} if labels is None else {'labels': labels}))
    atomic_write(path.with_suffix('.npz'), buffer.getvalue())
    spec = experiment.dataset.spec
    if isinstance(spec, Tokens):
        texts = [spec.tokenizer.decode(until_end(tokens, spec.tokenizer.end)) for tokens in samples]
        atomic_write(path.with_suffix('.txt'), join_texts(texts))
    elif isinstance(spec, Images):
        _grid(path.with_suffix('.png'), experiment, samples, labels)
    elif spec.shape == (2,):
        plots_points.points(path.with_suffix('.png'), _real_points(experiment), samples, density=spec.density)


def join_texts(texts: list[str]) -> str:
    """Texts one after the other, a line between each two."""
    return ('\n' + 40 * '─' + '\n').join(texts) + '\n'


def _grid(path: pathlib.Path, experiment: Experiment, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Images (n, H, W, C) as they come, or by class where they have labels (n,)."""
    classes, images = _in_order(experiment, labels, images)
    if classes is None:
        return plots_images.image_grid(images, path)
    plots_images.image_classes(images, classes, path)


def _in_order(experiment: Experiment, labels: np.ndarray | None, *arrays: np.ndarray) -> tuple:
    """(what each class is called, *arrays (n, …)) in order of the labels (n,); (None, *arrays) without labels."""
    if labels is None:
        return None, *arrays
    order = np.argsort(labels, kind='stable')
    return _names(experiment, labels[order]), *(array[order] for array in arrays)


def _names(experiment: Experiment, labels: np.ndarray) -> list[str]:
    """What each label (n,) is called: the class's name where the data have one, else its number; of stacked images the
    digit of each channel."""
    dataset = experiment.dataset
    digits = dataset.spec.shape[2] if dataset.spec.stacked else 1
    return [printable(dataset.class_names[label]) if dataset.class_names else f'{label:0{digits}}' for label in labels]


def _labels(experiment: Experiment, n: int) -> np.ndarray | None:
    """Of the first n examples of eval.split; None of an unconditional model."""
    split = experiment.config.eval.split
    return experiment.examples(split, np.arange(n))['label'] if experiment.num_classes else None


def _real_points(experiment: Experiment) -> np.ndarray:
    split = experiment.config.eval.split
    return experiment.examples(split, np.arange(min(_POINTS_SHOWN, len(experiment.dataset.splits[split]))))['x']


def _over_time(folder: pathlib.Path, name: str) -> list[tuple[str, np.ndarray]]:
    """[(label, the first samples)] of the evaluations up to that of `name`, STEP or STEP_seedSEED; of many, some."""
    last, seed, number = name.partition('_seed')
    found = (re.fullmatch(rf'(\d+){seed}{number}\.npz', path.name) for path in folder.iterdir())
    steps = sorted(match[1] for match in found if match and int(match[1]) <= int(last))
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _ROWS_SHOWN)).round().astype(int))
    files = [(int(steps[i]), folder / f'{steps[i]}{seed}{number}.npz') for i in chosen]
    shape, shown = _samples(files[-1][1]).shape[1:], []
    for step, path in files:
        try:
            samples = _samples(path)[:_COLUMNS_SHOWN]
        except UserError as error:
            note(f'{error}; it is left out of the picture')
            continue
        if samples.shape[1:] == shape:
            shown.append((f'step {step:,}', samples))
    return shown


def _by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The places of labels (n,) that run through the classes in turn, by class; as many of each where there is room."""
    n = len(labels)
    return np.argsort(labels[: n - n % num_classes if n > num_classes else n], kind='stable')


def _samples(path: pathlib.Path) -> np.ndarray:
    return npy.load(path, str(path), 'samples')['samples']
