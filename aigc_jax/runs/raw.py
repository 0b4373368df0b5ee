"""The task of a run on raw data, as a notebook has them: x, in and out, is in the data's own units."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Capability, LatentSpace, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch, Task, Turn
from aigc_jax.runs.experiment import Experiment


def task_of(experiment: Experiment) -> Task:
    """The task of an experiment, whose functions read and give x (n, *shape) in the data's own units.

    Images are whole numbers 0..levels, as the set stores them, or floats in [0, 1]; points are floats. They go through
    the run's own preprocessing, data.binarize and data.scale; nothing is augmented. Where the model is conditional,
    labels are (n,) whole numbers below num_classes. All else raises UserError. Inside jit and grad, where values cannot
    be read, an example out of range becomes NaN instead. Tokens are read as they are.
    """
    task = experiment.task
    read, num_classes = Reader(experiment), experiment.num_classes

    def turn(one: Turn) -> Turn:
        loss = lambda params, extra, batch, ctx: one.loss(params, extra, read(batch, ctx), ctx)
        return dataclasses.replace(one, loss=loss)

    def labelled(function: Callable, count: Callable) -> Callable:
        def checked(params, extra, given, labels: Array | None) -> Array:
            check_labels(labels, count(given), num_classes)
            return function(params, extra, given, labels)

        return checked

    def checked(one: Capability) -> Capability:
        if isinstance(one, Samples):
            return dataclasses.replace(one, draw=labelled(one.draw, lambda ctx: ctx.index.shape[0]))
        if isinstance(one, LatentSpace):
            return dataclasses.replace(one, decode=labelled(one.decode, len))
        return one

    on_data = task.on_data(read, experiment.scaling.to_data)
    rounds = tuple(tuple(map(turn, turns)) for turns in task.rounds)
    return dataclasses.replace(on_data, rounds=rounds, capabilities=tuple(map(checked, on_data.capabilities)))


class Reader:
    """read(batch, ctx) -> the batch {'x': (n, *shape), 'label': (n,) where the model is conditional} of raw data as the
    task reads it. `check` raises UserError for what is no such batch; `read` does, too."""

    def __init__(self, experiment: Experiment):
        self._num_classes = experiment.num_classes
        self._read = experiment.dataset.spec.from_raw(experiment.config.data, experiment.scaling)

    def __call__(self, batch: Batch, ctx: rng.Context) -> Batch:
        found = self._read(batch, ctx)
        check_labels(batch.get('label'), ctx.index.shape[0], self._num_classes)
        return found

    def check(self, batch: Batch) -> None:
        self._read.check(batch['x'])
        check_labels(batch.get('label'), len(batch['x']), self._num_classes)


def check_labels(labels: Array | None, n: int, num_classes: int) -> None:
    """Raises UserError unless a conditional model is given a class for each of n examples."""
    if not num_classes:
        return
    wanted = f'this run is conditional and wants ({n},) whole numbers 0 to {num_classes - 1}'
    if labels is None:
        raise UserError(f'labels: none are given; {wanted}')
    traced = isinstance(labels, jax.core.Tracer)
    labels = labels if traced else np.asarray(labels)
    if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(f'labels: {labels.shape} {labels.dtype}; {wanted}')
    if not traced and n and not (0 <= labels.min() and labels.max() < num_classes):
        raise UserError(f'labels: from {labels.min()} to {labels.max()}; {wanted}')
