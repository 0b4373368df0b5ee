"""The installed command `aigc-jax`: as python -m aigc_jax.main, which alone lets Python import what lies in the folder
that it is started in, such as an absl.py that somebody put there."""

import runpy


def run() -> None:
    runpy.run_module('aigc_jax.main', run_name='__main__', alter_sys=True)
