"""Objectives, priors, posteriors, likelihoods and evaluation of VAEs against closed forms, quadrature and Jacobians."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from aigc_jax import config as config_lib
from aigc_jax import loop
from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.evals import latents as codes
from aigc_jax.evals.ais import ais
from aigc_jax.evaluate import Evaluator
from aigc_jax.experiment import Experiment, open_run
from aigc_jax.nn.flows import Flow
from aigc_jax.tasks import bounds, likelihoods

CONFIG = str(pathlib.Path(__file__).parent.parent / 'configs' / 'vae.py')
# One linear layer each way, so that the model is probabilistic PCA.
LINEAR = dict(
    data__name='gaussian2d', model__encoder__features='()', model__decoder__features='()', model__flow__features='(8,)'
)


def make(arg='smoke', **overrides):
    fields = [(name.replace('__', '.'), str(value)) for name, value in overrides.items()]
    return Experiment(config_lib.load(f'{CONFIG}:{arg}', fields))


def start(experiment):
    """(params, Extra) at step 0, on the host."""
    state = jax.device_get(experiment.create_state())
    return state.params, Extra(state.stats, state.carry)


def context(n: int, seed: int = 0):
    return rng.context(seed, 'test', 0, jnp.arange(n))


def disturbed(tree, seed: int = 0, scale: float = 0.3):
    """Every leaf moved away from where it begins, flows' last layers of zeros included."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + scale * generator.normal(size=np.shape(x)), np.float32), tree)


def ppca(matrix: np.ndarray, scale: float, params: dict, wrong: float = 0.0) -> dict:
    """Parameters with p(x given z) = N(W z, s² I) and q(z given x) = N(M⁻¹ Wᵀ x, diag of s² M⁻¹), M = Wᵀ W + s² I, as
    Tipping & Bishop 1999, eq. 8 have it; exact where Wᵀ W is diagonal. wrong: added to the posterior's mean."""
    params = jax.tree.map(np.zeros_like, params['model'])
    inverse = np.linalg.inv(matrix.T @ matrix + scale**2 * np.eye(2))
    encoder = params['encoder']['mlp']['Dense_0']
    encoder['kernel'][:, :2] = (inverse @ matrix.T).T
    encoder['bias'][:2] = wrong
    encoder['bias'][2:] = np.log(scale**2 * np.diag(inverse))
    params['decoder']['mlp']['Dense_0']['kernel'][:] = matrix.T
    params['log_scale'] = np.float32(math.log(scale))
    return {'model': params}


@pytest.fixture(scope='module')
def linear():
    """(the experiment of 2-D x and z, W, s, x drawn from its model)."""
    matrix = np.array([[1.2, -0.4], [0.6, 0.8]])  # orthogonal columns
    x = np.random.default_rng(0).multivariate_normal(np.zeros(2), matrix @ matrix.T + 0.25 * np.eye(2), 400)
    return make('points,smoke', eval__k=64, eval__k_chunk=32, **LINEAR), matrix, 0.5, x.astype(np.float32)


def exact(x, matrix, scale):
    return scipy.stats.multivariate_normal.logpdf(x, np.zeros(2), matrix @ matrix.T + scale**2 * np.eye(2))


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
    found = experiment.task.evaluate(params, extra, batch, context(5))
    np.testing.assert_allclose(found['model/bits_per_dim'], math.log2(17), rtol=1e-5)
    middle = experiment.scaling.to_data(experiment.task.sample(params, extra, context(3), None))
    np.testing.assert_allclose(middle, 0.5, atol=1e-5)


def test_sigma_vae_has_the_batchs_error_as_its_variance():
    experiment = make(task__likelihood='optimal_gaussian', batch_size=4)
    params, extra = start(experiment)
    batch, ctx = experiment.preprocess(experiment.examples('train', np.arange(4)), context(4)), context(4)
    _, (metrics, new) = experiment.task.rounds[0][0].loss(params, extra, batch, ctx)
    mse = (new.stats['mse'] - 0.1 * extra.stats['mse']) / 0.9  # the average's first step
    expected = 0.5 * 64 * (math.log(2 * math.pi) + math.log(mse) + 1)
    assert float(metrics['reconstruction']) == pytest.approx(expected, rel=1e-5)
    near = experiment.task.evaluate(params, Extra({'mse': jnp.float32(mse)}, {}), batch, ctx)
    assert np.mean(near['model/reconstruction']) == pytest.approx(expected, rel=0.02)


# Flows


@pytest.mark.parametrize('kind', ['realnvp', 'iaf'])
@pytest.mark.parametrize('d, context_dim', [(2, 0), (5, 3)])
def test_log_det_is_the_jacobians_and_the_inverse_inverts(kind, d, context_dim):
    flow = Flow(kind, d, context_dim, layers=3, features=(8, 7), activation='tanh')
    z, h = (np.random.default_rng(1).normal(size=(4, n)).astype(np.float32) for n in (d, context_dim))
    params = flow.init(jax.random.key(0), z, h)
    np.testing.assert_allclose(flow.apply(params, z, h)[0], z, atol=1e-6)  # begins as the identity
    params = disturbed(params)
    y, log_det = flow.apply(params, z, h)
    assert np.abs(y - z).max() > 0.1
    jacobian = jax.vmap(jax.jacobian(lambda z, h: flow.apply(params, z, h)[0]))(z, h)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-4)
    back, log_det_back = flow.apply(params, y, h, True)
    np.testing.assert_allclose(back, z, atol=1e-4)
    np.testing.assert_allclose(log_det_back, -log_det, atol=1e-4)
    if kind == 'iaf':  # of a single layer, the Jacobian is triangular
        one = Flow(kind, d, context_dim, layers=1, features=(8,), activation='tanh')
        params = disturbed(one.init(jax.random.key(0), z, h))
        jacobian = jax.vmap(jax.jacobian(lambda z, h: one.apply(params, z, h)[0]))(z, h)
        assert not np.triu(jacobian, 1).any()
    if context_dim:
        assert np.abs(flow.apply(params, z, h + 1)[0] - flow.apply(params, z, h)[0]).max() > 1e-3 or kind == 'iaf'


def grid(extent: float, points: int):
    axis = np.linspace(-extent, extent, points)
    z = np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2).astype(np.float32)
    return z, (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize('variant', ['flow_prior', 'vamp'])
def test_priors_and_flow_posteriors_integrate_to_1(variant):
    """The prior, as the difference of log w under an encoder whose posterior is known; see `log_prior`."""
    experiment = make(f'{variant},smoke')
    params = disturbed(start(experiment)[0], scale=0.2)
    z, area = grid(9, 361)
    log_p = log_prior(experiment, params, z)
    assert np.exp(log_p).sum() * area == pytest.approx(1, abs=2e-3)
    # Its samples are of that density: the share in the half plane z1 > 0 and the mean.
    latent = latents_of(experiment)
    draws = np.asarray(latent.sample(params['model'], components(experiment, params), context(4000), 1))[:, 0]
    p = np.exp(log_p) * area
    np.testing.assert_allclose(draws.mean(axis=0), p @ z, atol=0.06)
    np.testing.assert_allclose((draws > 0).mean(axis=0), [p[z[:, j] > 0].sum() for j in (0, 1)], atol=0.04)
    cold = np.asarray(latent.sample(params['model'], components(experiment, params), context(4000), 1, 0.0))[:, 0]
    assert len(np.unique(cold, axis=0)) == (1 if variant == 'flow_prior' else 20)


def latents_of(experiment):
    """The latent variables of an experiment, made as its task makes them."""
    from aigc_jax.tasks import latents

    config = experiment.config
    fields = latents.FIELDS | dict(config.model)
    return latents.make(config.model, fields, config.data, experiment.dataset, jnp.float32)


def components(experiment, params):
    """Of VampPrior: the posteriors of its pseudo-inputs, by the encoder of the task."""
    from aigc_jax.nn.mlp import Encoder

    if 'pseudo_inputs' not in params['model']:
        return None
    encoder = Encoder(**experiment.config.model.encoder, latent_dim=2)
    return encoder.apply({'params': params['model']['encoder']}, params['model']['pseudo_inputs'])


def log_prior(experiment, params, z):
    found = latents_of(experiment).log_p(params['model'], components(experiment, params), jnp.asarray(z)[None])
    return np.asarray(found.sum(-1)[0], np.float64)


def test_vamp_begins_as_training_examples():
    experiment = make('vamp,smoke')
    pseudo = start(experiment)[0]['model']['pseudo_inputs']
    x = experiment.dataset.splits['train'].arrays['x'] / 16
    distance = np.abs(pseudo[:, None] - x[None]).mean(axis=(2, 3, 4)).min(axis=1)
    assert len(pseudo) == 20 and distance.max() < 0.02 and len(np.unique(pseudo.argmax(axis=(1)), axis=0)) > 1


# The bound


@pytest.mark.parametrize('posterior', ['gaussian', 'realnvp', 'iaf'])
def test_ppca_is_what_every_evaluation_finds(linear, posterior):
    """Linear-Gaussian VAE = probabilistic PCA: log p(x) in closed form is the bound of exact posteriors."""
    _, matrix, scale, x = linear
    more = {'model__posterior': posterior} | (dict(model__posterior_context=2) if posterior != 'gaussian' else {})
    experiment = make('points,smoke', eval__k=8, eval__k_chunk=4, eval__k_curve=True, **more, **LINEAR)
    initial, extra = start(experiment)
    small = {name: value for name, value in initial['model'].items() if name != 'posterior_flow'}
    if posterior == 'gaussian':
        params = ppca(matrix, scale, {'model': small})
    else:  # the encoder gives one more number each, which a flow without weights passes over
        params = ppca(matrix, scale, start(linear[0])[0])
        wide = jax.tree.map(np.zeros_like, small['encoder']['mlp']['Dense_0'])
        for place, column in ((0, 0), (1, 1), (3, 2), (4, 3)):
            wide['kernel'][:, place] = params['model']['encoder']['mlp']['Dense_0']['kernel'][:, column]
            wide['bias'][place] = params['model']['encoder']['mlp']['Dense_0']['bias'][column]
        params['model']['encoder'] = {'mlp': {'Dense_0': wide}}
        params['model']['posterior_flow'] = initial['model']['posterior_flow']
    found = experiment.task.evaluate(params, extra, {'x': jnp.asarray(x)}, context(len(x)))
    for k in (1, 2, 5, 8):
        np.testing.assert_allclose(found[f'model/bound_k{k}'], exact(x, matrix, scale), atol=5e-4)
    np.testing.assert_allclose(-found['model/nll'], exact(x, matrix, scale), atol=5e-4)
    code = experiment.task.encode(params, extra, {'x': jnp.asarray(x)}, context(len(x)))
    inverse = np.linalg.inv(matrix.T @ matrix + scale**2 * np.eye(2))
    np.testing.assert_allclose(code, x @ (inverse @ matrix.T).T, atol=1e-4)


def test_the_optimum_of_the_elbo_is_ppcas(linear):
    """At W = U (Λ − s² I)^½ (Tipping & Bishop 1999, eq. 15) and exact posteriors the gradient is 0, and not beside it.

    Of the data's own covariance; with as many latent dimensions as data, any s² below both eigenvalues is an optimum.
    """
    experiment, _, scale, x = linear
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True) + np.outer(x.mean(0), x.mean(0)))
    best = vectors @ np.diag(np.sqrt(values - scale**2))
    loss = experiment.task.rounds[0][0].loss

    def gradient(matrix):
        params, extra = ppca(matrix, scale, start(experiment)[0]), Extra({}, {})
        one = lambda p, seed: loss(p, extra, {'x': jnp.asarray(x)}, context(len(x), seed))[0]
        many = jax.vmap(jax.grad(one), (None, 0))(params, jnp.arange(100))
        return jax.tree.map(lambda g: np.mean(g, axis=0), many)['model']

    at, beside = (gradient(m)['decoder']['mlp']['Dense_0']['kernel'] for m in (best, 1.3 * best))
    assert np.abs(at).max() < 0.03 < 0.2 < np.abs(beside).max()


@pytest.mark.parametrize('arg', ['points,smoke', 'points,flow_prior,smoke', 'points,two_layers,smoke'])
def test_importance_weighting_and_ais_agree_with_quadrature(arg):
    """log p(x) of a decoder that is not linear, on a grid of z, or of (z1, z2)."""
    two = 'two_layers' in arg
    more = dict(model__latent_dim=1, model__second__latent_dim=1) if two else {}
    experiment = make(arg, eval__k=4000, eval__k_chunk=500, eval__ais_temperatures=300, eval__ais_chains=16, **more)
    params, extra = start(experiment)
    params = disturbed(params, scale=0.15)
    x = np.random.default_rng(7).normal(size=(4, 2)).astype(np.float32)
    z, area = grid(8, 401)
    log_joint = log_prior(experiment, params, z)[:, None]
    decoder = params['model']['decoder']['mlp']
    seen = z[:, :1] if two else z
    hidden = np.maximum(seen @ decoder['Dense_0']['kernel'] + decoder['Dense_0']['bias'], 0)
    mean = hidden @ decoder['Dense_1']['kernel'] + decoder['Dense_1']['bias']
    scale = np.exp(params['model']['log_scale'])
    log_joint = log_joint + scipy.stats.norm.logpdf(x[None], mean[:, None], scale).sum(-1)
    nll = -np.log(np.exp(log_joint).sum(axis=0) * area)
    found = experiment.task.evaluate(params, extra, {'x': jnp.asarray(x)}, context(4))
    np.testing.assert_allclose(found['model/nll'], nll, atol=0.05)
    annealed = experiment.task.diagnostics[1].collect(params, extra, {'x': jnp.asarray(x)}, context(4))
    np.testing.assert_allclose(annealed['model/ais_nll'], nll, atol=0.1)
    assert 0.4 < np.mean(annealed['model/ais_acceptance']) < 0.95


def test_ais_of_a_narrow_posterior():
    """A Gaussian likelihood 20 times as narrow as the prior, where draws from the prior alone do badly."""
    x, s = jnp.array([0.5, -1.5]), 0.05
    log_prior = lambda z: likelihoods.log_normal(z, 0.0, 0.0)
    log_likelihood = lambda z: likelihoods.log_normal(z, x[:, None, None] * jnp.ones(3), 2 * math.log(s))
    z = context(2).normal('start', (8, 3))
    found, _ = jax.jit(lambda z: ais(z, log_prior, log_likelihood, context(2), 500))(z)
    expected = scipy.stats.norm.logpdf(np.asarray(x), 0, math.sqrt(1 + s**2)) * 3
    np.testing.assert_allclose(found, expected, atol=0.3)
    plain = jax.nn.logsumexp(log_likelihood(z), axis=1) - math.log(8)
    assert (np.asarray(plain) < expected - 3).all()


def test_k_curve_shares_its_draws():
    log_w = np.random.default_rng(3).normal(size=(4, 12)).astype(np.float32)
    curve = bounds.k_curve(jnp.asarray(log_w))
    assert list(curve) == [1, 2, 5, 10, 12]
    np.testing.assert_allclose(curve[1], log_w.mean(axis=1), rtol=1e-5)
    halves = np.log(np.exp(log_w[:, :10].reshape(4, 2, 5)).mean(axis=2)).mean(axis=1)
    np.testing.assert_allclose(curve[5], halves, rtol=1e-5)
    np.testing.assert_allclose(curve[12], np.log(np.exp(log_w).mean(axis=1)), rtol=1e-5)


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
    for name in ('standard', 'stl', 'dreg'):
        experiment = make(arg, task__k=3, task__estimator=name, **more)
        params, extra = start(experiment)
        params, batch = disturbed(params, scale=0.05), {'x': jnp.full((4, 8, 8, 1), 0.4)}
        found[name], grads = jax.value_and_grad(
            lambda p: experiment.task.rounds[0][0].loss(p, extra, batch, context(4))[0]
        )(params)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert found['stl'] == pytest.approx(found['standard'], rel=1e-4)
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
        value, (metrics, _) = experiment.task.rounds[0][0].loss(params, extra, batch, context(4))
        loss[floor], kls[floor] = float(value), float(metrics['kl'])
    assert kls[0.0] == kls[50.0] and loss[50.0] - loss[0.0] == pytest.approx(100 - kls[0.0], rel=1e-4)


def test_total_correlation_of_gaussians():
    """q(z) of all examples is N(0, Σ), so TC = −½ log(1 − ρ²); a batch of them all estimates it, one of independent
    dimensions finds 0."""
    n, rho = 1500, 0.8
    mu = np.random.default_rng(5).multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).astype(np.float32)
    log_var = np.full((n, 2), 2 * math.log(0.3), np.float32)
    z = mu + 0.3 * np.random.default_rng(6).normal(size=(n, 2)).astype(np.float32)
    correlation = rho / (1 + 0.09)
    # The constants of minibatch-weighted sampling are those of q(z) for a batch that is everything, but for log n.
    shift = math.log(n)
    found = float(bounds.total_correlation(jnp.asarray(z), jnp.asarray(mu), jnp.asarray(log_var), n)) - shift
    assert found == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.06)
    mixed = np.stack([mu[:, 0], mu[::-1, 1]], axis=1)
    z = mixed + 0.3 * np.random.default_rng(6).normal(size=(n, 2)).astype(np.float32)
    found = float(bounds.total_correlation(jnp.asarray(z), jnp.asarray(mixed), jnp.asarray(log_var), n)) - shift
    assert found == pytest.approx(0, abs=0.06)


# Diagnostics


def test_information_and_active_units_of_gaussians():
    """μ = x ~ N(0, τ²) in one of two dimensions: I(x; z) = ½ log(1 + τ²/σ²), q(z) = N(0, τ² + σ²), one active unit."""
    generator = np.random.default_rng(0)
    mu = np.stack([1.5 * generator.normal(size=4000), np.full(4000, 0.3)], axis=1)
    log_var = np.full_like(mu, 2 * math.log(0.5))
    z = mu + 0.5 * generator.normal(size=mu.shape)
    expected = 0.5 * math.log(1 + 1.5**2 / 0.5**2)
    assert codes.information(z, mu, log_var).mean() == pytest.approx(expected, abs=0.05)
    q = scipy.stats.norm.logpdf(z, [0, 0.3], [math.hypot(1.5, 0.5), 0.5]).sum(axis=1)
    np.testing.assert_allclose(codes.log_aggregate(z, mu, log_var)[:50], q[:50], atol=0.3)
    assert codes.active_units(mu) == 1


def test_mutual_information_and_marginal_kl_make_up_the_kl(linear):
    experiment, matrix, scale, _ = linear
    state = experiment.create_state(ppca(matrix, scale, start(experiment)[0]))
    evaluator = Evaluator(experiment)
    found = evaluator.evaluate(state, 0, 'test') | evaluator.diagnostics(state, 0, 'test')
    parts = [found[f'model/{name}'] for name in ('mutual_information', 'marginal_kl')]
    total = sum(part['value'] for part in parts)
    assert total == pytest.approx(found['model/kl']['value'], abs=2 * sum(part['ci'] for part in parts))
    assert found['model/active_units']['value'] == 2 and parts[0]['ci'] > 0


def test_ways_through_a_latent_space():
    z = np.random.default_rng(0).normal(size=(50, 3)) * [0.1, 2, 1]
    moved = codes.traversals(z, 2, 5)
    assert moved.shape == (2, 5, 3)
    np.testing.assert_allclose(moved[0, :, 1], z[:, 1].mean() + z[:, 1].std() * np.array([-3, -1.5, 0, 1.5, 3]))
    np.testing.assert_array_equal(moved[0, :, 2], z[0, 2])
    a, b = z[:4], z[4:8]
    for how in codes.INTERPOLATIONS:
        path = codes.interpolations(a, b, 7, how)
        np.testing.assert_allclose(path[:, [0, -1]], np.stack([a, b], axis=1), atol=1e-12)
    norms = np.linalg.norm(path, axis=-1)
    np.testing.assert_allclose(np.diff(norms, 2, axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(codes.interpolations(a, 2 * a, 3, 'spherical')[:, 1], 1.5 * a)


def test_a_run_draws_its_latent_space_and_is_diagnosed(tmp_path):
    fields = [('model.conditional', 'True'), ('eval.ais_temperatures', '3'), ('eval.ais_examples', '5')]
    config = config_lib.load(f'{CONFIG}:flow_prior,two_layers,smoke', fields)
    loop.train(config, tmp_path, {})
    for name in ('traversals', 'interpolations'):
        assert (tmp_path / 'plots' / f'{name}.png').stat().st_size > 500
    written = config_lib.json.loads((tmp_path / 'evaluation.json').read_text())
    assert written['model/ais_nll']['n'] == 5 and written['model/active_units2']['n'] == 180
    warm, cold = (
        Evaluator(experiment).sample(state, 0, 20)
        for experiment, state in (open_run(tmp_path), open_run(tmp_path, [('eval.temperature', '0')]))
    )
    assert (warm[0] != warm[10]).any() and (cold[0] == cold[10]).all()  # of the same class


def test_a_run_of_earlier_days_opens():
    """Its config lacks the fields that came later; the same numbers come out."""
    config = config_lib.load(f'{CONFIG}:smoke', [])
    early = config.copy_and_resolve_references()
    for group, names in (
        ('task', ('estimator', 'free_bits', 'tc_weight')),
        ('model', ('prior', 'pseudo_inputs', 'posterior', 'posterior_context', 'flow', 'stochastic_layers', 'second')),
        ('eval', ('k_curve', 'ais_temperatures', 'ais_chains', 'ais_examples', 'temperature', 'interpolation')),
    ):
        for name in names:
            del early[group][name]
    found = []
    for experiment in (Experiment(config), Experiment(early)):
        params, extra = start(experiment)
        batch = experiment.preprocess(experiment.examples('valid', np.arange(3)), context(3))
        found.append(jax.tree.leaves((params, experiment.task.evaluate(params, extra, batch, context(3)))))
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
        (dict(task__k=2, task__free_bits=0.1), 'task.free_bits: 0.1; 0 or more, and 0 where task.k'),
        (dict(task__tc_weight=1.0, model__posterior='iaf'), 'task.tc_weight: wants model.posterior gaussian'),
        (dict(task__likelihood='logistic'), "task.likelihood: 'logistic'"),
        (dict(eval__temperature=-1.0), 'eval.temperature: -1.0; 0 or more'),
        (dict(model__flow__activation='swoosh', model__prior='flow'), "model.flow.activation: 'swoosh'"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError) as error:
        make(**fields)
    assert message in str(error.value)
