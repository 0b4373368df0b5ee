"""Priors, posteriors and evaluation of VAEs against Jacobians, closed forms and quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import vaes
from vaes import LINEAR, components, context, disturbed, exact, grid, latents_of, log_prior, make, ppca, start

from aigc_jax.core.capabilities import LatentSpace, SplitStatistic
from aigc_jax.core.types import Extra
from aigc_jax.metrics import latent_codes as codes
from aigc_jax.metrics.ais import ais
from aigc_jax.nn import flows
from aigc_jax.nn.flows import Flow
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.means import SplitStatistics
from aigc_jax.tasks import likelihoods
from aigc_jax.tasks.vae import bounds


@pytest.fixture(scope='module')
def linear():
    return vaes.linear_model()


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
    if context_dim:
        assert np.abs(flow.apply(params, z, h + 1)[0] - y).max() > 0.01
    if kind == 'iaf':  # of a single layer, the Jacobian is triangular
        one = Flow(kind, d, context_dim, layers=1, features=(8,), activation='tanh')
        params = disturbed(one.init(jax.random.key(0), z, h))
        jacobian = jax.vmap(jax.jacobian(lambda z, h: one.apply(params, z, h)[0]))(z, h)
        assert not np.triu(jacobian, 1).any()


def test_a_flow_has_every_activation_that_a_config_may_name():
    for activation in flows.FIELDS['activation'].choices:
        flow = Flow('realnvp', 2, 0, layers=2, features=(4,), activation=activation)
        jax.eval_shape(flow.init, jax.random.key(0), jnp.zeros((1, 2)))


@pytest.mark.parametrize('variant', ['flow_prior', 'vamp'])
def test_priors_and_flow_posteriors_integrate_to_1(variant):
    """The prior, as the difference of log w under an encoder whose posterior is known; see `log_prior`."""
    experiment = make(f'{variant},smoke')
    params = disturbed(start(experiment)[0], scale=0.1)
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
    found = vaes.evaluate(experiment, params, extra, x)
    for k in (1, 2, 5, 8):
        np.testing.assert_allclose(found[f'model/bound_k{k}'], exact(x, matrix, scale), atol=5e-4)
    np.testing.assert_allclose(-found['model/nll'], exact(x, matrix, scale), atol=5e-4)
    code = experiment.task.get(LatentSpace).encode(params, extra, {'x': jnp.asarray(x)}, context(len(x)))
    inverse = np.linalg.inv(matrix.T @ matrix + scale**2 * np.eye(2))
    np.testing.assert_allclose(code, x @ (inverse @ matrix.T).T, atol=1e-4)


def test_the_optimum_of_the_elbo_is_ppcas(linear):
    """At W = U (Λ − s² I)^½ (Tipping & Bishop 1999) and exact posteriors the gradient is 0, and not beside it.

    Of the data's own covariance; with as many latent dimensions as data, any s² below both eigenvalues is an optimum.
    """
    experiment, _, scale, x = linear
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True) + np.outer(x.mean(0), x.mean(0)))
    best = vectors @ np.diag(np.sqrt(values - scale**2))
    loss = experiment.task.rounds[0][0].loss

    def gradient(matrix):
        params, extra = ppca(matrix, scale, start(experiment)[0]), Extra({}, {})
        one = lambda p, seed: loss(p, extra, {'x': jnp.asarray(x)}, context(len(x), seed))[0]
        many = jax.jit(jax.vmap(jax.grad(one), (None, 0)))(params, jnp.arange(100))
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
    found = vaes.evaluate(experiment, params, extra, x)
    np.testing.assert_allclose(found['model/nll'], nll, atol=0.05)
    annealed = jax.jit(experiment.task.all(SplitStatistic)[1].collect)(params, extra, {'x': jnp.asarray(x)}, context(4))
    np.testing.assert_allclose(annealed['model/ais_nll'], nll, atol=0.1)
    assert 0.4 < np.mean(annealed['model/ais_acceptance']) < 0.95
    units = experiment.task.all(SplitStatistic)[0]
    summary = units.summarize(jax.jit(units.collect)(params, extra, {'x': jnp.asarray(x)}, context(4)))
    assert ('model/active_units2' in summary) == two and ('model/marginal_kl' in summary) != two


def test_ais_of_a_narrow_posterior():
    """A Gaussian likelihood 20 times as narrow as the prior, where draws from the prior alone do badly."""
    x, s = jnp.where(jnp.arange(16) % 2, 0.5, -1.5), 0.05
    log_prior = lambda z: likelihoods.log_normal(z, 0.0, 0.0)
    log_likelihood = lambda z: likelihoods.log_normal(z, x[:, None, None] * jnp.ones(3), 2 * math.log(s))
    z = context(16).normal('start', (32, 3))
    annealed = jax.jit(lambda z: ais(z, log_prior, log_likelihood, context(16), 500))(z)
    found = annealed.log_p
    expected = scipy.stats.norm.logpdf(np.asarray(x), 0, math.sqrt(1 + s**2)) * 3
    assert -0.3 < np.mean(found - expected) < 0.15 and np.abs(found - expected).max() < 1.2
    plain = jax.nn.logsumexp(log_likelihood(z), axis=1) - math.log(32)
    assert np.mean(plain - expected) < -3
    # The channel at b is Gaussian, so that its rate and distortion have closed forms.
    assert len(annealed.curve) == 10 and max(annealed.curve) == 1
    rates = []
    for b, (rate, distortion) in annealed.curve.items():
        variance = 1 / (1 + b / s**2)
        mean = np.asarray(x) * variance * b / s**2
        squares = (np.asarray(x) - mean) ** 2 + variance
        exact_distortion = 3 * (0.5 * math.log(2 * math.pi * s**2) + squares / (2 * s**2))
        assert np.mean(distortion) == pytest.approx(np.mean(exact_distortion), rel=0.05, abs=0.5), b
        exact_rate = 1.5 * (variance + mean**2 - 1 - math.log(variance))
        assert abs(np.mean(rate - exact_rate)) < 0.2, b
        rates.append(np.mean(rate))
    assert rates[-1] > 2 * rates[0]


def test_k_curve_shares_its_draws():
    log_w = np.random.default_rng(3).normal(size=(4, 12)).astype(np.float32)
    curve = bounds.k_curve(jnp.asarray(log_w))
    assert list(curve) == [1, 2, 5, 10, 12]
    np.testing.assert_allclose(curve[1], log_w.mean(axis=1), rtol=1e-5)
    halves = np.log(np.exp(log_w[:, :10].reshape(4, 2, 5)).mean(axis=2)).mean(axis=1)
    np.testing.assert_allclose(curve[5], halves, rtol=1e-5)
    np.testing.assert_allclose(curve[12], np.log(np.exp(log_w).mean(axis=1)), rtol=1e-5)


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
    halves = [mu + generator.normal(size=mu.shape) / math.sqrt(16) for _ in range(2)]  # means of 16 draws from N(μ, 1)
    assert codes.active_units(halves[0]) == 2 and codes.active_units(*halves) == 1


def test_mutual_information_and_marginal_kl_make_up_the_kl(linear):
    experiment, matrix, scale, _ = linear
    state = experiment.create_state(ppca(matrix, scale, start(experiment)[0]))
    evaluator = Evaluator(experiment)
    found = Evaluation(evaluator).each(state, 0, 'test') | SplitStatistics(evaluator).measure(state, 0, 'test')
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
