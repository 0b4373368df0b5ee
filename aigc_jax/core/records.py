"""Files that somebody else may have made: opened only where they are files, and their JSON read within bounds."""

import json
import os
import stat
from typing import Any, BinaryIO

_MOST_BYTES = 1 << 26  # of a file that holds one record; a vocabulary of 10^6 pieces has less
_MOST_DEPTH = 64  # lists and objects within each other


def parse(text: str | bytes) -> Any:
    """json.loads. Raises ValueError, for values that are nested too deeply too."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    begin = ('{', '[') if isinstance(text, str) else (b'{', b'[')
    if sum(map(text.count, begin)) <= _MOST_DEPTH:
        return value
    level, depth = [value], 0
    inside = lambda held: held.values() if isinstance(held, dict) else held
    while level := [inner for held in level if isinstance(held, (dict, list)) for inner in inside(held)]:
        if (depth := depth + 1) > _MOST_DEPTH:
            raise ValueError('it is nested too deeply')
    return value


def read(path) -> dict[str, Any]:
    """The object that a file holds. Raises OSError, also where the path is a pipe or a device, and ValueError."""
    with open(path, 'rb', opener=regular) as file:
        return load(file)


def load(file: BinaryIO) -> dict[str, Any]:
    """The object in an open file of at most 64 MiB, perhaps behind a byte order mark. Raises ValueError."""
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f'it is larger than {_MOST_BYTES >> 20} MiB')
    value = parse(data.decode('utf-8-sig'))
    if not isinstance(value, dict):
        raise ValueError('it is no object {"name": …}')
    return value


class NoFile(OSError):
    """A pipe or a device stands in the place of a file."""


def regular(path, flags: int) -> int:
    """An `opener` of `open` that takes only files: opening a pipe waits, and a device may have no end."""
    number = os.open(path, flags | os.O_NONBLOCK, 0o666)
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` itself refuses a folder
        return number
    os.close(number)
    raise NoFile(0, 'it is a pipe or a device, not a file', os.fspath(path))


def regular_itself(path, flags: int) -> int:
    """The same, but a link in the place of the file is refused."""
    return regular(path, flags | os.O_NOFOLLOW)


def regular_or_pipe(path, flags: int) -> int:
    """The same, but it waits for a pipe, which the user may name, such as that of a shell's <(…)."""
    number = os.open(path, flags)
    if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
        os.close(number)
        raise NoFile(0, 'it is a device, not a file', os.fspath(path))
    return number
