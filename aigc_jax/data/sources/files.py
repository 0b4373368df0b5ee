"""Local files of images or points: idx (MNIST's format), npz, npy, MATLAB's mat, and amat (Larochelle's text format).

Any file may be compressed (gzip, xz, zstd, bzip2). Whatever is wrong with one is a UserError that names the file, the
fault and the mend. aigc_jax/data/README.md tells what each may hold.
"""

import functools
import io
import math
import mmap
import os
import re
import zipfile

import numpy as np

from aigc_jax.core import memory, mends
from aigc_jax.core import npy as npy_lib
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import SUFFIXES, open_compressed
from aigc_jax.core.notes import note
from aigc_jax.data.sources import arrays
from aigc_jax.data.sources.arrays import Parts

# MATLAB's classes of arrays of numbers or text, and the bytes of an element.
_MAT_KINDS = {
    'double': 8, 'single': 4, 'logical': 1, 'char': 4, 'int8': 1, 'uint8': 1, 'int16': 2, 'uint16': 2, 'int32': 4,
    'uint32': 4, 'int64': 8, 'uint64': 8,
}  # fmt: skip
_ENDS = '(?:' + '|'.join(map(re.escape, SUFFIXES)) + ')?'
_IDX = r'(?:(?P<set>.*?)[-_.])?(?P<part>train|valid|val|t10k|test)[-_.](?P<what>images|labels)[-_.]idx[134][-_.]ubyte'

_CONVERT = (  # MATLAB's first axis is the last one in HDF5
    'import sys, h5py, numpy; from aigc_jax.core.files import open_compressed as o; '
    'numpy.savez(open(sys.argv[2], "xb"), **{k: v[()].T for k, v in h5py.File(o(sys.argv[1])).items() '
    'if getattr(v, "dtype", object) != object})'
)


def read_idx(where: str, mapped: bool = False) -> Parts:
    """A folder in MNIST's format: {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, compressed or not.

    Labels may be absent, then from all parts. mapped, here and below: what is not compressed is mapped into memory,
    instead of read. Raises UserError if a file is missing, damaged, or does not fit the others.
    """
    found: dict[tuple[str, str], str] = {}
    for name in _listed(where, 'idx'):
        if match := re.fullmatch(_IDX + _ENDS, name, re.IGNORECASE):
            part = match['part'].lower()
            key = arrays.split_of('test' if part == 't10k' else part), match['what'].lower()
            if key in found:
                raise UserError(
                    f'{where}: holds {found[key]} and {name}; data.name=idx:DIR needs a folder of one set: move the '
                    f'files of each set to a folder of their own'
                )
            found[key] = name
    splits = [split for split in arrays.SPLITS if (split, 'images') in found]
    lost = [name for (split, _), name in found.items() if split not in splits]
    if not splits or lost:
        raise UserError(
            f'{where}: {", ".join(lost) + " has no images beside it" if lost else "there are no images of MNIST"}; '
            f'data.name=idx:DIR needs train-images-idx3-ubyte, t10k-images-idx3-ubyte or both, and perhaps '
            f'train-labels-idx1-ubyte and t10k-labels-idx1-ubyte, compressed or not'
        )
    if len(splits) > 1 and 'train' not in splits:
        raise UserError(f'{where}: train-images-idx3-ubyte is missing, beside {", ".join(found.values())}')
    labelled = any((split, 'labels') in found for split in splits)
    parts = {}
    for split in splits:
        if labelled and (split, 'labels') not in found:
            name = found[split, 'images'].replace('images', 'labels').replace('idx3', 'idx1')
            raise UserError(f'{where}: {name} is missing, but other images have labels; give all labels, or none')
        parts[split] = tuple(
            _read_ubyte(os.path.join(where, found[split, what]), mapped) if (split, what) in found else None
            for what in ('images', 'labels')
        )
    return parts


def read_npz(where: str, mapped: bool = False) -> Parts:
    """An .npz file of arrays with names that `arrays.by_role` understands. Raises UserError, as all here."""
    try:
        with open_compressed(where) as file:
            file = _seekable(file, where)
            if _begins(file, np.lib.format.MAGIC_PREFIX):
                raise UserError(f'{where}: is one .npy array; data.name=npy:FILE reads it')
            with zipfile.ZipFile(file) as archive:
                names = arrays.by_role(npy_lib.shapes(archive), where)
                get = lambda name: npy_lib.member(archive, name, where) if name else None
                examples = functools.partial(npy_lib.map_member, file) if mapped and _is_plain(file) else npy_lib.member
                return {split: (examples(archive, x, where), get(y)) for split, (x, y) in names.items()}
    except npy_lib.BROKEN as e:
        raise _unreadable(where, e, 'an .npz of plain arrays (no objects), as np.savez writes it') from e


def read_npy(where: str, mapped: bool = False) -> Parts:
    """An .npy file: one array of examples, without labels."""
    try:
        with open_compressed(where) as file:
            plain = _is_plain(file)
            file = _seekable(file, where)
            if _begins(file, b'PK'):
                raise UserError(f'{where}: is an .npz of several arrays; data.name=npz:FILE reads it')
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            array = npy_lib.map_array(file, size) if mapped and plain else npy_lib.read(file, size, where)
    except npy_lib.BROKEN as e:
        raise _unreadable(where, e, 'an .npy of plain numbers (no objects), as np.save writes it') from e
    return {'': (array, None)}


def read_mat(where: str) -> Parts:
    """A .mat file of MATLAB's version 7 or before, with variables named as the arrays of an .npz."""
    import scipy.io

    try:
        with open_compressed(where) as file:
            file = _seekable(file, where)
            kinds = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(file)}
            wanted = [name for name, (_, kind) in kinds.items() if kind in _MAT_KINDS]
            if any(size < 0 for name in wanted for size in kinds[name][0]):
                raise ValueError('a size below 0')
            memory.want(sum(math.prod(kinds[name][0]) * _MAT_KINDS[kinds[name][1]] for name in wanted), where)
            file.seek(0)
            held = scipy.io.loadmat(file, variable_names=wanted)  # cells within cells would overflow the stack
    except NotImplementedError:  # scipy's answer to MATLAB's HDF5
        new = mends.unused(f'{where}.npz')
        raise UserError(
            f'{where}: is a .mat of version 7.3; save it with save(…, \'-v7\') in MATLAB, or turn it into an .npz '
            f'(pip install h5py), and use npz:{new}:\n  {mends.python(_CONVERT, where, new)}'
        ) from None
    except (*npy_lib.BROKEN, TypeError, IndexError, scipy.io.matlab.MatReadError) as e:
        raise _unreadable(where, e, "a .mat of MATLAB's version 5 to 7") from e
    # Others are scipy's '__header__', sparse matrices and objects.
    plain = {name: x for name, x in held.items() if isinstance(x, np.ndarray) and x.dtype.kind in 'biufU'}
    if rest := sorted(kinds.keys() - plain.keys()):
        note(f'{where}: left out, for they are no plain arrays: {", ".join(rest)}')
    names = arrays.by_role({name: value.shape for name, value in plain.items()}, where)
    return {split: (plain[x], plain[y] if y else None) for split, (x, y) in names.items()}


def read_amat(where: str) -> Parts:
    """A folder with *_train.amat, *_valid.amat and *_test.amat: a line of text per image.

    The values, separated by blanks, are 0 and 1 (statically binarized MNIST: Larochelle & Murray 2011) or
    floats in [0, 1]. No labels.
    """
    parts = {}
    for split in arrays.SPLITS:
        found = [name for name in _listed(where, 'amat') if re.fullmatch(rf'.*_{split}\.amat{_ENDS}', name)]
        if len(found) != 1:
            raise UserError(
                f'{where}: holds {", ".join(found) or "no"} *_{split}.amat (compressed or not); '
                f'data.name=amat:DIR needs a folder with exactly one'
            )
        parts[split] = _read_lines(os.path.join(where, found[0])), None
    return parts


def _listed(where: str, kind: str) -> list[str]:
    try:
        return sorted(os.listdir(where))
    except OSError as e:
        raise UserError(f'{where}: {e.strerror}; data.name={kind}:DIR wants a folder') from e


def _seekable(file, where: str):
    """The file, or the content of a compressed one in memory."""
    return file if _is_plain(file) else io.BytesIO(memory.read_whole(file, where))


def _begins(file, magic: bytes) -> bool:
    begin = file.read(len(magic))
    file.seek(0)
    return begin == magic


def _is_plain(file) -> bool:
    """Whether a file that `open_compressed` opened is not compressed."""
    return isinstance(getattr(file, 'raw', None), io.FileIO)


def _read(path: str, mapped: bool = False) -> bytes | mmap.mmap:
    """The bytes of a file, decompressed, or mapped."""
    try:
        with open_compressed(path) as file:
            if mapped and _is_plain(file) and os.path.getsize(path):  # an empty file cannot be mapped
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return memory.read_whole(file, path)
    except npy_lib.BROKEN as e:
        raise _unreadable(path, e, 'whole and readable') from e


def _read_ubyte(path: str, mapped: bool = False) -> np.ndarray:
    """uint8 array: magic 00 00 08 and the number of axes, the sizes as big-endian uint32, the bytes."""
    data = _read(path, mapped)
    rank = data[3] if len(data) > 3 and data[:3] == bytes([0, 0, 8]) and data[3] in (1, 3, 4) else 0
    head = 4 + 4 * rank
    if not rank or len(data) < head:
        raise UserError(
            f'{path}: is no idx-ubyte file: it begins with {data[:4].hex() or "nothing"}, not with 00000801 (labels) '
            f'or 00000803 (images); fetch it again'
        )
    shape = tuple(int(n) for n in np.frombuffer(data, '>u4', rank, 4))
    if len(data) - head != math.prod(shape):
        raise UserError(
            f'{path}: holds {len(data) - head} bytes after its header, which promises {shape} = '
            f'{math.prod(shape)}; it is truncated or damaged: fetch it again'
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_lines(path: str) -> np.ndarray:
    """uint8 0/1, or else float32, (N, values of a line)."""
    data = _read(path)
    x = _binary_lines(data)
    if x is None:
        try:
            x = np.loadtxt(io.BytesIO(data), np.float32, ndmin=2) if data.strip() else np.empty((0, 0))
        except ValueError as e:
            raise _unreadable(path, e, 'lines of numbers separated by blanks, equally many on each') from e
        if np.isin(x, (0, 1)).all():
            x = x.astype(np.uint8)
    if not x.size:
        raise UserError(f'{path}: holds no image; fetch it again')
    return x


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
