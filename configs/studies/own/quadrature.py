"""A VAE with 2-D z whose log p(x) = log ∫ p(x given z) p(z) dz is found by quadrature, too.

A config, its data and its task in one file: `load` is what data.name calls, `make` what task.name does. The metrics
are those of configs/vae.py, and

    model/quadrature_nll     −log p(x) by quadrature, nats
    model/quadrature_gap     model/nll − model/quadrature_nll: by how much importance sampling is too high
    model/quadrature_coarse  what quadrature with every other node differs by: how far it can be relied on
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import LatentSpace, Measures, SplitStatistic
from aigc_jax.core.types import Task
from aigc_jax.runs import config as config_lib
from aigc_jax.tasks import likelihoods, vae
from aigc_jax.tasks.vae.fields import FIELDS

__all__ = ['FIELDS', 'get_config', 'load', 'make']
_CONFIGS = pathlib.Path(__file__).parents[2]
_SIZES = {'train': 20_000, 'valid': 500, 'test': 500}
_EXTENT = 7.0  # of z: beyond it lie 5e-12 of N(0, I)
_NODES = 257  # along each axis; the step is 0.055


def get_config():
    config = config_lib.load(f'{_CONFIGS / "vae.py"}:points', [])
    config.data.name = config.task.name = __file__
    return config


def load(cfg):
    """A banana: x1 ~ N(0, 1), x2 given x1 ~ N(x1² / 2, ½²)."""
    # RandomState, whose stream is frozen (NEP 19).
    z = np.random.RandomState(0).standard_normal((sum(_SIZES.values()), 2))
    x = np.stack([z[:, 0], 0.5 * z[:, 0] ** 2 + 0.5 * z[:, 1]], axis=-1).astype(np.float32)
    parts = np.split(x, np.cumsum(list(_SIZES.values()))[:-1])
    return {split: {'x': part} for split, part in zip(_SIZES, parts, strict=True)}


def make(config, dataset) -> Task:
    task = vae.make(config, dataset)
    measure, decode = task.get(Measures).per_example, task.get(LatentSpace).decode
    axis = jnp.linspace(-_EXTENT, _EXTENT, _NODES)
    # The trapezoidal rule, whose error falls faster than any power of the step where a smooth integrand vanishes at
    # both ends (Trefethen & Weideman 2014, section 5).
    log_area = 2 * jnp.log(axis[1] - axis[0])

    def quadrature(theta, x):
        """log p(x), (n, 2) -> (n,): with all nodes, and with every other one of each axis."""

        def column(first):
            z = jnp.stack([jnp.full(_NODES, first), axis], axis=-1)
            mean = decode({'model': theta}, None, z, None)
            log_joint = likelihoods.log_gaussian(x[:, None], mean, theta['log_scale'])
            log_joint = log_joint + likelihoods.log_normal(z, 0.0, 0.0)
            return jax.nn.logsumexp(log_joint, axis=-1), jax.nn.logsumexp(log_joint[:, ::2], axis=-1)

        fine, coarse = jax.lax.map(column, axis)
        fine, coarse = jax.nn.logsumexp(fine, axis=0), jax.nn.logsumexp(coarse[::2], axis=0)
        return fine + log_area, coarse + log_area + 2 * jnp.log(2.0)

    def collect(params, extra, batch, ctx):
        fine, coarse = quadrature(params['model'], batch['x'])
        return {
            'model/quadrature_nll': -fine,
            'model/quadrature_gap': measure(params, extra, batch, ctx)['model/nll'] + fine,
            'model/quadrature_coarse': jnp.abs(fine - coarse),
        }

    return Task(task.init, task.rounds, (*task.capabilities, SplitStatistic(collect, lambda found: found)))
