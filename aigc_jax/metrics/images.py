"""How near two sets of images, or of their features, are to each other; how much they differ among themselves.

Features are (n, D) arrays, of any float; sums are taken in float64. No matrix of all pairs is ever held: they are gone
through in blocks of rows.
"""

import math
from collections.abc import Iterator

import numpy as np

from aigc_jax.core.schema import Field

# Of `eval`, of images and points.
FIELDS = {
    'num_samples': Field(int, 10_000, least=1, doc='for the metrics of samples'),
    'extractor': Field(
        str, 'auto',
        doc='what images are compared by in the final evaluation: `classifier` (trained here, on the labels), '
        "`pixels`, another run's extractor.npz, `onnx:FILE`; empty: there are no metrics of images; `auto`: "
        'classifier, or pixels where there are no labels',
    ),
}  # fmt: skip
NEIGHBOURS = 5  # that `prdc` is told of samples by; a set wants more images than these
_BLOCK = 1 << 22  # numbers of one block of pairs: 32 MiB
_WINDOW, _SIGMA = 11, 1.5  # pixels, of its Gaussian
_SCALES = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # weights of the scales, the finest first


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of the Gaussians fitted to two sets, (n, D) and (m, D), n, m ≥ 2
    (Heusel et al. 2017, eq. 6). It grows as n falls, so only values of the same counts compare."""
    x, y = _features(x, y, 2)
    return frechet_of_moments(x.mean(axis=0), np.cov(x.T), y.mean(axis=0), np.cov(y.T))


def frechet_of_moments(mean_x, covariance_x, mean_y, covariance_y) -> float:
    """The same of means (D,) and covariances (D, D).

    (C₁ C₂)^½ has the trace of the symmetric (A C₂ A)^½, A = C₁^½: no complex root, and singular covariances do no harm.
    """
    c_x, c_y = np.atleast_2d(covariance_x), np.atleast_2d(covariance_y)
    values, vectors = np.linalg.eigh(c_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ c_y @ root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    squared = np.square(np.subtract(mean_x, mean_y)).sum() + np.trace(c_x) + np.trace(c_y) - 2 * cross
    return max(0.0, float(squared))  # below 0 by rounding alone


def kernel_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(the unbiased MMD² with the kernel (x·y / D + 1)³, its standard error) of sets (n, D) and (m, D), n, m ≥ 3
    (Bińkowski et al. 2018, section 4 and eq. 4). The estimate is below 0 where the sets are alike.

    All pairs are used, and the error is the jackknife's, of leaving out each example of either set in turn, which is
    not too small on the average (Efron & Stein 1981); where the sets are alike it is up to √2 times too large.
    """
    x, y = _features(x, y, 3)
    n, m = len(x), len(y)
    (xx, _), (yy, _), (xy, yx) = _kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y)
    # Of each example with all others, itself left out.
    xx = xx - (np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3
    yy = yy - (np.square(y).sum(axis=1) / y.shape[1] + 1) ** 3

    def estimate(sum_xx, sum_yy, sum_xy, n, m):
        return sum_xx / (n * (n - 1)) + sum_yy / (m * (m - 1)) - 2 * sum_xy / (n * m)

    value = estimate(xx.sum(), yy.sum(), xy.sum(), n, m)
    without_x = estimate(xx.sum() - 2 * xx, yy.sum(), xy.sum() - xy, n - 1, m)
    without_y = estimate(xx.sum(), yy.sum() - 2 * yy, xy.sum() - yx, n, m - 1)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return float(value), math.sqrt(variance)


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ over y, (n,), and over x, (m,), of (x·y / D + 1)³."""
    of_x, of_y = np.empty(len(x)), np.zeros(len(y))
    for rows in _blocks(len(x), len(y)):
        block = x[rows] @ y.T
        block /= x.shape[1]
        block += 1
        block *= np.square(block)
        of_x[rows] = block.sum(axis=1)
        of_y += block.sum(axis=0)
    return of_x, of_y


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et al. 2020, eq. 4 and
    5) of sets (n, D) and (m, D), each larger than k, the number of neighbours that the balls reach to.

    precision  share of the fakes in the ball of any real
    recall     share of the reals in the ball of any fake
    density    the balls of reals that a fake lies in, divided by k; 1 in the mean for sets that are alike, and no bound
    coverage   share of the reals whose own ball holds a fake; 1 − 2⁻ᵏ in the mean for large sets that are alike

    A ball holds what lies on its surface, up to the rounding of squared distances, which products of matrices give. So
    the ball of an example that stands more than k times, of radius 0, holds its copies.
    """
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(f'sets of {len(real)} and {len(fake)} for k = {k} neighbours')
    real, fake = _features(real, fake, 2)
    centre = real.mean(axis=0)  # distances stay, and less of them cancels
    real, fake = real - centre, fake - centre
    radius_real, radius_fake = (np.square(nearest(None, x, k)[0]) for x in (real, fake))
    square_real, square_fake = np.square(real).sum(axis=1), np.square(fake).sum(axis=1)
    rounding = 4 * (real.shape[1] + 4) * np.finfo(np.float64).eps  # of |x|² − 2 x·y + |y|², of |x|² + |y|²
    balls, in_ball, covered = np.zeros(len(fake), np.int64), np.empty(len(real), bool), np.empty(len(real), bool)
    for rows in _blocks(len(real), len(fake)):
        squared = real[rows] @ fake.T
        squared *= -2
        squared += square_fake
        squared += square_real[rows, None]
        squared -= rounding * (square_real[rows, None] + square_fake)
        inside = squared <= radius_real[rows, None]
        balls += np.count_nonzero(inside, axis=0)
        covered[rows] = inside.any(axis=1)
        in_ball[rows] = (squared <= radius_fake).any(axis=1)
    return {
        'precision': float((balls > 0).mean()),
        'recall': float(in_ball.mean()),
        'density': float(balls.mean() / k),
        'coverage': float(covered.mean()),
    }


def nearest(x: np.ndarray | None, training: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(the distance of each of x (n, D) to its k-th nearest of `training` (m, D), its place there), (n,) each.

    x None: of each of `training` to the k-th nearest of the others.
    """
    from sklearn.neighbors import NearestNeighbors

    distance, index = NearestNeighbors(n_neighbors=k, algorithm='brute').fit(training).kneighbors(x)
    return distance[:, -1].astype(np.float64), index[:, -1]


def memorization_ratio(samples: np.ndarray, held_out: np.ndarray) -> float:
    """The median distance of samples to their nearest training example, divided by that of held-out examples.

    Both (n,), of `nearest`. 1: no nearer than what was not trained on; 0: half of them or more are copies. nan: more
    than half of the held-out examples are copies themselves.
    """
    of_samples, of_held_out = float(np.median(samples)), float(np.median(held_out))
    return of_samples / of_held_out if of_held_out else math.nan


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, directions: int = 256) -> float:
    """The Wasserstein-1 distance of the projections of (n, D) and (m, D) on a line, averaged over lines whose
    directions are drawn uniformly from the sphere, always the same ones (Bonneel et al. 2015, definition 5)."""
    from scipy.stats import wasserstein_distance

    x, y = _features(x, y, 1)
    axes = np.random.Generator(np.random.PCG64(0)).normal(size=(directions, x.shape[1]))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return float(np.mean([wasserstein_distance(x @ axis, y @ axis) for axis in axes]))


def ms_ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) multi-scale structural similarity (Wang et al. 2003, eq. 7) of images (n, H, W, C) in [0, 1]; 1: the same.

    Each scale halves the images, as long as both sides keep the 11 pixels of the Gaussian window: five scales from 176
    pixels on as published, two for 28 and 32, one below 22. The published weights of the scales taken are divided by
    their sum. An image smaller than the window shrinks it to its side, and σ in proportion. Channels are averaged.
    """
    scales = max(1, min(len(_SCALES), int(math.log2(min(x.shape[1:3]) / _WINDOW)) + 1))
    weights = _SCALES[:scales] / _SCALES[:scales].sum()
    x, y, result = np.moveaxis(x, -1, 1).astype(np.float64), np.moveaxis(y, -1, 1).astype(np.float64), 1.0
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halve(x), _halve(y)
        luminance, contrast = _ssim(x, y)
        term = luminance * contrast if scale == scales - 1 else contrast
        # A mean below 0 has no power; it is as unlike as can be.
        result = result * np.maximum(term.mean(axis=(-2, -1)), 0) ** weight
    return result.mean(axis=1)


def _ssim(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(luminance, contrast and structure) at each place where the window fits, of (…, H, W) in [0, 1]
    (Wang et al. 2004, eq. 6 and 13, with its K₁ = 0.01 and K₂ = 0.03)."""
    size = min(_WINDOW, *x.shape[-2:])
    places = np.arange(size) - (size - 1) / 2
    window = np.exp(-0.5 * np.square(places * _WINDOW / (_SIGMA * size)))
    window /= window.sum()

    def filtered(image):
        for axis in (-1, -2):
            image = np.lib.stride_tricks.sliding_window_view(image, size, axis) @ window
        return image

    mean_x, mean_y = filtered(x), filtered(y)
    variances = filtered(x * x) - mean_x**2 + filtered(y * y) - mean_y**2
    covariance = filtered(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (variances + 0.03**2)


def _halve(x: np.ndarray) -> np.ndarray:
    """The means of 2 × 2 pixels of (…, H, W); a last odd row or column is left out."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    return x[..., : 2 * h, : 2 * w].reshape(*x.shape[:-2], h, 2, w, 2).mean(axis=(-3, -1))


def ms_ssim_diversity(x: np.ndarray, pairs: int = 1000) -> float:
    """The mean MS-SSIM of pairs of different images of a set (n ≥ 2), drawn at random, always the same places (Odena et
    al. 2017, section 4.2, within a class): the lower, the more they differ."""
    draw = np.random.Generator(np.random.PCG64(0))
    first = draw.integers(len(x), size=pairs)
    second = (first + draw.integers(1, len(x), size=pairs)) % len(x)
    per_image = math.prod(x.shape[1:])
    blocks = _blocks(pairs, _WINDOW * per_image)
    return float(np.mean(np.concatenate([ms_ssim(x[first[rows]], x[second[rows]]) for rows in blocks])))


def mode_metrics(labels: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    """Of the classes (n,) that samples were judged to be of, and the classes' shares (K,) of the data:

    modes       classes with a sample
    class_kl    KL(shares of the samples ‖ shares of the data), nats (Srivastava et al. 2017, section 4.2)
    uniform_kl  the same to equal shares, which tables of StackedMNIST hold (as the code of Lin et al. 2018 computes it)
    """
    found = np.bincount(labels, minlength=len(shares)) / len(labels)
    held = found > 0
    with np.errstate(divide='ignore'):  # a class that the data lack: infinitely far
        divergence = float(np.sum(found[held] * np.log(found[held] / shares[held])))
    uniform = math.log(len(shares)) + float(np.sum(found[held] * np.log(found[held])))
    return {'modes': float(held.sum()), 'class_kl': max(0.0, divergence), 'uniform_kl': max(0.0, uniform)}


def perfect_modes(shares: np.ndarray, n: int) -> dict[str, float]:
    """What n samples of the data's own shares (K,) have in the mean: Σ 1 − (1 − p)ⁿ modes, and to first order in 1/n a
    KL of (K − 1) / 2n for the K classes that there are (Miller 1955), more to equal shares by their own KL."""
    shares = np.asarray(shares, np.float64)
    least = (np.count_nonzero(shares) - 1) / (2 * n)
    held = shares[shares > 0]
    return {
        'modes': float(np.sum(-np.expm1(n * np.log1p(-np.minimum(shares, 1 - 1e-16))))),
        'class_kl': least,
        'uniform_kl': least + math.log(len(shares)) + float(np.sum(held * np.log(held))),
    }


def _features(x: np.ndarray, y: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(f'features of shapes {x.shape} and {y.shape}; (n, D) and (m, D) with n, m >= {least}')
    return x.astype(np.float64), y.astype(np.float64)


def _blocks(n: int, width: int) -> Iterator[slice]:
    """The rows 0 … n − 1 in blocks of so many that `width` numbers for each are a block's."""
    rows = max(1, _BLOCK // width)
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))
