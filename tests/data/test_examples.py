"""Pairs of texts, labelled texts and tagged texts: files, splits, what a batch holds, and files that do not fit."""

import dataclasses
import gzip
import json
import subprocess

import jax
import numpy as np
import pytest
from datafiles import Notes, write
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import NO_TAG, rows
from aigc_jax.data.batching import IndexStream, streamed_feed
from aigc_jax.data.sources import reading

PAIRS = [{'source': f'add {i} and {i + 1}', 'target': str(2 * i + 1)} for i in range(100)]
TEXTS = [{'text': f'line {i}', 'label': ('odd', 'even')[i % 2 == 0]} for i in range(100)]
WORDS = [{'tokens': ['Mary', f'né{i}', 'to', 'Basel'], 'tags': ['P', 'O', 'O', 'L']} for i in range(60)]
EVERY = np.arange


def make(name, **fields):
    return ConfigDict({'name': name, 'block': 24, 'target_block': 6, **fields})


def lines(path, examples) -> str:
    path.write_text('\n'.join(one if isinstance(one, str) else json.dumps(one) for one in examples) + '\n')
    return str(path)


def texts(dataset, split, name) -> list[str]:
    """What the rows of a column hold, without the special tokens."""
    tokenizer, batch = dataset.spec.tokenizer, dataset.splits[split][EVERY(len(dataset.splits[split]))]
    cut = [row[:n] for row, n in zip(batch[name], batch[f'{name}_length'], strict=True)]
    return [tokenizer.decode(row[[t not in tokenizer.special_ids.values() for t in row]]) for row in cut]


def message(name, **fields) -> str:
    with pytest.raises(UserError) as error:
        data.load(make(name, **fields))
    said = str(error.value)
    assert '\n' not in said
    return said


@pytest.mark.parametrize('kind', ['byte', 'char', 'word', 'bpe'])
def test_pairs_are_rows_of_tokens_with_their_lengths(tmp_path, kind):
    path = lines(tmp_path / 'a.jsonl', PAIRS)
    dataset = data.load(make(f'pairs:{path}', tokenizer=kind, vocab_size=300, special=('pad',)))
    assert isinstance(dataset.spec, data.Pairs) and dataset.num_classes == 0
    tokenizer = dataset.spec.tokenizer
    found = {}
    for split, source in dataset.splits.items():
        batch = source[EVERY(len(source))]
        assert {name: x.shape[1:] for name, x in batch.items()} == {
            'source': (24,), 'source_length': (), 'target': (6,), 'target_length': ()
        }  # fmt: skip
        assert all(x.dtype == np.int32 for x in batch.values())
        for name in ('source', 'target'):
            here = np.asarray(rows.mask(batch[f'{name}_length'], batch[name].shape[1]))
            assert (batch[name][~here] == tokenizer.pad).all() and (batch[name][here] != tokenizer.pad).all()
            ends = batch[name][EVERY(len(source)), batch[f'{name}_length'] - 1]
            assert (ends == tokenizer.end).all() and (batch[name] == tokenizer.end).sum() == len(source)
        found |= dict(zip(texts(dataset, split, 'source'), texts(dataset, split, 'target'), strict=True))
    wanted = {one['source']: one['target'] for one in PAIRS}
    if kind == 'word':  # a number that train does not hold is unknown
        found, wanted = (found.items() & wanted.items(), found.items())
        assert len(found) > 90
        wanted = {(source, target) for source, target in wanted if '<unk>' not in source + target}
    assert found == wanted
    assert dataset.origin == 'valid 5 %, test 5 % of the examples, by the hash of source'
    again = data.load(make(f'pairs:{path}'), tokenizer)  # as a run that is resumed has it
    assert again.fingerprint == dataset.fingerprint and again.spec == dataset.spec


def test_a_compiled_step_and_a_stream_read_the_same(tmp_path):
    source = data.load(make('pairs:' + lines(tmp_path / 'a.jsonl', PAIRS))).splits['train']
    index = np.array([[5, 0, 3], [len(source) - 1, 2, 2]])
    wanted = source[index]
    found = jax.jit(source.gather)(source.resident, index)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    stream = IndexStream(len(source), 0)
    feed = next(streamed_feed(source, [stream], 0, 2, 2, 1, 4, range(4)))
    jax.tree.map(np.testing.assert_array_equal, feed, source[stream[EVERY(8)].reshape(2, 1, 4)])
    assert source[3]['source'].shape == (24,) and source[3]['source_length'].shape == ()
    for wrong in (-1, len(source)):
        with pytest.raises(IndexError):
            source[wrong]


def test_what_is_too_long_is_cut_and_counted(tmp_path, capsys):
    notes = Notes(capsys)
    path = lines(tmp_path / 'a.jsonl', [*PAIRS, {'source': 'x' * 30, 'target': '1234567'}])
    dataset = data.load(make(f'pairs:{path}', valid_percent=0.0, test_percent=0.0))
    assert notes() == [
        'data.block: 1 of 101 texts have more than 24 tokens; their ends are cut off',
        'data.target_block: 1 of 101 targets have more than 6 tokens; their ends are cut off',
    ]
    i = texts(dataset, 'train', 'source').index('x' * 23)
    example = dataset.splits['train'][i]
    assert dataset.spec.tokenizer.decode(example['target']) == '12345<|end|>' and example['target_length'] == 6
    assert 'data.block: 1; the special tokens around a text are 1' in message(f'pairs:{path}', block=1)
    assert 'data.target_block: 1; the special' in message(f'pairs:{path}', target_block=1)


def test_a_tab_separates_source_and_target_and_a_first_line_may_name_them(tmp_path):
    plain = ''.join(f'{one["source"]}\t{one["target"]}\r\n' for one in PAIRS)
    write(tmp_path / 'a.tsv', plain.encode(), '.gz')
    wanted = data.load(make('pairs:' + lines(tmp_path / 'a.jsonl', PAIRS)))
    assert data.load(make(f'pairs:{tmp_path}/a.tsv.gz')).fingerprint == wanted.fingerprint
    named = 'id\tanswer\tsplit\tquestion\n' + ''.join(
        f'{i}\t{one["target"]}\t{("train", "dev", "test")[i % 3]}\t{one["source"]}\n' for i, one in enumerate(PAIRS)
    )
    (tmp_path / 'b.tsv').write_text(named)
    dataset = data.load(make(f'pairs:{tmp_path}/b.tsv', columns=('question', 'answer')))
    assert {split: len(source) for split, source in dataset.splits.items()} == {'train': 34, 'valid': 33, 'test': 33}
    assert dataset.origin == 'as given' and 'add 1 and 2' in texts(dataset, 'valid', 'source')
    (tmp_path / 'c.tsv').write_text('a\tb\nc\td\te\n')
    assert message(f'pairs:{tmp_path}/c.tsv').endswith('line 2 has 3 cells; it wants 2: source, target')


def test_a_first_line_that_names_other_columns_is_no_example(tmp_path, capsys):
    notes, path = Notes(capsys), tmp_path / 'a.tsv'
    rows = ''.join('\t'.join(one.values()) + '\n' for one in TEXTS)
    path.write_text('sentence\tlabel\n' + rows)  # of SST-2: "label" was a third class
    assert 'its first line, sentence, label, seems to name columns, but not text' in message(f'labelled:{path}')
    assert data.load(make(f'labelled:{path}', columns=('sentence', 'label'))).class_names == ('even', 'odd')
    path.write_text('de\ten\n' + rows)  # names or texts: nothing tells
    assert len(notes()) == 1 and data.load(make(f'pairs:{path}'))
    assert notes() == [f'{path}: is read without a first line that names source, target; the first is an example']
    path.write_text('word\ttag\n\nText\t01\nend\t02\nof\t01\nit\t02\n')
    assert 'its first line, word, tag, seems' in message(f'tagged:{path}')
    read = data.load(make(f'tagged:{path}', columns=('word', 'tag'), valid_percent=0.0, test_percent=0.0))
    assert texts(read, 'train', 'tokens') == ['Text end of it'] and read.class_names == ('01', '02')


def test_examples_of_one_source_are_in_one_split_and_copies_are_left_out(tmp_path, capsys):
    notes = Notes(capsys)
    twice = [{'source': one['source'], 'target': 'other'} for one in PAIRS]
    path = lines(tmp_path / 'a.jsonl', [*PAIRS, *twice, *PAIRS[:7]])
    dataset = data.load(make(f'pairs:{path}', valid_percent=20.0, test_percent=20.0))
    assert notes() == [f'data.name=pairs:{path}: left out as copies of others: 7 of 207 pairs']
    sources = {split: texts(dataset, split, 'source') for split in dataset.splits}
    assert all(len(every) == 2 * len(set(every)) > 0 for every in sources.values())
    assert len(set().union(*sources.values())) == 100
    more = lines(tmp_path / 'b.jsonl', [*PAIRS, {'source': 'another', 'target': 'x'}])
    larger = data.load(make(f'pairs:{more}', valid_percent=20.0, test_percent=20.0))
    assert all(set(sources[split]) <= set(texts(larger, split, 'source')) for split in sources)  # each stays


def test_splits_are_the_files_that_are_given(tmp_path, capsys):
    notes = Notes(capsys)
    a, b = lines(tmp_path / 'a.jsonl', PAIRS[:50]), lines(tmp_path / 'b.jsonl', PAIRS[40:])
    dataset = data.load(make(f'pairs:train={a},test={b}', valid_percent=20.0))
    assert len(dataset.splits['test']) == 60 and len(dataset.splits['train']) + len(dataset.splits['valid']) == 50
    assert dataset.origin == 'valid 20 % of the examples, by the hash of source'
    assert notes() == [
        f'data.name=pairs:train={a},test={b}: pairs in train and in test: 10; figures of test may be too good'
    ]


def test_labels_are_classes_by_their_order(tmp_path, capsys):
    notes = Notes(capsys)
    dataset = data.load(make('labelled:' + lines(tmp_path / 'a.jsonl', TEXTS), special=('cls', 'sep', 'pad')))
    assert isinstance(dataset.spec, data.Labelled)
    assert dataset.num_classes == 2 and dataset.class_names == ('even', 'odd')
    assert notes() == [f'data.name=labelled:{tmp_path}/a.jsonl: 2 classes, 0: even, 1: odd']
    tokenizer, batch = dataset.spec.tokenizer, dataset.splits['train'][EVERY(50)]
    assert batch['label'].dtype == np.int32 and (batch['tokens'][:, 0] == tokenizer.cls).all()
    assert (batch['tokens'][EVERY(50), batch['tokens_length'] - 1] == tokenizer.sep).all()
    for text, label in zip(texts(dataset, 'train', 'tokens'), batch['label'], strict=False):
        assert int(text.removeprefix('line ')) % 2 == label
    numbers = [{'text': str(i), 'label': 10 * (i % 3)} for i in range(90)]
    found = data.load(make('labelled:' + lines(tmp_path / 'b.jsonl', numbers)))
    assert found.class_names == ('0', '10', '20')
    (tmp_path / 'c.tsv').write_text(''.join(f'{one["text"]}\t{one["label"]}\n' for one in TEXTS))
    assert data.load(make(f'labelled:{tmp_path}/c.tsv')).class_names == ('even', 'odd')


def test_fewer_training_examples_are_a_part_of_more_and_the_held_out_ones_stay(tmp_path):
    name = 'labelled:' + lines(tmp_path / 'a.jsonl', TEXTS)
    every = data.load(make(name))
    some = {count: data.load(make(name, train_examples=count)) for count in (10, 40)}
    chosen = {count: texts(dataset, 'train', 'tokens') for count, dataset in some.items()}
    assert [len(found) for found in chosen.values()] == [10, 40]
    assert set(chosen[10]) < set(chosen[40]) < set(texts(every, 'train', 'tokens'))
    assert chosen[10] != texts(every, 'train', 'tokens')[:10]
    for dataset in some.values():
        for split in ('valid', 'test'):
            assert texts(dataset, split, 'tokens') == texts(every, split, 'tokens')
    count = len(every.splits['train'])
    assert f'data.train_examples: {count + 1}, but {name} has {count}' in message(name, train_examples=count + 1)
    assert f'data.train_examples: 0, but {name} has {count}' in message(name, train_examples=0)


def test_pairs_are_read_both_ways(tmp_path):
    """Half of the examples of each split are of each way, and a source tells which."""
    path = lines(tmp_path / 'a.jsonl', [{'en': one['source'], 'sum': one['target']} for one in PAIRS])
    fields = dict(columns=('en', 'sum'), block=40, target_block=24)
    once, both = data.load(make(f'pairs:{path}', **fields)), data.load(make(f'pairs:{path}', both_ways=True, **fields))
    for split in ('train', 'valid', 'test'):
        pairs = [*zip(texts(once, split, 'source'), texts(once, split, 'target'), strict=True)]
        wanted = [way for en, of in pairs for way in ((f'<sum> {en}', of), (f'<en> {of}', en))]
        assert [*zip(texts(both, split, 'source'), texts(both, split, 'target'), strict=True)] == wanted
    assert 'data.both_ways: is of pairs' in message('labelled:' + lines(tmp_path / 'b', TEXTS), both_ways=True)
    assert 'data.both_ways: is of pairs' in message('tagged:' + lines(tmp_path / 'c', WORDS), both_ways=True)


def test_rows_are_packed_first_fit_in_the_order_of_the_split(capsys):
    tokens = lambda *sizes, first: [np.arange(size) + first * 10 * (i + 1) for i, size in enumerate(sizes)]
    columns = {
        'source': rows.Ragged(tokens(3, 4, 2, 1, 5, first=1), 6, 0, np.uint8),
        'target': rows.Ragged(tokens(1, 1, 1, 2, 1, first=2), 3, 9, np.uint8),
    }
    found = rows.Rows(rows.packed(columns))
    # The third goes beside the first, as the second row is full with it; the fourth has no room there for its target.
    assert {name: x.tolist() for name, x in found[np.arange(3)].items()} == {
        'source': [[10, 11, 12, 30, 31, 0], [20, 21, 22, 23, 40, 0], [50, 51, 52, 53, 54, 0]],
        'source_length': [5, 5, 5],
        'source_part': [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 0], [1, 1, 1, 1, 1, 0]],
        'target': [[20, 60, 9], [40, 80, 81], [100, 9, 9]],
        'target_length': [2, 3, 1],
        'target_part': [[1, 2, 0], [1, 2, 2], [1, 0, 0]],
    }


def test_packing_is_of_the_pairs_that_are_trained_on(tmp_path, capsys):
    notes, path = Notes(capsys), lines(tmp_path / 'a.jsonl', PAIRS)
    apart, together = (data.load(make(f'pairs:{path}', block=64, target_block=24, packed=on)) for on in (False, True))
    count = [len(one.splits['train']) for one in (apart, together)]
    assert f'data.packed: {count[0]} training pairs are in {count[1]} rows; batch_size counts rows' in notes()
    assert count[0] > 3 * count[1] and apart.fingerprint != together.fingerprint
    total = lambda dataset: int(dataset.splits['train'][np.arange(len(dataset.splits['train']))]['target_length'].sum())
    assert total(apart) == total(together)
    for split in ('valid', 'test'):
        assert texts(apart, split, 'source') == texts(together, split, 'source')
    assert 'data.packed: is of pairs' in message('labelled:' + lines(tmp_path / 'b', TEXTS), packed=True)


def test_the_first_token_of_a_word_has_its_tag(tmp_path):
    path = lines(tmp_path / 'a.jsonl', WORDS)
    dataset = data.load(make(f'tagged:{path}', special=('cls', 'sep')))
    assert isinstance(dataset.spec, data.Tagged) and dataset.class_names == ('L', 'O', 'P')
    tokenizer, batch = dataset.spec.tokenizer, dataset.splits['train'][EVERY(30)]
    for tokens, tags, text in zip(batch['tokens'], batch['tags'], texts(dataset, 'train', 'tokens'), strict=False):
        begins = [i for i, tag in enumerate(tags) if tag != NO_TAG]
        assert [dataset.class_names[tags[i]] for i in begins] == ['P', 'O', 'O', 'L']
        assert tokens[0] == tokenizer.cls and begins[0] == 1  # of bytes, so é takes two
        raw = text.encode()
        assert [raw[i - 1 : i] for i in begins] == [b'M', b'n', b't', b'B']
    of_words = data.load(make(f'tagged:{path}', tokenizer='word', vocab_size=99))
    assert (of_words.splits['train'][EVERY(30)]['tags'][:, :5] == [2, 1, 1, 0, NO_TAG]).all()
    conll = ''.join('\n'.join(map('\t'.join, zip(row['tokens'], row['tags'], strict=True))) + '\n\n' for row in WORDS)
    (tmp_path / 'b.tsv').write_text('\n' + conll.removesuffix('\n'))
    assert data.load(make(f'tagged:{tmp_path}/b.tsv', special=('cls', 'sep'))).fingerprint == dataset.fingerprint
    short = data.load(make(f'tagged:{path}', block=6))  # what is cut takes its tags with it
    assert (short.splits['train'][EVERY(30)]['tags'][:, 5] == NO_TAG).all()


def test_the_tokenizer_of_a_run_is_gone_on_with(tmp_path, capsys):
    notes, path = Notes(capsys), lines(tmp_path / 'a.jsonl', PAIRS)
    of_run = data.load(ConfigDict({'name': 'pydoc', 'block': 16, 'special': ('pad',)})).spec.tokenizer
    assert of_run.end is None
    assert 'the tokenizer of the run has no token that ends a text' in str(pytest.raises(
        UserError, data.load, make(f'pairs:{path}'), of_run
    ).value)  # fmt: skip
    dataset = data.load(make(f'pairs:{path}'), dataclasses.replace(of_run, may_grow=True))
    assert dataset.spec.tokenizer.pad == of_run.pad and dataset.spec.tokenizer.end == of_run.vocab_size
    assert notes() == [f'data.name=pairs:{path}: the end of a text is a new token, which the run of init.run lacks']


@pytest.mark.parametrize('prefix, example, words', [
    ('pairs', '{"source": "a"}', 'line 3 is no JSON object with a field "target"; it has "source": set data.columns'),
    ('pairs', '{"source": "a", "target"', 'line 3 is no JSON object with a field "source"'),
    ('pairs', '["a", "b"]', 'line 3 is no JSON object with a field "source"'),
    ('pairs', '{"source": "a", "target": 3}', 'line 3: "target" is 3; it is a text'),
    ('pairs', '{"source": " ", "target": "b"}', 'line 3: "source" is empty'),
    ('labelled', '{"text": "a"}', 'line 3: "label" is missing; it is a word or whole number'),
    ('labelled', '{"text": "a", "label": 0.5}', 'line 3: "label" is 0.5; it is a word or whole number'),
    ('labelled', '{"text": "a", "label": 1}', 'its labels are of different kinds, int, str'),
    ('tagged', '{"tokens": ["a", "b"], "tags": ["O"]}', 'line 3: 2 in "tokens", but 1 in "tags"'),
    ('tagged', '{"tokens": "a b", "tags": ["O"]}', 'line 3 is no JSON object with the lists "tokens" and "tags"'),
    ('tagged', '{"tokens": ["a b"], "tags": ["O"]}', "line 3: 'a b' is no word without white space"),
    ('tagged', '{"tokens": [], "tags": []}', 'line 3: "tokens" is empty'),
    ('tagged', '{"tokens": ["a"], "tags": [null]}', 'line 3: "tags" is missing; it is a word or whole number'),
])  # fmt: skip
def test_a_line_that_does_not_fit_is_named(tmp_path, prefix, example, words):
    good = {'pairs': PAIRS, 'labelled': TEXTS, 'tagged': WORDS}[prefix]
    path = lines(tmp_path / 'a.jsonl', [good[0], '', example, *good[1:]])
    assert words in message(f'{prefix}:{path}')


def test_what_cannot_be_examples_is_refused(tmp_path):
    (tmp_path / 'empty').write_text('')
    for prefix in ('pairs', 'labelled', 'tagged'):
        assert 'holds no example to train on' in message(f'{prefix}:{tmp_path}/empty')
    one = lines(tmp_path / 'one', PAIRS[:2])
    assert 'examples of 2 different source cannot be divided into train, valid, test' in message(f'pairs:{one}')
    assert len(data.load(make(f'pairs:{one}', valid_percent=0.0, test_percent=0.0)).splits['train']) == 2
    same = lines(tmp_path / 'same', [{**one, 'label': 'a'} for one in TEXTS])
    assert 'its labels tell no classes apart' in message(f'labelled:{same}')
    own = lines(tmp_path / 'own', [{**one, 'label': one['text']} for one in TEXTS])
    assert '100 different labels for 100 examples' in message(f'labelled:{own}')
    pairs = lines(tmp_path / 'a', PAIRS)
    for columns in (('source',), ('source', 'source'), ('a', 'b', 'c')):
        assert "has 2, such as ('source', 'target')" in message(f'pairs:{pairs}', columns=columns)
    assert 'is no JSON object with a field "question"' in message(f'pairs:{pairs}', columns=('question', 'answer'))
    (tmp_path / 'c.tsv').write_text('Mary\tP\nwent\n')
    assert 'line 2 has 1 cells; it wants a word and its tag' in message(f'tagged:{tmp_path}/c.tsv')
    assert 'this config has the fields of text' in message(f'pairs:{pairs}', order='shuffled')
    for name, fields in (('pydoc', dict(columns=())), ('digits', dict(columns=()))):
        with pytest.raises(UserError, match='has the fields of pairs and labelled texts'):
            data.load(ConfigDict({'name': name, **fields}))
    with pytest.raises(UserError, match='only labelled images'):
        data.load(ConfigDict({'name': f'stacked:pairs:{pairs}'}))


def test_a_function_of_the_users_returns_rows(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        'def load(cfg):\n    return {"train": [{"source": f"add {i}", "target": str(i)} for i in range(50)],'
        ' "test": [{"source": "a", "target": "b"}]}\n'
        'def labels(cfg):\n    return {"train": [{"text": f"a {i}", "label": i % 2} for i in range(50)]}\n'
        'def odd(cfg):\n    return {"train": [{"text": "a", "label": 0}, {"source": "a", "target": "b"}]}\n'
        'def texts(cfg):\n    return {"train": "a text"}\n'
        'def half(cfg):\n    return {"train": [{"source": "a", "target": "b"}, "c"]}\n'
    )
    dataset = data.load(make(str(path), columns=()))
    assert isinstance(dataset.spec, data.Pairs) and len(dataset.splits['test']) == 1 and dataset.loader
    assert len(dataset.splits['train']) + len(dataset.splits['valid']) == 50
    assert data.load(make(f'{path}:labels', columns=())).class_names == ('0', '1')
    for name, words in (
        ('odd', 'its function returns rows of 2 kinds; each is one of '),
        ('texts', "train is a value of type str; this config wants a list of dicts"),
        ('half', 'train, row 1 is no JSON object with a field "source"'),
    ):
        assert words in message(f'{path}:{name}', columns=())


def test_a_set_of_tfds_needs_its_kind():
    with pytest.raises(UserError, match='^data.name=tfds:imdb: write pairs:tfds:imdb, labelled:tfds:imdb or tagged:'):
        data.load(make('tfds:imdb', columns=()))


def test_a_label_of_two_texts(tmp_path, capsys):
    notes = Notes(capsys)
    rows = [{'premise': f'it is {i}', 'hypothesis': 'so ' * (i % 9), 'label': i % 2} for i in range(1, 60) if i % 9]
    path = lines(tmp_path / 'a.jsonl', rows)
    fields = dict(columns=('premise', 'hypothesis', 'label'), special=('cls', 'sep', 'pad'))
    dataset = data.load(make(f'labelled:{path}', **fields))
    tokenizer, split = dataset.spec.tokenizer, dataset.splits['train']
    batch = jax.jit(split.gather)(split.resident, EVERY(len(split))[None])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y), batch, split[EVERY(len(split))])
    assert set(batch) == {'tokens', 'tokens_length', 'types', 'label'}
    cut = 0
    for tokens, types, n in zip(batch['tokens'][0], batch['types'][0], batch['tokens_length'][0], strict=True):
        first, second = tokenizer.decode(tokens[:n]).removeprefix('<cls>').removesuffix('<sep>').split('<sep>')
        begin = 1 + len(first) + 1
        assert (types[:begin] == 0).all() and (types[begin:n] == 1).all() and (types[n:] == 0).all()
        i = int(first.removeprefix('it is '))
        assert (tokens[n:] == tokenizer.pad).all() and second == ('so ' * (i % 9))[: 24 - 3 - len(first)]
        cut += second != 'so ' * (i % 9)
    assert cut and 'texts have more than 24 tokens; their ends are cut off' in notes()[-1]
    assert 'data.block: 4; the special tokens around two texts are 3' in message(f'labelled:{path}', **fields, block=4)
    assert "has 2 or 3, such as ('text', 'label')" in message(f'labelled:{path}', columns=('a', 'b', 'c', 'd'))


@pytest.mark.parametrize('first, second', [(3, 4), (9, 4), (4, 9), (20, 20), (1, 40), (40, 1), (10, 11), (20, 19)])
@pytest.mark.parametrize('room', [2, 10, 11])
def test_the_longer_text_is_cut_first(first, second, room):
    """As the tokenizers library does it."""
    import tokenizers

    from aigc_jax.data.sources import examples

    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1}))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.enable_truncation(room, strategy='longest_first')
    ids = library.encode('a ' * first, 'b ' * second).ids
    assert examples._sizes(first, second, room) == (ids.count(0), ids.count(1))


def test_the_command_that_a_csv_is_refused_with_mends_it(tmp_path):
    (tmp_path / "o'mine ü").mkdir()
    path, kept = tmp_path / "o'mine ü" / 'my $texts.csv', tmp_path / "o'mine ü" / 'my $texts.jsonl'
    kept.write_text('mine')
    rows = '\ufefftext,label\r\n' + ''.join(f'"ä, {i}",{"no" if i % 2 else "yes"}\r\n' for i in range(40))
    path.write_bytes(rows.encode())
    _, _, command = message(f'labelled:{path}').partition('make it a file that does: ')
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    made = kept.with_name('my $texts-2.jsonl')
    dataset = data.load(make(f'labelled:{made}'))
    assert dataset.class_names == ('no', 'yes') and sum(map(len, dataset.splits.values())) == 40
    made.write_text('mine, too')
    again = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr == f'error: {made}: is there already; name a new file\n'
    assert (kept.read_text(), made.read_text()) == ('mine', 'mine, too')


def test_a_csv_that_is_compressed_or_no_utf8_or_ragged(tmp_path):
    rows = 'text,label\n' + ''.join(f'ä {i},{"ab"[i % 2]}\n\n' for i in range(40))
    for name, content in (('a.csv.gz', gzip.compress(rows.encode())), ('b.csv', rows.encode('utf-16'))):
        (tmp_path / name).write_bytes(content)
        assert f'{name[0]}.jsonl' in message(f'labelled:{tmp_path}/{name}')
        reading.json_lines_of_csv(tmp_path / name, tmp_path / f'{name[0]}.jsonl')
        found = [json.loads(line) for line in (tmp_path / f'{name[0]}.jsonl').read_text(encoding='utf-8').splitlines()]
        assert found == [{'text': f'ä {i}', 'label': 'ab'[i % 2]} for i in range(40)]
    (tmp_path / 'c.csv').write_text('text,label\none, two,a\n')
    with pytest.raises(UserError, match='c.csv, line 2: 3 cells, but 2 in the first'):  # else the text is cut
        reading.json_lines_of_csv(tmp_path / 'c.csv', tmp_path / 'c.jsonl')
    assert not (tmp_path / 'c.jsonl').exists()


def test_a_label_of_the_test_split_alone_is_told_by_its_name(tmp_path, capsys):
    split = lambda i: 'test' if i > 30 else 'train'
    rows = [{'text': f'{i}', 'label': 'new' if i > 35 else 'ab'[i % 2], 'split': split(i)} for i in range(40)]
    data.load(make('labelled:' + lines(tmp_path / 'a.jsonl', rows)))
    assert 'no training example is of class new (1 of 3 classes)' in capsys.readouterr().err
