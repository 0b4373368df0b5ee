"""Identifier tagging, a third objective of an encoder-decoder: what it is a mean over, and what learns of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from configfiles import CONFIGS
from safetensors.numpy import load_file

import aigc_jax
from aigc_jax.core import rng, tree
from aigc_jax.core.capabilities import Measures
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.data import NO_TAG, denoising
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

EXTRA = Extra({}, {})
N = 12  # windows
CODE = ''.join(f'def area_{i}(width, height):  # of {i}\n    return width * height + {i}\n' for i in range(60))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tagging')
    (folder / 'code.py').write_text(CODE)
    (folder / 'pairs.jsonl').write_text(''.join(f'{{"source": "def f{i}", "target": "f{i}"}}\n' for i in range(40)))
    return folder


def config_of(folder, config='t5.py:smoke,codet5', **fields):
    fields = {'data.name': f'text:{folder}/code.py', 'data.code': True, 'model.dropout': 0.0} | fields
    return config_lib.load(f'{CONFIGS}/{config}', [(name, str(value)) for name, value in fields.items()])


def spread(x):
    return x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape).astype(np.float32)


def assert_alike(tagged, plain):
    """But for the head."""
    tagged, plain = tree.flatten(tagged), tree.flatten(plain)
    assert tagged.keys() - plain.keys() == {'tagger/kernel', 'tagger/bias'}
    for name, leaf in plain.items():
        np.testing.assert_array_equal(leaf, tagged[name], err_msg=name)


@pytest.fixture(scope='module')
def own(folder):
    """(its Experiment, the model, parameters that tell something, a batch, its ctx)."""
    experiment = Experiment(config_of(folder))
    model = experiment.task.rounds[0][0].loss.__self__
    plain = dataclasses.replace(model, tagging=None)
    # As without tagging. One program of both, here and below, takes half as long to compile.
    params, drawn = jax.jit(lambda: [one.init(rng.stream(0, 'init'))[0] for one in (model, plain)])()
    assert_alike(params['model'], drawn['model'])
    params = jax.tree.map(spread, params)
    batch, ctx = experiment.examples('train', np.arange(N)), rng.context(0, 'train', 2, jnp.arange(N))
    return experiment, model, params, batch, ctx


@pytest.fixture(scope='module')
def gradient(own):
    """gradient(batch, index) -> ((loss, aux), its gradient)."""
    _, model, params, *_ = own

    def loss(params, batch, index):
        value, aux = model.loss(params, EXTRA, batch, rng.context(0, 'train', 2, index))
        return value, aux.weight

    of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda batch, index: of(params, batch, index)


def test_the_loss_is_one_mean_over_what_is_written_and_what_is_tagged(own, gradient):
    """In NumPy, from the logits. A tagged window weighs as much as one whose spans are hidden: 6 tokens, 2 sentinels
    and the end, for 40 tokens that are tagged."""
    experiment, model, params, batch, ctx = own
    assert experiment.config.task.tagging_share == 1 / 3 and model.tagging.weight == 9 / 40

    @jax.jit
    def parts(params, batch):
        pair = model.objective.transform(batch, ctx)
        pair = denoising.partly_tagged(pair, batch, ctx, 1 / 3, model.objective.behind)
        is_there = jnp.arange(41) < pair['source_length'][:, None]
        return pair, model.score(params, pair), model.apply(params, pair['source'], is_there, method='encode')

    pair, (logits, there), memory = jax.device_get(parts(params, batch))
    head, logits = params['model']['tagger'], logits.astype(np.float64)
    told = memory.astype(np.float64) @ np.asarray(head['kernel'], np.float64)[:, 0] + np.asarray(head['bias'])
    written = scipy.special.logsumexp(logits, axis=-1)
    written -= np.take_along_axis(logits, pair['target'][..., None], -1)[..., 0]
    one = np.log1p(np.exp(-told))  # −log σ(x)
    tagged, is_tagged = np.where(pair['tags'] == 1, one, one + told), pair['tags'] != NO_TAG
    assert 0 < is_tagged.any(axis=1).sum() < N and not (is_tagged.any(axis=1) & there.any(axis=1)).any()
    (value, weight), _ = gradient(batch, ctx.index)
    assert float(weight) == pytest.approx(there.sum() + 9 / 40 * is_tagged.sum(), rel=1e-6)
    wanted = written[there].sum() + 9 / 40 * tagged[is_tagged].sum()
    assert float(value) == pytest.approx(wanted / float(weight), rel=1e-5)


def part_of(batch, ctx, rows):
    return jax.tree.map(lambda x: x[rows], batch), ctx.index[rows]


def test_parts_of_a_batch_add_up_to_the_whole(own, gradient):
    """By the weights that they give, as core/step.py does; there are parts with a tagged window and without one."""
    _, model, _, batch, ctx = own
    is_tagged = np.asarray(ctx.uniform('tagging') < model.tagging.share).reshape(-1, 3).any(axis=1)
    assert 0 < is_tagged.sum() < len(is_tagged)
    (value, weight), whole = gradient(batch, ctx.index)
    parts = [gradient(*part_of(batch, ctx, slice(begin, begin + 3))) for begin in range(0, N, 3)]
    total = lambda *pieces: sum(own_weight * x for ((_, own_weight), _), x in zip(parts, pieces, strict=True)) / weight
    assert float(sum(own_weight for (_, own_weight), _ in parts)) == pytest.approx(float(weight), rel=1e-6)
    assert float(total(*(own_value for (own_value, _), _ in parts))) == pytest.approx(float(value), rel=1e-5)
    near = lambda found, wanted: np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    jax.tree.map(near, jax.tree.map(total, *(grads for _, grads in parts)), whole)


def test_of_tagged_windows_the_encoder_learns_and_the_decoder_does_not(own, gradient):
    _, model, _, batch, ctx = own
    tagged = np.flatnonzero(ctx.uniform('tagging') < model.tagging.share)[:3]
    batch, index = part_of(batch, ctx, tagged)
    (value, weight), grads = gradient(batch, index)
    is_text = batch['tokens'][:, :-1] != model.tokenizer.end
    assert value > 0 and float(weight) == pytest.approx(9 / 40 * is_text.sum())
    for name, leaf in tree.flatten(grads['model']).items():
        of_encoder = name.startswith(('encoder', 'tagger', 'embed'))
        assert (np.abs(leaf).max() > 0) == of_encoder, name
        assert of_encoder or name.startswith('decoder')


def test_an_evaluation_takes_each_window_for_both(own):
    """What is written is measured as without tagging, to the bit; what is tagged, of all windows as they are."""
    experiment, model, params, _, _ = own
    batch, ctx = experiment.examples('valid', np.arange(4)), rng.context(7, 'eval', 0, np.arange(4))
    of_task, plain = experiment.task.get(Measures).per_example, dataclasses.replace(model, tagging=None).measure
    measure = jax.jit(lambda params: [one(params, EXTRA, batch, ctx) for one in (of_task, plain)])
    found, before = measure(params)
    assert found.keys() - before.keys() == {f'tagging/{x}' for x in ('nats_per_token', 'accuracy', 'identifier_share')}
    for name, pair in before.items():
        jax.tree.map(np.testing.assert_array_equal, found[name], pair)
    is_name, is_text = batch['names'][:, :-1] != 0, batch['tokens'][:, :-1] != model.tokenizer.end
    np.testing.assert_array_equal(found['tagging/accuracy'][1], is_text.sum(axis=1))
    np.testing.assert_array_equal(found['tagging/identifier_share'][0], is_name.sum(axis=1))
    blind = jax.tree.map(jnp.zeros_like, params['model']['tagger']) | {'bias': jnp.array([2.0])}  # all are, with σ(2)
    params = {'model': {**params['model'], 'tagger': blind}}
    found, _ = measure(params)
    np.testing.assert_array_equal(found['tagging/accuracy'][0], is_name.sum(axis=1))
    nats = np.where(is_name, np.log1p(np.exp(-2)), is_text * np.log1p(np.exp(2))).sum(axis=1)
    np.testing.assert_allclose(found['tagging/nats_per_token'][0], nats, rtol=1e-5)


def test_a_run_is_fine_tuned_and_exported_without_its_head(folder, capsys):
    fields = {'total_steps': 4, 'log_every_steps': 2, 'eval_every_steps': 4, 'checkpoint_every_steps': 4}
    train(config_of(folder, **fields), Run(folder / 'run'))
    rows = [json.loads(line) for line in (folder / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert {'tagging/accuracy', 'model/nats_per_token'} <= next(row for row in rows if row['split'] == 'eval').keys()
    trained = aigc_jax.open(folder / 'run')
    capsys.readouterr()
    aigc_jax.export(trained, folder / 'out')
    said = 'note: format: hf has no place for tagger/bias, tagger/kernel; the folder is without'
    assert said in capsys.readouterr().err.splitlines()
    names = load_file(folder / 'out' / 'model.safetensors').keys()
    assert len(names) == len(jax.tree.leaves(trained.state.params)) - 2 and not any('tag' in name for name in names)
    model = {name: v for name, v in config_lib.flatten(trained.config).items() if name.startswith('model.')}
    fields = {'data.name': f'pairs:{folder}/pairs.jsonl', 'data.columns': (), 'data.code': False}
    for start, left in ((folder / 'run', '17 parameters (2 arrays) left'), (folder / 'out', None)):
        own = model if left else {'model.dropout': 0.0}
        config = config_of(folder, 'finetune_seq2seq.py:smoke', **fields, **own, **{'init.run': start})
        (params, _), _ = initial.model(Experiment(config, None, initial.tokenizer(config)))
        assert_alike(trained.state.params['model'], params['model'])
        assert (left or '') in capsys.readouterr().err


@pytest.mark.parametrize('config, fields, words', [
    ('t5.py:smoke', {}, 'task.tagging_share: 0.5; task.objective=spans has none, but identifier_aware; set it to 0'),
    ('t5.py:smoke,identifiers', {}, 'task.objective=identifiers has none'),
    ('t5.py:smoke,codet5', {'data.number_identifiers': False}, 'data.number_identifiers: False; task.objective='),
    ('t5.py:smoke,codet5', {'task.tagging_share': 1.0}, 'task.tagging_share: 1.0; it is 0 or more and less than 1'),
    ('t5.py:smoke,codet5', {'distill.run': 'runs/t5'}, 'what the encoder tells is not learned from distill.run'),
    ('finetune_seq2seq.py:smoke', {'task.objective': 'identifier_aware', 'data.columns': ()},
     'task.tagging_share: 0.5; it is of windows of text, and .* holds pairs of texts; set it to 0'),
])  # fmt: skip
def test_what_cannot_be_tagged_is_refused(folder, config, fields, words):
    of_data = {'data.name': f'pairs:{folder}/pairs.jsonl'} if 'finetune' in config else {}
    with pytest.raises(UserError, match=words):
        Experiment(config_of(folder, config, **{'task.tagging_share': 0.5, **of_data, **fields}))


@pytest.mark.parametrize('layout', [
    ('parallel.mesh.fsdp=8', "parallel.rules=(('(en|de)coder.*', 'fsdp'),)"), ('parallel.mode=pmap', 'micro_batches=2'),
], ids=['fsdp', 'pmap'])  # fmt: skip
def test_eight_devices_train_the_same(runner8, folder, layout, tmp_path):
    """fsdp on a batch of two windows a device, where some devices have no tagged one."""
    fields = {'data.name': f'text:{folder}/code.py', 'data.code': True, 'batch_size': 16, 'total_steps': 10,
              'eval_every_steps': 10, 'checkpoint_every_steps': 10, 'log_every_steps': 1}  # fmt: skip
    found = []
    for more in ((), layout):
        flags = [f'--config.{name}={value}' for name, value in fields.items()] + [f'--config.{one}' for one in more]
        where = tmp_path / f'run{len(found)}'
        code, _, err = runner8(f'--config={CONFIGS}/t5.py:smoke,codet5', f'--workdir={where}', *flags)
        assert code == 0, err
        found.append([json.loads(line) for line in (where / 'metrics.jsonl').read_text().splitlines()])
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {'split'}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
