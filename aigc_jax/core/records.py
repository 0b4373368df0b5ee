"""JSON that somebody else may have written: read as data, within bounds, and told in one line where it is none."""

import json
import os
import stat
from typing import Any

_MOST_BYTES = 1 << 26  # of a file that holds one record; a vocabulary of 10^6 pieces has less
_MOST_DEPTH = 64  # lists and objects within each other


def parse(text: str | bytes) -> Any:
    """json.loads. Raises ValueError, for values that are nested too deeply too."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    level, depth = [value], 0
    while level := [inner for held in level if isinstance(held, (dict, list)) for inner in _inside(held)]:
        if (depth := depth + 1) > _MOST_DEPTH:
            raise ValueError('it is nested too deeply')
    return value


def read(path, most: int = _MOST_BYTES) -> dict[str, Any]:
    """The object that a file of at most so many bytes holds, perhaps behind a mark of UTF-8. Raises OSError, where the
    file is a pipe or a device too, and ValueError."""
    with open(path, 'rb', opener=regular) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f'it is larger than {most >> 20} MiB')
    value = parse(data.decode('utf-8-sig'))
    if not isinstance(value, dict):
        raise ValueError('it is no object {"name": …}')
    return value


def regular(path, flags: int) -> int:
    """An `opener` for files alone: a pipe would be waited for, and a device may have no end."""
    number = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # of the latter `open` tells
        return number
    os.close(number)
    raise OSError(0, 'it is a pipe or a device, not a file', os.fspath(path))


def regular_or_pipe(path, flags: int) -> int:
    """The same where the user may name a pipe, such as that of their shell's <(…); it is waited for."""
    number = os.open(path, flags)
    if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
        os.close(number)
        raise OSError(0, 'it is a device, not a file', os.fspath(path))
    return number


def _inside(held: dict | list) -> list:
    return [*held.values()] if isinstance(held, dict) else held
