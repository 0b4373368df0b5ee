"""GPT-2 (Radford et al. 2019)."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.adapt.huggingface import checks
from aigc_jax.adapt.huggingface.rules import Family, Rule, with_head


def fields(theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
    plain = dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    checks.only(theirs, where, **plain)
    size = lambda name, default=None: checks.number(theirs, name, where, default=default)
    width = size('n_embd', 768)
    return checks.PLAIN | {
        'model.layers': size('n_layer', 12),
        'model.heads': size('n_head', 12),
        'model.kv_heads': size('n_head', 12),
        'model.width': width,
        'model.mlp_width': size('n_inner', 4 * width),
        'model.position': 'learned',
        'model.norm': 'layernorm',
        'model.norm_epsilon': checks.number(theirs, 'layer_norm_epsilon', where, float, 1e-5),
        'model.activation': checks.activation(theirs, 'activation_function', where, 'gelu_new'),
        'model.bias': True,
        'model.tied': bool(theirs.get('tie_word_embeddings', True)),
        'data.block': size('n_positions', 1024),
    }


def config(fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    checks.ours(
        fields, 'GPT-2', position='learned', norm='layernorm', activation=('gelu', 'gelu_erf', 'relu', 'relu2'),
        bias=True, qk_norm=False, head_width=0, softcap=0.0, window=0, kv_heads=fields['model.heads'],
    )  # fmt: skip
    return {
        'model_type': 'gpt2',
        'architectures': ['GPT2LMHeadModel'],
        'vocab_size': vocab_size,
        'n_positions': fields['data.block'],
        'n_embd': fields['model.width'],
        'n_layer': fields['model.layers'],
        'n_head': fields['model.heads'],
        'n_inner': fields['model.mlp_width'],
        'activation_function': checks.theirs_of(fields['model.activation']),
        'layer_norm_epsilon': fields['model.norm_epsilon'] or 1e-5,
        'tie_word_embeddings': fields['model.tied'],
    }


def rules(fields: Mapping[str, Any]) -> list[Rule]:
    found = [Rule('embed/embedding', 'wte.weight'), Rule('position/embedding', 'wpe.weight', cut=True)]
    both = lambda ours, theirs, kernel='kernel', part=(0, 1): [
        Rule(f'{ours}/{kernel}', f'{theirs}.weight', part=part), Rule(f'{ours}/bias', f'{theirs}.bias', part=part),
    ]  # fmt: skip
    for i in range(fields['model.layers']):
        ours, theirs = f'block_{i}', f'h.{i}'
        found += both(f'{ours}/attention_norm', f'{theirs}.ln_1', 'scale')
        for k, name in enumerate(('query', 'key', 'value')):
            found += both(f'{ours}/{name}', f'{theirs}.attn.c_attn', part=(k, 3))
        found += both(f'{ours}/out', f'{theirs}.attn.c_proj')
        found += both(f'{ours}/mlp_norm', f'{theirs}.ln_2', 'scale')
        found += both(f'{ours}/up', f'{theirs}.mlp.c_fc') + both(f'{ours}/down', f'{theirs}.mlp.c_proj')
    found += both('norm', 'ln_f', 'scale')
    return found if fields['model.tied'] else [*found, Rule('head/kernel', '/lm_head.weight', transpose=True)]


# The weights of its products are not those of a torch.nn.Linear, whose axes are in the other order.
GPT2 = Family(
    'lm', 'transformer.', fields, config, rules, unused=r'\.attn\.(masked_)?bias$|^lm_head\.weight$',
    amended=lambda folder: with_head(folder, ('transformer.wte.weight', 'wte.weight'), True),
)  # fmt: skip
