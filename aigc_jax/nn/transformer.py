"""A decoder-only Transformer: GPT-2's block (Radford et al. 2019), or today's, by its fields.

Shapes: n texts, L tokens, S keys, H heads of d features, K of them with keys and values of their own.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn.language_layers import Dense, Draw, State, dropout, logits

FIELDS = {
    'layers': Field(int, least=1, doc='blocks'),
    'heads': Field(int, least=1, doc='of attention'),
    'kv_heads': Field(
        int, least=1, doc='heads of keys and values; fewer than `heads`: grouped queries (Ainslie et al. 2023)'
    ),
    'width': Field(int, least=1, doc='of the residual stream'),
    'mlp_width': Field(int, least=1, doc='hidden units of the MLP of a block'),
    'position': Field(str, choices=('learned', 'rope', 'none'), doc='how a token tells where it stands'),
    'norm': Field(str, choices=('layernorm', 'rmsnorm'), doc='normalization before attention and MLP'),
    'activation': Field(str, choices=('gelu', 'relu2', 'swiglu'), doc='of the MLP'),
    'qk_norm': Field(bool, doc='whether queries and keys are normalized'),
    'bias': Field(bool, doc='whether the products have a bias'),
    'zero_init': Field(bool, doc='whether what goes into the residual stream, and the head, begin at 0'),
    'tied': Field(bool, doc='whether embedding and head are one matrix'),
    'softcap': Field(float, least=0, doc='bound of the logits; 0: none'),
    'window': Field(int, least=0, doc='tokens that a token looks back at; 0: all'),
    'dropout': Field(float, least=0, below=1, doc='share of activations that are dropped in training'),
    'attention': Field(
        str, choices=('einsum', 'xla', 'cudnn'),
        doc='`einsum` is fastest on a CPU; `xla` and `cudnn` want no dropout, and `cudnn`, a fused kernel of a '
        'GPU, wants bfloat16',
    ),
    'remat': Field(bool, doc='whether each block is computed again in the backward pass, to save memory'),
    'scan_layers': Field(bool, doc='whether one block is compiled for all layers: for deep models; wants no dropout'),
}  # fmt: skip


def rope(x: Array, position: Array) -> Array:
    """Rotary position embedding (Su et al. 2021, eq. 34): x (n, h, L, d), position (n or 1, L)."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[:, None, :, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rms_norm(x: Array) -> Array:
    """x / rms(x) without a learned scale, float32 inside (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def attention_weights(q: Array, k: Array, mask: Array) -> Array:
    """softmax(q kᵀ), float32 (n, K, G, L, S): q (n, K, G, L, d), G queries to a head of k (n, K, S, d)."""
    scores = jnp.einsum('nkgld,nksd->nkgls', q, k).astype(jnp.float32)
    return jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)


def _mix(weights: Array, v: Array) -> Array:
    return jnp.einsum('nkgls,nksd->nkgld', weights.astype(v.dtype), v)


_PARTS, _LEAST = 4, 64  # of a sequence of queries, and how many each has at least


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """softmax(q kᵀ) v, (n, K, G, L, d); shapes as in attention_weights.

    Its gradient is written out, because the sum over S that the softmax's gradient wants, Σ w dw, is that of out · dout
    over the d features (Dao et al. 2022, appendix B.2), and because where the mask is False the weights are 0 already.
    """
    return _attend_forward(q, k, v, mask)[0]


def _attend_forward(q, k, v, mask):
    weights = attention_weights(q, k, mask)
    out = _mix(weights, v)
    return out, (q, k, v, weights, out)


def _attend_backward(kept, d_out):
    q, k, v, weights, out = kept
    d_v = jnp.einsum('nkgls,nkgld->nksd', weights.astype(v.dtype), d_out)
    d_weights = jnp.einsum('nkgld,nksd->nkgls', d_out, v).astype(jnp.float32)
    # Without the barrier XLA sums anew for each of the S columns that the sum is taken from.
    total = jax.lax.optimization_barrier(jnp.sum((out * d_out).astype(jnp.float32), axis=-1, keepdims=True))
    d_scores = (weights * (d_weights - total)).astype(q.dtype)
    d_q = jnp.einsum('nkgls,nksd->nkgld', d_scores, k)
    return d_q, jnp.einsum('nkgls,nkgld->nksd', d_scores, q), d_v, None


attend.defvjp(_attend_forward, _attend_backward)


def _gpu() -> bool:
    return jax.default_backend() == 'gpu'


class _Common(nn.Module, kw_only=True):
    """What a model and its blocks have in common."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    mlp_width: int
    position: str
    norm: str
    activation: str
    qk_norm: bool
    bias: bool
    zero_init: bool
    dropout: float
    attention: str
    dtype: Any = jnp.float32

    def _norm(self, name: str):
        if self.norm == 'rmsnorm':
            return nn.RMSNorm(epsilon=1e-6, dtype=self.dtype, name=name)
        return nn.LayerNorm(epsilon=1e-5, use_bias=self.bias, dtype=self.dtype, name=name)


class Block(_Common, kw_only=True):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    index: int

    def _dense(self, features: int, name: str, residual: bool = False):
        # GPT-2 scales what goes into the residual stream by 1/√(2 layers); zeros: each block begins as the identity.
        std = 0.02 / math.sqrt(2 * self.layers) if residual else 0.02
        zero = residual and self.zero_init
        initializer = nn.initializers.zeros if zero else nn.initializers.normal(std)
        return Dense(features, use_bias=self.bias, kernel_init=initializer, dtype=self.dtype, name=name)

    @nn.compact
    def __call__(self, x: Array, position: Array, mask: Array, cache: dict | None, column: Array, draw: Draw):
        """x (n, L, width) -> the same, and the cache with these keys and values put in from `column` on."""
        x_in = x
        n, length, _ = x.shape
        d = self.width // self.heads
        x = self._norm('attention_norm')(x)

        def heads(count, name):
            return self._dense(count * d, name)(x).reshape(n, length, count, d).transpose(0, 2, 1, 3)

        q, k, v = heads(self.heads, 'query'), heads(self.kv_heads, 'key'), heads(self.kv_heads, 'value')
        if self.qk_norm:  # Henry et al. 2020, with RMSNorm
            q, k = rms_norm(q), rms_norm(k)
        if self.position == 'rope':
            q, k = rope(q, position), rope(k, position)
        if cache is not None:
            put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), column, 2)
            cache = {'k': put(cache['k'], k), 'v': put(cache['v'], v)}
            k, v = cache['k'], cache['v']
        mixed = self._attend(q, k, v, mask, cache is None, draw).transpose(0, 2, 1, 3).reshape(n, length, self.width)
        x = x_in + self._dropped(self._dense(self.width, 'out', residual=True)(mixed), draw, 'attention')
        h = self._norm('mlp_norm')(x)
        if self.activation == 'swiglu':  # Shazeer 2020, eq. 6
            h = jax.nn.silu(self._dense(self.mlp_width, 'gate')(h)) * self._dense(self.mlp_width, 'up')(h)
        else:
            h = self._dense(self.mlp_width, 'up')(h)
            # relu²: So et al. 2021 (Primer); GPT-2's gelu is the tanh approximation.
            h = jnp.square(jax.nn.relu(h)) if self.activation == 'relu2' else jax.nn.gelu(h)
        return x + self._dropped(self._dense(self.width, 'down', residual=True)(h), draw, 'mlp'), cache

    def _dropped(self, x: Array, draw: Draw, name: str) -> Array:
        return dropout(x, self.dropout, draw, f'{self.index}/{name}')

    def _attend(self, q: Array, k: Array, v: Array, mask: Array | None, whole: bool, draw: Draw) -> Array:
        """softmax(q kᵀ / √d) v, (n, H, L, d); mask (n or 1, L, S) True where a query may look; None: at itself and all
        before it; whole: S is L, and no query looks ahead."""
        n, h, length, d = q.shape
        if self.attention != 'einsum':
            swap = lambda x: x.transpose(0, 2, 1, 3)
            # The fused kernel is a GPU's, and of whole texts; elsewhere the same is computed without it.
            fused = self.attention == 'cudnn' and whole and _gpu()
            out = jax.nn.dot_product_attention(
                swap(q), swap(k), swap(v), mask=None if mask is None else mask[:, None],
                # The fused kernel is told so too, and then leaves out what lies ahead.
                is_causal=fused, implementation='cudnn' if fused else 'xla',
            )  # fmt: skip
            return swap(out)
        q = q.reshape(n, self.kv_heads, h // self.kv_heads, length, d) * d**-0.5
        drops, watched = self.dropout and draw is not None, self.is_mutable_collection('intermediates')
        if not drops and not watched:
            parts = max(_LEAST, math.ceil(length / _PARTS)) if whole else length
            ends = [(i, min(i + parts, length)) for i in range(0, length, parts)]
            # No query looks behind its own part, so what lies there is not computed.
            visible = [(end if whole else k.shape[2]) for _, end in ends]
            mixed = [
                attend(q[..., i:end, :], k[:, :, :s], v[:, :, :s], mask[:, None, None, i:end, :s])
                for (i, end), s in zip(ends, visible, strict=True)
            ]
            return jnp.concatenate(mixed, axis=3).reshape(n, h, length, d)
        weights = attention_weights(q, k, mask[:, None, None])
        self.sow('intermediates', 'attention', weights)
        if drops:
            weights = dropout(weights, self.dropout, draw, f'{self.index}/weights')
        return _mix(weights, v).reshape(n, h, length, d)


class Transformer(_Common, kw_only=True):
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
        shape = (n, self.kv_heads, columns, self.width // self.heads)
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
        column = first + jnp.arange(length)
        if state is None:
            keys, position, mask = column, column[None], jnp.ones((1, length, length), bool)
        else:
            keys = jnp.arange(jax.tree.leaves(state.layers)[0].shape[-2])
            position = jnp.maximum(column[None] - state.start[:, None], 0)
            mask = jnp.broadcast_to((keys >= state.start[:, None])[:, None], (n, length, len(keys)))
        mask = mask & (keys <= column[:, None])
        if self.window:
            mask = mask & (keys > column[:, None] - self.window)
        if self.end is not None and state is None:
            document = jnp.cumsum(tokens == self.end, axis=1)
            mask = mask & (document[:, :, None] == document[:, None, :])
        if self.attention == 'cudnn' and state is None and not self.window and self.end is None and _gpu():
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

        names = [field.name for field in dataclasses.fields(_Common) if field.name not in ('name', 'parent')]
        common = {name: getattr(self, name) for name in names}
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
        return out, None if state is None else State(first + length, layers, state.start)


def check(module: Transformer, what: str) -> None:
    """Raises UserError for fields of `what` that contradict one another."""
    if module.attention == 'cudnn' and module.dtype == jnp.float32:
        raise UserError(f'{what}.attention: cudnn has no float32; set precision to bfloat16, or it to xla')
    if module.width % module.heads or module.heads % module.kv_heads:
        raise UserError(f'{what}.heads: it divides {what}.width, and {what}.kv_heads divides it')
    if module.position == 'rope' and module.width // module.heads % 2:
        raise UserError(f'{what}.position: rope turns pairs of features; {what}.width / {what}.heads is odd')
    if module.scan_layers and module.dropout:
        raise UserError(f'{what}.dropout: with scan_layers all layers would draw the same; set one of them to none')
    if module.attention != 'einsum' and module.dropout:
        raise UserError(f'{what}.dropout: of attention weights, needs {what}.attention=einsum')
