"""What a person looks at: samples/, plots/, made from one replica's state."""

import io
import pathlib
import re
from typing import NamedTuple

import numpy as np

from aigc_jax.core import npy, processes
from aigc_jax.core.capabilities import Samples
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.files import atomic_write
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.data import Images, Points, Tokens
from aigc_jax.data import labels as labels_lib
from aigc_jax.metrics import latent_codes
from aigc_jax.metrics.text import until_end
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.image_samples import ImageSamples, wanted
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.paths import Paths

_POINTS_SHOWN = 2000
_TOKENS_SHOWN = 32  # of an attention map
_ROWS_SHOWN, _COLUMNS_SHOWN = 10, 12  # of samples over training time
_NEIGHBOURS_SHOWN = 32
_WALKS, _WALK_STEPS = 10, 11  # rows and columns of a picture of ways through a latent space


def save_samples(path: pathlib.Path, experiment: Experiment, samples: np.ndarray, labels: np.ndarray | None) -> None:
    """`path`.npz with key samples (n, *shape) (and labels), and `path`.png, or .txt, beside it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples, **({} if labels is None else {'labels': labels}))
    atomic_write(path.with_suffix('.npz'), buffer.getvalue())
    from aigc_jax.plots import points as plots_points

    dataset = experiment.dataset
    if isinstance(dataset.spec, Tokens):
        texts = [dataset.spec.tokenizer.decode(until_end(tokens, dataset.spec.tokenizer.end)) for tokens in samples]
        atomic_write(path.with_suffix('.txt'), join_texts(texts))
    elif isinstance(dataset.spec, Images):
        _grid(path.with_suffix('.png'), experiment, samples, labels)
    elif dataset.spec.shape == (2,):
        split = experiment.config.eval.split
        real = experiment.examples(split, np.arange(min(_POINTS_SHOWN, len(dataset.splits[split]))))
        plots_points.points(path.with_suffix('.png'), real['x'], samples, density=dataset.spec.density)


def _grid(path: pathlib.Path, experiment: Experiment, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Images (n, H, W, C) as they come, or by class where they have labels (n,)."""
    from aigc_jax.plots import images as plots_images

    if labels is None:
        return plots_images.image_grid(images, path)
    order = np.argsort(labels, kind='stable')
    plots_images.image_classes(images[order], _classes(experiment, labels[order]), path)


def _classes(experiment: Experiment, labels: np.ndarray) -> list[str]:
    """What each label (n,) is called: the class's name where the data have one, else its number; of stacked images the
    digit of each channel."""
    dataset = experiment.dataset
    digits = dataset.spec.shape[2] if dataset.spec.stacked else 1
    return [printable(dataset.class_names[label]) if dataset.class_names else f'{label:0{digits}}' for label in labels]


def join_texts(texts: list[str]) -> str:
    """Texts one after the other, a line between each two."""
    return ('\n' + 40 * '─' + '\n').join(texts) + '\n'


def _walks(experiment: Experiment, evaluator: Evaluator, state: TrainState, seed: int) -> dict[str, tuple]:
    """{name: (images (rows, columns, H, W, C), classes (rows,) or None)}. traversals: the first held-out example, a row
    for each of the dimensions of its code that vary most, over ± 3 standard deviations; interpolations: a row from each
    of some held-out examples to the next, with the label of the first. Rows of a conditional model are in order of the
    classes, and name them."""
    config = experiment.config
    z = evaluator.encode(state, seed, config.eval.split, config.eval.batch_size)
    if z is None or len(z) < 2:
        return {}
    pairs = min(_WALKS, len(z) // 2)
    how = config.eval.interpolation
    walks = {
        'traversals': latent_codes.traversals(z, _WALKS, _WALK_STEPS),
        'interpolations': latent_codes.interpolations(z[: 2 * pairs : 2], z[1 : 2 * pairs : 2], _WALK_STEPS, how),
    }
    starts = {'traversals': np.zeros(len(walks['traversals']), np.int64), 'interpolations': 2 * np.arange(pairs)}
    labels, found = experiment.examples(config.eval.split, np.arange(2 * pairs)).get('label'), {}
    for name, codes in walks.items():
        own, classes = None, None
        if experiment.num_classes:
            own = labels[starts[name]]
            order = np.argsort(own, kind='stable')
            codes, own = codes[order], own[order]
            classes = [f'class {one}' for one in _classes(experiment, own)]
            own = own.repeat(_WALK_STEPS)
        images = evaluator.decode(state, codes.reshape(-1, z.shape[1]), own)
        found[name] = images.reshape(*codes.shape[:2], *images.shape[1:]), classes
    return found


class _Shown(NamedTuple):
    """What the pictures show, on the host. None: the model does not give it, or only samples are wanted."""

    samples: np.ndarray | None
    weights: np.ndarray | None = None  # of the attention over `tokens`
    tokens: np.ndarray | None = None
    pair: tuple[np.ndarray, np.ndarray] | None = None  # originals and reconstructions
    walks: dict[str, tuple] | None = None
    use: np.ndarray | None = None  # of the codes
    real: np.ndarray | None = None  # points, and the score around them
    surface: tuple | None = None


def _computed(experiment: Experiment, evaluator: Evaluator, state: TrainState, seed: int, whole: bool) -> _Shown:
    config, dataset = experiment.config, experiment.dataset
    split = config.eval.split
    n = _POINTS_SHOWN if isinstance(dataset.spec, Points) else config.eval.num_shown
    shown = _Shown(evaluator.sample(state, seed, n))
    if not whole:
        return shown
    if isinstance(dataset.spec, Tokens):
        tokens = dataset.splits[split][np.int64(0)]['tokens'][: min(_TOKENS_SHOWN, dataset.spec.shape[0])]
        return shown._replace(tokens=tokens, weights=evaluator.attention(state, tokens))
    shown = shown._replace(pair=evaluator.reconstruct(state, seed, split, n))
    if isinstance(dataset.spec, Images):
        walks = _walks(experiment, evaluator, state, seed)
        return shown._replace(walks=walks, use=evaluator.code_use(state, seed, split))
    if dataset.spec.shape != (2,):
        return shown
    real = experiment.examples(split, np.arange(min(n, len(dataset.splits[split]))))['x']
    low, high = real.min(axis=0), real.max(axis=0)
    pad = 0.15 * (high - low)
    around = low[0] - pad[0], high[0] + pad[0], low[1] - pad[1], high[1] + pad[1]
    return shown._replace(real=real, surface=evaluator.surface(state, seed, around))


def draw(
    paths: Paths, name: str, experiment: Experiment, evaluator: Evaluator, state: TrainState, seed: int,
    rows: list | None,
) -> None:  # fmt: skip
    """samples/NAME.{npz,png} and, in plots/, the curves of `rows` (of metrics.jsonl), samples over training time,
    reconstructions beside originals, the use of codes, the rate–distortion curve, 2-D points over the score, or of text
    its loss beside the baselines and attention maps.
    rows: None for the samples alone. Every process computes what is shown, and the first one draws."""
    shown = _computed(experiment, evaluator, state, seed, rows is not None)
    with processes.together('pictures'):
        if processes.first():
            _draw(paths, name, experiment, shown, rows)


def _draw(paths: Paths, name: str, experiment: Experiment, shown: _Shown, rows: list | None) -> None:
    from aigc_jax.plots import curves as plots_curves
    from aigc_jax.plots import images as plots_images
    from aigc_jax.plots import points as plots_points
    from aigc_jax.plots import text as plots_text

    config, dataset, samples, pair = experiment.config, experiment.dataset, shown.samples, shown.pair
    labels = None
    if samples is not None:
        labels = labels_lib.in_turn(len(samples), experiment.num_classes)
        save_samples(paths.samples / name, experiment, samples, labels)
    if rows is None:
        return
    plots_curves.curves(_of_curves(rows), paths.plots / 'curves.png')
    if isinstance(dataset.spec, Tokens):
        read, epoch = config.batch_size * dataset.spec.shape[0], len(dataset.splits['train'].tokens)
        names = {'eval': config.eval.split, 'final': config.eval.final_split}
        plots_text.loss_against_tokens(rows, paths.plots / 'loss.png', read, epoch, names)
        if shown.weights is not None:
            labels = [dataset.spec.tokenizer.decode([token]) for token in shown.tokens]
            plots_text.attention(shown.weights, labels, paths.plots / 'attention.png')
        return
    final = next((row for row in reversed(rows) if row['split'] == 'final'), {})
    curve = [
        (value, final[name.replace('rate', 'distortion')]) for name, value in final.items() if 'ais_rate_b' in name
    ]
    if curve and None not in np.ravel(curve):
        own = final['model/kl'], final['model/reconstruction']
        plots_curves.rate_distortion(sorted(curve), own, paths.plots / 'rate_distortion.png')
    if isinstance(dataset.spec, Images):
        if samples is not None:
            _grid(paths.plots / 'samples.png', experiment, samples, labels)
            _draw_progress(paths, name, experiment, labels)
        if pair:
            classes = None
            if labels is not None:
                real = experiment.examples(config.eval.split, np.arange(len(pair[0])))['label']
                order = np.argsort(real, kind='stable')
                pair, classes = [x[order] for x in pair], _classes(experiment, real[order])
            plots_images.reconstructions(*pair, paths.plots / 'reconstructions.png', classes)
        for name, (images, classes) in shown.walks.items():
            path = paths.plots / f'{name}.png'
            if classes is None:
                plots_images.image_grid(images.reshape(-1, *images.shape[2:]), path, _WALK_STEPS)
            else:
                plots_images.image_rows(list(zip(classes, images, strict=True)), path)
        if shown.use is not None:
            plots_curves.code_use(shown.use, paths.plots / 'codes.png')
    elif dataset.spec.shape == (2,) and samples is not None:
        path, reconstructed = paths.plots / 'points.png', pair[1] if pair else None
        plots_points.points(path, shown.real, samples, reconstructed, dataset.spec.density, shown.surface)


def _draw_progress(paths: Paths, name: str, experiment: Experiment, labels: np.ndarray | None) -> None:
    """plots/progress.png: the same samples at each evaluation, in columns by class where they have labels."""
    from aigc_jax.plots import images as plots_images

    earlier, path = _over_time(paths.samples, name), paths.plots / 'progress.png'
    if labels is None:
        return plots_images.image_rows(earlier, path)
    columns = _by_class(labels[: len(earlier[0][1])], experiment.num_classes)
    earlier = [(step, x[columns]) for step, x in earlier]
    plots_images.image_rows(earlier, path, len(earlier), [_classes(experiment, labels[columns])])


def draw_neighbours(paths: Paths, name: str, experiment: Experiment, metrics: ImageSamples) -> None:
    """plots/neighbours.png: the first images of samples/NAME.npz, each above the training image nearest to it.

    None of streamed data without metrics of images, which need not be read once more for a picture.
    """
    from aigc_jax.plots import images as plots_images

    drawn = isinstance(experiment.dataset.spec, Images) and experiment.task.get(Samples) is not None
    if not drawn or (experiment.config.data.stream and not wanted(experiment)):
        return
    samples, classes = _samples(paths.samples / f'{name}.npz')[:_NEIGHBOURS_SHOWN], None
    labels = labels_lib.in_turn(len(samples), experiment.num_classes)
    if labels is not None:
        order = np.argsort(labels, kind='stable')
        samples, classes = samples[order], _classes(experiment, labels[order])
    path = paths.plots / 'neighbours.png'
    plots_images.image_pairs(samples, metrics.neighbours(samples), path, ('sample', 'nearest trained'), classes)


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


def _of_curves(rows: list[dict]) -> list[dict]:
    """Without what the final evaluation alone measures: one point is no curve."""
    known = {'step', 'split', 'seed'}.union(*(row for row in rows if row['split'] != 'final'))
    return [{name: value for name, value in row.items() if name in known} for row in rows]
