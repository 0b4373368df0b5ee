"""Each augmentation against numpy and scipy on the host, and where its draws come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from datafiles import load
from gans import make
from ml_collections import ConfigDict

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.data import augment

OFF = dict(flip=False, shift=0, rotation=0.0, scale=0.0, cutout=0, mixup=0.0)
X = np.random.RandomState(0).rand(6, 7, 9, 2).astype(np.float32)


def config(binarize='none', **fields):
    return ConfigDict({'name': 'digits', 'binarize': binarize, 'augment': OFF | fields})


def context(index, step=0):
    return rng.context(0, 'train', step, jnp.asarray(index))


def test_flip():
    out = augment.flip(X, np.array([True, False] * 3))
    np.testing.assert_array_equal(out[::2], X[::2, :, ::-1])
    np.testing.assert_array_equal(out[1::2], X[1::2])


def test_shift_is_a_crop_of_the_padded_image():
    down, right = np.array([0, 1, -2, 3, 0, -3]), np.array([0, -1, 2, 0, 3, -3])
    out = augment.shift(X, down, right)
    padded = np.pad(X, [(0, 0), (3, 3), (3, 3), (0, 0)])
    for image, whole, d, r in zip(out, padded, down, right, strict=True):
        np.testing.assert_array_equal(image, whole[3 - d : 10 - d, 3 - r : 12 - r])
    sums = jax.grad(lambda x: augment.shift(x, down, right).sum())(X)  # 1 where a pixel is still to be seen
    np.testing.assert_array_equal(sums[3, :, :, 0], np.arange(7)[:, None] < 4 + np.zeros(9))


def test_rotation_and_scale_are_scipys_affine_transform():
    degrees = np.float32([0, 90, -30, 12.5, 0, 200])
    factor = np.float32([[1, 1], [1, 1], [1, 1], [1.25, 1.25], [0.8, 1.25], [0.9, 1.3]])
    same = augment.resample(X[:4], degrees[:4], factor[:4, 0])  # one factor for both axes
    np.testing.assert_array_equal(same, augment.resample(X[:4], degrees[:4], factor[:4]))
    out = np.asarray(augment.resample(X, degrees, factor))
    np.testing.assert_array_equal(out[0], X[0])
    np.testing.assert_allclose(out[1, :, 1:-1], np.rot90(X[1, :, 1:-1]), atol=1e-5)  # the square in the middle
    centre = np.array([3.0, 4.0])
    for image, x, angle, f in zip(out, X, np.radians(degrees), factor, strict=True):
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / f[:, None]
        for c in range(2):
            expected = scipy.ndimage.affine_transform(
                x[..., c], matrix, centre - matrix @ centre, order=1, mode='grid-constant'
            )
            np.testing.assert_allclose(image[..., c], expected, atol=1e-5)


def test_cutout_is_cut_at_the_edges():
    rows, columns = np.array([3, 0, 6, 3, 0, 5]), np.array([4, 0, 8, 0, 8, 5])
    out = np.asarray(augment.cutout(X + 1, rows, columns, 3))
    for image, x, r, c in zip(out, X + 1, rows, columns, strict=True):
        x[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2] = 0
        np.testing.assert_array_equal(image, x)


def test_mixing_pairs():
    share = np.float32([1, 0, 0.5, 0.25, 0, 1])
    out = augment.mix_pairs(X, share)
    np.testing.assert_array_equal(out[0], X[0])
    np.testing.assert_array_equal(out[1], X[0])
    np.testing.assert_allclose(out[3], 0.25 * X[3] + 0.75 * X[2], atol=1e-6)
    np.testing.assert_array_equal(out[4], X[5])


def test_draws_have_the_range_of_their_fields():
    """The transform of an image of one bright pixel tells its draw."""
    x = np.zeros((400, 8, 8, 1), np.float32)
    x[:, 4, 3] = 1
    run = lambda **fields: np.asarray(
        jax.jit(augment.make_transform(config(**fields), (8, 8, 1)))({'x': x}, context(np.arange(400)))['x']
    )
    assert run(flip=True)[:, 4, 4].mean() == pytest.approx(0.5, abs=0.1)
    moved = np.argwhere(run(shift=2)[..., 0])[:, 1:] - (4, 3)
    assert len(moved) == 400 and {tuple(m) for m in moved} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}
    holes = run(cutout=1)
    assert (holes.sum((1, 2, 3)) == 0).mean() == pytest.approx(1 / 64, abs=0.02)
    mixed = run(mixup=0.3)
    np.testing.assert_allclose(mixed.sum((1, 2, 3)), 1, atol=1e-5)


def test_mixing_shares_are_beta():
    x = np.tile(np.float32([0, 1]), 2000)[:, None, None, None] * np.ones((8, 8, 1), np.float32)
    out = jax.jit(augment.make_transform(config(mixup=0.4), (8, 8, 1)))({'x': x}, context(np.arange(4000)))['x']
    share = np.asarray(out[1::2, 0, 0, 0])
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(0.25 / (2 * 0.4 + 1), rel=0.06)  # of Beta(α, α)


ALL = dict(flip=True, shift=2, rotation=20.0, scale=0.2, cutout=3, mixup=0.5)


def test_a_draw_is_a_function_of_seed_step_and_example():
    dataset = load('digits')
    transform = jax.jit(augment.make_transform(config(**ALL), dataset.spec.shape))
    x = dataset.splits['train'].arrays['x'][:16] / np.float32(16)
    whole = transform({'x': x, 'label': np.zeros(16)}, context(np.arange(16)))
    assert set(whole) == {'x'}  # a mixed example has no label
    parts = [transform({'x': x[i : i + 4]}, context(np.arange(i, i + 4)))['x'] for i in range(0, 16, 4)]
    np.testing.assert_allclose(whole['x'], np.concatenate(parts), atol=1e-6)
    again = transform({'x': x}, context(np.arange(16), step=1))['x']
    assert (np.abs(again - whole['x']).max((1, 2, 3)) > 0.01).all()
    same = transform({'x': np.repeat(x[:1], 16, 0)}, context(np.arange(16)))['x']
    assert len(np.unique(same.round(4), axis=0)) == 16


def preprocess(x, binarize='none', units='unit', **fields):
    dataset = load('digits')
    cfg = config(binarize, **fields)
    cfg.scale = units
    run = dataset.spec.train_preprocess(cfg, dataset.scaling(cfg), len(x))
    return np.asarray(jax.jit(run)({'x': x}, context(np.arange(len(x))))['x'])


def test_what_comes_in_from_outside_is_black_and_bits_stay_bits():
    x = np.full((40, 8, 8, 1), 16, np.uint8)
    symmetric = preprocess(x, units='symmetric', shift=3)
    assert set(np.unique(symmetric)) == {-1.0, 1.0}
    for binarize in ('dynamic', 'threshold'):
        bits = preprocess(x, binarize, **ALL)
        assert set(np.unique(bits)) == {0.0, 1.0}
    bits = preprocess(x // 16, 'static', flip=True, shift=2, cutout=3)
    assert set(np.unique(bits)) == {0.0, 1.0}
    np.testing.assert_array_equal(preprocess(x), np.ones(x.shape))


@pytest.mark.parametrize('fields, message', [
    ({'data__augment__shift': 8}, 'data.augment.shift: 8'),
    ({'data__augment__scale': 1.5}, 'data.augment.scale: 1.5'),
    ({'data__augment__mixup': -1.0}, 'data.augment.mixup: -1.0'),
    ({'data__augment__rotation': 5.0, 'data__binarize': 'static'}, 'data.augment.rotation: makes grey.*dynamic'),
    ({'data__augment__mixup': 0.2, 'batch_size': 33}, 'data.augment.mixup: mixes pairs.*33'),
    ({'data__augment__mixup': 0.2, 'model__conditional': True}, 'data.augment.mixup: a mixed example has no class'),
    ({'data__augment__flip': True, 'data__name': 'ring8'}, 'data.augment: is for images'),
])  # fmt: skip
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)
