"""CodeBLEU: each of its shares by hand, and the cases that published implementations get wrong."""

import ast
import math

import pytest

from aigc_jax.metrics import code_bleu, data_flow, written
from aigc_jax.metrics.data_flow import COMES, COMPUTED

CODE = 'def f(x):\n    y = x + 1\n    return y\n'


def values(ours: list[str], wanted: list[str]) -> dict[str, float]:
    return {name: row['value'] for name, row in code_bleu.scores(ours, wanted).items()}


def flow(text: str) -> list[data_flow.Item]:
    return data_flow.items(ast.parse(text))


def test_ngrams_by_hand():
    """Of `return` a . b . c, 5 of 6 unigrams agree, 3 of 5 of two tokens, 1 of 4 of three, and none of four, for which
    0.1 stands. A keyword counts for 5."""
    mean = lambda *shares: 100 * math.prod(shares) ** 0.25
    found = values(['return a.b.c'], ['return a.d.c'])
    assert found['code_ngrams'] == pytest.approx(mean(5 / 6, 3 / 5, 1 / 4, 0.1 / 3))
    assert found['code_keywords'] == pytest.approx(mean(9 / 10, 3 / 5, 1 / 4, 0.1 / 3))
    # All that is written agrees, but it is 4 of 6 tokens, so that only the brevity penalty is left: of both.
    short = values(['a.b.'], ['a.b.c.d'])
    assert short['code_ngrams'] == pytest.approx(short['code_keywords']) == pytest.approx(100 * math.exp(1 - 7 / 4))
    # Precision and not recall: what is written besides lowers both alike where there is no keyword.
    long = values(['a.b.c.d.e'], ['a.b.c'])
    wanted = mean(5 / 9, 4 / 8, 3 / 7, 2 / 6)
    assert long['code_ngrams'] == pytest.approx(long['code_keywords']) == pytest.approx(wanted)


def test_subtrees_by_hand():
    # Module, Assign, BinOp, Assign, Call; of which an Assign and its BinOp agree, whatever the names and numbers are.
    assert values(['u = v + 2\nw = g(b, c)'], ['x = a + 1\ny = f(b)'])['code_syntax'] == 40
    # Module, Expr, BinOp, Expr, BinOp; each is matched once, so 2 of 5 agree, and not 4.
    assert values(['a + b'], ['a + b\nc + d'])['code_syntax'] == 40
    assert values(['a - b'], ['a + b'])['code_syntax'] == values(['a + "b"'], ['a + 1'])['code_syntax'] == 0
    with_docstring = 'def f(x):\n    """What it is."""\n    return x\n'
    assert values([with_docstring], ['def f(x):\n    return x  # so\n'])['code_syntax'] == 100
    # Of a corpus, and not a mean of shares: 2 of 5 and 3 of 3.
    assert values(['a + b', 'a + b'], ['a + b\nc + d', 'a + b'])['code_syntax'] == pytest.approx(100 * 5 / 8)


def test_data_flow_by_hand():
    assert flow(CODE) == [(0, COMES, ()), (1, COMPUTED, (0,)), (0, COMES, (0,)), (1, COMES, (1,))]
    assert flow(CODE.replace('y', 'other')) == flow(CODE)
    # Of these four `z = x + 1` has the first and the third; its z goes nowhere, but is computed from x.
    assert values(['def f(x):\n    z = x + 1\n    return 2\n'], [CODE])['code_dataflow'] == 75
    # A use that no flow reaches: the other branch; and one that the round before reaches.
    assert flow('if a:\n    b = 1\nelse:\n    b\n') == [] != flow('b = 1\nb\n')
    assert flow('while a:\n    b\n    b = a\n') == [
        (0, COMES, (0,)), (1, COMES, (1,)), (1, COMPUTED, (0,)), (0, COMES, (0,))
    ]  # fmt: skip
    # After either branch; pairwise; of itself; in a scope of its own.
    assert flow('if a:\n    c = a\nelse:\n    c = b\nc')[-1] == (1, COMES, (1,))
    assert flow('a, b = c, d') == [(1, COMPUTED, (0,)), (3, COMPUTED, (2,)), (0, COMES, ()), (2, COMES, ())]
    assert flow('a = 1\na += b')[1] == (0, COMPUTED, (0, 1))
    assert flow('[a for a in b]\na') == [(0, COMES, (0,)), (0, COMPUTED, (1,)), (1, COMES, ())]
    assert flow('match a:\n    case C(b, [*c]) as d:\n        d') == [
        (0, COMES, ()), (1, COMPUTED, (0,)), (2, COMPUTED, (0,)), (3, COMPUTED, (0,)), (3, COMES, (3,))
    ]  # fmt: skip


def test_code_bleu_is_the_mean_of_the_shares_that_there_are():
    found = values(['x = a + 1\nz = x'], ['x = a + 1\ny = f(x)'])
    assert found['code_bleu'] == pytest.approx(sum(found[name] for name in code_bleu.NAMES[1:5]) / 4)
    assert {*found} == {*code_bleu.NAMES} == {*written.names(True)} - {*written.names()}
    # Without flow in any reference there is no such share; an exact copy has 100, however short.
    assert values(['pass', 'a'], ['pass', 'a']) == {
        'code_bleu': 100, 'code_ngrams': 100, 'code_keywords': 100, 'code_syntax': 100, 'code_parses': 1
    }  # fmt: skip
    # With it a candidate without any has 0, and not 1.
    assert values(['pass'], [CODE])['code_dataflow'] == 0


def test_texts_that_do_not_parse(capsys):
    broken = 'def f(x):\n    y = x +'
    found = values([broken, CODE], [CODE, CODE])
    assert found['code_syntax'] == found['code_dataflow'] == 50 and found['code_parses'] == 0.5
    assert 50 < found['code_ngrams'] < 100
    assert values([''], [CODE])['code_bleu'] == 0
    assert values(['(' * 5000, 'a' + '+a' * 5000], [CODE, CODE])['code_parses'] == 0
    loops = ''.join('    ' * i + f'for a in a{i}:\n' for i in range(60)) + '    ' * 60 + 'pass'
    assert values([loops], [CODE])['code_parses'] == 1  # in a second, and not 2⁶⁰
    capsys.readouterr()
    assert written.scores([CODE, CODE], [broken, CODE], [True, True])['code_bleu'] == {'value': 100, 'n': 1}
    # A docstring of one word is Python, too, and is not what is measured.
    assert written.scores([CODE, 'None'], [CODE, 'Deprecated'], [True, False])['code_bleu'] == {'value': 100, 'n': 1}
    assert [*written.scores(['None'], ['Deprecated'], [False])] == [*written.scores(['None'], ['Deprecated'])]
    assert 'code_bleu: 1 of 2 targets are no whole Python, and are left out' in capsys.readouterr().err
    assert not code_bleu.scores([CODE], [broken])
