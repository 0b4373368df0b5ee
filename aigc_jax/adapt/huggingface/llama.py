"""Llama (Touvron et al. 2023; Llama 3.1), Mistral, Qwen2 and Qwen3: the same block, by its fields."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.adapt.huggingface import checks
from aigc_jax.adapt.huggingface.rules import Family, Rule, with_head
from aigc_jax.core.errors import UserError

_LLAMA3 = 'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'
_GATED = {'silu': 'swiglu', 'gelu': 'geglu'}


def fields(theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = theirs['model_type']
    size = lambda name, default=None: checks.number(theirs, name, where, default=default)
    heads, layers, width = size('num_attention_heads'), size('num_hidden_layers'), size('hidden_size')
    bias = bool(theirs.get('attention_bias', False))
    if bias != bool(theirs.get('mlp_bias', False)):
        raise UserError(f'{where}: attention_bias and mlp_bias differ; here all products have a bias, or none')
    activation = checks.activation(theirs, 'hidden_act', where, 'silu', _GATED)
    head_width = size('head_dim', width // heads)
    theta, scaling = _rope(theirs, where)
    return checks.PLAIN | {
        'model.layers': layers,
        'model.heads': heads,
        'model.kv_heads': size('num_key_value_heads', heads),
        'model.width': width,
        'model.mlp_width': size('intermediate_size'),
        'model.head_width': 0 if head_width * heads == width else head_width,
        'model.position': 'rope',
        'model.rope_theta': theta,
        'model.rope_scaling': scaling,
        'model.norm': 'rmsnorm',
        'model.norm_epsilon': checks.number(theirs, 'rms_norm_eps', where, float, 1e-6),
        'model.activation': _GATED[activation],
        'model.bias': bias,
        'model.qkv_bias': kind == 'qwen2',
        'model.qk_norm': kind == 'qwen3',
        'model.qk_scale': kind == 'qwen3',
        'model.window': _window(theirs, where, layers),
        'model.tied': bool(theirs.get('tie_word_embeddings', False)),
        'data.block': size('max_position_embeddings', 2048),
    }


def _rope(theirs: Mapping[str, Any], where: str) -> tuple[float, tuple[float, ...]]:
    """(theta, scaling), which transformers 5 has in one place, and those before it had in two."""
    found = theirs.get('rope_parameters') or theirs.get('rope_scaling') or {}
    if not isinstance(found, dict):
        raise UserError(f'{where}: its rope is {found!r}; it is an object with a rope_type')
    if (part := {**theirs, **found}.get('partial_rotary_factor')) not in (None, 1):
        raise UserError(f'{where}: partial_rotary_factor is {part!r}; here all features of a head are turned')
    theta = checks.number({**theirs, **found}, 'rope_theta', where, float, 10_000.0)
    kind = found.get('rope_type', found.get('type', 'default'))
    if kind == 'default':
        return theta, ()
    if kind != 'llama3':
        raise UserError(f'{where}: its rope is of the type {kind!r}; known: default, llama3')
    scaling = tuple(checks.number(found, name, where, float) for name in _LLAMA3)
    return theta, scaling


def _window(theirs: Mapping[str, Any], where: str, layers: int) -> int:
    """Tokens that each layer looks back at; 0: all."""
    kind = theirs['model_type']
    if kind == 'llama' or (kind != 'mistral' and not theirs.get('use_sliding_window')):
        return 0
    if theirs.get('sliding_window', 4096) is None:
        return 0
    window = checks.number(theirs, 'sliding_window', where, default=4096)
    if kind == 'mistral':
        return window
    kinds = theirs.get('layer_types')
    if kinds is None:
        first = theirs.get('max_window_layers', 28)
        first = first if type(first) is int else checks.number(theirs, 'max_window_layers', where)
        kinds = ['full_attention'] * min(first, layers) + ['sliding_attention'] * (layers - first)
    if kinds not in (['full_attention'] * layers, ['sliding_attention'] * layers):
        raise UserError(f'{where}: some layers have a sliding window, and others none; here all have the same')
    return window if kinds[0] == 'sliding_attention' else 0


def config(fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    checks.ours(
        fields, 'Llama, Qwen or Mistral', position='rope', norm='rmsnorm', activation=('swiglu', 'geglu'), softcap=0.0,
        qk_norm=fields['model.qk_scale'],
    )  # fmt: skip
    qwen3, qwen2, window = fields['model.qk_scale'], fields['model.qkv_bias'], fields['model.window']
    if qwen3 + qwen2 + bool(window) + fields['model.bias'] > 1:
        raise UserError('model.qk_norm, qkv_bias, window, bias: Llama, Qwen and Mistral have one of them at most')
    kind, name = (
        ('qwen3', 'Qwen3') if qwen3 else ('qwen2', 'Qwen2') if qwen2 else ('mistral', 'Mistral') if window
        else ('llama', 'Llama')
    )  # fmt: skip
    scaling = fields['model.rope_scaling']
    rope = {'rope_theta': fields['model.rope_theta'], 'rope_type': 'llama3' if scaling else 'default'}
    rope |= dict(zip(_LLAMA3, scaling, strict=False))
    if scaling:
        rope[_LLAMA3[-1]] = int(scaling[-1])
    # transformers 4 reads the first two, and 5 the last.
    both = {'rope_theta': rope['rope_theta'], 'rope_scaling': rope if scaling else None, 'rope_parameters': rope}
    return both | {
        'model_type': kind,
        'architectures': [f'{name}ForCausalLM'],
        'vocab_size': vocab_size,
        'hidden_size': fields['model.width'],
        'intermediate_size': fields['model.mlp_width'],
        'num_hidden_layers': fields['model.layers'],
        'num_attention_heads': fields['model.heads'],
        'num_key_value_heads': fields['model.kv_heads'],
        'head_dim': fields['model.head_width'] or fields['model.width'] // fields['model.heads'],
        'hidden_act': 'silu' if fields['model.activation'] == 'swiglu' else 'gelu_pytorch_tanh',
        'rms_norm_eps': fields['model.norm_epsilon'] or 1e-6,
        'max_position_embeddings': fields['data.block'],
        'attention_bias': fields['model.bias'],
        'mlp_bias': fields['model.bias'],
        'tie_word_embeddings': fields['model.tied'],
        'sliding_window': window or None,
    }


def rules(fields: Mapping[str, Any]) -> list[Rule]:
    found = [Rule('embed/embedding', 'embed_tokens.weight'), Rule('norm/scale', 'norm.weight')]
    for i in range(fields['model.layers']):
        ours, theirs = f'block_{i}', f'layers.{i}'
        found += [
            Rule(f'{ours}/attention_norm/scale', f'{theirs}.input_layernorm.weight'),
            Rule(f'{ours}/mlp_norm/scale', f'{theirs}.post_attention_layernorm.weight'),
            Rule(f'{ours}/query_norm/scale', f'{theirs}.self_attn.q_norm.weight'),
            Rule(f'{ours}/key_norm/scale', f'{theirs}.self_attn.k_norm.weight'),
        ]
        for own, name in _PRODUCTS.items():
            found.append(Rule(f'{ours}/{own}/kernel', f'{theirs}.{name}.weight', transpose=True))
            found.append(Rule(f'{ours}/{own}/bias', f'{theirs}.{name}.bias'))
    return [*found, Rule('head/kernel', '/lm_head.weight', transpose=True)]


_PRODUCTS = {
    'query': 'self_attn.q_proj', 'key': 'self_attn.k_proj', 'value': 'self_attn.v_proj', 'out': 'self_attn.o_proj',
    'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj', 'down': 'mlp.down_proj',
}  # fmt: skip
LLAMA = Family(
    'lm', 'model.', fields, config, rules, unused=r'\.rotary_emb\.inv_freq$|^lm_head\.weight$',
    amended=lambda folder: with_head(folder, ('model.embed_tokens.weight', 'embed_tokens.weight'), False),
)  # fmt: skip
