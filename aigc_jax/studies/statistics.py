"""Statistics over seeds: estimates with intervals, tests of a difference, verdicts.

`values`, `a` and `b` are one metric of several independent seeds, (n,). better: 'min' or 'max', whether the least or
the greatest value is the best. A value that is not finite is that of a seed that diverged. It counts as the worst:
`diverged_as_worst` makes it ∞ or −∞, which ranks, quantiles and verdicts understand. Rows are those of
metrics/intervals.py. alpha: 1 − alpha is the level of the interval. Random draws are always the same.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.metrics import intervals
from aigc_jax.metrics.intervals import MOST_HELD, RESAMPLES, Measurement
from aigc_jax.studies.power import noncentral_t_cdf

PAIRED, WELCH, RANKS, SIGNED_RANKS = "Student's paired t", "Welch's t", 'Mann–Whitney', 'Wilcoxon signed-rank'


class Difference(NamedTuple):
    """a − b. row: its mean with an interval, which is missing where the values have none. p: two-sided, of no
    difference; nan where the values are too few for a test. test: its name; '' where there is none."""

    row: Measurement
    p: float
    test: str


def diverged_as_worst(values, better: str) -> np.ndarray:
    """(n,) float64, where what is not finite is ∞ for better='min' and −∞ for better='max'. Raises UserError."""
    if better not in ('min', 'max'):
        raise UserError(f'better: {better!r}; it is min or max')
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, math.inf if better == 'min' else -math.inf)


def mean(values, alpha: float = 0.05) -> Measurement:
    """The mean with Student's interval. ci is nan for n < 2, and where a value is not finite."""
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64)
    if not len(values):
        return {'value': math.nan, 'ci': math.nan, 'n': 0, 'over': 'seeds'}
    with np.errstate(invalid='ignore'):  # ∞ − ∞ of diverged seeds
        row = intervals.ratio(values, over='seeds')
    if len(values) > 1 and alpha != 0.05:  # the row's interval is of 95 %
        row['ci'] *= float(stdtrit(len(values) - 1, 1 - alpha / 2)) / intervals.student_95(len(values))
    return row


def iqm(values, axis: int = -1) -> np.ndarray:
    """The interquartile mean: that of the values without the lowest and the highest quarter, each floor(n / 4).

    Agarwal et al. (2021, arXiv:2108.13264, section 4.3). It is infinite where more than a quarter have diverged.
    """
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def bootstrap(values, statistic: Callable = np.mean, alpha: float = 0.05) -> Measurement:
    """statistic(values, axis=-1) with the percentile bootstrap's interval, which rliable reports (Agarwal et al. 2021,
    section 4.2). Few seeds have too short an interval: of 3, 5 and 10 normal values 75, 84 and 90 % of the intervals
    of 95 % cover the mean, and those of `mean` 95 %."""
    values = np.asarray(values, np.float64)
    value, n = float(statistic(values, axis=-1)), len(values)
    if n < 2:
        return {'value': value, 'low': math.nan, 'high': math.nan, 'n': n, 'over': 'seeds'}
    drawn = _resampled((values,), statistic, n)
    return {'value': value, **_middle(drawn, alpha), 'n': n, 'over': 'seeds'}


def probability_of_improvement(a, b, better: str, alpha: float = 0.05) -> Measurement:
    """P(a seed of a is better than one of b) + ½ P(they are equal), the Mann–Whitney statistic over n_a n_b (Agarwal et
    al. 2021, section 4.3, of one task). Its interval is Newcombe's (2006, part 2, method 5): a score interval, where
    the bootstrap has one of no length wherever each seed of one side is better than each of the other. Of 3, 5 and 10
    normal values of each side, apart by 0 to 2 standard deviations, at least 90, 93 and 95 % of those of 95 % cover
    it."""
    a, b = diverged_as_worst(a, better), diverged_as_worst(b, better)
    sign = 1 if better == 'max' else -1
    ours, theirs = sign * a[:, None], sign * b[None, :]
    value, n = float(((ours > theirs) + 0.5 * (ours == theirs)).mean()), min(len(a), len(b))
    low = high = math.nan
    if n > 1:
        least = lambda value: _least_probability(value, len(a), len(b), alpha)
        low, high = least(value), 1 - least(1 - value)
    return {'value': value, 'low': low, 'high': high, 'n': n, 'over': 'seeds'}


def _least_probability(value: float, m: int, n: int, alpha: float) -> float:
    """The lower end: the least θ whose own standard deviation `value` is at most z times away from."""
    from scipy import optimize, stats

    z, others = stats.norm.ppf(1 - alpha / 2), (m + n) / 2 - 1
    variance = lambda t: t * (1 - t) * (1 + others * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
    apart = lambda t: (value - t) ** 2 - z**2 * variance(t)
    # Of 1 the upper end of all is a root, too; just below it `apart` is negative.
    return float(optimize.brentq(apart, 0, min(value, 1 - 1e-9))) if value else 0.0


def difference(a, b, better: str = '', paired: bool = False, alpha: float = 0.05) -> Difference:
    """a − b. paired: a[i] and b[i] belong to one seed.

    Student's paired t, or Welch's (1947), for finite values. Ranks are compared instead where a seed has diverged,
    which wants `better`, and where neither side has any spread, of which a t test would make p = 0: Wilcoxon's
    signed-rank test (1945) or Mann and Whitney's (1947), by permutation, so that p is exact for few seeds and ties.
    """
    from scipy import stats

    a, b = (diverged_as_worst(v, better) if better else np.asarray(v, np.float64) for v in (a, b))
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    if not len(a) or not len(b):
        return Difference({'value': math.nan, 'ci': math.nan, 'n': 0, 'over': 'seeds'}, math.nan, '')
    if paired:
        between = _between(a, b)
        row, spread = mean(between, alpha), finite and len(a) > 1 and np.ptp(between) > 0
    else:
        with np.errstate(invalid='ignore'):
            row = {'value': float(a.mean() - b.mean()), 'ci': math.nan, 'n': min(len(a), len(b)), 'over': 'seeds'}
        spread = finite and min(len(a), len(b)) > 1 and np.ptp(a) + np.ptp(b) > 0
    if len(a) < 2 or len(b) < 2 or not (finite or better):
        return Difference(row | {'ci': math.nan}, math.nan, '')
    if not spread:
        return _by_ranks(a, b, row, paired)
    test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    if not paired:
        low, high = test.confidence_interval(1 - alpha)
        row['ci'] = float(high - low) / 2
    return Difference(row, float(test.pvalue), PAIRED if paired else WELCH)


def _by_ranks(a: np.ndarray, b: np.ndarray, row: Measurement, paired: bool) -> Difference:
    from scipy import stats

    row, method = row | {'ci': math.nan}, stats.PermutationMethod(n_resamples=RESAMPLES, rng=_generator())
    if not paired:
        return Difference(row, float(stats.mannwhitneyu(a, b, method=method).pvalue), RANKS)
    between = _between(a, b)
    if not between.any():
        return Difference(row, 1.0, SIGNED_RANKS)
    most = np.abs(between[np.isfinite(between)]).max(initial=0.0)
    between = np.where(np.isfinite(between), between, np.sign(between) * (most + 1))  # of the highest rank
    return Difference(row, float(stats.wilcoxon(between, method=method).pvalue), SIGNED_RANKS)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a − b; two seeds that both diverged do not differ."""
    with np.errstate(invalid='ignore'):
        return np.where(a == b, 0.0, a - b)


def effect_size(a, b, paired: bool = False, alpha: float = 0.05) -> Measurement:
    """Hedges' g: (mean a − mean b) over the standard deviation of one seed, pooled over both arms, without the bias of
    few seeds (Hedges 1981, eq. 6e). paired: over that of the differences.

    The interval inverts the noncentral t distribution (Cumming & Finch 2001), which holds for arms of equal variance.
    nan where there is no spread, or a value is not finite.
    """
    from scipy.special import gammaln

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, nothing = min(len(a), len(b)), {'value': math.nan, 'low': math.nan, 'high': math.nan}
    if n < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return {**nothing, 'n': n, 'over': 'seeds'}
    if paired:
        df, scale, spread = n - 1, 1 / math.sqrt(n), float((a - b).std(ddof=1))
    else:
        df, scale = len(a) + len(b) - 2, math.sqrt(1 / len(a) + 1 / len(b))
        spread = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / df)
    if spread == 0:
        return {**nothing, 'n': n, 'over': 'seeds'}
    t = float(a.mean() - b.mean()) / (spread * scale)
    unbiased = math.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / math.sqrt(df / 2) if df > 1 else 1.0
    low, high = (_noncentrality(t, df, q) * scale * unbiased for q in (1 - alpha / 2, alpha / 2))
    return {'value': t * scale * unbiased, 'low': low, 'high': high, 'n': n, 'over': 'seeds'}


def _noncentrality(t: float, df: int, quantile: float) -> float:
    """That of which t is the quantile."""
    from scipy.optimize import brentq

    reach = 10 * (1 + abs(t))
    return float(brentq(lambda nc: noncentral_t_cdf(t, df, nc) - quantile, t - reach, t + reach))


def paired_bootstrap(a, b, count=None, alpha: float = 0.05) -> Difference:
    """Σ(a − b) / Σ count over one test set that both were measured on; a, b: of n documents or examples, (n,).

    count: what each is over, such as its tokens; None: 1. The examples are resampled in pairs (Koehn 2004), interval
    by percentiles. p: the share of resamples that lie as far from the difference as that from 0 (Berg-Kirkpatrick et
    al. 2012, figure 1), two-sided. It says how the difference of these two models varies with the test set, and nothing
    of other seeds.
    """
    between = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    count = np.ones(len(between)) if count is None else np.asarray(count, np.float64)
    ratio = lambda total, count, axis=-1: total.sum(axis=axis) / count.sum(axis=axis)
    value, n = float(ratio(between, count)), len(between)
    if n < 2:
        return Difference({'value': value, 'ci': math.nan, 'n': n, 'over': 'examples'}, math.nan, '')
    drawn = _resampled((between, count), ratio, n, paired=True)
    p = (1 + np.count_nonzero(np.abs(drawn - value) >= abs(value))) / (1 + len(drawn))
    return Difference({'value': value, **_middle(drawn, alpha), 'n': n, 'over': 'examples'}, p, 'paired bootstrap')


def almost_stochastic_order(a, b, better: str, alpha: float = 0.05) -> Measurement:
    """How far a is from being better than b at every quantile: 0, it is; 1, b is. high < ½: a is almost stochastically
    better at level 1 − alpha.

    value: ε = ∫ of the squared differences of quantiles where b is better, over that of all of them (del Barrio et al.
    2018, arXiv:1705.01788, eq. 4). high: its upper limit ε + z σ, one-sided, σ by the bootstrap (their eq. 10; Dror et
    al. 2019, section 4). ½ where a and b are the same. Where seeds have diverged ε is its limit as their value goes to
    the worst. It is no test of level alpha for few seeds: of two arms of the same mean and other variances, where
    ε = ½, high < ½ in 19, 17 and 11 % of cases of 5, 10 and 50 seeds, instead of 5 %; of two arms that are the same in
    about 20 %. Dror et al.'s own bootstrap, of 1,000 draws, has 26, 22 and 12 %.
    """
    from scipy.stats import norm

    sign = 1 if better == 'max' else -1
    a, b = sign * diverged_as_worst(a, better), sign * diverged_as_worst(b, better)
    n, m = len(a), len(b)
    if not n or not m:
        return {'value': math.nan, 'low': math.nan, 'high': math.nan, 'n': 0, 'over': 'seeds'}
    # Both quantile functions are constant between these places.
    places = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))
    width, middle = np.diff(places), (places[1:] + places[:-1]) / 2

    def violation(a, b, axis=-1):
        a = np.sort(a, axis=-1)[..., (middle // m).astype(int)]
        b = np.sort(b, axis=-1)[..., (middle // n).astype(int)]
        worse = -_between(a, b)
        infinite = np.isinf(worse)
        worse = np.where(infinite.any(-1, keepdims=True), np.where(infinite, np.sign(worse), 0.0), worse)
        of_b, of_all = (width * np.maximum(worse, 0) ** 2).sum(-1), (width * worse**2).sum(-1)
        return np.where(of_all > 0, of_b / np.where(of_all > 0, of_all, 1), 0.5)

    value, high = float(violation(a, b)), 1.0
    if min(n, m) > 1:
        drawn = _resampled((a, b), violation, len(places))
        high = min(1.0, value + float(norm.isf(alpha)) * float(drawn.std()))
    return {'value': value, 'low': 0.0, 'high': high, 'n': min(n, m), 'over': 'seeds'}


def published_region(value: float, tolerance: float, sd: float = 0.0, n: int | None = None) -> tuple[float, float]:
    """(low, high): the values that are as good as the published one.

    Its own 95 % interval, Student's by the standard deviation `sd` over its `n` seeds, and `tolerance` on either side.
    n None: the publication does not say of how many seeds its ± is, and `sd` is taken for the interval.
    """
    own = sd if n is None else intervals.student_95(n) * sd / math.sqrt(n) if sd else 0.0
    if not (math.isfinite(own) and tolerance >= 0):
        raise UserError(f'published value {value}: tolerance {tolerance}, sd {sd} of n={n} give no interval')
    return value - tolerance - own, value + tolerance + own


def verdict(row: Measurement, region: tuple[float, float], better: str) -> str:
    """'reproduced': the interval of `row` lies in `region`; 'better', 'worse': it lies beyond; else 'undecided'.

    So each of the three is wrong with a probability of at most alpha / 2 for a true value at an edge of the region.
    For the difference of two arms the region is as wide as what does not matter. Of a mean over seeds of
    which one has diverged (±∞) the verdict is 'worse'. Of a row without an interval it is 'undecided'.
    """
    if math.isinf(row['value']):
        return 'worse' if (row['value'] > 0) == (better == 'min') else 'better'
    if (found := intervals.limits(row)) is None:
        return 'undecided'
    low, high = found
    if region[0] <= low and high <= region[1]:
        return 'reproduced'
    if low > region[1]:
        return 'better' if better == 'max' else 'worse'
    if high < region[0]:
        return 'better' if better == 'min' else 'worse'
    return 'undecided'


def arm_verdict(found: Difference, a, b, better: str, alpha: float = 0.05) -> str:
    """Of a against b: 'better' or 'worse' where p < alpha of `found`, their difference; else 'undecided'. By ranks the
    side is that of `probability_of_improvement`, so that one seed that diverged decides nothing alone."""
    if not found.p < alpha:
        return 'undecided'
    if found.test in (RANKS, SIGNED_RANKS):
        return 'better' if probability_of_improvement(a, b, better)['value'] > 0.5 else 'worse'
    return 'better' if (found.row['value'] > 0) == (better == 'max') else 'worse'


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


def _resampled(samples: tuple, statistic: Callable, held: int, paired: bool = False) -> np.ndarray:
    """The statistic of each resample. held: how many numbers one resample takes."""
    from scipy import stats

    with np.errstate(invalid='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore', stats.DegenerateDataWarning)  # of equal values, and of ∞ of diverged seeds
        found = stats.bootstrap(
            samples, statistic, paired=paired, method='percentile', n_resamples=RESAMPLES,
            batch=max(1, MOST_HELD // held), rng=_generator(),
        )  # fmt: skip
    return found.bootstrap_distribution


def _middle(drawn: np.ndarray, alpha: float) -> Measurement:
    """Quantiles without interpolation, which would make nan of ±∞."""
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2], method='closest_observation')
    return {'low': float(low), 'high': float(high)}
