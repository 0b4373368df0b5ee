"""Embedded sets, names of sets, and the real sets: what they hold, and that it stays the same."""

import os

import numpy as np
import pytest
from datafiles import IMAGES, LABELS, arrays, idx_bytes, load, sizes, user_error, write

from aigc_jax import data
from aigc_jax.data import Images, Points
from aigc_jax.data.gaussian_mixture import MIXTURES


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset = load('digits')
    assert (dataset.spec, dataset.num_classes) == (Images((8, 8, 1), 16), 10)
    assert sizes(dataset) == [1437, 180, 180]
    bunch = load_digits()
    held = np.concatenate(
        [
            np.column_stack([arrays(dataset, split)['x'].reshape(-1, 64), arrays(dataset, split)['label']])
            for split in dataset.splits
        ]
    )
    given = np.column_stack([bunch.data, bunch.target])
    assert sorted(map(tuple, held)) == sorted(map(tuple, given))
    assert np.bincount(arrays(dataset, 'test')['label'], minlength=10).min() > 5
    # Whoever has a number for digits has it for these bits.
    assert dataset.fingerprint.startswith('a77bea78570fa641')


def test_arrays_index_by_int_and_by_array_and_are_read_only():
    source = load('digits').splits['train']
    one, some = source[3], source[np.array([3, 3, 0])]
    assert one['x'].shape == (8, 8, 1) and one['x'].dtype == np.uint8 and one['label'].dtype == np.int32
    assert some['x'].shape == (3, 8, 8, 1) and some['label'].shape == (3,)
    np.testing.assert_array_equal(some['x'][1], one['x'])
    assert data.materialize(source) is source
    with pytest.raises(ValueError):
        source.arrays['x'][0] = 0
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize('name, classes', [('gaussian2d', 0), ('ring8', 8), ('grid25', 25)])
def test_mixture_sets(name, classes):
    dataset = load(name)
    assert isinstance(dataset.spec, Points) and (dataset.spec.shape, dataset.num_classes) == ((2,), classes)
    assert sizes(dataset) == [1500, 10_000, 10_000]
    test = arrays(dataset, 'test')
    assert test['x'].dtype == np.float32 and ('label' in test) == bool(classes)
    label = test.get('label', np.zeros(10_000, np.int32))
    noise = (test['x'] - dataset.spec.density.means[label]) / dataset.spec.density.std
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.04)  # 4 standard errors
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=0.06)
    counts = np.bincount(label, minlength=max(classes, 1))
    expected = 10_000 / len(counts)
    assert np.square(counts - expected).sum() / expected < len(counts) + 4 * np.sqrt(2 * len(counts))  # chi^2


def test_mixture_sets_are_a_function_of_name_and_size():
    small, again, large = load('ring8', num_examples=700), load('ring8', num_examples=700), load('ring8')
    assert small.fingerprint == again.fingerprint != large.fingerprint
    np.testing.assert_array_equal(arrays(small, 'train')['x'], arrays(large, 'train')['x'][:700])
    np.testing.assert_array_equal(arrays(small, 'test')['x'], arrays(large, 'test')['x'])
    both = np.concatenate([arrays(large, split)['x'] for split in large.splits])
    assert len(np.unique(both, axis=0)) > 0.999 * len(both)  # the splits are different draws
    assert load('gaussian2d').fingerprint.startswith('726fd3e09b3c83e6')
    user_error('ring8', 'data.num_examples=0', num_examples=0)


@pytest.mark.parametrize('name', MIXTURES)
def test_draws_of_a_mixture_are_spread_evenly_about_its_modes(name):
    density = MIXTURES[name]()
    x, component = density.sample(np.random.default_rng(0), 20_000)
    off = (x - density.means[component]) / density.std
    np.testing.assert_allclose(off.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(off.T), np.eye(2), atol=0.03)
    np.testing.assert_allclose(np.bincount(component) / len(x), 1 / len(density.means), rtol=0.1)


@pytest.mark.parametrize(
    'name, words',
    [
        ('digit', ['did you mean digits']),
        ('mnist', ['tfds:mnist']),
        ('imagenet', ['tfds:imagenet']),
        ('idx', ['did you mean idx:']),
        ('idx:', ['missing']),
        ('ring8:x', ['ring8']),
        ('', ['known']),
    ],
)
def test_unknown_names_list_near_ones(name, words):
    user_error(name, *words)


@pytest.mark.parametrize(
    'name, levels, mean',
    [('idx:mnist', 255, 33.31), ('idx:fashion_mnist', 255, 72.94), ('amat:binarized_mnist', 1, 0.1306)],
)
def test_real_sets(name, levels, mean):
    folder = os.environ.get('AIGC_JAX_DATA')
    prefix, _, file = name.partition(':')
    if not folder or not os.path.isdir(os.path.join(folder, file)):
        pytest.skip(f'AIGC_JAX_DATA names no folder with {file}')
    dataset = load(f'{prefix}:{folder}/{file}', valid_examples=10_000)
    assert sizes(dataset) == [50_000, 10_000, 10_000] and dataset.spec.shape == (28, 28, 1)
    assert dataset.spec.levels == levels
    assert arrays(dataset, 'train')['x'].mean() == pytest.approx(mean, rel=0.005)


def test_splits_are_the_places_that_are_given(tmp_path):
    path = lambda name: f'{tmp_path}/{name}'
    for name, cut in (('a,b', slice(0, 20)), ('b', slice(20, 24)), ('c', slice(24, 30))):
        np.savez(path(name), images=IMAGES[cut], labels=LABELS[cut])
        np.save(path(name), IMAGES[cut])
    np.savez(path('both'), x_train=IMAGES[:5], x_test=IMAGES[5:9])
    for kind in ('npz', 'npy'):
        name = f'{kind}:train={path("a,b")}.{kind},valid={path("b")}.{kind},test={path("c")}.{kind}'
        dataset = load(name)
        assert sizes(dataset) == [20, 4, 6]
        np.testing.assert_array_equal(arrays(dataset, 'valid')['x'][..., 0], IMAGES[20:24])
    np.testing.assert_array_equal(arrays(load(name.replace('npy', 'npz')), 'test')['label'], LABELS[24:])
    dataset = load(f'npz:train={path("both.npz")},test={path("both.npz")}')
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'][..., 0], IMAGES[5:9])
    dataset = load(f'npy:train={path("a,b.npy")},test={path("c.npy")}')  # four of a are held out
    assert sizes(dataset) == [16, 4, 6]
    user_error(f'npz:train={path("a,b.npz")},valid={path("both.npz")}', 'holds train, test; valid=… needs one set')
    user_error(f'npz:valid={path("b.npz")}', 'write train=A,valid=B,test=C')
    user_error(f'amat:train={tmp_path},test={tmp_path}', 'is of idx:, npz:, npy:, mat:, images: and text')
    for split, part in (('train', 'train'), ('test', 't10k')):
        (tmp_path / split).mkdir()
        write(f'{tmp_path}/{split}/{part}-images-idx3-ubyte', idx_bytes(IMAGES[:9] if split == 'test' else IMAGES[9:]))
    dataset = load(f'idx:train={tmp_path}/train,test={tmp_path}/test')
    assert sizes(dataset) == [17, 4, 9]
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'][..., 0], IMAGES[:9])
