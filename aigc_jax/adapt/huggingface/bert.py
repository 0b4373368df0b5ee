"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019), as masked language models and as classifiers.

A masked language model is also the beginning of a classifier, whose head is drawn (init.drawn, init.unused).
"""

import functools
from collections.abc import Mapping
from typing import Any

from aigc_jax.adapt.huggingface import checks
from aigc_jax.adapt.huggingface.rules import Family, Rule
from aigc_jax.core.errors import UserError
from aigc_jax.data import Dataset, Tagged, Tokens

_NAMES = {'bert': 'Bert', 'roberta': 'Roberta'}  # in the classes of transformers
_HEADS = {  # {family: {ours: theirs}} of the layers behind the blocks, whose tensors have no prefix
    'bert': {
        'mask_dense': 'cls.predictions.transform.dense',
        'mask_norm': 'cls.predictions.transform.LayerNorm',
        'mask_bias': 'cls.predictions.bias',
        'classifier': 'classifier',
        'tagger': 'classifier',
    },
    'roberta': {
        'mask_dense': 'lm_head.dense',
        'mask_norm': 'lm_head.layer_norm',
        'mask_bias': 'lm_head.bias',
        'pooler': 'classifier.dense',
        'classifier': 'classifier.out_proj',
        'tagger': 'classifier',
    },
}
_BLOCK = {
    'query': 'attention.self.query',
    'key': 'attention.self.key',
    'value': 'attention.self.value',
    'out': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm',
    'up': 'intermediate.dense',
    'down': 'output.dense',
    'mlp_norm': 'output.LayerNorm',
}
_EMBEDDINGS = {'embed': 'word', 'position': 'position', 'token_type': 'token_type'}
_OF_ROBERTA = 'gelu_erf'  # before the logits of tokens, where BERT has the activation of its blocks


_FIXED = {
    'model.position': 'learned', 'model.norm': 'layernorm', 'model.qk_norm': False, 'model.bias': True,
    'model.post_norm': True, 'model.head_width': 0, 'model.qk_scale': False, 'model.qkv_bias': False,
    'model.rope_theta': 10_000.0, 'model.rope_scaling': (),
}  # fmt: skip


def fields(family: str, theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
    checks.only(theirs, where, is_decoder=False, add_cross_attention=False, position_embedding_type='absolute')
    size = lambda name, default: checks.number(theirs, name, where, default=default)
    # Where RoBERTa's positions begin, behind that of padding.
    offset = size('pad_token_id', 1) + 1 if family == 'roberta' else 0
    positions = size('max_position_embeddings', 512) - offset
    heads = size('num_attention_heads', 12)
    activation = checks.activation(theirs, 'hidden_act', where, 'gelu')
    if family == 'roberta' and activation != _OF_ROBERTA:
        raise UserError(
            f"{where}: hidden_act is {theirs['hidden_act']!r}; a RoBERTa has 'gelu' before its logits whatever its "
            'blocks have, and here both have the same'
        )
    return _FIXED | {
        'model.layers': size('num_hidden_layers', 12),
        'model.heads': heads,
        'model.kv_heads': heads,
        'model.width': size('hidden_size', 768),
        'model.mlp_width': size('intermediate_size', 3072),
        'model.norm_epsilon': checks.number(theirs, 'layer_norm_eps', where, float, 1e-12),
        'model.activation': activation,
        'model.positions': positions,
        'model.position_offset': offset,
        'model.token_types': size('type_vocab_size', 2),
        'data.block': positions,
    }


def config(family: str, fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    fixed = {name.removeprefix('model.'): value for name, value in _FIXED.items() if 'rope' not in name}
    checks.ours(
        fields, {'bert': 'BERT', 'roberta': 'RoBERTa'}[family],
        activation=('gelu', 'gelu_erf', 'relu', 'relu2') if family == 'bert' else _OF_ROBERTA,
        kv_heads=fields['model.heads'], **fixed,
    )  # fmt: skip
    if not fields['model.token_types'] or not fields['model.positions']:
        raise UserError('model.token_types, model.positions: a checkpoint of BERT has one of each or more')
    offset = fields['model.position_offset']
    head = 'PreTraining' if fields.get('task.sentence_order') else 'MaskedLM'
    if head == 'PreTraining' and family == 'roberta':
        raise UserError('task.sentence_order: a checkpoint of RoBERTa has no such head')
    found = {
        'model_type': family,
        'architectures': [f'{_NAMES[family]}For{head}'],
        'vocab_size': vocab_size,
        'hidden_size': fields['model.width'],
        'num_hidden_layers': fields['model.layers'],
        'num_attention_heads': fields['model.heads'],
        'intermediate_size': fields['model.mlp_width'],
        'hidden_act': checks.theirs_of(fields['model.activation']),
        'hidden_dropout_prob': fields.get('model.dropout', 0.0),
        'attention_probs_dropout_prob': fields.get('model.dropout', 0.0),
        'max_position_embeddings': fields['model.positions'] + offset,
        'type_vocab_size': fields['model.token_types'],
        'layer_norm_eps': fields['model.norm_epsilon'] or 1e-5,
        'tie_word_embeddings': True,
    }
    return found | ({'pad_token_id': offset - 1} if offset else {})


def more(theirs: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What a config.json says beside what `config` gives: of the padding, and of a classifier. Raises UserError."""
    spec, names = dataset.spec, dataset.class_names
    pad = spec.tokenizer.filler if spec.tokenizer.pad is None else spec.tokenizer.pad
    if theirs.get('pad_token_id', pad) != pad:  # from which transformers counts the positions
        raise UserError(
            f'model.position_offset: it is that of a RoBERTa whose padding is token {theirs["pad_token_id"]}; '
            f'the padding of this tokenizer is token {pad}'
        )
    if isinstance(spec, Tokens):
        return {'pad_token_id': pad}
    of = 'Token' if isinstance(spec, Tagged) else 'Sequence'
    return {
        'pad_token_id': pad,
        'architectures': [f'{_NAMES[theirs["model_type"]]}For{of}Classification'],
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    }


def rules(family: str, fields: Mapping[str, Any]) -> list[Rule]:
    found = [Rule(f'{ours}/embedding', f'embeddings.{name}_embeddings.weight') for ours, name in _EMBEDDINGS.items()]
    found += _layer('embed_norm', 'embeddings.LayerNorm')
    for i in range(fields['model.layers']):
        for ours, theirs in _BLOCK.items():
            found += _layer(f'block_{i}/{ours}', f'encoder.layer.{i}.{theirs}')
    heads = _HEADS[family]
    if family == 'bert':
        found += _layer('pooler', 'pooler.dense')
        if fields.get('task.sentence_order'):
            heads = heads | {'classifier': 'cls.seq_relationship'}
    for ours, theirs in heads.items():
        found += [Rule(ours, f'/{theirs}')] if ours == 'mask_bias' else _layer(ours, f'/{theirs}')
    return found


def _layer(ours: str, theirs: str) -> list[Rule]:
    bias = Rule(f'{ours}/bias', f'{theirs}.bias')
    if ours.endswith('norm'):
        return [Rule(f'{ours}/scale', f'{theirs}.weight'), bias]
    return [Rule(f'{ours}/kernel', f'{theirs}.weight', transpose=True), bias]


def _family(name: str) -> Family:
    of = lambda function: functools.partial(function, name)
    head = {'bert': 'cls.predictions', 'roberta': 'lm_head'}[name]
    return Family(
        'mlm', f'{name}.', of(fields), of(config), of(rules), also=('classify',),
        # Numbers of the positions, copies of the embedding and its bias, and which of two sentences comes first.
        unused=r'position_ids$|^cls\.predictions\.decoder\.|^lm_head\.decoder\.|^cls\.seq_relationship\.',
        copies={
            f'{head}.decoder.weight': f'{name}.embeddings.word_embeddings.weight',
            f'{head}.decoder.bias': f'{head}.bias',
        },
    )  # fmt: skip


BERT, ROBERTA = _family('bert'), _family('roberta')
