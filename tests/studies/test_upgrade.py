"""A study on two lines of JAX: bits may differ, verdicts may not.

.ci/run makes a virtual environment of Python 3.13 beside its own, whose JAX is newer, and AIGC_JAX_SECOND names its
folder. By hand: `python3.13 -m venv DIR && DIR/bin/pip install . && echo 0 >DIR/installed`, then
`AIGC_JAX_SECOND=DIR pytest tests/studies/test_upgrade.py`.
"""

import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from aigc_jax.studies import findings

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECOND = os.environ.get('AIGC_JAX_SECOND', '')
# The fastest of the oracles, a linear VAE: their two commands give four verdicts, of one training of three seeds.
ROWS = 'ppca-test', 'ppca-train'
CLAIMS = {'ppca-train', 'ppca-test', 'ppca-elbo', 'ppca-rate'}


def command(python, door: str, *flags) -> subprocess.CompletedProcess:
    # As a user's: the tests' own XLA_FLAGS change what is computed, and a jaxlib that lacks one of them aborts.
    env = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [python, '-m', f'aigc_jax.{door}', *flags], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope='module')
def second() -> str:
    """The interpreter whose JAX is of another line than this one's."""
    if not SECOND:
        pytest.skip('AIGC_JAX_SECOND names no environment of Python 3.13; .ci/run makes one where that Python is')
    folder = pathlib.Path(SECOND)
    end = time.monotonic() + 600
    while not (folder / 'installed').exists():
        assert time.monotonic() < end, f'{folder}: nothing is installed'
        time.sleep(1)
    log = folder.with_suffix('.log')
    assert (folder / 'installed').read_text().strip() == '0', log.read_text()
    python = str(folder / 'bin' / 'python')
    code = 'import jax; print(jax.__version__)'
    version = subprocess.run([python, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    if version.split('.')[:2] == jax.__version__.split('.')[:2]:
        pytest.skip(f'both environments have JAX {version}')
    return python


@pytest.fixture(scope='module')
def studied(second, tmp_path_factory) -> dict[str, pathlib.Path]:
    """{interpreter: the folder of the study that it made}"""
    folders = {}
    for python in (sys.executable, second):
        folders[python] = tmp_path_factory.mktemp('upgrade') / 'study'
        for row in ROWS:
            flags = '--config=configs/studies/oracles.py', f'--workdir={folders[python]}', f'--row={row}', '--jobs=1'
            done = command(python, 'study', *flags)
            assert done.returncode == 0, done.stderr[-3000:]
    return folders


def test_verdicts_are_those_of_the_other_line(studied):
    verdicts = [
        {finding.claim.name: finding.verdict for finding in findings.read(folder / 'oracles.results.json').findings}
        for folder in studied.values()
    ]
    assert verdicts[0] == verdicts[1]
    assert {name for name, verdict in verdicts[0].items() if verdict == findings.REPRODUCED} == CLAIMS


def test_a_run_of_the_other_line_is_not_compared_with_this_one(studied, second):
    """verify names the versions, instead of a number that differs."""
    (manifest,) = studied[second].rglob('manifest.json')
    done = command(sys.executable, 'verify', f'--workdir={manifest.parent}')
    assert done.returncode == 2, done.stderr
    assert 'not comparable' in done.stdout and f' there, {jax.__version__} here' in done.stdout
