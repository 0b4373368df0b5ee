"""Data sources: what they hold, that it stays the same, and that every broken file is named."""

import gzip
import io
import lzma
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys

from ml_collections import config_dict
import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import files
from aigc_jax.data.mixture import MIXTURES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, 'scripts', 'prepare_data.py')
ENV = os.environ | {'PYTHONPATH': ROOT}
RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (30, 6, 5)).astype(np.uint8)
LABELS = (np.arange(30) % 7).astype(np.uint8)
BITS = RNG.randint(0, 2, (30, 9)).astype(np.uint8)


def load(name, folder='', num_examples=1500, valid_examples=4):
    return data.load(config_dict.ConfigDict(
        dict(name=name, dir=str(folder), num_examples=num_examples, valid_examples=valid_examples)))


def user_error(name, *words, **kwargs):
    """Asserts that loading `name` is a UserError of at most three lines that holds all `words`."""
    with pytest.raises(UserError) as caught:
        load(name, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for word in words:
        assert word in message, message


def sizes(dataset):
    return [len(dataset.splits[split]) for split in ('train', 'valid', 'test')]


def arrays(dataset, split):
    return data.materialize(dataset.splits[split]).arrays


# Embedded sets.


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits
    dataset = load('digits')
    assert (dataset.kind, dataset.shape, dataset.levels, dataset.num_classes) == ('image', (8, 8, 1), 16, 10)
    assert sizes(dataset) == [1437, 180, 180]
    bunch = load_digits()
    held = np.concatenate([np.column_stack([arrays(dataset, split)['x'].reshape(-1, 64),
                                            arrays(dataset, split)['label']]) for split in dataset.splits])
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
    assert (dataset.kind, dataset.shape, dataset.levels, dataset.num_classes) == ('points', (2,), 0, classes)
    assert sizes(dataset) == [1500, 10_000, 10_000]
    test = arrays(dataset, 'test')
    assert test['x'].dtype == np.float32 and ('label' in test) == bool(classes)
    label = test.get('label', np.zeros(10_000, np.int32))
    noise = (test['x'] - dataset.density.means[label]) / dataset.density.std
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
def test_mixture_density_integrates_to_one(name):
    density = MIXTURES[name]()
    # Trapezoids of a Gaussian are exact to 1e-8 at a step of one std; a fine grid around each mode.
    offset = np.arange(-8, 8.01, 0.5) * density.std
    grid = np.stack(np.meshgrid(offset, offset), -1)
    cell = (0.5 * density.std) ** 2
    total = sum(np.exp(density.log_prob(mean + grid)).sum() * cell for mean in density.means)
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    x, _ = density.sample(np.random.default_rng(0), 20_000)
    # Modes lie far apart, so the entropy is that of one mode plus log K.
    entropy = np.log(len(density.means)) + 1 + np.log(2 * np.pi * density.std ** 2)
    np.testing.assert_allclose(-density.log_prob(x).mean(), entropy, atol=0.03)


def test_log_prob_of_known_points():
    assert MIXTURES['gaussian2d']().log_prob(np.zeros(2)) == pytest.approx(-np.log(2 * np.pi))
    far = MIXTURES['ring8']().log_prob(np.array([[100.0, 0.0]]))  # the density itself underflows to 0
    assert far == pytest.approx(-0.5 * (99 / 0.01) ** 2 - np.log(8 * 2 * np.pi * 0.01 ** 2), rel=1e-9)


# Local files.


def write(path, content, suffix=''):
    opener = {'': open, '.gz': gzip.open, '.xz': lzma.open}[suffix]
    with opener(f'{path}{suffix}', 'wb') as file:
        file.write(content)


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def write_idx(folder, suffix=''):
    for part, cut in (('train', slice(0, 20)), ('t10k', slice(20, 30))):
        write(folder / f'{part}-images-idx3-ubyte', idx_bytes(IMAGES[cut]), suffix)
        write(folder / f'{part}-labels-idx1-ubyte', idx_bytes(LABELS[cut]), suffix)


def amat_bytes(bits):
    return b''.join(b' '.join(b'%d' % bit for bit in row) + b'\n' for row in bits)


def write_amat(folder, suffix='', form=amat_bytes):
    for split, cut in (('train', slice(0, 20)), ('valid', slice(20, 24)), ('test', slice(24, 30))):
        write(folder / f'my_{split}.amat', form(BITS[cut]), suffix)


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_idx(tmp_path, suffix):
    write_idx(tmp_path, suffix)
    dataset = load(f'idx:{tmp_path}')
    assert (dataset.kind, dataset.shape, dataset.levels, dataset.num_classes) == ('image', (6, 5, 1), 255, 7)
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
    assert (dataset.kind, dataset.shape, dataset.levels, dataset.num_classes) == ('image', (3, 3, 1), 1, 0)
    assert sizes(dataset) == [20, 4, 6]
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'].reshape(-1, 9), BITS[24:])


@pytest.mark.parametrize('form', [
    lambda bits: amat_bytes(bits)[:-1],                      # no newline at the end
    lambda bits: amat_bytes(bits).replace(b'\n', b' \r\n'),  # blanks and carriage returns at line ends
    lambda bits: amat_bytes(bits).replace(b'1', b'1.0e+00'),
])
def test_amat_in_other_spellings_of_0_and_1(tmp_path, form):
    write_amat(tmp_path, form=form)
    dataset = load(f'amat:{tmp_path}')
    assert dataset.levels == 1
    np.testing.assert_array_equal(arrays(dataset, 'train')['x'].reshape(-1, 9), BITS[:20])


def test_amat_of_greys(tmp_path):
    write_amat(tmp_path, form=lambda bits: amat_bytes(bits).replace(b'1', b'0.25'))
    dataset = load(f'amat:{tmp_path}')
    assert dataset.levels == 0 and dataset.kind == 'image'
    np.testing.assert_array_equal(arrays(dataset, 'train')['x'].reshape(-1, 9), BITS[:20] * np.float32(0.25))


COLOUR = RNG.randint(0, 256, (30, 4, 4, 3)).astype(np.uint8)
POINTS = RNG.standard_normal((30, 3))


@pytest.mark.parametrize('x, kind, shape, levels', [
    (IMAGES, 'image', (6, 5, 1), 255),
    (COLOUR, 'image', (4, 4, 3), 255),
    (BITS, 'image', (3, 3, 1), 1),
    (BITS.astype(bool), 'image', (3, 3, 1), 1),
    (IMAGES / 255.0, 'image', (6, 5, 1), 0),
    (POINTS, 'points', (3,), 0),
])
def test_npz(tmp_path, x, kind, shape, levels):
    train, test = dict(x_train=x[:20], y_train=LABELS[:20]), dict(x_test=x[20:], y_test=LABELS[20:])
    np.savez_compressed(tmp_path / 'a.npz', **train, **test)
    dataset = load(f'npz:{tmp_path}/a.npz')
    assert (dataset.kind, dataset.shape, dataset.levels, dataset.num_classes) == (kind, shape, levels, 7)
    assert sizes(dataset) == [16, 4, 10]
    test = arrays(dataset, 'test')
    assert test['x'].dtype == (np.uint8 if levels else np.float32)
    np.testing.assert_allclose(test['x'].reshape(10, -1), x[20:].reshape(10, -1), rtol=1e-6)
    np.savez(tmp_path / 'b.npz', train=x[:16], valid=x[16:20], test=x[20:])
    plain = load(f'npz:{tmp_path}/b.npz')
    np.testing.assert_array_equal(arrays(plain, 'valid')['x'], arrays(dataset, 'valid')['x'])
    assert plain.num_classes == 0


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2 - 3])  # inside a line of text


def flip_the_middle(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 8] = bytes(byte ^ 0xff for byte in content[middle:middle + 8])
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


def remove(path):
    path.unlink()


def make_a_folder_of(path):
    path.unlink()
    path.mkdir()


def fill_with_text(path):
    path.write_bytes(b'<html>404 Not Found</html>\n' * 9)


BREAKERS = [cut_in_half, flip_the_middle, empty, remove, make_a_folder_of, fill_with_text]


@pytest.mark.parametrize('name, write_set, file', [
    ('idx', write_idx, 'train-images-idx3-ubyte'),
    ('idx', lambda folder: write_idx(folder, '.gz'), 'train-images-idx3-ubyte.gz'),
    ('idx', lambda folder: write_idx(folder, '.gz'), 't10k-labels-idx1-ubyte.gz'),
    ('amat', write_amat, 'my_train.amat'),
    ('amat', lambda folder: write_amat(folder, '.gz'), 'my_valid.amat.gz'),
    ('amat', lambda folder: write_amat(folder, '.xz'), 'my_test.amat.xz'),
    ('npz', lambda folder: np.savez(folder / 'a.npz', train=IMAGES, test=IMAGES), 'a.npz'),
    ('npz', lambda folder: np.savez_compressed(folder / 'a.npz', train=IMAGES, test=IMAGES), 'a.npz'),
])
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
@pytest.mark.parametrize('content', [
    b'\0\0\x08', b'\0\0\x08\x02' + bytes(60), idx_bytes(IMAGES[:0]), idx_bytes(LABELS[:3]),
    idx_bytes(IMAGES) + b'x'])
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
    def refuse(path, mode):
        raise PermissionError(13, 'Permission denied', path)

    write_idx(tmp_path)
    monkeypatch.setitem(files._OPEN, '', refuse)
    user_error(f'idx:{tmp_path}', 'train-images-idx3-ubyte', 'Permission denied')


NAN = POINTS.copy()
NAN[3, 1] = np.nan


@pytest.mark.parametrize('content, word', [
    (dict(train=IMAGES), 'no array test'),
    (dict(), 'nothing'),
    (dict(train=IMAGES, test=COLOUR), 'alike'),
    (dict(train=IMAGES, test=IMAGES / 255.0), 'alike'),
    (dict(train=IMAGES[:0], test=IMAGES), 'shape (0, 6, 5)'),
    (dict(train=LABELS, test=LABELS), 'shape (30,)'),
    (dict(train=BITS[:, :7], test=BITS[:, :7]), 'square'),
    (dict(train=NAN, test=POINTS), '1 values are NaN'),
    (dict(train=POINTS * 1e39, test=POINTS), 'infinite'),
    (dict(train=IMAGES * 1.0, test=IMAGES * 1.0), '[0, 1]'),
    (dict(train=IMAGES.astype(int), test=IMAGES.astype(int)), 'int64'),
    (dict(train=COLOUR.transpose(0, 3, 1, 2).repeat(2, -1), test=COLOUR), 'channels first'),
    (dict(train=np.array([None] * 30), test=IMAGES), 'object'),
    (dict(x_train=IMAGES, y_train=LABELS[:9], x_test=IMAGES, y_test=LABELS), '(9,)'),
    (dict(x_train=IMAGES, y_train=LABELS, x_test=IMAGES), 'labels for train alone'),
    (dict(x_train=IMAGES, y_train=LABELS - 1.0, x_test=IMAGES, y_test=LABELS), 'float64'),
    (dict(x_train=IMAGES, y_train=LABELS.astype(int) - 1, x_test=IMAGES, y_test=LABELS), '-1..5'),
])
def test_a_wrong_array_is_named(tmp_path, content, word):
    np.savez(tmp_path / 'a.npz', **content)
    user_error(f'npz:{tmp_path}/a.npz', f'{tmp_path}/a.npz', word)


def test_other_files_of_numpy_and_pickle_are_refused(tmp_path):
    np.save(tmp_path / 'a.npy', IMAGES)
    user_error(f'npz:{tmp_path}/a.npy', 'one .npy array')
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'train': IMAGES}))
    user_error(f'npz:{tmp_path}/a.pkl', 'a.pkl')


@pytest.mark.parametrize('form, word', [
    (lambda bits: amat_bytes(bits[:, :8]), '8 values'),
    (lambda bits: amat_bytes(bits) + b'1 0\n', 'equally many'),
    (lambda bits: amat_bytes(bits).replace(b'1', b'nan'), 'NaN'),
    (lambda bits: amat_bytes(bits).replace(b'1', b'255'), '[0, 1]'),
])
def test_a_wrong_amat_is_named(tmp_path, form, word):
    write_amat(tmp_path, form=form)
    user_error(f'amat:{tmp_path}', word)


def test_two_amat_triples_in_a_folder_are_refused(tmp_path):
    write_amat(tmp_path)
    shutil.copy(tmp_path / 'my_train.amat', tmp_path / 'your_train.amat')
    user_error(f'amat:{tmp_path}', 'my_train.amat, your_train.amat')


@pytest.mark.parametrize('valid_examples', [0, -1, 20, 21])
def test_held_out_examples_leave_both_splits_some(tmp_path, valid_examples):
    write_idx(tmp_path)
    user_error(f'idx:{tmp_path}', f'data.valid_examples={valid_examples}', '1..19',
               valid_examples=valid_examples)


@pytest.mark.parametrize('name, words', [
    ('digit', ['did you mean digits']), ('mnist', ['known: amat:', 'tfds:']), ('idx', ['did you mean idx:']),
    ('idx:', ['missing']), ('ring8:x', ['ring8']), ('', ['known'])])
def test_unknown_names_list_near_ones(name, words):
    user_error(name, *words)


# TFDS.


def prepare(*args):
    command = [sys.executable, SCRIPT, *args]
    return subprocess.run(command, text=True, capture_output=True, env=ENV, timeout=60)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder with local files, and the same as the TFDS set `mine`."""
    folder = tmp_path_factory.mktemp('prepared')
    write_idx(folder)
    done = prepare(f'--source=idx:{folder}', '--name=mine', f'--data_dir={folder}/sets', '--valid_examples=4')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'--config.data.name=tfds:mine --config.data.dir={folder}/sets\n'
    assert os.listdir(folder / 'sets') == ['mine']
    return folder


def test_prepared_files_come_back_equal(prepared):
    given, read = load(f'idx:{prepared}'), load('tfds:mine', f'{prepared}/sets')
    for field in ('kind', 'shape', 'levels', 'num_classes', 'licence'):
        assert getattr(given, field) == getattr(read, field)
    assert sizes(given) == sizes(read)
    for split in given.splits:
        assert not hasattr(read.splits[split], 'arrays')
        for name, array in arrays(given, split).items():
            np.testing.assert_array_equal(arrays(read, split)[name], array)
            assert arrays(read, split)[name].dtype == array.dtype
    assert read.fingerprint == load('tfds:mine:1.0.0', f'{prepared}/sets').fingerprint != given.fingerprint


def test_streams_index_like_arrays(prepared):
    held = load(f'idx:{prepared}').splits['train']
    stream = load('tfds:mine', f'{prepared}/sets').splits['train']
    stream = pickle.loads(pickle.dumps(stream))  # as Grain's worker processes do
    for index in (0, np.int64(5), -1, np.array([4, 4, 0])):
        for name in ('x', 'label'):
            np.testing.assert_array_equal(stream[index][name], held[index][name])
            assert stream[index][name].shape == held[index][name].shape
    assert len(list(stream)) == len(held)  # ends by IndexError


@pytest.mark.parametrize('x, levels', [(BITS.reshape(30, 3, 3), 1), (POINTS, 0), (IMAGES / 255.0, 0)])
def test_levels_and_reals_survive_preparing(tmp_path, x, levels):
    np.savez(tmp_path / 'a.npz', train=x, valid=x, test=x)
    done = prepare(f'--source=npz:{tmp_path}/a.npz', '--name=mine', f'--data_dir={tmp_path}')
    assert done.returncode == 0, done.stderr
    given, read = load(f'npz:{tmp_path}/a.npz'), load('tfds:mine', tmp_path)
    assert (read.kind, read.levels, read.shape) == (given.kind, levels, given.shape)
    np.testing.assert_array_equal(arrays(read, 'valid')['x'], arrays(given, 'valid')['x'])


def test_prepare_refuses_and_leaves_nothing(prepared, tmp_path):
    again = prepare(f'--source=idx:{prepared}', '--name=mine', f'--data_dir={prepared}/sets',
                    '--valid_examples=4')
    assert again.returncode == 2 and 'exists already' in again.stderr and not again.stdout
    for args in (['--source=idx:nowhere', '--name=a'], [f'--source=idx:{prepared}', '--name=A-b'],
                 ['--source=tfds:mnist', '--name=a'], ['--source=digits'], ['--sauce=digits']):
        done = prepare(*args, f'--data_dir={tmp_path}/sets')
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout, done.stderr
    assert not os.path.exists(tmp_path / 'sets')
    done = prepare(f'--source=idx:{prepared}', '--name=a', f'--data_dir={prepared}/t10k-images-idx3-ubyte',
                   '--valid_examples=4')
    assert done.returncode == 2 and 'cannot be written' in done.stderr


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_prepare_interrupted_leaves_nothing(tmp_path, number, code):
    np.savez(tmp_path / 'a.npz', **{split: np.zeros((200_000, 1)) for split in ('train', 'valid', 'test')})
    args = [f'--source=npz:{tmp_path}/a.npz', '--name=mine', f'--data_dir={tmp_path}/sets']
    run = subprocess.Popen([sys.executable, SCRIPT, *args], env=ENV, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    for line in run.stderr:
        if b'Generating' in line:
            run.send_signal(number)
            break
    stdout, _ = run.communicate(timeout=60)
    assert (run.returncode, stdout, os.listdir(tmp_path / 'sets')) == (code, b'', [])


def build_tfds(folder, splits, features, name='made'):
    """A set as TFDS's own scripts write them; `splits` is {name: iterable of examples}."""
    import tensorflow_datasets

    class Made(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version('1.0.0')

        def _info(self):
            keys = tensorflow_datasets.features.FeaturesDict(features)
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=keys, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Made.name = name
    Made(data_dir=str(folder), file_format='array_record').download_and_prepare()


def test_a_set_of_png_images_with_no_valid_split(tmp_path):
    import tensorflow_datasets
    from PIL import Image

    def examples(images):
        for image, label in zip(images, LABELS):
            png = io.BytesIO()
            Image.fromarray(image).save(png, 'png')
            yield {'image': png.getvalue(), 'label': int(label)}

    features = {'image': tensorflow_datasets.features.Image(shape=(6, 5, 1)),
                'label': tensorflow_datasets.features.ClassLabel(num_classes=7)}
    build_tfds(tmp_path, {'train': examples(IMAGES), 'test': examples(IMAGES[:3])}, features)
    dataset = load('tfds:made', tmp_path)
    assert sizes(dataset) == [26, 4, 3] and dataset.levels == 255 and dataset.num_classes == 7
    np.testing.assert_array_equal(arrays(dataset, 'valid')['x'][..., 0], IMAGES[26:])
    np.testing.assert_array_equal(arrays(dataset, 'valid')['label'], LABELS[26:])
    user_error('tfds:made', 'data.valid_examples=30', '1..29', folder=tmp_path, valid_examples=30)
    build_tfds(tmp_path, {'train': examples(IMAGES)}, features, 'untested')
    user_error('tfds:untested', 'no test split', folder=tmp_path)


def test_a_set_without_images_is_refused(tmp_path):
    import tensorflow_datasets
    text = {'text': tensorflow_datasets.features.Text()}
    build_tfds(tmp_path, {'train': [{'text': 'a'}], 'test': [{'text': 'b'}]}, text)
    user_error('tfds:made', 'neither image nor x, only text', folder=tmp_path)


@pytest.mark.parametrize('breaker', BREAKERS)
@pytest.mark.parametrize('file', [
    'mine-test.array_record-00000-of-00001', 'dataset_info.json', 'features.json'])
def test_a_damaged_set_is_named(prepared, tmp_path, breaker, file):
    shutil.copytree(prepared / 'sets', tmp_path, dirs_exist_ok=True)
    breaker(tmp_path / 'mine' / '1.0.0' / file)
    user_error('tfds:mine', str(tmp_path), folder=tmp_path)


def test_a_set_that_is_not_there(prepared, tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError('the network was asked')

    monkeypatch.setattr(socket.socket, 'connect', no_network)
    monkeypatch.setattr(socket, 'getaddrinfo', no_network)
    user_error('tfds:mnist', 'tfds:mnist: not prepared', 'tfds build mnist --file_format=array_record',
               f'--data_dir={tmp_path}', 'prepare_data.py', folder=tmp_path)
    user_error('tfds:mnits', 'did you mean mnist', folder=tmp_path)
    user_error('tfds:miine', 'did you mean mine', folder=f'{prepared}/sets')
    user_error('tfds:zzzzzz', f'{tmp_path} holds nothing', folder=tmp_path)
    user_error('tfds:huggingface:mnist', 'is no name of a set', folder=tmp_path)
    user_error('tfds:mnist:9.9.9', 'only: 3.0.1', folder=tmp_path)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    user_error('tfds:mnist', 'pip install tensorflow-datasets', folder=tmp_path)


# The real sets, where they are.


@pytest.mark.parametrize('name, levels, mean', [('idx:mnist', 255, 33.31), ('idx:fashion_mnist', 255, 72.94),
                                                ('amat:binarized_mnist', 1, 0.1306)])
def test_real_sets(name, levels, mean):
    folder = os.environ.get('AIGC_JAX_DATA')
    prefix, _, file = name.partition(':')
    if not folder or not os.path.isdir(os.path.join(folder, file)):
        pytest.skip(f'AIGC_JAX_DATA names no folder with {file}')
    dataset = load(f'{prefix}:{folder}/{file}', valid_examples=10_000)
    assert sizes(dataset) == [50_000, 10_000, 10_000] and dataset.shape == (28, 28, 1)
    assert dataset.levels == levels
    assert arrays(dataset, 'train')['x'].mean() == pytest.approx(mean, rel=0.005)
