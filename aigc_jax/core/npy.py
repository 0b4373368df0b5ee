"""Arrays of .npy and .npz files. What a header promises is compared with the bytes that are there, and with the free
memory, before any memory is taken. Objects are never loaded, because loading one runs a program."""

import io
import math
import mmap
import os
import struct
import tokenize
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from aigc_jax.core import memory
from aigc_jax.core.errors import UserError, cause
from aigc_jax.core.files import UNREADABLE
from aigc_jax.core.records import regular

# What reading a damaged file raises here. RuntimeError: of odd zips, such as encrypted ones.
BROKEN = (*UNREADABLE, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)
_MOST_HEADER = 12 + 10_000  # bytes: the magic and two lengths, and the longest header that numpy takes
_PART = 1 << 16  # bytes that are checked at once
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether it lies by columns, dtype) of the .npy that begins here; `file` then stands behind the header.
    Raises ValueError."""
    begin, head = file.tell(), io.BytesIO(file.read(_MOST_HEADER))  # a header may claim to have gigabytes
    version = np.lib.format.read_magic(head)
    if version not in _HEADERS:
        raise ValueError(f'a header of version {version} is of no plain numbers')
    try:
        shape, by_column, dtype = _HEADERS[version](head)
    except ValueError as error:  # whose message may hold the whole header
        raise ValueError(str(error)[:100]) from None
    except (tokenize.TokenError, SyntaxError, RecursionError, MemoryError, OverflowError, TypeError, LookupError):
        raise ValueError('its header is damaged') from None
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f'its header is damaged: shape {str(shape)[:100]}')
    file.seek(begin + head.tell())
    return shape, by_column, dtype


def read(file: BinaryIO, size: int, what: str) -> np.ndarray:
    """The array of `file`, an .npy of `size` bytes. Raises ValueError, and UserError, which begins with `what`, where
    there is no memory for it."""
    _, _, _, promised = _promised(file, size)
    memory.want(promised, what)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def map_array(file: BinaryIO, size: int) -> np.ndarray:
    """The array of an .npy of `size` bytes that begins here in a file on disk. It is mapped into memory, read-only.
    Raises ValueError."""
    shape, by_column, dtype, _ = _promised(file, size)
    if not (count := math.prod(shape)):
        return np.empty(shape, dtype)
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(whole, dtype, count, file.tell()).reshape(shape, order='F' if by_column else 'C')


def _promised(file: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether it lies by columns, dtype, bytes), of an .npy of `size` bytes."""
    begin = file.tell()
    shape, by_column, dtype = _header(file)
    if dtype.hasobject:
        raise ValueError('Object arrays cannot be loaded')
    promised = math.prod(shape) * dtype.itemsize
    if promised > begin + size - file.tell():
        raise ValueError(f'its header promises {promised} bytes, shape {str(shape)[:100]}; there are {size}: truncated')
    return shape, by_column, dtype, promised


def shapes(archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """{name: shape} of an .npz, from the headers alone: arrays that nobody asks for may be large, or objects."""
    found = {}
    for name in archive.namelist():
        if name.endswith('.npy'):
            with archive.open(name) as file:
                found[name.removesuffix('.npy')] = _header(file)[0]
    return found


def load(path, what: str, *names: str) -> dict[str, np.ndarray]:
    """{name: array} of an .npz; without names, all of its arrays. what: begins an error's line. Raises UserError."""
    try:
        with open(path, 'rb', opener=regular) as file, zipfile.ZipFile(file) as archive:
            return {name: member(archive, name, what) for name in names or shapes(archive)}
    except BROKEN as error:
        raise UserError(f'{what}: cannot be read: {cause(error)}') from None


def member(archive: zipfile.ZipFile, name: str, what: str) -> np.ndarray:
    """An array of an .npz; see `read`."""
    info = archive.getinfo(f'{name}.npy')
    with archive.open(info) as file:
        return read(file, info.file_size, f'{what}: {name}')


def map_member(file: BinaryIO, archive: zipfile.ZipFile, name: str, what: str) -> np.ndarray:
    """An array of the .npz `archive` in `file`, mapped into memory; a compressed one is read. Raises as `member`."""
    info = archive.getinfo(f'{name}.npy')
    if info.compress_type != zipfile.ZIP_STORED:
        return member(archive, name, what)
    with archive.open(info):  # checks the header that stands before it
        pass
    file.seek(info.header_offset + 26)  # there are the lengths of the name and of the extra field behind it
    file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)
    crc, left, begin = 0, info.file_size, file.tell()
    while left and (part := file.read(min(left, _PART))):
        crc, left = zlib.crc32(part, crc), left - len(part)
    if left or crc != info.CRC:
        raise zipfile.BadZipFile(f'Bad CRC-32 for file {name}.npy')
    file.seek(begin)
    return map_array(file, info.file_size)
