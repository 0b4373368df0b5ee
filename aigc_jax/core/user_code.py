"""A researcher's own Python file, imported by its path; a mistake in it is told by its line, in one line."""

import contextlib
import importlib.util
import os
import pathlib
import shlex
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType, TracebackType

from aigc_jax.core.errors import UserError, near, one_line

_PREFIX = 'aigc_jax_user_'  # of their names as modules


def load(path: str | pathlib.Path, what: str) -> ModuleType:
    """The module of the file at `path`, executed anew each time. what: what names it, for messages: 'config'.

    Raises UserError where there is no such file, or where it raises.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        here = sorted(str(p) for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
        folder = '' if path.is_absolute() else f' in {pathlib.Path.cwd()}'
        mend = near(str(path), here) if here else '; name the place where it lies'
        raise UserError(f'{what}: there is no file {path}{folder}{mend}')
    name = f'{_PREFIX}{path.stem}_{zlib.crc32(os.path.abspath(path).encode())}'
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f'{what}: {path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for what it defines
    with errors_of(path, what):
        spec.loader.exec_module(module)
    return module


def want_trusted(own: str, field: str, name: str) -> None:
    """Raises UserError where the config of a run, which somebody else may have written, names a Python file that is not
    to be executed unseen: one of a relative path, which is found in whatever folder this process is in, or one that
    belongs to another user. own: FILE.py, or FILE.py:function; name: the value of the field, which holds it."""
    path = pathlib.Path(own[: own.rfind('.py') + 3]).expanduser()
    mend = f'look at it, and name it with {shlex.quote(f"--config.{field}={name}")}'
    if not path.is_absolute():
        raise UserError(f'{field}: the config of the run names the Python file {path} without its folder; {mend}')
    if path.exists() and path.stat().st_uid not in (os.getuid(), 0):
        raise UserError(f'{field}: the config of the run names {path}, a Python file of another user; {mend}')


class Raised(UserError):
    """What a function of a researcher's own file raised, which is its __cause__, with the frames from that file on."""


@contextlib.contextmanager
def errors_of(path: str | pathlib.Path, what: str, function: str = '') -> Iterator[None]:
    """Whatever a researcher's own file raises becomes a UserError with its line, for they need that, not our frames.

    function: the name of their function that runs, whose error is kept as the cause of a `Raised`.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        here = os.path.abspath(os.path.expanduser(path))
        is_syntax = isinstance(error, SyntaxError) and error.filename and os.path.abspath(error.filename) == here
        own = [trace for trace in _frames(error) if os.path.abspath(trace.tb_frame.f_code.co_filename) == here]
        line = error.lineno if is_syntax else own[-1].tb_lineno if own else None
        place = f'{path}, line {line}' if line else path
        if not function:
            message = ' '.join(str(error).split())
            raise UserError(f'{what}: {place}: {type(error).__name__}: {message}') from None
        cause = error.with_traceback(own[0]) if own else error
        message = next(iter(str(error).strip().splitlines()), '')
        raise Raised(f'{what}: {place}, in {function}: {type(error).__name__}: {message}') from cause


def name_file(error: Exception) -> None:
    """Adds to an error, whose traceback is to be shown, a last line that names the researcher's own file and line that
    it passed through; nothing where there is none."""
    is_own = lambda trace: trace.tb_frame.f_globals.get('__name__', '').startswith(_PREFIX)
    if own := [trace for trace in _frames(error) if is_own(trace)]:
        error.add_note(f'error: {own[-1].tb_frame.f_code.co_filename}, line {own[-1].tb_lineno}: {one_line(error)}')


def _frames(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace:
        yield trace
        trace = trace.tb_next
