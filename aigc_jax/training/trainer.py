"""Training a run from its folder's state to its end, as the command line and a notebook do."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, TextIO

import numpy as np
from ml_collections import ConfigDict

from aigc_jax import adapt, reports
from aigc_jax.core import parallel, processes
from aigc_jax.core import progress as progress_lib
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.data import Text
from aigc_jax.reports import tables
from aigc_jax.reports.tables import Results
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial, manifest, moved
from aigc_jax.runs import teacher as teacher_lib
from aigc_jax.runs.checkpoint import Checkpoints
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run, naming_new_place
from aigc_jax.training import announce
from aigc_jax.training.early_stopping import is_over
from aigc_jax.training.loop import Loop
from aigc_jax.training.signals import Interrupted, Signals

_devices: list[frozenset] = []  # of the trainings in the threads of this process
_devices_lock = threading.Lock()


class Outcome(NamedTuple):
    """How a training ended.

    step: of the last checkpoint. results: of the final evaluation, {metric: {'value', …}}, over the replicas where
    there are several; {} if the training was interrupted. diverged: the seeds of the replicas that were lost to NaN.
    interrupted: the number of the signal; 0: none.
    """

    step: int
    results: Results
    diverged: tuple[int, ...] = ()
    interrupted: int = 0


def train(
    config: ConfigDict, run: Run, *, signals: bool = False, progress: TextIO | None = None,
    devices: list | None = None, clock: dict[str, float] | None = None,
) -> Outcome:  # fmt: skip
    """Trains the run, or goes on with it from its newest checkpoint, to its end.

    It runs in any thread and any number of times in a process. It changes no argument, and nothing global. Two at once
    in threads want a single device, or several that the other does not use (`devices`). What `config` leaves out has
    its default.

    signals: whether SIGINT and SIGTERM end it after saving, which wants the main thread. Otherwise Ctrl-C in a notebook
      is a KeyboardInterrupt, after which the same call goes on from the newest checkpoint.
    progress: a stream, such as sys.stderr, that the progress is shown on; None: none is shown.
    devices: those that it may use; None: all.
    clock: seconds of what went before, for timing.jsonl.

    Raises UserError before anything is written; RunError on NaN or a full disk, with the last good checkpoint kept.
    """
    with processes.together('config'):
        config = config_lib.resolved(config)
    with contextlib.ExitStack() as held:
        return _Training(config, run, progress, dict(clock or {}), held).train(signals, devices)


class _Training:
    """One call of `train`. held: what is closed when it ends, however it does."""

    def __init__(self, config, run: Run, stream: TextIO | None, clock: dict[str, float], held: contextlib.ExitStack):
        self._config, self._run, self._stream, self._clock, self._held = config, run, stream, clock, held
        self._began = time.perf_counter()
        held.enter_context(progress_lib.shown_on(stream))

    def train(self, signals: bool, devices: list | None) -> Outcome:
        config, run = self._config, self._run
        resumes, locked = self._claim()
        experiment = self._experiment(resumes, devices)
        checkpoints = self._checkpoints() if resumes else None
        newest = processes.gather('newest checkpoint', checkpoints.latest() if checkpoints else None)[0]
        if newest is not None and (ended := self._ended(newest)):
            return ended
        state, taken = self._state(experiment, checkpoints, newest)
        start = int(np.ravel(parallel.fetch(state.step))[0])
        if start > config.total_steps:
            raise UserError(f'total_steps: {config.total_steps}, but {run.folder} is at step {start} already')
        teacher = teacher_lib.load(experiment, run, newest)
        if teacher:
            taken = {**taken, **teacher.taken}
            processes.alike('distill.run', teacher.taken, 'Give all the same run.')
        self._lap('state')
        feeds = self._held.enter_context(contextlib.closing(experiment.feeds(start)))
        data, call, feed = experiment.resident_data(), experiment.train_call(teacher), None
        data = (data, teacher.params) if teacher else data
        if start < config.total_steps:
            feed = next(feeds)
            self._lap('feed')
            call = call.lower(state, experiment.seed_array, data, feed)  # finds the last mistakes of a config
        announce.begin(self._stream, experiment, run, start)
        if start and config.total_steps > (before := run.config.total_steps):
            announce.grown(experiment, before, start)
        if start < config.total_steps:
            call = call.compile()
            self._lap('compile')
        processes.gather('compiled', None)  # Gloo's time limit begins when the first process enters a collective
        if not resumes:
            run.make(config, self._held, locked)
        self._write(experiment, start, taken)
        with processes.together('checkpoints'):  # after config.json, without which checkpoints/ belongs to no run
            checkpoints = checkpoints or self._checkpoints()
            # A run without steps that was interrupted before its checkpoint may have a row of step 0 already.
            behind = start if config.total_steps or newest is not None else -1
            log = self._held.enter_context(contextlib.closing(run.log(behind)))
            log.timing(event='start', step=start, seconds={**self._clock})
        loop = Loop(experiment, run, checkpoints, log, start, self._stream)
        self._held.callback(loop.progress.close)
        with Signals(signals) as heard:
            try:
                while not loop.finished(state, heard):
                    state, metrics = call(state, experiment.seed_array, data, feed)
                    loop.called(state, metrics)
                    feed = next(feeds) if loop.step < config.total_steps else None  # while the device computes
                results = loop.conclude(state, heard)
            except Interrupted as error:
                return Outcome(error.step, {}, tuple(sorted(loop.diverged)), error.number)
        if run.draws:
            announce.end(self._stream, run)
        return Outcome(loop.step, results, tuple(sorted(loop.diverged)))

    def _claim(self) -> tuple[bool, bool]:
        """(whether a run of this config is there, whether it is locked already). Raises UserError."""
        config, run = self._config, self._run
        fields = {name: repr(value) for name, value in config_lib.flatten(config).items()}
        processes.alike('config', fields, 'Give all of them the same config and fields.')
        with processes.together('workdir'):
            resumes = run.check(config, lambda: moved.fields(config, run))
        seen = processes.gather('run', resumes)
        if len(set(seen)) > 1:
            raise UserError(
                f'workdir: process {seen.index(True)} sees a run in {run.folder}, process {seen.index(False)} none; '
                'name a folder that all processes share'
            )
        locked = processes.first() and (resumes or run.paths.lock.exists())
        with processes.together('lock'):
            if locked:
                self._held.enter_context(run.lock())
        if resumes:
            processes.check_shared(run.folder)
        self._began = time.perf_counter()
        return resumes, locked

    def _experiment(self, resumes: bool, devices: list | None) -> Experiment:
        """With the data loaded, and checked against those of the run. Raises UserError."""
        config, run = self._config, self._run
        with processes.together('data'):
            tokenizer = run.tokenizer if resumes else initial.tokenizer(config)
            with naming_new_place(config) if resumes else contextlib.nullcontext():
                experiment = Experiment(config, devices, tokenizer)
            self._held.enter_context(_alone_on(experiment.plan.mesh.devices.flat))
            manifest.check(run.paths.manifest, experiment)
            reports.check(experiment)
        if processes.several():
            ground = {'sha256 of the data': experiment.dataset.fingerprint}
            ground |= manifest.made_with() | manifest.own_code(config)
            processes.alike('ground', ground, 'Give all of them the same files, code, packages and variables.')
            processes.connect(experiment.plan.mesh)
        self._lap('data')
        theirs = run.config if resumes else config
        was, now = (c.parallel.to_json(sort_keys=True) for c in (theirs, config))
        if was != now:
            note(f'parallel: {now} from here on, {was} before')
        return experiment

    def _checkpoints(self) -> Checkpoints:
        return self._held.enter_context(contextlib.closing(self._run.checkpoints(self._config, read_only=False)))

    def _ended(self, newest: int) -> Outcome | None:
        """That of a run which ended at its newest checkpoint before, and was evaluated."""
        run = self._run
        if not is_over(self._config, run, newest) or not (found := tables.read(run.paths.evaluation)):
            return None
        step, results = found
        if step != newest:
            return None
        announce.finished(self._stream, run, step)
        return Outcome(step, results, tuple(sorted({row['seed'] for row in run.rows() if 'diverged' in row})))

    def _state(self, experiment: Experiment, checkpoints, newest: int | None) -> tuple[TrainState, dict]:
        """(the state to go on from, the steps and the digests of the checkpoints of init.run and prune.run)."""
        if newest is not None:
            return checkpoints.restore(newest, experiment.abstract_state), {}
        adapt.tell(self._config)
        model, step = initial.model(experiment)
        taken, own = {}, self._config
        if step is not None:
            digest, said = initial.digest(own, step), initial.said(own.init.run)
            taken = {'init_step': step, 'init_sha256': digest, 'init_config': said}
        masks, step = initial.masks(experiment)
        if masks:
            digest, said = initial.digest_of(own.prune.run, step), initial.said(own.prune.run)
            taken |= {'prune_step': step, 'prune_sha256': digest, 'prune_config': said}
        if taken and processes.several():
            processes.alike('init.run, prune.run', taken, 'Give all the same run.')
        return experiment.create_state(*(model or (None, None)), masks), taken

    def _write(self, experiment: Experiment, start: int, taken: dict) -> None:
        """What a run is made with; a resumed one writes it anew."""
        paths, spec = self._run.paths, experiment.dataset.spec
        with processes.together('files of the start'):
            if processes.first():
                paths.clear_leftovers()
                if isinstance(spec, Text):
                    atomic_write(paths.tokenizer, spec.tokenizer.to_json())
                atomic_write(paths.config, config_lib.to_json(self._config))
                manifest.write(paths.manifest, experiment, start, taken)

    def _lap(self, name: str) -> None:
        self._clock[name], self._began = time.perf_counter() - self._began, time.perf_counter()


@contextlib.contextmanager
def _alone_on(devices) -> Iterator[None]:
    """Keeps other threads of this process from training on these devices, where one of the two uses several: programs
    with collectives that two threads start in different orders wait for each other for ever. Raises UserError."""
    own = frozenset(devices)
    with _devices_lock:
        for other in _devices:
            if own & other and max(len(own), len(other)) > 1:
                raise UserError(
                    f'devices: another thread trains on {len(other)}, of which this run wants '
                    f'{len(own & other)} too; give each training devices of its own, or a single one'
                )
        _devices.append(own)
    try:
        yield
    finally:
        with _devices_lock:
            _devices.remove(own)
