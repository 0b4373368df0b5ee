"""Low-rank adapters (Hu et al. 2022), and their form with magnitudes (Liu et al. 2024, DoRA): a change of parameters.

An adapted task is the task of W + (α / r) A B in the place of each kernel W that is adapted. So it needs nothing of the
model, works for every task, and is merged by one addition. The adapters of a player are its tree 'lora':
{'block_0.query': {'a': (in, r), 'b': (r, out)}}; all other parameters stand where they stand without adapters. A, B are
what is trained: the optimizer of such a player leaves the rest still, unless optim.PLAYER.freeze says what it leaves.
"""

import copy
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from aigc_jax.adapt import targets
from aigc_jax.core import rng, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.step import abstract_params
from aigc_jax.core.types import Array, Task, Tree

FIELDS = {
    'name': Field(
        str, '', choices=('', 'lora', 'dora'), doc='adapters of low rank, which alone are trained; empty: none'
    ),
    'rank': Field(int, 8, least=1, doc='of an adapter'),
    'alpha': Field(float, 16.0, above=0, doc='an adapter is scaled by alpha / rank'),
    'targets': Field(
        str, '(query|value)/kernel', doc='regex of the kernels that are adapted, such as PLAYER/block_0/query/kernel'
    ),
}  # fmt: skip
GROUP = 'lora'
_STILL = f'^(?!{GROUP}/)'  # of a player's parameters


def adapted(task: Task, config: ConfigDict) -> Task:
    """`task` with the adapters that `config`, the config's group `adapt`, asks for. Raises UserError."""
    if not config.name:
        return task
    kernels = targets.chosen(abstract_params(task), config.targets, 'adapt.targets')
    shapes = {name: leaf.shape for name, leaf in kernels.items()}
    for name, shape in shapes.items():
        _, inputs, outputs = _sizes(name.partition('/')[2], shape)
        if config.rank > min(inputs, outputs):
            raise UserError(f'adapt.rank: {config.rank}, but {name} is {inputs} × {outputs}')

    def init(key: Array):
        params, extra = task.init(key)
        params = {player: dict(own) for player, own in params.items()}
        for name, shape in shapes.items():
            player, _, path = name.partition('/')
            adapter = _drawn(rng.named(key, f'{GROUP}/{name}'), path, shape, config)
            params[player].setdefault(GROUP, {})[_key(path)] = adapter
        return params, extra

    return Task(init, task.rounds, task.capabilities).through(lambda params: merged(params, config))


def merged(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: its tree} without adapters, each of them in its kernel."""
    if not config.name:
        return dict(params)
    return {player: _merged(own, config) if GROUP in own else own for player, own in params.items()}


def optimizers(config: Mapping[str, ConfigDict], params: Mapping[str, Tree]) -> Mapping[str, ConfigDict]:
    """`config`, the config's `optim`, in which a player with adapters trains these alone, unless freeze is set."""
    config = copy.deepcopy(config)
    for player, own in params.items():
        if player in config and GROUP in own and not config[player].freeze:
            config[player].freeze = _STILL
    return config


def is_of_adapters(name: str) -> bool:
    """Whether PLAYER/… is a parameter of an adapter."""
    return name.split('/')[1:2] == [GROUP]


def _key(path: str) -> str:
    return path.removesuffix('/kernel').replace('/', '.')


def _sizes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(axes of layers that are stacked, inputs, outputs): a convolution has all of its window as inputs."""
    stacked = shape[:1] if tree.is_stacked(path) else ()
    return stacked, math.prod(shape[len(stacked) : -1]), shape[-1]


def _drawn(key: Array, path: str, shape: tuple[int, ...], config: ConfigDict) -> dict[str, Array]:
    """A from U(−1/√in, 1/√in), as loralib and PEFT draw it, and B = 0, so that the model begins as it was."""
    stacked, inputs, outputs = _sizes(path, shape)
    bound = 1 / math.sqrt(inputs)
    adapter = {
        'a': jax.random.uniform(key, (*stacked, inputs, config.rank), jnp.float32, -bound, bound),
        'b': jnp.zeros((*stacked, config.rank, outputs)),
    }
    return adapter | ({'m': jnp.zeros((*stacked, outputs))} if config.name == 'dora' else {})


def _merged(own: Tree, config: ConfigDict) -> Tree:
    adapters = own[GROUP]
    rest = {name: value for name, value in own.items() if name != GROUP}

    def one(name: str, kernel: Array) -> Array:
        adapter = adapters.get(_key(name)) if name.endswith('/kernel') else None
        return kernel if adapter is None else _changed(kernel, adapter, name, config)

    return tree.map_named(one, rest)


def _changed(kernel: Array, adapter: Mapping[str, Array], path: str, config: ConfigDict) -> Array:
    stacked, inputs, outputs = _sizes(path, kernel.shape)
    flat = kernel.reshape(*stacked, inputs, outputs)
    new = flat + config.alpha / config.rank * (adapter['a'] @ adapter['b'])
    if config.name == 'dora':
        # The magnitude of a column is learned, as a factor (1 + m) of what W has. The norm of the direction has no
        # gradient (Liu et al. 2024, section 4.3).
        norm = lambda w: jnp.linalg.norm(w, axis=-2, keepdims=True)
        direction = new / jnp.maximum(jax.lax.stop_gradient(norm(new)), 1e-12)
        new = (1 + adapter['m'][..., None, :]) * norm(flat) * direction
    return new.reshape(kernel.shape)
