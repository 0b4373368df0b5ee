"""Hidden tokens of texts, filled in by a model that reads both sides of them (core.capabilities.FillsIn)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.data import Tokenizer

MASK = '<mask>'


@dataclasses.dataclass(frozen=True)
class Filled:
    """str: the text with the likeliest token at each hidden place. choices: of each of these places, in their order,
    (token, probability), the likeliest first. The places are filled in independently of each other."""

    text: str
    choices: tuple[tuple[tuple[str, float], ...], ...]

    def __str__(self) -> str:
        return self.text

    def lines(self) -> str:
        """For a person: the text, and a line for each hidden place."""
        each = ['  '.join(f'{token!r} {share:.3f}' for token, share in place) for place in self.choices]
        return '\n'.join([self.text, *(f'{MASK} {i}: {line}' for i, line in enumerate(each, 1))]) + '\n'


def framed(tokenizer: Tokenizer, text: str, context: int) -> np.ndarray:
    """The tokens of a text, in which MASK is written, in their frame. Raises UserError."""
    before, _, behind = tokenizer.frame
    inner = tokenizer.encode(text, special=True)
    if not (inner == tokenizer.mask).any():
        raise UserError(f'{text!r}: there is no {MASK} to be filled in; write it where a token is hidden')
    return fitting([before, inner, behind], text, context)


def fitting(parts: Sequence[Sequence[int]], text: str, context: int) -> np.ndarray:
    """The tokens of `parts`, behind one another, int32. Raises UserError where they are more than `context`."""
    tokens = np.concatenate(parts).astype(np.int32)
    if len(tokens) > context:
        raise UserError(f'{text[:40]!r}…: has {len(tokens)} tokens, the model reads {context}; cut it')
    return tokens


def filled(tokenizer: Tokenizer, tokens: np.ndarray, shares: np.ndarray, choices: np.ndarray) -> Filled:
    """Of framed tokens (L,), and the k likeliest tokens of each place with their probabilities, (L, k)."""
    before, _, behind = tokenizer.frame
    where = np.flatnonzero(tokens == tokenizer.mask)
    whole = tokens.copy()
    whole[where] = choices[where, 0]
    named = lambda place: tuple(
        (tokenizer.decode([token]), float(share)) for token, share in zip(choices[place], shares[place], strict=True)
    )
    text = tokenizer.decode(whole[len(before) : len(whole) - len(behind)])
    return Filled(text, tuple(map(named, where)))


def rows(texts: Sequence[np.ndarray], columns: int, filler: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, columns) int32 tokens and (n,) int32 lengths."""
    tokens = np.full((len(texts), columns), filler, np.int32)
    for row, own in zip(tokens, texts, strict=True):
        row[: len(own)] = own
    return tokens, np.array([*map(len, texts)], np.int32)
