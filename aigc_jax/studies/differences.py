"""How two arrays, two rows of metrics.jsonl or two evaluations differ, in a line."""

import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from aigc_jax.core import records
from aigc_jax.core.errors import printable


class Difference(NamedTuple):
    """The first difference. step: of the training; None where it is of none; place: what differs, as 'metrics.jsonl,
    line 3'; text: how."""

    step: int | None
    place: str
    text: str

    def __str__(self) -> str:
        return f'{self.place}: {self.text}'


def of_arrays(there: np.ndarray, here: np.ndarray, seeds: list[int] | None = None) -> str | None:
    """None where two arrays of one shape and dtype have the same bits; else how many elements differ and by how much.

    seeds: of the replicas along the first axis, if there are several.
    """
    differs = _bits(there) != _bits(here)
    if not (count := int(differs.sum())):
        return None
    text = f'{count} of {differs.size} elements of {there.dtype}{list(there.shape)} differ'
    if seeds is not None:
        of = [str(seed) for seed, own in zip(seeds, differs, strict=True) if own.any()]
        text += f', of seed {", ".join(of)}' if len(of) < len(seeds) else ', of every seed'
    a, b = there[differs], here[differs]
    if not jnp.issubdtype(there.dtype, jnp.floating):
        return f'{text}, the first: {a[0]} there, {b[0]} here'
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid='ignore', over='ignore'):
        apart = np.abs(wide_a - wide_b)
    if not np.isfinite(apart).all():
        bad = int(np.argmin(np.isfinite(apart)))
        return f'{text}, one of them {wide_a[bad]:.9g} there, {wide_b[bad]:.9g} here'
    k, ulp = int(np.argmax(apart)), np.abs(_ordered(a) - _ordered(b)).max()
    return f'{text}, by at most {apart[k]:.3g} ({wide_a[k]:.9g} there, {wide_b[k]:.9g} here), {ulp:,} ulp'


def of_lines(there: bytes, here: bytes) -> str | None:
    """None where two lines of metrics.jsonl are the same bytes."""
    if there == here:
        return None
    ours = records.parse(here)
    try:
        theirs = records.parse(there)
        named = theirs['step'], theirs['split'], theirs.get('seed')
    except (ValueError, KeyError, TypeError, AttributeError):
        return f'it is no row there; here it is that of {row_name(ours)}'
    if named != (ours['step'], ours['split'], ours.get('seed')):
        return f'it is the row of {row_name(theirs)} there, of {row_name(ours)} here'
    return f'{row_name(ours)}: {of_values(theirs, ours) or "the same values, written in other letters"}'


def row_name(row: dict) -> str:
    return printable(f'step {row.get("step")}, {row.get("split")}' + (f', seed {row["seed"]}' if 'seed' in row else ''))


def of_values(there: dict, here: dict, prefix: str = '') -> str | None:
    """None where two JSON objects of numbers, texts and objects are equal; else the first name that differs, and by
    how much."""
    for name in [*here, *(name for name in there if name not in here)]:
        label = printable(f'{prefix}{name}'[:200])
        if name not in there or name not in here:
            return f'{label} is {"there" if name in there else "here"} alone'
        a, b = there[name], here[name]
        if isinstance(a, dict) and isinstance(b, dict):
            if found := of_values(a, b, f'{prefix}{name}.'):
                return found
        elif type(a) is not type(b) or a != b:
            shown = f'{label} is {_shown(a)} there, {_shown(b)} here'
            if not isinstance(a, (int, float)) or not isinstance(b, (int, float)):
                return shown
            relative = f', relative {abs(a - b) / abs(b):.3g}' if b else ''
            return f'{shown}: {abs(a - b):.3g} apart{relative}'
    return None


def _shown(value) -> str:
    return 'no finite number' if value is None else printable(json.dumps(value)[:100])


def _bits(array: np.ndarray) -> np.ndarray:
    """Unsigned words, so that NaN equals NaN and 0 is not −0; of a complex number, what differs in either part."""
    array = np.asarray(array)
    if array.dtype.kind == 'c':
        parts = np.stack([array.real, array.imag], -1)
        return _bits(parts).view([('', _bits(parts).dtype)] * 2)[..., 0]
    if array.dtype.itemsize > 8 or array.dtype == bool:
        return array
    return np.ascontiguousarray(array).view(f'u{array.dtype.itemsize}').reshape(array.shape)


def _ordered(array: np.ndarray) -> np.ndarray:
    """Whole numbers that count the representable values from 0 on, so that their difference is in ulp."""
    bits = np.ascontiguousarray(array).view(f'i{array.dtype.itemsize}').astype(np.int64)
    least = -(2 ** (8 * array.dtype.itemsize - 1))
    return np.where(bits < 0, least - bits, bits)
