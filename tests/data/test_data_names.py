"""Arrays as people have them: their names, axes, ranges and labels, and the splits that a set lacks."""

import gzip
import lzma
import subprocess

import numpy as np
import pytest
import scipy.io
import zstandard
from datafiles import BITS, COLOUR, IMAGES, LABELS, POINTS, Notes, arrays, idx_bytes, load, sizes, user_error, write

from aigc_jax.core.errors import UserError
from aigc_jax.data import Images, Points, labels

FLAT = np.random.RandomState(1).randint(0, 256, (30, 64)).astype(np.uint8)
ONE_HOT = np.eye(7)[LABELS]


@pytest.fixture
def notes(capsys):
    return Notes(capsys)


def saved(folder, content, name='a.npz'):
    np.savez(folder / name, **content)
    return f'npz:{folder}/{name}'


@pytest.mark.parametrize(
    'content',
    [
        dict(x_train=IMAGES[:20], y_train=LABELS[:20], x_test=IMAGES[20:], y_test=LABELS[20:]),
        dict(train_images=IMAGES[:20], train_labels=LABELS[:20, None], test_images=IMAGES[20:],
             test_labels=LABELS[20:, None]),
        dict(data=IMAGES[:20], target=ONE_HOT[:20], testdata=IMAGES[20:], testtarget=ONE_HOT[20:]),
        dict(X_train=IMAGES[:20], Y_train=LABELS[:20] * 1.0, X_test=IMAGES[20:], Y_test=LABELS[20:] * 1.0),
        dict(training=IMAGES[:20], train_target=LABELS[:20], testing=IMAGES[20:], test_target=LABELS[20:]),
    ],
)  # fmt: skip
def test_names_that_people_have(tmp_path, content, notes):
    dataset = load(saved(tmp_path, content), valid_examples=-1)
    assert (sizes(dataset), dataset.num_classes) == ([16, 4, 10], 7)
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'][..., 0], IMAGES[20:])
    np.testing.assert_array_equal(arrays(dataset, 'test')['label'], LABELS[20:])
    (divided,) = notes()
    assert '16 train, 4 valid' in divided and 'the last ones' in divided
    assert sizes(load(saved(tmp_path, content), valid_examples=4)) == [16, 4, 10] and notes() == []  # as it was asked


def test_val_is_a_word_for_valid_too(tmp_path, notes):
    dataset = load(saved(tmp_path, dict(train_data=FLAT[:16], val_data=FLAT[16:20], test_data=FLAT[20:])))
    assert sizes(dataset) == [16, 4, 10] and dataset.spec.shape == (8, 8, 1) and list(dataset.splits)[0] == 'train'
    assert notes() == []


@pytest.mark.parametrize('names', [('images', 'labels'), ('data', 'target'), ('X', 'y'), ('arr_0', 'y'), ('ff', 'Y')])
def test_one_array_is_divided_at_random_and_always_alike(tmp_path, names, notes):
    name = saved(tmp_path, dict(zip(names, (IMAGES, LABELS), strict=True)))
    dataset, other = load(name, valid_examples=-1), load(name, valid_examples=9)
    assert (sizes(dataset), sizes(other)) == ([18, 6, 6], [15, 9, 6])
    assert '18 train, 6 valid, 6 test' in notes()[0]
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'], arrays(other, 'test')['x'])
    where = {image.tobytes(): i for i, image in enumerate(IMAGES)}
    order = [where[x.tobytes()] for split in ('train', 'valid', 'test') for x in arrays(dataset, split)['x']]
    assert sorted(order) == list(range(30)) and order != list(range(30))
    assert [LABELS[i] for i in order[:18]] == arrays(dataset, 'train')['label'].tolist()
    assert load(name, valid_examples=-1).fingerprint == dataset.fingerprint


def test_a_small_set_holds_a_fifth_out_and_a_large_one_10000(tmp_path):
    small, large = (dict(train=BITS[:1].repeat(n, 0), test=BITS) for n in (30, 66_000))
    assert sizes(load(saved(tmp_path, small), valid_examples=-1)) == [24, 6, 30]
    assert sizes(load(saved(tmp_path, large), valid_examples=-1)) == [56_000, 10_000, 30]
    user_error(saved(tmp_path, dict(images=IMAGES[:2])), '2 examples cannot be divided')


def test_a_test_split_is_held_out_beside_a_valid_split(tmp_path):
    for valid_examples, expected in ((-1, ['test', 'train', 'valid']), (0, ['test', 'train'])):
        dataset = load(saved(tmp_path, dict(train=IMAGES[:24], valid=IMAGES[24:])), valid_examples=valid_examples)
        assert sorted(dataset.splits) == expected and len(dataset.splits['test']) == 4


@pytest.mark.parametrize(
    'content, words',
    [
        (dict(images=IMAGES, data=IMAGES), ['images and data mean the same', 'images (30, 6, 5)', 'np.savez']),
        (dict(train=IMAGES, x_train=IMAGES), ['train and x_train mean the same']),
        (dict(a=IMAGES, b=IMAGES), ['no name', 'a (30, 6, 5), b (30, 6, 5)', 'x_train=']),
        (dict(train=IMAGES, images=IMAGES), ['images stands beside train']),
        (dict(valid=IMAGES, test=IMAGES), ['for training']),
        (dict(), ['nothing']),
    ],
)
def test_unclear_names_are_refused_with_all_of_them(tmp_path, content, words):
    user_error(saved(tmp_path, content), *words)


def test_what_is_not_understood_is_named(tmp_path, notes):
    load(saved(tmp_path, dict(train=IMAGES, test=IMAGES, latents=POINTS, values=LABELS)))
    assert 'left out' in (line := notes()[0]) and 'latents (30, 3), values (30,)' in line


@pytest.mark.parametrize(
    'y, num_classes, expected, said',
    [
        (LABELS.astype(int) + 1, 7, LABELS, 'the labels 1…7 are the classes 0…6'),
        (LABELS.astype(int) - 1, 7, LABELS, 'the labels -1…5 are the classes 0…6'),
        (LABELS.astype(np.int64) + 2_000_000_000, 7, LABELS, 'the labels 2000000000…2000000006 are'),
        (LABELS * 10.0, 7, LABELS, '7 classes, 0: 0, 1: 10, 2: 20'),
        (np.array(['cat', 'dog', 'ant'])[LABELS % 3], 3, np.array([1, 2, 0])[LABELS % 3], '0: ant, 1: cat'),
        (np.array(['9', '10', '11'])[LABELS % 3], 3, LABELS % 3, 'the labels 9…11'),
        (np.array(['01', '02', '10'])[LABELS % 3], 3, LABELS % 3, '3 classes, 0: 01, 1: 02, 2: 10'),
        (LABELS > 3, 2, LABELS > 3, ''),
        (ONE_HOT, 7, LABELS, ''),
        (ONE_HOT.T, 7, LABELS, ''),
        (np.eye(9)[LABELS], 9, LABELS, 'no training example is of class 7, 8 (2 of 9 classes)'),
        (LABELS + 0.5, 0, None, 'left out, for they are no classes: they are no whole numbers'),
        (ONE_HOT.repeat(2, 1), 0, None, 'left out, for they are no classes: each has 14 columns'),
        (LABELS * 0, 0, None, 'left out, for all of them are 0'),
    ],
)  # fmt: skip
def test_labels_become_classes(tmp_path, y, num_classes, expected, said, notes):
    name = saved(tmp_path, dict(x_train=IMAGES, y_train=y, x_test=IMAGES, y_test=y))
    dataset = load(name)
    assert dataset.num_classes == num_classes
    if num_classes:
        np.testing.assert_array_equal(arrays(dataset, 'test')['label'], expected)
    else:
        assert 'label' not in arrays(dataset, 'test')
    lines = [line for line in notes() if 'training examples become' not in line]
    assert (len(lines) == 1 and said in lines[0]) if said else lines == []


def test_the_splits_share_one_numbering(tmp_path, notes):
    content = dict(x_train=IMAGES, y_train=LABELS % 2 + 5, x_test=IMAGES, y_test=LABELS % 2 + 6)
    dataset = load(saved(tmp_path, content))
    assert dataset.num_classes == 3 and set(arrays(dataset, 'test')['label']) == {1, 2}
    assert any('no training example is of class 7' in line for line in notes())


@pytest.mark.parametrize(
    'y, y_test, words',
    [
        (np.arange(30) + 2_000_000_000, np.arange(30) + 3_000_000_000, ['60 different labels', '2000000000']),
        (LABELS, LABELS.astype(str), ['different kinds', 'uint8', '<U']),
        (LABELS[:9], LABELS, ['(9,)']),
        (LABELS.reshape(2, 15), LABELS, ['(2, 15)']),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, y, y_test, words):
    user_error(saved(tmp_path, dict(x_train=IMAGES, y_train=y, x_test=IMAGES, y_test=y_test)), *words)


@pytest.mark.parametrize('form', [np.uint8, np.int64, np.float64, np.int16])
def test_whole_numbers_up_to_255_are_levels(tmp_path, form):
    dataset = load(saved(tmp_path, dict(train=FLAT.astype(form), test=FLAT.astype(form))))
    assert dataset.spec == Images((8, 8, 1), 255)
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'].reshape(30, 64), FLAT)


def test_rows_are_images_where_they_look_like_it_and_points_elsewhere(tmp_path, notes):
    for x, spec in (
        (FLAT / 255, Images((8, 8, 1), 0)),
        (FLAT / 128 - 1, Points(64)),
        (BITS / 2, Points(9)),
    ):
        dataset = load(saved(tmp_path, dict(train=x, test=x)))
        assert dataset.spec == spec
        said = any('64 values in a row are read as images (8, 8)' in line for line in notes())
        assert said == isinstance(spec, Images)


def test_channels_first(tmp_path, notes):
    x = COLOUR.transpose(0, 3, 1, 2).repeat(2, -1)
    dataset = load(saved(tmp_path, dict(train=x, test=x)))
    assert dataset.spec.shape == (4, 8, 3) and 'channels first' in notes()[0]
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'], COLOUR.repeat(2, 2))


@pytest.mark.parametrize('suffix, compress', [
    ('', bytes), ('.gz', gzip.compress), ('.xz', lzma.compress), ('.zst', zstandard.compress), ('.bin', gzip.compress),
])  # fmt: skip
def test_compressed_files_are_read_as_if_they_were_not(tmp_path, suffix, compress):
    np.savez(tmp_path / 'a.npz', images=IMAGES, labels=LABELS)
    np.save(tmp_path / 'a.npy', IMAGES)
    scipy.io.savemat(tmp_path / 'a.mat', dict(images=IMAGES, labels=LABELS))
    for kind in ('npz', 'npy', 'mat'):
        plain = load(f'{kind}:{tmp_path}/a.{kind}')
        assert plain.spec.shape == (6, 5, 1) and plain.num_classes == (0 if kind == 'npy' else 7)
        content = compress((tmp_path / f'a.{kind}').read_bytes())
        (tmp_path / f'b.{kind}{suffix}').write_bytes(content)
        assert load(f'{kind}:{tmp_path}/b.{kind}{suffix}').fingerprint == plain.fingerprint
        if suffix:
            (tmp_path / f'b.{kind}{suffix}').write_bytes(content[:-9])
            user_error(f'{kind}:{tmp_path}/b.{kind}{suffix}', f'b.{kind}{suffix}: cannot be read')


def test_frey_faces_as_they_come(tmp_path, notes):
    """(560, 1965) in frey_rawface.mat, with a column for each face of 28 x 20 pixels."""
    faces = np.random.RandomState(0).randint(0, 256, (131, 28, 20)).astype(np.uint8)
    scipy.io.savemat(tmp_path / 'frey.mat', dict(ff=faces.reshape(131, -1).T))
    user_error(f'mat:{tmp_path}/frey.mat', '(560, 131)', '--config.data.shape="(28, 20)"', 'columns of 560')
    dataset = load(f'mat:{tmp_path}/frey.mat', shape=(28, 20))
    assert dataset.spec.shape == (28, 20, 1)
    assert dataset.fingerprint == load(saved(tmp_path, dict(images=faces))).fingerprint
    assert any('along the last axis' in line for line in notes())
    user_error(f'mat:{tmp_path}/frey.mat', 'data.shape=(28, 21)', '(560, 131)', shape=(28, 21))
    user_error(saved(tmp_path, dict(images=faces)), 'data.shape=(20, 28)', '(28, 20) already', shape=(20, 28))


BIG = COLOUR.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize(
    'content, shape, counts, num_classes',
    [
        (dict(X=FLAT, Y=LABELS[None] + 1), (8, 8, 1), [18, 6, 6], 7),  # Caltech 101 silhouettes
        (dict(data=FLAT.T / 255, target=ONE_HOT.T, testdata=FLAT.T / 255, testtarget=ONE_HOT.T),  # Omniglot
         (8, 8, 1), [24, 6, 30], 7),
        (dict(data=FLAT.T), (8, 8, 1), [18, 6, 6], 0),
        (dict(data=FLAT.T, testdata=FLAT[:9].T), (8, 8, 1), [24, 6, 9], 0),
        (dict(X=BIG.transpose(1, 2, 3, 0), y=LABELS[:, None] + 1), (8, 8, 3), [18, 6, 6], 7),  # SVHN
        (dict(images=IMAGES[:, :3, :3].transpose(1, 2, 0)), (3, 3, 1), [18, 6, 6], 0),
    ],
)  # fmt: skip
def test_mat_files_as_they_come(tmp_path, content, shape, counts, num_classes, notes):
    scipy.io.savemat(tmp_path / 'a.mat', {**content, 'classnames': np.array(['a', 'bc'], object)})
    dataset = load(f'mat:{tmp_path}/a.mat', valid_examples=-1)
    assert (dataset.spec.shape, sizes(dataset), dataset.num_classes) == (shape, counts, num_classes)
    assert any('no plain arrays: classnames' in line for line in notes())


def test_the_command_for_a_mat_of_version_7_3_mends_it(tmp_path):
    h5py = pytest.importorskip('h5py', reason='needs h5py')
    folder = tmp_path / "o'mine ü $x"
    folder.mkdir()
    with h5py.File(folder / 'a.mat', 'w', userblock_size=512) as file:
        file['images'], file['labels'] = IMAGES.T, LABELS[None]
        file['cells'] = np.array([file['images'].ref], h5py.ref_dtype)
    with open(folder / 'a.mat', 'r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(124) + b'\x00\x02IM')
    with pytest.raises(UserError) as caught:
        load(f'mat:{folder}/a.mat')
    command = str(caught.value).split('\n')[1]
    subprocess.run(command, shell=True, check=True)
    assert load(f'npz:{folder}/a.mat.npz').spec.shape == (*IMAGES.shape[1:], 1)
    assert subprocess.run(command, shell=True, capture_output=True).returncode  # it is there already


def test_a_mat_of_version_7_3_is_refused_with_the_way_round_it(tmp_path):
    header = b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(124) + b'\x00\x02IM'
    (tmp_path / 'a.mat').write_bytes(header + b'\x89HDF\r\n\x1a\n' + bytes(600))
    user_error(f'mat:{tmp_path}/a.mat', '7.3', "'-v7'", 'h5py', f'npz:{tmp_path}/a.mat.npz')
    (tmp_path / 'a.mat.npz').write_text('mine')
    user_error(f'mat:{tmp_path}/a.mat', f'{tmp_path}/a.mat {tmp_path}/a.mat-2.npz')
    (tmp_path / 'b.mat').write_bytes(b'nothing of MATLAB' * 20)
    user_error(f'mat:{tmp_path}/b.mat', 'cannot be read')


@pytest.mark.parametrize('part', ['train', 't10k'])
def test_one_part_of_mnist_alone_is_divided(tmp_path, part):
    write(tmp_path / f'{part}-images-idx3-ubyte', idx_bytes(IMAGES), '.gz')
    write(tmp_path / f'{part}-labels-idx1-ubyte', idx_bytes(LABELS))
    dataset = load(f'idx:{tmp_path}', valid_examples=-1)
    assert (sizes(dataset), dataset.num_classes) == ([18, 6, 6], 7)


def test_other_spellings_of_idx_names(tmp_path):
    for part in ('emnist-letters-train', 'emnist-letters-test'):
        write(tmp_path / f'{part}-images.idx3-ubyte', idx_bytes(IMAGES))
    assert sizes(load(f'idx:{tmp_path}')) == [26, 4, 30]
    write(tmp_path / 'train-images-idx3-ubyte', idx_bytes(IMAGES))
    user_error(f'idx:{tmp_path}', 'emnist-letters-train-images.idx3-ubyte and train-images-idx3-ubyte', 'of their own')


def test_data_shape_is_of_flat_images_alone():
    user_error('digits', 'data.shape=(4, 16)', 'npz:', 'digits', shape=(4, 16))


def test_examples_in_order_of_their_classes_are_held_out_at_random(tmp_path, notes):
    """The last fifth of a sorted set is the last classes, which would never be trained on."""
    images = np.random.RandomState(0).randint(0, 256, (60, 8, 8)).astype(np.uint8)
    test = dict(x_test=images[:12], y_test=np.arange(12) % 6)
    dataset = load(saved(tmp_path, dict(x_train=images, y_train=np.arange(60) // 10, **test)), valid_examples=-1)
    assert sizes(dataset) == [48, 12, 12] and 'drawn at random' in notes()[0]
    assert set(arrays(dataset, 'train')['label']) == set(range(6))
    last = load(saved(tmp_path, dict(x_train=images, y_train=np.arange(60) % 6, **test)), valid_examples=-1)
    np.testing.assert_array_equal(arrays(last, 'valid')['x'][..., 0], images[-12:])


def test_images_of_another_white_are_told(tmp_path, notes):
    load(saved(tmp_path, dict(images=IMAGES // 16)), valid_examples=-1)
    assert any('is 15 of 255; if that is white, multiply the images by 255 / 15' in one for one in notes())


def test_labels_that_are_asked_for_are_those_that_pictures_show():
    names = ('1', '2', '7')
    assert labels.parse('7,1', 3, 3, names).tolist() == [2, 0, 2] and labels.parse('', 4, 3).tolist() == [0, 1, 2, 0]
    assert labels.parse('dog, 0', 2, 2, ('cat', 'dog')).tolist() == [1, 0] and labels.parse('2', 1, 3).tolist() == [2]
    for text, known in (('0', names), ('3', ()), ('bird', ('cat', 'dog', 'fox'))):
        with pytest.raises(UserError, match=f"labels: there is no class '{text}'; there are"):
            labels.parse(text, 1, 3, known)
