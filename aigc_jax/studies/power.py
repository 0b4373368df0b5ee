"""How many seeds a difference needs, and how to look at a study more than once.

samples: 2 for two arms of n seeds each, of whose values sd is the standard deviation; 1 for n seeds against a published
value, or for n pairs, of whose differences sd is the standard deviation.
"""

import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.core.errors import UserError

POWER = 0.8
_MOST_SEEDS = 100_000
_PATHS = 200_000  # of simulated studies
_LEAST_STOPPING = 50  # of them, from which a level is estimated


def pooled_sd(a, b) -> float:
    """√((s_a² + s_b²) / 2), of which Welch's standard error for arms of one size is made."""
    return math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)


def sd_limits(sd: float, df: int, alpha: float = 0.05) -> tuple[float, float]:
    """The 1 − alpha interval of a normal standard deviation that was estimated with `df` degrees of freedom, by χ²."""
    from scipy.stats import chi2

    return tuple(float(sd * math.sqrt(df / chi2.ppf(q, df))) for q in (1 - alpha / 2, alpha / 2))


def power(d: float, sd: float, n: int, samples: int = 2, alpha: float = 0.05) -> float:
    """P(the two-sided t test of n seeds says so) where the true difference is d: of the noncentral t distribution with
    samples (n − 1) degrees of freedom and noncentrality d / (sd √(samples / n)) (Cohen 1988, section 2.5)."""
    from scipy.special import stdtrit

    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0 if d else alpha
    df, noncentrality = samples * (n - 1), abs(d) / (sd * math.sqrt(samples / n))
    edge = float(stdtrit(df, 1 - alpha / 2))
    return 1 - noncentral_t_cdf(edge, df, noncentrality) + noncentral_t_cdf(-edge, df, noncentrality)


def noncentral_t_cdf(t: float, df: float, noncentrality: float) -> float:
    """P(T ≤ t). scipy has nan far in a tail, where it is 0 for a large noncentrality and 1 for a very negative one."""
    from scipy.special import nctdtr

    found = float(nctdtr(df, noncentrality, t))
    return found if math.isfinite(found) else float(noncentrality < 0)


def resolvable(sd: float, n: int, samples: int = 2, alpha: float = 0.05, wanted: float = POWER) -> float:
    """The difference that n seeds find with the probability `wanted`; nan for n < 2."""
    from scipy.optimize import brentq

    if n < 2:
        return math.nan
    enough = math.sqrt(samples / n)  # the standard error, of sd 1
    while power(enough, 1.0, n, samples, alpha) < wanted:  # far, for few seeds and a small alpha
        enough *= 2
    return sd * brentq(lambda d: power(d, 1.0, n, samples, alpha) - wanted, 0.0, enough)


def seeds_needed(d: float, sd: float, samples: int = 2, alpha: float = 0.05, wanted: float = POWER) -> float:
    """The least n, of each arm, that finds the difference d with the probability `wanted`; ∞ above 100,000."""
    if not power(d, sd, _MOST_SEEDS, samples, alpha) >= wanted:
        return math.inf
    few, enough = 1, _MOST_SEEDS
    while enough - few > 1:
        n = (few + enough) // 2
        few, enough = (few, n) if power(d, sd, n, samples, alpha) >= wanted else (n, enough)
    return float(enough)


def seeds_by_pilot(
    d: float, sd: float, df: int, samples: int = 2, alpha: float = 0.05, wanted: float = POWER
) -> tuple[float, float, float]:
    """(n, few, many): `seeds_needed` for the sd of a pilot study with `df` degrees of freedom, and for the ends of that
    sd's 95 % interval. A pilot of 3 seeds knows its sd to a factor of 12, so that `many` may be 100 times `few`."""
    low, high = sd_limits(sd, df)
    return tuple(seeds_needed(d, spread, samples, alpha, wanted) for spread in (sd, low, high))


def spent(fraction: float, alpha: float = 0.05, rule: str = 'obrien_fleming') -> float:
    """How much of alpha a study may have spent when it has this fraction of its most seeds (Lan & DeMets 1983).

    'obrien_fleming': on each side 2 − 2 Φ(z_{α/4} / √t), little at first; 'pocock': α ln(1 + (e − 1) t), about even.
    """
    from scipy.stats import norm

    if rule == 'obrien_fleming':
        return float(4 * norm.sf(norm.isf(alpha / 4) / math.sqrt(fraction)))
    if rule == 'pocock':
        return alpha * math.log1p((math.e - 1) * fraction)
    raise UserError(f'spending rule: {rule!r}; it is obrien_fleming or pocock')


def look_levels(
    looks: Sequence[int], most: int, samples: int = 1, alpha: float = 0.05, rule: str = 'obrien_fleming'
) -> list[float]:
    """The level of the test at each look of a study that ends as soon as its verdict stands, so that all looks together
    give a false verdict with probability alpha. A look uses intervals of 1 − its level (Jennison & Turnbull 1989).

    looks: numbers of seeds, of each arm, rising; most: the largest that there may be. Where no look before has stopped,
    look k stops with probability spent(looks[k] / most) − spent(looks[k − 1] / most) if there is no difference. The
    bounds that do this for normal variables of known variance are too low for the t tests of few seeds: Pocock's give
    5.9 % of false verdicts for 5 % with looks at 3 to 8 seeds. So the levels are those of simulated t tests of normal
    values, each with the variances that it estimates: Student's for samples=1, Welch's for 2.
    """
    if not looks or looks[0] < 2 or any(b <= a for a, b in zip(looks, looks[1:], strict=False)) or looks[-1] > most:
        raise UserError(f'looks at {list(looks)} seeds of at most {most}: they rise, from 2 or more')
    p, levels, before = _null_p_values(looks, samples), [], 0.0
    for k, n in enumerate(looks):
        share = spent(n / most, alpha, rule) - before
        stopping = int(share * len(p))
        # Of too few paths a level is no estimate. The share itself is one that stops no more often.
        level = float(np.partition(p[:, k], stopping)[stopping]) if stopping >= _LEAST_STOPPING else share
        p[p[:, k] < level] = 2.0  # these have stopped
        levels.append(level)
        before += share
    return levels


def _null_p_values(looks: Sequence[int], samples: int) -> np.ndarray:
    """(paths, looks): of t tests of one normal distribution, each look with the values of the looks before it."""
    from scipy.special import stdtr

    draws = np.random.Generator(np.random.PCG64(0))
    total, squares = np.zeros((2, samples, _PATHS))
    found, before = np.empty((_PATHS, len(looks))), 0
    for k, n in enumerate(looks):
        for _ in range(n - before):
            drawn = draws.standard_normal((samples, _PATHS))
            total += drawn
            squares += drawn**2
        before = n
        errors = (squares - total**2 / n) / (n - 1) / n  # squared standard errors of the means
        df = (n - 1) * errors.sum(0) ** 2 / (errors**2).sum(0)  # Welch–Satterthwaite; n − 1 for one sample
        means = total[0] / n - (total[1] / n if samples == 2 else 0.0)
        found[:, k] = 2 * stdtr(df, -np.abs(means) / np.sqrt(errors.sum(0)))
    return found
