"""TFDS sets, those of scripts/prepare_data.py among them: read as they were written, named where they are not."""

import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from datafiles import (
    BITS,
    BREAKERS,
    IMAGES,
    LABELS,
    POINTS,
    arrays,
    flip_the_middle,
    load,
    sizes,
    user_error,
    write_idx,
)
from ml_collections import config_dict

from aigc_jax import data
from aigc_jax.core import schema
from aigc_jax.core.errors import UserError
from aigc_jax.data.sources import tfds
from aigc_jax.data.tokenizers import END

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, 'scripts', 'prepare_data.py')
ENV = os.environ | {'PYTHONPATH': ROOT}


def prepare(*args):
    command = [sys.executable, SCRIPT, *args]
    return subprocess.run(command, text=True, capture_output=True, env=ENV, timeout=300)


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
    for field in ('spec', 'num_classes', 'licence'):
        assert getattr(given, field) == getattr(read, field)
    assert sizes(given) == sizes(read)
    for split in given.splits:
        assert not hasattr(read.splits[split], 'arrays')
        for name, array in arrays(given, split).items():
            np.testing.assert_array_equal(arrays(read, split)[name], array)
            assert arrays(read, split)[name].dtype == array.dtype
    assert read.fingerprint == load('tfds:mine:1.0.0', f'{prepared}/sets').fingerprint != given.fingerprint


def test_with_none_held_out_the_valid_split_is_trained_on(prepared):
    joined = load('tfds:mine', f'{prepared}/sets', valid_examples=0)
    assert sorted(joined.splits) == ['test', 'train']
    held = load(f'idx:{prepared}', valid_examples=0)
    for split, source in held.splits.items():
        np.testing.assert_array_equal(arrays(joined, split)['x'], source.arrays['x'])


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
    assert read.spec == given.spec and getattr(read.spec, 'levels', 0) == levels
    np.testing.assert_array_equal(arrays(read, 'valid')['x'], arrays(given, 'valid')['x'])


def test_prepare_refuses_and_leaves_nothing(prepared, tmp_path):
    again = prepare(f'--source=idx:{prepared}', '--name=mine', f'--data_dir={prepared}/sets', '--valid_examples=4')
    assert again.returncode == 2 and 'exists already' in again.stderr and not again.stdout
    for args in (
        ['--source=idx:nowhere', '--name=a'],
        [f'--source=idx:{prepared}', '--name=A-b'],
        ['--source=tfds:mnist', '--name=a'],
        ['--source=digits'],
        ['--sauce=digits'],
    ):
        done = prepare(*args, f'--data_dir={tmp_path}/sets')
        errors = [line for line in done.stderr.splitlines() if not line.startswith('note: ')]
        assert done.returncode == 2 and len(errors) == 1 and not done.stdout, done.stderr
    assert not os.path.exists(tmp_path / 'sets')
    done = prepare(
        f'--source=idx:{prepared}', '--name=a', f'--data_dir={prepared}/t10k-images-idx3-ubyte', '--valid_examples=4'
    )
    assert done.returncode == 2 and 'cannot be written' in done.stderr


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_prepare_interrupted_leaves_nothing(tmp_path, number, code):
    np.savez(tmp_path / 'a.npz', **{split: np.zeros((200_000, 1)) for split in ('train', 'valid', 'test')})
    args = [f'--source=npz:{tmp_path}/a.npz', '--name=mine', f'--data_dir={tmp_path}/sets']
    run = subprocess.Popen([sys.executable, SCRIPT, *args], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in run.stderr:
        if b'Generating' in line:
            run.send_signal(number)
            break
    stdout, _ = run.communicate(timeout=300)
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
        for image, label in zip(images, LABELS, strict=False):
            png = io.BytesIO()
            Image.fromarray(image).save(png, 'png')
            yield {'image': png.getvalue(), 'label': int(label)}

    features = {
        'image': tensorflow_datasets.features.Image(shape=(6, 5, 1)),
        'label': tensorflow_datasets.features.ClassLabel(names=list('abcdefg')),
    }
    build_tfds(tmp_path, {'train': examples(IMAGES), 'test': examples(IMAGES[:3])}, features)
    dataset = load('tfds:made', tmp_path)
    assert sizes(dataset) == [26, 4, 3] and dataset.spec.levels == 255 and dataset.num_classes == 7
    assert dataset.class_names == tuple('abcdefg')
    np.testing.assert_array_equal(arrays(dataset, 'valid')['x'][..., 0], IMAGES[26:])
    np.testing.assert_array_equal(arrays(dataset, 'valid')['label'], LABELS[26:])
    user_error('tfds:made', 'data.valid_examples=30', '0..29', folder=tmp_path, valid_examples=30)
    joined = load('tfds:made', tmp_path, valid_examples=0)
    assert sorted(joined.splits) == ['test', 'train']
    np.testing.assert_array_equal(arrays(joined, 'train')['x'][..., 0], IMAGES)
    build_tfds(tmp_path, {'train': examples(IMAGES)}, features, 'untested')
    np.savez(tmp_path / 'a.npz', images=IMAGES, labels=LABELS)
    for valid_examples, counts in ((-1, [18, 6, 6]), (7, [17, 7, 6])):  # divided as a file of one array
        ours = load('tfds:untested', tmp_path, valid_examples=valid_examples)
        theirs = load(f'npz:{tmp_path}/a.npz', valid_examples=valid_examples)
        assert sizes(ours) == counts
        for split in ours.splits:
            for name, array in arrays(theirs, split).items():
                np.testing.assert_array_equal(arrays(ours, split)[name], array)
    build_tfds(tmp_path, {'train': examples(IMAGES), 'valid': examples(IMAGES[:9])}, features, 'unvalidated')
    joined = load('tfds:unvalidated', tmp_path, valid_examples=0)
    assert {split: len(source) for split, source in joined.splits.items()} == {'train': 33, 'test': 6}
    np.testing.assert_array_equal(arrays(joined, 'train')['x'][24:, ..., 0], IMAGES[:9])


def test_a_set_without_images_is_refused(tmp_path):
    import tensorflow_datasets

    text = {'text': tensorflow_datasets.features.Text()}
    build_tfds(tmp_path, {'train': [{'text': 'a'}], 'test': [{'text': 'b'}]}, text)
    user_error('tfds:made', 'neither image nor x, only text', folder=tmp_path)


def text_config(name, folder, **more):
    fields = dict(
        name=name, dir=str(folder), tokenizer='byte', vocab_size=300, order='shuffled', valid_percent=20.0,
        test_percent=30.0, block=2, eval_block=0, eval_stride=2, stream=False,
    )  # fmt: skip
    config = config_dict.ConfigDict({**fields, **more})
    schema.fill(config, data.fields(config))
    return config


def build_texts(folder, splits, name, features=('text',)):
    import tensorflow_datasets

    examples = {split: [dict.fromkeys(features, text) for text in texts] for split, texts in splits.items()}
    build_tfds(folder, examples, {key: tensorflow_datasets.features.Text() for key in features}, name)


def documents(dataset):
    texts = {split: dataset.spec.tokenizer.decode(windows.tokens) for split, windows in dataset.splits.items()}
    return {split: text.split(END)[dataset.spec.tokenizer.has_end :] for split, text in texts.items()}


def test_documents_of_a_set_with_splits_of_its_own(tmp_path):
    splits = {'train': ['to be, or not', 'être ☕', ''], 'validation': ['that is it', 'a'], 'test': ['the question']}
    build_texts(tmp_path, splits, 'said')
    config = text_config('tfds:said', tmp_path)
    dataset = data.load(config)
    assert dataset.spec.tokenizer.end == 256
    assert documents(dataset) == {'train': splits['train'], 'valid': splits['validation'], 'test': splits['test']}
    config.tokenizer = 'word'
    words = data.load(config).spec.tokenizer
    assert 'be,' in words.pieces and 'question' not in words.pieces  # learned from what is trained on
    config.tokenizer = 'char'
    assert 'q' in data.load(config).spec.tokenizer.pieces
    assert data.load(text_config('tfds:said', tmp_path), dataset.spec.tokenizer).fingerprint == dataset.fingerprint


def test_one_text_a_split_has_no_end(tmp_path):
    build_texts(tmp_path, {split: [split * 5] for split in ('train', 'validation', 'test')}, 'whole')
    dataset = data.load(text_config('tfds:whole', tmp_path))
    assert dataset.spec.tokenizer.end is None and documents(dataset)['valid'] == ['validation' * 5]
    build_texts(tmp_path, {'train': ['x' * 50 + 'y' * 20 + 'z' * 30]}, 'alone', features=('content',))
    parts = documents(data.load(text_config('tfds:alone', tmp_path)))
    assert parts == {'train': ['x' * 50], 'valid': ['y' * 20], 'test': ['z' * 30]}


def test_splits_that_a_set_lacks_are_cut_as_those_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, '_CHUNK', 7)
    texts = [f'document {i} ' * 3 for i in range(60)]
    build_texts(tmp_path, {'train': texts}, 'uncut', features=('title', 'text'))
    (tmp_path / 'same.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    names = 'tfds:uncut', f'jsonl:{tmp_path}/same.jsonl'
    ours, theirs = (data.load(text_config(name, tmp_path)) for name in names)
    assert ours.origin == theirs.origin == 'valid 20 %, test 30 % of the documents, by their hash'
    ours, theirs = documents(ours), documents(theirs)
    assert {split: sorted(parts) for split, parts in ours.items()} == {s: sorted(p) for s, p in theirs.items()}
    assert len(ours['test']) > 5 and ours['train'] == [text for text in texts if text in ours['train']]
    build_texts(tmp_path, {'train': texts, 'test': ['held out by them']}, 'tested')
    tested = data.load(text_config('tfds:tested', tmp_path))
    parts = documents(tested)
    assert tested.origin == 'valid 20 % of the documents, by their hash'
    assert parts['test'] == ['held out by them'] and len(parts['train']) + len(parts['valid']) == 60
    assert list(parts) == ['train', 'valid', 'test'] and len(parts['valid']) > 3


def test_mistakes_with_texts_are_named(prepared, tmp_path):
    def message(name, folder, **more):
        with pytest.raises(UserError) as error:
            data.load(text_config(name, folder, **more))
        assert len(str(error.value).splitlines()) <= 3
        return str(error.value)

    assert 'has no text, nor one text alone, only ' in message('tfds:mine', f'{prepared}/sets')
    build_texts(tmp_path, {'train': ['a' * 50]}, 'two', features=('a', 'b'))
    assert 'only a, b' in message('tfds:two', tmp_path)
    build_texts(tmp_path, {'most': ['a' * 50]}, 'odd')
    assert 'has no train split, only most' in message('tfds:odd', tmp_path)
    assert 'tfds build lm1b --file_format=array_record' in message('tfds:lm1b', tmp_path)
    build_texts(tmp_path, {'train': ['a' * 50] * 9}, 'fine')
    assert 'together less than 100' in message('tfds:fine', tmp_path, test_percent=90.0)
    flip_the_middle(tmp_path / 'fine' / '1.0.0' / 'fine-train.array_record-00000-of-00001')
    assert 'prepare it again' in message('tfds:fine', tmp_path)


@pytest.mark.parametrize('several', [False, True])
def test_prepared_texts_come_back_equal(tmp_path, several):
    for i in range(30 if several else 1):
        (tmp_path / f'{i}.txt').write_bytes(f'text {i}, être '.encode() * 20 + b'\xff\x00')
    source = f'text:{tmp_path}/*.txt' if several else f'text:{tmp_path}/0.txt'
    done = prepare(
        f'--source={source}', '--name=said', f'--data_dir={tmp_path}/sets', '--valid_percent=20', '--test_percent=30'
    )
    assert done.returncode == 0, done.stderr
    given = data.load(text_config(source, ''))
    read = data.load(text_config('tfds:said', f'{tmp_path}/sets'))
    assert read.fingerprint == given.fingerprint and sizes(read) == sizes(given)
    assert read.spec.tokenizer.has_end == several
    with pytest.raises(UserError, match='tfds:said: example 0 is not UTF-8; prepare it again'):
        data.load(text_config('tfds:said', f'{tmp_path}/sets', tokenizer='char'))


@pytest.mark.parametrize('breaker', BREAKERS)
@pytest.mark.parametrize('file', ['mine-test.array_record-00000-of-00001', 'dataset_info.json', 'features.json'])
def test_a_damaged_set_is_named(prepared, tmp_path, breaker, file):
    shutil.copytree(prepared / 'sets', tmp_path, dirs_exist_ok=True)
    breaker(tmp_path / 'mine' / '1.0.0' / file)
    user_error('tfds:mine', str(tmp_path), folder=tmp_path)


def test_a_set_that_is_not_there(prepared, tmp_path, monkeypatch):
    def no_network(*_):
        raise AssertionError('the network was asked')

    monkeypatch.setattr(socket.socket, 'connect', no_network)
    monkeypatch.setattr(socket, 'getaddrinfo', no_network)
    user_error(
        'tfds:mnist',
        'tfds:mnist: not prepared',
        'tfds build mnist --file_format=array_record',
        f'--data_dir={tmp_path}',
        'prepare_data.py',
        folder=tmp_path,
    )
    user_error('tfds:mnits', 'did you mean mnist', folder=tmp_path)
    user_error('tfds:miine', 'did you mean mine', folder=f'{prepared}/sets')
    user_error('tfds:zzzzzz', f'{tmp_path} holds nothing', folder=tmp_path)
    user_error('tfds:huggingface:mnist', 'is no name of a set', folder=tmp_path)
    user_error('tfds:mnist:9.9.9', 'only: 3.0.1', folder=tmp_path)
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    user_error('tfds:mnist', 'pip install tensorflow-datasets', folder=tmp_path)


def test_a_set_in_another_format_is_kept(prepared, tmp_path):
    """The command makes it anew beside that, for `tfds build --overwrite` would remove it."""
    folder = tmp_path / 'my sets'
    shutil.copytree(prepared / 'sets', folder)
    about = folder / 'mine' / '1.0.0' / 'dataset_info.json'
    about.write_text(about.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError) as caught:
        load('tfds:mine', folder=folder)
    said = str(caught.value)
    assert '(there it is tfrecord)' in said and '--overwrite' not in said
    assert f"--data_dir='{folder}_array_record'\nand use '--config.data.dir={folder}_array_record'" in said


def test_pairs_labelled_and_tagged_texts_of_a_set(tmp_path, capsys):
    import tensorflow_datasets

    features = tensorflow_datasets.features
    kind = features.ClassLabel(names=['positive', 'negative'])  # not the order of the alphabet
    of = {'en': features.Text(), 'de': features.Text(), 'kind': kind, 'words': features.Sequence(features.Text()),
          'ner': features.Sequence(kind)}  # fmt: skip
    one = lambda i, label: {
        'en': f'the {i}', 'de': f'die {i} ä', 'kind': label, 'words': ['a', f'b{i}'], 'ner': [0, i % 2],
    }  # fmt: skip
    splits = {'train': [one(i, i % 2) for i in range(40)] + [one(99, -1)], 'test': [one(i, -1) for i in range(40, 50)]}
    build_tfds(tmp_path, splits, of)
    config = lambda name, *columns: config_dict.ConfigDict(
        {'name': f'{name}:tfds:made', 'dir': str(tmp_path), 'columns': columns, 'block': 12, 'target_block': 16}
    )
    pairs = data.load(config('pairs', 'en', 'de'))
    tokenizer, example = pairs.spec.tokenizer, pairs.splits['test'][0]
    assert len(pairs.splits['test']) == 10 and pairs.origin == 'valid 5 % of the examples, by the hash of en'
    english = tokenizer.decode(example['source'][: example['source_length'] - 1])
    german = tokenizer.decode(example['target'][: example['target_length'] - 1])
    assert german == english.replace('the', 'die') + ' ä'
    capsys.readouterr()
    labelled = data.load(config('labelled', 'en', 'kind'))
    assert labelled.class_names == ('positive', 'negative') and labelled.splits['train'][0]['label'] in (0, 1)
    for i in range(len(labelled.splits['train'])):
        example = labelled.splits['train'][i]
        text = tokenizer.decode(example['tokens'][: example['tokens_length'] - 1])
        assert int(text.removeprefix('the ')) % 2 == example['label']
    assert len(labelled.splits['train']) + len(labelled.splits['valid']) + len(labelled.splits['test']) == 40
    assert 'tfds:made: test: 10 of 10 examples are left out, without a class' in capsys.readouterr().err
    tagged = data.load(config('tagged', 'words', 'ner'))
    assert tagged.class_names == ('positive', 'negative') and set(tagged.splits['train'][0]['tags']) <= {-1, 0, 1}
    with pytest.raises(UserError) as error:
        data.load(config('pairs'))
    assert str(error.value) == (
        'data.name=pairs:tfds:made: has no feature source, target; set data.columns to two of de, en, kind, ner, words'
    )
    with pytest.raises(UserError, match='"kind" is 0; it is a text'):
        data.load(config('pairs', 'en', 'kind'))
