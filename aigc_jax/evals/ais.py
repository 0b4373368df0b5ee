"""Annealed importance sampling (Neal 2001): log p(x) of a decoder, without an encoder."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.core import rng
from aigc_jax.core.types import Array

LEAPFROG_STEPS = 10
_ACCEPTANCE = 0.65  # that the step size is led to (Wu et al. 2017)
_FIRST_STEP, _CHANGE = 0.1, 1.02
_STEEPNESS = 4.0  # of the sigmoid that the temperatures lie on: most of them where the likelihood enters and settles


def temperatures(count: int) -> Array:
    """0 = b_0 < b_1 < … < b_count = 1, (count + 1,)."""
    values = jax.nn.sigmoid(_STEEPNESS * jnp.linspace(-1.0, 1.0, count + 1))
    return (values - values[0]) / (values[-1] - values[0])


def ais(
    z: Array, log_prior: Callable[[Array], Array], log_likelihood: Callable[[Array], Array], ctx: rng.Context,
    count: int,
) -> tuple[Array, Array]:  # fmt: skip
    """(log p̂(x), share of the proposals accepted), (n,) each; Wu et al. 2017.

    z (n, chains, d): draws from the prior. log_prior and log_likelihood: (n, chains, d) -> (n, chains).
    Each of `count` transitions is one of Hamiltonian Monte Carlo, on p(z) p(x given z)^b, with a step size for each
    example that follows its acceptance. E p̂(x) = p(x) but for that adaptation, so log p̂(x) is, in the mean, a lower
    bound of log p(x).
    """
    b = temperatures(count)

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
            position, speed, slope, _ = state
            speed = speed + 0.5 * width * slope
            position = position + width * speed
            (_, (total, _)), slope = gradient(position, b[t])
            return (position, speed + 0.5 * width * slope, slope, total), None

        (proposal, speed, _, end), _ = jax.lax.scan(leapfrog, (z, momentum, slope, start), length=LEAPFROG_STEPS)
        kinetic = 0.5 * jnp.sum(momentum**2 - speed**2, axis=-1)
        log_ratio = end - start + kinetic
        accept = jnp.log(here.uniform('accept', z.shape[1:2])) < log_ratio  # False where it is NaN
        rate = jnp.mean(accept, axis=1)
        size = size * jnp.where(rate > _ACCEPTANCE, _CHANGE, 1 / _CHANGE)
        return (jnp.where(accept[..., None], proposal, z), log_w, size), rate

    start = z, jnp.zeros(z.shape[:2]), jnp.full(z.shape[0], _FIRST_STEP)
    (_, log_w, _), rates = jax.lax.scan(transition, start, jnp.arange(1, count + 1))
    return jax.nn.logsumexp(log_w, axis=1) - jnp.log(z.shape[1]), jnp.mean(rates, axis=0)
