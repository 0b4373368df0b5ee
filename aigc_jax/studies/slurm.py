"""The Slurm launcher: trials as elements of job arrays, one `sbatch` for up to 1,000 of them.

It may be killed at any moment, and run again at any moment: what is queued or runs is not submitted again.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import atomic_write, disk_errors, open_append
from aigc_jax.core.notes import note
from aigc_jax.studies import local, queue, states, status
from aigc_jax.studies.local import Outcome, Tell
from aigc_jax.studies.queue import Element
from aigc_jax.studies.states import State
from aigc_jax.studies.sweeps import Trial
from aigc_jax.training.signals import handling

MOST = 1000  # elements of an array; Slurm's own MaxArraySize is 1001 unless a cluster sets it
GRACE_SECONDS = 120  # before the time limit, to save
_POLL = 15.0  # seconds between two looks at the queue, at most
_LATE = 15.0  # seconds after which files of another node are seen
_OURS = re.compile('-a|--array|--wrap')

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array={array}
#SBATCH --chdir={cwd}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@{grace}
{options}
trap : TERM
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

run() {{
  local name=$1 log={workdir}/$1.log line code
  shift
  mkdir -p "${{log%/*}}" && exec 9>>"$log" || exit 1
  flock --timeout 60 --conflict-exit-code 75 9
  [ $? -ne 75 ] || {{ echo "$name: another process trains it"; exit 0; }}
  printf -v line ' %q' "$@"
  printf '\\n$%s\\n' "$line" >&9
  srun --kill-on-bad-exit=1 "$@" </dev/null >&9 2>&9
  code=$?
  [ $code -eq 0 ] || echo "{end}$code]" >&9
  # SIGTERM came before the run could handle it.
  [ $code -ne 143 ] || exec {python} -c 'from aigc_jax.core import slurm; slurm.stay(143)' >&9 2>&9
  exit $code
}}

case $SLURM_ARRAY_TASK_ID in
{elements}
esac
"""


class Options(NamedTuple):
    """sbatch: its options, as on its command line. jobs: at most so many run at a time; None: as many as may."""

    sbatch: str = ''
    jobs: int | None = None


def scripts(trials: Sequence[Trial], options: Options) -> Iterator[str]:
    """What `submit` would give to sbatch for these trials. Raises UserError."""
    for number, start in enumerate(range(0, len(trials), MOST), 1):
        path = trials[0].workdir.resolve() / queue.FOLDER / f'array-{number}.sh'
        yield _script(trials[start : start + MOST], options, path)


def missing(found: Sequence[tuple[Trial, State]]) -> list[Trial]:
    """Those that are not done, and neither run nor are queued."""
    return [trial for trial, state in found if state.kind in (states.MISSING, states.STOPPED, states.FAILED)]


def submit(trials: Sequence[Trial], options: Options) -> tuple[list[str], list[Trial]]:
    """Submits what is missing of them; (the ids of the arrays, the trials in them). All have one workdir.

    What Slurm could not start, and holds, is released.

    Raises UserError where sbatch refuses, RunError where Slurm does not answer. Nothing is left behind then, but for
    arrays that were accepted before; the same command submits the rest.
    """
    workdir = trials[0].workdir
    check(options, workdir)
    if shutil.which('sbatch') is None:
        raise UserError('--launcher=slurm: sbatch is not here; give the command on a machine that submits jobs')
    with _undone(workdir / queue.FOLDER), _alone(workdir / queue.FOLDER):
        elements = queue.read(workdir)
        found = queue.beside(status.look(trials), elements)
        _release([elements[trial.name] for trial, state in found if state.kind == states.QUEUED])
        todo, jobs = missing(found), []
        for start in range(0, len(todo), MOST):
            try:
                jobs.append(_submit(todo[start : start + MOST], options, workdir))
            except UserError as error:
                before = f'{start} of {len(todo)} runs are submitted, as {", ".join(jobs)}: ' if jobs else ''
                raise UserError(f'{before}{error}') from None
    return jobs, todo


def launch(trials: Sequence[Trial], options: Options, tell: Tell) -> Outcome:
    """Submits what is missing, and waits for all. tell: is called with each that ends."""
    submit(trials, options)
    return wait(trials, tell)


def wait(trials: Sequence[Trial], tell: Tell) -> Outcome:
    """Until all of them have left the queue. SIGINT and SIGTERM end the waiting, not the jobs.

    What Slurm could not start, and holds, is released once, and has failed where it is held again.
    """
    got: list[int] = []
    released: set[str] = set()
    ended: dict[str, State] = {}
    waiting, left, pause = {trial.name: trial for trial in trials}, {}, 0.5
    with handling(lambda number, frame: got.append(number)):
        while waiting and not got:
            queued = _queued(trials[0].workdir, waiting)
            held = {name: queued[name] for name in waiting if name in queued and queued[name].is_held}
            _release([held[name] for name in held.keys() - released])
            for name in held.keys() & released:
                words = f'Slurm could not start job {held[name].job}: {held[name].reason}; the same command releases it'
                ended[name] = State(states.FAILED, words=words)
                tell(waiting.pop(name), ended[name])
            released |= held.keys()
            for name in waiting.keys() - queued:
                state = states.look(trial := waiting[name])
                if state.kind == states.RUNNING:
                    left.pop(name, None)
                elif state.kind not in (states.MISSING, states.STOPPED) or _is_late(trial, left):
                    if state.kind == states.MISSING:
                        state = State(states.MISSING, words='its job left the queue and wrote nothing')
                    ended[name] = state
                    tell(waiting.pop(name), state)
            pause = min(1.2 * pause, _POLL)
            end = time.monotonic() + pause
            while waiting and not got and time.monotonic() < end:
                time.sleep(0.1)
    return Outcome(ended, got[0] if got else 0)


def _queued(workdir: pathlib.Path, waiting: Collection[str]) -> Mapping[str, Element]:
    """{name: element} of the trials in the queue; of those that wait, where Slurm does not answer for a while."""
    try:
        return queue.read(workdir)
    except (RunError, UserError) as error:
        note(str(error))
        return dict.fromkeys(waiting, Element('', False, ''))


def _release(elements: Sequence[Element]) -> None:
    """Those of them that Slurm holds, because it could not start them."""
    if not (held := [element for element in elements if element.is_held]):
        return
    jobs, more = ', '.join(element.job for element in held[:3]), f' and {len(held) - 3} more' * (len(held) > 3)
    try:
        queue.ask('scontrol', 'release', ','.join(element.job for element in held))
    except (RunError, UserError) as error:
        note(f'job {jobs}{more}: {held[0].reason}; {error}')
    else:
        note(f'job {jobs}{more}: {held[0].reason}; released')


def _is_late(trial: Trial, left: dict[str, float]) -> bool:
    """Whether it left the queue so long ago that what other nodes wrote is seen here."""
    with contextlib.suppress(OSError):
        os.listdir(trial.folder.parent)  # opening a folder asks a file server anew
    return time.monotonic() > left.setdefault(trial.name, time.monotonic()) + _LATE


def _submit(trials: list[Trial], options: Options, workdir: pathlib.Path) -> str:
    """The id of the array. Raises UserError where sbatch refuses it."""
    path = queue.next_script(workdir)
    atomic_write(path, _script(trials, options, path))
    try:
        return queue.ask('sbatch', '--parsable', str(path)).strip().partition(';')[0]
    except queue.Refused:
        path.unlink()  # it stays where Slurm did not answer, which may have taken it
        raise


def _script(trials: Sequence[Trial], options: Options, path: pathlib.Path) -> str:
    workdir = trials[0].workdir.resolve()
    if any(trial.workdir != trials[0].workdir for trial in trials):
        raise ValueError('the trials of an array have one workdir')
    elements = [f'{k}) run {trial.name} {shlex.join(local.command(trial))} ;;' for k, trial in enumerate(trials)]
    at_once = f'%{options.jobs}' if options.jobs else ''
    words, output = shlex.split(options.sbatch), path.with_suffix('.out')
    return SCRIPT.format(
        name=shlex.quote(workdir.name or 'sweep'), array=f'0-{len(trials) - 1}{at_once}', cwd=shlex.quote(os.getcwd()),
        output=shlex.quote(str(output).replace('%', '%%')), grace=GRACE_SECONDS,
        options=f'#SBATCH {shlex.join(words)}' if words else '', workdir=shlex.quote(str(workdir)), end=states.END,
        python=shlex.quote(sys.executable), elements='\n'.join(elements),
    )  # fmt: skip


def check(options: Options, workdir: pathlib.Path) -> None:
    """Raises UserError for options that sbatch must not have here, and for paths that no script can hold."""
    for text in (options.sbatch, str(workdir.resolve()), os.getcwd()):
        if not text.isprintable():
            raise UserError(f'--launcher=slurm: {text!r} holds characters that a job script cannot')
    try:
        words = shlex.split(options.sbatch)
    except ValueError as error:
        raise UserError(f'--sbatch: {options.sbatch!r}: {error}') from None
    for word in words:
        if _OURS.match(word):
            raise UserError(f'--sbatch: {word}: the launcher sets the array; --jobs=N says how many run at a time')
    if words and not words[0].startswith('-'):
        raise UserError(f"--sbatch: {words[0]!r} is no option of sbatch; give such as --sbatch='--time=60 --gpus=1'")


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Two launchers at once submit one after the other, so that the second one sees the jobs of the first."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open_append(folder / '.lock')
    with file:
        with contextlib.suppress(OSError):  # some network file systems have no locks; those of the logs' are left then
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _undone(folder: pathlib.Path) -> Iterator[None]:
    """Removes the folders that were made inside, where it fails and they hold nothing."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except (UserError, RunError):
        with contextlib.suppress(OSError):
            if made:
                (folder / '.lock').unlink(missing_ok=True)
            for path in made:
                path.rmdir()
        raise
