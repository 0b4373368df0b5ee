"""Compiled functions of a trained model, called over any number of examples in chunks of one shape."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from aigc_jax.core import optim, parallel, progress, rng
from aigc_jax.core.types import Extra
from aigc_jax.runs.experiment import Experiment


class Calls:
    """Each function sees the averaged parameters where an average is kept."""

    def __init__(self, experiment: Experiment):
        self._plan = plan = experiment.plan
        shards = math.prod(plan.mesh.shape[axis] for axis in parallel.BATCH_AXES)
        self.chunk = experiment.config.eval.batch_size
        fits = not plan.replicas and plan.mode == 'jit' and self.chunk % shards == 0
        self.placement = plan.examples if fits else plan.replicated

    def compiled(self, function: Callable, stream: str) -> Callable:
        """call(state of a replica, seed, index, *args) of function(params, extra, *args, ctx), jitted."""

        def call(state, seed, index, *args):
            params = optim.averaged(state.params, state.opt)
            ctx = rng.context(seed, stream, 0, index)  # the same draws at every step: curves stay comparable
            return function(params, Extra(state.stats, state.carry), *args, ctx)

        if self._plan.mode == 'pmap':
            return jax.jit(call)
        return jax.jit(call, out_shardings=self._plan.replicated, compiler_options=self._plan.compiler_options)

    def joined(self, one: Callable, n: int):
        """What `chunks` yields, joined."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *self.chunks(one, n))

    def chunks(self, one: Callable, n: int) -> Iterator:
        """`one` of index chunks of one shape (the last is filled up, and cut), on the host."""
        chunk = min(self.chunk, n) if self.placement.is_fully_replicated else self.chunk
        for start in progress.each(range(0, n, chunk)):
            index = np.minimum(np.arange(start, start + chunk, dtype=np.int32), n - 1)
            yield jax.tree.map(lambda leaf, left=n - start: leaf[:left], parallel.fetch(one(index)))
