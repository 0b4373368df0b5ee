"""From windows of text to sources and targets, by which encoder-decoders are pre-trained, inside the compiled step.

A window of length + 1 tokens, as language models have it, gives its first `length` to source and target. All draws are
functions of (seed, step, example).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch
from aigc_jax.data import infilling
from aigc_jax.data.specs import NO_TAG
from aigc_jax.data.tokenizers import Tokenizer

Pair = dict[str, Array]  # as a batch of specs.Pairs is: source, source_length, target, target_length; see `tagged`


class Objective(NamedTuple):
    """transform(batch, ctx) -> Pair, of a batch with tokens (n, length + 1); behind: the tokens behind a source."""

    transform: Callable[[Batch, rng.Context], Pair]
    behind: tuple[int, ...]


class SpanSizes(NamedTuple):
    """Of a window whose spans are hidden, as random_spans_helper of T5's code counts: tokens that are hidden, spans of
    them, and tokens of source and target, the end of each counted where the tokenizer has one."""

    hidden: int
    spans: int
    source: int
    target: int


def span_sizes(length: int, density: float, mean_span: float, ends: bool = True) -> SpanSizes:
    """Raises UserError for a window that is too short."""
    hidden = min(max(round(length * density), 1), length - 1)
    spans = max(round(hidden / mean_span), 1)
    if not spans <= min(hidden, length - hidden):
        raise UserError(
            f'task.mean_span: {mean_span:g}, and task.noise_density, {density:g}: {length} tokens have {hidden} to '
            f'hide, which are no {spans} spans with a token between each two'
        )
    return SpanSizes(hidden, spans, length - hidden + spans + ends, hidden + spans + ends)


def spans(tokenizer: Tokenizer, density: float, mean_span: float) -> Objective:
    """Span corruption (Raffel et al. 2020, section 3.1.4, and their code): of a window, `density` of the tokens are
    hidden, in spans of `mean_span` on average, and a sentinel stands for each span. The target has each sentinel with
    what it hides. All ways to divide a number of tokens into spans are equally likely, and a window begins with a token
    that is kept."""
    end = () if tokenizer.end is None else (tokenizer.end,)

    def one(tokens: Array, u: Array, sizes: SpanSizes, sentinels: Array) -> tuple[Array, Array]:
        length, kept = len(tokens), len(tokens) - sizes.hidden
        of_kept = _composition(u[: kept - 1], kept, sizes.spans)
        of_hidden = _composition(u[kept - 1 :], sizes.hidden, sizes.spans)
        until = jnp.cumsum(jnp.stack([of_kept, of_hidden], axis=1).reshape(-1))  # kept, hidden, kept, …
        place = jnp.arange(length)
        part = jnp.searchsorted(until, place, side='right')
        hidden, span = part % 2 == 1, part // 2
        begins = hidden & ((place == 0) | (part != jnp.roll(part, 1)))
        source = _gathered(jnp.where(begins, sentinels[span], tokens), ~hidden | begins, sizes.source, end)
        return source, _told(tokens, hidden, begins, sentinels[span], sizes.target, end)[0]

    def transform(batch: Batch, ctx: rng.Context) -> Pair:
        tokens = batch['tokens'][:, :-1]
        n, length = tokens.shape
        sizes = span_sizes(length, density, mean_span, bool(end))
        sentinels = _sentinels(tokenizer, sizes.spans)
        of_all = jax.vmap(one, in_axes=(0, 0, None, None))
        source, target = of_all(tokens, ctx.uniform('spans', (length - 2,)), sizes, sentinels)
        return _pair(source, jnp.full(n, sizes.source), target, jnp.full(n, sizes.target))

    return Objective(transform, end)


def names(tokenizer: Tokenizer) -> Objective:
    """Masked identifier prediction (Wang et al. 2021, section 3.2): one sentinel stands for all occurrences of one
    identifier, and the target has each sentinel with its identifier, in the order in which they first occur. Those that
    are whole in the window are hidden, from the first on, as many as there are sentinels and as half of the window's
    tokens hold.

    batch['names'] (n, length + 1): see infilling.numbered.
    """
    end = () if tokenizer.end is None else (tokenizer.end,)
    sentinels = _sentinels(tokenizer, 1)

    def one(tokens: Array, names: Array) -> tuple[Array, Array, Array, Array]:
        length, place = len(tokens), jnp.arange(len(tokens))
        of, follows = names[:-1], names[1:] == infilling.GOES_ON
        begin = of > 0
        start = jax.lax.cummax(jnp.where(begin, place, -1))
        inside = (begin | (of == infilling.GOES_ON)) & (start >= 0)
        cut = follows[-1] & (start == start[-1])  # an identifier that the window does not hold whole
        begin, inside = begin & ~cut, inside & ~cut
        same = begin & begin[:, None] & (of == of[:, None])
        first = jnp.where(begin, jnp.argmax(same, axis=1), length)  # where this identifier stands first
        first = first[jnp.maximum(start, 0)]
        is_first = begin & (first == place)
        rank = jnp.cumsum(is_first) - 1
        size = jnp.zeros(length, jnp.int32).at[start].add(inside)
        needed = jnp.cumsum(jnp.where(is_first, 1 + size, 0)) + len(end)
        fits = is_first & (needed <= length // 2) & (rank < len(sentinels))
        hidden = inside & fits[jnp.minimum(first, length - 1)]
        sentinel = sentinels[jnp.clip(rank[jnp.minimum(first, length - 1)], 0, len(sentinels) - 1)]
        kept = ~hidden | (hidden & begin)
        source = _gathered(jnp.where(hidden, sentinel, tokens), kept, length + len(end), end)
        told = hidden & (first == start)
        target, target_length = _told(tokens, told, told & begin, sentinel, length // 2, end)
        return source, jnp.sum(kept) + len(end), target, target_length

    def transform(batch: Batch, ctx: rng.Context) -> Pair:
        return _pair(*jax.vmap(one)(batch['tokens'][:, :-1], batch['names']))

    return Objective(transform, end)


def identifier_aware(tokenizer: Tokenizer, density: float, mean_span: float) -> Objective:
    """Half of the windows with spans that are hidden, half with identifiers, each drawn for itself (Wang et al. 2021,
    section 3.2; `partly_tagged` adds their tagging of identifiers)."""
    of_spans, of_names = spans(tokenizer, density, mean_span), names(tokenizer)

    def transform(batch: Batch, ctx: rng.Context) -> Pair:
        a, b = of_spans.transform(batch, ctx), of_names.transform(batch, ctx)
        return _either(ctx.uniform('objective') < 0.5, b, a)

    return Objective(transform, of_spans.behind)


def tagged(batch: Batch, end: tuple[int, ...]) -> Pair:
    """Identifier tagging (Wang et al. 2021, section 3.2): each window as it is, as a source, without a target.

    Its 'tags' (n, tokens of the source) int32 are 1 where a token is of an identifier, or of the rest of one that the
    window cuts, and else 0; NO_TAG where a document ends. batch['names']: see infilling.numbered. end: the tokens
    behind a source.
    """
    tokens, of = batch['tokens'][:, :-1], batch['names'][:, :-1]
    n, length = tokens.shape
    behind = lambda x, values: jnp.concatenate([x, jnp.tile(jnp.array(values, x.dtype), (n, 1))], axis=1)
    source, tags = behind(tokens, end), behind(of != 0, (False,) * len(end)).astype(jnp.int32)
    tags = jnp.where(jnp.isin(source, jnp.array(end, jnp.int32)), NO_TAG, tags)
    no_target = jnp.zeros((n, 1), jnp.int32), jnp.zeros(n, jnp.int32)
    return {**_pair(source, jnp.full(n, length + len(end)), *no_target), 'tags': tags}


def partly_tagged(pair: Pair, batch: Batch, ctx: rng.Context, share: float, end: tuple[int, ...]) -> Pair:
    """`pair`, which an objective has made of `batch`, in which a share of the windows, each drawn for itself, is
    `tagged` in place of having something hidden. The tags of the others are NO_TAG."""
    pair = {**pair, 'tags': jnp.full_like(pair['source'], NO_TAG)}
    return _either(ctx.uniform('tagging') < share, tagged(batch, end), pair)


def prefix() -> Objective:
    """A prefix language model (Raffel et al. 2020, section 3.2.3): a window is cut between two of its tokens, with each
    place as likely. What is before is the source, the rest is the target. Neither ends, for the text goes on."""

    def transform(batch: Batch, ctx: rng.Context) -> Pair:
        tokens = batch['tokens'][:, :-1]
        most = tokens.shape[1] - 1  # of each of the two
        cut = 1 + jnp.minimum((ctx.uniform('cut') * most).astype(jnp.int32), most - 1)
        place = jnp.arange(most)
        source = jnp.where(place < cut[:, None], tokens[:, :most], 0)
        behind = jnp.take_along_axis(tokens, jnp.minimum(cut[:, None] + place, most), axis=1)
        length = most + 1 - cut
        return _pair(source, cut, jnp.where(place < length[:, None], behind, 0), length)

    return Objective(transform, ())


def _pair(source: Array, source_length: Array, target: Array, target_length: Array) -> Pair:
    return dict(source=source, source_length=source_length, target=target, target_length=target_length)


def _either(is_first: Array, first: Pair, second: Pair) -> Pair:
    """Of each row that of one of two pairs, whose tokens are filled up to the same width."""

    def chosen(name: str) -> Array:
        a, b = first[name], second[name]
        if a.ndim == 1:
            return jnp.where(is_first, a, b)
        width, value = max(a.shape[1], b.shape[1]), NO_TAG if name == 'tags' else 0
        fill = lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=value)
        return jnp.where(is_first[:, None], fill(a), fill(b))

    return {name: chosen(name) for name in first}


def _sentinels(tokenizer: Tokenizer, least: int) -> Array:
    """(sentinels,) int32. Raises UserError where there are too few."""
    if len(tokenizer.sentinels) < least:
        has = len(tokenizer.sentinels)
        raise UserError(f'data.sentinels: {has}; a window has {least} spans to hide, so set it to {least} or more')
    return jnp.array(tokenizer.sentinels, jnp.int32)


def _composition(u: Array, total: int, parts: int) -> Array:
    """(parts,) sizes of 1 or more whose sum is `total`, each way as likely, of draws u (total − 1,)."""
    begins = jnp.argsort(jnp.argsort(u)) < parts - 1
    part = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(begins)])
    return jnp.zeros(parts, jnp.int32).at[part].add(1)


def _told(tokens: Array, hidden: Array, begins: Array, sentinel: Array, size: int, end: tuple[int, ...]):
    """(target (size,), its length ()): the hidden tokens, before each run of them, where it begins, its sentinel."""
    # Before each of the hidden tokens there are as many sentinels as runs have begun.
    at = jnp.cumsum(hidden) - 1 + jnp.cumsum(begins)
    target = jnp.zeros(size, jnp.int32)
    target = target.at[jnp.where(hidden, at, size)].set(tokens, mode='drop')
    target = target.at[jnp.where(begins, at - 1, size)].set(sentinel, mode='drop')
    length = jnp.sum(hidden) + jnp.sum(begins)
    return (target.at[length].set(end[0], mode='drop') if end else target), length + len(end)


def _gathered(values: Array, chosen: Array, size: int, end: tuple[int, ...], fill: int = 0) -> Array:
    """(size,): the chosen values in their order, and the end behind the last."""
    found = jnp.full(size, fill, jnp.int32)
    found = found.at[jnp.where(chosen, jnp.cumsum(chosen) - 1, size)].set(values, mode='drop')
    return found.at[jnp.sum(chosen)].set(end[0]) if end else found
