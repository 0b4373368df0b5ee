"""evaluation.json as it stands, for those who need no more of a run than its results, and need not wait for JAX."""

import pathlib

from aigc_jax.core import records
from aigc_jax.core.errors import UserError


def read(path: pathlib.Path) -> tuple[int, dict[str, dict]] | None:
    """(step, {metric: {'value', …}}) of an evaluation.json; None where there is none. A value that is not finite is
    None. Raises UserError."""
    try:
        results = records.read(path)
        step = results.pop('step')
        if type(step) is not int or not all(isinstance(row, dict) and 'value' in row for row in results.values()):
            raise ValueError('it holds no metrics')
        return step, results
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise damaged(path, getattr(error, 'strerror', None) or error) from None


def damaged(path: pathlib.Path, why: object) -> UserError:
    return UserError(f'{path}: cannot be read as an evaluation ({why}); remove it, and --mode=evaluate makes it again')
