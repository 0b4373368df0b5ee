"""Checkpoints in Hugging Face's format, read and written without PyTorch and without transformers."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.adapt.huggingface.files import CONFIG, Folder, is_folder, write
from aigc_jax.adapt.huggingface.gpt2 import GPT2
from aigc_jax.adapt.huggingface.llama import LLAMA
from aigc_jax.adapt.huggingface.rules import Family, read, tensors
from aigc_jax.core.errors import UserError, near

FAMILIES: dict[str, Family] = {'gpt2': GPT2, 'llama': LLAMA, 'mistral': LLAMA, 'qwen2': LLAMA, 'qwen3': LLAMA}
"""{model_type of config.json: the family}"""


def family_of(folder: Folder) -> Family:
    """Raises UserError for a kind of model that there is no family of."""
    kind = folder.config['model_type']
    if kind not in FAMILIES:
        raise UserError(f'{folder.path}: model_type is {kind!r}{near(kind, FAMILIES)}')
    return FAMILIES[kind]


def family_for(fields: Mapping[str, Any]) -> Family:
    """The family that a model of a config, {field: value}, is written as. Raises UserError."""
    task = fields['task.name']
    if task == 'lm' and fields['model.kind'] == 'transformer':
        return GPT2 if fields['model.position'] == 'learned' else LLAMA
    raise UserError(f'task.name: {task}, with this model, has no form of Hugging Face')


__all__ = ['CONFIG', 'FAMILIES', 'Family', 'Folder', 'family_for', 'family_of', 'is_folder', 'read', 'tensors', 'write']
