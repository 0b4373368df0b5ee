"""Checkpoints in Hugging Face's format, read and written without PyTorch and without transformers."""

import re
from collections.abc import Mapping
from typing import Any

from aigc_jax.adapt.huggingface.bert import BERT, ROBERTA
from aigc_jax.adapt.huggingface.files import CONFIG, Folder, is_folder, write
from aigc_jax.adapt.huggingface.gpt2 import GPT2
from aigc_jax.adapt.huggingface.llama import LLAMA
from aigc_jax.adapt.huggingface.rules import Family, parameters, read, tensors, unwritten
from aigc_jax.adapt.huggingface.t5 import T5
from aigc_jax.core.errors import UserError, near

FAMILIES: dict[str, Family] = {
    'gpt2': GPT2, 'llama': LLAMA, 'mistral': LLAMA, 'qwen2': LLAMA, 'qwen3': LLAMA, 'bert': BERT, 'roberta': ROBERTA,
    't5': T5,
}  # fmt: skip
"""{model_type of config.json: the family}"""


def family_of(folder: Folder) -> Family:
    """Raises UserError for a kind of model that there is no family of."""
    kind = folder.config['model_type']
    if kind not in FAMILIES:
        raise UserError(f'{folder.path}: model_type is {kind!r}{near(kind, FAMILIES)}; known: {", ".join(FAMILIES)}')
    return FAMILIES[kind]


def fields_of(folder: Folder) -> dict[str, Any]:
    """{field of our config: value} of a checkpoint. Raises UserError."""
    family = family_of(folder)
    return family.fields(family.amended(folder), str(folder.path / CONFIG))


def classes(folder: Folder) -> tuple[bool, tuple[str, ...]] | None:
    """(whether it tells a class of each token, the names of the classes) of a classifier; None of another model. Raises
    UserError for one of which not just one class is right."""
    architectures = folder.config.get('architectures') or ['']
    kind = re.search('For(Sequence|Token)Classification$', str(architectures[0]))
    if not kind:
        return None
    names, problem = _named(folder) or ('LABEL_0', 'LABEL_1'), folder.config.get('problem_type')  # two may be left out
    if len(names) < 2 or problem not in (None, 'single_label_classification'):
        what = f'problem_type is {problem}' if problem else f'it tells {len(names)} class'
        raise UserError(f'{folder.path / CONFIG}: {what}; a classifier tells one of two classes or more')
    return kind[1] == 'Token', names


def _named(folder: Folder) -> tuple[str, ...]:
    named = folder.config.get('id2label')
    return tuple(str(named.get(str(i))) for i in range(len(named))) if isinstance(named, dict) else ()


def class_names(folder: Folder) -> tuple[str, ...]:
    """Those that a classifier tells; () where nobody named them, and they are LABEL_0, LABEL_1, …"""
    found = _named(folder)
    return () if all(re.fullmatch(r'LABEL_\d+', name) for name in found) else found


def family_for(fields: Mapping[str, Any]) -> Family:
    """The family that a model of a config, {field: value}, is written as. Raises UserError."""
    task = fields['task.name']
    if task == 'lm' and fields['model.kind'] == 'transformer':
        return GPT2 if fields['model.position'] == 'learned' else LLAMA
    if task in ('mlm', 'classify') and 'model.position_offset' in fields:  # not of images
        return ROBERTA if fields['model.position_offset'] else BERT
    if task == 'seq2seq':
        return T5
    raise UserError(f'task.name: {task}, with this model, has no form of Hugging Face')


__all__ = [
    'CONFIG', 'FAMILIES', 'Family', 'Folder', 'class_names', 'classes', 'family_for', 'family_of', 'fields_of',
    'is_folder', 'parameters', 'read', 'tensors', 'unwritten', 'write',
]  # fmt: skip
