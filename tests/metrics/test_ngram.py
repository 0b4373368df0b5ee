"""The n-gram baseline against its formula written out, as a distribution, and on text with a known entropy."""

import gzip
import lzma
import math
import pathlib

import numpy as np
import pytest
import zstandard

from aigc_jax.metrics.ngram import COMPRESSORS, KneserNey, compressed_bits, mixture_nats

SHAKESPEARE = pathlib.Path(__file__).parents[3] / 'shared/data/tinyshakespeare/input.txt'


def written_out(tokens, order, vocab_size):
    """p(w given the last tokens of h), by dictionaries, from the equations alone."""
    grams = {n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] for n in range(1, order + 2)}
    counts = {}
    for n in range(1, order + 1):
        if n == order:
            counts[n] = {g: grams[n].count(g) for g in set(grams[n])}
        else:
            before = {}
            for g in set(grams[n + 1]):
                before.setdefault(g[1:], set()).add(g[0])
            counts[n] = {g: len(before.get(g, ())) for g in set(grams[n])}

    def discount(n, c):
        if c == 0:
            return 0.0
        n1, n2, n3, n4 = (sum(v == k for v in counts[n].values()) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2) if n1 else 0.0
        k = min(c, 3)
        upper, lower = {1: (n2, n1), 2: (n3, n2), 3: (n4, n3)}[k]
        return max(k - (k + 1) * y * (upper / lower if lower else 0.0), 0.1)

    def p(w, h, n):
        if n == 0:
            return 1 / vocab_size
        h = tuple(h[len(h) - n + 1 :]) if n > 1 else ()
        own = {g[-1]: c for g, c in counts[n].items() if g[:-1] == h}
        total = sum(own.values())
        lower = p(w, h[1:], n - 1)
        if not total:
            return lower
        gamma = sum(discount(n, c) for c in own.values()) / total
        return (own.get(w, 0) - discount(n, own.get(w, 0))) / total + gamma * lower

    return lambda w, h: p(w, h, min(order, len(h) + 1))


@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_it_is_the_formula_and_sums_to_one(order):
    random = np.random.default_rng(order)
    tokens = random.choice(4, 60, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    model, reference = KneserNey(tokens, order, 5), written_out(tokens, order, 5)
    held_out = random.integers(0, 5, 30).tolist()  # token 4 was never seen
    expected = [-math.log(reference(w, held_out[:i])) for i, w in enumerate(held_out)]
    np.testing.assert_allclose(model.nats(held_out), expected, rtol=1e-10)
    for history in ([0, 1, 0, 0], [4, 4, 4, 4], [3, 2, 1, 0]):
        total = sum(math.exp(-model.nats([*history, w])[-1]) for w in range(5))
        assert total == pytest.approx(1, rel=1e-10)


def test_every_text_has_a_probability_however_small_the_training_text_is():
    """Discounts are estimated below 0 for some of these, and at 0 a context would leave nothing to what it lacks."""
    for seed in range(200):
        tokens = np.random.default_rng(seed).integers(0, 6, 200)
        model = KneserNey(tokens, 2, 6)
        every = np.array([w for h in range(6) for v in range(6) for w in (h, v)])
        assert np.isfinite(model.nats(every)).all(), seed
        for token in range(6):
            p = model.distribution([token])
            assert p.min() > 0 and p.sum() == pytest.approx(1)


def test_it_learns_a_markov_chain():
    random, tokens = np.random.default_rng(0), [0]
    rows = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8], [0.5, 0.0, 0.5]])
    for _ in range(20_000):
        tokens.append(int(random.choice(3, p=rows[tokens[-1]])))
    left = np.linalg.matrix_power(rows, 200)[0]
    entropy = -sum(left[i] * p * math.log(p) for i in range(3) for p in rows[i] if p)
    found = KneserNey(tokens[:15_000], 3, 3).nats(tokens[15_000:]).mean()
    assert found == pytest.approx(entropy, abs=0.02)


def test_a_mixture_costs_little_more_than_its_better_half_and_may_beat_both():
    random = np.random.default_rng(0)
    good, bad, parts = np.full(1000, 1.0), np.full(1000, 5.0), np.arange(1000) // 300
    assert mixture_nats(good, good, parts) == pytest.approx([300, 300, 300, 100])
    # The least λ for the worse one is 1 %, and the prior ln 50.
    assert 1000 < mixture_nats(good, bad, parts).sum() < 1000 + 20
    which = random.random(1000) < 0.5
    ours, theirs = np.where(which, 0.5, 3.0), np.where(which, 3.0, 0.5)
    (whole,) = mixture_nats(ours, theirs, np.zeros(1000, int))
    assert whole < 0.8 * min(ours.sum(), theirs.sum())
    by_part = mixture_nats(ours, theirs, parts)
    assert by_part.sum() == pytest.approx(whole)
    assert by_part[:2].sum() == pytest.approx(mixture_nats(ours[:600], theirs[:600], np.zeros(600, int))[0])


def test_compressors_see_the_training_text():
    random = np.random.default_rng(0).bytes(3000)
    assert COMPRESSORS.keys() == {'gzip', 'xz', 'zstd'}
    for name in COMPRESSORS:
        assert compressed_bits(name, b'', random) > 7.9 * len(random)
        assert compressed_bits(name, random, random) < 0.5 * len(random)


def test_xz_and_zstd_remember_far_more_than_gzip():
    text = np.random.default_rng(0).bytes(1_500_000)
    beginning = text[:20_000]
    assert compressed_bits('gzip', text, beginning) > 7.9 * len(beginning)
    for name in ('xz', 'zstd'):
        assert compressed_bits(name, text, beginning) < 0.5 * len(beginning)


def test_what_is_compressed_becomes_the_text_again():
    undo = {'gzip': gzip.decompress, 'xz': lzma.decompress, 'zstd': zstandard.decompress}
    for name, compress in COMPRESSORS.items():
        for text in (b'', b'a', b'to be or not to be, ' * 200):
            assert undo[name](compress(text)) == text


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason='no Tiny Shakespeare on this machine')
def test_the_value_known_of_tiny_shakespeare():
    """A 7-gram of characters, the last 10 % held out: 1.5165 nats, as measured with another implementation."""
    text = SHAKESPEARE.read_text()
    index = {letter: i for i, letter in enumerate(sorted(set(text)))}
    tokens = np.array([index[letter] for letter in text])
    cut = round(len(tokens) * 0.9)
    assert KneserNey(tokens[:cut], 7, 65).nats(tokens[cut:]).mean() == pytest.approx(1.5165, abs=5e-4)
