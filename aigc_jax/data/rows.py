"""A split whose examples are rows of tokens of different lengths, such as pairs of texts and labelled texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from aigc_jax.core.types import Array, Batch

MOST_TOKENS = 2**31 - 1  # of a split: places are int32 inside the compiled step


def dtype_of(vocab_size: int) -> type:
    """The smallest type that the tokens of a vocabulary fit in."""
    return np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.int32


class Ragged:
    """N rows of whole numbers behind one another, each of 1 to `width`.

    Attributes:
      values: (total,), of all rows.
      starts: (N,) int32, where each begins in `values`.
      lengths: (N,) int32.
      width, fill: rows are given out as (width,), filled up with `fill`.
      tells_length: whether the lengths are given out too.
    """

    def __init__(self, rows: Iterable[np.ndarray], width: int, fill: int, dtype: type, tells_length: bool = True):
        rows = [np.asarray(row, dtype) for row in rows]
        lengths = np.array([len(row) for row in rows])
        if not len(rows) or lengths.min() < 1 or lengths.max() > width or lengths.sum() > MOST_TOKENS:
            raise ValueError(f'{len(rows)} rows of {lengths.sum()} values; each has 1 to {width}')
        self.values, self.width, self.fill, self.tells_length = np.concatenate(rows), width, fill, tells_length
        self.lengths = lengths.astype(np.int32)
        self.starts = (np.cumsum(lengths) - lengths).astype(np.int32)


_OPEN = 64  # of the last rows that examples are packed into, so that the time grows with their number alone


def packed(columns: Mapping[str, Ragged]) -> dict[str, Ragged]:
    """Several examples in a row: NAME has them behind one another, and NAME_part, which tells no length, has 1 for the
    tokens of the first one, 2 for those of the second, …, and 0 behind the last.

    Each example, in their order, is put into the first of the last 64 rows in which all its columns have room, so a row
    holds the same examples in every epoch and with every seed.
    """
    room = np.array([column.width for column in columns.values()])
    lengths = np.stack([column.lengths for column in columns.values()], axis=1)
    members: list[list[int]] = []
    used = np.zeros((len(lengths), len(room)), np.int64)
    for example, sizes in enumerate(lengths):
        first = max(0, len(members) - _OPEN)
        fits = (used[first : len(members)] + sizes <= room).all(axis=1)
        row = first + int(fits.argmax()) if fits.any() else len(members)
        if row == len(members):
            members.append([])
        members[row].append(example)
        used[row] += sizes
    found = {}
    for name, column in columns.items():
        of = np.split(column.values, column.starts[1:])
        rows = [np.concatenate([of[example] for example in row]) for row in members]
        parts = [np.repeat(np.arange(len(row)) + 1, column.lengths[row]) for row in members]
        found[name] = Ragged(rows, column.width, column.fill, column.values.dtype)
        found[f'{name}_part'] = Ragged(parts, column.width, 0, dtype_of(column.width + 1), tells_length=False)
    return found


class Rows:
    """A split in memory: `ragged` columns, and `plain` ones with one number an example; see splits.Resident.

    `source[i]` has for each ragged column NAME: NAME, int32, S + (width,), S the shape of i, and NAME_length, int32, S,
    if it tells its lengths; what lies behind the length is `fill`. A plain column is int32, S.
    """

    def __init__(self, ragged: Mapping[str, Ragged], plain: Mapping[str, np.ndarray] | None = None):
        self.ragged, self.plain = dict(ragged), dict(plain or {})
        sizes = {len(column.starts) for column in self.ragged.values()} | {len(x) for x in self.plain.values()}
        if len(sizes) != 1:
            raise ValueError(f'the columns of a split have one row an example each; these have {sizes}')
        (self._size,) = sizes

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        index = np.asarray(index)
        if ((index < 0) | (index >= len(self))).any():
            raise IndexError(index)
        found = {name: x[index].astype(np.int32) for name, x in self.plain.items()}
        for name, column in self.ragged.items():
            length, place = column.lengths[index], np.arange(column.width)
            where = np.minimum(column.starts[index][..., None] + place, len(column.values) - 1)
            found[name] = np.where(place < length[..., None], column.values[where].astype(np.int32), column.fill)
            found |= {f'{name}_length': length} if column.tells_length else {}
        return {name: np.asarray(x, np.int32) for name, x in found.items()}

    @property
    def resident(self) -> dict[str, np.ndarray]:
        found = dict(self.plain)
        for name, column in self.ragged.items():
            found |= {name: column.values, f'{name}_start': column.starts, f'{name}_length': column.lengths}
        return found

    def gather(self, data: Batch, index: Array) -> Batch:
        """source[index] of `resident`, inside the compiled step."""
        import jax.numpy as jnp

        read = lambda name, where: data[name].at[where].get(mode='promise_in_bounds').astype(jnp.int32)
        found = {name: read(name, index) for name in self.plain}
        for name, column in self.ragged.items():
            length, place = read(f'{name}_length', index), jnp.arange(column.width)
            where = jnp.minimum(read(f'{name}_start', index)[..., None] + place, len(column.values) - 1)
            found[name] = jnp.where(place < length[..., None], read(name, where), column.fill)
            found |= {f'{name}_length': length} if column.tells_length else {}
        return found


def mask(length: Array, width: int) -> Array:
    """lengths (…,) -> bool (…, width): whether a place is of the text, not of what fills up the row."""
    import jax.numpy as jnp

    return jnp.arange(width) < jnp.asarray(length)[..., None]
