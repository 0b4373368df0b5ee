"""The installed command `aigc-jax`. It does what `python -m aigc_jax.main` does. But -m also lets Python import modules
of the folder that it is started in, such as an absl.py that somebody put there."""

import runpy


def run() -> None:
    runpy.run_module('aigc_jax.main', run_name='__main__', alter_sys=True)
