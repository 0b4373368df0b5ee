"""Annealed importance sampling (Neal 2001): log p(x) and the rate–distortion curve of a decoder, without an encoder."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array

# Of `eval`.
FIELDS = {
    'ais_temperatures': Field(
        int, 0, least=0, doc='of annealed importance sampling in the final evaluation; 0: there is none'
    ),
    'ais_chains': Field(int, 16, least=1, doc='of annealed importance sampling, for each example'),
    'ais_examples': Field(
        int, 100, least=0, doc='that it is done for, drawn at random, the same for every run; 0: all'
    ),
}  # fmt: skip
LEAPFROG_STEPS = 10
_ACCEPTANCE = 0.65  # that the step size is led to (Wu et al. 2017)
_FIRST_STEP, _CHANGE = 0.1, 1.02
_STEEPNESS = 4.0  # of the sigmoid that the temperatures lie on: most of them where the likelihood enters and settles
_POINTS = 10  # of the rate–distortion curve


class Annealed(NamedTuple):
    """log_p: log p̂(x), (n,). acceptance: share of the proposals accepted, (n,).

    curve: {b: (rate (n,), distortion (n,))} of the channels q(z given x) ∝ p(z) p(x given z)^b, which are the best for
    the prior p(z) and the distortion −log p(x given z), in nats: KL(q ‖ p(z)) = −log Z_b − b D and D = E_q of the
    distortion (Huang et al. 2020, "Evaluating lossy compression rates of deep generative models"), where AIS gives
    log Z_b up to b, in the mean too low, and its chains, by their weights, stand for q.
    """

    log_p: Array
    acceptance: Array
    curve: dict[float, tuple[Array, Array]]


def temperatures(count: int) -> np.ndarray:
    """0 = b_0 < b_1 < … < b_count = 1, (count + 1,)."""
    values = 1 / (1 + np.exp(-_STEEPNESS * np.linspace(-1.0, 1.0, count + 1)))
    return (values - values[0]) / (values[-1] - values[0])


def ais(
    z: Array, log_prior: Callable[[Array], Array], log_likelihood: Callable[[Array], Array], ctx: rng.Context,
    count: int,
) -> Annealed:  # fmt: skip
    """As Wu et al. 2017 do it.

    z (n, chains, d): draws from the prior. log_prior and log_likelihood: (n, chains, d) -> (n, chains).
    Each of `count` transitions is one of Hamiltonian Monte Carlo, on p(z) p(x given z)^b, with a step size for each
    example that follows its acceptance. E p̂(x) = p(x) but for that adaptation, so log p̂(x) is, in the mean, a lower
    bound of log p(x).
    """
    ladder = temperatures(count)
    b = jnp.asarray(ladder, jnp.float32)

    def tempered(z: Array, b: Array):
        prior, likelihood = log_prior(z), log_likelihood(z)
        total = prior + b * likelihood
        return jnp.sum(total), (total, likelihood)

    gradient = jax.value_and_grad(tempered, has_aux=True)

    def transition(carry, t):
        z, log_w, size = carry
        here = rng.Context(rng.fold_in(ctx.key, t), ctx.index, ctx.step)
        (_, (start, likelihood)), slope = gradient(z, b[t])
        log_w = log_w + (b[t] - b[t - 1]) * likelihood
        momentum, width = here.normal('momentum', z.shape[1:]), size[:, None, None]

        def leapfrog(state, _):
            position, speed, slope, _, _ = state
            speed = speed + 0.5 * width * slope
            position = position + width * speed
            (_, (total, likelihood)), slope = gradient(position, b[t])
            return (position, speed + 0.5 * width * slope, slope, total, likelihood), None

        path = z, momentum, slope, start, likelihood
        (proposal, speed, _, end, reached), _ = jax.lax.scan(leapfrog, path, length=LEAPFROG_STEPS)
        kinetic = 0.5 * jnp.sum(momentum**2 - speed**2, axis=-1)
        log_ratio = end - start + kinetic
        accept = jnp.log(here.uniform('accept', z.shape[1:2])) < log_ratio  # False where it is NaN
        rate = jnp.mean(accept, axis=1)
        size = size * jnp.where(rate > _ACCEPTANCE, _CHANGE, 1 / _CHANGE)
        log_z = jax.nn.logsumexp(log_w, axis=1) - jnp.log(z.shape[1])
        distortion = -jnp.sum(jax.nn.softmax(log_w, axis=1) * jnp.where(accept, reached, likelihood), axis=1)
        return (jnp.where(accept[..., None], proposal, z), log_w, size), (rate, log_z, distortion)

    start = z, jnp.zeros(z.shape[:2]), jnp.full(z.shape[0], _FIRST_STEP)
    _, (rates, log_z, distortion) = jax.lax.scan(transition, start, jnp.arange(1, count + 1))
    shown = np.unique(np.linspace(count / _POINTS, count, _POINTS).round().astype(int).clip(1))
    curve = {float(ladder[t]): (-log_z[t - 1] - ladder[t] * distortion[t - 1], distortion[t - 1]) for t in shown}
    return Annealed(log_z[-1], jnp.mean(rates, axis=0), curve)
