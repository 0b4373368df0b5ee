"""Losses, penalties and regularizers of adversarial players against hand computation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gans import CONFIG, linear_discriminator, make
from ml_collections import ConfigDict

from aigc_jax.core import optim, rng
from aigc_jax.core.capabilities import Measures, Samples, ScalarField
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.runs import config as config_lib
from aigc_jax.tasks.gan import augmentation, losses, regularizers

LINEAR = {'model__discriminator__features': '()'}
PLAIN = {'task__r1': 0.0, 'task__r2': 0.0}
POINTS = {'arg': 'ring8,smoke', **LINEAR, **PLAIN}
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
CTX = rng.context(0, 'train', 0, jnp.arange(8))


compiled = functools.cache(jax.jit)


def turns(experiment, params, batch, step=0, stats=None):
    """{player: (value, metrics, stats)} of each turn; `step` may be several, then a list of these."""
    extra = Extra(experiment.create_state().stats if stats is None else stats, {})
    found = {}
    for player, loss in {turn.player: turn.loss for turns in experiment.task.rounds for turn in turns}.items():
        rows = []
        for s in np.atleast_1d(step):
            ctx = rng.Context(CTX.key, CTX.index, jnp.int32(s))
            value, (metrics, new, *_) = compiled(loss)(params, extra, batch, ctx)
            rows.append((value, metrics, new.stats))
        found[player] = rows if np.ndim(step) else rows[0]
    return found


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_hand_values():
    real, fake = jnp.array([0.5]), jnp.array([-2.0])
    d, g = losses.saturating(real, fake)
    assert d[0] == pytest.approx(-math.log(sigma(0.5)) - math.log(1 - sigma(-2))) and g[0] == pytest.approx(
        math.log(1 - sigma(-2))
    )
    d, g = losses.least_squares(real, fake)
    assert d[0] == pytest.approx(0.5 * 0.25 + 0.5 * 4) and g[0] == pytest.approx(0.5 * 9)


def test_dragan_of_a_linear_discriminator():
    """∇D = w: 10 · (‖w‖ − 1)² = 160, wherever it is taken."""
    params = linear_discriminator(make(**POINTS), [3.0, 4.0])
    base = turns(make(**POINTS), params, {'x': X})['discriminator'][0]
    value, metrics, _ = turns(make(**POINTS, task__dragan=10.0), params, {'x': X})['discriminator']
    assert value - base == pytest.approx(160, rel=1e-4) and metrics['dragan'] == pytest.approx(16, rel=1e-5)


def test_rare_penalties_average_to_the_same():
    fields = {**POINTS, 'task__r1': 0.2, 'task__dragan': 1.0, 'task__penalty_schedule__decay_rate': 1.0}
    always, rarely = (make(**fields, task__penalty_every=k) for k in (1, 4))
    params = linear_discriminator(always, [3.0, 4.0])
    always, rarely = (turns(e, params, {'x': X}, range(8))['discriminator'] for e in (always, rarely))
    mean = lambda rows: np.mean([row[0] for row in rows])
    assert mean(rarely) == pytest.approx(mean(always), rel=1e-5)
    assert np.mean([row[1]['r1'] for row in rarely]) == pytest.approx(25, rel=1e-5)
    assert [row[1]['r1'] > 0 for row in rarely] == [True, False, False, False] * 2


def test_rare_penalties_reach_the_gradient():
    """k times the gradient of the penalty on the first step, none on the second; steps stay fused."""
    plain, rarely, always = (make(**{**POINTS, **more}) for more in (
        {}, {'task__r1': 0.2, 'task__penalty_every': 2}, {'task__r1': 0.2}))  # fmt: skip
    params = linear_discriminator(plain, [3.0, 4.0])

    def gradient(experiment, step):
        loss = experiment.task.rounds[0][0].loss
        ctx = rng.context(0, 'train', step, jnp.arange(8))
        grads = jax.jit(jax.grad(lambda p: loss(p, Extra({}, {}), {'x': X}, ctx)[0]))(params)['discriminator']
        return np.asarray(grads['mlp']['Dense_0']['kernel'])[:, 0]

    np.testing.assert_allclose(gradient(always, 0) - gradient(plain, 0), 0.2 * np.array([3.0, 4.0]), rtol=1e-4)
    np.testing.assert_allclose(gradient(rarely, 0) - gradient(plain, 0), 0.4 * np.array([3.0, 4.0]), rtol=1e-4)
    np.testing.assert_allclose(gradient(rarely, 1), gradient(plain, 1), rtol=1e-6)
    call, state = rarely.train_call(), rarely.create_state()
    feed = next(rarely.feeds(0))
    metrics = call(state, rarely.seed_array, rarely.resident_data(), feed)[1]
    assert [float(r1) > 0 for r1 in metrics['discriminator/r1']] == [True, False] * 5


def test_lecam():
    """α starts as the mean of the first step; a second step with the same logits is pulled to it."""
    real, fake = jnp.array([1.0, 3.0]), jnp.array([-1.0, -2.0])
    first, stats = regularizers.lecam(real, fake, regularizers.start_lecam(), 0.9)
    assert first == pytest.approx((1 + 9) / 2 + (1 + 4) / 2)  # nothing seen yet: α = 0
    second, stats = regularizers.lecam(real, fake, stats, 0.9)
    assert second == pytest.approx((2.5**2 + 4.5**2) / 2 + (3**2 + 4**2) / 2, rel=1e-5)  # α_F = −1.5, α_R = 2
    _, stats = regularizers.lecam(real + 1, fake, stats, 0.9)
    mean = (2 * 0.9**2 + 2 * 0.9 + 3) / (0.9**2 + 0.9 + 1)
    assert stats['real'] / stats['weight'] == pytest.approx(mean, rel=1e-5)


def test_lecam_is_added_and_its_averages_are_kept():
    experiment = make(**POINTS, task__lecam=0.3)
    params = linear_discriminator(experiment, [1.0, -1.0])
    base = turns(make(**POINTS), params, {'x': X})['discriminator']
    value, metrics, stats = turns(experiment, params, {'x': X})['discriminator']
    fake = experiment.task.get(Samples).draw(params, Extra({}, {}), CTX, None)
    real, fake = np.asarray(X[:, 0] - X[:, 1]), np.asarray(fake[:, 0] - fake[:, 1])
    assert value - base[0] == pytest.approx(0.3 * ((real**2).mean() + (fake**2).mean()), rel=1e-4)
    assert stats['lecam']['real'] == pytest.approx(0.01 * real.mean(), rel=1e-3)
    value, *_ = turns(experiment, params, {'x': X}, stats=stats)['discriminator']
    pulled = ((real - fake.mean()) ** 2).mean() + ((fake - real.mean()) ** 2).mean()
    assert value - base[0] == pytest.approx(0.3 * pulled, rel=1e-4)


def test_variants_have_the_settings_of_their_articles():
    """WGAN's optimizer is PyTorch's RMSprop with its defaults, α = 0.99 and ε beside the root."""
    wgan, sngan = (config_lib.load(f'{CONFIG}:{variant}', []) for variant in ('wgan', 'sngan'))
    assert sngan.task.n_critic == wgan.task.n_critic == 5
    for player in ('discriminator', 'generator'):
        params = {'p': jnp.zeros(())}
        config = ConfigDict({**wgan.optim[player], 'weight_decay_regex': '', 'clip_weights': 0.0})
        optimizer = optim.optimizer(config, params, 100, f'optim.{player}')
        state, square = optimizer.init(params), 0.0
        for g in (1e-5, 2.0, -0.5):
            updates, state = optimizer.update({'p': jnp.float32(g)}, state, params)
            square = 0.99 * square + 0.01 * g**2
            assert updates['p'] == pytest.approx(-5e-5 * g / (math.sqrt(square) + 1e-8), rel=1e-4)


def test_packs():
    x = jnp.arange(2 * 2 * 3 * 4).reshape(4, 2, 3, 2).astype(jnp.float32)
    np.testing.assert_array_equal(regularizers.pack(x, 1), x)
    packs = regularizers.pack(x, 2)
    assert packs.shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(packs[1, ..., :2], x[2])
    np.testing.assert_array_equal(packs[1, ..., 2:], x[3])
    points = regularizers.pack(x[:, 0, 0], 4)
    np.testing.assert_array_equal(points, x[:, 0, 0].reshape(1, 8))
    rolled = regularizers.pack_all(x, 2)
    np.testing.assert_array_equal(rolled[2, ..., 2:], x[1])
    with pytest.raises(UserError, match='task.packing: 4 examples'):
        regularizers.pack(x, 3)


def test_packing():
    """D = w · (x₁, x₂), so the logit of a pack is the sum of two; one example a pack is none."""
    packed, single = (make(**{**POINTS, 'task__loss': 'wasserstein', 'task__r1': 2.0}, task__packing=m) for m in (2, 1))
    both = linear_discriminator(packed, [3.0, 4.0, 1.0, 2.0])
    assert packed.create_state().params['discriminator']['mlp']['Dense_0']['kernel'].shape == (4, 1)
    value, metrics, _ = turns(packed, both, {'x': X})['discriminator']
    weights = np.tile([[3.0, 4.0], [1.0, 2.0]], (4, 1))
    fake = np.asarray(packed.task.get(Samples).draw(both, Extra({}, {}), CTX, None))
    logits = [np.sum(np.asarray(a) * weights, -1).reshape(4, 2).sum(-1).mean() for a in (X, fake)]
    assert metrics['real_logit'] == pytest.approx(logits[0], rel=1e-4)
    assert value == pytest.approx(logits[1] - logits[0] + 30, rel=1e-4)  # R1: ‖w‖² of the whole pack
    plain = make(**{**POINTS, 'task__loss': 'wasserstein', 'task__r1': 2.0})
    params = linear_discriminator(single, [3.0, 4.0])
    assert turns(single, params, {'x': X}) == turns(plain, params, {'x': X})
    total, count = packed.task.get(Measures).per_example(both, Extra({}, {}), {'x': X}, CTX)['discriminator/real_logit']
    assert count.tolist() == [0, 1] * 4  # packs that share no example
    later_first = np.sum(np.asarray(X) * np.tile([[1.0, 2.0], [3.0, 4.0]], (4, 1)))
    assert float(total.sum()) == pytest.approx(later_first, rel=1e-4)
    assert packed.task.get(ScalarField) is None


def test_unrolling_by_one_step_is_the_derivative_by_hand():
    """D(x) = w · x + b with the Wasserstein loss, ḡ and x̄ the means: ∇_w L_D = ḡ − x̄, so that a step of descent
    leaves L_G = −L_D = −(w − η (ḡ − x̄)) · (ḡ − x̄), and ∂L_G/∂ḡ = −w + 2 η (ḡ − x̄)."""
    fields = {**POINTS, 'task__loss': 'wasserstein'}
    none, zero, one = (make(**{**fields, 'task__unrolled_steps': k, 'task__unrolled_rate': 0.25}) for k in (0, 0, 1))
    params = linear_discriminator(none, [0.5, -1.5])

    def gradient(experiment):
        loss = experiment.task.rounds[1][0].loss
        return jax.jit(jax.grad(lambda p: loss(p, Extra({}, {}), {'x': X}, CTX)[0]))(params)['generator']

    def by_hand(rate):
        weight = jnp.array([0.5, -1.5])

        def mean(generator):
            draw = none.task.get(Samples).draw
            return jnp.mean(draw({**params, 'generator': generator}, Extra({}, {}), CTX, None), axis=0)

        along = -weight + 2 * rate * (mean(params['generator']) - X.mean(0))
        return jax.jit(jax.grad(lambda g: mean(g) @ along))(params['generator'])

    for experiment, rate in ((none, 0.0), (zero, 0.0), (one, 0.25)):
        pairs = zip(jax.tree.leaves(gradient(experiment)), jax.tree.leaves(by_hand(rate)), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    two = regularizers.unroll(lambda w: (w**2).sum(), jnp.array([1.0, 2.0]), 2, 0.25)
    np.testing.assert_allclose(two, [0.25, 0.5])


def test_top_k():
    fake = jnp.array([0.1, 3.0, -2.0, 1.0])
    np.testing.assert_allclose(regularizers.top_k_weights(fake, 0.5), [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(regularizers.top_k_weights(fake, 1.0), [0.25] * 4)
    np.testing.assert_allclose(regularizers.top_k_weights(fake, 0.01), [0, 1, 0, 0])
    shares = [float(regularizers.top_k_share(jnp.int32(step), 0.25, 20)) for step in (0, 10, 20, 40)]
    np.testing.assert_allclose(shares, [1, 0.5, 0.25, 0.25], rtol=1e-6)
    experiment = make(**{**POINTS, 'task__loss': 'wasserstein', 'task__top_k': 0.25, 'task__top_k_percent': 50.0})
    params = linear_discriminator(experiment, [1.0, 2.0])
    logits = np.sort(experiment.task.get(Samples).draw(params, Extra({}, {}), CTX, None) @ jnp.array([1.0, 2.0]))[::-1]
    for step, k in ((0, 8), (10, 4), (20, 2), (40, 2)):
        value = turns(experiment, params, {'x': X}, step)['generator'][0]
        assert value == pytest.approx(-logits[:k].mean(), rel=1e-4)


IMAGES = {'task__loss': 'hinge', **LINEAR, **PLAIN}
PIXELS = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 8, 8, 1)), jnp.float32)


def pixel_weights():
    return np.random.default_rng(2).normal(size=64)


def logits_of(x):
    return np.asarray(x).reshape(len(x), 64) @ pixel_weights()


def test_fixed_augmentation_is_of_both_kinds_and_of_both_turns():
    experiment = make(**IMAGES, task__augmentation='fixed')
    params = linear_discriminator(experiment, pixel_weights())
    T = jax.jit(augmentation.make(('colour', 'translation', 'cutout')), static_argnums=2)
    fake = experiment.task.get(Samples).draw(params, Extra({}, {}), CTX, None)
    real_logit, fake_logit = logits_of(T(PIXELS, CTX, 'T/real', 1.0)), logits_of(T(fake, CTX, 'T/fake', 1.0))
    found = turns(experiment, params, {'x': PIXELS})
    value = np.maximum(0, 1 - real_logit).mean() + np.maximum(0, 1 + fake_logit).mean()
    assert found['discriminator'][0] == pytest.approx(value, rel=1e-4)
    assert found['generator'][0] == pytest.approx(-fake_logit.mean(), rel=1e-3)
    held_out = experiment.task.get(Measures).per_example(params, Extra({}, {}), {'x': PIXELS}, CTX)
    np.testing.assert_allclose(held_out['discriminator/real_logit'], logits_of(PIXELS), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', augmentation.TRANSFORMS)
def test_transforms_are_differentiable_and_taken_with_probability_p(name):
    T = augmentation.make((name,))
    x, ctx = (
        jnp.tile(PIXELS[:1], (300, 1, 1, 3)) * jnp.array([1.0, 0.5, -0.2]),
        rng.context(0, 'train', 0, jnp.arange(300)),
    )
    run = jax.jit(lambda x, p: T(x, ctx, 'T/real', p))
    np.testing.assert_array_equal(run(x, 0.0), x)
    changed = np.abs(run(x, 0.3) - x).max((1, 2, 3)) > 1e-6
    always = np.abs(run(x, 1.0) - x).max((1, 2, 3)) > 1e-6
    assert changed.mean() == pytest.approx(0.3 * always.mean(), abs=0.08)
    assert always.mean() > {'flip': 0.35, 'lumaflip': 0.35, 'rotate90': 0.6, 'translation': 0.8}.get(name, 0.9)
    gradient = jax.jit(jax.grad(lambda x: run(x, 1.0).sum()))(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_colour():
    """By hand: brightness ±½, saturation about the mean of the channels, contrast about the mean of the image."""
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3))
    u = np.array([[0.9, 0.25, 0.7], [0.5, 0.5, 0.5]])
    out = augmentation.TRANSFORMS['colour'](jnp.asarray(x, jnp.float32), jnp.asarray(u, jnp.float32))
    np.testing.assert_allclose(out[1], x[1], atol=1e-6)
    y = x[0] + 0.4
    grey = y.mean(-1, keepdims=True)
    y = grey + 0.5 * (y - grey)
    np.testing.assert_allclose(out[0], y.mean() + 1.2 * (y - y.mean()), atol=1e-5)


def test_transforms_of_place_and_hue():
    """Quarter turns as NumPy's; a third of a turn about grey moves the channels on; luma alone changes its sign."""
    run = lambda name, first: augmentation.TRANSFORMS[name](X, jnp.array([[u, 0.0, 0.0] for u in first]))
    X = jax.random.normal(jax.random.key(0), (4, 5, 5, 3))
    turned = run('rotate90', [0.1, 0.3, 0.6, 0.9])
    np.testing.assert_array_equal(turned, np.stack([np.rot90(x, k) for k, x in enumerate(X)]))
    hue = run('hue', [0.0, 1 / 3, 2 / 3, 0.2])
    for k in range(3):
        np.testing.assert_allclose(hue[k], np.roll(X[k], k, axis=-1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(hue[3], axis=-1), np.linalg.norm(X[3], axis=-1), rtol=1e-5)
    flipped, grey = run('lumaflip', [0.7, 0.2, 0.2, 0.2]), X.mean(-1, keepdims=True)
    np.testing.assert_array_equal(flipped[0], X[0])
    np.testing.assert_allclose(flipped[1:].mean(-1, keepdims=True), -grey[1:], atol=1e-5)
    np.testing.assert_allclose(flipped[1:] + grey[1:], (X - grey)[1:], atol=1e-5)


def test_adaptive_augmentation_rises_where_the_discriminator_is_sure():
    """Every real logit positive: r_t = 1 > 0.6, and p rises by batch_size / ada_examples a step, one step later."""
    experiment = make(**IMAGES, task__augmentation='adaptive', task__ada_examples=320)
    params = linear_discriminator(experiment, np.zeros(64))
    dense = params['discriminator']['mlp']['Dense_0']
    stats, seen = None, []
    for bias in (1.0, 1.0, 1.0, -1.0, -1.0, -1.0):
        dense['bias'] = np.float32([bias])
        _, metrics, stats = turns(experiment, params, {'x': PIXELS}, stats=stats)['discriminator']
        seen.append(float(metrics['p']))
    np.testing.assert_allclose(seen, [0, 0.1, 0.2, 0.3, 0.2, 0.1], atol=1e-6)
    assert stats['adaptation'].sign == -1
    for sure, p in ((1.0, 1.0), (-1.0, 0.9)):
        moved = augmentation.adapt(augmentation.Adaptation(jnp.float32(1.0), jnp.float32(sure)), 0.6, 0.1)
        assert moved == pytest.approx(p)


def test_consistency():
    experiment = make(**IMAGES, task__consistency_real=2.0, task__consistency_fake=3.0)
    params = linear_discriminator(experiment, pixel_weights())
    T = jax.jit(augmentation.make(('colour', 'translation', 'cutout')), static_argnums=2)
    fake = experiment.task.get(Samples).draw(params, Extra({}, {}), CTX, None)
    expected = sum(
        weight * np.square(logits_of(x) - logits_of(T(x, CTX, name, 1.0))).mean()
        for weight, x, name in ((2, PIXELS, 'T/real'), (3, fake, 'T/fake'))
    )
    base = turns(make(**IMAGES), params, {'x': PIXELS})['discriminator'][0]
    assert turns(experiment, params, {'x': PIXELS})['discriminator'][0] - base == pytest.approx(expected, rel=1e-3)


def test_auxiliary_classifier():
    """ACGAN: the discriminator is not told the class, and both players are scored by what it says of it."""
    experiment = make(**IMAGES, model__conditional=True, task__auxiliary=0.5)
    params = jax.device_get(experiment.create_state().params)
    assert params['discriminator']['mlp']['Dense_0']['kernel'].shape == (64, 11)
    labels = jnp.arange(8)
    batch, extra = {'x': PIXELS, 'label': labels}, Extra({}, {})
    found = turns(experiment, params, batch)
    fake = experiment.task.get(Samples).draw(params, extra, CTX, labels)
    dense = params['discriminator']['mlp']['Dense_0']
    out = {
        name: np.asarray(x, np.float64).reshape(8, 64) @ dense['kernel'] + dense['bias']
        for name, x in (('real', PIXELS), ('fake', fake))
    }
    log_p = {name: y[:, 1:] - np.log(np.exp(y[:, 1:]).sum(-1, keepdims=True)) for name, y in out.items()}
    entropy = {name: -y[np.arange(8), labels].mean() for name, y in log_p.items()}
    d = np.maximum(0, 1 - out['real'][:, 0]).mean() + np.maximum(0, 1 + out['fake'][:, 0]).mean()
    assert found['discriminator'][0] == pytest.approx(d + 0.5 * sum(entropy.values()), rel=1e-4)
    assert found['generator'][0] == pytest.approx(-out['fake'][:, 0].mean() + 0.5 * entropy['fake'], rel=1e-3)
    evaluated = experiment.task.get(Measures).per_example(params, extra, batch, CTX)
    right = log_p['real'].argmax(-1) == np.asarray(labels)
    np.testing.assert_array_equal(evaluated['discriminator/real_accuracy'], right)


@pytest.mark.parametrize('fields, message', [
    ({'task__augmentation': 'adaptive'}, 'task.augmentation: adaptive reads the sign.*relativistic'),
    ({'task__augmentation': 'ada'}, "task.augmentation: 'ada'; did you mean adaptive"),
    ({'task__augmentation': 'fixed', 'data__name': 'ring8'}, 'task.augmentation.*want images'),
    ({'task__augmentation': 'fixed', 'task__consistency_real': 1.0}, 'task.consistency_real.*choose one'),
    ({'task__consistency_fake': 1.0, 'task__transforms': '()'}, 'task.consistency_.*transforms'),
    ({'task__transforms': "('color',)"}, "task.transforms: 'color'; did you mean colour"),
    ({'task__transforms': "('hue',)", 'task__augmentation': 'fixed'}, 'task.transforms: .*hue three.*digits are 8×8×1'),
    ({'task__penalty_every': 4, **PLAIN}, 'task.penalty_every: there is no gradient penalty'),
    ({'task__penalty_every': 0}, 'task.penalty_every: 0; it is 1 or more'),
    ({'task__unrolled_steps': 2}, 'task.unrolled_steps: is of a zero-sum game, which relativistic is not'),
    ({'task__unrolled_steps': 2, 'task__loss': 'saturating', 'task__simultaneous': True}, 'unrolled.*simultaneous'),
    ({'task__top_k': 0.5, 'micro_batches': 2}, 'task.top_k: ranks a whole batch'),
    ({'task__unrolled_steps': 2, 'task__loss': 'saturating', 'micro_batches': 2}, 'task.unrolled_steps: wants'),
    ({'task__top_k': 0.0}, 'task.top_k: 0.0; it is more than 0 and 1 or less'),
    ({'task__top_k_percent': 150.0}, 'task.top_k_percent: 150.0; it is 0 to 100'),
    ({'task__penalty_schedule__transition_percent': -5.0}, 'task.penalty_schedule.transition_percent: -5.0; it lies'),
    ({'task__lecam_decay': 1.0}, 'task.lecam_decay: 1.0; it is 0 or more and less than 1'),
    ({'task__packing': 2, 'model__conditional': True}, 'task.packing: a pack has no class'),
    ({'task__packing': 3}, 'batch_size: 32 does not divide into packs of 3'),
    ({'task__auxiliary': 1.0}, 'task.auxiliary.*model.conditional'),
    ({'task__lecam': -1.0}, 'task.lecam: -1.0'),
])  # fmt: skip
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


@pytest.mark.parametrize('penalty', ['r1', 'r2', 'gradient_penalty', 'dragan'])
def test_penalties_want_a_discriminator_that_sees_examples_alone(penalty):
    fields = {'data__name': 'digits', f'task__{penalty}': 1.0}
    with pytest.raises(UserError, match=f'task.{penalty}: .*batch norm.*group, layer or none'):
        make('dcgan,smoke', **fields)
    make('dcgan,smoke', **fields, model__discriminator__norm='group')
