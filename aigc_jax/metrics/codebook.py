"""How evenly a discrete model uses its codes, from how often each of them stands."""

import numpy as np


def perplexity(counts: np.ndarray) -> float:
    """exp(−Σ p log p) of the shares p of counts (K,), not all 0: K where all are used alike, 1 where one alone is."""
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def used_share(counts: np.ndarray) -> float:
    """The share of the codes that stand at all."""
    return float(np.mean(counts > 0))
