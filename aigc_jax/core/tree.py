"""Trees by the names of their leaves."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core import patterns
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Tree

_STACKED = re.compile(r'(^|[/.])(encoder_|decoder_)?blocks(?=[/.])')


def is_stacked(name: str) -> bool:
    """Whether a parameter is of layers in a loop (model.scan_layers), which are the first axis of it."""
    return _STACKED.search(name) is not None


def layer_names(name: str, layers: int) -> list[str]:
    """Of a parameter of layers in a loop, 'encoder_blocks/up/kernel', those of each layer by itself, 'encoder_0/…'."""
    return [_STACKED.sub(lambda found, i=i: f'{found[1]}{found[2] or "block_"}{i}', name) for i in range(layers)]


def restacked(params: Tree, like: Tree) -> Tree:
    """`params` with their layers one by one, or in a loop, as `like` has them. None where they lack a leaf of `like`.
    Raises UserError where they have it in some layers alone, and `like` in a loop."""
    has = flatten(params)
    for name, leaf in list(has.items()):
        if is_stacked(name):
            has |= {one: leaf[i] for i, one in enumerate(layer_names(name, leaf.shape[0]))}

    def found(name, leaf):
        if name in has or not is_stacked(name):
            return has.get(name)
        layers = [has.get(one) for one in layer_names(name, leaf.shape[0])]
        lacking = [layer is None for layer in layers]
        if any(lacking) and not all(lacking):
            raise UserError(f'{name}: is one array of all layers (model.scan_layers), of which some alone are drawn')
        return None if all(lacking) else jnp.stack(layers)

    return map_named(found, like)


def path_name(path) -> str:
    """'params/model/encoder/Dense_0/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten(tree: Tree) -> dict[str, object]:
    """{name: leaf}, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def map_named(function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """function(name, leaf, *rest_leaves) over the leaves."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def matching(pattern: str, leaves: Mapping[str, Any], what: str, sometimes: tuple[str, ...] = ()) -> list[str]:
    """The names in which a regex is found, and of layers in a loop those that it is found in when they have the names
    of each layer by itself. leaves: {name: what has a shape}.

    Raises UserError for a regex that is no regex, and for one that is of some layers of a loop alone. `what` names the
    config field in that message; `sometimes`: other names that it may be meant for.
    """
    layers = {name: layer_names(name, leaf.shape[0]) for name, leaf in leaves.items() if is_stacked(name)}
    patterns.check(pattern, (*leaves, *(one for own in layers.values() for one in own), *sometimes), what)
    found = []
    for name in leaves:
        each = [one for one in layers.get(name, ()) if re.search(pattern, one)]
        if each and len(each) < len(layers[name]):
            raise UserError(
                f'{what}: {pattern!r} matches {each[0]} and not all layers, which {name} holds in one array; set '
                'model.scan_layers to False, or match all of them'
            )
        if each or re.search(pattern, name):
            found.append(name)
    return found


def by_rule(
    rules: Iterable[tuple[str, object]], tree: Tree, default, what: str, sometimes: tuple[str, ...] = ()
) -> Tree:
    """The value of the first rule (regex, value) that is of a leaf, by its name (`matching`); `default` for the rest.

    Raises UserError for a regex that is no regex, or that no leaf's name holds (a misspelt rule does nothing
    in silence otherwise). `what` names the config field in that message; `sometimes`: names that only some trees have.
    """
    rules, leaves, value_of = tuple(rules), flatten(tree), {}
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(f'{what}: {rule!r} is no pair of a regular expression and a value')
    for pattern, value in rules:
        found = matching(pattern, leaves, what, sometimes)
        if not found and not any(re.search(pattern, name) for name in sometimes):
            known = ', '.join(leaves)
            raise UserError(f"{what}: {pattern!r} matches no parameter; there are {known}; '.*' matches all")
        value_of = dict.fromkeys(found, value) | value_of  # of the first one
    return map_named(lambda name, _: value_of.get(name, default), tree)
