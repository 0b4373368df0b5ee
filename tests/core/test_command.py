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
