"""Infilling: what a window becomes, where identifiers are, and that streamed or resumed it is the same."""

import io
import json
import keyword
import pathlib
import tokenize

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core import rng, schema
from aigc_jax.core.errors import UserError
from aigc_jax.data import infilling, tokenizers
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

ROOT = pathlib.Path(__file__).parents[2]
PRE, SUF, MID, END = 256, 257, 258, 259
BYTES = tokenizers.Tokenizer('byte', (), has_end=True, has_fim=True)
SOURCE = '''# a comment with words
def area(width, height=2.5e3):
    """What it is."""
    text = f'no {name} here' + "nor 'here'"
    return width * height if text else être
'''


def config(name='pydoc', **fields):
    defaults = dict(
        tokenizer='byte', vocab_size=400, order='shuffled', valid_percent=10.0, test_percent=10.0, block=16,
        eval_block=0, eval_stride=8, stream=False, fim_rate=0.5, fim_identifiers=0.0,
    )  # fmt: skip
    config = ConfigDict({'name': name, **defaults, **fields})
    schema.fill(config, data.fields(config))
    return config


def transformed(rows, marks=None, fim_rate=1.0, by_name=0.0, step=0):
    rows = np.asarray(rows, np.int32)
    batch = {'tokens': jnp.asarray(rows)} | ({} if marks is None else {'identifiers': jnp.asarray(marks)})
    transform = jax.jit(infilling.make_transform(config(fim_rate=fim_rate, fim_identifiers=by_name), BYTES))
    found = transform(batch, rng.context(0, 'train', step, jnp.arange(len(rows))))
    assert set(found) == {'tokens'} and found['tokens'].dtype == jnp.int32
    return np.asarray(found['tokens'])


def taken_apart(row):
    """(before, prefix, middle, suffix, behind the middle) of a window that is infilled once."""
    row = row.tolist()
    assert [row.count(token) for token in (PRE, SUF, MID)] == [1, 1, 1]
    pre, suf, mid = row.index(PRE), row.index(SUF), row.index(MID)
    end = row.index(END, mid)
    return row[:pre], row[pre + 1 : suf], row[mid + 1 : end], row[suf + 1 : mid], row[end:]


def test_the_middle_of_one_document_comes_last_and_nothing_else_is_lost():
    row = np.arange(33)
    for out in transformed(np.tile(row, (200, 1))):
        before, prefix, middle, suffix, behind = taken_apart(out)
        assert before == [] and behind == [END]
        assert prefix + middle + suffix == list(range(29))  # four special tokens take the place of the last four


def test_cuts_are_uniform_and_new_in_each_step():
    rows = np.tile(np.arange(12), (20_000, 1))
    out = transformed(rows)
    parts = [tuple(map(len, taken_apart(row)[1:4])) for row in out]
    pairs = np.array([(len_p, len_p + len_m) for len_p, len_m, _ in parts])
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(pairs.T), 1)
    expected = np.triu(np.full((9, 9), 2 / 81)) - np.eye(9) / 81
    chi2 = np.sum((counts - 20_000 * expected)[expected > 0] ** 2 / (20_000 * expected[expected > 0]))
    assert chi2 < 44 + 5 * np.sqrt(2 * 44)  # 45 cells
    assert (out != transformed(rows, step=1)).any(axis=1).mean() > 0.9


def test_it_stays_inside_one_document():
    documents = [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [11, 12], list(range(13, 26)), [26, 27, 28]]
    row = [token for document in documents for token in (*document, END)]  # the last END is the target after the window
    seen = set()
    for out in transformed(np.tile(row, (400, 1))):
        before, prefix, middle, suffix, behind = taken_apart(out)
        whole = before + prefix + middle + suffix + behind
        # One END serves the middle and begins the next document; cut by length, the window ends with its own.
        assert whole == row[:-3] or whole == [*row[:-4], END], whole
        inside = prefix + middle + suffix
        assert END not in inside
        if inside:
            (mine,) = [i for i, document in enumerate(documents) if inside[0] in document]
            assert inside == documents[mine]
            seen.add(mine)
    assert seen == {0, 1, 2, 3}  # the last has no room beside the special tokens


def test_the_rate_is_the_share_and_the_other_windows_stay():
    rows = np.random.default_rng(0).integers(0, 256, (4000, 33))
    out = transformed(rows, fim_rate=0.3)
    changed = (out == PRE).any(axis=1)
    assert changed.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(out[~changed], rows[~changed])


def identifiers(text, kind='byte', is_code=True):
    tokenizer = tokenizers.train(kind, [text], [text], 400, False)
    tokens, marks = tokenizer.encode(text), infilling.marks(tokenizer, text, is_code)
    assert len(tokens) == len(marks)
    begins, ends = np.flatnonzero(marks & 1), np.flatnonzero(marks & 2)
    assert len(begins) == len(ends) and (begins <= ends).all()
    return [tokenizer.decode(tokens[a : b + 1]).strip() for a, b in zip(begins, ends, strict=True)]


def test_identifiers_are_those_of_pythons_own_tokenizer():
    def reference(source):
        found = tokenize.generate_tokens(io.StringIO(source).readline)
        return [token.string for token in found if token.type == tokenize.NAME and not keyword.iskeyword(token.string)]

    for kind in ('byte', 'char'):
        assert identifiers(SOURCE, kind) == reference(SOURCE) and 'être' in identifiers(SOURCE, kind)
    source = pathlib.Path(tokenize.__file__).read_text()
    assert identifiers(source) == reference(source)


def test_identifiers_that_share_a_token_with_something_else_are_left_out():
    assert identifiers('a b a_c, d\n', 'word') == ['a', 'b', 'd']  # a_c, has a comma
    found = identifiers(SOURCE * 3, 'bpe')
    assert found and set(found) <= set(identifiers(SOURCE))
    assert identifiers('to be, 3rd or\nnot', is_code=False) == ['to', 'be', 'or', 'not']


def test_the_middle_may_be_one_identifier_each_as_likely():
    text = 'aa + bbb * (c - dddd) / if_ ' + 'e' * 9
    raw, marks = np.frombuffer(text.encode(), np.uint8), infilling.marks(BYTES, text, True)
    rows = np.tile(raw.astype(np.int32), (3000, 1))
    middles = [bytes(taken_apart(row)[2]).decode() for row in transformed(rows, np.tile(marks, (3000, 1)), by_name=1.0)]
    names, counts = np.unique(middles, return_counts=True)
    assert names.tolist() == ['aa', 'bbb', 'c', 'dddd', 'if_']  # the last one is cut off with the window
    assert (np.abs(counts - 600) < 5 * np.sqrt(600)).all()
    some = transformed(rows, np.tile(marks, (3000, 1)), by_name=0.4)
    share = np.mean([bytes(taken_apart(row)[2]).decode() in names for row in some])
    assert 0.4 < share < 0.48  # a few of the uniform cuts are names by chance
    none = transformed(rows, np.zeros_like(rows, np.uint8), by_name=1.0)  # without a name, the cuts are uniform
    assert len({tuple(taken_apart(row)[2]) for row in none}) > 100


@pytest.mark.parametrize('kind', ['byte', 'char', 'word', 'bpe'])
def test_special_tokens_of_each_tokenizer(kind):
    texts = ['to be, or not\n', 'être\n']
    tokenizer = tokenizers.train(kind, texts, texts, 300, True, True)
    plain = tokenizers.train(kind, texts, texts, 300 - 3 * (kind in ('word', 'bpe')), True)
    assert tokenizer.vocab_size == plain.vocab_size + 3 and plain.fim is None
    assert [*tokenizer.fim, tokenizer.end] == list(range(tokenizer.vocab_size - 4, tokenizer.vocab_size))
    pre, suf, mid = tokenizer.fim
    a, b = tokenizer.encode('to\n'), tokenizer.encode('be,\n') if kind != 'char' else tokenizer.encode('be\n')
    text = tokenizer.decode([pre, *a, suf, *b, mid, tokenizer.end])
    expected = f'<|prefix|>{tokenizer.decode(a)}<|suffix|>{tokenizer.decode(b)}<|middle|>{tokenizers.END}'
    assert text == expected
    if tokenizer.num_bytes is not None:  # of words it is not known
        assert tokenizer.num_bytes[-4:].sum() == 0 and len(tokenizer.num_bytes) == tokenizer.vocab_size
    assert tokenizers.from_json(json.loads(tokenizer.to_json())) == tokenizer
    assert 'has_fim' not in plain.to_json() and tokenizers.from_json(json.loads(plain.to_json())) == plain
    boundaries = tokenizer.boundaries(texts[0])
    assert boundaries[-1] == len(texts[0].encode()) and len(boundaries) == len(tokenizer.encode(texts[0])) + 1


def test_without_infilling_nothing_changes():
    plain = config(fim_rate=0.0)
    data.check(plain)
    assert data.load(plain).spec.tokenizer.vocab_size == 256
    with_it = data.load(config())
    assert with_it.spec.tokenizer.end == END and 'identifiers' not in with_it.splits['train'].resident
    named = data.load(config(fim_identifiers=0.5))
    assert named.splits['train'].resident['identifiers'].dtype == np.uint8
    assert set(named.splits['valid'].resident) == {'tokens'}
    np.testing.assert_array_equal(named.splits['valid'].tokens, with_it.splits['valid'].tokens)


def test_contradictions_are_named():
    for fields, words in (
        (dict(fim_rate=1.5), 'data.fim_rate: 1.5'),
        (dict(fim_identifiers=-0.1), 'data.fim_identifiers: -0.1'),
        (dict(fim_rate=0.0, fim_identifiers=0.2), 'set data.fim_rate too'),
        (dict(order='contiguous'), 'set data.order to shuffled'),
        (dict(block=7, eval_stride=4), 'windows of 8 tokens; data.block is 7'),
        (dict(tokenizer='bpe', vocab_size=259), 'data.vocab_size: 259'),
    ):
        with pytest.raises(UserError, match=words):
            data.load(config(**fields))
    with pytest.raises(UserError, match='no tokens for infilling'):
        data.load(config(), tokenizers.Tokenizer('byte', (), False))


SMALL = f'{ROOT}/configs/rnn_lm.py:gru,smoke'


def small_fields(**more):
    fields = {
        'data.order': 'shuffled', 'data.fim_rate': '0.5', 'data.fim_identifiers': '0.5', 'data.eval_block': '0',
        'data.eval_stride': '16', 'eval_every_steps': '40', 'model.layers': '1', 'eval.ngram_order': '0',
        'eval.sample_tokens': '2',
        'optim.model.schedule.warmup_percent': '0.0', 'optim.model.schedule.end_value': '3e-3',
    }  # fmt: skip
    return list({**fields, **more}.items())


def test_windows_are_the_same_streamed_and_in_parts():
    experiment = Experiment(config_lib.load(SMALL, small_fields()))
    source, index = experiment.dataset.splits['train'], np.arange(0, 6000, 100)
    transform = jax.jit(experiment.train_preprocess)

    def part(batch, rows):
        batch = {name: jnp.asarray(value[rows]) for name, value in batch.items()}
        return transform(batch, rng.context(0, 'train', 3, jnp.arange(60)[rows]))['tokens']

    gathered = jax.jit(source.gather)({name: jnp.asarray(x) for name, x in source.resident.items()}, jnp.asarray(index))
    whole = part(gathered, slice(60))
    assert 15 < np.sum(np.any(whole == PRE, axis=1)) < 45
    np.testing.assert_array_equal(whole, part(source[index], slice(60)))
    halves = [part(gathered, slice(30)), part(gathered, slice(30, 60))]
    np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_resumed_and_streamed_are_the_whole_run(exact_runner, tmp_path, leaves, assert_same_bits):
    def train(folder, **more):
        flags = [f'--config.{name}={value}' for name, value in small_fields(**more)]
        code, _, err = exact_runner(f'--config={SMALL}', f'--workdir={tmp_path / folder}', *flags)
        assert code == 0, err

    train('whole')
    train('parts', total_steps='20')
    train('parts')
    train('streamed', **{'data.stream': 'True'})
    for other in ('parts', 'streamed'):
        assert_same_bits(leaves(tmp_path / 'whole'), leaves(tmp_path / other))
    experiment, _ = Run(tmp_path / 'whole').open()
    assert experiment.dataset.spec.tokenizer.fim == (PRE, SUF, MID)
    saved = json.loads((tmp_path / 'whole/tokenizer.json').read_text())
    assert saved['has_fim'] and saved['has_end']
    # What is evaluated is the text itself.
    batch = experiment.examples('test', np.arange(5))
    seen = experiment.preprocess(batch, rng.context(0, 'eval', 0, jnp.arange(5)))
    np.testing.assert_array_equal(seen['tokens'], batch['tokens'])
    assert not (np.asarray(seen['tokens']) == PRE).any()
