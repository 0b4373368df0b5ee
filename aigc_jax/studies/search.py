"""Adaptive search: which settings are tried depends on how those before did (Optuna's tree-structured Parzen estimator,
Bergstra et al. 2011).

A config file says what is searched, `search()` beside get_config():

    from aigc_jax.studies.space import Range

    def search():
        return {'optim.model.schedule.init_value': Range(1e-4, 1e-2, log=True), 'model.latent_dim': [8, 16, 32]}

Settings are chosen by batches, and a batch when the one before is over. So what is tried is a function of the config
and the batch size, not of which run ends first, and a search that was interrupted goes on as if it had not been.
Optuna's journal in the sweep's folder holds its state; there is no server.

The search sees one number of a setting: the mean over its seeds on the validation split. It never sees the test split.
"""

import collections
import json
import math
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.core import user_code
from aigc_jax.core.errors import UserError, near
from aigc_jax.metrics.names import named
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import results as results_lib
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import states
from aigc_jax.studies.local import Outcome, Tell
from aigc_jax.studies.measurable import Measurable
from aigc_jax.studies.rows import Resolver, texts
from aigc_jax.studies.space import Range
from aigc_jax.studies.statistics import diverged_as_worst
from aigc_jax.studies.sweeps import Row, Sweep, Trial

JOURNAL = 'search.journal'
VALID = ('eval.final_split', 'valid')
_FIRST = 10  # settings that are drawn at random
_PRUNE_FROM = 4  # settings that a curve is compared with, at least
Unwanted = Callable[[Trial], bool]
Launch = Callable[[Sequence[Trial], Tell, Unwanted], Outcome]


class Search:
    """config: FILE.py[:variant,…] with search(), and overrides of all rows. count: settings in all. seeds: each setting
    so often. batch: settings that are chosen at a time. metric: what is searched for; None: eval.best_metric."""

    def __init__(
        self, config: str, overrides: list[tuple[str, str]], count: int, seeds: int, batch: int, metric: str | None,
        workdir: pathlib.Path,
    ):  # fmt: skip
        if 'eval.final_split' in dict(overrides):
            raise UserError('--config.eval.final_split: a search evaluates the validation split; leave it out')
        self._overrides = (*overrides, VALID)
        base = config_lib.load(config, list(self._overrides))
        self.metric, self._better = metric or base.eval.best_metric, base.eval.best_mode
        if not self.metric:
            raise UserError('--metric: missing; name what is searched for, or set eval.best_metric and eval.best_mode')
        if base.num_seeds > 1:
            raise UserError(f'num_seeds: {base.num_seeds}; a search repeats a setting with --seeds, so set it to 1')
        self._config, self._count, self._batch, self._workdir, self._base = config, count, batch, workdir, base
        self._seeds = tuple(range(base.seed, base.seed + seeds))
        self._resolver, self._space = Resolver(base), _space(config, base)
        self._study = None

    def run(self, launch: Launch, tell: Tell) -> int:
        """The number of the signal that interrupted it, or 0."""
        optuna, path = _optuna(), self._workdir / JOURNAL
        if not path.exists():
            Measurable().check(self.metric, '', self._base, '--metric')
        self._workdir.mkdir(parents=True, exist_ok=True)
        try:
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
            self._study = optuna.create_study(
                storage=storage, study_name='search', load_if_exists=True, pruner=optuna.pruners.NopPruner(),
                direction={'min': 'minimize', 'max': 'maximize'}[self._better],
            )  # fmt: skip
            self._check(path)
        # What Optuna raises at a line that is no line of its journal.
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError) as error:
            raise UserError(
                f'{path}: cannot be read as the journal of a search ({error}); remove it, and its runs are taken up'
            ) from None
        while True:
            chosen = [trial for trial in self._study.get_trials(deepcopy=False) if not trial.state.is_finished()]
            done = len(self._study.trials) - len(chosen)
            if not chosen and done >= self._count:
                return 0
            if not chosen:
                chosen = self._ask(min(self._batch, self._count - done))
            if number := self._tried(chosen, launch, tell):
                return number

    def sweep(self) -> Sweep:
        """All settings that were chosen so far."""
        rows = tuple(self._row(trial) for trial in self._study.get_trials(deepcopy=False))
        rows = tuple({row.name: row for row in rows}.values())
        return Sweep(self._config, self._overrides, rows, self._seeds, self.metric)

    def best(self) -> Row | None:
        """The setting with the best mean, the first of equals; None where none is over."""
        over = [trial for trial in self._study.get_trials(deepcopy=False) if trial.value is not None]
        key = lambda trial: trial.value if self._better == 'min' else -trial.value
        return self._row(min(over, key=key)) if over else None

    def words(self) -> str:
        """What came out, in a line, with the command that trains the best setting."""
        counts = collections.Counter(trial.state.name.lower() for trial in self._study.get_trials(deepcopy=False))
        words = ', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))
        if (row := self.best()) is None:
            return f'{words}; none is over'
        fields = ' '.join(shlex.quote(f'--config.{field}={text}') for field, text in texts(row.fields))
        return f'{words}; the best by {self.metric} on the validation split: {fields}'

    def _check(self, path: pathlib.Path) -> None:
        own = {
            'config': self._config, 'overrides': [list(pair) for pair in self._overrides], 'metric': self.metric,
            'space': {name: repr(found) for name, found in self._space.items()}, 'batch': self._batch,
            'seeds': list(self._seeds), 'better': self._better,
        }  # fmt: skip
        if not self._study.trials:  # one that was killed may have written some of these
            for name in own.keys() - self._study.user_attrs.keys():
                self._study.set_user_attr(name, own[name])
        before = self._study.user_attrs
        if differing := [name for name in own if before.get(name) != own[name]]:
            words = '; '.join(f'{name}: {before.get(name)} there, {own[name]} here' for name in differing)
            raise UserError(
                f'--workdir: {path} is of another search; differing: {words}\n'
                'Name another folder, or give the search that it was made with.'
            )

    def _ask(self, count: int) -> list:
        """The next settings, of which the k-th of all depends on k, the seed and the trials that are over."""
        optuna, found = _optuna(), []
        for _ in range(count):
            k = len(self._study.trials)
            # Each sampler is new: its random numbers are those of k, wherever the search was interrupted.
            self._study.sampler = optuna.samplers.TPESampler(seed=k, n_startup_trials=_FIRST, constant_liar=True)
            found.append(self._study.ask(_distributions(self._space)))
        return [self._study.get_trials(deepcopy=False)[trial.number] for trial in found]

    def _row(self, trial) -> Row:
        return self._resolver.row({name: _value(self._space[name], value) for name, value in trial.params.items()})

    def _tried(self, chosen: list, launch: Launch, tell: Tell) -> int:
        rows = {trial.number: self._row(trial) for trial in chosen}
        self.sweep().write(self._workdir)
        of_row = {row.name: self._trials(row) for row in rows.values()}
        bars = self._bars()
        worse: dict[str, bool] = {}

        def unwanted(trial: Trial) -> bool:
            name = trial.row.name
            worse[name] = worse.get(name, False) or self._worse_at(of_row[name], bars) is not None
            return worse[name]

        trials = [of_seed[k] for k in range(len(self._seeds)) for of_seed in of_row.values()]
        todo = [trial for trial in trials if states.look(trial).kind != states.DONE and not unwanted(trial)]
        outcome = launch(todo, tell, unwanted)
        if outcome.interrupted:
            return outcome.interrupted
        for trial in chosen:
            self._over(trial, of_row[rows[trial.number].name], bars)
        return 0

    def _over(self, chosen, trials: Sequence[Trial], bars: dict[int, float]) -> None:
        """Tells Optuna how a setting did. One that was worse was, whether or not it was ended in time."""
        optuna = _optuna()
        if (step := self._worse_at(trials, bars)) is not None:
            optuna.Trial(self._study, chosen._trial_id).report(self._curve(trials)[step], step)
            self._study.tell(chosen.number, state=optuna.trial.TrialState.PRUNED)
        elif (value := self._mean(trials)) is None:
            self._study.tell(chosen.number, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(chosen.number, value)

    def _trials(self, row: Row) -> list[Trial]:
        return [Trial(row, seed, self._workdir, self._config, self._overrides) for seed in self._seeds]

    def _mean(self, trials: Sequence[Trial]) -> float | None:
        """None where a run failed, or the mean is not finite."""
        values = []
        for trial in trials:
            state = states.look(trial)
            if state.kind != states.DONE:
                return None
            if (name := named(self.metric, state.results)) is None:
                raise UserError(f'--metric: {trial.name} has no {self.metric!r}{near(self.metric, state.results)}')
            values += results_lib.of_seeds(state.results[name], trial.seed).values()
        mean = float(np.mean(diverged_as_worst(values, self._better)))
        return mean if math.isfinite(mean) else None

    def _bars(self) -> dict[int, float]:
        """{step before the last: the median there of the settings that are over}, of as many as can be compared with
        (the median rule of Golovin et al. 2017, section 3.2.2)."""
        optuna, curves = _optuna(), {}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.COMPLETE:
                row = self._row(trial)
                for step, value in self._curve(self._trials(row)).items():
                    if step < row.total_steps:
                        curves.setdefault(step, []).append(value)
        return {step: float(np.median(values)) for step, values in curves.items() if len(values) >= _PRUNE_FROM}

    def _worse_at(self, trials: Sequence[Trial], bars: dict[int, float]) -> int | None:
        """The first step at which the setting is worse than the median."""
        sign, curve = (1 if self._better == 'min' else -1), self._curve(trials)
        return next((step for step in sorted(curve.keys() & bars) if not sign * curve[step] <= sign * bars[step]), None)

    def _curve(self, trials: Sequence[Trial]) -> dict[int, float]:
        """{step: the mean over the seeds of the metric}, of the evaluations in training that all seeds have."""
        curves = [self._of_seed(trial) for trial in trials]
        return {step: math.fsum(c[step] for c in curves) / len(curves) for step in set.intersection(*map(set, curves))}

    def _of_seed(self, trial: Trial) -> dict[int, float]:
        try:
            lines = Paths(trial.folder).metrics.read_bytes().split(b'\n')[:-1]  # the last one may not be whole
            rows = [json.loads(line) for line in lines]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f'{Paths(trial.folder).metrics}: cannot be read: {error}') from None
        found = {}
        for row in rows:
            if row.get('split') == 'eval' and (name := named(self.metric, [*row])):
                found[row['step']] = math.nan if row[name] is None else row[name]
        return found


def _space(config: str, base) -> dict[str, Range | list]:
    path = config.partition('.py')[0] + '.py'
    module = user_code.load(path, '--config')
    if not hasattr(module, 'search'):
        raise UserError(f'--config: {path} has no search(); write one, which returns {{field: Range or list}}')
    with user_code.errors_of(path, '--config'):
        found = module.search()
        if not isinstance(found, dict) or not found:
            raise TypeError(f'search() returns {str(found)[:80]}, not {{field: Range or list}}')
        for field, options in found.items():
            if not isinstance(options, (Range, list, tuple)) or not options:
                raise TypeError(f'{field}: {str(options)[:80]!r} is neither a Range nor a list of values')
    flat = config_lib.flatten(base)
    if unknown := [field for field in found if field not in flat]:
        raise UserError(f'search: {unknown[0]}: the config has no such field{near(unknown[0], [*flat])}')
    return {field: list(options) if isinstance(options, tuple) else options for field, options in found.items()}


def _distributions(space: dict[str, Range | list]) -> dict[str, Any]:
    """Lists are chosen from by number, since Optuna's categories hold no tuples."""
    kinds = _optuna().distributions
    found = {}
    for name, options in space.items():
        if isinstance(options, list):
            found[name] = kinds.CategoricalDistribution(range(len(options)))
        elif options.integer:
            found[name] = kinds.IntDistribution(options.low, options.high, log=options.log)
        else:
            found[name] = kinds.FloatDistribution(options.low, options.high, log=options.log)
    return found


def _value(options: Range | list, drawn: Any) -> Any:
    """To 6 significant digits, as `Range.at` has it."""
    if isinstance(options, list):
        return options[drawn]
    return drawn if options.integer else min(max(float(f'{drawn:.6g}'), options.low), options.high)


def _optuna():
    try:
        import optuna
    except ImportError:
        raise UserError("--search: Optuna is not installed; run pip install 'aigc_jax[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
