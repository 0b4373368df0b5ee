"""A run's folder as one object, and the manifest's word on the code."""

import json
import subprocess

import pytest

from aigc_jax.core import files
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.runs import manifest
from aigc_jax.runs.folder import Run
from aigc_jax.runs.paths import Paths


@pytest.mark.parametrize('folder', ['', None, 3])
def test_what_names_no_folder_is_refused(folder):
    with pytest.raises(UserError, match='names no folder'):
        Run(folder)


def test_a_run_says_what_lies_in_its_folder(smoke):
    run = Run(smoke('vae'))
    assert run.config.task.name == 'vae' and run.tokenizer is None
    assert run.manifest['data']['fingerprint'] == manifest.trained_on(run.paths.manifest)
    assert [row['split'] for row in run.rows()].count('final') == 1
    assert run.evaluations()['evaluation']['step'] == 40
    experiment, state = run.open('40')
    assert int(state.step) == 40 and experiment.config.eval.batch_size == run.config.eval.batch_size
    assert Run(smoke('gpt')).tokenizer is not None


def test_a_folder_without_a_run(tmp_path):
    run = Run(tmp_path / 'none')
    assert run.rows() == [] and run.evaluations() == {} and run.manifest == {}
    for read in (lambda: run.config, run.open):
        with pytest.raises(UserError, match='no run is there'):
            read()
    assert not list(tmp_path.iterdir())


def test_a_damaged_evaluation_is_named(tmp_path):
    (tmp_path / 'evaluation.json').write_text('{"step": ')
    with pytest.raises(UserError, match='an evaluation cannot be read'):
        Run(tmp_path).evaluations()


def test_what_another_thread_writes_is_not_cleared(tmp_path, monkeypatch):
    """A lock of the system belongs to the process, so that it does not keep one of its threads from another's file."""
    monkeypatch.setattr(files.os, 'fsync', lambda _: Paths(tmp_path).clear_leftovers())
    atomic_write(tmp_path / 'samples' / 'a.txt', 'whole')
    assert (tmp_path / 'samples' / 'a.txt').read_text() == 'whole'


def test_the_manifest_names_the_commit_of_a_clone(command_line):
    found = manifest.code()
    if not (command_line.root / '.git').exists():
        assert found['commit'] is None
        return
    git = lambda *arguments: subprocess.run(['git', *arguments], cwd=command_line.root, capture_output=True, text=True)
    assert found['commit'] == git('rev-parse', 'HEAD').stdout.strip()
    changed = git('status', '--porcelain', '--untracked-files=no').stdout
    assert bool(found['diff']) == bool(changed)
    assert json.dumps(found)
