"""metrics/images.py against closed forms, definitions written out, and figures of the packages that are in use."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from aigc_jax.metrics import images


def draw(seed, *shape):
    return np.random.Generator(np.random.PCG64(seed)).normal(size=shape)


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e6])
@pytest.mark.parametrize('copies', [1, 7])
def test_a_set_is_itself_however_often_its_rows_stand(scale, copies, small_blocks):
    """The balls of rows that stand more than k times have no width, and hold the copies nevertheless."""
    for dim, offset in ((1, 0.0), (3, 100.0), (64, -1.0)):
        rows = np.concatenate([np.repeat(draw(dim, 9, dim), copies, axis=0), draw(dim + 1, 8, dim)]) + offset
        x = (scale * rows).astype(np.float32)
        found = images.prdc(x, x)
        assert found['precision'] == found['recall'] == found['coverage'] == 1, (dim, found)
        apart = images.prdc(x, x + np.float32(1000 * scale))
        assert apart['precision'] == apart['recall'] == apart['coverage'] == apart['density'] == 0


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, the last one ragged, of the few pairs that a test has."""
    monkeypatch.setattr(images, '_BLOCK', 1000)


def test_frechet_distance_of_one_dimension():
    """(m₁ − m₂)² + (s₁ − s₂)²."""
    assert images.frechet_of_moments([1.0], [[4.0]], [3.0], [[0.25]]) == pytest.approx(4 + 1.5**2, rel=1e-14)
    x, y = 2 * draw(0, 500, 1) + 1, 0.5 * draw(1, 400, 1) + 3
    want = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert images.frechet_distance(x, y) == pytest.approx(want, rel=1e-10)


def test_frechet_distance_of_covariances_that_commute():
    """|Δm|² + Σ (√a − √b)² for C₁ = Q diag(a) Qᵀ and C₂ = Q diag(b) Qᵀ, of 200 dimensions, a quarter of them flat."""
    q = np.linalg.qr(draw(0, 200, 200))[0]
    a, b = np.square(draw(1, 200)), np.square(draw(2, 200))
    a[:50] = b[25:75] = 0
    mean = draw(3, 200)
    want = np.square(mean).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    got = images.frechet_of_moments(mean, (q * a) @ q.T, np.zeros(200), (q * b) @ q.T)
    assert got == pytest.approx(want, rel=1e-7)


def test_frechet_distance_of_any_covariances_and_of_few_examples():
    x, y = draw(0, 90, 8) @ draw(1, 8, 8), draw(2, 80, 8) @ draw(3, 8, 8) + 1
    c_x, c_y = np.cov(x.T), np.cov(y.T)
    want = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c_x + c_y - 2 * sqrtm(c_x @ c_y).real)
    assert images.frechet_distance(x, y) == pytest.approx(want, rel=1e-9)
    few = draw(0, 20, 100)  # a covariance of rank 19
    assert images.frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    assert images.frechet_distance(few, few + 0.5) == pytest.approx(25, abs=1e-5)
    with pytest.raises(ValueError, match='shapes'):
        images.frechet_distance(x, y[:, :3])


def test_kernel_distance_is_the_double_sum_and_the_jackknife(small_blocks):
    x, y = draw(0, 43, 6), 1.3 * draw(1, 37, 6) + 0.2

    def double_sum(x, y):
        kernel = lambda a, b: (float(a @ b) / 6 + 1) ** 3
        xx = np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])
        yy = np.mean([kernel(a, b) for a, b in itertools.permutations(y, 2)])
        return xx + yy - 2 * np.mean([kernel(a, b) for a, b in itertools.product(x, y)])

    value, error = images.kernel_distance(x, y)
    assert value == pytest.approx(double_sum(x, y), rel=1e-10)
    without_x = [double_sum(np.delete(x, i, axis=0), y) for i in range(43)]
    without_y = [double_sum(x, np.delete(y, i, axis=0)) for i in range(37)]
    assert error == pytest.approx(math.sqrt(42 * np.var(without_x) + 36 * np.var(without_y)), rel=1e-8)


def test_kernel_distance_is_unbiased_and_its_error_is_that_of_its_draws():
    for shift, low, high in ((0.0, 0.95, 1.8), (0.7, 0.85, 1.2)):  # the same distributions, and different ones
        found = np.array([images.kernel_distance(draw(i, 60, 4), draw(1000 + i, 80, 4) + shift) for i in range(300)])
        spread = found[:, 0].std(ddof=1)
        assert low < found[:, 1].mean() / spread < high, shift
        if not shift:
            assert abs(found[:, 0].mean()) < 4 * spread / math.sqrt(300)


def brute_force_prdc(real, fake, k):
    """As the papers define them, one ball at a time."""
    distance = lambda a, b: np.sqrt(np.square(a[:, None] - b[None]).sum(axis=-1))
    radius = lambda x: np.sort(distance(x, x), axis=1)[:, k]
    between, of_real, of_fake = distance(real, fake), radius(real), radius(fake)
    inside = between <= of_real[:, None]
    return {
        'precision': np.mean([any(inside[:, j]) for j in range(len(fake))]),
        'recall': np.mean([any(between[i] <= of_fake) for i in range(len(real))]),
        'density': sum(map(sum, inside)) / (k * len(fake)),
        'coverage': np.mean([min(between[i]) <= of_real[i] for i in range(len(real))]),
    }


@pytest.mark.parametrize('k', [1, 3, 5])
def test_prdc_in_blocks_is_the_definition(small_blocks, k):
    real, fake = draw(0, 133, 4) + 100, 0.7 * draw(1, 101, 4) + 100.3
    got, want = images.prdc(real, fake, k), brute_force_prdc(real, fake, k)
    assert got == pytest.approx(want, rel=1e-12)
    assert 0 < got['recall'] < got['precision'] <= 1


def test_prdc_gives_what_the_package_prdc_gives():
    """prdc 0.2, compute_prdc(real_features=real, fake_features=fake, nearest_k=k)."""
    generator = np.random.Generator(np.random.PCG64(7))
    real, fake = generator.normal(size=(300, 5)), 0.8 * generator.normal(size=(250, 5)) + 0.2
    want = {3: (0.98, 0.7633333333333333, 1.184, 0.78), 5: (1.0, 0.8366666666666667, 1.2176, 0.9066666666666666)}
    for k, values in want.items():
        assert tuple(images.prdc(real, fake, k).values()) == pytest.approx(values, abs=1e-12)


def test_prdc_of_sets_that_are_alike_and_of_copies_of_one_image():
    alike = images.prdc(draw(0, 2000, 16), draw(1, 2000, 16), 5)
    assert alike['density'] == pytest.approx(1, abs=0.05)
    assert alike['coverage'] == pytest.approx(1 - 2.0**-5, abs=0.02)
    real = draw(0, 200, 16)
    collapsed = images.prdc(real, np.repeat(real[:1], 100, axis=0), 5)
    assert collapsed['precision'] == 1 and collapsed['recall'] <= 0.005 and collapsed['coverage'] < 0.2
    with pytest.raises(ValueError, match='k = 5'):
        images.prdc(real, real[:5], 5)


def test_no_matrix_of_all_pairs_is_held():
    x, y = draw(0, 6000, 4).astype(np.float32), draw(1, 6000, 4).astype(np.float32)
    for metric in (images.prdc, images.kernel_distance):
        tracemalloc.start()
        metric(x, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6000 * 6000 * 8 / 2, metric


def test_sliced_wasserstein():
    x, y = draw(0, 200, 1), 2 * draw(1, 150, 1)
    assert images.sliced_wasserstein(x, y) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)
    # A shift by v: |v| E|u₁|, u uniform on the sphere, = |v| Γ(d/2) / (√π Γ((d + 1)/2)).
    x, d = draw(0, 50, 6), 6
    mean = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    got = images.sliced_wasserstein(x, x + np.eye(6)[0] * 3, directions=4000)
    assert got == pytest.approx(3 * mean, rel=0.04)


def test_ms_ssim_of_one_scale_is_scikit_image():
    """scikit-image 0.26, structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1), of 20 × 20 pixels: below 22, one scale."""
    generator = np.random.Generator(np.random.PCG64(3))
    x = generator.random((28, 28))
    y = np.clip(x + 0.2 * generator.normal(size=(28, 28)), 0, 1)
    x, y = x[None, :20, :20, None], y[None, :20, :20, None]
    assert images.ms_ssim(x, y) == pytest.approx([0.8065755487290225], rel=1e-9)
    both = images.ms_ssim(np.concatenate([x, y], axis=-1), np.concatenate([y, y], axis=-1))
    assert both == pytest.approx([(0.8065755487290225 + 1) / 2], rel=1e-9)


@pytest.mark.parametrize('side', [8, 28, 32, 44])
def test_ms_ssim_of_identical_images_is_one(side):
    x = np.random.default_rng(0).random((5, side, side, 3))
    np.testing.assert_allclose(images.ms_ssim(x, x), 1, rtol=1e-12)
    assert (images.ms_ssim(x, 1 - x) < 0.2).all()
    assert images.ms_ssim_diversity(np.repeat(x[:1], 4, axis=0)) == pytest.approx(1)
    assert images.ms_ssim_diversity(x) < 0.2


def test_ms_ssim_of_two_scales_by_hand():
    """Constant images of 28 pixels: contrast 1 at each scale, luminance at the last alone, to its share of the weights,
    0.2856 / (0.0448 + 0.2856)."""
    x, y = np.full((1, 28, 28, 1), 0.2), np.full((1, 28, 28, 1), 0.6)
    luminance = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert images.ms_ssim(x, y) == pytest.approx([luminance ** (0.2856 / 0.3304)], rel=1e-9)


def test_memorization():
    training, held_out = draw(0, 400, 5), draw(1, 200, 5)
    distance, index = images.nearest(held_out, training)
    every = np.linalg.norm(held_out[:, None] - training, axis=-1)
    np.testing.assert_array_equal(index, every.argmin(axis=1))
    np.testing.assert_allclose(distance, every.min(axis=1), rtol=1e-6)
    fresh = images.memorization_ratio(images.nearest(draw(2, 200, 5), training)[0], distance)
    assert fresh == pytest.approx(1, abs=0.15)
    copies = images.nearest(training[:100] + 1e-3 * draw(3, 100, 5), training)[0]
    assert images.memorization_ratio(copies, distance) < 0.01
    assert math.isnan(images.memorization_ratio(copies, np.zeros(3)))


def test_modes_and_their_kl():
    got = images.mode_metrics(np.array([0, 0, 0, 1]), np.array([0.5, 0.25, 0.25]))
    assert got['modes'] == 2
    assert got['class_kl'] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(1.0))
    assert got['uniform_kl'] == pytest.approx(0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 3))
    assert images.mode_metrics(np.array([1]), np.array([1.0, 0.0]))['class_kl'] == math.inf


def test_a_perfect_sampler_of_stacked_mnist():
    """1000 modes, 26,000 samples: a KL of 0.0192, which draws confirm (the next order in 1/n is 0.0001)."""
    shares, n = np.full(1000, 1e-3), 26_000
    perfect = images.perfect_modes(shares, n)
    assert perfect['class_kl'] == pytest.approx(0.0192, abs=5e-5)
    assert perfect['modes'] == pytest.approx(1000, abs=1e-6)
    random = np.random.default_rng(0)
    found = [images.mode_metrics(random.integers(1000, size=n), shares) for _ in range(200)]
    assert np.mean([one['class_kl'] for one in found]) == pytest.approx(perfect['class_kl'], rel=0.02)
    assert perfect['uniform_kl'] == pytest.approx(perfect['class_kl'])
    digits = np.kron(np.kron(*[np.arange(1, 11) / 55] * 2), np.arange(1, 11) / 55)  # which are not shown equally often
    found = [images.mode_metrics(random.choice(1000, n, p=digits), digits)['uniform_kl'] for _ in range(20)]
    assert np.mean(found) == pytest.approx(images.perfect_modes(digits, n)['uniform_kl'], rel=0.005)
    found = [images.mode_metrics(random.integers(1000, size=n), shares) for _ in range(20)]
    assert np.mean([one['uniform_kl'] for one in found]) == pytest.approx(perfect['uniform_kl'], rel=0.05)
    fewer = images.perfect_modes(shares, 1000)['modes']
    assert fewer == pytest.approx(1000 * (1 - 0.999**1000), rel=1e-9)
    found = [images.mode_metrics(random.integers(1000, size=1000), shares)['modes'] for _ in range(40)]
    assert np.mean(found) == pytest.approx(fewer, rel=0.02)
