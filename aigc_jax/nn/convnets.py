"""Convolutional networks: encoder, decoder, generator, discriminator. Shapes in, shapes out, no loss.

Each is a trunk that halves or doubles the sides once for every entry of `features`, in blocks by name:

  plain     a 4×4 convolution of stride 2, normalization, activation (DCGAN, Radford et al. 2016)
  residual  two 3×3 convolutions, each after normalization and activation, beside a 1×1 one (Miyato et al. 2018, SNGAN)
  modern    1×1, grouped 3×3 and 1×1 convolution without normalization, the last one zero at first, and resampling with
            the kernel (1, 2, 1) between the levels (Huang et al. 2024, R3GAN)

Parameters are float32; `dtype` is what the products are computed in. The outputs are float32 whatever it is.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn.conv import (
    NORMS,
    Conv,
    Normalize,
    SelfAttention,
    blur,
    downsample,
    maybe_spectral,
    minibatch_deviation,
    upsample,
)
from aigc_jax.nn.mlp import ACTIVATIONS, join, lecun_normal

BLOCKS = ('plain', 'residual', 'modern')
FIELDS = {
    'features': Field(
        tuple, items=Field(int, least=1), doc='channels of each level; each level halves or doubles the sides'
    ),
    'block': Field(str, choices=BLOCKS, doc='what a level is made of'),
    'norm': Field(str, choices=NORMS, doc='normalization of the hidden layers'),
    'activation': Field(str, choices=tuple(ACTIVATIONS), doc='of the hidden layers'),
    'spectral': Field(bool, doc='whether kernels are divided by their largest singular value (Miyato et al. 2018)'),
    'attention': Field(int, least=0, doc='the side at which there is self-attention; 0: there is none'),
    'depth': Field(int, least=1, doc='blocks a level; the first of them resamples'),
    'deviation': Field(
        int, least=0, doc='neighbours in the batch whose standard deviation the discriminator sees; 0: it sees none'
    ),
}  # fmt: skip
_GROUPED = 16  # channels of a group of a modern block


class _Block(nn.Module):
    """One level, `up` or down; `resample`: to twice or half its sides. x (n, H, W, C) -> (n, H', W', features).

    first: x is the image, which is read as it is.
    """

    features: int
    block: str
    norm: str
    activation: str
    spectral: bool
    up: bool
    resample: bool
    first: bool
    axis_name: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, condition: Array | None, train: bool) -> Array:
        act = ACTIVATIONS[self.activation]
        # The condition goes where the network is a generator: a discriminator has a projection of it.
        normalize = lambda x: Normalize(self.norm, self.axis_name, self.dtype)(x, condition, train)
        layer = lambda x, features, size, **more: maybe_spectral(
            Conv(features, size, dtype=self.dtype, **more), self.spectral
        )(x, train)
        if self.block == 'plain':
            size, stride = (4, 2) if self.resample else (3, 1)
            x = layer(x, self.features, size, stride=stride, transposed=self.up and self.resample,
                      use_bias=self.norm != 'batch')  # fmt: skip
            return act(normalize(x))
        if self.block == 'residual':
            enter = upsample if self.up and self.resample else lambda x: x
            leave = downsample if not self.up and self.resample else lambda x: x
            bias = self.norm != 'batch'  # which takes it away again, wherever the sum is read
            h = enter(x if self.first else act(normalize(x)))
            h = layer(h, self.features, 3, use_bias=bias)
            h = leave(layer(act(normalize(h)), self.features, 3, use_bias=bias))
            if x.shape[-1] != self.features or self.resample:
                x = leave(layer(enter(x), self.features, 1, use_bias=bias))
            return x + h
        if self.resample and self.up:
            x = blur(upsample(x))
        if x.shape[-1] != self.features:
            x = layer(x, self.features, 1, use_bias=False)
        inner = 2 * self.features
        h = act(layer(x, inner, 1))
        h = act(layer(h, inner, 3, groups=max(inner // _GROUPED, 1) if inner % _GROUPED == 0 else 1))
        x = x + layer(h, self.features, 1, use_bias=False, kernel_init=nn.initializers.zeros)
        # Not before the layers, which would then never see the finest detail of an image.
        return downsample(blur(x)) if self.resample and not self.up else x


def fall(net: nn.Module, x: Array, train: bool) -> Array:
    """x (n, H, W, C) -> (n, H / 2ᴸ, W / 2ᴸ, features[-1]) of L = len(net.features) levels.

    To be called, as `rise`, inside the compact method of `net`, whose layers it makes and whose fields are those of
    `ImageNetwork`.
    """
    for level, features in enumerate(net.features):
        for d in range(net.depth):
            # DCGAN: no normalization where the image enters, for it would lose the image's own scale.
            first = level == d == 0
            norm = 'none' if first and net.block == 'plain' else net.norm
            x = _block(net, features, norm, up=False, resample=d == 0, first=first)(x, None, train)
        x = _attend(net, x, train)
    return x if net.block == 'plain' else ACTIVATIONS[net.activation](x)


def rise(net: nn.Module, x: Array, condition: Array | None, train: bool) -> Array:
    """x (n, h, w, c) -> (n, *net.shape), float32, the sides doubled once for every entry of net.features."""
    x = _attend(net, x, train)
    # Of a plain network the last level is the convolution that gives the image.
    for features in net.features[1:] if net.block == 'plain' else net.features:
        for d in range(net.depth):
            x = _block(net, features, net.norm, up=True, resample=d == 0)(x, condition, train)
        x = _attend(net, x, train)
    if net.block == 'plain':
        last = Conv(net.shape[-1], 4, 2, transposed=True, dtype=net.dtype, name='image')
    else:
        x = Normalize(net.norm, net.axis_name, net.dtype)(x, condition, train) if net.block == 'residual' else x
        x = ACTIVATIONS[net.activation](x)
        last = Conv(net.shape[-1], 3, dtype=net.dtype, name='image')
    return maybe_spectral(last, net.spectral)(x, train).astype(jnp.float32)


def _block(net: nn.Module, features: int, norm: str, up: bool, resample: bool, first: bool = False) -> _Block:
    return _Block(
        features, net.block, norm, net.activation, net.spectral, up, resample, first, net.axis_name, net.dtype
    )


def _attend(net: nn.Module, x: Array, train: bool) -> Array:
    """Self-attention where the side is the one that it is for."""
    return SelfAttention(net.spectral, net.dtype, name='attention')(x, train) if net.attention == x.shape[1] else x


class ImageNetwork(nn.Module, kw_only=True):
    """The fields that all have. axis_name: of the devices, under pmap."""

    features: Sequence[int]
    block: str
    norm: str
    activation: str
    spectral: bool = False
    attention: int = 0
    depth: int = 1
    axis_name: str | None = None
    dtype: Any = jnp.float32
    makes_images: ClassVar[bool] = False


class Encoder(ImageNetwork, kw_only=True):
    """x (n, H, W, C) -> mean and log-variance of q(z given x), (n, latent_dim) each."""

    latent_dim: int

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None, train: bool = False) -> tuple[Array, Array]:
        x = fall(self, x, train)
        x, fan_in = join(x.reshape(x.shape[0], -1), condition)
        kernel = lecun_normal(x.shape[-1], fan_in)
        out = nn.Dense(2 * self.latent_dim, dtype=self.dtype, kernel_init=kernel, name='head')(x).astype(jnp.float32)
        return out[:, : self.latent_dim], out[:, self.latent_dim :]


class Decoder(ImageNetwork, kw_only=True):
    """z (n, latent_dim) -> the natural parameters of p(x given z): logits or means, (n, *shape)."""

    shape: Sequence[int]
    makes_images: ClassVar[bool] = True

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, train: bool = False) -> Array:
        height, width = (side // 2 ** len(self.features) for side in self.shape[:2])
        z, fan_in = join(z, condition)
        kernel = lecun_normal(z.shape[-1], fan_in)
        conditional = condition if self.norm != 'none' else None
        centred = self.block == 'plain' and self.norm == 'batch'  # which would take a bias away again
        out = height * width * self.features[0]
        dense = nn.Dense(out, not centred, dtype=self.dtype, kernel_init=kernel, name='dense')
        x = maybe_spectral(dense, self.spectral)(z, train).reshape(-1, height, width, self.features[0])
        if self.block == 'plain':
            x = ACTIVATIONS[self.activation](Normalize(self.norm, self.axis_name, self.dtype)(x, conditional, train))
        return rise(self, x, conditional, train)


class Generator(Decoder, kw_only=True):
    """z (n, latent_dim) -> x (n, *shape), inside [−1, 1] where `bounded`."""

    bounded: bool

    def __call__(self, z: Array, condition: Array | None = None, train: bool = False) -> Array:
        x = super().__call__(z, condition, train)
        return jnp.tanh(x) if self.bounded else x


class Discriminator(ImageNetwork, kw_only=True):
    """x (n, H, W, C) -> logit of 'x is real' (n,), with the projection of a condition (Miyato & Koyama 2018, eq. 3).

    outputs: with more than 1 the logit is the first of (n, outputs).
    """

    deviation: int = 0
    outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None, train: bool = False) -> Array:
        x = fall(self, x, train)
        if self.deviation:
            x = minibatch_deviation(x, self.deviation)
        # SNGAN sums over places; of a plain network places stand side by side, as in DCGAN.
        x = x.sum((1, 2)) if self.block == 'residual' else x.reshape(x.shape[0], -1)
        head = maybe_spectral(nn.Dense(self.outputs, dtype=self.dtype, name='head'), self.spectral)
        logit = head(x, train)
        if condition is not None:
            # Variance 2 / features, however many classes there are: what Glorot's comes to in Miyato & Koyama's code,
            # where the features are many more than the classes.
            kernel = nn.initializers.variance_scaling(2.0, 'fan_out', 'uniform')
            embed = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=kernel, name='projection')
            projection = maybe_spectral(embed, self.spectral)(condition, train) * x
            logit = logit + jnp.sum(projection, axis=-1, keepdims=True)
        logit = logit.astype(jnp.float32)
        return logit[:, 0] if self.outputs == 1 else logit


class Classifier(ImageNetwork, kw_only=True):
    """x (n, H, W, C) -> logits of the classes, (n, outputs), of the means over all places."""

    outputs: int

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None, train: bool = False) -> Array:
        x = fall(self, x, train).mean((1, 2))
        head = maybe_spectral(nn.Dense(self.outputs, dtype=self.dtype, name='head'), self.spectral)
        return head(x, train).astype(jnp.float32)


def check(network: ImageNetwork, shape: Sequence[int], what: str) -> None:
    """Raises UserError for fields of `what`, those of `network`, that images of `shape` or each other do not fit."""
    levels = len(network.features)
    if len(shape) != 3:
        raise UserError('model.kind: conv is for images; set it to mlp')
    if not levels or any(side % 2**levels for side in shape[:2]):
        raise UserError(
            f'{what}.features: {levels} levels halve the sides {shape[0]} and {shape[1]} {levels} times; '
            f'give as many as go without a remainder, 1 or more'
        )
    if isinstance(network, Discriminator) and network.deviation == 1:
        raise UserError(f'{what}.deviation: 1; a deviation is of 2 examples or more, and 0 leaves it out')
    if network.norm != 'none' and network.block == 'modern':
        raise UserError(f'{what}.norm: a modern block has none; set it to none, or the block to plain or residual')
    if network.spectral and network.block == 'modern':
        raise UserError(
            f'{what}.spectral: a modern block begins with a kernel of zeros, which has no largest singular value; '
            'choose plain or residual'
        )
    # As high as the image only what makes one, where its last level is a block.
    whole = network.makes_images and network.block != 'plain'
    sides = [shape[0] // 2**level for level in range(0 if whole else 1, levels + 1)]
    if network.attention and network.attention not in sides:
        known = ', '.join(map(str, sides))
        raise UserError(f'{what}.attention: {network.attention}; its sides are {known}, and 0 leaves attention out')
