"""Sets that are prepared for TensorFlow Datasets as array_record, read without TensorFlow or the network."""

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from aigc_jax.core import mends
from aigc_jax.core.errors import RunError, UserError, first_line, near
from aigc_jax.core.notes import note
from aigc_jax.data.dataset import Dataset, divide
from aigc_jax.data.sources import text
from aigc_jax.data.sources.arrays import split_of
from aigc_jax.data.specs import Images, Points
from aigc_jax.data.tokenizers import Tokenizer

PREFIX = 'tfds:'  # of data.name, and of the place of pairs, labelled and tagged texts
_NAME = re.compile(r'(?P<set>[a-z]\w*)(/[\w.\-]+)?(:\d+\.\d+\.\d+)?')
_HASHED_BYTES = 1 << 30  # the fingerprint reads the files of sets up to this size; of larger ones their sizes
_CHUNK = 10_000  # texts that are read at once
_PEEK = 256  # training images that tell 0/1 from 0..255, where the set itself does not say


class Stream:
    """A split of a TFDS set, read from disk at every access; see splits.Source. It can be pickled."""

    def __init__(self, source, name: str, key: str, labelled: bool, rows: np.ndarray):
        """rows: of the source, that the split consists of."""
        self._source, self._rows, self._name = source, rows, name
        self._keys = {'x': key} | ({'label': 'label'} if labelled else {})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> dict[str, Any]:
        rows = self._rows[np.atleast_1d(index)].tolist()
        try:
            # Threads read many examples five times faster, and one three times slower.
            examples = self._source.__getitems__(rows) if np.ndim(index) else [self._source[rows[0]]]
        except RuntimeError as e:
            raise RunError(f'{self._name}: a record of {rows[:3]}... is unreadable: {first_line(e)}') from e
        batch = {name: np.stack([example[key] for example in examples]) for name, key in self._keys.items()}
        if 'label' in batch:
            batch['label'] = batch['label'].astype(np.int32)
        return batch if np.ndim(index) else {name: array[0] for name, array in batch.items()}


def tfds(cfg, where: str) -> Dataset:
    """The prepared set `where` (NAME, NAME/CONFIG, NAME:1.0.0) in the folder data.dir ('': TFDS's default).

    It has `image` or `x`, uint8 or float32 of a fixed shape, and perhaps a class `label`; a split train, and perhaps
    test, validation or valid, which are held out of it otherwise (`dataset.divide`). levels is what
    scripts/prepare_data.py noted, or else 1 if the first training images hold 0 and 1 alone, or 255.

    Raises:
      UserError: if the set is not there as array_record (with the command that prepares it), is damaged, or
        lacks one of these.
    """
    builder = _builder(cfg, where)
    info = builder.info
    key, shape, dtype, classes = _features(info, where)
    splits, origin = _splits(cfg, info, where)
    try:
        streams = {
            split: Stream(builder.as_data_source(name), f'tfds:{where}', key, classes > 0, rows)
            for split, (name, rows) in splits.items()
        }
        for stream in streams.values():
            stream[len(stream) - 1]  # the one read that shows a file missing or cut short
        levels = 0
        if dtype == np.uint8:
            head = streams['train'][np.arange(min(_PEEK, len(streams['train'])))]['x']
            levels = int((info.metadata or {}).get('levels') or (1 if head.max() <= 1 else 255))
    except RunError as e:
        raise UserError(f'{e}; {builder.data_dir} is damaged: prepare it again') from e
    return Dataset(
        splits=streams,
        spec=Images(shape, levels) if len(shape) == 3 else Points(*shape),
        num_classes=classes,
        licence=_licence(info),
        fingerprint=_fingerprint(info, streams),
        class_names=tuple(info.features['label'].names) if classes else (),
        origin=origin,
    )


class _Documents:
    """The texts of some examples of a split, read in chunks each time they are iterated over."""

    def __init__(self, source, name: str, key: str, rows: np.ndarray, is_kept: bool):
        self._source, self._name, self._key, self._rows, self._is_kept = source, name, key, rows, is_kept

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), _CHUNK):
            rows = self._rows[begin : begin + _CHUNK].tolist()
            try:
                examples = self._source.__getitems__(rows)
            except RuntimeError as e:
                raise UserError(f'{self._name}: a record is unreadable: {first_line(e)}; prepare it again') from e
            for row, example in zip(rows, examples, strict=True):
                text = example[self._key]
                try:
                    errors = 'surrogateescape' if self._is_kept else 'strict'
                    yield text.decode(errors=errors) if isinstance(text, bytes) else text
                except UnicodeDecodeError:
                    raise UserError(
                        f'{self._name}: example {row} is not UTF-8; prepare it again, or set data.tokenizer=byte'
                    ) from None

    def of(self, rows: np.ndarray) -> '_Documents':
        return _Documents(self._source, self._name, self._key, rows, self._is_kept)


def tfds_text(cfg, where: str, tokenizer: Tokenizer | None) -> Dataset:
    """The prepared set `where` as text: each example is a document, the feature `text`, or else its only text.

    A validation or test split that it lacks is cut from the training documents, as text.load cuts them. The tokens are
    held in memory, the strings are not: they are read once for each of tokens, a tokenizer to be learned, a cut.

    Raises:
      UserError: as `tfds`, and if there is no text in it.
    """
    text.check_percents(cfg)
    builder = _builder(cfg, where)
    info, name = builder.info, f'tfds:{where}'
    key = _text_feature(info, name)
    if 'train' not in info.splits:
        raise UserError(f'data.name={name}: has no train split, only {", ".join(info.splits)}')
    own = {'train': 'train', 'valid': 'validation' if 'validation' in info.splits else 'valid', 'test': 'test'}
    by_split = {}
    for split in text.SPLITS:
        if own[split] in info.splits:
            source = builder.as_data_source(own[split])
            by_split[split] = _Documents(source, name, key, np.arange(len(source)), text.is_kept(cfg, tokenizer))
    origin = text.origin_of_splits(cfg, by_split, len(by_split['train']) > 1)
    percents = [0.0 if split in by_split else cfg[f'{split}_percent'] for split in ('valid', 'test')]
    if any(percents):
        parts = _cut(by_split.pop('train'), *percents)
        by_split = {split: by_split.get(split, parts[split]) for split in text.SPLITS}
    has_end = any(len(documents) > 1 for documents in by_split.values())
    return text.from_splits(cfg, by_split, has_end, _licence(info), tokenizer, origin)


def rows(
    cfg, where: str, names: tuple[str, ...], read: Callable[[dict, str], Any]
) -> tuple[dict[str, list], str, tuple[str, ...]]:
    """({split: what read(row, line) makes of each example}, the licence, the names of the classes) of a prepared set.

    names: the features that are read; a class comes as its number. Examples without a class, whose label is −1,
    are left out with a note. Raises UserError.
    """
    builder, name = _builder(cfg, where), f'tfds:{where}'
    features, by_split = builder.info.features, {}
    if lacking := [one for one in names if one not in features]:
        has = ', '.join(sorted(features))
        raise UserError(f'data.name={cfg.name}: has no feature {", ".join(lacking)}; set data.columns to two of {has}')
    for theirs in builder.info.splits:
        if not (split := split_of(theirs)):
            continue
        source, found = builder.as_data_source(theirs), []
        for begin in range(0, len(source), _CHUNK):
            here = list(range(begin, min(begin + _CHUNK, len(source))))
            try:
                examples = source.__getitems__(here)
            except RuntimeError as e:
                raise UserError(f'{name}: a record is unreadable: {first_line(e)}; prepare it again') from e
            found += [({key: _plain(one[key]) for key in names}, f'{name}: {theirs}, example {i}')
                      for i, one in zip(here, examples, strict=True)]  # fmt: skip
        classes = [key for key in names if hasattr(features[key], 'int2str')]
        kept = [(row, line) for row, line in found if all(row[key] != -1 for key in classes)]
        if len(kept) < len(found):
            note(f'{name}: {theirs}: {len(found) - len(kept)} of {len(found)} examples are left out, without a class')
        if kept:
            by_split[split] = [read(row, line) for row, line in kept]
    last = features[names[-1]]
    last = getattr(last, 'feature', last)  # of a sequence of classes
    return by_split, _licence(builder.info), tuple(getattr(last, 'names', None) or ())


def _plain(value: Any) -> Any:
    """A value of TFDS as JSON would have it."""
    if isinstance(value, bytes):
        return value.decode(errors='surrogateescape')
    if isinstance(value, np.ndarray | list):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _cut(documents: _Documents, valid_percent: float, test_percent: float) -> dict[str, Collection[str]]:
    if len(documents) == 1:
        return text.cut(list(documents), valid_percent, test_percent)
    where = np.array([text.SPLITS.index(text.split_of(one, valid_percent, test_percent)) for one in documents], np.int8)
    return {split: documents.of(np.flatnonzero(where == i)) for i, split in enumerate(text.SPLITS)}


def _text_feature(info, name: str) -> str:
    from tensorflow_datasets.core.features import Text

    texts = [key for key, feature in info.features.items() if isinstance(feature, Text)]
    if 'text' in texts or len(texts) == 1:
        return 'text' if 'text' in texts else texts[0]
    raise UserError(f'data.name={name}: has no text, nor one text alone, only {", ".join(sorted(info.features))}')


def _builder(cfg, name: str):
    """TFDS's builder of a set that lies in data.dir as array_record."""
    folder = os.path.abspath(os.path.expanduser(cfg.dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'))
    match = _NAME.fullmatch(name)
    if not match:  # also TFDS's namespaces (huggingface:NAME), which would go to the network
        raise UserError(
            f'data.name=tfds:{name}: is no name of a set; write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0'
        )
    try:
        import tensorflow_datasets

        builder = tensorflow_datasets.builder(name, data_dir=folder, try_gcs=False)
        if builder.info.splits:
            builder.as_data_source()
            return builder
        prepared_as = ''
    except ImportError as e:
        raise UserError(
            f'data.name=tfds:{name}: needs the package {e.name}: pip install tensorflow-datasets '
            f'array_record importlib_resources pillow'
        ) from e
    except NotImplementedError:  # TFDS's answer for files of another format
        prepared_as = f' (there it is {builder.info.file_format.value})'
    except tensorflow_datasets.core.DatasetNotFoundError as e:
        raise UserError(_unknown(name, folder, tensorflow_datasets)) from e
    except Exception as e:  # a damaged folder: TFDS raises whatever its parsers do
        raise UserError(
            f'data.name=tfds:{name}: TFDS cannot open it in {folder}; correct the name or '
            f'version, or prepare it again:\n  {first_line(e)}'
        ) from e
    place = str(mends.unused(f'{folder}_array_record')) if prepared_as else folder  # what is there stays
    quoted = shlex.quote(place)
    raise UserError(
        f'data.name=tfds:{name}: not prepared as array_record in {folder}{prepared_as}. With internet, run\n'
        f'  python -m venv tfds_env && tfds_env/bin/pip install tensorflow-datasets tensorflow array_record '
        f'importlib_resources && tfds_env/bin/tfds build {name} --file_format=array_record --data_dir={quoted}\n'
        f'and use {shlex.quote(f"--config.data.dir={place}")}; for a machine without, copy '
        f'{os.path.join(place, match["set"])} into such a folder there. Local files: '
        f'python scripts/prepare_data.py --source=idx:DIR --name=NAME --data_dir={quoted}'
    )


def _unknown(name: str, folder: str, tensorflow_datasets) -> str:
    here = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    mend = near(name, [*here, *tensorflow_datasets.list_builders(with_community_datasets=False)])
    if not mend.startswith('; did you mean'):  # not all 300 names of TFDS
        mend = f'; {folder} holds {", ".join(here) or "nothing"}'
    return f'data.name=tfds:{name}: TFDS has no such set, and it is not in {folder}{mend}'


def _features(info, name: str) -> tuple[str, tuple[int, ...], np.dtype, int]:
    """The key, shape and dtype of the examples, and the number of classes."""
    features = info.features
    key = next((key for key in ('image', 'x') if key in features), '')
    if not key:
        raise UserError(
            f'data.name=tfds:{name}: has neither image nor x, only {", ".join(features)}; choose '
            f'a set of images or points'
        )
    shape, dtype = features[key].shape, features[key].np_dtype
    if None in shape or (len(shape), dtype) not in ((3, np.uint8), (3, np.float32), (1, np.float32)):
        raise UserError(
            f'data.name=tfds:{name}: {key} is {np.dtype(dtype)} {shape}, not uint8 or float32 of '
            f'a fixed shape; resize it into an .npz and use npz:FILE'
        )
    classes = getattr(features['label'], 'num_classes', None) if 'label' in features else None
    return key, shape, dtype, classes or 0


def _splits(cfg, info, name: str) -> tuple[dict[str, tuple[str, np.ndarray]], str]:
    """TFDS's name for train, valid and test, and the rows of it; the origin of the splits."""
    if 'train' not in info.splits:
        raise UserError(
            f'data.name=tfds:{name}: has no train split, only {", ".join(info.splits)}; '
            f'divide it yourself into an .npz and use npz:FILE'
        )
    valid = next((valid for valid in ('validation', 'valid') if valid in info.splits), '')
    own = {split: theirs for split, theirs in (('valid', valid), ('test', 'test')) if theirs in info.splits}
    rows = {theirs: np.arange(info.splits[theirs].num_examples) for theirs in ('train', *own.values())}
    parts, origin = divide(cfg.valid_examples, len(rows['train']), own, f'tfds:{name}')
    splits = {split: (theirs, rows[theirs]) for split, theirs in own.items()}
    splits |= {split: ('train', rows['train'][part]) for split, part in parts.items()}
    if valid and not cfg.valid_examples:
        behind = len(rows['train']) + rows[valid]
        splits['train'] = f'train+{valid}', np.concatenate([splits['train'][1], behind])
        del splits['valid']
        origin += '; valid is trained on'
    return {split: splits[split] for split in ('train', 'valid', 'test') if split in splits}, origin


def _fingerprint(info, streams: dict[str, Stream]) -> str:
    """sha256 over name, version, split sizes and the files (their sizes alone above _HASHED_BYTES)."""
    digest = hashlib.sha256(f'{info.full_name} {[(s, len(x)) for s, x in streams.items()]}\n'.encode())
    paths = sorted({str(path) for split in info.splits.values() for path in split.filepaths})
    sizes = [os.path.getsize(path) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f'{os.path.basename(path)} {size}\n'.encode())
        if sum(sizes) <= _HASHED_BYTES:
            with open(path, 'rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()


def _licence(info) -> str:
    return info.redistribution_info.license or 'not stated; see www.tensorflow.org/datasets/catalog'
