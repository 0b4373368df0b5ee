"""Lines that tell the user, on stderr, what was chosen for them or what they should know of their data."""

import sys

from aigc_jax.core import processes
from aigc_jax.core.errors import printable


def note(message: str) -> None:
    """Prints one line on stderr, in the first process alone: a choice that followed from the data, a warning."""
    if processes.first():
        print(printable(f'note: {message}'), file=sys.stderr, flush=True)
