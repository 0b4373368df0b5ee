"""What language models share: the state that decoding carries, dropout, and the layer from features to logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array, Tree

# draw(name, shape) -> (n, *shape) uniforms of each example (rng.Context.uniform); None: no dropout, as in evaluation.
Draw = Callable[[str, tuple[int, ...]], Array] | None


class Beams(NamedTuple):
    """k texts in the columns of one row, of which each call of a model reads the next token, in columns side by side.

    place: (C,) int32, of each column, the place of its token in the text; seen: (n, k, C) bool, what each of the k next
    tokens looks at, itself included.
    """

    place: Array
    seen: Array


class State(NamedTuple):
    """What a language model has read.

    column: () int32, how many columns; layers: keys and values, with columns at axis −2, or recurrent states, (n, …)
    each, or (layers, n, …) of layers in one;
    start: (n,) int32, the column where each text begins, so that texts of unequal length end in one column.
    source: of an encoder-decoder, what it has read of the texts that these are written for; () of others.
    beams: of attention, whose keys and values the texts of a row may share; None: a row holds one text.
    """

    column: Array
    layers: Tree
    start: Array
    source: Tree = ()
    beams: Beams | None = None


def widened(state: State, columns: int) -> State:
    """`state` with so many more columns, which are empty."""
    wider = lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, columns), (0, 0)])
    return state._replace(layers=jax.tree.map(wider, state.layers))


def look(state: State | None, length: int, columns: int) -> tuple[Array, Array, Array]:
    """What attention looks at, with the keys of a state or of the next tokens alone.

    Returns the places of the next tokens, (length,), or (1,) where all have one; those of the keys, (columns,); and a
    mask (n or 1, length, columns), True where a token looks.
    """
    if state is not None and state.beams is not None:
        return jax.lax.dynamic_slice_in_dim(state.beams.place, state.column, 1), *state.beams
    place, key = jnp.arange(length), jnp.arange(columns)
    place = place if state is None else state.column + place
    return place, key, (key <= place[:, None])[None]


def dropout(x: Array, rate: float, draw: Draw, name: str) -> Array:
    """Srivastava et al. 2014, scaled while training; the draw of an example is its own, whatever device it is on."""
    if not rate or draw is None:
        return x
    return jnp.where(draw(f'dropout/{name}', x.shape[1:]) < rate, 0, x / (1 - rate)).astype(x.dtype)


class Dense(nn.Dense):
    """nn.Dense over all rows at once, (…, in) -> (…, out).

    With one leading axis XLA takes the gradient of the kernel from x as it lies; with two it first copies x transposed.
    """

    def __call__(self, x: Array) -> Array:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


FEW = 16  # rows, or queries


def tied_logits(x: Array, embed: nn.Embed) -> Array:
    """x Eᵀ with the embedding E, (…, width) -> (…, vocab)."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= FEW and jax.default_backend() == 'cpu':
        out = _few_logits(*nn.dtypes.promote_dtype(rows, embed.embedding, dtype=embed.dtype))
    else:
        out = embed.attend(rows)
    return out.reshape(*x.shape[:-1], -1)


def _few_logits(rows: Array, table: Array) -> Array:
    """x Eᵀ of the few rows of a step of decoding, whose time is that of reading E.

    XLA's product x Eᵀ takes 1.2 to 1.8 times as long as E xᵀ, and for one row 4 times (jax 0.12). For 2 to 8 rows E xᵀ
    takes 1.2 times as long as a sum of products, which for one row takes 60 times as long (jax 0.10).
    """
    if 1 < len(rows) <= FEW // 2:
        wide = jnp.promote_types(table.dtype, jnp.float32)  # a product sums in float32 at least
        out = jnp.sum(table[:, None].astype(wide) * rows, axis=-1).astype(table.dtype)
    else:
        out = jnp.einsum('vd,nd->vn', table, rows)
    return jax.lax.optimization_barrier(out).T


def logits(x: Array, embed: nn.Embed, tied: bool, zero_init: bool, softcap: float, dtype: Any) -> Array:
    """(…, width) -> (…, vocab) float32; to be called inside a compact method, whose layer 'head' it makes.

    softcap: c tanh(l / c), Gemma Team 2024, section 2 (Gemma 2); 0: none.
    """
    if tied:
        out = tied_logits(x, embed)
    else:
        initializer = nn.initializers.zeros if zero_init else nn.initializers.normal(0.02)
        out = Dense(embed.num_embeddings, use_bias=False, kernel_init=initializer, dtype=dtype, name='head')(x)
    out = out.astype(jnp.float32)
    return softcap * jnp.tanh(out / softcap) if softcap else out
