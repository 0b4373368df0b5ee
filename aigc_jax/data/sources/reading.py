"""The user's own files of text: which are meant, what they hold, which documents stand there twice."""

import csv
import glob
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from aigc_jax.core import mends, records
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import (
    SUFFIXES,
    decode,
    first_bad_line,
    is_marked,
    lines_of,
    mend_encoding,
    read_compressed,
    read_text,
)
from aigc_jax.core.notes import note
from aigc_jax.data.sources.arrays import split_of

T = TypeVar('T')

# What first lines of tables call the columns of pairs, labelled and tagged texts.
_NAMES = {*'source target text sentence label labels token tokens word words tag tags'.split()}


def places(name: str, where: str) -> dict[str, str]:
    """{split: absolute path or pattern} of 'train=A,valid=B,test=C', {'': …} of a place that is not divided.

    Only `,train=`, `,valid=` and `,test=` divide, so other commas and equals signs are part of a path. A file that
    exists is that file, whatever its name. Raises UserError.
    """
    absolute = lambda path: os.path.abspath(os.path.expanduser(path))
    begin, *parts = re.split('(?:^|,)(train|valid|test)=', where)
    if not parts or os.path.exists(absolute(where)):
        return {'': absolute(where)}
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    if begin or 'train' not in found or len(found) < len(parts) / 2 or not all(found.values()):
        raise UserError(f'data.name={name}: write train=A,valid=B,test=C, each once; valid and test may be left out')
    return {split: absolute(found[split]) for split in ('train', 'valid', 'test') if split in found}


def matching(cfg, where: str) -> list[pathlib.Path]:
    """The file of this very name, or else those that match it as a pattern, in alphabetical order. Raises UserError."""
    if os.path.isdir(where):
        kind = 'txt' if cfg.name.startswith('text:') else 'jsonl'
        raise UserError(f'data.name={cfg.name}: {where} is a folder; to read its files, name them: {where}/*.{kind}')
    if os.path.exists(where) or not glob.has_magic(where):
        return [pathlib.Path(where)]
    # Of the folders too, one that exists is that folder.
    parents = itertools.accumulate(where.split(os.sep), lambda before, part: f'{before}{os.sep}{part}')
    root = max((path for path in parents if os.path.isdir(path)), key=len, default='')
    paths = glob.glob(glob.escape(root) + where[len(root) :], recursive=True)
    found = [pathlib.Path(path) for path in sorted(paths) if os.path.isfile(path)]
    if not found:
        raise UserError(f'data.name={cfg.name}: no file matches {where}')
    return found


def texts(paths: Iterable[pathlib.Path], is_kept: bool) -> list[str]:
    """What the files hold, decompressed. Notes say which are no UTF-8.

    is_kept: bytes that are no UTF-8 come as lone surrogates, but where the file says that it is UTF-16 or UTF-32; else
    they are refused. Raises UserError.
    """
    found, others, invalid = [], {}, {}
    for path in paths:
        data = read_compressed(path, 'data.name: ')
        text, encoding = decode(data)
        if not encoding and not (is_kept and not is_marked(data)):
            line = first_bad_line(data)
            raise UserError(f'data.name: {path}, line {line}: is not UTF-8; {mend_encoding(data, path)}')
        if not encoding:
            invalid[path] = len(re.findall('[\udc80-\udcff]', text)), mend_encoding(data, path)
        elif encoding != 'utf-8':
            others.setdefault(encoding, []).append(path)
        found.append(text)
    for encoding, of_it in others.items():
        note(f'{_some(of_it)} read as {encoding}')
    if invalid:
        (_, mend), count = next(iter(invalid.values())), sum(count for count, _ in invalid.values())
        what = f'{count} bytes that are no UTF-8' if count else 'many NUL characters'
        note(f'{_some([*invalid])} read with {what}, as they are; {mend}')
    return found


def json_lines(cfg, paths: Iterable[pathlib.Path], given: str) -> dict[str, list[str]]:
    """{split: documents} of files of JSON objects, one a line: the fields `text` and, in all or none, `split`."""
    return rows(cfg, paths, given, lambda row, where: text_of(row, 'text', where))


def rows(
    cfg, paths: Iterable[pathlib.Path], given: str, read: Callable[[dict, str], T], columns: tuple[str, ...] = ()
) -> dict[str, list[T]]:
    """{split: what read(row, where) makes of each row} of files of JSON objects, one a line. where: for messages.

    given: the split that the files are said to be of, or ''. Without a field `split`, all are of that one.
    columns: those that are read of a file whose name ends in .tsv, see `_tsv`. Raises UserError.
    """
    paths, by_split, unnamed = list(paths), {}, []
    for path, content in zip(paths, texts(paths, False), strict=True):
        name = f'data.name={cfg.name}: {path}'
        if columns and is_tsv(path) and not are_named(content, columns, name):
            unnamed.append(path)
        for number, row in table(path, content, columns, name):
            where = f'{name}, line {number}'
            value = read(row, where)
            split = row.get('split')
            if split is not None and not (isinstance(split, str) and split_of(split)):
                raise UserError(f'{where}: "split" is {split!r}; known: train, valid, validation, val, dev, test')
            split = split_of(split or '')
            if given and split not in ('', given):
                raise UserError(f'{where}: "split" is {row["split"]!r}, but data.name gives the file as {given}')
            by_split.setdefault(given or split, []).append(value)
            if len(by_split) > 1 and '' in by_split:
                raise UserError(f'{where}: some lines before have the field "split" and some have not; give it to all')
    if unnamed:
        note(f'{_some(unnamed)} read without a first line that names {", ".join(columns)}; the first is an example')
    return by_split or {given: []}


def table(path: pathlib.Path, content: str, columns: tuple[str, ...], name: str) -> Iterator[tuple[int, dict]]:
    """(number, row) of each line that is not blank: an object, or {} of what is none; where there are `columns`, the
    cells of a .tsv, see `_tsv`. name: of the file, for messages. Raises UserError."""
    for number, row in _tsv(content, columns, name) if columns and is_tsv(path) else _objects(content):
        if not row and _ends(path, '.csv'):
            new = mends.unused(path.with_name(f'{path.name.rpartition(".csv")[0]}.jsonl'))
            mend = mends.calling(json_lines_of_csv, os.path.abspath(path), new)
            raise UserError(f'{name} holds no JSON objects; make it a file that does: {mend}')
        yield number, row


def is_of_rows(path: pathlib.Path, content: str) -> bool:
    """Whether a file that may hold lines of text holds rows instead."""
    return is_tsv(path) or _ends(path, '.csv') or (_ends(path, '.jsonl') and content.lstrip().startswith('{'))


def _objects(content: str) -> Iterator[tuple[int, dict]]:
    """(number, object) of each line that is not blank; {} of one that is no JSON object, and so lacks every field."""
    for number, line in enumerate(lines_of(content), 1):
        if line.strip():
            try:
                row = records.parse(line)
            except ValueError:
                row = None
            yield number, row if isinstance(row, dict) else {}


def is_tsv(path: pathlib.Path) -> bool:
    return _ends(path, '.tsv')


def _ends(path: pathlib.Path, kind: str) -> bool:
    return path.name.removesuffix(next((end for end in SUFFIXES if path.name.endswith(end)), '')).endswith(kind)


def json_lines_of_csv(path: str, new: str) -> None:
    """Writes a file of JSON objects, where there is none, of one whose cells stand between commas, named by its first
    line. Raises UserError, also for a line with more or fewer cells."""
    rows, lines = csv.reader(io.StringIO(read_text(path), newline='')), []
    try:
        head = next(rows, [])
        for row in filter(None, rows):
            if len(row) != len(head):
                raise csv.Error(f'{len(row)} cells, but {len(head)} in the first line; quote a cell with a comma in it')
            lines.append(json.dumps(dict(zip(head, row, strict=True)), ensure_ascii=False) + '\n')
    except csv.Error as error:
        raise UserError(f'{path}, line {rows.line_num}: {error}') from None
    try:
        with open(new, 'x', encoding='utf-8') as file:
            file.writelines(lines)
    except FileExistsError:
        raise UserError(f'{new}: is there already; name a new file') from None


def are_named(content: str, columns: tuple[str, ...], name: str) -> bool:
    """Whether the first line that is not blank has all of `columns` among its cells, and so names the cells.

    Raises UserError where it has other names of columns, for as an example it would be one class more, or a wrong text.
    """
    first = next(filter(str.strip, lines_of(content)), '').removesuffix('\r').split('\t')
    if set(columns) <= set(first):
        return True
    if set(columns) & set(first) or {cell.strip().lower() for cell in first} <= _NAMES:
        raise UserError(
            f'{name}: its first line, {", ".join(first):.80}, seems to name columns, but not {", ".join(columns)}; '
            'set data.columns, or add a first line with these names'
        )
    return False


def _tsv(content: str, columns: tuple[str, ...], name: str) -> Iterator[tuple[int, dict]]:
    """(number, row) of each line that is not blank, whose cells stand between tabs, as they are.

    A first line in which all of `columns` stand names the cells; without one there are these columns, in their order.
    """
    head = None if are_named(content, columns, name) else columns
    for number, line in enumerate(lines_of(content), 1):
        if not line.strip():
            continue
        cells = line.removesuffix('\r').split('\t')
        if head is None:
            head = cells
            continue
        if len(cells) != len(head):
            raise UserError(f'{name}, line {number} has {len(cells)} cells; it wants {len(head)}: {", ".join(head)}')
        yield number, dict(zip(head, cells, strict=True))


def text_of(row: Mapping, name: str, where: str) -> str:
    """The text in the field `name`. Raises UserError where there is none."""
    text = row.get(name)
    if text is not None and not isinstance(text, str):
        raise UserError(f'{where}: "{name}" is {text!r:.80}; it is a text')
    if text is None:
        raise UserError(f'{where} is no JSON object with a field "{name}"')
    # Halves of letters beyond U+FFFF, as cut texts have them, are no text.
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def distinct(documents: Iterable[T], text: Callable[[T], str] = str) -> list[T]:
    """The documents that are not empty, each once, in the order of their hashes, which no file system decides.

    text(document): what is hashed.
    """
    return [one for _, one in sorted({digest(text(one)): one for one in documents if one}.items())]


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors='surrogateescape')).digest()


def once(
    cfg, by_split: Mapping[str, list[T]], text: Callable[[T], str] = str, what: str = 'documents'
) -> dict[str, list[T]]:
    """`distinct` of each split. Notes say how many documents stood there twice, and how many stand in two splits."""
    found = {split: every if len(every) == 1 else distinct(every, text) for split, every in by_split.items()}
    total = sum(bool(one) for every in by_split.values() for one in every)
    if lost := total - sum(bool(one) for every in found.values() for one in every):
        note(f'data.name={cfg.name}: left out as copies of others: {lost} of {total} {what}')
    for (one, texts), (other, others) in itertools.combinations(found.items(), 2):
        if both := len(set(texts).intersection(others)):
            note(f'data.name={cfg.name}: {what} in {one} and in {other}: {both}; figures of {other} may be too good')
    if empty := [split for split, texts in found.items() if split and not any(texts)]:
        raise UserError(f'data.name={cfg.name}: {", ".join(empty)} holds no text')
    return found


def _some(paths: list[pathlib.Path]) -> str:
    return f'{paths[0]}: is' if len(paths) == 1 else f'{paths[0]}, … ({len(paths)} files): are'
