"""Generation with a cache, as one compiled program: logits transforms, sampling, beam search.

A model is apply(tokens (n, L), State) -> (logits (n, L, V), State). Prompts of unequal length are filled up on the
left, so that all of them end in one column; State.start says where each begins.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Tree

Apply = Callable[[Array, Tree], tuple[Array, Tree]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits. The transforms follow one another in the order of the fields.

    repetition_penalty: θ of Keskar et al. 2019, section 4.1: logits of tokens that were read or written are divided by
        it where positive, multiplied where negative; 1: none.
    temperature: 0 takes the likeliest token.
    top_k: of so many of the likeliest (Fan et al. 2018); 0: of all.
    top_p: of the smallest set of the likeliest whose probability reaches it (Holtzman et al. 2020, eq. 2); 1: of all.
    min_p: of those with at least this share of the likeliest one's probability (Nguyen et al. 2024); 0: of all.
    beam_size: 1 samples; more: beam search for the likeliest text, which leaves all of these but the penalty aside.
    length_penalty: α of Wu et al. 2016, eq. 14, by which beams of unequal length compare.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    beam_size: int = 1
    length_penalty: float = 0.0

    def check(self, vocab_size: int) -> None:
        """Raises UserError for a value out of its range, or for two that contradict each other."""
        ranges = (
            ('temperature', self.temperature >= 0, '0 or more'),
            ('top_k', 0 <= self.top_k <= vocab_size, f'0 to the {vocab_size} tokens of the vocabulary'),
            ('top_p', 0 < self.top_p <= 1, 'in (0, 1]'),
            ('min_p', 0 <= self.min_p <= 1, 'in [0, 1]'),
            ('repetition_penalty', self.repetition_penalty > 0, 'positive'),
            ('beam_size', 1 <= self.beam_size <= vocab_size, f'1 to the {vocab_size} tokens of the vocabulary'),
        )
        for name, fits, words in ranges:
            if not fits:
                raise UserError(f'--{name}={getattr(self, name)}: it is {words}')
        drawn = self.temperature != 1 or self.top_k or self.top_p < 1 or self.min_p
        if self.beam_size > 1 and drawn:
            raise UserError('--beam_size: a beam search draws nothing; leave temperature, top_k, top_p and min_p out')
        if self.temperature == 0 and (self.top_k or self.top_p < 1 or self.min_p):
            raise UserError('--temperature=0 takes the likeliest token; leave top_k, top_p and min_p out')


class Generated(NamedTuple):
    """tokens (n, max_new_tokens) int32, of which the first length (n,) were written, the end of the text included;
    log_prob (n,): of those tokens under the model itself, before any transform."""

    tokens: Array
    length: Array
    log_prob: Array


def transform(logits: Array, seen: Array, how: Sampling) -> Array:
    """(n, V) -> (n, V), −inf for what is not to be drawn; seen (n, V) bool: what was read or written."""
    if how.repetition_penalty != 1:
        theta = how.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / theta, logits * theta), logits)
    if how.temperature not in (0, 1):
        logits = logits / how.temperature
    if how.top_k:
        logits = jnp.where(logits < jax.lax.top_k(logits, how.top_k)[0][:, -1:], -jnp.inf, logits)
    if how.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        p = jax.nn.softmax(ordered, axis=-1)
        # A token stays while the likelier ones before it have not reached top_p: the likeliest always does.
        last = jnp.sum(jnp.cumsum(p, axis=-1) - p < how.top_p, axis=-1, keepdims=True) - 1
        logits = jnp.where(logits < jnp.take_along_axis(ordered, last, axis=-1), -jnp.inf, logits)
    if how.min_p:
        top = jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(logits < top + jnp.log(how.min_p), -jnp.inf, logits)
    return logits


def pad_prompts(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of 1 token or more -> (n, longest) int32, filled with 0 on the left, and start (n,)."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    return tokens, np.array([longest - len(prompt) for prompt in prompts], np.int32)


def _seen(tokens: Array, start: Array, vocab_size: int) -> Array:
    real = jnp.arange(tokens.shape[1]) >= start[:, None]
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, tokens].max(real)


def _ends_with(tokens: Array, t: Array, stop: tuple[int, ...]) -> Array:
    """Whether the tokens written up to and with place t end with `stop`, (n,)."""
    if not stop:
        return jnp.zeros(tokens.shape[0], bool)
    where = t - len(stop) + 1 + jnp.arange(len(stop))
    window = jnp.take(tokens, jnp.maximum(where, 0), axis=1)
    return (t + 1 >= len(stop)) & jnp.all(window == jnp.array(stop), axis=1)


def sample(
    apply: Apply, state: Tree, prompt: Array, key: Array, index: Array, how: Sampling, max_new_tokens: int,
    end: int | None = None, stop: tuple[int, ...] = (),
) -> Generated:  # fmt: skip
    """Continues `prompt` (n, P), for which `state` is fresh, to the token `end`, the tokens `stop`, or max_new_tokens.

    The draw of token t of text i is a function of (key, t, index[i]): it is the same in whatever batch the text is
    written. Gumbel-max sampling: argmax(logits + G) is a draw from softmax(logits).
    """
    n = prompt.shape[0]
    logits, state = apply(prompt, state)
    vocab_size = logits.shape[-1]
    needs_seen = how.repetition_penalty != 1
    seen = _seen(prompt, state.start, vocab_size) if needs_seen else jnp.zeros((n, 1), bool)

    def choose(logits, seen, t):
        found = transform(logits, seen, how)
        if how.temperature > 0:
            u = rng.Context(rng.fold_in(key, t), index, t).uniform('token', (vocab_size,))
            found = found - jnp.log(-jnp.log(jnp.maximum(u, 1e-30)))
        return jnp.argmax(found, axis=-1).astype(jnp.int32)

    def unfinished(loop):
        return (loop['t'] < max_new_tokens) & ~jnp.all(loop['done'])

    def write(loop):
        t, done = loop['t'], loop['done']
        token = choose(loop['logits'], loop['seen'], t)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(loop['logits']), token[:, None], axis=1)[:, 0]
        tokens = jax.lax.dynamic_update_slice_in_dim(loop['tokens'], jnp.where(done, 0, token)[:, None], t, 1)
        finished = _ends_with(tokens, t, stop)
        if end is not None:
            finished = finished | (token == end)
        logits, state = apply(token[:, None], loop['state'])
        seen = loop['seen'].at[jnp.arange(n), token].set(True) if needs_seen else loop['seen']
        return dict(
            t=t + 1, done=done | finished, tokens=tokens, length=loop['length'] + ~done,
            log_prob=loop['log_prob'] + jnp.where(done, 0, log_p), logits=logits[:, -1], state=state, seen=seen,
        )  # fmt: skip

    zeros = jnp.zeros((n,), jnp.int32)
    loop = dict(
        t=jnp.int32(0), done=zeros > 0, tokens=jnp.zeros((n, max_new_tokens), jnp.int32), length=zeros,
        log_prob=jnp.zeros((n,)), logits=logits[:, -1], state=state, seen=seen,
    )  # fmt: skip
    loop = jax.lax.while_loop(unfinished, write, loop)
    return Generated(loop['tokens'], loop['length'], loop['log_prob'])


def beam_search(
    apply: Apply, state: Tree, prompt: Array, how: Sampling, max_new_tokens: int, end: int | None = None
) -> Generated:
    """The likeliest continuation of each prompt that a beam of `beam_size` finds.

    A finished text stays in the beam with its score, log p / ((5 + length) / 6)^α (Wu et al. 2016, eq. 14), and is
    overtaken by a better one; without `end`, all texts have max_new_tokens. The score counts what was written alone.
    """
    n, k = prompt.shape[0], how.beam_size
    logits, state = apply(prompt, state)
    vocab_size = logits.shape[-1]
    seen = _seen(prompt, state.start, vocab_size)
    # Beams of one prompt lie together: row i·k + j is beam j of prompt i.
    spread = lambda x: jnp.repeat(x, k, axis=0) if x.ndim else x
    state, logits, seen = jax.tree.map(spread, (state, logits[:, -1], seen))
    score = jnp.tile(jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf), (n, 1))  # at first all beams are the same

    def normalized(log_p, length):
        return log_p / ((5.0 + length) / 6.0) ** how.length_penalty

    def unfinished(loop):
        return (loop['t'] < max_new_tokens) & ~jnp.all(loop['done'])

    def write(loop):
        t, done = loop['t'], loop['done']
        log_p = jax.nn.log_softmax(transform(loop['logits'], loop['seen'], Sampling(how.repetition_penalty)))
        log_p = log_p.reshape(n, k, vocab_size)
        # A finished beam has one continuation, itself, written as token 0.
        only_first = jnp.where(jnp.arange(vocab_size) == 0, 0.0, -jnp.inf)
        total = loop['log_prob'][:, :, None] + jnp.where(done[:, :, None], only_first, log_p)
        length = loop['length'] + ~done
        ranked = normalized(total, length[:, :, None]).reshape(n, k * vocab_size)
        _, best = jax.lax.top_k(ranked, k)
        parent, token = best // vocab_size, (best % vocab_size).astype(jnp.int32)
        take = lambda x: jnp.take_along_axis(x, parent.reshape(n, k, *[1] * (x.ndim - 2)), axis=1)
        rows = (jnp.arange(n)[:, None] * k + parent).reshape(-1)
        was_done = take(done)
        tokens = take(loop['tokens'])
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, :, None], t, 2)
        state = jax.tree.map(lambda x: x[rows] if x.ndim else x, loop['state'])
        logits, state = apply(token.reshape(-1, 1), state)
        seen = loop['seen'][rows].at[jnp.arange(n * k), token.reshape(-1)].set(True)
        finished = (token == end) & ~was_done if end is not None else jnp.zeros_like(was_done)
        return dict(
            t=t + 1, done=was_done | finished, tokens=tokens, length=take(length), seen=seen, state=state,
            log_prob=jnp.take_along_axis(total.reshape(n, -1), best, axis=1), logits=logits[:, -1],
        )  # fmt: skip

    zeros = jnp.zeros((n, k), jnp.int32)
    loop = dict(
        t=jnp.int32(0), done=zeros > 0, tokens=jnp.zeros((n, k, max_new_tokens), jnp.int32), length=zeros,
        seen=seen, state=state, log_prob=score, logits=logits,
    )  # fmt: skip
    loop = jax.lax.while_loop(unfinished, write, loop)
    best = jnp.argmax(normalized(loop['log_prob'], loop['length']), axis=1)[:, None]
    one = lambda x: jnp.take_along_axis(x, best.reshape(n, 1, *[1] * (x.ndim - 2)), axis=1)[:, 0]
    return Generated(one(loop['tokens']), one(loop['length']), one(loop['log_prob']))


@dataclasses.dataclass(frozen=True)
class Language:
    """What a task gives so that text can be generated from it.

    apply(params, extra, tokens, State) -> (logits, State); fresh(n, columns) -> State;
    nats(params, extra, tokens (n, L + 1)) -> −log p of the last L of them, (n, L).
    context: the most columns that State can have; 0: any number. vocab_size, end: of the tokenizer; first: the token
    that a text without a prompt begins with, which is not written.
    attention(params, extra, tokens (n, L)) -> weights (layers, n, heads, L, L); None: the model has none.
    """

    apply: Callable[..., tuple[Array, Tree]]
    fresh: Callable[[int, int], Tree]
    nats: Callable[..., Array]
    context: int
    vocab_size: int
    end: int | None
    first: int
    attention: Callable[..., Array] | None = None

    @functools.partial(jax.jit, static_argnums=(0, 7, 8, 9))
    def generate(self, params, extra, prompt, start, key, index, how: Sampling, max_new_tokens: int, stop: tuple):
        """One compiled program: prompt (n, P) int32 filled on the left, start (n,), index (n,) -> Generated."""
        apply = lambda tokens, state: self.apply(params, extra, tokens, state)
        state = self.fresh(prompt.shape[0], prompt.shape[1] + max_new_tokens)._replace(start=start)
        if how.beam_size > 1:
            return beam_search(apply, state, prompt, how, max_new_tokens, self.end)
        return sample(apply, state, prompt, key, index, how, max_new_tokens, self.end, stop)
