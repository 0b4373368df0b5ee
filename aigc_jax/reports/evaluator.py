"""What evaluations and pictures compute of a model, on the state of one replica, in the data's own units."""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from aigc_jax.core import parallel
from aigc_jax.core.capabilities import CausalText, Codebook, LatentSpace, Reconstructs, Samples, ScalarField
from aigc_jax.core.kept import cached_method
from aigc_jax.core.types import TrainState
from aigc_jax.data.labels import in_turn
from aigc_jax.reports.image_splits import ImageSplits
from aigc_jax.reports.text_splits import TextSplits
from aigc_jax.runs.calls import Calls
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.paths import Paths

_SURFACE_POINTS = 100  # along each axis


class Evaluator:
    """The compiled functions of one experiment; each sees the averaged parameters where an average is kept.

    paths: of the run's folder, where evaluations keep what is costly to make and pictures are drawn; None: there is
    none.
    task: its capabilities read and give raw data. A method wants the capability that it is about.
    """

    def __init__(self, experiment: Experiment, paths: Paths | None = None):
        self.experiment, self.paths, self._calls = experiment, paths, Calls(experiment)
        self.task = experiment.task.on_data(experiment.preprocess, experiment.scaling.to_data)

    @functools.cached_property
    def text_splits(self) -> TextSplits:
        return TextSplits(self.experiment)

    @functools.cached_property
    def image_splits(self) -> ImageSplits:
        return ImageSplits(self.experiment, self.paths)

    @cached_method
    def compiled(self, function: Callable, stream: str) -> Callable:
        """call(state, seed, index, *args) of function(params, extra, *args, ctx). The draws of `stream` are the same at
        every step, so that curves stay comparable."""
        return self._calls.compiled(function, stream)

    def chunks(self, one: Callable, n: int) -> Iterator:
        """`one` of index chunks of one shape, on the host."""
        return self._calls.chunks(one, n)

    def sample(self, state: TrainState, seed: int, n: int, labels: np.ndarray | None = None) -> np.ndarray:
        """(n, *shape); sample i is a function of (seed, i) alone. labels (n,); None: they run through the classes."""
        classes = self.experiment.num_classes
        labels = in_turn(n, classes) if labels is None else labels

        def one(index):
            own = np.asarray(labels)[index] if classes else None
            return self.compiled(self._sample, 'sample')(state, np.int32(seed), index, own)

        return self._calls.joined(one, n)

    def reconstruct(self, state: TrainState, seed: int, split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(originals, reconstructions) of the first n examples of a split."""
        n = min(n, len(self.experiment.dataset.splits[split]))
        pair = self._originals, self.task.get(Reconstructs).reconstruct
        return tuple(self.over_split(function, state, seed, split, n) for function in pair)

    def encode(self, state: TrainState, seed: int, split: str, n: int) -> np.ndarray:
        """(n, d) codes of the first n examples of a split."""
        n = min(n, len(self.experiment.dataset.splits[split]))
        return self.over_split(self.task.get(LatentSpace).encode, state, seed, split, n)

    def decode(self, state: TrainState, z: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """(n, *shape) of codes (n, d), with labels (n,) where the model is conditional."""
        z, own = np.asarray(z, np.float32), lambda index: labels[index] if self.experiment.num_classes else None
        one = lambda index: self.compiled(self._decode, 'sample')(state, np.int32(0), index, z[index], own(index))
        return self._calls.joined(one, len(z))

    def code_use(self, state: TrainState, seed: int, split: str) -> np.ndarray:
        """(K,) how often each code stands for the examples of a split."""
        codebook, n = self.task.get(Codebook), len(self.experiment.dataset.splits[split])
        return np.bincount(self.over_split(codebook.index, state, seed, split, n).ravel(), minlength=codebook.size)

    def attention(self, state: TrainState, tokens: np.ndarray) -> np.ndarray:
        """Weights (layers, heads, L, L) over the tokens (L,), [query, key] last, of a model that has some."""
        batch, index = {'tokens': np.asarray(tokens, np.int32)[None]}, np.zeros(1, np.int32)
        return parallel.fetch(self.compiled(self._attention, 'eval')(state, np.int32(0), index, batch))[:, 0]

    def surface(self, state: TrainState, seed: int, extent: tuple[float, float, float, float]):
        """(xs, ys, values (len(ys), len(xs)), label) of the task's score over a rectangle of the plane."""
        field = self.task.get(ScalarField)
        xs = np.linspace(extent[0], extent[1], _SURFACE_POINTS)
        ys = np.linspace(extent[2], extent[3], _SURFACE_POINTS)
        points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float32)
        one = lambda index: self.compiled(field.value, 'score')(state, np.int32(seed), index, points[index])
        return xs, ys, self._calls.joined(one, len(points)).reshape(len(ys), len(xs)), field.label

    def over_split(self, function, state, seed, split, where):
        """function(params, extra, batch, ctx) of the examples at these places of a split, (n,); an int: the first so
        many."""
        places = np.asarray(where if np.ndim(where) else np.arange(where), np.int32)
        one = self.of_split(function, state, seed, split)
        return self._calls.joined(lambda row: one(places[row]), len(places))

    def of_split(self, function, state, seed, split) -> Callable:
        """one(index) of function(params, extra, batch, ctx), for `chunks`."""
        call = self.compiled(function, 'eval')

        def one(index):
            examples = parallel.put(self.experiment.examples(split, index), self._calls.placement)
            return call(state, np.int32(seed), index, examples)

        return one

    # As `compiled` wants them

    def _originals(self, params, extra, batch, ctx):
        return self.experiment.scaling.to_data(self.experiment.preprocess(batch, ctx)['x'])

    def _sample(self, params, extra, labels, ctx):
        return self.task.get(Samples).draw(params, extra, ctx, labels)

    def _decode(self, params, extra, codes, labels, ctx):
        return self.task.get(LatentSpace).decode(params, extra, codes, labels)

    def _attention(self, params, extra, batch, ctx):
        return self.task.get(CausalText).attention(params, extra, batch['tokens'])
