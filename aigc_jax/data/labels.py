"""Class labels as files have them (numbers from anywhere, one-hot rows, names) -> 0..K−1, the same in every split."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note

_SHOWN = 10  # classes that a line names


def fit(label: np.ndarray, count: int, what: str) -> np.ndarray:
    """(count,) or (count, columns), of a file that has one label for each of `count` examples along either axis."""
    if label.ndim == 2 and len(label) != count and label.shape[1] == count:  # MATLAB's rows
        label = label.T
    if label.ndim not in (1, 2) or len(label) != count:
        raise UserError(f'{what}: labels of shape {label.shape} for {count} examples; give each example one')
    return label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label


def to_classes(by_split: Mapping[str, np.ndarray], where: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The classes int32 (n,) by split, and the label of each; a note tells which label is which where they differ.

    The K distinct labels of all splits, in their order, are the classes 0..K−1; one-hot rows (n, K) stand for the place
    of their one. Labels that are no classes (fractions, several for an example) are left out with a note: ({}, ()).

    Raises:
      UserError: if the labels of the splits are of different kinds, or most examples have a label of their own.
    """
    columns = {label.shape[1:] for label in by_split.values()}
    kinds = {'text' if label.dtype.kind in 'US' else 'numbers' for label in by_split.values()}
    if len(columns) > 1 or len(kinds) > 1:
        shapes = ', '.join(f'{split} {label.dtype} {label.shape}' for split, label in by_split.items())
        raise UserError(f'{where}: the labels of the splits are of different kinds ({shapes}); make them alike')
    every = np.concatenate(list(by_split.values()))
    if every.dtype.kind == 'S':
        every = np.char.decode(every, 'utf-8', 'replace')
    why = _no_classes(every)
    if why:
        note(f'{where}: the labels are left out, for they are no classes: {why}')
        return {}, ()
    if every.ndim == 2:
        names = tuple(map(str, range(every.shape[1])))
        return {split: label.argmax(1).astype(np.int32) for split, label in by_split.items()}, names
    if every.dtype.kind in 'bf' or _are_numbers(every):
        every = every.astype(np.int64)
    values, index = np.unique(every, return_inverse=True)
    if len(values) == 1:
        note(f'{where}: the labels are left out, for all of them are {values[0]}')
        return {}, ()
    if 2 * len(values) > len(every):
        raise UserError(
            f'{where}: {len(values)} different labels for {len(every)} examples, {_some(values)}, are no classes; '
            f'remove the labels, or give each class two examples or more'
        )
    if every.dtype.kind == 'U' or not np.array_equal(values, np.arange(len(values))):
        note(f'{where}: {_said(values)}')
    parts = np.split(index.astype(np.int32), np.cumsum([len(label) for label in by_split.values()])[:-1])
    return dict(zip(by_split, parts, strict=True)), tuple(map(str, values))


def tell_of_empty_classes(train: np.ndarray, names: tuple[str, ...], where: str) -> None:
    """A note of the classes that no training example has."""
    empty = np.flatnonzero(np.bincount(train, minlength=len(names)) == 0)
    if len(empty):
        some = _some(np.array(names)[empty])
        note(f'{where}: no training example is of class {some} ({len(empty)} of {len(names)} classes)')


def in_turn(n: int, num_classes: int) -> np.ndarray | None:
    """(n,) int32, the classes one after the other, over and over; None where there are none."""
    return np.arange(n, dtype=np.int32) % num_classes if num_classes else None


def parse(text: str, n: int, num_classes: int, names: Sequence[str] = ()) -> np.ndarray | None:
    """--labels=3 or --labels=cat,dog (repeated as often as needed) -> classes (n,) int32; '': `in_turn`.

    names: of the classes, as pictures show them; where none of them is a number, the class's number serves too. Raises
    UserError.
    """
    if not text:
        return in_turn(n, num_classes)
    if not num_classes:
        raise UserError('labels: this model is unconditional (model.conditional is False)')
    known = {name: k for k, name in enumerate(names)}
    if not any(re.fullmatch('[0-9]+', name) for name in known):
        known |= {str(k): k for k in range(num_classes)}
    try:
        return np.resize(np.array([known[part.strip()] for part in text.split(',')], np.int32), n)
    except KeyError as error:
        some = list(names or known)
        raise UserError(f'labels: there is no class {error.args[0]!r}; there are {_some(np.array(some))}') from None


def are_grouped(label: np.ndarray) -> bool:
    """Whether examples of one class stand together: the label changes less than half as often as in a random order."""
    shares = np.bincount(label) / len(label)
    return np.count_nonzero(np.diff(label)) < (len(label) - 1) * (1 - np.square(shares).sum()) / 2


def _no_classes(label: np.ndarray) -> str:
    """Why these labels of all splits are no classes; '' where they are."""
    if label.dtype.kind not in 'biufU':
        return f'they are {label.dtype}'
    if label.ndim == 2:
        one_hot = label.dtype.kind in 'biuf' and np.isin(label, (0, 1)).all() and (label.sum(1) == 1).all()
        return '' if one_hot else f'each has {label.shape[1]} columns, and not a single 1 among 0s'
    # Above 2^53 a float64 is no longer exact.
    if label.dtype.kind == 'f' and not (np.isfinite(label) & (label == np.rint(label)) & (abs(label) < 2**53)).all():
        return 'they are no whole numbers'
    return ''


def _are_numbers(label: np.ndarray) -> bool:
    """Whether these are texts of whole numbers as Python writes them, among which '10' follows '9', not '1'; '01' is a
    name, which '1' would not be."""
    names = set(label.tolist()) if label.dtype.kind == 'U' else ()
    return len(names) > 0 and all(re.fullmatch('0|[1-9][0-9]{0,8}', name) for name in names)


def _some(values: np.ndarray) -> str:
    return ', '.join(map(str, values[:_SHOWN])) + (', …' if len(values) > _SHOWN else '')


def _said(values: np.ndarray) -> str:
    last = len(values) - 1
    if values.dtype.kind != 'U' and int(values[-1]) - int(values[0]) == last:
        return f'the labels {values[0]}…{values[-1]} are the classes 0…{last}'
    shown = ', '.join(f'{i}: {value}' for i, value in enumerate(values[:_SHOWN]))
    return f'{len(values)} classes, {shown}' + (f', …, {last}: {values[-1]}' if last >= _SHOWN else '')
