"""A Transformer language model of a text that is a Markov chain of second order, so that its entropy is known.

A config and its data in one file: `load` is what data.name calls. `nats` is the true model's −log p of a text.
"""

import bisect
import pathlib

import numpy as np

from aigc_jax.runs import config as config_lib

LETTERS = 'abcdef'
_CONFIGS = pathlib.Path(__file__).parents[2]
_SIZES = {'train': 300_000, 'valid': 10_000, 'test': 30_000}


def get_config():
    config = config_lib.load(str(_CONFIGS / 'gpt.py'), [])
    config.data.name = __file__
    config.data.tokenizer = 'char'
    return config


def transitions() -> np.ndarray:
    """p(c given a b), (6, 6, 6): Dirichlet of ½, so that a pair says much of the next letter."""
    return np.random.RandomState(0).dirichlet(np.full(len(LETTERS), 0.5), (len(LETTERS), len(LETTERS)))


def load(cfg):
    # RandomState, whose stream is frozen (NEP 19).
    uniform = np.random.RandomState(1).random_sample(sum(_SIZES.values())).tolist()
    ends, index, a, b = np.cumsum(transitions(), axis=-1)[..., :-1].tolist(), [], 0, 0
    for u in uniform:
        a, b = b, bisect.bisect_right(ends[a][b], u)
        index.append(b)
    text = ''.join(LETTERS[i] for i in index)
    places = np.cumsum([0, *_SIZES.values()])
    return {split: text[a:b] for split, a, b in zip(_SIZES, places, places[1:], strict=False)}


def nats(text: str) -> float:
    """The mean −log p of each letter but the first two, given the two before it."""
    index = np.array([LETTERS.index(letter) for letter in text])
    return float(-np.log(transitions()[index[:-2], index[1:-1], index[2:]]).mean())
