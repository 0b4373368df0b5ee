"""Pruning: which weights are kept, that the others are 0 and stay so, and runs that are pruned by the runs before."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import aigc_jax
from aigc_jax import adapt
from aigc_jax.adapt import prune
from aigc_jax.core import optim, tree
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.studies.comparable import Ground
from aigc_jax.training.trainer import train

KERNELS = 'model/mlp/Dense_0/kernel', 'model/mlp/Dense_1/kernel'
SHORT = {'eval_every_steps': 20, 'checkpoint_every_steps': 20, 'log_every_steps': 10, 'eval.best_metric': ''}
DECAY = {
    'optim.model.name': 'adamw', 'optim.model.options': {'weight_decay': 0.1}, 'optim.model.ema_decay': 0.9,
    'optim.model.clip_norm': 1.0,
}  # fmt: skip
GRADUAL = {'prune.keep': 0.25, 'prune.end': 36, 'prune.begin': 4, 'prune.every': 3, 'prune.scope': 'global'}


def config(**fields):
    """Of names in which __ stands for the point."""
    fields = {name.replace('__', '.'): value for name, value in fields.items()}
    texts = [(name, value if isinstance(value, str) else repr(value)) for name, value in {**SHORT, **fields}.items()]
    return config_lib.load('configs/classify.py:smoke', texts)


def trained(folder, **fields):
    train(config(**fields), Run(folder))
    return aigc_jax.open(folder).state


def kernels(state):
    params = tree.flatten(jax.device_get(state.params))
    return {name: params[name] for name in KERNELS}


def greatest(weights, count):
    """Of numpy alone."""
    order = sorted(range(weights.size), key=lambda i: (-abs(weights.ravel()[i]), i))
    mask = np.zeros(weights.size, bool)
    mask[order[:count]] = True
    return mask.reshape(weights.shape)


def own(**fields) -> ConfigDict:
    return ConfigDict({name: field.default for name, field in prune.FIELDS.items()} | fields)


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prune') / 'dense'
    trained(folder, total_steps=40, **DECAY)
    return folder


@pytest.fixture(scope='module')
def ticket(dense):
    """Interrupted, and gone on with where the other run is gone: the checkpoint has what is pruned."""
    folder, gone = dense.with_name('ticket'), dense.with_name('gone')
    fields = dict(prune__run=str(dense), prune__keep=0.25, prune__rules=(('Dense_1', 0.5),), **DECAY)
    trained(folder, total_steps=20, **fields)
    dense.rename(gone)
    try:
        trained(folder, total_steps=40, **fields)
    finally:
        gone.rename(dense)
    return folder


@pytest.mark.parametrize('scope', ['layer', 'global'])
def test_the_greatest_weights_of_each_layer_or_of_all_are_kept(scope):
    draws = np.random.default_rng(0)
    shapes = {'a/kernel': (6, 5), 'b/kernel': (3, 3, 2, 4), 'blocks/c/kernel': (3, 4, 5), 'b/bias': (4,)}
    flat = {name: draws.integers(-4, 5, shape).astype(np.float32) for name, shape in shapes.items()}  # with equal ones
    params = {'model': {}}
    for name, leaf in flat.items():
        inner = params['model']
        *parts, last = name.split('/')
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = leaf
    found = jax.device_get(prune.all_masks(params, own(keep=0.3, scope=scope, rules=(('a', 0.7), ('.', 0.3)))))
    masks = tree.flatten(found['model'])
    assert masks.keys() == {'a/kernel', 'b/kernel', 'blocks/c/kernel'}
    np.testing.assert_array_equal(masks['a/kernel'], greatest(flat['a/kernel'], 21))
    b, c = flat['b/kernel'], flat['blocks/c/kernel']
    if scope == 'layer':
        np.testing.assert_array_equal(masks['b/kernel'], greatest(b, 22))
        for k in range(3):  # of stacked layers each is one
            np.testing.assert_array_equal(masks['blocks/c/kernel'][k], greatest(c[k], 6))
    else:
        whole = greatest(np.concatenate([b.ravel(), c.ravel()]), 40)
        np.testing.assert_array_equal(masks['b/kernel'].ravel(), whole[:72])
        np.testing.assert_array_equal(masks['blocks/c/kernel'].ravel(), whole[72:])


def test_the_mask_is_that_of_the_other_runs_last_weights(dense, ticket):
    """Of their average, which that run was evaluated with."""
    theirs = aigc_jax.open(dense).state
    theirs = tree.flatten(jax.device_get(optim.averaged(theirs.params, theirs.opt)))
    state = aigc_jax.open(ticket).state
    for name, count in zip(KERNELS, (round(0.25 * 1024), 80), strict=True):
        mask = greatest(theirs[name], count)
        np.testing.assert_array_equal(kernels(state)[name] != 0, mask)
        inner = tree.flatten(state.opt['model'].masks)
        np.testing.assert_array_equal(inner[name.removeprefix('model/')], mask)


def test_what_is_pruned_has_no_moments_no_average_and_no_part_in_the_norms(ticket):
    state = jax.device_get(aigc_jax.open(ticket).state)
    masks, seen = tree.flatten(state.opt['model'].masks), 0
    for name, leaf in tree.flatten(state.opt['model'].inner).items():
        for path, mask in masks.items():
            if name.endswith(path):
                assert not leaf[~mask].any() and leaf[mask].any(), name
                seen += 1
    assert seen == 2 * 3  # mu, nu, average
    averaged = tree.flatten(optim.averaged(state.params, state.opt))
    for name, leaf in kernels(state).items():
        assert ((averaged[name] == 0) == (leaf == 0)).all()


def test_the_rest_begins_where_the_seed_begins(dense, ticket):
    """Rewinding: exactly the initial values; redrawn: the same masks, other values; late rewinding: of a step."""
    fields = dict(prune__run=str(dense), prune__keep=0.25, **DECAY)

    def start(**more):
        experiment = Experiment(config(**fields, **more))
        return jax.device_get(experiment.create_state(*(initial.model(experiment)[0] or (None, None)),
                                                      initial.masks(experiment)[0]))  # fmt: skip

    first, redrawn = kernels(start()), kernels(start(prune__redrawn=True))
    late = kernels(start(init__run=str(dense), init__step='20', init__average=False))
    drawn = kernels(Experiment(config(**DECAY)).create_state())
    of_step = kernels(Run(dense).open(step='20')[1])
    for name in KERNELS:
        mask = first[name] != 0
        assert mask.sum() == round(0.25 * mask.size)
        np.testing.assert_array_equal(first[name], np.where(mask, drawn[name], 0))
        np.testing.assert_array_equal(late[name], np.where(mask, of_step[name], 0))
        np.testing.assert_array_equal(redrawn[name] != 0, mask)
        assert (redrawn[name] != first[name])[mask].all()


def test_a_trained_run_is_pruned_at_once(dense):
    """By its own weights, with which training goes on, of one seed or of several."""
    experiment = Experiment(config(init__run=str(dense), prune__keep=0.1, **DECAY))
    found = kernels(experiment.create_state(*initial.model(experiment)[0]))
    theirs = aigc_jax.open(dense).state
    theirs = tree.flatten(jax.device_get(optim.averaged(theirs.params, theirs.opt)))
    several = Experiment(config(init__run=str(dense), prune__keep=0.1, num_seeds=2, **DECAY))
    of_each = kernels(several.create_state(*initial.model(several)[0]))
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, np.where(greatest(theirs[name], round(0.1 * leaf.size)), theirs[name], 0))
        np.testing.assert_array_equal(of_each[name], np.stack([leaf, leaf]))


@pytest.mark.parametrize('optimizer', [
    optax.adamw(1e-2, weight_decay=0.1), optax.contrib.muon(1e-2), optax.sgd(1e-2, momentum=0.9, nesterov=True),
    optax.contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
], ids=['adamw', 'muon', 'momentum', 'schedule_free'])  # fmt: skip
def test_what_is_pruned_stays_0_under_any_optimizer(optimizer):
    params = {'model': {'dense': {'kernel': jax.random.normal(jax.random.key(0), (6, 5)), 'bias': jnp.zeros(5)}}}
    settings = own(keep=0.4)
    averages = not isinstance(jax.eval_shape(optimizer.init, params['model']), optax.contrib.ScheduleFreeState)
    optimizer = optax.chain(optimizer, optim.average_params(0.9)) if averages else optimizer
    transform = prune._pruned(optimizer, prune.shares(params, settings)['model'], settings, 1)
    state = prune.begin({'model': transform}, settings, params, prune.Extra({}, {}))
    params, opt, mask = state.params['model'], state.opt['model'], state.opt['model'].masks['dense']['kernel']
    assert mask.sum() == 12
    for k in range(5):
        grads = jax.tree.map(lambda w: jax.random.normal(jax.random.key(k), w.shape), params)  # noqa: B023
        updates, opt = transform.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        averaged = optim.averaged({'model': params}, {'model': opt})['model']
        for kernel in (params['dense']['kernel'], averaged['dense']['kernel']):
            assert (kernel == 0)[~mask].all() and kernel[mask].all()


def test_gradual_pruning_keeps_the_shares_of_the_schedule():
    """Zhu & Gupta 2017, eq. 1, with s_i = 0; and so does the average of the weights. What is pruned has no moments from
    the step on that prunes it. Each step has two turns."""
    shape, settings = (20, 10), own(keep=0.25, begin=4, end=16, every=3)
    params = {'model': {'dense': {'kernel': jax.random.normal(jax.random.key(0), shape)}}}
    inner = optax.chain(optax.adam(1e-2), optim.average_params(0.9))
    transform = prune._pruned(inner, prune.shares(params, settings)['model'], settings, 2)
    state = prune.begin({'model': transform}, settings, params, prune.Extra({}, {}))
    params, opt, update = state.params['model'], state.opt['model'], jax.jit(transform.update)
    before, counts = np.ones(shape, bool), []
    for turn in range(2 * 20):
        updates, opt = update({'dense': {'kernel': jax.random.normal(jax.random.key(turn), shape)}}, opt, params)
        params = optax.apply_updates(params, updates)
        is_kept = np.asarray(params['dense']['kernel'] != 0)
        assert not (is_kept & ~before).any()
        np.testing.assert_array_equal(optim.averaged({'m': params}, {'m': opt})['m']['dense']['kernel'] != 0, is_kept)
        moments = [leaf for name, leaf in tree.flatten(opt.inner).items() if {'mu', 'nu'} & {*name.split('/')}]
        assert len(moments) == 2 and all(((leaf != 0) == is_kept).all() for leaf in moments)
        before = is_kept
        if turn % 2:
            counts.append(int(is_kept.sum()))
    of = lambda step: 50 + round(150 * (1 - (step - 4) / 12) ** 3)
    assert counts == [of(4 + max(0, min(step, 16) - 4) // 3 * 3) for step in range(1, 21)] and counts[-1] == 50


@pytest.fixture(scope='module')
def gradual(tmp_path_factory):
    folder = tmp_path_factory.mktemp('gradual') / 'run'
    trained(folder, total_steps=40, **GRADUAL, **DECAY)
    return folder


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_an_interrupted_run_is_the_uninterrupted_one(gradual, tmp_path):
    """Interrupted in the midst of the pruning."""
    shutil.copytree(gradual, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '40')
    assert 0.25 < np.mean([(leaf != 0).mean() for leaf in kernels(Run(tmp_path / 'run').open()[1]).values()]) < 1
    equal(trained(tmp_path / 'run', total_steps=40, **GRADUAL, **DECAY), aigc_jax.open(gradual).state)


def test_micro_batches_and_replicas_keep_the_same(gradual, tmp_path):
    one = kernels(aigc_jax.open(gradual).state)
    parts = kernels(trained(tmp_path / 'parts', total_steps=40, micro_batches=4, **GRADUAL, **DECAY))
    trained(tmp_path / 'seeds', total_steps=40, num_seeds=2, replicas='map', **GRADUAL, **DECAY)
    seeds = kernels(aigc_jax.open(tmp_path / 'seeds').replica(0).state)
    for name in KERNELS:
        np.testing.assert_array_equal(seeds[name] != 0, one[name] != 0)
        np.testing.assert_allclose(seeds[name], one[name], atol=1e-6)
        np.testing.assert_allclose(parts[name], one[name], atol=1e-4)


def on_eight(runner8, folder, **fields):
    code, _, err = runner8(
        '--config=configs/classify.py:smoke', f'--workdir={folder}',
        *(f'--config.{name}={value}' for name, value in {**SHORT, **DECAY, 'total_steps': 40, **fields}.items()),
    )  # fmt: skip
    assert code == 0, err
    return kernels(Run(folder).open()[1])


def test_eight_devices_with_shards_keep_the_same(runner8, gradual, tmp_path):
    mesh = {'parallel.mesh.fsdp': 8, 'parallel.rules': (('.*', 'fsdp'),)}
    one, found = kernels(aigc_jax.open(gradual).state), on_eight(runner8, tmp_path / 'run', **GRADUAL, **mesh)
    for name in KERNELS:
        np.testing.assert_array_equal(found[name] != 0, one[name] != 0)
        np.testing.assert_allclose(found[name], one[name], atol=1e-4)


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_eight_devices_keep_the_same(runner8, dense, ticket, tmp_path, mode):
    source = {'prune.run': dense, 'prune.keep': 0.25, 'prune.rules': (('Dense_1', 0.5),), 'parallel.mode': mode}
    one, found = kernels(aigc_jax.open(ticket).state), on_eight(runner8, tmp_path / 'run', **source)
    for name in KERNELS:
        np.testing.assert_array_equal(found[name] != 0, one[name] != 0)
        np.testing.assert_allclose(found[name], one[name], atol=1e-4)


@pytest.mark.parametrize('fields, words', [
    (dict(prune__keep=0.0), 'prune.keep: 0.0; it is more than 0'),
    (dict(prune__keep=1.5), 'prune.keep: 1.5; it is'),
    (dict(prune__keep=0.5, prune__targets='conv'), "prune.targets: 'conv' matches no kernel; there are model/mlp/"),
    (dict(prune__keep=0.5, prune__rules=(('Dense_7', 0.5),)), "prune.rules: 'Dense_7' matches no parameter; there are"),
    (dict(prune__keep=0.5, prune__rules=('Dense_1',)), "prune.rules: 'Dense_1' is no pair"),
    (dict(prune__keep=0.5, prune__rules=(('Dense_1', 2.0),)), 'prune.rules: 2.0; it is'),
    (dict(prune__run='x'), "prune.run: 'x', but prune.keep=1.0 prunes nothing"),
    (dict(prune__end=5), 'prune.end: 5, but prune.keep=1.0'),
    (dict(prune__keep=0.5, prune__end=5, prune__run='x'), 'prune.end: pruning is gradual'),
    (dict(prune__keep=0.5, prune__end=5, prune__begin=5), 'prune.end: 5; it is more than prune.begin'),
    (dict(prune__keep=0.5, prune__redrawn=True, init__run='x'), 'prune.redrawn: parameters are drawn otherwise'),
    (dict(prune__keep=0.5, prune__step='5'), 'prune.step: 5, but prune.run names no run'),
    (dict(prune__keep=0.5, prune__begin=5), 'prune.begin: 5, but prune.end=0'),
    (dict(prune__keep=0.5, prune__end=50), 'prune.end: 50, but total_steps is 40'),
    (dict(prune__keep=0.5, prune__end=5, optim__model__name='contrib.schedule_free_adamw'), 'optim.model.name'),
    (dict(prune__keep=0.5, prune__run='/nowhere/run'), 'prune.run: there is no folder /nowhere/run'),
])  # fmt: skip
def test_mistakes_are_named(fields, words):
    with pytest.raises(UserError) as error:
        initial.masks(Experiment(config(**fields)))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('fields, words', [
    (dict(prune__keep=0.5), 'prune.keep: of model/mlp/Dense_0/kernel it keeps weights that prune.run, '),
    (dict(prune__keep=0.1, model__classifier__features=(8,)), 'prune.run: '),
])  # fmt: skip
def test_a_run_that_cannot_say_what_is_kept_is_named(ticket, fields, words):
    with pytest.raises(UserError) as error:
        initial.masks(Experiment(config(prune__run=str(ticket), **fields)))
    assert str(error.value).startswith(words) and '\n' not in str(error.value)
    if words == 'prune.run: ':
        assert 'model/mlp/Dense_0/kernel is float32[64, 16], the model has float32[64, 8]' in str(error.value)
        assert f'; set model.classifier.features=(16,), as {ticket} has' in str(error.value)


def test_a_run_with_the_optimizer_of_another_model_is_named(ticket, tmp_path):
    shutil.copytree(ticket, tmp_path / 'other')
    path = tmp_path / 'other' / 'config.json'
    theirs = json.loads(path.read_text())
    theirs['task'] = {'name': 'lm'}
    theirs['optim']['model']['weight_decay_regex'] = 'block.*kernel'
    path.write_text(json.dumps(theirs))
    with pytest.raises(UserError) as error:
        initial.masks(Experiment(config(prune__run=str(tmp_path / 'other'), prune__keep=0.1)))
    assert 'prune.run: its optimizer is that of another model: ' in str(error.value)
    assert str(error.value).endswith(f"; {tmp_path / 'other'} is a run of task.name=lm")


def test_what_is_stored_are_the_weights_that_are_left_and_a_bit_for_each(ticket):
    run = aigc_jax.open(ticket)
    sizes = {name: one.bytes for name, one in adapt.stored(run.state.params, run.config).items()}
    assert sizes == {
        'model/mlp/Dense_0/kernel': 4 * 256 + 128, 'model/mlp/Dense_1/kernel': 4 * 80 + 20,
        'model/mlp/Dense_0/bias': 64, 'model/mlp/Dense_1/bias': 40,
    }  # fmt: skip


def test_a_run_again_takes_the_masks_that_the_run_took(dense, ticket, tmp_path):
    """verify names the checkpoint, and says where it is another."""
    run = Run(ticket)
    found = Ground(run, run.config, 0, [40])
    assert not found.reasons and found.config.prune.step == '40'
    start = run.manifest['starts'][0]
    assert start['prune_step'] == 40 and start['prune_sha256'] == initial.digest_of(str(dense), 40)
    shutil.copytree(ticket, tmp_path / 'run')
    path = tmp_path / 'run' / 'manifest.json'
    path.write_text(path.read_text().replace(start['prune_sha256'], 'f' * 64))
    assert 'prune.run: the checkpoint of step 40 in' in Ground(Run(tmp_path / 'run'), run.config, 0, [40]).reasons[0]


def test_a_task_without_pruning_is_as_it_was():
    settings = config()
    experiment = Experiment(settings)
    assert prune.adapted(experiment.task, settings.prune) is experiment.task
    assert not any(isinstance(one, prune.PrunedState) for one in experiment.abstract_state.opt.values())
