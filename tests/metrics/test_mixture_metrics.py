"""metrics/mixture.py against closed forms and a case worked by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import chi2

from aigc_jax.metrics.mixture import mixture_metrics, perfect_sampler

ANGLES = 2 * np.pi * np.arange(8) / 8
RING = SimpleNamespace(means=2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), std=0.02)
GAUSSIAN = SimpleNamespace(means=np.zeros((1, 2)), std=1.0)
CUBE = SimpleNamespace(means=np.array([[0.0, 0, 0], [9, 0, 0], [0, 9, 0]]), std=0.5)


def draw(density, n, scale=1.0, modes=None):
    rng = np.random.default_rng(0)
    means = density.means if modes is None else density.means[:modes]
    x = means[rng.integers(len(means), size=n)]
    return (x + scale * density.std * rng.normal(size=x.shape)).astype(np.float32)


@pytest.mark.parametrize('density', [RING, GAUSSIAN, CUBE])
def test_samples_of_the_density_score_as_a_perfect_sampler(density):
    n = 40_000
    got, want = mixture_metrics(draw(density, n), density), perfect_sampler(density, n)
    num_modes, dim = density.means.shape
    share = chi2.cdf(9, dim)
    spread = math.sqrt(2 * num_modes / (n * dim))
    assert got.keys() == want.keys()
    assert got['modes'] == want['modes'] == num_modes
    assert want['high_quality'] == pytest.approx(100 * share, abs=1e-9)
    assert got['high_quality'] == pytest.approx(100 * share, abs=400 * math.sqrt(share * (1 - share) / n))
    # 2n KL, nearly, is chi-squared with K - 1 degrees of freedom, whose mean is the floor.
    assert 2 * n * want['reverse_kl'] == num_modes - 1
    assert 2 * n * got['reverse_kl'] <= (chi2.isf(1e-4, num_modes - 1) if num_modes > 1 else 0)
    for name in ('variance_ratio_min', 'variance_ratio_max', 'variance_ratio_mean'):
        assert got[name] == pytest.approx(1.0, abs=4 * spread)
    # The cut at 3 std takes 5 % of the variance in two dimensions: were it left out, the mean would miss.
    tolerance = 4 * spread / math.sqrt(num_modes)
    assert tolerance < 1 - chi2.cdf(9, dim + 2) / chi2.cdf(9, dim)
    assert got['variance_ratio_mean'] == pytest.approx(1.0, abs=tolerance)


def test_a_sampler_collapsed_to_one_mode():
    got = mixture_metrics(draw(RING, 1000, modes=1), RING)
    assert got['modes'] == 1
    assert got['reverse_kl'] == pytest.approx(math.log(8), rel=1e-15)
    assert got['variance_ratio_min'] == 0
    assert got['variance_ratio_mean'] == got['variance_ratio_max'] == pytest.approx(1, abs=0.15)


def test_a_sampler_of_half_the_width():
    """At std / 2 the cut lies at 6 of its own standard deviations, so only the perfect sampler's is felt."""
    got = mixture_metrics(draw(RING, 40_000, scale=0.5), RING)
    want = 0.25 * chi2.cdf(9, 2) / chi2.cdf(9, 4)
    assert got['high_quality'] == 100
    assert got['variance_ratio_mean'] == pytest.approx(want, rel=0.02)
    assert want == pytest.approx(0.2633, abs=1e-4)


def test_a_case_worked_by_hand():
    density = SimpleNamespace(means=np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), std=1.0)
    # Mode 0: two samples, 2 apart in x. Mode 1: one at exactly 3 std, one just beyond. Mode 2: one, far off.
    x = np.array([[-1.0, 0.0], [1.0, 0.0], [13.0, 0.0], [13.001, 0.0], [0.0, 14.0]])
    got = mixture_metrics(x, density)
    assert got['modes'] == 2
    assert got['high_quality'] == pytest.approx(60)
    assert got['reverse_kl'] == pytest.approx(0.8 * math.log(1.2) + 0.2 * math.log(0.6), abs=1e-15)
    # Mode 0 alone has two good samples: variance 2 in x, 0 in y, so 1 a dimension.
    # F_2(9) = 1 - e^-4.5 and F_4(9) = 1 - 5.5 e^-4.5.
    perfect = (1 - 5.5 * math.exp(-4.5)) / (1 - math.exp(-4.5))
    assert got['variance_ratio_min'] == 0
    assert got['variance_ratio_max'] == got['variance_ratio_mean'] == pytest.approx(1 / perfect)


def test_no_good_sample_at_all():
    got = mixture_metrics(np.full((3, 2), 50.0), RING)
    assert got['modes'] == got['high_quality'] == got['variance_ratio_min'] == 0
    assert math.isnan(got['variance_ratio_mean']) and math.isnan(got['variance_ratio_max'])


@pytest.mark.parametrize(
    'bad, says',
    [
        (np.zeros((5, 3)), r'\(N, 2\)'),
        (np.zeros((0, 2)), 'N > 0'),
        (np.zeros(2), r'\(N, 2\)'),
        ([[0, 0], [np.nan, 0], [0, np.inf]], '2 of 3 samples are not finite'),
    ],
)
def test_refuses(bad, says):
    with pytest.raises(ValueError, match=says):
        mixture_metrics(bad, RING)
