"""Trees by the names of their leaves."""

import re
from collections.abc import Callable, Iterable

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


def by_rule(
    rules: Iterable[tuple[str, object]], tree: Tree, default, what: str, sometimes: tuple[str, ...] = ()
) -> Tree:
    """The value of the first rule (regex, value) whose regex is found in a leaf's name; `default` for the rest.

    Raises UserError for a regex that is no regex, or that no leaf's name holds (a misspelt rule does nothing
    in silence otherwise). `what` names the config field in that message; `sometimes`: names that only some trees have.
    """
    rules = tuple(rules)
    names = list(flatten(tree))
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(f'{what}: {rule!r} is no pair of a regular expression and a value')
    for pattern, _ in rules:
        patterns.check(pattern, (*names, *sometimes), what)
        if not any(re.search(pattern, name) for name in (*names, *sometimes)):
            known = ', '.join(names)
            raise UserError(f"{what}: {pattern!r} matches no parameter; there are {known}; '.*' matches all")
    return map_named(
        lambda name, _: next((value for pattern, value in rules if re.search(pattern, name)), default), tree
    )
