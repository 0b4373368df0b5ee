"""checkpoint.json, the record beside a checkpoint: what was saved, and the sha256 of each of its files.

Somebody else may have made the folder of a run. So a record is data: its size is bounded, its types are checked, and it
names only regular files below its own folder.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from aigc_jax.core import records
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import atomic_write, walk

NAME = 'checkpoint.json'
_MOST_AXES, _MOST_LENGTH = 32, 2**48
# What opening a file raises that is missing or is no file. Other errors of the disk do not make a checkpoint damaged.
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, records.NoFile)


class Damaged(UserError):
    """A checkpoint's record, files or leaves are not those that were saved. The message says which, as a clause."""


def write(folder: pathlib.Path, record: dict, files: dict[str, str]) -> None:
    """Writes the record of `folder` with the digests of its files, and a digest of itself."""
    record = {**record, 'files': files}
    atomic_write(folder / NAME, json.dumps({'sha256': sha256(json.dumps(record).encode()), 'record': record}))


def read(folder: pathlib.Path) -> dict:
    """{'step', 'metrics', 'leaves': {name: [shape, dtype, digest]}, 'files': {name: sha256}}.

    Raises Damaged, or RunError where it cannot be read.
    """
    try:
        with _opened(folder, NAME) as file:
            whole = records.load(file)
        if whole['sha256'] == sha256(json.dumps(whole['record']).encode()) and _is_record(whole['record']):
            return whole['record']
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f'{NAME} is not as it was saved')


def files_of(folder: pathlib.Path) -> list[str]:
    """The names of the files below `folder`, but for the record. Raises Damaged for links, pipes and devices."""
    names = []
    for path, mode in sorted(walk(folder)):
        name = os.path.relpath(path, folder)
        if stat.S_ISREG(mode):
            names.append(name)
        elif not stat.S_ISDIR(mode):
            raise Damaged(f'{name} is no regular file')
    return [name for name in names if name != NAME]


def digest_of(folder: pathlib.Path, name: str) -> str:
    """sha256 of a file of a checkpoint. Raises Damaged, or RunError where it cannot be read."""
    with _opened(folder, name) as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check(folder: pathlib.Path, files: dict[str, str], names: list[str]) -> None:
    """Raises Damaged for the first of these `names` whose file is not what `files` says."""
    for name in names:
        if digest_of(folder, name) != files[name]:
            raise Damaged(f'{name} is not as it was saved')


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _opened(folder: pathlib.Path, name: str) -> Iterator[BinaryIO]:
    """A regular file below `folder`, open for reading. Raises Damaged, or RunError where the disk does not give it."""
    if not _is_plain(name):
        raise Damaged(f'{name!r} is no name of a file below it')
    path = folder / name
    try:
        with open(path, 'rb', opener=records.regular_itself) as file:
            yield file
    except _GONE as error:
        raise Damaged(f'{name} cannot be read: {error.strerror}') from None
    except OSError as error:
        if path.is_symlink():
            raise Damaged(f'{name} is a link') from None
        raise RunError(f'{path}: cannot be read: {error.strerror or error}') from None


def _is_plain(name: str) -> bool:
    """Whether it is a relative name without detours: no empty part, no . or .., no backslash."""
    return name.isprintable() and '\\' not in name and all(part not in ('', '.', '..') for part in name.split('/'))


def _is_record(record: Any) -> bool:
    fields = {'step': _is_count, 'metrics': _are_metrics, 'leaves': _are_leaves, 'files': _are_files}
    return isinstance(record, dict) and all(name in record and fits(record[name]) for name, fits in fields.items())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_LENGTH


def _are_metrics(values: Any) -> bool:
    number = lambda value: type(value) is float or (type(value) is int and abs(value) < _MOST_LENGTH)
    return isinstance(values, dict) and all(map(number, values.values()))


def _are_leaves(leaves: Any) -> bool:
    def fits(leaf):
        shape, dtype, digest = leaf
        sizes = isinstance(shape, list) and len(shape) <= _MOST_AXES and all(map(_is_count, shape))
        return sizes and math.prod(shape) < _MOST_LENGTH and isinstance(dtype, str) and isinstance(digest, str)

    return isinstance(leaves, dict) and all(isinstance(leaf, list) and fits(leaf) for leaf in leaves.values())


def _are_files(files: Any) -> bool:
    return isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())
