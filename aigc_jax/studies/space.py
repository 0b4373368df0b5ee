"""Sweeps as data, for `sweep()` of a config file: a sweep is a list of rows, and a row is {field of the config: value}.

    from aigc_jax.studies.space import Range, chain, product, random, values, zipped

    def sweep():
        return product(
            values('task.loss', ['hinge', 'relativistic']),
            values('optim.generator.schedule.init_value', Range(1e-4, 1e-2, log=True).points(3)),
        )

Each function gives a new list, so they nest. A row may as well be written out by hand. The seeds that each row is
repeated with are no part of a sweep: they are `--seeds` of the command, and no search sees them.

This file imports nothing of the package, and can be imported by a config that lies in any folder.
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
_DRAWS = 20  # for each row that `random` is to give


def values(field: str, options: Iterable) -> list[Row]:
    """A row for each value of one field."""
    if isinstance(options, str):
        raise ValueError(f'{field}: {options!r} is one text, not a list of values')
    return [{field: value} for value in options]


def product(*sweeps: Sequence[Row]) -> list[Row]:
    """Every combination of a row of each sweep; the last sweep varies fastest."""
    return [_joined(rows) for rows in itertools.product(*sweeps)]


def zipped(*sweeps: Sequence[Row]) -> list[Row]:
    """The first rows of all sweeps as one row, then the second rows, and so on. All have as many rows."""
    if len(lengths := {len(rows) for rows in sweeps}) > 1:
        raise ValueError(f'zipped: the sweeps have {" and ".join(map(str, sorted(lengths)))} rows')
    return [_joined(rows) for rows in zip(*sweeps, strict=True)]


def chain(*sweeps: Sequence[Row]) -> list[Row]:
    """The rows of all sweeps, one sweep after the other."""
    return [dict(row) for rows in sweeps for row in rows]


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both of them in it.

    log: evenly spread in their logarithm, so `low` is above 0. integer: whole numbers alone.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f'Range: {self.low} to {self.high} holds nothing')
        if self.log and self.low <= 0:
            raise ValueError(f'Range: the logarithm of {self.low}; low is above 0')

    def at(self, share: float) -> float | int:
        """The number at this share of the range, in [0, 1], to 6 significant digits, so that a name can show it.

        Each whole number has the same part of the shares (unless log).
        """
        if self.integer:
            high = self.high if self.log else self.high + 1
            found = _between(self.low, high, share, self.log)
            return min(max(round(found) if self.log else math.floor(found), self.low), self.high)
        return min(max(float(f'{_between(self.low, self.high, share, self.log):.6g}'), self.low), self.high)

    def points(self, count: int) -> list[float | int]:
        """`count` numbers at even distances, `low` and `high` among them; whole numbers that come twice come once."""
        if count < 2:
            raise ValueError(f'Range.points: {count}; there are 2 or more')
        shares = [k / (count - 1) for k in range(count)]
        if self.integer:
            return list(dict.fromkeys(round(_between(self.low, self.high, share, self.log)) for share in shares))
        return [self.at(share) for share in shares]


def random(count: int, space: Mapping[str, Range | Sequence], seed: int = 0) -> list[Row]:
    """`count` different rows, each field drawn from a Range, or evenly from a list of values.

    Draw k of a field is a function of (seed, field, k) alone, so that a larger count keeps the rows of a smaller one. A
    row that is drawn again is passed over. seed: of the search. It has nothing to do with the seeds that the rows are
    trained with. Raises ValueError where there are not so many rows, or nearly not.
    """
    rows: dict[str, Row] = {}
    for k in range(_DRAWS * count):
        row = {field: _drawn(found, _share(seed, field, k)) for field, found in space.items()}
        rows.setdefault(repr(row), row)
        if len(rows) == count:
            break
    if len(rows) < count:
        raise ValueError(f'random: {_DRAWS * count} draws gave {len(rows)} different rows, not {count}')
    return list(rows.values())


def _joined(rows: Iterable[Row]) -> Row:
    joined: Row = {}
    for row in rows:
        if twice := joined.keys() & row.keys():
            raise ValueError(f'two sweeps set {", ".join(sorted(twice))}')
        joined |= row
    return joined


def _between(low: float, high: float, share: float, log: bool) -> float:
    return low * (high / low) ** share if log else low + (high - low) * share


def _drawn(found: Range | Sequence, share: float) -> Any:
    return found.at(share) if isinstance(found, Range) else found[int(share * len(found))]


def _share(seed: int, field: str, k: int) -> float:
    """In [0, 1), with 53 bits."""
    digest = hashlib.sha256(f'{seed}/{field}/{k}'.encode()).digest()
    return (int.from_bytes(digest[:8], 'big') >> 11) / 2**53
