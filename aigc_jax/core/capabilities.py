"""What a trained model can do, one class for each ability: evaluations, pictures and samplers ask for these alone.

A capability is a frozen dataclass of pure functions. Each begins with (params, extra): the parameters of all players,
{player: tree}, and the rest of the state that a loss reads. ctx is a `rng.Context`, whose n indices name the examples.
Every x is as the model sees it. `on_data(read, write)` gives the same capability in the data's own units, where
read(batch, ctx) makes what the model sees of a batch of raw data, and write(x) makes raw data of what it gives.
OF_PARAMETERS names the functions that begin with (params, extra).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp

from aigc_jax.core.types import Array

Read = Callable[[Any, Any], Any]
Write = Callable[[Array], Array]


def _reading(function: Callable, read: Read) -> Callable:
    @functools.wraps(function)
    def reading(params, extra, batch, ctx):
        return function(params, extra, read(batch, ctx), ctx)

    return reading


@dataclasses.dataclass(frozen=True)
class Measures:
    """per_example(params, extra, batch, ctx) -> {metric: (n,)}: one value an example, of which the mean is reported; or
    {metric: ((n,), (n,))}: sums and what they are over, of which the ratio is. Successes and failures are bool.
    Examples are taken to be independent of each other."""

    OF_PARAMETERS: ClassVar = ('per_example',)
    per_example: Callable[..., dict[str, Any]]

    def on_data(self, read: Read, write: Write) -> 'Measures':
        return Measures(_reading(self.per_example, read))


@dataclasses.dataclass(frozen=True)
class Samples:
    """draw(params, extra, ctx, labels) -> (n, *shape): one sample for each of the n indices of ctx.

    num_classes: of the labels (n,) int32 that `draw` wants; 0: the model is unconditional, and labels are None.
    """

    OF_PARAMETERS: ClassVar = ('draw',)
    draw: Callable[..., Array]
    num_classes: int = 0

    def on_data(self, read: Read, write: Write) -> 'Samples':
        draw = lambda params, extra, ctx, labels: write(self.draw(params, extra, ctx, labels))
        return dataclasses.replace(self, draw=draw)


@dataclasses.dataclass(frozen=True)
class Reconstructs:
    """reconstruct(params, extra, batch, ctx) -> (n, *shape): what the model keeps of each example."""

    OF_PARAMETERS: ClassVar = ('reconstruct',)
    reconstruct: Callable[..., Array]

    def on_data(self, read: Read, write: Write) -> 'Reconstructs':
        inner = _reading(self.reconstruct, read)

        def reconstruct(params, extra, batch, ctx):
            return write(inner(params, extra, batch, ctx))

        return Reconstructs(reconstruct)


@dataclasses.dataclass(frozen=True)
class ScalarField:
    """value(params, extra, x (n, *shape), ctx) -> (n,): a function over data space, such as a discriminator's logit.

    label: what it is, with its unit.
    """

    OF_PARAMETERS: ClassVar = ('value',)
    label: str
    value: Callable[..., Array]

    def on_data(self, read: Read, write: Write) -> 'ScalarField':
        value = lambda params, extra, x, ctx: self.value(params, extra, read({'x': x}, ctx)['x'], ctx)
        return dataclasses.replace(self, value=value)


@dataclasses.dataclass(frozen=True)
class LogDensity(ScalarField):
    """A ScalarField that is log p(x) in nats, exact, an unbiased estimate of it, or a lower bound, as `label` says."""


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """encode(params, extra, batch, ctx) -> (n, d) codes; decode(params, extra, codes, labels) -> (n, *shape)."""

    OF_PARAMETERS: ClassVar = ('encode', 'decode')
    encode: Callable[..., Array]
    decode: Callable[..., Array]

    def on_data(self, read: Read, write: Write) -> 'LatentSpace':
        decode = lambda params, extra, codes, labels: write(self.decode(params, extra, codes, labels))
        return LatentSpace(_reading(self.encode, read), decode)


@dataclasses.dataclass(frozen=True)
class Codebook:
    """index(params, extra, batch, ctx) -> (n, …) int32 in 0..size−1: the discrete latent of each example."""

    OF_PARAMETERS: ClassVar = ('index',)
    size: int
    index: Callable[..., Array]

    def on_data(self, read: Read, write: Write) -> 'Codebook':
        return Codebook(self.size, _reading(self.index, read))


@dataclasses.dataclass(frozen=True)
class SplitStatistic:
    """What the final evaluation says of a split as a whole, beyond means over its examples. A task may have several.

    collect(params, extra, batch, ctx) -> {name: (n, …)}, of each example, on the device.
    summarize({name: (N, …)}) -> {metric: a number, or (N,) of which the mean is reported}, on the host.
    most: how many examples of the split are looked at, drawn by rng.fixed_choice; 0: all.
    """

    OF_PARAMETERS: ClassVar = ('collect',)
    collect: Callable[..., dict[str, Array]]
    summarize: Callable[[dict[str, Any]], dict[str, Any]]
    most: int = 0

    def on_data(self, read: Read, write: Write) -> 'SplitStatistic':
        return dataclasses.replace(self, collect=_reading(self.collect, read))


class WritesText:
    """What CausalText and Seq2Seq have in common, which is all that writing text needs (aigc_jax.decoding).

    decode(params, extra, tokens (n, L), cache) -> (logits (n, L, vocabulary), cache): prefill, and each step after it.
    context: the most columns that a cache can have; 0: any number.
    vocab_size, eos: of the tokenizer; eos: None where texts have no end.
    bos: the token that a text without a prompt begins with, which is not written.
    columns: whether the cache has a column for each token that was read, as attention has. It is then a State of
      aigc_jax/nn/language_layers.py whose `layers` have columns at axis −2. Of these `decode` reads, from `start` on,
      only those that `look` of that file gives, each at the place that it gives. So a draft can be taken back, and the
      beams of a text share what they have in common. False: there is no draft, and each beam has a cache of its own.
    A cache is a NamedTuple with the field start (n,). All else in it has texts as its first axis, or is a scalar; a
    model of `columns` may differ.
    """

    decode: Callable[..., tuple[Array, Any]]
    context: int
    vocab_size: int
    eos: int | None
    bos: int
    columns: bool

    def begin(self, params, extra, prompt: Array, start: Array, new: int) -> tuple[Array, Any]:
        """(what `decode` is to read first (n, L), the cache with room for that and `new` tokens more), of prompts
        (n, P) int32, filled on the left up to start (n,)."""
        raise NotImplementedError

    def on_data(self, read: Read, write: Write) -> 'WritesText':
        return self  # tokens are what the data are


@dataclasses.dataclass(frozen=True)
class CausalText(WritesText):
    """A model of text from left to right, which can be scored and generated from (aigc_jax.decoding).

    decode(params, extra, tokens (n, L), cache) -> (logits (n, L, vocabulary), cache): prefill, and each step after it.
    init_cache(n, columns) -> the empty cache of n texts.
    token_nll(params, extra, tokens (n, L + 1)) -> −log p of the last L of them, (n, L) nats.
    context, vocab_size, eos, bos, columns, and what a cache is: see WritesText.
    attention(params, extra, tokens (n, L)) -> weights (layers, n, heads, L, L); None: the model has none.
    """

    OF_PARAMETERS: ClassVar = ('decode', 'token_nll', 'attention')
    decode: Callable[..., tuple[Array, Any]]
    init_cache: Callable[[int, int], Any]
    token_nll: Callable[..., Array]
    context: int
    vocab_size: int
    eos: int | None
    bos: int
    attention: Callable[..., Array] | None = None
    columns: bool = False

    def begin(self, params, extra, prompt: Array, start: Array, new: int) -> tuple[Array, Any]:
        n, length = prompt.shape
        return prompt, self.init_cache(n, length + new)._replace(start=start)


@dataclasses.dataclass(frozen=True)
class Seq2Seq(WritesText):
    """A model that writes a text, the target, for another, the source, which is its prompt.

    decode(params, extra, tokens (n, L), cache) -> (logits (n, L, vocabulary), cache): prefill, and each step after it.
    init_cache(params, extra, source (n, S), start (n,), columns) -> the cache of n targets of at most so many columns;
      it reads the sources, each of which begins at `start`.
    token_nll(params, extra, batch, ctx) -> −log p of each token of the targets, (n, T) nats, and whether there is one,
      (n, T).
    frame: the tokens (before, behind) that stand around a source.
    context, vocab_size, eos, bos, columns, and what a cache is: see WritesText.
    """

    OF_PARAMETERS: ClassVar = ('decode', 'init_cache', 'token_nll')
    decode: Callable[..., tuple[Array, Any]]
    init_cache: Callable[..., Any]
    token_nll: Callable[..., tuple[Array, Array]]
    frame: tuple[tuple[int, ...], tuple[int, ...]]
    vocab_size: int
    eos: int | None
    bos: int
    context: int = 0
    columns: bool = False

    def begin(self, params, extra, prompt: Array, start: Array, new: int) -> tuple[Array, Any]:
        first = jnp.full((prompt.shape[0], 1), self.bos, jnp.int32)
        return first, self.init_cache(params, extra, prompt, start, 1 + new)


@dataclasses.dataclass(frozen=True)
class FillsIn:
    """A model of text that tells hidden tokens from those on both sides.

    fill(params, extra, tokens (n, L), lengths (n,)) -> logits (n, L, vocabulary) of what stands at each place of texts
    that fill the first `lengths` places of their rows; a hidden token is the tokenizer's mask.
    context: the most tokens that it reads.
    """

    OF_PARAMETERS: ClassVar = ('fill',)
    fill: Callable[..., Array]
    context: int

    def on_data(self, read: Read, write: Write) -> 'FillsIn':
        return self  # tokens are what the data are


@dataclasses.dataclass(frozen=True)
class Classifies:
    """A model that tells classes.

    logits(params, extra, batch, ctx) -> (n, classes) of each example; of each token where `by_token`, (n, L, classes).
    Of texts a batch holds tokens (n, L), tokens_length (n,) and, of two texts in a row, types (n, L).
    context: the most tokens that it reads; 0: it reads no text.
    """

    OF_PARAMETERS: ClassVar = ('logits',)
    logits: Callable[..., Array]
    by_token: bool = False
    context: int = 0

    def on_data(self, read: Read, write: Write) -> 'Classifies':
        return self if self.context else dataclasses.replace(self, logits=_reading(self.logits, read))


Capability = (
    Measures | Samples | Reconstructs | ScalarField | LatentSpace | Codebook | SplitStatistic | CausalText | Seq2Seq
    | FillsIn | Classifies
)
