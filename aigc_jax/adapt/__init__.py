"""Changes of a model. Each is a function Task -> Task of a group of the config, and changes nothing by default."""

from collections.abc import Iterator, Mapping

import numpy as np
from ml_collections import ConfigDict

from aigc_jax.adapt import distill, lora, prune, quantize
from aigc_jax.adapt.storage import Stored, whole
from aigc_jax.core.notes import note
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Task, Tree

FIELDS = {
    'adapt': Field(dict, fields=lora.FIELDS, doc='what is trained in the place of the parameters themselves'),
    'quantize': Field(dict, fields=quantize.FIELDS, doc='of how few bits the weights are'),
    'prune': Field(dict, fields=prune.FIELDS, doc='which weights are 0 from then on'),
    'distill': Field(dict, fields=distill.FIELDS, doc='a trained model whose probabilities are learned'),
}  # fmt: skip


_ON = {'adapt': 'name', 'quantize': 'weights', 'prune': 'keep', 'distill': 'run'}  # the field that asks for each


def tell(config: ConfigDict) -> None:
    """Notes of what a config asks for and is not done, or is mostly meant otherwise. config: the whole one."""
    for group, on in _ON.items():
        own = config[group]
        if prune.is_on(own) if group == 'prune' else own[on]:
            continue
        for name, field in FIELDS[group].fields.items():
            if name != on and own[name] != field.default:
                note(f'{group}.{name}: {own[name]!r} does nothing where {group}.{on} is {own[on]!r}')
    if config.adapt.name and not config.init.run:
        note(
            f'adapt.name: {config.adapt.name} trains adapters alone, and init.run names no run: all other parameters '
            'stay as they are drawn'
        )
    if prune.is_on(config.prune) and not (config.init.run or config.prune.run or config.prune.end):
        note(
            'prune.keep: the weights are ranked as they are drawn; init.run or prune.run names a run to rank trained '
            'ones by, and prune.end ranks them while they are trained'
        )
    if prune.is_on(config.prune) and config.adapt.name:
        note(f'prune.keep: the adapters of {config.adapt.name} are not pruned, and the merged kernels are not sparse')


def adapted(task: Task, config: ConfigDict) -> Task:
    """`task` as the config's groups of FIELDS change it. Raises UserError."""
    changed = lora.adapted(quantize.adapted(task, config.quantize), config.adapt)
    return prune.adapted(changed, config.prune)


def merged(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: its tree} of the parameters that the model computes with, as the task without changes has them."""
    return quantize.merged(lora.merged(params, config.adapt), config.quantize)


def tensors(params: Mapping[str, Tree], config: ConfigDict) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a file of `merged`, in which what is quantized is whole numbers and scales."""
    return quantize.packed(lora.merged(params, config.adapt), config.quantize)


def stored(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Stored]:
    """{PLAYER/…: how it is stored} of the parameters that the model computes with. Each group changes what the groups
    before it say."""
    params = lora.merged(params, config.adapt)
    return prune.stored(quantize.stored(whole(params), params, config.quantize), params, config.prune)
