"""The GAN's losses and penalties against hand computation, corrections of the article (aigc_jax/tasks/README.md)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gans import EXTRA, linear_discriminator, losses, make

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures, Samples, ScalarField
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.tasks.gan import losses as losses_lib


def test_one_discriminator_two_log_two_at_one_half():
    zero = jnp.zeros(3)
    d, g = losses_lib.nonsaturating(zero, zero)
    np.testing.assert_allclose(d, 2 * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(g, math.log(2), rtol=1e-6)
    real, fake = jnp.array([1.5]), jnp.array([-0.5])
    sigma = lambda l: 1 / (1 + math.exp(-l))
    assert losses_lib.nonsaturating(real, fake)[0][0] == pytest.approx(
        -math.log(sigma(1.5)) - math.log(1 - sigma(-0.5))
    )


@pytest.mark.parametrize('name', losses_lib.LOSSES)
def test_the_generator_raises_the_logit_of_its_samples(name):
    """L_G falls as D(G(z)) rises; L_D falls as D(x) rises and as D(G(z)) falls: of least squares between 0 and 1."""
    real, fake = jnp.array([0.3]), jnp.array([0.2])
    d_real, d_fake = jax.grad(lambda r, f: losses_lib.LOSSES[name](r, f)[0][0], (0, 1))(real, fake)
    g_fake = jax.grad(lambda f: losses_lib.LOSSES[name](real, f)[1][0])(fake)
    assert d_real[0] < 0 < d_fake[0] and g_fake[0] < 0


def test_hand_values():
    real, fake = jnp.array([0.5]), jnp.array([-2.0])
    assert losses_lib.hinge(real, fake)[0][0] == pytest.approx(0.5) and losses_lib.hinge(real, fake)[1][
        0
    ] == pytest.approx(2.0)
    assert losses_lib.wasserstein(real, fake)[0][0] == pytest.approx(-2.5)
    assert losses_lib.relativistic(real, fake)[0][0] == pytest.approx(math.log1p(math.exp(-2.5)))
    assert losses_lib.relativistic(real, fake)[1][0] == pytest.approx(math.log1p(math.exp(2.5)))


def test_penalties_of_a_linear_discriminator():
    """∇D = w everywhere: R1 = R2 = ‖w‖² = 25, the gradient penalty (‖w‖ − 1)² = 16."""
    common = {'task__loss': 'wasserstein', 'model__discriminator__features': '()'}
    batch = {'x': jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)}
    plain = make('ring8,smoke', task__r1=0.0, task__r2=0.0, **common)
    params = linear_discriminator(plain, [3.0, 4.0])
    base = float(losses(plain, params, batch)['discriminator'][0])
    added = {
        'r1': (make('ring8,smoke', task__r1=0.2, task__r2=0.0, **common), 0.1 * 25),
        'r2': (make('ring8,smoke', task__r1=0.0, task__r2=0.4, **common), 0.2 * 25),
        'gradient_penalty': (
            make('ring8,smoke', task__r1=0.0, task__r2=0.0, task__gradient_penalty=10.0, **common), 10 * 16
        ),
    }  # fmt: skip
    for name, (experiment, penalty) in added.items():
        value, (metrics, *_) = losses(experiment, params, batch)['discriminator']
        assert float(value) == pytest.approx(base + penalty, rel=1e-4), name
        assert name in metrics
    assert 'r1' not in losses(plain, params, batch)['discriminator'][1][0]


def test_penalties_are_annealed():
    """By 1e-2 over 40 steps: a tenth of R1 = 25 is left after 20."""
    common = {'task__loss': 'wasserstein', 'model__discriminator__features': '()', 'task__r2': 0.0}
    batch = {'x': jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)}
    plain = make('ring8,smoke', task__r1=0.0, **common)
    annealed = make('ring8,smoke', task__r1=0.2, task__penalty_schedule__decay_rate=1e-2, **common)
    params = linear_discriminator(plain, [3.0, 4.0])
    for step, factor in ((0, 1), (20, 0.1), (40, 0.01)):
        base, value = (float(losses(e, params, batch, step)['discriminator'][0]) for e in (plain, annealed))
        assert value - base == pytest.approx(0.1 * 25 * factor, rel=1e-3)


def test_each_penalty_is_taken_where_its_article_has_it():
    """R1 at the data, R2 at the samples, WGAN's on the lines between them, DRAGAN's around the data: against the
    gradient by central differences, for a discriminator that bends."""
    fields = dict.fromkeys(('r1', 'r2', 'gradient_penalty', 'dragan'), 1.0) | {'dragan_std': 0.7}
    fields = {f'task__{name}': value for name, value in fields.items()}
    experiment = make('ring8,smoke', model__discriminator__activation='tanh', **fields)
    params = experiment.create_state().params
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
    metrics = losses(experiment, params, {'x': x})['discriminator'][1][0]
    D = lambda x: np.asarray(experiment.task.get(ScalarField).value(params, EXTRA, x, None), np.float64)
    ctx = rng.context(0, 'train', 0, jnp.arange(4))
    fake = experiment.task.get(Samples).draw(params, EXTRA, ctx, None)
    u = ctx.uniform('interpolate')[:, None]
    places = {
        'r1': x, 'r2': fake, 'gradient_penalty': u * x + (1 - u) * fake, 'dragan': x + 0.7 * ctx.normal('dragan', (2,)),
    }  # fmt: skip
    for name, at in places.items():
        steps = np.eye(2) * 1e-2
        gradient = np.stack([(D(at + h) - D(at - h)) / 2e-2 for h in steps.astype(np.float32)], -1)
        norm = np.sqrt((gradient**2).sum(-1))
        expected = (norm**2).mean() if name in ('r1', 'r2') else ((norm - 1) ** 2).mean()
        assert metrics[name] == pytest.approx(expected, rel=2e-2), name


def test_gradients_go_where_they_should():
    """The discriminator's turn leaves the generator alone and the other way round; both reach all their parameters."""
    experiment = make('ring8,smoke')
    params = experiment.create_state().params
    batch = {'x': jnp.asarray(np.random.default_rng(2).normal(size=(8, 2)), jnp.float32)}
    ctx = rng.context(0, 'train', 0, jnp.arange(8))
    state = experiment.create_state()
    feed = next(experiment.feeds(0))
    after, _ = experiment.train_call()(state, experiment.seed_array, experiment.resident_data(), feed)
    for turns in experiment.task.rounds:
        for turn in turns:
            grads = jax.jit(jax.grad(lambda p: turn.loss(p, EXTRA, batch, ctx)[0]))(params)[turn.player]
            for leaf in jax.tree.leaves(grads):
                # The output bias of D is free under a relativistic loss: only differences of logits count.
                assert np.abs(leaf).max() > 0 or leaf.shape == (1,)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), jax.device_get(after.params), jax.device_get(params))
    assert all(jax.tree.leaves(moved['generator']))


@pytest.mark.parametrize(
    'fields, players',
    [
        ({}, [['discriminator'], ['generator']]),
        ({'task__n_critic': 3}, [['discriminator']] * 3 + [['generator']]),
        ({'task__simultaneous': True}, [['discriminator', 'generator']]),
    ],
)
def test_rounds(fields, players):
    rounds = make(**fields).task.rounds
    assert [[turn.player for turn in turns] for turns in rounds] == players


def test_images_are_bounded_and_points_are_not():
    ctx = rng.context(0, 'sample', 0, jnp.arange(50))
    images = make()
    big = jax.tree.map(lambda p: 100 * p, images.create_state().params)
    samples = images.task.get(Samples).draw(big, EXTRA, ctx, None)
    assert samples.shape == (50, 8, 8, 1) and samples.min() >= -1 and samples.max() <= 1
    points = make('ring8,smoke')
    big = jax.tree.map(lambda p: 100 * p, points.create_state().params)
    assert np.abs(points.task.get(Samples).draw(big, EXTRA, ctx, None)).max() > 10


def test_samples_and_surface_are_in_data_units():
    images = make()
    state = images.create_state()
    pixels = Evaluator(images).sample(state._replace(params=jax.tree.map(lambda p: 100 * p, state.params)), 0, 50)
    assert 0 <= pixels.min() < 0.1 and 0.9 < pixels.max() <= 1
    unit, standard = (
        make('grid25,smoke', data__scale=scale, optim__generator__ema_decay=0.0) for scale in ('unit', 'standard')
    )
    state, offset, factor = unit.create_state(), *standard.scaling
    model_units = Evaluator(unit).sample(state, 0, 50)
    np.testing.assert_allclose(
        Evaluator(standard).sample(state, 0, 50), model_units * factor + offset, rtol=1e-5, atol=1e-6
    )
    xs, ys, values, _ = Evaluator(standard).surface(state, 0, (-4.0, 4.0, -2.0, 2.0))
    at = (np.array([[xs[7], ys[90]]]) - offset) / factor
    want = standard.task.get(ScalarField).value(
        state.params, EXTRA, jnp.asarray(at, jnp.float32), rng.context(0, 'score', 0, jnp.arange(1))
    )
    np.testing.assert_allclose(values[90, 7], want[0], rtol=1e-4)


def test_class_conditional():
    experiment = make(model__conditional=True)
    params = experiment.create_state().params
    ctx = rng.context(0, 'sample', 0, jnp.zeros(2, jnp.int32))  # the same z twice
    samples = experiment.task.get(Samples).draw(params, EXTRA, ctx, jnp.array([0, 7]))
    assert np.abs(samples[0] - samples[1]).max() > 0
    x = jnp.zeros((2, 8, 8, 1))
    logits = experiment.task.get(Measures).per_example(params, EXTRA, {'x': x, 'label': jnp.array([0, 7])}, ctx)
    assert logits['discriminator/real_logit'][0] != logits['discriminator/real_logit'][1]
