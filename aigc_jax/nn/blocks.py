"""The block of every Transformer: self-attention, attention to another text, MLP, and how they are normalized.

One class serves decoders (GPT-2, Llama, Qwen), encoders (BERT) and encoder-decoders (T5). transformer.py, encoder.py
and encoder_decoder.py hold what stands around the blocks.

Shapes: n texts, L tokens, S keys, H heads of d features, K of them with keys and values of their own.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.nn.language_layers import FEW, Dense, Draw, dropout

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
    'activation': Field(
        str, choices=('gelu', 'gelu_erf', 'relu', 'relu2', 'swiglu', 'geglu'),
        doc='of the MLP; `gelu` is the tanh approximation, also in `geglu`',
    ),
    'qk_norm': Field(bool, doc='whether queries and keys are normalized'),
    'bias': Field(bool, doc='whether the products have a bias'),
    'zero_init': Field(bool, doc='whether what goes into the residual stream, and the head, begin at 0'),
    'dropout': Field(float, least=0, below=1, doc='share of activations that are dropped in training'),
    'attention': Field(
        str, choices=('einsum', 'xla', 'cudnn'),
        doc='`einsum` is fastest on a CPU; `xla` and `cudnn` want no dropout, and `cudnn`, a fused kernel of a '
        'GPU, wants bfloat16',
    ),
    'head_width': Field(int, least=0, doc='features of a head; 0: width / heads'),
    'norm_epsilon': Field(float, least=0, doc='added to the variance; 0: 1e-5 of layernorm, 1e-6 of rmsnorm'),
    'qk_scale': Field(bool, doc='whether qk_norm has learned scales (Qwen3)'),
    'qkv_bias': Field(bool, doc='whether queries, keys and values alone have a bias (Qwen2)'),
    'rope_theta': Field(float, above=0, doc='longest wavelength of rope, divided by 2π'),
    'rope_scaling': Field(
        tuple, items=Field(float, above=0),
        doc='of a longer context: (factor, low frequency factor, high frequency factor, context before), as Llama 3.1 '
        'has them; (): none',
    ),
}  # fmt: skip
# MLPs that multiply two products, of which one goes through the function (Shazeer 2020, eq. 5 and 6).
_GATED = {'swiglu': jax.nn.silu, 'geglu': jax.nn.gelu}
PLAIN = {
    'gelu': jax.nn.gelu, 'gelu_erf': lambda x: jax.nn.gelu(x, approximate=False), 'relu': jax.nn.relu,
    'relu2': lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021 (Primer)
}  # fmt: skip


def rope_frequencies(half: int, theta: float, scaling: tuple[float, ...] = ()) -> Array:
    """(half,) radians a position, of each pair of features (Su et al. 2021, eq. 15).

    scaling: (factor, low, high, context). What turns fewer than `low` times in `context` positions turns `factor` times
    slower, what turns more than `high` times stays, and what is between is between (Llama 3.1).
    """
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if not scaling:
        return frequency
    factor, low, high, context = scaling
    turns = context * frequency / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequency / factor + kept * frequency


def rope(x: Array, position: Array, frequency: Array) -> Array:
    """Rotary position embedding (Su et al. 2021, eq. 34): x (n, h, L, d), position (n or 1, L), frequency (d / 2,)."""
    half = x.shape[-1] // 2
    angle = position[:, None, :, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rms_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """x / rms(x) without a learned scale, float32 inside (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def attention_weights(q: Array, k: Array, mask: Array, bias: Array | None = None, cached: bool = False) -> Array:
    """softmax(q kᵀ + bias), float32 (n, K, G, L, S): q (n, K, G, L, d), G queries to a head of k (n, K, S, d); mask
    (n or 1, 1, 1, L, S) True where a query may look; bias (K, G, L, S). cached: whether k is of a cache, for then the
    few queries of a step must not have XLA copy it transposed."""
    if cached and 1 < q.shape[2] * q.shape[3] <= FEW < k.shape[2]:
        scores = jax.lax.optimization_barrier(jnp.einsum('nksd,nkgld->nksgl', k, q)).transpose(0, 1, 3, 4, 2)
    else:
        scores = jnp.einsum('nkgld,nksd->nkgls', q, k)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    return jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)


def _mix(weights: Array, v: Array) -> Array:
    return jnp.einsum('nkgls,nksd->nkgld', weights.astype(v.dtype), v)


_PARTS, _LEAST = 4, 64  # of a sequence of queries, and how many each has at least


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array, mask: Array, bias: Array | None = None) -> Array:
    """softmax(q kᵀ + bias) v, (n, K, G, L, d); shapes as in attention_weights.

    Its gradient is written out, because the sum over S that the softmax's gradient wants, Σ w dw, is that of out · dout
    over the d features (Dao et al. 2022, appendix B.2), and because where the mask is False the weights are 0 already.
    """
    return _attend_forward(q, k, v, mask, bias)[0]


def _attend_forward(q, k, v, mask, bias):
    weights = attention_weights(q, k, mask, bias)
    out = _mix(weights, v)
    return out, (q, k, v, weights, out, bias)


def _attend_backward(kept, d_out):
    q, k, v, weights, out, bias = kept
    d_v = jnp.einsum('nkgls,nkgld->nksd', weights.astype(v.dtype), d_out)
    d_weights = jnp.einsum('nkgld,nksd->nkgls', d_out, v).astype(jnp.float32)
    # Without the barrier XLA sums anew for each of the S columns that the sum is taken from.
    total = jax.lax.optimization_barrier(jnp.sum((out * d_out).astype(jnp.float32), axis=-1, keepdims=True))
    d_scores = weights * (d_weights - total)
    d_bias = None if bias is None else jnp.sum(d_scores, axis=0).astype(bias.dtype)
    d_scores = d_scores.astype(q.dtype)
    d_q = jnp.einsum('nkgls,nksd->nkgld', d_scores, k)
    return d_q, jnp.einsum('nkgls,nkgld->nksd', d_scores, q), d_v, None, d_bias


attend.defvjp(_attend_forward, _attend_backward)


def on_gpu() -> bool:
    return jax.default_backend() == 'gpu'


class Common(nn.Module, kw_only=True):
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
    head_width: int = 0
    norm_epsilon: float = 0.0
    qk_scale: bool = False
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    @property
    def head_features(self) -> int:
        return self.head_width or self.width // self.heads

    def _norm(self, name: str):
        if self.norm == 'rmsnorm':
            return nn.RMSNorm(epsilon=self.norm_epsilon or 1e-6, dtype=self.dtype, name=name)
        return nn.LayerNorm(epsilon=self.norm_epsilon or 1e-5, use_bias=self.bias, dtype=self.dtype, name=name)

    def common(self) -> dict[str, Any]:
        """The values of these attributes, for the blocks."""
        return {name: getattr(self, name) for name in Common.__annotations__ if name not in ('parent', 'name')}


class Block(Common, kw_only=True):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    index: of the layer. causal: whether no query looks ahead. post_norm: norm(x + f(x)) instead (Vaswani et al. 2017).
    cross: whether there is attention to another text between the two. scaled: whether the scores are divided by √d;
    else the block is T5's (Raffel et al. 2020), which has that in its initialization and drops hidden units of the MLP.
    """

    index: int
    causal: bool = True
    post_norm: bool = False
    scaled: bool = True
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: Array, position: Array, mask: Array, cache: dict | None, column: Array, draw: Draw,
        bias: Array | None = None, memory: Array | None = None, memory_mask: Array | None = None,
    ):  # fmt: skip
        """x (n, L, width) -> the same, and the cache with these keys and values put in from `column` on.

        mask (n or 1, L, S), True where a query may look; bias (heads, L, S): added to the scores of self-attention.
        memory (n, M, width): the text that cross-attention reads, where memory_mask (n, M) is True, or of each query
        (n, L, M); None where the cache holds its keys and values already.
        """
        cached = cache is not None

        def self_attention(x):
            nonlocal cache
            q = self._heads(x, self.heads, 'query')
            k, v = self._heads(x, self.kv_heads, 'key'), self._heads(x, self.kv_heads, 'value')
            if self.qk_norm:  # Henry et al. 2020, with RMSNorm
                q, k = self._qk_norm(q, 'query_norm'), self._qk_norm(k, 'key_norm')
            if self.position == 'rope':
                frequency = rope_frequencies(self.head_features // 2, self.rope_theta, self.rope_scaling)
                q, k = rope(q, position, frequency), rope(k, position, frequency)
            if cached:
                put = lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x.astype(whole.dtype), column, 2)
                cache = {**cache, 'k': put(cache['k'], k), 'v': put(cache['v'], v)}
                k, v = cache['k'], cache['v']
            whole = self.causal and not cached
            mixed = self._attend(q, k, v, mask, bias, whole, cached, draw, 'attention', 'weights')
            return self._output(mixed, 'out')

        def cross_attention(x):
            nonlocal cache
            q = self._heads(x, self.heads, 'cross_query')
            if memory is None:
                k, v = cache['cross_k'], cache['cross_v']
            else:
                k = self._heads(memory, self.kv_heads, 'cross_key')
                v = self._heads(memory, self.kv_heads, 'cross_value')
                if cached:
                    cache = {**cache, 'cross_k': k, 'cross_v': v}
            seen = memory_mask if memory_mask.ndim == 3 else memory_mask[:, None]
            seen = jnp.broadcast_to(seen, (len(q), q.shape[2], k.shape[2]))
            mixed = self._attend(q, k, v, seen, None, False, cached, draw, 'cross_attention', 'cross_weights')
            return self._output(mixed, 'cross_out')

        x = self._residual(x, self_attention, 'attention', draw)
        if self.cross:
            x = self._residual(x, cross_attention, 'cross', draw)
        return self._residual(x, lambda h: self._mlp(h, draw), 'mlp', draw), cache

    def _residual(self, x: Array, layer, name: str, draw: Draw) -> Array:
        norm = self._norm(f'{name}_norm')
        if self.post_norm:
            return norm(x + self._dropped(layer(x), draw, name))
        return x + self._dropped(layer(norm(x)), draw, name)

    def _dense(self, features: int, name: str, residual: bool = False, bias: bool = False):
        # GPT-2 scales what goes into the residual stream by 1/√(2 layers), which BERT normalizes instead; zeros: each
        # block begins as the identity.
        std = 0.02 / math.sqrt(2 * self.layers) if residual and not self.post_norm else 0.02
        zero = residual and self.zero_init
        initializer = nn.initializers.zeros if zero else nn.initializers.normal(std)
        if not self.scaled:  # 1/√(inputs), and of queries 1/√d of that, as in Mesh TensorFlow
            scale = 1 / self.head_features if name.endswith('query') else 1.0
            initializer = nn.initializers.variance_scaling(scale, 'fan_in', 'normal')
        return Dense(features, use_bias=self.bias or bias, kernel_init=initializer, dtype=self.dtype, name=name)

    def _heads(self, x: Array, count: int, name: str) -> Array:
        """(n, L, width) -> (n, count, L, d)."""
        n, length, _ = x.shape
        d = self.head_features
        flat = self._dense(count * d, name, bias=self.qkv_bias)(x)
        return flat.reshape(n, length, count, d).transpose(0, 2, 1, 3)

    def _output(self, mixed: Array, name: str) -> Array:
        """(n, heads, L, d) -> (n, L, width)."""
        n, h, length, d = mixed.shape
        return self._dense(self.width, name, residual=True)(mixed.transpose(0, 2, 1, 3).reshape(n, length, h * d))

    def _qk_norm(self, x: Array, name: str) -> Array:
        if self.qk_scale:
            return nn.RMSNorm(epsilon=self.norm_epsilon or 1e-6, dtype=self.dtype, name=name)(x)
        return rms_norm(x)

    def _mlp(self, h: Array, draw: Draw) -> Array:
        if self.activation in _GATED:
            gate = self._dense(self.mlp_width, 'gate')(h)
            h = _GATED[self.activation](gate) * self._dense(self.mlp_width, 'up')(h)
        else:
            h = PLAIN[self.activation](self._dense(self.mlp_width, 'up')(h))
        if not self.scaled:
            h = self._dropped(h, draw, 'hidden')
        return self._dense(self.width, 'down', residual=True)(h)

    def _dropped(self, x: Array, draw: Draw, name: str) -> Array:
        return dropout(x, self.dropout, draw, f'{self.index}/{name}')

    def _attend(
        self, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, whole: bool, cached: bool,
        draw: Draw, sown: str, dropped: str,
    ) -> Array:  # fmt: skip
        """softmax(q kᵀ / √d + bias) v, (n, H, L, d); mask (n or 1, L, S) True where a query may look; None: at itself
        and all before it; whole: S is L, and no query looks ahead; cached: k and v are a cache's."""
        n, h, length, d = q.shape
        if self.is_initializing():  # what follows makes no parameter, and takes a fifth of the time to trace them all
            return q
        if self.attention != 'einsum':
            swap = lambda x: x.transpose(0, 2, 1, 3)
            # The fused kernel is a GPU's, and of whole texts; elsewhere the same is computed without it.
            fused = self.attention == 'cudnn' and whole and on_gpu()
            out = jax.nn.dot_product_attention(
                swap(q), swap(k), swap(v), mask=None if mask is None else mask[:, None],
                bias=None if bias is None else bias[None], scale=None if self.scaled else 1.0,
                # The fused kernel is told so too, and then leaves out what lies ahead.
                is_causal=fused, implementation='cudnn' if fused else 'xla',
            )  # fmt: skip
            return swap(out)
        q = q.reshape(n, self.kv_heads, h // self.kv_heads, length, d)
        if self.scaled:
            q = q * d**-0.5
        if bias is not None:
            bias = bias.reshape(*q.shape[1:3], *bias.shape[1:])
        drops, watched = self.dropout and draw is not None, self.is_mutable_collection('intermediates')
        if not drops and not watched and not cached:
            parts = max(_LEAST, math.ceil(length / _PARTS)) if whole else length
            ends = [(i, min(i + parts, length)) for i in range(0, length, parts)]
            # No query looks behind its own part, so what lies there is not computed.
            visible = [(end if whole else k.shape[2]) for _, end in ends]
            mixed = [
                attend(
                    q[..., i:end, :], k[:, :, :s], v[:, :, :s], mask[:, None, None, i:end, :s],
                    None if bias is None else bias[..., i:end, :s],
                )
                for (i, end), s in zip(ends, visible, strict=True)
            ]  # fmt: skip
            return jnp.concatenate(mixed, axis=3).reshape(n, h, length, d)
        weights = attention_weights(q, k, mask[:, None, None], bias, cached)
        self.sow('intermediates', sown, weights)
        if drops:
            weights = dropout(weights, self.dropout, draw, f'{self.index}/{dropped}')
        return _mix(weights, v).reshape(n, h, length, d)
