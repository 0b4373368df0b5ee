"""What a language model must beat: an n-gram model with modified Kneser-Ney smoothing, and general compressors."""

import functools
import gzip
import lzma
from collections.abc import Container

import numpy as np
import zstandard

from aigc_jax.core import progress
from aigc_jax.core.schema import Field

# Of `eval`, of text.
FIELDS = {
    'ngram_order': Field(
        int, 5, least=0,
        doc='of the baseline in the final evaluation, which is given the training text; 0: there are no baselines',
    )
}  # fmt: skip
_MIXTURES = 50
_LEAST_DISCOUNT = 0.1


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1999).

    p_n(w given h) = max(c(hw) − D, 0) / c(h) + γ(h) p_{n−1}(w given h'), D by whether c(hw) is 1, 2, or more, γ such
    that it sums to one, h' without its first token; c are counts at the highest order, and below it the numbers of
    different tokens that stand before. p_0 is uniform over the vocabulary. D is 0.1 or more, so that γ is above 0 and
    so is p of every token: small texts have estimates of 0 and less.
    """

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int):
        """tokens (N,) of the training text, N > order >= 1."""
        tokens = np.asarray(tokens, np.int64)
        self._vocab_size, self._tables = vocab_size, []
        self._cumulative = functools.lru_cache(maxsize=1 << 14)(self._cumulative)  # contexts come again and again
        # An n-gram is known by its place among the sorted keys, key = place of its first n − 1 tokens · V + last token.
        places, uniques = [np.zeros(len(tokens) + 1, np.int64)], []
        for n in progress.each(range(1, order + 1), f'{order}-gram'):
            keys = places[-1][: len(tokens) - n + 1] * vocab_size + tokens[n - 1 :]
            keys, first, place, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
            uniques.append((keys, first, count))
            places.append(place)
        for n, (keys, _, count) in enumerate(uniques, 1):
            if n < order:  # the n-gram behind the first token of each different (n + 1)-gram
                count = np.bincount(places[n][uniques[n][1] + 1], minlength=len(keys))
            self._tables.append(_table(keys, count, vocab_size, len(uniques[n - 2][0]) if n > 1 else 1))

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """−log p of each token given those before it in `tokens`, (N,) float64."""
        tokens = np.asarray(tokens, np.int64)
        p = np.full(len(tokens), 1 / self._vocab_size)
        context = np.zeros(len(tokens) + 1, np.int64)  # place of the n − 1 tokens from each token on; −1: never seen
        for n, (keys, discounted, total, gamma) in enumerate(self._tables, 1):
            h = context[: len(tokens) - n + 1]
            wanted = h * self._vocab_size + tokens[n - 1 :]
            found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = (h >= 0) & (keys[found] == wanted)
            seen = (h >= 0) & (total[h] > 0)
            higher = np.where(known, discounted[found], 0.0) / np.maximum(total[h], 1) + gamma[h] * p[n - 1 :]
            p[n - 1 :] = np.where(seen, higher, p[n - 1 :])
            context = np.where(known, found, -1)
        return -np.log(p)

    def distribution(self, context: np.ndarray) -> np.ndarray:
        """p of each token after those of `context`, (V,) float64."""
        context = np.asarray(context, np.int64)[max(0, len(context) - len(self._tables) + 1) :]
        p = np.full(self._vocab_size, 1 / self._vocab_size)
        places = np.zeros(len(context) + 1, np.int64)  # of the n − 1 tokens from each token on
        for n, (keys, discounted, total, gamma) in enumerate(self._tables[: len(context) + 1], 1):
            h = places[-1]  # of the last n − 1 tokens
            if h < 0 or not total[h]:
                break  # never seen, and so no longer one
            own = slice(*np.searchsorted(keys, [h * self._vocab_size, (h + 1) * self._vocab_size]))
            p = gamma[h] * p
            p[keys[own] % self._vocab_size] += discounted[own] / total[h]
            wanted = places[:-1] * self._vocab_size + context[n - 1 :]
            found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            places = np.where((places[:-1] >= 0) & (keys[found] == wanted), found, -1)
        return p

    def sample(
        self, prompt: np.ndarray, most: int, ends: Container[int], temperature: float, random: np.random.Generator
    ) -> list[int]:
        """At most so many tokens that go on from `prompt`, up to the first of `ends`, which is left out."""
        written, context = [], tuple(int(token) for token in prompt)
        for _ in range(most):
            context = context[max(0, len(context) - len(self._tables) + 1) :]
            token = int(np.searchsorted(self._cumulative(context, temperature), random.random(), side='right'))
            if token in ends:
                break
            written.append(token)
            context = (*context, token)
        return written

    def _cumulative(self, context: tuple[int, ...], temperature: float) -> np.ndarray:
        p = self.distribution(np.array(context, np.int64))
        p = (p / p.max()) ** (1 / temperature) if temperature else p == p.max()
        cumulative = np.cumsum(p)
        return cumulative / cumulative[-1]


def _table(keys, count, vocab_size, num_contexts):
    """(sorted keys, max(c − D, 0) of each, c(h) and γ(h) of each context)."""
    n1, n2, n3, n4 = (int((count == k).sum()) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.0
    ratio = lambda a, b: a / b if b else 0.0
    discounts = np.array([0, 1 - 2 * y * ratio(n2, n1), 2 - 3 * y * ratio(n3, n2), 3 - 4 * y * ratio(n4, n3)])
    discounts[1:] = np.maximum(discounts[1:], _LEAST_DISCOUNT)  # small texts have estimates below
    discount = discounts[np.minimum(count, 3)]
    context = keys // vocab_size
    total = np.bincount(context, count, num_contexts)
    taken = np.bincount(context, discount, num_contexts)
    return keys, count - discount, total, np.where(total > 0, taken / np.maximum(total, 1), 1.0)


def mixture_nats(ours: np.ndarray, theirs: np.ndarray, part: np.ndarray) -> np.ndarray:
    """−log p of each part of a text given those before it, (G,), under λ p_ours + (1 − λ) p_theirs with a uniform prior
    over _MIXTURES values of λ.

    The prior is paid for in the sum, so no λ is chosen by what is scored. ours, theirs: −log p of each token, (N,);
    part: that it belongs to, (N,) ascending from 0.
    """
    weights = (np.arange(_MIXTURES) + 0.5) / _MIXTURES
    by_weight = [np.bincount(part, np.logaddexp(np.log(w) - ours, np.log1p(-w) - theirs)) for w in weights]
    so_far = np.cumsum(by_weight, axis=1)  # log p of all up to each part
    return np.diff(np.log(_MIXTURES) - np.logaddexp.reduce(so_far), prepend=0.0)


def _zstd(data: bytes) -> bytes:
    """Zstandard (RFC 8878) at its highest level, with long-distance matching, in a window as long as `data`."""
    window_log = min(max(len(data).bit_length(), zstandard.WINDOWLOG_MIN), zstandard.WINDOWLOG_MAX)
    how = zstandard.ZstdCompressionParameters.from_level(
        zstandard.MAX_COMPRESSION_LEVEL, source_size=len(data), window_log=window_log, enable_ldm=True
    )
    return zstandard.ZstdCompressor(compression_params=how).compress(data)


COMPRESSORS = {
    'gzip': lambda data: gzip.compress(data, 9, mtime=0),
    'xz': lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    'zstd': _zstd,
}


def compressed_bits(name: str, training: bytes, held_out: bytes) -> int:
    """Bits that `held_out` adds to the compressed training text. gzip looks back 32 KiB alone."""
    longer, shorter = progress.in_threads(COMPRESSORS[name], [training + held_out, training], name)
    return 8 * (len(longer) - len(shorter))
