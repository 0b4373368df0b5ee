import math

import numpy as np
import pytest
from scipy import stats

from aigc_jax.studies import findings, verdicts
from aigc_jax.studies import report_words as words
from aigc_jax.studies.claims import Claim, Published, Study, Versus
from aigc_jax.studies.findings import Seed
from aigc_jax.studies.verdicts import finding, looks, next_look

BASE = dict(claim='it holds', config='own.py', metric='model/nll')
FIND = 'have a power of 80 %% for a difference of %s'
ABOUT_40 = Published(40.0, 'table 1', tolerance=1.0)


def claim(better='min', expected=ABOUT_40, **own) -> Claim:
    return Claim('a', better=better, expected=expected, **BASE, **own)


def seeds(*values: float, first: int = 0) -> dict[int, Seed]:
    return {first + k: Seed(value, f'run/seed-{k}', 0.5) for k, value in enumerate(values)}


def found(one: Claim, *values: float, other=None, n: int | None = None, alpha: float | None = None):
    others = [Claim(name, better=one.better, **BASE) for name in one.others or 'b']
    study = Study('t', [one, *others], seeds=n or len(values))
    return finding(study, one, looks(study, one, alpha), seeds(*values), other)


@pytest.mark.parametrize(
    'better, values, verdict',
    [
        ('min', (40.1, 40.0, 39.9), findings.REPRODUCED),
        ('min', (37.1, 37.0, 36.9), findings.BETTER),
        ('min', (43.1, 43.0, 42.9), findings.WORSE),
        ('max', (37.1, 37.0, 36.9), findings.WORSE),
        ('max', (43.1, 43.0, 42.9), findings.BETTER),
        ('min', (39.0, 40.0, 41.0), findings.UNDECIDED),
        ('min', (40.0,), findings.UNDECIDED),
        ('min', (40.0, 40.0, math.nan), findings.WORSE),
        ('max', (40.0, 40.0, math.nan), findings.WORSE),
    ],
)
def test_the_interval_is_held_against_the_published_region(better, values, verdict):
    assert found(claim(better), *values).verdict == verdict


def test_the_row_is_students_interval_and_a_diverged_seed_is_told():
    values = 40.3, 39.5, 40.6
    row = found(claim(), *values).row
    interval = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (row['value'] - row['ci'], row['value'] + row['ci']) == pytest.approx(interval, rel=1e-9)
    lost = found(claim(), *values, math.nan)
    assert lost.row['value'] == pytest.approx(np.mean(values)) and lost.row['diverged'] == 1
    assert math.isinf(lost.bootstrap['value']) and lost.words == ''


def test_an_undecided_claim_says_how_many_seeds_it_needs():
    undecided = found(claim(), 39.2, 40.0, 40.8)
    # The mean is in the middle of the region: 1 to either edge, at a standard deviation of 0.8.
    assert undecided.words.startswith(f'3 seeds {FIND % 2.6}; about 5 more decide it, 2.5 h (')
    decided = found(claim(), 40.1, 40.0, 39.9)
    assert decided.words == f'3 seeds {FIND % 0.33}'
    assert found(claim(), 40.0).words == 'one seed shows no spread between seeds'


def test_a_share_has_wilsons_interval():
    share = found(claim('max', Published(0.5, 'table 1', 0.05), reach=7.0), 1.0, 1.0, 1.0, 0.0)
    wilson = stats.binomtest(3, 4).proportion_ci(method='wilson')
    assert (share.row['low'], share.row['high']) == (wilson.low, wilson.high) and share.row['value'] == 0.75
    assert share.verdict == findings.UNDECIDED and not share.bootstrap


def test_first_steps_are_summed_up_by_their_median_and_a_seed_that_never_came_is_the_slowest():
    steps = found(claim('min', None, reach=7.0, first_step=True), 100.0, 300.0, math.nan)
    assert steps.row['value'] == 300 and math.isinf(steps.row['high']) and steps.verdict == findings.MEASURED


def test_two_claims_are_compared_by_pairs_of_seeds():
    ours, theirs = (10.1, 12.0, 14.2, 16.1), (10.9, 13.1, 15.0, 17.2)
    better = found(claim('min', Versus('b')), *ours, other=seeds(*theirs))
    assert better.order['value'] == 0 and better.improvement['value'] > 0.5
    assert better.verdict == findings.REPRODUCED and better.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert found(claim('max', Versus('b')), *ours, other=seeds(*theirs)).verdict == findings.WORSE
    assert found(claim('min', Versus('b')), *ours, other=seeds(*ours[::-1])).verdict == findings.UNDECIDED


def test_a_share_of_a_gain_is_compared_seed_by_seed():
    """Of a gain of 1 nat over what is drawn: 0.97 of it is more than 95 %, and 0.90 is less."""
    drawn, whole = np.array([5.0, 5.2, 4.9, 5.1]), np.array([4.0, 4.2, 3.9, 4.1])
    noise = np.array([0.001, -0.002, 0.002, 0.0])
    one = claim('min', Versus('whole', share=0.95, over='drawn'))
    other = verdicts.compared(one, seeds(*whole), seeds(*drawn))
    assert [seed.value for seed in other.values()] == pytest.approx([4.05, 4.25, 3.95, 4.15])
    most, less = (found(one, *(drawn - share + noise), other=other) for share in (0.97, 0.90))
    assert most.verdict == findings.REPRODUCED and most.difference['value'] == pytest.approx(-0.02, abs=1e-3)
    assert less.verdict == findings.WORSE and less.difference['value'] == pytest.approx(0.05, abs=1e-3)
    assert list(verdicts.compared(one, seeds(*whole), seeds(5.0))) == [0]  # where all three are there
    assert words.expected(most).startswith('better than 95 % of the gain of whole over drawn: -0.0197')


def test_two_shares_are_compared_by_fishers_test():
    one = claim('max', Versus('b'), reach=7.0)
    ours, theirs = [1.0] * 9 + [0.0], [1.0] * 2 + [0.0] * 8
    share = found(one, *ours, other=seeds(*theirs))
    assert share.p == pytest.approx(stats.fisher_exact([[9, 1], [2, 8]]).pvalue) and share.test == verdicts.FISHER
    assert share.verdict == findings.REPRODUCED
    assert found(one, 1.0, 1.0, other=seeds(0.0, 0.0)).verdict == findings.UNDECIDED


def test_what_is_not_there_is_missing():
    some = found(claim(), 40.0, 40.1, n=3)
    assert some.verdict == findings.MISSING and some.wanted == 3 and list(some.seeds) == [0, 1]
    assert some.row['value'] == pytest.approx(40.05)
    assert some.words == f'3 seeds {FIND % 0.23}, by the spread of the 2 that are there'
    none = found(claim(), n=3)
    assert none.verdict == findings.MISSING and none.row == {} and none.words == ''
    before = found(claim(expected=Published(40.0, 'table 1', sd=0.4, n=10)), n=3)
    assert before.words == f'3 seeds {FIND % 1.3}, by the published standard deviation'
    alone = found(claim('min', Versus('b')), 1.0, 2.0, other=seeds(1.0), n=2)
    assert alone.verdict == findings.MISSING


def test_looks_follow_each_other_until_the_verdict_stands():
    study, one = Study('t', [claim()], seeds=3), claim()
    all_looks = looks(study, one, 0.05)
    assert [n for n, _ in all_looks] == [3, 5, 8, 12] and all(0 < level < 0.05 for _, level in all_looks)
    assert [n for n, _ in looks(study, one, 0.05, replicas=4)] == [4, 8, 12]
    assert looks(study, one, None) == [(3, 0.05)] == looks(study, claim(expected=None), 0.01)
    values = [39.0, 40.0, 41.0, 40.2, 39.8, 40.0, 40.1, 39.9]

    def at(n):
        return finding(study, one, all_looks, seeds(*values[:n]), None)

    assert next_look(all_looks, at(0)) == 3 and at(2).verdict == findings.MISSING
    assert at(3).verdict == findings.UNDECIDED and next_look(all_looks, at(3)) == 5
    assert at(4) == at(3)  # the fourth seed alone is no look
    assert at(8).verdict == findings.REPRODUCED and at(8).wanted == 8 and next_look(all_looks, at(8)) is None
    later = finding(study, one, all_looks, seeds(*values, 90.0, 90.0, 90.0, 90.0), None)
    assert later == at(8)  # what came after the verdict does not change it


def test_all_looks_together_give_few_false_verdicts():
    """Arms that do not differ, looked at with 3, 5, 8 and 12 seeds; alpha of each side is half of it."""
    one = claim('min', Versus('b'))
    study, alpha, studies = Study('t', [one, Claim('b', better='min', **BASE)], seeds=3), 0.05, 3000
    all_looks = looks(study, one, alpha)
    draws = np.random.default_rng(0).standard_normal((studies, 2, all_looks[-1][0]))
    stopped = lambda a, b, n, level: verdicts.judged(one, a[:n], b[:n], level).verdict != findings.UNDECIDED
    wrong = sum(any(stopped(a, b, n, level) for n, level in all_looks) for a, b in draws)
    rate, error = wrong / studies, math.sqrt(alpha * (1 - alpha) / studies)
    print(f'false verdicts: {rate:.4f}')
    assert alpha / 2 < rate < alpha + 3 * error
