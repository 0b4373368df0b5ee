"""Distances between two sets of points by optimal transport."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from aigc_jax.core.schema import Field

FIELDS = {
    'transport_samples': Field(
        int, 2000, least=1,
        doc='for the distance of samples of points of unknown density, which is exact; no more than half of the split',
    ),
}  # fmt: skip


def squared_wasserstein(x, y) -> float:
    """W₂² of two empirical distributions with as many points: the mean squared distance of the best assignment of
    x (n, D) to y (n, D), exact.

    Of two sets of n draws from one distribution it is not 0, so that a value is read beside that of real points (see
    `floor`), of as many. It takes n² numbers, and a time that grows about as n³: a quarter of a second for n = 1000.

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
    rows, columns = linear_sum_assignment(cost)
    return float(np.square(x[rows] - y[columns]).sum(axis=1).mean())


def floor(real, n: int) -> float:
    """`squared_wasserstein` of two disjoint sets of n real points (N, D), the first and the last, 2 n ≤ N: what a
    perfect sampler comes to."""
    if 2 * n > len(real):
        raise ValueError(f'{len(real)} points do not hold two sets of {n}')
    return squared_wasserstein(real[:n], real[len(real) - n :])
