"""One step, however it is laid out: jit on one and eight devices, fsdp, tensor, pmap, micro-batches, streams.

This file, run as a program on eight virtual devices, trains the cases; the tests compare what it found.
"""

import itertools
import json
import os
import pathlib
import sys

import numpy as np
import pytest

STEPS, BATCH = 10, 32  # optimizer steps, examples
# Steps of a call: the scan over them is in the first model and in the toy. It holds the step a second time, and nearly
# all the time of this file is compilation.
K, ONE = 5, {'steps_per_call': 1}
# Measured over all cases: parameters 6e-8, moments and metrics 2e-6 of their size; ten times that is allowed.
TOLERANCE = dict(rtol=2e-5, atol=1e-6)

WHOLE = {'data': -1, 'fsdp': 1, 'tensor': 1}
FSDP = dict(mesh={'data': 1, 'fsdp': 8, 'tensor': 1}, rules=(('.*', 'fsdp'),))
# The kernels of the hidden layers and of images: the last one of a discriminator has a single column.
TENSOR = dict(
    mesh={'data': 4, 'fsdp': 1, 'tensor': 2}, rules=(('(encoder|decoder|Dense_0).*kernel', (None, 'tensor')),)
)
MIXED = dict(
    mesh={'data': 2, 'fsdp': 2, 'tensor': 2},
    rules=(('(query|out|up|down).*kernel', ('fsdp', 'tensor')), ('.*', 'fsdp')),
)
# The gradient of a hidden unit's bias is the difference of how many generated and how many real examples it is
# active on. Where these are equal rounding leaves some 1e-9 of it, and Adam without momentum divides that by itself
# plus ε: with ε = 1e-8 such a bias differs by 3e-4, with ε = 1e-5 or plain gradient descent by 4e-7 and 5e-10.
EPSILON = {f'optim.{player}.options': {'b1': 0.0, 'b2': 0.99, 'eps': 1e-5} for player in ('discriminator', 'generator')}
MODELS = {
    'vae': ('vae', {'model.conditional': True}),
    'gan': ('gan', ONE),
    'gpt': ('gpt', {**ONE, 'model.dropout': 0.1, 'model.layers': 1}),
    # With a codebook, all of which the first step revives. Two channels to a group of the normalization: it takes the
    # bias of a channel by itself away, whose gradient then is rounding, which Adam divides by itself.
    # Blank corners of the digits give vectors that are alike but for rounding. With seed 0 two of them become codes,
    # rounding says which of both the next corners take, and from there on the runs differ.
    'vq': (
        'vq',
        {
            **ONE, 'model.encoder.features': (16,), 'model.decoder.features': (16,),
            'model.encoder.block': 'plain', 'model.decoder.block': 'plain',
            'optim.model.options.eps': 1e-5, 'optim.prior.options.eps': 1e-5, 'seed': 1,
        },
    ),
    # The windows have unequal numbers of hidden tokens.
    'mlm': (
        'bert', {**ONE, 'model.layers': 1, 'model.dropout': 0.1, 'task.whole_words': True, 'task.sentence_order': 1.0},
    ),
    't5': ('finetune_seq2seq', {**ONE, 'model.dropout': 0.1}),  # of PAIRS, whose targets are of unequal length
    # The base is frozen, without a gradient or moments; the adapters and their average are trained.
    'lora': (
        'gpt',
        {
            **ONE, 'model.layers': 1, 'model.zero_init': False, 'adapt.name': 'lora', 'adapt.rank': 8,
            'optim.model.name': 'adam', 'optim.model.options': {}, 'optim.model.learning_rate_rules': (),
            'optim.model.ema_decay': 0.9,
        },
    ),
    'rnn': ('rnn_lm', ONE),  # with its state carried from block to block
    'critic of two steps': (
        'gan',
        {
            **ONE,
            'task.n_critic': 2,
            'task.loss': 'wasserstein',
            'task.gradient_penalty': 10.0,
            **EPSILON,
        },
    ),
    # Batch norm in the generator, spectral norm in the discriminator, moving averages of logits, pairs of examples.
    'statistics': (
        'gan:sngan,smoke',
        {
            **ONE,
            'task.n_critic': 1,  # of five, five times the program
            'data.name': 'digits',
            'data.augment': {
                'flip': True, 'shift': 1, 'rotation': 10.0, 'scale': 0.1, 'cutout': 2, 'mixup': 0.5,
            },
            'task.loss': 'hinge',
            'task.lecam': 0.1,
            'task.augmentation': 'adaptive',
            'task.ada_target': -0.9,
            'task.ada_examples': 320,
            'task.packing': 2,
            'task.r1': 1.0,
            'task.penalty_every': 2,
            'model.generator.block': 'plain', 'model.discriminator.block': 'plain',  # half the time of compilation
            **EPSILON,
        },
    ),
}  # fmt: skip
PAIRS = [{'code': f'{i} = f(x) ' * (i % 5 + 1), 'name': 'name of it'[: i % 10 + 1]} for i in range(320)]
# case: (devices, config.parallel, other fields)
CASES = {
    'jit x1': (1, {}, {}),
    'jit x8': (8, {}, {}),
    'fsdp x8': (8, FSDP, {}),
    'tensor 4x2': (8, TENSOR, {}),
    'pmap x8': (8, {'mode': 'pmap'}, {}),
    'micro x1': (1, {}, {'micro_batches': 4}),
    'micro pmap x8': (8, {'mode': 'pmap'}, {'micro_batches': 4}),
    'stream x8': (8, {}, {'data.stream': True}),
    'stream pmap x8': (8, {'mode': 'pmap'}, {'data.stream': True}),
}
CASES_OF = {
    'vae': tuple(case for case in CASES if not case.startswith('stream')),
    'gan': ('jit x1', 'jit x8', 'fsdp x8', 'tensor 4x2', 'pmap x8', 'micro x1'),
    'gpt': ('jit x1', 'fsdp x8', 'pmap x8', *['jit x8'] * ('AIGC_JAX_THOROUGH' in os.environ)),  # fsdp divides it too
    'mlm': ('jit x1', 'jit x8', 'fsdp x8', 'micro pmap x8'),
    't5': ('jit x1', 'jit x8', 'fsdp x8', 'pmap x8'),
    'lora': ('jit x1', 'jit x8', 'fsdp x8'),
    'vq': ('jit x1', 'micro pmap x8'),
    'rnn': ('jit x1', 'jit x8', 'pmap x8'),
    'critic of two steps': ('jit x1', 'pmap x8'),
    'statistics': ('jit x1', 'jit x8', 'pmap x8'),
}
# (model, case of streamed data, the case of resident data whose bits it has), with flags that take thrice as long to
# compile.
STREAMED = (
    ('vae', 'stream x8', 'jit x8'), ('vae', 'stream pmap x8', 'pmap x8'), ('gan', 'stream x8', 'jit x8'),
)  # fmt: skip
TOY_CASES = {  # case: (devices, config.parallel, micro_batches)
    'jit x1': (1, {}, 1), 'jit x8': (8, {}, 1), 'pmap x8': (8, {'mode': 'pmap'}, 1), 'micro x1': (1, {}, 4),
    'micro pmap x8': (8, {'mode': 'pmap'}, 4),
}  # fmt: skip


@pytest.fixture(scope='module')
def run(command_line, tmp_path_factory):
    """run(flags of XLA, *arguments of the program) -> {(model, case): {name: array}}, {(model, case): names of the
    leaves that no device holds whole}.
    """

    def run(flags, *arguments):
        folder = tmp_path_factory.mktemp('parallel')
        flags = f'{flags} --xla_force_host_platform_device_count=8'
        done = command_line.python(__file__, folder, *arguments, env={'XLA_FLAGS': flags}, seconds=900)
        assert done.returncode == 0, done.stderr
        arrays, cases = np.load(folder / 'arrays.npz'), {}
        for key in arrays.files:
            model, case, name = key.split('|')
            cases.setdefault((model, case), {})[name] = arrays[key]
        sharded = json.loads((folder / 'sharded.json').read_text())
        return cases, {tuple(key.split('|')): names for key, names in sharded.items()}

    return run


@pytest.fixture(scope='module')
def found(run):
    return run(os.environ['XLA_FLAGS'])


@pytest.fixture(scope='module')
def found_exactly(run, exact_flags):
    return run(exact_flags, 'streamed')[0]


@pytest.mark.parametrize('model, case', [
    (model, case)
    for model, cases in {**CASES_OF, 'toy': TOY_CASES}.items() for case in cases if case != 'jit x1'
])  # fmt: skip
def test_parameters_optimizer_state_and_metrics_are_those_of_one_device(found, model, case):
    cases, _ = found
    reference, ours = cases[model, 'jit x1'], cases[model, case]
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name, **TOLERANCE)
    losses = [value for name, value in reference.items() if name.endswith('/loss')]
    assert losses and all(len(np.unique(loss)) == STEPS for loss in losses)  # it did train


@pytest.mark.parametrize('model, streamed, resident', STREAMED)
def test_streamed_data_train_as_resident_data_bit_for_bit(found_exactly, assert_same_bits, model, streamed, resident):
    ours = found_exactly[model, streamed]
    assert_same_bits(ours, found_exactly[model, resident])
    losses = [value for name, value in ours.items() if name.endswith('/loss')]
    assert losses and all(len(np.unique(loss)) == STEPS for loss in losses)  # it did train


@pytest.mark.parametrize('model, player, kernel', [
    ('vae', 'model', 'encoder/mlp/Dense_0/kernel'), ('gan', 'generator', 'decoder/mlp/Dense_0/kernel'),
])  # fmt: skip
@pytest.mark.parametrize('case', ['fsdp x8', 'tensor 4x2'])
def test_rules_shard_a_parameter_and_its_moments(found, model, player, kernel, case):
    _, sharded = found
    names = sharded[model, case]
    assert f'params/{player}/{kernel}' in names
    for moment in ('mu', 'nu'):
        assert any(n.startswith(f'opt/{player}/') and n.endswith(f'/{moment}/{kernel}') for n in names)
    assert not sharded[model, 'jit x8'] and not sharded[model, 'pmap x8']


def test_the_carry_is_sharded_under_jit_and_has_a_row_for_each_example(found):
    cases, sharded = found
    assert sharded['toy', 'jit x8'] == ['carry/h']
    assert sharded['rnn', 'jit x8'] == [f'carry/{layer}/{part}' for layer in (0, 1) for part in (0, 1)]
    for case in TOY_CASES:
        h = cases['toy', case]['state/carry/h']
        assert len(np.unique(h, axis=0)) == BATCH  # averaging would make rows, or the devices' parts, alike


def test_beams_of_a_model_in_shards_are_those_of_one_device(found):
    cases, sharded = found
    one, ours = cases['beams', 'jit x1'], cases['beams', 'mixed 2x2x2']
    np.testing.assert_array_equal(ours['tokens'], one['tokens'])
    np.testing.assert_allclose(ours['nats'], one['nats'], rtol=1e-5)
    assert len({tuple(text) for text in one['tokens'].tolist()}) == 3 and len(np.unique(one['tokens'])) > 5
    assert len(sharded['beams', 'mixed 2x2x2']) > 20


# --- the program on eight devices ---


def train(experiment, steps: int = STEPS):
    """(final state, {metric: (steps,), NORMS (calls,)}); each call is waited for, or virtual devices deadlock."""
    import jax

    from aigc_jax.core import parallel

    state, call = experiment.create_state(), experiment.train_call()
    data, rows, calls = experiment.resident_data(), [], steps // experiment.config.steps_per_call
    feeds = list(itertools.islice(experiment.feeds(0), calls))
    # As the loop does; pmap would compile its second call again, for the state comes back on a mesh of another name.
    call = call.lower(state, experiment.seed_array, data, feeds[0]).compile()
    for feed in feeds:
        state, metrics = jax.block_until_ready(call(state, experiment.seed_array, data, feed))
        rows.append(parallel.fetch(metrics))
    return state, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def experiment_of(model: str, devices: int, layout: dict, fields: dict):
    import jax
    from ml_collections import ConfigDict

    from aigc_jax.runs import config as config_lib
    from aigc_jax.runs.experiment import Experiment

    name, of_model = MODELS[model]
    name, _, variants = name.partition(':')
    config = config_lib.load(f'configs/{name}.py:{variants or "smoke"}', [])
    fields = {'total_steps': STEPS, 'steps_per_call': K, 'batch_size': BATCH, **of_model, **fields}
    config.update_from_flattened_dict(fields)
    config.parallel = ConfigDict({'mode': 'jit', 'mesh': WHOLE, 'rules': (), **layout})
    return Experiment(config, jax.devices()[:devices])


def written_by_beams(case: str):
    """({'tokens': (3, 8), 'nats': (3,)} of prompts of unequal length, the model's parameters), which are large, so that
    what a beam looks at decides what it writes.
    """
    import jax

    from aigc_jax.decoding import Sampling
    from aigc_jax.reports import texts

    devices, layout = {'jit x1': (1, {}), 'mixed 2x2x2': (8, MIXED)}[case]
    experiment = experiment_of('t5', devices, layout, {})
    state = experiment.create_state()
    draw = lambda x: jax.device_put(np.random.default_rng(x.size).normal(0, 0.3, x.shape).astype(x.dtype), x.sharding)
    state = state._replace(params=jax.tree.map(draw, state.params))
    write = texts.writer(experiment, Sampling(beam_size=3, length_penalty=1.0), 8).generate
    found = write(state, ['x', 'f(x)', 'a longer prompt'], 1, 0)
    tokens = np.array([np.pad(text.tokens, (0, 8 - len(text.tokens))) for text in found])
    return {'tokens': tokens, 'nats': np.array([text.nats for text in found])}, state.params


def toy_task():
    """A task with a recurrent state of each example (carry) and a running mean over all (stats)."""
    import jax
    import jax.numpy as jnp

    from aigc_jax.core.types import Aux, Extra, Task, Turn

    def init(key):
        params = {'model': {'w': jax.random.normal(key, (3, 4)) / 2, 'u': jnp.eye(4) / 2}}
        return params, Extra({'mean': jnp.zeros(3)}, {'h': jnp.zeros((BATCH, 4))})

    def loss(params, extra, batch, ctx):
        x = batch['x'] + 0.1 * ctx.normal('noise', (3,))
        theta, mean = params['model'], extra.stats['mean']
        h = jnp.tanh((x - mean) @ theta['w'] + extra.carry['h'] @ theta['u'])
        extra = Extra({'mean': 0.9 * mean + 0.1 * x.mean(axis=0)}, {'h': jax.lax.stop_gradient(h)})
        return jnp.mean((h.sum(axis=-1) - batch['y']) ** 2), Aux({}, extra)

    return Task(init, rounds=((Turn('model', loss),),))


def train_toy(devices: int, layout: dict, micro_batches: int):
    """(final state, metrics of its calls), through `make_step` and `Plan.compile` alone."""
    import jax
    import optax
    from ml_collections import ConfigDict

    from aigc_jax.core import parallel
    from aigc_jax.core.step import create_state, fuse, make_step

    task, optimizers = toy_task(), {'model': optax.sgd(0.1)}
    config = ConfigDict({'mode': 'jit', 'mesh': WHOLE, 'rules': (), **layout})
    plan = parallel.make_plan(config, 1, 'vmap', BATCH, micro_batches, jax.devices()[:devices])
    step = make_step(task, optimizers, lambda batch, ctx: batch, micro_batches, plan.axis_name)
    abstract = jax.eval_shape(lambda: create_state(task, optimizers, 0))
    call = plan.compile(fuse(step, lambda data, batch: batch, K), abstract)
    state = jax.tree.map(parallel.put, create_state(task, optimizers, 0), plan.state_sharding(abstract))
    random, losses = np.random.RandomState(0), []
    for _ in range(STEPS // K):
        feed = {'x': random.normal(size=(K, 1, BATCH, 3)), 'y': random.normal(size=(K, 1, BATCH))}
        feed = plan.put_feed({name: value.astype(np.float32) for name, value in feed.items()}, BATCH)
        seed = parallel.put(np.int32(0), plan.seeds)
        state, metrics = jax.block_until_ready(call(state, seed, {}, feed))
        losses.append(parallel.fetch(metrics)['model/loss'])
    return state, {'model/loss': np.concatenate(losses)}


def program(folder: pathlib.Path, streamed: bool) -> None:
    """streamed: the cases of STREAMED, in place of those of CASES_OF and TOY_CASES."""
    from aigc_jax.core import parallel, tree

    arrays, sharded = {}, {}

    def keep(model, case, state, metrics):
        for name, leaf in tree.flatten({'state': state, 'metrics': metrics}).items():
            arrays[f'{model}|{case}|{name}'] = np.asarray(parallel.fetch(leaf))
        sharded[f'{model}|{case}'] = in_shards(state)

    def in_shards(state):
        is_whole = lambda leaf: leaf.sharding.shard_shape(leaf.shape) == leaf.shape
        return [name for name, leaf in tree.flatten(state).items() if not is_whole(leaf)]

    (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, PAIRS)))
    MODELS['t5'][1]['data.name'] = f'pairs:{folder}/pairs.jsonl'
    pairs = [(model, case) for model in MODELS for case in CASES_OF[model]]
    if streamed:
        pairs = [(model, case) for model, *both in STREAMED for case in both]
    for model, case in pairs:
        devices, layout, fields = CASES[case]
        keep(model, case, *train(experiment_of(model, devices, layout, fields)))
    for case, arguments in ({} if streamed else TOY_CASES).items():
        keep('toy', case, *train_toy(*arguments))
    for case in () if streamed else ('jit x1', 'mixed 2x2x2'):
        found, params = written_by_beams(case)
        arrays |= {f'beams|{case}|{name}': value for name, value in found.items()}
        sharded[f'beams|{case}'] = in_shards(params)
    np.savez(folder / 'arrays.npz', **arrays)
    (folder / 'sharded.json').write_text(json.dumps(sharded))


if __name__ == '__main__':
    program(pathlib.Path(sys.argv[1]), 'streamed' in sys.argv[2:])
