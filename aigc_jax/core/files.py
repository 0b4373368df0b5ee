"""Files that are whole or absent, disk failures that end a run with one line, compressed files, texts, lines."""

import bz2
import codecs
import contextlib
import fcntl
import gzip
import io
import lzma
import os
import pathlib
import re
import secrets
import shlex
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

from aigc_jax.core.errors import RunError, UserError, cause, unreadable
from aigc_jax.core.memory import read_whole
from aigc_jax.core.mends import unused
from aigc_jax.core.notes import note
from aigc_jax.core.records import regular, regular_itself

# What reading from `open_compressed` raises, where the file cannot be read, is cut short or damaged.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_COMPRESSED = 1 << 12  # compressed bytes that are read at once; zstd makes up to 30,000 times as many of them
SUFFIXES = ('.gz', '.xz', '.zst', '.bz2')  # that compressed files have; their first bytes decide
_MOST_DEPTH = 32  # of folders in one another; a run makes five
_TEMPORARY = '.aigc_jax.tmp'  # the end of a name that is written before it is renamed
_being_written: set[str] = set()  # names, random ones, of what the threads of this process write


@contextlib.contextmanager
def disk_errors(path):
    """Turns an OSError inside the block (disk full, quota, permission) into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(f'cannot write {path}: {error.strerror or error}') from error


def atomic_write(path, data: str | bytes) -> None:
    """Writes `data` (str as UTF-8) to `path`: a reader or a crash meets the old file or the new, no part.

    Missing parent folders are made. A link at `path` is replaced, not followed. Raises RunError if the disk refuses;
    nothing is left behind then.
    """
    path = pathlib.Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: os.replace is atomic only within one file system. No link can be there, because the name is
        # random, and mode 'x' makes a new file or fails.
        temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}{_TEMPORARY}')
        _being_written.add(temporary.name)
        try:
            with _create(temporary) as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            _being_written.discard(temporary.name)


def check_folder(path, what: str) -> None:
    """Raises UserError where there is no folder, or one whose files may not be read. what: that names it."""
    try:
        os.listdir(path)
        os.stat(os.path.join(path, '.'))  # which a folder refuses that may be listed and not entered
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f'{what}: there is no folder {path}') from None
    except OSError as error:
        raise UserError(f'{what}: {path}: {unreadable(error)}') from None


@contextlib.contextmanager
def new_folder(path, what: str = '') -> Iterator[pathlib.Path]:
    """A folder to write in, which takes the name `path` when the block ends: it is there whole, or not at all.

    what: stands before the name in an error. Raises UserError for one that is there already, and RunError for a disk
    that is full.
    """
    path = pathlib.Path(path).expanduser()
    if path.exists() or path.is_symlink():
        raise UserError(f'{what}{path}: is there already; name a new folder')
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}-') as made:
            folder = pathlib.Path(made) / path.name
            folder.mkdir()
            yield folder
            folder.rename(path)


def open_append(path) -> BinaryIO:
    """Opens a file, or makes it, to append bytes to it without a buffer. Raises OSError, also for a link or a pipe."""
    return open(path, 'ab', buffering=0, opener=regular_itself)


def walk(folder) -> Iterator[tuple[str, int]]:
    """(path, its mode) of all that lies below `folder`; no link is followed, and what cannot be listed is passed over.

    Raises UserError where folders lie in each other more deeply than a run makes them: what removes or lists them
    calls itself for each.
    """
    left = [(os.fspath(folder), 0)]
    while left:
        path, depth = left.pop()
        if depth > _MOST_DEPTH:
            raise UserError(f'{path}: more than {_MOST_DEPTH} folders lie in each other; remove them')
        with contextlib.suppress(OSError):
            for name in os.listdir(path):
                below = os.path.join(path, name)
                with contextlib.suppress(FileNotFoundError):  # another process may have removed it
                    mode = os.lstat(below).st_mode
                    if stat.S_ISDIR(mode):
                        left.append((below, depth + 1))
                    yield below, mode


def clear_leftovers(*folders) -> None:
    """Removes what `atomic_write` left in these folders when its process was killed; what is being written stays."""
    for folder in folders:
        for path in pathlib.Path(folder).glob(f'.*{_TEMPORARY}'):
            if path.name in _being_written:  # by another thread, which a lock would not keep this one from
                continue
            # Its writer may have renamed it. Closing what a link leads to would give up a lock of this process on that.
            with contextlib.suppress(OSError), open(path, 'r+b', opener=regular_itself) as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _create(path: pathlib.Path) -> BinaryIO:
    """A new file that `clear_leftovers` leaves alone while it is open."""
    while True:
        file = open(path, 'xb')
        with contextlib.suppress(OSError):  # without locks nothing is cleared either
            fcntl.lockf(file, fcntl.LOCK_EX)
        if path.exists():  # else it was cleared before it was locked
            return file
        file.close()


def lines_of(text: str) -> list[str]:
    """Its lines, without their ends; str.splitlines cuts at characters that may stand inside one, and in JSON."""
    return text.removesuffix('\n').split('\n') if text else []


def open_compressed(path, opener=regular) -> BinaryIO:
    """Opens a file to read its bytes, decompressed where its first bytes are those of gzip, xz, zstd or bzip2.

    opener: of `open`. Raises what UNREADABLE holds, here or when it is read.
    """
    file = open(path, 'rb', opener=opener)
    begin = file.peek(10)
    if kind := _compression(begin):
        file.close()
        return kind.open(path)
    return file


def _compression(begin: bytes) -> '_Compression | None':
    """That of a file which begins so."""
    return next((kind for kind in _COMPRESSIONS if re.match(kind.magic, begin)), None)


def read_compressed(path, what: str = '', opener=regular) -> bytes:
    """The bytes of a file, decompressed. what: stands before its name in an error. Raises UserError."""
    try:
        with open_compressed(path, opener) as file:
            return read_whole(file, f'{what}{path}')
    except UNREADABLE as error:
        raise UserError(f'{what}{path}: cannot be read: {cause(error)}') from None


def read_text(path, what: str = '', opener=regular) -> str:
    """The text of a file, decompressed. A note says where it is UTF-16 or UTF-32.

    what: stands before its name in an error. Raises UserError where it cannot be read, or is no text.
    """
    data = read_compressed(path, what, opener)
    text, encoding = decode(data)
    if not encoding:
        raise UserError(f'{what}{path}, line {first_bad_line(data)}: is not UTF-8; {mend_encoding(data, path)}')
    if encoding != 'utf-8':
        note(f'{path}: is read as {encoding}')
    return text


def decode(data: bytes) -> tuple[str, str]:
    """The text, and its encoding: 'utf-8', or 'utf-16' or 'utf-32' where it begins with their mark, which is no text.

    The encoding is '' where the bytes are no text of these; then those that are no UTF-8 come as lone surrogates.
    """
    for encoding, marks in _MARKS.items():
        if data.startswith(marks):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError:
                break
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode(), '' if _unmarked(data) else 'utf-8'
    except UnicodeDecodeError:
        return data.decode(errors='surrogateescape'), ''


def is_marked(data: bytes) -> bool:
    """Whether it begins with the mark of UTF-16 or UTF-32."""
    return any(map(data.startswith, _MARKS.values()))


def mend_encoding(data: bytes, path) -> str:
    """The command that makes UTF-8 of what `decode` finds no encoding of, if that is one of the usual ones.

    data: what `path` holds, decompressed.
    """
    if is_marked(data):
        return 'its mark says UTF-16 or UTF-32, as which it is damaged'
    encoding = _unmarked(data) or 'latin1'
    if encoding == 'latin1' and re.search(rb'[\x00-\x08\x0e-\x1a\x1c-\x1f]', data):
        return 'it holds control characters, as no text does'
    if encoding == 'latin1' and re.search(rb'[\x80-\x9f]', data):  # which Windows has letters for
        encoding = 'cp1252'
    convert, path = f'iconv -f {encoding} -t utf-8', pathlib.Path(os.path.abspath(path))
    if not path.is_file():
        return f'if it is {encoding}: let {convert} stand before the pipe'
    with open(path, 'rb', opener=regular) as file:
        kind = _compression(file.read(10))
    name, plain = shlex.quote(str(path)), path.with_suffix('') if kind and path.suffix in SUFFIXES else path
    source = f'{kind.tool} -dc < {name} | {convert}' if kind else f'{convert} {name}'
    new = unused(plain.with_name(f'{plain.stem}-utf8{plain.suffix}'))
    return f'if it is {encoding}: {source} > {shlex.quote(str(new))}'


def first_bad_line(data: bytes) -> int:
    """The number of the first line of `data` that is no UTF-8, or 1."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b'\n', 0, error.start) + 1
    return 1


def _unmarked(data: bytes) -> str:
    """'utf-16le' or 'utf-16be' where every second of the first bytes is mostly NUL, and the others are not; else ''."""
    head = data[:4096]
    first, second = head[::2].count(0), head[1::2].count(0)
    if max(first, second) <= len(head) / 4 or min(first, second) > len(head) / 16:
        return ''
    return 'utf-16le' if second > first else 'utf-16be'


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
        data = left or self._file.read(_COMPRESSED)
        if not data and self._frame and not self._frame.eof:
            raise EOFError('it ends before the end of its compressed data')
        if data and (not self._frame or self._frame.eof):
            # As `zstd --long=31` reads it; a frame says how long its own window is.
            self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class _Compression(NamedTuple):
    """magic: a pattern of the first bytes; open(path); tool: which decompresses its input."""

    magic: bytes
    open: Callable[[str], BinaryIO]
    tool: str


_COMPRESSIONS = (
    _Compression(rb'\x1f\x8b', lambda path: gzip.open(path, 'rb'), 'gzip'),
    _Compression(rb'\xfd7zXZ\x00', lambda path: lzma.open(path, 'rb'), 'xz'),
    _Compression(rb'\x28\xb5\x2f\xfd', lambda path: io.BufferedReader(_Zstd(path), 1 << 20), 'zstd'),
    _Compression(rb'BZh[1-9]1AY&SY', lambda path: bz2.open(path, 'rb'), 'bzip2'),
)
# The mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    'utf-32': (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    'utf-16': (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
