"""Metrics of texts against their definitions, written out or of NLTK; and the rows of a final evaluation."""

import json
import math
import pathlib

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from aigc_jax.metrics import text as text_metrics
from aigc_jax.metrics.python_code import compiles, may_become, parses
from aigc_jax.reports import tables
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.text_samples import TextSamples
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

ROOT = pathlib.Path(__file__).parents[2]


def random_texts(count, length, num_words, seed=0):
    random = np.random.default_rng(seed)
    sizes = random.integers(length // 2, length + 1, count)
    return [[f'w{i}' for i in np.minimum(random.zipf(1.4, size), num_words)] for size in sizes]


def grams(text, n):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def test_words_are_runs_of_letters_and_single_marks():
    assert text_metrics.words("it's x_1 += 3.\n  ☕ être") == ['it', "'", 's', 'x_1', '+', '=', '3', '.', '☕', 'être']


@pytest.mark.parametrize('n', [1, 2, 3, 4])
def test_distinct_and_repetition_are_their_definitions(n):
    texts = [*random_texts(20, 30, 9), [], ['w1', 'w2']]
    every = [gram for text in texts for gram in grams(text, n)]
    assert text_metrics.distinct(texts, n) == len(set(every)) / len(every)
    shares = [1 - len(set(grams(text, n))) / len(grams(text, n)) for text in texts if grams(text, n)]
    assert text_metrics.repetition(texts, n) == pytest.approx(np.mean(shares), rel=1e-12)
    assert text_metrics.distinct([['a'] * 10], n) == 1 / (11 - n)
    assert text_metrics.repetition([list('abcdefgh')], n) == 0
    assert math.isnan(text_metrics.distinct([['a'] * (n - 1)], n)) and math.isnan(text_metrics.repetition([[]], n))


@pytest.mark.parametrize('n', [1, 2, 4])
@pytest.mark.parametrize('num_words', [5, 40, 10_000])
def test_self_bleu_is_that_of_nltk(n, num_words):
    texts = [*random_texts(15, 24, num_words, seed=num_words), ['w1'], ['w1', 'w2', 'w3'], ['nowhere', 'else'], []]
    smoothing, weights = SmoothingFunction().method1, (1 / n,) * n
    expected = [
        sentence_bleu(texts[:i] + texts[i + 1 :], text, weights, smoothing) if text else 0
        for i, text in enumerate(texts)
    ]
    assert text_metrics.self_bleu(texts, n) == pytest.approx(np.mean(expected), rel=1e-9)


def test_self_bleu_of_what_is_alike_and_of_what_has_nothing_in_common():
    text = 'to be or not to be that is'.split()
    assert text_metrics.self_bleu([text, text, text]) == pytest.approx(1)
    assert text_metrics.self_bleu([['a', 'b'], ['c', 'd']]) == 0
    assert math.isnan(text_metrics.self_bleu([text]))


@pytest.mark.parametrize('n', [8, 16, 32])
def test_copied_is_its_definition(n, monkeypatch):
    monkeypatch.setattr(text_metrics, '_CHUNK', 1000)  # the training text has several
    random = np.random.default_rng(0)
    training = random.choice(list(b'ab\x00\xff'), 5000).astype(np.uint8).tobytes()
    own = [random.integers(0, 256, 100).astype(np.uint8).tobytes() for _ in range(5)]
    texts = [*own, training[980:1090], own[0] + training[:40] + own[1], training[:10], own[0][:5], b'', training[-n:]]
    every = [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]
    share, whole = text_metrics.copied(texts, training, n)
    assert share == np.mean([gram in training for gram in every]) and 0 < share < 1
    assert whole == np.mean([bool(text) and text in training for text in texts]) == 3 / len(texts)
    assert math.isnan(text_metrics.copied([b'a'], training, n)[0])
    assert text_metrics.copied(texts[:2], b'', n) == (0, 0)


def test_a_text_whose_pieces_are_known_is_not_yet_copied():
    training = b'the first line of it\n' + b'-' * 40 + b'first line of it and more\n'
    text = b'the first line of it and more\n'  # each 16-gram stands there, the whole does not
    assert text_metrics.copied([text], training, 16) == (1, 0)


def test_python_is_told_from_what_is_none():
    assert parses('def f(x):\n    return x\n') and compiles('def f(x):\n    return x\n')
    assert parses('return 1\n') and not compiles('return 1\n')
    for text in ('x = = 1\n', 'x = (\n', 'def f():\n', '\0', '(' * 5000, '\ud800'):
        assert not parses(text) and not compiles(text), text[:9]
    for text in ('', 'x = 1\n', 'x = (1,\n', '"""Doc\n', 'try:\n    x\n', 'class A:\n    def f(self):\n', '@f\n'):
        assert may_become(parses, text) and may_become(compiles, text), text
    for text in ('x = = 1\n', 'else:\n', ' x\n', 'if a:\n        b\n    c\n', 'x = ")\n', 'x = )\n'):
        assert not may_become(parses, text) and not may_become(compiles, text), text
    assert may_become(parses, 'return 1\n') and not may_become(compiles, 'return 1\n')


def test_a_text_that_is_cut_is_judged_by_its_whole_lines():
    texts = ['x = 1\ny = (', 'x = 1\ny = )\nz', 'x = 1', 'x = 1', 'def f():\n', 'def f():\n']
    is_cut = [True, True, False, True, False, True]
    expected = [True, False, True, False, False, True]
    for text, cut, right in zip(texts, is_cut, expected, strict=True):
        for what in (parses, compiles):
            assert text_metrics.python_share(what, [text], [cut]) == right, text
    assert text_metrics.python_share(parses, texts, is_cut) == 0.5
    for cut in (True, False):
        assert [text_metrics.python_share(what, ['return x\n'], [cut]) for what in (parses, compiles)] == [1, 0]


def test_held_out_text_is_cut_where_documents_begin():
    tokens = np.array([9, 1, 2, 9, 3, 4, 9, 5, 9, 6])
    assert text_metrics.held_out_starts(tokens, 9, 2).tolist() == [1, 7]
    assert text_metrics.held_out_starts(tokens, 9, 5).tolist() == text_metrics.held_out_starts(tokens, None, 5).tolist()
    assert text_metrics.held_out_starts(tokens, None, 5).tolist() == [0, 2, 4, 6, 8]
    assert text_metrics.until_end(tokens[1:], 9).tolist() == [1, 2]
    for end in (9, None):
        assert text_metrics.until_end(tokens[4:6], end).tolist() == [3, 4]


def test_the_final_evaluation_scores_samples_beside_held_out_text(tmp_path):
    for i in range(40):
        (tmp_path / f'{i}.py').write_text(f'"""Module {i}."""\n\nimport os\n\n\ndef f{i}(x):\n    return x + {i}\n' * 3)
    overrides = [('data.name', f'code:{tmp_path}'), ('total_steps', '20'), ('eval.sample_tokens', '40')]
    overrides += [
        ('data.valid_percent', '20.0'),
        ('data.test_percent', '20.0'),
        ('eval.num_samples', '8'),
        ('eval.num_shown', '8'),
    ]
    config = config_lib.load(f'{ROOT}/configs/gpt.py:smoke', overrides)
    train(config, Run(tmp_path / 'run'))
    written = json.loads((tmp_path / 'run/evaluation.json').read_text())
    found = {name.removeprefix('samples/'): row for name, row in written.items() if name.startswith('samples/')}
    names = [*(f'distinct_{n}' for n in range(1, 5)), 'self_bleu_4', 'repetition_4', 'copied_16', 'copied_32']
    assert list(found) == [*names, 'copied_whole', 'parses', 'compiles'] and all(
        row['n'] == 8 for row in found.values()
    )
    assert found['parses']['held_out'] == found['compiles']['held_out'] == 1
    assert found['copied_16']['held_out'] > 0.3 > found['copied_16']['value']
    assert found['self_bleu_4']['held_out'] > 0.5
    experiment, state = Run(tmp_path / 'run').open()
    again = TextSamples(Evaluator(experiment)).measure(state, 0, 'test')
    for name, row in again.items():
        assert row['value'] == pytest.approx(written[name]['value'], abs=1e-12)
    text = tables.table(again)
    assert 'held-out text' in text and 'perfect' not in text
    rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert [row['split'] for row in rows if 'samples/parses' in row] == ['final']
