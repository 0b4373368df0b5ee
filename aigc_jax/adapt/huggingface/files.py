"""Folders in Hugging Face's format: config.json and the tensors of one or several safetensors files.

Nothing is unpickled, and no tensor is read before it is asked for.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aigc_jax.core import files, records
from aigc_jax.core.errors import UserError

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
SHARD = 5 * 10**9  # bytes of a file, at most, where there are several
_NONE: Mapping[str, str] = MappingProxyType({})
_OLD_NAMES = re.compile(r'(?<=LayerNorm\.)(gamma|beta)$')  # as the first checkpoints of BERT have them
_FLOATS = 'F64', 'F32', 'F16', 'BF16'


def is_folder(path: pathlib.Path | str) -> bool:
    """Whether this is a checkpoint's folder and not that of a run, whose config.json names no kind of model."""
    try:
        return 'model_type' in records.read(pathlib.Path(path).expanduser() / CONFIG)
    except (OSError, ValueError, TypeError):
        return False


class Folder:
    """A checkpoint's folder.

    Attributes:
      path: of the folder.
      config: its config.json.
      files: config.json and the files of the tensors.
      shapes: {name: shape} of the tensors of all files.

    Raises UserError for what is no such folder, a shard that is missing or cut short, and weights that are pickled.
    """

    def __init__(self, path: pathlib.Path | str, what: str = 'init.run'):
        self.path, self._what = pathlib.Path(path).expanduser(), what
        if not self.path.is_dir():
            raise UserError(f'{what}: there is no folder {self.path}')
        try:
            self.config = records.read(self.path / CONFIG)
            kind = self.config['model_type']
        except FileNotFoundError:
            raise UserError(f'{what}: {self.path} has no {CONFIG}; name the folder of a checkpoint') from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = getattr(error, 'strerror', None) or 'it is no JSON object with a model_type'
            raise UserError(f'{what}: {self.path / CONFIG}: {why}') from None
        if not isinstance(kind, str):
            raise UserError(f'{what}: {self.path / CONFIG}: model_type is {kind!r}')
        self._files = {}
        self.files = [self.path / CONFIG, *(self.path / name for name in self._names())]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._of = {}
        for file in self.files[1:]:
            self._files[file] = opened = self._open(file)
            for stored in opened.keys():
                name = _OLD_NAMES.sub(lambda found: {'gamma': 'weight', 'beta': 'bias'}[found[0]], stored)
                self._of[name] = file, stored
                part = opened.get_slice(stored)
                if part.get_dtype() not in _FLOATS:
                    continue  # masks and counters, which no model is made of
                self.shapes[name] = tuple(part.get_shape())

    def _names(self) -> list[str]:
        """The files that hold tensors."""
        if (self.path / WEIGHTS).exists():
            return [WEIGHTS]
        if not (self.path / INDEX).exists():
            pickled = sorted(p.name for p in self.path.glob('*.bin'))
            if pickled:
                raise UserError(
                    f'{self._what}: {self.path / pickled[0]} is pickled, and is not opened, for a pickle runs what it '
                    f'holds. Where transformers is installed, python -c "import transformers as t; '
                    f't.{_auto(self.config)}.from_pretrained(\'{self.path}\').save_pretrained(\'{self.path}-safe\')" '
                    'makes a folder that can be read'
                )
            raise UserError(f'{self._what}: {self.path} has neither {WEIGHTS} nor {INDEX}')
        try:
            found = sorted(set(records.read(self.path / INDEX)['weight_map'].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{self._what}: {self.path / INDEX} is no index of shards') from None
        for name in found:
            if not isinstance(name, str) or pathlib.PurePath(name).name != name:
                raise UserError(f'{self._what}: {self.path / INDEX} names {name!r}, which is no file of the folder')
            if not (self.path / name).exists():
                raise UserError(f'{self._what}: {self.path} lacks the shard {name}, which {INDEX} names')
        return found

    def _open(self, path: pathlib.Path):
        try:
            return safe_open(path, 'np')
        except (SafetensorError, OSError) as error:
            raise UserError(f'{self._what}: {path} is no whole safetensors file: {error}') from None

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or the part of it that `index` names, float32."""
        file, stored = self._of[name]
        part = self._files[file].get_slice(stored)
        return np.asarray(part[index if index else ...], np.float32)


def _auto(config: Mapping[str, Any]) -> str:
    """The class of transformers that loads such a model with its head."""
    names = config.get('architectures')
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else 'AutoModel'


def write(
    path, config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]], texts: Mapping[str, str] = _NONE,
    shard: int = SHARD,
) -> list[pathlib.Path]:  # fmt: skip
    """Writes a folder that `Folder` and transformers read, and gives its files. Each tensor is asked for when it is
    written; one file's are in memory at a time. The folder is there whole, or not at all. texts: {name: text} of other
    files, such as the tokenizer's. Raises UserError."""
    with files.new_folder(path) as folder:
        _json(folder / CONFIG, config)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding='utf-8')
        sizes = [_write(group, folder / str(k)) for k, group in enumerate(_groups(tensors, shard))]
        names = [WEIGHTS]
        if len(sizes) > 1:
            names = [f'model-{k:05d}-of-{len(sizes):05d}.safetensors' for k in range(1, len(sizes) + 1)]
            where = {key: name for name, group in zip(names, sizes, strict=True) for key in group}
            total = sum(sum(group.values()) for group in sizes)
            _json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': where})
        for k, name in enumerate(names):
            (folder / str(k)).rename(folder / name)
    return sorted(pathlib.Path(path).expanduser().iterdir())


def _json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n', encoding='utf-8')


def _write(group: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, int]:
    """{name: bytes} of what was written."""
    save_file(group, path, metadata={'format': 'pt'})  # transformers wants the word
    path.chmod(path.parent.stat().st_mode & 0o666)  # the library's files are its owner's alone
    return {name: value.nbytes for name, value in group.items()}


def _groups(tensors: Iterable[tuple[str, np.ndarray]], shard: int) -> Iterator[dict[str, np.ndarray]]:
    group, size = {}, 0
    for name, value in tensors:
        if group and size + value.nbytes > shard:
            yield group
            group, size = {}, 0
        group[name] = np.ascontiguousarray(value)
        size += value.nbytes
    yield group
