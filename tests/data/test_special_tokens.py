"""Special tokens of tokenizers: their ids, how they are written in a text, and the tokenizers of before."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizers

LINES = ['to be, or not to be: that is the question.\n', 'être – ou ne pas être ☕\n', 'a  b <mask>\n\n\tc\n']
ALL = dict(special=('sep', 'cls', 'mask', 'pad'), num_sentinels=3)  # in any order


def text(**fields) -> ConfigDict:
    return ConfigDict({'name': 'pydoc', 'block': 16, **fields})


@pytest.mark.parametrize('kind', tokenizers.KINDS)
def test_special_tokens_follow_the_pieces_and_are_no_text(kind):
    plain = tokenizers.train(kind, LINES, LINES, 300, False)
    tokenizer = tokenizers.train(kind, LINES, LINES, 300 + 11, True, True, **ALL)
    n = plain.vocab_size
    assert tokenizer.pieces == plain.pieces and tokenizer.vocab_size == n + 4 + 3 + 3 + 1
    assert (tokenizer.pad, tokenizer.mask, tokenizer.cls, tokenizer.sep) == (n, n + 1, n + 2, n + 3)
    assert tokenizer.sentinels == (n + 4, n + 5, n + 6)
    assert tokenizer.fim == (n + 7, n + 8, n + 9) and tokenizer.end == n + 10
    for line in LINES:
        np.testing.assert_array_equal(tokenizer.encode(line), plain.encode(line))
        assert tokenizer.encode(line).max() < n
    if kind != 'word':
        assert not tokenizer.num_bytes[n:].any() and len(tokenizer.num_bytes) == tokenizer.vocab_size
    assert tokenizer.decode(range(n, n + 6)) == '<pad><mask><cls><sep><extra_id_0><extra_id_1>'
    assert tokenizers.from_json(json.loads(tokenizer.to_json())) == tokenizer
    assert (plain.pad, plain.mask, plain.cls, plain.sep, plain.sentinels) == (None, None, None, None, ())


@pytest.mark.parametrize('kind', tokenizers.KINDS)
def test_special_tokens_can_be_written(kind):
    tokenizer = tokenizers.train(kind, LINES, LINES, 320, True, **ALL)
    found = tokenizer.encode('to <mask> be<extra_id_2><mask>', special=True)
    assert [tokenizer.mask, tokenizer.sentinels[2], tokenizer.mask] == [t for t in found if t >= tokenizer.pad]
    # What stands around is as it would be alone, white space included.
    np.testing.assert_array_equal(
        found,
        [*tokenizer.encode('to '), tokenizer.mask, *tokenizer.encode(' be'), tokenizer.sentinels[2], tokenizer.mask],
    )
    np.testing.assert_array_equal(tokenizer.encode('or not', special=True), tokenizer.encode('or not'))
    assert tokenizer.encode('', special=True).dtype == np.int32 and not len(tokenizer.encode('', special=True))


def test_a_special_token_that_there_is_not_is_refused():
    tokenizer = tokenizers.train('byte', LINES, LINES, 0, True, special=('pad',), num_sentinels=2)
    for text in ('the <mask> statement', '<sep>', '<extra_id_2>'):
        with pytest.raises(UserError, match='the tokenizer has no such special token; it has <pad>, <extra_id_0>, '):
            tokenizer.encode(text, special=True)
    with pytest.raises(UserError, match='^<mask>: the tokenizer has no such special token; it has none$'):
        tokenizers.train('byte', LINES, LINES, 0, False).encode('a <mask>', special=True)
    assert len(tokenizer.encode('<a> <extra_id>', special=True)) == 14  # other words in brackets are text


def test_tokenizers_without_them_are_written_as_they_always_were():
    old = '{"kind": "char", "pieces": ["a", "b"], "has_end": true, "model": ""}\n'
    tokenizer = tokenizers.from_json(json.loads(old))
    assert tokenizer.to_json() == old and tokenizer.mask is None
    fim = '{"kind": "byte", "pieces": [], "has_end": true, "model": "", "has_fim": true}\n'
    assert tokenizers.from_json(json.loads(fim)).to_json() == fim


@pytest.mark.parametrize('field, value, words', [
    ('special', ['mask', 'pad'], 'special is not of pad, mask, cls, sep, in this order'),
    ('special', ['mask', 'mask'], 'special is not of pad'),
    ('special', ['bos'], 'special is not of pad'),
    ('special', [['pad']], 'special is not of pad'),
    ('special', 'pad', 'special is not what a tokenizer has'),
    ('num_sentinels', -1, 'num_sentinels is not 0 to 10000'),
    ('num_sentinels', 10**9, 'num_sentinels is not 0 to 10000'),
    ('num_sentinels', True, 'num_sentinels is not what a tokenizer has'),
])  # fmt: skip
def test_other_special_tokens_in_a_file_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        tokenizers.from_json({'kind': 'byte', 'pieces': [], 'has_end': True, field: value})


def test_the_config_asks_for_them():
    dataset = data.load(text(special=('mask',), sentinels=2))
    tokenizer = dataset.spec.tokenizer
    assert tokenizer.special_ids == {'<mask>': 256, '<extra_id_0>': 257, '<extra_id_1>': 258, '<|end|>': 259}
    assert data.load(text(), tokenizer).spec.tokenizer == tokenizer
    without = data.load(text()).spec.tokenizer
    for fields, words in (
        (dict(special=('mask', 'pad')), '^data.special: the tokenizer has no token mask, pad$'),
        (dict(sentinels=1), '^data.sentinels: 1, but the tokenizer has 0$'),
    ):
        with pytest.raises(UserError, match=words):
            data.load(text(**fields), without)
    with pytest.raises(UserError, match='data.special'):
        data.load(text(special=('bos',)))
    with pytest.raises(UserError, match='a tokenizer of kind bpe needs 107 or more'):
        data.load(text(tokenizer='bpe', vocab_size=100, sentinels=100, special=('pad', 'mask', 'cls', 'sep')))
