"""T5: an encoder that reads one text and a decoder that writes another (Raffel et al. 2020), in its three versions.

v1.0 has tied embeddings and a ReLU; v1.1 and Flan have a head of their own and a gated GELU (Shazeer 2020); CodeT5
(Wang et al. 2021) is v1.0 with another vocabulary. All have RMSNorm without a bias before each part, no bias in any
product, scores that are not divided by √d, and positions by a bias of the scores alone.

Shapes: n texts, S tokens of a source, L tokens of a target.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn import stacks
from aigc_jax.nn.language_layers import Dense, Draw, State, dropout, look, tied_logits
from aigc_jax.nn.stacks import Stack

FIELDS = {
    **{
        name: stacks.FIELDS[name]
        for name in (
            'heads', 'width', 'head_width', 'mlp_width', 'activation', 'dropout', 'norm_epsilon', 'remat',
            'scan_layers',
        )
    },
    'layers': Field(int, least=1, doc='blocks of the encoder'),
    'decoder_layers': Field(int, least=0, doc='blocks of the decoder; 0: as many as of the encoder'),
    'buckets': Field(int, least=4, doc='of distances between two tokens, each with a bias of its own'),
    'max_distance': Field(int, least=2, doc='tokens from which on all distances are in one bucket'),
    'tied': Field(bool, doc='whether embedding and head are one matrix, as in T5 v1.0'),
    'scaled_logits': Field(bool, doc='whether the logits are divided by √width, as T5 v1.0 has it with a tied head'),
    'attention': Field(str, choices=('einsum', 'xla'), doc='`einsum` is fastest on a CPU; `xla` wants no dropout'),
}  # fmt: skip


Parts = tuple[Array, Array]  # of source (n, S) and target (n, L), int32: which pair of its row a token is of, 1 and on


def distance_buckets(buckets: int, max_distance: int, both_ways: bool) -> np.ndarray:
    """(2 · max_distance + 1,) int32: the bucket of each distance, −max_distance to max_distance, from a query to a key.

    Half of the buckets are of one distance each, the others of ranges that grow to max_distance (Raffel et al. 2020,
    section 2.1). both_ways: half of all are of keys behind the query; else those are in bucket 0.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    first = np.zeros_like(distance)
    if both_ways:
        buckets //= 2
        first = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    # In float32, in this order, as everywhere else: distances where the logarithm is a whole number are told apart so.
    share = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    share = share / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    ranged = np.minimum(exact + share.astype(np.int32), buckets - 1)
    return (first + np.where(distance < exact, distance, ranged)).astype(np.int32)


class EncoderDecoder(Stack, kw_only=True):
    """(source (n, S), target (n, L)) -> logits of the token after each of the target, (n, L, vocab) float32.

    `encode` reads a source once; `decode` writes with what it gave, in training or with a State.
    """

    vocab_size: int
    decoder_layers: int = 0
    buckets: int = 32
    max_distance: int = 128
    tied: bool
    scaled_logits: bool = False
    remat: bool = False
    # What T5 has of a block.
    kv_heads: int = 0
    position: str = 'none'
    norm: str = 'rmsnorm'
    qk_norm: bool = False
    bias: bool = False
    zero_init: bool = False

    def setup(self):
        normal = nn.initializers.normal
        self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=normal(1.0), dtype=self.dtype)
        if not self.tied:  # as in Mesh TensorFlow; transformers draws it with a deviation of 1
            self.head = Dense(
                self.vocab_size, use_bias=False, kernel_init=normal(self.width**-0.5), dtype=self.dtype
            )
        self.tagger = Dense(1, kernel_init=normal(self.width**-0.5), dtype=self.dtype)
        own = {'remat': self.remat, 'kv_heads': self.heads, 'scaled': False}
        self.encoder = self.stack(self.layers, prefix='encoder_', causal=False, **own)
        self.decoder = self.stack(self.decoder_layers or self.layers, prefix='decoder_', cross=True, **own)
        self.encoder_norm, self.decoder_norm = self._norm(None), self._norm(None)
        bias = lambda: nn.Embed(self.buckets, self.heads, embedding_init=normal(self.width**-0.5))
        self.encoder_bias, self.decoder_bias = bias(), bias()

    def __call__(
        self, source: Array, source_mask: Array, target: Array, draw: Draw = None, parts: Parts | None = None
    ) -> Array:
        """source_mask (n, S): True where a source has a token. target begins with the token before it (`bos`).

        parts: of rows that hold several pairs behind one another, of which each reads its own tokens alone.
        """
        of_source, of_target = (None, None) if parts is None else parts
        memory = self.encode(source, source_mask, draw, of_source)
        if parts is not None:
            source_mask = _same(of_target, of_source) & source_mask[:, None]
        return self.decode(target, memory, source_mask, None, draw, of_target)[0]

    def both(self, source: Array, source_mask: Array, target: Array, draw: Draw = None) -> tuple[Array, Array]:
        """(what a call gives, `tag`), of a source that is read once."""
        memory = self.encode(source, source_mask, draw)
        return self.decode(target, memory, source_mask, None, draw)[0], self.tag(memory)

    def initial_state(self, memory: Array, source_mask: Array, columns: int) -> State:
        """For targets of at most `columns` tokens, with what `encode` gave."""
        caches = self.empty_caches(self.decoder_layers or self.layers, n := len(memory), columns)
        return State(jnp.int32(0), caches, jnp.zeros((n,), jnp.int32), {'memory': memory, 'mask': source_mask})

    def encode(self, source: Array, source_mask: Array, draw: Draw = None, part: Array | None = None) -> Array:
        """(n, S, width), the source as the decoder reads it. part (n, S): see Parts."""
        draw = _named(draw, 'encoder')
        place = jnp.arange(source.shape[1])
        bias = self._bias(self.encoder_bias, place, place, True)
        mask = source_mask[:, None, :] & (jnp.ones((1, len(place), 1), bool) if part is None else _same(part, part))
        x = dropout(self.embed(source), self.dropout, draw, 'embed')
        x, _ = stacks.through(self.encoder, x, place[None], mask, None, jnp.int32(0), draw, bias)
        return dropout(self.encoder_norm(x), self.dropout, draw, 'norm')

    def tag(self, memory: Array) -> Array:
        """memory (n, S, width), which `encode` gave -> a logit of each token, (n, S) float32. A model that is never
        asked for it has no parameters for it."""
        return self.tagger(memory)[..., 0].astype(jnp.float32)

    def decode(
        self, target: Array, memory: Array | None, source_mask: Array | None, state: State | None = None,
        draw: Draw = None, part: Array | None = None,
    ) -> tuple[Array, State | None]:  # fmt: skip
        """target (n, L) -> logits (n, L, vocab), and the state after them, which holds memory and source_mask already.

        source_mask (n, S), or of each token of the target (n, L, S); part (n, L): see Parts.
        """
        draw = _named(draw, 'decoder')
        length = columns = target.shape[1]
        first, caches = jnp.int32(0), None
        if state is not None:
            first, columns, caches = state.column, jax.tree.leaves(state.layers)[0].shape[-2], state.layers
            memory, source_mask = state.source.get('memory'), state.source['mask']
            if 'layers' in state.source:
                caches = _of_each(lambda own, read: {**own, **read}, caches, state.source['layers'])
        place, keys, mask = look(state, length, columns)
        bias = self._bias(self.decoder_bias, place, keys, False)
        mask = mask if part is None else mask & _same(part, part)
        x = dropout(self.embed(target), self.dropout, draw, 'embed')
        x, caches = stacks.through(
            self.decoder, x, place[None], mask, caches, first, draw, bias, memory, source_mask
        )  # fmt: skip
        x = dropout(self.decoder_norm(x), self.dropout, draw, 'norm')
        if state is not None:
            part = lambda *names: _of_each(lambda cache: {name: cache[name] for name in names}, caches)
            source = {'layers': part('cross_k', 'cross_v'), 'mask': source_mask}
            state = state._replace(column=first + length, layers=part('k', 'v'), source=source)
        return self._logits(x), state

    def _logits(self, x: Array) -> Array:
        if self.scaled_logits:
            x = x * self.width**-0.5
        if not self.tied:
            return self.head(x).astype(jnp.float32)
        return tied_logits(x, self.embed).astype(jnp.float32)

    def _bias(self, of_bucket: nn.Embed, queries: Array, keys: Array, both_ways: bool) -> Array:
        """(heads, L, S) float32, of all layers and texts; the table of buckets is a constant of the program."""
        table = jnp.asarray(distance_buckets(self.buckets, self.max_distance, both_ways))
        distance = jnp.clip(keys - queries[:, None], -self.max_distance, self.max_distance)
        return of_bucket(table[distance + self.max_distance]).transpose(2, 0, 1)


# function(cache, …) of each layer, or once of all of them in one.
_of_each = functools.partial(jax.tree.map, is_leaf=lambda node: isinstance(node, dict))


def _same(queries: Array, keys: Array) -> Array:
    """(n, L), (n, S) -> (n, L, S): whether two tokens are of one pair. Distances inside a pair are those of its row."""
    return queries[:, :, None] == keys[:, None]


def _named(draw: Draw, stack: str) -> Draw:
    """The draws of one of two stacks whose layers have the same names."""
    return None if draw is None else lambda name, shape: draw(f'{stack}/{name}', shape)


def check(module: EncoderDecoder, what: str) -> None:
    """Raises UserError for fields of `what` that contradict one another."""
    if not module.head_width and module.width % module.heads:
        raise UserError(f'{what}.heads: {module.heads} does not divide {what}.width, {module.width}; set head_width')
    stacks.check_dropout(module, what)
    if module.max_distance <= (exact := module.buckets // 2):  # of the decoder; the encoder has half of that
        raise UserError(f'{what}.max_distance: {module.max_distance}; more than half of {what}.buckets, {exact}')
