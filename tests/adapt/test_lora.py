"""Adapters of low rank: what they change, what they leave, and what they are merged to."""

import dataclasses
import json
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import aigc_jax
from aigc_jax.adapt import lora
from aigc_jax.core import capabilities, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Aux, Extra, Task, Turn

GOLDEN = pathlib.Path(__file__).parent / 'goldens' / 'llama'
TEXT = 'a cab and a bag had a head in a bed of beech\n' * 200
FIELDS = [
    '--config=configs/gpt.py:smoke', f'--config.init.run={GOLDEN}', '--config.data.block=32',
    '--config.adapt.name=lora', '--config.adapt.rank=2', '--config.eval.ngram_order=1',
    '--config.optim.model.name=adam', '--config.optim.model.options={}',
    "--config.optim.model.schedule={'name': 'constant_schedule', 'value': 1e-2}",
    '--config.optim.model.learning_rate_rules=()', '--config.optim.model.ema_decay=0.9',
]  # fmt: skip


def arguments(folder: pathlib.Path, *more: str) -> list[str]:
    (folder / 'text.txt').write_text(TEXT)
    return [*FIELDS, f'--config.data.name=text:{folder}/text.txt', f'--workdir={folder}/run', *more]


@pytest.fixture(scope='module')
def tuned(runner, tmp_path_factory):
    folder = tmp_path_factory.mktemp('lora')
    code, _, err = runner(*arguments(folder))
    assert code == 0, err
    assert '5,872 parameters (21 arrays) loaded, 224 parameters (8 arrays) drawn' in err
    return folder / 'run'


def split(params) -> tuple[dict, dict]:
    """(the base's, the adapters') parameters."""
    flat = tree.flatten(params)
    adapters = {name: leaf for name, leaf in flat.items() if lora.is_of_adapters(name)}
    return {name: leaf for name, leaf in flat.items() if name not in adapters}, adapters


def test_the_adapters_alone_are_trained(tuned):
    run = aigc_jax.open(tuned)
    base, adapters = split(run.state.params)
    whole = aigc_jax.from_pretrained(GOLDEN).state.params
    for name, leaf in tree.flatten(whole).items():
        np.testing.assert_array_equal(leaf, base.pop(name))
    assert not base and all(np.abs(leaf).max() > 0 for leaf in adapters.values())
    rows = [json.loads(line) for line in (tuned / 'metrics.jsonl').read_text().splitlines()]
    losses = [row['model/loss'] for row in rows if row['split'] == 'train']
    assert losses[-1] < losses[0] - 0.5


def test_the_optimizer_keeps_nothing_of_the_rest(tuned):
    run = aigc_jax.open(tuned)
    moments = [leaf for leaf in jax.tree.leaves(run.experiment.abstract_state.opt) if leaf.ndim > 1]
    _, adapters = split(run.state.params)
    sizes = sum(leaf.size for leaf in adapters.values())
    # Two moments and an average of each adapter.
    assert sum(leaf.size for leaf in moments) == 3 * sizes


def test_what_is_exported_is_merged(tuned, tmp_path):
    run = aigc_jax.open(tuned)
    aigc_jax.export(run, tmp_path / 'out')
    merged = aigc_jax.from_pretrained(tmp_path / 'out')
    np.testing.assert_allclose(merged.log_prob(['a cab', 'a bed of']), run.log_prob(['a cab', 'a bed of']), rtol=1e-5)
    before = aigc_jax.from_pretrained(GOLDEN).log_prob(['a cab', 'a bed of'])
    assert (merged.log_prob(['a cab', 'a bed of']) > before + 1).all()
    text = run.generate('a ', temperature=0.0, max_new_tokens=8)[0].text
    assert text == merged.generate('a ', temperature=0.0, max_new_tokens=8)[0].text


def test_an_interrupted_run_is_the_uninterrupted_one(runner, tuned, leaves, assert_same_bits, tmp_path):
    code, _, err = runner(*arguments(tmp_path, '--config.total_steps=20'))
    assert code == 0, err
    code, _, err = runner(*arguments(tmp_path))
    assert code == 0, err
    assert_same_bits(leaves(tmp_path / 'run'), leaves(tuned))  # moments and averages, too
    kept = lambda run: [row for row in (run / 'metrics.jsonl').read_text().splitlines() if '"final"' not in row]
    assert kept(tmp_path / 'run') == kept(tuned)


def test_eight_devices_train_the_same(runner8, tuned, tmp_path):
    mesh = '--config.parallel.mesh.fsdp=8', "--config.parallel.rules=(('.*', 'fsdp'),)"
    code, _, err = runner8(*arguments(tmp_path, *mesh))
    assert code == 0, err
    rows = lambda path: [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
    for own, theirs in zip(rows(tmp_path / 'run'), rows(tuned), strict=True):
        if own['split'] == 'train':
            assert own['model/loss'] == pytest.approx(theirs['model/loss'], rel=1e-3)


def test_a_run_goes_on_from_the_adapters_of_another(runner, tuned, tmp_path):
    """They are loaded, not drawn; and a run without adapters says what it does not have."""
    more = f'--config.init.run={tuned}', '--config.total_steps=10', *(
        f'--config.{name}_every_steps=10' for name in ('eval', 'checkpoint'))  # fmt: skip
    code, _, err = runner(*arguments(tmp_path, *more, '--config.model.zero_init=False', *_model(tuned)))
    assert code == 0 and ' loaded, 0 parameters (0 arrays) drawn' in err, err
    first = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[0])
    assert first['model/loss'] < 3.6  # the checkpoint begins at 4
    bare = '--config.adapt.name=', f'--workdir={tmp_path}/other'
    code, _, err = runner(*arguments(tmp_path, *more, *bare, *_model(tuned)))
    assert code == 2 and 'lora' in err, err


def _model(run: pathlib.Path) -> list[str]:
    fields = json.loads((run / 'config.json').read_text())['model']
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return [f'--config.model.{name}={value}' for name, value in plain.items()]


KERNEL = jax.random.normal(jax.random.key(0), (6, 5))


def small_task() -> Task:
    """A linear model y = x W + c of one player, and a window of a convolution that it does not use."""

    def init(key):
        own = {'dense': {'kernel': KERNEL, 'bias': jnp.zeros(5)}, 'conv': {'kernel': jnp.ones((3, 3, 2, 4))}}
        return {'model': own}, Extra({}, {})

    def loss(params, extra, batch, ctx):
        own = params['model']
        y = batch['x'] @ own['dense']['kernel'] + own['dense']['bias']
        return jnp.mean(y**2) + jnp.sum(own['conv']['kernel']), Aux({}, extra)

    return Task(init, ((Turn('model', loss),),), ())


def config(**fields) -> ConfigDict:
    return ConfigDict({'name': 'lora', 'rank': 2, 'alpha': 6.0, 'targets': '.*'} | fields)


@pytest.mark.parametrize('name', ['lora', 'dora'])
def test_the_model_begins_as_it_was(name):
    task = lora.adapted(small_task(), config(name=name))
    params, _ = task.init(jax.random.key(0))
    assert set(params['model']['lora']) == {'dense', 'conv'}
    assert params['model']['lora']['conv']['a'].shape == (18, 2)
    merged = lora.merged(params, config(name=name))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merged, small_task().init(None)[0])


def test_the_kernel_is_the_sum_of_the_paper():
    """W + α / r A B (Hu et al. 2022, eq. 3)."""
    a, b = jax.random.normal(jax.random.key(1), (6, 2)), jax.random.normal(jax.random.key(2), (2, 5))
    own = {'dense': {'kernel': KERNEL}, 'lora': {'dense': {'a': a, 'b': b}}}
    merged = lora.merged({'model': own}, config())
    np.testing.assert_allclose(merged['model']['dense']['kernel'], KERNEL + 3.0 * a @ b, rtol=1e-5)
    assert set(merged['model']) == {'dense'}


def test_dora_learns_magnitude_and_direction_apart():
    """Each column has the norm (1 + m) ‖W‖, whatever A and B are (Liu et al. 2024, eq. 5)."""
    a, b = jax.random.normal(jax.random.key(1), (6, 2)), jax.random.normal(jax.random.key(2), (2, 5))
    m = jnp.linspace(-0.5, 0.5, 5)
    own = {'dense': {'kernel': KERNEL}, 'lora': {'dense': {'a': a, 'b': b, 'm': m}}}
    kernel = lora.merged({'model': own}, config(name='dora'))['model']['dense']['kernel']
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), (1 + m) * jnp.linalg.norm(KERNEL, axis=0), rtol=1e-5)
    sum_of = KERNEL + 3.0 * a @ b
    cosine = jnp.sum(kernel * sum_of, 0) / jnp.linalg.norm(kernel, axis=0) / jnp.linalg.norm(sum_of, axis=0)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


@pytest.mark.parametrize('stack', ['blocks', 'decoder_blocks'])
def test_stacked_layers_have_an_adapter_each(stack):
    kernel = jax.random.normal(jax.random.key(3), (4, 6, 5))
    task = Task(lambda key: ({'model': {stack: {'query': {'kernel': kernel}}}}, Extra({}, {})), (), ())
    params, _ = lora.adapted(task, config(targets='query')).init(jax.random.key(0))
    adapter = params['model']['lora'][f'{stack}.query']
    assert adapter['a'].shape == (4, 6, 2) and adapter['b'].shape == (4, 2, 5)
    params['model']['lora'][f'{stack}.query']['b'] = b = jax.random.normal(jax.random.key(4), (4, 2, 5))
    merged = lora.merged(params, config())['model'][stack]['query']['kernel']
    np.testing.assert_allclose(merged[3], kernel[3] + 3.0 * adapter['a'][3] @ b[3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('fields, words', [
    (dict(targets='keys'), "adapt.targets: 'keys' matches no kernel; there are model/dense/kernel"),
    (dict(targets='('), 'adapt.targets'),
    (dict(rank=6, targets='dense'), 'adapt.rank: 6, but model/dense/kernel is 6 × 5'),
])  # fmt: skip
def test_mistakes_are_named(fields, words):
    with pytest.raises(UserError, match=words.split(';')[0].replace('(', r'\(')):
        lora.adapted(small_task(), config(**fields))


def test_each_function_of_a_capability_sees_the_merged_parameters():
    """Every function of every capability is listed, or takes no parameters."""
    without = {('SplitStatistic', 'summarize'), ('CausalText', 'init_cache')}
    for kind in typing.get_args(capabilities.Capability):
        functions = {f.name for f in dataclasses.fields(kind) if 'Callable' in str(f.type)}
        listed = set(kind.OF_PARAMETERS)
        assert functions - listed == {name for of, name in without if of == kind.__name__}, kind
        assert listed <= functions
