"""Results on stdout, all of them now: a closed pipe is a silent end, a full disk one line."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import TextIO

from aigc_jax.core.errors import RunError, printable


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


def say(text: str) -> None:
    """A line for a person on stderr. It is lost where stderr is a full disk or a terminal that is gone: what is said is
    no result. Raises Closed where nobody reads it."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise Closed('stderr is closed') from None
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO | None = None) -> None:
    """What stands in the buffer of a stream (None: of stdout) goes nowhere: Python would try again at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)


def open_closed() -> None:
    """Streams that the process was started without go nowhere. Otherwise the files that it opens would get their
    numbers, and what is said on stderr would go to stdout."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the least that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode))
