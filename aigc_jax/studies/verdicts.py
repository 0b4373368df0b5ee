"""From the values of seeds to the findings of a study: means, intervals, tests, verdicts, how many seeds are missing.

A study that may be looked at more than once (--until) spends alpha over its looks, by Pocock's rule in the form of Lan
and DeMets (1983): look k has intervals of 1 − level_k (power.look_levels). O'Brien and Fleming's rule would leave the
first looks at few seeds nothing: 1e-4 of 0.05 for 3 of 12. A finding is that of the first look whose verdict stands,
a function of the results alone.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.metrics.intervals import Measurement
from aigc_jax.studies import power, statistics
from aigc_jax.studies.claims import Claim, Published, Study, Versus
from aigc_jax.studies.findings import MEASURED, REPRODUCED, UNDECIDED, Finding, Seed

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

    seeds: {seed: Seed} of all that are there. other: those of the claim that it is compared with.
    """
    found = None
    for n, level in looked:
        wanted = range(study.first_seed, study.first_seed + n)
        if not all(seed in seeds and (other is None or seed in other) for seed in wanted):
            break
        ours = {seed: seeds[seed] for seed in wanted}
        found = _judged(claim, level, ours, other and {seed: other[seed] for seed in wanted})
        if found.verdict != UNDECIDED:
            return found
    if found is not None:
        return found
    n, level = looked[0]
    ours = {seed: one for seed, one in sorted(seeds.items()) if seed < study.first_seed + n}
    return Finding(claim, n, level, ours, _row(claim, _values(ours), level) if ours else {})


def next_look(looked: Sequence[Look], found: Finding) -> int | None:
    """How many seeds the claim is to have next; None where nothing is left to be run for it."""
    if len(found.seeds) < found.wanted:
        return found.wanted
    if found.verdict != UNDECIDED:
        return None
    return next((n for n, _ in looked if n > found.wanted), None)


def _values(seeds: Seeds) -> np.ndarray:
    return np.array([one.value for one in seeds.values()], np.float64)


def _judged(claim: Claim, level: float, seeds: Seeds, other: Seeds | None) -> Finding:
    values = _values(seeds)
    found = Finding(claim, len(seeds), level, seeds, _row(claim, values, level))
    if len(values) > 1 and claim.reach is None:
        worst = statistics.diverged_as_worst(values, claim.better)
        found = dataclasses.replace(
            found, bootstrap=statistics.bootstrap(worst, alpha=level),
            iqm=statistics.bootstrap(worst, statistics.iqm, level),
        )  # fmt: skip
    if isinstance(claim.expected, Published):
        return _against_published(found, claim.expected, values)
    if isinstance(claim.expected, Versus):
        return _against_other(found, values, _values(other))
    return dataclasses.replace(found, verdict=MEASURED)


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


def _against_published(found: Finding, published: Published, values: np.ndarray) -> Finding:
    claim, row = found.claim, found.row
    if row.get('diverged'):  # counts as the worst
        row = statistics.mean(statistics.diverged_as_worst(values, claim.better), found.level)
    region = statistics.published_region(published.value, published.tolerance, published.sd, published.n)
    verdict = statistics.verdict(row, region, claim.better)
    words = ''
    if claim.reach is None and len(values) > 1 and np.isfinite(values).all():
        sd = float(values.std(ddof=1))
        words = _resolve(sd, len(values), 1, found.level)
        if verdict == UNDECIDED:
            distance = min(abs(row['value'] - edge) for edge in region)
            words += '; ' + _more(found, distance, sd, len(values) - 1, 1)
    elif len(values) == 1:
        words = 'one seed shows no spread between seeds'
    return dataclasses.replace(found, verdict=verdict, words=words)


def _against_other(found: Finding, a: np.ndarray, b: np.ndarray) -> Finding:
    """Both have the same seeds, so that the test is paired; of shares it is not."""
    claim, level = found.claim, found.level
    if claim.reach is not None and not claim.first_step:
        from scipy.stats import fisher_exact

        n, p = len(a), 1.0
        if n > 1:
            p = float(fisher_exact([[a.sum(), n - a.sum()], [b.sum(), n - b.sum()]]).pvalue)
        row = {'value': float(a.mean() - b.mean()), 'n': n, 'over': 'seeds'}
        difference = statistics.Difference(row, p, FISHER)
    else:
        difference = statistics.difference(a, b, claim.better, paired=True, alpha=level)
    verdict = statistics.arm_verdict(difference, a, b, claim.better, level)
    words = ''
    if difference.test == statistics.PAIRED:
        sd = float(np.std(a - b, ddof=1))
        words = _resolve(sd, len(a), 1, level)
        if verdict == UNDECIDED:
            words += '; ' + _more(found, abs(difference.row['value']), sd, len(a) - 1, 1)
    improvement = statistics.probability_of_improvement(a, b, claim.better, level) if len(a) > 1 else {}
    return dataclasses.replace(
        found, difference=difference.row, p=difference.p, test=difference.test, improvement=improvement, words=words,
        verdict=REPRODUCED if verdict == 'better' else verdict,
    )  # fmt: skip


def _resolve(sd: float, n: int, samples: int, level: float) -> str:
    return f'{n} seeds resolve {power.resolvable(sd, n, samples, level):.2g} at {power.POWER:.0%}'


def _more(found: Finding, distance: float, sd: float, df: int, samples: int) -> str:
    """How many seeds would decide it, and the hours that they take."""
    needed, few, many = power.seeds_by_pilot(distance, sd, df, samples, found.level)
    if not math.isfinite(needed):
        return 'no number of seeds up to 100,000 decides it'
    more = max(1, math.ceil(needed) - len(found.seeds))
    words = f'about {more:,} more decide it'
    if hours := found.hours / len(found.seeds) * more:
        words += f', {hours:.2g} h'
    most = f'{many:,.0f}' if math.isfinite(many) else 'more than 100,000'
    return f'{words} ({few:,.0f} to {most} in all, as their spread is known from {len(found.seeds)} alone)'
