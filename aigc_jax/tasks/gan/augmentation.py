"""What a discriminator sees of an image, real or generated: a transform T that a generator learns nothing of.

With p = 1 this is DiffAugment (Zhao et al. 2020, section 3.2). With p adapted to how far the discriminator overfits it
is ADA (Karras et al. 2020, "Training generative adversarial networks with limited data", section 3), with its
transforms of place and of colour (appendix B); translation, colour and cutout are DiffAugment's. They are
differentiable; outside an image lies 0.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.core import rng
from aigc_jax.core.types import Array
from aigc_jax.data import augment


def _flip(x: Array, u: Array) -> Array:
    return augment.flip(x, u[:, 0] < 0.5)


def _translation(x: Array, u: Array) -> Array:
    """By an eighth of the image at most, along each axis."""
    most = [max(1, round(size / 8)) for size in x.shape[1:3]]
    return augment.shift(x, *(augment.whole(u[:, i], -most[i], most[i]) for i in range(2)))


def _cutout(x: Array, u: Array) -> Array:
    """A square of half the image's side."""
    middle = [augment.whole(u[:, i], 0, x.shape[1 + i] - 1) for i in range(2)]
    return augment.cutout(x, *middle, round(min(x.shape[1:3]) / 2))


def _colour(x: Array, u: Array) -> Array:
    """Brightness by ±½, saturation by a factor in [0, 2], contrast by one in [½, 3/2]."""
    brightness, saturation, contrast = (u[:, i, None, None, None] for i in range(3))
    x = x + brightness - 0.5
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + 2 * saturation * (x - grey)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return mean + (0.5 + contrast) * (x - mean)


def _rotation(x: Array, u: Array) -> Array:
    """By any angle."""
    return augment.resample(x, 360 * u[:, 0] - 180, jnp.ones(len(x)))


def _factor(u: Array) -> Array:
    """2^U(−0.35, 0.35), whose exponent deviates by 0.2 as theirs does."""
    return 2 ** (0.7 * u - 0.35)


def _scale(x: Array, u: Array) -> Array:
    """By one factor, both ways."""
    return augment.resample(x, jnp.zeros(len(x)), _factor(u[:, 0]))


def _aniso(x: Array, u: Array) -> Array:
    """By a factor down, and by its inverse to the right."""
    factor = _factor(u[:, 0])
    return augment.resample(x, jnp.zeros(len(x)), jnp.stack([factor, 1 / factor], axis=1))


def _rotate90(x: Array, u: Array) -> Array:
    """By none to three quarter turns; x is square."""
    turns = augment.whole(u[:, 0], 0, 3)[:, None, None, None]
    at = [jnp.rot90(x, k, (1, 2)) for k in range(4)]
    return jnp.select([turns == k for k in range(3)], at[:3], at[3])


def _lumaflip(x: Array, u: Array) -> Array:
    """Brightness negated, with the distance from grey kept, of half of them."""
    return x - 2 * (u < 0.5)[:, :1, None, None] * x.mean(axis=-1, keepdims=True)


def _hue(x: Array, u: Array) -> Array:
    """Three channels turned about the axis of grey by any angle (Rodrigues' formula)."""
    angle = 2 * jnp.pi * u[:, 0, None, None, None]
    grey = x.mean(axis=-1, keepdims=True)
    across = (jnp.roll(x, 1, axis=-1) - jnp.roll(x, -1, axis=-1)) / jnp.sqrt(3.0)  # of the axis and x
    return grey + jnp.cos(angle) * (x - grey) + jnp.sin(angle) * across


TRANSFORMS = {  # name: function(x, u), u (n, 3) of U[0, 1)
    'flip': _flip, 'colour': _colour, 'translation': _translation, 'scale': _scale, 'rotation': _rotation,
    'cutout': _cutout, 'rotate90': _rotate90, 'aniso': _aniso, 'lumaflip': _lumaflip, 'hue': _hue,
}  # fmt: skip


def make(names: Sequence[str]) -> Callable[[Array, rng.Context, str, Array | float], Array]:
    """T(x, ctx, name, p): each transform is done to an example with probability p, by draws of its own.

    name: of the draws, such as 'real', so that real and generated examples of one index have others.
    """

    def T(x: Array, ctx: rng.Context, name: str, p: Array | float) -> Array:
        for transform in names:
            u = ctx.uniform(f'{name}/{transform}', (4,))
            chosen = (u[:, 3] < p).reshape(-1, *[1] * (x.ndim - 1))
            x = jnp.where(chosen, TRANSFORMS[transform](x, u[:, :3]), x)
        return x

    return T


class Adaptation(NamedTuple):
    """ADA's state. p follows one step behind r_t, so that it is the same on every device and in every micro-batch."""

    p: Array  # probability of each transform
    sign: Array  # r_t = E sign D(x) of the last step, on training data: 0 where they are undecided, 1 where memorized


def start() -> Adaptation:
    return Adaptation(jnp.zeros(()), jnp.zeros(()))


def adapt(state: Adaptation, target: float, speed: float) -> Array:
    """p + speed · sign(r_t − target), in [0, 1]. Karras et al. 2020, section 3.1, who take r_t over four batches."""
    return jnp.clip(state.p + speed * jnp.sign(state.sign - target), 0.0, 1.0)


def mean_sign(real: Array) -> Array:
    """r_t, without a gradient. Karras et al. 2020, eq. 1."""
    return jax.lax.stop_gradient(jnp.mean(jnp.sign(real)))
