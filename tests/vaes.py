"""What the tests of VAEs share: experiments of configs/vae.py, parameters with known answers, densities on a grid."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures
from aigc_jax.nn.mlp import Encoder
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.tasks.vae import latents

CONFIG = str(pathlib.Path(__file__).parent.parent / 'configs' / 'vae.py')
# One linear layer each way, so that the model is probabilistic PCA.
LINEAR = dict(
    data__name='gaussian2d', model__encoder__features='()', model__decoder__features='()', model__flow__features='(8,)'
)


def make(arg='smoke', **overrides):
    fields = [(name.replace('__', '.'), str(value)) for name, value in overrides.items()]
    return Experiment(config_lib.load(f'{CONFIG}:{arg}', fields))


def start(experiment):
    """(params, Extra) at step 0, on the host."""
    return jax.device_get(jax.jit(lambda: experiment.task.init(rng.stream(0, 'init')))())


def evaluate(experiment, params, extra, x):
    """What the task says of each x, as one compiled program."""
    return jax.jit(experiment.task.get(Measures).per_example)(params, extra, {'x': jnp.asarray(x)}, context(len(x)))


def context(n: int, seed: int = 0):
    return rng.context(seed, 'test', 0, jnp.arange(n))


def disturbed(tree, seed: int = 0, scale: float = 0.3):
    """Every leaf moved away from where it begins, flows' last layers of zeros included."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(x + scale * generator.normal(size=np.shape(x)), np.float32), tree)


def ppca(matrix: np.ndarray, scale: float, params: dict, wrong: float = 0.0) -> dict:
    """Parameters with p(x given z) = N(W z, s² I) and q(z given x) = N(M⁻¹ Wᵀ x, diag of s² M⁻¹), M = Wᵀ W + s² I, as
    Tipping & Bishop 1999 have it; exact where Wᵀ W is diagonal. wrong: added to the posterior's mean."""
    params = jax.tree.map(np.zeros_like, params['model'])
    inverse = np.linalg.inv(matrix.T @ matrix + scale**2 * np.eye(2))
    encoder = params['encoder']['mlp']['Dense_0']
    encoder['kernel'][:, :2] = (inverse @ matrix.T).T
    encoder['bias'][:2] = wrong
    encoder['bias'][2:] = np.log(scale**2 * np.diag(inverse))
    params['decoder']['mlp']['Dense_0']['kernel'][:] = matrix.T
    params['log_scale'] = np.float32(math.log(scale))
    return {'model': params}


def linear_model():
    """(the experiment of 2-D x and z, W, s, x drawn from its model)."""
    matrix = np.array([[1.2, -0.4], [0.6, 0.8]])  # orthogonal columns
    x = np.random.default_rng(0).multivariate_normal(np.zeros(2), matrix @ matrix.T + 0.25 * np.eye(2), 400)
    return make('points,smoke', eval__k=4, eval__k_chunk=2, **LINEAR), matrix, 0.5, x.astype(np.float32)


def exact(x, matrix, scale):
    return scipy.stats.multivariate_normal.logpdf(x, np.zeros(2), matrix @ matrix.T + scale**2 * np.eye(2))


def grid(extent: float, points: int):
    axis = np.linspace(-extent, extent, points)
    z = np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2).astype(np.float32)
    return z, (axis[1] - axis[0]) ** 2


def latents_of(experiment):
    """The latent variables of an experiment, made as its task makes them."""
    config = experiment.config
    return latents.make(config.model, config.data, experiment.dataset, jnp.float32)


def components(experiment, params):
    """Of VampPrior: the posteriors of its pseudo-inputs, by the encoder of the task."""
    if 'pseudo_inputs' not in params['model']:
        return None
    encoder = Encoder(**experiment.config.model.encoder, latent_dim=2)
    return encoder.apply({'params': params['model']['encoder']}, params['model']['pseudo_inputs'])


def log_prior(experiment, params, z):
    found = latents_of(experiment).log_p(params['model'], components(experiment, params), jnp.asarray(z)[None])
    return np.asarray(found.sum(-1)[0], np.float64)
