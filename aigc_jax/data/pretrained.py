"""Tokenizers of Hugging Face, as data: a tokenizer.json of the `tokenizers` library, with the roles of its tokens.

data/tokenizer_files.py reads them from a folder and writes a folder of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from aigc_jax.core import records
from aigc_jax.core.errors import UserError, first_line
from aigc_jax.data.tokenizers import Frame, Tokenizer, bytes_of_letters, no_halves, no_special

KIND = 'huggingface'
ROLES = ('pad', 'mask', 'cls', 'sep', 'eos', 'bos', 'unk')
_SENTINEL = '<extra_id_{}>'


@dataclasses.dataclass(frozen=True)
class Pretrained(Tokenizer):
    """kind: 'huggingface'. model: the text of its tokenizer.json. config: that of its tokenizer_config.json, in which
    each role that there is has its token ('pad_token', …).

    `encode` frames no text, and a special token that stands in a text is text; `frame` tells what the tokenizer puts
    around one text and between two. Tokens are otherwise those of transformers' AutoTokenizer.
    """

    config: str = '{}'

    def writes_as(self, other: Tokenizer) -> bool:
        return (
            isinstance(other, Pretrained) and (self.roles, self.frame) == (other.roles, other.frame)
            and (self.model == other.model or self._rules == other._rules)
        )  # fmt: skip

    @functools.cached_property
    def _rules(self) -> dict[str, Any]:
        """What decides the tokens of each text and the text of tokens, the same of each file that says the same, such
        as a spiece.model and the tokenizer.json made of it. Special tokens have their numbers in `vocab`; the rest that
        a file says of them is of texts that may hold some, as prompts may."""
        whole = json.loads(backend(self.model).to_str())
        parts = {name: whole[name] for name in ('normalizer', 'pre_tokenizer', 'decoder')}
        model = {name: value for name, value in whole['model'].items() if value not in (None, '')}  # both mean none
        added = [token for token in whole['added_tokens'] if not token['special']]
        return {**parts, 'model': model, 'added': added, 'vocab': self._library.get_vocab(with_added_tokens=True)}

    @property
    def before_prompt(self) -> tuple[int, ...]:
        return self.frame.before

    @property
    def can_grow(self) -> bool:
        return False

    @functools.cached_property
    def roles(self) -> dict[str, str]:
        """{role: its token} of ROLES, where the vocabulary has it."""
        tokens = role_tokens(json.loads(self.config))
        return {name: token for name, token in tokens.items() if self._id(token) is not None}

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        added = self._library.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items()) if token.special}

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. The model's own may be larger, to be a multiple of something."""
        return max(self._library.get_vocab(with_added_tokens=True).values()) + 1

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._library.token_to_id(token)

    def _role(self, *names: str) -> int | None:
        return next((self._id(self.roles[name]) for name in names if name in self.roles), None)

    @property
    def pad(self) -> int | None:
        return self._role('pad')

    @property
    def mask(self) -> int | None:
        return self._role('mask')

    @property
    def cls(self) -> int | None:
        return self._role('cls')

    @property
    def sep(self) -> int | None:
        return self._role('sep')

    @property
    def end(self) -> int | None:
        """The token that ends a text: eos, or else sep."""
        return self._role('eos', 'sep')

    @property
    def bos(self) -> int | None:
        return self._role('bos', 'cls', 'eos', 'sep')

    @property
    def fim(self) -> None:
        return None

    @functools.cached_property
    def sentinels(self) -> tuple[int, ...]:
        found = []
        while (token := self._id(_SENTINEL.format(len(found)))) is not None:
            found.append(token)
        return tuple(found)

    @functools.cached_property
    def frame(self) -> Frame:
        one = lambda text: self._library.encode(text, add_special_tokens=False).ids
        text = 'a' if one('a') else next((piece for piece in self._some_pieces() if one(piece)), None)
        if text is None:
            return Frame((), (), ())
        single, pair = self._library.encode(text), self._library.encode(text, text)
        here = [i for i, of in enumerate(single.sequence_ids) if of is not None]
        first, second = ([i for i, of in enumerate(pair.sequence_ids) if of == part] for part in (0, 1))
        between = pair.ids[first[-1] + 1 : second[0]]
        return Frame(tuple(single.ids[: here[0]]), tuple(between), tuple(single.ids[here[-1] + 1 :]))

    @property
    def target_frame(self) -> Frame:
        """That of any text where it ends a text; else the end alone."""
        return self.frame if self.frame.behind else super().target_frame

    def _some_pieces(self) -> list[str]:
        return sorted(self._library.get_vocab(with_added_tokens=False))[:100]

    @functools.cached_property
    def num_bytes(self) -> np.ndarray | None:
        """None but for byte-level BPE whose tokens are the text's bytes as they are."""
        whole = json.loads(self.model)
        steps = _steps(whole.get('pre_tokenizer'), 'pretokenizers')
        letters = bytes_of_letters()
        is_plain = not whole.get('normalizer') and (whole.get('decoder') or {}).get('type') == 'ByteLevel'
        if not is_plain or any(step.get('add_prefix_space') for step in steps) or 'BPE' != whole['model'].get('type'):
            return None
        sizes = np.zeros(self.vocab_size, np.int32)
        for piece, token in self._library.get_vocab(with_added_tokens=False).items():
            sizes[token] = len(piece) if letters.keys() >= {*piece} else 0
        for token in self._library.get_added_tokens_decoder():
            sizes[token] = 0
        return sizes

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """int32 tokens, without the frame. special: special tokens are read as transformers reads them, and <mask>,
        <pad>, <cls> and <sep> are those of this tokenizer, however it writes them. Raises UserError."""
        if not special:
            encode = self._library.encode
            return np.array(_readable(encode, no_halves(text), add_special_tokens=False).ids, np.int32)
        own = {f'<{name}>': token for name, token in self.roles.items()}

        def spelled(match: re.Match) -> str:
            if self._id(match[0]) is None and match[0] not in own:
                raise no_special(match[0], self.special_ids)
            return match[0] if self._id(match[0]) is not None else own[match[0]]

        text = re.sub(r'<(?:pad|mask|cls|sep|extra_id_\d+)>', spelled, text)
        encode = self._reading_special.encode
        return np.array(_readable(encode, no_halves(text), add_special_tokens=False).ids, np.int32)

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """encode of each, on all cores. Raises UserError."""
        found = _readable(self._library.encode_batch, [*map(no_halves, texts)], add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in found]

    def boundaries(self, text: str) -> np.ndarray:
        """As Tokenizer's. White space that no token holds belongs to the token before it."""
        if self.num_bytes is not None:
            return np.concatenate([[0], np.cumsum(self.num_bytes[self.encode(text)], dtype=np.int64)])
        text = no_halves(text)
        offsets = self._library.encode(text, add_special_tokens=False).offsets
        sizes = np.cumsum([0, *(len(letter.encode()) for letter in text)], dtype=np.int64)
        places = [begin for begin, _ in offsets] + [len(text)] if offsets else [0]
        return np.maximum.accumulate(sizes[places])

    def decode(self, tokens: Iterable[int], behind: bool = False) -> str:
        """The text, special tokens as they are spelled; tokens behind the vocabulary are left out.

        behind: whether they stand behind others. Else the space that begins a word is left out of the first one, where
        the tokenizer's words hold it.
        """
        tokens = [int(token) for token in tokens]
        text = lambda tokens: self._library.decode(tokens, skip_special_tokens=False)
        if behind and self._anchor:
            begin, whole = text(self._anchor), text([*self._anchor, *tokens])
            if whole.startswith(begin):
                return whole[len(begin) :]
        return text(tokens)

    @functools.cached_property
    def _anchor(self) -> list[int]:
        """Tokens of a letter, behind which others are decoded; none where each token has a text of its own."""
        return [] if self.num_bytes is not None else self._library.encode('a', add_special_tokens=False).ids

    def to_json(self) -> str:
        return json.dumps({'kind': KIND, 'model': self.model, 'config': self.config}) + '\n'

    @functools.cached_property
    def _library(self):
        library = backend(self.model)
        library.encode_special_tokens = True
        return library

    @functools.cached_property
    def _reading_special(self):
        return backend(self.model)


def make(model: str, config: Mapping, as_written: str = '') -> Pretrained:
    """The tokenizer of a tokenizer.json, which was `parsed` already, and a tokenizer_config.json. Raises ValueError."""
    found = Pretrained(KIND, (), False, model, config=as_written or json.dumps(config, ensure_ascii=False))
    try:
        found.frame  # noqa: B018 (what it computes is kept)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f'the tokenizers library cannot read it: {first_line(error)}') from None
    return found


def parsed(model: str) -> dict:
    """The object that a tokenizer.json is. Raises ValueError."""
    whole = records.parse(model)
    if not isinstance(whole, dict) or not isinstance(whole.get('model'), dict) or not whole['model'].get('vocab'):
        raise ValueError('it is no tokenizer.json: it has no "model" with a "vocab"')
    return whole


def from_json(fields: Mapping) -> Pretrained:
    """The tokenizer with the fields of a run's tokenizer.json. Raises ValueError."""
    if set(fields) != {'kind', 'model', 'config'} or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError('it has not the fields kind, model and config')
    config = records.parse(fields['config'])
    if not isinstance(config, dict):
        raise ValueError('config is no object')
    parsed(fields['model'])
    return make(fields['model'], config, fields['config'])


def backend(model: str):
    """The `tokenizers.Tokenizer` of a tokenizer.json, which neither cuts nor pads."""
    import tokenizers

    library = tokenizers.Tokenizer.from_str(model)
    library.no_truncation()
    library.no_padding()
    return library


def role_tokens(config: Mapping) -> dict[str, str]:
    """{role: its token} of what a tokenizer_config.json or a special_tokens_map.json says."""
    named = {name: config.get(f'{name}_token') for name in ROLES}
    named = {name: token.get('content') if isinstance(token, dict) else token for name, token in named.items()}
    return {name: token for name, token in named.items() if isinstance(token, str) and token}


def _steps(step: Mapping | None, inner: str) -> list[Mapping]:
    """A step of a tokenizer.json, or those that it is a sequence of."""
    return [] if not step else [part for one in step[inner] for part in _steps(one, inner)] if inner in step else [step]


def _readable(encode: Callable[..., Any], text: Any, **how: Any) -> Any:
    """encode(text, …). Raises UserError for a letter that a vocabulary without an unknown token lacks."""
    try:
        return encode(text, **how)
    except Exception as error:  # the library raises no other class
        raise UserError(f'the tokenizer cannot read {str(text)!r:.60}: {error}') from None
