"""Data sets that need no file and no network."""

import zlib

import numpy as np

from aigc_jax.core import memory
from aigc_jax.core.errors import UserError
from aigc_jax.data.dataset import Dataset, from_arrays
from aigc_jax.data.gaussian_mixture import MIXTURES, Mixture
from aigc_jax.data.splits import Arrays

_EVAL_EXAMPLES = 10_000  # of the valid and test splits of points
_BLOCK = 1000  # points drawn at once
_BYTES_A_POINT = 64  # while they are drawn


def digits(cfg) -> Dataset:
    """1797 handwritten digits, uint8 (8, 8, 1) in 0..16, 10 classes, from scikit-learn's copy of the UCI set.

    Train 1437, valid 180, test 180, by one fixed permutation: scikit-learn gives the examples in the order of
    their writers, and has no split of its own.
    """
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
    """`gaussian2d`, `ring8` or `grid25`, as `_drawn`. Labels are the components; none for one component."""
    density = MIXTURES[cfg.name]()
    classes = len(density.means) if len(density.means) > 1 else 0
    return _drawn(cfg, density.sample, classes, density)


def moons(cfg) -> Dataset:
    """Two half circles of radius 3 that reach into each other: torchcfm's `sample_moons` (Tong et al. 2024).

    As `_drawn`, with 20,000 for valid and for test, since 10,000 samples beside their floor (metrics.transport) need as
    many. Labels are the moons.

    3 m + 3 u (1, 1) − 1, m on a half circle at a uniform angle and u ~ U[0, 0.2] the same for both coordinates, which
    is what torchdyn's `generate_moons(noise=0.2)` adds. Theirs has evenly spaced angles.
    """
    return _drawn(cfg, _moons, num_classes=2, held_out=2 * _EVAL_EXAMPLES)


def _moons(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    moon, angle = rng.integers(2, size=n, dtype=np.int32), np.pi * rng.random(n)
    sign = 1 - 2 * moon
    on = np.stack([moon + sign * np.cos(angle), 0.5 * moon + sign * np.sin(angle)], axis=-1)
    # Rounded, so that cos and sin of another machine's library give the same bits.
    return np.round(3 * (on + 0.2 * rng.random((n, 1))) - 1, 9).astype(np.float32), moon


def _drawn(
    cfg, sample, num_classes: int, density: Mixture | None = None, held_out: int = _EVAL_EXAMPLES
) -> Dataset:
    """data.num_examples training draws, and held_out for valid and for test, which are the same for all sizes.

    A function of the name and data.num_examples alone; a smaller training set is the beginning of a larger one.
    sample(rng, n) -> (x (n, D), label (n,)); the labels are left out where there are no classes. Raises UserError.
    """
    if cfg.num_examples < 1:
        raise UserError(f'data.num_examples={cfg.num_examples}: {cfg.name} needs 1 training example or more')
    memory.want(_BYTES_A_POINT * cfg.num_examples, f'data.num_examples={cfg.num_examples}')
    sizes = {'train': cfg.num_examples, 'valid': held_out, 'test': held_out}
    splits = {}
    for split, n in sizes.items():
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(f'{cfg.name}/{split}'.encode())))
        # In blocks of one size, so that the first n draws do not depend on n.
        x, label = zip(*(sample(rng, _BLOCK) for _ in range(-(-n // _BLOCK))), strict=True)
        labels = {'label': np.concatenate(label)[:n]} if num_classes else {}
        splits[split] = Arrays(x=np.concatenate(x)[:n], **labels)
    return from_arrays(
        splits, levels=0, num_classes=num_classes, density=density, licence='none needed: drawn at random',
        origin='independent draws',
    )  # fmt: skip
