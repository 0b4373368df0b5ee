"""The linear path x_t = (1 − t) x0 + t x1 from a source x0 to the data x1 (Lipman et al. 2023; Liu et al. 2023), and
conversions between what a network can say of it.

Of x_t they are all the conditional expectations of something given x_t, and each is a linear function of each other
(Lipman et al. 2024, section 4.8): the velocity E[x1 − x0], the data E[x1], the noise E[x0], and, where x0 is N(0, I),
the score ∇ log p_t(x_t) = −E[x0] / (1 − t). t (n,) goes with x (n, …).
"""

from aigc_jax.core.types import Array


def like(t: Array, x: Array) -> Array:
    """t (n,) with as many axes as x (n, …)."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def interpolate(x0: Array, x1: Array, t: Array) -> Array:
    """x_t."""
    t = like(t, x0)
    return (1 - t) * x0 + t * x1


def velocity_to_data(v: Array, x: Array, t: Array) -> Array:
    return x + (1 - like(t, x)) * v


def velocity_to_noise(v: Array, x: Array, t: Array) -> Array:
    return x - like(t, x) * v


def velocity_to_score(v: Array, x: Array, t: Array) -> Array:
    """Where x0 is N(0, I); undefined at t = 1."""
    return -velocity_to_noise(v, x, t) / (1 - like(t, x))


def data_to_velocity(data: Array, x: Array, t: Array) -> Array:
    """Undefined at t = 1."""
    return (data - x) / (1 - like(t, x))


def noise_to_velocity(noise: Array, x: Array, t: Array) -> Array:
    """Undefined at t = 0."""
    return (x - noise) / like(t, x)


def score_to_velocity(score: Array, x: Array, t: Array) -> Array:
    """Where x0 is N(0, I); undefined at t = 0."""
    return noise_to_velocity(-(1 - like(t, x)) * score, x, t)
