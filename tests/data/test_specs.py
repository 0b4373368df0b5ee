"""What each kind of data knows: what a model sees of it, in which units, what a user may give; and named arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datafiles import IMAGES, LABELS, POINTS, load, sizes
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.data import Arrays, Images, Points, Resident, Scaling, Tokens, from_arrays
from aigc_jax.data.splits import Mapped, materialize, of_rows
from aigc_jax.data.tokenizers import Tokenizer

X = IMAGES[..., None]
OFF = dict(flip=False, shift=0, rotation=0.0, scale=0.0, cutout=0, mixup=0.0)
FLOATS = POINTS.astype(np.float32)


def context(n):
    return rng.context(0, 'train', 0, jnp.arange(n))


def cfg(binarize='none', scale='unit', **fields):
    return ConfigDict({'name': 'mine', 'binarize': binarize, 'scale': scale, 'augment': OFF, **fields})


def seen(spec, how, x, scaling=None):
    """What `from_raw` makes of a user's x."""
    return np.asarray(spec.from_raw(how, scaling or Scaling())({'x': x}, context(len(x)))['x'])


def test_a_source_gives_the_spec_of_its_data():
    assert load('digits').spec == Images((8, 8, 1), 16)
    assert load('stacked:digits').spec == Images((8, 8, 3), 16, stacked=True)
    ring = load('ring8').spec
    assert ring.shape == (2,) and ring.density.means.shape == (8, 2) and not ring.contiguous
    fields = dict(tokenizer='byte', vocab_size=-1, valid_percent=5.0, test_percent=5.0, block=8, eval_block=0)
    text = data.load(ConfigDict(dict(name='pydoc', order='contiguous', eval_stride=-1, stream=False, **fields)))
    assert text.spec == Tokens(8, Tokenizer('byte', (), has_end=False), contiguous=True) and text.spec.shape == (8,)
    assert text.scaling(ConfigDict()) == Scaling()
    windows = text.splits['test'][np.arange(3)]
    np.testing.assert_array_equal(text.spec.preprocess(None, Scaling())(windows, None)['tokens'], windows['tokens'])


def test_a_name_is_enough_and_a_field_that_does_not_fit_is_named():
    assert sizes(data.load(ConfigDict({'name': 'digits'}))) == [1437, 180, 180]
    for fields, words in (({'scale': 'units'}, 'data.scale: .*unit'), ({'sclae': 'unit'}, 'data.sclae: .*scale')):
        with pytest.raises(UserError, match=words):
            data.load(ConfigDict({'name': 'digits', **fields}))


def test_data_units_are_0_to_1_and_model_units_those_of_the_scale():
    dataset = from_arrays({'train': Arrays(x=X)}, levels=255, licence='')
    np.testing.assert_array_equal(dataset.spec.to_data(X), X / np.float32(255))
    scaling = dataset.scaling(cfg(scale='symmetric'))
    run = dataset.spec.eval_preprocess(cfg(), scaling)
    model = np.asarray(run({'x': X}, context(30))['x'])
    np.testing.assert_allclose(model, X / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(scaling.to_data(model), X / 255, atol=1e-6)
    points = from_arrays({'train': Arrays(x=FLOATS)}, levels=0, licence='')
    scaling = points.scaling(cfg(scale='standard'))
    assert abs(scaling.to_model(FLOATS).mean()) < 1e-6 and abs(scaling.to_model(FLOATS).std() - 1) < 1e-6
    with pytest.raises(UserError, match='data.scale: standard is for points'):
        dataset.scaling(cfg(scale='standard'))


def test_static_binarization_is_of_a_split_in_memory_and_of_images_alone():
    dataset = from_arrays({'train': Arrays(x=X, label=LABELS)}, levels=255, licence='')
    how, train = cfg('static'), dataset.splits['train']
    fixed = dataset.spec.in_memory(how, 'train', train)
    assert set(np.unique(fixed.arrays['x'])) == {0, 1} and dataset.spec.draws_splits(how)
    np.testing.assert_array_equal(fixed.arrays['label'], LABELS)
    run = dataset.spec.preprocess(how, Scaling())
    np.testing.assert_array_equal(run(fixed[np.arange(30)], context(30))['x'], fixed.arrays['x'])
    assert dataset.spec.in_memory(cfg('dynamic'), 'train', train) is train
    with pytest.raises(UserError, match='data.binarize: static is for images; mine holds points'):
        Points(3).preprocess(how, Scaling())


@pytest.mark.parametrize(
    'spec, how, x, message',
    [
        (Images((6, 5, 1), 255), cfg(), X + 1.0, 'whole numbers 0 to 255 or floats in .0, 1.$'),
        (Images((6, 5, 1), 100), cfg(), X, 'uint8 from 0 to 255; .* whole numbers 0 to 100'),
        (Images((6, 5, 1), 255), cfg(), IMAGES, r'x: \(30, 6, 5\) uint8; this run \(mine\) wants \(n, 6, 5, 1\)'),
        (Images((6, 5, 1), 0), cfg(), X, 'uint8; .* floats in .0, 1.$'),
        (Images((6, 5, 1), 0), cfg('static'), X / 255, 'the numbers 0 and 1$'),
        (Images((6, 5, 1), 1), cfg(), X, 'the numbers 0 and 1$'),
        (Images((6, 5, 1), 255), cfg(), X > 9, 'bool'),
        (Points(3), cfg(), FLOATS * np.float32(np.inf), 'floats$'),
        (Points(3), cfg(), POINTS[:, :2], r'\(n, 3\), floats$'),
        (Points(3), cfg(), np.ones((4, 3), int), 'int64'),
    ],
)
def test_a_users_x_that_these_data_cannot_be_is_refused(spec, how, x, message):
    with pytest.raises(UserError, match=message):
        seen(spec, how, x)


def test_a_users_x_may_be_stored_or_in_data_units_and_is_nan_inside_jit_where_it_is_out_of_range():
    spec, half = Images((6, 5, 1), 255), Scaling(0.5, 0.5)
    for x in (X, X.astype(np.int64), X / 255, X / np.float32(255)):
        np.testing.assert_allclose(seen(spec, cfg(), x, half), X / 127.5 - 1, atol=1e-6)
    for bits in (X > 100).astype(np.uint8), (X > 100).astype(np.float64):
        np.testing.assert_array_equal(seen(Images((6, 5, 1), 255), cfg('static'), bits), X > 100)
        np.testing.assert_array_equal(seen(Images((6, 5, 1), 0), cfg('static'), bits), X > 100)
    wild = FLOATS.copy()
    wild[3, 1] = np.inf
    inside = jax.jit(lambda x: Points(3).from_raw(cfg(), Scaling())({'x': x}, context(30))['x'])(wild)
    assert np.isnan(inside[3]).all() and np.isnan(inside).any(1).sum() == 1


def test_named_arrays_reach_the_compiled_step_with_their_examples():
    weight, pair = np.arange(30.0, dtype=np.float32), np.stack([np.arange(30)] * 2, 1)
    source = Arrays(x=X, label=LABELS, weight=weight, pair=pair)
    assert len(source) == 30 and isinstance(source, Resident) and source.arrays['label'].dtype == np.int32
    resident = jax.tree.map(jnp.asarray, source.resident)
    batch = jax.jit(source.gather)(resident, np.array([[7, 2], [2, 29]], np.int32))
    np.testing.assert_array_equal(batch['weight'], [[7, 2], [2, 29]])
    np.testing.assert_array_equal(batch['pair'][..., 1], [[7, 2], [2, 29]])
    np.testing.assert_array_equal(batch['x'], X[np.array([[7, 2], [2, 29]])])
    dataset = from_arrays({'train': source}, levels=255, licence='')
    run = dataset.spec.train_preprocess(cfg(), dataset.scaling(cfg()), 2)
    np.testing.assert_array_equal(run(source[np.array([4, 5])], context(2))['weight'], [4, 5])
    run = dataset.spec.train_preprocess(cfg(augment=OFF | {'mixup': 0.5}), Scaling(), 2)
    mixed = run(source[np.array([4, 5])], context(2))
    assert set(mixed) == {'x'}  # the fields of an example are not those of a mixture of two
    other = from_arrays({'train': Arrays(x=X, label=LABELS, weight=weight + 1, pair=pair)}, levels=255, licence='')
    assert dataset.fingerprint != other.fingerprint


def test_the_arrays_of_a_split_are_alike_and_read_only():
    mine = np.zeros((4, 2), np.float32)
    source = Arrays(x=mine)
    mine[0] = 1  # the caller's own stay writeable
    with pytest.raises(ValueError, match='read-only'):
        source.arrays['x'][0] = 1
    for named in (dict(x=X, label=LABELS[:3]), dict(x=X, weight=np.float32(1)), {}):
        with pytest.raises(ValueError, match='one row an example each'):
            Arrays(**named)


def test_a_mapped_file_keeps_its_examples_and_other_arrays_together(tmp_path):
    np.save(tmp_path / 'x.npy', X)
    x = np.load(tmp_path / 'x.npy', mmap_mode='r')
    split = of_rows({'x': x, 'weight': np.arange(30)}, np.array([9, 3, 3]))
    assert isinstance(split, Mapped) and not isinstance(split, Resident)
    np.testing.assert_array_equal(split[np.array([2, 0])]['weight'], [3, 9])
    held = materialize(split)
    np.testing.assert_array_equal(held.arrays['x'], X[[9, 3, 3]])
    np.testing.assert_array_equal(held.arrays['weight'], [9, 3, 3])
    assert isinstance(of_rows({'x': X}, slice(3)), Arrays)


def test_where_there_is_to_be_no_valid_split_its_own_fields_are_trained_on_too(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'import numpy as np\n'
        'def load(cfg):\n'
        '    part = lambda n: {"x": np.full((n, 3), n / 2), "weight": np.full(n, n)}\n'
        '    return {"train": part(20), "valid": part(5), "test": part(6)}\n'
    )
    dataset = load(str(path), valid_examples=0)
    weight = dataset.splits['train'].arrays['weight']
    assert list(dataset.splits) == ['train', 'test'] and weight.tolist() == [20] * 20 + [5] * 5
    assert sizes(load(str(path))) == [20, 5, 6]
