"""Recurrent language models: LSTM, GRU, and a linear recurrence that is computed by an associative scan."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Tree
from aigc_jax.nn.language_layers import Dense, Draw, State, dropout, logits

FIELDS = {
    'cell': Field(str, choices=('lstm', 'gru', 'linear'), doc='the recurrence'),
    'layers': Field(int, least=1, doc='recurrent layers'),
    'features': Field(int, least=1, doc='width of the state and of the embedding'),
    'tied': Field(bool, doc='whether embedding and head are one matrix'),
    'dropout': Field(float, least=0, below=1, doc='share of the inputs of each layer that are dropped in training'),
}


class Cell(NamedTuple):
    """A recurrent network of d units with `gates` · d projected inputs x and `arrays` of state, h first.

    step(x, h W, state) -> the state after, and kept: h before, and what else back wants;
    back(kept, the gradient of the state after) -> the gradients of x and h W, once where they are one, and that of
    state. By hand, since jax.vjp would keep twice as many arrays, or compute the gates once more.
    """

    step: Callable[[Array, Array, Tree], tuple[Tree, Tree]]
    back: Callable[[Tree, Tree], tuple[tuple[Array, ...], Tree]]
    gates: int
    arrays: int


def _lstm(x: Array, pre: Array, state: Tree) -> tuple[Tree, Tree]:
    """Hochreiter & Schmidhuber 1997, forget gates of Gers et al. 2000; state (h, c)."""
    i, f, g, o = jnp.split(x + pre, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * state[1] + i * g
    tanh_c = jnp.tanh(c)
    return (o * tanh_c, c), (*state, i, f, g, o, tanh_c)


def _lstm_back(kept: Tree, gradient: Tree) -> tuple[tuple[Array], Tree]:
    _, c, i, f, g, o, tanh_c = kept
    d_h, d_c = gradient[0], gradient[1] + gradient[0] * o * (1 - tanh_c**2)
    gates = d_c * g * i * (1 - i), d_c * c * f * (1 - f), d_c * i * (1 - g**2), d_h * tanh_c * o * (1 - o)
    return (jnp.concatenate(gates, axis=-1),), (jnp.zeros_like(d_h), d_c * f)


def _gru(x: Array, pre: Array, state: Tree) -> tuple[Tree, Tree]:
    """Cho et al. 2014, the reset gate after the product, as cuDNN has it; state (h,)."""
    (xr, xz, xn), (hr, hz, hn) = (jnp.split(part, 3, axis=-1) for part in (x, pre))
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * hn)
    return ((1 - z) * n + z * state[0],), (*state, r, z, n, hn)


def _gru_back(kept: Tree, gradient: Tree) -> tuple[tuple[Array, Array], Tree]:
    h, r, z, n, hn = kept
    d_h, d_n = gradient[0], gradient[0] * (1 - z) * (1 - n**2)
    gates = d_n * hn * r * (1 - r), d_h * (h - n) * z * (1 - z)
    return tuple(jnp.concatenate([*gates, d], axis=-1) for d in (d_n, d_n * r)), (d_h * z,)


CELLS = {'lstm': Cell(_lstm, _lstm_back, 4, 2), 'gru': Cell(_gru, _gru_back, 3, 1)}


def _times(weights: Array, steps: int) -> Callable[[Array], Array]:
    """x (n, d) -> x weights (n, e), for so many steps.

    XLA's product on a CPU copies its right factor, in each step, into the order that it computes in. So there the right
    factor is xᵀ, by far the smaller one; the barriers keep XLA from turning it round again.
    """
    if steps == 1 or jax.default_backend() != 'cpu':
        return lambda x: x @ weights
    barrier = jax.lax.optimization_barrier
    transposed = barrier(weights.T)  # once for all steps
    return lambda x: barrier(transposed @ barrier(x.T)).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unroll(cell: Cell, weights: Array, xs: Array, keep: Array, state: Tree) -> tuple[Array, Tree]:
    """h of every step (L, n, d), and the last state.

    xs (L, n, gates · d) projected inputs, weights (d, gates · d), state (n, d) each.
    keep (L, n, 1): what the state is multiplied by before each step, 0 where a text begins.

    The gradient of the weights is one product over all steps, where the derivative of a scan would add up L of them.
    """
    return _forward(cell, weights, xs, keep, state)[0]


def _forward(cell, weights, xs, keep, state):
    project = _times(weights, len(xs))

    def step(state, inputs):
        x, k = inputs
        before = tuple(part * k for part in state)
        after, kept = cell.step(x, project(before[0]), before)
        return after, (after[0], kept)

    last, (hs, kept) = jax.lax.scan(step, state, (xs, keep))
    return (hs, last), (weights, keep, kept)


def _backward(cell, residuals, gradients):
    weights, keep, kept = residuals
    d_hs, d_last = gradients
    project = _times(weights.T, len(keep))

    def step(d_state, inputs):
        d_h, k, kept = inputs
        d_inputs, d_before = cell.back(kept, (d_state[0] + d_h, *d_state[1:]))
        d_before = (d_before[0] + project(d_inputs[-1]), *d_before[1:])
        return tuple(part * k for part in d_before), d_inputs

    d_state, d_inputs = jax.lax.scan(step, d_last, (d_hs, keep, kept), reverse=True)
    return jnp.einsum('lnd,lng->dg', kept[0], d_inputs[-1]), d_inputs[0], jnp.zeros_like(keep), d_state


unroll.defvjp(_forward, _backward)


class Layer(nn.Module):
    """x (n, L, features), state (arrays (n, features)) -> the same."""

    cell: str
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, keep: Array, state: Tree) -> tuple[Array, Tree]:
        """keep (n, L): 0 where the state is to begin anew before that token, else 1."""
        x, state = x.astype(self.dtype), tuple(part.astype(self.dtype) for part in state)
        keep = keep.astype(self.dtype)[..., None]
        if self.cell == 'linear':
            return self._linear(x, keep, state)
        cell = CELLS[self.cell]
        uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # U(±1/√fan_in), torch.nn.LSTM's
        xs = Dense(cell.gates * self.features, kernel_init=uniform, dtype=self.dtype, name='input')(
            x.transpose(1, 0, 2)
        )
        shape = (self.features, cell.gates * self.features)
        weights = self.param('recurrent', nn.initializers.orthogonal(), shape).astype(self.dtype)
        hs, state = unroll(cell, weights, xs, keep.transpose(1, 0, 2), state)
        return hs.transpose(1, 0, 2), state

    def _linear(self, x: Array, keep: Array, state: Tree) -> tuple[Array, Tree]:
        """h_t = (1 − z_t) ⊙ h_{t−1} + z_t ⊙ h̃_t, z and h̃ of the input alone: minGRU (Feng et al. 2024, section 3.1).

        A pre-norm residual block about it, since a stack of linear recurrences wants both.
        """
        h = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(x)
        z = jax.nn.sigmoid(Dense(self.features, dtype=self.dtype, name='gate')(h))
        a, b = (1 - z) * keep, z * Dense(self.features, dtype=self.dtype, name='input')(h)
        b = b.at[:, 0].add(a[:, 0] * state[0])
        join = lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1])
        hs = jax.lax.associative_scan(join, (a, b), axis=1)[1]
        out = Dense(self.features, dtype=self.dtype, name='out')(hs * jax.nn.silu(h))
        return x + out, (hs[:, -1],)


class Recurrent(nn.Module):
    """tokens (n, L) int32 and the state before them -> logits of the token after each, (n, L, vocab), and the state.

    end: the token that begins a document, before which the state begins anew; None: it never does.
    """

    vocab_size: int
    end: int | None
    cell: str
    layers: int
    features: int
    tied: bool
    dropout: float
    dtype: Any = jnp.float32

    def initial_state(self, n: int, columns: int = 0) -> State:
        arrays = 1 if self.cell == 'linear' else CELLS[self.cell].arrays
        zeros = lambda: jnp.zeros((n, self.features), jnp.float32)
        layers = [tuple(zeros() for _ in range(arrays)) for _ in range(self.layers)]
        return State(jnp.int32(0), layers, jnp.zeros((n,), jnp.int32))

    @nn.compact
    def __call__(self, tokens: Array, state: State | None = None, draw: Draw = None) -> tuple[Array, State]:
        n, length = tokens.shape
        state = self.initial_state(n) if state is None else state
        initializer = nn.initializers.normal(0.02 if self.tied else self.features**-0.5)
        embed = nn.Embed(self.vocab_size, self.features, embedding_init=initializer, dtype=self.dtype, name='embed')
        # What filled the columns left of a text is forgotten in its first one; in column 0 nothing has been read yet.
        column = state.column + jnp.arange(length)
        fresh = (column == state.start[:, None]) & (column > 0)
        if self.end is not None:
            fresh = fresh | (tokens == self.end)
        keep = jnp.where(fresh, 0.0, 1.0)
        x, layers = dropout(embed(tokens), self.dropout, draw, 'embed'), []
        for i in range(self.layers):
            x, after = Layer(self.cell, self.features, self.dtype, name=f'layer_{i}')(x, keep, state.layers[i])
            layers.append(tuple(part.astype(jnp.float32) for part in after))
            x = dropout(x, self.dropout, draw, f'{i}')
        if self.cell == 'linear':
            x = nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(x)
        out = logits(x, embed, self.tied, False, 0.0, self.dtype)
        return out, State(state.column + length, layers, state.start)
