"""Commands that messages hold, for a user to paste into a shell: every path is quoted, and nothing is overwritten."""

import itertools
import os
import pathlib
import shlex
import sys
from collections.abc import Callable


def unused(path) -> pathlib.Path:
    """`path`, absolute, or the same with a number behind its stem where something has that name already."""
    path = pathlib.Path(os.path.abspath(path))
    others = (path.with_name(f'{path.stem}-{k}{path.suffix}') for k in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not os.path.lexists(one))


def calling(function: Callable[..., None], *arguments) -> str:
    """The command that calls a function of this package with these arguments, as texts, and ends as other commands of
    it where that raises UserError."""
    imports = f'from aigc_jax.core import command; from {function.__module__} import {function.__name__} as f'
    return python(f'import sys; {imports}; command.run(lambda: f(*sys.argv[1:]))', *arguments)


def python(code: str, *arguments, by: str = '') -> str:
    """The command that executes `code` by the Python that runs, with `arguments`, as texts, in sys.argv[1:].

    by: another Python, for code that wants a package which this one may lack.
    """
    return shlex.join([by or sys.executable, '-c', code, *map(str, arguments)])
