"""What evaluations and pictures compute of a model, on the state of one replica, in the data's own units."""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from aigc_jax.core import parallel
from aigc_jax.core.capabilities import (
    CausalText,
    Codebook,
    LatentSpace,
    Reconstructs,
    Samples,
    ScalarField,
)
from aigc_jax.core.kept import cached_method
from aigc_jax.core.types import TrainState
from aigc_jax.data.labels import in_turn
from aigc_jax.reports.text_splits import TextSplits
from aigc_jax.runs.calls import Calls
from aigc_jax.runs.experiment import Experiment

_SURFACE_POINTS = 100  # along each axis


class Evaluator:
    """The compiled functions of one experiment; each sees the averaged parameters where an average is kept.

    task: its capabilities read and give raw data.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, self._calls = experiment, Calls(experiment)
        self.task = experiment.task.on_data(experiment.preprocess, experiment.scaling.to_data)

    @functools.cached_property
    def text_splits(self) -> TextSplits:
        return TextSplits(self.experiment)

    def compiled(self, function: Callable, stream: str) -> Callable:
        """call(state, seed, index, *args) of function(params, extra, *args, ctx). The draws of `stream` are the same at
        every step, so that curves stay comparable."""
        return self._calls.compiled(function, stream)

    def chunks(self, one: Callable, n: int) -> Iterator:
        """`one` of index chunks of one shape, on the host."""
        return self._calls.chunks(one, n)

    @cached_method
    def _call(self, name: str) -> Callable | None:
        """The compiled function of this name; None where the model lacks the capability."""
        text, samples, space = self.task.get(CausalText), self.task.get(Samples), self.task.get(LatentSpace)
        read, write = self.experiment.preprocess, self.experiment.scaling.to_data

        def attention(params, extra, batch, ctx):
            return text.attention(params, extra, batch['tokens'])

        def sample(params, extra, labels, ctx):
            return samples.draw(params, extra, ctx, labels)

        def decode(params, extra, codes, labels, ctx):
            return space.decode(params, extra, codes, labels)

        def originals(params, extra, batch, ctx):
            return write(read(batch, ctx)['x'])

        field, codebook, reconstructs = self.task.get(ScalarField), self.task.get(Codebook), self.task.get(Reconstructs)
        function, stream = {
            'originals': (originals, 'eval'),
            'sample': (samples and sample, 'sample'),
            'attention': (text and text.attention and attention, 'eval'),
            'reconstruct': (reconstructs and reconstructs.reconstruct, 'eval'),
            'codes': (codebook and codebook.index, 'eval'),
            'field': (field and field.value, 'score'),
            'encode': (space and space.encode, 'eval'),
            'decode': (space and decode, 'sample'),
        }[name]
        return self.compiled(function, stream) if function else None

    def sample(self, state: TrainState, seed: int, n: int, labels: np.ndarray | None = None) -> np.ndarray | None:
        """(n, *shape), or None where the task draws none; sample i is a function of (seed, i) alone. labels (n,); None:
        they run through the classes."""
        if not self._call('sample'):
            return None
        classes = self.experiment.num_classes
        labels = in_turn(n, classes) if labels is None else labels

        def one(index):
            own = np.asarray(labels)[index] if classes else None
            return self._call('sample')(state, np.int32(seed), index, own)

        return self._calls.joined(one, n)

    def reconstruct(self, state: TrainState, seed: int, split: str, n: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(originals, reconstructions) of the first n examples of a split, or None where the task has none."""
        if not self._call('reconstruct'):
            return None
        n = min(n, len(self.experiment.dataset.splits[split]))
        pair = self._call('originals'), self._call('reconstruct')
        return tuple(self.over_split(function, state, seed, split, n) for function in pair)

    def encode(self, state: TrainState, seed: int, split: str, n: int) -> np.ndarray | None:
        """(n, d) codes of the first n examples of a split, or None where the task has none."""
        n = min(n, len(self.experiment.dataset.splits[split]))
        return self.over_split(self._call('encode'), state, seed, split, n) if self._call('encode') else None

    def decode(self, state: TrainState, z: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """(n, *shape) of codes (n, d), with labels (n,) where the model is conditional."""
        z, own = np.asarray(z, np.float32), lambda index: labels[index] if self.experiment.num_classes else None
        one = lambda index: self._call('decode')(state, np.int32(0), index, z[index], own(index))
        return self._calls.joined(one, len(z))

    def code_use(self, state: TrainState, seed: int, split: str) -> np.ndarray | None:
        """(K,) how often each code stands for the examples of a split; None where the task has none."""
        if not self._call('codes'):
            return None
        found = self.over_split(self._call('codes'), state, seed, split, len(self.experiment.dataset.splits[split]))
        return np.bincount(found.ravel(), minlength=self.task.get(Codebook).size)

    def attention(self, state: TrainState, tokens: np.ndarray) -> np.ndarray | None:
        """Weights (layers, heads, L, L) over the tokens (L,), [query, key] last; None where the model has none."""
        if not self._call('attention'):
            return None
        batch = {'tokens': np.asarray(tokens, np.int32)[None]}
        return parallel.fetch(self._call('attention')(state, np.int32(0), np.zeros(1, np.int32), batch))[:, 0]

    def surface(self, state: TrainState, seed: int, extent: tuple[float, float, float, float]):
        """(xs, ys, values (len(ys), len(xs)), label) of the task's score over a rectangle; None where it has none."""
        if not self._call('field') or self.experiment.dataset.spec.shape != (2,):
            return None
        xs = np.linspace(extent[0], extent[1], _SURFACE_POINTS)
        ys = np.linspace(extent[2], extent[3], _SURFACE_POINTS)
        points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float32)
        one = lambda index: self._call('field')(state, np.int32(seed), index, points[index])
        values = self._calls.joined(one, len(points)).reshape(len(ys), len(xs))
        return xs, ys, values, self.task.get(ScalarField).label

    def over_split(self, function, state, seed, split, where):
        """`function` of the examples at these places of a split, (n,); an int: the first so many."""
        places = np.asarray(where if np.ndim(where) else np.arange(where), np.int32)
        one = self.of_split(function, state, seed, split)
        return self._calls.joined(lambda row: one(places[row]), len(places))

    def of_split(self, function, state, seed, split) -> Callable:
        def one(index):
            examples = parallel.put(self.experiment.examples(split, index), self._calls.placement)
            return function(state, np.int32(seed), index, examples)

        return one
