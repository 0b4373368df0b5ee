"""Variational auto-encoder (Kingma & Welling 2013) and its importance-weighted bound (Burda et al. 2016).

One player, 'model': {encoder, decoder, log_scale where the likelihood learns one, and those of Latents.init}. Of an
evaluation, kl is the rate and reconstruction the distortion, in nats: runs of several task.beta trace their curve.
Where p(x given z) is a density, all of log p(x) is one in the data's own units, whatever data.scale (likelihoods).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import parallel, rng
from aigc_jax.core.capabilities import LatentSpace, LogDensity, Measures, Reconstructs, Samples, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Points, Spec
from aigc_jax.metrics import latent_codes
from aigc_jax.metrics.ais import ais
from aigc_jax.nn import networks
from aigc_jax.nn.build import compute_dtype
from aigc_jax.nn.convnets import ImageNetwork
from aigc_jax.tasks import conditional, likelihoods
from aigc_jax.tasks.vae import bounds, latents
from aigc_jax.tasks.vae.fields import FIELDS

__all__ = ['FIELDS', 'make']

_MSE_DECAY = 0.99  # of the moving average of the mean squared error, which σ-VAE is evaluated with
_MEAN_DRAWS = 32  # that each of two means of a code is taken over where it has no closed form
_DENSITY_DRAWS = 64  # of z, from which log_density estimates log p(x)


@dataclasses.dataclass(frozen=True, eq=False)
class VAE:
    """The functions of the task. z is (n, k, latent.total), k draws for each of n examples.

    spec: of the data. num_classes: that encoder and decoder are told; 0: none. options, sampling, evaluation: of
    FIELDS, 'task', 'sample' and 'eval'.
    """

    encoder: networks.Network
    decoder: networks.Network
    latent: latents.Latents
    likelihood: likelihoods.Likelihood
    spec: Spec
    num_classes: int
    options: dict
    sampling: dict
    evaluation: dict

    @property
    def dim(self) -> int:
        return math.prod(self.spec.shape)

    def init(self, key: Array):
        x, z = jnp.zeros((1, *self.spec.shape)), jnp.zeros((1, self.latent.dim))
        c = self._one_hot(jnp.zeros((1,), jnp.int32))
        params = {
            'encoder': self.encoder.init(rng.named(key, 'encoder'), x, c)[0],
            'decoder': self.decoder.init(rng.named(key, 'decoder'), z, c)[0],
            **self.latent.init(key),
        }
        if self.likelihood.scale == 'learned':
            params['log_scale'] = jnp.float32(self.likelihood.start)
        mse = jnp.float32(math.exp(2 * self.likelihood.start))
        return {'model': params}, Extra({'mse': mse} if self.likelihood.scale == 'optimal' else {}, {})

    def _one_hot(self, labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, self.num_classes) if self.num_classes else None

    def posterior(self, theta: Tree, batch: Batch) -> latents.Posterior:
        return self.encoder(theta['encoder'], {}, batch['x'], self._one_hot(batch.get('label')))

    def prior(self, theta: Tree) -> latents.Posterior | None:
        """The components of a VampPrior, else None."""
        return self.latent.components(theta, self.posterior)

    def log_scale(self, theta: Tree, extra: Extra) -> Array | None:
        """Of p(x given z) outside of training."""
        if self.likelihood.scale == 'optimal':
            return likelihoods.optimal_log_scale(extra.stats['mse'])
        return theta['log_scale'] if self.likelihood.scale == 'learned' else None

    def _decode_z1(self, theta: Tree, z1: Array, labels: Array | None) -> Array:
        """The decoder's output (n, *shape, with the likelihood's channels) for z1 (n, d)."""
        return self.decoder(theta['decoder'], {}, z1, self._one_hot(labels))

    def _decode_draws(self, theta: Tree, batch: Batch, z: Array) -> tuple[Array, Array]:
        """x and the decoder's output for each z (n, k, d), (n · k, D) and (n · k, D · channels)."""
        (n, k), d = z.shape[:2], self.latent.dim
        labels = jnp.repeat(batch['label'], k) if self.num_classes else None
        out = self._decode_z1(theta, z[..., :d].reshape(n * k, d), labels)
        out = out.reshape(n * k, self.dim * self.likelihood.channels)
        return jnp.repeat(batch['x'].reshape(n, self.dim), k, axis=0), out

    def log_p_x_given_z(self, theta: Tree, batch: Batch, z: Array, scale: Array | None) -> Array:
        """z (n, k, d) -> log p(x given z), (n, k)."""
        return self.likelihood.log_prob(*self._decode_draws(theta, batch, z), scale).reshape(z.shape[:2])

    def mean_of_x(self, theta: Tree, extra: Extra, z: Array, labels: Array | None) -> Array:
        """E[x given z], z (n, d) -> (n, *shape)."""
        out = self._decode_z1(theta, z[:, : self.latent.dim], labels)
        return self.likelihood.mean(out, self.log_scale(theta, extra))

    # Training

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        theta, options = params['model'], self.options
        k, warmup = options['k'], options['kl_warmup_steps']
        warm = jnp.minimum(1.0, (ctx.step + 1) / warmup) if warmup else 1.0
        beta = options['beta'] * warm  # Higgins et al. 2017, eq. 4; warm-up: Bowman et al. 2016
        q, components = self.posterior(theta, batch), self.prior(theta)
        z, log_q = self.latent.draw(theta, q, ctx, k)
        if options['estimator'] != 'standard':
            z, log_q = self._reparameterized(theta, components, batch, q, z, log_q, beta)
        likely, ratio, mse = self._terms(theta, components, batch, z, log_q)
        if mse is not None:
            decay = jnp.minimum(_MSE_DECAY, (1.0 + ctx.step) / (10.0 + ctx.step))  # as optim.average_params
            extra = Extra({**extra.stats, 'mse': decay * extra.stats['mse'] + (1 - decay) * mse}, extra.carry)
        # The KL in closed form where there is one (Kingma & Welling 2013, eq. 7), unless an estimator wants the drawn.
        closed = self.latent.factorized and (options['estimator'] == 'standard' or k > 1)
        by_group = self.latent.kl(q) if closed else jnp.mean(ratio, axis=1)
        kl = jnp.mean(jnp.sum(by_group, axis=-1))
        if k > 1:
            log_w = likely - beta * jnp.sum(ratio, axis=-1)
            return -jnp.mean(bounds.importance_weighted(log_w)), Aux({'kl': kl}, extra)
        reconstruction = -jnp.mean(likely)
        metrics = {'reconstruction': reconstruction, 'kl': kl}
        value = bounds.free_bits(by_group, options['free_bits']) if options['free_bits'] else kl
        value = reconstruction + beta * value  # −ELBO
        if options['tc_weight']:  # β-TCVAE with α = γ = 1, β = 1 + tc_weight, Chen et al. 2018
            metrics['total_correlation'] = bounds.total_correlation(z[:, 0], *q)
            value = value + options['tc_weight'] * metrics['total_correlation']
        return value, Aux(metrics, extra)

    def _terms(self, theta: Tree, components, batch: Batch, z: Array, log_q: Array):
        """(log p(x given z) (n, k), log q − log p of z by groups (n, k, G), the mean squared error that an optimal
        scale is taken from, or None)."""
        x, out = self._decode_draws(theta, batch, z)
        scale, mse = None, None
        if self.likelihood.scale == 'optimal':  # no gradient: at its optimum the ELBO's is 0 (of k = 1)
            mse = jax.lax.stop_gradient(jnp.mean((x - out) ** 2))
            scale = likelihoods.optimal_log_scale(mse)
        elif self.likelihood.scale == 'learned':
            scale = theta['log_scale']
        log_likelihood = self.likelihood.log_prob(x, out, scale).reshape(z.shape[:2])
        return log_likelihood, log_q - self.latent.log_p(theta, components, z), mse

    def _reparameterized(self, theta: Tree, components, batch: Batch, q, z: Array, log_q: Array, beta):
        """(z, log q(z given x)) of the same values, with the gradient of task.estimator by the posterior's
        parameters."""
        theta, components, q, fixed, log_q = jax.lax.stop_gradient((theta, components, q, z, log_q))
        if self.options['estimator'] == 'dreg' and self.options['k'] > 1:
            likely, ratio, _ = self._terms(theta, components, batch, fixed, log_q)
            z = bounds.doubly_reparameterized(z, likely - beta * jnp.sum(ratio, axis=-1), beta)
        return z, self.latent.log_q(theta, q, z)

    # Evaluation

    def log_weights(self, theta: Tree, extra: Extra, batch: Batch, ctx: rng.Context, k: int, chunk: int) -> Array:
        """log w = log p(x given z) + log p(z) − log q(z given x) of k draws, (n, k), in chunks, so that memory does not
        grow with k; the last is cut where they do not divide k."""
        chunk = min(chunk, k)

        def part(_, j):
            here = rng.Context(rng.fold_in(ctx.key, j), ctx.index, ctx.step)
            q, components = self.posterior(theta, batch), self.prior(theta)
            z, log_q = self.latent.draw(theta, q, here, chunk)
            log_ratio = jnp.sum(self.latent.log_p(theta, components, z) - log_q, axis=-1)
            return None, self.log_p_x_given_z(theta, batch, z, self.log_scale(theta, extra)) + log_ratio

        _, found = jax.lax.scan(part, None, jnp.arange(-(-k // chunk)))
        return jnp.moveaxis(found, 0, 1).reshape(batch['x'].shape[0], -1)[:, :k]

    def _evaluation_weights(self, theta: Tree, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        return self.log_weights(theta, extra, batch, ctx, self.evaluation['k'], self.evaluation['k_chunk'])

    def measure(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        theta, latent = params['model'], self.latent
        q, components = self.posterior(theta, batch), self.prior(theta)
        z, log_q = latent.draw(theta, q, ctx, 1)
        reconstruction = -self.log_p_x_given_z(theta, batch, z, self.log_scale(theta, extra))[:, 0]
        by_group = latent.kl(q) if latent.factorized else (log_q - latent.log_p(theta, components, z))[:, 0]
        kl = jnp.sum(by_group, axis=-1)
        log_w = self._evaluation_weights(theta, extra, batch, ctx)
        # A lower bound of log p(x) that tightens with k.
        nll = -bounds.importance_weighted(log_w)
        curve = bounds.k_curve(log_w) if self.evaluation['k_curve'] else {}
        return {
            'model/elbo': -(reconstruction + kl),
            'model/reconstruction': reconstruction,
            'model/kl': kl,
            'model/nll': nll,
            'model/bits_per_dim': nll / (self.dim * math.log(2)),
            **{f'model/bound_k{k}': bound for k, bound in curve.items()},
        }

    def sample(self, params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        """Decodes z ~ p(z): E[x given z] for images, a draw from p(x given z) for points."""
        theta = params['model']
        z = self.latent.sample(theta, self.prior(theta), ctx, 1, self.sampling['temperature'])
        mean = self.mean_of_x(theta, extra, z[:, 0], labels)
        if isinstance(self.spec, Points):
            mean = mean + jnp.exp(self.log_scale(theta, extra)) * ctx.normal('x', self.spec.shape)
        return mean

    def reconstruct(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        """Decodes z ~ q(z given x), which decoding the prior is not."""
        theta = params['model']
        z, _ = self.latent.draw(theta, self.posterior(theta, batch), ctx, 1)
        return self.mean_of_x(theta, extra, z[:, 0], batch.get('label'))

    def encode(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        theta = params['model']
        return self.latent.code(theta, self.posterior(theta, batch))

    def decode(self, params, extra: Extra, codes: Array, labels: Array | None) -> Array:
        return self.mean_of_x(params['model'], extra, codes, labels)

    def log_density(self, params, extra: Extra, x: Array, ctx: rng.Context) -> Array:
        log_w = self.log_weights(params['model'], extra, {'x': x}, ctx, _DENSITY_DRAWS, _DENSITY_DRAWS)
        return bounds.importance_weighted(log_w)

    def collect(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """Of each example: a draw z with log p(z), the posterior's moments, and the mean of each layer's code."""
        theta, latent, d = params['model'], self.latent, self.latent.dim
        q, components = self.posterior(theta, batch), self.prior(theta)
        z, _ = latent.draw(theta, q, ctx, 1)
        draws, _ = latent.draw(theta, q, ctx, 2 * _MEAN_DRAWS)
        means, again = (jnp.mean(half, axis=1) for half in jnp.split(draws, 2, axis=1))
        found = {'means1': q[0]} if latent.gaussian else {'means1': means[:, :d], 'again1': again[:, :d]}
        if latent.total > d:
            found |= {'means2': means[:, d:], 'again2': again[:, d:]}
        if latent.gaussian:
            found |= {'z': z[:, 0, :d], 'mu': q[0], 'log_var': q[1]}
            if latent.total == d:
                found['log_p'] = jnp.sum(latent.log_p(theta, components, z), axis=-1)[:, 0]
        return found

    def summarize(self, found: dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
        """active_units of each layer; for Gaussian q the mutual information and KL(q(z) ‖ p(z)), which make up the
        KL (Hoffman & Johnson 2016)."""
        again = None if self.latent.gaussian else found['again1']
        results = {'model/active_units': latent_codes.active_units(found['means1'], again)}
        if self.latent.total > self.latent.dim:
            results['model/active_units2'] = latent_codes.active_units(found['means2'], found['again2'])
        if self.latent.gaussian:
            posterior = found['z'], found['mu'], found['log_var']
            results['model/mutual_information'] = latent_codes.information(*posterior)
            if self.latent.total == self.latent.dim:
                results['model/marginal_kl'] = latent_codes.log_aggregate(*posterior) - found['log_p']
        return results

    def anneal(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """log p(x) by AIS and, where it is not done for all, the NLL of importance sampling on the same examples."""
        theta, latent, evaluation = params['model'], self.latent, self.evaluation
        components, scale = self.prior(theta), self.log_scale(theta, extra)
        found = ais(
            latent.sample(theta, components, ctx, evaluation['ais_chains']),
            lambda z: jnp.sum(latent.log_p(theta, components, z), axis=-1),
            lambda z: self.log_p_x_given_z(theta, batch, z, scale),
            ctx,
            evaluation['ais_temperatures'],
        )
        curve = {
            f'model/ais_{name}_b{b:.3g}': values
            for b, pair in found.curve.items()
            for name, values in zip(('rate', 'distortion'), pair, strict=True)
        }
        beside = {}
        if evaluation['ais_examples']:  # the draws of `measure`
            log_w = self._evaluation_weights(theta, extra, batch, ctx)
            beside = {'model/nll_ais_examples': -bounds.importance_weighted(log_w)}
        return {'model/ais_nll': -found.log_p, **beside, 'model/ais_acceptance': found.acceptance, **curve}

    def task(self) -> Task:
        capabilities = [
            Measures(self.measure),
            Samples(self.sample, self.num_classes),
            Reconstructs(self.reconstruct),
            LatentSpace(self.encode, self.decode),
        ]
        if not self.num_classes:
            capabilities.append(LogDensity('log p(x), nats', self.log_density))
        capabilities.append(SplitStatistic(self.collect, self.summarize))
        if self.evaluation['ais_temperatures']:
            capabilities.append(SplitStatistic(self.anneal, lambda found: found, self.evaluation['ais_examples']))
        return Task(self.init, ((Turn('model', self.loss),),), tuple(capabilities))


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, shape, num_classes = config.model, dataset.spec.shape, conditional.classes(config, dataset)
    likelihood = likelihoods.make(config.task.likelihood, dataset, config.data)
    latent = latents.make(model, config.data, dataset, compute_dtype(config.precision))
    _check(config.task, config, latent)
    outputs = (*shape[:-1], shape[-1] * likelihood.channels)
    latent_dim = latent.dim + model.posterior_context // 2
    return VAE(
        encoder=_network(config, 'Encoder', shape, latent_dim=latent_dim),
        decoder=_network(config, 'Decoder', shape, shape=outputs),
        latent=latent,
        likelihood=likelihood,
        spec=dataset.spec,
        num_classes=num_classes,
        options=dict(config.task),
        sampling=dict(config.sample),
        evaluation=dict(config.eval),
    ).task()


def _network(config, role: str, image_shape: tuple[int, ...], **given) -> networks.Network:
    """Raises UserError for one with statistics: every bound here calls it with k samples, and none renews them."""
    name = role.lower()
    network = networks.make(config, role, config.model[name], image_shape, **given)
    module = network.module
    if isinstance(module, ImageNetwork) and (module.norm == 'batch' or module.spectral):
        raise UserError(f"model.{name}: of a VAE it has norm='group', 'layer' or 'none', and spectral=False")
    return network


def _check(options, config, latent: latents.Latents) -> None:
    """Raises UserError for fields that do not fit each other."""
    whole = dict(
        free_bits=options['free_bits'], tc_weight=options['tc_weight'],
        likelihood=options['likelihood'] == 'optimal_gaussian',
    )  # fmt: skip
    for name in filter(whole.get, whole):
        parallel.want_whole_batch(config, f'task.{name}: {options[name]} is of a whole batch')
    for name in ('free_bits', 'tc_weight'):
        if options[name] and options['k'] > 1:
            raise UserError(f'task.{name}: {options[name]}; it is 0 where task.k is more than 1')
    if options['tc_weight'] and not (latent.gaussian and latent.total == latent.dim):
        raise UserError('task.tc_weight: wants model.posterior gaussian and one stochastic layer')
