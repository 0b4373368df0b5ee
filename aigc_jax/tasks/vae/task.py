"""Variational auto-encoder (Kingma & Welling 2013) and its importance-weighted bound (Burda et al. 2016).

One player, 'model': {encoder, decoder, log_scale where the likelihood learns one, and those of Latents.init}. Of an
evaluation, kl is the rate and reconstruction the distortion, in nats: runs of several task.beta trace their curve.
Where p(x given z) is a density, all of log p(x) is one in the data's own units, whatever data.scale (likelihoods).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import parallel, rng
from aigc_jax.core.capabilities import LatentSpace, LogDensity, Measures, Reconstructs, Samples, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Points
from aigc_jax.metrics import latent_codes as codes
from aigc_jax.metrics.ais import ais
from aigc_jax.nn import networks
from aigc_jax.nn.build import compute_dtype
from aigc_jax.tasks import likelihoods
from aigc_jax.tasks.vae import bounds, latents
from aigc_jax.tasks.vae.fields import FIELDS

__all__ = ['FIELDS', 'make']

_MSE_DECAY = 0.99  # of the moving average of the mean squared error, which σ-VAE is evaluated with
_MEAN_DRAWS = 32  # that each of two means of a code is taken over where it has no closed form


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, options, evaluation = config.model, config.task, config.eval
    shape, d = dataset.spec.shape, model.latent_dim
    likelihood = likelihoods.make(options['likelihood'], dataset, config.data)
    if model.conditional and not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    eval_k, chunk = evaluation.k, evaluation.k_chunk
    for role in ('encoder', 'decoder'):  # every bound here calls them with k samples, so no statistics are renewed
        if model[role].get('norm') == 'batch' or model[role].get('spectral'):
            raise UserError(f"model.{role}: of a VAE it has norm='group', 'layer' or 'none', and spectral=False")
    latent = latents.make(model, config.data, dataset, compute_dtype(config.precision))
    _check(options, config, latent)
    outputs = (*shape[:-1], shape[-1] * likelihood.channels)
    latent_dim = d + model.posterior_context // 2
    encoder = networks.make(config, 'Encoder', model.encoder, shape, latent_dim=latent_dim)
    decoder = networks.make(config, 'Decoder', model.decoder, shape, shape=outputs)
    num_classes, num_dims = dataset.num_classes if model.conditional else 0, math.prod(shape)
    estimator = options['estimator']

    def init(key: Array):
        x, z = jnp.zeros((1, *shape)), jnp.zeros((1, d))
        c = one_hot(jnp.zeros((1,), jnp.int32))
        params = {
            'encoder': encoder.init(rng.named(key, 'encoder'), x, c)[0],
            'decoder': decoder.init(rng.named(key, 'decoder'), z, c)[0],
            **latent.init(key),
        }
        if likelihood.scale == 'learned':
            params['log_scale'] = jnp.float32(likelihood.start)
        mse = jnp.float32(math.exp(2 * likelihood.start))
        return {'model': params}, Extra({'mse': mse} if likelihood.scale == 'optimal' else {}, {})

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    def encode(theta: Tree, batch: Batch):
        return encoder(theta['encoder'], {}, batch['x'], one_hot(batch.get('label')))

    def decode(theta: Tree, z: Array, labels: Array | None) -> Array:
        return decoder(theta['decoder'], {}, z, one_hot(labels))

    def log_scale(theta: Tree, extra: Extra) -> Array | None:
        """Of p(x given z) outside of training."""
        optimal = likelihood.scale == 'optimal'
        return likelihoods.optimal_log_scale(extra.stats['mse']) if optimal else theta.get('log_scale')

    def decode_draws(theta: Tree, batch: Batch, z: Array) -> tuple[Array, Array]:
        """x and the decoder's output for each z (n, k, d), (n · k, D) and (n · k, D · channels)."""
        n, k = z.shape[:2]
        labels = jnp.repeat(batch['label'], k) if num_classes else None
        out = decode(theta, z[..., :d].reshape(n * k, d), labels).reshape(n * k, num_dims * likelihood.channels)
        return jnp.repeat(batch['x'].reshape(n, num_dims), k, axis=0), out

    def log_p_x_given_z(theta: Tree, batch: Batch, z: Array, scale: Array | None) -> Array:
        """z (n, k, d) -> log p(x given z), (n, k)."""
        return likelihood.log_prob(*decode_draws(theta, batch, z), scale).reshape(z.shape[:2])

    def log_weights(theta: Tree, extra: Extra, batch: Batch, ctx: rng.Context, k: int) -> Array:
        """log w = log p(x given z) + log p(z) − log q(z given x), (n, k)."""
        q, components = encode(theta, batch), latent.components(theta, encode)
        z, log_q = latent.draw(theta, q, ctx, k)
        log_ratio = jnp.sum(latent.log_p(theta, components, z) - log_q, axis=-1)
        return log_p_x_given_z(theta, batch, z, log_scale(theta, extra)) + log_ratio

    def loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        theta, k = params['model'], options['k']
        warm = jnp.minimum(1.0, (ctx.step + 1) / options['kl_warmup_steps']) if options['kl_warmup_steps'] else 1.0
        beta = options['beta'] * warm  # Higgins et al. 2017, eq. 4; warm-up: Bowman et al. 2016
        q, components = encode(theta, batch), latent.components(theta, encode)
        z, log_q = latent.draw(theta, q, ctx, k)

        def terms(theta: Tree, components, z: Array, log_q: Array):
            """(log p(x given z) (n, k), log q − log p of z by groups (n, k, G), the new Extra)."""
            (x, out), scale, new = decode_draws(theta, batch, z), theta.get('log_scale'), extra
            if likelihood.scale == 'optimal':  # no gradient: at its optimum the ELBO's is 0 (of k = 1)
                mse = jax.lax.stop_gradient(jnp.mean((x - out) ** 2))
                decay = jnp.minimum(_MSE_DECAY, (1.0 + ctx.step) / (10.0 + ctx.step))  # as optim.average_params
                scale = likelihoods.optimal_log_scale(mse)
                new = Extra({**extra.stats, 'mse': decay * extra.stats['mse'] + (1 - decay) * mse}, extra.carry)
            log_likelihood = likelihood.log_prob(x, out, scale).reshape(z.shape[:2])
            return log_likelihood, log_q - latent.log_p(theta, components, z), new

        if estimator != 'standard':
            fixed = jax.lax.stop_gradient((theta, components, q, z, log_q))
            if estimator == 'dreg' and k > 1:
                likely, ratio, _ = terms(fixed[0], fixed[1], *fixed[3:])
                z = bounds.doubly_reparameterized(z, likely - beta * jnp.sum(ratio, axis=-1), beta)
            log_q = latent.log_q(fixed[0], fixed[2], z)
        likely, ratio, new = terms(theta, components, z, log_q)
        # The KL in closed form where there is one (Kingma & Welling 2013, eq. 7), unless an estimator wants the drawn.
        closed = latent.factorized and (estimator == 'standard' or k > 1)
        by_group = latent.kl(q) if closed else jnp.mean(ratio, axis=1)
        kl = jnp.mean(jnp.sum(by_group, axis=-1))
        if k > 1:
            return -jnp.mean(bounds.importance_weighted(likely - beta * jnp.sum(ratio, axis=-1))), ({'kl': kl}, new)
        reconstruction = -jnp.mean(likely)
        metrics = {'reconstruction': reconstruction, 'kl': kl}
        value = bounds.free_bits(by_group, options['free_bits']) if options['free_bits'] else kl
        value = reconstruction + beta * value  # −ELBO
        if options['tc_weight']:  # β-TCVAE with α = γ = 1, β = 1 + tc_weight, Chen et al. 2018
            metrics['total_correlation'] = bounds.total_correlation(z[:, 0], *q)
            value = value + options['tc_weight'] * metrics['total_correlation']
        return value, (metrics, new)

    def all_log_weights(theta: Tree, extra: Extra, batch: Batch, ctx: rng.Context, k: int, chunk: int) -> Array:
        """log w of k draws, (n, k), in chunks, so that memory does not grow with k; the last is cut where they do not
        divide k."""
        chunk = min(chunk, k)

        def part(_, j):
            here = rng.Context(rng.fold_in(ctx.key, j), ctx.index, ctx.step)
            return None, log_weights(theta, extra, batch, here, chunk)

        _, found = jax.lax.scan(part, None, jnp.arange(-(-k // chunk)))
        return jnp.moveaxis(found, 0, 1).reshape(batch['x'].shape[0], -1)[:, :k]

    def evaluate(params, extra, batch: Batch, ctx: rng.Context):
        theta = params['model']
        q, components = encode(theta, batch), latent.components(theta, encode)
        z, log_q = latent.draw(theta, q, ctx, 1)
        reconstruction = -log_p_x_given_z(theta, batch, z, log_scale(theta, extra))[:, 0]
        by_group = latent.kl(q) if latent.factorized else (log_q - latent.log_p(theta, components, z))[:, 0]
        kl = jnp.sum(by_group, axis=-1)
        log_w = all_log_weights(theta, extra, batch, ctx, eval_k, chunk)
        # A lower bound of log p(x) that tightens with k.
        nll = -bounds.importance_weighted(log_w)
        curve = bounds.k_curve(log_w) if evaluation['k_curve'] else {}
        return {
            'model/elbo': -(reconstruction + kl),
            'model/reconstruction': reconstruction,
            'model/kl': kl,
            'model/nll': nll,
            'model/bits_per_dim': nll / (num_dims * math.log(2)),
            **{f'model/bound_k{k}': bound for k, bound in curve.items()},
        }

    def mean_of_x(theta: Tree, extra: Extra, z: Array, labels: Array | None) -> Array:
        """E[x given z], z (n, d) -> (n, *shape)."""
        return likelihood.mean(decode(theta, z[:, :d], labels), log_scale(theta, extra))

    def sample(params, extra, ctx: rng.Context, labels: Array | None) -> Array:
        """Decodes z ~ p(z): E[x given z] for images, a draw from p(x given z) for points."""
        theta = params['model']
        z = latent.sample(theta, latent.components(theta, encode), ctx, 1, evaluation['temperature'])
        mean = mean_of_x(theta, extra, z[:, 0], labels)
        if isinstance(dataset.spec, Points):
            mean = mean + jnp.exp(log_scale(theta, extra)) * ctx.normal('x', shape)
        return mean

    def reconstruct(params, extra, batch: Batch, ctx: rng.Context) -> Array:
        """Decodes z ~ q(z given x), which decoding the prior is not."""
        theta = params['model']
        z, _ = latent.draw(theta, encode(theta, batch), ctx, 1)
        return mean_of_x(theta, extra, z[:, 0], batch.get('label'))

    def score(params, extra, x: Array, ctx: rng.Context) -> Array:
        return bounds.importance_weighted(all_log_weights(params['model'], extra, {'x': x}, ctx, 64, 64))

    def collect(params, extra, batch: Batch, ctx: rng.Context):
        """Of each example: a draw z with log p(z), the posterior's moments, and the mean of each layer's code."""
        theta = params['model']
        q, components = encode(theta, batch), latent.components(theta, encode)
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

    def summarize(found: dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
        """active_units of each layer; for Gaussian q the mutual information and KL(q(z) ‖ p(z)), which make up the
        KL (Hoffman & Johnson 2016)."""
        results = {'model/active_units': codes.active_units(found['means1'], found.get('again1'))}
        if 'means2' in found:
            results['model/active_units2'] = codes.active_units(found['means2'], found['again2'])
        if 'z' in found:
            posterior = found['z'], found['mu'], found['log_var']
            results['model/mutual_information'] = codes.information(*posterior)
        if 'log_p' in found:
            results['model/marginal_kl'] = codes.log_aggregate(*posterior) - found['log_p']
        return results

    def anneal(params, extra, batch: Batch, ctx: rng.Context):
        """log p(x) by AIS and, where it is not done for all, the NLL of importance sampling on the same examples."""
        theta = params['model']
        components, scale = latent.components(theta, encode), log_scale(theta, extra)
        found = ais(
            latent.sample(theta, components, ctx, evaluation['ais_chains']),
            lambda z: jnp.sum(latent.log_p(theta, components, z), axis=-1),
            lambda z: log_p_x_given_z(theta, batch, z, scale),
            ctx,
            evaluation['ais_temperatures'],
        )
        curve = {
            f'model/ais_{name}_b{b:.3g}': values
            for b, pair in found.curve.items()
            for name, values in zip(('rate', 'distortion'), pair, strict=True)
        }
        beside = {}
        if evaluation['ais_examples']:  # the draws of `evaluate`
            log_w = all_log_weights(theta, extra, batch, ctx, eval_k, chunk)
            beside = {'model/nll_ais_examples': -bounds.importance_weighted(log_w)}
        return {'model/ais_nll': -found.log_p, **beside, 'model/ais_acceptance': found.acceptance, **curve}

    statistics = [SplitStatistic(collect, summarize)]
    if evaluation['ais_temperatures']:
        statistics.append(SplitStatistic(anneal, lambda found: found, evaluation['ais_examples']))
    return Task(
        init=init,
        rounds=((Turn('model', loss),),),
        capabilities=(
            Measures(evaluate),
            Samples(sample, num_classes),
            Reconstructs(reconstruct),
            LatentSpace(
                encode=lambda params, extra, batch, ctx: latent.code(params['model'], encode(params['model'], batch)),
                decode=lambda params, extra, z, labels: mean_of_x(params['model'], extra, z, labels),
            ),
            *([] if num_classes else [LogDensity('log p(x), nats', score)]),
            *statistics,
        ),
    )


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
