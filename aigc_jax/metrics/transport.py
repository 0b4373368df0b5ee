"""Distances between two sets of points by optimal transport."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array

FIELDS = {
    'transport_samples': Field(
        int, 2000, least=1,
        doc='for the distance of samples of points of unknown density, which is exact; no more than half of the split',
    ),
}  # fmt: skip


@jax.jit
def entropic_duals(cost: Array) -> Array:
    """Dual variables (n,) of the columns of cost (n, n), close to those of the assignment with the least sum: of the
    entropic transport, while its ε is halved (Peyré & Cuturi 2019, "Computational Optimal Transport", sections 4.2 and
    4.4). Algorithms by shortest paths find the exact assignment from whichever duals they start, and sooner from these.
    Costs may be inf where some assignment avoids them."""
    spread = jnp.max(jnp.where(jnp.isinf(cost), -jnp.inf, cost)) - jnp.min(cost)

    def halve(k, duals):
        f, g = duals
        epsilon = spread * 0.5 ** (k + 1)
        kernel = jnp.exp((f[:, None] + g - cost) / epsilon)
        b = jnp.ones_like(g)
        for _ in range(4):
            a = 1 / (kernel @ b)
            b = 1 / (a @ kernel)
        return f + epsilon * jnp.log(a), g + epsilon * jnp.log(b)

    _, g = jax.lax.fori_loop(0, 12, halve, (jnp.min(cost, axis=1), jnp.zeros_like(cost[0])))
    return jnp.where(jnp.isfinite(g), g, 0)  # where all costs are the same, ε is 0


def squared_wasserstein(x, y) -> float:
    """W₂² of two empirical distributions with as many points: the mean squared distance of the best assignment of
    x (n, D) to y (n, D), exact.

    Of two sets of n draws from one distribution it is above 0. `floor` tells how far, for n real points. It takes n²
    numbers, and 0.15 s on one core for n = 2000, 14 s for n = 10,000.

    Raises ValueError where the shapes differ or a number is not finite.
    """
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    if x.ndim != 2 or x.shape != y.shape or not len(x):
        raise ValueError(f'x and y must have one shape (n, D) with n > 0, got {x.shape} and {y.shape}')
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError('not all points are finite')
    center = y.mean(axis=0)  # so that the squares are small, and little cancels
    x, y = x - center, y - center
    cost = np.square(x).sum(axis=1)[:, None] - 2 * x @ y.T + np.square(y).sum(axis=1)
    cost -= np.asarray(entropic_duals(cost.astype(np.float32)))
    cost -= cost.min(axis=1, keepdims=True)
    rows, columns = linear_sum_assignment(cost)
    return float(np.square(x[rows] - y[columns]).sum(axis=1).mean())


def floor(real, n: int) -> float:
    """`squared_wasserstein` of two disjoint sets of n real points (N, D), the first and the last, 2 n ≤ N: what a
    perfect sampler comes to."""
    if 2 * n > len(real):
        raise ValueError(f'{len(real)} points do not hold two sets of {n}')
    return squared_wasserstein(real[:n], real[len(real) - n :])
