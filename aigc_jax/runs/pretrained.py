"""A config whose init.run is a checkpoint of Hugging Face: its model is that of the checkpoint."""

import contextlib
import hashlib
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from aigc_jax import tasks
from aigc_jax.adapt import huggingface
from aigc_jax.adapt.huggingface import checks
from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.data import Dataset, Labelled, Pairs, Tagged, Tokenizer, Tokens, tokenizer_files
from aigc_jax.data.sources.text import FOLDER, Windows
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest
from aigc_jax.runs.paths import Paths

NO_DATA = 'pydoc'  # stands in a config that reads none: whatever is text
# What a config says of the training with a model, and not of the model.
_OWN = {'zero_init': False, 'dropout': 0.0, 'attention': 'einsum', 'remat': False, 'scan_layers': False}


def is_one(config: ConfigDict) -> bool:
    """Whether init.run is a checkpoint of Hugging Face."""
    return bool(config.init.run) and huggingface.is_folder(config.init.run)


def fit(config: ConfigDict, given: Collection[str]) -> None:
    """Gives `config` the model of the checkpoint that init.run names, if it names one, and a data.block that this model
    can read. given: the fields that a command has set, which may not contradict it. Raises UserError.

    Where init.run names a run that began with such a checkpoint, the model is that run's (`_fit_to_run`).
    """
    if not is_one(config):
        return _fit_to_run(config, given)
    folder = huggingface.Folder(config.init.run)
    family, fields = huggingface.family_of(folder), _fields(folder)
    if config.task.name not in (family.task, *family.also):
        raise UserError(
            f'task.name: {config.task.name}, but init.run, {folder.path}, is a model of the kind '
            f'{folder.config["model_type"]}, which task.name={family.task} trains'
        )
    most = fields.pop('data.block') - (2 if config.task.name == 'mlm' else 0)  # cls and sep stand around a window
    _bound_block(config, most, given, folder.path)
    own = _declared(_model(fields), config.task.name)
    model = own | {name: config.model[name] for name in own if name in config.model} | _model(fields)
    for name in given:
        if name not in fields:
            continue
        field, value = name.removeprefix('model.'), fields[name]
        if field not in config.model or config.model[field] != value:
            raise UserError(f'{name}: {value!r} is that of init.run, {folder.path}; leave the field out')
    config.model = ConfigDict(model)


def _fit_to_run(config: ConfigDict, given: Collection[str]) -> None:
    """Gives `config` the model of the run that init.run names, where that model is the one of a checkpoint of Hugging
    Face. A model that differs in floats alone, which decide no shape, stays as it is, and so does one that takes other
    names, or parts, of a run of the same task. Raises UserError."""
    init, theirs = config.init, _of_checkpoint(config.init.run)
    if theirs is None or init.rename or not isinstance(theirs.get('model'), ConfigDict):
        return
    task, theirs_task = config.task.name, config_lib.flatten(theirs).get('task.name')
    whole = task == theirs_task and not init.drawn and not init.unused
    if not whole and (theirs_task, task) != ('mlm', 'classify'):
        return
    around = ConfigDict({'task': {'name': task}})
    declared = tasks.fields('model', theirs.model, around) or {}
    now = config.model
    model = {name: value for name, value in theirs.model.items() if name in declared and name not in _OWN}
    model |= {name: now[name] for name, value in model.items() if isinstance(value, float) and f'model.{name}' in given}
    other = {name: value for name, value in model.items() if name not in now or now[name] != value}
    for name in other:
        if f'model.{name}' in given:
            raise UserError(f'model.{name}: {model[name]!r} is that of init.run, {init.run}; leave the field out')
    if not all(isinstance(value, float) for value in other.values()):
        note(f'model: that of init.run, {init.run}: {", ".join(f"{name}={other[name]}" for name in sorted(other))}')
        config.model = ConfigDict({name: now[name] for name in _OWN if name in declared and name in now} | model)
    most = config_lib.flatten(theirs).get('data.block') if model.get('position') == 'learned' else None
    most = model['positions'] - (2 if task == 'mlm' else 0) if model.get('positions') else most
    if isinstance(most, int) and 'block' in config.data:
        _bound_block(config, most, given, init.run)


def _bound_block(config: ConfigDict, most: int, given: Collection[str], run: Any) -> None:
    """Lowers data.block to `most`, of the model in the folder `run`. Raises UserError where a command has set more."""
    if 'data.block' in given and config.data.block > most:
        raise UserError(f'data.block: {config.data.block}; the model of init.run, {run}, reads {most} at most')
    config.data.block = min(config.data.block, most)


def _of_checkpoint(folder: str) -> ConfigDict | None:
    """The config of the run in `folder` where it began with a checkpoint of Hugging Face, or with a run that did; None
    of another, and where there is none. Raises UserError for a damaged config.json."""
    found, seen = None, set()
    while isinstance(folder, str) and folder and folder not in seen:
        seen.add(folder)
        paths = Paths(pathlib.Path(folder).expanduser())
        if not paths.config.exists():
            return None
        config = config_lib.from_json(paths.config)
        found, folder = found or config, config_lib.flatten(config).get('init.run')
        with contextlib.suppress(UserError):  # of a manifest that is damaged, and is of no use here
            first = (manifest.read(paths.manifest).get('starts') or [{}])[0]
            if 'init_sha256' in first and first.get('init_config') == {}:
                return found
        if isinstance(folder, str) and folder and huggingface.is_folder(folder):
            return found
    return None


def _fields(folder: huggingface.Folder) -> dict[str, Any]:
    """{field: value} of our config, of the checkpoint's model."""
    vocab_size = checks.number(folder.config, 'vocab_size', str(folder.path / huggingface.CONFIG))
    return {**huggingface.fields_of(folder), 'model.vocab_size': vocab_size}


def _declared(model: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What the config of such a model has besides, of _OWN."""
    around = ConfigDict({'task': {'name': task}})
    declared = tasks.fields('model', ConfigDict(dict(model)), around) or {}
    return {name: value for name, value in _OWN.items() if name in declared}


def _model(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix('model.'): value for name, value in fields.items() if name.startswith('model.')}


def tokenizer(config: ConfigDict) -> Tokenizer | None:
    """That of the checkpoint; None where its folder has none, and that of the data is its. Raises UserError."""
    if not tokenizer_files.are_in(config.init.run):
        note(f'data.tokenizer: {config.data.tokenizer}, for init.run, {config.init.run}, holds none')
        return None
    found = tokenizer_files.read(config.init.run)
    note(f'data.tokenizer: that of init.run, of {found.vocab_size} tokens')
    _compare(huggingface.Folder(config.init.run), found)
    return found


def check_tokenizer(config: ConfigDict, found: Tokenizer | None) -> None:
    """Raises UserError where data.tokenizer names the folder of another tokenizer than `found`, that of init.run."""
    name = config.data.get('tokenizer')
    if found is None or not isinstance(name, str) or not name.startswith(FOLDER):
        return
    if not tokenizer_files.read(name.removeprefix(FOLDER)).writes_as(found):
        raise UserError(
            f'data.tokenizer: {name}, but the parameters of init.run, {config.init.run}, stand for the tokens of its '
            'own tokenizer, which is another; set it to auto'
        )


def _compare(folder: huggingface.Folder, found: Tokenizer) -> None:
    """Raises UserError where the decoder of the checkpoint begins with another token than that of its tokenizer; a note
    tells other signs that the tokenizer is that of another model."""
    theirs, begin = folder.config, folder.config.get('decoder_start_token_id')
    if theirs.get('is_encoder_decoder') and begin is not None and begin != found.filler:
        raise UserError(
            f'init.run: {folder.path / huggingface.CONFIG}: decoder_start_token_id is {begin!r}, and a target begins '
            f'with the padding here, which is token {found.filler} of the tokenizer; is it that of another model?'
        )
    for name, own in (('eos_token_id', found.end), ('pad_token_id', found.pad)):
        said = theirs.get(name)
        if said is not None and own is not None and own not in (said if isinstance(said, list) else [said]):
            note(f'{folder.path / huggingface.CONFIG}: {name} is {said}, and of the tokenizer {own}, which is used')


def config_of(folder) -> ConfigDict:
    """A config whose model is the checkpoint in a folder, for use without a training. Raises UserError."""
    found = huggingface.Folder(folder, 'from_pretrained')
    task = 'classify' if huggingface.classes(found) else huggingface.family_of(found).task
    model = _model(_fields(found))
    model = _declared(model, task) | model
    still = {'name': 'sgd', 'options': {}, 'schedule': {'name': 'constant_schedule', 'value': 0.0}}
    every = dict.fromkeys(('log_every_steps', 'eval_every_steps', 'checkpoint_every_steps'), 1)
    return ConfigDict({
        **every, 'total_steps': 1, 'steps_per_call': 1, 'batch_size': 1, 'optim': {'model': still},
        'init': {'run': str(found.path)}, 'model': model, 'data': {'name': NO_DATA, 'block': 10**9},
        'task': {'name': task},
    })  # fmt: skip


def no_data(config: ConfigDict, tokenizer: Tokenizer) -> Dataset:
    """Texts of one window that nobody reads; as of pairs, the prompts of an encoder-decoder are framed. The classes are
    those of the checkpoint."""
    windows = Windows(np.zeros(config.data.block + 1, np.int32), config.data.block, 1, False)
    splits = dict.fromkeys(('train', 'valid', 'test'), windows)
    block = config.data.block
    if config.task.name == 'classify':
        by_token, names = huggingface.classes(huggingface.Folder(config.init.run))
        spec = (Tagged if by_token else Labelled)(block, tokenizer)
        return Dataset(splits, spec, 'none', '', num_classes=len(names), class_names=names)
    spec = Pairs(block, block, tokenizer) if config.task.name == 'seq2seq' else Tokens(block, tokenizer)
    return Dataset(splits, spec, 'none', '')


def digest(config: ConfigDict) -> str:
    """sha256 of the checkpoint's files, in the order of their names."""
    found = hashlib.sha256()
    for path in huggingface.Folder(config.init.run).files:
        with open(path, 'rb') as file:
            found.update(hashlib.file_digest(file, 'sha256').digest())
    return found.hexdigest()
