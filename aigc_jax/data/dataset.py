"""What every data source returns: named splits with random access, and what is known about them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping

import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.data.gaussian_mixture import Mixture
from aigc_jax.data.specs import Images, Points, Scaling, Spec
from aigc_jax.data.splits import Arrays, Mapped, Source, materialize

_CHUNK = 1000  # examples whose bytes are hashed at once
_HELD_OUT = 10_000  # examples of a split that a set does not have itself, at most


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one data set.

    Attributes:
      splits: 'train', 'test' and, unless it is trained on, 'valid', each a Source.
      spec: the kind of data, Images, Points or Tokens, which knows what a model sees of an example.
      licence: as its source states it.
      fingerprint: sha256 (hex) over what the splits hold.
      num_classes: labels lie in 0..num_classes-1; 0: no labels.
      class_names: of each class, where the source tells them; else empty.
      origin: of the splits, in words: who divided the set, and how.
      loader: sha256 (hex) of the user's own file that returned it; '' for a source of this package.
    """

    splits: Mapping[str, Source]
    spec: Spec
    licence: str
    fingerprint: str
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    origin: str = 'as given'
    loader: str = ''

    def scaling(self, cfg) -> Scaling:
        """Between data units and model units, by data.scale of `cfg`, the config's `data`."""
        return self.spec.scaling(cfg, self.splits['train'])


def from_arrays(
    splits: Mapping[str, Arrays | Mapped], *, levels: int, licence: str, num_classes: int = 0,
    density: Mixture | None = None, class_names: tuple[str, ...] = (), origin: str = 'as given',
) -> Dataset:  # fmt: skip
    """A Dataset of arrays; examples `x` of rank 3 are images, of rank 1 points."""
    shape = splits['train'].column('x', slice(0, 1)).shape[1:]
    return Dataset(
        splits=dict(splits),
        spec=Images(shape, levels) if len(shape) == 3 else Points(*shape, density),
        num_classes=num_classes,
        licence=licence,
        fingerprint=fingerprint(splits),
        class_names=class_names,
        origin=origin,
    )


def divide(
    valid_examples: int, count: int, other: Collection[str], where: str, grouped: bool = False
) -> tuple[dict[str, slice | np.ndarray], str]:
    """Which of the `count` training examples become which split, where the set has the splits `other` besides them; and
    the origin of the splits in words.

    Where it has a test split, the last data.valid_examples are the valid split, unless the examples are `grouped`, by
    class or by folder. Otherwise the splits are drawn without replacement, always the same ones for the same count. A
    note tells the sizes where the data decide.

    valid_examples: −1: 10,000, or a fifth of the examples where that is fewer; a test split has as many always. 0: no
      valid split.

    Raises:
      UserError: if that leaves no training example.
    """
    if count < 3 and 'test' not in other:
        raise UserError(f'{where}: {count} examples cannot be divided into train, valid and test; give it 3 or more')
    usual = max(min(_HELD_OUT, count // 5), min(count - 1, 1))
    num_test = 0 if 'test' in other else usual
    num_valid = 0 if 'valid' in other else usual if valid_examples == -1 else valid_examples
    left = count - num_test
    if not 0 <= num_valid < left:
        raise UserError(
            f'data.valid_examples={valid_examples}: {where} has no valid split, so this many of its {left} training '
            f'examples are taken; choose 0..{left - 1}, or -1 for {usual}'
        )
    sizes = {'train': left - num_valid, 'valid': num_valid, 'test': num_test}
    sizes = {split: n for split, n in sizes.items() if n}
    if list(sizes) == ['train']:
        return {'train': slice(0, count)}, 'as given'
    drawn = grouped or 'test' not in other
    how = 'drawn at random, always the same ones' if drawn else 'valid are the last ones'
    split_up = ', '.join(f'{n} {split}' for split, n in sizes.items())
    if valid_examples == -1 or num_test or grouped:
        note(f'{where}: its {count} training examples become {split_up} ({how}; data.valid_examples={valid_examples})')
    ends = np.cumsum(list(sizes.values()))
    if not drawn:
        parts = {split: slice(end - sizes[split], end) for split, end in zip(sizes, ends.tolist(), strict=True)}
        return parts, f'valid is the last {num_valid:,} training examples'
    # RandomState, for its stream is frozen for good (NEP 19); a Generator's may change with numpy.
    # Test comes first of it, so that data.valid_examples does not change it.
    order = np.roll(np.random.RandomState(0).permutation(count), -num_test)
    held_out = ' and '.join(split for split in sizes if split != 'train')
    return dict(zip(sizes, np.split(order, ends[:-1]), strict=True)), f'{held_out} drawn from train, always the same'


def train_on_valid(dataset: Dataset) -> Dataset:
    """The same set in memory with its valid split, if it has one, behind the training examples instead."""
    splits = dict(dataset.splits)
    if 'valid' not in splits:
        return dataset
    parts = [materialize(splits['train']).arrays, materialize(splits.pop('valid')).arrays]
    splits['train'] = Arrays(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    origin = f'{dataset.origin}; valid is trained on'
    return dataclasses.replace(dataset, splits=splits, fingerprint=fingerprint(splits), origin=origin)


def fingerprint(splits: Mapping[str, Arrays | Mapped]) -> str:
    """sha256 (hex) over the names, types, shapes and bytes of all arrays of all splits."""
    digest = hashlib.sha256()
    for split, source in sorted(splits.items()):
        for name, first in sorted(source[:1].items()):
            shape = len(source), *first.shape[1:]
            digest.update(f'{split}/{name} {first.dtype.str} {shape}\n'.encode())
            for i in range(0, len(source), _CHUNK):
                digest.update(source.column(name, slice(i, i + _CHUNK)).data)
    return digest.hexdigest()
