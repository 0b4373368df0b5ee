"""GANs of configs/gan.py, made for tests."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.types import Extra
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

CONFIG = str(pathlib.Path(__file__).parent.parent / 'configs' / 'gan.py')
EXTRA = Extra({}, {})


def make(arg='smoke', **overrides):
    fields = [(name.replace('__', '.'), str(value)) for name, value in overrides.items()]
    return Experiment(config_lib.load(f'{CONFIG}:{arg}', fields))


def linear_discriminator(experiment, weight):
    """D(x) = w · x, exactly."""
    params = jax.device_get(experiment.create_state().params)
    params['discriminator'] = {
        'mlp': {'Dense_0': {'kernel': np.float32(weight)[:, None], 'bias': np.zeros(1, np.float32)}}
    }
    return params


def losses(experiment, params, batch, step=0):
    ctx = rng.context(0, 'train', step, jnp.arange(len(batch['x'])))
    by_player = {turn.player: turn.loss for turns in experiment.task.rounds for turn in turns}
    return {player: loss(params, EXTRA, batch, ctx) for player, loss in by_player.items()}
