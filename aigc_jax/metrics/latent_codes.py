"""Latent spaces: how much codes say of the data, in float64 on the host, and ways through them."""

import numpy as np

from aigc_jax.core.schema import Field

ACTIVE = 0.01  # the variance above which Burda et al. 2016 call a unit active
_CHUNK = 500  # rows of the matrix of all pairs
INTERPOLATIONS = ('linear', 'spherical')
# Of `eval`.
FIELDS = {
    'interpolation': Field(
        str, 'spherical', choices=INTERPOLATIONS, doc='the way from code to code in the picture interpolations.png'
    )
}  # fmt: skip


def active_units(means: np.ndarray, again: np.ndarray | None = None) -> float:
    """Dimensions of E q(z given x), (N, d), whose variance over x is above 0.01 (Burda et al. 2016); of nan, nan.

    again: where they are means over draws, those over as many others. The variance is then estimated by the covariance
    of the two, to which the draws' own does not add.
    """
    a = np.asarray(means, np.float64)
    b = a if again is None else np.asarray(again, np.float64)
    variance = np.mean((a - a.mean(axis=0)) * (b - b.mean(axis=0)), axis=0)
    return float((variance > ACTIVE).sum()) if np.isfinite(variance).all() else np.nan


def log_aggregate(z: np.ndarray, mu: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """log q(z) = log 1/N Σ_j N(z; μ_j, σ_j²) for z (M, d), of the N posteriors μ, log σ² (N, d): (M,)."""
    from scipy.special import logsumexp

    z, mu, log_var = (np.asarray(a, np.float64) for a in (z, mu, log_var))
    precision = np.exp(-log_var)
    constant = np.sum(mu**2 * precision + log_var + np.log(2 * np.pi), axis=1)
    squared = lambda rows: rows**2 @ precision.T - 2 * rows @ (mu * precision).T + constant
    parts = [logsumexp(-0.5 * squared(z[i : i + _CHUNK]), axis=1) for i in range(0, len(z), _CHUNK)]
    return np.concatenate(parts) - np.log(len(mu))


def information(z: np.ndarray, mu: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """log q(z_i given x_i) − log q(z_i), (N,), for one z_i (N, d) from each of N Gaussian posteriors.

    Its mean estimates I_q(x; z), where x is one of these N examples, so that it is at most log N. Hoffman & Johnson
    2016. All N depend on one q(z), but that adds nothing to the mean's error to first order in 1/N: the influence of
    x_j through log q(z) is −E[q(z given x_j) / q(z)] + 1, which is 0, z ~ q(z).
    """
    z, mu, log_var = (np.asarray(a, np.float64) for a in (z, mu, log_var))
    own = -0.5 * np.sum((z - mu) ** 2 * np.exp(-log_var) + log_var + np.log(2 * np.pi), axis=1)
    return own - log_aggregate(z, mu, log_var)


def traversals(codes: np.ndarray, most: int, steps: int) -> np.ndarray:
    """The first of the codes (N, d), with one of its dimensions moved over ± 3 standard deviations of all codes around
    their mean: (dimensions, steps, d), the `most` dimensions that vary most, by their variance."""
    mean, std = codes.mean(axis=0), codes.std(axis=0)
    dims = np.argsort(-std, kind='stable')[:most]
    moved = np.tile(codes[0], (len(dims), steps, 1))
    for row, j in zip(moved, dims, strict=True):
        row[:, j] = mean[j] + std[j] * np.linspace(-3, 3, steps)
    return moved


def interpolations(a: np.ndarray, b: np.ndarray, steps: int, how: str) -> np.ndarray:
    """From a to b, (n, d) each: (n, steps, d). 'spherical': along the great circle, with the norm going linearly; on a
    line a high-dimensional Gaussian's codes would pass where it has next to no mass (White 2016)."""
    t = np.linspace(0, 1, steps)[:, None]
    a, b = a[:, None].astype(np.float64), b[:, None].astype(np.float64)
    if how == 'linear':
        return (1 - t) * a + t * b
    norms = [np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b)]
    unit = [x / norm for x, norm in zip((a, b), norms, strict=True)]
    angle = np.arccos(np.clip(np.sum(unit[0] * unit[1], axis=-1, keepdims=True), -1, 1))
    sine = np.sin(angle)
    with np.errstate(divide='ignore', invalid='ignore'):
        weights = [np.where(sine < 1e-6, w, np.sin(w * angle) / sine) for w in (1 - t, t)]
    return (weights[0] * unit[0] + weights[1] * unit[1]) * ((1 - t) * norms[0] + t * norms[1])
