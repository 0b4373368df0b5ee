"""The one training step: order of turns, draws, golden values, micro-batches, a task added by one file."""

import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from aigc_jax.core import optim, rng
from aigc_jax.core.step import NORMS, create_state, fuse, make_optimizers, make_step
from aigc_jax.core.types import Aux, Extra, Task, Turn
from aigc_jax.data.batching import gather_streamed
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def game(rounds):
    """Two scalars: 'a' wants to be b + 1, 'b' wants to be 2 a; gradients are the differences themselves."""
    turns = {
        'a': Turn('a', lambda p, e, b, c: (0.5 * (p['a'] - jax.lax.stop_gradient(p['b']) - 1) ** 2, Aux({}, e))),
        'b': Turn('b', lambda p, e, b, c: (0.5 * (p['b'] - jax.lax.stop_gradient(2 * p['a'])) ** 2, Aux({}, e))),
    }
    init = lambda key: ({'a': jnp.float32(0), 'b': jnp.float32(0)}, Extra({}, {}))
    return Task(init, tuple(tuple(turns[p] for p in players) for players in rounds))


def one_step(task, optimizers, batch, **kwargs):
    step = make_step(task, optimizers, lambda batch, ctx: batch, **kwargs)
    return step(create_state(task, optimizers, 0), jnp.int32(0), batch)


def test_rounds_run_in_order_and_turns_inside_one_see_the_same_parameters():
    optimizers = {'a': optax.sgd(1.0), 'b': optax.sgd(1.0)}  # a gradient step lands on the wish
    batch = {'x': jnp.zeros((2, 4))}
    alternating, _ = one_step(game(['a', 'b']), optimizers, batch)
    assert (alternating.params['a'], alternating.params['b']) == (1, 2)
    simultaneous, _ = one_step(game(['ab']), optimizers, {'x': jnp.zeros((1, 4))})
    assert (simultaneous.params['a'], simultaneous.params['b']) == (1, 0)
    assert alternating.step == 1


def test_all_turns_of_a_step_have_the_rate_of_that_step():
    """A schedule is over training steps: warm-up, decay and their percents are the same for a player with three turns a
    step as for one with a single turn. The gradients are 1, so that a turn moves its player by the rate."""
    turns = {player: Turn(player, lambda p, e, b, c, own=player: (p[own], Aux({}, e))) for player in 'ab'}
    init = lambda key: ({'a': jnp.float32(0), 'b': jnp.float32(0)}, Extra({}, {}))
    task = Task(init, tuple((turns[player],) for player in 'aaab'))
    schedule = dict(
        name='warmup_cosine_decay_schedule', init_value=0.1, peak_value=1.0, warmup_percent=25.0, decay_percent=100.0
    )
    own = dict(name='sgd', options={}, schedule=schedule, clip_norm=0.0, clip_weights=0.0, weight_decay_regex='',
               learning_rate_rules=(), layer_decay=1.0, freeze='', ema_decay=0.0)  # fmt: skip
    optimizers = make_optimizers(task, ConfigDict({'a': own, 'b': own}), 8)
    step = make_step(task, optimizers, lambda batch, ctx: batch)
    state, moved = create_state(task, optimizers, 0), []
    for _ in range(8):
        before = state.params
        state, _ = step(state, jnp.int32(0), {'x': jnp.zeros((4, 2))})
        moved.append([float(before[player] - state.params[player]) for player in 'ab'])
    rates = [0.1, 0.55] + [0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6)]
    np.testing.assert_allclose(moved, [[3 * rate, rate] for rate in rates], rtol=1e-5)


def test_every_round_sees_its_own_examples_and_draws():
    seen = []

    def loss(params, extra, batch, ctx):
        seen.append((batch['x'], ctx.index, ctx.normal('z', (2,))))
        return jnp.sum(params['a']) * 0, Aux({}, extra)

    task = Task(lambda key: ({'a': jnp.zeros(())}, Extra({}, {})), ((Turn('a', loss),),) * 3)
    with jax.disable_jit():
        one_step(task, {'a': optax.sgd(1.0)}, {'x': jnp.arange(12).reshape(3, 4)})
    np.testing.assert_array_equal(np.concatenate([x for x, _, _ in seen]), np.arange(12))
    np.testing.assert_array_equal(np.concatenate([i for _, i, _ in seen]), np.arange(12))
    draws = np.concatenate([z for _, _, z in seen])
    assert len(np.unique(draws)) == draws.size


def test_a_draw_depends_on_seed_step_name_and_example_alone():
    whole = rng.context(3, 'train', 5, jnp.arange(8)).normal('z', (4,))
    part = rng.context(3, 'train', 5, jnp.arange(4, 8)).normal('z', (4,))
    np.testing.assert_allclose(whole[4:], part, rtol=1e-6)  # the bits are equal; their transform may round otherwise
    bits = [rng.context(3, 'train', 5, index).uniform('u', (4,)) for index in (jnp.arange(8), jnp.arange(4, 8))]
    np.testing.assert_array_equal(bits[0][4:], bits[1])
    for other in (rng.context(4, 'train', 5, jnp.arange(8)), rng.context(3, 'eval', 5, jnp.arange(8)),
                  rng.context(3, 'train', 6, jnp.arange(8))):  # fmt: skip
        assert not (other.normal('z', (4,)) == whole).any()
    assert not (rng.context(3, 'train', 5, jnp.arange(8)).normal('y', (4,)) == whole).any()


def test_draws_are_those_of_jax_random():
    index = jnp.arange(5, 12, dtype=jnp.int32)
    ctx = rng.context(3, 'train', 5, index)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), zlib.crc32(b'train')), 5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, zlib.crc32(b'z')), index)
    for shape in ((), (1,), (7,), (3, 5)):
        for ours, theirs in ((ctx.normal, jax.random.normal), (ctx.uniform, jax.random.uniform)):
            expected = jax.vmap(lambda key: theirs(key, shape))(keys)
            np.testing.assert_array_equal(ours('z', shape), expected)


def test_draws_have_their_distribution():
    ctx = rng.context(0, 'train', 0, jnp.arange(20_000))
    normal, uniform, integers = ctx.normal('n', (2,)), ctx.uniform('u'), ctx.integers('i', 5)
    assert abs(float(normal.mean())) < 0.02 and float(normal.std()) == pytest.approx(1, abs=0.02)
    assert abs(float(np.corrcoef(normal.T)[0, 1])) < 0.02
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01) and 0 <= uniform.min() and uniform.max() < 1
    np.testing.assert_allclose(np.bincount(integers) / 20_000, 0.2, atol=0.015)


def weighted_task():
    """A mean over tokens: the batch's mask says which count."""

    def loss(params, extra, batch, ctx):
        error = (batch['x'] * params['m'] - batch['y'] + ctx.normal('e', ())) ** 2
        weight = jnp.sum(batch['mask'])
        return jnp.sum(error * batch['mask']) / weight, Aux({'tokens': jnp.mean(batch['mask'])}, extra, weight)

    return Task(lambda key: ({'m': jnp.ones(())}, Extra({}, {})), ((Turn('m', loss),),))


@pytest.mark.parametrize('parts', [2, 4, 8])
def test_micro_batches_weigh_by_tokens(parts):
    r = np.random.default_rng(0)
    mask = np.zeros((1, 8), np.float32)
    mask[0, [0, 1, 4, 5, 7]] = 1  # unequal in the parts; 2 and 3 are a part of 4 in which no token counts
    mask[0, 4] = 0.25
    batch = {'x': r.normal(size=(1, 8)), 'y': r.normal(size=(1, 8)), 'mask': mask}
    batch = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), batch)
    whole, metrics = one_step(weighted_task(), {'m': optax.sgd(0.1)}, batch)
    cut, cut_metrics = one_step(weighted_task(), {'m': optax.sgd(0.1)}, batch, micro_batches=parts)
    assert float(cut.params['m']) == pytest.approx(float(whole.params['m']), rel=1e-5)
    assert float(cut_metrics['m/loss']) == pytest.approx(float(metrics['m/loss']), rel=1e-5)


def test_metrics_of_the_update():
    state, metrics = one_step(game(['a']), {'a': optax.sgd(0.5), 'b': optax.sgd(0.5)}, {'x': jnp.zeros((1, 4))})
    assert float(metrics['a/grad_norm']) == 1.0 and float(metrics['a/loss']) == 0.5
    assert set(metrics) == {'a/loss', 'a/grad_norm', 'a/update_ratio'}


@pytest.mark.parametrize('parts', [1, 2])
def test_what_is_frozen_has_no_gradient(parts):
    """The norms are of what is trained, and the backward pass of a frozen layer is not computed."""
    params = {'net': {'first': jnp.ones((3, 3)), 'last': jnp.full((3,), 2.0)}}

    def loss(p, extra, batch, ctx):
        return jnp.mean((batch['x'] @ p['net']['first']) @ p['net']['last']), Aux({}, extra)

    task = Task(lambda key: (params, Extra({}, {})), ((Turn('net', loss),),))
    config = ConfigDict({'net': dict(
        name='sgd', options={}, schedule=dict(name='constant_schedule', value=0.5), clip_norm=0.0, clip_weights=0.0,
        weight_decay_regex='', learning_rate_rules=(), layer_decay=1.0, freeze='first', ema_decay=0.0,
    )})  # fmt: skip
    batch, optimizers = {'x': jnp.ones((1, 4, 3))}, make_optimizers(task, config, 10)
    frozen = optim.frozen(config, params)
    state, metrics = one_step(task, optimizers, batch, frozen=frozen, micro_batches=parts)
    norm = math.sqrt(3 * 3**2)  # ∂/∂last = 3 each
    assert float(metrics['net/grad_norm']) == pytest.approx(norm)
    assert float(metrics['net/update_ratio']) == pytest.approx(0.5 * norm / math.sqrt(3 * 2**2))
    np.testing.assert_array_equal(state.params['net']['first'], 1)
    np.testing.assert_allclose(state.params['net']['last'], 0.5)
    products = [str(jax.make_jaxpr(lambda: one_step(task, optimizers, batch, frozen=f))()).count('dot_general')
                for f in (frozen, {})]  # fmt: skip
    assert products[0] < products[1]
    config.net.freeze = '.*'
    _, metrics = one_step(task, make_optimizers(task, config, 10), batch, frozen=optim.frozen(config, params))
    assert float(metrics['net/grad_norm']) == float(metrics['net/update_ratio']) == 0


def test_one_call_of_many_steps_is_the_loop_over_steps():
    config = config_lib.load(str(CONFIGS / 'vae.py:smoke'), [])
    experiment = Experiment(config)
    step = make_step(experiment.task, experiment.optimizers, experiment.preprocess)
    images = np.random.default_rng(0).integers(0, 17, (6, 1, 8, 8, 8, 1)).astype(np.uint8)
    state = create_state(experiment.task, experiment.optimizers, 0)
    fused, metrics = jax.jit(fuse(step, gather_streamed, 6))(state, jnp.int32(0), {}, {'x': images})
    assert metrics['model/loss'].shape == (6,)
    one = jax.jit(fuse(step, gather_streamed, 1))
    for k in range(6):
        state, single = one(state, jnp.int32(0), {}, {'x': images[k : k + 1]})
        np.testing.assert_allclose(single['model/loss'][0], metrics['model/loss'][k], rtol=1e-5)
    for name in NORMS:  # of the last step
        np.testing.assert_allclose(metrics[f'model/{name}'], single[f'model/{name}'], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_at_most_one_trace():
    config = config_lib.load(str(CONFIGS / 'gan.py:smoke'), [])
    experiment = Experiment(config)
    call, feeds = experiment.train_call(), experiment.feeds(0)
    state, data = experiment.create_state(), experiment.resident_data()
    for _ in range(3):
        state, _ = call(state, experiment.seed_array, data, next(feeds))
    assert call._cache_size() == 1


# First losses of the smoke configs; renew with `python tests/core/test_step.py` after a change that should alter them.
GOLDEN = {
    'vae.py': {'model/loss': [53.634052, 48.459446]},
    'gpt.py': {'model/loss': [5.5451698, 4.5253734]},
    'rnn_lm.py': {'model/loss': [5.5452003, 5.5229626]},
    'gan.py': {'discriminator/loss': [2.5298533, 1.8935343], 'generator/loss': [0.23147866, 0.32378322]},
}


def first_values(name):
    # The corpora of the interpreter differ with its version.
    overrides = [('steps_per_call', '10')]
    overrides += [('data.name', f'text:{CONFIGS.parent}/LICENSE')] if name in ('gpt.py', 'rnn_lm.py') else []
    experiment = Experiment(config_lib.load(str(CONFIGS / f'{name}:smoke'), overrides))
    state, metrics = experiment.train_call()(
        experiment.create_state(), experiment.seed_array, experiment.resident_data(), next(experiment.feeds(0))
    )
    return {key: [float(value[0]), float(value[-1])] for key, value in metrics.items() if key.endswith('/loss')}


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_values(name):
    found = first_values(name)
    assert found.keys() == GOLDEN[name].keys()
    for key, values in GOLDEN[name].items():
        np.testing.assert_allclose(found[key], values, rtol=2e-4, err_msg=key)


if __name__ == '__main__':
    for name in GOLDEN:
        print(repr(name), first_values(name))
