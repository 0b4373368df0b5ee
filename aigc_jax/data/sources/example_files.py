"""Pairs, labelled texts and tagged texts of the user's own files (JSON lines, cells between tabs) and of TFDS sets."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aigc_jax.core.errors import UserError
from aigc_jax.core.files import lines_of
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.sources import examples, reading, tfds
from aigc_jax.data.sources.examples import TaggedText

_OWN = "the files' own"


def pairs(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """pairs:FILE or pairs:GLOB: two texts a line."""
    names = columns(cfg, ('source', 'target'))
    read = lambda row, line: tuple(_filled(row, name, line) for name in names)
    by_split, licence, _ = _rows(cfg, where, names, read)
    by_split = reading.once(cfg, by_split, json.dumps, 'pairs')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row[0], names[0])
    return examples.pairs(cfg, by_split, licence, tokenizer, origin)


def labelled(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """labelled:FILE or labelled:GLOB: a text and a label a line."""
    names = columns(cfg, ('text', 'label'))
    read = lambda row, line: (_filled(row, names[0], line), _label(row.get(names[1]), names[1], line))
    by_split, licence, classes = _rows(cfg, where, names, read)
    by_split = reading.once(cfg, by_split, json.dumps, 'labelled texts')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row[0], names[0])
    return _named(examples.labelled(cfg, by_split, licence, tokenizer, origin), classes)


def tagged(cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """tagged:FILE or tagged:GLOB: lists of words and of their tags a line; or a word and its tag a line, with a blank
    line between texts, in a file whose name ends in .tsv (the format of CoNLL)."""
    names = columns(cfg, ('tokens', 'tags'))
    by_split, licence, classes = _rows(cfg, where, names, lambda row, line: _words(row, names, line), _conll)
    found = {split: [_joined(*row) for row in rows] for split, rows in by_split.items()}
    by_split = reading.once(cfg, found, lambda row: json.dumps([row.text, row.tags]), 'tagged texts')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row.text, names[0])
    return _named(examples.tagged(cfg, by_split, licence, tokenizer, origin), classes)


def columns(cfg, usual: tuple[str, ...]) -> tuple[str, ...]:
    """data.columns, or those of these data. Raises UserError."""
    names = tuple(cfg.columns) or usual
    if len(names) != len(usual) or len(set(names)) < len(names):
        raise UserError(f'data.columns: {cfg.columns!r}; data.name={cfg.name} has {len(usual)}, such as {usual!r}')
    return names


def _rows(
    cfg, where: Mapping[str, str], names: tuple[str, ...], read: Callable[[dict, str], Any], of_tsv=None
) -> tuple[dict[str, list], str, tuple[str, ...]]:
    """({split: what read(row, line) makes of each row}, the licence, the names of the classes, if they are known).

    of_tsv(cfg, paths) -> values, of files that are not read row by row.
    """
    if tfds.PREFIX in where:
        return tfds.rows(cfg, where[tfds.PREFIX], names, read)
    by_split = {}
    for split, place in where.items():
        paths = reading.matching(cfg, place)
        if of_tsv and all(map(reading.is_tsv, paths)):
            by_split[split] = list(of_tsv(cfg, paths))
        else:
            by_split |= reading.rows(cfg, paths, split, read, names)
    return by_split, _OWN, ()


def _named(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The data set with the names of classes whose numbers it has."""
    names = tuple(classes[int(number)] for number in dataset.class_names) if classes else dataset.class_names
    return dataclasses.replace(dataset, class_names=names)


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
