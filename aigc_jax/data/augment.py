"""Augmentation of images on the device: of training data by `data.augment`, of what a discriminator sees by its task.

The transforms are functions of their draws, x (n, H, W, C) float32 -> the same shape, and differentiable in x. What
comes in from outside the image is 0: black in data units, the middle grey of symmetric ones.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Batch

FIELDS = {
    'flip': Field(bool, False, doc='whether half of the images are turned left to right'),
    'shift': Field(int, 0, least=0, doc='pixels, at most, along each axis'),
    'rotation': Field(float, 0.0, least=0, most=180, doc='degrees, at most, either way'),
    'scale': Field(float, 0.0, least=0, most=0.9, doc='by a factor in 1 ± this'),
    'cutout': Field(int, 0, least=0, doc='pixels, the side of a black square'),
    'mixup': Field(float, 0.0, least=0, doc='α of the Beta distribution of the shares of two examples; 0: none'),
}
_INTERPOLATING = ('rotation', 'scale', 'mixup')


def _wide(draws: Array) -> Array:
    """(n,) -> (n, 1, 1, 1)."""
    return draws[:, None, None, None]


def flip(x: Array, chosen: Array) -> Array:
    """The chosen images, (n,) bool, with left and right exchanged."""
    return jnp.where(_wide(chosen), x[:, :, ::-1], x)


def shift(x: Array, down: Array, right: Array) -> Array:
    """Moved by whole pixels, (n,) int32 each: a random crop of the padded image.

    As two products with matrices of 0 and 1, whose gradients are products too; that of a gather would be a scatter.
    """

    def moves(size: int, by: Array) -> Array:
        place = jnp.arange(size)
        return (place[None, :, None] == place[None, None, :] + by[:, None, None]).astype(x.dtype)

    exact = dict(precision=jax.lax.Precision.HIGHEST)
    x = jnp.einsum('nij,njwc->niwc', moves(x.shape[1], down), x, **exact)
    return jnp.einsum('nij,nhjc->nhic', moves(x.shape[2], right), x, **exact)


def resample(x: Array, degrees: Array, factor: Array) -> Array:
    """Turned about the middle of the image, `degrees` (n,), and made `factor` times as large; bilinear.

    factor: (n,), or (n, 2) along the image's own axes, down and right, before it is turned.
    """
    centre = (np.array(x.shape[1:3], np.float32)[:, None, None] - 1) / 2
    grid = (np.indices(x.shape[1:3]) - centre).astype(np.float32)

    def one(image: Array, degrees: Array, factor: Array) -> Array:
        cos, sin = jnp.cos(jnp.radians(degrees)), jnp.sin(jnp.radians(degrees))
        matrix = jnp.array([[cos, sin], [-sin, cos]]) / factor[:, None]  # from the result to where it is read
        at = jnp.einsum('ij,jhw->ihw', matrix, grid, precision=jax.lax.Precision.HIGHEST)
        read = lambda channel: map_coordinates(channel, at + centre, order=1, mode='constant')
        return jax.vmap(read, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(x, degrees, jnp.broadcast_to(jnp.reshape(factor, (len(x), -1)), (len(x), 2)))


def cutout(x: Array, row: Array, column: Array, side: int) -> Array:
    """A square of `side` pixels around (row, column), (n,) int32 each, set to 0; it is cut at the image's edges.
    DeVries & Taylor 2017, section 3."""

    def inside(size: int, middle: Array) -> Array:
        first = middle[:, None] - side // 2
        place = jnp.arange(size)
        return (place >= first) & (place < first + side)

    hole = inside(x.shape[1], row)[:, :, None] & inside(x.shape[2], column)[:, None, :]
    return jnp.where(hole[..., None], 0.0, x)


def mix_pairs(x: Array, share: Array) -> Array:
    """λ x + (1 − λ) x' with x' the other one of a pair (0, 1), (2, 3), …; share: λ, (n,). Zhang et al. 2018, section 2.

    Neighbours, which the order of the epoch has drawn at random, so that a pair is never cut apart (see `check`).
    """
    other = x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    return _wide(share) * x + (1 - _wide(share)) * other


def beta_quantile(alpha: float) -> Callable[[Array], Array]:
    """Of Beta(α, α): u of U[0, 1) -> draws; from a table, so that their distribution is exact to 1/4096.

    jax.random.beta loops until a draw is accepted, and takes 5 s to compile each time that it stands in a program.
    """
    from scipy.stats import beta

    table = beta.ppf(np.linspace(0, 1, 4097), alpha, alpha).astype(np.float32)
    return lambda u: jnp.interp(u, np.linspace(0, 1, 4097, dtype=np.float32), table)


def whole(u: Array, low: int, high: int) -> Array:
    """u of U[0, 1) -> int32 of {low, …, high}."""
    return low + jnp.minimum((u * (high - low + 1)).astype(jnp.int32), high - low)


def is_on(cfg) -> bool:
    """Whether `cfg`, config.data, augments; text has no such fields."""
    return 'augment' in cfg and any(cfg.augment.values())


def mixes(cfg) -> bool:
    """Whether examples are mixed, so that they have no label."""
    return is_on(cfg) and cfg.augment.mixup > 0


def check(cfg, shape: tuple[int, int, int] | None, binary: bool, rows: int) -> None:
    """Raises UserError unless the fields of `cfg`, config.data, fit each other and the data.

    shape: of an image, (H, W, C); None: the data are no images. binary: they are stored as 0 and 1. rows: how many
    examples are augmented together, on one device and of one micro-batch.
    """
    fields = cfg.augment
    if not is_on(cfg):
        return
    if shape is None:
        raise UserError(f'data.augment: is for images; {cfg.name} holds none: switch it off')
    smallest = min(shape[:2])
    for name, most in dict(shift=smallest - 1, cutout=smallest).items():
        if fields[name] > most:
            raise UserError(f'data.augment.{name}: {fields[name]}; it lies in 0..{most}, and 0 means not to')
    blurred = [name for name in _INTERPOLATING if fields[name]]
    if blurred and (cfg.binarize == 'static' or (binary and cfg.binarize != 'threshold')):
        mend = 'threshold' if binary else 'dynamic or threshold'
        raise UserError(
            f'data.augment.{blurred[0]}: makes grey of 0 and 1; choose data.binarize={mend}, which makes bits of '
            f'it again, or flip, shift and cutout alone'
        )
    if fields.mixup and rows % 2:
        raise UserError(f'data.augment.mixup: mixes pairs, but a device has {rows} examples at a time; make them even')


def make_transform(cfg, shape: tuple[int, int, int]) -> Callable[[Batch, rng.Context], Batch]:
    """transform(batch, ctx) -> batch with x, intensities in [0, 1], augmented as `cfg.augment`, of FIELDS, has it.

    Mixed examples have x alone, no label and no other field. The draws are functions of (seed, step, example).
    """
    fields, (height, width, _) = cfg.augment, shape
    quantile = beta_quantile(fields.mixup) if fields.mixup else None

    def transform(batch: Batch, ctx: rng.Context) -> Batch:
        x, rest = batch['x'], {name: value for name, value in batch.items() if name != 'x'}
        if fields.flip:
            x = flip(x, ctx.uniform('augment/flip') < 0.5)
        if fields.rotation or fields.scale:
            u = 2 * ctx.uniform('augment/resample', (2,)) - 1
            x = resample(x, fields.rotation * u[:, 0], 1 + fields.scale * u[:, 1])
        if fields.shift:
            by = whole(ctx.uniform('augment/shift', (2,)), -fields.shift, fields.shift)
            x = shift(x, by[:, 0], by[:, 1])
        if fields.cutout:
            u = ctx.uniform('augment/cutout', (2,))
            x = cutout(x, whole(u[:, 0], 0, height - 1), whole(u[:, 1], 0, width - 1), fields.cutout)
        if fields.mixup:
            rest = {}
            x = mix_pairs(x, quantile(ctx.uniform('augment/mixup')))
        return {**rest, 'x': x}

    return transform
