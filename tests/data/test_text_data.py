"""Text: tokenizers there and back, corpora, splits, windows, and the rows of contiguous batches."""

import gzip
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datafiles import Notes, write
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizer_files, tokenizers
from aigc_jax.data.batching import ContiguousStream, places
from aigc_jax.data.sources import text

LINES = ['to be, or not to be: that is the question.\n', 'être – ou ne pas être ☕\n', 'a  b\n\n\tc\n']


def make(name='pydoc', **fields):
    defaults = dict(
        tokenizer='byte', vocab_size=300, order='shuffled', valid_percent=10.0, test_percent=10.0, block=16,
        eval_block=0, eval_stride=8, stream=False,
    )  # fmt: skip
    return ConfigDict({'name': name, **defaults, **fields})


def message(name='pydoc', **fields) -> str:
    with pytest.raises(UserError) as error:
        data.load(make(name, **fields))
    return str(error.value)


def decoded(dataset) -> dict[str, str]:
    return {split: dataset.spec.tokenizer.decode(windows.tokens) for split, windows in dataset.splits.items()}


@pytest.mark.parametrize('kind', ['byte', 'char', 'bpe'])
def test_tokens_become_the_text_again_and_stand_for_its_bytes(kind):
    tokenizer = tokenizers.train(kind, LINES, LINES[:2], 300, True)
    assert tokenizer.end == tokenizer.vocab_size - 1
    for line in LINES:
        tokens = tokenizer.encode(line)
        assert tokens.max() < tokenizer.end and tokenizer.decode(tokens) == line
        assert tokenizer.num_bytes[tokens].sum() == len(line.encode())
    both = [*tokenizer.encode(LINES[0]), tokenizer.end, *tokenizer.encode(LINES[1])]
    assert tokenizer.decode(both) == LINES[0] + tokenizers.END + LINES[1]
    assert tokenizer.num_bytes[tokenizer.end] == 0 and len(tokenizer.num_bytes) == tokenizer.vocab_size
    again = tokenizers.from_json(json.loads(tokenizer.to_json()))
    assert again == tokenizer and again.decode(again.encode(LINES[1])) == LINES[1]


def test_words_are_the_most_frequent_and_the_rest_is_unknown():
    tokenizer = tokenizers.train('word', ['b a b c\n', 'd'], ['b a b c\n'], 5, True)
    assert tokenizer.pieces == ('<unk>', 'b', '\n', 'a') and tokenizer.end == 4
    assert tokenizer.encode('a b d\n').tolist() == [3, 1, 0, 2]
    assert tokenizer.decode([3, 1, 2, 1]) == 'a b\nb'
    assert tokenizer.num_bytes is None  # white space and unknown words are lost: no bits a byte of the text


def test_bpe_merges_what_is_frequent():
    words = ['hello hello hello world'] * 3
    tokenizer = tokenizers.train('bpe', words, words, 256 + 12, True)
    assert len(tokenizer.encode('hello')) < 5 and tokenizer.vocab_size <= 268
    assert tokenizer.decode(tokenizer.encode('☕ x')) == '☕ x'  # bytes that were never seen


def test_bytes_that_are_no_utf8_survive(tmp_path):
    raw = bytes(range(256)) * 4
    (tmp_path / 'raw').write_bytes(raw)
    dataset = data.load(make(f'text:{tmp_path}/raw'))
    joined = np.concatenate([dataset.splits[split].tokens for split in ('train', 'valid', 'test')])
    assert joined.astype(np.uint8).tobytes() == raw


@pytest.mark.parametrize('kind', ['char', 'word', 'bpe'])
def test_text_that_is_no_utf8_is_refused_with_the_mend(tmp_path, kind):
    (tmp_path / 'my raw').write_bytes(b'UTF-8\ncaf\xe9 is no UTF-8\n' * 400)
    said = message(f'text:{tmp_path}/my raw', tokenizer=kind, vocab_size=300)
    assert said.endswith(
        f"my raw, line 2: is not UTF-8; if it is latin1: iconv -f latin1 -t utf-8 '{tmp_path}/my raw' > "
        f"'{tmp_path}/my raw-utf8'"
    )
    (tmp_path / 'w').write_bytes('“café”\n'.encode('cp1252') * 400)
    assert 'iconv -f cp1252' in message(f'text:{tmp_path}/w', tokenizer=kind, vocab_size=300)
    (tmp_path / 'u').write_bytes('no mark before it\n'.encode('utf-16be') * 400)
    assert 'iconv -f utf-16be' in message(f'text:{tmp_path}/u', tokenizer=kind, vocab_size=300)
    write(tmp_path / 'b', b'PK\x03\x04\xff')
    assert 'line 1: is not UTF-8; it holds control characters' in message(f'text:{tmp_path}/b', tokenizer=kind)
    write(tmp_path / 'z', b'caf\xe9\n' * 400, '.gz')
    assert f'gzip -dc < {tmp_path}/z.gz | iconv -f' in message(f'text:{tmp_path}/z.gz', tokenizer=kind, vocab_size=300)


@pytest.mark.parametrize(
    'name, made', [("o'ne ü.txt", "o'ne ü-utf8-2.txt"), ('$z.txt.gz', '$z-utf8.txt'), ('z', 'z-utf8')]
)
def test_the_command_that_mends_an_encoding_overwrites_nothing(tmp_path, name, made):
    """The first bytes tell of a compression, and not the name: here of `z`."""
    raw = 'Übung\n'.encode('latin1') * 400
    (tmp_path / name).write_bytes(gzip.compress(raw) if 'z' in name else raw)
    (tmp_path / "o'ne ü-utf8.txt").write_text('mine')
    _, _, command = message(f'text:{tmp_path}/{name}', tokenizer='char').partition('if it is latin1: ')
    subprocess.run(command, shell=True, check=True, cwd='/')
    assert (tmp_path / made).read_bytes() == 'Übung\n'.encode() * 400
    assert (tmp_path / "o'ne ü-utf8.txt").read_text() == 'mine'


def test_bytes_that_are_no_utf8_are_counted(tmp_path, capsys):
    notes = Notes(capsys)
    for name in 'ab':
        (tmp_path / name).write_bytes(name.encode() + b' caf\xe9 is no UTF-8\n' * 400)
    data.load(make(f'text:{tmp_path}/[ab]', valid_percent=0.0, test_percent=0.0))
    assert notes() == [
        f'{tmp_path}/a, … (2 files): are read with 800 bytes that are no UTF-8, as they are; if it is latin1: '
        f'iconv -f latin1 -t utf-8 {tmp_path}/a > {tmp_path}/a-utf8'
    ]


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32', 'utf-32-be'])
def test_marks_of_encodings_are_read_and_are_no_text(tmp_path, capsys, encoding):
    notes, text = Notes(capsys), 'Ça va, \U0001f600?\n' * 100
    mark = '\ufeff' * encoding.endswith('be')  # which the others write themselves
    lines = ''.join(json.dumps({'text': f'{i}{text}'}) + '\n' for i in range(60))
    for name, content in (('a.txt', text), ('a.jsonl', lines)):
        (tmp_path / name).write_bytes((mark + content).encode(encoding))
        dataset = data.load(make(f'{name[2:].replace("txt", "text")}:{tmp_path}/{name}', tokenizer='char'))
        assert text[:50] in dataset.spec.tokenizer.decode(dataset.splits['train'].tokens)
        assert not {'\ufeff', '\0', '\ufffd'} & set(dataset.spec.tokenizer.pieces)
        assert notes() == ([f'{tmp_path}/{name}: is read as {encoding[:6]}'] if encoding != 'utf-8-sig' else [])


@pytest.mark.parametrize('suffix', ['', '.gz', '.xz', '.zst', '.bz2'])
def test_text_and_jsonl_may_be_compressed(tmp_path, suffix):
    write(tmp_path / 'a.txt', LINES[1].encode() * 100, suffix)
    write(tmp_path / 'a.jsonl', json.dumps({'text': LINES[0] * 100}).encode(), suffix)
    assert decoded(data.load(make(f'text:{tmp_path}/a.txt{suffix}')))['train'].startswith(LINES[1])
    assert decoded(data.load(make(f'jsonl:{tmp_path}/a.jsonl{suffix}')))['train'].startswith(LINES[0])
    if suffix:
        path = tmp_path / f'a.txt{suffix}'
        path.write_bytes(path.read_bytes()[:-9])
        assert f'a.txt{suffix}: cannot be read: ' in message(f'text:{path}')


def test_a_file_that_exists_is_that_file(tmp_path):
    folder = tmp_path / 'my [v2] data'
    folder.mkdir()
    for name in ('run[12].txt', 'run1.txt', 'a,valid=b.txt', 'train=c.txt', 'x=1,2.txt'):
        (folder / name).write_text(name * 40)
    percents = dict(valid_percent=0.0, test_percent=0.0)
    held = lambda where: decoded(data.load(make(f'text:{folder}/{where}', **percents)))['train']
    for name in ('run[12].txt', 'run1.txt', 'a,valid=b.txt', 'x=1,2.txt'):
        assert held(name) == name * 40
    assert held('run?.txt') == held('run[1].txt') == 'run1.txt' * 40
    assert held('run[1[]*.txt').count('run') == 80
    assert 'no file matches' in message(f'text:{folder}/*.md')
    assert f'{folder} is a folder; to read its files, name them' in message(f'text:{folder}')


def test_splits_are_the_files_that_are_given(tmp_path, capsys):
    notes = Notes(capsys)
    for name in ('a,b.txt', 'b=1.txt', 'c1.txt', 'c2.txt'):
        (tmp_path / name).write_text(f'{name} ' * 400)
    given = f'train={tmp_path}/a,b.txt,valid={tmp_path}/b=1.txt'
    read = decoded(data.load(make(f'text:{given},test={tmp_path}/c?.txt')))
    assert read['train'] == tokenizers.END + 'a,b.txt ' * 400 and read['valid'] == tokenizers.END + 'b=1.txt ' * 400
    assert sorted(read['test'].split(tokenizers.END)) == ['', 'c1.txt ' * 400, 'c2.txt ' * 400]
    read = decoded(data.load(make(f'text:{given}')))  # the test split is cut from a
    assert [len(read[split]) for split in ('train', 'valid', 'test')] == [2880, 3200, 320] and not notes()
    data.load(make(f'text:{given},test={tmp_path}/b=1.txt'))
    assert notes()[0].endswith('b=1.txt: documents in valid and in test: 1; figures of test may be too good')
    (tmp_path / 'empty').write_text('')
    assert 'valid holds no text' in message(f'text:train={tmp_path}/c1.txt,valid={tmp_path}/empty')
    for wrong in ('valid=a', 'a,valid=b', 'train=a,train=b', 'train=,valid=b', 'train=a,test='):
        assert 'write train=A,valid=B,test=C' in message(f'text:{wrong}'), wrong
    for split in ('train', 'test'):
        (tmp_path / split).mkdir()
        (tmp_path / split / 'a.py').write_text(f'{split} = 1\n' * 100)
    read = decoded(data.load(make(f'code:train={tmp_path}/train,test={tmp_path}/test')))
    assert 'test' not in read['train'] + read['valid'] and read['test'] == 'test = 1\n' * 100


def test_the_field_split_of_json_decides(tmp_path, capsys):
    notes, path = Notes(capsys), tmp_path / 'a.jsonl'
    names = ('train', 'Training', 'validation', 'val', 'dev', 'valid', 'test')
    rows = [{'text': f'{name} {i} ' * 9, 'split': name} for i in range(3) for name in names]

    def load(rows, name=f'jsonl:{path}'):
        path.write_text('\n\n'.join(map(json.dumps, rows)) + '\n \n')
        return decoded(data.load(make(name)))

    read = load([*rows, rows[0], rows[6]])
    assert notes() == [f'data.name=jsonl:{path}: left out as copies of others: 2 of 23 documents']
    for row in rows:
        split = {'tr': 'train', 'va': 'valid', 'de': 'valid', 'te': 'test'}[row['split'][:2].lower()]
        assert [where for where in read if row['text'] in read[where]] == [split]
    load([*rows, {**rows[0], 'split': 'test'}])
    assert 'documents in train and in test: 1;' in notes()[0]
    for row, words in (({'text': 'a', 'split': 'trian'}, "line 3: \"split\" is 'trian'; known: train"),
                       ({'text': 'a'}, 'line 3: some lines before have the field "split" and some have not')):
        path.write_text('\n'.join(map(json.dumps, [*rows[:2], row])))
        assert words in message(f'jsonl:{path}')
    path.write_text(json.dumps(rows[6]))
    assert "'test', but data.name gives the file as train" in message(f'jsonl:train={path}')


def test_data_code_says_that_documents_are_code(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text(json.dumps({'text': 'def name(): return other  # note\n' * 100}))
    marks = lambda **fields: data.load(
        make(f'jsonl:{path}', fim_rate=0.5, fim_identifiers=1.0, **fields)
    ).splits['train'].resident['identifiers'][1:34]
    assert np.count_nonzero(marks(code=False) & 1) == 4 + 0 + 1 and np.count_nonzero(marks(code=True) & 1) == 2
    np.testing.assert_array_equal(marks(), marks(code=False))
    assert data.is_code(make('jsonl:a', code=True)) and data.is_code(make('code:a', code=False))
    assert not data.is_code(make('jsonl:a', code=False))


def test_lines_of_json_hold_any_character(tmp_path):
    texts = [f'{i} one\u2028two\x85three ' * 20 for i in range(60)]
    lines = [json.dumps({'text': text}, ensure_ascii=False) for text in texts]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n')
    dataset = data.load(make(f'jsonl:{tmp_path}/a.jsonl'))
    read = ''.join(dataset.spec.tokenizer.decode(windows.tokens) for windows in dataset.splits.values())
    assert all(text in read for text in texts)


def test_half_a_letter_in_json_is_no_text(tmp_path):
    """As cutting text by UTF-16 leaves it; two halves are the letter."""
    (tmp_path / 'a.jsonl').write_text('{"text": "' + 40 * 'one \\ud83d two \\ud83d\\ude00 ' + '"}\n')
    dataset = data.load(make(f'jsonl:{tmp_path}/a.jsonl'))
    assert '\ufffd two \U0001f600 one' in dataset.spec.tokenizer.decode(dataset.splits['train'].tokens)


def test_a_tokenizer_without_an_end_reads_documents_as_one_and_says_so(tmp_path, capsys):
    for name in ('a', 'b', 'c'):
        (tmp_path / name).write_text(f'the text of {name}\n' * 200)
    one = data.load(make(f'text:{tmp_path}/a'))
    capsys.readouterr()
    data.load(make(f'text:{tmp_path}/*'), one.spec.tokenizer)
    assert 'read as one text, for the tokenizer of the run has no end' in capsys.readouterr().err
    data.load(make(f'text:{tmp_path}/*'))
    assert 'read as one text' not in capsys.readouterr().err


def test_a_file_without_lines_of_json_holds_no_text(tmp_path):
    (tmp_path / 'a.jsonl').write_text('')
    assert 'holds no text' in message(f'jsonl:{tmp_path}/a.jsonl')


def test_a_text_of_pieces_begins_after_a_newline():
    from aigc_jax.tasks.lm import _newline

    lines = ['a b\n', 'b a\n']
    for kind in ('byte', 'char', 'word', 'bpe'):
        tokenizer = tokenizers.train(kind, lines, lines, 260, False)
        assert tokenizer.decode([_newline(tokenizer)]) == '\n', kind


@pytest.mark.parametrize('text', ['a b\nb a\n', 'a b b a'])
@pytest.mark.parametrize('kind', ['byte', 'char', 'bpe'])
def test_an_exported_tokenizer_begins_a_text_as_the_run_did(tmp_path, kind, text):
    from aigc_jax.tasks.lm import _newline

    tokenizer = tokenizers.train(kind, [text], [text], 260, False)
    for name, content in tokenizer_files.files(tokenizer).items():
        (tmp_path / name).write_text(content)
    read = tokenizer_files.read(tmp_path)  # one document, so there is no token that ends one
    assert read.bos is tokenizer.bos is None and _newline(read) == _newline(tokenizer)
    if kind == 'char':  # was an exception of the library
        with pytest.raises(UserError, match='the tokenizer cannot read .ü.'):
            read.encode('ü')


def test_one_document_is_cut_by_place_and_several_by_what_they_hold(tmp_path):
    (tmp_path / 'a.txt').write_text('x' * 800 + 'y' * 100 + 'z' * 100)
    dataset = data.load(make(f'text:{tmp_path}/a.txt'))
    assert {s: len(w.tokens) for s, w in dataset.splits.items()} == {'train': 800, 'valid': 100, 'test': 100}
    assert set(dataset.splits['valid'].tokens.tolist()) == {ord('y')} and dataset.spec.tokenizer.end is None
    documents = [f'document {i} ' * 9 for i in range(200)]

    def held_by(split, texts):
        path = tmp_path / 'documents.jsonl'
        path.write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
        loaded = data.load(make(f'jsonl:{path}'))
        return set(loaded.spec.tokenizer.decode(loaded.splits[split].tokens).split(tokenizers.END))

    all_of_them = {split: held_by(split, documents) for split in ('train', 'valid', 'test')}
    assert 5 < len(all_of_them['valid']) < 40
    for split, texts in all_of_them.items():
        fewer = held_by(split, documents[:150] + documents[:50])
        assert fewer - {''} == texts & set(documents[:150])  # none changed its split, none is there twice


def test_windows_count_each_token_once():
    tokens = np.arange(100, dtype=np.uint8)
    for block, stride in ((16, 8), (16, 16), (7, 3), (99, 5)):
        windows = text.Windows(tokens, block, stride, cover=True)
        every = windows[np.arange(len(windows))]
        counted = [t for row, n in zip(every['tokens'], every['counted'], strict=True) for t in row[len(row) - n :]]
        assert counted == list(range(1, 100)), (block, stride)
        assert every['tokens'].dtype == np.int32 and every['tokens'].shape[1] == block + 1
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_gathered_windows_are_those_that_are_read():
    windows = text.Windows(np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8), 16, 3, cover=False)
    index = np.array([[0, 5, len(windows) - 1]])
    np.testing.assert_array_equal(
        windows.gather(jax.tree.map(jnp.asarray, windows.resident), jnp.asarray(index))['tokens'],
        windows[index]['tokens'],
    )


def test_rows_of_contiguous_batches_read_on():
    windows = text.Windows(np.arange(4 * 50 + 1), 4, 4, cover=False)
    stream, batch_size = ContiguousStream(len(windows), 5), 5
    assert stream.length == 10
    rows = [windows[stream[places(step, 1, 1, batch_size, range(5))[0, 0]]]['tokens'] for step in range(11)]
    for before, after in zip(rows[:9], rows[1:10], strict=True):
        np.testing.assert_array_equal(before[:, -1], after[:, 0])
    np.testing.assert_array_equal(rows[0], rows[10])
    assert len(np.unique(np.stack(rows[:10])[..., :-1])) == 200  # each token once
    with pytest.raises(UserError, match='batch_size: 60 rows'):
        ContiguousStream(50, 60)


def test_embedded_corpora_need_no_file():
    prose = data.load(make('pydoc'))
    assert {'train', 'valid', 'test'} == set(prose.splits) and prose.licence.startswith('PSF')
    assert sum(len(w.tokens) for w in prose.splits.values()) > 300_000
    assert data.load(make('pydoc')).fingerprint == prose.fingerprint
    assert data.load(make('pydoc', block=8)).fingerprint == prose.fingerprint
    code = data.load(make('python-stdlib'))
    assert sum(len(w.tokens) for w in code.splits.values()) > 3_000_000
    assert b'def ' in code.splits['valid'].tokens.astype(np.uint8).tobytes()


def test_mistakes_are_named(tmp_path):
    (tmp_path / 'short').write_text('abc')
    (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"txt": "b"}\n')
    assert 'no such file' in message(f'text:{tmp_path}/none').lower()
    assert 'no file matches' in message(f'text:{tmp_path}/*.md')
    assert 'less than a window of 16' in message(f'text:{tmp_path}/short')
    (tmp_path / 'empty').write_text('')
    assert 'no text to train on' in message(f'text:{tmp_path}/empty')
    assert 'line 2' in message(f'jsonl:{tmp_path}/bad.jsonl')
    assert 'no .py file' in message(f'code:{tmp_path}') and 'no folder' in message(f'code:{tmp_path}/none')
    assert "data.tokenizer: 'bite'; did you mean byte" in message(tokenizer='bite')
    assert 'data.vocab_size: 100' in message(tokenizer='bpe', vocab_size=100)
    assert "data.order: 'shufled'" in message(order='shufled')
    assert 'data.eval_stride: 17' in message(eval_stride=17) and 'data.block: 0' in message(block=0)
    assert 'together less than 100' in message(valid_percent=50.0, test_percent=50.0)
    characters = tokenizers.train('char', ['ab'], ['ab'], 0, False)
    with pytest.raises(UserError, match="the character 'c' is not among the 2"):
        characters.encode('abc')
    with pytest.raises(UserError, match='tokenizer of kind char'):
        data.load(make(), characters)


@pytest.mark.parametrize('kind', ['bpe', 'word'])
def test_a_vocabulary_is_no_larger_than_the_text_gives(kind, capsys):
    """The trainer of BPE takes memory for every piece beforehand, and aborts where there is none."""
    tokenizer = tokenizers.train(kind, LINES, LINES, 10**9, True)
    assert tokenizer.vocab_size < 500
    assert f'data.vocab_size: {tokenizer.vocab_size}, for the training text gives no more' in capsys.readouterr().err


def test_short_held_out_texts_are_one_window(tmp_path, capsys):
    """Windows are no longer than the text, and a stride of -1 is half of one."""
    path = tmp_path / 'a.txt'
    path.write_text('abcdefghi\n' * 10)
    splits = data.load(make(f'text:{path}', block=40, eval_stride=-1)).splits
    assert {split: len(windows) for split, windows in splits.items()} == {'train': 80 - 40, 'valid': 1, 'test': 1}
    assert splits['valid'][0]['tokens'].shape == (10,) and splits['valid'][0]['counted'] == 9
    assert 'the valid split has 10 tokens, which are one window of 9' in capsys.readouterr().err
    halves = dict(valid_percent=50.0, test_percent=0.0)
    wide = data.load(make(f'text:{path}', block=20, eval_stride=-1, **halves)).splits['valid']
    assert [wide[i]['tokens'][0] for i in (0, 1)] == [ord('a'), ord('a')] and len(wide) == 4
    assert 'or a data.block of 79 or less' in message(f'text:{path}', block=80)
    assert 'data.eval_stride: 17' in message(f'text:{path}', eval_stride=17)


def test_few_documents_give_a_split_each_and_the_longest_is_trained_on(tmp_path, capsys):
    for i, n in enumerate((3, 40, 2)):
        (tmp_path / f'{i}.txt').write_text(f'document {i}\n' * 10 * n)
    dataset = data.load(make(f'text:{tmp_path}/*.txt', valid_percent=5.0, test_percent=5.0))
    tokens = {split: len(windows.tokens) for split, windows in dataset.splits.items()}
    assert tokens == dict(train=4401, valid=221, test=331)
    assert '3 documents are too few for their hashes: test, valid get the shortest, one each' in capsys.readouterr().err
