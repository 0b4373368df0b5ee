"""Training windows turned into infilling: what is missing in the middle comes last (Bavarian et al. 2022).

A window that was A B C becomes [prefix] A [suffix] C [middle] B [end] (section 3: their PSM order, in a window), cut
between tokens. B lies between two cuts drawn uniformly, or is one occurrence of an identifier: the masked identifiers
of CodeT5 (Wang et al. 2021, section 3.2), for a decoder and one at a time.
"""

import keyword
import re

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch
from aigc_jax.data.tokenizers import Tokenizer

GOES_ON = -1  # in the numbers of identifiers
SHORTEST = 8  # tokens of a window, four of which make room for the special ones
_BEGIN, _LAST = 1, 2  # bits of a mark: an identifier begins with this token, it ends with this token
_NAME = rb'[A-Za-z_\x80-\xff][\w\x80-\xff]*'
# Comments, strings and numbers are passed over, so that what is in them is no identifier.
_PYTHON = re.compile(
    rb"#[^\n]*|[A-Za-z]{0,2}(?:'''(?:\\.|[^\\])*?'''|"
    rb'"""(?:\\.|[^\\])*?"""'
    rb"|'(?:\\.|[^'\\\n])*'|"
    rb'"(?:\\.|[^"\\\n])*")|\d[\w.]*|(' + _NAME + rb')',
    re.DOTALL,
)
_WORDS = re.compile(rb'\d[\w.]*|(' + _NAME + rb')')
_KEYWORDS = frozenset(word.encode() for word in keyword.kwlist)


def check(cfg) -> None:
    """Raises UserError for rates that do not fit the windows of `cfg`, the config's `data`."""
    if not cfg.fim_rate:
        if cfg.fim_identifiers:
            raise UserError('data.fim_identifiers: a share of the windows that are infilled; set data.fim_rate too')
        return
    if cfg.order == 'contiguous':
        raise UserError('data.fim_rate: infilling reorders each window by itself; set data.order to shuffled')
    if cfg.block < SHORTEST:
        raise UserError(f'data.fim_rate: infilling needs windows of {SHORTEST} tokens; data.block is {cfg.block}')


def marks(tokenizer: Tokenizer, document: str, is_code: bool) -> np.ndarray:
    """uint8 of each token of a document: bit 0 where an identifier begins with it, bit 1 where one ends with it.

    In Python source what is no keyword and stands in no string or comment, in other text each word. An identifier
    counts where its tokens hold nothing else but white space.
    """
    raw, spans = document.encode(errors='surrogateescape'), identifiers(document, is_code)
    boundaries = tokenizer.boundaries(document)
    found = np.zeros(len(boundaries) - 1, np.uint8)
    if not spans:
        return found
    begin, end = np.array(spans).T
    first = np.searchsorted(boundaries, begin, 'right') - 1
    last = np.searchsorted(boundaries, end - 1, 'right') - 1
    # How many bytes before each place are no white space: equal at two places where nothing else lies between them.
    solid = np.concatenate([[0], np.cumsum(~np.isin(np.frombuffer(raw, np.uint8), list(b' \t\r\n\f')))])
    alone = (solid[boundaries[first]] == solid[begin]) & (solid[boundaries[last + 1]] == solid[end])
    found[first[alone]] |= _BEGIN
    found[last[alone]] |= _LAST
    return found


def numbered(tokenizer: Tokenizer, document: str, is_code: bool, numbers: dict[bytes, int]) -> np.ndarray:
    """int32 of each token of a document: where an identifier of `marks` begins its number, 1 and on, the same for the
    same identifier; GOES_ON where it goes on; else 0. numbers: those that there are, to which new ones are added."""
    mark, boundaries = marks(tokenizer, document, is_code), tokenizer.boundaries(document)
    raw, found = document.encode(errors='surrogateescape'), np.zeros(len(mark), np.int32)
    for first, last in zip(np.flatnonzero(mark & _BEGIN), np.flatnonzero(mark & _LAST), strict=True):
        name = raw[boundaries[first] : boundaries[last + 1]].strip()
        found[first : last + 1] = GOES_ON
        found[first] = numbers.setdefault(name, len(numbers) + 1)
    return found


def identifiers(document: str, is_code: bool) -> list[tuple[int, int]]:
    """(begin, end) in the bytes of a document of each identifier, as `marks` tells them."""
    raw = document.encode(errors='surrogateescape')
    return [
        match.span(1)
        for match in (_PYTHON if is_code else _WORDS).finditer(raw)
        if match.lastindex and not (is_code and match[1] in _KEYWORDS)
    ]


def make_transform(cfg, tokenizer: Tokenizer):
    """transform(batch, ctx) -> batch, inside the compiled step; draws are functions of (seed, step, example).

    batch['tokens'] (n, T) int32 and, where there are identifiers to be masked, batch['identifiers'] (n, T), the marks.
    Of the windows, `data.fim_rate` are infilled, inside the document in which a token drawn from the window lies; what
    is before and after it in the window stays. The last three or four tokens of the window are lost.
    """
    fim_rate, by_name, special, end = cfg.fim_rate, cfg.fim_identifiers, tokenizer.fim, tokenizer.end

    def one(tokens: Array, mark: Array, u: Array) -> Array:
        length = tokens.shape[0]
        place = jnp.arange(length)
        floor = lambda share, n: jnp.minimum((share * n).astype(jnp.int32), n - 1)  # of {0, …, n − 1}
        is_end = tokens == end
        point = floor(u[1], length - 4)
        start = jnp.max(jnp.where(is_end & (place <= point), place + 1, 0))
        stop = jnp.min(jnp.where(is_end & (place > point) & (place < length - 3), place, length))
        ended = stop < length  # the end that follows the document serves as that of the middle
        stop = jnp.where(ended, stop, length - 4)
        total = stop - start  # ≥ 0: the point may be the very end that begins an empty rest
        cuts = floor(u[2:4], total + 1)
        a, b = jnp.min(cuts), jnp.max(cuts)
        if by_name:
            last = jax.lax.cummin(jnp.where(mark & _LAST > 0, place, length), reverse=True)
            rank = jnp.cumsum((mark & _BEGIN > 0) & (place >= start) & (last < stop))
            begin = jnp.argmax(rank == 1 + floor(u[4], rank[-1]))  # the first place of that rank
            named = (u[5] < by_name) & (rank[-1] > 0)
            a, b = jnp.where(named, begin - start, a), jnp.where(named, last[begin] + 1 - start, b)
        suffix_at, middle_at, end_at = start + 1 + a, start + 2 + a + total - b, start + 3 + total
        source = jnp.select(
            [place < start, place < suffix_at, place < middle_at, place < end_at],
            [place, place - 1, place - 2 - a + b, place - 3 - total + b],
            place - 3,
        )
        out = jnp.take(tokens, jnp.clip(source, 0, length - 1))
        for where, token in zip((start, suffix_at, middle_at), special, strict=True):
            out = jnp.where(place == where, token, out)
        out = jnp.where((place == end_at) & ~ended, end, out)
        return jnp.where(u[0] < fim_rate, out, tokens)

    def transform(batch: Batch, ctx: rng.Context) -> Batch:
        rest = {name: value for name, value in batch.items() if name != 'identifiers'}
        mark = batch['identifiers'] if by_name else batch['tokens']  # of the latter nothing is read
        return {**rest, 'tokens': jax.vmap(one)(batch['tokens'], mark, ctx.uniform('infilling', (6,)))}

    return transform
