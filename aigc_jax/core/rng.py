"""Stateless randomness: every draw is a function of (seed, step, name, global example index).

No key is ever stored or split, so a resumed run draws what the uninterrupted one would have drawn, and an
example's draw does not depend on how many devices or micro-batches the batch was cut into.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array


def stream(seed: Array | int, name: str) -> Array:
    """The key of one named stream of a run: 'init', 'train', 'eval', 'sample', 'score'."""
    return named(jax.random.key(seed), name)


def named(key: Array, name: str) -> Array:
    # crc32 is stable between processes and Python versions, which hash() is not.
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Where the draws of one batch come from.

    key: the key of (seed, stream, step); index: (n,) int32 global index of each example in the step's batch;
    step: () int32 optimizer steps done.
    """

    key: Array
    index: Array
    step: Array

    def keys(self, name: str) -> Array:
        """(n,) keys, one an example."""
        return jax.vmap(jax.random.fold_in, (None, 0))(named(self.key, name), self.index)

    def normal(self, name: str, shape: tuple[int, ...]) -> Array:
        """(n, *shape) float32 from N(0, 1)."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.keys(name))

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Array:
        """(n, *shape) float32 from U[0, 1)."""
        return jax.vmap(lambda key: jax.random.uniform(key, shape))(self.keys(name))

    def integers(self, name: str, maximum: int) -> Array:
        """(n,) int32 from {0, …, maximum − 1}."""
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, maximum))(self.keys(name))


def context(seed: Array | int, name: str, step: Array | int, index: Array) -> Context:
    key = jax.random.fold_in(stream(seed, name), step)
    return Context(key, index, jnp.asarray(step, jnp.int32))
