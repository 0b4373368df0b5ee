"""What a person looks at: samples/, plots/, made from one replica's state. PICTURES is the table of plots/."""

import functools
import io
import pathlib
import re
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
from aigc_jax.data import Images, Points, Tokens
from aigc_jax.data.labels import in_turn
from aigc_jax.metrics import latent_codes
from aigc_jax.metrics.text import until_end
from aigc_jax.plots import curves as plots_curves
from aigc_jax.plots import images as plots_images
from aigc_jax.plots import points as plots_points
from aigc_jax.plots import text as plots_text
from aigc_jax.reports.base import Part
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.image_splits import extractor_of
from aigc_jax.runs.experiment import Experiment

_POINTS_SHOWN = 2000
_TOKENS_SHOWN = 32  # of an attention map
_ROWS_SHOWN, _COLUMNS_SHOWN = 10, 12  # of samples over training time
_NEIGHBOURS_SHOWN = 32
_WALKS, _WALK_STEPS = 10, 11  # rows and columns of a picture of ways through a latent space


class Picture(Part):
    """A file or more of plots/. A new one is a class and a line in PICTURES.

    name: of the evaluation in samples/, STEP or STEP_seedSEED. rows: of metrics.jsonl, up to now.
    """

    def __init__(self, evaluator: Evaluator, name: str, rows: list[dict[str, Any]]):
        super().__init__(evaluator)
        self.name, self.rows, self.plots = name, rows, evaluator.paths.plots

    def compute(self, state: TrainState, seed: int) -> Any:
        """What is shown of one replica's state, on the host. Every process calls it."""

    def draw(self, shown: Any) -> None:
        """Draws what `compute` gave. The first process alone calls it, once samples/NAME.npz is written."""
        raise NotImplementedError

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """(n, *shape): those of samples/NAME.npz, of a model that draws some."""
        return _samples(self.evaluator.paths.samples / f'{self.name}.npz')

    @property
    def labels(self) -> np.ndarray | None:
        """Of `samples` (n,)."""
        return in_turn(len(self.samples), self.experiment.num_classes)


class Curves(Picture):
    """curves.png: every metric over training. What the final evaluation alone measures is left out: one point is no
    curve."""

    def draw(self, shown: None) -> None:
        known = {'step', 'split', 'seed'}.union(*(row for row in self.rows if row['split'] != 'final'))
        rows = [{name: value for name, value in row.items() if name in known} for row in self.rows]
        plots_curves.curves(rows, self.plots / 'curves.png')


class Loss(Picture):
    """loss.png: nats a token over the tokens read, beside the baselines."""

    needs = (CausalText,)

    def draw(self, shown: None) -> None:
        config, dataset = self.experiment.config, self.experiment.dataset
        read, epoch = config.batch_size * dataset.spec.block, len(dataset.splits['train'].tokens)
        splits = {'eval': self.config.split, 'final': self.config.final_split}
        plots_text.loss_against_tokens(self.rows, self.plots / 'loss.png', read, epoch, splits)


class Attention(Picture):
    """attention.png: where each head looks, of the first tokens of the split."""

    needs = (CausalText,)

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        return super().applies(experiment) and experiment.task.get(CausalText).attention is not None

    def compute(self, state: TrainState, seed: int) -> tuple[np.ndarray, np.ndarray]:
        dataset = self.experiment.dataset
        tokens = dataset.splits[self.config.split][np.int64(0)]['tokens'][: min(_TOKENS_SHOWN, dataset.spec.block)]
        return tokens, self.evaluator.attention(state, tokens)

    def draw(self, shown: tuple[np.ndarray, np.ndarray]) -> None:
        tokens, weights = shown
        labels = [self.experiment.dataset.spec.tokenizer.decode([token]) for token in tokens]
        plots_text.attention(weights, labels, self.plots / 'attention.png')


class RateDistortion(Picture):
    """rate_distortion.png: the decoder's curve by annealing, and where the model lies."""

    needs, when = (SplitStatistic,), 'final'

    def draw(self, shown: None) -> None:
        row = next((row for row in reversed(self.rows) if row['split'] == 'final'), {})
        rates = [name for name in row if 'ais_rate_b' in name]
        curve = [(row[name], row[name.replace('rate', 'distortion')]) for name in rates]
        if curve and None not in np.ravel(curve):
            own = row['model/kl'], row['model/reconstruction']
            plots_curves.rate_distortion(sorted(curve), own, self.plots / 'rate_distortion.png')


class SampledImages(Picture):
    """samples.png: the images of samples/NAME. progress.png: the first of them at each evaluation. By class where the
    model is conditional."""

    needs = Samples, Images

    def draw(self, shown: None) -> None:
        _grid(self.plots / 'samples.png', self.experiment, self.samples, self.labels)
        earlier, path = _over_time(self.evaluator.paths.samples, self.name), self.plots / 'progress.png'
        if (labels := self.labels) is None:
            return plots_images.image_rows(earlier, path)
        columns = _by_class(labels[: len(earlier[0][1])], self.experiment.num_classes)
        earlier = [(step, x[columns]) for step, x in earlier]
        plots_images.image_rows(earlier, path, len(earlier), [_names(self.experiment, labels[columns])])


class Reconstructions(Picture):
    """reconstructions.png: held-out images, each above what the model keeps of it."""

    needs = Reconstructs, Images

    def compute(self, state: TrainState, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return self.evaluator.reconstruct(state, seed, self.config.split, self.config.num_shown)

    def draw(self, shown: tuple[np.ndarray, np.ndarray]) -> None:
        labels = _labels(self.experiment, self.config.split, len(shown[0]))
        classes, *pair = _in_order(self.experiment, labels, *shown)
        plots_images.reconstructions(*pair, self.plots / 'reconstructions.png', classes)


class LatentWalks(Picture):
    """traversals.png: the first held-out example, a row for each of the dimensions of its code that vary most, over
    ± 3 standard deviations. interpolations.png: a row from each of some held-out examples to the next, with the label
    of the first. Rows of a conditional model are in order of the classes, and name them."""

    needs = LatentSpace, Images

    def compute(self, state: TrainState, seed: int) -> dict[str, tuple[list[str] | None, np.ndarray]]:
        """{name of a file: (class of each row, images (rows, columns, H, W, C))}."""
        z = self.evaluator.encode(state, seed, self.config.split, self.config.batch_size)
        if not (pairs := min(_WALKS, len(z) // 2)):
            return {}
        labels = _labels(self.experiment, self.config.split, 2 * pairs)
        around = latent_codes.traversals(z, _WALKS, _WALK_STEPS)
        between = latent_codes.interpolations(
            z[: 2 * pairs : 2], z[1 : 2 * pairs : 2], _WALK_STEPS, self.config.interpolation
        )
        first, each = (None, None) if labels is None else (labels[:1].repeat(len(around)), labels[::2])
        return {
            'traversals': self._decoded(state, around, first), 'interpolations': self._decoded(state, between, each),
        }  # fmt: skip

    def _decoded(self, state: TrainState, codes: np.ndarray, labels: np.ndarray | None) -> tuple:
        """Of codes (rows, columns, d) with labels (rows,)."""
        classes, codes, labels = _in_order(self.experiment, labels, codes, labels)
        each = None if labels is None else labels.repeat(codes.shape[1])
        images = self.evaluator.decode(state, codes.reshape(-1, codes.shape[2]), each)
        return classes, images.reshape(*codes.shape[:2], *images.shape[1:])

    def draw(self, shown: dict[str, tuple[list[str] | None, np.ndarray]]) -> None:
        for name, (classes, images) in shown.items():
            path = self.plots / f'{name}.png'
            if classes is None:
                plots_images.image_grid(images.reshape(-1, *images.shape[2:]), path, _WALK_STEPS)
            else:
                rows = [(f'class {one}', row) for one, row in zip(classes, images, strict=True)]
                plots_images.image_rows(rows, path)


class CodeUse(Picture):
    """codes.png: how often each code of a codebook is used."""

    needs = (Codebook,)

    def compute(self, state: TrainState, seed: int) -> np.ndarray:
        return self.evaluator.code_use(state, seed, self.config.split)

    def draw(self, shown: np.ndarray) -> None:
        plots_curves.code_use(shown, self.plots / 'codes.png')


class Plane(Picture):
    """points.png: samples of 2-D points beside held-out ones, over the model's score where it has one."""

    needs = Samples, Points

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        return super().applies(experiment) and experiment.dataset.spec.dim == 2

    def compute(self, state: TrainState, seed: int) -> tuple:
        """(held-out points, reconstructions or None, surface or None)."""
        evaluator, split, pair, surface = self.evaluator, self.config.split, (None, None), None
        real = _held_out_points(self.experiment)
        if evaluator.task.get(Reconstructs):
            pair = evaluator.reconstruct(state, seed, split, _POINTS_SHOWN)
        if evaluator.task.get(ScalarField):
            low, high = real.min(axis=0), real.max(axis=0)
            pad = 0.15 * (high - low)
            around = low[0] - pad[0], high[0] + pad[0], low[1] - pad[1], high[1] + pad[1]
            surface = evaluator.surface(state, seed, around)
        return real, pair[1], surface

    def draw(self, shown: tuple) -> None:
        real, reconstructed, surface = shown
        density = self.experiment.dataset.spec.density
        plots_points.points(self.plots / 'points.png', real, self.samples, reconstructed, density, surface)


class Neighbours(Picture):
    """neighbours.png: the first images of samples/NAME, each above the training image nearest to it.

    None of streamed data without metrics of images, which need not be read once more for a picture.
    """

    needs, when = (Samples, Images), 'final'

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        return super().applies(experiment) and not (experiment.config.data.stream and not extractor_of(experiment))

    def draw(self, shown: None) -> None:
        labels = None if self.labels is None else self.labels[:_NEIGHBOURS_SHOWN]
        classes, samples = _in_order(self.experiment, labels, self.samples[:_NEIGHBOURS_SHOWN])
        nearest, path = self.evaluator.image_splits.neighbours(samples), self.plots / 'neighbours.png'
        plots_images.image_pairs(samples, nearest, path, ('sample', 'nearest trained'), classes)


PICTURES: tuple[type[Picture], ...] = (
    Curves, Loss, Attention, RateDistortion, SampledImages, Reconstructions, LatentWalks, CodeUse, Plane, Neighbours,
)  # fmt: skip


def draw(
    evaluator: Evaluator, name: str, state: TrainState, seed: int, rows: list | None, final: bool = False
) -> None:
    """samples/NAME.{npz,png} and, in plots/, those of PICTURES that apply.

    rows: of metrics.jsonl; None for the samples alone. Every process computes what is shown, and the first one draws.
    """
    experiment, samples = evaluator.experiment, None
    if experiment.task.get(Samples):
        is_points = isinstance(experiment.dataset.spec, Points)
        samples = evaluator.sample(state, seed, _POINTS_SHOWN if is_points else experiment.config.eval.num_shown)
    wanted = [one for one in PICTURES if one.applies(experiment) and (final or one.when == 'each')]
    pictures = [picture(evaluator, name, rows) for picture in wanted if rows is not None]
    shown = [picture.compute(state, seed) for picture in pictures]
    with processes.together('pictures'):
        if processes.first():
            if samples is not None:
                labels = in_turn(len(samples), experiment.num_classes)
                save_samples(evaluator.paths.samples / name, experiment, samples, labels)
            for picture, own in zip(pictures, shown, strict=True):
                picture.draw(own)


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
        plots_points.points(path.with_suffix('.png'), _held_out_points(experiment), samples, density=spec.density)


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


def _labels(experiment: Experiment, split: str, n: int) -> np.ndarray | None:
    """Of the first n examples of a split; None of an unconditional model."""
    return experiment.examples(split, np.arange(n))['label'] if experiment.num_classes else None


def _held_out_points(experiment: Experiment) -> np.ndarray:
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
