import subprocess
import sys

import jax.numpy as jnp
import pytest

from aigc_jax.core import command


def test_a_device_without_memory_is_told_in_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: jnp.zeros((10**7, 10**7)).block_until_ready())
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count('\n') == 1
    assert said.startswith('error: the device has no memory left: ') and '400000000000000 bytes' in said


BODY = """
import signal, time
from aigc_jax.core import command
from aigc_jax.training.signals import Signals

class Finalized:
    def __del__(self):
        signal.raise_signal(NUMBER)

def alone():
    Finalized()
    time.sleep(60)

def of_a_training():
    with Signals(True) as signals, signals.heard_at_once(7):
        alone()

command.run(BODY)
"""


@pytest.mark.parametrize(
    'number, body', [('SIGINT', 'alone'), ('SIGINT', 'of_a_training'), ('SIGTERM', 'of_a_training')]
)
def test_a_signal_that_comes_during_a_finalizer_is_heard(number, body):
    program = BODY.replace('NUMBER', f'signal.{number}').replace('BODY', body)
    ended = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=50)
    assert 'Exception ignored' not in ended.stderr
    if body == 'alone':
        assert (ended.returncode, ended.stderr) == (130, 'interrupted\n')
    else:
        assert f'{number}: saved at step 7' in ended.stderr


# With the threads of NumPy, which this program has not imported, each door would end in OpenBLAS's or XLA's own words.
FEW_THREADS = """
import os, resource, sys
from aigc_jax import main, study, sweep, verify

def train():
    main.parse(['', '--config=a.py', '--workdir=nowhere/run'])
    main.main([])

doors = {
    'main': train, 'verify': lambda: verify.main(['', '--workdir=nowhere/run']),
    'sweep': lambda: sweep.main(['', '--config=a.py', '--workdir=nowhere/sweep']),
    'search': lambda: sweep.main(['', '--config=a.py', '--workdir=nowhere/sweep', '--search=4']),
    'study': lambda: study.main(['', '--config=a.py', '--workdir=nowhere/study']),
}
assert not {'numpy', 'jax'} & {*sys.modules}
resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))
if not os.getuid():
    os.setuid(os.getpid() + 1_000_000)  # the limit does not hold for root, and counts what else the user runs
for name, door in doors.items():
    if not (child := os.fork()):
        try:
            door()
        except SystemExit as ended:
            os._exit(ended.code)
        os._exit(99)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_limit_of_threads_is_told_in_a_line():
    done = subprocess.run([sys.executable, '-c', FEW_THREADS], capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ['main', '1', 'verify', '3', 'sweep', '1', 'search', '1', 'study', '1'], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 5 and len({*lines}) == 1, done.stderr
    assert lines[0].startswith('error: no more threads are allowed: this process needs ') and 'ulimit -u' in lines[0]
