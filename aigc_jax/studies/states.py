"""How a trial stands, read from its files alone: any number of launchers may have worked on it, and may be gone.

The log beside a run's folder holds what its processes wrote. Each launch begins with a line `$ COMMAND`, and the
launcher ends it with the exit code. A process of the trial holds the log's lock as long as it lives, because it
inherits the open file: a launcher that is killed leaves no doubt about whether its children live.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import pathlib
import re
import signal
from typing import BinaryIO, NamedTuple

from aigc_jax.core import records
from aigc_jax.core.errors import UserError, cause, printable
from aigc_jax.core.files import open_append
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import results as results_lib
from aigc_jax.runs.paths import Paths
from aigc_jax.studies.sweeps import Trial, fingerprint

DONE, RUNNING, STOPPED, FAILED, MISSING, OTHER = 'done', 'running', 'stopped', 'failed', 'missing', 'another config'
QUEUED = 'queued'  # of which the files do not tell, but the queue of a cluster
BEGIN, END = '$ ', '[exit code '
INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
_FATAL = {signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_TAIL = 1 << 14  # bytes of a log's end; a traceback has less
_SEED, _TOTAL = re.compile(r'\n  "seed": (-?\d{1,18})\b'), re.compile(r'\n  "total_steps": (\d{1,18})\b')
_PATIENT = re.compile(r'\n    "patience": [1-9]')
_ABORTED = re.compile(r'F\d{4} [^\]]*\] (.+)|\s*what\(\):\s*(.+)')  # as XLA and C++ say why they abort
_START = re.compile(b'"event": "start"')


class State(NamedTuple):
    """kind: one of the words above. step: that the run has reached. words: the reason of a failure.

    speed: steps a second of one that runs. results: of the final evaluation, {metric: {'value', …}}.
    """

    kind: str
    step: int = 0
    words: str = ''
    speed: float = 0.0
    results: dict | None = None


def look(trial: Trial, held: bool | None = None) -> State:
    """Of a trial. A file that is damaged is a failure, whose reason names the file.

    held: whether a process of it lives, where that is known: the launcher itself may hold the lock.
    """
    paths = Paths(trial.folder)
    if trial.evaluation:
        return _look_at_evaluation(trial, paths, held)
    try:
        config = _text(paths.config)
        if config is not None and not _is_same(trial, config):
            return State(OTHER, words='its run is of another config')
        if config is not None and (finished := _finished(trial, paths, config)):
            return State(DONE, finished[0], results=finished[1])
        if is_held(trial.log) if held is None else held:
            step, speed = _progress(paths)
            return State(RUNNING, step, speed=speed)
        if config is not None and (finished := _finished(trial, paths, config)):  # since it was asked
            return State(DONE, finished[0], results=finished[1])
    except UserError as error:
        return State(FAILED, words=_line(str(error)))
    step, _ = _progress(paths)
    if reason := _reason(trial.log):
        return State(FAILED, step, reason)
    return State(MISSING) if config is None else State(STOPPED, step)


def _look_at_evaluation(trial: Trial, paths: Paths, held: bool | None) -> State:
    """Of one that evaluates a finished run once more. An evaluation of an earlier training of the run is none of it."""
    fault, finished = '', None
    try:
        if finished := results_lib.read(paths.evaluation):
            with open(paths.manifest, 'rb', opener=records.regular) as file:
                digest = hashlib.sha256(file.read()).hexdigest()
    except FileNotFoundError:
        finished = None
    except UserError as error:
        fault = str(error)
    except OSError as error:
        fault = f'{paths.manifest}: cannot be read: {error.strerror or error}'
    for path in sorted(paths.evaluations.glob('*.json')) if finished and not fault else ():
        try:
            found = records.read(path)
            flat = {f'{group}.{name}': v for group in ('data', 'sample', 'eval') for name, v in found[group].items()}
            same = all(name in flat and flat[name] == v for name, v in trial.evaluation.made_with.items())
            if same and (found['manifest'], found['step']) == (digest, finished[0]):
                return State(DONE, finished[0], results=results_lib.checked(found['metrics']))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f'it lacks {error}' if isinstance(error, KeyError) else cause(error)
            fault = f'{path}: cannot be read as an evaluation: {why}; remove it'
    if fault:
        return State(FAILED, words=_line(fault))
    if is_held(trial.log) if held is None else held:
        return State(RUNNING)
    reason = _reason(trial.log)
    return State(FAILED, words=reason) if reason else State(MISSING)


def hours(trial: Trial) -> float:
    """That the processes of its run have lived, by timing.jsonl: of one that was killed, up to its last line."""
    data = _bytes(Paths(trial.folder).timing)
    data = data[: data.rfind(b'\n') + 1]
    starts = [data.rfind(b'\n', 0, found.start()) + 1 for found in _START.finditer(data)]
    seconds = 0.0
    for start, end in zip(starts, [*starts, len(data)][1:], strict=True):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # a damaged line says nothing
            begun = records.parse(data[start : data.index(b'\n', start)])
            last = records.parse(data[data.rfind(b'\n', 0, end - 1) + 1 : end])
            # An older run has only a clock that somebody may have put back.
            lived = last['elapsed'] if 'elapsed' in last else max(0.0, last['time'] - begun['time'])
            lived += sum(begun['seconds'].values())
            seconds += lived if 0 <= lived < math.inf else 0.0
    return seconds / 3600


def held(log: pathlib.Path) -> BinaryIO | None:
    """The log, open to be appended to, with its lock; None where a process has it. A child that inherits it keeps it.

    Raises OSError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = open_append(log)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # some network file systems have no locks; the run's own lock is left then
        pass
    return file


def is_held(log: pathlib.Path) -> bool:
    """Whether a process of the trial lives, or a launcher begins one."""
    try:
        with open(log, 'rb', opener=records.regular_itself) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no log, or there are no locks
        return False
    return False


def _text(path: pathlib.Path) -> str | None:
    try:
        with open(path, encoding='utf-8', opener=records.regular) as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read: {cause(error)}') from None


def _is_same(trial: Trial, config: str) -> bool:
    """Whether the text of a run's config.json is the trial's own config, or that of fewer steps."""

    def fits(text: str) -> bool:
        if trial.start:  # which may lie elsewhere by now
            row, seed = re.escape(trial.start.row.name), trial.start.seed
            text = re.sub(rf'(\n    "run": ")[^"]*/({row})/seed-{seed}(?=")', r'\1\2', text)
        seed, total = _SEED.search(text), _TOTAL.search(text)
        of_trial = seed and total and int(seed[1]) == trial.seed and int(total[1]) <= trial.row.total_steps
        return bool(of_trial) and fingerprint(text) == trial.row.fingerprint

    # The run may be older than a field that all configs have by now.
    return fits(config) or fits(config_lib.to_json(config_lib.from_json(Paths(trial.folder).config)))


def _finished(trial: Trial, paths: Paths, config: str) -> tuple[int, dict] | None:
    """(its last step, its results) where the run has ended, by its total_steps or by early stopping."""
    if not (found := results_lib.read(paths.evaluation)):
        return None
    step, results = found
    if step == trial.row.total_steps:
        return step, results
    if not _PATIENT.search(config):
        return None
    from aigc_jax.runs.folder import Run  # imports JAX, for which `status` of other runs need not wait
    from aigc_jax.training import early_stopping

    run = Run(trial.folder)
    own = run.config
    own.total_steps = trial.row.total_steps
    return (step, results) if early_stopping.is_over(own, run, step) else None


def _progress(paths: Paths) -> tuple[int, float]:
    """(step, steps a second) by the end of timing.jsonl; (0, 0) where nothing stands there yet."""
    step, speed = 0, 0.0
    for line in _bytes(paths.timing, 4096).split(b'\n'):
        try:
            row = records.parse(line)
            step, speed = int(row.get('step', step)), float(row.get('steps_per_second', speed))
        except (ValueError, TypeError, AttributeError, OverflowError):  # the first and the last line may be cut
            continue
    return step, speed


def _reason(log: pathlib.Path) -> str:
    """Why the last launch failed, in one line; '' where it did not, or was interrupted, or there was none."""
    text = '\n' + _bytes(log, _TAIL).decode(errors='replace')
    lines = [line for line in text[text.rfind('\n' + BEGIN) + 1 :].split('\n') if line.strip()]
    code = 0
    if lines and (ended := re.match(re.escape(END) + r'(-?\d{1,9})\]', lines[-1])):
        code = int(ended[1])
        lines.pop()
    if code - 128 in INTERRUPTS or -code in INTERRUPTS:
        return ''
    if said := [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]:
        return _line(said[-1])
    names = {number.value: number.name for number in signal.Signals}
    number = -code if code < 0 else code - 128  # the latter by a shell, and by srun
    if code < 0 or number in _FATAL:
        memory = ', perhaps by the system for want of memory' if number == signal.SIGKILL else ''
        said = [found[1] or found[2] for found in map(_ABORTED.match, lines) if found]
        return _line(f'killed by {names.get(number, f"signal {number}")}{memory}{f": {said[0]}" if said else ""}')
    if code and (said := [line for line in lines if line.startswith('srun: error: ')]):  # the run has not begun
        return _line(said[-1])
    return _line(lines[-1]) if code or any(line.startswith('Traceback (most recent') for line in lines) else ''


def _line(text: str) -> str:
    return printable(text.partition('\n')[0])[:300]


def _bytes(path: pathlib.Path, most: int | None = None) -> bytes:
    """What a file holds, or its last bytes; none where it is not there."""
    try:
        with open(path, 'rb', opener=records.regular) as file:
            if most and (size := os.fstat(file.fileno()).st_size) > most:
                file.seek(size - most)
            return file.read()
    except OSError:
        return b''
