"""Texts of which some tokens are hidden, to be told from the others: masked language modelling (Devlin et al. 2019).

Shapes: n texts of L tokens, of which K at most are hidden.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.types import Array
from aigc_jax.data.tokenizers import Tokenizer

_PASSES = 4  # over the words, for those that still fit behind one that is too long


class Masked(NamedTuple):
    """tokens (n, L) as the model sees them. places (n, K): where tokens are hidden; targets (n, K): which; counted
    (n, K): whether there is one, for a short text has fewer."""

    tokens: Array
    places: Array
    targets: Array
    counted: Array


def joints(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(vocab_size,) bool each: whether a token can go on with a word, and whether a word can go on behind it.

    A word is a run of letters, digits and underscores; any other token is a word of its own, and so are special tokens
    and those of a tokenizer of words.
    """
    goes_on, goes_further = np.zeros((2, tokenizer.vocab_size), bool)
    plain = plain_tokens(tokenizer).tolist()
    word = next((token for token in plain if _in_word(tokenizer.decode([token])[-1:])), None)
    if tokenizer.kind == 'word' or word is None:
        return goes_on, goes_further
    before = len(tokenizer.decode([word]))
    for token in plain:
        # Behind a word, where a token that begins another one stands with a space before it.
        text = tokenizer.decode([word, token])[before:]
        goes_on[token], goes_further[token] = _in_word(text[:1]), _in_word(text[-1:])
    return goes_on, goes_further


def plain_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Those that are not special."""
    return np.setdiff1d(np.arange(tokenizer.vocab_size), [*tokenizer.special_ids.values()])


def _in_word(letter: str) -> bool:
    return letter.isalnum() or (letter != '' and letter in '_\ufffd')  # U+FFFD: a byte of a letter that has several


@dataclasses.dataclass(frozen=True, eq=False)
class Masking:
    """How tokens are hidden: `rate` of those of a text that may be, rounded, and one at least.

    Of them mask_share become the mask token and random_share another one, drawn from all but the special tokens; the
    rest stay (Devlin et al. 2019, section 3.1: 80, 10 and 10 %). whole_words: words are hidden whole, in an order that
    is drawn, as long as they fit into that number. A text whose words are all longer has none that is hidden.
    """

    tokenizer: Tokenizer
    rate: float
    mask_share: float
    random_share: float
    whole_words: bool

    def most(self, length: int) -> int:
        """K, of texts of this many tokens."""
        return int(self._budgets(length)[-1])

    def _budgets(self, length: int) -> np.ndarray:
        """How many tokens are hidden where 0, 1, …, `length` of them may be."""
        count = np.arange(length + 1)
        return np.where(count > 0, np.maximum(1, np.round(self.rate * count)), 0).astype(np.int32)

    @functools.cached_property
    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        return joints(self.tokenizer)

    def __call__(self, tokens: Array, may: Array, ctx: rng.Context) -> Masked:
        """tokens (n, L), of which those are hidden that `may` (n, L) be and are not special. Draws are functions of ctx
        and the example."""
        length = tokens.shape[1]
        plain = plain_tokens(self.tokenizer)
        is_plain = np.zeros(self.tokenizer.vocab_size, bool)
        is_plain[plain] = True
        may = may & jnp.asarray(is_plain)[tokens]
        budget = jnp.asarray(self._budgets(length))[jnp.sum(may, axis=1)][:, None]
        order, taken = self._drawn(tokens, may, budget, ctx.uniform('mask', (length,)))
        most = self.most(length)
        first = jnp.argsort(~taken, axis=1, stable=True)[:, :most]
        places, counted = (jnp.take_along_axis(x, first, axis=1) for x in (order, taken))
        targets = jnp.take_along_axis(tokens, places, axis=1)
        kind = ctx.uniform('replacement', (most,))
        other = jnp.asarray(plain, jnp.int32)[(ctx.uniform('token', (most,)) * len(plain)).astype(jnp.int32)]
        shown = jnp.where(kind < self.mask_share + self.random_share, other, targets)
        shown = jnp.where(kind < self.mask_share, self.tokenizer.mask, shown)
        put = jax.vmap(lambda row, where, value: row.at[where].set(value))
        return Masked(put(tokens, places, jnp.where(counted, shown, targets)), places, targets, counted)

    def _drawn(self, tokens: Array, may: Array, budget: Array, u: Array) -> tuple[Array, Array]:
        """Places (n, L) in the order that u (n, L) gives them, and which of them are taken."""
        if not self.whole_words:
            order = jnp.argsort(jnp.where(may, u, 2.0), axis=1, stable=True)
            return order, jnp.arange(tokens.shape[1]) < budget
        place = jnp.arange(tokens.shape[1])
        goes_on, goes_further = (jnp.asarray(one)[tokens] for one in self.joints)
        joined = (goes_on & may)[:, 1:] & (goes_further & may)[:, :-1]
        begins = jnp.pad(~joined, ((0, 0), (1, 0)), constant_values=True)
        start = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
        ahead = jax.lax.cummin(jnp.where(begins, place, len(place)), axis=1, reverse=True)
        stop = jnp.pad(ahead[:, 1:], ((0, 0), (0, 1)), constant_values=len(place))
        of_word = jnp.take_along_axis(u, start, axis=1)
        order = jnp.argsort(jnp.where(may, of_word, 2.0), axis=1, stable=True)
        in_order = lambda x: jnp.take_along_axis(x, order, axis=1)
        size, behind, may = in_order(stop - start), in_order(stop - 1 - place), in_order(may)
        taken = jnp.zeros_like(may)
        for _ in range(_PASSES):
            rest = budget - jnp.sum(taken, axis=1, keepdims=True)
            fits = may & ~taken & (size <= rest)
            taken = taken | (fits & (jnp.cumsum(fits, axis=1) + behind <= rest))
        return order, taken
