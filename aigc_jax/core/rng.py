"""Stateless randomness: every draw is a function of (seed, step, name, global example index).

No key is ever stored or split, so a resumed run draws what the uninterrupted one would have drawn, and an
example's draw does not depend on how many devices or micro-batches the batch was cut into.
"""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.types import Array


def stream(seed: Array | int, name: str) -> Array:
    """The key of one named stream of a run: 'init', 'train', 'eval', 'sample', 'score'."""
    return named(jax.random.key(seed, impl='threefry2x32'), name)


def named(key: Array, name: str) -> Array:
    # crc32 is stable between processes and Python versions, which hash() is not.
    return fold_in(key, np.uint32(zlib.crc32(name.encode())))


def fold_in(key: Array, data: Array | int) -> Array:
    """jax.random.fold_in, bit for bit; `data` of any shape gives as many keys."""
    data = jnp.asarray(data).astype(jnp.uint32)
    words = _threefry(jax.random.key_data(key), jnp.zeros_like(data), data)
    return jax.random.wrap_key_data(jnp.stack(words, axis=-1), impl='threefry2x32')


def _threefry(key: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, section 3.3) of the words x0 and x1; key (…, 2).

    jax.random runs it on a CPU as a loop of small kernels, which takes a tenth of a small GAN's step; unrolled it is
    one kernel. The bits are the same.
    """
    k0, k1 = key[..., 0], key[..., 1]
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + k0, x1 + k1
    for i in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << np.uint32(r) | x1 >> np.uint32(32 - r))
        x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x0, x1


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
        return fold_in(named(self.key, name), self.index)

    def normal(self, name: str, shape: tuple[int, ...]) -> Array:
        """(n, *shape) float32 from N(0, 1)."""
        low = np.nextafter(np.float32(-1), np.float32(0))  # as jax.random.normal: erf⁻¹ of U(−1, 1)
        return np.float32(math.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(low, self.uniform(name, shape) * (1 - low) + low))

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Array:
        """(n, *shape) float32 from U[0, 1)."""
        count = jnp.arange(math.prod(shape), dtype=jnp.uint32)
        x0, x1 = _threefry(jax.random.key_data(self.keys(name))[:, None], jnp.zeros_like(count), count)
        mantissa = (x0 ^ x1) >> np.uint32(9) | np.uint32(0x3F800000)  # of a float in [1, 2), as jax.random.uniform
        return (jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1).reshape(-1, *shape)

    def integers(self, name: str, maximum: int) -> Array:
        """(n,) int32 from {0, …, maximum − 1}."""
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, maximum))(self.keys(name))


def fixed_choice(count: int, n: int) -> np.ndarray:
    """n of `count` places, or all, in order: drawn at random, and the same for every run and seed."""
    return np.sort(np.random.Generator(np.random.PCG64(0)).permutation(count)[:n])


def context(seed: Array | int, name: str, step: Array | int, index: Array) -> Context:
    key = fold_in(stream(seed, name), step)
    return Context(key, index, jnp.asarray(step, jnp.int32))
