"""What the tests of bad input share: the command line in a process that stays, and what a refusal is."""

import json
import os
import pathlib
import subprocess
import sys

VAE, GAN = '--config=configs/vae.py:smoke', '--config=configs/gan.py:smoke'

# What app.run does, for one command line a line, whose stdout and stderr go to files (C++ writes too).
RUNNER = """
import gc, json, os, sys, tempfile, traceback
from absl import app, logging
from absl.testing import flagsaver
from aigc_jax import main

gc.set_threshold(10_000)  # as in conftest.py
app.define_help_flags()
logging.use_absl_handler()
answers = os.fdopen(os.dup(1), 'w')
for line in sys.stdin:
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err, flagsaver.flagsaver():
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        code = 0
        try:
            main.main(main.parse(['main', *json.loads(line)]))
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            code = 1
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        out.seek(0), err.seek(0)
        print(json.dumps([code, out.read(), err.read()]), file=answers, flush=True)
"""


class Runner:
    """runner(*arguments) -> (exit code, stdout, stderr) of the command line, in a process that stays."""

    def __init__(self, root: pathlib.Path, env: dict | None = None):
        env = {**os.environ, 'PYTHONPATH': str(root), **(env or {})}
        self._process = subprocess.Popen(
            [sys.executable, '-c', RUNNER], cwd=root, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, *arguments) -> tuple[int, str, str]:
        print(json.dumps([str(a) for a in arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f'the process ended with exit code {self._process.wait()} at {arguments}'
        return tuple(json.loads(answer))

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=300)
        self._process.stdout.close()


def assert_refused(answer, *words, code=2):
    """`answer` is one to three lines on stderr that hold all of `words`, and nothing else."""
    returned, out, err = answer
    assert returned == code, err
    assert out == ''
    assert 'Traceback' not in err
    assert 1 <= len(err.splitlines()) <= 3, err
    assert err.startswith('error: '), err
    for word in words:
        assert word in err, (word, err)


def snapshot(folder: pathlib.Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob('*')}


def own_config(folder, old: str, new: str, name: str = 'vae') -> str:
    """The flag for a researcher's own config: that of the project with `old` replaced by `new`."""
    text = pathlib.Path(__file__).parent.parent.joinpath('configs', f'{name}.py').read_text()
    assert old in text
    path = folder / 'own.py'
    path.write_text(text.replace(old, new))
    return f'--config={path}:smoke'
