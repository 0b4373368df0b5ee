"""Recurrent language models: LSTM, GRU, and a linear recurrence that is computed by an associative scan."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array, Tree
from aigc_jax.nn.language import Dense, Draw, State, dropout, logits

CHOICES = {'cell': ('lstm', 'gru', 'linear')}


def lstm(pre: Array, x: Array, state: Tree) -> Tree:
    """Hochreiter & Schmidhuber 1997, forget gates of Gers et al. 2000. state (h, c); pre = h W; x: projected input."""
    _, c = state
    i, f, g, o = jnp.split(x + pre, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(pre: Array, x: Array, state: Tree) -> Tree:
    """Cho et al. 2014, the reset gate after the product, as cuDNN has it."""
    (h,) = state
    xr, xz, xn = jnp.split(x, 3, axis=-1)
    hr, hz, hn = jnp.split(pre, 3, axis=-1)
    z = jax.nn.sigmoid(xz + hz)
    return ((1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + z * h,)


_CELLS = {'lstm': (lstm, 4, 2), 'gru': (gru, 3, 1)}  # gates, and arrays of state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unroll(cell, weights: Array, xs: Array, keep: Array, state: Tree) -> tuple[Array, Tree]:
    """h of every step (L, n, d), and the last state.

    xs (L, n, gates · d) projected inputs, weights (d, gates · d), state (n, d) each.
    keep (L, n, 1): what the state is multiplied by before each step, 0 where a text begins.

    The gradient of the weights is one product over all steps, where the derivative of a scan would add up L of them.
    """
    return _forward(cell, weights, xs, keep, state)[0]


def _forward(cell, weights, xs, keep, state):
    def step(state, inputs):
        x, k = inputs
        before = tuple(part * k for part in state)
        pre = before[0] @ weights
        after = cell(pre, x, before)
        return after, (after[0], before, pre)

    last, (hs, before, pre) = jax.lax.scan(step, state, (xs, keep))
    return (hs, last), (weights, xs, keep, before, pre)


def _backward(cell, residuals, gradients):
    weights, xs, keep, before, pre = residuals
    d_hs, d_last = gradients

    def step(d_state, inputs):
        d_h, x, k, before, pre = inputs
        d_state = (d_state[0] + d_h, *d_state[1:])
        d_pre, d_x, d_before = jax.vjp(cell, pre, x, before)[1](d_state)
        d_before = (d_before[0] + d_pre @ weights.T, *d_before[1:])
        return tuple(part * k for part in d_before), (d_pre, d_x)

    d_state, (d_pre, d_xs) = jax.lax.scan(step, d_last, (d_hs, xs, keep, before, pre), reverse=True)
    d_weights = jnp.einsum('lnd,lng->dg', before[0], d_pre)
    return d_weights, d_xs, jnp.zeros_like(keep), d_state


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
        cell, gates, _ = _CELLS[self.cell]
        uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # U(±1/√fan_in), torch.nn.LSTM's
        xs = Dense(gates * self.features, kernel_init=uniform, dtype=self.dtype, name='input')(x.transpose(1, 0, 2))
        shape = (self.features, gates * self.features)
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
        arrays = 1 if self.cell == 'linear' else _CELLS[self.cell][2]
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
