"""The blocks of a Transformer one after the other, or one in a loop.

Shapes: n texts, L tokens, K heads of d features with keys and values.
"""

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn import blocks
from aigc_jax.nn.blocks import Block, Common
from aigc_jax.nn.language_layers import Draw

FIELDS = {
    **blocks.FIELDS,
    'remat': Field(bool, doc='whether each block is computed again in the backward pass, to save memory'),
    'scan_layers': Field(bool, doc='whether one block is compiled for all layers: for deep models; wants no dropout'),
}


class Stack(Common, kw_only=True):
    """A model of blocks: a list of them, 'block_0' and on, or, with scan_layers, one in a loop, 'blocks', whose
    parameters and caches have the layers as their first axis."""

    scan_layers: bool = False

    def stack(self, layers: int, remat: bool, prefix: str = '', **own):
        """The blocks, with the attributes `own` beside those in common, for `through`. The layers of a stack that has a
        prefix, 'encoder_', are 'encoder_0' and on, or 'encoder_blocks'."""
        block = nn.remat(Block, static_argnums=(6,)) if remat else Block
        own = self.common() | own
        if not self.scan_layers:
            return [block(index=i, name=f'{prefix or "block_"}{i}', **own) for i in range(layers)]
        given = nn.broadcast, nn.broadcast, 0, *5 * (nn.broadcast,)
        scanned = nn.scan(
            block, {'params': 0, 'intermediates': 0}, split_rngs={'params': True}, in_axes=given, length=layers
        )
        return scanned(index=0, name=f'{prefix}blocks', **own)

    def empty_caches(self, layers: int, n: int, columns: int) -> list[dict] | dict:
        """Of texts that fill at most `columns` columns: keys and values (n, K, columns, d) of each layer."""
        shape = (n, self.kv_heads or self.heads, columns, self.head_features)
        empty = lambda *axes: {name: jnp.zeros((*axes, *shape), self.dtype) for name in 'kv'}
        return empty(layers) if self.scan_layers else [empty() for _ in range(layers)]


def through(
    stack, x: Array, position: Array, mask: Array | None, caches: list[dict] | dict | None, column: Array, draw: Draw,
    bias: Array | None = None, memory: Array | None = None, memory_mask: Array | None = None,
):  # fmt: skip
    """x (n, L, width) through the blocks of Stack.stack -> the same, and the caches. caches: those that a Block has, of
    each layer, or stacked with scan_layers; None: none. The rest is as a Block has it."""
    if not isinstance(stack, (list, tuple)):  # in a loop, where `check` has refused dropout
        return stack(x, position, mask, caches, column, None, bias, memory, memory_mask)
    found = []
    for block, cache in zip(stack, caches or len(stack) * [None], strict=True):
        x, cache = block(x, position, mask, cache, column, draw, bias, memory, memory_mask)
        found.append(cache)
    return x, found


def check(module: Stack, what: str) -> None:
    """Raises UserError for fields of `what` that contradict one another."""
    if module.attention == 'cudnn' and module.dtype == jnp.float32:
        raise UserError(f'{what}.attention: cudnn has no float32; set precision to bfloat16, or it to xla')
    if (not module.head_width and module.width % module.heads) or module.heads % module.kv_heads:
        raise UserError(f'{what}.heads: it divides {what}.width, and {what}.kv_heads divides it')
    if module.position == 'rope' and module.head_features % 2:
        raise UserError(f'{what}.position: rope turns pairs of features; a head has {module.head_features}')
    if len(module.rope_scaling) not in (0, 4):
        raise UserError(f'{what}.rope_scaling: {module.rope_scaling}; it has four numbers, or none')
    check_dropout(module, what)


def check_dropout(module: Stack, what: str) -> None:
    """Raises UserError for a dropout that other fields of `what` have no room for."""
    if module.attention != 'einsum' and module.dropout:
        raise UserError(f'{what}.dropout: of attention weights, needs {what}.attention=einsum')
    if module.scan_layers and module.dropout:
        raise UserError(
            f'{what}.dropout: {module.dropout:g}; with {what}.scan_layers all layers would draw the same; set it to 0, '
            'or scan_layers to False'
        )
