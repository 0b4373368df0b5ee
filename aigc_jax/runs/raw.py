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
    read, num_classes = _make_to_model(experiment), experiment.num_classes

    def turn(one: Turn) -> Turn:
        loss = lambda params, extra, batch, ctx: one.loss(params, extra, read(batch, ctx), ctx)
        return dataclasses.replace(one, loss=loss)

    def checked(one: Capability) -> Capability:
        if isinstance(one, Samples):

            def draw(params, extra, ctx: rng.Context, labels: Array | None) -> Array:
                _check_labels(labels, ctx.index.shape[0], num_classes)
                return one.draw(params, extra, ctx, labels)

            return dataclasses.replace(one, draw=draw)
        if isinstance(one, LatentSpace):

            def decode(params, extra, codes: Array, labels: Array | None) -> Array:
                _check_labels(labels, len(codes), num_classes)
                return one.decode(params, extra, codes, labels)

            return dataclasses.replace(one, decode=decode)
        return one

    capabilities = tuple(checked(one.on_data(read, experiment.scaling.to_data)) for one in task.capabilities)
    rounds = tuple(tuple(map(turn, turns)) for turns in task.rounds)
    return dataclasses.replace(task, rounds=rounds, capabilities=capabilities)


def _make_to_model(experiment: Experiment) -> Callable[[Batch, rng.Context], Batch]:
    """to_model(batch, ctx) -> the batch as the task reads it. Raises UserError."""
    dataset, cfg, num_classes = experiment.dataset, experiment.config.data, experiment.num_classes
    levels, is_image = dataset.levels, dataset.kind == 'image'
    binary = is_image and (levels == 1 or cfg.binarize == 'static')  # which draws the images of its own set alone
    of_floats = batching.make_eval_preprocess(dataclasses.replace(dataset, levels=0), cfg.binarize, experiment.scaling)
    words = 'floats in [0, 1]' if is_image else 'floats'
    if levels:
        words = 'the numbers 0 and 1' if binary else f'whole numbers 0 to {levels} or {words}'

    def fits(x):
        """Which numbers may be there, of x's shape."""
        if not is_image:
            return abs(x) < np.inf
        if binary:
            return (x == 0) | (x == 1)
        whole = jnp.issubdtype(x.dtype, jnp.integer)
        return (x >= 0) & (x <= levels) if whole else (x >= -_ROUNDING) & (x <= 1 + _ROUNDING)

    def to_model(batch: Batch, ctx: rng.Context) -> Batch:
        x = batch['x']
        traced = isinstance(x, jax.core.Tracer)
        x = x if traced else np.asarray(x)
        wanted = f'; this run ({cfg.name}) wants (n, {", ".join(map(str, dataset.shape))}), {words}'
        whole = jnp.issubdtype(x.dtype, jnp.integer)
        if x.shape[1:] != dataset.shape or not (whole and levels or jnp.issubdtype(x.dtype, jnp.floating)):
            raise UserError(f'x: {x.shape} {x.dtype}{wanted}')
        good = fits(x)
        if not traced and not good.all():
            raise UserError(f'x: {x.dtype} from {x.min()} to {x.max()}{wanted}')
        _check_labels(batch.get('label'), len(x), num_classes)
        found = (experiment.preprocess if whole else of_floats)({**batch, 'x': x}, ctx)
        if traced:
            every = jnp.all(good, axis=tuple(range(1, x.ndim)), keepdims=True)
            found = {**found, 'x': jnp.where(every, found['x'], jnp.nan)}
        return found

    return to_model


def _check_labels(labels: Array | None, n: int, num_classes: int) -> None:
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
