"""Grammars: what is drawn under them parses, with each tokenizer; what they take and refuse; bad names and files."""

import ast
import gzip
import json
import lzma
import warnings

import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.data import tokenizers
from aigc_jax.data.tokenizers import Tokenizer
from aigc_jax.decoding.grammars import NAMED, Grammar

BYTES = Tokenizer('byte', (), has_end=False)
# Beside the characters, so that whole statements come often.
LEXEMES = [
    'def f(', 'if ', 'elif ', 'else:\n', 'for ', ' in ', 'while ', 'return', 'return ', 'break\n', 'continue\n',
    'try:\n', 'except ', 'with ', ' as ', 'import ', 'from ', 'raise ', 'pass\n', ' not in ', ' is ', 'None', ' and ',
    'not ', ':\n', '    ', '        ', '            ', ', ', ' = ', ' += ', ' ** ', '# ', 'f(x)\n', 'self', '[x for ',
    'class ', ' or ',
]  # fmt: skip
# What learns the characters and the merges: a little of everything that the grammars need.
DOCUMENTS = [
    'def add(first, second):\n    """The sum."""\n    return first + second  # not {}\n\nfor i in [1, 2]:\n    pass\n',
    'if x is None or not y:\n    x = {"key": 0}\nelif z:\n    pass\nelse:\n    raise ValueError(f"{x!r}")\n',
    '{"name": "é", "values": [1.5, true, false, null]}\n(1 + 2) * 3 ** 4 / 56789 - 0\n' + "'bgjkqwz'",
]


# Of finished texts to draw, 1000 in all.
COUNTS = {'byte': 300, 'byte, no end': 200, 'char': 100, 'bpe': 100, 'lexemes': 300}


def tokenizer(kind: str) -> Tokenizer:
    if kind == 'byte, no end':
        return BYTES
    if kind == 'lexemes':
        characters = tokenizers.train('char', DOCUMENTS, DOCUMENTS, 0, False).pieces
        return Tokenizer('char', (*characters, *LEXEMES), has_end=True)
    return tokenizers.train(kind, DOCUMENTS, DOCUMENTS, 400, False)


def parse(name: str, text: str) -> None:
    if name == 'json':
        json.loads(text)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # an escape that is none, and the like
            compile(ast.parse(text), 'text', 'exec')


def weights(tok: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Logits of an untrained model: at first, when it likes to open brackets, and in the end, when it closes them."""
    early, late = np.zeros((2, tok.vocab_size))
    for token in range(tok.vocab_size):
        text = '' if token == tok.end else tok.decode([token])
        if token == tok.end:
            early[token], late[token] = -2, 8
        elif text in LEXEMES or text in ('[', '{', '(', ',', '"'):
            early[token], late[token] = 2 if text == '"' else 4, 0
        elif text.isalnum():
            early[token] = late[token] = -1 if text.isascii() else -4
        if text in ('\n', ':\n', 'pass\n', 'f(x)\n', ')', ']', '}'):
            early[token], late[token] = 3, 6
    return early, late


def draw(name: str, tok: Tokenizer, count: int, most: int = 150, seed: int = 0) -> tuple[list[str], int]:
    """At least `count` texts that were finished, drawn 100 at a time, and how many were cut off."""
    grammar, rng, (early, late) = Grammar(name, tok), np.random.default_rng(seed), weights(tok)
    closing = np.array([token != tok.end and tok.decode([token]) in ('"', "'") for token in range(tok.vocab_size)])
    finished, cut = [], 0
    while len(finished) < count:
        matchers, alive, written = grammar.begin([()] * 100), np.ones(100, bool), [[] for _ in range(100)]
        for t in range(most):
            allowed = matchers.allowed(alive)
            logits = early + min(1, 2 * t / most) * (late - early)
            inside = allowed.mean(axis=1) > 0.3  # a string, or a comment, in which anything goes
            logits = logits + 12 * inside[:, None] * closing
            token = np.where(allowed, logits + 1.5 * rng.gumbel(size=allowed.shape), -np.inf).argmax(axis=1)
            matchers.consume(token, alive)
            for i in np.flatnonzero(alive):
                if token[i] != tok.end:
                    written[i].append(token[i])
            # Without an end token, some end wherever they may.
            over = token == tok.end if tok.has_end else matchers.may_end() & (rng.random(100) < t / most)
            over |= matchers.finished()
            finished += [tok.decode(written[i]) for i in np.flatnonzero(over & alive)]
            alive &= ~over
        cut += alive.sum()
    return finished, cut


@pytest.mark.parametrize('name', NAMED)
@pytest.mark.parametrize('kind', COUNTS)
def test_what_is_drawn_parses(name, kind):
    texts, _ = draw(name, tokenizer(kind), COUNTS[kind])
    for text in texts:
        parse(name, text)
    assert len(set(texts)) > len(texts) / 4


def takes(grammar: Grammar, text: str) -> bool:
    """Whether the bytes of `text` may be written one after the other, and the text then end."""
    matchers, alive = grammar.begin([()] * 1), np.ones(1, bool)
    for byte in text.encode():
        if not matchers.allowed()[0, byte]:
            return False
        matchers.consume(np.array([byte]), alive)
    return bool(matchers.may_end()[0])


PROGRAM = '''import os.path as p
from math import sqrt, pi

# Roots, and what is none.
class Root(Base):
    """Of a number.

    It is not negative."""
    def of(self, number=0):
        if number < 0 and not number is None:
            raise ValueError("no \\'root\\'\\n", number)
        elif number == 1:
            return
        else:
            return sqrt(number) ** 2 // -3

for i, name in names[1:]:
    while True:
        found[i] += [x * 0.5 for x in name.split(', ', 2) if x]
        if i % 2:
            break
    try:
        a, b = (i,), {"k": [1, 2], 'l': (3, 4)} if i else None
    except KeyError as error:
        continue
with open("x", mode="r") as file:
    pass
'''


@pytest.mark.parametrize('name, taken, refused', [
    ('json', ['0', '-1.5e-3', '"é\\u00e9\\n"', '{"a": [1, {}, []], "b":null}', '[\n  true\n]', '[' * 16 + ']' * 16],
     ['', '01', '+1', '.5', '1.', "'a'", '"a', '"\\x"', '"\t"', '[1,]', '{a: 1}', '{"a"}', 'True', '1 ', '1 2', 'NaN',
      '[' * 17 + ']' * 17]),
    ('arithmetic', ['7', '(1+2) * 3', '-2 ** -3', '0.5/-4', '((1))', '1 - -1'],
     ['', '01', '1 +', '(1', '1)', '1 2', '2 (3)', '()', '9**9**9', '1//2', 'a', '1 * * 2', '1.', '٣']),
    ('python', [PROGRAM, 'f()\n', 'x = 1\n', 'def f(a, s="", ...):\n    pass\n'.replace(', ...', '')],
     ['', 'x = 1', 'return 1\n', 'break\n', 'if x:\n    continue\n', 'while x:\n    def f():\n        break\n',
      'def f():\n    class C:\n        return\n', 'for = 1\n', 'x = 01\n', 'f() = 1\n', '1 = x\n', 'None = 1\n',
      'x = "\\d"\n', 'x = "a\n', 'f(a=1, a=2)\n', 'f(a=1, b)\n',
      'def f(a, a):\n    pass\n', 'def f(a=1, s):\n    pass\n',
      'if x:\npass\n', '  x = 1\n', 'if x:\n    y = 1\n      z = 1\n', 'x is 1\n', 'x = 1 is y\n', 'x = 1(2)\n',
      'nonlocal x\n', 'import None\n', 'from __future__ import braces\n', '# coding: none\nx = 1\n',
      'x = ' + '(' * 9 + '1' + ')' * 9 + '\n',
      'try:\n    pass\n', 'else:\n    pass\n', '__debug__ = 1\n', 'x = a == not b\n']),
])  # fmt: skip
def test_takes_and_refuses(name, taken, refused):
    grammar = Grammar(name, BYTES)
    for text in taken:
        parse(name, text)
        assert takes(grammar, text), text
    assert [text for text in refused if takes(grammar, text)] == []


@pytest.mark.parametrize('name, prompt', [('json', '{"a": [[1, '), ('arithmetic', '((('), ('python', 'def ')])
def test_a_text_that_begins_with_a_prompt_ends_within_its_budget(name, prompt):
    rng, n, most, early = np.random.default_rng(0), 4, 45, weights(BYTES)[0]
    matchers = Grammar(name, BYTES).begin([BYTES.encode(prompt)] * n)
    alive, written = np.ones(n, bool), [[] for _ in range(n)]
    for t in range(most):
        allowed = matchers.allowed(alive, most - t)
        alive &= allowed.any(axis=1)
        token = np.where(allowed, early + 1.5 * rng.gumbel(size=allowed.shape), -np.inf).argmax(axis=1)
        matchers.consume(token, alive)
        for i in np.flatnonzero(alive):
            written[i].append(token[i])
        alive &= ~matchers.finished()
    assert matchers.may_end().all() and matchers.closed.any()
    for tokens in written:
        parse(name, prompt + BYTES.decode(tokens))


@pytest.mark.parametrize('has_fim', [False, True])
def test_end_is_allowed_where_a_text_may_end_and_nothing_else_behind_it(has_fim):
    tok = Tokenizer('byte', (), has_end=True, has_fim=has_fim)
    alive = np.array([True, True, False])
    matchers = Grammar('json', tok).begin([()] * 3)
    for tokens in (b'[1"', b']2"'):
        matchers.consume(np.frombuffer(tokens, np.uint8), alive)
    allowed = matchers.allowed()
    assert not allowed[:, 256 : tok.end].any()
    np.testing.assert_array_equal(matchers.may_end(), [True, True, False])
    np.testing.assert_array_equal(matchers.finished(), [True, False, False])
    np.testing.assert_array_equal(allowed[:, tok.end], [True, True, False])
    np.testing.assert_array_equal(allowed.sum(axis=1) > 1, [False, True, True])
    matchers.consume(np.full(3, tok.end), alive)
    np.testing.assert_array_equal(matchers.finished(), [True, True, False])
    with pytest.raises(ValueError, match='text 2 may not go on with token 93'):
        matchers.consume(np.full(3, ord(']')), np.array([False, False, True]))


def test_bytes_of_a_character_stay_whole():
    matchers = Grammar('json', BYTES).begin([()] * 1)
    for byte, follow in ((ord('"'), None), (0xE2, range(0x80, 0xC0)), (0x82, range(0x80, 0xC0)), (0xAC, None)):
        matchers.consume(np.array([byte]), np.ones(1, bool))
        if follow:
            np.testing.assert_array_equal(np.flatnonzero(matchers.allowed()[0]), follow)
    assert matchers.allowed()[0, ord('"')] and not matchers.allowed()[0, [0x80, 0xFF, 0xC0]].any()


def test_tokens_of_several_bytes_are_allowed_by_what_they_spell():
    tok = tokenizer('bpe')
    matchers = Grammar('python', tok).begin([()] * 1)
    spelled = {tok.decode([token]) for token in np.flatnonzero(matchers.allowed()[0])}
    # A name, too, may begin with the letters of a keyword.
    assert {'def', 'else', 'values'} <= spelled and not {'):\n', ' or', '=', '1', '\n\n\n'} & spelled


@pytest.mark.parametrize('kind', ['char', 'bpe'])
def test_a_text_is_taken_by_its_own_tokens(kind):
    tok, text = tokenizer(kind), '{"name": "é", "values": [1.5, true]}'
    matchers = Grammar('json', tok).begin([()] * 1)
    for token in tok.encode(text):
        matchers.consume(np.array([token]), np.ones(1, bool))
    assert matchers.finished()[0]


def test_own_grammar_from_a_file(tmp_path):
    path = tmp_path / 'roman.lark'
    path.write_text('start: "X"{0,3} (DIGIT | "IX") // no 4\nDIGIT: /VI{0,3}|I{1,3}/\n')
    grammar = Grammar(str(path), BYTES)
    assert (
        takes(grammar, 'XXVII') and takes(grammar, 'IX') and not takes(grammar, 'XXXX') and not takes(grammar, 'IIII')
    )
    dashes = Tokenizer('char', ('X', 'V'), has_end=False)
    matchers = Grammar(str(path), dashes).begin([()] * 2)
    matchers.consume(np.array([1, 1]), np.ones(2, bool))
    assert not matchers.allowed().any()  # V is a whole text, and of what could follow there is no token
    path.write_text('start: "X" "Y"\n')
    matchers = Grammar(str(path), dashes).begin([()] * 2)
    matchers.consume(np.array([0, 0]), np.ones(2, bool))
    with pytest.raises(UserError, match="after 'X': the tokenizer has no token that can follow"):
        matchers.allowed()
    assert not matchers.allowed(np.zeros(2, bool)).any()


@pytest.mark.parametrize('name, text, words', [
    ('jsn', None, "'jsn'; did you mean json?"),
    ('rules.txt', None, r'known: FILE.lark, arithmetic, json, python'),
    ('none.lark', None, 'none.lark: cannot be read: No such file'),
    ('bad.lark', b'start: foo "x"\n', r'bad.lark: at 1\(8\): unknown name: "foo"'),
    ('bad.lark', b'other: "x"\n', 'no start'),
    ('bad.lark', b'start: /(/\n', 'bad.lark: '),
    ('bad.lark', b'', 'bad.lark: '),
    ('bad.lark', b'\xff', 'bad.lark, line 1: is not UTF-8; if it is latin1: iconv'),
])  # fmt: skip
def test_bad_names_and_files(tmp_path, monkeypatch, name, text, words):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=words) as found:
        Grammar(name, BYTES)
    assert len(str(found.value).splitlines()) == 1 and str(found.value).startswith('grammar')


def test_a_file_may_be_compressed_or_begin_with_a_mark(tmp_path):
    rules = b'\xef\xbb\xbfstart: "a"+ "\xc3\xa9"\r\n'
    files = {'[a].lark': rules, 'b.lark.gz': gzip.compress(rules), 'c.lark.xz': lzma.compress(rules)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        matchers = Grammar(str(tmp_path / name), BYTES).begin([()])
        assert np.flatnonzero(matchers.allowed(np.ones(1, bool))[0]).tolist() == [ord('a')], name


def test_tokenizers_that_do_not_fit():
    with pytest.raises(UserError, match='words cannot spell every text'):
        Grammar('json', Tokenizer('word', ('<unk>', 'a'), has_end=False))
    with pytest.raises(UserError, match='trained with lack \'"'):
        Grammar('json', Tokenizer('char', tuple('abc'), has_end=False))
