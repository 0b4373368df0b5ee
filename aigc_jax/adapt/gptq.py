"""GPTQ (Frantar et al. 2023, arXiv:2210.17323) by qwix: kernels rounded one input after the other, where what is left
of an output makes up for the error so far, as measured by what goes into the layer on some examples.

Each layer is measured in the model as it was, by the loss of its training, without dropout. A kernel that no dense
layer multiplies by, such as a convolution's, is rounded to the nearest.
"""

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
    from qwix.contrib import gptq_core

    tiles = {1: config.group} if config.group else {}
    how = gptq_core.qarray.HowToQuantize(
        qtype=getattr(jnp, config.weights), channelwise_axes=[0], tiled_axes=tiles,
        calibration_method=quantize.calibration(config.weights),
    )  # fmt: skip
    return gptq_core.quantize_weight(kernel.T, hessian, how)[0].T


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
