"""Velocity fields v(x, t) of an ODE over data space, told the class: a residual MLP for points, a U-Net for images.

Both are called with x (n, *shape), times (n, k) and a one-hot class (n, c) or None, and give (n, *shape) float32. A row
of zeros is no class, so that one network serves with the class and without it (Ho & Salimans 2022). The last layer
begins as zeros, so that the field does.

Parameters are float32; `dtype` is what the products are computed in.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn.conv import Conv, Normalize, SelfAttention, downsample, upsample
from aigc_jax.nn.mlp import ACTIVATIONS

FIELDS = {
    'width': Field(int, least=2, doc='features of the residual stream, an even number'),
    'features': Field(tuple, items=Field(int, least=1), doc='channels of each level, the first at the full size'),
    'depth': Field(int, least=1, doc='residual blocks; of a U-Net, of each level each way'),
    'expansion': Field(int, least=1, doc='width of a hidden layer, in widths'),
    'attention': Field(int, least=0, doc='the side at which there is self-attention; 0: none'),
    'activation': Field(str, choices=tuple(ACTIVATIONS), doc='of the hidden layers'),
}  # fmt: skip
# Radians per unit of time, the fastest. Transformers' positions have 1000 for t in [0, 1] (Ho et al. 2020), whose
# derivative by t, which MeanFlow learns from, is as much larger.
_FASTEST = 100.0


def time_features(t: Array, features: int) -> Array:
    """t (n, k) in [0, 1] -> (n, k · features): sine and cosine at features / 2 frequencies from 1 to _FASTEST, evenly
    spaced in their logarithms (Vaswani et al. 2017, section 3.5)."""
    frequencies = jnp.exp(jnp.linspace(0.0, math.log(_FASTEST), features // 2))
    angles = t[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(t.shape[0], -1)


class _Condition(nn.Module):
    """Times and class as one vector, (n, features)."""

    features: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, times: Array, condition: Array | None) -> Array:
        dense = lambda **more: nn.Dense(self.features, dtype=self.dtype, **more)
        h = dense(name='time')(time_features(times, self.features))
        if condition is not None:
            h = h + dense(use_bias=False, kernel_init=nn.initializers.normal(1.0), name='class')(condition)
        return dense(name='out')(ACTIVATIONS[self.activation](h))


class MLP(nn.Module, kw_only=True):
    """Residual blocks of two layers, the inner one `expansion` times as wide, over x + condition."""

    width: int
    depth: int
    expansion: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, times: Array, condition: Array | None = None) -> Array:
        dense = lambda features, **more: nn.Dense(features, dtype=self.dtype, **more)
        act, shape = ACTIVATIONS[self.activation], x.shape
        h = dense(self.width, name='in')(x.reshape(shape[0], -1))
        h = h + _Condition(self.width, self.activation, self.dtype, name='condition')(times, condition)
        for _ in range(self.depth):
            h = h + dense(self.width)(act(dense(self.expansion * self.width)(h)))
        out = dense(math.prod(shape[1:]), kernel_init=nn.initializers.zeros, name='out')(act(h))
        return out.astype(jnp.float32).reshape(shape)


class _Block(nn.Module):
    """Two 3×3 convolutions beside x, each behind group normalization, whose scale and shift are the condition's
    (adaptive group normalization, Dhariwal & Nichol 2021, section 3)."""

    features: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        act = ACTIVATIONS[self.activation]
        normalize = lambda x, condition: Normalize('group', dtype=self.dtype)(x, condition, False)
        h = Conv(self.features, 3, dtype=self.dtype)(act(normalize(x, None)))
        h = act(normalize(h, condition))
        h = Conv(self.features, 3, kernel_init=nn.initializers.zeros, dtype=self.dtype)(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, use_bias=False, dtype=self.dtype)(x)
        return x + h


class UNet(nn.Module, kw_only=True):
    """Down and up again through levels of `features` channels, the first at the image's own size and each other one at
    half the size before, with the way down handed over to the way up (Ronneberger et al. 2015; Ho et al. 2020)."""

    features: Sequence[int]
    depth: int
    attention: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, times: Array, condition: Array | None = None) -> Array:
        widest, channels = max(self.features), x.shape[-1]
        c = ACTIVATIONS[self.activation](
            _Condition(widest, self.activation, self.dtype, name='condition')(times, condition)
        )

        def blocks(x: Array, features: int) -> Array:
            x = _Block(features, self.activation, self.dtype)(x, c)
            return SelfAttention(dtype=self.dtype)(x, False) if self.attention == x.shape[1] else x

        h = Conv(self.features[0], 3, dtype=self.dtype, name='in')(x)
        kept = []
        for level, features in enumerate(self.features):
            h = downsample(h) if level else h
            for _ in range(self.depth):
                h = blocks(h, features)
                kept.append(h)
        for level, features in reversed(list(enumerate(self.features))):
            for _ in range(self.depth):
                h = blocks(jnp.concatenate([h, kept.pop()], axis=-1), features)
            h = Conv(self.features[level - 1], 3, dtype=self.dtype)(upsample(h)) if level else h
        h = ACTIVATIONS[self.activation](Normalize('group', dtype=self.dtype)(h, None, False))
        return Conv(channels, 3, kernel_init=nn.initializers.zeros, dtype=self.dtype, name='out')(h).astype(jnp.float32)


KINDS = {'mlp': MLP, 'unet': UNet}


def check(network: nn.Module, shape: Sequence[int], what: str) -> None:
    """Raises UserError for fields of `what` that examples of `shape` do not fit."""
    if isinstance(network, MLP):
        if network.width % 2:
            raise UserError(f'{what}.width: {network.width}; half are sines of the time, half cosines: make it even')
        return
    if len(shape) != 3:
        raise UserError('model.kind: unet is for images; set it to mlp')
    levels = len(network.features)
    if not levels or any(side % 2 ** (levels - 1) for side in shape[:2]):
        raise UserError(
            f'{what}.features: {levels} levels halve the sides {shape[0]} and {shape[1]} {max(levels - 1, 0)} times; '
            'give 1 or more, as many as go without a remainder'
        )
    if (widest := max(network.features)) % 2:
        raise UserError(f'{what}.features: the widest is {widest}, half sines of the time, half cosines: make it even')
    sides = [shape[0] // 2**level for level in range(levels)]
    if network.attention not in (0, *sides):
        known = ', '.join(map(str, sides))
        raise UserError(f'{what}.attention: {network.attention}; its sides are {known}, and 0 leaves attention out')
