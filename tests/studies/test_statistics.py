"""Estimates, tests and verdicts over seeds, against rliable, scipy, closed forms and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from aigc_jax.core.errors import UserError
from aigc_jax.studies import statistics

A = (6.1, 5.9, 6.4, 6.0, 7.2, 5.8, 6.3, 6.6)
B = (6.9, 6.2, 6.4, 7.1, 7.3, 6.8, 5.9)
# rliable 1.2.0 with arch 7.2.0: metrics.aggregate_iqm and metrics.probability_of_improvement of the columns A and B;
# library.get_interval_estimates with reps=50000 and random_state=RandomState(0).
RLIABLE = {
    'iqm': {'A': (6.2, 5.95, 6.6), 'B': (6.68, 6.24, 7.06)},
    'mean': {'A': (6.2875, 6.025, 6.6125), 'B': (6.657142857142857, 6.3, 7.0)},
    'improvement': 0.2857142857142857,
}


def row_of(row):
    return row['value'], row['low'], row['high']


@pytest.mark.parametrize('name, statistic', [('iqm', statistics.iqm), ('mean', np.mean)])
@pytest.mark.parametrize('arm, values', [('A', A), ('B', B)])
def test_estimates_are_those_of_rliable(name, statistic, arm, values):
    # The ends of two bootstraps of some thousand draws differ by a step of the distribution or two.
    value, *limits = row_of(statistics.bootstrap(values, statistic))
    assert value == pytest.approx(RLIABLE[name][arm][0], rel=1e-12)
    assert limits == pytest.approx(RLIABLE[name][arm][1:], abs=0.04)


def test_the_probability_of_improvement_is_that_of_rliable():
    value = statistics.probability_of_improvement(A, B, 'max')['value']
    assert value == pytest.approx(RLIABLE['improvement'], rel=1e-12)
    assert statistics.probability_of_improvement(A, B, 'min')['value'] == pytest.approx(1 - value)
    assert statistics.probability_of_improvement(A, A, 'max')['value'] == 0.5


def test_the_interval_of_the_probability_of_improvement_is_one_where_each_seed_is_better():
    """Newcombe's: at each end the value is z standard deviations away, as they are at that end."""
    for a, b in ((A, B), ((1, 2, 3), (4, 5, 6)), ((1, 2, 7), (4, 5, 6, 6, 3))):
        value, low, high = row_of(statistics.probability_of_improvement(a, b, 'max', 0.1))
        m, n = len(a), len(b)
        for end in {low, high} - {0.0, 1.0}:
            others = ((m + n) / 2 - 1) * ((1 - end) / (2 - end) + end / (1 + end))
            sd = math.sqrt(end * (1 - end) * (1 + others) / (m * n))
            assert abs(value - end) == pytest.approx(stats.norm.ppf(0.95) * sd, rel=1e-6)
        assert low <= value <= high and high - low > 0.3
        turned = row_of(statistics.probability_of_improvement(a, b, 'min', 0.1))
        assert turned == pytest.approx((1 - value, 1 - high, 1 - low), abs=1e-12)
    # Exact, by all 20 orders of 3 and 3 seeds: p = 0.1 of no difference, which an interval of 95 % then holds nearly.
    found = row_of(statistics.probability_of_improvement((4, 5, 6), (1, 2, 3), 'max'))
    assert found == pytest.approx((1, 0.501, 1), abs=1e-3)


def test_rliable_itself_says_the_same():
    metrics = pytest.importorskip('rliable.metrics')
    draws = np.random.default_rng(0)
    for n, m in ((3, 3), (4, 7), (10, 10), (16, 5)):
        a, b = draws.normal(size=n).round(1), draws.normal(size=m).round(1)
        assert statistics.iqm(a) == pytest.approx(metrics.aggregate_iqm(a[:, None]), abs=1e-12)
        theirs = metrics.probability_of_improvement(a[:, None], b[:, None])
        assert statistics.probability_of_improvement(a, b, 'max')['value'] == pytest.approx(theirs, abs=1e-12)


def test_means_and_differences_have_the_intervals_of_t_tests():
    for alpha in (0.05, 0.003):
        low, high = stats.ttest_1samp(A, 0).confidence_interval(1 - alpha)
        row = statistics.mean(A, alpha)
        assert (row['value'] - row['ci'], row['value'] + row['ci']) == pytest.approx((low, high), rel=1e-9)
        for paired, test in ((False, stats.ttest_ind(A, B, equal_var=False)), (True, stats.ttest_rel(A[:7], B))):
            found = statistics.difference(A[:7] if paired else A, B, paired=paired, alpha=alpha)
            low, high = test.confidence_interval(1 - alpha)
            row = found.row
            assert found.p == pytest.approx(test.pvalue, rel=1e-9)
            assert (row['value'] - row['ci'], row['value'] + row['ci']) == pytest.approx((low, high), rel=1e-9)
            assert found.test == (statistics.PAIRED if paired else statistics.WELCH)


def test_one_seed_has_no_interval():
    assert math.isnan(statistics.mean([1.0])['ci']) and math.isnan(statistics.bootstrap([1.0])['low'])
    found = statistics.difference([1.0], [2.0, 3.0])
    assert found.row['value'] == -1.5 and found.test == '' and math.isnan(found.p)
    assert math.isnan(statistics.effect_size([1.0], [2.0])['value'])


def test_diverged_seeds_are_the_worst_and_are_never_dropped():
    lost = [*A, math.nan]
    assert statistics.diverged_as_worst(lost, 'min')[-1] == math.inf
    assert statistics.diverged_as_worst([1.0, math.inf], 'max').tolist() == [1.0, -math.inf]
    assert statistics.mean(statistics.diverged_as_worst(lost, 'min'))['value'] == math.inf
    one, most = (statistics.diverged_as_worst([1, 2, 3, *more], 'min') for more in ([math.nan], [math.nan] * 3))
    assert statistics.iqm(one) == 2.5 and statistics.iqm(most) == math.inf
    assert statistics.bootstrap(one, statistics.iqm)['high'] == math.inf
    # Against B each diverged seed loses to all of its seeds.
    before, after = (statistics.probability_of_improvement(v, B, 'min')['value'] for v in (A, lost))
    assert after == pytest.approx(before * len(A) / len(lost))
    assert statistics.difference(A, B).test == statistics.WELCH
    assert statistics.difference(lost, B).test == ''  # nobody said which side is the worst
    with pytest.raises(UserError, match='min or max'):
        statistics.diverged_as_worst(lost, 'least')


def test_ranks_are_compared_where_seeds_diverged_or_have_no_spread():
    # All permutations by hand: 3 of 3 worse than 3 of 3 has p = 2 / C(6, 3).
    nan = math.nan
    assert statistics.difference([1, 2, 3], [nan, nan, nan], 'min').p == pytest.approx(0.1)
    assert statistics.difference([8, 8, 8, 8], [7, 7, 7, 7]).p == pytest.approx(2 / math.comb(8, 4))
    assert statistics.difference([1, 2, nan], [1, 2, nan], 'min', paired=True).p == 1.0
    # Of 6 pairs all on one side: 2 / 2⁶.
    found = statistics.difference([1, 2, 3, 4, 5, 6], [2, 3, 4, 6, 8, nan], 'min', paired=True)
    assert found.test == statistics.SIGNED_RANKS and found.p == pytest.approx(2 / 2**6)
    assert statistics.arm_verdict(found, [1, 2, 3, 4, 5, 6], [2, 3, 4, 6, 8, nan], 'min') == 'better'
    # One seed of ten that diverged decides nothing.
    ten = np.arange(10.0)
    found = statistics.difference(ten, [*ten[1:], nan], 'min')
    assert found.row['value'] == -math.inf and statistics.arm_verdict(found, ten, [*ten[1:], nan], 'min') == 'undecided'


def test_the_verdict_on_arms_has_the_side_of_the_better():
    found = statistics.difference([1, 2, 3], [11, 12, 14])
    assert [statistics.arm_verdict(found, 0, 0, better) for better in ('min', 'max')] == ['better', 'worse']
    assert statistics.arm_verdict(statistics.difference([1, 2, 3], [2, 1, 3.5]), 0, 0, 'min') == 'undecided'


def test_the_effect_size_is_hedges_g_with_the_noncentral_interval():
    # Hedges & Olkin (1985): J(df) is near 1 − 3 / (4 df − 1).
    pooled = math.sqrt((7 * np.var(A, ddof=1) + 6 * np.var(B, ddof=1)) / 13)
    d = (np.mean(A) - np.mean(B)) / pooled
    row = statistics.effect_size(A, B)
    assert row['value'] == pytest.approx(d * (1 - 3 / (4 * 13 - 1)), rel=1e-3)
    scale, t = math.sqrt(1 / 8 + 1 / 7), stats.ttest_ind(A, B).statistic
    unbiased = row['value'] / d
    for limit, quantile in ((row['low'], 0.975), (row['high'], 0.025)):
        assert stats.nct.cdf(t, 13, limit / scale / unbiased) == pytest.approx(quantile, abs=1e-6)
    between = np.subtract(A[:7], B)
    paired = statistics.effect_size(A[:7], B, paired=True)
    assert paired['value'] == pytest.approx(between.mean() / between.std(ddof=1) * (1 - 3 / (4 * 6 - 1)), rel=1e-2)
    far = statistics.effect_size([0, 1, 2], [1000, 1001, 1002])
    assert far['low'] < far['value'] < far['high'] < 0
    assert math.isnan(statistics.effect_size([1, 1], [2, 2])['value'])


def test_intervals_cover_as_often_as_they_say():
    """95 % over 1000 experiments, ± 4 standard deviations of that share; the bootstrap's docstring has its own."""
    draws, t, g, pairs = np.random.default_rng(1), 0, 0, 0
    for _ in range(1000):
        a, b = draws.normal(1.0, 1.0, 5), draws.normal(0.0, 1.0, 5)
        row = statistics.mean(a)
        t += abs(row['value'] - 1) <= row['ci']
        row = statistics.effect_size(a, b)
        g += row['low'] <= 1 <= row['high']
        row = statistics.difference(a, 3 * b).row
        pairs += abs(row['value'] - 1) <= row['ci']
    # The limits of g are scaled by J, which makes the interval a little shorter.
    assert 922 <= t <= 978 and 910 <= g <= 978 and 915 <= pairs <= 978


def test_the_bootstrap_of_few_seeds_covers_too_seldom():
    draws, n = np.random.default_rng(2), 5
    covered = 0
    for _ in range(200):
        row = statistics.bootstrap(draws.normal(size=n))
        covered += row['low'] <= 0 <= row['high']
    assert 0.74 <= covered / 200 <= 0.92  # 84 % in the docstring


def test_a_paired_bootstrap_finds_what_examples_share():
    draws = np.random.default_rng(3)
    hard, tokens = draws.normal(3.0, 2.0, 400), draws.integers(5, 50, 400)
    a, b = (tokens * (hard + shift + draws.normal(0, 0.1, 400)) for shift in (0.0, 0.03))
    found = statistics.paired_bootstrap(a, b, tokens)
    assert found.row['value'] == pytest.approx((a - b).sum() / tokens.sum()) and found.row['high'] < 0
    assert found.p < 0.01 and found.row['n'] == 400
    # The error of a ratio of sums (Cochran), which the bootstrap has to find again.
    between = a - b - found.row['value'] * tokens
    error = between.std(ddof=1) / (math.sqrt(400) * tokens.mean())
    assert found.row['high'] - found.row['low'] == pytest.approx(2 * 1.96 * error, rel=0.1)
    same = statistics.paired_bootstrap(a, a[draws.permutation(400)])
    assert same.p > 0.5 and math.isnan(statistics.paired_bootstrap([1.0], [2.0]).p)


def test_almost_stochastic_order_has_its_closed_forms():
    order = statistics.almost_stochastic_order
    assert order([4, 5, 6], [1, 2, 3], 'max')['value'] == 0 and order([4, 5, 6], [1, 2, 3], 'min')['value'] == 1
    # Quantile differences −1 and 2 on a half each; with two and three values on sixths: −1, (1, 1), 3 on 2, 1 + 1, 2.
    assert order([0, 4], [1, 2], 'max')['value'] == pytest.approx(1 / 5)
    assert order([0, 4], [1, 3, 1], 'max')['value'] == pytest.approx((2 + 1) / (2 + 1 + 9 + 2))
    # N(μ, σ²) against N(0, 1), by quadrature over the quantiles (del Barrio et al. 2018, section 4).
    q = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    worse = q - (0.5 + 2 * q)
    exact = (np.maximum(worse, 0) ** 2).mean() / (worse**2).mean()
    draws = np.random.default_rng(4)
    row = order(draws.normal(0.5, 2, 500), draws.normal(0, 1, 500), 'max')
    assert row['value'] == pytest.approx(exact, abs=0.08) and row['value'] < row['high']
    a = [0.3, 1.2, 2.0, 2.6]
    assert order(a, A, 'max')['value'] == pytest.approx(1 - order(A, a, 'max')['value'])
    assert order(a, a, 'min')['value'] == 0.5  # neither is better
    # The limit of a worst value that grows without bound.
    for far, given in ((1e9, math.nan), (math.nan, 1e9)):
        values = [order([1, 2, v], [1.5, 3, 4, 5], 'min')['value'] for v in (far, given)]
        assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_verdicts_against_a_published_value():
    region = statistics.published_region(10.0, 0.5, sd=0.4, n=4)
    own = stats.t.ppf(0.975, 3) * 0.4 / 2
    assert region == pytest.approx((9.5 - own, 10.5 + own))
    assert statistics.published_region(10.0, 0.5) == (9.5, 10.5)
    assert statistics.published_region(10.0, 0.5, sd=0.2) == pytest.approx((9.3, 10.7))
    said = lambda value, ci, better='min': statistics.verdict({'value': value, 'ci': ci}, (9.5, 10.5), better)
    assert said(10.2, 0.2) == said(9.7, 0.2) == 'reproduced'
    assert said(10.4, 0.2) == said(10.0, 3.0) == said(9.4, 0.2) == said(10.0, math.nan) == 'undecided'
    assert said(11.0, 0.2) == said(9.0, 0.2, 'max') == 'worse'
    assert said(9.0, 0.2) == said(11.0, 0.2, 'max') == 'better'
    # A mean over seeds of which one diverged.
    lost = [10.0, 10.1, math.nan]
    for better in ('min', 'max'):
        row = statistics.mean(statistics.diverged_as_worst(lost, better))
        assert statistics.verdict(row, (9.5, 10.5), better) == 'worse'
    for wrong in (dict(tolerance=-1.0), dict(tolerance=0.5, sd=1.0, n=1)):
        with pytest.raises(UserError, match='no interval'):
            statistics.published_region(10.0, **wrong)


def test_a_true_value_at_the_edge_is_seldom_called_reproduced_or_worse():
    """alpha / 2 each, over 2000 studies of 5 seeds, ± 4 standard deviations; without seeds' spread it would be half."""
    draws, found = np.random.default_rng(5), []
    for _ in range(2000):
        found.append(statistics.verdict(statistics.mean(draws.normal(10.5, 0.1, 5)), (9.5, 10.5), 'min'))
    assert 0.011 <= found.count('reproduced') / 2000 <= 0.039 and 0.011 <= found.count('worse') / 2000 <= 0.039
    assert 'better' not in found
