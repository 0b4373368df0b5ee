"""Runs what a study lacks, look by look, until every verdict stands, all looks are over, or the budget is spent."""

import itertools
import pathlib
from collections.abc import Callable, Sequence

from aigc_jax.studies import drift, findings, states, status
from aigc_jax.studies.gathering import Gathered
from aigc_jax.studies.local import Outcome, Tell
from aigc_jax.studies.planning import Plan
from aigc_jax.studies.states import DONE
from aigc_jax.studies.sweeps import Trial

Launch = Callable[[Sequence[Trial], Tell], Outcome]


class Conduct:
    """claims: the names of those that are run. alpha: of --until; None: one look at each claim. budget: hours of runs;
    None: no end. launch: trains or evaluates trials; batch: how many it has at a time."""

    def __init__(
        self, plan: Plan, workdir: pathlib.Path, claims: Sequence[str], alpha: float | None, budget: float | None,
        launch: Launch, batch: int, say: Callable[[str], None],
    ):  # fmt: skip
        self._plan, self._workdir, self._claims, self._alpha = plan, workdir, claims, alpha
        self._budget, self._launch, self._batch, self._say = budget, launch, batch, say
        self._tried: set[str] = set()
        self._spent = 0.0

    def gathered(self) -> Gathered:
        return Gathered(self._plan, self._workdir, self._alpha)

    def unmeasured(self) -> list[str]:
        """The claims without a seed so far, of those that are run and those that they are compared with."""
        others = [other for name in self._claims for other in self._plan.claims[name].others]
        names = dict.fromkeys([*self._claims, *others])
        found = self.gathered().findings
        return [name for name in names if not found[name].seeds]

    def todo(self) -> tuple[list[Trial], list[Trial]]:
        """(trials to train, trials to evaluate once more) of the next look at each claim, without those that this
        command has tried. Raises UserError where a run was made with another config."""
        found = self.gathered()
        pairs = [pair for name in self._claims for pair in found.wanted(self._plan.claims[name])]
        trained = {trial.name: trial for pair in pairs for trial in _with_starts(pair.trained)}
        drift.check([(trial, found.state(trial)) for trial in trained.values()])
        is_open = lambda trial: found.state(trial).kind != DONE and trial.name not in self._tried
        # One whose start is not there waits for it, and is not run where that fails.
        has_start = lambda trial: trial.start is None or bool(found.state(trial.start).results)
        # A run that diverged has no results, and is not evaluated.
        whole = [two for trial, two in pairs if two.evaluation and found.state(trial).results]
        more = {trial.name: trial for trial in whole if is_open(trial)}
        return [trial for trial in trained.values() if is_open(trial) and has_start(trial)], list(more.values())

    def run(self) -> int:
        """The number of the signal that interrupted it, or 0."""
        while True:
            train, evaluate = self.todo()
            if train:
                # All first seeds come first, so that every claim has a value early.
                found = self._launched(sorted(train, key=lambda trial: trial.seed))
            elif evaluate:
                found = self._in_turns(evaluate)
            else:
                return 0
            if found or self._is_over():
                return found

    def _in_turns(self, trials: Sequence[Trial]) -> int:
        """Two evaluations of one run write the same files, and are made one after the other."""
        by_run: dict[pathlib.Path, list[Trial]] = {}
        for trial in trials:
            by_run.setdefault(trial.folder, []).append(trial)
        for turn in itertools.zip_longest(*by_run.values()):
            if (number := self._launched(list(filter(None, turn)))) or self._is_over():
                return number
        return 0

    def _launched(self, trials: Sequence[Trial]) -> int:
        what = 'evaluation' if trials[0].evaluation else 'run'
        self._say(f'{len(trials)} {what}{"s" * (len(trials) > 1)} to go')
        batch = len(trials) if self._budget is None else self._batch  # after each the budget is looked at
        for k in range(0, len(trials), batch):
            some = trials[k : k + batch]
            before = sum(map(states.hours, some))
            outcome = self._launch(some, lambda trial, state: self._say(status.ended(trial, state)))
            self._tried |= {trial.name for trial in some}
            self._spent += sum(map(states.hours, some)) - before
            if outcome.interrupted or self._is_over():
                return outcome.interrupted
        return 0

    def _is_over(self) -> bool:
        return self._budget is not None and self._spent >= self._budget


def _with_starts(trial: Trial) -> list[Trial]:
    """The trials that it starts from, the first one first, and itself."""
    return [*(_with_starts(trial.start) if trial.start else []), trial]


def unfinished(found: Gathered, claims: Sequence[str]) -> list[str]:
    """The claims whose verdict is missing."""
    return [name for name in claims if found.findings[name].verdict == findings.MISSING]
