"""One split of a data set: arrays in memory, or in a file that is mapped into memory, with random access."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from aigc_jax.core.types import Array, Batch

_CHUNK = 1000  # examples that `materialize` reads at once


class Source(Protocol):
    """One split. `source[i]` takes an int or an array of ints (shape S) and returns a dict of numpy arrays.

    Images and points: `x`, shape S + spec.shape, as specs.Images and specs.Points say; `label`, int32, shape S, only
    where the set has labels; perhaps more arrays, shape S + (…), which a task may read. Text: see sources/text.py.
    Out of range: IndexError.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index) -> dict[str, Any]: ...


@runtime_checkable
class Resident(Source, Protocol):
    """A split in memory: `resident`, {name: array}, is kept on the device, and gather(resident, index) makes
    source[index] of it inside a compiled step."""

    @property
    def resident(self) -> dict[str, np.ndarray]: ...

    def gather(self, data: Batch, index: Array) -> Batch: ...


class Arrays:
    """A split in memory: named arrays (N, …), read-only, each of N examples. `label`, where it is there, is int32."""

    def __init__(self, **named: np.ndarray):
        # Views, so that the caller's own arrays stay writeable.
        self.arrays = {name: np.ascontiguousarray(array).view() for name, array in _alike(named).items()}
        for array in self.arrays.values():
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}

    def column(self, name: str, index) -> np.ndarray:
        return self.arrays[name][index]

    @property
    def resident(self) -> dict[str, np.ndarray]:
        return dict(self.arrays)

    def gather(self, data: Batch, index: Array) -> Batch:
        """index (R, B) -> {name: (R, B, …)}."""

        def rows(value):  # a gather of flat rows is faster on a CPU
            flat = value.reshape(value.shape[0], -1).at[index].get(mode='promise_in_bounds')
            return flat.reshape(*index.shape, *value.shape[1:])

        return {name: rows(value) for name, value in data.items()}


class Mapped:
    """A split in a file that is mapped into memory. An example is read when it is asked for.

    rows: which examples of the named arrays (N, …), see `is_mapped`, are the split's.
    """

    def __init__(self, rows: slice | np.ndarray, **named: np.ndarray):
        self._columns = _alike(named)
        self._rows = np.arange(len(next(iter(named.values()))))[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> dict[str, Any]:
        return {name: self.column(name, index) for name in self._columns}

    def column(self, name: str, index) -> np.ndarray:
        return np.asarray(self._columns[name][self._rows[index]], order='C')


def _alike(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one split. Raises ValueError unless all have the same first axis."""
    arrays = {name: np.asarray(array, np.int32 if name == 'label' else None) for name, array in named.items()}
    if len({array.shape[:1] for array in arrays.values()}) != 1:
        shapes = ', '.join(f'{name} {array.shape}' for name, array in arrays.items())
        raise ValueError(f'the arrays of a split have one row an example each; these are {shapes or "none"}')
    return arrays


def is_mapped(x: np.ndarray) -> bool:
    """Whether it is a view of a file that is mapped into memory, not a copy."""
    owner = x
    while (inner := owner.obj if isinstance(owner, memoryview) else getattr(owner, 'base', None)) is not None:
        owner = inner
    return isinstance(owner, mmap.mmap)


def of_rows(named: Mapping[str, np.ndarray], rows: slice | np.ndarray) -> Arrays | Mapped:
    """The split of these rows of the named arrays (N, …). It stays in its file if one of them is mapped."""
    if any(is_mapped(array) for array in named.values()):
        return Mapped(rows, **named)
    return Arrays(**{name: array[rows] for name, array in named.items()})


def materialize(source: Source) -> Source:
    """Reads a whole split into memory; one that is there already is returned as it is."""
    if isinstance(source, Resident):
        return source
    starts = range(0, len(source), _CHUNK)
    chunks = [source[np.arange(i, min(i + _CHUNK, len(source)))] for i in starts]
    return Arrays(**{name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})
