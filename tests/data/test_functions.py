"""Functions of the standard library: their docstrings, names and identifiers, and how they are divided."""

import ast
import functools
import platform

import numpy as np
import pytest
from datafiles import Notes
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import NO_TAG
from aigc_jax.data.sources import functions, text
from aigc_jax.reports.written import Written

STDLIB = text.stdlib
SOURCE = '''
class Stack:
    """Of a class, not of a function."""

    def push(self, item):
        """Put an item
        on the stack.

        Not this.
        """

        # self.push is a comment
        self.items.append(item)
        return self.push

    async def pop(self): "on the line of the def"; return self.items.pop()

    def __len__(self):
        """The number of items."""
        n = len(self.items)
        return n

    def only(self):
        """A docstring and nothing else."""

    def short(self):
        """Two lines are too few."""
        return 1

if True:
    def outer(a, b='x'):
        def inner(c):
            """Inside of another one."""
            d = c
            return d
        return inner

def test_it():
    """Of a test, which is left out."""
    x = 1
    assert x
'''


@pytest.fixture(scope='module')
def some():
    """The functions of a few packages, so that it takes a second."""
    root, paths = text.stdlib()
    packages = ('asyncio', 'email', 'json', 'logging', 'http', 'concurrent', 'urllib')
    chosen = [path for path in paths if path.relative_to(root).parts[0] in packages]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, 'stdlib', lambda: (root, chosen))
        functions.functions.cache_clear()
        yield functions.functions()
    functions.functions.cache_clear()


def make(name, **fields):
    fields = dict(valid_percent=15.0, test_percent=15.0, block=40_000, target_block=500, special=('pad',)) | fields
    return ConfigDict({'name': name, **fields})


def decoded(dataset, split, name) -> list[str]:
    tokenizer, batch = dataset.spec.tokenizer, dataset.splits[split][np.arange(len(dataset.splits[split]))]
    rows = zip(batch[name], batch[f'{name}_length'], strict=True)
    return [tokenizer.decode(row[:n]).removesuffix('<|end|>') for row, n in rows]


def test_functions_are_chosen_and_cut():
    push, outer = functions.functions_of('m', SOURCE)
    assert push == functions.Function(
        'm', 'push', 'def push(self, item):\n\n    # self.push is a comment\n    self.items.append(item)\n'
        '    return self.push\n', 'Put an item on the stack.',
    )  # fmt: skip
    assert outer.name == 'outer' and outer.docstring == ''
    assert outer.code.startswith("def outer(a, b='x'):\n    def inner(c):\n        \"\"\"Inside")
    assert not [*functions.functions_of('m', 'def f(:')]


def test_pairs_of_the_standard_library(some, capsys):
    notes = Notes(capsys)
    by_code = {one.code: one for one in some}
    dataset = data.load(make('docstrings'))
    assert isinstance(dataset.spec, data.Pairs) and data.is_code(make('docstrings', code=False))
    version, said = platform.python_version(), notes()
    assert dataset.origin == f'Python {version}; valid 15 %, test 15 % of the examples, by the hash of their module'
    assert len(said) == 1 and f' modules of Python {version}, ' in said[0]
    modules, held = {}, {}
    for split in dataset.splits:
        pairs = [*zip(decoded(dataset, split, 'source'), decoded(dataset, split, 'target'), strict=True)]
        assert len(pairs) > 20 and all(by_code[code].docstring == target for code, target in pairs)
        modules[split] = {by_code[code].module for code, _ in pairs}
        held[split] = {text for pair in pairs for text in pair}
    for one, other in (('train', 'valid'), ('train', 'test'), ('valid', 'test')):
        assert not modules[one] & modules[other] and not held[one] & held[other]
    assert sum(map(len, modules.values())) == len({one.module for one in some if len(one.docstring.split()) > 2})


@pytest.mark.parametrize('name, fields, wanted', [
    ('docstrings', {}, (False,)),
    ('docstrings', {'columns': ('docstring', 'code')}, (True,)),
    ('docstrings', {'columns': ('code', 'name')}, (False,)),
    ('docstrings', {'both_ways': True}, (False, True)),
    ('pairs:a.jsonl', {'code': True}, (True,)),
    ('pairs:a.jsonl', {}, (False,)),
    ('pairs:a.jsonl', {'code': True, 'both_ways': True, 'columns': ('code', 'summary')}, (False, True)),
    ('pairs:a.jsonl', {'code': True, 'both_ways': True, 'columns': ('wrong_code', 'code')}, (True, True)),
    ('pairs:a.jsonl', {'code': True, 'both_ways': True}, (False, False)),
], ids=str)  # fmt: skip
def test_which_targets_are_code(name, fields, wanted):
    """In the order in which examples.pairs turns them round."""
    cfg = make(name, **{'columns': (), 'both_ways': False, 'code': False} | fields)
    assert data.code_ways(cfg) == wanted
    if not any(wanted):
        with pytest.raises(UserError, match='eval.code_bleu: is of Python'):
            Written._check_code(cfg)
    else:
        Written._check_code(cfg)


def test_the_columns_say_what_is_told_from_what(some):
    names = {one.name for one in some}
    told = data.load(make('docstrings', columns=('code', 'name')))
    sources, targets = decoded(told, 'train', 'source'), decoded(told, 'train', 'target')
    assert set(targets) <= names
    for source, target in zip(sources, targets, strict=True):
        assert source.startswith(('def _(', 'async def _('))
        assert target not in {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    both = decoded(data.load(make('docstrings', both_ways=True)), 'train', 'source')
    assert [one.split('> ')[0] for one in both] == ['<docstring', '<code'] * (len(both) // 2) and len(both) > 40
    back = data.load(make('docstrings', columns=('docstring', 'code')))
    forth = data.load(make('docstrings'))
    assert len(back.splits['train']) == len(forth.splits['train']) == len(sources)
    assert all(target.startswith(('def ', 'async def ')) for target in decoded(back, 'train', 'target'))
    assert len({told.fingerprint, back.fingerprint, forth.fingerprint}) == 3
    with pytest.raises(UserError, match='^data.columns: nmae; docstrings has code, docstring, name$'):
        data.load(make('docstrings', columns=('code', 'nmae')))


COPY = '''
class Again:
    def again(self):
        @decorated
        def KEPT(a, b):
            """Another docstring."""
            # Another comment.
            total = a+b
            return (total, 'kept')
'''
ORIGINAL = COPY[COPY.index('def KEPT') :].replace('Another', 'An own one').replace('\n        ', '\n')


@pytest.fixture
def library(tmp_path):
    """A standard library of 60 modules. One that is held out has a function that a training module has a copy of."""
    names = [f'm{i}' for i in range(60)]
    split = {name: text.split_of(name, 15.0, 15.0) for name in names}
    first = {one: next(name for name in names if split[name] == one) for one in text.SPLITS}
    for i, name in enumerate(names):
        body = f'def f{i}(x):\n    """The {i} of every x."""\n    y = x + {i}\n    return y\n'
        body += {first['train']: COPY, first['test']: ORIGINAL}.get(name, '')
        (tmp_path / f'{name}.py').write_text(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, 'stdlib', lambda: (tmp_path, [*tmp_path.glob('*.py')]))
        functions.functions.cache_clear()
        yield split, first
    functions.functions.cache_clear()


def windows(name, **fields):
    return ConfigDict({'name': name, 'valid_percent': 15.0, 'test_percent': 15.0, 'block': 16} | fields)


def read(dataset) -> dict[str, str]:
    return {split: dataset.spec.tokenizer.decode(split_.tokens) for split, split_ in dataset.splits.items()}


def test_modules_leave_out_what_docstrings_and_identifiers_hold_out(library, capsys):
    split, first = library
    notes = Notes(capsys)
    dataset = data.load(windows('python-modules'))
    (said,) = notes()
    assert said.startswith('data.name=python-modules: 1 training modules are left out')
    assert said.endswith(first['train'])
    written = read(dataset)
    for i, (name, its) in enumerate(split.items()):
        for one, document in written.items():
            assert (f'def f{i}(' in document) == (one == its and name != first['train'])
    assert 'KEPT' in written['test'] and 'KEPT' not in written['train']
    # Told apart by the hash of what they hold, as python-stdlib, these modules are in other splits.
    other = read(data.load(windows('python-stdlib')))['train']
    held_out = decoded(data.load(make('docstrings')), 'test', 'source')
    assert len(held_out) == list(split.values()).count('test') + 1
    assert any(code.split('(')[0] + '(' in other for code in held_out)
    with pytest.raises(UserError, match='^data.test_percent: 0.01; no module of docstrings falls into test: give more'):
        data.load(windows('python-modules', test_percent=0.01))
    assert set(data.load(windows('python-modules', valid_percent=0.0)).splits) == {'train', 'test'}


def check_that_no_held_out_function_was_trained_on(**percents):
    training = ''.join(read(data.load(windows('python-modules', **percents)))['train'].split())
    held_out = [
        code
        for name, column in (('identifiers', 'tokens'), ('docstrings', 'source'))
        for split in ('valid', 'test')
        for code in decoded(data.load(make(name, **percents)), split, column)
    ]
    assert len(held_out) > 100 and len(training) > 300_000
    assert not [code for code in held_out if ''.join(code.split()) in training]


def test_no_held_out_function_stands_in_what_a_model_is_trained_on_before(some):
    check_that_no_held_out_function_was_trained_on()


def test_no_held_out_function_of_the_whole_library_was_trained_on(monkeypatch):
    monkeypatch.setattr(text, 'stdlib', STDLIB)
    monkeypatch.setattr(functions, 'functions', functools.cache(functions.functions.__wrapped__))
    check_that_no_held_out_function_was_trained_on(valid_percent=5.0, test_percent=5.0)


@pytest.mark.parametrize('kind', ['byte', 'bpe'])
def test_identifiers_are_tagged_by_every_token(some, kind):
    dataset = data.load(make('identifiers', tokenizer=kind, vocab_size=500))
    assert isinstance(dataset.spec, data.Tagged) and dataset.class_names == ('identifier', 'other')
    assert not dataset.spec.of_words
    tokenizer, split = dataset.spec.tokenizer, dataset.splits['test']
    checked, letters = 0, lambda text: ''.join(c if c.isalnum() or c == '_' else ' ' for c in text)
    for i in range(len(split)):
        example = split[i]
        n = int(example['tokens_length'])
        tags, code = example['tags'][: n - 1], tokenizer.decode(example['tokens'][: n - 1])
        assert example['tags'][n - 1] == NO_TAG and set(tags) <= {0, 1} and (example['tags'][n:] == NO_TAG).all()
        if not code.isascii() or any(isinstance(node, ast.JoinedStr) for node in ast.walk(ast.parse(code))):
            continue
        checked, tree = checked + 1, ast.parse(code)
        pieces = [tokenizer.decode([token]) for token in example['tokens'][: n - 1]]
        marked = ''.join(piece if tag == 0 else ' ' * len(piece) for piece, tag in zip(pieces, tags, strict=True))
        variables = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert variables | arguments <= {*letters(marked).split()}
        assert not {'def', 'return', 'if', 'for', 'in', 'not', 'None'} & {*letters(marked).split()}
    assert checked > 20
    with pytest.raises(UserError, match='identifiers has no columns'):
        data.load(make('identifiers', columns=('code', 'tags')))
