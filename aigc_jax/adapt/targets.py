"""Which kernels of a model a change is of, by a regex of the config."""

import re
from collections.abc import Mapping
from typing import Any

from aigc_jax.core import patterns, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Tree


def kernels(params: Mapping[str, Tree]) -> dict[str, Any]:
    """{PLAYER/…/kernel: leaf} of what dense layers and convolutions multiply by."""
    flat = tree.flatten(dict(params))
    return {name: leaf for name, leaf in flat.items() if name.endswith('/kernel') and len(leaf.shape) > 1}


def chosen(params: Mapping[str, Tree], targets: str, what: str) -> dict[str, Any]:
    """Those of `kernels` whose names the regex `targets`, of the field `what`, is found in. Raises UserError where it
    is found in none."""
    known = kernels(params)
    patterns.check(targets, known, what)
    found = {name: leaf for name, leaf in known.items() if re.search(targets, name)}
    if not found:
        raise UserError(f'{what}: {targets!r} matches no kernel; there are {", ".join(known)}')
    return found
