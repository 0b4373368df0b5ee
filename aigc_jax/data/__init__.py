"""Data sources by name: `load(config.data)` gives a Dataset."""

import copy
import functools
import glob
import os

from aigc_jax.core import schema
from aigc_jax.core.errors import UserError, near
from aigc_jax.data import declarations
from aigc_jax.data.dataset import Dataset, from_arrays, train_on_valid
from aigc_jax.data.gaussian_mixture import MIXTURES
from aigc_jax.data.sources import (
    arrays,
    embedded,
    example_files,
    files,
    folders,
    functions,
    own,
    programs,
    reading,
    text,
    tfds,
)
from aigc_jax.data.sources.functions import code_ways
from aigc_jax.data.sources.stacked import stacked
from aigc_jax.data.sources.text import is_code
from aigc_jax.data.specs import NO_TAG, Images, Labelled, Pairs, Points, Scaling, Spec, Tagged, Text, Tokens
from aigc_jax.data.splits import Arrays, Resident, Source, materialize
from aigc_jax.data.tokenizers import Tokenizer

__all__ = [
    'NO_TAG', 'TEXTS', 'Arrays', 'Dataset', 'Images', 'Labelled', 'Pairs', 'Points', 'Resident', 'Scaling', 'Source',
    'Spec', 'Tagged', 'Text', 'Tokenizer', 'Tokens', 'code_ways', 'from_arrays', 'is_code', 'kind_at', 'load',
    'materialize', 'new_place', 'row_columns',
]  # fmt: skip

OWN = '.py'  # the path of a Python file of the user's, whose function returns images, points or text
TFDS = tfds.PREFIX  # images or text, as the fields of the config are
AMAT = 'amat:'  # is a set of its own, with all its splits
IMAGES = 'images:'  # whose examples stand in the order of their folders and names
STACKED = 'stacked:'  # is followed by the name of another source
# A name that ends in a colon is followed by a place; any other stands alone.
DRAWN = {'digits': embedded.digits, 'moons': embedded.moons, **dict.fromkeys(MIXTURES, embedded.mixture)}  # loader(cfg)
READERS = {  # of the arrays that lie at a place
    'idx:': files.read_idx,
    'npz:': files.read_npz,
    'npy:': files.read_npy,
    'mat:': files.read_mat,
    AMAT: files.read_amat,
    IMAGES: folders.read_images,
}
MAPPED = ('idx:', 'npz:', 'npy:')  # can be read while training, where they are not compressed
FLAT = ('npz:', 'npy:', 'mat:', AMAT)  # may hold images as rows of pixels, which data.shape tells the sizes of
TEXTS = {  # loader(cfg, tokenizer), or (cfg, where, tokenizer), of the run that is gone on with, or None
    'pydoc': text.pydoc,
    'python-stdlib': text.python_stdlib,
    'python-modules': functions.modules,
    'programs': programs.load,
    'text:': text.text_files,
    'code:': text.code,
    'jsonl:': text.jsonl,
}
EXAMPLES = {  # the same, of pairs and of labelled and tagged texts
    'docstrings': functions.docstrings,
    'identifiers': functions.identifiers,
    **{f'{kind}:': functools.partial(example_files.load, kind) for kind in example_files.COLUMNS},
}
KNOWN = (*DRAWN, *READERS, *TEXTS, *EXAMPLES, TFDS, STACKED)


def check(cfg) -> None:
    """Raises UserError unless `cfg` has the fields of its kind of data, and no others."""
    schema.check(cfg, fields(cfg), 'data')


def fields(cfg) -> schema.Group:
    """The fields of `cfg`, the config's `data`. Raises UserError where they are those of another kind of data."""
    if schema.named(cfg, 'name') is None:
        return declarations.IMAGES_AND_POINTS
    own, group = ('scale',), declarations.IMAGES_AND_POINTS
    if reads_text(cfg):
        own, group = ('order', 'tokenizer'), declarations.TEXT
    elif reads_examples(cfg):
        own, group = ('columns', 'tokenizer'), declarations.EXAMPLES
    marks = {'scale': 'images', 'columns': 'pairs and labelled texts', 'order': 'text', 'tokenizer': 'text'}
    if kind := next((kind for mark, kind in marks.items() if mark in cfg and mark not in own), ''):
        raise UserError(f'data.name={cfg.name}: this config has the fields of {kind}; use the config of another model')
    return group


def reads_text(cfg) -> bool:
    """Whether `cfg`, the config's `data`, names text as windows. Raises UserError for data that there are not."""
    key, _ = _parts(cfg.name)
    return key in TEXTS or (key in (TFDS, OWN) and 'tokenizer' in cfg and 'columns' not in cfg)


def reads_examples(cfg) -> bool:
    """The same of pairs and of labelled and tagged texts."""
    key, _ = _parts(cfg.name)
    if key == TFDS and 'columns' in cfg:
        raise UserError(f'data.name={cfg.name}: write pairs:{cfg.name}, labelled:{cfg.name} or tagged:{cfg.name}')
    return key in EXAMPLES or (key == OWN and 'columns' in cfg)


def own_file(name: str) -> str | None:
    """FILE.py[:function], if data.name is one or is made of one; else None."""
    name = name.removeprefix(STACKED)
    prefix, colon, _ = name.partition(':')
    is_kind = prefix + colon in KNOWN or (colon and prefix.isalpha())  # such as idx:, or txt:, which is misspelt
    return name if own.is_own(name) and not is_kind else None


def located(name: str) -> str:
    """data.name with the whole path of an own file, so that its run opens from any folder."""
    found = own_file(name)
    return name if found is None else name.removesuffix(found) + os.path.abspath(os.path.expanduser(found))


def kind_at(name: str) -> tuple[str, str]:
    """('stacked:idx:', 'DIR') of data.name=stacked:idx:DIR; ('', '') of data that do not lie at a place of the user's,
    and of an own file."""
    key, where = _parts(name)
    if key == STACKED:
        inner, place = kind_at(where)
        return (key + inner, place) if inner else ('', '')
    return (key, where) if where and key not in (TFDS, OWN) and not where.startswith(TFDS) else ('', '')


def new_place(name: str) -> str:
    """data.name with words for its place, where nothing lies at a place that it names; '' where all is there."""
    kind, where = kind_at(name)
    found = reading.places(name, where) if kind else {}
    is_there = lambda place: os.path.exists(place) or (glob.has_magic(place) and glob.glob(place, recursive=True))
    if all(map(is_there, found.values())):
        return ''
    return kind + ','.join(f'{split}=NEW_PLACE' if split else 'NEW_PLACE' for split in found)


def row_columns(cfg) -> tuple[str, tuple[str, ...]]:
    """(the kind, the names of the columns) of data in rows of the user's own files: pairs, labelled, tagged or jsonl;
    ('', ()) of others. Raises UserError."""
    return ('jsonl', ('text',)) if cfg.name.startswith('jsonl:') else example_files.row_columns(cfg)


def load(cfg, tokenizer: Tokenizer | None = None) -> Dataset:
    """The data set that `cfg`, the config's `data`, names.

    Args:
      cfg: has `name`, one of KNOWN with its place after the colon, or FILE.py[:function], see own.load.
        The other fields are those of declarations.IMAGES_AND_POINTS, TEXT or EXAMPLES, and have their defaults where
        they are left out. TFDS sets and own functions are read as text where `tokenizer` is there.
      tokenizer: of the run that is gone on with; None: of the data.

    Raises:
      UserError: if the name is unknown, what it names cannot be read, or another field does not fit.
    """
    cfg = copy.deepcopy(cfg)
    schema.fill(cfg, fields(cfg))
    check(cfg)
    key, where = _parts(cfg.name)
    if key == STACKED:
        if _parts(where)[0] in {**TEXTS, **EXAMPLES}:
            raise UserError(f'data.name={cfg.name}: only labelled images of one channel can be stacked')
        cfg.name = where
        return stacked(load(cfg), cfg.num_examples, where)
    if key == TFDS:
        return tfds.tfds_text(cfg, where, tokenizer) if 'tokenizer' in cfg else tfds.tfds(cfg, where)
    if key == OWN:
        dataset = own.load(cfg, tokenizer)
        return dataset if 'tokenizer' in cfg or cfg.valid_examples else train_on_valid(dataset)
    if key in EXAMPLES and where.startswith(TFDS):
        places = {TFDS: where.removeprefix(TFDS)}
    else:
        places = reading.places(cfg.name, where) if where else {}
    if loader := TEXTS.get(key) or EXAMPLES.get(key):
        return loader(cfg, *[places] * bool(where), tokenizer)
    if cfg.shape and key not in FLAT:
        raise UserError(f'data.shape={cfg.shape}: is of {", ".join(FLAT)} alone; leave it () for data.name={cfg.name}')
    if 'train' in places and key == AMAT:
        several = ', '.join(kind for kind in READERS if kind != AMAT)
        raise UserError(f'data.name={cfg.name}: train=…,valid=…,test=… is of {several} and text')
    if key in DRAWN:
        dataset = DRAWN[key](cfg)
    else:
        read = functools.partial(READERS[key], mapped=cfg.stream) if key in MAPPED else READERS[key]
        dataset = arrays.load(cfg, read, places, flat_images=key == AMAT, grouped=key == IMAGES)
    return dataset if cfg.valid_examples else train_on_valid(dataset)


def _parts(name: str) -> tuple[str, str]:
    """'idx:DIR' -> ('idx:', 'DIR'); 'FILE.py' -> (OWN, 'FILE.py'). Raises UserError for data that there are not."""
    prefix, colon, where = name.partition(':')
    if prefix + colon not in KNOWN:
        if own_file(name):
            return OWN, name
        mend = f'; did you mean {prefix}:...?' if f'{prefix}:' in KNOWN else near(prefix + colon, KNOWN)
        of_tfds = '' if colon or not name else f' Of TensorFlow Datasets it is tfds:{name}.'
        raise UserError(f'data.name={name}: no such data{mend}{of_tfds}')
    if colon and not where:
        raise UserError(f'data.name={name}: what comes after the colon is missing')
    return prefix + colon, where
