"""Between text and tokens: bytes, characters, words, byte-level BPE. A run keeps its tokenizer beside its config."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Sequence

import numpy as np

from aigc_jax.core.errors import UserError, near

END, UNKNOWN = '<|end|>', '<unk>'
WORD = re.compile(r'\S+|\n')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """kind: 'byte', 'char', 'word' or 'bpe'.

    pieces: the text of each token (for 'bpe' in the alphabet of byte-level BPE, Radford et al. 2019, one letter a
    byte); the end of a document, where there is one, is the last. model: of BPE, the JSON of the `tokenizers` library.
    """

    kind: str
    pieces: tuple[str, ...]
    has_end: bool
    model: str = ''

    @property
    def vocab_size(self) -> int:
        return (256 if self.kind == 'byte' else len(self.pieces)) + self.has_end

    @property
    def end(self) -> int | None:
        """The token that stands before each document, and so ends the one before; None: there is one document."""
        return self.vocab_size - 1 if self.has_end else None

    @functools.cached_property
    def num_bytes(self) -> np.ndarray:
        """(vocab_size,) int32: the bytes of text that a token stands for; 0 for the end of a document."""
        if self.kind == 'byte':
            sizes = [1] * 256
        elif self.kind == 'bpe':
            sizes = [len(piece) for piece in self.pieces]
        else:  # a word has the space behind it
            sizes = [len(piece.encode()) + (self.kind == 'word' and piece != '\n') for piece in self.pieces]
        return np.array(sizes + [0] * self.has_end, np.int32)

    def encode(self, text: str) -> np.ndarray:
        """int32 tokens. Raises UserError for a character that the vocabulary lacks."""
        if self.kind == 'byte':
            # As they were read: bytes that are no UTF-8 come as lone surrogates.
            return np.frombuffer(text.encode(errors='surrogateescape'), np.uint8).astype(np.int32)
        if self.kind == 'bpe':
            return np.array(self._bpe.encode(text).ids, np.int32)
        if self.kind == 'word':
            unknown = self._index[UNKNOWN]
            return np.array([self._index.get(word, unknown) for word in WORD.findall(text)], np.int32)
        try:
            return np.array([self._index[letter] for letter in text], np.int32)
        except KeyError as error:
            raise UserError(
                f'the character {error.args[0]!r} is not among the {len(self.pieces)} that the model was trained with'
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, and the end of a document END."""
        documents = [[]]
        for token in np.asarray(tokens, np.int64).tolist():
            if token == self.end:
                documents.append([])
            else:
                documents[-1].append(token)
        return END.join(map(self._decode, documents))

    def _decode(self, tokens: Sequence[int]) -> str:
        if self.kind == 'byte':
            return bytes(tokens).decode(errors='replace')
        if self.kind == 'bpe':
            return self._bpe.decode(tokens, skip_special_tokens=False)
        text = (' ' if self.kind == 'word' else '').join(self.pieces[token] for token in tokens)
        return text.replace(' \n ', '\n').replace('\n ', '\n') if self.kind == 'word' else text

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self)) + '\n'

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {piece: token for token, piece in enumerate(self.pieces)}

    @functools.cached_property
    def _bpe(self):
        import tokenizers

        return tokenizers.Tokenizer.from_str(self.model)


def from_json(text: str) -> Tokenizer:
    """The tokenizer of a run's folder. Raises ValueError, KeyError or TypeError where the text is none."""
    fields = json.loads(text)
    return Tokenizer(**{**fields, 'pieces': tuple(fields['pieces'])})


def train(kind: str, documents: Sequence[str], train_documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer for `documents`, a function of them alone.

    vocab_size: of 'word' (the most frequent of the training documents, ties in the order of the alphabet) and 'bpe'
    (learned from the training documents); the others have what they need. The characters are those of all documents,
    as char-rnn and nanoGPT have them. Raises UserError.
    """
    has_end = len(documents) > 1
    if kind not in KINDS:
        raise UserError(f'data.tokenizer: {kind!r}{near(kind, KINDS)}')
    if kind in ('word', 'bpe') and vocab_size < 2 + has_end:
        raise UserError(f'data.vocab_size: {vocab_size}; a tokenizer of kind {kind} needs {2 + has_end} or more')
    if kind == 'byte':
        return Tokenizer('byte', (), has_end)
    if kind == 'char':
        return Tokenizer('char', tuple(sorted(set().union(*documents))), has_end)
    if kind == 'word':
        counts = collections.Counter(word for text in train_documents for word in WORD.findall(text))
        counts.pop(UNKNOWN, None)  # PTB's own
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - 1 - has_end]
        return Tokenizer('word', (UNKNOWN, *frequent), has_end)
    return _train_bpe(train_documents, vocab_size - has_end, has_end)


def _train_bpe(documents: Sequence[str], vocab_size: int, has_end: bool) -> Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 256:
        raise UserError(f'data.vocab_size: {vocab_size + has_end}; byte-level BPE begins with 256 bytes')
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(documents, trainer)
    pieces = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    return Tokenizer('bpe', tuple(piece for piece, _ in pieces), has_end, bpe.to_str())


KINDS = ('byte', 'char', 'word', 'bpe')
