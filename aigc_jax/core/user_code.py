"""A researcher's own Python file, imported by its path; a mistake in it is told by its line, in one line."""

import contextlib
import importlib.util
import os
import pathlib
import sys
import traceback
import zlib
from collections.abc import Iterator
from types import ModuleType

from aigc_jax.core.errors import UserError, near


def load(path: str | pathlib.Path, what: str) -> ModuleType:
    """The module of the file at `path`, executed anew each time. what: what names it, for messages: '--config'.

    Raises UserError where there is no such file, or where it raises.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        here = sorted(str(p) for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
        folder = '' if path.is_absolute() else f' in {pathlib.Path.cwd()}'
        raise UserError(f'{what}: there is no file {path}{folder}{near(str(path), here) if here else ""}')
    name = f'aigc_jax_user_{path.stem}_{zlib.crc32(os.path.abspath(path).encode())}'
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f'{what}: {path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for what it defines
    with errors_of(path, what):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def errors_of(path: str | pathlib.Path, what: str) -> Iterator[None]:
    """Whatever a researcher's own file raises becomes a UserError with its line, for they need that, not our frames."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        here = os.path.abspath(os.path.expanduser(path))
        is_here = lambda name: os.path.abspath(name) == here
        lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if is_here(frame.f_code.co_filename)]
        if isinstance(error, SyntaxError) and error.filename and is_here(error.filename):
            lines = [error.lineno]
        message = ' '.join(str(error).split())
        place = f'{path}, line {lines[-1]}' if lines and lines[-1] else path
        raise UserError(f'{what}: {place}: {type(error).__name__}: {message}') from None
