"""A Transformer that reads a text in both directions: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019); its heads.

Shapes: n texts of L tokens.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn import blocks, stacks
from aigc_jax.nn.build import build, compute_dtype, drawn, embedding_rows
from aigc_jax.nn.language_layers import Dense, Draw, dropout, tied_logits
from aigc_jax.nn.stacks import Stack

FIELDS = {
    **stacks.FIELDS,
    'post_norm': Field(bool, doc='whether a block normalizes its sums, as BERT does, or what its layers read'),
    'positions': Field(
        int, least=0, doc='of a text, each with a learned vector; 0: as many as the windows of the data have'
    ),
    'position_offset': Field(
        int, least=0,
        doc='vectors of `position` before that of the first token; the last of them is that of what fills up a row '
        '(RoBERTa: 2); 0: there are none (BERT)',
    ),
    'token_types': Field(int, least=0, doc='kinds of tokens that have a vector, such as those of a second text'),
}  # fmt: skip


class Outputs(NamedTuple):
    """What the heads of a model give, float32; None: it has no such head.

    hidden (n, L, width): of the last block. tokens (n, K, vocab): logits of what stands at K places.
    label (n, classes), tags (n, L, tags): logits of a class of the text and of each token.
    """

    hidden: Array
    tokens: Array | None = None
    label: Array | None = None
    tags: Array | None = None


class Encoder(Stack, kw_only=True):
    """tokens (n, L) int32, of which the first lengths (n,) of a row are its text -> Outputs. lengths: None: all.

    types (n, L): of each token, below token_types; None: 0. places (n, K): where the head of tokens is computed; None:
    everywhere, K is L.
    masked: whether there is a head for the tokens, tied to their embedding (Devlin et al. 2019, section 3.1). classes,
    tags: of the heads for a text and for each token; 0: there is none. The class is read off the first token.
    """

    vocab_size: int
    masked: bool = False
    classes: int = 0
    tags: int = 0
    post_norm: bool = True
    positions: int = 0
    position_offset: int = 0
    token_types: int = 2
    remat: bool = False

    @nn.compact
    def __call__(
        self, tokens: Array, lengths: Array | None = None, types: Array | None = None, places: Array | None = None,
        draw: Draw = None,
    ) -> Outputs:  # fmt: skip
        n, length = tokens.shape
        column = jnp.arange(length)
        is_text = jnp.ones((n, length), bool) if lengths is None else column < lengths[:, None]
        embed = self._embed(self.vocab_size, 'embed')
        x = embed(tokens)
        position = column[None]
        if self.position == 'learned':
            offset = self.position_offset
            where = jnp.where(is_text, position + offset, offset - 1) if offset else position
            x = x + self._embed(offset + self.positions, 'position')(where)
        if self.token_types:
            types = jnp.zeros((1, 1), jnp.int32) if types is None else types
            x = x + self._embed(self.token_types, 'token_type')(types)
        if self.post_norm:
            x = self._norm('embed_norm')(x)
        x = dropout(x, self.dropout, draw, 'embed')
        mask = jnp.broadcast_to(is_text[:, None], (n, length, length))
        stack = self.stack(self.layers, self.remat, causal=False, post_norm=self.post_norm)
        x, _ = stacks.through(stack, x, position, mask, None, jnp.int32(0), draw)
        if not self.post_norm:
            x = self._norm('norm')(x)
        return Outputs(
            x,
            self._of_tokens(x, embed, places) if self.masked else None,
            self._of_text(x[:, 0], draw) if self.classes else None,
            self._head(self.tags, 'tagger')(dropout(x, self.dropout, draw, 'tags')).astype(jnp.float32)
            if self.tags else None,
        )  # fmt: skip

    def _of_tokens(self, x: Array, embed: nn.Embed, places: Array | None) -> Array:
        """norm(activation(W x + b)) E^T + c."""
        if places is not None:
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        x = blocks.PLAIN[self._plain](self._head(self.width, 'mask_dense')(x))
        x = self._norm('mask_norm')(x)
        bias = self.param('mask_bias', nn.initializers.zeros, (self.vocab_size,))
        logits = tied_logits(x, embed)
        return logits.astype(jnp.float32) + bias

    def _of_text(self, first: Array, draw: Draw) -> Array:
        """W dropout(tanh(P x + p)) + b of the first token's x (n, width)."""
        pooled = jnp.tanh(self._head(self.width, 'pooler')(first))
        return self._head(self.classes, 'classifier')(dropout(pooled, self.dropout, draw, 'pooled')).astype(jnp.float32)

    @property
    def _plain(self) -> str:
        return self.activation if self.activation in blocks.PLAIN else 'gelu_erf'

    def _embed(self, count: int, name: str) -> nn.Embed:
        return nn.Embed(count, self.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name=name)

    def _head(self, features: int, name: str) -> Dense:
        return Dense(features, kernel_init=nn.initializers.normal(0.02), dtype=self.dtype, name=name)


def init(module: Encoder, key: Array) -> dict:
    """Its parameters; no shape of them depends on how many tokens there are."""
    return drawn(module, key, jnp.zeros((1, min(8, module.positions or 8)), jnp.int32))


def make(config, vocab_size: int, longest: int, what: str, **heads) -> Encoder:
    """That of config.model, for texts of `longest` tokens, which `what` says. Raises UserError."""
    model, dtype = config.model.copy_and_resolve_references(), compute_dtype(config.precision)
    rows = embedding_rows(model, vocab_size)
    module = build(Encoder, 'model', model, vocab_size=rows, dtype=dtype, **heads)
    if module.positions and module.positions < longest:
        raise UserError(f'model.positions: {module.positions}, but {what} has {longest} tokens; give it as many, or 0')
    module = module.clone(positions=module.positions or longest)
    stacks.check(module, 'model')
    return module
