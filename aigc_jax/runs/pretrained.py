"""A config whose init.run is a checkpoint of Hugging Face: its model is that of the checkpoint."""

import hashlib
from collections.abc import Collection

from ml_collections import ConfigDict

from aigc_jax.adapt import huggingface
from aigc_jax.adapt.huggingface import checks
from aigc_jax.core.errors import UserError

# What a config says of the training with a model, and not of the model.
_OWN = {'zero_init': False, 'dropout': 0.0, 'attention': 'einsum', 'remat': False, 'scan_layers': False}


def is_one(config: ConfigDict) -> bool:
    """Whether init.run is a checkpoint of Hugging Face."""
    return bool(config.init.run) and huggingface.is_folder(config.init.run)


def fit(config: ConfigDict, given: Collection[str]) -> None:
    """Gives `config` the model of the checkpoint that init.run names, if it names one, and a data.block that this model
    can read. given: the fields that a command has set, which may not contradict it. Raises UserError."""
    if not is_one(config):
        return
    folder = huggingface.Folder(config.init.run)
    family, where = huggingface.family_of(folder), str(folder.path / huggingface.CONFIG)
    if config.task.name != family.task:
        raise UserError(
            f'task.name: {config.task.name}, but init.run, {folder.path}, is a model of the kind '
            f'{folder.config["model_type"]}, which task.name={family.task} trains'
        )
    fields = family.fields(folder.config, where)
    fields['model.vocab_size'] = checks.number(folder.config, 'vocab_size', where)
    most = fields.pop('data.block')
    if 'data.block' in given and config.data.block > most:
        raise UserError(f'data.block: {config.data.block}; the model of init.run, {folder.path}, reads {most} at most')
    config.data.block = min(config.data.block, most)
    own = {name: config.model.get(name, value) for name, value in _OWN.items()}
    model = own | {name.removeprefix('model.'): value for name, value in fields.items()}
    for name in given:
        value = model.get(name.removeprefix('model.'))
        if name in fields and config.model.get(name.removeprefix('model.')) != value:
            raise UserError(f'{name}: {value!r} is that of init.run, {folder.path}; leave the field out')
    config.model = ConfigDict(model)


def digest(config: ConfigDict) -> str:
    """sha256 of the checkpoint's files, in the order of their names."""
    found = hashlib.sha256()
    for path in huggingface.Folder(config.init.run).files:
        with open(path, 'rb') as file:
            found.update(hashlib.file_digest(file, 'sha256').digest())
    return found.hexdigest()
