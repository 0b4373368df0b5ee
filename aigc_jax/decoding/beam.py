"""Beam search, inside one compiled program."""

import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array, Tree
from aigc_jax.decoding.sampling import Apply, Generated, Sampling, seen_tokens, top_k, transform


def beam_search(
    apply: Apply, state: Tree, prompt: Array, how: Sampling, max_new_tokens: int, end: int | None = None
) -> Generated:
    """The likeliest continuation of each prompt that a beam of `beam_size` finds.

    A finished text stays in the beam with its score, log p / ((5 + length) / 6)^α (Wu et al. 2016, eq. 14), and is
    overtaken by a better one; without `end`, all texts have max_new_tokens. The score counts what was written alone,
    after the penalty.
    """
    n, k = prompt.shape[0], how.beam_size
    logits, state = apply(prompt, state)
    each = min(k, logits.shape[-1])  # the best k of all beams are among the best of each
    seen = seen_tokens(prompt, state.start, logits.shape[-1], end)
    # Beams of one prompt lie together: row i·k + j is beam j of prompt i.
    spread = lambda x: jnp.repeat(x, k, axis=0) if x.ndim else x
    source, state = state.source, state._replace(source=())  # all beams of a prompt read one source
    state, logits, seen = jax.tree.map(spread, (state, logits[:, -1], seen))
    score = jnp.tile(jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf), (n, 1))  # at first all beams are the same

    def normalized(log_p, length):
        return log_p / ((5.0 + length) / 6.0) ** how.length_penalty

    def unfinished(loop):
        return (loop['t'] < max_new_tokens) & ~jnp.all(loop['done'])

    def write(loop):
        t, done = loop['t'], loop['done'][:, :, None]
        penalized = transform(loop['logits'], loop['seen'], Sampling(how.repetition_penalty))
        _, token = top_k(penalized, each)
        log_p, own = (_log_softmax_at(x, token).reshape(n, k, each) for x in (penalized, loop['logits']))
        # A finished beam has one continuation, itself, written as token 0.
        place = jnp.arange(each, dtype=jnp.int32)
        token = jnp.where(done, place, token.reshape(n, k, each))
        total = loop['score'][:, :, None] + jnp.where(done, jnp.where(place == 0, 0.0, -jnp.inf), log_p)
        log_prob = loop['log_prob'][:, :, None] + jnp.where(done, 0.0, own)
        length = loop['length'] + ~loop['done']
        _, best = jax.lax.top_k(normalized(total, length[:, :, None]).reshape(n, k * each), k)
        chosen = lambda x: jnp.take_along_axis(x.reshape(n, -1), best, axis=1)
        parent, token = best // each, chosen(token)
        take = lambda x: jnp.take_along_axis(x, parent.reshape(n, k, *[1] * (x.ndim - 2)), axis=1)
        rows = (jnp.arange(n)[:, None] * k + parent).reshape(-1)
        was_done = take(loop['done'])
        tokens = take(loop['tokens'])
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, :, None], t, 2)
        state = jax.tree.map(lambda x: x[rows] if x.ndim else x, loop['state'])
        logits, state = apply(token.reshape(-1, 1), state._replace(source=source))
        seen = loop['seen'][rows].at[jnp.arange(n * k), token.reshape(-1)].set(True)
        finished = (token == end) & ~was_done if end is not None else jnp.zeros_like(was_done)
        return dict(
            t=t + 1, done=was_done | finished, tokens=tokens, length=take(length), seen=seen,
            state=state._replace(source=()), score=chosen(total), log_prob=chosen(log_prob), logits=logits[:, -1],
        )  # fmt: skip

    zeros = jnp.zeros((n, k), jnp.int32)
    loop = dict(
        t=jnp.int32(0), done=zeros > 0, tokens=jnp.zeros((n, k, max_new_tokens), jnp.int32), length=zeros,
        seen=seen, state=state, score=score, log_prob=jnp.zeros((n, k)), logits=logits,
    )  # fmt: skip
    loop = jax.lax.while_loop(unfinished, write, loop)
    best = jnp.argmax(normalized(loop['score'], loop['length']), axis=1)[:, None]
    one = lambda x: jnp.take_along_axis(x, best.reshape(n, 1, *[1] * (x.ndim - 2)), axis=1)[:, 0]
    return Generated(one(loop['tokens']), one(loop['length']), one(loop['log_prob']))


def _log_softmax_at(logits: Array, token: Array) -> Array:
    """log softmax of logits (m, V) at token (m, k), without that of the other tokens."""
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    scale = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    return jnp.take_along_axis(shifted, token, axis=-1) - scale
