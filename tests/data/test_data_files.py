"""idx, amat and npz files: what they hold, and that every broken one is named."""

import io
import os
import pickle
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
from datafiles import (
    BITS,
    BREAKERS,
    COLOUR,
    IMAGES,
    LABELS,
    POINTS,
    amat_bytes,
    arrays,
    flip_the_middle,
    idx_bytes,
    load,
    remove,
    sizes,
    user_error,
    write,
    write_amat,
    write_idx,
)

from aigc_jax import data
from aigc_jax.data import Images, Points
from aigc_jax.data.sources import files
from aigc_jax.data.splits import is_mapped


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_idx(tmp_path, suffix):
    write_idx(tmp_path, suffix)
    dataset = load(f'idx:{tmp_path}')
    assert (dataset.spec, dataset.num_classes) == (Images((6, 5, 1), 255), 7)
    assert sizes(dataset) == [16, 4, 10]
    for split, cut in (('train', slice(0, 16)), ('valid', slice(16, 20)), ('test', slice(20, 30))):
        np.testing.assert_array_equal(arrays(dataset, split)['x'][..., 0], IMAGES[cut])
        np.testing.assert_array_equal(arrays(dataset, split)['label'], LABELS[cut])
    for part in ('train', 't10k'):
        os.remove(tmp_path / f'{part}-labels-idx1-ubyte{suffix}')
    bare = load(f'idx:{tmp_path}')
    assert bare.num_classes == 0 and 'label' not in arrays(bare, 'test')
    assert bare.fingerprint != dataset.fingerprint


def test_a_path_may_be_relative_or_in_the_home(tmp_path, monkeypatch):
    write_idx(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv('HOME', str(tmp_path.parent))
    prints = {load(f'idx:{where}').fingerprint for where in (tmp_path, tmp_path.name, f'~/{tmp_path.name}')}
    assert len(prints) == 1


@pytest.mark.parametrize('suffix', ['', '.gz', '.xz'])
def test_amat(tmp_path, suffix):
    write_amat(tmp_path, suffix)
    dataset = load(f'amat:{tmp_path}')
    assert (dataset.spec, dataset.num_classes) == (Images((3, 3, 1), 1), 0)
    assert sizes(dataset) == [20, 4, 6]
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'].reshape(-1, 9), BITS[24:])


@pytest.mark.parametrize(
    'form',
    [
        lambda bits: amat_bytes(bits)[:-1],  # no newline at the end
        lambda bits: amat_bytes(bits).replace(b'\n', b' \r\n'),  # blanks and carriage returns at line ends
        lambda bits: amat_bytes(bits).replace(b'1', b'1.0e+00'),
    ],
)
def test_amat_in_other_spellings_of_0_and_1(tmp_path, form):
    write_amat(tmp_path, form=form)
    dataset = load(f'amat:{tmp_path}')
    assert dataset.spec.levels == 1
    np.testing.assert_array_equal(arrays(dataset, 'train')['x'].reshape(-1, 9), BITS[:20])


def test_amat_of_greys(tmp_path):
    write_amat(tmp_path, form=lambda bits: amat_bytes(bits).replace(b'1', b'0.25'))
    dataset = load(f'amat:{tmp_path}')
    assert dataset.spec.levels == 0
    np.testing.assert_array_equal(arrays(dataset, 'train')['x'].reshape(-1, 9), BITS[:20] * np.float32(0.25))


@pytest.mark.parametrize(
    'x, spec',
    [
        (IMAGES, Images((6, 5, 1), 255)),
        (COLOUR, Images((4, 4, 3), 255)),
        (BITS, Images((3, 3, 1), 1)),
        (BITS.astype(bool), Images((3, 3, 1), 1)),
        (IMAGES / 255.0, Images((6, 5, 1), 0)),
        (POINTS, Points(3)),
    ],
)
def test_npz(tmp_path, x, spec):
    train, test = dict(x_train=x[:20], y_train=LABELS[:20]), dict(x_test=x[20:], y_test=LABELS[20:])
    np.savez_compressed(tmp_path / 'a.npz', **train, **test)
    dataset = load(f'npz:{tmp_path}/a.npz')
    assert (dataset.spec, dataset.num_classes) == (spec, 7)
    assert sizes(dataset) == [16, 4, 10]
    test = arrays(dataset, 'test')
    assert test['x'].dtype == (np.uint8 if getattr(spec, 'levels', 0) else np.float32)
    np.testing.assert_allclose(test['x'].reshape(10, -1), x[20:].reshape(10, -1), rtol=1e-6)
    np.savez(tmp_path / 'b.npz', train=x[:16], valid=x[16:20], test=x[20:])
    plain = load(f'npz:{tmp_path}/b.npz')
    np.testing.assert_array_equal(arrays(plain, 'valid')['x'], arrays(dataset, 'valid')['x'])
    assert plain.num_classes == 0


@pytest.mark.parametrize(
    'name, write_set, file',
    [
        ('idx', write_idx, 'train-images-idx3-ubyte'),
        ('idx', lambda folder: write_idx(folder, '.gz'), 'train-images-idx3-ubyte.gz'),
        ('idx', lambda folder: write_idx(folder, '.gz'), 't10k-labels-idx1-ubyte.gz'),
        ('amat', write_amat, 'my_train.amat'),
        ('amat', lambda folder: write_amat(folder, '.gz'), 'my_valid.amat.gz'),
        ('amat', lambda folder: write_amat(folder, '.xz'), 'my_test.amat.xz'),
        ('npz', lambda folder: np.savez(folder / 'a.npz', train=IMAGES, test=IMAGES), 'a.npz'),
        ('npz', lambda folder: np.savez_compressed(folder / 'a.npz', train=IMAGES, test=IMAGES), 'a.npz'),
    ],
)
@pytest.mark.parametrize('breaker', BREAKERS)
def test_a_broken_file_is_named(tmp_path, name, write_set, file, breaker):
    write_set(tmp_path)
    where = tmp_path / file if name == 'npz' else tmp_path
    load(f'{name}:{where}')
    if breaker is flip_the_middle and file.endswith('ubyte'):
        pytest.skip('a flipped pixel of a plain file is a pixel')
    breaker(tmp_path / file)
    missing_amat = name == 'amat' and breaker is remove
    user_error(f'{name}:{where}', str(tmp_path), '*_' if missing_amat else file.split('.')[0])


@pytest.mark.parametrize('file', ['train-images-idx3-ubyte', 't10k-labels-idx1-ubyte'])
@pytest.mark.parametrize(
    'content',
    [b'\0\0\x08', b'\0\0\x08\x02' + bytes(60), idx_bytes(IMAGES[:0]), idx_bytes(LABELS[:3]), idx_bytes(IMAGES) + b'x'],
)
def test_a_wrong_idx_file_is_named(tmp_path, file, content):
    write_idx(tmp_path)
    write(tmp_path / file, content)
    user_error(f'idx:{tmp_path}', str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every file')
def test_an_unreadable_file_is_named(tmp_path):
    write_idx(tmp_path)
    os.chmod(tmp_path / 'train-images-idx3-ubyte', 0)
    user_error(f'idx:{tmp_path}', 'train-images-idx3-ubyte', 'ermission')


def test_permission_and_folder_errors_of_the_system_are_user_errors(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied', path)

    write_idx(tmp_path)
    monkeypatch.setattr(files, 'open_compressed', refuse)
    user_error(f'idx:{tmp_path}', 'train-images-idx3-ubyte', 'Permission denied')


NAN = POINTS.copy()
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    'content, word',
    [
        (dict(), 'nothing'),
        (dict(train=IMAGES, test=COLOUR), 'alike'),
        (dict(train=IMAGES, test=IMAGES / 255.0), 'alike'),
        (dict(train=IMAGES[:0], test=IMAGES), 'shape (0, 6, 5)'),
        (dict(train=LABELS, test=LABELS), 'shape (30,)'),
        (dict(train=BITS[:, :7], test=BITS[:, :7]), 'square'),
        (dict(train=NAN, test=POINTS), '1 values are NaN'),
        (dict(train=POINTS * 1e39, test=POINTS), 'infinite'),
        (dict(train=IMAGES * 1.1, test=IMAGES * 1.1), '[0, 1]'),
        (dict(train=IMAGES.astype(int) + 1, test=IMAGES.astype(int) + 1), '1 to 256'),
        (dict(train=COLOUR.transpose(0, 3, 1, 2).repeat(2, -1), test=COLOUR), 'alike'),
        (dict(train=np.array([None] * 30), test=IMAGES), 'object'),
        (dict(x_train=IMAGES, y_train=LABELS[:9], x_test=IMAGES, y_test=LABELS), '(9,)'),
        (dict(x_train=IMAGES, y_train=LABELS, x_test=IMAGES), 'labels for train alone'),
    ],
)
def test_a_wrong_array_is_named(tmp_path, content, word):
    np.savez(tmp_path / 'a.npz', **content)
    user_error(f'npz:{tmp_path}/a.npz', f'{tmp_path}/a.npz', word)


def test_other_files_of_numpy_and_pickle_are_refused(tmp_path):
    np.save(tmp_path / 'a.npy', IMAGES)
    user_error(f'npz:{tmp_path}/a.npy', 'one .npy array')
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'train': IMAGES}))
    user_error(f'npz:{tmp_path}/a.pkl', 'a.pkl')


@pytest.mark.parametrize(
    'form, word',
    [
        (lambda bits: amat_bytes(bits[:, :8]), '8 values'),
        (lambda bits: amat_bytes(bits) + b'1 0\n', 'equally many'),
        (lambda bits: amat_bytes(bits).replace(b'1', b'nan'), 'NaN'),
        (lambda bits: amat_bytes(bits).replace(b'1', b'25.5'), '[0, 1]'),
    ],
)
def test_a_wrong_amat_is_named(tmp_path, form, word):
    write_amat(tmp_path, form=form)
    user_error(f'amat:{tmp_path}', word)


def test_two_amat_triples_in_a_folder_are_refused(tmp_path):
    write_amat(tmp_path)
    shutil.copy(tmp_path / 'my_train.amat', tmp_path / 'your_train.amat')
    user_error(f'amat:{tmp_path}', 'my_train.amat, your_train.amat')


@pytest.mark.parametrize('valid_examples', [20, 21])
def test_held_out_examples_leave_some_to_train_on(tmp_path, valid_examples):
    write_idx(tmp_path)
    user_error(f'idx:{tmp_path}', f'data.valid_examples={valid_examples}', '0..19', valid_examples=valid_examples)


@pytest.mark.parametrize('prefix, write', [('idx', write_idx), ('amat', write_amat)])
def test_with_none_held_out_the_valid_split_is_trained_on(tmp_path, prefix, write):
    write(tmp_path)
    apart, joined = load(f'{prefix}:{tmp_path}'), load(f'{prefix}:{tmp_path}', valid_examples=0)
    assert sorted(joined.splits) == ['test', 'train'] and joined.fingerprint != apart.fingerprint
    for name, array in arrays(joined, 'train').items():
        parts = [arrays(apart, split)[name] for split in ('train', 'valid')]
        np.testing.assert_array_equal(array, np.concatenate(parts))
    np.testing.assert_array_equal(arrays(joined, 'test')['x'], arrays(apart, 'test')['x'])


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return f'npz:{path}.npz'


def save_npy(path, x_train, **_):
    np.save(path, x_train)
    return f'npy:{path}.npy'


def save_idx(path, x_train, x_test, y_train, y_test):
    path.mkdir()
    for part, x, y in (('train', x_train, y_train), ('t10k', x_test, y_test)):
        write(path / f'{part}-images-idx3-ubyte', idx_bytes(x))
        write(path / f'{part}-labels-idx1-ubyte', idx_bytes(y))
    return f'idx:{path}'


def save_npz_by_column(path, **arrays):
    return save_npz(path, **{name: np.asfortranarray(value) for name, value in arrays.items()})


def save_npz_of_floats(path, x_train, **_):
    return save_npz(path, images=x_train.astype(np.float32) / 255)


def save_places(path, **arrays):
    train = save_npz(f'{path}_train', images=arrays['x_train'], labels=arrays['y_train']).removeprefix('npz:')
    test = save_npz(f'{path}_test', images=arrays['x_test'], labels=arrays['y_test']).removeprefix('npz:')
    return f'npz:train={train},test={test}'


@pytest.mark.parametrize(
    'save', [save_npz, save_npy, save_idx, save_npz_by_column, save_npz_of_floats, save_places]
)
def test_streamed_files_are_mapped_and_hold_the_same(tmp_path, save):
    """Of 3 MB little is taken: the labels, the order, some examples at a time."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12000, 16, 16), np.uint8), np.arange(12000, dtype=np.uint8) % 7
    name = save(tmp_path / 'data', x_train=x[:8000], y_train=y[:8000], x_test=x[8000:], y_test=y[8000:])
    whole = load(name)
    load(name, stream=True)  # what is imported first
    tracemalloc.start()
    try:
        mapped = load(name, stream=True)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    held = sum(array.nbytes for split in whole.splits for array in arrays(whole, split).values())
    assert most < 0.5 * held, (most, held)
    assert mapped.fingerprint == whole.fingerprint and sizes(mapped) == sizes(whole)
    assert (mapped.spec, mapped.num_classes) == (whole.spec, whole.num_classes)
    index = np.array([[3, 0], [2, 3]])
    for split in whole.splits:
        assert not hasattr(mapped.splits[split], 'gather')
        for place in (3, -1, index, slice(2, 4)):
            ours, theirs = mapped.splits[split][place], whole.splits[split][place]
            assert ours.keys() == theirs.keys()
            for part in ours:
                np.testing.assert_array_equal(ours[part], theirs[part])
                assert ours[part].dtype == theirs[part].dtype and ours[part].flags.c_contiguous
        for part, array in arrays(mapped, split).items():
            np.testing.assert_array_equal(array, arrays(whole, split)[part])
        with pytest.raises(IndexError):
            mapped.splits[split][len(whole.splits[split])]


def test_all_is_trained_on_where_nothing_is_held_out_of_a_streamed_file(tmp_path):
    name = save_npz(tmp_path / 'data', x_train=IMAGES[:20], x_valid=IMAGES[20:25], x_test=IMAGES[25:])
    whole, streamed = (load(name, valid_examples=0, stream=stream) for stream in (False, True))
    assert streamed.fingerprint == whole.fingerprint and len(streamed.splits['train']) == 25


@pytest.mark.parametrize('form', ['compressed', 'gz', 'whole numbers'])
def test_a_streamed_file_that_cannot_be_mapped_is_held_in_memory(tmp_path, form):
    path = tmp_path / 'data.npz'
    images = IMAGES.astype(np.int64) if form == 'whole numbers' else IMAGES
    (np.savez_compressed if form == 'compressed' else np.savez)(path, images=images)
    if form == 'gz':
        write(path, path.read_bytes(), '.gz')
        path = tmp_path / 'data.npz.gz'
    whole, streamed = (load(f'npz:{path}', stream=stream) for stream in (False, True))
    assert streamed.fingerprint == whole.fingerprint and isinstance(streamed.splits['train'], data.Arrays)


@pytest.mark.parametrize('at', [-1, 5])
def test_a_flipped_byte_of_a_mapped_npz_is_found(tmp_path, at):
    path = tmp_path / 'data.npz'
    np.savez(path, images=IMAGES)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + (at % IMAGES.size)] ^= 1
    path.write_bytes(content)
    for stream in (False, True):
        user_error(f'npz:{path}', 'CRC', stream=stream)


def same(mapped, whole):
    for (x, y), (other, labels) in zip(mapped.values(), whole.values(), strict=True):
        assert x.dtype == other.dtype and x.shape == other.shape and y is labels is None
        np.testing.assert_array_equal(x, other)


ODD = {
    'by columns': np.asfortranarray(IMAGES), 'big-endian': IMAGES.astype('>f4'), 'without values': IMAGES[:0],
    'of empty rows': np.zeros((4, 0, 3), np.uint8), 'a single value': np.array(3.0), 'bool': IMAGES > 99,
    'texts': np.array(['a', 'bc']), 'of half': IMAGES.astype(np.float16), 'every other': IMAGES[::2],
}  # fmt: skip


@pytest.mark.parametrize('array', ODD.values(), ids=ODD)
def test_what_is_mapped_is_what_would_be_read(tmp_path, array):
    np.savez(tmp_path / 'a.npz', x=array)
    np.save(tmp_path / 'a.npy', array)
    for read, name in (files.read_npz, 'a.npz'), (files.read_npy, 'a.npy'):
        mapped, whole = (read(str(tmp_path / name), kind) for kind in (True, False))
        same(mapped, whole)
        assert all(is_mapped(x) == bool(array.size) for x, _ in mapped.values())


def write_members(path, form, **members):
    """An .npz of {name: bytes}, as other programs write them."""
    if form == 'behind other bytes':
        path.write_bytes(bytes(1001))
    method = {'deflated': zipfile.ZIP_DEFLATED, 'lzma': zipfile.ZIP_LZMA}.get(form, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, 'a', method) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(f'{name}.npy')
            info.compress_type = method
            if form == 'an extra field':
                info.extra = b'\xfe\xca\x05\x00extra'
            with archive.open(info, 'w', force_zip64=form == 'Zip64') as file:
                file.write(content)


FORMS = ['stored', 'deflated', 'lzma', 'Zip64', 'an extra field', 'behind other bytes']


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize('form', FORMS)
def test_an_npz_of_another_program(tmp_path, form):
    path = tmp_path / 'a.npz'
    write_members(path, form, x_test=npy_bytes(IMAGES[20:]), x_train=npy_bytes(IMAGES[:20]))
    mapped, whole = (files.read_npz(str(path), kind) for kind in (True, False))
    same(mapped, whole)
    np.testing.assert_array_equal(mapped['test'][0], IMAGES[20:])
    assert all(is_mapped(x) == (form not in ('deflated', 'lzma')) for x, _ in mapped.values())


BROKEN = {
    'truncated': npy_bytes(IMAGES)[:-1], 'header alone': npy_bytes(IMAGES)[:128], 'cut header': npy_bytes(IMAGES)[:60],
    'objects': npy_bytes(np.array([{}, 1])), 'nothing': b'', 'a text': b'x = 3',
}  # fmt: skip


@pytest.mark.parametrize('content', BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize('form', FORMS)
def test_a_broken_array_is_refused_mapped_or_not(tmp_path, form, content):
    path = tmp_path / 'a.npz'
    write_members(path, form, x=content)
    (tmp_path / 'a.npy').write_bytes(content)
    for stream in (False, True):
        user_error(f'npz:{path}', 'it must be an .npz of plain arrays', stream=stream)
        user_error(f'npy:{tmp_path}/a.npy', 'it must be an .npy of plain numbers', stream=stream)


@pytest.mark.parametrize('form', FORMS)
def test_a_flipped_byte_of_any_npz_is_found(tmp_path, form):
    path = tmp_path / 'a.npz'
    write_members(path, form, x=npy_bytes(IMAGES))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.infolist()[0]
    begin, end = info.header_offset, whole.index(b'PK\x01\x02')
    for at in (begin, begin + 30, end - info.compress_size + 9, end - 300, end - 20):  # its header, name and data
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        for stream in (False, True):
            user_error(f'npz:{path}', 'it must be an .npz of plain arrays', stream=stream)


def test_values_that_look_like_the_end_of_an_archive(tmp_path):
    end = np.frombuffer(b'PK\x05\x06' + bytes(18), np.uint8)
    array = np.zeros((30, 64), np.uint8)
    array[-1, -len(end) :] = end
    np.save(tmp_path / 'a.npy', array)
    np.testing.assert_array_equal(files.read_npy(str(tmp_path / 'a.npy'))[''][0], array)
