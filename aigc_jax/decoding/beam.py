"""Beam search, inside one compiled program."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array, Tree
from aigc_jax.decoding.sampling import Apply, Generated, Sampling, rooms, seen_tokens, top_k, transform
from aigc_jax.nn.language_layers import Beams, widened

# (parent (n, k), token (n, k), state) -> (logits (n · k, V), state): beam j goes on from parent[:, j] with token[:, j].
Read = Callable[[Array, Array, Tree], tuple[Array, Tree]]


def beam_search(
    apply: Apply, state: Tree, prompt: Array, how: Sampling, max_new_tokens: int, end: int | None = None,
    shared: bool = False,
) -> Generated:  # fmt: skip
    """The likeliest continuation of each prompt that a beam of `beam_size` finds.

    A finished text stays in the beam with its score, log p / ((5 + length) / 6)^α (Wu et al. 2016, eq. 14), and is
    overtaken by a better one; without `end`, all texts have max_new_tokens. The score counts what was written alone,
    after the penalty.

    shared: whether `state` is a language_layers.State whose layers have columns, with room for the prompt alone. The
    beams of a prompt then stand beside each other in these, which grow with the text, since each token looks through
    all of them, filled or not. Else each beam has a row of its own, which is the first axis of all of `state` but
    scalars, and `state` has room for max_new_tokens more.
    """
    n, k = prompt.shape[0], how.beam_size
    logits, state = apply(prompt, state)
    logits = logits[:, -1]
    each = min(k, logits.shape[-1])  # the best k of all beams are among the best of each
    penalty = Sampling(how.repetition_penalty)
    penalized = penalty.repetition_penalty != 1
    seen = seen_tokens(prompt, state.start, logits.shape[-1], end) if penalized else jnp.zeros((n, 1), bool)
    # Beams of one prompt lie together: row i·k + j is beam j of prompt i.
    logits, seen = (jnp.repeat(x, k, axis=0) for x in (logits, seen))
    state, read = _in_one_row(apply, state, k) if shared else _in_rows(apply, state, k)
    score = jnp.tile(jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf), (n, 1))  # at first all beams are the same

    def normalized(log_p, length):
        return log_p / ((5.0 + length) / 6.0) ** how.length_penalty

    def likeliest(logits, seen):
        """(token, log p by which it is ranked, log p of the model) of the best of each beam, (n, k, each)."""
        ranked = transform(logits, seen, penalty)
        values, token = top_k(ranked, each)
        largest = jnp.max(values, axis=-1, keepdims=True)
        log_p = own = values - largest - jnp.log(jnp.sum(jnp.exp(ranked - largest), axis=-1, keepdims=True))
        if penalized:
            own = jnp.take_along_axis(jax.nn.log_softmax(logits), token, axis=-1)
        return tuple(x.reshape(n, k, each) for x in (token, log_p, own))

    def unfinished(room, loop):
        return (loop['t'] < room) & ~jnp.all(loop['done'])

    def write(loop):
        t, done, (token, log_p, own) = loop['t'], loop['done'][:, :, None], loop['likeliest']
        # A finished beam has one continuation, itself, written as token 0.
        place = jnp.arange(each, dtype=jnp.int32)
        token = jnp.where(done, place, token)
        total = loop['score'][:, :, None] + jnp.where(done, jnp.where(place == 0, 0.0, -jnp.inf), log_p)
        log_prob = loop['log_prob'][:, :, None] + jnp.where(done, 0.0, own)
        length = loop['length'] + ~loop['done']
        _, best = jax.lax.top_k(normalized(total, length[:, :, None]).reshape(n, k * each), k)
        chosen = lambda x: jnp.take_along_axis(x.reshape(n, -1), best, axis=1)
        parent, token = best // each, chosen(token)
        take = lambda x: jnp.take_along_axis(x, parent.reshape(n, k, *[1] * (x.ndim - 2)), axis=1)
        was_done = take(loop['done'])
        tokens = take(loop['tokens'])
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, :, None], t, 2)
        logits, state = read(parent, token, loop['state'])
        seen = loop['seen']
        if penalized:
            seen = take(seen.reshape(n, k, -1)).reshape(n * k, -1).at[jnp.arange(n * k), token.reshape(-1)].set(True)
        finished = (token == end) & ~was_done if end is not None else jnp.zeros_like(was_done)
        return dict(
            t=t + 1, done=was_done | finished, tokens=tokens, length=take(length), seen=seen, state=state,
            score=chosen(total), log_prob=chosen(log_prob), likeliest=likeliest(logits, seen),
        )  # fmt: skip

    zeros = jnp.zeros((n, k), jnp.int32)
    loop = dict(
        t=jnp.int32(0), done=zeros > 0, tokens=jnp.zeros((n, k, max_new_tokens), jnp.int32), length=zeros,
        seen=seen, state=state, score=score, log_prob=jnp.zeros((n, k)), likeliest=likeliest(logits, seen),
    )  # fmt: skip
    stages = rooms(max_new_tokens) if shared else [max_new_tokens]
    for before, room in itertools.pairwise([0, *stages]):
        loop['state'] = _with_room(loop['state'], room - before) if shared else loop['state']
        loop = jax.lax.while_loop(functools.partial(unfinished, room), write, loop)
    best = jnp.argmax(normalized(loop['score'], loop['length']), axis=1)[:, None]
    one = lambda x: jnp.take_along_axis(x, best.reshape(n, 1, *[1] * (x.ndim - 2)), axis=1)[:, 0]
    return Generated(one(loop['tokens']), one(loop['length']), one(loop['log_prob']))


def _in_rows(apply: Apply, state: Tree, k: int) -> tuple[Tree, Read]:
    """`state`, which has read a prompt in each row, for k beams in rows of their own; no step shares any of it."""

    def go_on(parent, token, state):
        rows = (jnp.arange(len(parent))[:, None] * k + parent).reshape(-1)
        logits, state = apply(token.reshape(-1, 1), jax.tree.map(lambda x: x[rows] if x.ndim else x, state))
        return logits[:, -1], state

    return jax.tree.map(lambda x: jnp.repeat(x, k, axis=0) if x.ndim else x, state), go_on


def _in_one_row(apply: Apply, state: Tree, k: int) -> tuple[Tree, Read]:
    """`state`, which has read a prompt in each row, for k beams in each row, yet without room for them.

    Each step fills k columns, and a beam is what it looks at: so no step copies keys and values, all beams have the
    prompt's in common, and their queries are attended to together.
    """
    column = jnp.arange(jax.tree.leaves(state.layers)[0].shape[-2])
    seen = jnp.repeat((column >= state.start[:, None])[:, None], k, axis=1)

    def go_on(parent, token, state):
        place, seen = state.beams
        seen = jnp.take_along_axis(seen, parent[:, :, None], axis=1)
        seen = seen | (jnp.arange(len(place)) == state.column + jnp.arange(k)[:, None])
        logits, state = apply(token, state._replace(beams=Beams(place, seen)))
        return logits.reshape(-1, logits.shape[-1]), state

    return state._replace(beams=Beams(column, seen)), go_on


def _with_room(state: Tree, tokens: int) -> Tree:
    """`state` of beams in one row, with columns for so many more tokens of each."""
    place, seen = state.beams
    columns = seen.shape[1] * tokens
    place = jnp.concatenate([place, place[-1] + 1 + jnp.arange(columns) // seen.shape[1]])
    beams = Beams(place, jnp.pad(seen, [(0, 0), (0, 0), (0, columns)]))
    return widened(state, columns)._replace(beams=beams)
