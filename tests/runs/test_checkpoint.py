"""Checkpoints: what is restored is what was saved, or an error that says what is not."""

import contextlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
import tensorstore

from aigc_jax.core import digest, records
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.optim import average_params
from aigc_jax.core.types import Extra, TrainState
from aigc_jax.runs import record, store
from aigc_jax.runs.checkpoint import Checkpoints

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(step: int, width: int = 4, dtype=jnp.float32, **more) -> TrainState:
    params = {'dense': {'kernel': jnp.full((3, width), step, dtype), 'bias': jnp.arange(width) * 0.1}, **more}
    return TrainState(jnp.int32(step), {'model': params}, {'model': OPTIMIZER.init(params)}, {}, {})


def template(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'checkpoints'


def saved(folder, values: dict, **options) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    for step, value in values.items():
        checkpoints.save(step, make_state(step), None if value is None else {'nll': value, 'other': -float(step)})
    return checkpoints


def test_averages_of_frozen_parameters_of_older_runs_are_passed_over(folder):
    """Runs of before SCHEMA 4 kept them. What is trained must have its average all the same."""
    params = {'still': {'kernel': jnp.ones((3, 4))}, 'dense': {'kernel': jnp.arange(4.0)}}

    def state(still):
        opt = average_params(0.9, still).init(params)
        return TrainState(jnp.int32(1), {'model': params}, {'model': (optax.EmptyState(), opt)}, {}, {})

    held = {'still': {'kernel': True}, 'dense': {'kernel': False}}
    old, new = state(None), state(held)
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, old)
    assert_equal(checkpoints.restore(1, template(new)), new)
    found = checkpoints.restore_model(1, template(new.params), {}, template(new.opt))
    assert_equal(found[2], new.opt)
    other = state({'still': {'kernel': True}, 'dense': {'kernel': True}})
    assert 'besides' in message(lambda: checkpoints.restore(1, template(other)))
    checkpoints.save(2, new)
    assert 'it lacks opt/model/1/average/still/kernel' in message(lambda: checkpoints.restore(2, template(old)))
    checkpoints.close()


def message(call, error=UserError) -> str:
    with pytest.raises(error) as caught:
        call()
    assert 1 <= len(str(caught.value).splitlines()) <= 3, caught.value
    return str(caught.value)


def test_saves_and_restores(folder):
    checkpoints = saved(folder, {1: None, 2: None}, keep=2)
    assert checkpoints.steps() == [1, 2] and checkpoints.latest() == 2 and checkpoints.resolve(None) == 2
    for step in (1, 2):
        assert_equal(checkpoints.restore(step, template(make_state(0))), make_state(step))
    record = json.loads((folder / '2' / 'checkpoint.json').read_text())['record']
    assert record['leaves']['params/model/dense/kernel'][:2] == [[3, 4], 'float32']
    assert all(re.fullmatch('sum64:[0-9a-f]{16}', digest) for _, _, digest in record['leaves'].values())


@pytest.mark.parametrize('name', ['lr=[1e-3]', 'a**b', 'a\\b', '[!a]*?', '\udcff', 'a b\n%20#é', 99 * 'long/'])
def test_any_folder(tmp_path, name):
    """Orbax globs below the path as it stands, and tensorstore takes a backslash for a slash."""
    folder = tmp_path / name / 'checkpoints'
    saved(folder, {1: None, 2: None}).close()
    checkpoints = Checkpoints(folder, read_only=True)
    assert_equal(checkpoints.restore(2, template(make_state(0))), make_state(2))
    found = {path for path in tmp_path.rglob('*') if path.is_file()}
    assert found and all(folder in path.parents for path in found)
    assert not (folder / '2').is_symlink()


@pytest.mark.parametrize('ways', ['link', 'dots'])
def test_a_folder_by_another_way(tmp_path, monkeypatch, ways):
    (tmp_path / 'there' / '[x]').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'there')
    monkeypatch.chdir(tmp_path / 'there')
    folder = {'link': tmp_path / 'link' / '[x]' / 'c', 'dots': pathlib.Path('../there/[x]/../[x]/c')}[ways]
    saved(folder, {1: None})
    restored = Checkpoints(tmp_path / 'there' / '[x]' / 'c', read_only=True).restore(1, template(make_state(0)))
    assert_equal(restored, make_state(1))


def test_a_first_checkpoint_that_cannot_be_read_stops_the_run(tmp_path, monkeypatch):
    """Whatever the cause: here Orbax's globbing, which plain_path keeps from it otherwise."""
    monkeypatch.setattr(store, 'plain_path', contextlib.nullcontext)
    folder = tmp_path / '[x]' / 'checkpoints'
    checkpoints = Checkpoints(folder)
    said = message(lambda: checkpoints.save(1, make_state(1)), RunError)
    assert f'{folder}/1: the checkpoint could not be written and read back' in said and 'good one is none' in said
    assert 'make room' not in said
    assert not list(folder.iterdir())


def test_no_advice_names_a_step_that_is_damaged(folder):
    """The mend that is named mends: 3 and 2 are damaged, each in another way, 1 is whole."""
    checkpoints = saved(folder, {1: None, 2: None, 3: None}, keep=3)
    (folder / '3' / 'checkpoint.json').unlink()
    largest = max((folder / '2').rglob('*'), key=lambda path: path.is_file() and path.stat().st_size)
    os.truncate(largest, 10)
    said = message(lambda: checkpoints.restore(3, template(make_state(0))))
    assert f'{folder}/3: the checkpoint is corrupt' in said and 'delete that folder to go on from step 1' in said
    (folder / '1' / 'checkpoint.json').write_text('{}')
    said = message(lambda: checkpoints.restore(3, template(make_state(0))))
    assert 'No earlier one is good either' in said and 'delete' not in said
    for step in ('1', '2'):
        shutil.rmtree(folder / step)
    assert 'delete that folder to start anew' in message(lambda: checkpoints.restore(3, template(make_state(0))))


def test_keeps_the_newest(folder):
    assert saved(folder, dict.fromkeys(range(1, 7)), keep=3).steps() == [4, 5, 6]
    assert {path.name for path in folder.iterdir()} == {'4', '5', '6'}


@pytest.mark.parametrize('mode, best, kept', [('min', 3, [3, 5, 6]), ('max', 1, [1, 5, 6])])
def test_keeps_the_best(folder, mode, best, kept):
    """NaN, infinities and steps without a value are never the best, whichever way the metric runs."""
    values = {1: 9.0, 2: math.nan, 3: 1.0, 4: math.inf if mode == 'max' else -math.inf, 5: 5.0, 6: None}
    options = dict(keep=2, best_metric='nll', best_mode=mode)
    checkpoints = saved(folder, values, **options)
    assert checkpoints.steps() == kept
    assert checkpoints.resolve('best') == best
    # So it is for who opens the folder anew, and when more steps come.
    reopened = Checkpoints(folder, **options)
    assert reopened.resolve('best') == best
    reopened.save(7, make_state(7), {'nll': 2.0})
    assert reopened.steps() == [best, 6, 7]
    assert Checkpoints(folder, read_only=True, best_metric='other', best_mode='max').resolve('best') == (
        1 if mode == 'max' else 3
    )


def test_the_newest_of_equals_is_best(folder):
    assert saved(folder, {1: 2.0, 2: 2.0, 3: 2.0}, keep=1, best_metric='nll').steps() == [3]


def test_no_best(folder):
    for values in ({1: math.nan}, {1: None}):
        checkpoints = saved(folder, values, best_metric='nll')
        assert 'step=best' in (said := message(lambda: checkpoints.resolve('best'))) and 'nll' in said
        shutil.rmtree(folder)
    for text in ('newest', '-1', '1.5', '²'):
        assert f'step={text}' in message(lambda: checkpoints.resolve(text))


def test_what_does_not_fit_is_named(folder):
    checkpoints = saved(folder, {1: None})
    fits = lambda state: message(lambda: checkpoints.restore(1, template(state)))
    assert 'it lacks params/model/extra, opt/model/1/0/mu/extra' in fits(make_state(1, extra=jnp.zeros(2)))
    assert 'params/model/dense/kernel is float32[3, 4], the model has float32[3, 5]' in fits(make_state(1, width=5))
    assert 'params/model/dense/kernel is float32[3, 4], the model has bfloat16[3, 4]' in fits(
        make_state(1, dtype=jnp.bfloat16)
    )
    without = make_state(1)
    del without.params['model']['dense']['bias']
    assert 'it has params/model/dense/bias besides' in fits(without)
    assert 'no checkpoint of step 7; there are [1]' in message(lambda: checkpoints.restore(7, template(make_state(1))))


def test_a_model_without_its_optimizer(folder):
    """init.run takes the parameters, and what fits of the statistics, whatever the optimizer was."""
    stats = {'norm': {'mean': jnp.arange(3.0)}, 'pair': Extra(jnp.ones(2), jnp.zeros(2)), 'book': jnp.ones((4, 2))}
    Checkpoints(folder).save(1, make_state(1)._replace(stats=stats))
    checkpoints = Checkpoints(folder, read_only=True)
    other = {'norm': {'mean': jnp.ones(3)}, 'pair': Extra(jnp.zeros(2), jnp.ones(2)), 'new': jnp.ones(1)}
    for ours in ({}, other, {'book': jnp.zeros((5, 2))}, {'norm': {'mean': jnp.ones(3), 'var': jnp.ones(3)}}):
        params, found, _ = checkpoints.restore_model(1, make_state(0).params, ours, {})
        assert_equal(params, make_state(1).params)
        assert_equal(found, {name: stats[name] for name in ('norm', 'pair') if ours is other})
    wider = make_state(1, width=5).params
    assert 'kernel is float32[3, 4]' in message(lambda: checkpoints.restore_model(1, wider, {}, {}))


def test_read_only_writes_nothing(folder):
    saved(folder, {1: None})
    (folder / '2.unfinished').mkdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    checkpoints = Checkpoints(folder, read_only=True)
    assert_equal(checkpoints.restore(1, template(make_state(0))), make_state(1))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before
    assert Checkpoints(folder / 'nowhere', read_only=True).latest() is None
    assert not (folder / 'nowhere').exists()


def test_half_written_steps_are_passed_over_and_purged(folder):
    saved(folder, {1: None, 2: None}, keep=2)
    (folder / '2').rename(folder / '3.unfinished')
    (folder / '4.deleted').mkdir()
    assert Checkpoints(folder, read_only=True).steps() == [1]
    checkpoints = Checkpoints(folder)
    assert {path.name for path in folder.iterdir()} == {'1'}
    checkpoints.save(3, make_state(3))
    assert checkpoints.steps() == [3]


def test_a_step_that_is_not_whole_is_named(folder):
    checkpoints = saved(folder, {1: None, 2: None}, keep=3)
    (folder / '2' / 'checkpoint.json').unlink()
    said = message(lambda: checkpoints.restore(2, template(make_state(0))))
    assert f'{folder}/2: the checkpoint is corrupt: checkpoint.json cannot be read' in said
    assert 'delete that folder to go on from step 1' in said
    checkpoints.save(3, make_state(3))  # and does not keep the run from going on
    assert checkpoints.latest() == 3


def test_a_failed_write_leaves_nothing(folder):
    """Files may not grow beyond 16 kB, as on a disk that fills up."""
    code = f"""
import pathlib, resource
import jax.numpy as jnp
from aigc_jax.runs.checkpoint import Checkpoints
from aigc_jax.core.errors import RunError
checkpoints = Checkpoints(pathlib.Path({str(folder)!r}), keep=1)
checkpoints.save(1, dict(x=jnp.zeros(100_000, int)))
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, dict(x=jnp.arange(100_000)))
except RunError as error:
    print(error)
"""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert f'{folder}/2: the checkpoint could not be written' in done.stdout and 'that of step 1' in done.stdout
    assert len(done.stdout.splitlines()) <= 3
    assert [path.name for path in folder.iterdir()] == ['1']
    state = {'x': jnp.zeros(100_000, int)}
    assert_equal(Checkpoints(folder, read_only=True).restore(1, template(state)), state)


def test_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    assert 'cannot write' in message(lambda: Checkpoints(tmp_path / 'file' / 'checkpoints'), RunError)


# Opens the newest checkpoint of RUN again and again, with one file damaged each time; prints what went wrong.
DAMAGE = """
import collections, pathlib, random, sys
import numpy as np
from aigc_jax.core import tree
from aigc_jax.core.errors import UserError
from aigc_jax.runs.folder import Run

run, positions = pathlib.Path(sys.argv[1]), int(sys.argv[2])
experiment, state = Run(run).open()
right = {name: np.asarray(leaf).tobytes() for name, leaf in tree.flatten(state).items()}
step = int(state.step)
files = sorted(path for path in (run / 'checkpoints' / str(step)).rglob('*') if path.is_file())
counts = collections.Counter()

def attempt(what):
    checkpoints = Run(run).checkpoints(experiment.config)
    try:
        got = checkpoints.restore(checkpoints.resolve(None), experiment.abstract_state)
        same = {name: np.asarray(leaf).tobytes() for name, leaf in tree.flatten(got).items()} == right
        counts['same' if same else f'WRONG STATE: {what}'] += 1
    except UserError as error:
        fine = 1 <= len(str(error).splitlines()) <= 3 and 'corrupt' in str(error) and str(run) in str(error)
        counts['refused' if fine else f'MESSAGE: {what}: {error}'] += 1
    except Exception as error:
        counts[f'{type(error).__name__}: {what}: {error}'] += 1
    finally:
        checkpoints.close()

random.seed(0)
for path in files:
    whole, name = path.read_bytes(), path.relative_to(run)
    for position in [0, len(whole) - 1, *(random.randrange(len(whole)) for _ in range(positions))]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        attempt(f'{name}: byte {position} of {len(whole)}')
    for size in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        attempt(f'{name}: cut to {size} of {len(whole)}')
    path.write_bytes(whole + b'x')
    attempt(f'{name}: longer')
    path.unlink()
    attempt(f'{name}: deleted')
    path.mkdir()
    attempt(f'{name}: a folder')
    path.rmdir()
    path.write_bytes(whole)
attempt('whole')
print(len(files), dict(counts))
"""


def test_damage(command_line, smoke, tmp_path):
    """Bytes flipped, files cut, emptied, lengthened, deleted: all of a real checkpoint's, each in turn."""
    run = shutil.copytree(smoke('vae'), tmp_path / 'run')
    done = command_line.python('-c', DAMAGE, run, '2')
    assert done.returncode == 0, done.stderr[-2000:]
    count, counts = done.stdout.split(' ', 1)
    counts = eval(counts)
    assert int(count) >= 10
    assert set(counts) == {'same', 'refused'}, counts
    assert counts['same'] == 1, counts  # the whole one: no byte is without its digest
    assert done.stderr == ''


def test_damage_is_told_in_three_lines(command_line, smoke, tmp_path):
    """By the command line too, where the threads of Orbax might print more; and the mend named mends."""
    run = shutil.copytree(smoke('vae'), tmp_path / 'run')
    largest = max((run / 'checkpoints' / '40').rglob('*'), key=lambda path: path.is_file() and path.stat().st_size)
    os.truncate(largest, 1000)
    for mode, config, flags in (('evaluate', None, {}), ('train', 'vae:smoke', {'total_steps': 60})):
        done = command_line.run(config, run, f'--mode={mode}', returns=2, **flags)
        assert len(done.stderr.splitlines()) <= 3 and done.stdout == '', done.stderr
        assert f'{run}/checkpoints/40: the checkpoint is corrupt' in done.stderr
        assert 'delete that folder to go on from step 20' in done.stderr
    shutil.rmtree(run / 'checkpoints' / '40')
    assert 'step 20, digits' in command_line.run(None, run, '--mode=evaluate').stdout


def test_killed_while_saving(folder):
    """SIGKILL at any moment: every step that is there afterwards is whole, the last one before among them."""
    code = f"""
import pathlib, sys
import jax.numpy as jnp
from aigc_jax.runs.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path({str(folder)!r}), keep=1)
for step in range((checkpoints.latest() or 0) + 1, 10_000):
    checkpoints.save(step, dict(x=jnp.full(10_000, step)))
    print(step, flush=True)
"""
    root = pathlib.Path(__file__).parents[2]
    random.seed(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, '-c', code], cwd=root, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.communicate()[0].split()]
        checkpoints = Checkpoints(folder, read_only=True)
        assert checkpoints.steps() and (not told or checkpoints.latest() >= told[-1])
        for step in checkpoints.steps():
            state = {'x': jnp.full(10_000, step)}
            assert_equal(checkpoints.restore(step, template(state)), state)


def test_best_of_a_run(command_line, tmp_path):
    """--step=best by the command line: the best evaluation's step, though newer ones pushed it out."""
    run = tmp_path / 'run'
    # The weight presses the KL down, so that by 'max' the oldest is the best.
    best_is = dict(eval__best_metric='model/kl', eval__best_mode='max', task__beta=10.0)
    command_line.run('vae:smoke', run, keep_checkpoints=1, **best_is)
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    values = {row['step']: row['model/kl'] for row in rows if row['split'] == 'eval'}
    best = max(values, key=values.get)
    assert best == 20 and {int(path.name) for path in (run / 'checkpoints').iterdir()} == {20, 40}
    assert 'step 20, digits' in command_line.run(None, run, '--mode=evaluate', '--step=best').stdout


def test_other_devices(folder):
    """What eight devices saved, one restores: the parameters alone, and the whole."""
    code = f"""
import pathlib
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from aigc_jax.runs.checkpoint import Checkpoints
mesh = jax.make_mesh((8,), ('data',))
put = lambda x, *axes: jax.device_put(np.asarray(x, np.float32), NamedSharding(mesh, PartitionSpec(*axes)))
params = dict(model=dict(kernel=put(np.arange(64).reshape(4, 16), None, 'data'), bias=put(np.arange(3))))
Checkpoints(pathlib.Path({str(folder)!r})).save(1, dict(params=params, opt=put(np.ones(8), 'data')))
"""
    root = pathlib.Path(__file__).parents[2]
    env = {**os.environ, 'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'}
    subprocess.run([sys.executable, '-c', code], cwd=root, env=env, check=True, timeout=120)
    params = {'model': {'kernel': jnp.arange(64.0).reshape(4, 16), 'bias': jnp.arange(3.0)}}
    checkpoints = Checkpoints(folder, read_only=True)
    assert_equal(checkpoints.restore_model(1, params, {}, {}), (params, {}, {}))
    state = {'params': params, 'opt': jnp.ones(8)}
    assert_equal(checkpoints.restore(1, template(state)), state)


def rewrite(folder, step: int, change) -> None:
    """checkpoint.json with `change(record)` in it, and the digest of itself that fits."""
    path = folder / str(step) / record.NAME
    whole = json.loads(path.read_text())['record']
    change(whole)
    path.write_text(json.dumps({'sha256': record.sha256(json.dumps(whole).encode()), 'record': whole}))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool', 'int32', 'float16', 'complex64'])
def test_digest_of_a_leaf_is_the_same_on_host_and_device_and_tells_what_changed(dtype):
    of = lambda x: digest.digests({'x': x})['x']
    values = np.random.default_rng(0).normal(size=(300, 256))  # more than numpy is given
    values = values > 0 if dtype == 'bool' else values.astype(jnp.dtype(dtype))
    assert of(values) == of(jnp.asarray(values)) != of(values[::-1])
    small = values[:3]
    assert of(small) == of(jnp.asarray(small))
    raw = small.copy()
    for at in range(0, small.nbytes, 97):
        raw.reshape(-1).view(np.uint8)[at] ^= 1
        assert of(raw) != of(small)
        raw.reshape(-1).view(np.uint8)[at] ^= 1
    raw[0, 0], raw[2, 5] = small[2, 5], small[0, 0]
    assert (of(raw) == of(small)) == (small[0, 0] == small[2, 5])


def test_a_checkpoint_of_earlier_days_is_restored_and_checked(folder):
    """The digest of a leaf was the sha256 of its bytes."""
    checkpoints = saved(folder, {1: None})
    leaves = {'params/model/dense/kernel': make_state(1).params['model']['dense']['kernel']}
    old = lambda data: lambda whole: [whole['leaves'][name].__setitem__(2, record.sha256(data(x)))
                                      for name, x in leaves.items()]  # fmt: skip
    rewrite(folder, 1, old(lambda x: np.asarray(x).tobytes()))
    assert_equal(checkpoints.restore(1, template(make_state(0))), make_state(1))
    rewrite(folder, 1, old(lambda x: b'other'))
    assert 'bytes of params/model/dense/kernel are not' in message(
        lambda: checkpoints.restore(1, template(make_state(0)))
    )


NAMES = ['/dev/zero', '../../../../etc/passwd', '', '.', 'arrays/../../1/arrays/_METADATA', 'pipe', 'link', 'a\0b']


@pytest.mark.parametrize('name', NAMES)
def test_a_record_names_files_of_its_own_folder_alone(folder, name):
    checkpoints = saved(folder, {1: None})
    os.mkfifo(folder / '1' / 'pipe')
    (folder / '1' / 'link').symlink_to('/dev/zero')
    rewrite(folder, 1, lambda whole: whole['files'].update({name: '0' * 64}))
    said = message(lambda: checkpoints.restore(1, template(make_state(0))))
    assert 'the checkpoint is corrupt' in said
    for odd in ('pipe', 'link'):  # each alone, without a word in the record, is what Orbax may open
        (folder / '1' / odd).unlink()
        rewrite(folder, 1, lambda whole: whole['files'].pop(name, None))
        if odd == 'pipe':
            assert 'link is no regular file' in message(lambda: checkpoints.restore(1, template(make_state(0))))
    assert_equal(checkpoints.restore(1, template(make_state(0))), make_state(1))


ODD = {
    'negative': lambda whole: whole['leaves']['step'].__setitem__(0, [-1]),
    'huge': lambda whole: whole['leaves']['step'].__setitem__(0, [10**40]),
    'boolean': lambda whole: whole['leaves']['step'].__setitem__(0, [True]),
    'text': lambda whole: whole['leaves'].update(step='float32'),
    'no list': lambda whole: whole.update(files=3),
    'metric': lambda whole: whole['metrics'].update(nll='1'),
    'huge metric': lambda whole: whole['metrics'].update(nll=10**400),
    'missing': lambda whole: whole.pop('metrics'),
}


@pytest.mark.parametrize('odd', ODD)
def test_an_odd_record_is_one_line(folder, odd):
    checkpoints = saved(folder, {1: 1.0}, best_metric='nll')
    rewrite(folder, 1, ODD[odd])
    for call in (lambda: checkpoints.restore(1, template(make_state(0))), lambda: checkpoints.resolve('best')):
        assert 'checkpoint.json is not as it was saved' in message(call)


@pytest.mark.parametrize('field, value', [('chunks', [1 << 30, 4]), ('shape', [1 << 40, 4]), ('shape', [-1, 4])])
def test_arrays_that_ask_for_more_than_the_record_names_are_refused(folder, capfd, field, value):
    """All digests fit, as whoever wrote the files can make them. Orbax would take 8 GB for the first."""
    checkpoints = saved(folder, {1: None, 2: None}, keep=2)
    for step in (1, 2):
        arrays = folder / str(step) / 'arrays'
        base = {'driver': 'file', 'path': f'{arrays}/'}
        kept = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
        key = 'params.model.dense.kernel/.zarray'
        metadata = json.loads(kept.read(key).result().value) | {field: value}
        kept.write(key, json.dumps(metadata).encode()).result()
        digests = {name: record.digest_of(folder / str(step), name) for name in record.files_of(folder / str(step))}
        rewrite(folder, step, lambda whole: whole.update(files=digests))  # noqa: B023
    said = message(lambda: checkpoints.restore(2, template(make_state(0))), (UserError, RunError))
    assert '/2' in said and len(said.splitlines()) < 3 and 'go on from step 1' not in said
    assert not capfd.readouterr().err


def test_leaves_that_orbax_would_take_from_another_file_are_refused(folder):
    checkpoints = saved(folder, {1: None})
    leaves = {'params': {'model': {'dense': {'kernel': 5}}}}
    (folder / '1' / 'arrays' / 'checkpoint').write_bytes(msgpack.packb(leaves))
    digests = {name: record.digest_of(folder / '1', name) for name in record.files_of(folder / '1')}
    rewrite(folder, 1, lambda whole: whole.update(files=digests))
    assert '"checkpoint"' in message(lambda: checkpoints.restore(1, template(make_state(0))), RunError)


def test_a_large_or_deep_record_is_refused_unread(folder):
    checkpoints = saved(folder, {1: None})
    path = folder / '1' / record.NAME
    path.write_text('[' * 100_000)
    assert 'checkpoint.json is not as it was saved' in message(lambda: checkpoints.digest(1))
    os.truncate(path, 1 << 40)  # of no blocks
    assert 'checkpoint.json is not as it was saved' in message(lambda: checkpoints.digest(1))
    path.unlink()
    os.mkfifo(path)
    assert 'checkpoint.json cannot be read: it is a pipe' in message(lambda: checkpoints.digest(1))


@pytest.mark.parametrize('where', ['file', 'orbax'])
def test_what_keeps_a_good_checkpoint_from_being_read_is_named_and_it_is_not_called_corrupt(folder, monkeypatch, where):
    checkpoints = saved(folder, {1: None, 2: None}, keep=2)

    def fails(*_, **__):
        raise OSError(5, 'Input/output error') if where == 'file' else RuntimeError('Gloo: deadline exceeded')

    monkeypatch.setattr(*((records.os, 'open') if where == 'file' else (store, 'load')), fails)
    said = message(lambda: checkpoints.restore(2, template(make_state(0))), RunError)
    assert ('Input/output error' if where == 'file' else 'Gloo: deadline exceeded') in said
    assert 'corrupt' not in said and 'delete' not in said
