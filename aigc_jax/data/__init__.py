"""Data sources by name: `load(config.data)` gives a Dataset."""

import os

from aigc_jax.core.errors import UserError, near
from aigc_jax.data import embedded, files, tfds
from aigc_jax.data.dataset import Arrays, Dataset, Source, materialize, train_on_valid

__all__ = ['SOURCES', 'Arrays', 'Dataset', 'Source', 'load', 'materialize']

# A name that ends in a colon is followed by a place: loader(cfg, where); any other stands alone: loader(cfg).
SOURCES = {
    'digits': embedded.digits,
    'gaussian2d': embedded.mixture,
    'ring8': embedded.mixture,
    'grid25': embedded.mixture,
    'idx:': files.idx,
    'npz:': files.npz,
    'amat:': files.amat,
    'tfds:': tfds.tfds,
}


def load(cfg) -> Dataset:
    """The data set that `cfg`, the config's `data`, names.

    Args:
      cfg: has `name` (a key of SOURCES, with its place after the colon), `dir` (of TFDS sets, '' for TFDS's
        own default), `num_examples` (training examples of the mixtures) and `valid_examples` (how many of the
        last training examples to hold out where a set has no valid split; 0: the valid split of any set is
        trained on, and there is none).

    Raises:
      UserError: if the name is unknown, or what it names cannot be read.
    """
    prefix, colon, where = cfg.name.partition(':')
    if prefix + colon not in SOURCES:
        mend = f'; did you mean {prefix}:...?' if f'{prefix}:' in SOURCES else near(prefix + colon, SOURCES)
        raise UserError(f'data.name={cfg.name}: no such data{mend}')
    loader = SOURCES[prefix + colon]
    if colon and not where:
        raise UserError(f'data.name={cfg.name}: what comes after the colon is missing')
    if prefix == 'tfds':
        return loader(cfg, where)
    dataset = loader(cfg, os.path.abspath(os.path.expanduser(where))) if colon else loader(cfg)
    return dataset if cfg.valid_examples else train_on_valid(dataset)
