"""Arrays as people store them -> a Dataset: which split and role a name means, which axis counts, what range it has.

`Parts` is {split: (examples, labels or None)} as a file holds them; the split '' is a set that is not divided.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.data import labels
from aigc_jax.data.dataset import Dataset, divide, from_arrays
from aigc_jax.data.splits import of_rows

Parts = dict[str, tuple[np.ndarray, np.ndarray | None]]

SPLITS = {'train': 'train(?:ing)?', 'valid': 'val|valid(?:ation)?|dev', 'test': 'test(?:ing)?'}
EXAMPLES = 'x|images?|imgs?|data|features?|samples?|faces?|arr_0'
LABELS = 'y|labels?|targets?|class(?:es)?'
_DARK = 127  # images whose largest level is this or less may have another white than 255
_LEAST_SIDE = 8  # of flat images in [0, 1], which could be points
_MOST_RATIO = 4  # of the sides of an image that is guessed at
_CHUNK = 1000  # examples
_LICENCE = 'not known: local files'


def split_of(name: str) -> str:
    """'training' -> 'train'; '' for a name of no split."""
    return next((split for split, words in SPLITS.items() if re.fullmatch(words, name, re.IGNORECASE)), '')


def by_role(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, tuple[str, str | None]]:
    """{split: (name of its examples, name of its labels or None)} of arrays {name: shape}; a note names the others.

    A name is a word for a split, for a role, or both: train, x_train, train_images, images, testdata, y, labels, ….
    An array that alone has two axes or more is taken for the examples whatever its name.

    Raises:
      UserError: if two names mean the same, or none is understood.
    """
    found: dict[tuple[str, str], str] = {}
    for name in shapes:
        key = _meaning(name)
        if key in found:
            raise _unclear(f'{found[key]} and {name} mean the same', shapes, where)
        if key:
            found[key] = name
    if not any(role == 'x' for _, role in found):
        large = [name for name, shape in shapes.items() if len(shape) > 1 and name not in found.values()]
        if len(large) != 1:
            raise _unclear('no name says which array holds the examples', shapes, where)
        found['', 'x'] = large[0]
    splits = {split for split, role in found if role == 'x'}
    if '' in splits and len(splits) > 1:
        if 'train' in splits:
            raise _unclear(f'{found["", "x"]} stands beside {found["train", "x"]}', shapes, where)
        found = {(split or 'train', role): name for (split, role), name in found.items()}  # data beside testdata
    splits = [split for split in ('', *SPLITS) if (split, 'x') in found]
    if 'train' not in splits and len(splits) > 1:
        raise _unclear('no array is for training', shapes, where)
    chosen = {split: (found[split, 'x'], found.get((split, 'y'))) for split in splits}
    used = {name for pair in chosen.values() for name in pair}
    if rest := [f'{name} {shape}' for name, shape in shapes.items() if name not in used]:
        note(f'{where}: left out, for their names mean neither examples nor labels: {", ".join(rest)}')
    return chosen


def _meaning(name: str) -> tuple[str, str] | None:
    """(split or '', 'x' or 'y'), or None."""
    for split, words in {'': '', **SPLITS}.items():
        for role, kinds in (('x', EXAMPLES), ('y', LABELS)):
            empty = '|' if role == 'x' and split else ''  # `train` alone is the examples
            for pattern in (f'(?:{words})[_. -]*(?:{kinds}{empty})', f'(?:{kinds})[_. -]*(?:{words})'):
                if re.fullmatch(pattern, name, re.IGNORECASE):
                    return split, role
    return None


def _unclear(why: str, shapes: Mapping[str, tuple[int, ...]], where: str) -> UserError:
    names = ', '.join(f'{name} {shape}' for name, shape in shapes.items()) or 'nothing'
    return UserError(
        f'{where}: {why}; it holds {names}.\n'
        f'  Give the arrays names such as images and labels, or x_train, y_train, x_valid, y_valid, x_test, y_test:\n'
        f'  np.savez(FILE, x_train=…, y_train=…, x_test=…, y_test=…), and data.name=npz:FILE'
    )


def load(
    cfg, read: Callable[[str], Parts], places: Mapping[str, str], flat_images: bool = False, grouped: bool = False
) -> Dataset:
    """The set of the arrays that `read` finds at a place, {'': place}, or at several, {split: place}: of each of these
    the part of that name, or its only one. Makes images or points of them, and holds out the splits that there are not.

    cfg: has `valid_examples` (see `dataset.divide`) and `shape`, of images that are stored flat.
    flat_images: rows are images whatever they hold; otherwise points, where they do not look like images.
    grouped: like examples may stand together, as they do where their labels are in order.

    Raises:
      UserError: if an array is neither, or does not fit the others; as `read`.
    """
    if '' in places:
        where = places['']
        parts = read(where)
    else:
        parts, where = {split: _part(read(place), split, place) for split, place in places.items()}, cfg.name
    _check_arrays(parts, where)
    shape = tuple(cfg.shape)
    parts = _examples_first(parts, shape, where)
    x = _examples({split: x for split, (x, _) in parts.items()}, shape, where, flat_images)
    return _divided(cfg, x, {split: y for split, (_, y) in parts.items() if y is not None}, {}, where, grouped)


def _part(held: Parts, split: str, place: str) -> tuple[np.ndarray, np.ndarray | None]:
    if split not in held and len(held) > 1:
        raise UserError(f'{place}: holds {", ".join(held)}; {split}=… needs one set, or {split} among them')
    return held[split] if split in held else next(iter(held.values()))


def assemble_own(cfg, parts: Parts, others: Mapping[str, Mapping[str, np.ndarray]], where: str) -> Dataset:
    """As `load`, of arrays whose axes are known, so that rows of floats are points, and nothing else is guessed at.

    others: more arrays of each split by name, each with one row an example, which a task may read.
    """
    _check_arrays(parts, where)
    x = {split: x for split, (x, _) in parts.items()}
    if any(array.ndim == 2 for array in x.values()):
        _check_alike(x, where)
        if any(array.dtype.kind != 'f' for array in x.values()):
            raise UserError(f'{where}: x {_shapes(x)}; points are floats (N, D), images (N, H, W) or (N, H, W, C)')
        x = {split: _finite(array, f'{where}: {split}') for split, array in x.items()}
    else:
        x = _examples(x, (), where, False)
    return _divided(cfg, x, {split: y for split, (_, y) in parts.items() if y is not None}, others, where, False)


def _divided(
    cfg, x: dict[str, np.ndarray], given: Mapping[str, np.ndarray], others: Mapping[str, Mapping[str, np.ndarray]],
    where: str, grouped: bool,
) -> Dataset:  # fmt: skip
    """A Dataset of examples by split, of their labels as they are given, and of more arrays, as `load` has it."""
    if given and len(given) < len(x):
        raise UserError(f'{where}: labels for {", ".join(given)} alone; give every split labels, or none')
    y = {split: labels.fit(label, len(x[split]), f'{where}: {split or "all"}') for split, label in given.items()}
    y, names = labels.to_classes(y, where) if y else ({}, ())
    named = {
        split: {'x': array} | ({'label': y[split]} if y else {}) | {**others.get(split, {})}
        for split, array in x.items()
    }
    if '' in named or len(named) == 1:  # one set, whatever it is called
        named = {'train': next(iter(named.values()))}
    train = named['train']
    splits = {split: of_rows(arrays, slice(None)) for split, arrays in named.items() if split != 'train'}
    grouped = grouped or bool(y) and labels.are_grouped(train['label'])
    rows, origin = divide(cfg.valid_examples, len(train['x']), splits, where, grouped)
    splits |= {split: of_rows(train, part) for split, part in rows.items()}
    splits = {split: splits[split] for split in SPLITS if split in splits}
    if y:
        labels.tell_of_empty_classes(splits['train'].column('label', slice(None)), names, where)
    levels = 0
    if train['x'].dtype == np.uint8:
        most = max(array.max() for array in x.values())
        levels = 1 if most <= 1 else 255
        if 1 < most <= _DARK:
            note(f'{where}: the largest level is {most} of 255; if that is white, multiply the images by 255 / {most}')
    return from_arrays(
        splits, levels=levels, num_classes=len(names), licence=_LICENCE, class_names=names, origin=origin
    )


def _check_arrays(parts: Parts, where: str) -> None:
    for split, (x, _) in parts.items():
        if x.dtype.kind not in 'biuf' or not x.size or x.ndim not in (2, 3, 4):
            raise UserError(
                f'{where}: {split or "the array"} is {x.dtype} of shape {x.shape}; images are numbers (N, H, W) or '
                f'(N, H, W, C), points (N, D), nothing of it 0'
            )


def _check_alike(by_split: Mapping[str, np.ndarray], where: str) -> None:
    if len({(x.shape[1:], x.dtype.kind == 'f') for x in by_split.values()}) > 1:
        raise UserError(f'{where}: all splits must be alike; these are {_shapes(by_split)}')


def _shapes(by_split: Mapping[str, np.ndarray]) -> str:
    return ', '.join(f'{split} {x.dtype} {x.shape}' for split, x in by_split.items())


def _examples_first(parts: Parts, shape: Collection[int], where: str) -> Parts:
    """The parts with their examples along the first axis; MATLAB's arrays often have them along the last."""
    if not _last_counts(parts, math.prod(shape) if shape else 0):
        return parts
    shapes = ', '.join(str(x.shape) for x, _ in parts.values())
    note(f'{where}: {shapes} is read with the examples along the last axis')
    return {split: (np.moveaxis(x, -1, 0), y) for split, (x, y) in parts.items()}


def _last_counts(parts: Parts, size: int) -> bool:
    """Whether the last axis, not the first, is that of the examples: as the labels, the other splits or the sizes say.

    size: values of an example, where it is known, else 0.
    """
    shapes = [x.shape for x, _ in parts.values()]
    if all(y is not None for _, y in parts.values()):
        first, last = (all(x.shape[axis] in y.shape for x, y in parts.values()) for axis in (0, -1))
        if first != last:
            return last
    if len(shapes) > 1:
        first, last = (len({shape[cut] for shape in shapes}) == 1 for cut in (slice(1, None), slice(None, -1)))
        if first != last:
            return last
    shape = shapes[0]
    if size:
        return math.prod(shape[:-1]) == size != math.prod(shape[1:])
    if len(shape) == 2:
        return _side(shape[0]) >= _LEAST_SIDE and not _side(shape[1])
    if len(shape) == 4:  # (H, W, C, N)
        return shape[1] > 4 >= shape[2] and shape[3] > 4
    return shape[0] == shape[1] and shape[2] >= 10 * shape[0]  # (H, W, N): nobody has images so long


def _side(count: int) -> int:
    """Of a square image of so many pixels; 0 where there is none."""
    side = math.isqrt(count)
    return side if side**2 == count else 0


def _examples(
    by_split: dict[str, np.ndarray], shape: tuple[int, ...], where: str, flat_images: bool
) -> dict[str, np.ndarray]:
    """Images uint8 or float32 in [0, 1], (N, H, W, C), or points float32 (N, D); all splits alike."""
    _check_alike(by_split, where)
    first = next(iter(by_split.values()))
    inner, is_float = first.shape[1:], first.dtype.kind == 'f'
    if is_float:
        by_split = {split: _finite(x, f'{where}: {split or "the array"}') for split, x in by_split.items()}
    low, high = min(x.min() for x in by_split.values()), max(x.max() for x in by_split.values())
    levels = not is_float or (high > 1 and all((x == np.rint(x)).all() for x in _in_chunks(by_split.values())))
    in_range = low >= 0 and high <= (255 if levels else 1)
    flat = len(inner) == 1
    told = flat_images or shape or not is_float
    if flat and not told and not (in_range and _side(inner[0]) >= _LEAST_SIDE):
        if in_range and inner[0] >= _LEAST_SIDE**2:
            note(f'{where}: rows of {inner[0]} values are read as points; if they are images, set data.shape to (H, W)')
        return by_split
    if not in_range:
        raise UserError(
            f'{where}: the images hold {by_split.popitem()[1].dtype} from {low:g} to {high:g}; store whole numbers in '
            f'0..255 as uint8, or scale them to [0, 1]: (x {-low:+g}) / {high - low or 1:g}'
        )
    if levels and any(x.dtype not in (np.uint8, bool) for x in by_split.values()):
        note(f'{where}: whole numbers from {low:g} to {high:g} are read as uint8')
    if levels:
        by_split = {split: x.astype(np.uint8, copy=False) for split, x in by_split.items()}
    if flat:
        shape = shape or (_side(inner[0]),) * 2
        if math.prod(shape) != inner[0] or len(shape) not in (2, 3):
            raise UserError(_no_shape(by_split, shape if all(shape) else (), where))
        if not told:
            note(f'{where}: {inner[0]} values in a row are read as images {shape}')
        by_split = {split: x.reshape(len(x), *shape) for split, x in by_split.items()}
    elif shape and inner[: len(shape)] != shape:
        raise UserError(f'data.shape={shape}: {where} holds images {inner} already; leave it ()')
    elif len(inner) == 3 and inner[0] <= 4 < inner[2]:
        note(f'{where}: images {inner} are read with the channels first')
        by_split = {split: np.moveaxis(x, 1, -1) for split, x in by_split.items()}
    return {split: x[..., None] if x.ndim == 3 else x for split, x in by_split.items()}


def _finite(x: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over='ignore'):
        x = x.astype(np.float32, copy=False)
    if bad := sum(np.count_nonzero(~np.isfinite(chunk)) for chunk in _in_chunks([x])):
        raise UserError(f'{what}: {bad} values are NaN or infinite in float32; remove them')
    return x


def _in_chunks(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Some examples at a time, so that intermediate arrays are small."""
    return (x[i : i + _CHUNK] for x in arrays for i in range(0, len(x), _CHUNK))


def _no_shape(by_split: dict[str, np.ndarray], shape: tuple[int, ...], where: str) -> str:
    """What to do about flat images that are not square, or not of data.shape."""
    count = next(iter(by_split.values())).shape
    if shape:
        return f'data.shape={shape}: {where} holds images as {count}; the sizes must multiply to the values of an image'
    ways = []
    for values, axis in ((count[1], 'rows'), (count[0], 'columns')):
        low = next(low for low in range(math.isqrt(values), 0, -1) if values % low == 0)
        if values <= _MOST_RATIO * low**2:
            pairs = ' or '.join(f'"({a}, {b})"' for a, b in ((values // low, low), (low, values // low)))
            ways.append(f'{pairs} if its {axis} of {values} values are images')
    ways = '; '.join(ways) or '"(H, W)"'
    return (
        f'{where}: {count} are flat images, and {count[1]} values make no square. Say how high and wide they are:\n'
        f'  --config.data.shape={ways}'
    )
