"""Convolution, as each platform does it fastest, and the layers that are made of it. x is (n, H, W, C).

XLA runs a convolution inside a scan on a CPU many times slower than outside (github.com/jax-ml/jax/issues/12868), so
there it is written as matrix products of shifted slices; elsewhere it is the native one.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array

NORMS = ('none', 'batch', 'group', 'layer')


def native() -> bool:
    """Whether convolution is the platform's own; else matrix products. The one place that says so."""
    return jax.default_backend() != 'cpu'


def _padding(size: int, stride: int) -> tuple[int, int]:
    """Such that `stride` divides the output into the input: k − s zeros, the odd one behind."""
    return (size - stride) // 2, size - stride - (size - stride) // 2


def conv(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """x (n, H, W, C), kernel (k, k, C / groups, F) -> (n, H / stride, W / stride, F).

    stride divides H and W, and is no more than k.
    """
    size = kernel.shape[0]
    low, high = _padding(size, stride)
    if native():
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((low, high),) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )  # fmt: skip
    if groups > 1:
        parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        return jnp.concatenate([conv(part, own, stride) for part, own in parts], axis=-1)
    x = _pad(x, low, high)
    if stride > 1 and size % stride == 0:  # fewer slices of more channels
        return _valid(_to_depth(x, stride), _kernel_to_depth(kernel, stride))
    return _valid(x, kernel, stride)


def conv_transpose(x: Array, kernel: Array, stride: int) -> Array:
    """x (n, H, W, C), kernel (k, k, C, F) -> (n, stride · H, stride · W, F); stride divides k."""
    size, features = kernel.shape[0], kernel.shape[-1]
    low, high = _padding(size, stride)
    if native():
        return jax.lax.conv_transpose(
            x, kernel, (stride, stride), ((size - 1 - low, size - 1 - high),) * 2,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )  # fmt: skip
    _, height, width, channels = x.shape
    parts = size // stride
    # An output pixel reads parts × parts inputs; the stride × stride of them that read the same are made as channels.
    kernel = kernel.reshape(parts, stride, parts, stride, channels, features)[:, ::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(parts, parts, channels, -1)
    x = _to_space(_valid(_pad(x, parts - 1, parts - 1), kernel), stride)
    return x[:, low : low + stride * height, low : low + stride * width]


def _pad(x: Array, low: int, high: int) -> Array:
    return jnp.pad(x, ((0, 0), (low, high), (low, high), (0, 0)))


def _valid(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolution without padding, by matrix products: x (n, H, W, C), kernel (k, k, C, F)."""
    size, features = kernel.shape[0], kernel.shape[-1]
    if size in _WINOGRAD and stride == 1:
        return _winograd(x, kernel)
    n, height, width, channels = x.shape
    height, width = (height - size) // stride + 1, (width - size) // stride + 1
    total = 0
    # A product for each place of the kernel: what it reads is never put side by side, which would take longer.
    for i in range(size):
        for j in range(size):
            part = x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            total = total + part.reshape(-1, channels) @ kernel[i, j]
    return total.reshape(n, height, width, features)


# Of a kernel of k taps, along one axis: what the k + 1 inputs behind two neighbouring outputs are joined to, what the
# taps are (a matrix), and what their k + 1 products make of the two outputs.
_WINOGRAD = {
    2: (
        lambda d: (d[0] - d[1], d[1], d[1] - d[2]),
        ((1, 0), (1, 1), (0, 1)),
        lambda m: (m[0] + m[1], m[1] - m[2]),
    ),
    3: (
        lambda d: (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]),
        ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        lambda m: (m[0] + m[1] + m[2], m[1] - m[2] - m[3]),
    ),
}


@jax.jit  # so that layers of one shape are traced once
def _winograd(x: Array, kernel: Array) -> Array:
    """`_valid` with (k + 1)² products for four outputs instead of 4 k² (Lavin & Gray 2016, F(2 × 2, k × k))."""
    size = kernel.shape[0]
    join, taps, part = _WINOGRAD[size]
    n, height, width, channels = x.shape
    out = height - size + 1, width - size + 1
    tiles = [-(-side // 2) for side in out]
    more = [2 * (t + size // 2) - side for t, side in zip(tiles, (height, width), strict=True)]
    x = jnp.pad(x, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)))

    def pieces(x: Array, axis: int) -> tuple[Array, ...]:
        pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        halves = [jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1)]
        cut = lambda i: jax.lax.slice_in_dim(halves[i % 2], i // 2, i // 2 + tiles[axis - 1], axis=axis)
        return join([cut(i) for i in range(size + 1)])

    def product(piece: Array, own: Array) -> Array:
        return (piece.reshape(-1, channels) @ own).reshape(n, *tiles, -1)

    taps = jnp.asarray(taps, kernel.dtype)
    kernel = jnp.einsum('ai,bj,ijcf->abcf', taps, taps, kernel)
    rows = [part(list(map(product, pieces(row, 2), own))) for row, own in zip(pieces(x, 1), kernel, strict=True)]
    columns = [part(column) for column in zip(*rows, strict=True)]  # [a tile's column][its row]
    y = jnp.stack([jnp.stack(column, axis=2) for column in columns], axis=4)
    return y.reshape(n, 2 * tiles[0], 2 * tiles[1], -1)[:, : out[0], : out[1]]


def _to_depth(x: Array, s: int) -> Array:
    n, height, width, channels = x.shape
    x = x.reshape(n, height // s, s, width // s, s, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // s, width // s, s * s * channels)


def _to_space(x: Array, s: int) -> Array:
    n, height, width, channels = x.shape
    x = x.reshape(n, height, width, s, s, channels // s**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height * s, width * s, channels // s**2)


def _kernel_to_depth(kernel: Array, s: int) -> Array:
    size, _, channels, features = kernel.shape
    kernel = kernel.reshape(size // s, s, size // s, s, channels, features)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(size // s, size // s, s * s * channels, features)


def upsample(x: Array) -> Array:
    """(n, H, W, C) -> (n, 2H, 2W, C), the nearest neighbour."""
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)


def downsample(x: Array) -> Array:
    """(n, 2H, 2W, C) -> (n, H, W, C), the mean of four."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def max_pool(x: Array) -> Array:
    """(n, 2H, 2W, C) -> (n, H, W, C), the largest of four."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def blur(x: Array) -> Array:
    """The kernel (1, 2, 1) / 4 along both sides, whose edges are repeated."""
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode='edge')
        part = lambda i, padded=padded, axis=axis, size=size: jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
        x = (part(0) + 2 * part(1) + part(2)) / 4
    return x


def minibatch_deviation(x: Array, group: int) -> Array:
    """x with one channel more: the standard deviation over `group` neighbours in the batch, averaged over features
    and places (Karras et al. 2018, section 3). Neighbours, so that no group is cut where devices share a batch. Where
    they do not divide it, as may be in evaluation, groups are of the largest number that divides both."""
    n, height, width, _ = x.shape
    group = math.gcd(n, group)
    grouped = x.reshape(n // group, group, *x.shape[1:])
    deviation = jnp.sqrt(grouped.var(1) + 1e-8).mean((1, 2, 3))
    deviation = jnp.repeat(deviation, group)[:, None, None, None]
    return jnp.concatenate([x, jnp.broadcast_to(deviation, (n, height, width, 1))], axis=-1)


class Conv(nn.Module):
    """(n, H, W, C) -> (n, H / stride, W / stride, features), or stride times as large where it is `transposed`."""

    features: int
    size: int
    stride: int = 1
    groups: int = 1
    transposed: bool = False
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        x, kernel = x.astype(self.dtype), self.param('kernel', self.kernel_init, shape).astype(self.dtype)
        if self.transposed:
            x = conv_transpose(x, kernel, self.stride)
        else:
            x = conv(x, kernel, self.stride, self.groups)
        if self.use_bias:
            x = x + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class Normalize(nn.Module):
    """Normalization by name; with a condition (n, c), one-hot, its scale and shift are those of the class
    (Dumoulin et al. 2017; of a batch: conditional batch normalization, de Vries et al. 2017), 1 and 0 at first, as in
    the code of Miyato & Koyama 2018.

    axis_name: of the devices, under pmap: the statistics are those of the whole batch.
    """

    kind: str
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array | None, train: bool) -> Array:
        if self.kind == 'none':
            return x
        features, own = x.shape[-1], dict(use_bias=condition is None, use_scale=condition is None, dtype=self.dtype)
        if self.kind == 'batch':
            x = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, **own)(x)
        elif self.kind == 'group':
            x = nn.GroupNorm(math.gcd(features, 8), **own)(x)
        else:
            x = nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=3, **own)(x)
        if condition is None:
            return x
        table = nn.Dense(2 * features, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        scale, shift = jnp.split(table(condition), 2, axis=-1)
        return x * (1 + scale[:, None, None]) + shift[:, None, None]


class SelfAttention(nn.Module):
    """x + γ · attention over all places, γ = 0 at first (Zhang et al. 2019, section 3). Keys and values are the maxima
    of 2 × 2 places, as in their code."""

    spectral: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        n, height, width, channels = x.shape
        inner = max(channels // 8, 1)
        layer = lambda features, x: maybe_spectral(Conv(features, 1, use_bias=False, dtype=self.dtype), self.spectral)(
            x, train
        )
        pool = max_pool if height % 2 == width % 2 == 0 else lambda x: x
        query = layer(inner, x).reshape(n, -1, inner)
        key = pool(layer(inner, x)).reshape(n, -1, inner)
        value = pool(layer(max(channels // 2, 1), x))
        value = value.reshape(n, -1, value.shape[-1])
        weights = jax.nn.softmax(jnp.einsum('nqc,nkc->nqk', query, key).astype(jnp.float32), axis=-1)
        found = jnp.einsum('nqk,nkc->nqc', weights.astype(self.dtype), value).reshape(n, height, width, -1)
        gamma = self.param('gamma', nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * layer(channels, found)


def maybe_spectral(layer: nn.Module, spectral: bool):
    """call(x, train) of a layer, its kernel divided by its largest singular value where `spectral` (Miyato et al.
    2018), by one power iteration a call, kept in the statistics while training."""
    if not spectral:
        return lambda x, train: layer(x)
    wrapped = nn.SpectralNorm(layer)
    return lambda x, train: wrapped(x, update_stats=train)
