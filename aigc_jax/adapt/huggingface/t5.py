"""T5 v1.0, v1.1 and Flan (Raffel et al. 2020), and CodeT5 (Wang et al. 2021), which is v1.0."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.adapt.huggingface import checks
from aigc_jax.adapt.huggingface.files import Folder
from aigc_jax.adapt.huggingface.rules import Family, Rule, with_head
from aigc_jax.core.errors import UserError

_ACTIVATIONS = {
    'relu': 'relu', 'gated-gelu': 'geglu', 'gated-silu': 'swiglu', 'gelu': 'gelu_erf', 'gelu_new': 'gelu',
}  # fmt: skip
_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_ANY_LENGTH = 2**20  # of a text: more than anyone reads, for distances are relative, and all long ones are alike


def amended(folder: Folder) -> Mapping[str, Any]:
    """config.json, which tells by the weights whether the head is that of the embedding: transformers 5 writes that it
    always is, and keeps the weights of its own that v1.1 has."""
    theirs = folder.config
    scaled = theirs.get('scale_decoder_outputs', theirs.get('tie_word_embeddings', True) is not False)
    return {**with_head(folder, ('shared.weight',), True), 'scale_decoder_outputs': scaled}


def fields(theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
    checks.only(theirs, where, is_encoder_decoder=True)
    size = lambda name, default: checks.number(theirs, name, where, default=default)
    activation = theirs.get('feed_forward_proj', 'relu')
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise UserError(f'{where}: feed_forward_proj is {activation!r}; known: {", ".join(_ACTIVATIONS)}')
    width, heads, head_width = size('d_model', 512), size('num_heads', 8), size('d_kv', 64)
    layers = size('num_layers', 6)
    decoder_layers = size('num_decoder_layers', layers)
    return {
        'model.layers': layers,
        'model.decoder_layers': 0 if decoder_layers == layers else decoder_layers,
        'model.heads': heads,
        'model.width': width,
        'model.head_width': 0 if head_width * heads == width else head_width,
        'model.mlp_width': size('d_ff', 2048),
        'model.activation': _ACTIVATIONS[activation],
        'model.norm_epsilon': checks.number(theirs, 'layer_norm_epsilon', where, float, 1e-6),
        'model.buckets': size('relative_attention_num_buckets', 32),
        'model.max_distance': size('relative_attention_max_distance', 128),
        'model.tied': theirs['tie_word_embeddings'],
        'model.scaled_logits': theirs['scale_decoder_outputs'],
        'data.block': _ANY_LENGTH,
    }


def config(fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    checks.ours(fields, 'T5', activation=tuple(_ACTIVATIONS.values()))
    activation = next(name for name, own in _ACTIVATIONS.items() if own == fields['model.activation'])
    return {
        'model_type': 't5',
        'architectures': ['T5ForConditionalGeneration'],
        'is_encoder_decoder': True,
        'vocab_size': vocab_size,
        'd_model': fields['model.width'],
        'd_kv': fields['model.head_width'] or fields['model.width'] // fields['model.heads'],
        'd_ff': fields['model.mlp_width'],
        'num_layers': fields['model.layers'],
        'num_decoder_layers': fields['model.decoder_layers'] or fields['model.layers'],
        'num_heads': fields['model.heads'],
        'feed_forward_proj': activation,
        'layer_norm_epsilon': fields['model.norm_epsilon'] or 1e-6,
        'relative_attention_num_buckets': fields['model.buckets'],
        'relative_attention_max_distance': fields['model.max_distance'],
        'dropout_rate': fields.get('model.dropout', 0.0),
        'tie_word_embeddings': fields['model.tied'],
        'scale_decoder_outputs': fields['model.scaled_logits'],
    }


def rules(fields: Mapping[str, Any]) -> list[Rule]:
    found = [Rule('embed/embedding', 'shared.weight')]
    if not fields['model.tied']:
        found.append(Rule('head/kernel', 'lm_head.weight', transpose=True))
    for stack, layers in (('encoder', 'model.layers'), ('decoder', 'model.decoder_layers')):
        found += [
            Rule(f'{stack}_norm/scale', f'{stack}.final_layer_norm.weight'),
            Rule(f'{stack}_bias/embedding', f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'),
        ]
        for i in range(fields[layers] or fields['model.layers']):
            found += _block(f'{stack}_{i}', f'{stack}.block.{i}.layer', stack == 'decoder', fields)
    return found


def _block(ours: str, theirs: str, cross: bool, fields: Mapping[str, Any]) -> list[Rule]:
    norm = lambda name, place: Rule(f'{ours}/{name}_norm/scale', f'{theirs}.{place}.layer_norm.weight')
    product = lambda name, where: Rule(f'{ours}/{name}/kernel', f'{theirs}.{where}.weight', transpose=True)
    found = [norm('attention', 0), *(product(name, f'0.SelfAttention.{own}') for name, own in _ATTENTION.items())]
    if cross:
        found.append(norm('cross', 1))
        found += [product(f'cross_{name}', f'1.EncDecAttention.{own}') for name, own in _ATTENTION.items()]
    mlp = f'{1 + cross}.DenseReluDense'
    gated = fields['model.activation'] in ('geglu', 'swiglu')
    up = [product('gate', f'{mlp}.wi_0'), product('up', f'{mlp}.wi_1')] if gated else [product('up', f'{mlp}.wi')]
    return [*found, norm('mlp', 1 + cross), *up, product('down', f'{mlp}.wo')]


T5 = Family(
    'seq2seq', '', fields, config, rules, amended=amended,
    # Copies of the embedding, and a bias that v1.0 once had and never read.
    unused=r'\.embed_tokens\.weight$|^lm_head\.weight$|EncDecAttention\.relative_attention_bias\.weight$',
    copies={f'{stack}.embed_tokens.weight': 'shared.weight' for stack in ('encoder', 'decoder')},
)  # fmt: skip
