"""Densities, and what a VAE's decoder may say of x given z: one `Likelihood` for each name of task.likelihood."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array
from aigc_jax.data import Dataset, Images, Scaling

LOG_2PI = math.log(2 * math.pi)
LEAST_SCALE = math.exp(-6)  # of σ-VAE; Rybkin et al. 2021 keep log σ above −6, by a soft clip
_EXAMPLES = 1000  # that the spread of the training split is measured on


def normal_terms(z: Array, mu: Array | float, log_var: Array | float) -> Array:
    """log N(z; μ, σ²) of each dimension, (…, d)."""
    return -0.5 * ((z - mu) ** 2 * jnp.exp(-log_var) + log_var + LOG_2PI)


def log_normal(z: Array, mu: Array | float, log_var: Array | float) -> Array:
    """log N(z; μ, σ²), (…, d) -> (…)."""
    return jnp.sum(normal_terms(z, mu, log_var), axis=-1)


def log_normal_pairs(z: Array, mu: Array, log_var: Array) -> Array:
    """log N(z; μ_j, σ_j²) of each z under K Gaussians, (…, d) and two (K, d) -> (…, K), by products of matrices.

    (z − μ)²/σ² is multiplied out, as in scikit-learn's mixtures: the differences themselves would be (…, K, d), twenty
    times slower on a CPU. Measured from the mean of the μ, so that what cancels is small: float32 keeps 1e-3 nats while
    Σ (z/σ)² is below 1e4.
    """
    center = jax.lax.stop_gradient(jnp.mean(mu, axis=0))
    z, mu, precision = z - center, mu - center, jnp.exp(-log_var)
    dot = lambda a, b: jnp.matmul(a, b.T, precision='highest')
    square = dot(z**2, precision) - 2 * dot(z, mu * precision)
    return -0.5 * (square + jnp.sum(mu**2 * precision + log_var + LOG_2PI, axis=-1))


def gaussian_kl_terms(mu: Array, log_var: Array) -> Array:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − log σ² − 1) of each dimension, (…, d). Kingma & Welling 2013, app. B."""
    return 0.5 * (mu**2 + jnp.exp(log_var) - log_var - 1)


@jax.custom_vjp
def log_bernoulli(x: Array, logits: Array, scale: None) -> Array:
    """Σ x·l − log(1 + eˡ), x and l (…, d) -> (…): the log-likelihood of x in {0, 1}.

    log(1 + eˡ) = max(l, 0) + log(1 + e^−|l|), with one logarithm for 16 terms, which takes a third of the time on a
    CPU: the product of 16 numbers in [1, 2] cannot overflow. Each term is exact to 6e-8 nats, where log1p would be
    exact relative to its size.
    """
    factors = 1 + jnp.exp(-jnp.abs(logits))
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % 16)]
    factors = jnp.pad(factors, padding, constant_values=1.0)
    products = jnp.prod(factors.reshape(*factors.shape[:-1], -1, 16), axis=-1)
    return jnp.sum(x * logits - jnp.maximum(logits, 0), axis=-1) - jnp.sum(jnp.log(products), axis=-1)


def _log_bernoulli_gradients(residuals, g: Array):
    """l and x − σ(l), times g; differentiating the product of 16 would be slower and less exact."""
    x, logits = residuals
    return g[..., None] * logits, g[..., None] * (x - jax.nn.sigmoid(logits)), None


log_bernoulli.defvjp(lambda x, l, scale: (log_bernoulli(x, l, scale), (x, l)), _log_bernoulli_gradients)


def log_gaussian(x: Array, mean: Array, log_scale: Array) -> Array:
    """log N(x; mean, s²) with one scale s for all dimensions, (…, d) -> (…)."""
    return log_normal(x, mean, 2 * log_scale)


def log_discretized_logistic(x: Array, mean: Array, log_scale: Array, low: float, high: float, levels: int) -> Array:
    """log P(x) of x on a grid of levels + 1 values from `low` to `high`, (…, d) -> (…).

    P(x) = σ(b) − σ(a), b and a = (x ± Δ/2 − mean) / s, Δ the grid's spacing; the bins at both ends are open
    (Salimans et al. 2017, eq. 2). As σ(b) − σ(a) = σ(b) σ(−a) (1 − e^−(b−a)), its logarithm is a sum without
    cancellation, however far x is from the mean.
    """
    width, s = (high - low) / levels, jnp.exp(log_scale)
    a, b = (x - width / 2 - mean) / s, (x + width / 2 - mean) / s
    first, last = x < low + width / 2, x > high - width / 2
    below = jnp.where(last, 0.0, jax.nn.log_sigmoid(b))
    above = jnp.where(first, 0.0, jax.nn.log_sigmoid(-a))
    between = jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(-width / s)))
    return jnp.sum(below + above + between, axis=-1)


def discretized_logistic_mean(mean: Array, log_scale: Array, low: float, high: float, levels: int) -> Array:
    """E x = low + Δ Σ P(x ≥ low + tΔ), t = 1 … levels, of the same distribution; elementwise."""
    width, s = (high - low) / levels, jnp.exp(log_scale)
    more = lambda total, t: (total + jax.nn.sigmoid((mean - low - (t - 0.5) * width) / s), None)
    total, _ = jax.lax.scan(more, jnp.zeros_like(mean), jnp.arange(1, levels + 1))
    return low + width * total


def log_categorical(x: Array, logits: Array, low: float, high: float, levels: int) -> Array:
    """log P(x) of x (…, d) on the same grid, from logits (…, d · (levels + 1)) -> (…)."""
    logits = jax.nn.log_softmax(logits.reshape(*x.shape, levels + 1))
    index = jnp.rint((x - low) * (levels / (high - low))).astype(jnp.int32)
    return jnp.sum(jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0], axis=-1)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """p(x given z), from what the decoder gives. x, out and log_scale are in the model's units (data.scale).

    log_prob(x (n, D), out (n, D · channels), log_scale) -> (n,), in nats: the probability of x, or, of a Gaussian, its
        density in the data's own units, which data.scale does not change. Those of images are [0, 1], those of points
        as the set has them.
    mean(out (n, …, C · channels), log_scale) -> E[x given z], (n, …, C).
    channels: numbers that the decoder gives for each of x's.
    scale: of all dimensions: 'learned', a parameter; 'optimal', that of the batch (σ-VAE); '', there is none.
    start: where log_scale begins, at the spread of the training split.
    """

    log_prob: Callable[[Array, Array, Array | None], Array]
    mean: Callable[[Array, Array | None], Array]
    channels: int = 1
    scale: str = ''
    start: float = 0.0


NAMES = ('bernoulli', 'gaussian', 'optimal_gaussian', 'discretized_logistic', 'categorical')
FIELD = Field(
    str, choices=NAMES,
    doc='p(x given z): `gaussian` has a learned scale, `optimal_gaussian` that of σ-VAE (Rybkin et al. 2021), '
    '`discretized_logistic` a learned one; `categorical` has a logit for each level of a pixel',
)  # fmt: skip
_OF_LEVELS = ('discretized_logistic', 'categorical')


def make(name: str, dataset: Dataset, data) -> Likelihood:
    """The likelihood of a name, for data of this config's `data`. Raises UserError where they do not fit.

    optimal_gaussian: σ² is the mean squared error of the batch (Rybkin et al. 2021).
    """
    FIELD.check('task.likelihood', name)
    spec, scaling = dataset.spec, dataset.scaling(data)
    levels = spec.levels if isinstance(spec, Images) else 0
    if name == 'bernoulli' and not (isinstance(spec, Images) and data.scale == 'unit'):
        raise UserError('task.likelihood: bernoulli wants images in [0, 1] (data.scale=unit); use gaussian')
    if name in _OF_LEVELS and not levels:
        raise UserError(f'task.likelihood: {name} wants images of whole levels; {data.name} has none: use gaussian')
    low, high = (scaling.to_model(end) for end in (0.0, 1.0))
    grid = low, high, 1 if data.binarize != 'none' else levels
    if name == 'bernoulli':
        return Likelihood(log_bernoulli, lambda logits, _: jax.nn.sigmoid(logits))
    if name == 'discretized_logistic':
        return Likelihood(
            lambda x, out, log_scale: log_discretized_logistic(x, out, log_scale, *grid),
            lambda out, log_scale: discretized_logistic_mean(out, log_scale, *grid),
            scale='learned',
            start=math.log(spread(dataset, scaling) * math.sqrt(3) / math.pi),  # σ = s π / √3
        )
    if name == 'categorical':
        values = jnp.linspace(*grid[:2], grid[2] + 1)
        return Likelihood(
            lambda x, out, _: log_categorical(x, out, *grid),
            lambda out, _: jax.nn.softmax(out.reshape(*out.shape[:-1], -1, len(values))) @ values,
            channels=len(values),
        )
    # p of the data is p of what the model sees, times |d model / d data| for each dimension.
    log_factor = 0.0 if scaling.factor is None else math.log(scaling.factor)
    return Likelihood(
        lambda x, mean, log_scale: log_gaussian(x, mean, log_scale) - x.shape[-1] * log_factor,
        lambda mean, _: mean,
        scale='optimal' if name == 'optimal_gaussian' else 'learned',
        start=math.log(spread(dataset, scaling)),
    )


def spread(dataset: Dataset, scaling: Scaling) -> float:
    """The standard deviation of the training examples about their mean, over all dimensions together, in the model's
    units; LEAST_SCALE or more. Of many examples, it is that of some, evenly spaced."""
    source = dataset.splits['train']
    count = min(len(source), _EXAMPLES)
    stored = source[np.arange(count) * (len(source) // count)]['x']
    x = np.asarray(scaling.to_model(dataset.spec.to_data(stored)), np.float64)
    return max(math.sqrt(np.square(x - x.mean(axis=0)).mean()), LEAST_SCALE)


def optimal_log_scale(mse: Array) -> Array:
    """log σ of σ² = the mean squared error, kept above LEAST_SCALE."""
    return 0.5 * jnp.log(jnp.maximum(mse, LEAST_SCALE**2))
