"""The user's own files of pairs, labelled texts and tagged texts: JSON lines, and cells between tabs."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from aigc_jax.core.errors import UserError
from aigc_jax.core.files import lines_of
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.sources import examples, reading
from aigc_jax.data.sources.examples import TaggedText

_OWN = "the files' own"


def pairs(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """pairs:FILE or pairs:GLOB: two texts a line."""
    names = columns(cfg, ('source', 'target'))
    read = lambda row, line: tuple(_filled(row, name, line) for name in names)
    by_split = reading.once(cfg, _rows(cfg, where, read, names), json.dumps, 'pairs')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row[0], names[0])
    return examples.pairs(cfg, by_split, _OWN, tokenizer, origin)


def labelled(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """labelled:FILE or labelled:GLOB: a text and a label a line."""
    names = columns(cfg, ('text', 'label'))
    read = lambda row, line: (_filled(row, names[0], line), _label(row.get(names[1]), names[1], line))
    by_split = reading.once(cfg, _rows(cfg, where, read, names), json.dumps, 'labelled texts')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row[0], names[0])
    return examples.labelled(cfg, by_split, _OWN, tokenizer, origin)


def tagged(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """tagged:FILE or tagged:GLOB: lists of words and of their tags a line; or a word and its tag a line, with a blank
    line between texts, in a file whose name ends in .tsv (the format of CoNLL)."""
    names = columns(cfg, ('tokens', 'tags'))
    by_split = {}
    for split, place in where.items():
        paths = reading.matching(cfg, place)
        if all(map(reading.is_tsv, paths)):
            by_split.setdefault(split, []).extend(_conll(cfg, paths))
        else:
            by_split |= reading.rows(cfg, paths, split, lambda row, line: _words(row, names, line))
    found = {split: [_joined(*row) for row in rows] for split, rows in by_split.items()}
    by_split = reading.once(cfg, found, lambda row: json.dumps([row.text, row.tags]), 'tagged texts')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row.text, names[0])
    return examples.tagged(cfg, by_split, _OWN, tokenizer, origin)


def columns(cfg, usual: tuple[str, ...]) -> tuple[str, ...]:
    """data.columns, or those of these data. Raises UserError."""
    names = tuple(cfg.columns) or usual
    if len(names) != len(usual) or len(set(names)) < len(names):
        raise UserError(f'data.columns: {cfg.columns!r}; data.name={cfg.name} has {len(usual)}, such as {usual!r}')
    return names


def _rows(cfg, where: Mapping[str, str], read, names: tuple[str, ...]) -> dict[str, list]:
    by_split = {}
    for split, place in where.items():
        by_split |= reading.rows(cfg, reading.matching(cfg, place), split, read, names)
    return by_split


def _filled(row: Mapping, name: str, line: str) -> str:
    text = reading.text_of(row, name, line)
    if not text.strip():
        raise UserError(f'{line}: "{name}" is empty')
    return text


def _label(value: Any, name: str, line: str) -> str | int:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value or isinstance(value, int) and abs(value) < 2**53:
        return value
    raise UserError(f'{line}: "{name}" is {"missing" if value is None else repr(value)}; it is a word or whole number')


def _words(row: Mapping, names: tuple[str, str], line: str) -> tuple[list[str], list[str]]:
    words, tags = (row.get(name) for name in names)
    if not isinstance(words, list) or not isinstance(tags, list):
        raise UserError(f'{line} is no JSON object with the lists "{names[0]}" and "{names[1]}"')
    if len(words) != len(tags):
        raise UserError(f'{line}: {len(words)} in "{names[0]}", but {len(tags)} in "{names[1]}"')
    if not words:
        raise UserError(f'{line}: "{names[0]}" is empty')
    return [_word(word, line) for word in words], [str(_label(tag, names[1], line)) for tag in tags]


def _word(word: Any, line: str) -> str:
    if not isinstance(word, str) or not word or any(map(str.isspace, word)):
        raise UserError(f'{line}: {word!r} is no word without white space')
    return reading.text_of({'': word}, '', line)


def _conll(cfg, paths: list[pathlib.Path]) -> Iterator[tuple[list[str], list[str]]]:
    for path, content in zip(paths, reading.texts(paths, False), strict=True):
        words, tags = [], []
        for number, row in enumerate([*lines_of(content), ''], 1):
            cells, line = row.removesuffix('\r').split('\t'), f'data.name={cfg.name}: {path}, line {number}'
            if cells != [''] and len(cells) != 2:
                raise UserError(f'{line} has {len(cells)} cells; it wants a word and its tag, with a tab between')
            if cells != ['']:
                words.append(_word(cells[0], line))
                tags.append(str(_label(cells[1], 'tag', line)))
            elif words:
                yield words, tags
                words, tags = [], []


def _joined(words: list[str], tags: list[str]) -> TaggedText:
    """The text of words with a space between them; the spans are the words."""
    spans, place = [], 0
    for word in words:
        size = len(word.encode(errors='surrogateescape'))
        spans.append((place, place + size))
        place += size + 1
    return TaggedText(' '.join(words), tuple(spans), tuple(tags))
