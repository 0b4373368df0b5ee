"""How many seeds a study needs, and the rate of false verdicts of one that is looked at more than once."""

import math

import numpy as np
import pytest
from scipy import stats

from aigc_jax.core.errors import UserError
from aigc_jax.studies import power, statistics


def test_power_is_that_of_the_tables():
    # Cohen (1988), table 2.4.1: d = 0.5 at 80 % takes 64 a group, 0.8 takes 26, 0.2 takes 393; of one sample 34.
    assert [power.seeds_needed(d, 1.0) for d in (0.2, 0.5, 0.8)] == [394, 64, 26]
    assert power.seeds_needed(0.5, 1.0, samples=1) == 34
    assert power.power(0.5, 1.0, 64) == pytest.approx(0.8014596, abs=1e-6)
    assert power.power(0.0, 1.0, 5) == pytest.approx(0.05) and power.power(1.0, 1.0, 1) == 0.0
    assert power.power(1e6, 1.0, 2) == pytest.approx(1.0) and power.power(1.0, 0.0, 2) == 1.0


def test_power_is_that_of_simulated_t_tests():
    """Within 4 standard deviations of 4000 tests."""
    draws = np.random.default_rng(0)
    a, b = draws.normal(1.5, 1.0, (4000, 5)), draws.normal(0.0, 1.0, (4000, 5))
    for samples, test in ((1, stats.ttest_1samp(a, 0, axis=1)), (2, stats.ttest_ind(a, b, axis=1))):
        expected = power.power(1.5, 1.0, 5, samples)
        assert (test.pvalue < 0.05).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000))


def test_what_seeds_resolve_is_the_inverse_of_what_they_need():
    for n in (2, 3, 5, 20, 64):
        for samples in (1, 2):
            d = power.resolvable(0.7, n, samples)
            assert power.power(d, 0.7, n, samples) == pytest.approx(0.8, abs=1e-6)
            assert power.seeds_needed(d * (1 + 1e-9), 0.7, samples) == n
    assert math.isnan(power.resolvable(1.0, 1)) and power.seeds_needed(0.0, 1.0) == math.inf
    assert power.seeds_needed(1.0, 0.0) == 2


def test_the_spread_of_few_seeds_is_known_roughly():
    low, high = power.sd_limits(1.0, 2)
    assert (low, high) == pytest.approx((0.5207, 6.2848), abs=1e-3)  # √(2 / χ²), of three seeds
    draws = np.random.default_rng(1)
    limits = np.array([power.sd_limits(draws.normal(0, 2, 5).std(ddof=1), 4) for _ in range(1000)])
    assert 0.92 <= ((limits[:, 0] <= 2) & (2 <= limits[:, 1])).mean() <= 0.98
    assert power.pooled_sd([0, 2], [0, 4]) == pytest.approx(math.sqrt((2 + 8) / 2))


@pytest.mark.parametrize(
    'rule, published',
    [
        # Bounds for five equal looks at a two-sided 5 %, of the programs of Reboussin et al. (2000).
        ('obrien_fleming', (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ('pocock', (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_levels_of_many_seeds_are_the_published_bounds(rule, published):
    levels = power.look_levels([40, 80, 120, 160, 200], 200, rule=rule)
    assert stats.norm.isf(np.array(levels) / 2) == pytest.approx(published, abs=0.05)
    assert power.spent(1.0, 0.05, rule) == pytest.approx(0.05) and power.spent(0.2, 0.05, rule) < 0.03


@pytest.mark.parametrize('samples', [1, 2])
@pytest.mark.parametrize('rule', ['obrien_fleming', 'pocock'])
def test_a_study_that_stops_at_its_verdict_is_seldom_wrong(rule, samples):
    """At most 5 % of studies with up to 12 seeds say better or worse where there is no difference; the same looks at
    5 % each are wrong three times as often. 4 standard deviations of 10,000 studies are 0.9 %."""
    looks, studies = range(3, 13), 10_000
    levels = power.look_levels(looks, 12, samples, rule=rule)
    draws = np.random.default_rng(2)
    a, b = draws.normal(size=(2, studies, 12))
    wrong, naive = np.zeros((2, studies), bool)
    for n, level in zip(looks, levels, strict=True):
        test = stats.ttest_1samp(a[:, :n], 0, axis=1) if samples == 1 else stats.ttest_ind(
            a[:, :n], b[:, :n], axis=1, equal_var=False)  # fmt: skip
        wrong |= test.pvalue < level
        naive |= test.pvalue < 0.05
    assert 0.038 <= wrong.mean() <= 0.059 and naive.mean() > 0.12


def test_the_interval_of_a_look_gives_the_verdict_of_its_level():
    """`mean` and `verdict` at the levels of the looks: 2.5 % each of studies at an edge of the region are called
    reproduced or worse. 4 standard deviations of 1000 studies are 2 %."""
    looks = (3, 5, 8)
    levels, draws, found = power.look_levels(looks, 8, rule='pocock'), np.random.default_rng(3), []
    for _ in range(1000):
        values = draws.normal(1.0, 0.2, 8)
        for n, level in zip(looks, levels, strict=True):
            said = statistics.verdict(statistics.mean(values[:n], level), (-1.0, 1.0), 'min')
            if said != 'undecided':
                break
        found.append(said)
    assert 0.005 <= found.count('reproduced') / 1000 <= 0.045 and 0.005 <= found.count('worse') / 1000 <= 0.045


def test_looks_that_are_none_are_refused():
    for looks, most in (((), 5), ((3, 3), 5), ((3, 6), 5), ((1, 2), 5)):
        with pytest.raises(UserError, match='they rise'):
            power.look_levels(looks, most)
    with pytest.raises(UserError, match='obrien_fleming or pocock'):
        power.look_levels([3, 5], 5, rule='haybittle')
