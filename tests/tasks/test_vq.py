"""Quantizers against brute force and hand computation, the prior against enumeration, the task as a whole."""

import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from aigc_jax.core import parallel, rng
from aigc_jax.core.capabilities import Codebook, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.decoding import Sampling
from aigc_jax.metrics.codebook import perplexity, used_share
from aigc_jax.nn.quantizers import FSQ, VQ
from aigc_jax.nn.transformer import Transformer
from aigc_jax.plots import curves as plots_curves
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.tasks.vq import Prior

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'vq.py')
B, PLACES, DIM = 8, 3, 4  # examples of a batch, places of the grid, features of a vector


def config_of(arg='smoke', **overrides):
    return config_lib.load(f'{CONFIG}:{arg}', [(name.replace('__', '.'), str(v)) for name, v in overrides.items()])


def vq(codes=5, commitment=0.25, decay=0.9, revive_below=0.0):
    return VQ(codes, DIM, commitment, decay, revive_below)


def batch_of(seed=0):
    return np.random.default_rng(seed).normal(size=(B, PLACES, DIM)).astype(np.float32)


def renewed(quantizer, stats, z, step=0):
    """The statistics after the batch z."""
    index = quantizer.quantize(stats, z)[1]
    return quantizer.renew(stats, z, index, rng.context(0, 'train', step, jnp.arange(B)), B), np.asarray(index)


@pytest.mark.parametrize('levels', [(3, 4, 5, 8), (7,), (8, 6, 5)])
def test_fsq_maps_codes_to_vectors_and_back(levels):
    quantizer = FSQ(levels)
    index = np.arange(quantizer.codes)
    vectors = np.asarray(quantizer.vectors({}, index))
    assert len(np.unique(vectors, axis=0)) == len(index) == np.prod(levels)
    for i, level in enumerate(levels):
        np.testing.assert_allclose(np.unique(vectors[:, i]), np.arange(-(level // 2), (level + 1) // 2) / (level // 2))
    # The z that each vector comes from: the inverse of the bound, outermost values not quite reached.
    half, offset = (np.array(levels) - 1) / 2, np.where(np.array(levels) % 2, 0, 0.5)
    inverse = lambda y: np.arctanh(np.clip((y + offset) / half, -0.999, 0.999))
    z = inverse(vectors * (np.array(levels) // 2)) - inverse(0 * half)
    z_q, found = quantizer.quantize({}, jnp.asarray(z, jnp.float32))
    np.testing.assert_array_equal(found, index)
    np.testing.assert_allclose(z_q, vectors, atol=1e-6)


def test_fsq_bounds_any_number_and_its_gradient_is_that_of_the_bound():
    quantizer = FSQ((4, 5))
    z = jnp.array([[-1e3, -1e3], [0.0, 0.0], [1e3, 1e3]])
    np.testing.assert_allclose(np.round(quantizer.bound(z)), [[-2, -2], [0, 0], [1, 2]], atol=1e-6)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    rounded, bounded = (
        jax.grad(lambda z: jnp.sum(f(z)))(z)
        for f in (lambda z: quantizer.quantize({}, z)[0], lambda z: quantizer.bound(z) / 2)
    )
    np.testing.assert_allclose(rounded, bounded, rtol=1e-6)
    assert (rounded > 0).all()


def test_vq_takes_the_nearest_code_and_passes_the_gradient_on():
    quantizer, z = vq(), batch_of()
    stats = quantizer.init(jax.random.key(0))
    e = np.asarray(quantizer.codebook(stats))
    z_q, index = quantizer.quantize(stats, z)
    nearest = np.argmin(np.sum((z[..., None, :] - e) ** 2, axis=-1), axis=-1)
    assert len(np.unique(nearest)) > 2
    np.testing.assert_array_equal(index, nearest)
    np.testing.assert_allclose(z_q, e[nearest], atol=1e-6)
    np.testing.assert_allclose(quantizer.vectors(stats, index), e[nearest])
    np.testing.assert_allclose(quantizer.penalty(z, z_q), 0.25 * np.sum((z - e[nearest]) ** 2, axis=(1, 2)), rtol=1e-5)
    weights = batch_of(1)
    pull = lambda z, stats: jnp.sum(weights * quantizer.quantize(stats, z)[0])
    through, to_codebook = jax.grad(pull, (0, 1))(jnp.asarray(z), stats)
    np.testing.assert_array_equal(through, weights)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_codebook))
    penalty = jax.grad(lambda z: jnp.sum(quantizer.penalty(z, quantizer.quantize(stats, z)[0])))(jnp.asarray(z))
    np.testing.assert_allclose(penalty, 0.5 * (z - e[nearest]), atol=1e-6)  # towards the code, which stands still


def test_vq_codebook_is_the_moving_average_of_what_is_nearest():
    quantizer, z = vq(), batch_of()
    stats = quantizer.init(jax.random.key(0))
    e = np.asarray(quantizer.codebook(stats))
    after, index = renewed(quantizer, stats, z)
    for code in range(quantizer.codes):
        mine = z[index == code]
        count = 0.9 * np.float64(stats['count'][code]) + 0.1 * len(mine) / (B * PLACES)
        total = 0.9 * np.float64(stats['count'][code]) * e[code] + 0.1 * mine.sum(axis=0) / (B * PLACES)
        np.testing.assert_allclose(after['count'][code], count, rtol=1e-5)
        np.testing.assert_allclose(quantizer.codebook(after)[code], total / count, rtol=1e-4, atol=1e-6)
    assert float(after['count'].sum()) == pytest.approx(1.0, abs=1e-6)


def test_vq_revives_dead_codes_alike_in_the_whole_batch_and_in_its_parts():
    quantizer, z = vq(revive_below=0.1), batch_of()
    stats = quantizer.init(jax.random.key(0))
    assert quantizer.dead(stats).all()  # so that the first batch places them all
    stats, _ = renewed(quantizer, stats, z)
    rows = {row.tobytes() for row in z.reshape(-1, DIM)}
    np.testing.assert_allclose(stats['count'], 1 / quantizer.codes)
    first = np.asarray(quantizer.codebook(stats))
    assert all(np.abs(z.reshape(-1, DIM) - e).max(axis=1).min() < 1e-6 for e in first) and len(rows) == B * PLACES
    # One code is starved: it alone is placed anew, the others follow their averages.
    stats = {'count': stats['count'].at[2].set(0.01), 'sum': stats['sum'].at[2].multiply(0.05)}
    np.testing.assert_array_equal(quantizer.dead(stats), np.arange(5) == 2)
    z = batch_of(1)
    after, index = renewed(quantizer, stats, z, step=1)
    averaged, _ = renewed(vq(revive_below=0.0), stats, z, step=1)
    living = np.arange(5) != 2
    np.testing.assert_allclose(np.asarray(after['sum'])[living], np.asarray(averaged['sum'])[living])
    e = np.asarray(quantizer.codebook(after))[2]
    assert np.abs(z.reshape(-1, DIM) - e).max(axis=1).min() < 1e-6
    parts = [
        quantizer.renew(stats, z[i : i + 2], index[i : i + 2], rng.context(0, 'train', 1, jnp.arange(i, i + 2)), B)
        for i in range(0, B, 2)
    ]
    for name in ('count', 'sum'):
        np.testing.assert_allclose(np.mean([part[name] for part in parts], axis=0), after[name], atol=1e-6)
    other = renewed(quantizer, stats, z, step=2)[0]
    assert not np.allclose(quantizer.codebook(other)[2], e)  # another step, another draw


def test_perplexity_of_even_and_of_one_sided_use():
    assert perplexity(np.full(64, 3)) == pytest.approx(64)
    assert perplexity(np.array([0, 9, 0])) == pytest.approx(1) and used_share(np.array([0, 9, 0, 0])) == 0.25
    assert perplexity(np.array([1, 1, 2])) == pytest.approx(2**1.5)


@pytest.fixture(scope='module')
def prior():
    """(Prior, params) over 3 places of 4 codes and 2 classes, its parameters far from even."""
    network = Transformer(
        vocab_size=6, context=4, end=None, layers=1, heads=2, kv_heads=2, width=8, mlp_width=16, position='learned',
        norm='layernorm', activation='gelu', qk_norm=False, bias=True, zero_init=False, tied=False, softcap=0.0,
        window=0, dropout=0.0, attention='einsum', remat=False,
    )  # fmt: skip
    params = network.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))['params']
    return Prior(network, 4, 3, 2), jax.tree.map(lambda x: x * 20, params)


def test_the_prior_is_a_distribution_over_codes_given_the_class(prior):
    prior, params = prior
    every = jnp.array(list(itertools.product(range(4), repeat=3)))
    p = [np.exp(-prior.code_nll(params, every, jnp.full(64, label)).sum(axis=1)) for label in (0, 1)]
    np.testing.assert_allclose([q.sum() for q in p], 1, rtol=1e-5)
    assert np.abs(p[0] - p[1]).max() > 0.01
    # Causality: what comes later changes nothing before.
    changed = prior.code_nll(params, every.at[:, 2].set((every[:, 2] + 1) % 4), jnp.zeros(64, jnp.int32))
    same = prior.code_nll(params, every, jnp.zeros(64, jnp.int32))
    np.testing.assert_allclose(changed[:, :2], same[:, :2], atol=1e-6)
    assert np.abs(changed[:, 2] - same[:, 2]).max() > 0.1


def test_the_prior_draws_from_what_its_loss_measures(prior):
    prior, params = prior
    n, labels = 4000, jnp.arange(4000) % 2
    ctx = rng.context(0, 'sample', 0, jnp.arange(n))
    drawn = prior.draw(params, ctx, labels, Sampling())
    assert drawn.tokens.shape == (n, 3) and drawn.tokens.min() >= 0 and drawn.tokens.max() < 4
    nats = prior.code_nll(params, drawn.tokens, labels).sum(axis=1)
    np.testing.assert_allclose(drawn.log_prob, -nats, atol=1e-4)
    every = jnp.array(list(itertools.product(range(4), repeat=3)))
    for label in (0, 1):
        p = np.exp(-prior.code_nll(params, every, jnp.full(64, label)).sum(axis=1))
        mine = np.asarray(drawn.tokens)[label::2] @ np.array([16, 4, 1])
        shares = np.bincount(mine, minlength=64) / len(mine)
        assert np.abs(shares - p).sum() < 3 * np.sqrt(p * (1 - p) / len(mine)).sum()
    # At temperature 0 each code is the likeliest after those before it, the same for all of a class.
    likeliest = prior.draw(params, ctx, labels, Sampling(temperature=0)).tokens
    assert (likeliest == likeliest[labels]).all()
    other = [likeliest[0].at[2].set(code) for code in range(4)]
    nats = prior.code_nll(params, jnp.stack(other), jnp.zeros(4, jnp.int32))[:, 2]
    assert likeliest[0, 2] == np.argmin(nats)


def test_the_temperature_of_samples_is_a_field():
    task = Experiment(config_of('smoke', sample__temperature=0.0)).task
    ctx = rng.context(0, 'sample', 0, jnp.arange(8))
    samples = jax.jit(lambda key: task.get(Samples).draw(*task.init(key), ctx, None))(jax.random.key(0))
    assert (samples == samples[0]).all()


@pytest.fixture(scope='module', params=['smoke', 'smoke,fsq'])
def trained(request, tmp_path_factory):
    """(experiment, state after two steps, the same with a checkpoint between them)."""
    config = config_of(request.param, steps_per_call=1, model__conditional=request.param == 'smoke,fsq')
    experiment = Experiment(config)
    call, data = experiment.train_call(), experiment.resident_data()
    feeds = experiment.feeds(0)
    run = lambda state, feed: call(state, experiment.seed_array, data, feed)[0]
    state = run(experiment.create_state(), next(feeds))
    checkpoints = Run(tmp_path_factory.mktemp('vq')).checkpoints(config, read_only=False)
    checkpoints.save(1, state)
    state = run(state, next(feeds))
    restored = checkpoints.restore(1, experiment.abstract_state)
    checkpoints.close()
    return experiment, state, run(restored, next(experiment.feeds(1)))


def test_codebook_and_prior_go_on_from_a_checkpoint_bit_for_bit(trained, assert_same_bits):
    from aigc_jax.core import tree

    leaves = [{n: np.asarray(x) for n, x in tree.flatten(parallel.fetch(state)).items()} for state in trained[1:]]
    assert_same_bits(*leaves)
    assert any(name.startswith('stats/') for name in leaves[0]) == (
        trained[0].config.model.quantizer.name == 'vq'
    ) and any(name.startswith('params/prior/') for name in leaves[0])


def test_the_bound_and_the_codes_of_an_evaluation(trained, tmp_path, figure):
    experiment, state, _ = trained
    task, evaluator = experiment.task, Evaluator(experiment)
    results = {name: found['value'] for name, found in Evaluation(evaluator).each(state, 0, 'test').items()}
    n, places = len(experiment.dataset.splits['test']), 16
    parts = results['model/reconstruction'] + results['prior/nats_per_code'] * places
    assert results['model/nll_bound'] == pytest.approx(parts, rel=1e-5)
    assert results['model/bits_per_dim'] == pytest.approx(parts / 64 / np.log(2), rel=1e-5)
    x, reconstructed = evaluator.reconstruct(state, 0, 'test', n)
    assert results['model/mse'] == pytest.approx(np.mean((x - reconstructed) ** 2), rel=1e-4)
    # E[x given z] is the Bernoulli's mean, so the nats can be had from it.
    p, x = reconstructed.astype(np.float64), x.astype(np.float64)
    nats = -np.mean(np.sum(x * np.log(p) + (1 - x) * np.log1p(-p), axis=(1, 2, 3)))
    assert results['model/reconstruction'] == pytest.approx(nats, rel=1e-4)
    use = evaluator.code_use(state, 0, 'test')
    assert use.shape == (task.get(Codebook).size,) and use.sum() == n * places
    assert results['codes/perplexity'] == pytest.approx(perplexity(use)) and 1 < results['codes/perplexity']
    assert results['codes/used_share'] == np.mean(use > 0)
    plots_curves.code_use(use, tmp_path / 'codes.png')
    axes = figure[0].axes[0]
    assert f'perplexity {perplexity(use):.1f}' in axes.get_title()
    shares = axes.patches[0].get_data().values
    np.testing.assert_allclose(shares, np.sort(use)[::-1] / use.sum())


def test_densities_and_errors_are_in_the_datas_own_units():
    """Of a run that sees images in [−1, 1], with a learned scale s, which is s / 2 in [0, 1]."""
    experiment = Experiment(config_of('smoke', data__scale='symmetric', task__likelihood='gaussian'))
    state, evaluator = experiment.create_state(), Evaluator(experiment)
    found = {name: value['value'] for name, value in Evaluation(evaluator).each(state, 0, 'test').items()}
    x, reconstructed = (images.astype(np.float64) for images in evaluator.reconstruct(state, 0, 'test', 180))
    s = math.exp(state.params['model']['log_scale']) / 2
    assert s == pytest.approx(np.sqrt(x.var(axis=0).mean()), rel=0.05)
    assert found['model/mse'] == pytest.approx(np.mean((x - reconstructed) ** 2), rel=1e-4)
    nats = -scipy.stats.norm.logpdf(x, reconstructed, s).sum(axis=(1, 2, 3)).mean()
    assert found['model/reconstruction'] == pytest.approx(nats, rel=1e-4)


@pytest.mark.parametrize('trained', ['smoke'], indirect=True)
def test_the_codebook_is_renewed_in_the_turn_of_the_model_alone(trained):
    experiment, state, _ = trained
    task, state = experiment.task, parallel.fetch(state)
    extra = Extra(state.stats, state.carry)
    batch = {'x': jnp.asarray(experiment.dataset.splits['train'].arrays['x'][:32], jnp.float32) / 16}
    ctx = rng.context(0, 'train', 0, jnp.arange(32))
    model, prior = task.rounds[0]
    assert (model.player, prior.player) == ('model', 'prior')
    found = jax.jit(lambda *a: [turn.loss(*a)[1][1].stats['sum'] for turn in (model, prior)])
    moved, left = found(state.params, extra, batch, ctx)
    assert not np.allclose(moved, state.stats['sum'])
    np.testing.assert_array_equal(left, state.stats['sum'])


@pytest.mark.parametrize('arg, fields, words', [
    ('smoke', {'model.quantizer.name': 'vqq'}, 'model.quantizer.name'),
    ('smoke', {'model.quantizer.name': 'fsq'}, 'model.quantizer'),
    ('smoke', {'model.quantizer.codes': 1}, 'model.quantizer.codes'),
    ('smoke', {'model.quantizer.decay': 1.0}, 'model.quantizer.decay'),
    ('smoke,fsq', {'model.quantizer.levels': (2, 5)}, 'model.quantizer.levels'),
    ('smoke,fsq', {'model.quantizer.levels': (1000, 1000, 1000)}, 'model.quantizer.levels'),
    ('smoke', {'model.encoder.norm': 'batch'}, 'model.encoder.norm'),
    ('smoke', {'model.encoder.features': (8, 8)}, 'model.decoder.features'),
    ('smoke', {'model.encoder.features': (8, 8, 8, 8)}, 'model.encoder.features'),
    ('smoke', {'model.prior.heads': 3}, 'model.prior.heads'),
    ('smoke', {'model.conditional': True, 'data.name': 'ring8'}, 'vq is for images'),
    ('smoke', {'data.scale': 'symmetric'}, 'task.likelihood'),
    ('smoke', {'task.likelihood': 'gausian'}, 'did you mean gaussian'),
    ('smoke', {'sample.temperature': -1.0}, 'eval.temperature: -1.0; it is 0 or more'),
    ('smoke', {'sample.temperature': math.nan}, 'eval.temperature: nan'),
])  # fmt: skip
def test_fields_that_do_not_fit_are_named(arg, fields, words):
    config = config_of(arg)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=words):
        Experiment(config)
