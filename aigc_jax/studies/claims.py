"""Studies as data, for `study()` of a study file: a study is a table of claims, each measured with several seeds.

    from aigc_jax.studies.claims import Claim, Published, Study, Versus

    def study():
        return Study(
            title='Couplings of flow matching on two moons',
            seeds=10,
            claims=[
                Claim(
                    name='independent', claim='One Euler step of independent coupling is far from the data',
                    config='../flow.py:moons', evaluate={'sample.solver': 'euler', 'sample.steps': 1},
                    metric='samples/squared_wasserstein', better='min',
                    expected=Published(6.232, sd=0.186, tolerance=0.3, source='arXiv:2503.10636, figure 1'),
                ),
                …
            ],
        )

This file imports nothing of the package, so that a study in any folder can import it.
"""

import dataclasses
import math
import numbers
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

INTO = 'init.run', 'prune.run', 'distill.run'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]{0,63}')


def _check_kinds(of: Any, name: str) -> None:
    """Raises TypeError where a field is not of the type that it is annotated with. Any number is a float."""
    for field in dataclasses.fields(of):
        value = getattr(of, field.name)
        parts = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        kinds = tuple(typing.get_origin(part) or part for part in parts)
        kinds += (numbers.Real,) if float in kinds else ()
        is_right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not is_right or (isinstance(value, str) and str not in kinds):
            words = ' or '.join('nothing' if kind is type(None) else kind.__name__ for kind in kinds)
            raise TypeError(f'{name}: {field.name}={str(value)[:80]!r} is a {type(value).__name__}, not {words}')


@dataclasses.dataclass(frozen=True)
class Published:
    """A value that a publication, or a calculation, gives.

    sd: its standard deviation over n seeds; n None: the source does not say of how many seeds its ± is, and sd is taken
    for its interval. tolerance: a difference that does not matter. source: the publication and table, or the formula.
    """

    value: float
    source: str
    tolerance: float = 0.0
    sd: float = 0.0
    n: int | None = None

    def __post_init__(self):
        _check_kinds(self, 'Published')
        if not all(map(math.isfinite, (self.value, self.tolerance, self.sd))) or min(self.tolerance, self.sd) < 0:
            raise ValueError(f'Published: {self.value}, tolerance {self.tolerance}, sd {self.sd}: no such value')
        if not self.source:
            raise ValueError(f'Published: {self.value} has no source; name the publication and table, or the formula')
        if self.n is not None and self.n < 2:
            raise ValueError(f'Published: {self.value}: n={self.n}; an sd is over 2 or more seeds')
        if not self.tolerance and not self.sd:
            raise ValueError(f'Published: {self.value} has neither tolerance nor sd; nothing equals it')


@dataclasses.dataclass(frozen=True)
class Versus:
    """Another claim of the study, by its name, which this claim's runs are better than on this claim's metric.

    share, over: with them the runs are to be better than over + share · (than − over), seed by seed, where `over` is a
    third claim: Versus('whole', share=0.95, over='drawn') says: they reach 95 % of the gain of `whole` over `drawn`.
    """

    than: str
    share: float = 1.0
    over: str = ''

    def __post_init__(self):
        _check_kinds(self, 'Versus')
        if bool(self.over) != (self.share != 1.0):
            raise ValueError(f'Versus: share={self.share}, over={self.over!r}; give both, and a share that is not 1')
        if not math.isfinite(self.share):
            raise ValueError(f'Versus: share={self.share}: no such share')


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How one setting of each claim is chosen before its seeds are run: by the mean of `metric` on the validation split
    over `seeds` seeds from first_seed on, which are no seeds of the report. better: 'min' or 'max', of that metric."""

    metric: str
    better: str
    seeds: int = 1
    first_seed: int = 1_000_000

    def __post_init__(self):
        _check_kinds(self, 'Tuning')
        if self.better not in ('min', 'max'):
            raise ValueError(f'Tuning: better={self.better!r}; it is min or max')
        if self.seeds < 1:
            raise ValueError(f'Tuning: seeds={self.seeds}; there is 1 or more')


@dataclasses.dataclass(frozen=True)
class Claim:
    """A row of a study.

    name: of the row, for --row; letters, digits and . _ + -. claim: in words. config: FILE.py[:variant,…]; FILE is
    looked for from the folder of the study file. fields: {field: value} on top of it. Claims of one config and fields
    share their runs. evaluate: {field: value} of the groups sample and eval, for another evaluation of the same runs.

    metric: of that evaluation. reach: a threshold of the metric. Then a seed's value is whether the metric is at least
    it (1 or 0, so that the row is a share), and with first_step the first step at which it was, in an evaluation in
    training.
    start: another claim, from whose run of the same seed each run of this one starts, as a fine-tuning does.
    into: the field that is given the folder of that run: init.run; prune.run, by whose weights this one is pruned; or
    distill.run, from which this one is distilled.
    better: 'min' or 'max', whether less or more of the row's value is better. floors: metrics of the same evaluation
    that stand beside the row, such as the perfect sampler's. seeds: how many; None: the study's.
    tune: rows {field: value}, as studies/space.py makes them, of which the study's Tuning chooses one.
    """

    name: str
    claim: str
    config: str
    metric: str
    better: str
    expected: Published | Versus | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluate: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reach: float | None = None
    first_step: bool = False
    floors: Sequence[str] = ()
    seeds: int | None = None
    tune: Sequence[Mapping[str, Any]] = ()
    start: str = ''
    into: str = 'init.run'

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the claims that it is compared with."""
        found = self.expected
        return tuple(filter(None, (found.than, found.over))) if isinstance(found, Versus) else ()

    def __post_init__(self):
        _check_kinds(self, f'Claim {self.name}')
        if not _NAME.fullmatch(self.name):
            raise ValueError(f'Claim: {self.name!r} is no name; it has letters A to Z and a to z, digits, . _ + -')
        if self.better not in ('min', 'max'):
            raise ValueError(f'{self.name}: better={self.better!r}; it is min or max')
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f'{self.name}: seeds={self.seeds}; there is 1 or more')
        if self.into not in INTO:
            raise ValueError(f'{self.name}: into={self.into!r}; it is {" or ".join(INTO)}')
        if self.first_step and self.reach is None:
            raise ValueError(f'{self.name}: first_step needs reach, the value that the metric is to reach')
        if strange := [field for field in self.evaluate if field.partition('.')[0] not in ('sample', 'eval')]:
            raise ValueError(f'{self.name}: evaluate sets {strange[0]}; it sets fields of sample and eval alone')
        for row in (self.fields, *self.tune):
            if 'seed' in row:
                raise ValueError(f'{self.name}: fields set seed; the seeds are those of the study')
            if self.start and self.into in row:
                raise ValueError(f'{self.name}: both start and fields say what its runs start from; leave out one')
        if twice := {field for row in self.tune for field in row} & self.fields.keys():
            raise ValueError(f'{self.name}: both fields and tune set {min(twice)}; leave out one of them')
        if len(self.tune) == 1:
            raise ValueError(f'{self.name}: tune has one row, so that there is nothing to choose; put it into fields')


@dataclasses.dataclass(frozen=True)
class Study:
    """seeds: of each claim, from first_seed on; most_seeds: up to which --until adds some (default: 4 × seeds).

    tuning: of the claims that have `tune`, all of them as many rows, so that each arm is tuned with the same budget.
    alpha: 1 − alpha is the level of the intervals and verdicts. pareto: pairs of metrics that are drawn against each
    other.
    """

    title: str
    claims: Sequence[Claim]
    seeds: int = 3
    first_seed: int = 0
    most_seeds: int | None = None
    alpha: float = 0.05
    pareto: Sequence[tuple[str, str]] = ()
    tuning: Tuning | None = None

    def __post_init__(self):
        _check_kinds(self, 'Study')
        if strange := [one for one in self.claims if not isinstance(one, Claim)]:
            raise TypeError(f'Study: claims has {str(strange[0])[:80]!r}, which is no Claim')
        names = [claim.name for claim in self.claims]
        if not names:
            raise ValueError('Study: it has no claims')
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'Study: two claims have the name {twice[0]}')
        for claim in self.claims:
            if strange := [name for name in claim.others if name not in set(names) - {claim.name}]:
                raise ValueError(f'{claim.name}: compared with {strange[0]!r}, which is no other claim')
            if len(claim.others) > 1 and claim.reach is not None and not claim.first_step:
                raise ValueError(f'{claim.name}: a share of a gain, but with reach each seed is 1 or 0; leave out one')
        self._check_tuning()
        self._check_starts()
        metrics = {claim.metric for claim in self.claims}
        for pair in self.pareto:
            if len(pair) != 2 or isinstance(pair, str) or set(pair) - metrics:
                known = ', '.join(sorted(metrics))
                raise ValueError(f'Study: pareto has {str(pair)[:80]}; it is a pair of metrics of claims, of {known}')
        if self.seeds < 1 or not 0 < self.alpha < 1:
            raise ValueError(f'Study: seeds={self.seeds}, alpha={self.alpha}: no such study')
        most = max(claim.seeds or self.seeds for claim in self.claims)
        if self.most_seeds is not None and self.most_seeds < most:
            raise ValueError(f'Study: most_seeds={self.most_seeds}, but a claim has {most} seeds; give as many or more')

    def _check_starts(self) -> None:
        of = {claim.name: claim for claim in self.claims}
        for claim in self.claims:
            passed, one = {claim.name}, claim
            while one.start:
                if one.start not in of:
                    raise ValueError(f'{one.name}: start={one.start!r}, which is no claim of the study')
                if one.start in passed:
                    raise ValueError(f'{claim.name}: it starts from {one.start}, which starts from it')
                passed.add(one.start)
                one = of[one.start]
            if claim.start and of[claim.start].tune:
                raise ValueError(f'{claim.name}: {claim.start}, from which it starts, is tuned; set what was chosen')

    def _check_tuning(self) -> None:
        tuned = {claim.name: len(claim.tune) for claim in self.claims if claim.tune}
        if tuned and self.tuning is None:
            raise ValueError(f'{min(tuned)}: tune, but the study has no Tuning(metric, better)')
        if len({*tuned.values()}) > 1:
            budgets = ', '.join(f'{name} {count}' for name, count in tuned.items())
            raise ValueError(f'Study: the claims are tuned with other budgets, in rows: {budgets}; give all as many')
        for claim in self.claims:
            for other in claim.others:
                if (claim.name in tuned) != (other in tuned):
                    raise ValueError(f'{claim.name}: of it and {other} one is tuned; tune both, or neither')
        if tuned:
            most = max(claim.seeds or self.seeds for claim in self.claims)
            last = self.first_seed + max(most, self.most_seeds or 4 * most)
            first = self.tuning.first_seed
            if first < last and self.first_seed < first + self.tuning.seeds:
                raise ValueError(f'Tuning: first_seed={first} is a seed of the report; give one from {last} on')
