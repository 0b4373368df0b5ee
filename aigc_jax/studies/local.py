"""The local launcher: trials as processes of `python -m aigc_jax.main` on this machine, so many at a time.

A launcher is a function of the trials that are not finished. It may be killed at any moment: its processes train on to
their ends, and the next launcher waits for them.
"""

import collections
import contextlib
import errno
import glob
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aigc_jax.core import parallel, slurm
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import disk_errors
from aigc_jax.runs.folder import Run
from aigc_jax.studies import states
from aigc_jax.studies.rows import overrides_of
from aigc_jax.studies.states import State
from aigc_jax.studies.sweeps import Trial
from aigc_jax.training.signals import handling

_POLL, _ELSEWHERE = 0.05, 1.0  # seconds between two looks at our own processes, and at those of others
_TOO_MANY = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}  # processes, or open files
Tell = Callable[[Trial, State], None]


class Outcome(NamedTuple):
    """states: of the trials that ended here or elsewhere, by name. interrupted: the number of the signal; 0: none."""

    states: dict[str, State]
    interrupted: int


def command(trial: Trial) -> list[str]:
    """The command line of a trial, which goes on with what was begun."""
    how, fields = [f'--config={trial.config}'], overrides_of(trial)
    if trial.evaluation:
        how, fields = ['--mode=evaluate'], trial.evaluation.fields
    return [
        sys.executable, '-m', 'aigc_jax.main', *how, f'--workdir={trial.folder}',
        *(f'--config.{field}={text}' for field, text in fields),
    ]  # fmt: skip


def default_jobs() -> int:
    """As many as there are cores; one where there is an accelerator, most of whose memory JAX takes at once."""
    on_cpu = os.environ.get('JAX_PLATFORMS', '').lower() == 'cpu'
    if not on_cpu and any(map(glob.glob, ('/dev/nvidia[0-9]*', '/dev/accel[0-9]*', '/dev/vfio/[0-9]*'))):
        return 1
    return parallel.cores()


def shares(jobs: int) -> list[set[int]]:
    """The cores of each of `jobs` processes at a time: equally many, because their number may change the rounding."""
    cores = sorted(_cores())
    each = len(cores) // jobs
    if not each:
        return [{cores[k % len(cores)]} if cores else set() for k in range(jobs)]
    return [set(cores[k * each : (k + 1) * each]) for k in range(jobs)]


def _cores() -> set[int]:
    """That this process may use; none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set()


def launch(
    trials: Sequence[Trial], jobs: int, tell: Tell, unwanted: Callable[[Trial], bool] = lambda trial: False
) -> Outcome:
    """Trains `trials`, `jobs` at a time, to their ends. tell: is called with each that ends.

    unwanted: is asked of each that trains, each second; one that is has to save and end.
    SIGINT and SIGTERM are passed on to the processes, once each, and the launcher waits until they have saved.
    """
    signals = _Signals()
    with handling(signals.handle):
        return _Launch(trials, jobs, tell, signals, unwanted).run()


class _Signals:
    """Counts SIGINT and SIGTERM; `numbers` are those that have not been passed on."""

    def __init__(self):
        self.first, self.numbers = 0, collections.deque()

    def handle(self, number, frame):
        self.first = self.first or number
        self.numbers.append(number)


class _Process:
    """A trial that trains. file: its log, whose lock it holds. slot: which share of the cores it has."""

    def __init__(self, trial: Trial, file, cores: set[int], slot: int):
        self.trial, self.slot, self._file, self.told_to_end = trial, slot, file, False
        words = command(trial)
        with disk_errors(trial.log):
            file.write(f'\n{states.BEGIN}{shlex.join(words)}\n'.encode(errors='surrogateescape'))  # a path's own bytes
        before = _cores()
        if cores:
            os.sched_setaffinity(0, cores)  # a child inherits it, and XLA starts as many threads as there are cores
        try:
            # A session of its own: Ctrl-C in a terminal reaches the launcher alone, which passes it on once. A second
            # one would end the process before it has saved.
            self.popen = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env=slurm.outside(),  # in a job the launcher is what Slurm sees, not each run
            )  # fmt: skip
        finally:
            if cores:
                os.sched_setaffinity(0, before)

    def ended(self) -> bool:
        if self.popen.poll() is None:
            return False
        if self.popen.returncode:
            with contextlib.suppress(OSError):  # on a full disk the reason is what the process could still write
                self._file.write(f'{states.END}{self.popen.returncode}]\n'.encode())
        return True

    def close(self) -> None:
        self._file.close()


class _Launch:
    def __init__(self, trials: Sequence[Trial], jobs: int, tell: Tell, signals: _Signals, unwanted):
        self._tell, self._signals, self._unwanted = tell, signals, unwanted
        self._waiting = collections.deque(trials)
        self._running: list[_Process] = []
        self._elsewhere: list[Trial] = []  # another launcher's, or a process of one that was killed
        self._shares, self._free = shares(jobs), list(range(jobs))
        self._states: dict[str, State] = {}
        self._asked = self._judged = 0.0
        self._crowded = False  # no other process can be started before one ends

    def run(self) -> Outcome:
        try:
            return self._run()
        finally:
            for process in self._running:  # an error of the launcher itself, such as a full disk
                process.popen.send_signal(signal.SIGTERM)
            for process in self._running:
                process.popen.wait()

    def _run(self) -> Outcome:
        while self._running or (not self._signals.first and (self._waiting or self._elsewhere)):
            while self._signals.numbers:
                number = self._signals.numbers.popleft()
                for process in self._running:
                    process.popen.send_signal(number)
            while self._waiting and self._free and not self._crowded and not self._signals.first:
                self._begin(self._waiting.popleft())
            for process in [process for process in self._running if process.ended()]:
                self._running.remove(process)
                self._crowded = False
                self._free.append(process.slot)
                self._end(process.trial, states.look(process.trial, held=False))
                process.close()
            self._end_unwanted()
            self._look_elsewhere()
            time.sleep(_POLL)
        return Outcome(self._states, self._signals.first)

    def _begin(self, trial: Trial) -> None:
        file, ended = None, None
        try:
            file = states.held(trial.log)
            if file is None or _trained_by_hand(trial):
                self._elsewhere.append(trial)
            elif (state := states.look(trial, held=False)).kind in (states.DONE, states.OTHER):
                ended = state  # another launcher has finished it meanwhile
            else:
                self._running.append(_Process(trial, file, self._shares[self._free[0]], self._free[0]))
                self._free.pop(0)
                return
        except (OSError, RunError) as error:  # such as a full disk: the others may still end well
            if self._running and getattr(error.__cause__ or error, 'errno', None) in _TOO_MANY:
                self._waiting.appendleft(trial)
                self._crowded = True
            else:
                ended = State(states.FAILED, words=f'cannot be started: {error}')
                with contextlib.suppress(OSError):
                    if file:
                        file.write(f'error: {ended.words}\n'.encode(errors='surrogateescape'))
        if file:
            file.close()
        if ended:
            self._end(trial, ended)

    def _end(self, trial: Trial, state: State) -> None:
        self._states[trial.name] = state
        self._tell(trial, state)

    def _end_unwanted(self) -> None:
        if time.monotonic() < self._judged + _ELSEWHERE:
            return
        self._judged = time.monotonic()
        self._waiting = collections.deque(trial for trial in self._waiting if not self._unwanted(trial))
        for process in self._running:
            if not process.told_to_end and self._unwanted(process.trial):
                process.told_to_end = True
                process.popen.send_signal(signal.SIGTERM)

    def _look_elsewhere(self) -> None:
        """Takes up what others no longer train and have not finished; what failed there has failed."""
        if not self._elsewhere or time.monotonic() < self._asked + _ELSEWHERE:
            return
        self._asked = time.monotonic()
        for trial in self._elsewhere[:]:
            state = states.look(trial)
            if state.kind == states.RUNNING or _trained_by_hand(trial):
                continue
            self._elsewhere.remove(trial)
            if state.kind in (states.MISSING, states.STOPPED):
                self._waiting.append(trial)
            else:
                self._end(trial, state)


def _trained_by_hand(trial: Trial) -> bool:
    """Whether a process that no launcher started trains in the trial's folder."""
    if not trial.folder.is_dir():
        return False
    try:
        with Run(trial.folder).lock():
            return False
    except UserError:
        return True
    except RunError:  # its own process will say why it cannot be locked
        return False
