"""Classes of texts of a user, and of the words of a text, told by a model that was trained to (core.capabilities)."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.core.errors import UserError, printable
from aigc_jax.data import Tokenizer
from aigc_jax.reports.filling import fitting

_SHOWN = 5  # classes of a text, the likeliest


@dataclasses.dataclass(frozen=True)
class Told:
    """str: the likeliest class. shares: {class: probability}, the likeliest first. text: what it is told of."""

    text: str
    shares: Mapping[str, float]

    def __str__(self) -> str:
        return next(iter(self.shares))

    def line(self, named: bool = False) -> str:
        """For a person, one line; named: behind the text."""
        shares = '  '.join(f'{_shown(name)} {share:.3f}' for name, share in [*self.shares.items()][:_SHOWN])
        return f'{_shown(self.text)}\t{shares}' if named else shares


def _shown(text: str) -> str:
    """In one line: a token may be a line break, and a class may have any name."""
    return printable(text).replace('\n', '\\n')


def told(text: str, logits: np.ndarray, names: Sequence[str]) -> Told:
    """logits (classes,), names of the classes; () where they have numbers alone."""
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind='stable')
    return Told(text, {names[k] if names else str(k): float(shares[k]) for k in order})


def check_count(example: tuple[str, ...], columns: Sequence[str]) -> None:
    """Raises UserError unless `example` is a tuple of as many texts as the model was trained on, which its data name
    `columns`; (): of one or two."""
    wanted = [len(columns)] if columns else [1, 2]
    if not (isinstance(example, tuple) and len(example) in wanted):
        mend = ', or '.join(('texts', 'tuples of two')[count - 1] for count in wanted)
        names = f', {" and ".join(columns)}, as those of its training' if columns[1:] else ''
        raise UserError(f'classify: {str(example):.40}; give {mend}{names}')


def framed(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (L,) of one text, or of two in a row, in their frame, and the type of each: 0, and 1 from the second
    text on. Raises UserError."""
    before, between, behind = tokenizer.frame
    parts = [before, tokenizer.encode(texts[0]), between if len(texts) > 1 else behind]
    first = sum(map(len, parts))
    if len(texts) > 1:
        parts += [tokenizer.encode(texts[1]), behind]
    tokens = fitting(parts, texts[0], context)
    return tokens, (np.arange(len(tokens)) >= first).astype(np.int32)


def words(tokenizer: Tokenizer, text: str, by_word: bool) -> list[tuple[int, str]]:
    """(place of its first token in the frame, the word) of each word, which is what white space divides; of each token,
    unless by_word."""
    ends, raw = tokenizer.boundaries(text), text.encode(errors='surrogateescape')
    spans = [*zip(ends[:-1], ends[1:], strict=True)]
    if by_word:
        spans = [match.span() for match in re.finditer(rb'\S+', raw)]
    first = np.searchsorted(ends, [begin for begin, _ in spans], 'right') - 1 + len(tokenizer.frame.before)
    as_text = lambda begin, end: raw[begin:end].decode(errors='replace')
    return [(int(place), as_text(*span)) for place, span in zip(first, spans, strict=True)]
