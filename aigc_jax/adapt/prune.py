"""Pruning by magnitude, of single weights: a share of each kernel is kept, and the rest is exactly 0 from then on.

The masks are a part of the optimizer's state, as in jaxpruner (Lee et al. 2023, arXiv:2304.14082), so that nothing of a
model changes. What is pruned is 0 among the parameters themselves, has no gradient and no moments, and is 0 for whoever
reads them. A checkpoint holds the masks, on the shards of their kernels.

At once: by the weights that training starts with (init.run, and then a fine-tuning of what is left), or by those that
the run prune.run ended with, whatever training starts with: the parameters of the same seed are those that it began
with, which is the rewinding of the lottery ticket (Frankle & Carbin 2019, arXiv:1803.03635, section 1), and
init.run=RUN init.step=N are those of its step N (Frankle et al. 2020, arXiv:1912.05671). Gradually: with prune.end, by
the weights as they are every prune.every steps (Zhu & Gupta 2017, arXiv:1710.01878, eq. 1).

It is ours because optax has no pruning, jaxpruner is no longer kept up, and the sparsity of qwix is of n in m weights
and of nnx modules.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from aigc_jax.adapt import targets
from aigc_jax.adapt.storage import Stored
from aigc_jax.core import optim, rng, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.step import abstract_params, first_state
from aigc_jax.core.types import Array, Extra, Task, TrainState, Tree

FIELDS = {
    'keep': Field(float, 1.0, above=0, most=1, doc='share of the weights that is kept; 1: nothing is pruned'),
    'targets': Field(str, '.*', doc='regex of the kernels that are pruned, such as PLAYER/block_0/query/kernel'),
    'rules': Field(
        tuple, (), doc='((regex of kernels, share that is kept), …), the first that matches, in the place of keep'
    ),
    'scope': Field(
        str, 'layer', choices=('layer', 'global'),
        doc='whether the share is of each layer, or of all layers of a player that have the same share',
    ),
    'run': Field(
        str, '',
        doc="a run's folder by whose weights is pruned; empty: by those that training starts with or, with `end`, has",
    ),
    'step': Field(str, '', doc='of which of its checkpoints, a number or `best`; empty: the newest'),
    'redrawn': Field(
        bool, False, doc='whether the parameters are drawn otherwise than those of this seed are: a control of `run`'
    ),
    'begin': Field(int, 0, least=0, doc='the step after which pruning begins, where it is gradual'),
    'end': Field(int, 0, least=0, doc='the step at which all is pruned (Zhu & Gupta 2017); 0: at once, at the start'),
    'every': Field(int, 100, least=1, doc='steps from one pruning to the next, where it is gradual'),
}  # fmt: skip


class PrunedState(NamedTuple):
    """count: () int32, the player's updates. masks: as its parameters, bool, whether a weight is kept; None of what is
    not pruned. inner: the state of its optimizer."""

    count: Array
    masks: Tree
    inner: Any


def is_on(config: ConfigDict) -> bool:
    """config: the config's group `prune`."""
    return config.keep < 1 or bool(config.rules)


def adapted(task: Task, config: ConfigDict) -> Task:
    """`task`, whose parameters are drawn otherwise where `redrawn` asks for it. Raises UserError for what does not fit:
    what is pruned is said by `optimizers`."""
    if not is_on(config):
        for name in ('run', 'end', 'redrawn'):
            if config[name]:
                raise UserError(f'prune.{name}: {config[name]!r}, but prune.keep=1.0 prunes nothing; set it below 1')
        return task
    shares(abstract_params(task), config)
    if config.step and not config.run:
        raise UserError(f'prune.step: {config.step}, but prune.run names no run; name its folder')
    if config.end and config.run:
        raise UserError('prune.end: pruning is gradual by the weights of this run, and prune.run names another')
    if config.end and config.end <= config.begin:
        raise UserError(f'prune.end: {config.end}; it is more than prune.begin, {config.begin}')
    if config.begin and not config.end:
        raise UserError(f'prune.begin: {config.begin}, but prune.end=0 prunes at once, at the start; set prune.end')
    if not config.redrawn:
        return task
    return dataclasses.replace(task, init=lambda key: task.init(rng.named(key, 'redrawn')))


def shares(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: of each parameter the share that is kept, or None where it is not pruned}. Raises UserError."""
    kernels = targets.chosen(params, config.targets, 'prune.targets')
    share_of = tree.by_rule(config.rules, kernels, config.keep, 'prune.rules')
    for _, share in config.rules:
        FIELDS['keep'].check('prune.rules', share)
    return tree.map_named(lambda name, _: share_of[name] if share_of.get(name, 1) < 1 else None, dict(params))


def optimizers(
    found: Mapping[str, optax.GradientTransformation], task: Task, config: ConfigDict
) -> dict[str, optax.GradientTransformation]:
    """`found`, {player: transformation}, each of which keeps what is pruned at 0. config: the whole one. Raises
    UserError."""
    own = config.prune
    if not is_on(own):
        return dict(found)
    if own.end > config.total_steps:
        raise UserError(f'prune.end: {own.end}, but total_steps is {config.total_steps}; the pruning would not end')
    turns = Counter(turn.player for turns in task.rounds for turn in turns)
    wanted = shares(abstract_params(task), own)
    for player in found:
        if own.end and config.optim[player].name.startswith('schedule_free'):
            raise UserError(
                f'prune.end: optim.{player}.name={config.optim[player].name} is evaluated at an average of its own, '
                'which gradual pruning would not reach; choose another optimizer, or prune at once'
            )
    return {player: _pruned(one, wanted[player], own, turns[player]) for player, one in found.items()}


def begin(
    optimizers: Mapping[str, optax.GradientTransformation], config: ConfigDict, params: dict[str, Tree], extra: Extra,
    masks: dict[str, Tree] | None = None,
) -> TrainState:  # fmt: skip
    """The state at step 0 of these parameters, pruned. config: the group `prune`. masks: {player: as in PrunedState};
    None: by the magnitudes of the parameters, where it is not gradual."""
    if not is_on(config) or config.end:
        return first_state(optimizers, params, extra)
    masks = all_masks(params, config) if masks is None else masks
    state = first_state(optimizers, {player: kept(own, masks[player]) for player, own in params.items()}, extra)
    return state._replace(opt={player: own._replace(masks=masks[player]) for player, own in state.opt.items()})


def all_masks(weights: dict[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: as in PrunedState} by the magnitudes of `weights`, of which those that are not pruned may be None."""
    wanted = shares(weights, config)
    return {player: masks_of(own, wanted[player], config.scope) for player, own in weights.items()}


def masks_of(weights: Tree, wanted: Tree, scope: str, rest: Array | float = 0.0) -> Tree:
    """As `weights`, of one player: whether each is among the greatest |w|, of which a share is kept; of equal ones the
    first are. wanted: as `shares` has them. rest: the part of what is to be pruned that is kept still."""
    share_of = tree.flatten(wanted)
    flat = {name: leaf for name, leaf in tree.flatten(weights).items() if name in share_of}
    found = {}
    if scope == 'layer':
        for name, leaf in flat.items():
            rows = leaf.reshape(leaf.shape[0] if tree.is_stacked(name) else 1, -1)  # layers that are stacked
            found[name] = _greatest(rows, share_of[name], rest).reshape(leaf.shape)
    else:
        for share in sorted(set(share_of.values())):
            names = [name for name in flat if share_of[name] == share]
            whole = _greatest(jnp.concatenate([flat[name].ravel() for name in names])[None], share, rest)[0]
            ends = np.cumsum([flat[name].size for name in names])
            parts = zip(names, jnp.split(whole, ends[:-1]), strict=True)
            found |= {name: part.reshape(flat[name].shape) for name, part in parts}
    return tree.map_named(lambda name, _: found.get(name), weights)


def stored(before: Mapping[str, Stored], params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Stored]:
    """`before` (adapt.stored), where of each kernel that is pruned the weights that are not 0 are stored, and a bit for
    each weight that says whether it is. config: the group `prune`."""
    if not is_on(config):
        return dict(before)
    leaves, found = tree.flatten(dict(params)), dict(before)
    for name in tree.flatten(shares(params, config)):
        mask = -(-leaves[name].size // 8)
        values = int(jnp.count_nonzero(leaves[name]))
        found[name] = found[name]._replace(values=values, more=found[name].more + mask)
    return found


def kept(values: Tree, masks: Tree) -> Tree:
    """`values`, of one player, with 0 where its weight is pruned. An average may lack what is frozen."""
    lacks = lambda value: isinstance(value, optax.MaskedNode)
    one = lambda value, mask: value if mask is None or lacks(value) else jnp.where(mask, value, 0)
    return jax.tree.map(one, values, masks, is_leaf=lacks)


def gradient(values: Tree, state: Any) -> Tree:
    """The gradient of a player, 0 where its weight is pruned. state: that of its optimizer."""
    return kept(values, state.masks) if isinstance(state, PrunedState) else values


def rest(config: ConfigDict, step: Array) -> Array:
    """The part of what is to be pruned that is kept after `step` steps (Zhu & Gupta 2017, eq. 1, with s_i = 0)."""
    return (1 - jnp.clip((step - config.begin) / (config.end - config.begin), 0, 1)) ** 3


def _pruned(inner, wanted: Tree, config: ConfigDict, turns: int) -> optax.GradientTransformation:
    def init(params):
        masks = jax.tree.map(lambda w, share: None if share is None else jnp.ones(w.shape, bool), params, wanted)
        return PrunedState(jnp.zeros((), jnp.int32), masks, inner.init(params))

    def update(updates, state, params):
        masks, count = state.masks, state.count + 1
        updates, own = inner.update(gradient(updates, state), state.inner, params)
        if config.end:
            step, last = count // turns, count % turns == 0
            is_due = last & (step >= config.begin) & (step <= config.end)
            is_due &= ((step - config.begin) % config.every == 0) | (step == config.end)
            after, left = kept(optax.apply_updates(params, updates), state.masks), rest(config, step)

            def renewed():
                masks = masks_of(after, wanted, config.scope, left)
                return masks, _without_moments(own, params, masks)

            masks, own = jax.lax.cond(is_due, renewed, lambda: (state.masks, own))
        # w + (−w) is exactly 0, whatever the optimizer would have done.
        still = lambda update, mask, w: update if mask is None else jnp.where(mask, update, -w.astype(update.dtype))
        return jax.tree.map(still, updates, masks, params), PrunedState(count, masks, _averages_kept(own, masks))

    return optax.GradientTransformation(init, update)


def _without_moments(state: Any, params: Tree, masks: Tree) -> Any:
    """The state of an optimizer in which what has the shape of a weight is 0 where that is pruned. Later gradients
    are 0 there, but moments would decay for some steps, and muon mixes those of all weights of a matrix."""
    sizes, found = {name: leaf.shape for name, leaf in tree.flatten(params).items()}, tree.flatten(masks)
    by_length = sorted(sizes, key=len, reverse=True)  # one name may end with another

    def one(name, leaf):
        of = next((path for path in by_length if f'/{name}'.endswith(f'/{path}')), '')
        return jnp.where(found[of], leaf, 0) if of in found and leaf.shape == sizes[of] else leaf

    return tree.map_named(one, state)


def _averages_kept(state: Any, masks: Tree) -> Any:
    """The state of an optimizer whose moving average of the parameters is 0, too, where they are pruned. It was made
    with the updates of the optimizer, and those of muon, for example, are not 0 where the gradient is."""
    is_one = lambda node: isinstance(node, optim.AverageState)
    one = lambda node: node._replace(average=kept(node.average, masks)) if is_one(node) else node
    return jax.tree.map(one, state, is_leaf=is_one)


def _greatest(rows: Array, share: float, rest: Array | float) -> Array:
    """(rows, n) -> whether each is among those of its row with the greatest |w|, of which there are round(share n), at
    least one, and `rest` of the others."""
    n = rows.shape[1]
    count = max(1, round(share * n))
    count += jnp.round((n - count) * rest).astype(jnp.int32)
    order = jnp.argsort(-jnp.abs(rows), axis=1, stable=True)
    return jnp.argsort(order, axis=1) < count  # the place of each among all
