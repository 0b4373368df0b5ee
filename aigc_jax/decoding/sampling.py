"""Generation with a cache: prompts, logits transforms, draws, and the loop that writes.

A model is apply(tokens (n, L), State) -> (logits (n, L, V), State). Prompts of unequal length are filled up on the
left, so that all of them end in one column; State.start says where each begins.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Tree

Apply = Callable[[Array, Tree], tuple[Array, Tree]]
_BEAMS = 1000  # the most of a search, each with a cache of its own

# Of `sample`, where what is drawn are tokens or codes. A beam search draws none, so its settings are those of one call.
FIELDS = {
    'repetition_penalty': Field(
        float, least=0.01, most=100, doc='of what was read or written already; 1: none (Keskar et al. 2019)'
    ),
    'temperature': Field(float, least=0, most=1e4, doc='of the logits; 0 takes the likeliest token or code each time'),
    'top_k': Field(int, least=0, doc='draw from so many of the likeliest; 0: from all'),
    'top_p': Field(float, above=0, most=1, doc='draw from the fewest whose probability reaches this; 1: from all'),
    'min_p': Field(float, least=0, most=1, doc="least probability, as a share of the likeliest one's; 0: none"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits. The transforms follow one another in the order of the fields.

    repetition_penalty: θ of Keskar et al. 2019, section 4.1: logits of tokens that were read or written are divided by
        it where positive, multiplied where negative; 1: none.
    temperature: 0 takes the likeliest token.
    top_k: of so many of the likeliest (Fan et al. 2018), and of those as likely as the last of them; 0, or the
        size of the vocabulary and more: of all.
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

    def check(self, vocab_size: int, what: str = '') -> None:
        """Raises UserError for a value out of its range, or for two that contradict each other. what: stands before the
        name of a setting: '' of an argument, 'sample.' of a field."""
        # Within these float32 can hold what comes of them; nan is in no range.
        beams = min(vocab_size, _BEAMS)
        ranges = {
            **{name: (field.fits(getattr(self, name)), field.range()) for name, field in FIELDS.items()},
            'temperature': (self.temperature == 0 or 1e-4 <= self.temperature <= 1e4, '0, or 0.0001 to 10000'),
            'length_penalty': (-5 <= self.length_penalty <= 5, '-5 to 5'),
            'beam_size': (1 <= self.beam_size <= beams, f'1 to {beams} (the vocabulary has {vocab_size} tokens)'),
        }
        for name, (fits, words) in ranges.items():
            if not fits:
                raise UserError(f'{what}{name}={getattr(self, name)}: it is {words}')
        all_tokens = 'top_k and min_p are 0 and top_p is 1'
        narrowed = self.top_k or self.top_p < 1 or self.min_p
        if self.beam_size > 1 and (narrowed or self.temperature != 1):
            raise UserError(f'{what}beam_size: a beam search draws nothing; with it temperature is 1, {all_tokens}')
        if self.length_penalty and self.beam_size == 1:
            raise UserError('length_penalty: compares the texts of a beam search; add beam_size, or leave it out')
        if self.temperature == 0 and narrowed:
            raise UserError(f'{what}temperature=0 takes the likeliest token; with it {all_tokens}')


def from_config(sample: Mapping, **given) -> Sampling:
    """The settings of `sample`, a group of a config that may lack all of FIELDS; `given` go before them."""
    return Sampling(**{name: sample[name] for name in FIELDS if name in sample} | given)


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
    if 0 < how.top_k < logits.shape[-1]:
        logits = jnp.where(logits < top_k(logits, how.top_k)[0][:, -1:], -jnp.inf, logits)
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


_BLOCK = 64


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """jax.lax.top_k of x (m, V) without nan, values and indices: a twelfth of its time on a CPU for V = 32,128.

    The k largest are in the k blocks with the largest maxima. Blocks in their own order keep ties in order.
    """
    m, size = x.shape
    if size < _BLOCK * k:
        return jax.lax.top_k(x, k)
    blocks = jnp.pad(x, ((0, 0), (0, -size % _BLOCK)), constant_values=-jnp.inf).reshape(m, -1, _BLOCK)
    _, where = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
    where = jnp.sort(where, axis=-1)
    kept = jnp.take_along_axis(blocks, where[:, :, None], axis=1).reshape(m, -1)
    values, place = jax.lax.top_k(kept, k)
    return values, jnp.take_along_axis(where, place // _BLOCK, axis=1) * _BLOCK + place % _BLOCK


def pad_prompts(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of 1 token or more -> (n, longest) int32, filled with 0 on the left, and start (n,)."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    return tokens, np.array([longest - len(prompt) for prompt in prompts], np.int32)


def seen_tokens(tokens: Array, start: Array, vocab_size: int, end: int | None) -> Array:
    """(n, vocab_size) bool: which tokens stand in each row from its start on, but for `end`: it stands before a text,
    and a penalty of it would make texts longer."""
    real = (jnp.arange(tokens.shape[1]) >= start[:, None]) & (tokens != (-1 if end is None else end))
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocab_size), bool).at[rows, tokens].max(real)


def ends_with(tokens: Array, t: Array, stop: tuple[int, ...]) -> Array:
    """Whether the tokens written up to and with place t end with `stop`, (n,)."""
    if not stop:
        return jnp.zeros(tokens.shape[0], bool)
    where = t - len(stop) + 1 + jnp.arange(len(stop))
    window = jnp.take(tokens, jnp.maximum(where, 0), axis=1)
    return (t + 1 >= len(stop)) & jnp.all(window == jnp.array(stop), axis=1)


class Progress(NamedTuple):
    """Texts that are being written.

    t: () int32 tokens written so far; tokens (n, M) int32; done, length, log_prob, ruled_out (n,); logits (n, V) of the
    next token; state: of the model; seen (n, V) bool, or (n, 1) where no penalty asks for it.
    ruled_out: −log of the probability that `allowed` left, summed over the tokens: what a constraint costs.
    """

    t: Array
    tokens: Array
    done: Array
    length: Array
    log_prob: Array
    ruled_out: Array
    logits: Array
    state: Tree
    seen: Array


_STAGES, _LEAST = 4, 32  # how often a cache grows at most, and by how many tokens at least


def rooms(new: int) -> list[int]:
    """How many new tokens a cache that grows has room for, one after the other, `new` of them in the end."""
    growth = max(_LEAST, math.ceil(new / _STAGES))
    return [*range(growth, new, growth), new]


def prefill(
    apply: Apply, state: Tree, prompt: Array, how: Sampling, max_new_tokens: int, end: int | None = None
) -> Progress:
    """Reads `prompt` (n, P), for which `state` is fresh."""
    n = prompt.shape[0]
    logits, state = apply(prompt, state)
    logits = logits[:, -1]
    seen = jnp.zeros((n, 1), bool)
    if how.repetition_penalty != 1:
        seen = seen_tokens(prompt, state.start, logits.shape[-1], end)
    zeros, nothing = jnp.zeros((n,), jnp.int32), jnp.zeros((n,))
    tokens = jnp.zeros((n, max_new_tokens), jnp.int32)
    return Progress(jnp.int32(0), tokens, zeros > 0, zeros, nothing, nothing, logits, state, seen)


def choose(logits: Array, seen: Array, key: Array, index: Array, t: Array, how: Sampling) -> Array:
    """Token t of each text, (n,) int32, from logits (n, V).

    The draw is a function of (key, t, index): it is the same in whatever batch the text is written. Gumbel-max
    sampling: argmax(logits + G) is a draw from softmax(logits).
    """
    found = transform(logits, seen, how)
    if how.temperature > 0:
        u = rng.Context(rng.fold_in(key, t), index, t).uniform('token', (logits.shape[-1],))
        found = found - jnp.log(-jnp.log(jnp.maximum(u, 1e-30)))
    return jnp.argmax(found, axis=-1).astype(jnp.int32)


def decode(
    apply: Apply, progress: Progress, key: Array, index: Array, how: Sampling, until: Array | int,
    end: int | None = None, stop: tuple[int, ...] = (), allowed: Array | None = None,
) -> Progress:  # fmt: skip
    """Writes on until `until` tokens stand, or each text has come to the token `end` or the tokens `stop`.

    allowed: (n, V) bool, what the next token may be; with it, one token is written.
    """
    n = progress.tokens.shape[0]

    def unfinished(loop):
        return (loop.t < until) & ~jnp.all(loop.done)

    def write(loop):
        t, done = loop.t, loop.done
        log_p, ruled_out = jax.nn.log_softmax(loop.logits), jnp.zeros((n,))
        logits = loop.logits
        if allowed is not None:
            logits = jnp.where(allowed, logits, -jnp.inf)
            ruled_out = -jax.nn.logsumexp(jnp.where(allowed, log_p, -jnp.inf), axis=-1)
        token = choose(logits, loop.seen, key, index, t, how)
        tokens = jax.lax.dynamic_update_slice_in_dim(loop.tokens, jnp.where(done, 0, token)[:, None], t, 1)
        finished = ends_with(tokens, t, stop)
        if end is not None:
            finished = finished | (token == end)
        logits, state = apply(token[:, None], loop.state)
        seen = loop.seen if loop.seen.shape[1] == 1 else loop.seen.at[jnp.arange(n), token].set(True)
        log_p = jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0]
        return Progress(
            t + 1, tokens, done | finished, loop.length + ~done, loop.log_prob + jnp.where(done, 0, log_p),
            loop.ruled_out + jnp.where(done, 0, ruled_out), logits[:, -1], state, seen,
        )  # fmt: skip

    return write(progress) if allowed is not None else jax.lax.while_loop(unfinished, write, progress)


def sample(
    apply: Apply, state: Tree, prompt: Array, key: Array, index: Array, how: Sampling, max_new_tokens: int,
    end: int | None = None, stop: tuple[int, ...] = (),
) -> Generated:  # fmt: skip
    """Continues `prompt` (n, P), for which `state` is fresh, to `end`, the tokens `stop`, or max_new_tokens."""
    progress = prefill(apply, state, prompt, how, max_new_tokens, end)
    found = decode(apply, progress, key, index, how, max_new_tokens, end, stop)
    return Generated(found.tokens, found.length, found.log_prob)
