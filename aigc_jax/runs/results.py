"""evaluation.json as it stands, for those who need no more of a run than its results, and need not wait for JAX."""

import math
import pathlib
from typing import Any

from aigc_jax.core import records
from aigc_jax.core.errors import UserError


def read(path: pathlib.Path) -> tuple[int, dict[str, dict]] | None:
    """(step, {metric: {'value', …}}) of an evaluation.json; None where there is none. A value that is not finite is
    None. Raises UserError."""
    try:
        results = records.read(path)
        step = results.pop('step')
        if type(step) is not int:
            raise ValueError('it holds no metrics')
        return step, checked(results)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise damaged(path, getattr(error, 'strerror', None) or error) from None


def checked(results: Any) -> dict[str, dict]:
    """`results`, {metric: row}. Raises ValueError where a row has no value, or one that is no number."""
    if not isinstance(results, dict) or not all(isinstance(row, dict) and 'value' in row for row in results.values()):
        raise ValueError('it holds no metrics')
    for name, row in results.items():
        try:
            of_seeds(row, 0)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
    return results


def of_seeds(row: dict, first: int) -> dict[int, float]:
    """{seed: value} of a metric's row: of a run of several replicas those of `values`, else its value, which is that of
    the seed `first`. What is not finite is nan. Raises ValueError."""
    values = row['values'] if 'values' in row else {first: row['value']}
    if not isinstance(values, dict):
        raise ValueError('its values are no group')
    return {int(seed): _number(value) for seed, value in values.items()}


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f'{str(value)[:40]!r} is no number')
    try:
        return float(value)
    except OverflowError:
        raise ValueError('a number is too large') from None


def damaged(path: pathlib.Path, why: object) -> UserError:
    return UserError(f'{path}: cannot be read as an evaluation ({why}); remove it, and --mode=evaluate makes it again')
