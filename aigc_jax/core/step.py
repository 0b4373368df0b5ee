"""The one training step, for every model; several of them fused into one call; replicas of it by seed."""

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core import optim, rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch, Extra, Metrics, Task, TrainState, Tree, Turn

# Metrics of a player's update, global norms of what is trained: ‖g‖ and ‖update‖ / ‖parameters‖.
NORMS = ('grad_norm', 'update_ratio')


def create_state(
    task: Task,
    optimizers: dict[str, optax.GradientTransformation],
    seed: Array | int,
) -> TrainState:
    """The state at step 0, a function of the seed alone."""
    return first_state(optimizers, *draw(task, seed))


def draw(task: Task, seed: Array | int) -> tuple[dict[str, Tree], Extra]:
    """(parameters, statistics and recurrent state) that a run begins with."""
    return task.init(rng.stream(seed, 'init'))


def first_state(
    optimizers: dict[str, optax.GradientTransformation], params: dict[str, Tree], extra: Extra
) -> TrainState:
    """The state at step 0 of these parameters."""
    opt = {player: optimizers[player].init(params[player]) for player in params}
    return TrainState(jnp.zeros((), jnp.int32), params, opt, extra.stats, extra.carry)


def abstract_params(task: Task) -> dict[str, Tree]:
    """{player: shapes and dtypes of its parameters}; nothing is computed."""
    return task.abstract[0]


def make_optimizers(task: Task, config, total_steps: int) -> dict[str, optax.GradientTransformation]:
    """{player: transformation} from config.optim."""
    params = abstract_params(task)
    if sorted(config) != sorted(params):
        raise UserError(f'optim: holds {", ".join(sorted(config))}, but the players are {", ".join(sorted(params))}')
    turns = Counter(turn.player for turns in task.rounds for turn in turns)
    return {
        player: optim.optimizer(config[player], params[player], total_steps, f'optim.{player}', turns[player])
        for player in params
    }


def make_step(
    task: Task,
    optimizers: dict[str, optax.GradientTransformation],
    preprocess: Callable[[Batch, rng.Context], Batch],
    micro_batches: int = 1,
    axis_name: str | None = None,
    frozen: Mapping[str, Tree] = MappingProxyType({}),
    shardings: Mapping[str, Tree] = MappingProxyType({}),
    pruned: Callable[[Tree, Tree], Tree] = lambda grads, opt: grads,
) -> Callable[[TrainState, Array, Batch], tuple[TrainState, Metrics]]:
    """step(state, seed, batch) -> (state, metrics), where the leaves of batch are (rounds, examples, …).

    preprocess: raw examples to what the losses read (scaling, binarization), on the device.
    micro_batches: parts that a round's batch is cut into to save memory; the gradients are averaged by weight.
    axis_name: of the devices, under pmap; there `examples` are this device's share.
    frozen: {player: of each parameter whether it is frozen}, whose gradient is not taken and not measured.
    shardings: {player: of each parameter its sharding}, where parameters are in shards; a gradient is kept in the same.
    pruned(gradient, the state of its optimizer) -> the gradient of what is trained, 0 where a weight is pruned.

    A last argument, measured=False, leaves out the metrics NORMS, which cost a tenth of a small model's step.
    """

    def step(state: TrainState, seed: Array, batch: Batch, measured: bool = True) -> tuple[TrainState, Metrics]:
        rounds, local = jax.tree.leaves(batch)[0].shape[:2]
        first, total = jnp.int32(0), local
        if axis_name:
            first, total = jax.lax.axis_index(axis_name) * local, local * jax.lax.axis_size(axis_name)
        metrics = {}
        for r, turns in enumerate(task.rounds):
            index = r * total + first + jnp.arange(local, dtype=jnp.int32)
            ctx = rng.context(seed, 'train', state.step, index)
            view = jax.tree.map(lambda leaf: leaf[r], batch)
            gradients = []  # all taken before the first is applied: the turns of a round see the same parameters
            for turn in turns:
                own = frozen.get(turn.player), shardings.get(turn.player)
                grads, values, extra = _gradient(turn, state, view, ctx, preprocess, micro_batches, axis_name, *own)
                state = state._replace(stats=extra.stats, carry=extra.carry)
                gradients.append((turn.player, grads, values))
            for player, grads, values in gradients:
                grads = pruned(grads, state.opt[player])
                state, update_values = _apply(player, optimizers[player], state, grads, measured, frozen.get(player))
                metrics |= {f'{player}/{name}': value for name, value in {**values, **update_values}.items()}
        return state._replace(step=state.step + 1), metrics

    return step


def _gradient(
    turn: Turn, state: TrainState, batch: Batch, ctx, preprocess, micro_batches: int, axis_name, frozen, shardings
):
    """(gradient, metrics, extra) of one turn: the mean over the whole batch, over its parts and devices; 0 of what is
    frozen."""

    def part(extra: Extra, batch: Batch, ctx: rng.Context):
        batch = preprocess(batch, ctx)

        def loss(own: Tree):
            if frozen is not None:
                own = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, own, frozen)
            return turn.loss({**state.params, turn.player: own}, extra, batch, ctx)

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(state.params[turn.player])
        if shardings is not None:
            # Without the barrier XLA takes a device's part anew from the whole gradient wherever it is read, the last
            # time by the optimizer, and so keeps the whole gradients of all layers until then.
            part_of = lambda g, own: jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(g, own))
            grads = jax.tree.map(part_of, grads, shardings)
        return (grads, {'loss': value, **aux.metrics}, aux.extra.stats), aux.extra.carry, aux.weight

    extra = Extra(state.stats, state.carry)
    if micro_batches == 1 and not axis_name:  # the common case: nothing to average
        (grads, metrics, stats), carry, _ = part(extra, batch, ctx)
        return grads, metrics, Extra(stats, carry)

    def split(leaf):
        return leaf.reshape(micro_batches, leaf.shape[0] // micro_batches, *leaf.shape[1:])

    def accumulate(total, piece):
        carry, batch, index = piece
        means, carry, weight = part(Extra(state.stats, carry), batch, rng.Context(ctx.key, index, ctx.step))
        if weight is None:
            weight = jnp.float32(ctx.index.shape[0] // micro_batches)
        else:  # a part without a token has no mean: 0 / 0
            means = jax.tree.map(lambda mean: jnp.where(weight > 0, mean, 0), means)
        weighted = jax.tree.map(lambda t, mean: t + weight * mean, total[0], means)
        return (weighted, total[1] + weight), carry

    pieces = jax.tree.map(split, (state.carry, batch, ctx.index))
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda *a: part(*a)[0], extra, batch, ctx)
    )
    (weighted, weight), carry = jax.lax.scan(accumulate, (zeros, jnp.float32(0)), pieces)
    if axis_name:
        weighted, weight = jax.lax.psum((weighted, weight), axis_name)
    grads, metrics, stats = jax.tree.map(lambda leaf: leaf / weight, weighted)
    carry = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)
    return grads, metrics, Extra(stats, carry)


def _apply(
    player: str, optimizer: optax.GradientTransformation, state: TrainState, grads: Tree, measured: bool, frozen
):
    params = state.params[player]
    updates, opt = optimizer.update(grads, state.opt[player], params)
    metrics = {}
    if measured:
        still = [False] * len(jax.tree.leaves(params)) if frozen is None else jax.tree.leaves(frozen)
        trained = lambda t: [leaf for leaf, held in zip(jax.tree.leaves(t), still, strict=True) if not held]
        of_params, of_grads, of_updates = (optax.tree.norm(trained(t)) for t in (params, grads, updates))
        scale = jnp.maximum(of_params, 1e-8)  # they may begin as 0
        metrics = dict(zip(NORMS, (of_grads, of_updates / scale), strict=True))
    params = {**state.params, player: optax.apply_updates(params, updates)}
    return state._replace(params=params, opt={**state.opt, player: opt}), metrics


def fuse(step, gather: Callable[[Tree, Tree], Batch], steps_per_call: int):
    """call(state, seed, data, feed) -> (state, metrics), steps_per_call steps of one program.

    gather(data, feed of one step) -> batch: resident data looked up by index, or the streamed batch itself.
    Every leaf of feed has the axes (steps_per_call, rounds, examples, …).
    metrics: (steps_per_call,) each; NORMS (1,), of the last step.
    """

    def call(state: TrainState, seed: Array, data: Tree, feed: Tree):
        def scanned(state, feed):
            return step(state, seed, gather(data, feed), measured=False)

        # The last step, which is measured, stands outside the scan: a condition inside would have XLA copy the whole
        # state in every step, since it is read there when the update could already overwrite it.
        metrics = {}
        if steps_per_call > 1:
            state, metrics = jax.lax.scan(scanned, state, jax.tree.map(lambda leaf: leaf[:-1], feed))
        state, last = step(state, seed, gather(data, jax.tree.map(lambda leaf: leaf[-1], feed)))
        last = {name: jnp.asarray(value)[None] for name, value in last.items()}  # a loss may give plain numbers
        return state, {name: jnp.concatenate([metrics[name], x]) if name in metrics else x for name, x in last.items()}

    return call


def replicate(call, execution: str):
    """`call` over a leading axis of state, seed and feed: by vmap (fast) or lax.map (each bit as the single run)."""
    if execution == 'vmap':
        return jax.vmap(call, in_axes=(0, 0, None, 0))

    def one(data, own):
        # What takes a replica out of the stack and puts it back is not to be fused with its step, which would round
        # otherwise: statistics of batch norm by 1e-7.
        state, seed, feed = jax.lax.optimization_barrier(own)
        return jax.lax.optimization_barrier(call(state, seed, data, feed))

    return lambda state, seed, data, feed: jax.lax.map(lambda own: one(data, own), (state, seed, feed))
