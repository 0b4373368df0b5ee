"""Classes of new texts, words and images: by the library and by the command."""

import json

import numpy as np
import pytest

import aigc_jax
from aigc_jax.core.capabilities import Classifies
from aigc_jax.core.errors import UserError
from aigc_jax.data import NO_TAG
from aigc_jax.reports import classifying
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

SMALL = [
    ('total_steps', '2'), ('log_every_steps', '2'), ('eval_every_steps', '2'), ('checkpoint_every_steps', '2'),
    ('model.width', '8'), ('model.layers', '1'), ('model.heads', '1'), ('model.kv_heads', '1'),
    ('model.positions', '50'), ('model.token_types', '2'),
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


def expected(model, n):
    """The probabilities that the examples of the training split have in an evaluation, and these examples."""
    batch = model.experiment.examples('train', np.arange(n))
    call = model.experiment.task.get(Classifies).logits
    logits = call({'model': model.state.params['model']}, None, batch, None)
    shares = np.exp(np.asarray(logits, np.float64))
    return shares / shares.sum(-1, keepdims=True), batch


def test_a_text_has_the_classes_that_it_has_in_an_evaluation(labelled):
    model = aigc_jax.open(labelled)
    shares, _ = expected(model, N)
    names = model.experiment.dataset.class_names
    found = model.classify([row['text'] for row in LABELLED[:N]])
    for told, own in zip(found, shares, strict=True):
        assert sorted(told.shares) == sorted(names) and str(told) == names[own.argmax()]
        np.testing.assert_allclose([told.shares[name] for name in names], own, rtol=1e-4)
        assert [*told.shares.values()] == sorted(told.shares.values(), reverse=True)
    assert model.classify(LABELLED[0]['text'])[0].text == LABELLED[0]['text']


def test_two_texts_are_told_of_together(folder):
    model = aigc_jax.open(trained(folder, 'pairs', PAIRS))
    shares, _ = expected(model, N)
    found = model.classify([(row['text'], row['text2']) for row in PAIRS[:N]])
    np.testing.assert_allclose([[told.shares[name] for name in '01'] for told in found], shares, rtol=1e-4)


def test_each_word_has_the_tag_of_its_first_token(tagged):
    model = aigc_jax.open(tagged)
    shares, batch = expected(model, N)
    names = model.experiment.dataset.class_names
    texts = [
        model.tokenizer.decode(tokens[1 : length - 1])
        for tokens, length in zip(batch['tokens'], batch['tokens_length'], strict=True)
    ]
    for text, of_text, own, tags in zip(texts, model.classify(texts), shares, batch['tags'], strict=True):
        assert [told.text for told in of_text] == text.split()
        theirs = own[np.asarray(tags) != NO_TAG]
        np.testing.assert_allclose([[told.shares[name] for name in names] for told in of_text], theirs, rtol=1e-4)


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


def test_what_cannot_be_classified_is_named(labelled, tagged):
    model = aigc_jax.open(labelled)
    for wrong, words in (
        ([], 'it is given no text'), (3, 'give texts, or tuples of two'), ([('a', 'b', 'c')], 'tuples of two'),
        ('lang ' * 90, 'the model reads'),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            model.classify(wrong)
    with pytest.raises(UserError, match='give texts$'):
        aigc_jax.open(tagged).classify([('a', 'b')])


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
