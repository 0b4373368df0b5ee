"""Quantization: a model whose kernels, and the activations that go into them, take a few values each (qwix).

A quantized task is the task of Q(W) in the place of each kernel W that is quantized. Q(W) is what qwix makes of W:
whole numbers of 8 or 4 bits, each times the scale of its output, or of its group of inputs. What a run without steps
evaluates is post-training quantization. Training goes on with the float32 W, whose gradient is that of Q(W):
quantization-aware training with the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018,
arXiv:1712.05877, section 3). So it needs nothing of the model, and works for every task.

With GPTQ (gptq.py) the kernels are such values themselves, and the tree GROUP of their player holds their scales.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aigc_jax.adapt import targets
from aigc_jax.adapt.storage import Stored
from aigc_jax.core import tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.step import abstract_params
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
    'targets': Field(str, '.*', doc='regex of the kernels that are quantized, such as PLAYER/block_0/query/kernel'),
    'method': Field(
        str, 'rtn', choices=('rtn', 'gptq'),
        doc='how they are rounded: rtn, to the nearest; gptq, by what goes into them (Frantar et al. 2023), which '
        'wants total_steps=0',
    ),
    'examples': Field(int, 128, least=1, doc='of the training split, that gptq measures the layers by'),
}  # fmt: skip
GROUP = 'quantize'
_BITS = {'int8': 8, 'int4': 4}


def adapted(task: Task, config: ConfigDict) -> Task:
    """`task`, quantized as `config`, the config's group `quantize`, asks for. Raises UserError."""
    if not config.weights:
        for name in ('activations', 'group'):
            if config[name]:
                raise UserError(f'quantize.{name}: {config[name]}, but no weights are quantized; set quantize.weights')
        return task
    params = abstract_params(task)
    names = chosen(params, config)
    if config.activations:
        task = task.around(_within(Layers((nn.Dense, Conv), _rounding(params, names, config.activations))))
    init = task.init
    if config.method == 'gptq':

        def init(key: Array):
            params, extra = task.init(key)
            return with_scales(params, {name: _scale(name, params, config) for name in names}), extra

    return Task(init, task.rounds, task.capabilities).through(lambda params: merged(params, config))


def merged(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: its tree}, with Q(W) in the place of each kernel W, whose gradient is that of Q(W)."""
    if not config.weights:
        return dict(params)
    params = _without_scales(params)
    if config.method == 'gptq':
        return params
    names = chosen(params, config)

    def one(name: str, leaf: Array) -> Array:
        return _through(leaf, dequantized(quantized(name, leaf, config))) if name in names else leaf

    return tree.map_named(one, params)


def chosen(params: Mapping[str, Tree], config: ConfigDict) -> list[str]:
    """The kernels that are quantized, PLAYER/…/kernel. Raises UserError."""
    found = targets.chosen(params, config.targets, 'quantize.targets')
    for name, leaf in found.items():
        inputs = leaf.shape[-2]
        if config.group and inputs % config.group:
            raise UserError(f'quantize.group: {config.group} does not divide {inputs}, the inputs of {name}')
    return list(found)


def quantized(name: str, kernel: Array, config: ConfigDict) -> Any:
    """The qwix.QArray of `kernel`, PLAYER/…/kernel, rounded to the nearest: its whole numbers and their scales.

    Scales are of the outputs, which come last, and of layers that are stacked, first. The inputs of a convolution, of
    which `group` share one, are its channels, in all of its window.
    """
    stacked = [0] if tree.is_stacked(name) else []
    last = kernel.ndim - 1
    return _rounded(kernel, config.weights, (*stacked, last), {last - 1: config.group} if config.group else {})


def calibration(kind: str) -> str:
    """Of qwix: the largest |x| of a scale is 127 steps, or 7, from 0. By itself qwix takes half a step more, and then
    the largest value lies between two whole numbers, where the last bit of a division decides between them."""
    top = 2 ** (_BITS[kind] - 1) - 1
    return f'absmax,{(top + 0.5) / top}'


def _rounded(x: Array, kind: str, axes: Iterable[int], tiles: Mapping[int, int] | None = None) -> Any:
    """The qwix.QArray of x; each place of `axes` has its own scale."""
    import qwix

    return qwix.quantize(
        x, getattr(jnp, kind), channelwise_axes=tuple(axes), tiled_axes=tiles, calibration_method=calibration(kind)
    )


def dequantized(array: Any) -> Array:
    import qwix

    return qwix.dequantize(array)


def with_scales(params: Mapping[str, Tree], scales: Mapping[str, Array]) -> dict[str, Tree]:
    """`params` with {kernel: its scales} in the players' trees GROUP."""
    params = {player: dict(own) for player, own in params.items()}
    for name, scale in scales.items():
        player, _, path = name.partition('/')
        params[player].setdefault(GROUP, {})[path.replace('/', '.')] = scale
    return params


def is_of_scales(name: str) -> bool:
    """Whether PLAYER/… is what GPTQ adds to the parameters."""
    return name.split('/')[1:2] == [GROUP]


def stored(before: Mapping[str, Stored], params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Stored]:
    """`before` (adapt.stored), with the quantized kernels in their bits, as `packed` has them, and float32 scales."""
    found = {name: own for name, own in before.items() if not is_of_scales(name)}
    for name in chosen(params, config) if config.weights else ():
        scale = _scale(name, params, config)
        more = found[name].more + scale.size * scale.dtype.itemsize
        outputs, a_byte = scale.shape[-1], 8 // _BITS[config.weights]
        rows, filled = found[name].values // outputs, -(-outputs // a_byte) * a_byte  # the last byte of a row is whole
        found[name] = Stored(rows * filled, _BITS[config.weights], more)
    return found


def packed(params: Mapping[str, Tree], config: ConfigDict) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a file: of each quantized kernel NAME.int8 and NAME.scale, or NAME.int4 and NAME.scale; of the
    rest its own. params: without this change.

    NAME.int8 has the kernel's shape. NAME.int4 is uint8, and holds two outputs (the last axis) a byte: of the places 2j
    and 2j + 1 the first is in the low four bits, each in two's complement; of an odd number the last byte is half
    empty. NAME.scale is float32; along each axis a place of it is that of as many of the kernel as the sizes divide to.
    """
    names = chosen(params, config) if config.weights else ()
    for name, leaf in tree.flatten(_without_scales(params)).items():
        leaf = np.asarray(jax.device_get(leaf))
        if name not in names:
            yield name, leaf
            continue
        values, scale = _integers(name, leaf, params, config)
        yield f'{name}.{config.weights}', values if config.weights == 'int8' else _nibbles(values)
        yield f'{name}.scale', scale


def unpacked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: parameter}, float32, of {name: tensor} as `packed` gave them."""
    import qwix

    found = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition('.')
        scale = tensors.get(f'{stem}.scale')
        if kind in _BITS and scale is not None:
            values = values if kind == 'int8' else _from_nibbles(values, scale.shape[-1])
            found[stem] = np.asarray(dequantized(qwix.QArray(jnp.asarray(values), jnp.asarray(scale))))
        elif kind != 'scale' or not {f'{stem}.{one}' for one in _BITS} & tensors.keys():
            found[name] = values
    return found


class Layers:
    """As linen wants its interceptors: sees what goes into the layers of some classes.

    see(module, x) -> what the layer is to compute with in the place of its input; None: the input.
    """

    def __init__(self, kinds: tuple[type, ...], see: Callable[[nn.Module, Array], Array | None]):
        self._kinds, self._see = kinds, see
        self._inside: set[int] = set()  # a class may call its base's __call__, which is intercepted, too

    def __call__(self, function: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        module = context.module
        is_layer = context.method_name == '__call__' and isinstance(module, self._kinds)
        if not is_layer or id(module) in self._inside:
            return function(*args, **kwargs)
        self._inside.add(id(module))
        try:
            instead = None if module.is_initializing() else self._see(module, args[0])
            return function(args[0] if instead is None else instead, *args[1:], **kwargs)
        finally:
            self._inside.remove(id(module))


def _rounding(params: Mapping[str, Tree], names: list[str], kind: str) -> Callable[[nn.Module, Array], Array | None]:
    """`see` of the layers whose kernels are `names`, for their inputs: of an image one scale, of all else one a row."""
    kernels = list(targets.kernels(params))

    def see(module: nn.Module, x: Array) -> Array | None:
        # A module does not know which player it is of.
        own = {name for name in kernels if name.endswith(f'/{"/".join((*module.path, "kernel"))}')}
        wanted = own & set(names)
        if wanted and wanted != own:
            raise UserError(
                f'quantize.activations: quantize.targets matches {", ".join(sorted(wanted))} and not '
                f'{", ".join(sorted(own - wanted))}; match both, or neither'
            )
        if not wanted:
            return None
        rows = (0,) if isinstance(module, Conv) else range(x.ndim - 1)
        return _through(x, dequantized(_rounded(x, kind, rows)))

    return see


def _within(interceptor: Callable) -> Callable[[Callable], Callable]:
    def wrap(function: Callable) -> Callable:
        def run(*args):
            with nn.intercept_methods(interceptor):
                return function(*args)

        return run

    return wrap


def _through(value: Array, instead: Array) -> Array:
    """`instead`, to the bit, with the gradient of `value`."""
    return jax.lax.stop_gradient(instead) + (value - jax.lax.stop_gradient(value))


def _without_scales(params: Mapping[str, Tree]) -> dict[str, Tree]:
    return {player: {name: leaf for name, leaf in own.items() if name != GROUP} for player, own in params.items()}


def _scale(name: str, params: Mapping[str, Tree], config: ConfigDict) -> Array:
    """Zeros of the shape of its scales."""
    kernel = tree.flatten(dict(params))[name]
    found = jax.eval_shape(lambda w: quantized(name, w, config).scale, jax.ShapeDtypeStruct(kernel.shape, jnp.float32))
    return jnp.zeros(found.shape, found.dtype)


def _integers(name: str, kernel: np.ndarray, params, config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """(the whole numbers of a kernel, int8, their scales)."""
    if config.method == 'rtn':
        array = jax.device_get(quantized(name, kernel, config))
        return np.asarray(array.qvalue).astype(np.int8), np.asarray(array.scale)
    player, _, path = name.partition('/')
    scale = np.asarray(jax.device_get(params[player][GROUP][path.replace('/', '.')]))
    whole = scale
    for axis, (size, parts) in enumerate(zip(kernel.shape, scale.shape, strict=True)):
        whole = np.repeat(whole, size // parts, axis=axis)
    return np.rint(kernel / whole).astype(np.int8), scale


def _nibbles(values: np.ndarray) -> np.ndarray:
    """(…, n) int8 of −8..7 -> (…, ⌈n / 2⌉) uint8."""
    even = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, values.shape[-1] % 2)]).view(np.uint8) & 15
    return even[..., 0::2] | even[..., 1::2] << 4


def _from_nibbles(values: np.ndarray, n: int) -> np.ndarray:
    both = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)[..., :n]
    return ((both ^ 8).astype(np.int8) - 8).astype(np.int8)
