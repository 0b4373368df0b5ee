"""What a VAE's latent variables are: the prior p(z), the posterior q(z given x), and one or two layers of them.

z is (n, k, total), k draws for each of n examples; with two layers its first `dim` numbers are z1, which the decoder
sees, the rest z2. Log-densities are (n, k, G), one value for each group of dimensions: the dimensions themselves where
prior and posterior factorize, the layers elsewhere. Their sum over G is the density.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Tree
from aigc_jax.data import Dataset
from aigc_jax.nn.build import build
from aigc_jax.nn.flows import Flow
from aigc_jax.nn.mlp import Encoder
from aigc_jax.tasks.likelihoods import gaussian_kl_terms, log_normal, log_normal_pairs, normal_terms

_NOISE = 0.01  # added to the examples that the pseudo-inputs begin as
Posterior = tuple[Array, Array]  # what the encoder gives: two (n, dim + context / 2), mean and log-variance first


@dataclasses.dataclass(frozen=True)
class Latents:
    """dim: of z1. total: of z. prior_flow, posterior_flow, upward (q(z2 given z1)) and downward (p(z1 given z2)) are
    modules, or None; pseudo_inputs (K, *shape), or None: where VampPrior's begin."""

    dim: int
    total: int
    prior_flow: Flow | None = None
    posterior_flow: Flow | None = None
    upward: Encoder | None = None
    downward: Encoder | None = None
    pseudo_inputs: Array | None = None

    @property
    def gaussian(self) -> bool:
        """Whether q(z1 given x) is a Gaussian."""
        return self.posterior_flow is None

    @property
    def factorized(self) -> bool:
        """Whether prior and posterior are Gaussians of independent dimensions, so that the KL has a closed form."""
        return not (self.prior_flow or self.posterior_flow or self.upward) and self.pseudo_inputs is None

    def init(self, key: Array) -> Tree:
        """Their parameters beside encoder and decoder."""
        params, z = {}, jnp.zeros((1, 1, self.total))
        top = z[..., self.dim :] if self.upward else z
        if self.prior_flow:
            params['prior_flow'] = self.prior_flow.init(rng.named(key, 'prior_flow'), top)['params']
        if self.posterior_flow:
            context = jnp.zeros((1, 1, self.posterior_flow.context_dim))
            params['posterior_flow'] = self.posterior_flow.init(rng.named(key, 'posterior_flow'), z, context)['params']
        if self.upward:
            params['upward'] = self.upward.init(rng.named(key, 'upward'), z[0, :, : self.dim])['params']
            params['downward'] = self.downward.init(rng.named(key, 'downward'), top[0])['params']
        if self.pseudo_inputs is not None:
            noise = jax.random.normal(rng.named(key, 'pseudo_inputs'), self.pseudo_inputs.shape)
            params['pseudo_inputs'] = self.pseudo_inputs + _NOISE * noise
        return params

    def components(self, theta: Tree, encode: Callable[[Tree, dict], Posterior]) -> Posterior | None:
        """VampPrior's (Tomczak & Welling 2018): p(z) = 1/K Σ q(z given u_k), else None. The u_k are parameters, and may
        leave the range of the data."""
        return encode(theta, {'x': theta['pseudo_inputs']}) if self.pseudo_inputs is not None else None

    def draw(self, theta: Tree, q: Posterior, ctx: rng.Context, k: int) -> tuple[Array, Array]:
        """(z, log q(z given x)) of z = μ + σ ⊙ ε, ε ~ N(0, I), and what comes after it."""
        mu, log_var, context = self._split(q)
        z = mu + jnp.exp(0.5 * log_var) * ctx.normal('epsilon', (k, self.dim))
        if self.posterior_flow:
            moved, log_det = self._flow('posterior_flow', theta, z, context)
            return moved, (log_normal(z, mu, log_var) - log_det)[..., None]
        if self.upward:
            mu2, log_var2 = _each(self.upward, theta['upward'], z)
            z2 = mu2 + jnp.exp(0.5 * log_var2) * ctx.normal('epsilon2', (k, self.total - self.dim))
            log_q = log_normal(z, mu, log_var), log_normal(z2, mu2, log_var2)
            return jnp.concatenate([z, z2], axis=-1), jnp.stack(log_q, axis=-1)
        return z, self._grouped(normal_terms(z, mu, log_var))

    def log_q(self, theta: Tree, q: Posterior, z: Array) -> Array:
        """log q(z given x) of any z; of an IAF this takes `dim` passes a layer."""
        mu, log_var, context = self._split(q)
        if self.posterior_flow:
            z, log_det = self._flow('posterior_flow', theta, z, context, inverse=True)
            return (log_normal(z, mu, log_var) + log_det)[..., None]
        if self.upward:
            z, z2 = z[..., : self.dim], z[..., self.dim :]
            return jnp.stack(
                [log_normal(z, mu, log_var), log_normal(z2, *_each(self.upward, theta['upward'], z))], axis=-1
            )
        return self._grouped(normal_terms(z, mu, log_var))

    def log_p(self, theta: Tree, components: Posterior | None, z: Array) -> Array:
        """log p(z), of two layers log p(z1 given z2) and log p(z2)."""
        top = z[..., self.dim :] if self.upward else z
        if self.prior_flow:
            top, log_det = self._flow('prior_flow', theta, top, None, inverse=True)
            found = (log_normal(top, 0.0, 0.0) + log_det)[..., None]
        elif components is not None:
            each = log_normal_pairs(top, *components)
            found = (jax.nn.logsumexp(each, axis=-1) - jnp.log(each.shape[-1]))[..., None]
        elif self.upward:
            found = log_normal(top, 0.0, 0.0)[..., None]
        else:
            found = self._grouped(normal_terms(top, 0.0, 0.0))
        if not self.upward:
            return found
        below = log_normal(z[..., : self.dim], *_each(self.downward, theta['downward'], z[..., self.dim :]))
        return jnp.concatenate([below[..., None], found], axis=-1)

    def kl(self, q: Posterior) -> Array:
        """KL(q(z given x) ‖ p(z)) of each dimension in closed form, (n, dim); where `factorized`."""
        return gaussian_kl_terms(*q)

    def sample(
        self, theta: Tree, components: Posterior | None, ctx: rng.Context, k: int, temperature: float = 1.0
    ) -> Array:
        """k draws from p(z), (n, k, total). temperature: a factor of every standard deviation, of the base's where
        the prior is a flow; the component of a VampPrior is drawn as ever."""
        top = temperature * ctx.normal('z', (k, self.total - self.dim if self.upward else self.total))
        if self.prior_flow:
            top, _ = self._flow('prior_flow', theta, top, None)
        elif components is not None:
            mu, log_var = components
            which = jnp.floor(ctx.uniform('component', (k,)) * len(mu)).astype(jnp.int32)
            top = mu[which] + jnp.exp(0.5 * log_var[which]) * top
        if not self.upward:
            return top
        mu, log_var = _each(self.downward, theta['downward'], top)
        z = mu + temperature * jnp.exp(0.5 * log_var) * ctx.normal('z1', (k, self.dim))
        return jnp.concatenate([z, top], axis=-1)

    def code(self, theta: Tree, q: Posterior) -> Array:
        """The mean of q(z1 given x), (n, dim); where the posterior is a flow, what it makes of its base's mean."""
        mu, _, context = self._split(q)
        return (self._flow('posterior_flow', theta, mu, context)[0] if self.posterior_flow else mu)[:, 0]

    def _split(self, q: Posterior) -> tuple[Array, Array, Array]:
        """(μ, log σ², context of the posterior's flow), with an axis for the draws."""
        mu, log_var = (part[:, None] for part in q)
        context = jnp.concatenate([mu[..., self.dim :], log_var[..., self.dim :]], axis=-1)
        return mu[..., : self.dim], log_var[..., : self.dim], context

    def _flow(self, name: str, theta: Tree, z: Array, context: Array | None, inverse: bool = False):
        return getattr(self, name).apply({'params': theta[name]}, z, context, inverse)

    def _grouped(self, terms: Array) -> Array:
        return terms if self.factorized else jnp.sum(terms, axis=-1, keepdims=True)


def _each(module: Encoder, params: Tree, z: Array) -> Posterior:
    """module over all draws (n, k, d): mean and log-variance, (n, k, …) each."""
    flat = module.apply({'params': params}, z.reshape(-1, z.shape[-1]))
    return tuple(part.reshape(*z.shape[:-1], -1) for part in flat)


def make(model, data, dataset: Dataset, dtype) -> Latents:
    """The latent variables of a config's `model`, with the fields of aigc_jax/tasks/vae/fields.py. Raises UserError."""
    d, layers, second = model.latent_dim, model.stochastic_layers, model.second
    if layers == 2 and (model.prior == 'vamp' or model.posterior != 'gaussian'):
        raise UserError('model.stochastic_layers: 2 wants model.prior normal or flow and model.posterior gaussian')
    if model.prior == 'vamp' and (model.posterior != 'gaussian' or model.conditional):
        raise UserError(
            "model.prior: vamp wants model.posterior gaussian and model.conditional False: it is made of q's"
        )
    if model.posterior_context % 2:
        raise UserError(f'model.posterior_context: {model.posterior_context}; an even number')
    if model.posterior_context and model.posterior == 'gaussian':
        raise UserError('model.posterior_context: it is for a model.posterior that is a flow; set it to 0')
    upward = downward = pseudo_inputs = None
    if layers == 2:
        top, network = second.latent_dim, {name: value for name, value in second.items() if name != 'latent_dim'}
        upward = build(Encoder, 'model.second', network, latent_dim=top, dtype=dtype)
        downward = build(Encoder, 'model.second', network, latent_dim=d, dtype=dtype)
    if model.prior == 'vamp':
        source, count = dataset.splits['train'], model.pseudo_inputs
        if not 1 <= count <= len(source):
            raise UserError(f'model.pseudo_inputs: {count}; 1 to the {len(source)} training examples')
        stored = jnp.asarray(source[np.arange(count) * (len(source) // count)]['x'])
        pseudo_inputs = dataset.scaling(data).to_model(dataset.spec.to_data(stored))
    top = d if layers == 1 else second.latent_dim
    flow = lambda kind, dim, context: build(
        Flow, 'model.flow', model.flow, kind=kind, latent_dim=dim, context_dim=context
    )
    return Latents(
        dim=d,
        total=d if layers == 1 else d + top,
        prior_flow=flow('realnvp', top, 0) if model.prior == 'flow' else None,
        posterior_flow=(
            flow(model.posterior, d, model.posterior_context) if model.posterior != 'gaussian' else None
        ),
        upward=upward,
        downward=downward,
        pseudo_inputs=pseudo_inputs,
    )
