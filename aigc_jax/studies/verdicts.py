"""From the values of seeds to the findings of a study: means, intervals, tests, verdicts, how many seeds are missing.

A study that may be looked at more than once (--until) spends alpha over its looks, by Pocock's rule in the form of Lan
and DeMets (1983): look k has intervals of 1 − level_k (power.look_levels). O'Brien and Fleming's rule would leave the
first looks at few seeds nothing: 1e-4 of 0.05 for 3 of 12. A finding is that of the first look whose verdict stands,
a function of the results alone.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax.metrics.intervals import Measurement
from aigc_jax.studies import power, statistics
from aigc_jax.studies.claims import Claim, Published, Study, Versus
from aigc_jax.studies.findings import MEASURED, REPRODUCED, UNDECIDED, Finding, Seed
from aigc_jax.studies.statistics import Difference

FISHER = "Fisher's exact"
_RULE = 'pocock'
_GROWTH = 1.5  # of the number of seeds from look to look
Look = tuple[int, float]  # the number of seeds, the level
Seeds = dict[int, Seed]


def looks(study: Study, claim: Claim, alpha: float | None, replicas: int = 1) -> list[Look]:
    """alpha: of --until, over all looks; None: one look at the study's. replicas: the seeds that a run has."""
    first = claim.seeds or study.seeds
    if alpha is None or claim.expected is None:
        return [(first, study.alpha)]
    whole = lambda n: math.ceil(n / replicas) * replicas
    most = max(first, whole(study.most_seeds or 4 * first))
    numbers = [whole(max(first, 2))]
    while numbers[-1] < most:
        numbers.append(min(most, whole(numbers[-1] * _GROWTH)))
    # Of one sample: of values, or of the differences of pairs.
    levels = power.look_levels(numbers, numbers[-1], 1, alpha, _RULE)
    return list(zip(numbers, levels, strict=True))


def finding(study: Study, claim: Claim, looked: Sequence[Look], seeds: Seeds, other: Seeds | None) -> Finding:
    """Of the first look whose verdict stands, else of the last one that all seeds are there for.

    seeds: {seed: Seed} of all that are there. other: what `compared` gives.
    """
    found = None
    for n, level in looked:
        wanted = range(study.first_seed, study.first_seed + n)
        if not all(seed in seeds and (other is None or seed in other) for seed in wanted):
            break
        found = {seed: seeds[seed] for seed in wanted}, other and {seed: other[seed] for seed in wanted}, level
        if judged(claim, _values(found[0]), other and _values(found[1]), level).verdict != UNDECIDED:
            break
    if found is not None:
        return _described(claim, *found)
    n, level = looked[0]
    ours = {seed: one for seed, one in sorted(seeds.items()) if seed < study.first_seed + n}
    row = _row(claim, _values(ours), level) if ours else {}
    return Finding(claim, n, level, ours, row, words=_power(claim, n, level, _values(ours)))


def compared(claim: Claim, than: Seeds | None = None, over: Seeds | None = None) -> Seeds | None:
    """What each seed of the claim is compared with, by the seeds of the claims that its Versus names; None: nothing."""
    if over is None:
        return than
    share = claim.expected.share
    return {
        seed: dataclasses.replace(one, value=over[seed].value + share * (one.value - over[seed].value))
        for seed, one in than.items() if seed in over
    }  # fmt: skip


def next_look(looked: Sequence[Look], found: Finding) -> int | None:
    """How many seeds the claim is to have next; None where nothing is left to be run for it."""
    if len(found.seeds) < found.wanted:
        return found.wanted
    if found.verdict != UNDECIDED:
        return None
    return next((n for n, _ in looked if n > found.wanted), None)


def _values(seeds: Seeds) -> np.ndarray:
    return np.array([one.value for one in seeds.values()], np.float64)


class Judgement(NamedTuple):
    """row: that the verdict is of. difference: to the other claim; None without one."""

    verdict: str
    row: Measurement
    difference: Difference | None = None


def judged(claim: Claim, values: np.ndarray, other: np.ndarray | None, level: float) -> Judgement:
    """values, other: of the same seeds, in one order; nan of one that diverged, which counts as the worst."""
    row = _row(claim, values, level)
    if isinstance(claim.expected, Published):
        if row.get('diverged'):
            row = statistics.mean(statistics.diverged_as_worst(values, claim.better), level)
        return Judgement(statistics.verdict(row, _region(claim.expected), claim.better), row)
    if isinstance(claim.expected, Versus):
        difference = _difference(claim, values, other, level)
        verdict = statistics.arm_verdict(difference, values, other, claim.better, level)
        return Judgement(REPRODUCED if verdict == 'better' else verdict, row, difference)
    return Judgement(MEASURED, row)


def _described(claim: Claim, seeds: Seeds, other: Seeds | None, level: float) -> Finding:
    values, against = _values(seeds), None if other is None else _values(other)
    found = judged(claim, values, against, level)
    more = {}
    if len(values) > 1 and claim.reach is None:
        worst = statistics.diverged_as_worst(values, claim.better)
        more = {
            'bootstrap': statistics.bootstrap(worst, alpha=level),
            'iqm': statistics.bootstrap(worst, statistics.iqm, level),
        }
    if found.difference:
        more |= {'difference': found.difference.row, 'p': found.difference.p, 'test': found.difference.test}
        if len(values) > 1:
            more['improvement'] = statistics.probability_of_improvement(values, against, claim.better, level)
            more['order'] = statistics.almost_stochastic_order(values, against, claim.better, level)
    done = Finding(claim, len(seeds), level, seeds, _row(claim, values, level), verdict=found.verdict, **more)
    return dataclasses.replace(done, words=_words(done, found, values, against))


def _row(claim: Claim, values: np.ndarray, level: float) -> Measurement:
    """A share with Wilson's interval; the median of first steps; else the mean, of those that did not diverge."""
    n = len(values)
    if claim.first_step:
        return statistics.bootstrap(statistics.diverged_as_worst(values, claim.better), np.median, level)
    if claim.reach is not None:
        from scipy.stats import binomtest

        low, high = map(float, binomtest(int(values.sum()), n).proportion_ci(1 - level, 'wilson'))
        return {'value': float(values.mean()), 'low': low, 'high': high, 'n': n, 'over': 'seeds'}
    alive = values[np.isfinite(values)]
    return statistics.mean(alive, level) | ({'diverged': n - len(alive)} if len(alive) < n else {})


def _region(published: Published) -> tuple[float, float]:
    return statistics.published_region(published.value, published.tolerance, published.sd, published.n)


def _difference(claim: Claim, a: np.ndarray, b: np.ndarray, level: float) -> Difference:
    """a − b. Both have the same seeds, so that the test is paired; of shares it is not."""
    if claim.reach is None or claim.first_step:
        return statistics.difference(a, b, claim.better, paired=True, alpha=level)
    from scipy.stats import fisher_exact

    n, p = len(a), math.nan
    if n > 1:
        p = float(fisher_exact([[a.sum(), n - a.sum()], [b.sum(), n - b.sum()]]).pvalue)
    row = {'value': float(a.mean() - b.mean()), 'ci': math.nan, 'n': n, 'over': 'seeds'}
    return Difference(row, p, FISHER if n > 1 else '')


def _words(found: Finding, judgement: Judgement, values: np.ndarray, other: np.ndarray | None) -> str:
    """What so many seeds resolve, and how many more an undecided claim needs."""
    n, claim = len(values), found.claim
    if n == 1 and claim.expected is not None:
        return 'one seed shows no spread between seeds'
    if isinstance(claim.expected, Published):
        spread = values if claim.reach is None else np.array([math.nan])
        distance = min(abs(judgement.row['value'] - edge) for edge in _region(claim.expected))
    elif found.test == statistics.PAIRED:
        spread, distance = values - other, abs(found.difference['value'])
    else:
        return ''
    if not np.isfinite(spread).all():
        return ''
    sd = float(spread.std(ddof=1))
    words = _found(n, sd, found.level)
    return f'{words}; {_more(found, distance, sd)}' if found.verdict == UNDECIDED else words


def _power(claim: Claim, n: int, level: float, values: np.ndarray) -> str:
    """What n seeds will resolve, by the spread of the seeds that are there, else by the published one."""
    if claim.reach is not None or n < 2 or not isinstance(claim.expected, Published):
        return ''
    sd, by = claim.expected.sd if claim.expected.n else 0.0, 'the published standard deviation'
    if len(values) > 1 and np.isfinite(values).all():
        sd, by = float(values.std(ddof=1)), f'the spread of the {len(values)} that are there'
    if not sd:
        return ''
    return f'{_found(n, sd, level)}, by {by}'


def _found(n: int, sd: float, level: float) -> str:
    least = power.resolvable(sd, n, 1, level)
    return f'{n} seeds have a power of {round(100 * power.POWER)} % for a difference of {least:.2g}'


def _more(found: Finding, distance: float, sd: float) -> str:
    """How many seeds would decide it, and the hours that they take."""
    needed, few, many = power.seeds_by_pilot(distance, sd, len(found.seeds) - 1, 1, found.level)
    if not math.isfinite(needed):
        return 'no number of seeds up to 100,000 decides it'
    there = len(found.seeds)
    more = max(1, math.ceil(needed) - there)
    words = f'about {more:,} more decide it'
    if hours := found.hours / there * more:
        words += f', {hours:.2g} h'
    most = f'{max(1, many - there):,.0f}' if math.isfinite(many) else 'over 100,000'
    return f'{words} ({max(1, few - there):,.0f} to {most} more, as their spread is known from {there} seeds alone)'
