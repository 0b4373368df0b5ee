"""A flow from N(0, I) to N(MEAN, COVARIANCE) in the plane, whose log-likelihood is known.

A config and its data in one file: `load` is what data.name calls.
"""

import pathlib

import numpy as np

from aigc_jax.runs import config as config_lib

MEAN = np.array([0.5, -1.0])
COVARIANCE = np.array([[1.5, 0.9], [0.9, 0.8]])  # eigenvalues 2.12 and 0.18
_CONFIGS = pathlib.Path(__file__).parents[2]
_SIZES = {'train': 100_000, 'valid': 10_000, 'test': 10_000}


def get_config():
    config = config_lib.load(f'{_CONFIGS / "flow.py"}:ring8', [])
    config.data.name = __file__
    return config


def load(cfg):
    # RandomState, whose stream is frozen (NEP 19).
    noise = np.random.RandomState(0).standard_normal((sum(_SIZES.values()), 2))
    x = (MEAN + noise @ np.linalg.cholesky(COVARIANCE).T).astype(np.float32)
    parts = np.split(x, np.cumsum(list(_SIZES.values()))[:-1])
    return {split: {'x': part} for split, part in zip(_SIZES, parts, strict=True)}
