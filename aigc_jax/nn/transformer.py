"""A decoder-only Transformer: GPT-2's block (Radford et al. 2019), or today's, by its fields."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn import blocks, stacks
from aigc_jax.nn.language_layers import Draw, State, dropout, logits, look
from aigc_jax.nn.stacks import Stack

FIELDS = {
    **stacks.FIELDS,
    'tied': Field(bool, doc='whether embedding and head are one matrix'),
    'softcap': Field(float, least=0, doc='bound of the logits; 0: none'),
    'window': Field(int, least=0, doc='tokens that a token looks back at; 0: all'),
}


class Transformer(Stack, kw_only=True):
    """tokens (n, L) int32 -> logits of the token after each, (n, L, vocab) float32, and the state after them.

    context: the most tokens that it sees. end: the token that begins a document, where attention stops at it; None: it
    does not.
    """

    vocab_size: int
    context: int
    end: int | None
    tied: bool
    softcap: float
    window: int
    remat: bool

    def initial_state(self, n: int, columns: int) -> State:
        """For texts that fill at most `columns` columns; State.start is to be set."""
        return State(jnp.int32(0), self.empty_caches(self.layers, n, columns), jnp.zeros((n,), jnp.int32))

    @nn.compact
    def __call__(self, tokens: Array, state: State | None = None, draw: Draw = None) -> tuple[Array, State | None]:
        n, length = tokens.shape
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name='embed'
        )
        first = jnp.int32(0) if state is None else state.column
        columns = length if state is None else jax.tree.leaves(state.layers)[0].shape[-2]
        place, keys, mask = look(state, length, columns)
        position = place[None]
        if state is not None:
            position = jnp.maximum(position - state.start[:, None], 0)
            mask = mask & (keys >= state.start[:, None])[:, None]
        if self.window:
            mask = mask & (keys > place[:, None] - self.window)
        if self.end is not None and state is None:
            document = jnp.cumsum(tokens == self.end, axis=1)
            mask = mask & (document[:, :, None] == document[:, None, :])
        if self.attention == 'cudnn' and state is None and not self.window and self.end is None and blocks.on_gpu():
            mask = None  # the fused kernel would read it without need
        x = embed(tokens)
        if self.position == 'learned':
            table = nn.Embed(
                self.context, self.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name='position'
            )
            # Speculation may read beyond the context what it then takes back; flax gives nan there.
            x = x + table(jnp.minimum(position, self.context - 1))
        x = dropout(x, self.dropout, draw, 'embed')
        stack = self.stack(self.layers, self.remat and state is None)
        caches = None if state is None else state.layers
        x, layers = stacks.through(stack, x, position, mask, caches, first, draw)
        out = logits(self._norm('norm')(x), embed, self.tied, self.zero_init, self.softcap, self.dtype)
        return out, None if state is None else state._replace(column=first + length, layers=layers)
