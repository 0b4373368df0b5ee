"""Studies that need no files: every claim can be run and is measured; known values without a training."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict
from vaes import context, evaluate, ppca, start

from aigc_jax import reports
from aigc_jax.core import user_code
from aigc_jax.core.capabilities import SplitStatistic
from aigc_jax.core.types import Extra
from aigc_jax.data.gaussian_mixture import MIXTURES
from aigc_jax.metrics.names import named
from aigc_jax.metrics.ngram import KneserNey
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.studies import planning
from aigc_jax.studies.claims import Published, Versus
from aigc_jax.studies.rows import texts

STUDIES = pathlib.Path(__file__).parents[2] / 'configs' / 'studies'
FILES = [STUDIES / f'{name}.py' for name in ('oracles', 'moons', 'gan_stability', 'article_claims')]


@functools.cache
def plan(path) -> planning.Plan:
    """Read as the command reads it: a config, field, evaluation or number of seeds that is wrong raises."""
    return planning.load(str(path))


def own(name: str):
    return user_code.load(STUDIES / 'own' / f'{name}.py', 'config')


def experiment_of(name: str, **more) -> Experiment:
    """Of a claim of the study of oracles, with other fields on top."""
    setting = plan(STUDIES / 'oracles.py').settings[name]
    more = {field.replace('__', '.'): value for field, value in more.items()}
    return Experiment(config_lib.load(setting.config, texts(setting.row.fields | more)))


def expected(name: str) -> Published:
    return plan(STUDIES / 'oracles.py').claims[name].expected


def metrics(experiment: Experiment) -> set[str]:
    """Of the final evaluation, as far as they are known before anything is computed."""
    found = {name for report in reports.of(experiment) for name in report.names(experiment)}
    examples = experiment.examples('test', np.arange(2))

    def collected(collect):
        params, extra = experiment.task.init(jax.random.key(0))
        ctx = context(2)
        return collect(params, extra, experiment.preprocess(examples, ctx), ctx)

    for statistic in experiment.task.all(SplitStatistic):
        found |= set(jax.eval_shape(functools.partial(collected, statistic.collect)))
    if order := experiment.config.eval.get('ngram_order'):
        found.add(f'{order}-gram/nats_per_token')
    return found


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_claim_can_be_run_and_is_measured(path):
    found, known = plan(path), {}
    for claim in found.study.claims:
        config = ConfigDict(found.settings[claim.name].resolved)
        if 'num_examples' in config.data:
            config.data.num_examples = 100  # the same metrics, sooner
        key = config_lib.to_json(config)
        if key not in known:
            known[key] = metrics(Experiment(config))
        for metric in (claim.metric, *claim.floors):
            assert named(metric, known[key]) is not None, (claim.name, metric)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_registration_is_the_same_each_time(path):
    assert planning.load(str(path)).registration == plan(path).registration


# Oracles


def test_a_vae_with_the_parameters_of_ppca_has_the_values_of_the_study():
    """By the eigenvectors of the covariance, apart from the scikit-learn that the study uses."""
    experiment = experiment_of('ppca-train')
    images = {split: source.arrays['x'] / 16 for split, source in experiment.dataset.splits.items()}
    train = images['train']
    flat = train.reshape(len(train), -1).astype(np.float64)
    mean, latent = flat.mean(axis=0), experiment.config.model.latent_dim
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    values, vectors = values[::-1], vectors[:, ::-1][:, :latent]
    noise = values[latent:].mean()
    matrix = vectors * np.sqrt(values[:latent] - noise)
    posterior = np.linalg.inv(matrix.T @ matrix + noise * np.eye(latent))

    params, _ = start(experiment)
    params = jax.tree.map(np.zeros_like, params['model'])
    encoder, decoder = (params[name]['mlp']['Dense_0'] for name in ('encoder', 'decoder'))
    encoder['kernel'][:, :latent] = (posterior @ matrix.T).T
    encoder['bias'][:latent] = -posterior @ matrix.T @ mean
    encoder['bias'][latent:] = np.log(noise * np.diag(posterior))
    decoder['kernel'][:], decoder['bias'][:] = matrix.T, mean
    params['log_scale'] = np.float32(0.5 * math.log(noise))
    of = {
        split: evaluate(experiment, {'model': params}, Extra({}, {}), x.astype(np.float32))
        for split, x in images.items()
    }
    near = functools.partial(pytest.approx, abs=2e-3)
    assert np.mean(of['train']['model/nll']) == near(expected('ppca-train').value)
    assert np.mean(of['test']['model/nll']) == near(expected('ppca-test').value)
    assert np.mean(of['train']['model/kl']) == near(expected('ppca-rate').value)
    # One draw of z: √(2 · latent) / 2 nats an image, four standard errors.
    spread = 4 * math.sqrt(latent / 2 / len(train))
    assert np.mean(of['train']['model/elbo']) == pytest.approx(expected('ppca-elbo').value, abs=spread)


def test_quadrature_of_a_linear_decoder_is_the_gaussian_in_closed_form():
    experiment = experiment_of(
        'quadrature', model__encoder__features=(), model__decoder__features=(), eval__k=8, eval__k_chunk=8
    )
    matrix, scale = np.array([[1.2, -0.4], [0.6, 0.8]]), 0.5  # orthogonal columns, so that the posterior is exact
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    collect, begin = jax.jit(experiment.task.all(SplitStatistic)[-1].collect), start(experiment)[0]
    found, wrong = (
        collect(ppca(matrix, scale, begin, beside), Extra({}, {}), {'x': jnp.asarray(x)}, context(20))
        for beside in (0.0, 1.0)  # of the posterior's mean
    )
    exact = scipy.stats.multivariate_normal(np.zeros(2), matrix @ matrix.T + scale**2 * np.eye(2)).logpdf(x)
    np.testing.assert_allclose(-found['model/quadrature_nll'], exact, atol=1e-4)
    np.testing.assert_allclose(found['model/quadrature_gap'], 0, atol=5e-4)
    np.testing.assert_allclose(found['model/quadrature_coarse'], 0, atol=1e-4)
    np.testing.assert_array_equal(wrong['model/quadrature_nll'], found['model/quadrature_nll'])
    assert np.mean(wrong['model/quadrature_gap']) > 0.1 > expected('quadrature').tolerance


def test_kneser_ney_finds_the_chain_and_a_lower_order_does_not():
    markov = own('markov')
    texts = markov.load(None)
    index = {letter: i for i, letter in enumerate(markov.LETTERS)}
    train, test = (np.array([index[letter] for letter in texts[split]]) for split in ('train', 'test'))
    claim = expected('kneser-ney')
    found = {order: KneserNey(train, order, len(index)).nats(test)[1:].mean() for order in (2, 3)}
    assert found[3] == pytest.approx(claim.value, abs=claim.tolerance)
    assert found[2] > claim.value + 0.4


def test_the_text_has_the_entropy_of_the_chain():
    """Rate Σ π(a, b) H(c given a b), π the eigenvector of the pairs."""
    markov = own('markov')
    p = markov.transitions()
    step = np.zeros((6, 6, 6, 6))  # from (a, b) to (b, c)
    for b in range(6):
        step[:, b, b, :] = p[:, b]
    values, vectors = np.linalg.eig(step.reshape(36, 36).T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary = stationary / stationary.sum()
    rate = -(stationary[:, None] * (p * np.log(p)).reshape(36, 6)).sum()
    assert markov.nats(markov.load(None)['test']) == pytest.approx(rate, abs=0.02)  # a sample of 30,000 letters
    assert markov.nats('abc') == pytest.approx(-math.log(p[0, 1, 2]))


def test_the_points_have_the_density_that_their_study_says():
    gaussian, entropy = own('gaussian'), 1 + math.log(2 * math.pi)
    x = gaussian.load(None)['train']['x']
    np.testing.assert_allclose(x.mean(axis=0), gaussian.MEAN, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), gaussian.COVARIANCE, atol=0.03)
    known = entropy + 0.5 * math.log(np.linalg.det(gaussian.COVARIANCE))
    assert expected('gaussian-flow').value == pytest.approx(known, abs=0.03)
    assert expected('entropy-flow').value == pytest.approx(entropy, abs=1e-6)
    assert expected('standard-flow').value == pytest.approx(entropy, abs=0.03)


# Published values


def test_moons_compares_the_rows_of_the_figure():
    found = plan(STUDIES / 'moons.py')
    assert len(found.claims) == 14 and found.study.seeds == 10
    values = {c.name: c.expected.value for c in found.study.claims if isinstance(c.expected, Published)}
    assert values['fm-euler'] > values['fm-adaptive'] and values['class-ot-adaptive'] > values['class-c2ot-adaptive']
    settings = {claim.name: found.settings[claim.name].resolved for claim in found.study.claims}
    assert {config.task.source for config in settings.values()} == {'eight_gaussians'}
    assert settings['class-c2ot-euler'].task.coupling == 'class_optimal'
    assert settings['class-ot-euler'].task.coupling == 'optimal' and settings['class-ot-euler'].model.conditional
    for claim in found.study.claims:
        if isinstance(claim.expected, Versus):  # of the runs of a row of the figure
            assert any(found.settings[name] is found.settings[claim.name] for name in values)


def test_the_share_of_gans_is_of_all_modes():
    found = plan(STUDIES / 'gan_stability.py')
    for claim in found.study.claims:
        modes = len(MIXTURES[found.settings[claim.name].resolved.data.name]().means)
        assert claim.reach in (None, modes) and found.seeds(claim) == 64
