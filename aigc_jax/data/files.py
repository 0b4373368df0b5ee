"""Local files of images or points: idx (MNIST's format), npz, and amat (Larochelle's text format).

Whatever is wrong with a file is a UserError that names the file, the fault and the mend.
"""

import glob
import gzip
import io
import lzma
import math
import os
import zipfile
import zlib

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data.dataset import Arrays, Dataset, from_arrays, num_held_out

_LICENCE = 'not known: local files'
_OPEN = {'': open, '.gz': gzip.open, '.xz': lzma.open}
# What reading a damaged file raises. OSError: permissions, folders, gzip headers; RuntimeError: odd zips.
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def idx(cfg, where: str) -> Dataset:
    """A folder in MNIST's format: {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz.

    Labels may be absent, then from both parts. The last data.valid_examples training images are the valid
    split (MNIST's usual: 10,000).

    Raises:
      UserError: if a file is missing, damaged, or does not fit the others.
    """
    parts = {}
    has_labels = any(_find(os.path.join(where, f'{part}-labels-idx1-ubyte')) for part in ('train', 't10k'))
    for split, part in (('train', 'train'), ('test', 't10k')):
        x = _read_idx(os.path.join(where, f'{part}-images-idx3-ubyte'), 3)
        label = _read_idx(os.path.join(where, f'{part}-labels-idx1-ubyte'), 1) if has_labels else None
        parts[split] = (x, label)
    return _assemble(cfg, parts, where)


def npz(cfg, where: str) -> Dataset:
    """An .npz file: arrays `train`, `valid`, `test`, or `x_train`, ...; labels `y_train`, ... may be absent.

    Images: uint8 or bool (N, H, W), (N, H, W, C) or (N, side^2); or floats in [0, 1] of rank 3 or 4. Points:
    floats (N, D). Without a valid array, the last data.valid_examples training examples are the valid split.

    Raises:
      UserError: if the file is missing or damaged, or an array is none of these.
    """
    parts = {}
    try:
        archive = np.load(where, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UserError(f'{where}: is one .npy array; name them: np.savez(file, train=..., test=...)')
        with archive:
            for split in ('train', 'valid', 'test'):
                key = split if split in archive else f'x_{split}'
                if key in archive:
                    parts[split] = (archive[key], archive.get(f'y_{split}'))
                elif split != 'valid':
                    names = ', '.join(archive) or 'nothing'
                    raise UserError(
                        f'{where}: has no array {split} or x_{split}, only {names}; write it '
                        f'with np.savez(file, train=..., test=...)'
                    )
    except _BROKEN as e:
        raise _unreadable(where, e, 'an .npz of plain arrays (no objects), as np.savez writes it') from e
    return _assemble(cfg, parts, where)


def amat(cfg, where: str) -> Dataset:
    """A folder with *_train.amat, *_valid.amat and *_test.amat, plain, .xz or .gz: a line of text per image.

    The values, separated by blanks, are 0 and 1 (statically binarized MNIST: Larochelle & Murray 2011) or
    floats in [0, 1]; images are square. No labels.

    Raises:
      UserError: if a file is missing, there are several, or one is damaged.
    """
    parts = {}
    for split in ('train', 'valid', 'test'):
        found = sorted(
            {
                os.path.splitext(f)[0] if f.endswith(('.gz', '.xz')) else f
                for suffix in _OPEN
                for f in glob.glob(f'*_{split}.amat{suffix}', root_dir=where)
            }
        )
        if len(found) != 1:
            raise UserError(
                f'{where}: holds {", ".join(found) or "no"} *_{split}.amat (plain, .xz or .gz); '
                f'data.name=amat:DIR needs a folder with exactly one'
            )
        parts[split] = (_read_amat(os.path.join(where, found[0])), None)
    return _assemble(cfg, parts, where)


def _assemble(cfg, parts: dict, where: str) -> Dataset:
    """Checks (x, label) by split, makes images of them, holds out the valid split where there is none."""
    parts = {
        split: (_examples(x, f'{where}: {split}'), _labels(label, len(x), f'{where}: y_{split}'))
        for split, (x, label) in parts.items()
    }
    x, label = parts['train']
    for split, (other, _) in parts.items():
        if (other.shape[1:], other.dtype) != (x.shape[1:], x.dtype):
            raise UserError(
                f'{where}: {split} examples are {other.dtype} {other.shape[1:]}, train examples '
                f'{x.dtype} {x.shape[1:]}; all splits must be alike'
            )
    labelled = [split for split in parts if parts[split][1] is not None]
    if labelled and len(labelled) < len(parts):
        raise UserError(f'{where}: labels for {", ".join(labelled)} alone; give every split labels, or none')
    if 'valid' not in parts and (held_out := num_held_out(cfg.valid_examples, len(x), where)):
        cut = len(x) - held_out
        parts['train'] = (x[:cut], None if label is None else label[:cut])
        parts['valid'] = (x[cut:], None if label is None else label[cut:])
    levels = 0
    if x.dtype == np.uint8:
        levels = 1 if max(part.max() for part, _ in parts.values()) <= 1 else 255
    classes = 1 + max(int(label.max()) for _, label in parts.values()) if labelled else 0
    splits = {split: Arrays(*part) for split, part in parts.items()}
    return from_arrays(splits, levels=levels, num_classes=classes, licence=_LICENCE)


def _examples(x: np.ndarray, what: str) -> np.ndarray:
    """Images uint8 or float32 (N, H, W, C), or points float32 (N, D)."""
    if x.dtype == bool:
        x = x.astype(np.uint8)
    if not x.size or x.ndim not in (2, 3, 4):
        raise UserError(
            f'{what}: has shape {x.shape}; images are (N, H, W) or (N, H, W, C), points (N, D), nothing of it 0'
        )
    if x.ndim == 4 and x.shape[-1] > 4 and x.shape[1] <= 4:
        raise UserError(f'{what}: has shape {x.shape}, channels first; it must be (N, H, W, C): transpose(0, 2, 3, 1)')
    if x.dtype == np.uint8:
        side = math.isqrt(x.shape[1])
        if x.ndim == 2 and side**2 != x.shape[1]:
            raise UserError(f'{what}: {x.shape[1]} values make no square image; store (N, H, W), or points as floats')
        x = x.reshape(len(x), side, side, 1) if x.ndim == 2 else x
    elif np.issubdtype(x.dtype, np.floating):
        with np.errstate(over='ignore'):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            bad = np.count_nonzero(~np.isfinite(x))
            raise UserError(f'{what}: {bad} values are NaN or infinite in float32; remove them')
        if x.ndim > 2 and (x.min() < 0 or x.max() > 1):
            raise UserError(
                f'{what}: float images lie in [{x.min():g}, {x.max():g}]; scale them to [0, 1], '
                f'or store 0..255 as uint8'
            )
    else:
        raise UserError(f'{what}: is {x.dtype}; store images as uint8, bool or floats in [0, 1], and points as floats')
    return x[..., None] if x.ndim == 3 else x


def _labels(label: np.ndarray | None, count: int, what: str) -> np.ndarray | None:
    """Class labels int32 (count,)."""
    if label is None:
        return None
    if label.shape not in ((count,), (count, 1)):
        raise UserError(f'{what}: has shape {label.shape} for {count} examples; it must be ({count},)')
    if not np.issubdtype(label.dtype, np.integer):
        raise UserError(f'{what}: labels must be integers 0..K-1, these are {label.dtype}')
    if label.min() < 0 or label.max() > np.iinfo(np.int32).max:
        raise UserError(f'{what}: labels must lie in 0..K-1, these lie in {label.min()}..{label.max()}')
    return label.reshape(count).astype(np.int32)


def _find(path: str) -> str:
    """`path` as it lies there: itself, or with .gz or .xz; '' if none does."""
    return next((path + suffix for suffix in _OPEN if os.path.exists(path + suffix)), '')


def _read(path: str) -> tuple[str, bytes]:
    """The file found for `path`, and its bytes, decompressed."""
    found = _find(path)
    if not found:
        raise UserError(f'{path}: there is no such file, nor with .gz; check the folder given in data.name')
    try:
        with _OPEN[os.path.splitext(found)[1] if found != path else ''](found, 'rb') as file:
            return found, file.read()
    except _BROKEN as e:
        raise _unreadable(found, e, 'whole and readable') from e


def _read_idx(path: str, rank: int) -> np.ndarray:
    """uint8 array of `rank` axes: magic 00 00 08 and the rank, the sizes as big-endian uint32, the bytes."""
    path, data = _read(path)
    head = 4 + 4 * rank
    if len(data) < head or data[:4] != bytes([0, 0, 8, rank]):
        raise UserError(
            f'{path}: is no idx{rank}-ubyte file: it begins with {data[:4].hex() or "nothing"}, '
            f'not with {bytes([0, 0, 8, rank]).hex()}; fetch it again'
        )
    shape = tuple(int(n) for n in np.frombuffer(data, '>u4', rank, 4))
    if len(data) - head != math.prod(shape):
        raise UserError(
            f'{path}: holds {len(data) - head} bytes after its header, which promises {shape} = '
            f'{math.prod(shape)}; it is truncated or damaged: fetch it again'
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_amat(path: str) -> np.ndarray:
    """uint8 0/1, or else float32, (N, side, side)."""
    path, data = _read(path)
    x = _binary_lines(data)
    if x is None:
        try:
            x = np.loadtxt(io.BytesIO(data), np.float32, ndmin=2) if data.strip() else np.empty((0, 0))
        except ValueError as e:
            raise _unreadable(path, e, 'lines of numbers separated by blanks, equally many on each') from e
        if np.isin(x, (0, 1)).all():
            x = x.astype(np.uint8)
    side = math.isqrt(x.shape[1])
    if not x.size or side**2 != x.shape[1]:
        raise UserError(f'{path}: {len(x)} lines of {x.shape[1]} values; each line must be one square image')
    return x.reshape(len(x), side, side)


def _binary_lines(data: bytes) -> np.ndarray | None:
    """uint8 (N, W) if `data` is exactly lines of W single digits 0 or 1, else None; 80 MB take 0.3 s."""
    if not data.endswith(b'\n'):
        data += b'\n'
    line = data.index(b'\n') + 1
    if line % 2 or len(data) % line:
        return None
    # A digit and the blank or newline after it are one little-endian uint16; xor leaves the digit's value.
    plain = np.full(line // 2, ord('0') | ord(' ') << 8, np.uint16)
    plain[-1] = ord('0') | ord('\n') << 8
    x = np.frombuffer(data, '<u2').reshape(-1, line // 2) ^ plain
    return x.astype(np.uint8) if x.max() <= 1 else None


def _unreadable(path: str, error: Exception, wanted: str) -> UserError:
    reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return UserError(f'{path}: cannot be read ({reason.splitlines()[0]}); it must be {wanted}')
