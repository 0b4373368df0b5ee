"""Tables of an evaluation: rows, their text for a person, the means over replicas, the files."""

import json
import math
import pathlib
import re

import numpy as np

from aigc_jax.core.errors import printable
from aigc_jax.core.files import atomic_write
from aigc_jax.metrics import intervals
from aigc_jax.metrics.intervals import MARKS, Measurement, ratio
from aigc_jax.runs import results as results_lib

Results = dict[str, Measurement]  # {metric: …}


def checked(results: Results, report: str) -> Results:
    """`results` of the report of this name. Raises TypeError for a row that is no Measurement, which would lose a
    misspelt field in silence, or end the run where the table is written."""
    for name, row in results.items():
        fields = Measurement.__required_keys__ <= row.keys() <= Measurement.__annotations__.keys()
        whole = 'over' in row or not {'ci', 'low', 'high'} & row.keys()
        if not (fields and whole and all(isinstance(value, (float, int, str, dict)) for value in row.values())):
            raise TypeError(f'report {report}: {name} is no metrics.intervals.Measurement: {row}')
    return results


def mean_row(values: np.ndarray | tuple[np.ndarray, np.ndarray]) -> Measurement:
    """Over examples, of what Task.evaluate says of each."""
    if isinstance(values, tuple):
        return ratio(*values)
    return intervals.wilson(values.sum(), len(values)) if values.dtype == bool else ratio(values)


def share_limits(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n samples; nan where that is undefined."""
    return (math.nan, math.nan) if math.isnan(share) else intervals.limits(intervals.wilson(share * n, n))


def by_numbers(name: str) -> list:
    """A key that sorts k2 before k10, where a compiled function returns them by the letters."""
    parts = re.split(r'(\d+(?:\.\d+)?(?:e[-+]?\d+)?)', name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def write(path: pathlib.Path, step: int, by_seed: dict[int, Results]) -> None:
    """evaluation.json: {"step", metric: {"value", …}}; with replicas as `across` has it."""
    atomic_write(path, json.dumps({'step': step, **finite(across(by_seed))}, indent=2) + '\n')


def read(path: pathlib.Path) -> tuple[int, Results] | None:
    """(step, what `across` gave) of an evaluation.json; None where there is none. Raises UserError."""
    if not (found := results_lib.read(path)):
        return None
    step, results = found[0], _with_nan(found[1])
    try:
        if printable(shown := table(results)) != shown:
            raise ValueError('a name holds control characters')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise results_lib.damaged(path, error) from None
    return step, results


def across(by_seed: dict[int, Results]) -> Results:
    """One replica's results as they are; several as their means with intervals over seeds (intervals.across).

    What is the exponential of another metric is that of its mean: the mean of exponentials would be above it.
    """
    if len(by_seed) == 1:
        return next(iter(by_seed.values()))
    first = next(iter(by_seed.values()))
    joined = {
        name: intervals.across({str(seed): results[name] for seed, results in by_seed.items()}) for name in first
    }
    for name, found in joined.items():
        if 'exp_of' in found:
            values = found['values']
            joined[name] = intervals.exponential(found['exp_of'], joined[found['exp_of']]) | {'values': values}
    return joined


def table(results: Results) -> str:
    """The evaluation for a person: one metric a line."""
    width = max(32, *map(len, results)) if results else 0
    lines = []
    for name, found in results.items():
        mark = ''.join(f'  {label} {found[key]:.5g}' for key, label in MARKS.items() if key in found)
        if 'difference' in found:
            less = found['difference']
            mark += f'  minus the model {less["value"]:.4g}{_interval(less)}'
            mark += f' over {less["n"]} {less["over"]}' if less['over'] != found['over'] else ''
        if 'diverged' in found:
            mark += f'  {found["diverged"]} of {len(found["values"])} diverged'
        interval = _interval(found)
        over = f'over {found["n"]} {found["over"]}' if interval else f'(n={found["n"]})'
        lines.append((f'{name:<{width}} {found["value"]:>12.6g}{interval}', f'{over}{mark}'))
    width = max((len(begin) for begin, _ in lines), default=0)
    return '\n'.join(f'{begin:<{width}} {rest}' for begin, rest in lines)


def _interval(row: Measurement) -> str:
    if not (limits := intervals.limits(row)):
        return ''
    return f' ± {row["ci"]:.4g}' if 'ci' in row else ' ({:.4g}–{:.4g})'.format(*limits)


def finite(value):
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value):
    """What `finite` was given, as far as JSON knows it."""
    if isinstance(value, dict):
        return {key: _with_nan(inner) for key, inner in value.items()}
    return math.nan if value is None else value
