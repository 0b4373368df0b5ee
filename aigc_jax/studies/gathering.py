"""What the runs of a study have given so far, read from their folders alone."""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from aigc_jax.core.errors import RunError, UserError, near
from aigc_jax.core.types import NO_METRICS
from aigc_jax.metrics.intervals import MARKS, Measurement
from aigc_jax.metrics.names import named
from aigc_jax.reports.tables import Results
from aigc_jax.runs import manifest, numerics
from aigc_jax.runs import results as results_lib
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import registration, states, statistics, status, verdicts
from aigc_jax.studies.arms import RunData
from aigc_jax.studies.claims import Claim
from aigc_jax.studies.findings import Finding, Report, Seed
from aigc_jax.studies.planning import Pair, Plan
from aigc_jax.studies.states import DONE, FAILED, State
from aigc_jax.studies.sweeps import Trial
from aigc_jax.studies.verdicts import Look, Seeds


@dataclasses.dataclass
class Gathered:
    """The trials of a study, each looked at once. alpha: of --until, or None."""

    plan: Plan
    workdir: pathlib.Path
    alpha: float | None

    def __post_init__(self):
        self._states: dict[str, State] = {}
        self._trials: dict[str, Trial] = {}
        self._made_by: dict[str, Seed] = {}
        self._damaged: dict[str, str] = {}  # of the tuning's runs
        self.tuning = {name: self._tuned(self.plan.claims[name]) for name in self.plan.candidates}
        choices = {name: self._best(values) for name, values in self.tuning.items()}
        self.open = {name for name, best in choices.items() if best is None}  # not tuned yet
        self.plan = self.plan.chosen({name: best for name, best in choices.items() if best is not None})
        self.choices = choices

    @functools.cached_property
    def looks(self) -> dict[str, list[Look]]:
        """Of each claim, as far as the claim that is compared with it goes."""
        plan, found, known = self.plan, {}, {}
        for claim in plan.study.claims:
            replicas = plan.settings[claim.name].replicas
            replicas = math.lcm(replicas, *(plan.settings[other].replicas for other in claim.others))
            key = plan.seeds(claim), replicas, claim.expected is None
            if key not in known:
                known[key] = verdicts.looks(plan.study, claim, self.alpha, replicas)
            found[claim.name] = known[key]
        return found

    @functools.cached_property
    def findings(self) -> dict[str, Finding]:
        return {claim.name: self._finding(claim) for claim in self.plan.study.claims}

    def state(self, trial: Trial) -> State:
        """One that diverged is done: it counts as the worst, and would diverge again."""
        if trial.name not in self._states:
            state = states.look(trial)
            if state.kind == FAILED and not trial.evaluation and self._diverged(trial):
                state = State(DONE, state.step, results={})
            self._states[trial.name], self._trials[trial.name] = state, trial
        return self._states[trial.name]

    @property
    def trained(self) -> list[tuple[Trial, State]]:
        """The runs that were looked at."""
        return [(trial, self._states[name]) for name, trial in self._trials.items() if not trial.evaluation]

    def trials(self, claim: Claim, seeds: int) -> list[Pair]:
        """Those of its first seeds, and of the claims that it is compared with."""
        found = self.plan.trials(claim, seeds, self.workdir)
        for other in claim.others:
            found += self.plan.trials(self.plan.claims[other], seeds, self.workdir)
        return found

    def wanted(self, claim: Claim) -> list[Pair]:
        """Those of the next look at this claim; none where its verdict stands, or all its looks are over. Of one that
        is not tuned those that tune it."""
        if names := self._open_for(claim):
            trials = [self.plan.tuning_trials(self.plan.claims[name], self.workdir) for name in names]
            return [Pair(one, one) for of_claim in trials for of_row in of_claim for one in of_row]
        seeds = verdicts.next_look(self.looks[claim.name], self.findings[claim.name])
        return self.trials(claim, seeds) if seeds else []

    def report(self, notes: tuple[str, ...] = ()) -> Report:
        """Raises UserError where study.json is damaged. A run that is damaged is told in it."""
        plan, record = self.plan, registration.read(self.workdir)
        told = registration.note(record, plan.registration)
        notes = tuple(filter(None, [told, *self._spending(), *notes]))
        found = tuple(self.findings.values())
        return Report(
            plan.name, plan.study.title, plan.registration, found, self._hours(found), notes,
            tuple(map(tuple, plan.study.pareto)),
        )  # fmt: skip

    def _hours(self, found: Sequence[Finding]) -> float:
        """Of all runs, those of the tuning too."""
        hours = {seed.run: 0.0 for one in found for seed in one.seeds.values()}
        for one in found:
            for run in {seed.run for seed in one.seeds.values()}:
                hours[run] = max(hours[run], math.fsum(seed.hours for seed in one.seeds.values() if seed.run == run))
        claims = [self.plan.claims[name] for name in self.plan.candidates]
        rows = [of_row for claim in claims for of_row in self.plan.tuning_trials(claim, self.workdir)]
        tuned = {trial.name: trial for of_row in rows for trial in of_row}
        return math.fsum([*hours.values(), *map(states.hours, tuned.values())])

    def _spending(self) -> list[str]:
        if self.alpha is None:
            return []
        found = {}
        for looked in self.looks.values():
            found[', '.join(f'{n} seeds (level {level:.2g})' for n, level in looked)] = None
        rule = f'--until spends alpha = {self.alpha:g} over the looks at a claim, by the rule of Pocock'
        return [f'{rule}: {"; or ".join(found)}']

    def _open_for(self, claim: Claim) -> list[str]:
        """Which of the claim and those that it is compared with are not tuned yet."""
        return [name for name in (claim.name, *claim.others) if name in self.open]

    def _tuned(self, claim: Claim) -> list[list[float | None]]:
        """Of each candidate the metric of each seed on the validation split; None: it is not there."""
        tuning, found = self.plan.study.tuning, []
        for trials in self.plan.tuning_trials(claim, self.workdir):
            values: list[float | None] = []
            for trial in trials:
                state, replicas = self.state(trial), self.plan.candidates[claim.name][0].tuned.replicas
                if state.kind != DONE:
                    values += [None] * replicas
                elif not state.results:  # it diverged
                    values += [math.nan] * replicas
                else:
                    try:
                        row = _row(tuning.metric, state.results)
                        values += _of_seeds(row, range(trial.seed, trial.seed + replicas)).values()
                    except UserError as error:
                        self._damaged[trial.name] = str(error)
                        values += [None] * replicas
            found.append(values)
        return found

    def _best(self, values: list[list[float | None]]) -> int | None:
        """The candidate with the best mean, the first of equals; None where a run is missing."""
        if any(value is None for of_row in values for value in of_row):
            return None
        better = self.plan.study.tuning.better
        means = [float(np.mean(statistics.diverged_as_worst(of_row, better))) for of_row in values]
        return means.index(min(means) if better == 'min' else max(means))

    def _finding(self, claim: Claim) -> Finding:
        found = self._untuned(claim) if self._open_for(claim) else self._measured(claim)
        if claim.name not in self.tuning:
            return found
        tuned = zip(claim.tune, self.tuning[claim.name], strict=True)
        rows = {_row_words(row): math.fsum(of) / len(of) for row, of in tuned if None not in of}
        best = self.choices[claim.name]
        return dataclasses.replace(found, tuning=rows, chosen={} if best is None else dict(claim.tune[best]))

    def _untuned(self, claim: Claim) -> Finding:
        n, level = self.looks[claim.name][0]
        trials = [pair.trained for pair in self.wanted(claim)]
        done = sum(self.state(trial).kind == DONE and trial.name not in self._damaged for trial in trials)
        words = f'{done} of {len(trials)} runs of its tuning are there'
        damaged = [f'{trial.name}: {self._damaged[trial.name]}' for trial in trials if trial.name in self._damaged]
        return Finding(claim, n, level, words=words, absent=(*self._lines(trials), *damaged))

    def _measured(self, claim: Claim) -> Finding:
        looked = self.looks[claim.name]
        seeds, marks, why = self._seeds(claim, self.plan.trials(claim, looked[-1][0], self.workdir))
        others = []
        for name in claim.others:
            other = self.plan.claims[name]
            others.append(self._seeds(other, self.plan.trials(other, looked[-1][0], self.workdir))[0])
        found = verdicts.finding(self.plan.study, claim, looked, seeds, verdicts.compared(claim, *others))
        n = verdicts.next_look(looked, found)
        absent = list(dict.fromkeys([*self._absent(claim, n), *why])) if n else []
        return dataclasses.replace(found, marks=marks, absent=tuple(absent))

    def _absent(self, claim: Claim, seeds: int) -> list[str]:
        return self._lines([trial for pair in self.trials(claim, seeds) for trial in pair.trials])

    def _lines(self, trials: Sequence[Trial]) -> list[str]:
        """One for each that was begun and is not done."""
        looked = [(trial, self.state(trial)) for trial in trials]
        return [
            f'{trial.name}: {status.words_of(trial, state)}' for trial, state in looked
            if state.kind not in (DONE, states.MISSING)
        ]  # fmt: skip

    def seeds(self, claim: Claim, seed: int) -> Seeds:
        """Those of the run with this seed, as far as it is there."""
        return self._seeds(claim, self.plan.trials_of(claim, [self.plan.first_of(claim, seed)], self.workdir))[0]

    def _seeds(
        self, claim: Claim, trials: Sequence[Pair]
    ) -> tuple[Seeds, dict[str, float], list[str]]:
        """({seed: Seed} of those that are there, marks, a line for each run that is damaged or lacks the metric)."""
        found: Seeds = {}
        marks: dict[str, list[float]] = {}
        lacking: list[str] = []
        for trained, evaluated in trials:
            if self.state(trained).kind != DONE:
                continue
            results, numbers = self.state(evaluated).results, self._numbers(claim, trained)
            has_diverged = not self.state(trained).results
            if results is None and not has_diverged:
                continue
            try:
                lost = dict.fromkeys(numbers, math.nan)
                values = lost if has_diverged else self._values(claim, trained, results, numbers)
                made = self._made(trained, len(numbers))
            except (UserError, RunError) as error:
                lacking.append(f'{trained.name}: {error}')
                continue
            for name, value in ({} if has_diverged else self._marks(claim, results)).items():
                marks.setdefault(name, []).append(value)
            found |= {seed: dataclasses.replace(made, value=value) for seed, value in values.items()}
        return found, {name: math.fsum(values) / len(values) for name, values in marks.items()}, lacking

    def _numbers(self, claim: Claim, trained: Trial) -> range:
        return range(trained.seed, trained.seed + self.plan.settings[claim.name].replicas)

    def _values(self, claim: Claim, trained: Trial, results: Results, numbers: range) -> dict[int, float]:
        if claim.first_step:
            return _first_steps(claim, RunData(trained.folder), numbers)
        values = _of_seeds(_row(claim.metric, results), numbers)
        if claim.reach is None:
            return values
        return {n: float(value >= claim.reach) for n, value in values.items()}  # nan reaches nothing

    def _marks(self, claim: Claim, results: Results) -> dict[str, float]:
        row = results.get(named(claim.metric, results) or '', {}) if claim.reach is None else {}
        found = {label: row[mark] for mark, label in MARKS.items() if row.get(mark) is not None}
        for floor in claim.floors:
            if (name := named(floor, results)) and results[name]['value'] is not None:
                found[name] = results[name]['value']
        return found

    def _made(self, trained: Trial, replicas: int) -> Seed:
        """What made the run, without a value."""
        if trained.name not in self._made_by:
            path = Paths(trained.folder).manifest
            made_with = manifest.read(path)
            commit = str(made_with.get('commit') or '')[:12] + ('+changes' if made_with.get('diff') else '')
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if made_with else ''
            hours = states.hours(trained) / replicas
            self._made_by[trained.name] = Seed(math.nan, trained.name, hours, commit, digest, numerics.key(made_with))
        return self._made_by[trained.name]

    def _diverged(self, trial: Trial) -> bool:
        try:
            run = RunData(trial.folder)
            return run.diverged >= {*run.seeds}
        except (UserError, RunError):  # its state says what is damaged
            return False


def _row(metric: str, results: Results) -> Measurement:
    """Raises UserError where the results have no such metric."""
    if (name := named(metric, results)) is None:
        raise UserError(f'its evaluation has no {metric!r}{near(metric, results)}')
    return results[name]


def _of_seeds(row: Measurement, numbers: range) -> dict[int, float]:
    """{seed: value} of a row of an evaluation.json. Raises UserError."""
    found = results_lib.of_seeds(row, numbers[0])
    if lacking := [n for n in numbers if n not in found]:
        raise UserError(f'its evaluation has no seed {lacking[0]}')
    return {n: found[n] for n in numbers}


def _row_words(row) -> str:
    return ' '.join(f'{field}={value}' for field, value in row.items())


def _first_steps(claim: Claim, run: RunData, numbers: range) -> dict[int, float]:
    """{seed: the first step at which an evaluation reached claim.reach; nan: none did}. Raises UserError."""
    rows = [row for row in run.rows if row['split'] in ('eval', 'final')]
    known = [*dict.fromkeys(name for row in rows for name in row if name not in NO_METRICS)]
    if (name := named(claim.metric, known)) is None:
        raise UserError(f'its evaluations while it trained have no {claim.metric!r}{near(claim.metric, known)}')
    steps = {n: math.nan for n in numbers}
    for row in sorted(rows, key=lambda row: row['step'], reverse=True):
        if row['seed'] in steps and row.get(name) is not None and row[name] >= claim.reach:
            steps[row['seed']] = float(row['step'])
    return steps
