"""Flow matching (Lipman et al. 2023; Liu et al. 2023; Albergo & Vanden-Eijnden 2023): a field v(x, t) whose ODE
dx/dt = v carries a source at t = 0 to the data at t = 1. MeanFlow (Geng et al. 2025) learns the field's mean over
stretches of time besides, and takes each of them in one step.

One player, 'model': the parameters of the network alone. The log-likelihood is a density in the data's own units,
whatever data.scale; of images of whole levels, a bound on the logarithm of a probability, by uniform dequantization.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import parallel, rng
from aigc_jax.core.capabilities import LatentSpace, LogDensity, Measures, Samples, ScalarField, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Images, Tokens
from aigc_jax.nn import unet
from aigc_jax.nn.build import build, compute_dtype
from aigc_jax.tasks import conditional
from aigc_jax.tasks.flow import couplings, paths, solvers
from aigc_jax.tasks.flow.fields import FIELDS

__all__ = ['FIELDS', 'make']
_DRAWN_TOLERANCE = 1e-2  # of a log-likelihood that is drawn, far from the data too, where a field is stiff
_WEIGHT_FLOOR = 0.01  # added to the squared error that a weight is taken from, as the code of Geng et al. 2025 has it


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """(1/K) Σ N(means[k], std² I) over the model's x: means (K, D)."""

    means: np.ndarray
    std: float

    def draw(self, ctx: rng.Context, name: str = 'source') -> Array:
        """(n, D)."""
        count, dim = self.means.shape
        x = self.std * ctx.normal(name, (dim,))
        if count == 1:
            return x + self.means[0]
        component = jnp.floor(count * ctx.uniform(f'{name}/component')).astype(jnp.int32)
        return x + jnp.asarray(self.means)[component]

    def log_prob(self, x: Array) -> Array:
        """(n, D) -> (n,)."""
        count, dim = self.means.shape
        square = jnp.sum(((x[:, None] - self.means) / self.std) ** 2, axis=-1)
        constant = math.log(count) + dim * math.log(self.std * math.sqrt(2 * math.pi))
        return jax.nn.logsumexp(-0.5 * square, axis=-1) - constant


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """The functions of the task. x is (n, D) inside of it, an example of `shape` to the network.

    options, sampling, evaluation: of fields.TASK, SAMPLE and EVAL. num_classes: that the field is told; 0: none. grid:
    of integer data, the least and the greatest value that the model sees, and the space between two; None of real
    numbers. log_factor: the logarithm of data units over the model's.
    """

    network: nn.Module
    shape: tuple[int, ...]
    num_classes: int
    options: dict
    source: Source
    sampling: dict
    evaluation: dict
    grid: tuple[float, float, float] | None
    log_factor: float

    @property
    def dim(self) -> int:
        return math.prod(self.shape)

    @property
    def means(self) -> bool:
        """Whether the network gives means of the field over stretches of time."""
        return self.options['objective'] == 'mean_velocity'

    def init(self, key: Array):
        t = jnp.zeros((1,))
        x, times, condition = jnp.zeros((1, *self.shape)), self._times(t, t), self._one_hot(jnp.zeros(1, jnp.int32))
        params = self.network.init(rng.named(key, 'network'), x, times, condition)['params']
        return {'model': params}, Extra({}, {})

    def _times(self, t: Array, s: Array) -> Array:
        """What the network is told of a stretch of time from t (n,) to s: t and, of means, its length."""
        return jnp.stack([t, s - t] if self.means else [t], axis=-1)

    def _one_hot(self, labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, self.num_classes) if self.num_classes else None

    def mean_velocity(self, theta: Tree, x: Array, t: Array, s: Array, condition: Array | None) -> Array:
        """(n, D): the field's mean along the way from x (n, D) at t (n,) to s; at s = t the field itself."""
        out = self.network.apply({'params': theta}, x.reshape(-1, *self.shape), self._times(t, s), condition)
        return out.reshape(x.shape)

    def velocity(self, theta: Tree, condition: Array | None) -> solvers.Field:
        return lambda t, x: self.mean_velocity(theta, x, t, t, condition)

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        theta, labels = params['model'], batch.get('label')
        x1 = self._dequantized(batch['x'], ctx, self.options['dequantize']).reshape(-1, self.dim)
        x0 = couplings.couple(self.options['coupling'], self.source.draw(ctx), x1, labels)
        condition = self._one_hot(labels)
        if self.num_classes and self.options['class_dropout']:
            kept = ctx.uniform('class_dropout') >= self.options['class_dropout']
            condition = condition * kept[:, None]
        t, s = self._draw_times(ctx)
        x, velocity = paths.interpolate(x0, x1, t), x1 - x0
        if self.means:
            found, target = self._mean_target(theta, x, velocity, t, s, condition)
        else:
            found, target = self.mean_velocity(theta, x, t, t, condition), velocity
        square = jnp.sum((found - target) ** 2, axis=-1)
        error = jnp.mean(square) / self.dim
        if not self.options['weight_power']:
            return error, Aux({}, extra)
        weight = jax.lax.stop_gradient(square + _WEIGHT_FLOOR) ** -self.options['weight_power']
        return jnp.mean(weight * square), Aux({'squared_error': error}, extra)

    def _mean_target(self, theta: Tree, x: Array, velocity: Array, t: Array, s: Array, condition: Array | None):
        """(u, its target v + (s − t) du/dt), u the mean from t to s, with du/dt along the path at fixed s: the
        derivative by t of (s − t) u = ∫ v from t to s (Geng et al. 2025, eq. 6, whose time runs the other way)."""
        mean = lambda x, t: self.mean_velocity(theta, x, t, s, condition)
        found, change = jax.jvp(mean, (x, t), (velocity, jnp.ones_like(t)))
        return found, jax.lax.stop_gradient(velocity + (s - t)[:, None] * change)

    def _draw_times(self, ctx: rng.Context) -> tuple[Array, Array]:
        """t and s ≥ t, (n,) each; they are the same but for a share mean_share of MeanFlow's."""

        def draw(name: str) -> Array:
            if self.options['time'] == 'uniform':
                return ctx.uniform(name)
            return jax.nn.sigmoid(self.options['time_mean'] + self.options['time_std'] * ctx.normal(name, ()))

        t = draw('t')
        if not self.means:
            return t, t
        s = draw('s')
        apart = ctx.uniform('apart') < self.options['mean_share']
        return jnp.where(apart, jnp.minimum(t, s), t), jnp.where(apart, jnp.maximum(t, s), t)

    def _dequantized(self, x: Array, ctx: rng.Context, wanted: bool) -> Array:
        """x moved by a uniform draw inside the bin of its level."""
        if self.grid is None or not wanted:
            return x
        return x + self.grid[2] * (ctx.uniform('dequantize', self.shape) - 0.5)

    def _levels(self, x: Array) -> Array:
        """x (n, D) as an example of `shape`; where the model's density is one of dequantized data, at the level whose
        bin it lies in."""
        x = x.reshape(-1, *self.shape)
        if self.grid is None or not self.options['dequantize']:
            return x
        low, high, width = self.grid
        return jnp.clip(low + width * jnp.round((x - low) / width), low, high)

    def guided(self, theta: Tree, labels: Array | None) -> tuple[solvers.Field, int]:
        """(t, s, x) -> the mean velocity that samples follow, and how many evaluations of the network one of it takes:
        v(x) + w (v(x given c) − v(x)), w = sample.guidance (Ho & Salimans 2022, eq. 6, whose w is one less)."""
        condition, w = self._one_hot(labels), self.sampling['guidance']
        if condition is None or w == 1:
            return lambda t, s, x: self.mean_velocity(theta, x, t, s, condition), 1

        def field(t, s, x):
            free = self.mean_velocity(theta, x, t, s, jnp.zeros_like(condition))
            return free + w * (self.mean_velocity(theta, x, t, s, condition) - free)

        return field, 2

    def transport(self, theta: Tree, x: Array, labels: Array | None) -> tuple[Array, Array]:
        """(what the source's x (n, D) becomes, evaluations of the network (n,))."""
        (field, times), sampling = self.guided(theta, labels), self.sampling
        solver, steps = sampling['solver'], sampling['steps']
        if solver != 'mean_flow':
            x, count = solvers.solve(solver, lambda t, x: field(t, t, x), x, steps, sampling['tolerance'])
            return x, times * count
        h = 1 / steps

        def jump(i, x):
            t = jnp.full(len(x), i * h, x.dtype)
            return x + h * field(t, t + h, x)

        return jax.lax.fori_loop(0, steps, jump, x), jnp.full(len(x), times * steps, jnp.int32)

    def sample(self, params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        return self._levels(self.transport(params['model'], self.source.draw(ctx), labels)[0])

    def log_likelihood(self, theta: Tree, x: Array, labels: Array | None, ctx: rng.Context, tolerance: float):
        """(log density of x (n, D) in data units, x at the source, evaluations); without guidance."""
        probes = None
        if count := self.evaluation['probes']:  # Rademacher's, each example's own
            probes = jnp.sign(ctx.uniform('probes', (count, self.dim)) - 0.5)
            probes = jnp.moveaxis(jnp.where(probes == 0, 1.0, probes), 1, 0)
        field = self.velocity(theta, self._one_hot(labels))
        log_p, x0, count = solvers.log_likelihood(field, self.source.log_prob, x, probes, tolerance)
        return log_p - self.dim * self.log_factor, x0, count

    def measure(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """velocity_error: the field's mean squared error over the dimensions, at one time and for one independent draw
        of the source for each example. Its least value is not 0."""
        x1 = self._dequantized(batch['x'], ctx, self.options['dequantize']).reshape(-1, self.dim)
        x0, t = self.source.draw(ctx), ctx.uniform('t')
        found = self.velocity(params['model'], self._one_hot(batch.get('label')))(t, paths.interpolate(x0, x1, t))
        return {'model/velocity_error': jnp.mean((found - (x1 - x0)) ** 2, axis=-1)}

    def log_prob(self, theta: Tree, x: Array, labels: Array | None, ctx: rng.Context, tolerance: float):
        """(log p(x) of examples (n, *shape) in data units, given the class where the field is told it, evaluations).

        Of integer data it is log p(x̃) + D log Δ of one dequantized x̃ with bins of width Δ, whose mean is a lower bound
        of log P(x) (Theis et al. 2016, eq. 4).
        """
        x = self._dequantized(x, ctx, True).reshape(-1, self.dim)
        log_p, _, count = self.log_likelihood(theta, x, labels, ctx, tolerance)
        if self.grid is not None:
            log_p = log_p + self.dim * (math.log(self.grid[2]) + self.log_factor)
        return log_p, count

    def integrate(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        theta, labels = params['model'], batch.get('label')
        log_p, count = self.log_prob(theta, batch['x'], labels, ctx, self.evaluation['nll_tolerance'])
        _, evaluations = self.transport(theta, self.source.draw(ctx), labels)
        return {
            'model/nll': -log_p,
            'model/bits_per_dim': -log_p / (self.dim * math.log(2)),
            'model/evaluations': evaluations.astype(jnp.float32),
            'model/nll_evaluations': count.astype(jnp.float32),
        }

    def encode(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        """(n, D): where the examples come from in the source, along the field without guidance."""
        field, x = self.velocity(params['model'], self._one_hot(batch.get('label'))), batch['x']
        tolerance = self.evaluation['nll_tolerance']
        return solvers.dopri5(lambda s, x: -field(1 - s, x), x.reshape(-1, self.dim), tolerance)[0]

    def decode(self, params, extra: Extra, codes: Array, labels: Array | None) -> Array:
        field = self.velocity(params['model'], self._one_hot(labels))
        return self._levels(solvers.dopri5(field, codes, self.evaluation['nll_tolerance'])[0])

    def density(self, params, extra: Extra, x: Array, ctx: rng.Context) -> Array:
        return self.log_prob(params['model'], x, None, ctx, self.evaluation['nll_tolerance'])[0]

    def drawn_density(self, params, extra: Extra, x: Array, ctx: rng.Context) -> Array:
        return self.log_prob(params['model'], x, None, ctx, _DRAWN_TOLERANCE)[0]

    def task(self) -> Task:
        capabilities = [
            Samples(self.sample, self.num_classes),
            SplitStatistic(self.integrate, lambda found: found, self.evaluation['nll_examples']),
        ]
        if self.options['coupling'] == 'independent':
            # Of an optimal coupling the error is one of a whole batch, and of independent pairs it says nothing.
            capabilities.append(Measures(self.measure))
        if len(self.source.means) == 1:
            capabilities.append(LatentSpace(self.encode, self.decode))
        if not self.num_classes:
            if self.shape == (2,):
                capabilities.append(ScalarField('log p(x)', self.drawn_density))
            capabilities.append(LogDensity('log p(x), nats', self.density))
        return Task(self.init, ((Turn('model', self.loss),),), tuple(capabilities))


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, options, spec = config.model, config.task, dataset.spec
    if isinstance(spec, Tokens):
        raise UserError(f'task.name: flow is for images and points; {config.data.name} is text')
    num_classes = conditional.classes(config, dataset)
    _check(options, config, dataset)
    network = build(unet.KINDS[model.kind], 'model.network', model.network, dtype=compute_dtype(config.precision))
    unet.check(network, spec.shape, 'model.network')
    scaling = dataset.scaling(config.data)
    factor = 1.0 if scaling.factor is None else float(scaling.factor)
    grid = None
    if isinstance(spec, Images) and (levels := 1 if config.data.binarize != 'none' else spec.levels):
        low, high = (float(scaling.to_model(end)) for end in (0.0, 1.0))
        grid = low, high, (high - low) / levels
    source = Source(np.zeros((1, math.prod(spec.shape)), np.float32), 1.0)
    if options.source == 'eight_gaussians':
        # torchcfm's `sample_8gaussians`: radius 5, and var=0.1, of which it makes a covariance of √0.1.
        angles = np.arange(8) * (2 * np.pi / 8)
        means = scaling.to_model(np.round(5 * np.stack([np.cos(angles), np.sin(angles)], axis=-1), 12))
        source = Source(np.asarray(means, np.float32), 0.1**0.25 / factor)
    return Flow(
        network=network,
        shape=tuple(spec.shape),
        num_classes=num_classes,
        options=dict(options),
        source=source,
        sampling=dict(config.sample),
        evaluation=dict(config.eval),
        grid=grid,
        log_factor=math.log(factor),
    ).task()


def _check(options, config, dataset: Dataset) -> None:
    """Raises UserError for fields that do not fit each other or the data."""
    if options.coupling != 'independent':
        parallel.want_whole_batch(config, f'task.coupling: {options.coupling} is of a whole batch')
    if options.coupling == 'class_optimal' and not config.model.conditional:
        raise UserError('task.coupling: class_optimal is for model.conditional=True; use optimal')
    if options.source != 'normal' and dataset.spec.shape != (2,):
        raise UserError(f'task.source: {options.source} is for points in the plane; use normal')
    if config.sample.solver == 'mean_flow' and options.objective != 'mean_velocity':
        known = ', '.join(solvers.SOLVERS)
        raise UserError(f'sample.solver: mean_flow wants task.objective mean_velocity; choose one of {known}')
    if config.sample.guidance != 1 and not (config.model.conditional and options.class_dropout):
        raise UserError(
            'sample.guidance: other than 1, it is for a model that was trained with and without the class: '
            'model.conditional=True, and task.class_dropout above 0'
        )
