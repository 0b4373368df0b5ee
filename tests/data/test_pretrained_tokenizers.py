"""Tokenizers of Hugging Face folders: the ids of transformers, whatever the files, and folders that it reads again."""

import base64
import dataclasses
import json
import pathlib

import hf_tokenizers
import numpy as np
import pytest
from hf_tokenizers import CORPUS, TEXTS
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizer_files, tokenizers

STORED = json.loads(hf_tokenizers.GOLDEN.read_text(encoding='utf-8'))
GOLDEN = STORED['families']
BYTES = ('gpt2', 'roberta', 'codet5')


def folder(path, files) -> pathlib.Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path.joinpath(name).write_text(text, encoding='utf-8')
    return path


def check(tokenizer, golden):
    """The tokenizer gives what transformers gave."""
    frame = tokenizer.frame
    for i, text in enumerate(TEXTS):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.tolist() == golden['ids'][i], text
        assert [*frame.before, *ids, *frame.behind] == golden['framed'][i], text
        assert tokenizer.decode(ids) == golden['decoded'][i]
        if '<mask>' not in text:
            assert tokenizer.encode(text, special=True).tolist() == golden['special'][i]
    assert [list(ids) for ids in tokenizer.encode_all(TEXTS)] == golden['ids']
    first, second = golden['ids'][:2]
    assert [*frame.before, *first, *frame.between, *second, *frame.behind] == golden['pair']
    roles = golden['roles']
    assert [tokenizer.pad, tokenizer.mask, tokenizer.cls] == [roles['pad'], roles['mask'], roles['cls']]
    assert tokenizer.sep == roles['sep'] and tokenizer.sentinels == tuple(golden['sentinels'])
    assert tokenizer.end == (roles['eos'] if roles['eos'] is not None else roles['sep'])
    assert tokenizer.vocab_size == golden['vocab_size']


@pytest.mark.parametrize('name', GOLDEN)
def test_ids_are_those_of_transformers(name, tmp_path):
    golden = GOLDEN[name]
    tokenizer = tokenizer_files.read(folder(tmp_path / 'a', golden['files']))
    check(tokenizer, golden)
    again = tokenizers.from_json(json.loads(tokenizer.to_json()))  # as a run keeps it
    assert again == tokenizer and again.to_json() == tokenizer.to_json()
    check(again, golden)
    written = tokenizer_files.files(again)
    assert written['tokenizer.json'] == golden['files']['tokenizer.json']
    check(tokenizer_files.read(folder(tmp_path / 'b', written)), golden)


@pytest.mark.parametrize('name', GOLDEN)
def test_tokens_stand_where_they_begin(name, tmp_path):
    tokenizer = tokenizer_files.read(folder(tmp_path / 'a', GOLDEN[name]['files']))
    assert (tokenizer.num_bytes is not None) == (name in BYTES)
    for text in TEXTS:
        places, ids = tokenizer.boundaries(text), tokenizer.encode(text)
        assert len(places) == len(ids) + 1 and (np.diff(places) >= 0).all() and places[-1] <= len(text.encode())
        if name in BYTES:
            assert places[-1] == len(text.encode()) == tokenizer.num_bytes[ids].sum()
    raw, places = b'import of a name', tokenizer.boundaries('import of a name')
    for token, begin, end in zip(tokenizer.encode(raw.decode()), places, places[1:], strict=False):
        assert raw[begin:end].strip().decode() == tokenizer.decode([token]).strip().removeprefix('##')


def test_a_mask_is_written_the_same_way_for_every_tokenizer(tmp_path):
    for name in ('bert', 'roberta'):
        tokenizer = tokenizer_files.read(folder(tmp_path / name, GOLDEN[name]['files']))
        ids = tokenizer.encode('the <mask> statement', special=True)
        assert (ids == tokenizer.mask).sum() == 1 and tokenizer.mask not in tokenizer.encode('the <mask> statement')
    t5 = tokenizer_files.read(folder(tmp_path / 't5', GOLDEN['t5']['files']))
    with pytest.raises(UserError, match='^<mask>: the tokenizer has no such special token; it has <pad>, </s>, '):
        t5.encode('the <mask> statement', special=True)
    assert t5.sentinels[1] in t5.encode('the <extra_id_1> statement', special=True)
    with pytest.raises(UserError, match='^<extra_id_9>'):
        t5.encode('the <extra_id_9> statement', special=True)


@pytest.mark.parametrize('name', GOLDEN)
def test_what_stands_behind_a_text_keeps_its_space(name, tmp_path):
    tokenizer = tokenizer_files.read(folder(tmp_path / 'a', GOLDEN[name]['files']))
    tokens = tokenizer.encode('the statement is a name')
    whole = tokenizer.decode(tokens)
    for i in range(1, len(tokens)):
        assert tokenizer.decode(tokens[:i]) + tokenizer.decode(tokens[i:], behind=True) == whole
    assert tokenizer.decode(tokens, behind=True).removeprefix(' ') == whole
    assert tokenizer.decode([], behind=True) == ''


def of_parts(name, path) -> pathlib.Path:
    """The folder in the older form: a vocabulary, and special tokens beside it."""
    golden = GOLDEN[name]
    whole, config = (json.loads(golden['files'][file]) for file in ('tokenizer.json', 'tokenizer_config.json'))
    model = whole['model']
    if name.startswith('bert'):
        words = sorted(model['vocab'], key=model['vocab'].get)
        lower = whole['normalizer']['lowercase']
        return folder(path, {
            'vocab.txt': '\n'.join(words) + '\n', 'tokenizer_config.json': json.dumps({'do_lower_case': lower}),
        })  # fmt: skip
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
    files = {'vocab.json': json.dumps(model['vocab']), 'merges.txt': '#version: 0.2\n' + '\n'.join(merges) + '\n'}
    if name == 'codet5':  # as the folder of CodeT5 has it
        added = {token['content']: token['id'] for token in whole['added_tokens'] if token['id'] >= len(model['vocab'])}
        named = {f'{role}_token': token for role, token in (
            ('cls', '<s>'), ('sep', '</s>'), ('eos', '</s>'), ('bos', '<s>'), ('pad', '<pad>'), ('unk', '<unk>')
        )}  # fmt: skip
        named |= {'mask_token': {'content': '<mask>', 'lstrip': True}, 'additional_special_tokens': [*added]}
        files |= {'added_tokens.json': json.dumps(added), 'special_tokens_map.json': json.dumps(named)}
        files['config.json'] = json.dumps({'tokenizer_class': 'RobertaTokenizer'})
    if name == 'roberta':
        files['tokenizer_config.json'] = json.dumps({'mask_token': config['mask_token']})
    return folder(path, files)


@pytest.mark.parametrize('name', ['bert', 'bert_cased', 'gpt2', 'roberta', 'codet5'])
def test_a_vocabulary_with_its_merges_or_words_is_enough(name, tmp_path):
    check(tokenizer_files.read(of_parts(name, tmp_path / 'a')), GOLDEN[name])


@pytest.mark.parametrize('name', GOLDEN)
def test_files_that_say_the_same_are_of_one_tokenizer(name, tmp_path):
    """Whatever files these are, and however they are written; and with another rule or number it is another one."""
    golden = GOLDEN[name]
    whole = json.loads(golden['files']['tokenizer.json'])
    ours = tokenizer_files.read(folder(tmp_path / 'a', golden['files']))
    written = lambda whole: tokenizer_files.read(
        folder(tmp_path / 'b', golden['files'] | {'tokenizer.json': json.dumps(whole, ensure_ascii=True)})
    )
    others = [written(whole)]
    if name in ('bert', 'bert_cased', 'gpt2', 'roberta', 'codet5'):
        others.append(tokenizer_files.read(of_parts(name, tmp_path / 'c')))
    for other in others:
        assert other.model != ours.model and other.writes_as(ours) and ours.writes_as(other)
    changed = [{**whole, 'normalizer': {'type': 'NFKD'}}, {**whole, 'pre_tokenizer': {'type': 'Whitespace'}}]
    vocab = whole['model']['vocab']
    if isinstance(vocab, dict):
        one, two = [piece for piece in vocab if len(piece) > 2][:2]
        changed.append({**whole, 'model': {**whole['model'], 'vocab': {**vocab, one: vocab[two], two: vocab[one]}}})
    else:
        changed.append({**whole, 'model': {**whole['model'], 'vocab': [*vocab[:-1], [vocab[-1][0], -3.5]]}})
    for one in changed:
        assert not written(one).writes_as(ours) and not ours.writes_as(written(one))


def test_a_sentencepiece_model_is_read_by_its_package(tmp_path):
    pytest.importorskip('sentencepiece')
    golden = STORED['spiece']
    files = {'tokenizer_config.json': json.dumps({'extra_ids': 5})}
    (folder(tmp_path / 'a', files) / 'spiece.model').write_bytes(base64.b64decode(golden['spiece']))
    found = tokenizer_files.read(tmp_path / 'a')
    check(found, golden)
    written = {name: json.dumps(json.loads(text), indent=2) for name, text in tokenizer_files.files(found).items()}
    again = tokenizer_files.read(folder(tmp_path / 'b', written))
    assert again.model != found.model and again.writes_as(found) and found.writes_as(again)
    (tmp_path / 'a' / 'spiece.model').write_bytes(base64.b64decode(golden['spiece'])[:500])
    with pytest.raises(UserError, match='spiece.model: it is no sentencepiece model, or only a part of one$'):
        tokenizer_files.read(tmp_path / 'a')


def test_a_sentencepiece_model_without_the_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'sentencepiece', None)
    (folder(tmp_path / 'a', {}) / 'spiece.model').write_bytes(b'')
    with pytest.raises(UserError, match='spiece.model: reading it needs the package sentencepiece: pip install senten'):
        tokenizer_files.read(tmp_path / 'a')


def message(path) -> str:
    with pytest.raises(UserError) as error:
        tokenizer_files.read(path)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path):
    files = GOLDEN['bert']['files']
    assert 'there is no such folder' in message(tmp_path / 'nowhere')
    none = folder(tmp_path / 'none', {'config.json': '{}'})
    assert 'none: holds no tokenizer, which is tokenizer.json, ' in message(none)
    half = {**files, 'tokenizer.json': files['tokenizer.json'][:3000]}
    assert 'half: tokenizer.json: ' in message(folder(tmp_path / 'half', half))
    for name, text, words in (
        ('a', '[]', 'it is no tokenizer.json'), ('b', '{"model": {}}', 'it is no tokenizer.json'),
        ('c', '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', 'the tokenizers library '),
        ('d', '{"model": {"type": "Odd", "vocab": {"a": 0}}}', 'the tokenizers library cannot read it'),
        ('e', '{"a": ' * 99 + '1' + '}' * 99, 'nested too deeply'),
    ):  # fmt: skip
        assert words in message(folder(tmp_path / name, {'tokenizer.json': text}))
    odd = folder(tmp_path / 'f', {**files, 'tokenizer_config.json': '{"pad_token": '})
    assert 'tokenizer_config.json: is no JSON object' in message(odd)
    other = folder(tmp_path / 'g', {**files, 'tokenizer_config.json': '{"mask_token": "<hidden>"}'})
    assert "its mask_token is '<hidden>', which its vocabulary lacks" in message(other)
    parts = of_parts('codet5', tmp_path / 'h')
    (parts / 'added_tokens.json').write_text(json.dumps({'<extra_id_4>': 77}))
    assert '<extra_id_4> is said to be token 77, but is 300' in message(parts)
    (parts / 'added_tokens.json').write_text(json.dumps({'<extra_id_4>': 'a'}))
    assert 'added_tokens.json gives no numbers' in message(parts)
    parts = of_parts('gpt2', tmp_path / 'i')
    (parts / 'merges.txt').write_text('a b c\n')
    assert 'they are no vocabulary and its merges' in message(parts)
    words = of_parts('bert', tmp_path / 'j')
    (words / 'vocab.txt').write_text('a\nb\n')
    assert 'vocab.txt: the vocabulary lacks [UNK], [CLS], [SEP]' in message(words)
    (words / 'vocab.txt').write_bytes(b'\xff\n')
    assert 'vocab.txt: is not UTF-8 at byte 0' in message(words)


@pytest.mark.parametrize('field, value, words', [
    ('model', '{}', 'it is no tokenizer.json'), ('config', '[]', 'config is no object'),
    ('config', '{', 'Expecting property name'), ('special', [], 'it has not the fields'),
    ('model', None, 'it has not the fields'),
])  # fmt: skip
def test_a_damaged_tokenizer_of_a_run_is_refused(field, value, words, tmp_path):
    tokenizer = tokenizer_files.read(folder(tmp_path / 'a', GOLDEN['bert']['files']))
    with pytest.raises(ValueError, match=words):
        tokenizers.from_json({**json.loads(tokenizer.to_json()), field: value})


TRAINED = dict(special=('pad', 'mask', 'cls', 'sep'), num_sentinels=3)


@pytest.mark.parametrize('kind', ['byte', 'char', 'bpe'])
def test_a_trained_tokenizer_has_a_folder_too(kind, tmp_path):
    texts = [*CORPUS, *TEXTS]
    trained = tokenizers.train(kind, texts, texts, 350, True, True, **TRAINED)
    read = tokenizer_files.read(folder(tmp_path / 'a', tokenizer_files.files(trained)))
    for text in texts:
        np.testing.assert_array_equal(read.encode(text), trained.encode(text))
        assert read.decode(read.encode(text)) == text
    for role in ('pad', 'mask', 'cls', 'sep', 'end', 'sentinels', 'frame', 'special_ids'):
        assert getattr(read, role) == getattr(trained, role), role
    both = 'a <mask> b<extra_id_1>'
    np.testing.assert_array_equal(read.encode(both, special=True), trained.encode(both, special=True))
    plain = tokenizers.train(kind, texts, texts, 350, False)
    bare = tokenizer_files.read(folder(tmp_path / 'b', tokenizer_files.files(plain)))
    assert bare.vocab_size == plain.vocab_size and bare.end is None and not any(bare.frame)
    with pytest.raises(UserError, match='a tokenizer of words keeps no white space'):
        tokenizer_files.files(tokenizers.train('word', texts, texts, 350, True))


def test_text_is_trained_on_with_the_tokenizer_of_a_folder(tmp_path):
    bert = folder(tmp_path / 'bert', GOLDEN['bert']['files'])
    cfg = ConfigDict({'name': 'pydoc', 'block': 16, 'tokenizer': f'hf:{bert}', 'special': ('mask', 'pad')})
    dataset = data.load(cfg)
    tokenizer = dataset.spec.tokenizer
    assert tokenizer.kind == 'huggingface' and dataset.splits['train'].tokens.max() < 140
    (bert / 'tokenizer.json').unlink()  # a run has its own
    assert data.load(cfg, tokenizer).fingerprint == dataset.fingerprint
    for fields, words in (
        (dict(tokenizer=f'hf:{bert}'), 'holds no tokenizer'),
        (dict(tokenizer='hf:'), 'data.tokenizer: hf:; what comes after the colon is missing'),
        (dict(tokenizer='bqe'), "data.tokenizer: 'bqe'; did you mean bpe"),
    ):
        with pytest.raises(UserError, match=words):
            data.load(ConfigDict({'name': 'pydoc', 'block': 16, **fields}))
    with pytest.raises(UserError, match='data.tokenizer: byte, but the run has a tokenizer of kind huggingface'):
        data.load(ConfigDict({'name': 'pydoc', 'block': 16, 'tokenizer': 'byte'}), tokenizer)
    with pytest.raises(UserError, match='^data.sentinels: 1, but the tokenizer has 0$'):
        data.load(ConfigDict({'name': 'pydoc', 'block': 16, 'sentinels': 1}), tokenizer)
    grown = dataclasses.replace(tokenizer, may_grow=True)
    assert data.load(cfg, grown).spec.tokenizer.vocab_size == 140


@pytest.mark.parametrize('name', ['bert', 't5', 'codet5'])
def test_pairs_and_tags_by_the_tokenizer_of_a_folder(name, tmp_path):
    path = folder(tmp_path / name, GOLDEN[name]['files'])
    lines = [{'source': f'import {i} name', 'target': 'the name'} for i in range(50)]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    fields = {'tokenizer': f'hf:{path}', 'block': 40, 'target_block': 12}
    dataset = data.load(ConfigDict({'name': f'pairs:{tmp_path}/a.jsonl', **fields}))
    tokenizer, example = dataset.spec.tokenizer, dataset.splits['train'][0]
    for column in ('source', 'target'):
        n, row = example[f'{column}_length'], example[column]
        before, _, behind = tokenizer.frame
        assert (*row[: len(before)],) == before and row[n - 1] == behind[-1] and (row[n:] == tokenizer.pad).all()
    lines = [{'tokens': ['The', *['name'] * i, 'statement'], 'tags': ['D', *'N' * i, 'O']} for i in range(1, 9)]
    (tmp_path / 'b.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    tagged = data.load(ConfigDict({'name': f'tagged:{tmp_path}/b.jsonl', **fields}))
    for i in range(len(tagged.splits['train'])):
        example = tagged.splits['train'][i]
        begins = np.flatnonzero(example['tags'] != data.NO_TAG)
        tags = [tagged.class_names[tag] for tag in example['tags'][begins]]
        assert tags == ['D', *'N' * (len(tags) - 2), 'O'] and len(tags) > 2
        first = [tokenizer.decode([token]).strip()[:1].lower() for token in example['tokens'][begins]]
        assert first == ['t', *'n' * (len(tags) - 2), 's']


@pytest.mark.parametrize('name', GOLDEN)
def test_transformers_reads_what_is_written(name, tmp_path):
    transformers = pytest.importorskip('transformers')
    golden = GOLDEN[name]
    files = tokenizer_files.files(tokenizer_files.read(folder(tmp_path / 'a', golden['files'])))
    again = transformers.AutoTokenizer.from_pretrained(folder(tmp_path / 'b', files))
    wanted = {key: value for key, value in golden.items() if key not in ('files', 'class')}
    assert type(again).__name__ == golden['class'] and hf_tokenizers.measured(again) == wanted


@pytest.mark.parametrize('kind', ['byte', 'char', 'bpe'])
def test_transformers_reads_a_trained_tokenizer(kind, tmp_path):
    transformers = pytest.importorskip('transformers')
    texts = [*CORPUS, *TEXTS]
    trained = tokenizers.train(kind, texts, texts, 350, True, **TRAINED)
    theirs = transformers.AutoTokenizer.from_pretrained(folder(tmp_path / 'a', tokenizer_files.files(trained)))
    for text in texts:
        ids = trained.encode(text).tolist()
        plain = dict(add_special_tokens=False, split_special_tokens=True)
        assert theirs(text, **plain)['input_ids'] == ids and theirs.decode(ids) == text
        framed = theirs(text, split_special_tokens=True)['input_ids']
        assert framed == [*trained.frame.before, *ids, *trained.frame.behind]
    assert (theirs.pad_token_id, theirs.mask_token_id) == (trained.pad, trained.mask)
    assert theirs('a<mask>', add_special_tokens=False)['input_ids'][-1] == trained.mask


@pytest.mark.parametrize('name', ['bert', 'bert_cased', 'gpt2', 'roberta', 'codet5'])
def test_transformers_agrees_about_the_older_files(name, tmp_path):
    transformers = pytest.importorskip('transformers')
    path = of_parts(name, tmp_path / 'a')
    theirs = getattr(transformers, GOLDEN[name]['class']).from_pretrained(path)
    ours = tokenizer_files.read(path)
    for text in (text for text in TEXTS if '<mask>' not in text):  # of older files, theirs reads special tokens
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)['input_ids'] == [*ours.encode(text)]
