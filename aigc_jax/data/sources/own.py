"""Data of the user's own Python file: data.name=my_data.py, or my_data.py:function.

The function, `load` unless one is named, is given the config's `data` and returns a dict of splits, or a Dataset:

    def load(cfg):
        return {'train': {'x': images, 'label': digits}, 'test': {'x': …, 'label': …}}     # arrays
        return {'train': ['a document', 'another'], 'valid': […], 'test': […]}             # text
"""

import copy
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core import user_code
from aigc_jax.core.errors import UserError, near
from aigc_jax.data.dataset import Dataset, fingerprint
from aigc_jax.data.sources import arrays, example_files, text
from aigc_jax.data.specs import Spec, Text
from aigc_jax.data.splits import Arrays, Mapped
from aigc_jax.data.tokenizers import Tokenizer

_NAME = re.compile(r'(?P<path>.+\.py)(?::(?P<function>[^:]*))?')
_FORM = "{'train': {'x': …, 'label': …}, 'test': {…}} with arrays, or {'train': ['a text', …], 'test': […]}"


def is_own(name: str) -> bool:
    """Whether data.name is the path of a Python file."""
    return bool(_NAME.fullmatch(name))


def load(cfg, tokenizer: Tokenizer | None) -> Dataset:
    """The data set that the user's function returns; `cfg` has the fields of images and points, or those of text.

    What it returns must be the same each time: a run is resumed and evaluated on data of the same fingerprint alone.
    Splits that it does not return are held out of train, as for files. "Your own function" in
    aigc_jax/data/README.md explains them.

    Raises:
      UserError: where the file has a mistake, with its line, or what it returns does not fit.
    """
    match, what = _NAME.fullmatch(cfg.name), f'data.name={cfg.name}'
    if match['function'] == '':
        raise UserError(f'{what}: what comes after the colon is missing')
    path, name = pathlib.Path(match['path']).expanduser(), match['function'] or 'load'
    module = user_code.load(path, 'data.name')
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, '__module__', '') == module.__name__]
        known = near(name, own) if own else ''
        raise UserError(f'{what}: the file defines no function {name}(cfg){known}')
    with user_code.errors_of(path, 'data.name'):
        found = function(copy.deepcopy(cfg))
    dataset = found if isinstance(found, Dataset) else _of_dict(cfg, found, tokenizer, what)
    _check(cfg, dataset, what)
    if dataset is found and all(isinstance(source, (Arrays, Mapped)) for source in dataset.splits.values()):
        dataset = dataclasses.replace(dataset, fingerprint=fingerprint(dataset.splits))
    return dataclasses.replace(dataset, loader=hashlib.sha256(path.read_bytes()).hexdigest())


def _check(cfg, dataset: Dataset, what: str) -> None:
    if not isinstance(dataset.spec, Spec):
        raise UserError(f'{what}: the spec of its Dataset is {dataset.spec!r}; it is Images, Points, Tokens or …')
    if 'train' not in dataset.splits or not all(len(source) for source in dataset.splits.values()):
        sizes = ', '.join(f'{split} {len(source)}' for split, source in dataset.splits.items()) or 'none'
        raise UserError(f'{what}: its Dataset needs train, and examples in each split; it has {sizes}')
    if isinstance(dataset.spec, Text) != ('tokenizer' in cfg):
        words = dataset.spec.words
        raise UserError(f'{what}: its Dataset holds {words}; use the config of a model of {words}')


def _of_dict(cfg, found: Any, tokenizer: Tokenizer | None, what: str) -> Dataset:
    if not isinstance(found, Mapping) or not found or not all(isinstance(split, str) for split in found):
        raise UserError(f'{what}: its function returns {_words(found)}, not {_FORM}')
    by_split: dict[str, Any] = {}
    for key, value in found.items():
        split = arrays.split_of(key)
        if not split or split in by_split:
            why = f'two splits {split}' if split else f'a split {key!r}{near(key, arrays.SPLITS)}'
            raise UserError(f'{what}: its function returns {why}')
        by_split[split] = value
    if len(by_split) > 1 and 'train' not in by_split:
        raise UserError(f'{what}: its function returns {", ".join(by_split)}, but no train')
    if 'columns' in cfg:
        if odd := [split for split, rows in by_split.items() if not isinstance(rows, (list, tuple))]:
            raise UserError(f'{what}: {odd[0]} is {_words(by_split[odd[0]])}; this config wants a list of dicts')
        return example_files.own(cfg, by_split, what, tokenizer)
    if 'tokenizer' in cfg:
        errors = 'surrogateescape' if text.is_kept(cfg, tokenizer) else 'strict'
        documents = {split: _documents(value, errors, f'{what}: {split}') for split, value in by_split.items()}
        return text.documents(cfg, documents if 'train' in documents else {'': documents.popitem()[1]}, tokenizer)
    return _of_arrays(cfg, {split: _named(value, f'{what}: {split}') for split, value in by_split.items()}, what)


def _documents(value: Any, errors: str, what: str) -> list[str]:
    if isinstance(value, np.ndarray) and value.dtype.kind == 'U':
        value = value.ravel().tolist()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
        raise UserError(f'{what} is {_words(value)}; this config wants a text, or a list of texts')
    for one in texts:
        try:
            one.encode(errors=errors)
        except UnicodeEncodeError as error:
            raise UserError(f'{what}: {one[error.start : error.start + 20]!r} begins with what is no letter') from None
    return list(texts)


def _named(value: Any, what: str) -> dict[str, np.ndarray]:
    """The arrays of one split. Raises UserError unless there is x, and all have one row an example."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        mend = '; for text, use the config of a language model' if isinstance(value, (str, list, tuple)) else ''
        raise UserError(f"{what} is {_words(value)}; it is a dict of arrays, {{'x': …, 'label': …}}{mend}")
    for name, meant in (('x', arrays.EXAMPLES), ('label', arrays.LABELS)):
        other = [key for key in value if re.fullmatch(meant, key, re.IGNORECASE)]
        if name not in value and (name == 'x' or other):
            found = ', '.join(value) or 'nothing'
            raise UserError(f"{what} holds {found}; name the examples 'x' and their classes 'label'")
    named = {}
    for name, array in value.items():
        try:
            named[name] = np.asarray(array)
        except ValueError as error:
            raise UserError(f'{what}: {name!r} is no array: {" ".join(str(error).split())}') from None
    if len({array.shape[:1] for array in named.values()}) > 1:
        shapes = ', '.join(f'{name} {array.shape}' for name, array in named.items())
        raise UserError(f'{what}: each array has one row an example; these are {shapes}')
    return named


def _of_arrays(cfg, by_split: Mapping[str, dict[str, np.ndarray]], what: str) -> Dataset:
    parts = {split: (named.pop('x'), named.pop('label', None)) for split, named in by_split.items()}
    others = {
        split: {name: _plain(array, f'{what}: {split}: {name!r}') for name, array in named.items()}
        for split, named in by_split.items()
    }
    kinds = {split: {name: (x.dtype, x.shape[1:]) for name, x in named.items()} for split, named in others.items()}
    first, *rest = kinds
    for split in rest:
        if kinds[split] != kinds[first]:
            names = ', '.join(sorted(name for name, _ in kinds[split].items() ^ kinds[first].items()))
            raise UserError(f'{what}: all splits must be alike; {first} and {split} differ in {names}')
    dataset = arrays.assemble_own(cfg, parts, others, what)
    return dataclasses.replace(dataset, licence="not known: the user's own")


def _plain(array: np.ndarray, what: str) -> np.ndarray:
    """As a device holds it: float32 for float64, int32 for int64."""
    if array.dtype.kind not in 'biuf' or not array.size:
        raise UserError(f'{what} is {array.dtype} of shape {array.shape}; it holds numbers')
    if array.dtype.kind == 'f':
        return array.astype(np.float32, copy=False) if array.itemsize > 4 else array
    if array.dtype.kind in 'iu' and array.itemsize >= 4 and array.dtype != np.int32:
        if array.max() >= 2**31 or array.min() < -(2**31):
            raise UserError(f'{what} holds {array.min()} to {array.max()}; whole numbers lie in −2**31..2**31 − 1')
        return array.astype(np.int32)
    return array


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return f'a dict of {", ".join(map(repr, value)) or "nothing"}'
    if isinstance(value, (list, tuple)):
        inner = sorted({type(one).__name__ for one in value})
        return f'a {type(value).__name__} of {", ".join(inner) or "nothing"}'
    return f'an array of {value.dtype}' if isinstance(value, np.ndarray) else f'a value of type {type(value).__name__}'
