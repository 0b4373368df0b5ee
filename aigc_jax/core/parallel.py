"""Where the arrays of a run live: a mesh with jit, pmap as an adapter over the same call, replicas by device."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from aigc_jax.core import tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.step import replicate
from aigc_jax.core.types import TrainState, Tree

AXES = ('data', 'fsdp', 'tensor')
WHOLE_MESH = {'data': -1, 'fsdp': 1, 'tensor': 1}
FIELDS = {
    'mode': Field(str, 'jit', choices=('jit', 'pmap'), doc='`jit` over the mesh, or `pmap` over all devices'),
    'mesh': Field(
        dict,
        fields={
            axis: Field(int, size, least=-1, doc=f'devices along the axis `{axis}`; -1: those that are left')
            for axis, size in WHOLE_MESH.items()
        },
    ),
    'rules': Field(
        tuple, (),
        doc='((regex of parameters, `fsdp`, `replicated` or a tuple of axes), …), the first that matches: how each '
        'parameter is divided over the devices',
    ),
}  # fmt: skip
EXECUTION = Field(
    str, 'vmap', choices=('vmap', 'map'),
    doc='`vmap` for speed, `map` where a replica must equal its single run bit for bit',
)  # fmt: skip
BATCH_AXES = ('data', 'fsdp')  # fsdp shards the parameters over devices that each see other examples
_AUTO = (AxisType.Auto,) * len(AXES)
_FEED_BATCH_AXIS = 2  # of (steps_per_call, rounds, examples, …)
_DRAWN_WHOLE = 1 << 17  # elements, up to which an array is drawn whole on each device


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def axis_name(mode: str, replicas: int) -> str | None:
    """Of the devices, where each runs a step on its share; None where a program sees the whole batch."""
    return 'data' if mode == 'pmap' and not replicas else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is laid over the devices.

    mode: 'jit' or 'pmap'; mesh: axes (data, fsdp, tensor); rules: ((regex, placement), …) over the names of the
    parameters, placement 'replicated', 'fsdp' (its largest axis that divides) or a tuple of mesh axes, one a
    dimension; replicas: 0 (none) or how many; execution: of the replicas, 'vmap' or 'map'.
    """

    mode: str
    mesh: Mesh
    rules: tuple
    replicas: int
    execution: str

    @property
    def axis_name(self) -> str | None:
        """What the step averages over by itself: under pmap each device runs the step on its share."""
        return axis_name(self.mode, self.replicas)

    def state_sharding(self, state: TrainState) -> TrainState:
        """A sharding for each leaf of an (abstract) state."""
        if self.replicas:
            return jax.tree.map(lambda _: self._named(AXES), state)
        of_params = self.param_shardings(state.params)
        shardings = tree.flatten(of_params)
        shapes = {name: leaf.shape for name, leaf in tree.flatten(state.params).items()}

        def like_its_parameter(name, leaf):
            # 'model/0/mu/encoder/kernel' belongs to 'model/encoder/kernel': optax keeps the parameters' own paths.
            player = name.partition('/')[0]
            for param, sharding in shardings.items():
                inner = param.partition('/')[2]
                if param.startswith(player + '/') and name.endswith('/' + inner) and leaf.shape == shapes[param]:
                    return sharding
            return self.replicated

        return TrainState(
            step=self.replicated,
            params=of_params,
            opt=tree.map_named(like_its_parameter, state.opt),
            stats=jax.tree.map(lambda _: self.replicated, state.stats),
            carry=jax.tree.map(lambda _: self.replicated if self.axis_name else self.examples, state.carry),
        )

    @property
    def compiler_options(self) -> dict[str, str]:
        """XLA's options for a program that reads parameters in shards.

        XLA's default schedule on a CPU first runs all that depends on nothing else. It would gather every parameter
        first, so that each device held the whole model. The other schedule gathers each parameter where it is read.
        XLA also joins the sums of all gradients over the devices into one, for which the whole of each gradient would
        wait. On a GPU XLA gathers ahead only what fits the card's memory, and sums in parts.
        """
        if not self.rules or self.mesh.devices.flat[0].platform != 'cpu':
            return {}
        return {
            'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
            'xla_disable_hlo_passes': 'cpu-all-reduce-combiner',
        }

    def param_shardings(self, params: Tree) -> Tree:
        """The shardings of the (abstract) parameters of one replica, without an axis of replicas."""
        placements = tree.by_rule(self.rules, params, 'replicated', 'parallel.rules')
        place = lambda name, leaf, placement: self._named(*_axes(placement, name, leaf.shape, self.mesh))
        return tree.map_named(place, params, placements)

    def gradient_shardings(self, params: Tree) -> dict[str, Tree]:
        """{player: of each gradient, as of its parameter}; nothing where each device has all parameters."""
        return self.param_shardings(params) if self.rules and not self.axis_name else {}

    @property
    def replicated(self) -> NamedSharding:
        return self._named()

    @property
    def examples(self) -> NamedSharding:
        """For arrays whose first axis is the batch's, outside the training call."""
        return self._named(BATCH_AXES)

    @property
    def seeds(self) -> NamedSharding:
        return self._named(AXES) if self.replicas else self._named()

    @property
    def _feed(self) -> NamedSharding:
        return self._named(AXES) if self.replicas else self._named(None, None, BATCH_AXES)

    def local_rows(self, batch_size: int) -> range:
        """Which examples of each round's batch this process must supply."""
        if self.replicas:  # each process supplies all, and `put_feed` takes the replicas that live here
            return range(batch_size)
        indices = self._named(BATCH_AXES).addressable_devices_indices_map((batch_size,)).values()
        bounds = [index[0].indices(batch_size) for index in indices]
        return range(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def put_feed(self, feed: Tree, batch_size: int) -> Tree:
        """The rows of this process as global arrays (host arrays go in, (K, R, rows, …) or with a replica axis)."""
        if self.axis_name:  # pmap splits the axis itself: (K, R, devices, examples / devices, …)
            n = self.mesh.size
            return jax.tree.map(lambda x: x.reshape(*x.shape[:2], n, x.shape[2] // n, *x.shape[3:]), feed)
        if self.replicas:
            return put(feed, self._feed)

        def whole(x):
            shape = (*x.shape[:_FEED_BATCH_AXIS], batch_size, *x.shape[_FEED_BATCH_AXIS + 1 :])
            return jax.make_array_from_process_local_data(self._feed, x, shape)

        return jax.tree.map(whole, feed)

    def compile_draw(self, draw, shardings: Tree):
        """`draw(seed)` for this plan, compiled when called with `seeds`; each device makes what `shardings` give it.

        The values are those of one device, because jax.random's do not depend on the sharding. Each device first makes
        a small array whole, because a reduction over it (a norm) would round differently in parts.
        """
        if self.replicas:  # by the very program of a single run, one replica after the other
            return jax.jit(self._over_replicas(draw), out_shardings=shardings)

        def drawn(seed):
            whole = lambda x: x if x.size > _DRAWN_WHOLE else jax.lax.with_sharding_constraint(x, self.replicated)
            return jax.tree.map(whole, draw(seed))

        return jax.jit(drawn, out_shardings=shardings)

    def compile_begin(self, begin, shardings: Tree, donate: bool = False):
        """`begin(drawn)` for this plan; donate: its argument becomes part of the result."""
        begin = self._over_replicas(begin) if self.replicas else begin
        return jax.jit(begin, out_shardings=shardings, donate_argnums=0 if donate else ())

    def _over_replicas(self, function):
        """function over a leading axis of replicas, each device over its own, one after the other."""
        over = PartitionSpec(AXES)
        each = lambda *arguments: jax.lax.map(lambda own: function(*own), arguments)
        return jax.shard_map(each, mesh=self.mesh, in_specs=over, out_specs=over, check_vma=False)

    def compile(self, call, state: TrainState, data: Tree = None):
        """`call(state, seed, data, feed)`, compiled for this plan; `state` (abstract) gives the shapes.

        data: the shardings of its argument `data`; None: each device has all of it.
        """
        if self.axis_name:
            return jax.pmap(
                _on_its_share(call, self.axis_name), self.axis_name, in_axes=(None, None, None, _FEED_BATCH_AXIS),
                out_axes=None, devices=list(self.mesh.devices.flat),
            )  # fmt: skip
        sharding = self.state_sharding(state)
        if self.replicas:
            call = replicate(call, self.execution)
            if self.mesh.size > 1:
                by_replica, everywhere = PartitionSpec(AXES), PartitionSpec()
                call = jax.shard_map(
                    call, mesh=self.mesh, in_specs=(by_replica, by_replica, everywhere, by_replica),
                    out_specs=by_replica, check_vma=False,
                )  # fmt: skip
        return jax.jit(
            call,
            in_shardings=(sharding, self.seeds, data or self.replicated, self._feed),
            out_shardings=(sharding, self.seeds),
            donate_argnums=0,
            compiler_options=self.compiler_options,
        )

    def _named(self, *spec) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*spec))


def _on_its_share(call, axis_name: str):
    """`call` for one device under pmap: it is handed the whole carry, works on its examples', and rejoins them."""

    def shared(state: TrainState, seed, data, feed):
        n, i = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

        def own(leaf):
            rows = leaf.shape[0] // n
            return jax.lax.dynamic_slice_in_dim(leaf, i * rows, rows)

        state, metrics = call(state._replace(carry=jax.tree.map(own, state.carry)), seed, data, feed)
        whole = lambda leaf: jax.lax.all_gather(leaf, axis_name, tiled=True)
        return state._replace(carry=jax.tree.map(whole, state.carry)), metrics

    return shared


def abstract(tree: Tree, shardings: Tree) -> Tree:
    """The shapes and dtypes of `tree` on these shardings; nothing is computed."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def put(values: Tree, sharding: NamedSharding) -> Tree:
    """Host arrays, the same on every process, as arrays of this sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(values, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: np.asarray(x)[i]), values)


def fetch(values: Tree) -> Tree:
    """Arrays of any sharding as whole host arrays, on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        def whole(x):
            if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
                return x
            return multihost_utils.process_allgather(x, tiled=True)

        values = jax.tree.map(whole, values)
    return jax.device_get(values)


def make_plan(
    config: Any, num_seeds: int, execution: str, batch_size: int, micro_batches: int, devices: list | None = None
) -> Plan:
    """The plan that config.parallel asks for on `devices` (None: all). Raises UserError where it does not fit."""
    devices = devices or jax.devices()
    shape = _mesh_shape(config.mesh, len(devices))
    mesh = jax.make_mesh(shape, AXES, axis_types=_AUTO, devices=devices)
    plan = Plan(config.mode, mesh, tuple(config.rules), num_seeds if num_seeds > 1 else 0, execution)
    if plan.replicas:
        if config.mode == 'pmap':
            raise UserError('num_seeds: replicas are laid over the devices by jit; set parallel.mode to jit')
        if num_seeds % mesh.size:
            whole = math.ceil(num_seeds / mesh.size) * mesh.size
            raise UserError(
                f'num_seeds: {num_seeds} replicas do not divide over {mesh.size} devices; the next that do are {whole}'
            )
        if plan.rules:
            raise UserError(
                'parallel.rules: each replica is whole on its device; leave them out, or set num_seeds to 1'
            )
    elif config.mode == 'pmap' and (shape[0] != mesh.size or jax.process_count() > 1):
        raise UserError('parallel.mode: pmap serves the data axis of one process; use jit for fsdp, tensor or more')
    shards = 1 if plan.replicas else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % (shards * micro_batches):
        parts = shards * micro_batches
        raise UserError(
            f'batch_size: {batch_size} does not divide over {shards} devices (data × fsdp) × {micro_batches} '
            f'micro_batches; the next that does is {math.ceil(batch_size / parts) * parts}'
        )
    return plan


def want_whole_batch(config: Any, what: str) -> None:
    """Raises UserError, which begins with `what`, where the run cuts a batch into parts that do not see each other."""
    if config.micro_batches > 1 or config.parallel.mode == 'pmap':
        raise UserError(f'{what}; set micro_batches to 1 and parallel.mode to jit')


def _mesh_shape(config: Any, devices: int) -> tuple[int, ...]:
    sizes = [config[axis] for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f'parallel.mesh: sizes are positive, one may be -1 (what is left); got {sizes}')
    given = math.prod(size for size in sizes if size != -1)
    shape = tuple(devices // given if size == -1 else size for size in sizes)
    if math.prod(shape) != devices:
        raise UserError(
            f'parallel.mesh: {dict(zip(AXES, sizes, strict=True))} does not make {devices} devices; the product of the '
            'sizes is their number, and -1 stands for what is left'
        )
    return shape


def _axes(placement, name: str, shape: tuple[int, ...], mesh: Mesh) -> Sequence[str | None]:
    """The axis of the mesh for each of the first axes of a parameter. Raises UserError where they do not fit it."""
    if placement == 'replicated':
        return ()
    if placement == 'fsdp':
        n = mesh.shape['fsdp']
        fitting = [axis for axis, size in enumerate(shape) if size % n == 0]
        return [None] * max(fitting, key=lambda axis: shape[axis]) + ['fsdp'] if n > 1 and fitting else ()
    if not isinstance(placement, (tuple, list)) or len(placement) > len(shape):
        raise UserError(f'parallel.rules: {placement!r} for {name} {shape}: say replicated, fsdp or a tuple of axes')
    for axis, size in zip(placement, shape, strict=False):
        if axis is not None and (axis not in AXES or size % mesh.shape[axis]):
            raise UserError(
                f'parallel.rules: {placement!r} does not divide {name} {shape} over {dict(mesh.shape)}; let a rule '
                'before it say replicated'
            )
    named = [axis for axis in placement if axis is not None]
    if len(named) > len(set(named)):
        raise UserError(f'parallel.rules: {placement!r} for {name} {shape}: it names an axis twice')
    return placement
