"""Text written by a model that gives core.capabilities.WritesText: the compiled programs."""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import parallel
from aigc_jax.core.capabilities import WritesText
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Tree
from aigc_jax.decoding import sampling, speculation
from aigc_jax.decoding.beam import beam_search
from aigc_jax.decoding.sampling import Generated, Progress, Sampling
from aigc_jax.nn.language_layers import widened

_ROWS = 2  # texts that are worth a thread
_BESIDE = 64  # beams, of which each looks through the columns of all; more are faster in rows of their own


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


class TextDecoder:
    """The compiled programs that write text with a model; they are freed with this object."""

    def __init__(self, text: WritesText):
        self._text = text
        self._generate = jax.jit(self.written, static_argnums=(6, 7, 8))
        self._speculate = jax.jit(self._one_speculation, static_argnums=(7, 8, 9))
        self.prefill = jax.jit(self._prefill, static_argnums=(4, 5, 6))
        self.decode = jax.jit(self._decode, static_argnums=(6, 7))

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

    def _apply(self, params, extra) -> Callable:
        return lambda tokens, cache: self._text.decode(params, extra, tokens, cache)

    def written(
        self, params, extra, prompt, start, key, index, how: Sampling, max_new_tokens: int, stop: tuple
    ) -> Generated:
        """What `generate` gives, for who traces it."""
        apply, text = self._apply(params, extra), self._text
        begin = lambda new: text.begin(params, extra, prompt, start, new)
        if how.beam_size > 1:
            in_rows = lambda: self._in_rows(params, extra, *prompt.shape)
            if not text.columns and not in_rows():
                raise UserError(
                    f'beam_size={how.beam_size}: a search wants a cache in which all but scalars has texts as its '
                    'first axis, or columns (core.capabilities.WritesText)'
                )
            shared = text.columns and (how.beam_size <= _BESIDE or not in_rows())
            first, cache = begin(0 if shared else max_new_tokens)
            return beam_search(apply, cache, first, how, max_new_tokens, text.eos, shared)
        # Each token looks through all columns of the cache, filled or not: so they grow with the text.
        rooms = sampling.rooms(max_new_tokens) if text.columns else [max_new_tokens]
        first, cache = begin(rooms[0])
        progress = sampling.prefill(apply, cache, first, how, max_new_tokens, text.eos)
        progress = sampling.decode(apply, progress, key, index, how, rooms[0], text.eos, stop)
        for before, room in itertools.pairwise(rooms):
            progress = progress._replace(state=widened(progress.state, room - before))
            progress = sampling.decode(apply, progress, key, index, how, room, text.eos, stop)
        return Generated(progress.tokens, progress.length, progress.log_prob)

    def _in_rows(self, params, extra, n: int, length: int) -> bool:
        """Whether the first axis of all of a cache but scalars is that of texts: it grows by 1 with them."""

        def shapes(n):
            prompt, start = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((n, length), (n,)))
            cache = jax.eval_shape(lambda *rows: self._text.begin(params, extra, *rows, 0)[1], prompt, start)
            return [x.shape for x in jax.tree.leaves(cache)]

        pairs = zip(shapes(n), shapes(n + 1), strict=True)
        return all(not one or (one[0] == n and more == (n + 1, *one[1:])) for one, more in pairs)

    def _one_speculation(self, params, extra, prompt, start, key, index, table, how: Sampling, max_new_tokens, stop):
        apply, text = self._apply(params, extra), self._text

        def one(row, start, index):
            first, cache = text.begin(params, extra, row[None], start[None], max_new_tokens + speculation.LENGTH)
            return speculation.speculate(
                apply, cache, first, key, index[None], table, how, max_new_tokens, text.eos, stop
            )

        return jax.vmap(one)(prompt, start, index)

    def _prefill(self, params, extra, prompt, start, how: Sampling, max_new_tokens: int, new: int) -> Progress:
        """Reads the prompt; what follows is written by `decode`, for which there is room for so many new tokens."""
        first, cache = self._text.begin(params, extra, prompt, start, new)
        return sampling.prefill(self._apply(params, extra), cache, first, how, max_new_tokens, self._text.eos)

    def _decode(
        self, params, extra, progress: Progress, key, index, until, how: Sampling, stop: tuple, allowed=None
    ) -> Progress:
        apply = self._apply(params, extra)
        return sampling.decode(apply, progress, key, index, how, until, self._text.eos, stop, allowed)
