"""Measurements: means with their 95 % intervals, as an evaluation gives them."""

import math
from collections.abc import Sequence
from typing import Required, TypedDict

import numpy as np

NORMAL_95 = 1.959964  # half-width of a 95 % interval of a normal variable, in standard deviations
RESAMPLES, MOST_HELD = 9999, 1 << 22  # of the bootstrap; numbers of resamples that are held at once
_FEW = 8  # successes
_MOST_NATS = 700.0  # of which exp is finite

MARKS = {'perfect': 'perfect sampler', 'held_out': 'held-out text', 'real': 'real images'}


class Measurement(TypedDict, total=False):
    """One metric of an evaluation, in the fields that evaluation.json has.

    value: NaN where it is not defined.
    n: how many independent draws the interval is over, and over: what they are; without an interval, of how many
      examples or samples the value is.
    ci: half the width of the interval; or low, high: its ends.
    perfect, held_out, real: what a perfect sampler, held-out text, real images score.
    difference: the value minus the model's, of a baseline. exp_of: the metric that this is the exponential of.
    n_each, seeds, values, diverged: of several replicas (`across`).
    """

    value: Required[float]
    n: Required[int]
    over: str
    ci: float
    low: float
    high: float
    perfect: float
    held_out: float
    real: float
    difference: 'Measurement'
    exp_of: str
    n_each: int
    seeds: int
    values: dict[str, float]
    diverged: int


def student_95(n: int) -> float:
    """The half-width of the 95 % interval of a mean of n, in its estimated standard errors; nan for n < 2."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) if n > 1 else math.nan


def ratio(total: np.ndarray, count: np.ndarray | None = None, over: str = 'examples') -> Measurement:
    """R = Σ total / Σ count over n clusters, such as documents, drawn independently; count None: 1 each.

    The error is Cochran's (1977, eq. 6.13, of a large population), the quantile Student's with n − 1 degrees of
    freedom. Values inside a cluster may depend on each other in any way. ci is nan for a single cluster.
    """
    total = np.asarray(total, np.float64)
    count = np.ones(len(total)) if count is None else np.asarray(count, np.float64)
    n, value = len(total), total.sum() / count.sum()
    error = (total - value * count).std(ddof=1) / (math.sqrt(n) * count.mean()) if n > 1 else math.nan
    return {'value': float(value), 'ci': student_95(n) * float(error), 'n': n, 'over': over}


def wilson(successes: float, n: int, over: str = 'examples') -> Measurement:
    """A share of n independent values of 0 or 1, with the interval of Wilson (1927).

    Wilson's lower limit is too high for few successes: of 200 draws with p = 0.005, 92 % have an interval that covers
    it. So the limit is taken no higher than the one-sided 95 % limit of a Poisson mean, ½ χ²₀.₀₅(2 successes) / n, as
    Brown, Cai & DasGupta (2001, section 4.1.1) do for up to 3 successes, here for up to 8 that are a quarter or less;
    and the upper limit by symmetry. Then 93 % or more have one, for each p of 0.0005 to 0.9995.
    """
    from scipy.stats import chi2

    p, z2 = successes / n, NORMAL_95**2
    centre, half = (p + z2 / (2 * n)) / (1 + z2 / n), math.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n) / (1 + z2 / n)

    def lower(wilsons, successes):
        if 0 < successes <= min(_FEW, n / 4):
            return min(wilsons, float(chi2.ppf(0.05, 2 * successes)) / (2 * n))
        return wilsons if successes else 0.0

    low, high = lower(centre - half, successes), 1 - lower(1 - centre - half, n - successes)
    return {'value': float(p), 'low': max(low, 0.0), 'high': min(high, 1.0), 'n': n, 'over': over}


def mean_of_shares(values: Sequence[float], over: str) -> Measurement:
    """The mean of independent values in [0, 1], each such as pass@k of a problem.

    Wilson's interval where each is 0 or 1. Else the bootstrap's, bias-corrected and accelerated (Efron 1987), always
    with the same draws: such means are skewed, and of 200 problems of which one in 30 can be solved at all mean ± 1.96
    errors covers the truth in 80 % of cases, the bootstrap in 89 %. Where all values are alike the bootstrap knows no
    spread, and Wilson's is taken: no values in [0, 1] of that mean vary more than those of 0 and 1.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if not n:
        return {'value': math.nan, 'n': 0, 'over': over}
    if np.isin(values, (0, 1)).all() or np.ptp(values) == 0:
        return wilson(values.sum(), n, over)
    from scipy.stats import bootstrap

    draws = np.random.Generator(np.random.PCG64(0))
    low, high = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=max(1, MOST_HELD // n), method='BCa', rng=draws
    ).confidence_interval
    return {'value': float(values.mean()), 'low': float(low), 'high': float(high), 'n': n, 'over': over}


def limits(row: Measurement) -> tuple[float, float] | None:
    """(low, high) of a row; None where it has no interval."""
    low, high = row.get('low'), row.get('high')
    if (ci := row.get('ci')) is not None:
        low, high = row['value'] - ci, row['value'] + ci
    return (low, high) if low is not None and math.isfinite(low) and math.isfinite(high) else None


def exponential(of: str, row: Measurement) -> Measurement:
    """exp of the metric `of`, such as the perplexity of a mean of nats, with that metric's interval transformed."""
    exp = lambda value: math.exp(min(value, _MOST_NATS))
    low, high = limits(row) or (math.nan, math.nan)
    changed = {'value': exp(row['value']), 'low': exp(low), 'high': exp(high)}
    return {**{name: value for name, value in row.items() if name != 'ci'}, **changed, 'exp_of': of}


def across(rows: dict[str, Measurement]) -> Measurement:
    """One metric of several replicas, {seed: its row}: the mean over the seeds whose value is finite.

    ci: Student's interval over seeds, n their number, 'n_each' the n of a seed's own row. Where the values do not
    differ at all, as those of an n-gram model or of 0 solved problems, a spread over seeds would be a false 0: what one
    seed's own row is over stays, with its interval if it has one. diverged: how many seeds of `values` are left out, if
    any is.
    """
    first, values = next(iter(rows.values())), {seed: row['value'] for seed, row in rows.items()}
    alive = {seed: value for seed, value in values.items() if math.isfinite(value)}
    numbers = np.array([*alive.values()])
    kept = {name: value for name, value in first.items() if name not in ('ci', 'low', 'high', 'n', 'over')}
    for name in (*MARKS, 'difference'):  # evaluations of two versions need not have the same
        if not all(name in row for row in rows.values()):
            kept.pop(name, None)
        elif name != 'difference':
            kept[name] = float(np.mean([row[name] for row in rows.values()]))
    if 'difference' in kept:
        kept['difference'] = across({seed: row['difference'] for seed, row in rows.items()})
    joined = {**kept, 'value': float(numbers.mean()) if len(numbers) else math.nan}
    alike = next((rows[seed] for seed in alive), first)
    if len(numbers) != 1 and (not len(numbers) or np.ptp(numbers) == 0):
        joined |= {name: alike[name] for name in ('ci', 'low', 'high', 'n', 'over') if name in alike}
    else:
        spread = numbers.std(ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
        joined |= {'ci': float(student_95(len(numbers)) * spread), 'n': len(numbers), 'over': 'seeds'}
        joined |= {'n_each': first['n']} if 'n' in first else {}
    if 0 < len(numbers) < len(values):
        joined['diverged'] = len(values) - len(numbers)
    return joined | {'seeds': len(numbers), 'values': values}
