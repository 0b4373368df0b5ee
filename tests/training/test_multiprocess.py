"""Two processes through the real command line: what they train, write and save is what one process does."""

import json
import signal

import numpy as np
import pytest
from pairs import Pair

# Reductions over two processes round otherwise than over one: 4e-7 of a value was measured.
TOLERANCE = dict(rtol=2e-5, atol=1e-6)


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def assert_near(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name, **TOLERANCE)


def assert_same_run(leaves, workdir, other) -> None:
    """The newest checkpoints and all the rows of metrics.jsonl, within tolerance."""
    assert_near(leaves(workdir), leaves(other))
    ours, theirs = rows(workdir), rows(other)
    assert [(row['step'], row['split']) for row in ours] == [(row['step'], row['split']) for row in theirs]
    for row, same in zip(ours, theirs, strict=True):
        row.pop('split'), same.pop('split')
        assert_near(row, same)


def test_two_processes_train_as_one_and_the_first_alone_writes(command_line, tmp_path, smoke, leaves):
    pair = Pair(command_line, tmp_path, 'vae:smoke')
    assert pair.end() == [0, 0], pair.errors()
    assert_same_run(leaves, pair.workdir, smoke('vae'))
    manifest = json.loads((pair.workdir / 'manifest.json').read_text())
    assert manifest['device']['processes'] == manifest['device']['count'] == 2
    assert len(manifest['starts']) == 1
    opened = [(tmp_path / f'opened{k}').read_text().splitlines() for k in range(2)]
    checkpoints = str(pair.workdir / 'checkpoints')
    assert any('metrics.jsonl' in name for name in opened[0]) and any('.png' in name for name in opened[0])
    assert not [name for name in opened[1] if not name.startswith(checkpoints)]


def test_streamed_terminated_and_resumed_two_processes_train_as_one(command_line, tmp_path, smoke, leaves):
    fields = dict(data__stream=True)
    pair = Pair(command_line, tmp_path, 'gan:smoke', signalled=(10, signal.SIGTERM), **fields)
    assert pair.end() == [143, 143], pair.errors()
    step = max(int(p.name) for p in (pair.workdir / 'checkpoints').iterdir() if p.name.isdigit())
    assert step == 10
    assert leaves(pair.workdir)['step'] == step  # one process reads what two have saved
    pair = Pair(command_line, tmp_path, 'gan:smoke', **fields)
    assert pair.end() == [0, 0], pair.errors()
    assert_same_run(leaves, pair.workdir, smoke('gan'))
    # They run it again, and find what was changed, which comes last.
    evaluation = json.loads((pair.workdir / 'evaluation.json').read_text())
    evaluation[min(evaluation.keys() - {'step'})]['value'] += 1
    (pair.workdir / 'evaluation.json').write_text(json.dumps(evaluation))
    before = 'import sys\nfrom aigc_jax import verify\nverify.main(sys.argv)\n'
    pair = Pair(command_line, tmp_path, None, 2 * ({'before': before},), flags=['--from_step=10'])
    assert pair.end() == [1, 1], pair.errors()
    assert pair.output[0].startswith('different\n  evaluation.json: ') and not pair.output[1], pair.output
    assert 'before that, equal: checkpoint' in pair.output[0] and 'rows of metrics.jsonl' in pair.output[0]


def test_two_processes_evaluate_and_sample_a_run_in_shards_as_one(command_line, tmp_path):
    rules = "(('.*', 'fsdp'),)"
    workdir, known = tmp_path / 'run', tmp_path / 'run' / 'evaluation.json'
    fields = dict(parallel__rules=rules, parallel__mesh__data=1, parallel__mesh__fsdp=-1, eval__problems='')
    command_line.run('gpt:smoke', workdir, **fields)
    flags = '--mode=sample', '--num_samples=3', '--max_new_tokens=60', '--prompt=The ', '--stop=e', '--seed=1'
    command_line.run(None, workdir, *flags)
    (path,) = (workdir / 'samples').glob('*_sample1.npz')
    evaluation, samples = json.loads(known.read_text()), dict(np.load(path))
    path.unlink()
    for name in (('--mode=evaluate',), flags):
        pair = Pair(command_line, tmp_path, None, flags=name)
        assert pair.end() == [0, 0], pair.errors()
        assert not [name for name in (tmp_path / 'opened1').read_text().splitlines() if 'samples' in name]
    (again,) = (workdir / 'evaluations').iterdir()
    found = json.loads(again.read_text())
    assert (found['step'], found['metrics'].keys()) == (evaluation.pop('step'), evaluation.keys())
    ours, theirs = ([row['value'] for row in rows.values()] for rows in (found['metrics'], evaluation))
    np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), rtol=1e-4)
    for name, value in dict(np.load(path)).items():
        np.testing.assert_allclose(value, samples[name], rtol=1e-4)


@pytest.mark.parametrize('mode', ['pmap'])
def test_pmap_of_two_processes_is_refused_by_both(command_line, tmp_path, mode):
    pair = Pair(command_line, tmp_path, 'vae:smoke', parallel__mode=mode)
    assert pair.end() == [2, 2], pair.errors()
    assert all('parallel.mode: pmap' in error for error in pair.errors())
    assert not pair.workdir.exists()
