"""Folders in Hugging Face's format: config.json and the tensors of one or several safetensors files.

Nothing is unpickled, and no tensor is read before it is asked for.
"""

import json
import math
import mmap
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aigc_jax.core import files, mends, records
from aigc_jax.core.errors import UserError, unreadable

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
SHARD = 5 * 10**9  # bytes of a file, at most, where there are several
_COMPARED = 1 << 22  # numbers of two tensors that are compared at a time
_NONE: Mapping[str, str] = MappingProxyType({})
_OLD_NAMES = re.compile(r'(?<=LayerNorm\.)(gamma|beta)$')  # as the first checkpoints of BERT have them
_FLOATS = {
    'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip


def is_folder(path: pathlib.Path | str) -> bool:
    """Whether this is a checkpoint's folder and not that of a run, whose config.json names no kind of model, and which
    has no weights beside it. A damaged one is a checkpoint's, too."""
    path = pathlib.Path(path).expanduser()
    try:
        if 'model_type' in records.read(path / CONFIG):
            return True
    except (OSError, ValueError):
        pass
    try:
        return any((path / name).exists() for name in (WEIGHTS, INDEX, 'pytorch_model.bin'))
    except OSError:  # of a folder that may not be entered
        return False


class _Tensor(NamedTuple):
    """In a file: where it begins, its dtype and shape."""

    file: mmap.mmap
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> np.ndarray:
        return np.frombuffer(self.file, self.dtype, math.prod(self.shape), self.start).reshape(self.shape)

    def forget(self) -> None:
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE  # a page that others share stays
        size = (self.start + self.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0:
            self.file.madvise(mmap.MADV_DONTNEED, first, size)


class Folder:
    """A checkpoint's folder.

    Attributes:
      path: of the folder.
      config: its config.json.
      files: config.json and the files of the tensors.
      shapes: {name: shape} of the tensors of floats in all files.
      others: {name: dtype} of those of another kind: masks, counters, and what is quantized.

    Raises UserError for what is no such folder, a shard that is missing or cut short, and weights that are pickled or
    quantized.
    """

    def __init__(self, path: pathlib.Path | str, what: str = 'init.run'):
        self.path, self._what = pathlib.Path(path).expanduser(), what
        files.check_folder(self.path, what)
        try:
            self.config = records.read(self.path / CONFIG)
            kind = self.config['model_type']
        except FileNotFoundError:
            raise UserError(f'{what}: {self.path} has no {CONFIG}; name the folder of a checkpoint') from None
        except OSError as error:
            raise UserError(f'{what}: {self.path / CONFIG}: {unreadable(error)}') from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{what}: {self.path / CONFIG}: it is no JSON object with a model_type') from None
        if not isinstance(kind, str):
            raise UserError(f'{what}: {self.path / CONFIG}: model_type is {kind!r}')
        if (packed := self.config.get('quantization_config')) is not None:
            method = packed.get('quant_method') if isinstance(packed, dict) else packed
            raise UserError(
                f'{what}: {self.path}: its weights are quantized ({method}); name the folder of the model before that'
            )
        self.files = [self.path / CONFIG, *(self.path / name for name in self._names())]
        self._tensors: dict[str, _Tensor] = {}
        self.others: dict[str, str] = {}
        for file in self.files[1:]:
            found = self._open(file)
            if twice := sorted(found.keys() & self._tensors.keys()):
                raise UserError(f'{what}: {self.path}: {twice[0]} is in {file.name} and in another shard, too')
            self._tensors |= found
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def _names(self) -> list[str]:
        """The files that hold tensors."""
        if (self.path / WEIGHTS).exists():
            return [WEIGHTS]
        if not (self.path / INDEX).exists():
            pickled = sorted(p.name for p in self.path.glob('*.bin'))
            if pickled:
                save = f'{_auto(self.config)} as t; t.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])'
                made = mends.unused(f'{self.path}-safe')
                command = mends.python(f'import sys; from transformers import {save}', self.path, made, by='python')
                raise UserError(
                    f'{self._what}: {self.path / pickled[0]} is pickled, and is not opened, for a pickle runs what it '
                    f'holds. Where transformers is installed, {command} makes a folder that can be read'
                )
            raise UserError(f'{self._what}: {self.path} has neither {WEIGHTS} nor {INDEX}')
        try:
            found = sorted(set(records.read(self.path / INDEX)['weight_map'].values()))
        except OSError as error:
            raise UserError(f'{self._what}: {self.path / INDEX}: {unreadable(error)}') from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f'{self._what}: {self.path / INDEX} is no index of shards') from None
        for name in found:
            if not isinstance(name, str) or pathlib.PurePath(name).name != name:
                raise UserError(f'{self._what}: {self.path / INDEX} names {name!r}, which is no file of the folder')
            if not (self.path / name).exists():
                raise UserError(f'{self._what}: {self.path} lacks the shard {name}, which {INDEX} names')
        return found

    def _open(self, path: pathlib.Path) -> dict[str, _Tensor]:
        """The tensors of floats in a file; masks and counters, which no model is made of, are left out."""
        try:
            with open(path, opener=records.regular):  # a pipe would be waited for
                pass
            with safe_open(path, 'np'):  # which checks that the header and the file fit each other
                pass
            with open(path, 'rb') as file:
                length = int.from_bytes(file.read(8), 'little')
                header = json.loads(file.read(length))
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f'{self._what}: {path}: {unreadable(error)}') from None
        except (SafetensorError, ValueError) as error:
            raise UserError(f'{self._what}: {path} is no whole safetensors file: {error}') from None
        header.pop('__metadata__', None)
        self.others |= {name: one['dtype'] for name, one in header.items() if one['dtype'] not in _FLOATS}
        named = lambda name: _OLD_NAMES.sub(lambda old: {'gamma': 'weight', 'beta': 'bias'}[old[0]], name)
        return {
            named(name): _Tensor(mapped, 8 + length + one['data_offsets'][0], dtype, tuple(one['shape']))
            for name, one in header.items() if (dtype := _FLOATS.get(one['dtype'])) is not None
        }  # fmt: skip

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or the part of it that `index` names, float32: a view of the file where it holds float32."""
        return self._tensors[name].view()[index if index else ...].astype(np.float32, copy=False)

    def alike(self, name: str, other: str) -> bool:
        """Whether two tensors are the same numbers; a part of them is in memory at a time."""
        shape = self.shapes[name]
        if shape != self.shapes[other]:
            return False
        rows = max(1, _COMPARED // math.prod((1, *shape[1:])))
        for i in range(0, shape[0] if shape else 1, rows):
            part = (slice(i, i + rows),) if shape else ()
            same = np.array_equal(self.read(name, part), self.read(other, part))
            self.forget(name)
            self.forget(other)
            if not same:
                return False
        return True

    def forget(self, name: str) -> None:
        """Takes the pages of a tensor that were read out of the process's memory."""
        self._tensors[name].forget()


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
