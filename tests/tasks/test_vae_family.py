"""Objectives, likelihoods and gradients of the VAE family against closed forms."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import vaes
from vaes import CONFIG, LINEAR, context, disturbed, make, ppca, start

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures, Samples, ScalarField, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.plots import images as plots_images
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.means import SplitStatistics
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.tasks import likelihoods
from aigc_jax.tasks.vae import bounds
from aigc_jax.training.trainer import train


@pytest.fixture(scope='module')
def linear():
    return vaes.linear_model()


# Likelihoods


@pytest.mark.parametrize('low, levels', [(0.0, 16), (-1.0, 255), (0.0, 1)])
def test_discretized_logistic_sums_to_1_and_has_its_mean(low, levels):
    grid = np.linspace(low, 1, levels + 1)
    for mean, log_scale in ((0.3, -1.0), (-7.0, -2.0), (0.5, -6.0), (40.0, 2.0)):
        log_p = likelihoods.log_discretized_logistic(grid[:, None], mean, log_scale, low, 1.0, levels)
        assert np.isfinite(log_p).all()
        p = np.exp(np.asarray(log_p, np.float64))
        assert p.sum() == pytest.approx(1, abs=1e-4)
        found = likelihoods.discretized_logistic_mean(jnp.float32(mean), log_scale, low, 1.0, levels)
        assert float(found) == pytest.approx(p @ grid, abs=1e-4)


def test_categorical_is_a_softmax_over_levels():
    logits = np.random.default_rng(0).normal(size=(1, 3 * 5)).astype(np.float32)
    x = np.array([[0.0, 0.25, 1.0]])
    by_pixel = logits.reshape(3, 5)
    expected = sum(by_pixel[i, j] - np.log(np.exp(by_pixel[i]).sum()) for i, j in enumerate((0, 1, 4)))
    assert float(likelihoods.log_categorical(x, logits, 0.0, 1.0, 4)[0]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(likelihoods.log_categorical(2 * x - 1, logits, -1.0, 1.0, 4), expected, rtol=1e-5)


@pytest.mark.parametrize('scale', ['unit', 'symmetric'])
def test_uniform_levels_cost_log2_17_bits(scale):
    """A categorical decoder of zeros on the 17 levels of the digits: log₂ 17 bits a dimension, whatever the grid."""
    experiment = make(task__likelihood='categorical', data__scale=scale)
    params, extra = start(experiment)
    params = {'model': jax.tree.map(np.zeros_like, params['model'])}
    batch = experiment.preprocess(experiment.examples('valid', np.arange(5)), context(5))
    found = vaes.evaluate(experiment, params, extra, batch['x'])
    np.testing.assert_allclose(found['model/bits_per_dim'], math.log2(17), rtol=1e-5)
    middle = experiment.scaling.to_data(experiment.task.get(Samples).draw(params, extra, context(3), None))
    np.testing.assert_allclose(middle, 0.5, atol=1e-5)


@pytest.mark.parametrize('likelihood', ['gaussian', 'optimal_gaussian'])
@pytest.mark.parametrize(
    'data, scales', [('digits', ('unit', 'symmetric')), ('grid25', ('unit', 'standard'))], ids=['digits', 'grid25']
)
def test_a_density_is_the_same_whatever_the_scale_of_the_data(likelihood, data, scales):
    """A decoder that says N(m, s²) of each dimension, m and s in the data's own units, by scipy."""
    m, s = 0.3, 0.4
    for scale in scales:
        more = dict(data__name=data, data__scale=scale, task__likelihood=likelihood, eval__ais_temperatures=2)
        experiment = make('points,smoke' if data == 'grid25' else 'smoke', **more)
        params, scaling = jax.tree.map(np.zeros_like, start(experiment)[0]), experiment.scaling
        factor = 1.0 if scaling.factor is None else float(scaling.factor)
        assert (factor == 1) == (scale == 'unit')
        params['model']['decoder']['mlp']['Dense_1']['bias'][:] = scaling.to_model(m)
        extra, log_scale = Extra({}, {}), math.log(s / factor)
        if likelihood == 'optimal_gaussian':
            extra = Extra({'mse': jnp.float32(math.exp(2 * log_scale))}, {})
        else:
            params['model']['log_scale'] = np.float32(log_scale)
        x, ctx = experiment.examples('test', np.arange(5)), context(5)
        batch = experiment.preprocess(x, ctx)
        own = np.asarray(scaling.to_data(batch['x']), np.float64).reshape(5, -1)
        expected = scipy.stats.norm.logpdf(own, m, s).sum(axis=1)  # z tells nothing of x, so that all bounds are exact
        found = vaes.evaluate(experiment, params, extra, batch['x'])
        annealed = jax.jit(experiment.task.all(SplitStatistic)[1].collect)(params, extra, batch, ctx)
        found = {**found, **annealed, 'model/elbo': -found['model/elbo']}
        for nats in (found[f'model/{name}'] for name in ('nll', 'reconstruction', 'elbo', 'ais_nll')):
            np.testing.assert_allclose(nats, -expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found['model/bits_per_dim'], -expected / own.shape[1] / math.log(2), rtol=1e-5)
        score = experiment.task.get(ScalarField).value(params, extra, batch['x'], ctx)
        np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-4)
        if likelihood == 'gaussian':
            _, (metrics, *_) = jax.jit(experiment.task.rounds[0][0].loss)(params, extra, batch, ctx)
            assert float(metrics['reconstruction']) == pytest.approx(-expected.mean(), rel=1e-5)


def test_log_densities_are_scipys_at_float64():
    """Of data in [−1, 1], as the model sees them: N(x; m, s²) of [0, 1], and P(x) of a logistic cut into levels."""
    draw = np.random.default_rng(0)
    experiment = make(data__scale='symmetric', task__likelihood='gaussian')
    levels, s = draw.integers(17, size=(3, 8)), 0.07
    m = draw.normal(0.5, 0.2, size=(3, 8))
    edges = (np.stack([levels - 0.5, levels + 0.5]) / 16 - m) / s
    edges[0][levels == 0], edges[1][levels == 16] = -np.inf, np.inf
    with jax.enable_x64(True):
        for name, scale, expected in (
            ('gaussian', s, scipy.stats.norm.logpdf(levels / 16, m, s)),
            ('discretized_logistic', s, np.log(np.diff(scipy.stats.logistic.cdf(edges), axis=0)[0])),
        ):
            likelihood = likelihoods.make(name, experiment.dataset, experiment.config.data)
            found = likelihood.log_prob(jnp.asarray(levels / 8 - 1), jnp.asarray(2 * m - 1), jnp.log(2 * scale))
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-9)


@pytest.mark.parametrize('scale, width', [('unit', 1.0), ('symmetric', 2.0)])
def test_a_scale_begins_at_the_spread_of_the_training_data(scale, width):
    std = width * (vaes.make().dataset.splits['train'].arrays['x'] / 16).std(axis=0)
    spread = math.sqrt((std**2).mean())
    for name in ('gaussian', 'discretized_logistic', 'optimal_gaussian'):
        experiment = make(task__likelihood=name, data__scale=scale)
        params, extra = start(experiment)
        if name == 'optimal_gaussian':
            found = math.sqrt(extra.stats['mse'])
        else:
            found = math.exp(params['model']['log_scale'])
            found = scipy.stats.logistic(scale=found).std() if name == 'discretized_logistic' else found
        assert found == pytest.approx(spread, rel=0.02), name


def test_a_learned_scale_gets_to_the_data_in_300_steps():
    """It goes 10 times as far in a step as a weight; after 300 steps the levels cost less than uniform ones do."""
    more = dict(total_steps=300, steps_per_call=300, log_every_steps=300, eval_every_steps=300)
    experiment = make(task__likelihood='discretized_logistic', checkpoint_every_steps=300, **more)
    params, optimizer = start(experiment)[0]['model'], experiment.optimizers['model']
    updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)
    kernel = updates['decoder']['mlp']['Dense_0']['kernel']
    assert float(updates['log_scale']) == pytest.approx(10 * float(kernel[0, 0]), rel=1e-5)
    state, _ = experiment.train_call()(
        experiment.create_state(), experiment.seed_array, experiment.resident_data(), next(experiment.feeds(0))
    )
    found = Evaluation(Evaluator(experiment)).each(state, 0, 'valid')['model/bits_per_dim']
    assert found['value'] + found['ci'] < 0.9 * math.log2(17)


def test_sigma_vae_has_the_batchs_error_as_its_variance():
    experiment = make(task__likelihood='optimal_gaussian', batch_size=4)
    params, extra = start(experiment)
    batch, ctx = experiment.preprocess(experiment.examples('train', np.arange(4)), context(4)), context(4)
    _, (metrics, new, *_) = jax.jit(experiment.task.rounds[0][0].loss)(params, extra, batch, ctx)
    mse = (new.stats['mse'] - 0.1 * extra.stats['mse']) / 0.9  # the average's first step
    expected = 0.5 * 64 * (math.log(2 * math.pi) + math.log(mse) + 1)
    assert float(metrics['reconstruction']) == pytest.approx(expected, rel=1e-5)
    near = vaes.evaluate(experiment, params, Extra({'mse': jnp.float32(mse)}, {}), batch['x'])
    assert np.mean(near['model/reconstruction']) == pytest.approx(expected, rel=0.02)


# Gradients


@pytest.mark.parametrize('k, beta, estimators', [(1, 1.0, ('stl', 'dreg')), (8, 1.0, ('dreg',)), (8, 0.3, ('dreg',))])
def test_gradients_have_the_standard_ones_mean_and_less_variance(linear, k, beta, estimators):
    """Of the encoder's parameters, near the optimum; the same value of the bound for the same draws."""
    _, matrix, scale, x = linear
    mean, deviation = {}, {}
    for name in ('standard', *estimators):
        experiment = make('points,smoke', task__k=k, task__beta=beta, task__estimator=name, **LINEAR)
        params = ppca(matrix, scale, start(experiment)[0], wrong=0.1)
        loss = lambda p, seed: experiment.task.rounds[0][0].loss(
            p, Extra({}, {}), {'x': jnp.asarray(x[:8])}, context(8, seed)
        )[0]
        many = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, jnp.arange(6000))['model']['encoder']
        flat = np.concatenate([np.asarray(g, np.float64).reshape(6000, -1) for g in jax.tree.leaves(many)], axis=1)
        mean[name], deviation[name] = flat.mean(axis=0), flat.std(axis=0)
    for name in estimators:
        error = np.hypot(deviation[name], deviation['standard']) / math.sqrt(6000)
        assert (np.abs(mean[name] - mean['standard']) < 4.5 * error + 1e-5).all()
        assert np.abs(mean['standard']).max() > 10 * error.max() / 4.5  # there is something to estimate
        if beta == 1:
            assert (deviation[name] ** 2).sum() < 0.7 * (deviation['standard'] ** 2).sum()


@pytest.mark.parametrize('more', [{}, dict(model__posterior='realnvp'), dict(model__posterior='iaf'), 'two_layers'])
def test_dreg_of_every_posterior_leaves_the_bound_as_it_is(more):
    arg, more = ('two_layers,smoke', {}) if more == 'two_layers' else ('smoke', more)
    found = {}
    for name in ('standard', 'dreg'):
        experiment = make(arg, task__k=3, task__estimator=name, **more)
        params, extra = start(experiment)
        params, batch = disturbed(params, scale=0.05), {'x': jnp.full((4, 8, 8, 1), 0.4)}
        loss = lambda p: experiment.task.rounds[0][0].loss(p, extra, batch, context(4))[0]
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        found[name] = float(value)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert found['dreg'] == pytest.approx(found['standard'], rel=1e-4)


# Regularizers


def test_free_bits_is_a_floor_of_the_mean_of_each_dimension():
    kl = jnp.array([[0.0, 3.0], [0.2, 1.0]])
    assert float(bounds.free_bits(kl, 0.5)) == pytest.approx(0.5 + 2.0)
    loss, kls = {}, {}
    for floor in (0.0, 50.0):
        experiment = make(task__free_bits=floor)
        params, extra = start(experiment)
        batch = {'x': jnp.full((4, 8, 8, 1), 0.4)}
        value, (metrics, *_) = jax.jit(experiment.task.rounds[0][0].loss)(params, extra, batch, context(4))
        loss[floor], kls[floor] = float(value), float(metrics['kl'])
    assert kls[0.0] == kls[50.0] and loss[50.0] - loss[0.0] == pytest.approx(100 - kls[0.0], rel=1e-4)


def test_total_correlation_of_gaussians():
    """q(z) is N(0, Σ), so TC = −½ log(1 − ρ²); of independent dimensions it is 0."""
    n, rho, std = 1500, 0.8, 0.3
    generator = np.random.default_rng(5)
    mu = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n)
    correlation = rho / (1 + std**2)
    mixed = np.stack([mu[:, 0], mu[::-1, 1]], axis=1)
    for means, expected in ((mu, -0.5 * math.log(1 - correlation**2)), (mixed, 0)):
        z = means + std * generator.normal(size=means.shape)
        log_var = np.full_like(means, 2 * math.log(std))
        found = bounds.total_correlation(*(jnp.asarray(a, jnp.float32) for a in (z, means, log_var)))
        assert float(found) == pytest.approx(expected, abs=0.06)


def test_tc_weight_adds_the_total_correlation():
    value = {}
    for weight in (0.0, 300.0):
        experiment = make(task__tc_weight=weight)
        params, extra = start(experiment)
        batch = experiment.preprocess(experiment.examples('train', np.arange(8)), context(8))
        loss, (metrics, *_) = jax.jit(experiment.task.rounds[0][0].loss)(params, extra, batch, context(8))
        value[weight] = float(loss)
    assert value[300.0] - value[0.0] == pytest.approx(300 * float(metrics['total_correlation']), rel=1e-2)
    assert abs(value[300.0] - value[0.0]) > 0.1


# Runs


def test_a_run_draws_its_latent_space_and_is_diagnosed(tmp_path, monkeypatch):
    drawn, image_rows = {}, plots_images.image_rows

    def record(rows, path, together=1, heads=None):
        drawn[path.name] = [label for label, _ in rows], heads
        image_rows(rows, path, together, heads)

    monkeypatch.setattr(plots_images, 'image_rows', record)
    fields = [('model.conditional', 'True'), ('eval.ais_temperatures', '3'), ('eval.ais_examples', '5')]
    config = config_lib.load(f'{CONFIG}:flow_prior,smoke', fields)
    train(config, Run(tmp_path))
    for name in ('traversals', 'interpolations'):
        assert (tmp_path / 'plots' / f'{name}.png').stat().st_size > 500
    labels = Run(tmp_path).open()[0].examples('valid', np.arange(20))['label']
    assert drawn['traversals.png'] == ([f'class {labels[0]}'] * 2, None)
    assert drawn['interpolations.png'] == ([f'class {label}' for label in sorted(labels[::2])], None)
    assert drawn['reconstructions.png'] == (['original', 'reconstruction'], [[str(c) for c in sorted(labels[:16])]])
    written = json.loads((tmp_path / 'evaluation.json').read_text())
    assert written['model/ais_nll']['n'] == 5 and 0 <= written['model/active_units']['value'] <= 2
    assert 0 < written['model/mutual_information']['value'] <= math.log(180)
    warm, cold = (
        Evaluator(experiment).sample(state, 0, 20)
        for experiment, state in (Run(tmp_path).open(), Run(tmp_path).open(overrides=[('sample.temperature', '0')]))
    )
    assert (warm[0] != warm[10]).any() and (cold[0] == cold[10]).all()  # of the same class


def test_annealed_importance_sampling_is_of_a_fixed_random_choice():
    """And the NLL of the same images stands beside it, by the very draws of the NLL of the split."""
    experiment = make(eval__ais_temperatures=2, eval__ais_examples=7)
    state, evaluator = experiment.create_state(), Evaluator(experiment)
    where = rng.fixed_choice(180, 7)
    assert len(set(where)) == 7 and where.max() > 100 and (np.sort(where) == where).all()
    found = SplitStatistics(evaluator).measure(state, 0, 'test')
    ctx = rng.context(0, 'eval', 0, where)
    batch = experiment.preprocess(experiment.examples('test', where), ctx)
    extra = Extra(state.stats, state.carry)
    annealed = jax.jit(experiment.task.all(SplitStatistic)[1].collect)(state.params, extra, batch, ctx)
    nll = jax.jit(experiment.task.get(Measures).per_example)(state.params, extra, batch, ctx)['model/nll']
    assert found['model/ais_nll']['value'] == pytest.approx(float(annealed['model/ais_nll'].mean()), rel=1e-5)
    assert found['model/nll_ais_examples']['value'] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert found['model/nll_ais_examples']['n'] == found['model/ais_nll']['n'] == 7
    every = make(eval__ais_temperatures=2, eval__ais_examples=0).task.all(SplitStatistic)[1]  # model/nll is of the same
    assert every.most == 0 and 'model/nll_ais_examples' not in every.collect(state.params, extra, batch, ctx)


def test_chunks_need_not_divide_k(linear):
    """With exact posteriors log w is log p(x) of every draw, so that a wrong count would show."""
    _, matrix, scale, x = linear
    for k, chunk, counts in ((7, 3, {1, 2, 5, 7}), (2, 8, {1, 2})):
        experiment = make('points,smoke', eval__k=k, eval__k_chunk=chunk, eval__k_curve=True, **LINEAR)
        found = vaes.evaluate(experiment, ppca(matrix, scale, start(experiment)[0]), Extra({}, {}), x)
        np.testing.assert_allclose(-found['model/nll'], vaes.exact(x, matrix, scale), atol=5e-4)
        assert {name for name in found if 'bound' in name} == {f'model/bound_k{count}' for count in counts}


def test_a_run_of_earlier_days_opens(tmp_path):
    """Its config lacks the fields that came later; the same numbers come out."""
    config = config_lib.load(f'{CONFIG}:smoke', [])
    early = config.copy_and_resolve_references()
    for group, names in (
        ('task', ('estimator', 'free_bits', 'tc_weight')),
        ('model', ('prior', 'pseudo_inputs', 'posterior', 'posterior_context', 'flow', 'stochastic_layers', 'second')),
        ('eval', ('k_curve', 'ais_temperatures', 'ais_chains', 'ais_examples', 'interpolation', 'transport_samples')),
    ):
        for name in names:
            del early[group][name]
    del early.schema, early.sample
    (tmp_path / 'config.json').write_text(config_lib.to_json(early))
    found = []
    for experiment in (Experiment(config), Experiment(config_lib.from_json(tmp_path / 'config.json'))):
        params, extra = start(experiment)
        batch = experiment.preprocess(experiment.examples('valid', np.arange(3)), context(3))
        found.append(jax.tree.leaves((params, vaes.evaluate(experiment, params, extra, batch['x']))))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(model__prior='vmap'), "model.prior: 'vmap'; did you mean vamp?"),
        (dict(model__prior='vamp', model__conditional=True), 'model.prior: vamp wants'),
        (dict(model__prior='vamp', model__pseudo_inputs=99999), 'model.pseudo_inputs: 99999; 1 to the'),
        (dict(model__posterior='iaf', model__stochastic_layers=2), 'model.stochastic_layers: 2 wants'),
        (dict(model__posterior='iaf', model__posterior_context=3), 'model.posterior_context: 3; an even number'),
        (dict(model__posterior_context=2), 'model.posterior_context: it is for'),
        (dict(task__estimator='drag'), "task.estimator: 'drag'"),
        (dict(task__beta=-1.0), 'task.beta: -1.0; it is 0 or more'),
        (dict(task__beta='1e999'), 'task.beta: inf is no finite number'),
        (dict(sample__temperature='1e999'), 'sample.temperature: inf is no finite number'),
        (dict(task__k=0), 'task.k: 0; it is 1 or more'),
        (dict(task__free_bits=0.1, micro_batches=2), 'task.free_bits: 0.1 is of a whole batch'),
        (dict(task__likelihood='optimal_gaussian', micro_batches=2), 'task.likelihood: optimal_gaussian is of a whole'),
        (dict(task__k=2, task__free_bits=0.1), 'task.free_bits: 0.1; it is 0 where task.k'),
        (dict(task__tc_weight=1.0, model__posterior='iaf'), 'task.tc_weight: wants model.posterior gaussian'),
        (dict(task__likelihood='logistic'), "task.likelihood: 'logistic'"),
        (dict(sample__temperature=-1.0), 'sample.temperature: -1.0; it is 0 or more'),
        (dict(model__flow__activation='swoosh', model__prior='flow'), "model.flow.activation: 'swoosh'"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError) as error:
        make(**fields)
    assert message in str(error.value)
