"""GPTQ (Frantar et al. 2023, arXiv:2210.17323) by qwix: kernels rounded one input after the other, where what is left
of an output makes up for the error so far, as measured by what goes into the layer on some examples.

Each layer is measured in the model as it was, by the loss of its training, without dropout. A kernel that no dense
layer multiplies by, such as a convolution's, is rounded to the nearest.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aigc_jax.adapt import quantize
from aigc_jax.core import parallel, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Extra, Task, Tree


def calibrated(
    task: Task, params: Mapping[str, Tree], extra: Extra, batches: Iterable[tuple[Any, Any]], config: ConfigDict
) -> dict[str, Tree]:  # fmt: skip
    """`params`, of `task` without this change, with the kernels and the scales that GPTQ finds.

    batches: (batch, ctx) of the losses. config: the group `quantize`. Raises UserError for a model whose layers are
    hidden in a loop.
    """
    measure = jax.jit(lambda *given: _measured(task, *given))
    total: dict[str, Array] = {}
    for batch, ctx in batches:
        found = measure(dict(params), extra, batch, ctx)
        total = {name: total.get(name, 0) + one for name, one in found.items()}
    flat, kernels, scales = tree.flatten(dict(params)), {}, {}
    for name in quantize.chosen(params, config):
        kernel = jnp.asarray(parallel.fetch(flat[name]))
        if name in total:
            array = _solved(kernel, jnp.asarray(parallel.fetch(total[name])), config)
        else:
            array = quantize.quantized(name, kernel, config)
        kernels[name] = parallel.put(np.asarray(quantize.dequantized(array)), flat[name].sharding)
        scales[name] = np.asarray(array.scale)
    return quantize.with_scales(tree.map_named(lambda name, leaf: kernels.get(name, leaf), dict(params)), scales)


def _solved(kernel: Array, hessian: Array, config: ConfigDict) -> Any:
    """The qwix.QArray of a kernel (inputs, outputs), by the sum of x xᵀ over its inputs x."""
    import qwix

    return qwix.QArray(*rounded(kernel, hessian, config.weights, config.group or len(kernel)))


@functools.partial(jax.jit, static_argnames=('kind', 'group', 'block'))
def rounded(kernel: Array, hessian: Array, kind: str, group: int, block: int = 128) -> tuple[Array, Array]:
    """(whole numbers (inputs, outputs), scales (inputs / group, outputs)), as qwix's quantize_weight finds them.

    kernel: (inputs, outputs); hessian: (inputs, inputs); group divides inputs. It is that function in loops of one
    program, for without a program it compiles several for each place within a block. What is behind a block makes up
    for its errors at the block's end, and a group's scale is that of its kernel at the begin of its block.
    """
    from qwix.contrib import gptq_core

    how = gptq_core.qarray.HowToQuantize(
        qtype=getattr(jnp, kind), channelwise_axes=[1], tiled_axes={0: group},
        calibration_method=quantize.calibration(kind),
    )  # fmt: skip
    inputs, outputs = kernel.shape
    block = min(block, inputs)
    damping = 0.01 * jnp.mean(jnp.diag(hessian))
    more = -inputs % block  # inputs that are always 0, as others may be, are filled up with
    kernel, hessian = jnp.pad(kernel, ((0, more), (0, 0))), jnp.pad(hessian, (0, more))
    dead = jnp.diag(hessian) == 0
    hessian = hessian + jnp.diag(jnp.where(dead, 1.0, 0.0) + damping)
    inverse = gptq_core.cholesky_inverse(jnp.linalg.cholesky(hessian))
    upper, places = jnp.linalg.cholesky(inverse, upper=True), jnp.arange(len(hessian))

    def of_block(carry: tuple[Array, Array], start: Array):
        kernel, scale = carry
        own = jax.lax.dynamic_slice_in_dim(upper, start, block)  # (block, inputs)
        corner = jax.lax.dynamic_slice_in_dim(own, start, block, axis=1)

        def of_input(carry: tuple[Array, Array], i: Array):
            left, scale = carry

            def found() -> Array:
                return gptq_core.find_params(jax.lax.dynamic_slice_in_dim(kernel, start + i, group), how)[0][0]

            scale = jax.lax.cond((start + i) % group == 0, found, lambda: scale)
            whole, value = gptq_core.quantize(left[i], how.qtype, scale, None)
            error = (left[i] - value) / corner[i, i]
            return (left - jnp.outer(corner[i], error), scale), (whole.astype(jnp.int8), scale, error)

        left = jax.lax.dynamic_slice_in_dim(kernel, start, block)
        (_, scale), (whole, scales, errors) = jax.lax.scan(of_input, (left, scale), jnp.arange(block))
        return (kernel - jnp.where(places >= start + block, own, 0).T @ errors, scale), (whole, scales)

    begin = jnp.where(dead[:, None], 0, kernel), jnp.zeros(outputs, kernel.dtype)
    _, found = jax.lax.scan(of_block, begin, places[::block])
    whole, scales = (one.reshape(-1, outputs)[:inputs] for one in found)
    return whole.astype(how.qtype), scales[::group]


def _measured(task: Task, params, extra: Extra, batch, ctx) -> dict[str, Array]:
    """{kernel: Σ x xᵀ over the inputs of its dense layer}, of those that a dense layer multiplies by."""
    from qwix.contrib import gptq_core

    names = {id(leaf): name for name, leaf in tree.flatten(params).items()}
    found: dict[str, Array] = {}

    def see(module: nn.Dense, x: Array) -> None:
        name = names.get(id(module.get_variable('params', 'kernel')))
        if name is None:
            raise UserError(
                'quantize.method: gptq reads what goes into each layer, which model.scan_layers, model.remat and '
                'spectral norms hide; set them to False, or method to rtn'
            )
        x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        found[name] = found.get(name, 0) + gptq_core.compute_hessian(x.T)

    with nn.intercept_methods(quantize.Layers((nn.Dense,), see)):
        for turns in task.rounds:
            for turn in turns:
                turn.loss(params, extra, batch, ctx)
    return found
