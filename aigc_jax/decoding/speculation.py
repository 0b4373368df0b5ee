"""Speculative decoding (Leviathan et al. 2023) with an n-gram model as the draft."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.types import Array, Tree
from aigc_jax.decoding.sampling import Apply, Generated, Sampling, choose, ends_with, prefill

LENGTH = 4  # tokens that are proposed at a time
_CONTEXT = 5  # tokens that a proposal depends on, at most
_BITS = 18  # of a slot's number, in the table of each length of the context
_FACTOR = np.uint32(0x9E3779B1)  # Knuth's multiplicative hash, of the golden ratio


def draft_table(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """(_CONTEXT, 2**_BITS) int32: what most often followed each context of 1, 2, … tokens in `tokens`; −1: never seen.

    A context has the slot of its hash. Two that share one spoil a proposal, never a text.
    """
    tokens = np.asarray(tokens)
    table = np.full((_CONTEXT, 2**_BITS), -1, np.int32)
    hashed = np.zeros(len(tokens), np.uint32)  # of the m tokens that end with each one
    for m in range(1, min(_CONTEXT, len(tokens) - 1) + 1):
        hashed = (hashed[m > 1 :] + tokens[: len(tokens) - m + 1].astype(np.uint32) + np.uint32(1)) * _FACTOR
        slot = (hashed[:-1] >> np.uint32(32 - _BITS)).astype(np.int64)
        pairs, counts = np.unique(slot * vocab_size + tokens[m:], return_counts=True)
        pairs = pairs[np.argsort(counts, kind='stable')]  # the most frequent one of a slot is written last
        table[m - 1, pairs // vocab_size] = pairs % vocab_size
    return table


def propose(table: Array, recent: Array) -> Array:
    """(LENGTH,) int32, one token after another, after `recent` (_CONTEXT,): what the longest known context proposes."""
    proposed = []
    for _ in range(LENGTH):
        hashed, best = jnp.uint32(0), jnp.int32(0)
        for m in range(_CONTEXT):
            hashed = (hashed + recent[-1 - m].astype(jnp.uint32) + np.uint32(1)) * _FACTOR
            found = table[m, (hashed >> np.uint32(32 - _BITS)).astype(jnp.int32)]
            best = jnp.where(found >= 0, found, best)
        proposed.append(best)
        recent = jnp.append(recent[1:], best)
    return jnp.stack(proposed)


def speculate(
    apply: Apply, state: Tree, prompt: Array, key: Array, index: Array, table: Array, how: Sampling,
    max_new_tokens: int, end: int | None = None, stop: tuple[int, ...] = (),
) -> tuple[Generated, Array]:  # fmt: skip
    """What `sampling.sample` writes for one text, prompt (1, P), index (1,), and () how often the model was called.

    The model reads the last token and LENGTH proposed ones at once. Each place draws its token with its own noise, as
    if nothing had been proposed, and what was read stands up to the first proposal that is not the token drawn. So
    not the distribution alone is that of plain sampling, the text is (but for rounding of the logits).
    `state` is one that can be cut back by its `column`: a cache, not a recurrent state.
    """
    progress = prefill(apply, state, prompt, how, max_new_tokens, end)
    first = jnp.pad(prompt[0], (_CONTEXT, 0))[-_CONTEXT:]

    def put(progress, recent, logits):
        """Draws the next token from logits (1, V) and writes it."""
        token = choose(logits, progress.seen, key, index, progress.t, how)
        tokens = jax.lax.dynamic_update_slice_in_dim(progress.tokens, token[:, None], progress.t, 1)
        done = ends_with(tokens, progress.t, stop)
        if end is not None:
            done = done | (token == end)
        progress = progress._replace(
            t=progress.t + 1, tokens=tokens, done=done, length=progress.length + 1,
            log_prob=progress.log_prob + jax.nn.log_softmax(logits)[:, token[0]],
            seen=progress.seen if progress.seen.shape[1] == 1 else progress.seen.at[0, token].set(True),
        )  # fmt: skip
        return progress, jnp.append(recent[1:], token), token[0]

    def unfinished(loop):
        progress = loop[0]
        return (progress.t < max_new_tokens) & ~progress.done[0]

    def write(loop):
        progress, recent, calls = loop
        proposed = propose(table, recent)
        column = progress.state.column
        logits, state = apply(jnp.append(recent[-1:], proposed)[None], progress.state)

        def stands(place):
            return place[0]

        def verify(place):
            _, j, progress, recent = place
            progress, recent, token = put(progress, recent, logits[:, j])
            right = (j < LENGTH) & (token == proposed[jnp.minimum(j, LENGTH - 1)]) & unfinished((progress,))
            return right, j + 1, progress, recent

        _, count, progress, recent = jax.lax.while_loop(stands, verify, (True, 0, progress, recent))
        return progress._replace(state=state._replace(column=column + count)), recent, calls + 1

    progress, recent, _ = put(progress, first, progress.logits)
    progress, _, calls = jax.lax.while_loop(unfinished, write, (progress, recent, jnp.int32(1)))
    return Generated(progress.tokens[0], progress.length[0], progress.log_prob[0]), calls
