"""Metrics of samples of a known equal-weight mixture of isotropic Gaussians: which modes, how well, how wide.

A `density` has `means` (K, D) and `std` (a scalar, shared by all modes). The modes are taken to lie much
further apart than `std`, as on the ring and the grid of the GAN literature.
"""

import math

import numpy as np
from scipy.special import chdtr

# A sample is of high quality within this many standard deviations of its nearest mode (VEEGAN, section 4.1).
RADIUS = 3.0


def mixture_metrics(samples, density) -> dict[str, float]:
    """Scores samples (N, D) against `density`; every value is a float.

    modes              modes with at least one high-quality sample nearest to them (VEEGAN, Srivastava et al.
                       2017, section 4.1; PacGAN, Lin et al. 2018, section 4.1)
    high_quality       percent of the samples within 3 std (Euclidean) of their nearest mode (the same)
    reverse_kl         KL(shares of the samples by nearest mode || uniform), nats, over all samples, those of
                       low quality included, as PacGAN has it: 0 when balanced, ln K when all are at one mode
    variance_ratio_*   min, max, mean over modes of: the variance per dimension (unbiased) of a mode's
                       high-quality samples about their own mean, divided by what a perfect sampler's have
                       (the cut at 3 std shrinks it). 1 is right, towards 0 the mode is a point. A mode with
                       fewer than 2 such samples has no variance: it is left out of max and mean (nan if no
                       mode is left), and min is 0.

    Raises ValueError if samples are not (N, D) with N > 0 and the D of the means, or are not all finite.
    """
    x = np.asarray(samples, np.float64)
    means = np.asarray(density.means, np.float64)
    std = float(density.std)
    num_modes, dim = means.shape
    if x.ndim != 2 or x.shape[1] != dim or not len(x):
        raise ValueError(f'samples must have shape (N, {dim}) with N > 0, got {x.shape}')
    if bad := int((~np.isfinite(x)).any(axis=1).sum()):
        raise ValueError(f'{bad} of {len(x)} samples are not finite')

    # One mode at a time: (N, K) is held, (N, K, D) never.
    squared = np.stack([np.square(x - mean).sum(axis=1) for mean in means], axis=1)
    nearest = squared.argmin(axis=1)
    good = squared.min(axis=1) <= (RADIUS * std) ** 2

    shares = np.bincount(nearest, minlength=num_modes) / len(x)
    held = shares[shares > 0]
    perfect = std**2 * _truncated_variance(dim)
    ratios = np.full(num_modes, np.nan)
    for mode in range(num_modes):
        mine = x[good & (nearest == mode)]
        if len(mine) >= 2:
            ratios[mode] = mine.var(axis=0, ddof=1).mean() / perfect
    known = ratios[np.isfinite(ratios)]
    return {
        'modes': float(len(np.unique(nearest[good]))),
        'high_quality': 100.0 * float(good.mean()),
        # The sum is >= 0 but for rounding, and a divergence of -1e-16 would only puzzle.
        'reverse_kl': max(0.0, float(np.sum(held * np.log(held * num_modes)))),
        'variance_ratio_min': float(known.min()) if len(known) == num_modes else 0.0,
        'variance_ratio_max': float(known.max()) if len(known) else math.nan,
        'variance_ratio_mean': float(known.mean()) if len(known) else math.nan,
    }


def perfect_sampler(density, n: int) -> dict[str, float]:
    """What `n` samples of the density itself score, to first order in 1/n: the mark for `mixture_metrics`.

    high_quality is 100 F_D(9) with F_D the chi-squared CDF of D degrees of freedom (98.89 for D = 2);
    reverse_kl is not 0 but the bias (K - 1) / 2n of n counts (Miller 1955). The variance ratio of one mode
    scatters about 1 by some sqrt(2K / nD), so min lies a little below 1 and max above.
    """
    num_modes, dim = np.shape(density.means)
    return {
        'modes': float(num_modes),
        'high_quality': 100.0 * float(chdtr(dim, RADIUS**2)),
        'reverse_kl': (num_modes - 1) / (2 * n),
        'variance_ratio_min': 1.0,
        'variance_ratio_max': 1.0,
        'variance_ratio_mean': 1.0,
    }


def _truncated_variance(dim: int) -> float:
    """Variance per dimension of N(0, I) in `dim` dimensions, kept where |x| <= RADIUS.

    E[|x|^2; |x|^2 <= r^2] = D F_{D+2}(r^2), since t p_D(t) = D p_{D+2}(t) for the chi-squared density p.
    """
    return chdtr(dim + 2, RADIUS**2) / chdtr(dim, RADIUS**2)
