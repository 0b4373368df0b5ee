"""Fully connected networks: encoder, decoder, generator, discriminator. Shapes in, shapes out, no loss.

Parameters are float32; `dtype` is what the products are computed in. The outputs are float32 whatever it is.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array


def _uniform_bias(fan_in: int) -> Callable[..., Array]:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


# Of the hidden layers. 'uniform': U(±1/√fan_in), as torch.nn.Linear's; with 'zeros' the kinks of a first layer of ReLUs
# all begin in the origin, from where they take long to spread over data of two dimensions.
BIASES = {'zeros': lambda fan_in: nn.initializers.zeros, 'uniform': _uniform_bias}
ACTIVATIONS = {
    name: getattr(jax.nn, name) for name in ('relu', 'leaky_relu', 'elu', 'gelu', 'silu', 'tanh', 'softplus', 'sigmoid')
} | {'leaky_relu_0.2': functools.partial(jax.nn.leaky_relu, negative_slope=0.2)}
FIELDS = {
    'features': Field(tuple, items=Field(int, least=1), doc='widths of the hidden layers'),
    'activation': Field(str, choices=tuple(ACTIVATIONS), doc='of the hidden layers'),
    'bias_init': Field(
        str, choices=tuple(BIASES), doc="`zeros`, or `uniform` in ±1/√(inputs), PyTorch's default",
    ),
    'kernel_init': Field(
        str, choices=('lecun_normal', 'glorot_normal'),
        doc='variance 1 / inputs (LeCun et al. 1998) or 2 / (inputs + outputs) (Glorot & Bengio 2010)',
    ),
}  # fmt: skip


def join(x: Array, condition: Array | None) -> tuple[Array, int]:
    """x (n, d) and a one-hot condition (n, c) side by side, and the fan-in that the layer which reads them is drawn
    for: d + 1, as one entry of a one-hot vector is 1, however many classes there are."""
    if condition is None:
        return x, x.shape[-1]
    return jnp.concatenate([x, condition], axis=-1), x.shape[-1] + 1


def lecun_normal(inputs: int, fan_in: int) -> Callable[..., Array]:
    """Of a kernel with so many inputs: the variance is 1 / fan_in (LeCun et al. 1998)."""
    return nn.initializers.variance_scaling(inputs / fan_in, 'fan_in', 'truncated_normal')


KERNELS = {'lecun_normal': lecun_normal, 'glorot_normal': lambda inputs, fan_in: nn.initializers.glorot_normal()}


class MLP(nn.Module):
    """(n, …) and an optional one-hot condition (n, c) -> (n, out_dim) float32."""

    features: Sequence[int]
    out_dim: int
    activation: str
    bias_init: str
    dtype: Any = jnp.float32
    kernel_init: str = 'lecun_normal'

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        x, fan_in = join(x.reshape(x.shape[0], -1), condition)
        drawn = KERNELS[self.kernel_init]
        for features in self.features:
            kernel, bias = drawn(x.shape[-1], fan_in), BIASES[self.bias_init](fan_in)
            x = nn.Dense(features, dtype=self.dtype, kernel_init=kernel, bias_init=bias)(x)
            x, fan_in = ACTIVATIONS[self.activation](x), features
        kernel = drawn(x.shape[-1], fan_in)
        return nn.Dense(self.out_dim, dtype=self.dtype, kernel_init=kernel)(x).astype(jnp.float32)


class _Network(nn.Module, kw_only=True):
    """The fields that the networks have in common."""

    features: Sequence[int]
    activation: str
    bias_init: str
    dtype: Any = jnp.float32

    def _mlp(self, x: Array, condition: Array | None, out_dim: int, **more) -> Array:
        mlp = MLP(self.features, out_dim, self.activation, self.bias_init, self.dtype, **more, name='mlp')
        return mlp(x, condition)


class Encoder(_Network, kw_only=True):
    """x (n, …) -> mean and log-variance of q(z given x), (n, latent_dim) each."""

    latent_dim: int

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None, train: bool = False) -> tuple[Array, Array]:
        out = self._mlp(x, condition, 2 * self.latent_dim)
        return out[:, : self.latent_dim], out[:, self.latent_dim :]


class Decoder(_Network, kw_only=True):
    """z (n, latent_dim) -> the natural parameters of p(x given z): logits or means, (n, *shape).

    A decoder sees z (and the condition) alone, never what the encoder saw.
    """

    shape: Sequence[int]

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, train: bool = False) -> Array:
        return self._mlp(z, condition, math.prod(self.shape)).reshape(-1, *self.shape)


class Generator(_Network, kw_only=True):
    """z (n, latent_dim) -> x (n, *shape), inside [−1, 1] where `bounded`."""

    shape: Sequence[int]
    bounded: bool

    @nn.compact
    def __call__(self, z: Array, condition: Array | None = None, train: bool = False) -> Array:
        decoder = Decoder(
            features=self.features, activation=self.activation, bias_init=self.bias_init, dtype=self.dtype,
            shape=self.shape, name='decoder',
        )  # fmt: skip
        x = decoder(z, condition)
        return jnp.tanh(x) if self.bounded else x


class Discriminator(_Network, kw_only=True):
    """x (n, …) -> logit of 'x is real' (n,); with `outputs` above 1 it is the first of (n, outputs)."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None, train: bool = False) -> Array:
        out = self._mlp(x, condition, self.outputs)
        return out[:, 0] if self.outputs == 1 else out


class Classifier(_Network, kw_only=True):
    """x (n, …) -> logits of the classes, (n, outputs)."""

    outputs: int
    kernel_init: str = 'lecun_normal'

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None, train: bool = False) -> Array:
        return self._mlp(x, condition, self.outputs, kernel_init=self.kernel_init)
