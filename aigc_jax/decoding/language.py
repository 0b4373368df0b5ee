"""What a task gives so that text can be generated from it, and the compiled programs that do it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import parallel
from aigc_jax.core.types import Array, Tree
from aigc_jax.decoding import sampling, speculation
from aigc_jax.decoding.beam import beam_search
from aigc_jax.decoding.sampling import Generated, Progress, Sampling

_STAGES, _LEAST = 4, 32  # how often a cache grows at most, and by how many columns at least
_ROWS = 2  # texts that are worth a thread


def _sizes(read: int, new: int) -> list[int]:
    """The sizes of a cache of which `read` columns are filled at first, and `new` more in the end."""
    growth = max(_LEAST, math.ceil(new / _STAGES))
    return [*range(read + growth, read + new, growth), read + new]


def _put(whole: Array, part: Array) -> Array:
    return jax.lax.dynamic_update_slice(whole, part, (0,) * part.ndim)


def _divided(write: Callable[..., Tree], prompt, start, index) -> Tree:
    """write(prompt, start, index), on a CPU in as many threads as there are cores, each with a part of the texts.

    XLA computes the small products of a step, of which attention has one for each text and head, in a single thread;
    whole programs beside each other keep all cores busy. The last part is filled up with copies of the last text.
    """
    n = len(prompt)
    alone = jax.default_backend() == 'cpu' and jax.device_count() == 1
    parts = max(1, min(parallel.cores(), n // _ROWS)) if alone else 1
    if parts == 1:
        return write(prompt, start, index)
    rows = np.minimum(np.arange(parts * math.ceil(n / parts)), n - 1).reshape(parts, -1)
    part = lambda own: jax.block_until_ready(write(*(np.asarray(x)[own] for x in (prompt, start, index))))
    with ThreadPoolExecutor(parts) as threads:
        found = list(threads.map(part, rows))
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:n], *found)


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

    def generate(
        self, params, extra, prompt, start, key, index, how: Sampling, max_new_tokens: int, stop: tuple
    ) -> Generated:
        """What follows each prompt (n, P) int32, filled on the left up to start (n,); text index (n,) of all."""
        write = lambda *rows: self._generate(params, extra, *rows[:2], key, rows[2], how, max_new_tokens, stop)
        return _divided(write, prompt, start, index)

    def speculate(
        self, params, extra, prompt, start, key, index, table, how: Sampling, max_new_tokens: int, stop: tuple
    ) -> tuple[Generated, Array]:
        """(what `generate` returns, calls of the model (n,)), with speculative decoding."""
        write = lambda *rows: self._speculate(params, extra, *rows[:2], key, rows[2], table, how, max_new_tokens, stop)
        return _divided(write, prompt, start, index)

    @functools.partial(jax.jit, static_argnums=(0, 7, 8, 9))
    def _generate(self, params, extra, prompt, start, key, index, how: Sampling, max_new_tokens: int, stop: tuple):
        """One compiled program."""
        apply = lambda tokens, state: self.apply(params, extra, tokens, state)
        n, read = prompt.shape
        fresh = lambda columns: self.fresh(n, columns)._replace(start=start)
        if how.beam_size > 1:
            state = fresh(read + max_new_tokens)
            return beam_search(apply, state, prompt, how, max_new_tokens, self.end)
        # Each token looks through all columns of the cache, filled or not: so it grows with the text.
        first, *others = _sizes(read, max_new_tokens) if self.context else [read + max_new_tokens]
        progress = sampling.begin(apply, fresh(first), prompt, how, max_new_tokens, self.end)
        progress = sampling.advance(apply, progress, key, index, how, first - read, self.end, stop)
        for columns in others:
            layers = jax.tree.map(_put, fresh(columns).layers, progress.state.layers)
            progress = progress._replace(state=progress.state._replace(layers=layers))
            progress = sampling.advance(apply, progress, key, index, how, columns - read, self.end, stop)
        return Generated(progress.tokens, progress.length, progress.log_prob)

    @functools.partial(jax.jit, static_argnums=(0, 8, 9, 10))
    def _speculate(
        self, params, extra, prompt, start, key, index, table, how: Sampling, max_new_tokens: int, stop: tuple
    ):
        columns = prompt.shape[1] + max_new_tokens + speculation.LENGTH

        def one(row, start, index):
            apply = lambda tokens, state: self.apply(params, extra, tokens, state)
            state = self.fresh(1, columns)._replace(start=start[None])
            return speculation.speculate(
                apply, state, row[None], key, index[None], table, how, max_new_tokens, self.end, stop
            )

        return jax.vmap(one)(prompt, start, index)

    @functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
    def begin(self, params, extra, prompt, start, how: Sampling, max_new_tokens: int, columns: int) -> Progress:
        """Reads the prompt; what follows is written by `advance`, for which there is room in so many columns."""
        state = self.fresh(prompt.shape[0], columns)._replace(start=start)
        apply = lambda tokens, state: self.apply(params, extra, tokens, state)
        return sampling.begin(apply, state, prompt, how, max_new_tokens, self.end)

    @functools.partial(jax.jit, static_argnums=(0, 7, 8))
    def advance(
        self, params, extra, progress: Progress, key, index, until, how: Sampling, stop: tuple, allowed=None
    ) -> Progress:
        apply = lambda tokens, state: self.apply(params, extra, tokens, state)
        return sampling.advance(apply, progress, key, index, how, until, self.end, stop, allowed)
