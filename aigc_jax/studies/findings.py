"""What a study found: a finding for each claim, as NAME.results.json holds it.

All tables, pages and documents of a study are rendered from this alone, the curves over the steps excepted.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from aigc_jax.core import records
from aigc_jax.core.errors import UserError, cause
from aigc_jax.metrics.intervals import Measurement
from aigc_jax.reports.tables import finite
from aigc_jax.studies.claims import Claim, Published, Versus

REPRODUCED, BETTER, WORSE, UNDECIDED, MISSING = 'reproduced', 'better', 'worse', 'undecided', 'missing'
MEASURED = 'measured'  # of a claim that is compared with nothing
VERDICTS = REPRODUCED, BETTER, WORSE, UNDECIDED, MISSING, MEASURED


@dataclasses.dataclass(frozen=True)
class Seed:
    """One seed's value, nan where it diverged, and what made it. hours: of its run, divided by the run's seeds.

    run: the folder below the study's. commit: of the code, '' outside of a repository. manifest, numerics: sha256 of
    the run's manifest, and of what in it decides bits.
    """

    value: float
    run: str
    hours: float
    commit: str = ''
    manifest: str = ''
    numerics: str = ''


@dataclasses.dataclass(frozen=True)
class Finding:
    """Of one claim.

    wanted: how many seeds it is to have. seeds: those that it has. row: their mean with its interval of 1 − level,
    Wilson's of a share. bootstrap, iqm: the mean and the interquartile mean with intervals by bootstrap; {} of fewer
    than 2 seeds and of a share. marks: {name: value} of floors that stand beside it.
    difference: to the claim that it is compared with, with p, and `test`, its name; improvement, order: the
    probability of improvement and almost stochastic order over it; {} without one.
    tuning: {row of the claim's `tune`, as text: its mean on the validation split}, of the rows whose runs are
    all there; chosen: the row that was chosen.
    verdict: one of VERDICTS. words: what it lacks, such as seeds, in plain words. absent: a line for each run that is
    not there, with its reason.
    """

    claim: Claim
    wanted: int
    level: float
    seeds: dict[int, Seed] = dataclasses.field(default_factory=dict)
    row: Measurement = dataclasses.field(default_factory=dict)
    bootstrap: Measurement = dataclasses.field(default_factory=dict)
    iqm: Measurement = dataclasses.field(default_factory=dict)
    marks: dict[str, float] = dataclasses.field(default_factory=dict)
    difference: Measurement = dataclasses.field(default_factory=dict)
    p: float = math.nan
    test: str = ''
    improvement: Measurement = dataclasses.field(default_factory=dict)
    order: Measurement = dataclasses.field(default_factory=dict)
    tuning: dict[str, float] = dataclasses.field(default_factory=dict)
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    verdict: str = MISSING
    words: str = ''
    absent: tuple[str, ...] = ()

    @property
    def values(self) -> list[float]:
        return [seed.value for seed in self.seeds.values()]

    @property
    def hours(self) -> float:
        return math.fsum(seed.hours for seed in self.seeds.values())


@dataclasses.dataclass(frozen=True)
class Report:
    """registration: sha256 of what the study registers before it runs (studies/registration.py). hours: of all its
    runs, each counted once. notes: a sentence each."""

    study: str
    title: str
    registration: str
    findings: tuple[Finding, ...]
    hours: float = 0.0
    notes: tuple[str, ...] = ()
    pareto: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """All of it, for `read`."""
        return _json(dataclasses.asdict(self))

    def rows_json(self) -> str:
        """The table alone, for other programs: a list of rows."""
        return _json([_table_row(one) for one in self.findings])


def read(path: pathlib.Path) -> Report:
    """A NAME.results.json. Raises UserError."""
    try:
        found = records.read(path)
        return Report(**found | {
            'findings': tuple(_finding(one) for one in found['findings']),
            'notes': tuple(found['notes']),
            'pareto': tuple(tuple(pair) for pair in found['pareto']),
        })  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: cannot be read as the report of a study: {cause(error)}; render it again') from None


def _json(value) -> str:
    text = json.dumps(finite(value), indent=1, ensure_ascii=False) + '\n'
    return text.encode(errors='backslashreplace').decode()  # bytes of a path that are no UTF-8, as JSON escapes them


def _table_row(found: Finding) -> dict[str, Any]:
    """values: of each of `seeds`, null of one that diverged. ci: half of the interval; of one that is not symmetric
    low and high instead. published: a value, or null; than: the claim that this one is to be better than, or null, and
    share and over, where it is to reach that share of the gain of `than` over `over`, else null."""
    claim, row = found.claim, found.row
    versus = claim.expected if isinstance(claim.expected, Versus) else None
    published = claim.expected if isinstance(claim.expected, Published) else None
    return {
        'name': claim.name, 'claim': claim.claim, 'metric': claim.metric, 'seeds': [*found.seeds],
        'values': found.values, 'value': row.get('value'), 'ci': row.get('ci'), 'low': row.get('low'),
        'high': row.get('high'), 'n': len(found.seeds), 'level': 1 - found.level,
        'published': published and published.value, 'tolerance': published and published.tolerance,
        'source': published.source if published else '',
        'than': versus and versus.than, 'share': versus.share if versus and versus.over else None,
        'over': versus.over if versus and versus.over else None, 'p': found.p,
        'verdict': found.verdict, 'hours': found.hours,
    }  # fmt: skip


def _finding(found: dict[str, Any]) -> Finding:
    if found['verdict'] not in VERDICTS:
        raise ValueError(f'{found["verdict"]!r} is no verdict')
    claim = found['claim'] | {name: tuple(found['claim'][name]) for name in ('floors', 'tune')}
    if (expected := claim['expected']) is not None:
        claim['expected'] = Versus(**expected) if 'than' in expected else Published(**expected)
    seeds = {int(number): Seed(**_with_nan(seed)) for number, seed in found['seeds'].items()}
    measured = 'row', 'bootstrap', 'iqm', 'difference', 'improvement', 'order', 'marks', 'tuning'
    rows = {name: _with_nan(found[name]) for name in measured}
    own = {'claim': Claim(**claim), 'seeds': seeds, 'absent': tuple(found['absent']), **rows}
    return Finding(**found | own | {'p': math.nan if found['p'] is None else found['p']})


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in row.items()}
