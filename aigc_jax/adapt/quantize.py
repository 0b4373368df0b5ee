"""Quantization: a model whose kernels, and the activations that go into them, take a few values each (qwix).

A quantized task is the task of Q(W) in the place of each kernel W that is quantized. Q(W) is what qwix makes of W: whole
numbers of 8 or 4 bits, each times the scale of its output, or of its group of inputs. What a run without steps
evaluates is post-training quantization, by rounding to the nearest. Training goes on with the float32 W, whose gradient
is that of Q(W): quantization-aware training with the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432;
Jacob et al. 2018, arXiv:1712.05877, section 3). So it needs nothing of the model, and works for every task.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from aigc_jax.adapt.stored import Stored
from aigc_jax.core import patterns, rng, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Task, Tree
from aigc_jax.nn.conv import Conv

FIELDS = {
    'weights': Field(
        str, '', choices=('', 'int8', 'int4'), doc='what a quantized kernel is made of; empty: nothing is quantized'
    ),
    'activations': Field(
        str, '', choices=('', 'int8'),
        doc='what the inputs of these kernels are made of, by the scale of each row; empty: float',
    ),
    'group': Field(int, 0, least=0, doc='inputs of an output that have a scale of their own; 0: all of its inputs'),
    'targets': Field(
        str, '.*', doc='regex of the kernels that are quantized, such as PLAYER/block_0/query/kernel'
    ),
}  # fmt: skip
_BITS = {'int8': 8, 'int4': 4}


def adapted(task: Task, config: ConfigDict) -> Task:
    """`task`, quantized as `config`, the config's group `quantize`, asks for. Raises UserError."""
    if not config.weights:
        if config.activations:
            raise UserError(f'quantize.activations: {config.activations}, but no weights are; set quantize.weights')
        return task
    params = jax.eval_shape(lambda: task.init(rng.stream(0, 'init')))[0]
    kernels = _kernels(params)
    chosen = _chosen(kernels, config)
    task = task.through(lambda params: merged(params, config))
    if config.activations:
        task = _intercepted(task, _Inputs(kernels, chosen, config.activations))
    return task


def merged(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: its tree}, with Q(W) in the place of each kernel W, whose gradient is that of Q(W)."""
    if not config.weights:
        return dict(params)
    chosen = _chosen(_kernels(params), config)

    def one(name: str, leaf: Array) -> Array:
        return _through(leaf, dequantized(quantized(name, leaf, config))) if name in chosen else leaf

    return tree.map_named(one, dict(params))


def quantized(name: str, kernel: Array, config: ConfigDict) -> Any:
    """The qwix.QArray of `kernel`, PLAYER/…/kernel: its whole numbers and their scales."""
    import qwix

    outputs, tiles = _axes(name, kernel.ndim, config)
    return qwix.quantize(kernel, getattr(jnp, config.weights), channelwise_axes=outputs, tiled_axes=tiles)


def dequantized(array: Any) -> Array:
    import qwix

    return qwix.dequantize(array)


def stored(before: Mapping[str, Stored], params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Stored]:
    """`before` (adapt.stored), with the quantized kernels in their bits, and float32 scales."""
    if not config.weights:
        return dict(before)
    found = dict(before)
    flat = tree.flatten(dict(params))
    for name in _chosen(_kernels(params), config):
        scale = jax.eval_shape(lambda w, name=name: quantized(name, w, config).scale, flat[name])
        own = before[name]
        found[name] = own._replace(bits=_BITS[config.weights], more=own.more + scale.size * scale.dtype.itemsize)
    return found


def _kernels(params: Mapping[str, Tree]) -> dict[str, tuple[int, ...]]:
    flat = tree.flatten(dict(params))
    return {name: leaf.shape for name, leaf in flat.items() if name.endswith('/kernel') and len(leaf.shape) > 1}


def _chosen(kernels: Mapping[str, tuple[int, ...]], config: ConfigDict) -> list[str]:
    """Those that are quantized. Raises UserError."""
    patterns.check(config.targets, kernels, 'quantize.targets')
    chosen = [name for name in kernels if re.search(config.targets, name)]
    if not chosen:
        raise UserError(f'quantize.targets: {config.targets!r} matches no kernel; there are {", ".join(kernels)}')
    for name in chosen:
        inputs = kernels[name][-2]
        if config.group and inputs % config.group:
            raise UserError(f'quantize.group: {config.group} does not divide {inputs}, the inputs of {name}')
    return chosen


def _axes(name: str, ndim: int, config: ConfigDict) -> tuple[list[int], dict[int, int]]:
    """(axes whose places have scales of their own, {axis: how many of its places share one}): outputs come last, and
    layers that are stacked first; the inputs of a convolution are its channels, in all of its window."""
    stacked = [0] if name.partition('/')[2].startswith('blocks/') else []
    return [*stacked, ndim - 1], {ndim - 2: config.group} if config.group else {}


def _through(value: Array, instead: Array) -> Array:
    """`instead`, to the bit, with the gradient of `value`."""
    return jax.lax.stop_gradient(instead) + (value - jax.lax.stop_gradient(value))


class _Inputs:
    """As linen wants its interceptors: quantizes what goes into the layers of the kernels that are quantized."""

    def __init__(self, kernels: Mapping[str, Any], chosen: list[str], qtype: str):
        self._kernels, self._chosen, self._qtype = kernels, set(chosen), qtype
        self._inside: set[int] = set()  # a class may call its base's __call__, which is intercepted, too

    def __call__(self, function: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        module = context.module
        if context.method_name != '__call__' or id(module) in self._inside or not self._quantizes(module):
            return function(*args, **kwargs)
        self._inside.add(id(module))
        try:
            x, *rest = args
            return function(_through(x, self._rounded(x, isinstance(module, Conv))), *rest, **kwargs)
        finally:
            self._inside.remove(id(module))

    def _rounded(self, x: Array, is_image: bool) -> Array:
        import qwix

        rows = (0,) if is_image else range(x.ndim - 1)
        return qwix.dequantize(qwix.quantize(x, getattr(jnp, self._qtype), channelwise_axes=rows))

    def _quantizes(self, module: nn.Module) -> bool:
        """Whether its kernel is quantized. A module does not know of which player it is."""
        if not isinstance(module, (nn.Dense, Conv)):
            return False
        end = f'/{"/".join(module.path)}/kernel'
        own = {name for name in self._kernels if name.endswith(end)}
        if 0 < len(own & self._chosen) < len(own):
            raise UserError(
                f'quantize.activations: quantize.targets matches {", ".join(sorted(own & self._chosen))} and not '
                f'{", ".join(sorted(own - self._chosen))}; match both, or neither'
            )
        return bool(own & self._chosen)


def _intercepted(task: Task, interceptor: Callable) -> Task:
    """`task`, each of whose functions runs with linen's calls intercepted."""

    def changed(function: Callable) -> Callable:
        def run(*args):
            with nn.intercept_methods(interceptor):
                return function(*args)

        return run

    return task.around(changed)
