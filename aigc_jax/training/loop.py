"""Training: one loop for every model. Its order is fixed: evaluate → save → feed → call → log."""

import contextlib
import fcntl
import math
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import reports
from aigc_jax.core import parallel, processes
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import atomic_write, check_folder, clear_leftovers, disk_errors, open_append
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.data import Tokens
from aigc_jax.reports import evaluation, pictures, tables
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest
from aigc_jax.runs.experiment import (
    Experiment,
    initial_digest,
    initial_model,
    initial_tokenizer,
    open_checkpoints,
    saved_tokenizer,
)
from aigc_jax.runs.logs import NullWriter, Writer
from aigc_jax.runs.pace import NullProgress, Pace, Progress
from aigc_jax.training import announce
from aigc_jax.training.early_stopping import Watch, is_over
from aigc_jax.training.signals import Interrupted, Signals


def train(config, workdir: pathlib.Path, clock: dict[str, float]) -> None:
    """Trains, or goes on training, the run in `workdir`. clock: seconds of what went before, for timing.jsonl.

    Raises UserError before anything is written; RunError on NaN or a full disk, with the last good checkpoint
    kept; Interrupted after saving.
    """
    with contextlib.ExitStack() as held:
        _train(config, workdir, clock, held)


def _train(config, workdir: pathlib.Path, clock: dict[str, float], held: contextlib.ExitStack) -> None:
    fields = {name: repr(value) for name, value in config_lib.flatten(config).items()}
    processes.alike('config', fields, 'Give all of them the same --config and fields.')
    with processes.together('workdir'):
        resumes = _check_workdir(config, workdir)
    _check_seen(workdir, resumes)
    began = time.perf_counter()
    first = processes.first()
    locked = first and (resumes or (workdir / '.lock').exists())
    with processes.together('lock'):
        if locked:
            held.enter_context(_locked(workdir))
    if resumes:
        processes.check_shared(workdir)

    def lap(name):
        nonlocal began
        clock[name], began = time.perf_counter() - began, time.perf_counter()

    with processes.together('data'):
        experiment = Experiment(config, tokenizer=saved_tokenizer(workdir) if resumes else initial_tokenizer(config))
        manifest.check(workdir / 'manifest.json', experiment)
        reports.check(experiment)
    if processes.several():
        ground = {'sha256 of the data': experiment.dataset.fingerprint} | manifest.made_with()
        processes.alike('ground', ground, 'Give all of them the same files, code, packages and variables.')
        processes.connect(experiment.plan.mesh)
    lap('data')
    checkpoints, taken = open_checkpoints(workdir, config) if resumes else None, None
    theirs = config_lib.from_json(workdir / 'config.json') if resumes else config
    before = theirs.total_steps
    was, now = (c.get('parallel', ConfigDict()).to_json(sort_keys=True) for c in (theirs, config))
    if was != now:
        note(f'parallel: {now} from here on, {was} before')
    newest = processes.gather('newest checkpoint', checkpoints.latest() if checkpoints else None)[0]
    if newest is not None:
        if is_over(config, workdir, newest) and announce.finished(experiment, workdir, newest):
            return checkpoints.close()
        state = checkpoints.restore(newest, experiment.abstract_state)
    else:
        model, taken = initial_model(experiment)
        if taken is not None and processes.several():
            processes.alike('init_from', {'checkpoint': initial_digest(config, taken)}, 'Give all the same run.')
        state = experiment.create_state(*model)
    start = int(np.ravel(parallel.fetch(state.step))[0])
    if start > config.total_steps:
        raise UserError(f'total_steps: {config.total_steps}, but {workdir} is at step {start} already')
    lap('state')
    feeds = experiment.feeds(start)
    data = experiment.resident_data()
    call = experiment.train_call()
    if start < config.total_steps:
        feed = next(feeds)
        lap('feed')
        call = call.lower(state, experiment.seed_array, data, feed)  # where the last mistakes of a config are found
    announce.begin(experiment, workdir, start)
    if start and config.total_steps > before:
        announce.grown(experiment, before, start)
    if start < config.total_steps:
        call = call.compile()
        lap('compile')
    processes.gather('compiled', None)  # Gloo's time limit begins when the first process enters a collective
    if not resumes:
        _make(config, workdir, held, first, locked)
    with processes.together('files of the start'):
        if first:
            clear_leftovers(workdir)
            if isinstance(spec := experiment.dataset.spec, Tokens):
                atomic_write(workdir / 'tokenizer.json', spec.tokenizer.to_json())
            atomic_write(workdir / 'config.json', config_lib.to_json(config))
            manifest.write(workdir / 'manifest.json', experiment, start, taken)
    with processes.together('checkpoints'):  # after config.json, without which checkpoints/ belongs to no run
        checkpoints = checkpoints or open_checkpoints(workdir, config)
        log = Writer(workdir, start) if first else NullWriter()
        log.timing(event='start', step=start, seconds={**clock})
    loop = _Loop(experiment, workdir, checkpoints, start, log)
    with Signals() as signals:
        try:
            while not loop.finished(state, signals):
                began = time.perf_counter()
                state, metrics = call(state, experiment.seed_array, data, feed)
                loop.called(state, metrics)
                feed = next(feeds) if loop.step < config.total_steps else None  # while the device computes
            loop.conclude(state, signals)
        finally:
            loop.close()


class _Loop:
    """What happens between the calls: evaluation, checkpoints, logs, early stopping, and the end."""

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, checkpoints, start: int, log):
        self.experiment, self.workdir, self.checkpoints = experiment, workdir, checkpoints
        self.config, self.start, self.step = experiment.config, start, start
        self.log = log
        self.progress = Progress(self.config.total_steps, start) if processes.first() else NullProgress()
        between = {'evaluation': self.config.eval_every_steps, 'checkpoint': self.config.checkpoint_every_steps}
        self.pace = Pace(self.config.total_steps, start, between)
        self.evaluation = evaluation.Evaluation(Evaluator(experiment), workdir)
        self.pending = None  # metrics of the last call, fetched while the next one runs
        self.seeds = experiment.seeds if experiment.plan.replicas else [None]
        rows = self.log.rows()
        self.watch = Watch(self.config.eval, rows)
        lost = {row['seed'] for row in rows if 'diverged' in row}
        # The first process alone reads the log, and all must stop at the same step.
        self.watch.waited, lost = processes.gather('log', (self.watch.waited, [seed in lost for seed in self.seeds]))[0]
        self.diverged = {seed for seed, is_lost in zip(self.seeds, lost, strict=True) if is_lost}
        # Virtual devices and processes on CPUs can deadlock in a collective when calls run ahead of each other.
        self.blocking = jax.default_backend() == 'cpu' and experiment.plan.mesh.size > 1

    def called(self, state: TrainState, metrics) -> None:
        """After each call: fetch what the call before it returned."""
        if self.blocking:
            jax.block_until_ready(state)
        self.step += self.config.steps_per_call
        self._drain()
        self.pending = self.step, metrics
        self.progress.update(self.step)

    def finished(self, state: TrainState, signals: 'Signals') -> bool:
        """Before each call: evaluate and save where it is due. True where training is over."""
        config, new, results = self.config, self.step > self.start, None
        asked = signals.requested(self.step % config.log_every_steps == 0)
        over = self.step >= config.total_steps
        if new and self.step % config.eval_every_steps == 0:
            self._drain()
            with self.pace.pause('evaluation', self.step):
                results = self._evaluate(state)
            self.log.timing(event='evaluation', step=self.step, seconds=self.pace.last('evaluation'))
        over = over or self.watch.out_of_patience()
        best = results is not None and config.eval.best_metric and not self.watch.waited  # which is to be kept
        if new and (self.step % config.checkpoint_every_steps == 0 or best or over or asked):
            self._drain()
            self.log.flush()
            with self.pace.pause('checkpoint', self.step):
                self.checkpoints.save(self.step, state, results)
            self.log.timing(event='checkpoint', step=self.step, seconds=self.pace.last('checkpoint'))
        if asked and not over:
            raise Interrupted(asked, self.step)
        return over

    def conclude(self, state: TrainState, signals: 'Signals') -> None:
        """The final evaluation, the pictures and evaluation.json, the last of what a finished run leaves.

        Raises Interrupted at any moment: the state is saved, and so is each part of the evaluation that is done.
        """
        self.progress.close()
        with signals.heard_at_once(self.step):
            digest, between = self.checkpoints.digest(self.step), lambda: signals.raise_if_asked(self.step)
            found = self.evaluation.final(state, digest, between)
            by_seed = dict(zip(self.seeds, found.values(), strict=True))
            for seed, results in by_seed.items():
                self._row('final', {name: found['value'] for name, found in results.items()}, seed)
            for k, seed in enumerate(self.seeds):
                self._draw(state, k, seed)
            if processes.first():
                name, images = self._name(self.seeds[0]), self.evaluation.images
                pictures.draw_neighbours(self.workdir, name, self.experiment, images)
                self.log.flush()
                tables.write(self.workdir / 'evaluation.json', self.step, found)
        evaluation.forget(self.workdir)
        announce.end(self.workdir)
        announce.table(self.experiment, self.step, tables.across(found))

    def close(self) -> None:
        self.progress.close()
        self.log.close()
        self.checkpoints.close()

    def _drain(self) -> None:
        """Logs the pending metrics where that is due; raises RunError on NaN, or marks the replica that diverged."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = {name: np.asarray(value) for name, value in sorted(parallel.fetch(metrics).items())}
        for k, seed in enumerate(self.seeds):
            self._check_finite(step, {name: self._of(value, k) for name, value in metrics.items()}, seed)
        for k, seed in enumerate(self.seeds):  # no row of a step at which another replica ends the run
            if step % self.config.log_every_steps == 0:
                own = {name: self._of(value, k) for name, value in metrics.items()}
                # The mean over the call's steps: smoother than one step, and the same after a resume.
                self._row('train', {name: value.mean(dtype=np.float64) for name, value in own.items()}, seed, step)
        if step % self.config.log_every_steps == 0:
            shown = {name: float(value.mean()) for name, value in metrics.items()}
            speed = self.pace.measure(step)
            by_loss = sorted(shown.items(), key=lambda item: not item[0].endswith('/loss'))
            self.progress.log(step, dict(by_loss), self.pace.words())
            self.log.timing(event='log', step=step, steps_per_second=speed)

    def _of(self, value: np.ndarray, k: int) -> np.ndarray:
        return value[k] if self.experiment.plan.replicas else value

    def _check_finite(self, step: int, metrics: dict[str, np.ndarray], seed: int | None) -> None:
        if seed in self.diverged:
            return
        # Counted from the call's last step, which every metric has.
        found = [
            (int(np.argmin(np.isfinite(v))) - len(v), name) for name, v in metrics.items() if not np.isfinite(v).all()
        ]
        if not found:
            return
        offset, name = min(found)
        at, value = step + offset + 1, metrics[name][offset]
        if seed is None:
            raise RunError(
                f'step {at}: {name} is {value}; training stopped. The last good checkpoint is '
                f'{self.checkpoints.latest() or "none"}; try a lower learning rate, or optim.*.clip_norm.'
            )
        self.diverged.add(seed)
        self._row('train', {'diverged': 1.0}, seed, at)
        if len(self.diverged) == len(self.seeds):
            raise RunError(f'step {at}: all {len(self.seeds)} replicas diverged, the last with {name} = {value}')

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        by_seed = {
            seed: self.evaluation.each(
                self.experiment.replica(state, k), self.experiment.seeds[k], self.config.eval.split
            )
            for k, seed in enumerate(self.seeds)
        }
        for seed, results in by_seed.items():
            self._row('eval', {name: found['value'] for name, found in results.items()}, seed)
        if self.step < self.config.total_steps:  # else the final evaluation follows, and draws
            self._draw(state, 0, self.seeds[0])
        values = {name: found['value'] for name, found in tables.across(by_seed).items()}
        if best := self.config.eval.best_metric:
            values[best] = values.get(reports.named(best, values), math.nan)
        self.progress.evaluated(self.step, values)
        self.watch.see(values)
        self.watch.waited = processes.gather('evaluated', self.watch.waited)[0]
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _name(self, seed: int | None) -> str:
        return f'{self.step:08d}' + ('' if seed is None else f'_seed{seed}')

    def _draw(self, state: TrainState, k: int, seed: int | None) -> None:
        own, rows = self.experiment.replica(state, k), None if k else self.log.rows()  # plots/ shows the first replica
        evaluator, of_draws = self.evaluation.evaluator, self.experiment.seeds[k]
        pictures.draw(self.workdir, self._name(seed), self.experiment, evaluator, own, of_draws, rows)

    def _row(self, split: str, values: dict[str, float], seed: int | None, step: int | None = None) -> None:
        self.log.metrics(self.step if step is None else step, split, values, seed)


def _check_workdir(config, workdir: pathlib.Path) -> bool:
    """True where a run of this very config is there. Raises UserError where another is."""
    for place in (workdir, *workdir.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(
                f'--workdir: {place} is a link to {place.readlink()}, which is not there; '
                'make that folder, or name another'
            )
        if place.exists() and not place.is_dir():
            raise UserError(f'--workdir: {place} is a file')
    check_folder(workdir)
    if not (workdir / 'config.json').exists():
        if (workdir / 'checkpoints').exists():
            raise UserError(f'--workdir: {workdir} holds checkpoints but no config.json; name another folder')
        return False
    differing = config_lib.differing(config, config_lib.from_json(workdir / 'config.json'))
    if differing:
        raise UserError(
            f'--workdir: {workdir} holds a run of another config; differing: {"; ".join(differing)}\n'
            'Name another folder, or give the config that is there (total_steps may grow, parallel.* may differ).'
        )
    return True


def _check_seen(workdir: pathlib.Path, resumes: bool) -> None:
    """Raises UserError if only some of the processes see the run in `workdir`."""
    seen = processes.gather('run', resumes)
    if len(set(seen)) > 1:
        raise UserError(
            f'--workdir: process {seen.index(True)} sees a run in {workdir}, process {seen.index(False)} none; '
            'name a folder that all processes share'
        )


def _make(config, workdir: pathlib.Path, held: contextlib.ExitStack, first: bool, locked: bool) -> None:
    """Makes the folder of a new run and takes its lock. Removes what it made if not all processes see it."""
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    with processes.together('workdir'):
        if first:
            held.enter_context(contextlib.nullcontext() if locked else _locked(workdir))
            if _check_workdir(config, workdir):
                raise UserError(
                    f'--workdir: another process began {workdir} meanwhile; the same command goes on from it'
                )
    try:
        processes.check_shared(workdir)
    except UserError:
        if first and made:
            (workdir / '.lock').unlink()
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def _locked(workdir: pathlib.Path):
    """Keeps other processes from training in `workdir`. The system takes the lock away however a process ends."""
    path = workdir / '.lock'
    with disk_errors(path):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open_append(path)
    with file:
        try:
            # Not flock, which anybody who may read the file could hold.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f'--workdir: another process trains in {workdir}; wait for it, stop it, or name another folder'
            ) from None
        except OSError as error:  # some network file systems have no locks
            note(f'{workdir}: cannot be locked ({error}); let no other process train in it')
        yield
