"""Which trials of a folder Slurm has in its queue, by one call of squeue.

squeue knows of each element of a job array the script of the array, and the script says which trial the element is. So
nothing is to be kept after a submission, and a launcher may be killed at any moment.
"""

import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from aigc_jax.core import records
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.slurm import outside
from aigc_jax.studies import states
from aigc_jax.studies.states import State
from aigc_jax.studies.sweeps import Trial

FOLDER = 'slurm'
_NAME = re.compile(r'array-(\d+)\.sh')
_ELEMENT = re.compile(r'^(\d+)\) run (\S+) ', re.MULTILINE)  # of a script: the element's number, the trial's name
_WAITS = {'PENDING', 'REQUEUED', 'REQUEUE_FED', 'REQUEUE_HOLD', 'SPECIAL_EXIT'}
# Slurm's reasons where it could not start a job, requeued it, and starts it no more before somebody releases it: what
# runs before a job on a node failed, or slurmctld was killed and forgot that the job ran already.
_HELD = re.compile('launch.failed|JobHoldMaxRequeue', re.IGNORECASE)
_SECONDS = 20  # for an answer of Slurm

_UNREACHED = re.compile('unable to contact|timed out|connection refused|connect failure', re.IGNORECASE)


class Refused(UserError):
    """Slurm does not do what it was asked to."""


class Element(NamedTuple):
    """Of a job array in the queue. job: as in scancel 12_3. waits: it does not run; reason: why, in Slurm's words."""

    job: str
    waits: bool
    reason: str

    @property
    def is_held(self) -> bool:
        """Whether Slurm could not start it, and starts it no more by itself."""
        return self.waits and bool(_HELD.search(self.reason))


def scripts(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Those that were submitted for trials in `workdir`."""
    return sorted(path for path in (workdir / FOLDER).glob('*.sh') if _NAME.fullmatch(path.name))


def next_script(workdir: pathlib.Path) -> pathlib.Path:
    """The path of one more."""
    taken = max(map(_number, scripts(workdir)), default=0)
    return workdir.resolve() / FOLDER / f'array-{taken + 1}.sh'


def _number(script: pathlib.Path) -> int:
    return int(_NAME.fullmatch(script.name)[1])


def trials_of(script: pathlib.Path) -> dict[int, str]:
    """{number of the element: name of the trial}; {} where the script is gone."""
    try:
        with open(script, encoding='utf-8', opener=records.regular) as file:
            return {int(number): name for number, name in _ELEMENT.findall(file.read())}
    except (OSError, ValueError):
        return {}


def read(workdir: pathlib.Path) -> dict[str, Element]:
    """{name of a trial: its element}, of this user's jobs. Raises Refused, or RunError where Slurm does not answer."""
    home, found, known = (workdir / FOLDER).resolve(), {}, {}
    for line in ask('squeue', '--me', '--noheader', '--array', '--format=%i|%T|%r|%o').splitlines():
        job, state, reason, command = line.split('|', 3)
        script = pathlib.Path(command)
        if script.parent != home or '_' not in job:
            continue
        if script not in known:
            known[script] = trials_of(script)
        name = known[script].get(int(job.partition('_')[2]))
        if name and (name not in found or found[name].waits):  # of two, that which runs
            found[name] = Element(job, state in _WAITS, reason)
    return found


def beside(found: Sequence[tuple[Trial, State]], queue: dict[str, Element]) -> list[tuple[Trial, State]]:
    """How trials stand, by their files and by the queue: a file system without locks does not tell that one runs."""
    return [(trial, _state(trial, state, queue.get(trial.name))) for trial, state in found]


def _state(trial: Trial, state: State, element: Element | None) -> State:
    if element is None or state.kind in (states.DONE, states.RUNNING, states.OTHER):
        return state
    if element.waits:
        mend = '; the same command releases it' if element.is_held else ''
        return State(states.QUEUED, state.step, f'job {element.job}, {element.reason}{mend}')
    return states.look(trial, held=True)


def lost(found: Sequence[tuple[Trial, State]], workdir: pathlib.Path) -> str:
    """A line about those that were submitted, are not queued and left nothing; '' where there are none."""
    missing = {trial.name for trial, state in found if state.kind == states.MISSING and not trial.log.exists()}
    if not missing:
        return ''
    by_script = {path: missing & {*trials_of(path).values()} for path in scripts(workdir)}
    if not (names := set().union(*by_script.values())):
        return ''
    newest = max((path for path, of in by_script.items() if of), key=_number)  # the clock may have been put back
    return (
        f'{len(names)} runs were submitted, are no longer queued, and wrote nothing: their jobs were cancelled, or the '
        f'nodes do not see {workdir.absolute()}; {newest.with_suffix(".out")} may say more'
    )


def ask(*words: str) -> str:
    """What a command of Slurm answers. Raises Refused, with Slurm's own words, or RunError where it does not answer."""
    if shutil.which(words[0]) is None:
        raise RunError(f'{words[0]}: is not here; give the command on a machine of the cluster that submits jobs')
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace', timeout=_SECONDS,
            env=outside(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunError(f'{words[0]}: Slurm did not answer within {_SECONDS} seconds; try again') from None
    if done.returncode:
        said = [line.removeprefix(f'{words[0]}: ').removeprefix('error: ') for line in done.stderr.splitlines()]
        text = f'{words[0]}: {"; ".join(filter(None, said)) or f"exit code {done.returncode}"}'
        raise (RunError if _UNREACHED.search(text) else Refused)(text)
    return done.stdout
