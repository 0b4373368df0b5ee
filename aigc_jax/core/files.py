"""Files that are whole or absent, disk failures that end a run with one line, compressed files, lines of a text."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pathlib
import re
import zlib
from typing import BinaryIO

import zstandard

from aigc_jax.core.errors import RunError

# What reading from `open_compressed` raises, where the file cannot be read, is cut short or damaged.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
SUFFIXES = ('.gz', '.xz', '.zst', '.bz2')  # that compressed files have; their first bytes decide


@contextlib.contextmanager
def disk_errors(path):
    """Turns an OSError inside the block (disk full, quota, permission) into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(f'cannot write {path}: {error.strerror or error}') from error


def atomic_write(path, data: str | bytes) -> None:
    """Writes `data` (str as UTF-8) to `path`: a reader or a crash meets the old file or the new, no part.

    Missing parent folders are made. Raises RunError if the disk refuses; nothing is left behind then.
    """
    path = pathlib.Path(path)
    # Beside the target: os.replace is atomic only within one file system.
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, 'wb') as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def lines_of(text: str) -> list[str]:
    """Its lines, without their ends; str.splitlines cuts at characters that may stand inside one, and in JSON."""
    return text.removesuffix('\n').split('\n') if text else []


def open_compressed(path) -> BinaryIO:
    """Opens a file to read its bytes, decompressed where its first bytes are those of gzip, xz, zstd or bzip2.

    Raises what UNREADABLE holds, here or when it is read.
    """
    file = open(path, 'rb')
    begin = file.peek(10)
    for magic, opener in _MAGIC.items():
        if re.match(magic, begin):
            file.close()
            return opener(path)
    return file


class _Zstd(io.RawIOBase):
    """The decompressed bytes of a .zst file; zstandard's own reader ends a file that is cut short without an error."""

    def __init__(self, path):
        self._file, self._rest, self._frame = open(path, 'rb'), b'', None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest and (data := self._compressed()):
            try:
                self._rest = memoryview(self._frame.decompress(data))
            except zstandard.ZstdError as error:
                raise OSError(f'damaged: {error}') from None
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _compressed(self) -> bytes:
        """The next bytes of the present frame, or of the one behind it; b'' at the end of the last."""
        left = self._frame.unused_data if self._frame and self._frame.eof else b''
        data = left or self._file.read(1 << 16)
        if not data and self._frame and not self._frame.eof:
            raise EOFError('it ends before the end of its compressed data')
        if data and (not self._frame or self._frame.eof):
            # As `zstd --long=31` reads it; a frame says how long its own window is.
            self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


_MAGIC = {
    rb'\x1f\x8b': lambda path: gzip.open(path, 'rb'),
    rb'\xfd7zXZ\x00': lambda path: lzma.open(path, 'rb'),
    rb'\x28\xb5\x2f\xfd': lambda path: io.BufferedReader(_Zstd(path), 1 << 20),
    rb'BZh[1-9]1AY&SY': lambda path: bz2.open(path, 'rb'),
}
