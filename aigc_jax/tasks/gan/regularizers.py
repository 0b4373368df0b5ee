"""What is added to an adversarial loss: gradient penalties, LeCam, consistency, top-k, packing, unrolling.

In the gradient penalties D is a function x (n, …) -> (logits (n,), whatever else it gives).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Tree

Critic = Callable[[Array], tuple[Array, Any]]


def squared_gradient(D: Critic, x: Array) -> tuple[tuple[Array, Any], Array]:
    """D(x), and ‖∇D(x)‖², (n,), by one forward and one backward pass."""
    logits, pull, rest = jax.vjp(D, x, has_aux=True)
    (gradient,) = pull(jnp.ones_like(logits))
    return (logits, rest), jnp.sum(gradient.reshape(x.shape[0], -1) ** 2, axis=-1)


def zero_centred(D: Critic, x: Array) -> tuple[tuple[Array, Any], Array]:
    """D(x), and E‖∇D(x)‖²: R1 at real examples, R2 at generated ones. Mescheder et al. 2018, eq. 9 and 10."""
    found, squared = squared_gradient(D, x)
    return found, jnp.mean(squared)


def one_centred(D: Critic, x: Array) -> Array:
    """E (‖∇D(x)‖ − 1)²; Gulrajani et al. 2017, eq. 3, where x lies between real and generated, and Kodali et al. 2017
    (DRAGAN), section 2.3, where it lies around real ones."""
    norm = jnp.sqrt(squared_gradient(D, x)[1] + 1e-12)
    return jnp.mean((norm - 1) ** 2)


def every(k: int, step: Array, penalties: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """k times the penalties on each k-th step and 0 on the others: the same on average (Karras et al. 2020, "Analyzing
    and improving the image quality of StyleGAN", section 3.1; the rates of Adam are left alone).

    With replicas in one program (replicas='vmap') they are computed on every step, which saves nothing.
    """
    shapes = jax.eval_shape(penalties)
    times_k = lambda: {name: k * value for name, value in penalties().items()}
    return jax.lax.cond(step % k == 0, times_k, lambda: {name: jnp.zeros(s.shape) for name, s in shapes.items()})


def lecam(real: Array, fake: Array, stats: dict[str, Array], decay: float) -> tuple[Array, dict[str, Array]]:
    """(E‖D(x) − α_F‖² + E‖D(G(z)) − α_R‖², renewed stats), α the moving averages of the logits on real and generated
    examples up to the last step. Tseng et al. 2021, section 3.2; their code (github.com/google/lecam-gan) has a ReLU in
    both squares, for its hinge loss."""
    share = jnp.maximum(stats['weight'], 1e-8)  # of the average that has been filled; 0 before the first step
    of_real, of_fake = stats['real'] / share, stats['fake'] / share
    means = {'real': jnp.mean(real), 'fake': jnp.mean(fake), 'weight': jnp.ones(())}
    renewed = {name: decay * stats[name] + (1 - decay) * jax.lax.stop_gradient(means[name]) for name in stats}
    return jnp.mean((real - of_fake) ** 2) + jnp.mean((fake - of_real) ** 2), renewed


def start_lecam() -> dict[str, Array]:
    return {'real': jnp.zeros(()), 'fake': jnp.zeros(()), 'weight': jnp.zeros(())}


def consistency(logits: Array, transformed: Array) -> Array:
    """E‖D(x) − D(T(x))‖². Zhang et al. 2020 (CR-GAN), section 2.2; of generated examples Zhao et al. 2021 (bCR)."""
    return jnp.mean((logits - transformed) ** 2)


def top_k_share(step: Array, final: float, over_steps: int) -> Array:
    """The share of a batch that the generator learns from: from 1 down to `final` by a constant factor a step; in Sinha
    et al. 2020 there is one an epoch."""
    return jnp.maximum(final, final ** (step / max(over_steps, 1)))


def top_k_weights(fake: Array, share: Array) -> Array:
    """(n,) weights, 1/k on the k = share · n highest logits and 0 on the others. Sinha et al. 2020, section 3.1."""
    k = jnp.maximum(1.0, jnp.round(share * len(fake)))
    rank = jnp.argsort(jnp.argsort(-fake))
    return (rank < k) / k


def pack(x: Array, m: int) -> Array:
    """(n, …, C) -> (n/m, …, m · C): m neighbours as the channels of one. Lin et al. 2018 (PacGAN), section 3."""
    if m == 1:
        return x
    if len(x) % m:
        raise UserError(f'task.packing: {len(x)} examples on a device at a time do not divide into packs of {m}')
    packs = jnp.moveaxis(x.reshape(-1, m, *x.shape[1:]), 1, -2)
    return packs.reshape(*packs.shape[:-2], -1)


def pack_all(x: Array, m: int) -> Array:
    """(n, …, C) -> (n, …, m · C): each example with the m − 1 before it, to have a logit for each."""
    return x if m == 1 else jnp.concatenate([jnp.roll(x, i, axis=0) for i in range(m)], axis=-1)


def unroll(loss: Callable[[Tree], Array], params: Tree, steps: int, rate: float) -> Tree:
    """The parameters after `steps` of gradient descent on `loss`, as a function of all that it depends on: what the
    generator's loss is differentiated through. Metz et al. 2017, eq. 7 and 9."""
    for _ in range(steps):
        gradient = jax.grad(loss)(params)
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    return params
