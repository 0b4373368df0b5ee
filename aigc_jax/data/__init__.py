"""Data sources by name: `load(config.data)` gives a Dataset."""

import copy
import functools

from aigc_jax.core.errors import UserError, check_fields, near
from aigc_jax.data import embedded, files, folders, programs, reading, text, tfds
from aigc_jax.data.dataset import Arrays, Dataset, Source, materialize, train_on_valid
from aigc_jax.data.stacked import stacked
from aigc_jax.data.text import is_code
from aigc_jax.data.tokenizers import Tokenizer

__all__ = ['SOURCES', 'TEXTS', 'Arrays', 'Dataset', 'Source', 'Tokenizer', 'is_code', 'load', 'materialize']

TFDS = 'tfds:'  # images or text, as the fields of the config are
IMAGES = 'images:'  # whose examples stand in the order of their folders and names
STACKED = 'stacked:'  # is followed by the name of another source
# A name that ends in a colon is followed by a place: loader(cfg, where); any other stands alone: loader(cfg).
SOURCES = {
    'digits': embedded.digits,
    'gaussian2d': embedded.mixture,
    'ring8': embedded.mixture,
    'grid25': embedded.mixture,
    'moons': embedded.moons,
    'idx:': files.idx,
    'npz:': files.npz,
    'npy:': files.npy,
    'mat:': files.mat,
    'amat:': files.amat,
    IMAGES: folders.images,
    TFDS: tfds.tfds,
}
PARTS = {  # whose splits can be given as train=…,valid=…,test=…, as those of TEXTS with a place
    'idx:': files.read_idx,
    'npz:': files.read_npz,
    'npy:': files.read_npy,
    'mat:': files.read_mat,
    IMAGES: folders.read_images,
}
MAPPED = ('idx:', 'npz:', 'npy:')  # can be read while training, where they are not compressed
FLAT = ('npz:', 'npy:', 'mat:', 'amat:')  # may hold images as rows of pixels, which data.shape tells the sizes of
TEXTS = {  # the same with a last argument, the tokenizer of a run that is gone on with, or None
    'pydoc': text.pydoc,
    'python-stdlib': text.python_stdlib,
    'programs': programs.load,
    'text:': text.text_files,
    'code:': text.code,
    'jsonl:': text.jsonl,
}
KNOWN = SOURCES | TEXTS | {STACKED: stacked}
FIELDS = dict(name=str, dir=str, num_examples=int, valid_examples=int, binarize=str, scale=str, stream=bool)
TEXT_FIELDS = dict(
    name=str, tokenizer=str, vocab_size=int, order=str, valid_percent=float, test_percent=float, block=int,
    eval_block=int, eval_stride=int, stream=bool,
)  # fmt: skip
# Fields that runs of earlier days lack; without them, their values are those that these runs had.
LATER_FIELDS = dict(augment=dict, shape=tuple)
LATER_TEXT_FIELDS = dict(dir=str, code=bool, fim_rate=float, fim_identifiers=float)


def check(cfg) -> None:
    """Raises UserError unless `cfg` has the fields of its kind of data, and no others."""
    key, _ = _parts(cfg.name)
    is_text = key in TEXTS or (key == TFDS and 'tokenizer' in cfg)
    for wanted, mark, kind in ((is_text, 'scale', 'of images'), (not is_text, 'tokenizer', 'of text')):
        if wanted and mark in cfg:
            raise UserError(f'data.name={cfg.name}: this config has the fields {kind}; use the config of another model')
    fields, later = (TEXT_FIELDS, LATER_TEXT_FIELDS) if is_text else (FIELDS, LATER_FIELDS)
    check_fields(cfg, fields, 'data', later=later)


def load(cfg, tokenizer: Tokenizer | None = None) -> Dataset:
    """The data set that `cfg`, the config's `data`, names.

    Args:
      cfg: has `name` (a key of SOURCES or TEXTS, with its place after the colon). Of images and points besides: `dir`
        (of TFDS sets, '' for TFDS's own default), `num_examples` (training examples of mixtures and stacks),
        `valid_examples` (how many training examples to hold out where a set has no valid split: `dataset.divide`; 0:
        the valid split of any set is trained on, and there is none) and perhaps `shape` (of local files' images that
        are stored flat; (): they are square). Of text: see `text.load`.
      tokenizer: of the run that is gone on with; None: of the data.

    Raises:
      UserError: if the name is unknown, or what it names cannot be read.
    """
    key, where = _parts(cfg.name)
    loader = KNOWN[key]
    if key == STACKED:
        base = copy.deepcopy(cfg)
        base.name = where
        if _parts(where)[0] in TEXTS:
            raise UserError(f'data.name={cfg.name}: only labelled images of one channel can be stacked')
        return stacked(load(base), cfg.num_examples, where)
    if key == TFDS:
        return tfds.tfds_text(cfg, where, tokenizer) if 'tokenizer' in cfg else loader(cfg, where)
    places = reading.places(cfg.name, where) if where else {}
    if key in TEXTS:
        return loader(cfg, *[places] * bool(where), tokenizer)
    if cfg.get('shape', ()) and key not in FLAT:
        raise UserError(f'data.shape={cfg.shape}: is of {", ".join(FLAT)} alone; leave it () for data.name={cfg.name}')
    if 'train' in places and key not in PARTS:
        raise UserError(f'data.name={cfg.name}: train=…,valid=…,test=… is of {", ".join(PARTS)} and text')
    if 'train' in places:
        read = functools.partial(PARTS[key], mapped=cfg.get('stream', False)) if key in MAPPED else PARTS[key]
        dataset = files.joined(cfg, read, places, grouped=key == IMAGES)
    else:
        dataset = loader(cfg, *places.values())
    return dataset if cfg.valid_examples else train_on_valid(dataset)


def _parts(name: str) -> tuple[str, str]:
    """'idx:DIR' -> ('idx:', 'DIR'). Raises UserError for data that there are not."""
    prefix, colon, where = name.partition(':')
    if prefix + colon not in KNOWN:
        mend = f'; did you mean {prefix}:...?' if f'{prefix}:' in KNOWN else near(prefix + colon, KNOWN)
        raise UserError(f'data.name={name}: no such data{mend}')
    if colon and not where:
        raise UserError(f'data.name={name}: what comes after the colon is missing')
    return prefix + colon, where
