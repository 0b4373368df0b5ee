"""Files that somebody else made: read as data alone and within bounds. Each fault is one line, in good time."""

import bz2
import configparser
import gzip
import importlib.metadata
import io
import json
import lzma
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import zstandard
from datafiles import IMAGES, load
from refusals import VAE

from aigc_jax.core import errors, memory, patterns, records, tree
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import read_text
from aigc_jax.core.notes import note
from aigc_jax.data import tokenizers
from aigc_jax.data.sources import reading
from aigc_jax.metrics.features import Classifier
from aigc_jax.reports import evaluation, generate, pictures, tables
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import logs, manifest
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.runs.paths import Paths
from aigc_jax.runs.record import files_of
from aigc_jax.sandbox import problems
from aigc_jax.training import early_stopping


@pytest.fixture(autouse=True)
def in_good_time():
    """A minute for a test: what waits for a pipe, or for a regular expression, waits for ever."""

    def late(*_):
        raise TimeoutError('it takes for ever')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(function, *arguments) -> str:
    """The error's lines, as they are printed."""
    with pytest.raises((UserError, RunError)) as caught:
        function(*arguments)
    message = errors.printable(str(caught.value))
    assert 1 <= len(message.splitlines()) <= 3 and all(line.isprintable() for line in message.splitlines()), message
    return message


def survives(function, *arguments) -> None:
    """It is taken for what it is, or refused."""
    try:
        function(*arguments)
    except (UserError, RunError) as error:
        assert len(str(error).splitlines()) <= 3


@pytest.fixture(scope='module')
def bpe():
    """The record of a tokenizer.json."""
    texts = ['the quick brown fox jumps over the lazy dog\n' * 20]
    return json.loads(tokenizers.train('bpe', texts, texts, 280, True).to_json())


@pytest.fixture(scope='module')
def vae():
    return config_lib.load('configs/vae.py:smoke', [])


# What a file of JSON may hold in the place of ours.
NO_JSON = {
    'nothing': b'', 'cut': b'{"a": ', 'deep': b'[' * 100_000, 
    'deep and closed': b'{"a":' * 9000 + b'1' + b'}' * 9000,
    'a little deep': b'{"a":' * 200 + b'1' + b'}' * 200, 'digits': b'9' * 5000, 'NUL': bytes(9),
    'no UTF-8': b'\xff\xfe',
    'a list': b'[1]', 'a text': b'"x"', 'a number': b'3', 'null': b'null', 'NaN': b'NaN', 'a group': b'{}',
}  # fmt: skip


def rows_of(path):
    config = config_lib.load('configs/vae.py:smoke', [('eval.best_metric', 'model/nll')])
    early_stopping.is_over(config, Run(path.parent), 40)
    log = logs.Writer(path.parent, 40)
    early_stopping.Watch(config.eval, log.rows())
    log.close()


READERS = {
    'config.json': config_lib.from_json,
    'tokenizer.json': lambda path: Run(path.parent).tokenizer,
    'manifest.json': manifest.trained_on,
    'metrics.jsonl': rows_of,
    'evaluation.json': tables.read,
}


@pytest.mark.parametrize('content', NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize('name', READERS)
def test_no_json(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content + b'\n' * (name == 'metrics.jsonl'))
    (survives if content == b'{}' else refused)(READERS[name], path)
    shutil.copy(path, Paths(tmp_path).partial)
    assert not evaluation._Kept(Paths(tmp_path).partial, 'digest').has(0, 'a part')


@pytest.mark.parametrize('name', READERS)
def test_no_file(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    assert str(path) in refused(READERS[name], path)
    path.rmdir()
    os.mkfifo(path)
    assert 'pipe or a device' in refused(READERS[name], path)
    path.unlink()
    path.symlink_to('/dev/zero')
    assert 'pipe or a device' in refused(READERS[name], path)
    path.unlink()
    if name != 'metrics.jsonl':  # which may be of any length
        with open(path, 'wb') as file:
            file.truncate(1 << 40)
        assert 'larger than' in refused(READERS[name], path)


VALUES = [None, True, -1, 10**30, float('nan'), 'x', '\x1b[31m', '\ud800', [], {}, [[]], {'a': 1}, [None], 'a' * 10**5]


def mutations(record, at=()):
    """The record with each of its fields replaced by each value, and without it."""
    for name in at or record:
        yield {key: value for key, value in record.items() if key != name}
        for value in VALUES:
            yield {**record, name: value}


RECORDS = {
    'manifest.json': {'data': {'fingerprint': 'ab'}, 'starts': [{'command': []}]},
    'metrics.jsonl': {'step': 40, 'split': 'eval', 'seed': 0, 'model/nll': 1.0, 'diverged': 1.0},
    'evaluation.json': {'step': 40, 'nll': {'value': 1.0, 'low': 0.5, 'high': 2.0, 'n': 3, 'over': 'examples'}},
}


@pytest.mark.parametrize('name', RECORDS)
def test_fields_of_the_wrong_type(tmp_path, name):
    inner = [{**RECORDS[name], key: row} for key, value in RECORDS[name].items() if isinstance(value, dict)
             for row in mutations(value)]  # fmt: skip
    for record in [*mutations(RECORDS[name]), *inner]:
        (tmp_path / name).write_text(json.dumps(record) + '\n')
        survives(READERS[name], tmp_path / name)
        if name == 'manifest.json':
            survives(manifest.read, tmp_path / name)


def test_a_tokenizer_of_others(tmp_path, bpe):
    """Whatever is in its file: it is refused, or it encodes and decodes."""
    path, model = tmp_path / 'tokenizer.json', json.loads(bpe['model'])
    records_ = [*mutations(bpe)]
    records_ += [{**bpe, 'model': json.dumps(m)} for m in mutations(model) if '\ud800' not in m.values()]
    inner = [m for m in mutations(model['model']) if '\ud800' not in m.values()]
    records_ += [{**bpe, 'model': json.dumps({**model, 'model': m})} for m in inner]
    for record in records_:
        path.write_text(json.dumps(record))
        try:
            tokenizer = Run(tmp_path).tokenizer
        except UserError as error:
            assert str(error).startswith(f'{path}: cannot be read as a tokenizer: ')
            continue
        tokens = tokenizer.encode('the fox is é')
        assert tokenizer.decode(tokens) == 'the fox is é' and tokens.max() < tokenizer.vocab_size
        assert len(tokenizer.boundaries('the fox')) == len(tokenizer.encode('the fox')) + 1


def pattern(regex):
    return {'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}


PARTS = {
    'a regular expression': dict(pre_tokenizer=pattern('(a+)+$')),
    'a text that grows': dict(normalizer={'type': 'Replace', 'pattern': {'String': 't'}, 'content': 't' * 10**6}),
    'padding': dict(padding={'strategy': {'Fixed': 10**9}, 'direction': 'Right', 'pad_to_multiple_of': None,
                             'pad_id': 0, 'pad_type_id': 0, 'pad_token': 'x'}),
    'another decoder': dict(decoder={'type': 'Replace', 'pattern': {'String': 't'}, 'content': 't' * 10**6}),
}  # fmt: skip


@pytest.mark.parametrize('part', PARTS.values(), ids=PARTS)
def test_a_tokenizer_with_parts_that_ours_have_not(tmp_path, bpe, part):
    (tmp_path / 'tokenizer.json').write_text(json.dumps({**bpe, 'model': json.dumps(json.loads(bpe['model']) | part)}))
    assert 'no byte-level BPE alone' in refused(lambda: Run(tmp_path).tokenizer)


PIECES = {
    'others than the model': ('bpe', lambda p: p[:5]), 'twice': ('bpe', lambda p: ['a'] * len(p)),
    'numbers': ('bpe', lambda p: list(range(len(p)))), 'two letters': ('char', lambda p: ['ab']),
    'none': ('char', lambda p: []), 'half a letter': ('char', lambda p: ['\ud800']),
    'no <unk>': ('word', lambda p: ['a']),
    'blanks': ('word', lambda p: ['<unk>', 'a b']), 'of bytes': ('byte', lambda p: ['a']),
    'of no kind': ('bytes', lambda p: []),
}  # fmt: skip


@pytest.mark.parametrize('kind, pieces', PIECES.values(), ids=PIECES)
def test_pieces(tmp_path, bpe, kind, pieces):
    record = {**bpe, 'kind': kind, 'pieces': pieces(bpe['pieces']), 'model': bpe['model'] if kind == 'bpe' else ''}
    (tmp_path / 'tokenizer.json').write_text(json.dumps(record))
    refused(lambda: Run(tmp_path).tokenizer)


def test_a_tokenizer_of_an_earlier_tokenizers_library(tmp_path, bpe):
    """Which wrote merges as texts, and knew fewer options."""
    model = json.loads(bpe['model'])
    merges = [' '.join(merge) for merge in model['model']['merges']]
    model['model'] = {'type': 'BPE', 'vocab': model['model']['vocab'], 'merges': merges}
    (tmp_path / 'tokenizer.json').write_text(json.dumps({**bpe, 'model': json.dumps(model)}))
    ours = tokenizers.from_json(bpe)
    text = 'the quick brown fox é'
    assert Run(tmp_path).tokenizer.encode(text).tolist() == ours.encode(text).tolist()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(shape, descr='|u1', data=b'', text=None) -> bytes:
    text = (text or repr({'descr': descr, 'fortran_order': False, 'shape': shape})).encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


def archive(**members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name, data in members.items():
            file.writestr(f'{name}.npy', data)
    return buffer.getvalue()


HEADERS = {
    'a TB': header((2**40,)), 'an EB': header((2**20,) * 3), 'below 0': header((-4, -8)),
    'long texts': header((9, 9), '|S2000000000'),
    'cut': header((30, 8, 8), data=bytes(100)), 'objects': header((4,), '|O', pickle.dumps([1, 2, 3, 4])),
    'of braces': header((), text='{' * 5000),
    'deep': header((), text="{'descr': '|u1', 'fortran_order': False, 'shape': " + '(' * 3000 + ')' * 3000 + '}'),
    'rows of nothing': header((2**40, 0)), 'fractions': header((3.5, 2)),
    'another version': b'\x93NUMPY\x09\x00' + bytes(99),
}  # fmt: skip


@pytest.mark.parametrize('data', HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(tmp_path, data):
    (tmp_path / 'a.npy').write_bytes(data)
    refused(load, f'npy:{tmp_path}/a.npy')
    for members in (dict(x=data), dict(x=npy(IMAGES), y=data)):
        (tmp_path / 'a.npz').write_bytes(archive(**members))
        refused(load, f'npz:{tmp_path}/a.npz')
    for members in (dict(shape=data), {'shape': npy(np.array([8, 8, 1])), 'out/bias': data}):
        (tmp_path / 'extractor.npz').write_bytes(archive(**members))
        assert 'is not the extractor.npz' in refused(Classifier.load, tmp_path / 'extractor.npz')


def test_a_header_that_claims_to_be_long(tmp_path):
    """It is not read to its end: compressed, 64 kB of a file hold 64 MB of it."""
    buffer, length = io.BytesIO(), 1 << 26
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('x.npy', b'\x93NUMPY\x02\x00' + struct.pack('<I', length) + b' ' * length, compresslevel=1)
    (tmp_path / 'a.npz').write_bytes(buffer.getvalue())
    del buffer
    tracemalloc.start()
    try:
        refused(load, f'npz:{tmp_path}/a.npz')
        assert tracemalloc.get_traced_memory()[1] < length / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_of_samples(tmp_path, method):
    path, buffer = tmp_path / '00000020.npz', io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as file:
        file.writestr('samples.npy', npy(IMAGES))
    whole = buffer.getvalue()
    for at in range(30, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :])
        survives(pictures._samples, path)


@pytest.mark.parametrize('shape', [[10**6, 10**6, 3], [0, 0, 0], [-1, 4, 1], [8, 8], [8.5, 8, 1], [2**62, 8, 1]])
def test_an_extractor_of_no_images(tmp_path, shape):
    data = archive(shape=npy(np.array(shape)), **{'out/bias': npy(np.zeros(10, np.float32))})
    (tmp_path / 'extractor.npz').write_bytes(data)
    refused(Classifier.load, tmp_path / 'extractor.npz')


def mat_of_cells(depth: int) -> bytes:
    """A .mat whose one variable is a cell in a cell in a cell …"""
    body = b''
    for _ in range(depth):
        body = struct.pack('<IIIIIIiiII', 6, 8, 1, 0, 5, 8, 1, 1, 1, 0) + body
        body = struct.pack('<II', 14, len(body)) + body
    return b'MATLAB 5.0 MAT-file'.ljust(124) + b'\x00\x01IM' + body


def test_cells_within_cells(tmp_path):
    """scipy would read them by its own stack, and end the process."""
    (tmp_path / 'a.mat').write_bytes(mat_of_cells(20_000))
    refused(load, f'mat:{tmp_path}/a.mat')


ZEROS = bytes(1 << 24)
BOMBS = {
    'gzip': gzip.compress(ZEROS, 1), 'xz': lzma.compress(ZEROS, preset=0), 'zstd': zstandard.compress(ZEROS),
    'bzip2': bz2.compress(ZEROS),
}  # fmt: skip


@pytest.mark.parametrize('bomb', BOMBS.values(), ids=BOMBS)
def test_a_small_file_that_becomes_a_large_one(tmp_path, monkeypatch, bomb):
    path = tmp_path / 'train-images-idx3-ubyte'
    path.write_bytes(bomb)
    assert len(read_text(path)) == len(ZEROS)
    monkeypatch.setattr(memory, 'available', lambda: len(ZEROS) // 2)
    assert 'of memory that are free' in refused(read_text, path)
    assert 'of memory that are free' in refused(load, f'idx:{tmp_path}')
    for kind in ('npz', 'npy', 'mat'):
        assert 'of memory that are free' in refused(load, f'{kind}:{path}')


def test_memory_is_asked_for_before_it_is_taken(tmp_path, monkeypatch):
    images = np.zeros((300, 64, 64), np.uint8)
    np.savez_compressed(tmp_path / 'a.npz', x=images)
    np.save(tmp_path / 'a.npy', images)
    scipy.io.savemat(tmp_path / 'a.mat', {'x': images}, do_compression=True)
    assert len(load(f'npz:{tmp_path}/a.npz').splits['train'])
    monkeypatch.setattr(memory, 'available', lambda: images.nbytes // 2)
    for kind in ('npz', 'npy', 'mat'):
        assert '1.23 MB of memory, and 614 kB are free' in refused(load, f'{kind}:{tmp_path}/a.{kind}')


def png(width: int, height: int) -> bytes:
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')


def test_enormous_images(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_bytes(png(60_000, 60_000))
    assert 'a.png' in refused(load, f'images:{tmp_path}')
    (tmp_path / 'a.png').write_bytes(png(9000, 9000))
    monkeypatch.setattr(memory, 'available', lambda: 10**7)
    assert 'of memory' in refused(load, f'images:{tmp_path}')


@pytest.mark.parametrize('name', ['npz:{}', 'npy:{}', 'mat:{}', 'images:{}/..', 'idx:{}/..', 'amat:{}/..'])
def test_pipes_and_devices_as_data(tmp_path, name):
    folder = tmp_path / 'data'
    folder.mkdir()
    file = {'images': 'a.png', 'idx': 'train-images-idx3-ubyte', 'amat': 'a_train.amat'}.get(name.split(':')[0], 'a')
    for split in ('valid', 'test') if file == 'a_train.amat' else ():
        (folder / f'a_{split}.amat').write_text('0 1\n')
    path = folder / file
    place = str(folder if '/..' in name else path)
    os.mkfifo(path)
    message = refused(load, name.replace('{}/..', '{}').format(place))
    assert 'pipe or a device' in message or 'no image' in message
    path.unlink()
    path.symlink_to('/dev/zero')
    message = refused(load, name.replace('{}/..', '{}').format(place))
    assert 'pipe or a device' in message or 'no image' in message


def test_pipes_as_texts(tmp_path):
    os.mkfifo(tmp_path / 'a.txt')
    assert 'pipe or a device' in refused(reading.texts, [tmp_path / 'a.txt'], True)
    assert 'pipe or a device' in refused(problems.humaneval, str(tmp_path / 'a.txt'))
    # That of the user's own shell is one: --prompt_file=<(…).
    reader, writer_ = os.pipe()
    os.write(writer_, b'one\ntwo\n')
    os.close(writer_)
    assert generate.read_prompts('', f'/dev/fd/{reader}') == ['one', 'two']
    os.close(reader)
    assert 'it is a device' in refused(generate.read_prompts, '', '/dev/zero')


@pytest.mark.parametrize(
    'text, words',
    [('"' + '[' * 99, 'is no JSON'), ('"\\ud800"', 'character 1 is half of a letter'), ('"a\nb"', 'is no JSON')],
)
def test_prompts(tmp_path, text, words):
    (tmp_path / 'a').write_text(text)
    assert words in refused(generate.read_prompts, '', str(tmp_path / 'a'))


@pytest.mark.parametrize('content', ['[' * 100_000, '{"a":' * 100_000, '[' + '[' * 20_000 + ']' * 20_000 + ']'])
def test_deep_problems_and_documents(tmp_path, content):
    path = tmp_path / 'a.jsonl'
    path.write_text(content + '\n')
    for read in (problems.humaneval, problems.mbpp):
        assert 'line 1: is no JSON' in refused(read, str(path))
    config = type('Config', (), {'name': f'jsonl:{path}'})
    assert 'line 1 is no JSON object' in refused(reading.json_lines, config, [path], '')


# Each takes longer than anyone waits.
CATASTROPHES = ['([a-z_/]+)+$x', '(.*)*(.*)*x!', '(a|a|[a-z_/]|.)*!', '.*.*.*.*.*.*.*.*.*.*!']
NAME = 'model/encoder/hidden_layers/attention_block/multi_head_projection/kernel_of_the_first_half/kernel'


@pytest.mark.parametrize('regex', CATASTROPHES)
def test_a_regular_expression_that_does_not_end(regex):
    params = {NAME: np.zeros(1)}
    message = refused(tree.by_rule, [(regex, 1)], params, 0, 'parallel.rules')
    assert message.startswith('parallel.rules: ') and 'repeats of repeats' in message


@pytest.mark.parametrize('regex', ['(' * 5000 + ')' * 5000, 'a' * 10**6, '(', 'a{99999999999999999999}'])
def test_no_regular_expression(regex):
    assert refused(patterns.check, regex, [NAME], 'optim.model.freeze').startswith('optim.model.freeze: ')


@pytest.mark.parametrize('regex', ['kernel', '.*/(kernel|bias)$', '(.*/)?encoder/.*_[0-9]+/kernel', '^(?!.*norm).*$'])
def test_regular_expressions_of_use(regex):
    tree.by_rule([(regex, 1)], {'model/encoder/Dense_0/kernel': np.zeros(1)}, 0, 'parallel.rules')


ABSURD = {
    'replicas': (dict(num_seeds=10**9), 'num_seeds: the state of 1000000000 seeds'),
    'units': (dict(model__latent_dim=10**9), 'model, num_seeds: the state: takes'),
    'units beyond int64': (dict(model__latent_dim=10**400), 'model.latent_dim: 10000000000000000000'),
    'steps': (dict(total_steps=10**12), 'total_steps: 1000000000000'),
    'a mesh': (dict(parallel__mesh={'data': 10**9, 'fsdp': 10**9, 'tensor': -1}), 'parallel.mesh'),
    'examples': (dict(data__name='ring8', data__num_examples=10**9), 'data.num_examples=1000000000: takes'),
    'stacks': (dict(data__name='stacked:digits', data__num_examples=10**9), 'data.num_examples=1000000000: takes'),
    'layers': (dict(model__encoder__features=(8,) * 10**6), 'model.encoder.features: 1000000 values'),
    'an axis': (dict(parallel__mesh={'data': 'x', 'fsdp': 1, 'tensor': 1}), "parallel.mesh.data: 'x'"),
    'fields': (dict(optim__model__options={str(i): 0 for i in range(10**4)}), 'fields; at most'),
    'a player': (dict(optim__model=0), 'optim.model: 0'),
    'a rule': (dict(optim__model__learning_rate_rules=((),)), 'optim.model.learning_rate_rules'),
    'a group in a tuple': (dict(optim__model__learning_rate_rules=(({}, 1.0),)), "learning_rate_rules: {} is a group"),
    'a rate': (dict(optim__model__schedule__init_value=10**12), 'optim.model.schedule.init_value: 1000000000000'),
    'no number': (dict(task__beta=float('nan')), 'task.beta: nan'),
    'a NUL': (dict(data__name='npz:\0'), "data.name: 'npz:\\x00'"),
    'half a letter': (dict(data__name='npz:\ud800'), "data.name: 'npz:\\ud800'"),
    'a device': (dict(data__name='npz:/dev/zero'), '/dev/zero: cannot be read'),
}  # fmt: skip


@pytest.fixture
def handed(vae, tmp_path, monkeypatch):
    """handed(model__latent_dim=3): the config that a run's folder holds, on a machine with 1 GB."""
    monkeypatch.setattr(memory, 'available', lambda: 10**9)

    def read(**fields):
        values = json.loads(config_lib.to_json(vae))
        for name, value in fields.items():
            *parents, last = name.split('__')
            node = values
            for parent in parents:
                node = node[parent]
            node[last] = value
        (tmp_path / 'config.json').write_text(json.dumps(values))
        config = config_lib.from_json(tmp_path / 'config.json')
        config_lib.check(config)
        return config

    return read


@pytest.mark.parametrize('fields, words', ABSURD.values(), ids=ABSURD)
def test_a_config_beyond_the_machine(handed, fields, words):
    assert words in refused(lambda: Experiment(handed(**fields)))


@pytest.mark.parametrize('name', [3, None, -0.5, {}, ('brightness',)])
def test_a_transform_that_is_no_name(name):
    config = config_lib.load('configs/gan.py:smoke', [])
    config.task.transforms = (name,)

    def open_it():
        config_lib.check(config)
        Experiment(config)

    assert 'task.transforms: ' in refused(open_it)


def test_a_batch_beyond_the_machine(handed):
    assert 'batch_size, steps_per_call: takes' in refused(Experiment(handed(batch_size=10**9)).train_call)


OVERRIDES = ['(' * 3000, '9' * 5000, '-' * 10_000 + '1', '[' * 5000, '+'.join('1' * 20_000), '\0']


@pytest.mark.parametrize('text', OVERRIDES, ids=range(len(OVERRIDES)))
def test_an_override_of_any_length(text):
    assert len(refused(config_lib.load, 'configs/vae.py:smoke', [('seed', text)])) < 10_000


OWN = {
    'VARIANTS': ('VARIANTS = 3\ndef get_config(arg=""): pass', 'VARIANTS of'),
    'exit': ('import sys\nsys.exit(3)', 'line 2: SystemExit: 3'),
    'within itself': ('def get_config(arg=""):\n c = C()\n c.c = c\n return c', 'Circular reference'),
    'an object': ('def get_config(arg=""):\n return C({"seed": object()})', 'not JSON serializable'),
}


@pytest.mark.parametrize('text, words', OWN.values(), ids=OWN)
def test_values_of_an_own_config(tmp_path, text, words):
    (tmp_path / 'own.py').write_text(f'{text}\nfrom ml_collections import ConfigDict as C\n')
    assert words in refused(config_lib.load, f'{tmp_path}/own.py:a' if 'VARIANTS' in text else f'{tmp_path}/own.py', [])


def test_a_name_does_not_command_the_terminal(runner, tmp_path, capsys):
    name = 'a\x1b[2J\x1b]0;title\x07\u202e.npz'
    code, _, err = runner(VAE, f'--workdir={tmp_path}/run', f'--config.data.name=npz:{name}')
    assert code == 2 and r'a\x1b[2J\x1b]0;title\x07\u202e.npz' in err and all(map(str.isprintable, err.splitlines()))
    note(name)
    assert capsys.readouterr().err == 'note: ' + r'a\x1b[2J\x1b]0;title\x07\u202e.npz' + '\n'
    assert errors.printable('é 中\u3000±\nx') == 'é 中\u3000±\nx'
    assert len(errors.printable('x' * 10**6)) < 5000


def test_limits_of_memory():
    """Those of the process's own limit hold too, as of `ulimit -v`."""
    assert 0 < memory.available() < 1 << 50
    code = 'import resource; from aigc_jax.core import memory; resource.setrlimit(resource.RLIMIT_AS, (1 << 30,) * 2); '
    done = subprocess.run([sys.executable, '-c', code + 'print(memory.available())'], capture_output=True, text=True)
    assert 0 < int(done.stdout) < 1 << 30, done.stderr


def test_a_control_group(tmp_path, monkeypatch):
    """A batch system's job, of either version; what it holds of files counts as free."""
    held = {
        '/proc/self/cgroup': ['0::/job/step', '5:cpu,memory:/slurm/7'],
        '/sys/fs/cgroup/job/memory.max': ['5000'], '/sys/fs/cgroup/job/memory.current': ['3000'],
        '/sys/fs/cgroup/job/memory.stat': ['anon 1', 'inactive_file 500', 'active_file 100'],
        '/sys/fs/cgroup/job/step/memory.max': ['max'],
        '/sys/fs/cgroup/memory/slurm/7/memory.limit_in_bytes': ['9000'],
        '/sys/fs/cgroup/memory/slurm/7/memory.usage_in_bytes': ['8000'],
        '/sys/fs/cgroup/memory/slurm/7/memory.stat': ['inactive_file 9', 'total_inactive_file 50'],
    }  # fmt: skip
    monkeypatch.setattr(memory, '_lines', lambda path: iter(held.get(str(path), [])))
    assert sorted(memory._of_groups()) == [1050, 2600]


def test_the_installed_command_imports_nothing_from_the_folder_that_it_is_started_in(command_line, tmp_path):
    parsed = configparser.ConfigParser()
    parsed.read(command_line.root / 'setup.cfg')
    name, _, place = parsed['options.entry_points']['console_scripts'].strip().partition(' = ')
    assert name == 'aigc-jax'
    assert callable(importlib.metadata.EntryPoint(name, place, 'console_scripts').load())
    hostile, installed = tmp_path / 'hostile', tmp_path / 'bin' / name
    for folder in (hostile, installed.parent):
        folder.mkdir()
    for module in ('absl', 'jax', 'numpy', 'aigc_jax', 'ml_collections', 'typing'):
        (hostile / f'{module}.py').write_text(f'open({str(tmp_path / "executed")!r}, "w")\n')
    module, _, function = place.partition(':')
    installed.write_text(f'from {module} import {function}\n{function}()\n')  # as pip writes it
    environment = {**os.environ, 'PYTHONPATH': str(command_line.root)}
    for flags, code, words in (['--help'], 0, '--workdir:'), ([], 2, '--workdir: missing'):
        done = subprocess.run(
            [sys.executable, str(installed), *flags], cwd=hostile, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code and words in done.stdout + done.stderr, done.stderr
    assert not (tmp_path / 'executed').exists()


def deep(folder, depth: int):
    """Folders in each other; more than a thousand are more than Python's own functions can walk through or remove."""
    here = os.getcwd()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    for _ in range(depth):
        os.mkdir('a')
        os.chdir('a')
    os.chdir(here)


def test_folders_in_one_another(tmp_path):
    for name in ('samples', 'checkpoints/20', 'checkpoints/30.unfinished'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        deep(tmp_path / name, 30)
        Paths(tmp_path).check()
        deep(tmp_path / name / 'b', 1500)
        try:
            assert 'folders lie in each other' in refused(Paths(tmp_path).check)
            assert 'folders lie in each other' in refused(files_of, tmp_path / name)
        finally:
            subprocess.run(['rm', '-r', tmp_path / name], check=True)


def test_samples_that_cannot_be_read_are_left_out_of_the_picture(tmp_path, capsys):
    for step in (20, 40, 60):
        np.savez(tmp_path / f'{step:08d}.npz', samples=np.full((3, 8, 8, 1), step))
    shown = lambda: [label for label, _ in pictures._over_time(tmp_path, '00000060')]
    assert shown() == ['step 20', 'step 40', 'step 60']
    (tmp_path / '00000020.npz').write_bytes(archive(samples=header((2**40,))))
    np.savez(tmp_path / '00000040.npz', samples=np.zeros((3, 9)))
    assert shown() == ['step 60'] and 'note: ' in (err := capsys.readouterr().err) and '00000020.npz' in err


def test_records(tmp_path):
    """What is ours is read as it was written."""
    record = {'a': [1, 2.5, None, {'b': 'é\udc80'}], 'c': {}}
    (tmp_path / 'a.json').write_text('\ufeff' + json.dumps(record))
    assert records.read(tmp_path / 'a.json') == record
