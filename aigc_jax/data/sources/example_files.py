"""Pairs, labelled texts and tagged texts of the user's own files (JSON lines, cells between tabs) and of TFDS sets."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aigc_jax.core.errors import UserError
from aigc_jax.core.files import lines_of
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.sources import examples, reading, tfds
from aigc_jax.data.sources.examples import TaggedText

_OWN = "the files' own"
COLUMNS = {'pairs': ('source', 'target'), 'labelled': ('text', 'label'), 'tagged': ('tokens', 'tags')}


def load(kind: str, cfg, where: Mapping[str, str], tokenizer) -> Dataset:
    """The data of a kind of COLUMNS that lie at the places `where`.

    pairs:FILE or pairs:GLOB: two texts a line. labelled:FILE: a text, or two, and a label a line. tagged:FILE: lists of
    words and of their tags a line; or a word and its tag a line, with a blank line between texts, in files whose names
    end in .tsv (the format of CoNLL). Raises UserError.
    """
    _, names = row_columns(cfg)
    by_split, licence, classes = _rows(kind, cfg, where, names)
    dataset = _made(kind, cfg, by_split, names, licence, tokenizer)
    numbered = tuple(classes[int(number)] for number in dataset.class_names) if classes else dataset.class_names
    return dataclasses.replace(dataset, class_names=numbered)


def row_columns(cfg) -> tuple[str, tuple[str, ...]]:
    """(the kind, of COLUMNS, the names of its columns) of data in the user's own rows; ('', ()) of others. Raises
    UserError."""
    kind = cfg.name.partition(':')[0]
    if kind not in COLUMNS:
        return '', ()
    return kind, columns(cfg, COLUMNS[kind], 3 if kind == 'labelled' else 2)


def own(cfg, by_split: Mapping[str, Sequence[Any]], what: str, tokenizer) -> Dataset:
    """The same of the rows that a function of the user's returned, dicts with the usual names of a kind.

    what: the file, for messages.
    """
    kinds = {kind for rows in by_split.values() for row in rows for kind in COLUMNS if _fits(kind, row)}
    if len(kinds) != 1:
        forms = ', '.join(str(dict.fromkeys(names, '…')) for names in COLUMNS.values())
        raise UserError(f'{what}: its function returns rows of {len(kinds)} kinds; each is one of {forms}')
    (kind,) = kinds
    names, read = COLUMNS[kind], _READ[kind]
    found = {
        split: [read(names, row if isinstance(row, dict) else {}, f'{what}: {split}, row {i}')
                for i, row in enumerate(rows)]
        for split, rows in by_split.items()
    }  # fmt: skip
    return _made(kind, cfg, found, names, "not known: the user's own", tokenizer)


def _fits(kind: str, row: Any) -> bool:
    return isinstance(row, dict) and row.keys() >= {*COLUMNS[kind]}


def _made(kind: str, cfg, by_split: Mapping[str, list], names: tuple[str, ...], licence: str, tokenizer) -> Dataset:
    key = (lambda row: json.dumps([row.text, row.tags])) if kind == 'tagged' else json.dumps
    by_split = reading.once(cfg, by_split, key, 'pairs' if kind == 'pairs' else f'{kind} texts')
    by_split, origin = examples.divided(cfg, by_split, lambda row: row[0], names[0])
    return getattr(examples, kind)(cfg, by_split, licence, tokenizer, origin, *[names] * (kind != 'tagged'))


def columns(cfg, usual: tuple[str, ...], most: int = 2) -> tuple[str, ...]:
    """data.columns, or those of these data. Raises UserError."""
    names = tuple(cfg.columns) or usual
    if not len(usual) <= len(names) <= most or len(set(names)) < len(names):
        count = len(usual) if most == len(usual) else f'{len(usual)} or {most}'
        raise UserError(f'data.columns: {cfg.columns!r}; data.name={cfg.name} has {count}, such as {usual!r}')
    return names


def _rows(
    kind: str, cfg, where: Mapping[str, str], names: tuple[str, ...]
) -> tuple[dict[str, list], str, tuple[str, ...]]:
    """({split: the rows}, the licence, the names of the classes, if they are known)."""
    read = functools.partial(_READ[kind], names)
    if tfds.PREFIX in where:
        return tfds.rows(cfg, where[tfds.PREFIX], names, read)
    by_split = {}
    for split, place in where.items():
        paths = reading.matching(cfg, place)
        if kind == 'tagged' and all(map(reading.is_tsv, paths)):
            by_split[split] = list(_conll(cfg, paths, names))
        else:
            by_split |= reading.rows(cfg, paths, split, read, names)
    return by_split, _OWN, ()


def _pair(names: tuple[str, str], row: Mapping, line: str) -> tuple[str, str]:
    return _filled(row, names[0], line), _filled(row, names[1], line)


def _labelled(names: tuple[str, ...], row: Mapping, line: str) -> tuple[str | int, ...]:
    *texts, label = names
    return *(_filled(row, name, line) for name in texts), _label(row.get(label), label, line)


def _filled(row: Mapping, name: str, line: str) -> str:
    if row and name not in row:
        has = ', '.join(f'"{other}"' for other in row)
        raise UserError(f'{line} is no JSON object with a field "{name}"; it has {has}: set data.columns')
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


def _tagged(names: tuple[str, str], row: Mapping, line: str) -> TaggedText:
    words, tags = (row.get(name) for name in names)
    if not isinstance(words, list) or not isinstance(tags, list):
        raise UserError(f'{line} is no JSON object with the lists "{names[0]}" and "{names[1]}"')
    if len(words) != len(tags):
        raise UserError(f'{line}: {len(words)} in "{names[0]}", but {len(tags)} in "{names[1]}"')
    if not words:
        raise UserError(f'{line}: "{names[0]}" is empty')
    return _joined([word(one, line) for one in words], [str(_label(tag, names[1], line)) for tag in tags])


def word(found: Any, line: str) -> str:
    """A word of a tagged text. Raises UserError."""
    if not isinstance(found, str) or not found or any(map(str.isspace, found)):
        raise UserError(f'{line}: {found!r} is no word without white space')
    return reading.text_of({'': found}, '', line)


def _conll(cfg, paths: list[pathlib.Path], names: tuple[str, str]) -> Iterator[TaggedText]:
    for path, content in zip(paths, reading.texts(paths, False), strict=True):
        for _, words, tags in conll(content, names, f'data.name={cfg.name}: {path}'):
            yield _joined(words, tags)


def conll(
    content: str, names: tuple[str, str], name: str, has_tags: bool = True
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(its first line, for messages; the words; their tags) of each text of a file in the format of CoNLL.

    A first line may hold the `names` of both columns. name: of the file. has_tags: whether each word has a tag that is
    read; else it may be missing. Raises UserError.
    """
    words, tags, first = [], [], ''
    cells = next(filter(str.strip, lines_of(content)), '').count('\t') + 1
    named = reading.are_named(content, names if has_tags else names[:cells], name)
    for number, row in enumerate([*lines_of(content), ''], 1):
        if named and row.strip():  # the first line that is not blank
            named = False
            continue
        cells, line = row.removesuffix('\r').split('\t'), f'{name}, line {number}'
        if cells != [''] and len(cells) != 2 and (has_tags or len(cells) != 1):
            raise UserError(f'{line} has {len(cells)} cells; it wants a word and its tag, with a tab between')
        if cells != ['']:
            first = first if words else line
            words.append(word(cells[0], line))
            tags += [str(_label(cell, 'tag', line)) for cell in cells[1:] if has_tags]
        elif words:
            yield first, words, tags
            words, tags = [], []


def _joined(words: list[str], tags: list[str]) -> TaggedText:
    """The text of words with a space between them; the spans are the words."""
    spans, place = [], 0
    for word in words:
        size = len(word.encode(errors='surrogateescape'))
        spans.append((place, place + size))
        place += size + 1
    return TaggedText(' '.join(words), tuple(spans), tuple(tags))


_READ = {'pairs': _pair, 'labelled': _labelled, 'tagged': _tagged}  # (names, row, line) -> what `examples` takes
