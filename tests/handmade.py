"""Reports of studies as the tests of their text, table and page need them."""

import functools
import math

from aigc_jax.metrics import intervals
from aigc_jax.studies import findings, statistics
from aigc_jax.studies.claims import Claim, Published, Versus
from aigc_jax.studies.findings import Finding, Report, Seed

HOSTILE = '<script>alert(1)</script> | a & b \\ _x_ `c` $y$ {z} #1 50% ~^ \x1b[31m\u202e\nnew line, ω³ 生'
_SETTING = {'config': '../gan.py:ring8', 'metric': 'model/nll', 'better': 'min'}


def claim(name: str, **fields) -> Claim:
    return Claim(name, **{'claim': f'what {name} claims', **_SETTING, **fields})


def finding(of: Claim, values, wanted: int | None = None, commit: str = 'c0ffee' * 6, **fields) -> Finding:
    """Of seeds 0, 1, … with these values."""
    seeds = {k: Seed(value, f'{of.name}/seed-{k}', 0.25, commit) for k, value in enumerate(values)}
    if of.reach is not None and not of.first_step and len(values):
        fields['row'] = intervals.wilson(sum(values), len(values), 'seeds')
    elif len(values):
        fields.setdefault('row', statistics.mean(values))
        if len(values) > 1 and all(map(math.isfinite, values)):
            fields.setdefault('iqm', statistics.bootstrap(values, statistics.iqm))
            fields.setdefault('bootstrap', statistics.bootstrap(values))
    return Finding(of, len(values) if wanted is None else wanted, fields.pop('level', 0.05), seeds, **fields)


def report(*of: Finding, **fields) -> Report:
    return Report('own', **{'title': 'A study', 'registration': 'ab' * 32, 'hours': 1.5, **fields}, findings=of)


@functools.cache
def of_every_kind() -> Report:
    """A finding of each verdict and kind: a published value, a comparison, a share, steps, diverged, 1 and 0 seeds."""
    a, b = [1.02, 0.99, 1.03, 0.98], [0.52, 0.49, 0.53, 0.47]
    found = statistics.difference(b, a, 'min', paired=True)
    modes = {'metric': 'samples/modes', 'better': 'max', 'reach': 25.0}
    value = Published(1.0, 'arXiv:1234.5678, table 1', tolerance=0.05, sd=0.186, n=10)
    return report(
        finding(claim('a', expected=value), a, verdict=findings.REPRODUCED, marks={'perfect': 0.0004}),
        finding(
            claim('b', expected=Versus('a'), fields={'task.loss': 'hinge'}), b, verdict=findings.BETTER,
            difference=found.row, p=found.p, test=found.test,
            improvement={'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 4, 'over': 'seeds'},
        ),
        finding(
            claim('share', expected=Published(0.3, 'table 2', 0.1), **modes), [1.0] * 11 + [0.0] * 53,
            verdict=findings.WORSE, words='it lies below',
        ),
        finding(claim('steps', **modes | {'first_step': True, 'better': 'min'}), [3000.0, 4500.0, math.nan]),
        finding(claim('diverged', expected=Published(2.0, 'eq. 1', 0.1)), [1.9, math.nan], verdict=findings.WORSE),
        finding(
            claim('one', expected=Published(1.4189385332046727, '½ ln 2πe', 0.01)), [1.4234567], 3,
            verdict=findings.UNDECIDED, words='about 7 more seeds, 2.1 h',
        ),
        finding(claim('none', evaluate={'sample.steps': 1}), [], 3, absent=('seed 0: failed: exit code 1',)),
        notes=('The seeds of tuning are 100 to 109.',),
    )  # fmt: skip


@functools.cache
def hostile() -> Report:
    of = claim('hostile', claim=HOSTILE, metric=HOSTILE, config=HOSTILE, expected=Published(1.0, HOSTILE, 0.5))
    one = finding(
        of,
        [1.0, 1.1],
        commit=HOSTILE,
        marks={HOSTILE: 1.0},
        words=HOSTILE,
        absent=(HOSTILE,),
        verdict=findings.UNDECIDED,
    )
    return report(one, title=HOSTILE, registration=HOSTILE, notes=(HOSTILE,))
