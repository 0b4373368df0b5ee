"""Checks the regular expressions of a config: some would take years on a name of forty letters."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable

from aigc_jax.core.errors import UserError

_MOST_LETTERS = 1000
_SECONDS = 1  # of a processor, whatever else it does meanwhile
_REPEAT = re.compile(r'[*+?{]')
_TRIAL = f"""
import json, re, resource, sys
for kind, most in (resource.RLIMIT_CPU, {_SECONDS}), (resource.RLIMIT_AS, 1 << 30), (resource.RLIMIT_CORE, 0):
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most, most) if hard == resource.RLIM_INFINITY else (min(most, hard), hard))
pattern, names = json.load(sys.stdin)
for name in names:
    re.search(pattern, name)
"""


def check(pattern: str, names: Iterable[str], what: str) -> None:
    """Raises UserError, which begins with `what`, unless re.search takes at most a second for all names together."""
    if len(pattern) > _MOST_LETTERS:
        raise UserError(f'{what}: a regular expression of {len(pattern)} letters; at most {_MOST_LETTERS} are read')
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f'{what}: {pattern!r} is no regular expression: {error}') from None
    # Two repeats of single letters are fast. More of them, or the repeat of a group, may not be.
    if len(_REPEAT.findall(pattern)) > 2 or re.search(r'\)\s*[*+?{]', pattern):
        if not _ends(pattern, tuple(names)):
            raise UserError(
                f'{what}: {pattern!r} takes longer than {_SECONDS} s to be looked for in the names of the parameters; '
                'write it without repeats of repeats'
            )


@functools.lru_cache(maxsize=1000)
def _ends(pattern: str, names: tuple[str, ...]) -> bool:
    """Tries it in a process of its own. The limit is processor time, so other load on the machine does not matter."""
    done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', _TRIAL], input=json.dumps([pattern, names]), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode == 0
