"""Which kernels of a model a change is of, by a regex of the config."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.core import tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Tree


def kernels(params: Mapping[str, Tree]) -> dict[str, Any]:
    """{PLAYER/…/kernel: leaf} of what dense layers and convolutions multiply by."""
    flat = tree.flatten(dict(params))
    return {name: leaf for name, leaf in flat.items() if name.endswith('/kernel') and len(leaf.shape) > 1}


def chosen(params: Mapping[str, Tree], targets: str, what: str) -> dict[str, Any]:
    """Those of `kernels` that the regex `targets`, of the field `what`, matches (tree.matching). Raises UserError where
    it matches none."""
    known = kernels(params)
    found = {name: known[name] for name in tree.matching(targets, known, what)}
    if not found:
        raise UserError(f'{what}: {targets!r} matches no kernel; there are {", ".join(known)}')
    return found
