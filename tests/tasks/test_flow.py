"""Flow matching: its mathematics against closed forms and SciPy, and its runs."""

import json
import math
import pathlib
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import RK45
from scipy.optimize import linear_sum_assignment
from vaes import context, disturbed, start

from aigc_jax.core.capabilities import LatentSpace, Measures, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.metrics.transport import floor, squared_wasserstein
from aigc_jax.nn import unet
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.tasks.flow import couplings, paths, solvers
from aigc_jax.tasks.flow.task import Flow, Source
from aigc_jax.training import trainer

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'flow.py')
NORMAL = Source(np.zeros((1, 2), np.float32), 1.0)
MEAN, STD = np.array([1.0, -2.0]), np.array([0.5, 1.5])  # of a Gaussian target


def make(arg='smoke', **overrides):
    fields = [(name.replace('__', '.'), str(value)) for name, value in overrides.items()]
    return Experiment(config_lib.load(f'{CONFIG}:{arg}', fields))


def flow_of(experiment) -> Flow:
    """The dataclass whose methods the task has."""
    return experiment.task.init.__self__


def moved(experiment, scale=0.3):
    """(params, Extra), no longer where the field is 0."""
    params, extra = start(experiment)
    return disturbed(params, scale=scale), extra


def gaussian_field(t, x):
    """The velocity from N(0, I) to N(MEAN, STD²), independently coupled, in closed form."""
    t = t[:, None]
    variance = (1 - t) ** 2 + (t * STD) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


# Couplings


@pytest.mark.parametrize('n', [1, 2, 7, 64, 200])
def test_an_assignment_is_as_cheap_as_scipys(n):
    draw = np.random.default_rng(n)
    ties = draw.integers(3, size=(n, n))
    x, y = draw.normal(size=(2, n, 2))
    squares, tails = np.square(x[:, None] - y).sum(-1), draw.standard_cauchy(size=(n, n))  # one far cost sets ε
    for cost in (draw.normal(size=(n, n)), ties, squares, tails, np.zeros((n, n))):
        cost = cost.astype(np.float32)
        found = np.asarray(jax.jit(couplings.assign)(cost))
        assert sorted(found) == list(range(n)) and found.dtype == np.int32
        rows, columns = linear_sum_assignment(cost)
        assert cost[rows, found].sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-5, abs=1e-5)


def test_assignments_of_replicas_and_of_steps_are_those_of_each():
    cost = np.random.default_rng(0).normal(size=(3, 20, 20)).astype(np.float32)
    alone = [np.asarray(couplings.assign(c)) for c in cost]
    np.testing.assert_array_equal(jax.jit(jax.vmap(couplings.assign))(cost), alone)
    np.testing.assert_array_equal(jax.lax.scan(lambda _, c: (None, couplings.assign(c)), None, cost)[1], alone)


def test_a_coupling_by_class_is_optimal_inside_each_class():
    draw = np.random.default_rng(1)
    x0, x1, labels = draw.normal(size=(60, 3)), draw.normal(size=(60, 3)), draw.integers(4, size=60)
    found = np.asarray(couplings.couple('class_optimal', *(jnp.asarray(a, jnp.float32) for a in (x0, x1)), labels))
    for c in range(4):
        own, theirs = x0[labels == c], x1[labels == c]
        cost = np.square(theirs[:, None] - own).sum(-1)
        rows, columns = linear_sum_assignment(cost)
        np.testing.assert_allclose(found[labels == c], own[columns], rtol=1e-6)
    # Without classes it is cheaper, and independent draws stay as they are.
    apart = lambda a: float(np.square(np.asarray(a) - x1).sum())
    optimal = couplings.couple('optimal', jnp.asarray(x0), jnp.asarray(x1))
    assert apart(optimal) < apart(found) < apart(couplings.couple('independent', x0, x1)) == apart(x0)


def test_the_loss_reads_the_coupling():
    """At the start the field is 0, and the loss the mean squared distance of the pairs."""
    losses = {}
    for name, more in (('independent', {}), ('optimal', {}), ('class_optimal', dict(model__conditional=True))):
        experiment = make('moons,smoke', task__coupling=name, **more)
        params, extra = start(experiment)
        batch = experiment.preprocess(experiment.examples('train', np.arange(32)), context(32))
        loss, _ = jax.jit(experiment.task.rounds[0][0].loss)(params, extra, batch, context(32))
        x0 = np.asarray(flow_of(experiment).source.draw(context(32)))
        x0 = np.asarray(couplings.couple(name, x0, batch['x'], batch['label']))
        losses[name] = float(loss)
        assert losses[name] == pytest.approx(np.square(batch['x'] - x0).mean(), rel=1e-5)
        # An error over independent pairs says nothing of a field that was learned on others.
        assert (experiment.task.get(Measures) is not None) == (name == 'independent')
    assert losses['optimal'] < losses['class_optimal'] < losses['independent']


# Solvers


def test_solvers_have_their_orders():
    """Of dx/dt = x (1 + t), x(1) = x(0) exp(3/2)."""
    with jax.enable_x64(True):
        x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
        exact = x * math.exp(1.5)
        f = lambda t, x: x * (1 + t)[:, None]
        for solver, order in (('euler', 1), ('midpoint', 2), ('heun', 2)):
            pairs = [solvers.solve(solver, f, x, steps, 0.1) for steps in (32, 64)]
            errors = [float(jnp.abs(found - exact).max()) for found, _ in pairs]
            assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15), solver
            assert (pairs[0][1] == 32 * order).all() and pairs[0][1].shape == (2,)
        errors = []
        for tolerance in (1e-3, 1e-5, 1e-7):
            found, count = solvers.solve('dopri5', f, x, 1, tolerance)
            errors.append(float(jnp.abs(found - exact).max()))
            assert errors[-1] < 10 * tolerance and ((count - 1) % 6 == 0).all()
        assert errors[0] > errors[1] > errors[2]


def test_the_adaptive_solver_has_the_tableau_of_dormand_and_prince():
    for row, theirs in zip(solvers._A, (*RK45.A[1:], RK45.B), strict=True):
        np.testing.assert_allclose(row, theirs[: len(row)], rtol=1e-12)
        np.testing.assert_allclose(sum(row), solvers._C[len(row) - 1], rtol=1e-12)
    np.testing.assert_allclose(solvers._C, [*RK45.C[1:], 1])
    np.testing.assert_allclose(-np.array(solvers._E), RK45.E, rtol=1e-12)


def test_each_example_has_steps_of_its_own():
    """A stiff, a slow, a still and a broken one: the others do not change what one comes to, nor its evaluations."""
    rate = jnp.array([300.0, 1.0, 0.0, jnp.nan])[:, None]
    x = jnp.array([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    together, counts = solvers.dopri5(lambda t, x: -rate * (x - jnp.sin(t)[:, None]), x, 1e-4)
    for i in range(4):
        alone, count = solvers.dopri5(lambda t, x, i=i: -rate[i] * (x - jnp.sin(t)[:, None]), x[i : i + 1], 1e-4)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-6)
        assert int(counts[i]) == int(count[0])
    assert counts[0] > 3 * counts[1] > 3 * counts[2] and counts[3] < 100
    assert np.isnan(together[3]).all() and np.isfinite(together[:3]).all()
    np.testing.assert_array_equal(together[2], x[2])


# Likelihood


@pytest.mark.parametrize('probes', [None, 1])
def test_the_likelihood_of_a_gaussian(probes):
    """Its field's Jacobian is diagonal, of which Rademacher's probes give the trace itself."""
    x = np.random.default_rng(0).normal(MEAN, STD, size=(50, 2)).astype(np.float32)
    if probes:
        probes = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], size=(1, 50, 2)), jnp.float32)
    found, x0, count = solvers.log_likelihood(gaussian_field, NORMAL.log_prob, jnp.asarray(x), probes, 1e-5)
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf(x, MEAN, STD).sum(1), atol=1e-3)
    np.testing.assert_allclose(x0, (x - MEAN) / STD, atol=1e-3)
    assert (count > 10).all()
    again, _ = solvers.dopri5(gaussian_field, x0, 1e-5)
    np.testing.assert_allclose(again, x, atol=1e-3)


def test_hutchinsons_estimate_has_the_trace_as_its_mean():
    matrix = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    f = lambda t, x: jnp.tanh(x @ matrix.T)
    t, x = jnp.zeros(3), jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    value, exact = solvers.divergence(f, t, x, None)
    slope = 1 - np.tanh(np.asarray(x) @ matrix.T) ** 2
    np.testing.assert_allclose(exact, slope @ np.diag(matrix), rtol=1e-4)
    np.testing.assert_allclose(value, f(t, x), rtol=1e-6)
    probes = np.random.default_rng(2).choice([-1.0, 1.0], size=(4000, 3, 4)).astype(np.float32)
    _, found = solvers.divergence(f, t, x, jnp.asarray(probes))
    np.testing.assert_allclose(found, exact, atol=4 * 6 / math.sqrt(4000))
    assert np.abs(np.asarray(found - exact)).max() > 1e-6


def test_the_eight_gaussians():
    source = flow_of(make('moons,smoke')).source
    x = np.asarray(source.draw(context(20_000)))
    assert np.square(x).sum(1).mean() == pytest.approx(25 + 2 * math.sqrt(0.1), rel=0.01)
    angles = np.arctan2(x[:, 1], x[:, 0]) / (math.pi / 4)
    np.testing.assert_allclose(np.bincount(np.rint(angles).astype(int) % 8) / len(x), 1 / 8, atol=0.01)
    centers = 5 * np.stack([np.cos(np.arange(8) * math.pi / 4), np.sin(np.arange(8) * math.pi / 4)], axis=1)
    near = np.square(x[:, None] - centers).sum(-1).min(1).mean()
    assert near == pytest.approx(2 * math.sqrt(0.1), rel=0.03)
    density = sum(scipy.stats.multivariate_normal.pdf(x[:9], c, math.sqrt(0.1)) for c in centers) / 8
    np.testing.assert_allclose(source.log_prob(jnp.asarray(x[:9])), np.log(density), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'data, scale', [('digits', 'unit'), ('digits', 'symmetric'), ('grid25', 'unit'), ('grid25', 'standard')]
)
def test_a_density_is_in_the_datas_own_units(data, scale):
    """A field of 0, so that the model's x is N(0, I)."""
    experiment = make(data__name=data, data__scale=scale, eval__probes=int(data == 'digits'))
    params, extra = start(experiment)
    raw, ctx = experiment.examples('test', np.arange(5)), context(5)
    batch = experiment.preprocess(raw, ctx)
    found = jax.jit(experiment.task.get(SplitStatistic).collect)(params, extra, batch, ctx)
    to_model = experiment.scaling.to_model
    factor = 1.0 if experiment.scaling.factor is None else float(experiment.scaling.factor)
    own = raw['x'].astype(np.float64)
    if data == 'digits':  # log P(level) by a draw inside its bin, which is 1/16 wide
        own = (own + np.asarray(ctx.uniform('dequantize', (8, 8, 1))) - 0.5) / 16
    expected = (scipy.stats.norm.logpdf(to_model(own)) - math.log(factor)).reshape(5, -1).sum(1)
    dim = own[0].size
    expected = expected - dim * math.log(16) if data == 'digits' else expected
    np.testing.assert_allclose(found['model/nll'], -expected, rtol=1e-5)
    np.testing.assert_allclose(found['model/bits_per_dim'], -expected / dim / math.log(2), rtol=1e-5)


# Paths


def test_velocity_score_noise_and_data_are_one_of_each_other():
    """Of a Gaussian target, in closed form."""
    draw = np.random.default_rng(0)
    x, t = draw.normal(size=(100, 2)), draw.uniform(0.05, 0.95, 100)
    at = t[:, None]
    variance = (1 - at) ** 2 + (at * STD) ** 2
    with jax.enable_x64(True):
        v = gaussian_field(t, x)
        data, noise, score = (
            convert(v, x, t) for convert in (paths.velocity_to_data, paths.velocity_to_noise, paths.velocity_to_score)
        )
        np.testing.assert_allclose(data, MEAN + at * STD**2 / variance * (x - at * MEAN), rtol=1e-9)
        np.testing.assert_allclose(noise, (1 - at) / variance * (x - at * MEAN), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(score, -(x - at * MEAN) / variance, rtol=1e-9, atol=1e-12)
        for back, value in (
            (paths.data_to_velocity, data), (paths.noise_to_velocity, noise), (paths.score_to_velocity, score),
        ):  # fmt: skip
            np.testing.assert_allclose(back(value, x, t), v, rtol=1e-9)
        np.testing.assert_allclose(paths.interpolate(noise, data, t), x, rtol=1e-9)


# MeanFlow


class _Linear(nn.Module):
    """The mean of the field a x from t to s along its flow, x (eᵃ⁽ˢ⁻ᵗ⁾ − 1) / (s − t); `wrong` is added."""

    rate: float
    wrong: float = 0.0

    @nn.compact
    def __call__(self, x, times, condition=None):
        z = self.rate * times[:, 1:]
        mean = jnp.where(jnp.abs(z) < 1e-3, 1 + z / 2 + z**2 / 6, jnp.expm1(z) / jnp.where(z == 0, 1.0, z))
        return self.rate * x * mean + self.wrong * times[:, 1:]


def linear_flow(wrong=0.0, steps=1):
    return Flow(
        network=_Linear(0.7, wrong), shape=(2,), num_classes=0, options={'objective': 'mean_velocity'}, source=NORMAL,
        sampling=dict(solver='mean_flow', steps=steps, guidance=1.0), evaluation={}, grid=None, log_factor=0.0,
    )  # fmt: skip


def test_the_mean_velocity_of_a_linear_field_is_its_own_target():
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(50, 2)), jnp.float32)
    t, s = (jnp.asarray(a, jnp.float32) for a in np.sort(draw.uniform(size=(2, 50)), axis=0))
    found, target = linear_flow()._mean_target({}, x, 0.7 * x, t, s, None)
    np.testing.assert_allclose(found, target, atol=1e-5)
    found, target = linear_flow(wrong=0.3)._mean_target({}, x, 0.7 * x, t, s, None)
    assert np.abs(found - target).max() > 0.05
    found, target = linear_flow(wrong=0.3)._mean_target({}, x, 0.7 * x, t, t, None)  # the field itself
    np.testing.assert_allclose(found, target, atol=1e-5)


@pytest.mark.parametrize('steps', [1, 3])
def test_mean_flow_takes_a_linear_field_in_any_steps(steps):
    x = jnp.array([[1.0, -2.0]])
    found, count = linear_flow(steps=steps).transport({}, x, None)
    np.testing.assert_allclose(found, x * math.exp(0.7), rtol=1e-5)
    assert int(count[0]) == steps


def test_mean_flow_draws_two_times_for_a_share_of_the_examples():
    flow = flow_of(make('smoke,meanflow'))
    t, s = (np.asarray(a) for a in flow._draw_times(context(4000)))
    assert (t <= s).all() and (0 < t).all() and (s < 1).all()
    assert np.mean(t < s) == pytest.approx(0.25, abs=0.03)
    assert np.median(t[t == s]) == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.02)


def test_a_weight_is_of_the_squared_error_alone():
    """With p = 1 the gradient is that of Σ log(error + c), with p = 0 of the error itself."""
    grads = {}
    for p in (0.0, 1.0):
        experiment = make('ring8,smoke', data__name='ring8', task__weight_power=p)
        params, extra = moved(experiment)
        batch = experiment.preprocess(experiment.examples('train', np.arange(1)), context(1))
        loss = lambda q: experiment.task.rounds[0][0].loss(q, extra, batch, context(1))  # noqa: B023
        (_, (metrics, *_)), grads[p] = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    factor = 2 / (2 * float(metrics['squared_error']) + 0.01)
    for a, b in zip(jax.tree.leaves(grads[0.0]), jax.tree.leaves(grads[1.0]), strict=True):
        np.testing.assert_allclose(factor * a, b, rtol=1e-4, atol=1e-6)


# Networks


def test_time_features_tell_times_apart_and_are_smooth():
    t = jnp.linspace(0, 1, 101)
    found = np.asarray(unet.time_features(t[:, None], 16))
    assert found.shape == (101, 16) and (found[0] == [0] * 8 + [1] * 8).all()
    far = np.square(found[:, None] - found).sum(-1) + 9 * np.eye(101)
    assert far.min() > 0.1
    slope = jax.jvp(lambda t: unet.time_features(t[:, None], 16), (t,), (jnp.ones(101),))[1]
    assert np.abs(slope).max() <= unet._FASTEST + 1e-3
    assert unet.time_features(jnp.zeros((3, 2)), 16).shape == (3, 32)


@pytest.mark.parametrize(
    'network, shape',
    [
        (unet.MLP(width=8, depth=2, expansion=2, activation='gelu'), (2,)),
        (unet.UNet(features=(8, 16), depth=1, attention=4, activation='silu'), (8, 4, 3)),
    ],
)
def test_a_network_reads_x_time_and_class(network, shape):
    draw = np.random.default_rng(0)
    x, times = jnp.asarray(draw.normal(size=(4, *shape)), jnp.float32), jnp.full((4, 1), 0.3)
    c = jax.nn.one_hot(jnp.arange(4) % 3, 3)
    params, apply = jax.jit(network.init)(jax.random.key(0), x, times, c), jax.jit(network.apply)
    assert not apply(params, x, times, c).any()  # a field of 0
    params = disturbed(params)
    out = apply(params, x, times, c)
    assert out.shape == x.shape and out.dtype == jnp.float32
    for other in ((x + 0.1, times, c), (x, times + 0.1, c), (x, times, jnp.roll(c, 1, 1))):
        assert (np.abs(apply(params, *other) - out).reshape(4, -1).max(axis=1) > 1e-3).all()
    # No class is a row of zeros; each example is alone.
    np.testing.assert_allclose(apply(params, x, times, 0 * c), apply(params, x, times, None), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(apply(params, x[1:2], times[1:2], c[1:2])[0], out[1], rtol=1e-4, atol=1e-4)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, x, times, c) ** 2)))(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


# Guidance and sampling


def test_guidance_goes_from_the_field_without_the_class_through_that_with_it():
    found = {}
    for w in (0.0, 1.0, 3.0):
        experiment = make(model__conditional=True, sample__guidance=w, data__scale='unit')
        flow, (params, _) = flow_of(experiment), moved(experiment)
        theta, labels = params['model'], jnp.arange(6)
        x, t = jnp.asarray(np.random.default_rng(0).normal(size=(6, 64)), jnp.float32), jnp.full(6, 0.4)
        field, times = flow.guided(theta, labels)
        found[w] = np.asarray(field(t, t, x))
        assert times == (1 if w == 1 else 2)
    own = flow.velocity(theta, flow._one_hot(labels))(t, x)
    free = flow.velocity(theta, jnp.zeros((6, 10)))(t, x)
    np.testing.assert_array_equal(found[1.0], own)
    np.testing.assert_allclose(found[0.0], free, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[3.0], free + 3 * (own - free), rtol=1e-4, atol=1e-4)
    assert np.abs(own - free).max() > 0.01


def test_evaluations_of_the_network_are_counted():
    for fields, expected in (
        (dict(sample__solver='euler', sample__steps=7), 7),
        (dict(sample__solver='heun', sample__steps=3, model__conditional=True, sample__guidance=2.0), 12),
    ):
        experiment = make(**fields)
        params, extra = start(experiment)
        batch = experiment.preprocess(experiment.examples('test', np.arange(3)), context(3))
        found = jax.jit(experiment.task.get(SplitStatistic).collect)(params, extra, batch, context(3))
        assert (found['model/evaluations'] == expected).all()


def test_sample_says_how_samples_are_drawn_and_eval_how_the_likelihood_is_integrated():
    def found(**fields):
        experiment = make(eval__probes=1, **fields)
        params, extra = moved(experiment)
        batch, collect = experiment.examples('test', np.arange(5)), experiment.task.get(SplitStatistic).collect
        one = jax.jit(collect)(params, extra, experiment.preprocess(batch, context(5)), context(5))
        samples = Evaluator(experiment).sample(experiment.create_state(params, extra.stats), 0, 5)
        return np.asarray(one['model/nll']), np.asarray(one['model/evaluations']), samples

    nll, evaluations, samples = found(data__scale='unit', task__dequantize=False)
    other = found(data__scale='unit', task__dequantize=False, sample__tolerance=1e-5)
    np.testing.assert_array_equal(other[0], nll)
    assert (other[1] > evaluations).all() and (other[2] != samples).any()
    other = found(data__scale='unit', task__dequantize=False, eval__nll_tolerance=1e-5)
    assert (other[0] != nll).any()
    np.testing.assert_array_equal(other[2], samples)


def test_a_sample_is_a_function_of_seed_index_and_class_alone():
    experiment = make(model__conditional=True, eval__batch_size=4)
    params, extra = moved(experiment)
    state = experiment.create_state(params, extra.stats)
    evaluator = Evaluator(experiment)
    labels = np.array([3, 1, 4, 1, 5, 9])
    six, four = evaluator.sample(state, 0, 6, labels), evaluator.sample(state, 0, 4, labels[:4])
    np.testing.assert_array_equal(six[:4], four)
    levels = 16 * six
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)  # those of the data
    assert six.min() >= 0 and six.max() <= 1
    other = evaluator.sample(state, 0, 6, np.array([3, 1, 4, 1, 5, 2]))
    assert (other[:5] == six[:5]).all() and (other[5] != six[5]).any()
    assert (evaluator.sample(state, 1, 6, labels) != six).any()


def test_codes_lead_back_to_the_examples():
    experiment = make('ring8,smoke', data__name='ring8', eval__nll_tolerance=1e-5)
    params, extra = moved(experiment, scale=0.1)
    batch = experiment.preprocess(experiment.examples('test', np.arange(20)), context(20))
    codes = jax.jit(experiment.task.get(LatentSpace).encode)(params, extra, batch, context(20))
    found = jax.jit(experiment.task.get(LatentSpace).decode)(params, extra, codes, None)
    np.testing.assert_allclose(found, batch['x'], atol=2e-3)
    assert np.abs(codes - batch['x']).max() > 0.05


# Data and metric


def test_moons_are_two_half_circles_and_noise_along_the_diagonal():
    dataset = make('moons,smoke', data__num_examples=3000).dataset
    train = dataset.splits['train'].arrays
    more = make('moons,smoke', data__num_examples=5000).dataset.splits['train'].arrays
    np.testing.assert_array_equal(more['x'][:3000], train['x'])
    assert dataset.num_classes == 2 and dataset.spec.shape == (2,) and len(dataset.splits['test']) == 20_000
    x, moon = (train['x'].astype(np.float64) + 1) / 3, train['label'][:, None]
    x = np.where(moon, [1.0, 0.5] - x, x)  # both are the upper half circle now, the noise turned around for moon 1
    x, sign = x, np.where(moon[:, 0], -1, 1)
    # |x − u (1, 1)| = 1 at a u of [0, 0.2]: the smaller root of the quadratic lies outside.
    total, square = x.sum(1), np.square(x).sum(1)
    roots = np.stack([total + s * np.sqrt(np.maximum(total**2 - 2 * (square - 1), 0)) for s in (1, -1)]) / 2
    noise = sign * roots
    inside = (noise > -1e-5) & (noise < 0.2 + 1e-5)
    assert inside.any(axis=0).all()
    assert 0.45 < moon.mean() < 0.55


def test_squared_wasserstein_distance():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 2))
    assert squared_wasserstein(x, draw.permutation(x)) == pytest.approx(0, abs=1e-20)
    assert squared_wasserstein(x, draw.permutation(x + [3.0, -4.0])) == pytest.approx(25)
    a, b = draw.normal(size=(2, 150, 1))
    assert squared_wasserstein(a, b) == pytest.approx(np.square(np.sort(a, 0) - np.sort(b, 0)).mean())
    assert floor(x, 100) == squared_wasserstein(x[:100], x[100:]) > 0.01
    for wrong in ((x, x[:-1]), (x, x * np.nan), (x[:0], x[:0])):
        with pytest.raises(ValueError):
            squared_wasserstein(*wrong)
    with pytest.raises(ValueError, match='two sets'):
        floor(x, 101)


# Runs


@pytest.mark.parametrize(
    'arg, fields, words',
    [
        ('smoke', dict(task__coupling='optimal', micro_batches=2), 'micro_batches to 1'),
        ('smoke', dict(task__coupling='class_optimal'), 'model.conditional=True'),
        ('smoke', dict(task__coupling='optimall'), 'did you mean optimal'),
        ('smoke', dict(task__source='eight_gaussians'), 'points in the plane'),
        ('smoke', dict(sample__solver='mean_flow'), 'mean_velocity'),
        ('smoke', dict(sample__guidance=2.0), 'model.conditional=True'),
        ('smoke', dict(model__conditional=True, task__class_dropout=0.0, sample__guidance=2.0), 'class_dropout above'),
        ('smoke', dict(sample__tolerance=1e-9), 'sample.tolerance'),
        ('smoke', dict(sample__steps=0), 'sample.steps'),
        ('smoke', dict(model__network__width=15), 'model.network.width: 15; half .* make it even'),
        ('smoke', dict(task__class_dropout=1.5), 'task.class_dropout: 1.5'),
        ('digits', dict(data__name='ring8', data__scale='unit'), 'set it to mlp'),
        ('digits', dict(model__network__features='(8,8,8,8,8)'), 'halve the sides'),
        ('digits', dict(model__network__features='(8,9)'), 'model.network.features: the widest is 9, half'),
        ('digits', dict(model__network__attention=3), 'model.network.attention: 3; its sides are 8, 4, and 0'),
        ('ring8', dict(model__conditional=True, data__name='gaussian2d'), 'has no labels'),
    ],
)
def test_fields_that_do_not_fit_are_refused(arg, fields, words):
    with pytest.raises(UserError, match=words):
        make(arg, **fields)


def test_a_stopped_run_goes_on_bit_for_bit(command_line, leaves, assert_same_bits, tmp_path):
    """MeanFlow with an optimal coupling by class."""
    name = 'flow:digits,smoke,c2ot,meanflow'
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    command_line.run(name, whole, checkpoint_every_steps=10)
    command_line.run(name, stopped, signalled=(20, signal.SIGTERM), returns=143, checkpoint_every_steps=10)
    command_line.run(name, stopped, checkpoint_every_steps=10)
    assert_same_bits(leaves(stopped), leaves(whole))
    for file in ('metrics.jsonl', 'evaluation.json'):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()
    written = json.loads((whole / 'evaluation.json').read_text())
    assert written['model/evaluations']['value'] == 1 and written['model/nll']['n'] == 180
    command_line.run(None, whole, '--mode=sample', '--num_samples=12')
    again = command_line.run(None, whole, '--mode=evaluate', sample__solver='midpoint', sample__steps=4)
    assert '8 ' in next(line for line in again.stdout.splitlines() if line.startswith('model/evaluations'))
    command_line.run(None, whole, '--mode=evaluate')
    found = {name: one for name, one in Run(whole).evaluations().items() if name != 'evaluation'}
    assert {(one['sample']['solver'], one['sample']['steps']) for one in found.values()} == {
        ('mean_flow', 1), ('midpoint', 4)
    }  # fmt: skip


def train(arg, fields, folder) -> Run:
    """Without pictures."""
    run = Run(folder)
    run.draws = False
    trainer.train(config_lib.load(f'{CONFIG}:{arg}', fields), run)
    return run


def test_replicas_are_their_single_runs(tmp_path):
    fields = [('num_seeds', '2'), ('replicas', 'map'), ('eval.num_samples', '50')]
    both = train('moons,smoke,ot', fields, tmp_path / 'both').open()
    one = train('moons,smoke,ot', [('seed', '1'), *fields[2:]], tmp_path / 'one').open()
    second = both[0].replica(both[1], 1)
    for ours, theirs in zip(jax.tree.leaves(second.params), jax.tree.leaves(one[1].params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    samples = [Evaluator(experiment).sample(state, 1, 20) for experiment, state in ((both[0], second), one)]
    np.testing.assert_allclose(*samples, rtol=1e-4, atol=1e-4)


def test_a_field_that_is_learned_carries_the_source_to_the_data(tmp_path):
    """Of ring8 in 1500 steps: nearly all samples lie near a mode; by one step of Euler they do not."""
    fields = dict(total_steps=1500, steps_per_call=500, log_every_steps=500, eval_every_steps=1500, batch_size=256,
                  checkpoint_every_steps=1500, eval__num_samples=500, sample__tolerance=1e-3, model__network__width=64,
                  model__network__depth=2, optim__model__ema_decay=0.99, eval__nll_tolerance=1e-3,
                  data__name='ring8')  # fmt: skip
    fields = [(name.replace('__', '.'), str(value)) for name, value in fields.items()]
    train('ring8,smoke', fields, tmp_path)
    distance = {}
    for solver in ('dopri5', 'euler'):
        experiment, state = Run(tmp_path).open(overrides=[('sample.solver', solver), ('sample.steps', '1')])
        samples = Evaluator(experiment).sample(state, 0, 500)
        distance[solver] = squared_wasserstein(samples, experiment.examples('test', np.arange(500))['x'])
    real = make('ring8,smoke', data__name='ring8').dataset.splits['test'].arrays['x']
    assert distance['dopri5'] < 0.01 + 2 * floor(real, 500) < 0.3 < distance['euler']


def test_the_divergence_in_many_dimensions_takes_no_more_memory():
    matrix = jax.random.normal(jax.random.key(0), (150, 150))
    f = lambda t, x: t * jnp.tanh(x @ matrix)
    x = jax.random.normal(jax.random.key(1), (3, 150))
    value, trace = solvers.divergence(f, jnp.float32(0.5), x, None)
    expected = jax.vmap(lambda x: jnp.trace(jax.jacobian(lambda x: f(0.5, x))(x)))(x)
    np.testing.assert_allclose(trace, expected, rtol=1e-4)
    np.testing.assert_array_equal(value, f(jnp.float32(0.5), x))
    wide = lambda n: jax.jit(lambda x: solvers.divergence(lambda t, x: x * x, 0.5, x, None)).lower(jnp.zeros((n, 4096)))
    assert wide(8).compile().memory_analysis().temp_size_in_bytes < 4096 * 4096 * 8
