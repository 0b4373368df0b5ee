"""What every data source returns: named splits with random access, and what is known about them."""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.core.types import Array, Batch
from aigc_jax.data.gaussian_mixture import Mixture
from aigc_jax.data.tokenizers import Tokenizer

_CHUNK = 1000  # examples that `materialize` reads at once
_HELD_OUT = 10_000  # examples of a split that a set does not have itself, at most


class Source(Protocol):
    """One split. `source[i]` takes an int or an array of ints (shape S) and returns a dict of numpy arrays.

    `x`: shape S + dataset.shape, images uint8 (H, W, C) or float32 in [0, 1], points float32 (D,);
    `label`: int32, shape S, only where the set has labels. Text: see data/sources/text.py. Out of range: IndexError.

    A split in memory has besides `resident`, {name: array} to keep on the device, and gather(resident, index), which
    makes source[index] of it inside a compiled step.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index) -> dict[str, Any]: ...


class Arrays:
    """A split in memory: `arrays` is {'x': (N, ...), 'label': (N,)}, read-only; no 'label' without labels."""

    def __init__(self, x: np.ndarray, label: np.ndarray | None = None):
        arrays = {'x': np.ascontiguousarray(x)}
        if label is not None:
            arrays['label'] = np.ascontiguousarray(label, np.int32)
        if len({len(a) for a in arrays.values()}) != 1:
            raise ValueError(f'{len(x)} examples but {len(label)} labels')
        # Views, so that the caller's own arrays stay writeable.
        self.arrays = {name: array.view() for name, array in arrays.items()}
        for array in self.arrays.values():
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.arrays['x'])

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

    x: (N, …), all examples of the file, see `is_mapped`; rows: which of them are the split's; label: (N,).
    """

    def __init__(self, x: np.ndarray, rows: slice | np.ndarray, label: np.ndarray | None = None):
        self._columns = {'x': np.asarray(x)}
        if label is not None:
            self._columns['label'] = np.asarray(label, np.int32)
        if len({len(a) for a in self._columns.values()}) != 1:
            raise ValueError(f'{len(x)} examples but {len(label)} labels')
        self._rows = np.arange(len(x))[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> dict[str, Any]:
        return {name: self.column(name, index) for name in self._columns}

    def column(self, name: str, index) -> np.ndarray:
        return np.asarray(self._columns[name][self._rows[index]], order='C')


def is_mapped(x: np.ndarray) -> bool:
    """Whether it is a view of a file that is mapped into memory, not a copy."""
    owner = x
    while (inner := owner.obj if isinstance(owner, memoryview) else getattr(owner, 'base', None)) is not None:
        owner = inner
    return isinstance(owner, mmap.mmap)


def of_rows(x: np.ndarray, rows: slice | np.ndarray, label: np.ndarray | None) -> Arrays | Mapped:
    """The split of these rows of x (N, …) and label (N,). It stays in its file if x is mapped."""
    if is_mapped(x):
        return Mapped(x, rows, label)
    return Arrays(x[rows], None if label is None else label[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one data set.

    Attributes:
      splits: 'train', 'test' and, unless it is trained on, 'valid', each a Source.
      kind: 'image', 'points' or 'text'.
      shape: of one example, (H, W, C), (D,) or (tokens of a training window,).
      levels: integer examples lie in 0..levels (digits 16, images 255, binary 1); 0: real numbers.
      num_classes: labels lie in 0..num_classes-1; 0: no labels.
      class_names: of each class, where the source tells them; else empty.
      origin: of the splits, in words: who divided the set, and how.
      density: the true density, where it is known.
      licence: as its source states it.
      fingerprint: sha256 (hex) over what the splits hold.
      tokenizer: of text.
      contiguous: each row of a batch reads on where the row of the batch before ended, instead of in shuffled order.
      stacked: channels are independent images, and a label is made of theirs.
    """

    splits: Mapping[str, Source]
    kind: str
    shape: tuple[int, ...]
    levels: int
    num_classes: int
    density: Mixture | None
    licence: str
    fingerprint: str
    tokenizer: Tokenizer | None = None
    contiguous: bool = False
    stacked: bool = False
    class_names: tuple[str, ...] = ()
    origin: str = 'as given'


def from_arrays(
    splits: Mapping[str, Arrays | Mapped], *, levels: int, licence: str, num_classes: int = 0,
    density: Mixture | None = None, class_names: tuple[str, ...] = (), origin: str = 'as given',
) -> Dataset:  # fmt: skip
    """A Dataset of arrays; examples of rank 3 are images, of rank 1 points."""
    shape = splits['train'].column('x', slice(0, 1)).shape[1:]
    return Dataset(
        splits=dict(splits),
        kind='image' if len(shape) == 3 else 'points',
        shape=shape,
        levels=levels,
        num_classes=num_classes,
        density=density,
        licence=licence,
        fingerprint=_fingerprint(splits),
        class_names=class_names,
        origin=origin,
    )


def materialize(source: Source) -> Source:
    """Reads a whole split into memory; one that is there already is returned as it is."""
    if hasattr(source, 'gather'):
        return source
    starts = range(0, len(source), _CHUNK)
    chunks = [source[np.arange(i, min(i + _CHUNK, len(source)))] for i in starts]
    return Arrays(**{name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def divide(
    valid_examples: int, count: int, other: Collection[str], where: str, grouped: bool = False
) -> tuple[dict[str, slice | np.ndarray], str]:
    """Which of the `count` training examples become which split, where the set has the splits `other` besides them; and
    the origin of the splits in words.

    Where it has a test split, the last data.valid_examples are the valid split, unless the examples are `grouped`, by
    class or by folder. Otherwise the splits are drawn without replacement, always the same ones for the same count. A
    note tells the sizes where the data decide.

    valid_examples: −1: 10,000, or a fifth of the examples where that is fewer; a test split has as many always. 0: no
      valid split.

    Raises:
      UserError: if that leaves no training example.
    """
    if count < 3 and 'test' not in other:
        raise UserError(f'{where}: {count} examples cannot be divided into train, valid and test; give it 3 or more')
    usual = max(min(_HELD_OUT, count // 5), min(count - 1, 1))
    num_test = 0 if 'test' in other else usual
    num_valid = 0 if 'valid' in other else usual if valid_examples == -1 else valid_examples
    left = count - num_test
    if not 0 <= num_valid < left:
        raise UserError(
            f'data.valid_examples={valid_examples}: {where} has no valid split, so this many of its {left} training '
            f'examples are taken; choose 0..{left - 1}, or -1 for {usual}'
        )
    sizes = {'train': left - num_valid, 'valid': num_valid, 'test': num_test}
    sizes = {split: n for split, n in sizes.items() if n}
    if list(sizes) == ['train']:
        return {'train': slice(0, count)}, 'as given'
    drawn = grouped or 'test' not in other
    how = 'drawn at random, always the same ones' if drawn else 'valid are the last ones'
    split_up = ', '.join(f'{n} {split}' for split, n in sizes.items())
    if valid_examples == -1 or num_test or grouped:
        note(f'{where}: its {count} training examples become {split_up} ({how}; data.valid_examples={valid_examples})')
    ends = np.cumsum(list(sizes.values()))
    if not drawn:
        parts = {split: slice(end - sizes[split], end) for split, end in zip(sizes, ends.tolist(), strict=True)}
        return parts, f'valid is the last {num_valid:,} training examples'
    # RandomState, for its stream is frozen for good (NEP 19); a Generator's may change with numpy.
    order = np.random.RandomState(0).permutation(count)
    # Test comes first, so that data.valid_examples does not change it.
    order = np.concatenate([order[num_test:], order[:num_test]])
    held_out = ' and '.join(split for split in sizes if split != 'train')
    return dict(zip(sizes, np.split(order, ends[:-1]), strict=True)), f'{held_out} drawn from train, always the same'


def train_on_valid(dataset: Dataset) -> Dataset:
    """The same set in memory with its valid split, if it has one, behind the training examples instead."""
    splits = dict(dataset.splits)
    if 'valid' not in splits:
        return dataset
    parts = [materialize(splits['train']).arrays, materialize(splits.pop('valid')).arrays]
    splits['train'] = Arrays(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    origin = f'{dataset.origin}; valid is trained on'
    return dataclasses.replace(dataset, splits=splits, fingerprint=_fingerprint(splits), origin=origin)


def _fingerprint(splits: Mapping[str, Arrays | Mapped]) -> str:
    digest = hashlib.sha256()
    for split, source in sorted(splits.items()):
        for name, first in sorted(source[:1].items()):
            shape = len(source), *first.shape[1:]
            digest.update(f'{split}/{name} {first.dtype.str} {shape}\n'.encode())
            for i in range(0, len(source), _CHUNK):
                digest.update(source.column(name, slice(i, i + _CHUNK)).data)
    return digest.hexdigest()
