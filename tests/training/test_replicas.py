"""Replicas by seed: each is its single run, wherever it lives and whatever becomes of the others."""

import json
import shutil

import jax
import numpy as np
import pytest

import aigc_jax
from aigc_jax.runs.folder import Run

SEEDS = [3, 4, 5]
FIELDS = dict(
    seed=SEEDS[0], total_steps=20, log_every_steps=5, eval_every_steps=10, checkpoint_every_steps=10,
    eval__num_shown=4,
)  # fmt: skip
# Images with a likelihood, and points with a known density: what is evaluated and drawn differs.
# Several steps a call compile twice as long, so that of one model.
OF_MODEL = {
    'vae': {'eval__num_samples': 100, 'steps_per_call': 5},
    'gan': {'data__name': 'ring8', 'eval__num_samples': 100, 'steps_per_call': 1},
    # With AdamW: Muon's products round otherwise inside lax.map, by some 1e-7 after 10 steps.
    'gpt': {'steps_per_call': 1},
}
MAPPED = dict(num_seeds=3, replicas='map')
# Measured for vmap after 20 steps: 3e-7 of a value.
TOLERANCE = dict(rtol=1e-5, atol=1e-6)
PROGRAM = """
import pathlib, sys, jax
from aigc_jax.runs import config
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train
config = config.load(sys.argv[1], [pair.split('=') for pair in sys.argv[3:]])
leaves = jax.tree.leaves(Experiment(config).create_state())
shapes = {(leaf.shape[0], leaf.addressable_shards[0].data.shape[0]) for leaf in leaves}
assert jax.device_count() == 2 and shapes == {(4, 2)}, shapes  # two replicas on each device
train(config, Run(pathlib.Path(sys.argv[2])))
"""


def config_of(model, **fields):
    fields = {**FIELDS, **OF_MODEL[model], **fields}
    overrides = [(name.replace('__', '.'), str(value)) for name, value in fields.items()]
    return f'configs/{model}.py:{"gpt2," * (model == "gpt")}smoke', overrides


@pytest.fixture(scope='module')
def train(exact_runner):
    """train(model, workdir, **fields) -> (exit code, stderr) of the command line."""

    def trained(model, workdir, **fields):
        name, overrides = config_of(model, **fields)
        flags = [f'--config.{field}={value}' for field, value in overrides]
        code, _, err = exact_runner(f'--config={name}', f'--workdir={workdir}', *flags)
        return code, err

    return trained


@pytest.fixture(scope='module')
def run(tmp_path_factory, train):
    """run(model, **fields) -> the folder of that run, trained once; to be read, or copied."""
    folders = {}

    def trained(model, **fields):
        key = model, tuple(fields.items())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp('replicas') / model
            code, err = train(model, folders[key], **fields)
            assert code == 0, err
        return folders[key]

    return trained


@pytest.fixture(scope='module')
def assert_is_single(run, leaves, assert_same_bits):
    """Replica k of a folder against the single run of its seed: every leaf and every row, bit for bit."""

    def check(folder, model, k):
        single = run(model, seed=SEEDS[k])
        assert_same_bits({name: leaf[k] for name, leaf in leaves(folder).items()}, leaves(single))
        assert rows(folder, SEEDS[k]) == rows(single)

    return check


def rows(workdir, seed=None) -> list[dict]:
    """Of metrics.jsonl: all, or those of one seed without it."""
    found = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return found if seed is None else [row for row in found if row.pop('seed') == seed]


def evaluation(workdir) -> dict:
    return json.loads((workdir / 'evaluation.json').read_text())


def back_at_step_10(run, model, folder):
    """A copy of the finished replicas, as if it had been killed after step 10."""
    shutil.copytree(run(model, **MAPPED), folder)
    shutil.rmtree(folder / 'checkpoints' / '20')
    shutil.rmtree(folder / 'samples')
    return folder


def poison(folder, replicas):
    """Makes the parameters of these replicas NaN in the checkpoint of step 10."""
    config, _, state = aigc_jax.load(folder, 10)

    def spoil(leaf):
        spoilt = np.array(leaf)
        spoilt[replicas] = np.nan
        return jax.numpy.asarray(spoilt)

    shutil.rmtree(folder / 'checkpoints' / '10')
    checkpoints = Run(folder).checkpoints(config, read_only=False)
    checkpoints.save(10, state._replace(params=jax.tree.map(spoil, state.params)))
    checkpoints.close()


@pytest.mark.parametrize('k', range(3))
@pytest.mark.parametrize('model', OF_MODEL)
def test_a_mapped_replica_is_its_single_run_bit_for_bit(run, assert_is_single, model, k):
    assert_is_single(run(model, **MAPPED), model, k)


@pytest.mark.parametrize('model', OF_MODEL)
def test_vmap_is_map_within_rounding(run, leaves, model):
    ours, theirs = leaves(run(model, num_seeds=3, replicas='vmap')), leaves(run(model, **MAPPED))
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, err_msg=name, **TOLERANCE)
    kernels = [leaf for name, leaf in theirs.items() if name.endswith('kernel')]
    assert kernels and all(len(np.unique(kernel, axis=0)) == 3 for kernel in kernels)  # the seeds do differ


def test_replicas_over_two_devices_are_their_single_runs(run, command_line, exact_flags, tmp_path, assert_is_single):
    name, overrides = config_of('vae', num_seeds=4, replicas='map')
    pairs = [f'{field}={value}' for field, value in overrides]
    flags = {'XLA_FLAGS': f'{exact_flags} --xla_force_host_platform_device_count=2'}
    done = command_line.python('-c', PROGRAM, name, tmp_path / 'run', *pairs, env=flags)
    assert done.returncode == 0, done.stderr
    for k in range(3):
        assert_is_single(tmp_path / 'run', 'vae', k)


@pytest.mark.parametrize('model', OF_MODEL)
def test_each_seed_is_evaluated_and_sampled(run, model):
    folder = run(model, **MAPPED)
    found, singles = evaluation(folder), [evaluation(run(model, seed=seed)) for seed in SEEDS]
    names = set(found) - {'step'}
    assert found['step'] == 20 and names and names == set(singles[0]) - {'step'}
    for name in names:
        values = [single[name]['value'] for single in singles]
        assert found[name]['values'] == dict(zip(map(str, SEEDS), values, strict=True))
        known = [value for value in values if value is not None]  # that of samples may be undefined so early
        assert found[name]['seeds'] == len(known)
        if len(set(known)) > 1:
            assert (found[name]['n'], found[name]['over']) == (len(known), 'seeds')
        mean = np.mean if 'exp_of' not in found[name] else lambda values: np.exp(np.log(values).mean())
        assert found[name]['value'] == (pytest.approx(mean(known)) if known else None)
    drawn = [np.load(folder / 'samples' / f'00000020_seed{seed}.npz')['samples'] for seed in SEEDS]
    assert len({samples.tobytes() for samples in drawn}) == 3
    for samples, seed in zip(drawn, SEEDS, strict=True):
        single = np.load(run(model, seed=seed) / 'samples' / '00000020.npz')['samples']
        assert samples.tobytes() == single.tobytes()


def test_resumed_replicas_are_uninterrupted_bit_for_bit(run, train, leaves, assert_same_bits, tmp_path):
    folder = back_at_step_10(run, 'gan', tmp_path / 'run')
    assert train('gan', folder, **MAPPED)[0] == 0
    whole = run('gan', **MAPPED)
    assert_same_bits(leaves(folder), leaves(whole))
    for name in ('metrics.jsonl', 'evaluation.json'):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize('model, k', [('vae', 1), ('gan', 0)])  # replica 0 is the one that evaluations draw
def test_a_diverged_replica_is_marked_and_the_others_are_their_single_runs(
    run, train, assert_is_single, tmp_path, model, k
):
    folder = back_at_step_10(run, model, tmp_path / 'run')
    poison(folder, [k])
    assert train(model, folder, **MAPPED)[0] == 0
    marked = [row for row in rows(folder) if 'diverged' in row]
    assert marked == [{'step': 11, 'split': 'train', 'seed': SEEDS[k], 'diverged': 1.0}]
    after = [row for row in rows(folder, SEEDS[k]) if row['step'] > 10 and 'diverged' not in row]
    assert after and all(value is None for row in after for field, value in row.items() if '/loss' in field)
    for other in {0, 1, 2} - {k}:
        assert_is_single(folder, model, other)
        assert (folder / 'samples' / f'00000020_seed{SEEDS[other]}.npz').exists()
    found, without = evaluation(folder), evaluation(run(model, **MAPPED))
    for field in set(found) - {'step'}:
        assert found[field]['values'] == {**without[field]['values'], str(SEEDS[k]): None}
        known = [value for value in found[field]['values'].values() if value is not None]
        assert found[field]['seeds'] == len(known)
        assert found[field].get('diverged', 0) == (len(SEEDS) - len(known) if known else 0)
        assert found[field]['value'] == (pytest.approx(np.mean(known)) if known else None)


def test_all_replicas_diverged_ends_the_run(run, train, tmp_path):
    folder = back_at_step_10(run, 'gan', tmp_path / 'run')
    poison(folder, [0, 1, 2])
    code, err = train('gan', folder, **MAPPED)
    assert code == 1 and 'step 11: all 3 replicas diverged' in err
    assert sorted(path.name for path in (folder / 'checkpoints').iterdir()) == ['10']  # no NaN was saved
