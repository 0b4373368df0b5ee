"""Metrics of generated texts: how much they differ, repeat themselves, and copy the text that was trained on.

Words are runs of letters, digits and underscores, and single other marks, so that models with different tokenizers
compare. n-grams never cross from one text to the next.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aigc_jax.core.schema import Field
from aigc_jax.metrics.python_code import may_become

# Of `eval`, of text.
FIELDS = {
    'num_samples': Field(
        int, 200, least=0,
        doc='for the metrics of samples in the final evaluation, or what the held-out text allows; 0: none',
    )
}  # fmt: skip
_WORD = re.compile(r'\w+|[^\w\s]')
_CHUNK = 1 << 24  # bytes of the training text that are hashed at once
_SMOOTHING = 0.1  # counted for an n-gram order without a match, as Texygen has it (method 1 of Chen & Cherry 2014)


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def distinct(texts: Sequence[Sequence], n: int) -> float:
    """Different n-grams of all texts together, as a share of all n-grams (Li et al. 2016, section 5.2); nan: none."""
    *_, (gram, _) = _grams(texts, n)
    return len(np.unique(gram)) / len(gram) if len(gram) else math.nan


def repetition(texts: Sequence[Sequence], n: int) -> float:
    """Share of the n-grams of a text that stand in it before (seq-rep-n, Welleck et al. 2020, section 6.1), averaged
    over the texts of n words or more; nan: there are none."""
    *_, (gram, owner) = _grams(texts, n)
    total = np.bincount(owner, minlength=len(texts))
    different = np.bincount(np.unique(np.stack([owner, gram]), axis=1)[0], minlength=len(texts))
    return float(np.mean(1 - different[total > 0] / total[total > 0])) if total.any() else math.nan


def self_bleu(texts: Sequence[Sequence], n: int = 4) -> float:
    """BLEU-n (Papineni et al. 2002) of each text, all others its references, averaged (Zhu et al. 2018, section 3.4).

    Equal weights; an order without a match counts 0.1 matches, a text without a common word is 0. 1: all are alike.
    nan: there are less than two texts.
    """
    if len(texts) < 2:
        return math.nan
    count, log_precision = len(texts), 0.0
    for k, (gram, owner) in enumerate(_grams(texts, n), 1):
        pair, times = np.unique(np.stack([gram, owner]), axis=1, return_counts=True)
        matched = np.minimum(times, _most_elsewhere(pair[0], pair[1], times))
        matches = np.bincount(pair[1], matched, minlength=count)
        total = np.bincount(owner, minlength=count)
        if k == 1:
            common = matches > 0
        log_precision = log_precision + np.log(np.where(matches, matches, _SMOOTHING) / np.maximum(total, 1)) / n
    length = np.array([len(text) for text in texts])
    penalty = np.array([_brevity(length[i], np.delete(length, i)) for i in range(count)])
    return float(np.mean(np.where(common, penalty * np.exp(log_precision), 0)))


def _most_elsewhere(gram: np.ndarray, owner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """How often each n-gram stands in that other text which has it most often; (gram, owner) pairs are different."""
    order = np.lexsort((times, gram))
    last = np.flatnonzero(np.diff(gram[order], append=-1))  # of each n-gram, where it is most frequent
    most, holder, second = np.zeros((3, gram.max(initial=-1) + 1), np.int64)
    most[gram[order[last]]], holder[gram[order[last]]] = times[order[last]], owner[order[last]]
    before = last[np.diff(last, prepend=-1) > 1] - 1
    second[gram[order[before]]] = times[order[before]]
    return np.where(holder[gram] == owner, second[gram], most[gram])


def _brevity(length: int, others: np.ndarray) -> float:
    """exp(1 − r / c) for a text of c words, r those of the reference nearest to it in length; 1 where c > r."""
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length > nearest else math.exp(1 - nearest / length) if length else 0.0


def _grams(texts: Sequence[Sequence], n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For k = 1 … n: (a number for each k-gram, the same for the same, and the place of the text that has it)."""
    index: dict = {}
    flat = np.array([index.setdefault(word, len(index)) for text in texts for word in text], np.int64)
    length = np.array([len(text) for text in texts], np.int64)
    owner = np.repeat(np.arange(len(texts)), length)
    left = np.repeat(np.cumsum(length), length) - np.arange(len(flat))  # words from each one to the end of its text
    place = np.zeros(len(flat), np.int64)
    for k in range(1, n + 1):
        here = np.flatnonzero(left >= k)
        _, place[here] = np.unique(place[here] * len(index) + flat[here + k - 1], return_inverse=True)
        yield place[here], owner[here]


def copied(texts: Sequence[bytes], training: bytes, n: int) -> tuple[float, float]:
    """(share of the n-grams of bytes that stand in the training text, share of the texts that stand in it whole).

    n: a power of two. n-grams are compared by 64 bits of a hash, whole texts themselves. nan for the first where no
    text has n bytes.
    """
    ours = [_hashes(np.frombuffer(text, np.uint8), n) for text in texts]
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *ours]))
    found = np.zeros(len(wanted), bool)
    near = np.zeros(1 << 20, bool)  # by the highest 20 bits: one look-up leaves few of the training text's
    near[wanted >> np.uint64(44)] = True
    whole = np.frombuffer(training, np.uint8)
    for begin in range(0, max(len(whole) - n + 1, 0), _CHUNK):
        theirs = _hashes(whole[begin : begin + _CHUNK + n - 1], n)
        found |= np.isin(wanted, theirs[near[theirs >> np.uint64(44)]])
    known = [found[np.searchsorted(wanted, hashes)] for hashes in ours]
    # Where an n-gram is not there the text is not, so few texts are looked for.
    there = [bool(text) and mask.all() and text in training for mask, text in zip(known, texts, strict=True)]
    joined = np.concatenate([np.zeros(0, bool), *known])
    return float(joined.mean()) if len(joined) else math.nan, float(np.mean(there)) if there else math.nan


def _hashes(data: np.ndarray, n: int) -> np.ndarray:
    """uint64 of each n-gram of uint8 `data`, from those of its halves, (max(len(data) − n + 1, 0),)."""
    found, width = data.astype(np.uint64), 1
    while width < n:
        found = found[:-width] * np.uint64(0x9E3779B97F4A7C15) + found[width:]  # odd: 2⁶⁴ divided by the golden ratio
        found ^= found >> np.uint64(29)
        width *= 2
    return found if len(data) >= n else found[:0]


def text_metrics(texts: Sequence[str], training: bytes) -> dict[str, float]:
    """distinct_1 … distinct_4, self_bleu_4, repetition_4 of words; copied_16, copied_32 of bytes; copied_whole."""
    by_words, by_bytes = [words(text) for text in texts], [text.encode(errors='replace') for text in texts]
    (copied_16, _), (copied_32, whole) = (copied(by_bytes, training, n) for n in (16, 32))
    return {
        **{f'distinct_{n}': distinct(by_words, n) for n in range(1, 5)},
        'self_bleu_4': self_bleu(by_words),
        'repetition_4': repetition(by_words, 4),
        'copied_16': copied_16,
        'copied_32': copied_32,
        'copied_whole': whole,
    }


def python_share(what: Callable[[str], bool], texts: Sequence[str], is_cut: Sequence[bool]) -> float:
    """Share of the texts that `code.parses` or `code.compiles`. Of one that was cut off by length, the lines up to the
    last whole one must do so, or may by what would follow; a text without a word in these lines does not."""

    def one(text: str, cut: bool) -> bool:
        text = text[: text.rfind('\n') + 1] if cut else text
        return bool(text.strip()) and (may_become(what, text) if cut else what(text))

    return float(np.mean([one(text, cut) for text, cut in zip(texts, is_cut, strict=True)])) if len(texts) else math.nan


def held_out_starts(tokens: np.ndarray, end: int | None, n: int) -> np.ndarray:
    """(n,) places to cut held-out text at, to compare n samples with: where documents begin, if so many do, else
    evenly spread."""
    begins = np.flatnonzero(tokens == end) + 1 if end is not None else np.zeros(0, np.int64)
    return begins[np.arange(n) * len(begins) // n] if len(begins) >= n else np.arange(n) * len(tokens) // n


def until_end(tokens: np.ndarray, end: int | None) -> np.ndarray:
    """The tokens before the first `end`; all of them where there is none."""
    (at,) = np.nonzero(tokens == end) if end is not None else ((),)
    return tokens[: at[0]] if len(at) else tokens
