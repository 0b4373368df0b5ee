"""Scores of a held-out text from −log p of its tokens, with intervals over what is independent in it."""

import dataclasses
import math

import numpy as np

from aigc_jax.metrics import intervals
from aigc_jax.metrics.intervals import Measurement

LEAST_DOCUMENTS = 20
BLOCK = 4096  # tokens


def names(lossless: bool) -> list[str]:
    """Of the metrics that `scores` gives."""
    bits = ['model/bits_per_byte'] * lossless
    return ['model/nats_per_token', *bits, 'model/nats_per_token_window', 'model/perplexity']


def names_beside(name: str, lossless: bool) -> list[str]:
    """Of the metrics that `beside` gives."""
    return [f'{name}/nats_per_token', *[f'{name}/bits_per_byte'] * lossless]


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """What the tokens of a text but its first are grouped by: index (N − 1,), ascending from 0; over: what they are."""

    index: np.ndarray
    over: str

    @classmethod
    def of_text(cls, tokens: np.ndarray, end: int | None) -> 'Clusters':
        """Of a split's tokens (N,), in which `end` stands before each document, and so ends the one before.

        Documents, each with its end, where there are 20 or more and none has half of the tokens: the next ones will
        differ as these do. A variance estimated from fewer clusters, or with one that outweighs all others, is too
        small on the average (Cameron, Gelbach & Miller 2008), so then the text is cut into blocks of 4096 tokens, the
        last one longer. Most of the dependence of tokens on their neighbours lies inside such blocks, but what is
        common to a document is not seen: the interval is of more text of these documents, not of others.
        """
        n = len(tokens) - 1
        if end is not None:
            index = np.cumsum(tokens[:-1] == end)
            index -= index[0]
            sizes = np.bincount(index)
            if len(sizes) >= LEAST_DOCUMENTS and sizes.max() < n / 2:
                return cls(index, 'documents')
        index = np.minimum(np.arange(n) // BLOCK, max(n // BLOCK - 1, 0))
        return cls(index, f'blocks of {BLOCK} tokens' if n >= 2 * BLOCK else 'texts')

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(G,) float64 of values (N − 1,)."""
        return np.bincount(self.index, values)

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.index)


@dataclasses.dataclass(frozen=True, eq=False)
class Nats:
    """−log p of each token of a text but its first, (N − 1,) each: `counted`, by the window that counts it; `total`,
    summed over the `times` windows that hold it."""

    counted: np.ndarray
    total: np.ndarray
    times: np.ndarray


def scores(nats: Nats, clusters: Clusters, num_bytes: np.ndarray | None) -> dict[str, Measurement]:
    """Rows of the metrics of `names`. num_bytes (N − 1,): of the text that each token stands for; None: unknown."""
    own, over = clusters.sums(nats.counted), clusters.over
    found = {'model/nats_per_token': intervals.ratio(own, clusters.sizes, over)}
    if num_bytes is not None:
        found['model/bits_per_byte'] = intervals.ratio(own / math.log(2), clusters.sums(num_bytes), over)
    by_window = intervals.ratio(clusters.sums(nats.total), clusters.sums(nats.times), over)
    found['model/nats_per_token_window'] = by_window
    return found | {
        'model/perplexity': intervals.exponential('model/nats_per_token', found['model/nats_per_token'])
    }


def beside(
    name: str, theirs: np.ndarray, ours: np.ndarray, clusters: Clusters, num_bytes: np.ndarray | None
) -> dict[str, Measurement]:
    """Nats a token and bits a byte of another model of the same text. theirs, ours: sums of nats (G,) by cluster.

    difference: theirs minus ours. Its interval is of the paired differences of the clusters, and so far narrower than
    either one's own, for what is hard to predict is so for both.
    """
    sizes = [('nats_per_token', 1.0, clusters.sizes)]
    if num_bytes is not None:
        sizes.append(('bits_per_byte', math.log(2), clusters.sums(num_bytes)))
    found = {}
    for metric, unit, count in sizes:
        row = intervals.ratio(theirs / unit, count, clusters.over)
        found[f'{name}/{metric}'] = {**row, 'difference': intervals.ratio((theirs - ours) / unit, count, clusters.over)}
    return found
