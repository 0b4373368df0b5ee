"""The task of a run on raw data, as a notebook has them: x, in and out, is in the data's own units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Capability, LatentSpace, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch, Task, Turn
from aigc_jax.data import batching
from aigc_jax.runs.experiment import Experiment

_ROUNDING = 1e-4  # that floats may leave [0, 1] by


def task_of(experiment: Experiment) -> Task:
    """The task of an experiment, whose functions read and give x (n, *shape) in the data's own units.

    Images are whole numbers 0..levels, as the set stores them, or floats in [0, 1]; points are floats. They go through
    the run's own preprocessing, data.binarize and data.scale; nothing is augmented. Where the model is conditional,
    labels are (n,) whole numbers below num_classes. All else raises UserError. Inside jit and grad, where values cannot
    be read, an example out of range becomes NaN instead. A task of text is left as it is.
    """
    task = experiment.task
    if experiment.dataset.kind == 'text':
        return task
    read, num_classes = Reader(experiment), experiment.num_classes

    def turn(one: Turn) -> Turn:
        loss = lambda params, extra, batch, ctx: one.loss(params, extra, read(batch, ctx), ctx)
        return dataclasses.replace(one, loss=loss)

    def checked(one: Capability) -> Capability:
        if isinstance(one, Samples):

            def draw(params, extra, ctx: rng.Context, labels: Array | None) -> Array:
                check_labels(labels, ctx.index.shape[0], num_classes)
                return one.draw(params, extra, ctx, labels)

            return dataclasses.replace(one, draw=draw)
        if isinstance(one, LatentSpace):

            def decode(params, extra, codes: Array, labels: Array | None) -> Array:
                check_labels(labels, len(codes), num_classes)
                return one.decode(params, extra, codes, labels)

            return dataclasses.replace(one, decode=decode)
        return one

    capabilities = tuple(checked(one.on_data(read, experiment.scaling.to_data)) for one in task.capabilities)
    rounds = tuple(tuple(map(turn, turns)) for turns in task.rounds)
    return dataclasses.replace(task, rounds=rounds, capabilities=capabilities)


class Reader:
    """read(batch, ctx) -> the batch {'x': (n, *shape), 'label': (n,) where the model is conditional} of raw data as the
    task reads it. `check` raises UserError for what is no such batch; `read` does, too."""

    def __init__(self, experiment: Experiment):
        dataset, cfg = experiment.dataset, experiment.config.data
        self._num_classes, self._shape, self._levels = experiment.num_classes, dataset.shape, dataset.levels
        self._is_image = dataset.kind == 'image'
        # Static binarization draws the images of its own set alone.
        self._binary = self._is_image and (self._levels == 1 or cfg.binarize == 'static')
        self._of_levels = experiment.preprocess
        no_levels = dataclasses.replace(dataset, levels=0)
        self._of_floats = batching.make_eval_preprocess(no_levels, cfg.binarize, experiment.scaling)
        words = 'floats in [0, 1]' if self._is_image else 'floats'
        if self._levels:
            words = 'the numbers 0 and 1' if self._binary else f'whole numbers 0 to {self._levels} or {words}'
        self._wanted = f'; this run ({cfg.name}) wants (n, {", ".join(map(str, self._shape))}), {words}'

    def __call__(self, batch: Batch, ctx: rng.Context) -> Batch:
        traced = isinstance(batch['x'], jax.core.Tracer)
        batch = {**batch, 'x': batch['x'] if traced else np.asarray(batch['x'])}
        good = self.check(batch)
        whole = jnp.issubdtype(batch['x'].dtype, jnp.integer)
        found = (self._of_levels if whole else self._of_floats)(batch, ctx)
        if traced:
            every = jnp.all(good, axis=tuple(range(1, good.ndim)), keepdims=True)
            found = {**found, 'x': jnp.where(every, found['x'], jnp.nan)}
        return found

    def check(self, batch: Batch) -> Array:
        """Which numbers may be there, of x's shape; all of them, if x is no tracer, whose values cannot be read."""
        x = batch['x']
        whole = jnp.issubdtype(x.dtype, jnp.integer)
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        if x.shape[1:] != self._shape or not (whole and self._levels or floats):
            raise UserError(f'x: {x.shape} {x.dtype}{self._wanted}')
        good = self._fits(x, whole)
        if not isinstance(x, jax.core.Tracer) and not good.all():
            raise UserError(f'x: {x.dtype} from {x.min()} to {x.max()}{self._wanted}')
        check_labels(batch.get('label'), len(x), self._num_classes)
        return good

    def _fits(self, x: Array, whole: bool) -> Array:
        if not self._is_image:
            return abs(x) < np.inf
        if self._binary:
            return (x == 0) | (x == 1)
        return (x >= 0) & (x <= self._levels) if whole else (x >= -_ROUNDING) & (x <= 1 + _ROUNDING)


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
