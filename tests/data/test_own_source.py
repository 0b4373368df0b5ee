"""Data of the user's own Python file, data.name=FILE.py: images, points, text; mistakes in it; a whole run."""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from datafiles import IMAGES, LABELS, POINTS, Notes, arrays, load, sizes, user_error
from ml_collections import ConfigDict
from refusals import VAE, assert_refused

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import Images, Points

ROOT = pathlib.Path(__file__).parents[2]
BEGIN = 'import numpy as np\nfrom datafiles import IMAGES, LABELS, POINTS\n'  # lines 1 and 2
TEXT = dict(
    tokenizer='auto', vocab_size=-1, order='shuffled', valid_percent=10.0, test_percent=10.0, block=8, eval_block=0,
    eval_stride=-1, stream=False,
)  # fmt: skip
GIVEN = """
from sklearn.datasets import load_digits

def load(cfg):
    digits = load_digits()
    return {'train': {'x': digits.images / 16, 'label': digits.target, 'weight': digits.target / 10}}

def prose(cfg):
    import pydoc_data.topics
    return {'train': pydoc_data.topics.topics['if'], 'test': pydoc_data.topics.topics['for'] * 2}
"""


@pytest.fixture
def notes(capsys):
    return Notes(capsys)


@pytest.fixture
def mine(tmp_path):
    """mine(what `load` returns) -> data.name of a file that returns it."""

    def write(returned, body='def load(cfg):\n    return ', name='mine.py'):
        path = tmp_path / name
        path.write_text(BEGIN + body + returned + '\n')
        return str(path)

    return write


def load_text(name, **fields):
    return data.load(ConfigDict({'name': name, **TEXT, **fields}))


def test_images(mine):
    name = mine("{'train': {'x': IMAGES[:20], 'label': LABELS[:20]}, 'test': {'x': IMAGES[20:], 'label': LABELS[20:]}}")
    dataset = load(name)
    assert (dataset.spec, dataset.num_classes, sizes(dataset)) == (Images((6, 5, 1), 255), 7, [16, 4, 10])
    np.testing.assert_array_equal(arrays(dataset, 'test')['x'], IMAGES[20:, ..., None])
    np.testing.assert_array_equal(arrays(dataset, 'test')['label'], LABELS[20:])
    assert dataset.loader == hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest()
    again = load(mine(pathlib.Path(name).read_text().partition('return ')[2] + '# other words, the same data'))
    assert dataset.fingerprint == again.fingerprint and dataset.loader != again.loader
    floats = load(mine("{'train': {'x': IMAGES / 255}}"))
    assert floats.spec == Images((6, 5, 1), 0) and arrays(floats, 'train')['x'].dtype == np.float32
    colour = load(mine("{'train': {'x': np.stack([IMAGES] * 3, -1)}}"))
    assert colour.spec == Images((6, 5, 3), 255) and sizes(colour) == [20, 4, 6]


def test_points_are_rows_of_floats_whatever_their_number(mine):
    assert load(mine("{'train': {'x': POINTS}}")).spec == Points(3)
    rows = load(mine("{'train': {'x': np.random.RandomState(0).rand(64, 100)}}"))  # a file's would be images, turned
    assert rows.spec == Points(100) and sum(sizes(rows)) == 64


def test_names_of_splits_and_of_a_function(mine):
    body = 'def points(cfg):\n    return '
    name = mine("{'training': {'x': POINTS[:cfg.num_examples]}, 'val': {'x': POINTS}, 'test': {'x': POINTS}}", body)
    assert sizes(load(f'{name}:points', num_examples=9)) == [9, 30, 30]
    user_error(name, 'defines no function load(cfg)', 'known: points')
    user_error(f'{name}:point', 'defines no function point(cfg)', 'did you mean points?')
    user_error(f'{name}:', 'what comes after the colon is missing')


def test_a_task_may_read_more_arrays(mine):
    part = lambda cut: f"{{'x': POINTS[{cut}], 'seen': POINTS[{cut}] > 0, 'order': np.arange(30)[{cut}]}}"
    dataset = load(mine(f"{{'train': {part(':20')}, 'test': {part('20:')}}}"))
    test, valid = arrays(dataset, 'test'), arrays(dataset, 'valid')
    np.testing.assert_array_equal(test['seen'], POINTS[20:] > 0)
    assert test['order'].tolist() == list(range(20, 30)) and test['order'].dtype == np.int32
    np.testing.assert_array_equal(valid['x'], POINTS.astype(np.float32)[valid['order']])
    drawn = load(mine(f"{{'train': {part(':')}}}"))
    for split in ('train', 'valid', 'test'):  # which are drawn at random: each row keeps its other arrays
        held = arrays(drawn, split)
        np.testing.assert_array_equal(held['x'], POINTS.astype(np.float32)[held['order']])


def test_text(mine):
    dataset = load_text(mine("{'train': ['one and two ' * 20, 'three ' * 30], 'test': 'four ' * 9}"))
    decode = dataset.spec.tokenizer.decode
    assert 'four four' in decode(dataset.splits['test'].tokens) and 'three' in decode(dataset.splits['valid'].tokens)
    assert dataset.spec.tokenizer.end is not None  # between the documents
    one = load_text(mine("{'train': ''.join(map(chr, range(97, 123))) * 20}"), tokenizer='char')
    assert {split: len(windows.tokens) for split, windows in one.splits.items()} == dict(train=416, valid=52, test=52)
    array = load_text(mine("{'train': np.array(['one and two ' * 20, 'three ' * 30])}"))
    assert array.spec.tokenizer.end is not None


def test_a_dataset_made_by_hand(mine):
    body = 'from aigc_jax.data import *\ndef load(cfg):\n    return '
    name = mine("Dataset({'train': Arrays(x=IMAGES[..., None])}, Images((6, 5, 1), 255), 'CC0', fingerprint='')", body)
    dataset = load(name)
    assert dataset.licence == 'CC0' and dataset.fingerprint == load(mine('from_arrays({"train": '
                                        'Arrays(x=IMAGES[..., None])}, levels=255, licence="")', body)).fingerprint
    user_error(mine("Dataset({'test': Arrays(x=POINTS)}, Points(3), '', '')", body), 'needs train', 'test 30')
    user_error(mine("Dataset({'train': Arrays(x=POINTS)}, 'points', '', '')", body), "spec of its Dataset is 'points'")
    user_error(mine("Dataset({'train': Arrays(x=POINTS, label=LABELS[:3])}, Points(3), '', '')", body),
               'line 5', 'one row an example each', 'label (3,)')  # fmt: skip


@pytest.mark.parametrize(
    'returned, words',
    [
        ("{'train': {'x': POINTSS}}", ['mine.py, line 4: NameError', 'POINTSS']),
        ("{'train': {'x': POINTS}", ['mine.py, line 4: SyntaxError', 'never closed']),
        ('open("/nowhere/at/all")', ['mine.py, line 4: FileNotFoundError']),
        ('exit("no such luck")', ['mine.py, line 4: SystemExit: no such luck']),
        ("{'train': {'x': np.where(POINTS > 2, np.nan, POINTS)}}", ['train: ', 'values are NaN or infinite']),
        ("{'train': {'x': POINTS}, 'test': {'x': POINTS[:, :2]}}", ['all splits must be alike', '(30, 3)', '(30, 2)']),
        ("{'train': {'x': POINTS[:, 0]}}", ['float64 of shape (30,)', '(N, D)']),
        ("{'train': {'x': POINTS[:0]}}", ['shape (0, 3)']),
        ("{'train': {'x': IMAGES.reshape(30, 30)}}", ['uint8 (30, 30)', 'points are floats (N, D)', '(N, H, W)']),
        ("{'train': {'x': IMAGES - 200.0}}", ['images hold', 'scale them to [0, 1]']),
        ("{'train': {'x': IMAGES, 'label': LABELS[:5]}}", ['each array has one row an example', 'label (5,)']),
        ("{'train': {'x': IMAGES, 'label': LABELS}, 'test': {'x': IMAGES}}", ['labels for train alone']),
        ("{'train': {'x': IMAGES, 'labels': LABELS}}", ["name the examples 'x' and their classes 'label'"]),
        ("{'train': {'images': IMAGES}}", ['train holds images', "name the examples 'x'"]),
        ("{'train': {'x': [[1.0], [1.0, 2.0]]}}", ["'x' is no array"]),
        ("{'train': {'x': POINTS, 'a': LABELS}, 'test': {'x': POINTS}}", ['train and test differ in a']),
        ("{'train': {'x': POINTS, 'a': ['b'] * 30}}", ["'a' is <U1", 'it holds numbers']),
        ("{'train': {'x': POINTS, 'a': [2**40] * 30}}", ["'a' holds 1099511627776"]),
        ("{'trian': {'x': POINTS}}", ["a split 'trian'", 'did you mean train?']),
        ("{'valid': {'x': POINTS}, 'test': {'x': POINTS}}", ['valid, test, but no train']),
        ("{'valid': {'x': POINTS}, 'val': {'x': POINTS}}", ['two splits valid']),
        ("{'train': POINTS}", ['train is an array of float64', "{'x': …"]),
        ("{'train': ['some text'] * 9}", ['train is a list of str', 'use the config of a language model']),
        ('(POINTS, LABELS)', ['returns a tuple of ndarray', "{'train': {'x': …"]),
        ('None', ['returns a value of type NoneType']),
    ],
)
def test_a_mistake_is_told_in_one_line(mine, returned, words):
    with pytest.raises(UserError) as caught:
        load(mine(returned))
    message = str(caught.value)
    assert '\n' not in message and message.startswith('data.name') and 'mine.py' in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    'returned, words',
    [
        ("{'train': {'x': POINTS}}", ["train is a dict of 'x'", 'a list of texts']),
        ("{'train': ['one', 2]}", ['train is a list of int, str']),
        ("{'train': []}", ['train holds no text']),
        ("{'train': 'a' * 99 + '\\ud800'}", ['no letter']),
        ("'all of it'", ['returns a value of type str']),
    ],
)
def test_a_mistake_in_text_is_told_in_one_line(mine, returned, words):
    with pytest.raises(UserError) as caught:
        load_text(mine(returned))
    for word in ('data.name', *words):
        assert word in str(caught.value) and '\n' not in str(caught.value)


def test_names_that_are_no_file(mine, tmp_path, monkeypatch):
    mine("{'train': {'x': POINTS}}")
    monkeypatch.chdir(tmp_path)
    assert sizes(load('mine.py')) == sizes(load('./mine.py')) == [20, 4, 6]
    user_error('mein.py', f'no file mein.py in {tmp_path}', 'did you mean mine.py?')
    user_error('txt:mine.py', 'no such data', 'text:')
    os.mkdir('folder.py')
    user_error('folder.py', 'there is no file folder.py')


def test_a_file_may_hold_a_dataclass_and_is_read_anew(mine):
    body = 'from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass N:\n    n: int = 9\n'
    path = pathlib.Path(mine(''))
    path.write_text(f"{body}{BEGIN}def load(cfg):\n    return {{'train': {{'x': POINTS[:N().n]}}}}\n")
    assert sum(sizes(load(str(path), valid_examples=-1))) == 9
    path.write_text(path.read_text().replace('= 9', '= 12'))
    assert sum(sizes(load(str(path), valid_examples=-1))) == 12


@pytest.fixture(scope='module')
def run(runner, tmp_path_factory):
    """(folder, flags) of a finished run on data of an own file, which the flags name by its relative path."""
    folder = tmp_path_factory.mktemp('own')
    (folder / 'digits.py').write_text(GIVEN)
    flags = [VAE, f'--config.data.name={os.path.relpath(folder / "digits.py", ROOT)}']
    code, _, err = runner(*flags, f'--workdir={folder}/run')
    assert code == 0, err
    return folder, flags


def test_a_run_is_finished_gone_on_with_evaluated_and_sampled(run, runner, tmp_path):
    folder, flags = run
    manifest = json.loads((folder / 'run/manifest.json').read_text())['data']
    assert manifest['loader_sha256'] == hashlib.sha256(GIVEN.encode()).hexdigest()
    assert manifest['sizes'] == {'train': 1079, 'valid': 359, 'test': 359}
    before = (folder / 'run/evaluation.json').read_text()
    code, out, err = runner('--mode=evaluate', f'--workdir={folder}/run')
    assert code == 0 and 'over 359 examples' in out, err
    assert (folder / 'run/evaluation.json').read_text() == before
    code, out, err = runner('--mode=sample', f'--workdir={folder}/run', '--num_samples=3')
    assert code == 0 and np.load(ROOT / out.strip().splitlines()[0])['samples'].shape == (3, 8, 8, 1), err
    init = [*flags, f'--config.init.run={folder}/run']
    assert runner(*init, '--config.data.stream=True', f'--workdir={tmp_path}/streamed')[0] == 0
    assert runner(*init, f'--workdir={tmp_path}/resident')[0] == 0
    read = lambda name: map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
    for ours, theirs in zip(read('streamed'), read('resident'), strict=True):  # by two programs, of the same data
        assert ours.pop('split') == theirs.pop('split') and ours == pytest.approx(theirs, rel=1e-4)


def test_a_run_does_not_go_on_with_other_data(run, runner, tmp_path):
    folder, flags = run
    shutil.copytree(folder / 'run', tmp_path / 'run')
    path = folder / 'digits.py'
    go_on = [*flags, f'--workdir={tmp_path}/run', '--config.total_steps=60']
    try:
        path.write_text(GIVEN.replace('/ 16', '/ 17'))
        code, out, err = runner(*go_on)
        assert code == 2 and out == '' and 'is no longer what this run was trained on' in err
        path.write_text(GIVEN.replace('digits = load', 'digits = laod'))
        assert_refused(runner(*go_on), 'digits.py, line 5: NameError', 'laod_digits')
    finally:
        path.write_text(GIVEN + '# the same data by other words\n')
    assert runner(*go_on)[0] == 0


def test_the_command_line_refuses_a_mistake_before_anything_is_written(run, runner, tmp_path):
    folder, _ = run
    workdir = f'--workdir={tmp_path}/run'
    assert_refused(runner(VAE, f'--config.data.name={folder}/digits.py:prose', workdir), 'a value of type str', '{')
    lm = '--config=configs/gpt.py:smoke'
    assert_refused(runner(lm, f'--config.data.name={folder}/digits.py', workdir), 'this config wants a text')
    assert_refused(runner(VAE, f'--config.data.name={folder}/digit.py', workdir), 'did you mean', 'digits.py')
    assert not (tmp_path / 'run').exists()


def test_a_language_model_reads_an_own_text(run, runner, tmp_path):
    folder, _ = run
    flags = ['--config=configs/gpt.py:smoke', f'--config.data.name={folder}/digits.py:prose']
    code, out, err = runner(*flags, f'--workdir={tmp_path}/run')
    assert code == 0 and 'split test' in out, err
    code, out, err = runner('--mode=sample', f'--workdir={tmp_path}/run', '--num_samples=1', '--prompt=The')
    assert code == 0 and out, err
