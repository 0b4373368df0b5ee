"""The matrix products and convolutions of bench.py's `lstm` and `dcgan`, alone, here and in PyTorch, side by side.

    python scripts/bench_kernels.py [--rounds=7] [--seconds=0.5]

A training step takes each product or convolution once forward and twice backward, so that is what is timed: the value
and both gradients. The two libraries take turns in one process. Printed: median GFLOP/s of each, and the median over
rounds of our rate over PyTorch's, with its range. If the kernels have the ratio of the whole step, the kernels explain
the difference.
"""

import argparse
import functools
import os
import statistics
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # PyTorch's threads would spin while XLA's compute

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from aigc_jax.nn import conv

# (name, rows, inner, columns): the LSTM's products of one step in time, of all its inputs, and GPT's largest.
PRODUCTS = (
    ('lstm: 32×512 · 512×2048', 32, 512, 2048),
    ('lstm: 2048×512 · 512×2048', 2048, 512, 2048),
    ('gpt: 2048×384 · 384×1536', 2048, 384, 1536),
)
# (name, side, channels in, channels out), all 4×4 of stride 2 on 64 images: D downwards; G upwards is their transpose.
CONVOLUTIONS = (('dcgan: 28×28×1 → 14×14×64', 28, 1, 64), ('dcgan: 14×14×64 → 7×7×128', 14, 64, 128))
BATCH = 64


def products(rows: int, inner: int, columns: int):
    """(our call, PyTorch's call, FLOP of a call)."""
    shapes = (rows, inner), (inner, columns)
    x, w = (np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes)
    weigh = np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)
    multiply = lambda x, w: x @ w
    return _pair(multiply, multiply, (x, w, weigh), 6 * rows * inner * columns)


def convolutions(side: int, before: int, after: int, up: bool):
    """The same; up: the transposed convolution, from `after` channels to `before`."""
    rng, small = np.random.default_rng(0), side // 2
    many, few = (BATCH, side, side, before), (BATCH, small, small, after)
    x, weigh = (rng.normal(size=shape).astype(np.float32) for shape in ((few, many) if up else (many, few)))
    w = rng.normal(size=(4, 4, after, before) if up else (4, 4, before, after)).astype(np.float32)
    own = (lambda x, w: conv.conv_transpose(x, w, 2)) if up else (lambda x, w: conv.conv(x, w, 2))
    theirs = functools.partial(F.conv_transpose2d if up else F.conv2d, stride=2, padding=1)
    # PyTorch's transposed convolution reads its kernel from the other end.
    other = w[::-1, ::-1].transpose(2, 3, 0, 1) if up else w.transpose(3, 2, 0, 1)
    others = x.transpose(0, 3, 1, 2), other, weigh.transpose(0, 3, 1, 2)
    return _pair(own, theirs, (x, w, weigh), 6 * BATCH * small**2 * after * before * 16, others)


def _pair(own, theirs, arrays, flops: int, others=None):
    """arrays: two inputs, and the weights of the sum that has the gradients; others: the same for PyTorch."""
    ours = jax.jit(jax.value_and_grad(lambda x, w, weigh: jnp.vdot(own(x, w), weigh), argnums=(0, 1)))
    placed = [jax.device_put(array) for array in arrays]
    *leaves, weigh = (torch.tensor(np.ascontiguousarray(array)) for array in others or arrays)
    for leaf in leaves:
        leaf.requires_grad_()

    def of_torch():
        value = (theirs(*leaves) * weigh).sum()
        return value.detach(), torch.autograd.grad(value, leaves)

    of_xla = lambda: jax.block_until_ready(ours(*placed))
    a, b = float(of_xla()[0]), float(of_torch()[0])
    assert abs(a - b) < 1e-3 * max(1.0, abs(a)), (a, b)
    return of_xla, of_torch, flops


def rate(call, seconds: float) -> float:
    """Calls a second."""
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        call()
        count += 1
    return count / taken


def main(rounds: int, seconds: float) -> None:
    cases = [(name, *products(*shape)) for name, *shape in PRODUCTS]
    for name, *shape in CONVOLUTIONS:
        cases.append((name, *convolutions(*shape, up=False)))
        cases.append((f'{name}, transposed', *convolutions(*shape, up=True)))
    for name, ours, theirs, flops in cases:
        rates = []
        for _ in range(rounds + 1):
            rates.append([rate(call, seconds) for call in (ours, theirs)])
        rates = rates[1:]  # the first warms up
        ratios = [a / b for a, b in rates]
        ours, theirs = (flops / 1e9 * statistics.median(column) for column in zip(*rates, strict=True))
        print(
            f'{name:38} ours {ours:7.1f}  PyTorch {theirs:7.1f} GFLOP/s  '
            f'{statistics.median(ratios):5.2f} ({min(ratios):.2f}–{max(ratios):.2f})', flush=True,
        )  # fmt: skip


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=0.5)
    main(**vars(parser.parse_args()))
