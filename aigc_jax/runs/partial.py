"""Which parameters a run takes from another model, which it draws, and which of the other's it leaves (init.*)."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from aigc_jax.adapt import lora, quantize
from aigc_jax.core import patterns, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.core.types import Tree


@dataclasses.dataclass(frozen=True)
class Partial:
    """Names of parameters, as PLAYER/block_0/query/kernel: those of this model that are drawn, and those of the other
    one that are left. players: those of the other one of which nothing is taken. All are the names that init.rename
    makes; new: {what it was: what it is now}, of parameters. rules: of init.rename."""

    drawn: frozenset[str]
    left: frozenset[str]
    players: frozenset[str] = frozenset()
    new: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rules: tuple[tuple[str, str], ...] = ()

    def taken(self, params: Tree) -> Tree:
        """`params` with None in the place of what is drawn."""
        return tree.map_named(lambda name, leaf: None if name in self.drawn else leaf, params)

    def taken_of_optimizers(self, opt: Tree) -> Tree:
        """The same of the optimizers' states, whose leaves of a parameter end with its name."""
        return tree.map_named(lambda name, leaf: None if _is_of(name, self.drawn) else leaf, opt)

    def own_name(self, name: str) -> str:
        """The name that a leaf of the other's state, params/…, stats/… or opt/…, has in this one."""
        kind, slash, rest = name.partition('/')
        if kind != 'opt':
            return f'{kind}{slash}{_renamed(rest, self.rules)}'
        player, *path = rest.split('/')
        for i in range(len(path)):  # the leaf of a parameter ends with its name
            if now := self.new.get('/'.join([player, *path[i:]])):
                player, _, end = now.partition('/')
                return '/'.join([kind, player, *path[:i], end])
        return name

    def leaves(self, name: str) -> bool:
        """Whether a leaf of the other's state, by its name in this one, is left."""
        kind, _, rest = name.partition('/')
        if kind == 'opt':
            return rest.partition('/')[0] in self.players or _is_of(rest, self.left)
        return kind == 'params' and rest in self.left


def of(init: Any, params: Tree, theirs: Mapping[str, Any], where: str) -> Partial:
    """init: the config's group. params: of this model, {player: tree}, abstract. theirs: {name: shape} of the other's
    parameters. where: the other, for the note that tells what is loaded, drawn and left. Raises UserError.

    init.rename: what the other's names become; the others below are of these.
    init.drawn: what is drawn, whatever the other has; adapters and scales that the other lacks are, too.
    init.unused: what the other has besides, and is left; a head of tags, `tagger`, that this model lacks is, too.
    """
    ours = {name: tuple(leaf.shape) for name, leaf in tree.flatten(params).items()}
    new = _new_names(init.rename, theirs, where)
    theirs = {new[name]: tuple(shape) for name, shape in theirs.items()}
    drawn = _matching(init.drawn, ours, 'init.drawn', 'this model')
    added = lambda name: lora.is_of_adapters(name) or quantize.is_of_scales(name)
    drawn |= {name for name in ours.keys() - theirs.keys() if added(name)}
    unused = _matching(init.unused, theirs, 'init.unused', where)
    unused |= {name for name in theirs.keys() - ours.keys() if name.split('/')[1:2] == ['tagger']}
    left = (unused - (ours.keys() - drawn)) | (drawn & theirs.keys())
    told = {name: ours[name] for name in drawn if not quantize.is_of_scales(name)}  # scales are computed later
    loaded = {name: shape for name, shape in ours.items() if name not in drawn}
    if loaded.keys() <= theirs.keys():  # else the model does not fit, which an error tells
        parts = 'loaded', loaded, 'drawn', told, 'left', {n: theirs[n] for n in left}
        words = [f'{_numbers(shapes)} {what}' for what, shapes in zip(parts[::2], parts[1::2], strict=True)]
        note(f'{where}: {", ".join(words)}')
    players = frozenset(name.partition('/')[0] for name in left) - {
        name.partition('/')[0] for name in (theirs.keys() - left) | ours.keys()
    }
    return Partial(drawn, left, players, new, init.rename)


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _new_names(rules: Iterable[Any], names: Collection[str], where: str) -> dict[str, str]:
    """{name: what init.rename makes of it}. Raises UserError for a rule that changes nothing, or names twice."""
    new = {name: name for name in names}
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not all(isinstance(x, str) for x in rule):
            raise UserError(f'init.rename: {rule!r} is no pair of a regular expression and what takes its place')
        patterns.check(rule[0], new.values(), 'init.rename')
        try:
            after = {name: _renamed(now, [rule]) for name, now in new.items()}
        except (re.error, IndexError) as error:
            raise UserError(f'init.rename: {rule[1]!r} cannot take the place of {rule[0]!r}: {error}') from None
        if after == new:
            there = ', '.join(sorted(new.values()))
            raise UserError(f'init.rename: {rule[0]!r} changes no name of {where}; there are {there}')
        new = after
    twice = [name for name, count in Counter(new.values()).items() if count > 1]
    if twice:
        raise UserError(f'init.rename: several parameters of {where} become {twice[0]}')
    return new


def _matching(pattern: str, names: Collection[str], field: str, whose: str) -> frozenset[str]:
    if not pattern:
        return frozenset()
    patterns.check(pattern, names, field)
    found = frozenset(name for name in names if re.search(pattern, name))
    if not found:
        raise UserError(f'{field}: {pattern!r} matches no parameter of {whose}; there are {", ".join(sorted(names))}')
    return found


def _is_of(name: str, parameters: Collection[str]) -> bool:
    """Whether a leaf of the state of an optimizer, PLAYER/…/mu/block_0/query/kernel, is of one of these parameters."""
    player = name.partition('/')[0]
    return any(
        of == player and name.endswith(f'/{rest}') for of, _, rest in (one.partition('/') for one in parameters)
    )


def _numbers(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f'{sum(map(math.prod, shapes.values())):,} parameters ({len(shapes)} arrays)'
