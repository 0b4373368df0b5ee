"""Data sets that need no file and no network."""

import zlib

import numpy as np

from aigc_jax.core import memory
from aigc_jax.core.errors import UserError
from aigc_jax.data.dataset import Dataset, from_arrays
from aigc_jax.data.gaussian_mixture import MIXTURES, Mixture
from aigc_jax.data.splits import Arrays

_EVAL_EXAMPLES = 10_000  # of a mixture's valid and test splits
_BLOCK = 1000  # examples drawn at once from a mixture

_BYTES_A_POINT = 64  # while a mixture is drawn


def digits(cfg) -> Dataset:
    """1797 handwritten digits, uint8 (8, 8, 1) in 0..16, 10 classes, from scikit-learn's copy of the UCI set.

    Train 1437, valid 180, test 180, by one fixed permutation: scikit-learn gives the examples in the order of
    their writers, and has no split of its own.
    """
    del cfg
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[..., None]
    # RandomState, for its stream is frozen for good (NEP 19); a Generator's may change with numpy.
    order = np.random.RandomState(0).permutation(len(x))
    parts = zip(('train', 'valid', 'test'), np.split(order, [1437, 1617]), strict=True)
    return from_arrays(
        {split: Arrays(x=x[index], label=bunch.target[index]) for split, index in parts},
        levels=16,
        num_classes=10,
        origin='one fixed permutation',
        licence='CC BY 4.0: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI '
        'Machine Learning Repository; its test part, as scikit-learn ships it',
    )


def mixture(cfg) -> Dataset:
    """`gaussian2d`, `ring8` or `grid25`: data.num_examples training draws, 10,000 each for valid and test.

    A function of the name and data.num_examples alone; a smaller training set is the beginning of a larger
    one, and valid and test are the same for all sizes. Labels are the components; none for one component.

    Raises:
      UserError: if data.num_examples is below 1.
    """
    if cfg.num_examples < 1:
        raise UserError(f'data.num_examples={cfg.num_examples}: {cfg.name} needs 1 training example or more')
    memory.want(_BYTES_A_POINT * cfg.num_examples, f'data.num_examples={cfg.num_examples}')
    density = MIXTURES[cfg.name]()
    sizes = {'train': cfg.num_examples, 'valid': _EVAL_EXAMPLES, 'test': _EVAL_EXAMPLES}
    splits = {split: _draw(density, f'{cfg.name}/{split}', n) for split, n in sizes.items()}
    classes = len(density.means) if len(density.means) > 1 else 0
    return from_arrays(
        splits, levels=0, num_classes=classes, density=density, licence='none needed: drawn at random',
        origin='independent draws',
    )  # fmt: skip


def _draw(density: Mixture, stream: str, n: int) -> Arrays:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(stream.encode())))
    # In blocks of one size, so that the first n draws do not depend on n.
    x, component = zip(*(density.sample(rng, _BLOCK) for _ in range(-(-n // _BLOCK))), strict=True)
    label = {'label': np.concatenate(component)[:n]} if len(density.means) > 1 else {}
    return Arrays(x=np.concatenate(x)[:n], **label)
