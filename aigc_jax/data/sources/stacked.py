"""StackedMNIST: three independent images of a labelled set as the channels of one (Srivastava et al. 2017, VEEGAN,
section 4.2; Lin et al. 2018, PacGAN, section 4.2). With ten classes it has 1000 modes that a classifier can tell.
"""

import hashlib
import zlib
from typing import Any

import numpy as np

from aigc_jax.core import memory
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.specs import Images
from aigc_jax.data.splits import Arrays, Source, materialize

CHANNELS = 3
_BYTES_A_STACK = 96  # while it is drawn
_CLASSES = 10  # of a channel, at most: a stack's label is the number whose digits theirs are
_EVAL_EXAMPLES = {'valid': 10_000, 'test': 26_000}  # of the latter as many as publications draw samples


class Stacked:
    """A split that holds which images of another one are stacked, and makes the stacks when they are read."""

    def __init__(self, base: Arrays, draws: np.ndarray):
        """base: images (N, H, W, 1); draws: (n, C) int32 places in it."""
        self._base, self._draws = base, draws
        self._powers = _CLASSES ** np.arange(draws.shape[1] - 1, -1, -1, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index) -> dict[str, Any]:
        parts = self._base[self._draws[index]]
        return {'x': np.moveaxis(parts['x'][..., 0], -3, -1), 'label': self._label(parts['label'])}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All the stacks; large, and made anew each time."""
        return self[np.arange(len(self))]

    @property
    def resident(self) -> dict[str, np.ndarray]:
        return {**self._base.resident, 'draws': self._draws}

    def gather(self, data: Batch, index: Array) -> Batch:
        """index (R, B) -> {name: (R, B, …)}."""
        draws = data['draws'].at[index].get(mode='promise_in_bounds')  # (R, B, C)
        parts = self._base.gather({name: data[name] for name in ('x', 'label')}, draws.reshape(len(index), -1))
        x = parts['x'].reshape(*draws.shape, *parts['x'].shape[2:4])  # (R, B, C, H, W)
        return {'x': x.transpose(0, 1, 3, 4, 2), 'label': self._label(parts['label'].reshape(draws.shape))}

    def _label(self, labels):
        """Σ 10^(C − 1 − c) label_c: the digits of a decimal number."""
        return (labels * self._powers).sum(-1, dtype=np.int32)


def stacked(base: Dataset, num_examples: int, name: str) -> Dataset:
    """`num_examples` training stacks of `base`, 10,000 for valid, where it has that, and 26,000 for test.

    Each channel is drawn from the same split, with replacement. A function of the base and num_examples alone; a
    smaller training set is the beginning of a larger one. Raises UserError for a base that cannot be stacked.
    """
    spec = base.spec
    if not isinstance(spec, Images) or spec.shape[-1] != 1 or not base.num_classes or spec.stacked:
        raise UserError(f'data.name=stacked:{name}: only labelled images of one channel can be stacked')
    if base.num_classes > _CLASSES:
        raise UserError(
            f'data.name=stacked:{name}: its labels are read as digits, and {name} has {base.num_classes} classes'
        )
    if num_examples < 1:
        raise UserError(f'data.num_examples={num_examples}: stacked:{name} needs 1 training example or more')
    memory.want(_BYTES_A_STACK * num_examples, f'data.num_examples={num_examples}')
    splits, digest = {}, hashlib.sha256(f'stacked {base.fingerprint}\n'.encode())
    for split, source in sorted(base.splits.items()):
        draws = _draws(f'stacked/{split}', _EVAL_EXAMPLES.get(split, num_examples), source)
        splits[split] = Stacked(materialize(source), draws)
        digest.update(draws.data)
    return Dataset(
        splits=splits,
        spec=Images((*spec.shape[:2], CHANNELS), spec.levels, stacked=True),
        num_classes=_CLASSES**CHANNELS,
        licence=base.licence,
        origin=f'each stacks images of its own split of {name}',
        fingerprint=digest.hexdigest(),
        loader=base.loader,
    )


def _draws(stream: str, n: int, source: Source) -> np.ndarray:
    # Raw bits, which NumPy promises never to change; the remainder favours no image by more than 1e-14 of its chance.
    bits = np.random.PCG64(zlib.crc32(stream.encode())).random_raw(n * CHANNELS)
    return (bits % len(source)).astype(np.int32).reshape(n, CHANNELS)
