"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019): which tensor of a checkpoint is which parameter."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    ours: str
    theirs: str
    transpose: bool = False


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


def rules(family: str, fields: Mapping[str, Any]) -> list[Rule]:
    """Of 'bert' or 'roberta': those of every head."""
    found = [Rule(f'{ours}/embedding', f'embeddings.{name}_embeddings.weight') for ours, name in _EMBEDDINGS.items()]
    found += _layer('embed_norm', 'embeddings.LayerNorm')
    for i in range(fields['model.layers']):
        for ours, theirs in _BLOCK.items():
            found += _layer(f'block_{i}/{ours}', f'encoder.layer.{i}.{theirs}')
    if 'pooler' not in _HEADS[family]:
        found += _layer('pooler', 'pooler.dense')
    for ours, theirs in _HEADS[family].items():
        found += [Rule(ours, f'/{theirs}')] if ours == 'mask_bias' else _layer(ours, f'/{theirs}')
    return found


def _layer(ours: str, theirs: str) -> list[Rule]:
    bias = Rule(f'{ours}/bias', f'{theirs}.bias')
    if ours.endswith('norm'):
        return [Rule(f'{ours}/scale', f'{theirs}.weight'), bias]
    return [Rule(f'{ours}/kernel', f'{theirs}.weight', transpose=True), bias]
