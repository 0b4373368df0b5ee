"""Results on stdout, all of them now: a closed pipe is a silent end, a full disk one line."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterable

from aigc_jax.core.errors import RunError


class Closed(RunError):
    """Nobody reads stdout any more: a silent end, with the exit code of a program that SIGPIPE ends."""

    exit_code = 141


def show(text: str) -> None:
    """Writes results to stdout. Raises Closed, or RunError where the disk is full."""
    with _failing():
        print(text, end='', flush=True)


def show_paths(paths: Iterable[pathlib.Path]) -> None:
    """A path a line, in the bytes that the system knows it by, whatever the encoding of stdout."""
    for path in paths:
        show('')
        with _failing():
            sys.stdout.buffer.write(os.fsencode(path) + b'\n')
            sys.stdout.buffer.flush()


@contextlib.contextmanager
def _failing():
    try:
        yield
    except BrokenPipeError:
        raise Closed('stdout is closed') from None
    except OSError as error:
        drop()
        raise RunError(f'stdout: cannot be written: {error.strerror or error}') from None


def drop() -> None:
    """What stands in the buffer of stdout goes nowhere: Python would try again at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
