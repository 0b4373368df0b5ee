"""SIGTERM under a Slurm job, by which Slurm announces a preemption or the time limit.

A job whose processes end then by themselves is completed for Slurm, which never starts it again: half a run would be
lost. So a process that SIGTERM ends has its job requeued, and stays alive until Slurm kills it.
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time

TERMINATED = 143  # the exit code of a process that SIGTERM ends
_GOES_ON = {'RUNNING', 'SIGNALING'}  # the states of a job that is neither cancelled nor at its end
_SECONDS = 60  # for an answer of Slurm
_KEPT = {'SLURM_CONF', 'SLURM_CLUSTERS', 'SLURM_JWT'}
_staying = deciding = False  # deciding: until Slurm has taken the job, what SIGTERM interrupted would be lost


def outside() -> dict[str, str]:
    """The environment without what describes the job that this process is part of."""
    return {name: text for name, text in os.environ.items() if not name.startswith('SLURM_') or name in _KEPT}


def is_in_job() -> bool:
    return 'SLURM_JOB_ID' in os.environ


def stay(exit_code: int, first: bool = True) -> None:
    """Before a process ends with `exit_code`, all being saved: where SIGTERM ends a job that may go on, it requeues the
    job and does not return. It returns where the job is cancelled, and where it may not be requeued.

    first: whether this process requeues the job; the others wait for that.
    """
    global _staying, deciding
    # Somebody may work at a terminal in a job, and end one of many programs there.
    if exit_code != TERMINATED or not is_in_job() or _staying or os.isatty(0):
        return
    _staying = deciding = True
    try:
        with _deaf():
            if (job := _job()) is None:
                return
            if first:
                _say(f'Slurm job {job} is requeued, and goes on from here')  # before it: Slurm kills this process then
                _ask('requeue', job)
    except (OSError, subprocess.SubprocessError) as error:  # after a preemption Slurm may requeue it all the same
        _say(f'note: the Slurm job could not be requeued: {getattr(error, "stderr", None) or error}'.strip())
    finally:
        deciding = False
    while True:
        time.sleep(3600)


@contextlib.contextmanager
def _deaf():
    """Another SIGTERM changes nothing inside. Another thread than the main one leaves that to the handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _job() -> str | None:
    """The name of this process's job, as scontrol wants it; None where it is cancelled or may not be requeued."""
    own = os.environ['SLURM_JOB_ID']
    for line in _ask('--oneliner', 'show', 'job', own).splitlines():  # the id may name a whole array
        of = dict(re.findall(r'(\w+)=(\S*)', line.partition(' Command=')[0]))
        if of.get('JobId') != own:
            continue
        if of.get('JobState') not in _GOES_ON or of.get('BatchFlag') != '1' or of.get('Requeue') != '1':
            return None
        return f'{of["ArrayJobId"]}_{of["ArrayTaskId"]}' if 'ArrayTaskId' in of else own
    return None


def _ask(*words: str) -> str:
    return subprocess.run(
        ['scontrol', *words], capture_output=True, text=True, timeout=_SECONDS, check=True, stdin=subprocess.DEVNULL
    ).stdout  # fmt: skip


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, (text + '\n').encode(errors='replace'))  # Python's own stream may be held by another thread
