"""Between text and tokens: bytes, characters, words, byte-level BPE. A run keeps its tokenizer beside its config."""

import collections
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax.core import records
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.notes import note

END, UNKNOWN = '<|end|>', '<unk>'
FIM = ('<|prefix|>', '<|suffix|>', '<|middle|>')
KINDS = ('byte', 'char', 'word', 'bpe')
SPECIAL = ('pad', 'mask', 'cls', 'sep')
MOST_SENTINELS = 10_000
_NAMED = re.compile(r'<(?:pad|mask|cls|sep|extra_id_\d+)>')  # how SPECIAL and the sentinels of T5 are written
_MANY_PIECES = 1 << 17  # of BPE; each merge of a text joins two tokens, so there are fewer than bytes
WORD = re.compile(r'\S+|\n')


class Frame(NamedTuple):
    """The special tokens around one text, or around two with some between them."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    behind: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """kind: 'byte', 'char', 'word' or 'bpe'.

    pieces: the text of each token (for 'bpe' in the alphabet of byte-level BPE, Radford et al. 2019, one letter a
    byte). model: of BPE, the JSON of the `tokenizers` library. Behind the pieces come the special tokens that there
    are: those of SPECIAL that `special` names, `num_sentinels` sentinels, the three of infilling (has_fim), and as the
    last one the end of a document (has_end). may_grow: it is of the run that init.run names, to which documents may add
    their end; not saved.
    """

    kind: str
    pieces: tuple[str, ...]
    has_end: bool
    model: str = ''
    has_fim: bool = False
    special: tuple[str, ...] = ()
    num_sentinels: int = 0
    may_grow: bool = dataclasses.field(default=False, compare=False)

    @property
    def _num_pieces(self) -> int:
        return 256 if self.kind == 'byte' else len(self.pieces)

    @functools.cached_property
    def _spellings(self) -> tuple[str, ...]:
        """Of the special tokens, in the order of their ids."""
        sentinels = (f'<extra_id_{i}>' for i in range(self.num_sentinels))
        return (*(f'<{name}>' for name in self.special), *sentinels, *FIM * self.has_fim, *(END,) * self.has_end)

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """{spelling: id} of the special tokens, as `encode` reads and `decode` writes them."""
        return {spelling: self._num_pieces + i for i, spelling in enumerate(self._spellings)}

    @property
    def vocab_size(self) -> int:
        return self._num_pieces + len(self._spellings)

    @property
    def pad(self) -> int | None:
        """The token that fills a row behind its text; None, as of the others below: there is none."""
        return self.special_ids.get('<pad>')

    @property
    def mask(self) -> int | None:
        """The token that stands for one that is hidden (Devlin et al. 2019)."""
        return self.special_ids.get('<mask>')

    @property
    def cls(self) -> int | None:
        """The token before a text that is to be classified."""
        return self.special_ids.get('<cls>')

    @property
    def sep(self) -> int | None:
        """The token behind each of two texts."""
        return self.special_ids.get('<sep>')

    @functools.cached_property
    def sentinels(self) -> tuple[int, ...]:
        """The tokens <extra_id_0>, <extra_id_1>, … that stand for spans that are hidden (Raffel et al. 2020)."""
        return tuple(self.special_ids[f'<extra_id_{i}>'] for i in range(self.num_sentinels))

    @property
    def end(self) -> int | None:
        """The token that stands before each document, and so ends the one before; None: there is one document."""
        return self.vocab_size - 1 if self.has_end else None

    @property
    def bos(self) -> int | None:
        """The token that begins a text: here the end of the one before."""
        return self.end

    def writes_as(self, other: 'Tokenizer') -> bool:
        """Whether each text has the same tokens in both, special ones included."""
        return self == other

    @property
    def before_prompt(self) -> tuple[int, ...]:
        """What a model reads before a prompt that begins a text."""
        return () if self.end is None else (self.end,)

    @property
    def can_grow(self) -> bool:
        """Whether a token that ends a document may be added."""
        return self.may_grow

    @property
    def fim(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, a suffix and the middle between them, in the order in which they come; see
        data/infilling.py. The middle ends with `end`. None: the model was not trained to fill in."""
        return tuple(self.special_ids[spelling] for spelling in FIM) if self.has_fim else None

    @property
    def filler(self) -> int:
        """What stands behind the end of a row, which nothing may read: the padding, if there is one."""
        return next(token for token in (self.pad, self.end, 0) if token is not None)

    @property
    def frame(self) -> Frame:
        """Of a text that is read as a whole: cls, if there is one, before it; sep behind it, or else the end."""
        behind = next(((token,) for token in (self.sep, self.end) if token is not None), ())
        return Frame(() if self.cls is None else (self.cls,), behind, behind)

    @property
    def target_frame(self) -> Frame:
        """Of a text that is to be written."""
        return Frame((), (), () if self.end is None else (self.end,))

    @functools.cached_property
    def num_bytes(self) -> np.ndarray | None:
        """(vocab_size,) int32: the bytes of text that a token stands for; 0 for a special one. None for 'word', whose
        tokens keep neither the white space nor the words that it does not know."""
        if self.kind == 'byte':
            sizes = [1] * 256
        elif self.kind == 'bpe':
            sizes = [len(piece) for piece in self.pieces]
        elif self.kind == 'char':
            sizes = [len(piece.encode(errors='surrogateescape')) for piece in self.pieces]
        else:
            return None
        return np.array(sizes + [0] * len(self._spellings), np.int32)

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """int32 tokens.

        special: a special token that is written in the text, such as <mask>, is that token; else it is text as any.

        Raises:
          UserError: for a character that the vocabulary lacks, and a special token that the tokenizer lacks.
        """
        if special:
            return self._encode_special(text)
        if self.kind == 'byte':
            # As they were read: bytes that are no UTF-8 come as lone surrogates.
            return np.frombuffer(text.encode(errors='surrogateescape'), np.uint8).astype(np.int32)
        if self.kind == 'bpe':
            return np.array(self._bpe.encode(no_halves(text)).ids, np.int32)
        if self.kind == 'word':
            unknown = self._index[UNKNOWN]
            return np.array([self._index.get(word, unknown) for word in WORD.findall(text)], np.int32)
        try:
            return np.array([self._index[letter] for letter in text], np.int32)
        except KeyError as error:
            raise UserError(
                f'the character {error.args[0]!r} is not among the {len(self.pieces)} that the model was trained with'
            ) from None

    def _encode_special(self, text: str) -> np.ndarray:
        ids = self.special_ids
        written = '|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))
        parts = []
        for i, part in enumerate(re.split(f'({written})', text) if ids else [text]):
            if i % 2 == 0 and (lacking := _NAMED.search(part)):
                raise no_special(lacking[0], ids)
            parts.append(np.array([ids[part]], np.int32) if i % 2 else self.encode(part))
        return np.concatenate(parts)

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """encode of each; BPE on all cores."""
        if self.kind == 'bpe':
            return [np.array(found.ids, np.int32) for found in self._bpe.encode_batch([*map(no_halves, texts)])]
        return [self.encode(text) for text in texts]

    def boundaries(self, text: str) -> np.ndarray:
        """(tokens + 1,) int64: where each token of encode(text) begins in the bytes of `text`, and where the last ends.

        Of words: with the white space behind each, the first with what is before it.
        """
        if self.kind == 'word':
            starts = [match.start() for match in WORD.finditer(text)]
            places = [0, *starts[1:], len(text)] if starts else []
            sizes = [len(text[a:b].encode(errors='surrogateescape')) for a, b in itertools.pairwise(places)]
        else:
            sizes = self.num_bytes[self.encode(text)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def decode(self, tokens: Iterable[int], behind: bool = False) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, and special tokens their spellings.

        behind: whether they stand behind others; else a tokenizer of pretrained.py may leave out a space at the begin.
        """
        tokens = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int64)
        first, *others = np.split(tokens, np.flatnonzero(tokens >= self._num_pieces))
        texts = [self._decode(first.tolist())]
        for special, *part in map(np.ndarray.tolist, others):
            texts += [self._spellings[special - self._num_pieces], self._decode(part)]
        return ''.join(texts)

    def _decode(self, tokens: Sequence[int]) -> str:
        if self.kind == 'byte':
            return bytes(tokens).decode(errors='replace')
        if self.kind == 'bpe':
            return self._bpe.decode(tokens, skip_special_tokens=False)
        text = no_halves((' ' if self.kind == 'word' else '').join(self.pieces[token] for token in tokens))
        return re.sub(' ?\n ?', '\n', text) if self.kind == 'word' else text

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        del fields['may_grow']
        for name in ('has_fim', 'special', 'num_sentinels'):  # as runs without them have always been written
            if not fields[name]:
                del fields[name]
        return json.dumps(fields) + '\n'

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {piece: token for token, piece in enumerate(self.pieces)}

    @functools.cached_property
    def _bpe(self):
        return self.library()

    def library(self):
        """A `tokenizers.Tokenizer` of its own, of a tokenizer of kind 'bpe'; without the special tokens."""
        from tokenizers import models

        return byte_level(models.BPE(*_pieces_and_merges(self.model, self.pieces)))


def no_special(lacking: str, ids: Collection[str]) -> UserError:
    """What is raised for a special token that is written in a text and that there is not."""
    has = ', '.join([*ids][:8]) + ', …' * (len(ids) > 8) or 'none'
    return UserError(f'{lacking}: the tokenizer has no such special token; it has {has}')


def bytes_of_letters() -> dict[str, int]:
    """The alphabet of byte-level BPE (Radford et al. 2019): a printable byte is its own letter, the others follow."""
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def no_halves(text: str) -> str:
    """The text with U+FFFD for bytes that were no UTF-8, which come as lone surrogates."""
    return text if text.isascii() else text.encode(errors='surrogateescape').decode(errors='replace')


def from_json(fields: dict) -> Tokenizer:
    """The tokenizer with the fields of a tokenizer.json. Raises ValueError, which says what is wrong with them."""
    if fields.get('kind') == 'huggingface':
        from aigc_jax.data import pretrained  # which is made of this file

        return pretrained.from_json(fields)
    own = {'kind': str, 'pieces': list, 'has_end': bool, 'model': str, 'has_fim': bool}
    own |= {'special': list, 'num_sentinels': int}
    fields = {'model': '', 'has_fim': False, 'special': [], 'num_sentinels': 0, **fields}
    for name in fields | own:
        if name not in own or type(fields.get(name)) is not own[name]:
            raise ValueError(f'{name} is {"missing" if name not in fields else "not what a tokenizer has"}')
    kind, pieces = fields['kind'], fields['pieces']
    letter = r'[^\ud800-\udc7f\udd00-\udfff]'  # the surrogates between them stand for bytes that are no UTF-8
    spelled = {'byte': '(?!)', 'char': letter, 'word': f'(?:(?!\\s){letter})+|\n', 'bpe': '.+'}
    if kind not in spelled:
        raise ValueError(f'kind is {kind[:20]!r}{near(kind[:20], KINDS)}')
    if not all(type(piece) is str and re.fullmatch(spelled[kind], piece, re.DOTALL) for piece in pieces):
        raise ValueError(f'a piece is none of kind {kind}')
    if len({*pieces}) < len(pieces):
        raise ValueError('two pieces are the same')
    if (kind == 'word' and UNKNOWN not in pieces) or (kind == 'char' and not pieces) or bool(fields['model']) != (
        kind == 'bpe'
    ):
        raise ValueError(f'pieces or model are not of kind {kind}')
    if fields['special'] != [name for name in SPECIAL if name in fields['special']]:
        raise ValueError(f'special is not of {", ".join(SPECIAL)}, in this order')
    if not 0 <= fields['num_sentinels'] <= MOST_SENTINELS:
        raise ValueError(f'num_sentinels is not 0 to {MOST_SENTINELS}')
    if kind == 'bpe':
        _pieces_and_merges(fields['model'], pieces)
    return Tokenizer(**{**fields, 'pieces': tuple(pieces), 'special': tuple(fields['special'])})


def _pieces_and_merges(model: str, pieces: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) of a BPE, from the library's JSON. All else in it must be as `_train_bpe` leaves it, because
    other regular expressions and replacements could take any time. Raises ValueError."""
    from tokenizers import pre_tokenizers

    whole = records.parse(model)
    try:
        bpe, steps = whole['model'], [(whole[name] or {}).get('type') for name in ('pre_tokenizer', 'decoder')]
        none = 'normalizer', 'post_processor', 'added_tokens', 'truncation', 'padding'
        odd = [name for name in none if whole[name]]
        odd += [name for name, value in bpe.items() if name not in ('type', 'vocab', 'merges') and value]
        vocab, merges = bpe['vocab'], [tuple(m.split(' ') if isinstance(m, str) else m) for m in bpe['merges']]
    except (KeyError, TypeError, AttributeError):
        raise ValueError('model is no JSON of the tokenizers library') from None
    if bpe.get('type') != 'BPE' or steps != ['ByteLevel', 'ByteLevel'] or odd:
        raise ValueError(f'model is no byte-level BPE alone{": it has " + ", ".join(odd)[:200] if odd else ""}')
    if vocab != {piece: token for token, piece in enumerate(pieces)} or any(type(n) is not int for n in vocab.values()):
        raise ValueError('the vocabulary of model is not that of pieces')
    if not all(len(m) == 2 and all(type(p) is str and p in vocab for p in (*m, ''.join(map(str, m)))) for m in merges):
        raise ValueError('model merges what are no pieces')
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if not alphabet <= vocab.keys() or not alphabet.issuperset(''.join(pieces)):
        raise ValueError('pieces are not of the 256 letters that stand for bytes')
    return vocab, merges


def train(
    kind: str, documents: Iterable[str], train_documents: Iterable[str], vocab_size: int, has_end: bool,
    has_fim: bool = False, special: Collection[str] = (), num_sentinels: int = 0,
) -> Tokenizer:  # fmt: skip
    """A tokenizer for `documents`, a function of them alone; each iterable is read once at most.

    vocab_size: of 'word' (the most frequent of the training documents, ties in the order of the alphabet) and 'bpe'
    (learned from the training documents), at most, as a small text has fewer; the others have what they need. The
    characters are those of all documents, as char-rnn and nanoGPT have them. special: of SPECIAL, in any order. Raises
    UserError.
    """
    made = functools.partial(
        Tokenizer, kind, has_end=has_end, has_fim=has_fim, special=tuple(name for name in SPECIAL if name in special),
        num_sentinels=num_sentinels,
    )  # fmt: skip
    num_pieces = vocab_size - len(made(pieces=())._spellings)
    if kind in ('word', 'bpe') and num_pieces < 2:
        least = vocab_size - num_pieces + 2
        raise UserError(f'data.vocab_size: {vocab_size}; a tokenizer of kind {kind} needs {least} or more')
    if kind == 'byte':
        return made(pieces=())
    if kind == 'char':
        letters = set()
        for text in documents:
            letters.update(text)
        return made(pieces=tuple(sorted(letters)))
    if kind == 'word':
        counts = collections.Counter(word for text in train_documents for word in WORD.findall(text))
        counts.pop(UNKNOWN, None)  # PTB's own
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: num_pieces - 1]
        found = made(pieces=(UNKNOWN, *frequent))
    else:
        pieces, model = _train_bpe(train_documents, num_pieces, vocab_size)
        found = made(pieces=pieces, model=model)
    if found.vocab_size < vocab_size:
        note(f'data.vocab_size: {found.vocab_size}, for the training text gives no more than that of {vocab_size}')
    return found


def _train_bpe(documents: Iterable[str], num_pieces: int, vocab_size: int) -> tuple[tuple[str, ...], str]:
    from tokenizers import models, pre_tokenizers, trainers

    if num_pieces < 256:
        raise UserError(f'data.vocab_size: {vocab_size}; byte-level BPE begins with 256 bytes')
    if num_pieces > _MANY_PIECES:  # for which the trainer takes memory beforehand, and aborts where there is none
        documents = list(documents)
        num_pieces = min(num_pieces, 256 + sum(len(text.encode(errors='surrogateescape')) for text in documents))
    bpe = byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=num_pieces, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(map(no_halves, documents), trainer)
    pieces = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    return tuple(piece for piece, _ in pieces), bpe.to_str()


def byte_level(model, add_prefix_space: bool = False):
    """The `tokenizers.Tokenizer` of a BPE model."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space), decoders.ByteLevel()
    return bpe
