import jax.numpy as jnp
import pytest

from aigc_jax.core import command


def test_a_device_without_memory_is_told_in_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: jnp.zeros((10**7, 10**7)).block_until_ready())
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count('\n') == 1
    assert said.startswith('error: the device has no memory left: ') and '400000000000000 bytes' in said
