"""Normalizing flows: invertible maps of vectors whose log|det J| costs nothing beside them."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn import mlp
from aigc_jax.nn.mlp import ACTIVATIONS

FIELDS = {
    'layers': Field(int, least=1, doc='couplings, or autoregressive transformations'),
    'features': mlp.FIELDS['features'],
    'activation': mlp.FIELDS['activation'],
}
_BOUND = 2.0  # of |log scale| in one layer, so that no layer overflows


class Flow(nn.Module):
    """`layers` affine maps y = x ⊙ exp(s) + t, s and t from masked networks; begins as the identity.

    kind: 'realnvp' (Dinh et al. 2017, eq. 4 and 5): s and t of every second dimension are functions of the others,
        which stay as they are; as fast in both directions. 'iaf' (Kingma et al. 2016): those of dimension i are
        functions of x_1 … x_{i−1}, or of those behind it in every second layer; its inverse takes latent_dim passes.
    context_dim: numbers beside x that s and t are functions of; 0: there are none.
    """

    kind: str
    latent_dim: int
    context_dim: int
    layers: int
    features: Sequence[int]
    activation: str

    @nn.compact
    def __call__(self, z: Array, context: Array | None = None, inverse: bool = False) -> tuple[Array, Array]:
        """z (…, d), context (…, c) -> (f(z), log|det ∂f/∂z| (…)); with `inverse`, the same of f⁻¹."""
        layers = [self._layer(index) for index in range(self.layers)]
        log_det = jnp.zeros(z.shape[:-1])
        for degrees, network in reversed(layers) if inverse else layers:
            if inverse:
                z, s = self._invert(z, context, degrees, network)
                log_det = log_det - jnp.sum(s, axis=-1)
            else:
                t, s = network(z, context)
                z, log_det = z * jnp.exp(s) + t, log_det + jnp.sum(s, axis=-1)
        return z, log_det

    def _invert(self, y: Array, context: Array | None, degrees: np.ndarray, network: Callable):
        """(x, s) of y = x ⊙ exp(s) + t: the dimensions one degree after the other, each from those before it."""

        def solve(found, degree):
            x, s = found
            shift, log_scale = network(x, context)
            now = degrees == degree
            return (jnp.where(now, (y - shift) * jnp.exp(-log_scale), x), jnp.where(now, log_scale, s)), None

        first = 1 + (self.kind == 'realnvp')  # whose dimensions of degree 1 stay as they are
        start = jnp.where(degrees < first, y, 0.0), jnp.zeros_like(y)
        return jax.lax.scan(solve, start, jnp.arange(first, degrees.max() + 1))[0]

    def _layer(self, index: int) -> tuple[np.ndarray, Callable]:
        """(degrees (d,), network(x, context) -> (t, s)): those of a dimension see dimensions of lower degrees alone.

        Masks by degrees: Germain et al. 2015 (MADE).
        """
        place, is_coupling = np.arange(self.latent_dim), self.kind == 'realnvp'
        degrees = 1 + ((place + index) % 2 if is_coupling else place[:: -1 if index % 2 else 1])
        # Units of degree 0 see the context alone, which is all that a first dimension of an IAF can see.
        least = 0 if self.context_dim and not is_coupling else 1
        d, zeros, lecun = self.latent_dim, nn.initializers.zeros, nn.initializers.lecun_normal()
        hidden = [
            (f'{index}_{number}', lecun, least + np.arange(features) % max(degrees.max() - least, 1))
            for number, features in enumerate(self.features)
        ]
        layers = [*hidden, (f'{index}_out', zeros, np.tile(degrees - 1, 2))]
        before, weights = degrees, []
        for name, initializer, after in layers:
            kernel = self.param(f'kernel_{name}', initializer, (len(before), len(after)))
            bias = self.param(f'bias_{name}', zeros, (len(after),))
            weights.append((kernel * (after >= before[:, None]), bias))
            before = after
        _, initializer, after = layers[0]
        if self.context_dim:
            side = self.param(f'kernel_{index}_context', initializer, (self.context_dim, len(after)))
        moved = degrees > 1 if is_coupling else np.ones(d, bool)

        def network(x: Array, context: Array | None) -> tuple[Array, Array]:
            for number, (kernel, bias) in enumerate(weights):
                x = x @ kernel + bias
                if number == 0 and self.context_dim:
                    x = x + context @ side
                if number < len(hidden):
                    x = ACTIVATIONS[self.activation](x)
            t, s = x[..., :d], _BOUND * jnp.tanh(x[..., d:] / _BOUND)
            return t * moved, s * moved

        return degrees, network
