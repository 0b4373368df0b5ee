"""StackedMNIST's construction: channels and labels are those of the images that were drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datafiles import arrays, load, sizes, user_error, write_idx

from aigc_jax.data import Images, batching


def test_stacks_hold_images_of_their_own_split():
    base, dataset = load('digits'), load('stacked:digits')
    assert (dataset.spec, dataset.num_classes) == (Images((8, 8, 3), 16, stacked=True), 1000)
    assert sizes(dataset) == [1500, 10_000, 26_000]
    for split in base.splits:
        known = {x.tobytes(): label for x, label in zip(*arrays(base, split).values(), strict=True)}
        some = dataset.splits[split][np.arange(200)]
        for x, label in zip(some['x'], some['label'], strict=True):
            digits = [known[np.ascontiguousarray(x[..., c]).tobytes()] for c in range(3)]
            assert label == 100 * digits[0] + 10 * digits[1] + digits[2]


def test_channels_are_independent_and_every_mode_is_there():
    base, label = load('digits'), load('stacked:digits').splits['test'][np.arange(26_000)]['label']
    assert len(np.unique(label)) == 1000
    counts = np.bincount(label, minlength=1000).reshape(10, 10, 10)
    share = np.bincount(arrays(base, 'test')['label'], minlength=10) / 180
    expected = 26_000 * share[:, None, None] * share[:, None] * share
    assert np.square(counts - expected).__truediv__(expected).sum() < 1000 + 4 * np.sqrt(2000)  # χ²


def test_gathered_indexed_and_read_as_a_whole_are_the_same():
    source = load('stacked:digits').splits['train']
    index = np.array([[0, 5], [1499, 5], [7, 8]])
    gathered, indexed, one = (
        source.gather(jax.tree.map(jnp.asarray, source.resident), index),
        source[index],
        source[1499],
    )
    for name, dtype in (('x', np.uint8), ('label', np.int32)):
        assert gathered[name].dtype == indexed[name].dtype == dtype
        np.testing.assert_array_equal(gathered[name], indexed[name])
        np.testing.assert_array_equal(one[name], indexed[name][1, 0])
        np.testing.assert_array_equal(source.arrays[name][index], indexed[name])
    assert sum(array.nbytes for array in source.resident.values()) < source.arrays['x'].nbytes / 2
    with pytest.raises(IndexError):
        source[1500]


def test_a_smaller_set_is_the_beginning_of_a_larger_one():
    small, large = load('stacked:digits', num_examples=100), load('stacked:digits')
    np.testing.assert_array_equal(small.splits['train'].arrays['x'], large.splits['train'][np.arange(100)]['x'])
    np.testing.assert_array_equal(small.splits['test'][3]['x'], large.splits['test'][3]['x'])
    assert small.fingerprint != large.fingerprint
    assert large.fingerprint.startswith('cf49e79cacf915cc')  # whoever has a number for it has it for these bits


def test_of_files_and_without_a_valid_split(tmp_path):
    write_idx(tmp_path)
    dataset = load(f'stacked:idx:{tmp_path}', num_examples=50)
    assert dataset.spec.shape == (6, 5, 3) and dataset.num_classes == 1000  # though there are fewer labels
    assert sorted(load(f'stacked:idx:{tmp_path}', valid_examples=0).splits) == ['test', 'train']


def test_streamed_equals_resident():
    source, shape = load('stacked:digits').splits['train'], (2, 1, 8, range(8))
    stream = [batching.IndexStream(len(source), 0)]
    indices, data = batching.resident_feed(stream, 0, *shape), jax.tree.map(jnp.asarray, source.resident)
    for batch in batching.streamed_feed(source, stream, 0, 4, *shape):
        expected = source.gather(data, next(indices).reshape(2, 8))
        np.testing.assert_array_equal(batch['x'].reshape(2, 8, 8, 8, 3), expected['x'])


@pytest.mark.parametrize('name, words', [
    ('stacked:ring8', ['stacked:ring8', 'labelled images of one channel']),
    ('stacked:pydoc', ['stacked:pydoc', 'labelled images of one channel']),
    ('stacked:stacked:digits', ['labelled images of one channel']),
    ('stacked:digit', ['did you mean digits']),
    ('stacked:', ['missing']),
    ('stacked', ['did you mean stacked:']),
])  # fmt: skip
def test_what_cannot_be_stacked(name, words):
    user_error(name, *words)
    user_error('stacked:digits', 'data.num_examples=0', num_examples=0)
