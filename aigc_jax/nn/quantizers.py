"""Convolutional networks between an image and a grid of vectors, and quantizers of such vectors.

A quantizer has `codes`, how many there are, and `dim`, the dimension d of the vectors that it takes and gives:

  init(key) -> stats                              what it keeps in TrainState.stats; {}: nothing
  quantize(stats, z (…, d)) -> (z_q (…, d), index (…) int32)      the gradient takes no notice of the rounding
  vectors(stats, index (…)) -> (…, d)             what the decoder is given for a code
  penalty(z, z_q) -> (n,)                         of z (n, …, d), to be added to −log p(x given z_q)
  renew(stats, z (n, P, d), index (n, P), ctx, batch_size) -> stats   after a batch, of which these are n examples
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng, schema
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Array, Tree
from aigc_jax.nn import convnets
from aigc_jax.nn.conv import NORMS, Conv, Normalize
from aigc_jax.nn.convnets import ImageNetwork
from aigc_jax.nn.mlp import ACTIVATIONS

# No statistics, of batches or of kernels: an image's codes depend on nothing beside it.
_WITHOUT_BATCHES = tuple(norm for norm in NORMS if norm != 'batch')
FIELDS = convnets.FIELDS | {'norm': dataclasses.replace(convnets.FIELDS['norm'], choices=_WITHOUT_BATCHES)}
del FIELDS['spectral']
_MOST = 2**20  # codes; the prior has a row of parameters for each


class GridEncoder(ImageNetwork, kw_only=True):
    """x (n, H, W, C) -> (n, H / 2ᴸ, W / 2ᴸ, dim) float32."""

    dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = convnets.fall(self, x, False)
        return Conv(self.dim, 1, dtype=self.dtype, name='head')(x).astype(jnp.float32)


class GridDecoder(ImageNetwork, kw_only=True):
    """z (n, H / 2ᴸ, W / 2ᴸ, d) -> the natural parameters of p(x given z), (n, *shape)."""

    shape: Sequence[int]
    makes_images: ClassVar[bool] = True

    @nn.compact
    def __call__(self, z: Array) -> Array:
        x = Conv(self.features[0], 3, dtype=self.dtype, name='stem')(z)
        if self.block == 'plain':
            x = ACTIVATIONS[self.activation](Normalize(self.norm, None, self.dtype)(x, None, False))
        return convnets.rise(self, x, None, False)


@dataclasses.dataclass(frozen=True)
class VQ:
    """A codebook e (K, d); a vector becomes its nearest code (van den Oord et al. 2017, eq. 1 and 2).

    The codebook follows the encoder by moving averages (appendix A.1): eᵢ = mᵢ / Nᵢ, where N (K,) is the share of the
    vectors nearest to each code, and m (K, d) their sum over how many vectors there are. Both are means over the batch,
    so the mean of those of its parts is that of the whole, whatever devices it is on.

    commitment: β of β ‖z − sg[e]‖² (eq. 3), summed over the grid like the nats of the pixels beside it, where the paper
    takes the mean over the grid. decay: γ of the averages.
    revive_below: a code whose N is less than this share of 1 / K becomes a vector of the batch, drawn for each code;
    all do after the first batch. 0: no code is revived.
    """

    codes: int
    dim: int
    commitment: float
    decay: float
    revive_below: float

    def init(self, key: Array) -> Tree:
        # Just dead, where the dead are revived: the first batch places them all.
        count = jnp.full((self.codes,), (self.revive_below / 2 or 1.0) / self.codes)
        return {'count': count, 'sum': count[:, None] * jax.random.normal(key, (self.codes, self.dim))}

    def codebook(self, stats: Tree) -> Array:
        """e (K, d); of a code that was not used for thousands of steps N is 0, and so is e."""
        return stats['sum'] / jnp.maximum(stats['count'], 1e-12)[:, None]

    def quantize(self, stats: Tree, z: Array) -> tuple[Array, Array]:
        e = self.codebook(stats)
        # ‖z − e‖² without ‖z‖², which is the same for all codes.
        index = jnp.argmin(jnp.sum(e**2, axis=-1) - 2 * z @ e.T, axis=-1).astype(jnp.int32)
        return z + jax.lax.stop_gradient(e[index] - z), index

    def vectors(self, stats: Tree, index: Array) -> Array:
        return self.codebook(stats)[index]

    def penalty(self, z: Array, z_q: Array) -> Array:
        return self.commitment * jnp.sum((z - jax.lax.stop_gradient(z_q)) ** 2, axis=tuple(range(1, z.ndim)))

    def dead(self, stats: Tree) -> Array:
        """(K,) bool: the codes that the next batch revives."""
        return stats['count'] < self.revive_below / self.codes

    def renew(self, stats: Tree, z: Array, index: Array, ctx: rng.Context, batch_size: int) -> Tree:
        n, places, d = z.shape
        z = jax.lax.stop_gradient(z)
        used = jax.nn.one_hot(index.reshape(-1), self.codes)
        count = used.mean(axis=0)
        total = used.T @ z.reshape(-1, d) / (n * places)
        count, total = (
            self.decay * stats[name] + (1 - self.decay) * new for name, new in (('count', count), ('sum', total))
        )
        if self.revive_below:
            # Which vector of the whole batch a code takes is known to every part. The part that holds it gives it with
            # the weight that makes the mean over the parts the vector itself, the others give 0.
            one_each = rng.Context(ctx.key, jnp.arange(self.codes, dtype=jnp.int32), ctx.step)
            example, place = jnp.divmod(one_each.integers('revive', batch_size * places), places)
            own = ctx.index[:, None] == example
            drawn = z[jnp.argmax(own, axis=0), place] * (jnp.any(own, axis=0) * (batch_size / n))[:, None]
            dead = self.dead(stats)
            count = jnp.where(dead, 1 / self.codes, count)
            total = jnp.where(dead[:, None], drawn / self.codes, total)
        return {'count': count, 'sum': total}


@dataclasses.dataclass(frozen=True)
class FSQ:
    """Each of the d = len(levels) numbers is bounded and rounded to one of levels[i] values, which makes Π levels codes
    without a codebook, a penalty or a code that nothing can reach (Mentzer et al. 2024, section 3 and appendix A.1)."""

    levels: Sequence[int]

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def codes(self) -> int:
        return math.prod(self.levels)

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)

    def init(self, key: Array) -> Tree:
        return {}

    def bound(self, z: Array) -> Array:
        """z (…, d) to where rounding gives −⌊L/2⌋ … ⌈L/2⌉ − 1, and 0 to 0. An even number of levels lies off centre by
        a half; the paper shifts z for it by tan instead of the inverse of tanh, which is about the same."""
        levels = np.array(self.levels)
        half, offset = (levels - 1) * (1 - 1e-3) / 2, np.where(levels % 2, 0.0, 0.5)
        half, offset, shift = (a.astype(np.float32) for a in (half, offset, np.arctanh(offset / half)))
        return jnp.tanh(z + shift) * half - offset

    def quantize(self, stats: Tree, z: Array) -> tuple[Array, Array]:
        bounded = self.bound(z)
        digits, half = jnp.round(bounded), np.array(self.levels) // 2
        index = jnp.sum((digits.astype(jnp.int32) + half) * self._basis, axis=-1).astype(jnp.int32)
        return (bounded + jax.lax.stop_gradient(digits - bounded)) / half, index

    def vectors(self, stats: Tree, index: Array) -> Array:
        levels = np.array(self.levels, np.int32)
        return (index[..., None] // self._basis % levels - levels // 2) / (levels // 2).astype(np.float32)

    def penalty(self, z: Array, z_q: Array) -> Array:
        return jnp.zeros(z.shape[0])

    def renew(self, stats: Tree, z: Array, index: Array, ctx: rng.Context, batch_size: int) -> Tree:
        return stats


QUANTIZERS = {'vq': VQ, 'fsq': FSQ}
QUANTIZER = Field(str, choices=tuple(QUANTIZERS), doc='the quantizer, which has the other fields of the group')
QUANTIZER_FIELDS = {
    'vq': {
        'codes': Field(int, least=2, most=_MOST, doc='vectors of the codebook'),
        'dim': Field(int, least=1, doc="of a code's vector"),
        'commitment': Field(float, least=0, doc='β, weight of ‖z − sg[e]‖², summed over the grid'),
        'decay': Field(float, least=0, below=1, doc='of the moving averages that make the codebook, a step'),
        'revive_below': Field(
            float, least=0, below=1,
            doc='share of even use: a code used less becomes a vector of the batch; 0: none does',
        ),
    },
    # Of two levels the offset of `quantize` would be infinite.
    'fsq': {'levels': Field(tuple, items=Field(int, least=3), doc='values of each dimension of a code')},
}  # fmt: skip


def quantizer_fields(config: Any, around: Any = None) -> Group:
    """The fields of model.quantizer, `config`, whose `name` is a quantizer's. Raises UserError."""
    return {'name': QUANTIZER, **QUANTIZER_FIELDS[schema.chosen(config, 'name', QUANTIZER, 'model.quantizer')]}


def make_quantizer(config: Any, what: str) -> VQ | FSQ:
    """The quantizer `config.name` with the other fields of `config`. Raises UserError for one that does not fit."""
    schema.check(config, quantizer_fields(config), what)
    fields = {field: tuple(value) if isinstance(value, list) else value for field, value in config.items()}
    quantizer = QUANTIZERS[fields.pop('name')](**fields)
    if not 1 < quantizer.codes <= _MOST:
        raise UserError(f'{what}.levels: {quantizer.levels}; one number or more, of a product up to {_MOST}')
    return quantizer
