"""The VAE's maths against closed forms and quadrature, and corrections of the article (aigc_jax/tasks/README.md)."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures, Reconstructs, Samples
from aigc_jax.core.types import Extra
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.tasks import likelihoods

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'vae.py')


def make(arg='smoke', **overrides):
    fields = [(name.replace('__', '.'), str(value)) for name, value in overrides.items()]
    return Experiment(config_lib.load(f'{CONFIG}:{arg}', fields))


def linear_gaussian(weight: float, scale: float, experiment):
    """Parameters under which p(x given z) = N(w z, s²) and q(z given x) is the exact posterior, in each dimension.

    With x (2,), z (2,) and p(z) = N(0, I): p(x) = N(0, w² + s²), p(z given x) = N(w x / (w² + s²), s² / (w² + s²)).
    """
    state = experiment.create_state()
    params = jax.tree.map(np.zeros_like, jax.device_get(state.params['model']))
    total = weight**2 + scale**2
    encoder = params['encoder']['mlp']['Dense_0']
    encoder['kernel'][:, :2] = np.eye(2) * weight / total
    encoder['bias'][2:] = math.log(scale**2 / total)
    params['decoder']['mlp']['Dense_0']['kernel'][:] = np.eye(2) * weight
    params['log_scale'] = np.float32(math.log(scale))
    return {'model': params}, total


@pytest.fixture(scope='module')
def linear():
    return make(
        'points,smoke',
        data__name='gaussian2d',
        model__encoder__features='()',
        model__decoder__features='()',
        eval__k=64,
    )


def test_kl_is_half_the_sum_and_never_negative():
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    assert likelihoods.gaussian_kl_terms(one, zero)[0, 0] == pytest.approx(0.5)
    assert likelihoods.gaussian_kl_terms(zero, one)[0, 0] == pytest.approx((math.e - 2) / 2)  # σ² = e: 0.35914
    assert likelihoods.gaussian_kl_terms(zero, zero)[0, 0] == 0
    draws = np.random.default_rng(0).normal(size=(2, 1000, 3))
    assert (likelihoods.gaussian_kl_terms(*jnp.asarray(draws)) > 0).all()


def test_kl_and_log_normal_agree_with_scipy():
    mu, log_var, x = np.random.default_rng(1).normal(size=(3, 5, 4))
    expected = scipy.stats.norm.logpdf(x, mu, np.exp(log_var / 2)).sum(-1)
    np.testing.assert_allclose(likelihoods.log_normal(x, mu, log_var), expected, rtol=1e-5)


def test_log_normal_of_all_pairs_is_the_sum_of_differences():
    """As VampPrior meets it: 40 dimensions, z drawn from some of the Gaussians, whose means lie far from 0."""
    draw = np.random.default_rng(0).normal
    mu, log_var = 5 + 2 * draw(size=(30, 40)), draw(size=(30, 40)) - 2
    z = (mu + np.exp(log_var / 2) * draw(size=mu.shape)).reshape(6, 5, 40)
    expected = scipy.stats.norm.logpdf(z[:, :, None], mu, np.exp(log_var / 2)).sum(axis=-1)
    mixture = lambda pairs: lambda *given: jnp.sum(jax.nn.logsumexp(pairs(*given), axis=-1))
    by_differences = lambda z, mu, log_var: likelihoods.log_normal(z[:, :, None], mu, log_var)
    given = [jnp.asarray(a, jnp.float32) for a in (z, mu, log_var)]
    found = likelihoods.log_normal_pairs(*given)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-3)
    gradients = (jax.grad(mixture(f), (0, 1, 2))(*given) for f in (likelihoods.log_normal_pairs, by_differences))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_bernoulli_agrees_with_scipy():
    logits = np.random.default_rng(2).normal(size=(5, 7)) * 3
    x = (np.random.default_rng(3).random((5, 7)) < 0.5).astype(float)
    expected = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits)).sum(-1)
    np.testing.assert_allclose(likelihoods.log_bernoulli(x, logits, None), expected, rtol=1e-5)


def test_bernoulli_is_exact_at_both_ends_and_so_are_its_gradients():
    logits = np.concatenate([np.random.default_rng(8).normal(size=(3, 50)) * 5, [[-1e4] * 50, [1e4] * 50, [0.0] * 50]])
    x = np.random.default_rng(9).random((6, 50))
    for d in (1, 15, 16, 17, 50):
        l, ours = logits[:, :d], x[:, :d]
        expected = (ours * l - np.logaddexp(0, l)).sum(-1)
        np.testing.assert_allclose(
            likelihoods.log_bernoulli(ours, jnp.asarray(l), None), expected, rtol=1e-5, atol=2e-6
        )
        gradients = jax.grad(lambda x, l: likelihoods.log_bernoulli(x, l, None).sum(), (0, 1))(
            jnp.asarray(ours), jnp.asarray(l)
        )
        np.testing.assert_allclose(gradients[0], l, rtol=1e-6)
        np.testing.assert_allclose(gradients[1], ours - scipy.special.expit(l), rtol=1e-5, atol=1e-6)


def test_exact_posterior_makes_every_bound_the_likelihood(linear):
    """With q the posterior, log w = log p(x) for every z: ELBO, IWAE bound and NLL are all exact."""
    params, total = linear_gaussian(0.8, 0.6, linear)
    x = np.random.default_rng(4).normal(size=(50, 2)).astype(np.float32)
    ctx = rng.context(0, 'eval', 0, jnp.arange(50))
    measure, batch = jax.jit(linear.task.get(Measures).per_example), {'x': jnp.asarray(x)}
    found = measure(params, Extra({}, {}), batch, ctx)
    expected = scipy.stats.norm.logpdf(x, 0, math.sqrt(total)).sum(-1)
    np.testing.assert_allclose(-found['model/nll'], expected, atol=2e-4)
    np.testing.assert_allclose(found['model/bits_per_dim'], -expected / 2 / math.log(2), atol=2e-4)
    # The ELBO has one draw of the reconstruction term; its KL is in closed form, so it is exact in the mean alone.
    contexts = [rng.context(s, 'eval', 0, jnp.arange(50)) for s in range(40)]
    many = [measure(params, Extra({}, {}), batch, ctx) for ctx in contexts]
    mean = np.mean([m['model/elbo'] for m in many])
    assert mean == pytest.approx(expected.mean(), abs=0.05)


def test_loss_is_the_negative_elbo(linear):
    """−ELBO = reconstruction + KL, both summed over dimensions and averaged over the batch."""
    params, _ = linear_gaussian(0.8, 0.6, linear)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 2)), jnp.float32)
    ctx = rng.context(0, 'train', 0, jnp.arange(4))
    value, (metrics, *_) = linear.task.rounds[0][0].loss(params, Extra({}, {}), {'x': x}, ctx)
    mu, log_var = x * 0.8, np.full((4, 2), math.log(0.36))
    z = mu + np.exp(log_var / 2) * ctx.normal('epsilon', (1, 2))[:, 0]  # z = μ + σ ⊙ ε
    mu, z = np.asarray(mu), np.asarray(z)
    reconstruction = -scipy.stats.norm.logpdf(np.asarray(x), 0.8 * z, 0.6).sum(-1).mean()
    kl = 0.5 * (mu**2 + np.exp(log_var) - log_var - 1).sum(-1).mean()
    assert float(value) == pytest.approx(float(reconstruction + kl), rel=1e-4)
    assert float(metrics['kl']) == pytest.approx(float(kl), rel=1e-4)


def test_bound_tightens_with_k(linear):
    """L_1 ≤ L_k ≤ log p(x) where q is not the posterior (Burda et al. 2016, theorem 1)."""
    params, _ = linear_gaussian(0.8, 0.6, linear)
    params['model']['encoder']['mlp']['Dense_0']['bias'][:2] = 0.5  # a wrong mean
    x = np.random.default_rng(6).normal(size=(2000, 2)).astype(np.float32)
    ctx = rng.context(0, 'eval', 0, jnp.arange(len(x)))
    loss = {}
    for k in (1, 16):
        task = make(
            'points,smoke', data__name='gaussian2d', model__encoder__features='()', model__decoder__features='()',
            task__k=k,
        ).task  # fmt: skip
        loss[k] = float(task.rounds[0][0].loss(params, Extra({}, {}), {'x': jnp.asarray(x)}, ctx)[0])
    exact = -scipy.stats.norm.logpdf(x, 0, 1.0).sum(-1).mean()
    assert loss[1] > loss[16] + 0.05 and loss[16] > exact - 0.02


def test_nll_agrees_with_quadrature():
    """p(x) = ∫ p(x given z) p(z) dz on a grid, for a decoder that is not linear and an encoder that is wrong."""
    experiment = make('points,smoke', model__latent_dim=1, eval__k=5000, eval__k_chunk=500)
    params = jax.device_get(experiment.create_state().params)
    x = np.random.default_rng(7).normal(size=(5, 2)).astype(np.float32)
    ctx = rng.context(0, 'eval', 0, jnp.arange(5))
    found = experiment.task.get(Measures).per_example(params, Extra({}, {}), {'x': jnp.asarray(x)}, ctx)['model/nll']
    z = np.linspace(-8, 8, 4001)
    decoder = params['model']['decoder']['mlp']
    hidden = np.maximum(z[:, None] @ decoder['Dense_0']['kernel'] + decoder['Dense_0']['bias'], 0)
    mean = hidden @ decoder['Dense_1']['kernel'] + decoder['Dense_1']['bias']
    scale = np.exp(params['model']['log_scale'])
    log_joint = scipy.stats.norm.logpdf(x[:, None], mean, scale).sum(-1) + scipy.stats.norm.logpdf(z)
    exact = -np.log(np.trapezoid(np.exp(log_joint), z, axis=1))
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_no_model_of_a_standard_normal_goes_below_its_entropy(linear):
    """2-D data from N(0, I) cost at least 1 + ln 2π = 2.8379 nats, whatever the model."""
    for weight, scale in ((0.8, 0.6), (0.0, 1.0), (0.5, 0.5)):
        params, _ = linear_gaussian(weight, scale, linear)
        state = linear.create_state(params)
        found = Evaluation(Evaluator(linear)).each(state, 0, 'test')['model/nll']
        assert found['value'] > 1 + math.log(2 * math.pi) - found['ci']
    assert 1 + math.log(2 * math.pi) == pytest.approx(2.8379, abs=1e-4)


def test_the_likelihood_must_fit_the_data():
    """Cross-entropy on data outside [0, 1] is unbounded below; the config that asks for it is refused."""
    unbounded = [
        float(likelihoods.log_bernoulli(jnp.full((1, 1), 2.0), jnp.full((1, 1), l), None)[0])
        for l in (1.0, 10.0, 100.0)
    ]
    assert unbounded[0] < unbounded[1] < unbounded[2] and unbounded[2] > 50
    with pytest.raises(Exception, match='task.likelihood: bernoulli wants images'):
        make('points,smoke', task__likelihood='bernoulli')


def test_decoder_sees_z_alone_and_reconstruction_is_not_generation():
    experiment = make()
    params = experiment.create_state().params
    ctx = rng.context(0, 'eval', 0, jnp.arange(6))
    batch = experiment.preprocess(experiment.examples('valid', np.arange(6)), ctx)
    extra = Extra({}, {})
    reconstruct = experiment.task.get(Reconstructs).reconstruct
    moved = jax.jacobian(lambda x: reconstruct(params, extra, {'x': x}, ctx))(batch['x'])
    assert np.abs(moved).max() > 0  # q(z given x) depends on x
    first = experiment.task.get(Samples).draw(params, extra, ctx, None)
    changed = {'model': {**params['model'], 'encoder': jax.tree.map(lambda p: p + 1, params['model']['encoder'])}}
    np.testing.assert_array_equal(first, experiment.task.get(Samples).draw(changed, extra, ctx, None))


def test_kl_warm_up_and_beta():
    experiment = make(task__kl_warmup_steps=10, task__beta=3.0)
    params, loss = experiment.create_state().params, experiment.task.rounds[0][0].loss
    batch = {'x': jnp.ones((3, 8, 8, 1))}
    for step, beta in ((0, 0.3), (4, 1.5), (9, 3.0), (1000, 3.0)):
        value, (metrics, *_) = loss(params, Extra({}, {}), batch, rng.context(0, 'train', step, jnp.arange(3)))
        assert float(value) == pytest.approx(float(metrics['reconstruction'] + beta * metrics['kl']), rel=1e-5)


def test_class_conditional():
    experiment = make(model__conditional=True)
    params, extra = experiment.create_state().params, Extra({}, {})
    ctx = rng.context(0, 'sample', 0, jnp.zeros(2, jnp.int32))  # the same draw twice
    samples = experiment.task.get(Samples).draw(params, extra, ctx, jnp.array([0, 7]))
    assert np.abs(samples[0] - samples[1]).max() > 0


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    experiment = make(precision='bfloat16')
    state = experiment.abstract_state
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {'float32'}
    batch = {'x': jnp.ones((3, 8, 8, 1))}
    loss = lambda p: experiment.task.rounds[0][0].loss(p, Extra({}, {}), batch, rng.context(0, 't', 0, jnp.arange(3)))[
        0
    ]
    products = [line for line in str(jax.make_jaxpr(loss)(state.params)).splitlines() if 'dot_general' in line]
    assert products and all('bf16[' in line for line in products)
    assert jax.eval_shape(loss, state.params).dtype == jnp.float32
