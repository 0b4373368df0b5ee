"""A decoder-only Transformer: GPT-2's block (Radford et al. 2019), or today's, by its fields."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn import blocks
from aigc_jax.nn.blocks import Block, Common
from aigc_jax.nn.language_layers import Draw, State, dropout, logits, look

FIELDS = {
    **blocks.FIELDS,
    'tied': Field(bool, doc='whether embedding and head are one matrix'),
    'softcap': Field(float, least=0, doc='bound of the logits; 0: none'),
    'window': Field(int, least=0, doc='tokens that a token looks back at; 0: all'),
    'remat': Field(bool, doc='whether each block is computed again in the backward pass, to save memory'),
    'scan_layers': Field(bool, doc='whether one block is compiled for all layers: for deep models; wants no dropout'),
}


class Transformer(Common, kw_only=True):
    """tokens (n, L) int32 -> logits of the token after each, (n, L, vocab) float32, and the state after them.

    scan_layers: the blocks are one, with stacked parameters 'blocks', in a loop. context: the most tokens that it sees.
    end: the token that begins a document, where attention stops at it; None: it does not.
    """

    vocab_size: int
    context: int
    end: int | None
    tied: bool
    softcap: float
    window: int
    remat: bool
    scan_layers: bool = False

    def initial_state(self, n: int, columns: int) -> State:
        """For texts that fill at most `columns` columns; State.start is to be set."""
        shape = (n, self.kv_heads, columns, self.head_features)
        empty = lambda *axes: {name: jnp.zeros((*axes, *shape), self.dtype) for name in 'kv'}
        layers = empty(self.layers) if self.scan_layers else [empty() for _ in range(self.layers)]
        return State(jnp.int32(0), layers, jnp.zeros((n,), jnp.int32))

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
        block = nn.remat(Block, static_argnums=(6,)) if self.remat and state is None else Block
        layers = None if state is None else state.layers
        common = self.common()
        if self.scan_layers:
            given = nn.broadcast, nn.broadcast, 0, nn.broadcast, nn.broadcast
            block = nn.scan(
                block, {'params': 0, 'intermediates': 0}, split_rngs={'params': True}, in_axes=given, length=self.layers
            )
            x, layers = block(index=0, name='blocks', **common)(x, position, mask, layers, first, None)
        else:
            caches = layers or self.layers * [None]
            layers = []
            for i, cache in enumerate(caches):
                x, cache = block(index=i, name=f'block_{i}', **common)(x, position, mask, cache, first, draw)
                layers.append(cache)
        out = logits(self._norm('norm')(x), embed, self.tied, self.zero_init, self.softcap, self.dtype)
        return out, None if state is None else state._replace(column=first + length, layers=layers)


def check(module: Transformer, what: str) -> None:
    """Raises UserError for fields of `what` that contradict one another."""
    blocks.check(module, what)
    if module.scan_layers and module.dropout:
        raise UserError(f'{what}.dropout: with scan_layers all layers would draw the same; set one of them to none')
