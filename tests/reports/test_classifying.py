"""Classes of new texts, words and images: by the library and by the command."""

import json

import numpy as np
import pytest

import aigc_jax
from aigc_jax.core.capabilities import Classifies
from aigc_jax.core.errors import UserError
from aigc_jax.data import NO_TAG
from aigc_jax.reports import classifying
from aigc_jax.reports import texts as reports_texts
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

SMALL = [
    ('total_steps', '2'), ('log_every_steps', '2'), ('eval_every_steps', '2'), ('checkpoint_every_steps', '2'),
    ('model.width', '8'), ('model.layers', '1'), ('model.heads', '1'), ('model.kv_heads', '1'),
    ('model.positions', '50'), ('model.token_types', '2'),
    ('optim.model.schedule', "{'name': 'constant_schedule', 'value': 0.1}"),  # so that texts have different classes
]  # fmt: skip
LABELLED = [
    {'text': f'{number} {word} Übung', 'label': word} for number, word in enumerate(['rot', 'grün', 'blau', 'rot'] * 4)
]
N = 12  # of training
PAIRS = [{'text': row['text'], 'text2': f'ist {row["label"]}', 'label': i % 2} for i, row in enumerate(LABELLED)]
TAGGED = [{'tokens': row['text'].split(), 'tags': ['zahl', 'farbe', 'wort']} for row in LABELLED]


def trained(folder, name, rows, *more):
    splits = ['train'] * N + ['valid', 'test'] * 2
    lines = [json.dumps(row | {'split': split}) + '\n' for row, split in zip(rows, splits, strict=True)]
    (folder / f'{name}.jsonl').write_text(''.join(lines), encoding='utf-8')
    kind = 'tagged' if name == 'tagged' else 'labelled'
    own = [('data.name', f'{kind}:{folder}/{name}.jsonl'), ('data.tokenizer', 'byte'), *more]
    train(config_lib.load('configs/finetune_classify.py:smoke', SMALL + own), Run(folder / f'run_{name}'))
    return folder / f'run_{name}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('classifying')


@pytest.fixture(scope='module')
def labelled(folder):
    return trained(folder, 'labelled', LABELLED)


@pytest.fixture(scope='module')
def tagged(folder):
    return trained(folder, 'tagged', TAGGED)


@pytest.fixture(scope='module')
def pairs(folder):
    columns = ('data.columns', "('text', 'text2', 'label')")
    return trained(folder, 'pairs', PAIRS, columns)


def expected(model, n):
    """The probabilities that the examples of the training split have in an evaluation, and these examples."""
    batch = model.experiment.examples('train', np.arange(n))
    call = model.experiment.task.get(Classifies).logits
    logits = call({'model': model.state.params['model']}, None, batch, None)
    shares = np.exp(np.asarray(logits, np.float64))
    shares /= shares.sum(-1, keepdims=True)
    assert (np.ptp(shares, axis=0) > 1e-3 * shares.mean(axis=0)).any()  # else the examples could be others
    return shares, batch


def texts_of(model, batch):
    """The texts of each example, which stand in another order than in their file."""
    rows = [tokens[:length] for tokens, length in zip(batch['tokens'], batch['tokens_length'], strict=True)]
    ends = [np.flatnonzero(row == model.tokenizer.sep) for row in rows]
    parts = [np.split(row, end)[:-1] for row, end in zip(rows, ends, strict=True)]
    return [tuple(model.tokenizer.decode(part[1:]) for part in of_row) for of_row in parts]


def test_a_text_has_the_classes_that_it_has_in_an_evaluation(labelled):
    model = aigc_jax.open(labelled)
    shares, batch = expected(model, N)
    names, texts = model.experiment.dataset.class_names, texts_of(model, batch)
    assert sorted(texts) == sorted((row['text'],) for row in LABELLED[:N])
    found = model.classify([text for (text,) in texts])
    for told, own in zip(found, shares, strict=True):
        assert sorted(told.shares) == sorted(names) and str(told) == names[own.argmax()]
        np.testing.assert_allclose([told.shares[name] for name in names], own, rtol=1e-5)
        assert [*told.shares.values()] == sorted(told.shares.values(), reverse=True)
    assert model.classify(LABELLED[0]['text'])[0].text == LABELLED[0]['text']


def test_two_texts_are_told_of_together(pairs):
    model = aigc_jax.open(pairs)
    shares, batch = expected(model, N)
    texts = texts_of(model, batch)
    assert sorted(texts) == sorted((row['text'], row['text2']) for row in PAIRS[:N])
    found = model.classify(texts)
    np.testing.assert_allclose([[told.shares[name] for name in '01'] for told in found], shares, rtol=1e-5)


def test_each_word_has_the_tag_of_its_first_token(tagged):
    model = aigc_jax.open(tagged)
    shares, batch = expected(model, N)
    names = model.experiment.dataset.class_names
    texts = [text for (text,) in texts_of(model, batch)]
    for text, of_text, own, tags in zip(texts, model.classify(texts), shares, batch['tags'], strict=True):
        assert [told.text for told in of_text] == text.split()
        theirs = own[np.asarray(tags) != NO_TAG]
        np.testing.assert_allclose([[told.shares[name] for name in names] for told in of_text], theirs, rtol=1e-5)


OWN = """
from aigc_jax.data.sources import examples

def load(cfg):
    row = lambda i: examples.TaggedText(f'ab {i}', ((0, 2),), ('wort' if i % 2 else 'farbe',), 'zahl')
    rows = {split: [row(i) for i in range(4)] for split in ('train', 'valid', 'test')}
    return examples.tagged(cfg, rows, 'own', None, 'own')
"""


def test_data_whose_tokens_are_tagged_tell_of_tokens(tagged, tmp_path):
    """Whatever their name: here a source of the user's own, with the rule of `identifiers`."""
    (tmp_path / 'own.py').write_text(OWN)
    (of_text,) = aigc_jax.open(tagged, overrides={'data.name': f'{tmp_path}/own.py'}).classify('ab 1')
    assert [told.text for told in of_text] == ['a', 'b', ' ', '1']


@pytest.mark.parametrize('kind', ['labelled', 'tagged'])
def test_a_checkpoint_of_hugging_face_tells_its_classes(kind, request, tmp_path):
    model = aigc_jax.open(request.getfixturevalue(kind))
    aigc_jax.export(model, tmp_path / 'exported')
    again = aigc_jax.from_pretrained(tmp_path / 'exported')
    both = [one.classify('eins rot Übung') for one in (model, again)]
    ours, theirs = both if kind == 'labelled' else map(tuple, (both[0][0], both[1][0]))
    assert len(ours) == len(theirs) == (1 if kind == 'labelled' else 3)
    for one, other in zip(ours, theirs, strict=True):
        assert one.text == other.text and [*one.shares] == [*other.shares]
        np.testing.assert_allclose([*other.shares.values()], [*one.shares.values()], rtol=1e-5)


def test_a_checkpoint_that_tells_several_classes_or_a_number_is_refused(labelled, tmp_path):
    aigc_jax.export(aigc_jax.open(labelled), tmp_path / 'exported')
    path = tmp_path / 'exported' / 'config.json'
    said = json.loads(path.read_text())
    for more, words in (
        ({'problem_type': 'multi_label_classification'}, 'problem_type is multi_label_classification'),
        ({'id2label': {'0': 'LABEL_0'}}, 'it tells 1 class'),
    ):
        path.write_text(json.dumps(said | more))
        with pytest.raises(UserError, match=words):
            aigc_jax.from_pretrained(tmp_path / 'exported')


def test_a_line_break_or_a_control_character_is_shown_in_one_line():
    told = classifying.told('a\n\tb', np.zeros(2), ('x\ny', '\x1b[31m'))
    assert told.text == 'a\n\tb' and [*told.shares] == ['x\ny', '\x1b[31m']
    assert told.line(named=True) == 'a\\n\\tb\tx\\ny 0.500  \\x1b[31m 0.500'


def test_what_cannot_be_classified_is_named(labelled, tagged, pairs):
    of_one, of_two = 'give texts$', 'give tuples of two, text and text2, as those of its training$'
    for folder, wrong, words in (
        (labelled, [], 'it is given no text'), (labelled, 3, of_one), (labelled, [('a', 'b')], of_one),
        (labelled, 'lang ' * 90, 'the model reads'), (tagged, [('a', 'b')], of_one), (pairs, 'a', of_two),
        (pairs, [('a', 'b', 'c')], of_two),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            aigc_jax.open(folder).classify(wrong)


def test_a_checkpoint_of_hugging_face_does_not_say_of_how_many_texts_it_tells(pairs, tmp_path):
    model = aigc_jax.open(pairs)
    aigc_jax.export(model, tmp_path / 'exported')
    again = aigc_jax.from_pretrained(tmp_path / 'exported')
    (ours,), (theirs, alone) = model.classify([('rot', 'blau')]), again.classify([('rot', 'blau'), 'rot'])
    np.testing.assert_allclose([*theirs.shares.values()], [*ours.shares.values()], rtol=1e-5)
    assert {*alone.shares} == {*ours.shares}
    with pytest.raises(UserError, match='give texts, or tuples of two$'):
        again.classify([('a', 'b', 'c')])


def test_the_command_tells_classes(labelled, tagged, runner, tmp_path):
    ask = lambda folder, *flags: runner('--mode=sample', f'--workdir={folder}', *flags)
    (tmp_path / 'prompts.txt').write_text('eins rot\nzwei Übung\n', encoding='utf-8')
    code, out, _ = ask(labelled, f'--prompt_file={tmp_path}/prompts.txt')
    assert code == 0 and len(out.splitlines()) == 2
    told = aigc_jax.open(labelled).classify(['eins rot', 'zwei Übung'])
    assert out == ''.join(f'{one.line()}\n' for one in told) and f'{told[0]} 0.' in out
    code, out, _ = ask(tagged, f'--prompt_file={tmp_path}/prompts.txt')
    assert code == 0 and [line.split('\t')[0] for line in out.splitlines()] == ['eins', 'rot', '', 'zwei', 'Übung']
    for flags, words in ((), '--prompt: missing'), (('--prompt=a', '--top_k=2'), '--top_k: classify draws nothing'):
        code, out, err = ask(tagged, *flags)
        assert code == 2 and not out and f'error: {words}' in err and 'Traceback' not in err


FILES = {  # of one example, for `pairs`
    'a.txt': 'eins rot\tist "blau"\n',
    'b.txt': '"eins rot"\t"ist \\"blau\\""\n',
    'c.jsonl': json.dumps({'text2': 'ist "blau"', 'text': 'eins rot', 'label': 0}) + '\n',
    'd.jsonl': json.dumps('eins rot') + '\t' + json.dumps('ist "blau"') + '\r\n',
    'e.tsv': 'label\ttext2\ttext\n\n0\tist "blau"\teins rot\n',
    'f.tsv': 'eins rot\tist "blau"\n',
}


def test_the_command_takes_two_texts(pairs, runner, tmp_path):
    (told,) = aigc_jax.open(pairs).classify([('eins rot', 'ist "blau"')])
    ask = lambda *flags: runner('--mode=sample', f'--workdir={pairs}', *flags)
    answers = [ask('--prompt=eins rot\tist "blau"')]
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
        answers.append(ask(f'--prompt_file={tmp_path}/{name}'))
    assert [(code, out) for code, out, _ in answers] == [(0, f'{told.line()}\n')] * 7, answers


MISFITS = (  # of which model, what its --prompt_file holds, its name, what is said
    ('pairs', 'a\tb\nrot\n', 'a.txt', 'line 2: the model tells of two texts, text and text2; write both with one tab'),
    ('pairs', 'a\tb\tc\n', 'a.txt', 'line 1: the model tells of two texts'),
    ('pairs', 'a\t\n', 'a.txt', 'line 1: the model tells of two texts'),
    ('pairs', '{"text": "a"}\n', 'a.jsonl', 'line 1 is no JSON object with a field "text2"'),
    ('pairs', 'text\tlabel\na\t1\n', 'a.tsv', 'seems to name columns, but not text, text2'),
    ('labelled', 'a\tb\n', 'a.txt', 'line 1: a tab divides 2 texts, and the model tells of one'),
    ('labelled', 'text,label\na,1\n', 'a.csv', 'holds no JSON objects; make it a file that does: /'),
)


def test_a_prompt_of_another_number_of_texts_is_named(labelled, pairs, runner, tmp_path):
    of = {'labelled': labelled, 'pairs': pairs}
    for kind, content, name, words in MISFITS:
        (tmp_path / name).write_text(content)
        code, out, err = runner('--mode=sample', f'--workdir={of[kind]}', f'--prompt_file={tmp_path}/{name}')
        refusal = [line for line in err.splitlines() if not line.startswith('note: data.name=')]
        assert code == 2 and not out and len(refusal) == 1 and words in refusal[0], err
    for kind, prompt, words in (
        ('pairs', 'a', '--prompt: the model tells of two texts, text and text2'), ('pairs', '', '--prompt: missing'),
        ('labelled', 'a\tb', '--prompt: a tab divides 2 texts'),
    ):  # fmt: skip
        code, out, err = runner('--mode=sample', f'--workdir={of[kind]}', f'--prompt={prompt}')
        assert code == 2 and not out and f'error: {words}' in err, err


def test_a_file_of_rows_gives_the_texts_of_a_model_of_one(labelled, tagged, runner, tmp_path):
    """A text with a tab in it is one text there, and to a tagger always."""
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': 'eins\trot'}) + '\n')
    (tmp_path / 'b.txt').write_text(json.dumps('eins\trot') + '\n')
    (told,) = aigc_jax.open(labelled).classify('eins\trot')
    for name in 'a.jsonl', 'b.txt':
        code, out, err = runner('--mode=sample', f'--workdir={labelled}', f'--prompt_file={tmp_path}/{name}')
        assert code == 0 and out == f'{told.line()}\n', err
    code, out, _ = runner('--mode=sample', f'--workdir={tagged}', '--prompt=eins\trot')
    assert code == 0 and [line.split('\t')[0] for line in out.splitlines()] == ['eins', 'rot']


CONLL = 'eins\tzahl\nrot\tfarbe\n\n\nÜbung\twort\n'
ROWS = (  # of which training data, the name of a prompt file, what it holds, the texts
    (('tagged', ('tokens', 'tags')), 'a.tsv', CONLL, [('eins rot',), ('Übung',)]),
    (('tagged', ('tokens', 'tags')), 'b.tsv', 'tokens\ttags\r\n' + CONLL, [('eins rot',), ('Übung',)]),
    (('tagged', ('tokens', 'tags')), 'c.tsv', 'eins\nrot\n\nÜbung', [('eins rot',), ('Übung',)]),
    (('tagged', ('words', 'tags')), 'd.jsonl', '{"words": ["eins", "rot"]}\n', [('eins rot',)]),
    (('tagged', ('tokens', 'tags')), 'e.txt', 'eins rot\n"eins\\trot"\n', [('eins rot',), ('eins\trot',)]),
    (('labelled', ('text', 'label')), 'f.tsv', 'eins\trot\n', [('eins',)]),
    (('labelled', ('text', 'label')), 'g.tsv', 'id\ttext\n1\teins\n', [('eins',)]),
    (('pairs', ('source', 'target')), 'h.tsv', 'eins\trot\n', [('eins',)]),
    (('pairs', ('de', 'en')), 'i.jsonl', '{"de": "eins\\n", "en": "one"}\n{"de": "rot"}', [('eins\n',), ('rot',)]),
    (('pairs', ('source', 'target')), 'j.txt', 'eins\trot\n', [('eins\trot',)]),
    (('jsonl', ('text',)), 'k.jsonl', '{"text": "eins"}\n', [('eins',)]),
    (('jsonl', ('text',)), 'l.tsv', 'eins\trot\n', [('eins\trot',)]),
    (('', ()), 'm.jsonl', '{"text": "eins"}\n', [('{"text": "eins"}',)]),
)  # fmt: skip


@pytest.mark.parametrize('rows, name, content, texts', ROWS, ids=[name for _, name, _, _ in ROWS])
def test_a_file_of_prompts_has_the_columns_of_the_training_file(rows, name, content, texts, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    columns = ('text',) if rows[0] == 'labelled' else ()
    assert reports_texts.read_examples('', str(tmp_path / name), columns, rows) == texts


@pytest.mark.parametrize('name, content, words', [
    ('a.txt', CONLL, 'a.txt, line 1 holds a tab, as between a word and its tag; a file of these has a name that ends'),
    ('a.tsv', 'a\tb\tc\n', 'a.tsv, line 1 has 3 cells; it wants a word and its tag, with a tab between$'),
    ('a.tsv', 'a b\tc\n', "a.tsv, line 1: 'a b' is no word without white space$"),
    ('a.tsv', '\n', 'a.tsv has no line$'),
    ('a.jsonl', '{"text": "a"}', 'a.jsonl, line 1 is no JSON object with a list "tokens" of words$'),
    ('a.csv', 'tokens,tags\n', 'a.csv holds no JSON objects; make it a file that does: '),
])  # fmt: skip
def test_a_file_that_a_tagger_cannot_read_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        reports_texts.read_examples('', str(tmp_path / name), (), ('tagged', ('tokens', 'tags')))
    assert '\n' not in str(error.value)


def test_the_command_tags_the_words_of_a_file_of_words_and_tags(tagged, runner, tmp_path):
    (tmp_path / 'wörter.tsv').write_text(CONLL)
    code, out, err = runner('--mode=sample', f'--workdir={tagged}', f'--prompt_file={tmp_path}/wörter.tsv')
    assert code == 0 and [line.split('\t')[0] for line in out.splitlines()] == ['eins', 'rot', '', 'Übung'], err
