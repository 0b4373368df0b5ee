"""How many bytes the parameters of a model take where they are stored as a change of the model allows."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from aigc_jax.core import tree
from aigc_jax.core.types import Tree


class Stored(NamedTuple):
    """Of one parameter. values: how many of its numbers are stored, of so many bits each. more: bytes of what says how
    to read them, such as scales, or which numbers they are."""

    values: int
    bits: int
    more: int = 0

    @property
    def bytes(self) -> int:
        return math.ceil(self.values * self.bits / 8) + self.more


def whole(params: Mapping[str, Tree]) -> dict[str, Stored]:
    """{PLAYER/…: as the parameter stands in `params`}."""
    return {name: Stored(leaf.size, 8 * leaf.dtype.itemsize) for name, leaf in tree.flatten(dict(params)).items()}
