"""Pairs of texts, labelled texts and tagged texts: from rows to splits of tokens."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.data import labels
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.rows import Ragged, Rows, dtype_of, packed
from aigc_jax.data.sources import text
from aigc_jax.data.specs import NO_TAG, Labelled, Pairs, Tagged
from aigc_jax.data.tokenizers import Frame, Tokenizer

SPLITS = text.SPLITS


class TaggedText(NamedTuple):
    """spans: (begin, end) in the bytes of the text, each with a tag. outside: the tag of all other tokens, and every
    token that a span touches has that of the span; None: the first token of a span has its tag, and no other has one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    tags: tuple[Any, ...]
    outside: Any = None


def pairs(
    cfg, by_split: Mapping[str, list[tuple[str, str]]], licence: str, tokenizer: Tokenizer | None, origin: str,
    names: tuple[str, str] = ('source', 'target'),
) -> Dataset:  # fmt: skip
    """Of (source, target). tokenizer: of the run that is gone on with; None: one is made. Raises UserError.

    names: of both; with data.both_ways each pair stands there a second time, turned round, and a source begins with the
    name of what is to be written (Wang et al. 2021, section 3.2: bimodal dual generation).
    """
    by_split = _fewer(cfg, by_split)
    if cfg.both_ways:
        turned = lambda a, b: ((f'<{names[1]}> {a}', b), (f'<{names[0]}> {b}', a))
        by_split = {split: [way for row in rows for way in turned(*row)] for split, rows in by_split.items()}
    tokenizer = _tokenizer(cfg, by_split, lambda row: row, tokenizer)
    splits, cut = {}, {}
    for split, rows in _some(by_split):
        sources, targets = zip(*rows, strict=True)
        columns = {
            'source': _ragged(tokenizer, sources, tokenizer.frame, cfg.block, 'block', cut),
            'target': _ragged(tokenizer, targets, tokenizer.target_frame, cfg.target_block, 'target_block', cut),
        }
        splits[split] = Rows(packed(columns) if cfg.packed and split == 'train' else columns)
    _tell_of_cuts(cut)
    if cfg.packed:
        count = len(by_split['train'])
        note(f'data.packed: {count} training pairs are in {len(splits["train"])} rows; batch_size counts rows')
    return _dataset(splits, Pairs(cfg.block, cfg.target_block, tokenizer), licence, origin)


def labelled(
    cfg, by_split: Mapping[str, list[tuple]], licence: str, tokenizer: Tokenizer | None, origin: str,
    names: tuple[str, ...] = ('text', 'label'),
) -> Dataset:  # fmt: skip
    """The same of (text, label) or (text, second text, label), the label a text or a whole number."""
    by_split = _fewer(cfg, _no_pairs(cfg, by_split))
    tokenizer = _tokenizer(cfg, by_split, lambda row: row[:-1], tokenizer)
    classes, class_names = _classes(cfg, {split: [row[-1] for row in rows] for split, rows in _some(by_split)})
    splits, cut = {}, {}
    for split, rows in _some(by_split):
        texts = [*zip(*(row[:-1] for row in rows), strict=True)]
        if len(texts) == 1:
            columns = {'tokens': _ragged(tokenizer, texts[0], tokenizer.frame, cfg.block, 'block', cut)}
        else:
            columns = _ragged_two(tokenizer, *texts, cfg.block, cut)
        splits[split] = Rows(columns, {'label': classes[split]})
    _tell_of_cuts(cut)
    return _dataset(splits, Labelled(cfg.block, tokenizer, names[:-1]), licence, origin, class_names)


def tagged(
    cfg, by_split: Mapping[str, list[TaggedText]], licence: str, tokenizer: Tokenizer | None, origin: str
) -> Dataset:
    """The same of TaggedText."""
    by_split = _fewer(cfg, _no_pairs(cfg, by_split))
    tokenizer = _tokenizer(cfg, by_split, lambda row: row[:1], tokenizer)
    every = {
        split: [tag for row in rows for tag in (*row.tags, *([row.outside] if row.outside is not None else []))]
        for split, rows in _some(by_split)
    }
    _, names = _classes(cfg, every)
    number = {name: i for i, name in enumerate(names)}
    splits, cut = {}, {}
    for split, rows in _some(by_split):
        texts = [row.text for row in rows]
        tokens = _ragged(tokenizer, texts, tokenizer.frame, cfg.block, 'block', cut)
        tags = [_framed_tags(tokenizer, row, number, cfg.block) for row in rows]
        column = Ragged(tags, cfg.block, NO_TAG, np.int32, tells_length=False)
        if not np.array_equal(column.lengths, tokens.lengths):
            raise AssertionError('a text has other tags than tokens')
        splits[split] = Rows({'tokens': tokens, 'tags': column})
    _tell_of_cuts(cut)
    of_words = all(row.outside is None for rows in by_split.values() for row in rows)
    return _dataset(splits, Tagged(cfg.block, tokenizer, of_words), licence, origin, names)


def divided(cfg, by_split: Mapping[str, list], group: Callable[[Any], str], what: str) -> tuple[dict[str, list], str]:
    """({split: rows}, the origin of the splits in words) of rows of which those of '' or, where a split is not given,
    those of train are cut into splits by the hash of group(row): all rows of one group are in one split.

    what: a group(row), in words. Raises UserError.
    """
    text.check_percents(cfg)
    given = {split: rows for split, rows in by_split.items() if split not in ('', 'train')}
    training = by_split.get('', []) or by_split.get('train', [])
    if not training:
        raise UserError(f'data.name={cfg.name}: holds no example to train on')
    percents = [0.0 if split in given else cfg[f'{split}_percent'] for split in ('valid', 'test')]
    wanted = [split for split, percent in zip(('valid', 'test'), percents, strict=True) if percent]
    groups = sorted({group(row) for row in training})
    if wanted and len(groups) <= len(wanted):
        raise UserError(
            f'data.name={cfg.name}: examples of {len(groups)} different {what} cannot be divided into train, '
            f'{", ".join(wanted)}; give more, or set data.valid_percent and data.test_percent to 0'
        )
    of = {one: split for split, ones in text.cut(groups, *percents).items() for one in ones} if wanted else {}
    found = {split: [row for row in training if of.get(group(row), 'train') == split] for split in SPLITS} | given
    words = ', '.join(f'{split} {cfg[f"{split}_percent"]:g} %' for split in wanted)
    return found, f'{words} of the examples, by the hash of {what}' if wanted else 'as given'


def _fewer(cfg, by_split: Mapping[str, list]) -> Mapping[str, list]:
    """`by_split` with data.train_examples rows of train. Raises UserError where there are not so many."""
    count, rows = cfg.train_examples, by_split.get('train', [])
    if count < 0:
        return by_split
    if not 1 <= count <= len(rows):
        has = f'{cfg.name} has {len(rows)} training examples'
        raise UserError(f'data.train_examples: {count}, but {has}; give 1 to {len(rows)}, or -1 for all')
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(repr(rows[i]).encode()).digest())
    return {**by_split, 'train': [rows[i] for i in sorted(order[:count])]}


def _no_pairs(cfg, by_split: Mapping[str, list]) -> Mapping[str, list]:
    for field in ('both_ways', 'packed'):
        if cfg[field]:
            raise UserError(f'data.{field}: is of pairs; {cfg.name} holds no pairs: set it to False')
    return by_split


def _some(by_split: Mapping[str, list]) -> Iterable[tuple[str, list]]:
    """The splits that hold a row."""
    return [(split, by_split[split]) for split in SPLITS if by_split.get(split)]


def _tokenizer(cfg, by_split, texts: Callable[[Any], Sequence[str]], tokenizer: Tokenizer | None) -> Tokenizer:
    documents = {split: [one for row in rows for one in texts(row)] for split, rows in _some(by_split)}
    tokenizer = tokenizer or text.make_tokenizer(cfg, documents, has_end=True)
    text.check_tokenizer(cfg, tokenizer)
    if tokenizer.end is None and tokenizer.can_grow:
        tokenizer = dataclasses.replace(tokenizer, has_end=True)
        note(f'data.name={cfg.name}: the end of a text is a new token, which the run of init.run lacks')
    if not tokenizer.target_frame.behind:
        raise UserError(f'data.name={cfg.name}: the tokenizer of the run has no token that ends a text')
    return tokenizer


def _ragged(
    tokenizer: Tokenizer, texts: Sequence[str], frame: Frame, block: int, field: str, cut: dict[str, list[int]]
) -> Ragged:
    """The tokens of each text in their frame. cut: counts, by field, of the texts that were too long, and of all."""
    room = block - len(frame.before) - len(frame.behind)
    if room < 1:
        raise UserError(f'data.{field}: {block}; the special tokens around a text are {block - room}, so give it more')
    encoded = tokenizer.encode_all(texts)
    count = cut.setdefault(field, [0, 0, block])
    count[0] += sum(len(tokens) > room for tokens in encoded)
    count[1] += len(encoded)
    rows = [np.concatenate([frame.before, tokens[:room], frame.behind]) for tokens in encoded]
    return Ragged(rows, block, tokenizer.filler, dtype_of(tokenizer.vocab_size))


def _ragged_two(
    tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str], block: int, cut: dict[str, list[int]]
) -> dict[str, Ragged]:
    """The same of two texts in a row, and the type of each token: 0, and 1 from the second text on. The longer text is
    cut first, as `longest_first` of the `tokenizers` library cuts them."""
    before, between, behind = tokenizer.frame
    room = block - len(before) - len(between) - len(behind)
    if room < 2:
        raise UserError(f'data.block: {block}; the special tokens around two texts are {block - room}; give it more')
    count, rows, types = cut.setdefault('block', [0, 0, block]), [], []
    for one, two in zip(tokenizer.encode_all(first), tokenizer.encode_all(second), strict=True):
        count[0], count[1] = count[0] + (len(one) + len(two) > room), count[1] + 1
        n, m = _sizes(len(one), len(two), room)
        rows.append(np.concatenate([before, one[:n], between, two[:m], behind]))
        types.append(np.repeat([0, 1], [len(before) + n + len(between), m + len(behind)]))
    return {
        'tokens': Ragged(rows, block, tokenizer.filler, dtype_of(tokenizer.vocab_size)),
        'types': Ragged(types, block, 0, np.uint8, tells_length=False),
    }


def _sizes(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens are kept of two texts."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def _tell_of_cuts(cut: Mapping[str, list[int]]) -> None:
    for field, (longer, total, block) in cut.items():
        if longer:
            what = 'targets' if field == 'target_block' else 'texts'
            note(f'data.{field}: {longer} of {total} {what} have more than {block} tokens; their ends are cut off')


def _framed_tags(tokenizer: Tokenizer, row: TaggedText, number: Mapping[str, int], block: int) -> np.ndarray:
    """The tags of the tokens of a text in its frame, cut as `_ragged` cuts them."""
    boundaries = tokenizer.boundaries(row.text)
    found = np.full(len(boundaries) - 1, NO_TAG if row.outside is None else number[str(row.outside)], np.int32)
    if row.spans and len(found):
        begin, end = np.array(row.spans).T
        first, last = (np.searchsorted(boundaries, at, 'right') - 1 for at in (begin, end - 1))
        for i, j, tag in zip(first, last, row.tags, strict=True):
            found[i : (i if row.outside is None else j) + 1] = number[str(tag)]
    before, _, behind = map(len, tokenizer.frame)
    return np.concatenate([[NO_TAG] * before, found[: block - before - behind], [NO_TAG] * behind]).astype(np.int32)


def _classes(cfg, by_split: Mapping[str, list]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(class of each label by split, name of each class). Raises UserError for labels that are no classes."""
    kinds = {type(label).__name__ for every in by_split.values() for label in every}
    if len(kinds) > 1:
        raise UserError(f'data.name={cfg.name}: its labels are of different kinds, {", ".join(sorted(kinds))}')
    where = f'data.name={cfg.name}'
    classes, names = labels.to_classes({split: np.array(every) for split, every in by_split.items()}, where)
    if not names:
        raise UserError(f'{where}: its labels tell no classes apart; give two or more')
    labels.tell_of_empty_classes(classes['train'], names, where)
    return classes, names


def _dataset(splits: Mapping[str, Rows], spec, licence: str, origin: str, names: tuple[str, ...] = ()) -> Dataset:
    digest = hashlib.sha256(spec.tokenizer.to_json().encode())
    for split, rows in splits.items():
        for name, array in sorted(rows.resident.items()):
            digest.update(f'{split}/{name} {array.dtype.str} {array.shape}\n'.encode())
            digest.update(np.ascontiguousarray(array).data)
    return Dataset(
        splits=splits, spec=spec, licence=licence, fingerprint=digest.hexdigest(), num_classes=len(names),
        class_names=names, origin=origin,
    )  # fmt: skip
