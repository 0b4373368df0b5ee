"""Variational auto-encoder (Kingma & Welling 2013) and its importance-weighted bound (Burda et al. 2016).

One player, 'model': {encoder, decoder, and log_scale where the likelihood is Gaussian}.
"""

import math

import jax
import jax.numpy as jnp

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError, check_fields, near
from aigc_jax.core.types import Array, Batch, Extra, Task, Tree, Turn
from aigc_jax.data.dataset import Dataset
from aigc_jax.nn import networks

LOG_2PI = math.log(2 * math.pi)


def gaussian_kl(mu: Array, log_var: Array) -> Array:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − log σ² − 1), (…, d) -> (…); Kingma & Welling 2013, appendix B."""
    return 0.5 * jnp.sum(mu**2 + jnp.exp(log_var) - log_var - 1, axis=-1)


def log_normal(z: Array, mu: Array | float, log_var: Array | float) -> Array:
    """log N(z; μ, σ²), (…, d) -> (…)."""
    return -0.5 * jnp.sum((z - mu) ** 2 * jnp.exp(-log_var) + log_var + LOG_2PI, axis=-1)


@jax.custom_vjp
def log_bernoulli(x: Array, logits: Array, scale: None) -> Array:
    """Σ x·l − log(1 + eˡ), x and l (…, d) -> (…): the log-likelihood of x in {0, 1}.

    log(1 + eˡ) = max(l, 0) + log(1 + e^−|l|), with one logarithm for 16 terms, which takes a third of the time on a
    CPU: the product of 16 numbers in [1, 2] cannot overflow. Each term is exact to 6e-8 nats, where log1p would be
    exact relative to its size.
    """
    factors = 1 + jnp.exp(-jnp.abs(logits))
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % 16)]
    factors = jnp.pad(factors, padding, constant_values=1.0)
    products = jnp.prod(factors.reshape(*factors.shape[:-1], -1, 16), axis=-1)
    return jnp.sum(x * logits - jnp.maximum(logits, 0), axis=-1) - jnp.sum(jnp.log(products), axis=-1)


def _log_bernoulli_gradients(residuals, g: Array):
    """l and x − σ(l), times g; differentiating the product of 16 would be slower and less exact."""
    x, logits = residuals
    return g[..., None] * logits, g[..., None] * (x - jax.nn.sigmoid(logits)), None


log_bernoulli.defvjp(lambda x, l, scale: (log_bernoulli(x, l, scale), (x, l)), _log_bernoulli_gradients)


def log_gaussian(x: Array, mean: Array, log_scale: Array) -> Array:
    """log N(x; mean, s²) with one learned scale s for all dimensions, (…, d) -> (…)."""
    return log_normal(x, mean, 2 * log_scale)


LIKELIHOODS = {'bernoulli': log_bernoulli, 'gaussian': log_gaussian}
TO_MEAN = {'bernoulli': jax.nn.sigmoid, 'gaussian': lambda mean: mean}  # decoder output -> E[x given z]


def make(config, dataset: Dataset) -> Task:
    """The task of a config whose `task` holds likelihood, k, beta, kl_warmup_steps; `model` encoder, decoder,
    latent_dim, conditional. Raises UserError for a field that fits neither these nor the data."""
    model, options, shape, d = config.model, config.task, dataset.shape, config.model.get('latent_dim')
    check_fields(options, dict(name=str, likelihood=str, k=int, beta=float, kl_warmup_steps=int), 'task')
    networks.check_model(model, dict(latent_dim=int, conditional=bool, encoder=dict, decoder=dict))
    if options.likelihood not in LIKELIHOODS:
        raise UserError(f'task.likelihood: {options.likelihood!r}{near(options.likelihood, LIKELIHOODS)}')
    if options.likelihood == 'bernoulli' and (dataset.kind != 'image' or config.data.scale != 'unit'):
        raise UserError('task.likelihood: bernoulli wants images in [0, 1] (data.scale=unit); use gaussian')
    if config.data.scale == 'standard':
        raise UserError(
            'data.scale: standard would change the units of the likelihood, which learns its scale; use unit'
        )
    if model.conditional and not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    k, chunk = config.eval.get('k', 0), config.eval.get('k_chunk', 0)
    if options.k < 1 or k < 1 or chunk < 1 or k % chunk:
        raise UserError('task.k and eval.k count importance samples: 1 or more, eval.k a multiple of eval.k_chunk')
    for role in ('encoder', 'decoder'):  # every bound here calls them with k samples, so no statistics are renewed
        if model[role].get('norm') == 'batch' or model[role].get('spectral'):
            raise UserError(f"model.{role}: of a VAE it has norm='group', 'layer' or 'none', and spectral=False")
    encoder = networks.make(config, 'Encoder', model.encoder, shape, latent_dim=d)
    decoder = networks.make(config, 'Decoder', model.decoder, shape, shape=shape)
    log_likelihood, num_classes = LIKELIHOODS[options.likelihood], dataset.num_classes if model.conditional else 0
    num_dims = math.prod(shape)

    def init(key: Array):
        x, z = jnp.zeros((1, *shape)), jnp.zeros((1, d))
        c = one_hot(jnp.zeros((1,), jnp.int32))
        params = {
            'encoder': encoder.init(rng.named(key, 'encoder'), x, c)[0],
            'decoder': decoder.init(rng.named(key, 'decoder'), z, c)[0],
        }
        if options.likelihood == 'gaussian':
            params['log_scale'] = jnp.zeros(())
        return {'model': params}, Extra({}, {})

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    def encode(theta: Tree, batch: Batch):
        return encoder(theta['encoder'], {}, batch['x'], one_hot(batch.get('label')))

    def decode(theta: Tree, z: Array, labels: Array | None) -> Array:
        return decoder(theta['decoder'], {}, z, one_hot(labels))

    def log_p_x_given_z(theta: Tree, batch: Batch, z: Array) -> Array:
        """z (n, k, d) -> log p(x given z), (n, k)."""
        n, k = z.shape[:2]
        labels = jnp.repeat(batch['label'], k) if num_classes else None
        out = decode(theta, z.reshape(n * k, d), labels).reshape(n * k, num_dims)
        x = jnp.repeat(batch['x'].reshape(n, num_dims), k, axis=0)
        return log_likelihood(x, out, theta.get('log_scale')).reshape(n, k)

    def draw(mu: Array, log_var: Array, ctx: rng.Context, k: int) -> Array:
        """z = μ + σ ⊙ ε, ε ~ N(0, I): (n, k, d)."""
        epsilon = ctx.normal('epsilon', (k, d))
        return mu[:, None] + jnp.exp(0.5 * log_var)[:, None] * epsilon

    def log_weights(theta: Tree, batch: Batch, ctx: rng.Context, k: int, beta: Array | float) -> Array:
        """log w = log p(x given z) + β (log p(z) − log q(z given x)), (n, k)."""
        mu, log_var = encode(theta, batch)
        z = draw(mu, log_var, ctx, k)
        log_ratio = log_normal(z, 0.0, 0.0) - log_normal(z, mu[:, None], log_var[:, None])
        return log_p_x_given_z(theta, batch, z) + beta * log_ratio

    def loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        theta = params['model']
        warm = jnp.minimum(1.0, (ctx.step + 1) / options.kl_warmup_steps) if options.kl_warmup_steps else 1.0
        beta = options.beta * warm  # Higgins et al. 2017, eq. 4; warm-up: Bowman et al. 2016
        mu, log_var = encode(theta, batch)
        kl = jnp.mean(gaussian_kl(mu, log_var))
        if options.k == 1:
            z = draw(mu, log_var, ctx, 1)
            reconstruction = -jnp.mean(log_p_x_given_z(theta, batch, z))
            # −ELBO with the KL in closed form (Kingma & Welling 2013, eq. 7).
            return reconstruction + beta * kl, ({'reconstruction': reconstruction, 'kl': kl}, extra)
        # L_k = E log 1/k Σ w (Burda et al. 2016, eq. 8); its gradient weighs each sample by w / Σ w.
        log_w = log_weights(theta, batch, ctx, options.k, beta)
        return -jnp.mean(jax.nn.logsumexp(log_w, axis=1) - math.log(options.k)), ({'kl': kl}, extra)

    def log_p_x(theta: Tree, batch: Batch, ctx: rng.Context, k: int, chunk: int) -> Array:
        """log 1/k Σ w, (n,): a lower bound of log p(x) that tightens with k; in chunks, so that memory does not."""

        def more(log_sum, j):
            part = rng.Context(rng.fold_in(ctx.key, j), ctx.index, ctx.step)
            log_w = log_weights(theta, batch, part, chunk, 1.0)
            return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_w, axis=1)), None

        start = jnp.full(batch['x'].shape[0], -jnp.inf)
        return jax.lax.scan(more, start, jnp.arange(k // chunk))[0] - math.log(k)

    def evaluate(params, extra, batch: Batch, ctx: rng.Context):
        theta = params['model']
        mu, log_var = encode(theta, batch)
        reconstruction = -log_p_x_given_z(theta, batch, draw(mu, log_var, ctx, 1))[:, 0]
        kl = gaussian_kl(mu, log_var)
        nll = -log_p_x(theta, batch, ctx, config.eval.k, config.eval.k_chunk)
        return {
            'model/elbo': -(reconstruction + kl),
            'model/reconstruction': reconstruction,
            'model/kl': kl,
            'model/nll': nll,
            'model/bits_per_dim': nll / (num_dims * math.log(2)),
        }

    def sample(params, extra, ctx: rng.Context, labels: Array | None) -> Array:
        """Decodes z ~ p(z): E[x given z] for images, a draw from p(x given z) for points."""
        theta = params['model']
        mean = TO_MEAN[options.likelihood](decode(theta, ctx.normal('z', (d,)), labels))
        if dataset.kind == 'points':
            mean = mean + jnp.exp(theta['log_scale']) * ctx.normal('x', shape)
        return mean

    def reconstruct(params, extra, batch: Batch, ctx: rng.Context) -> Array:
        """Decodes z ~ q(z given x), which decoding the prior is not."""
        mu, log_var = encode(params['model'], batch)
        z = draw(mu, log_var, ctx, 1)[:, 0]
        return TO_MEAN[options.likelihood](decode(params['model'], z, batch.get('label')))

    def score(params, extra, x: Array, ctx: rng.Context) -> Array:
        return log_p_x(params['model'], {'x': x}, ctx, 64, 64)

    return Task(
        init=init,
        rounds=((Turn('model', loss),),),
        sample=sample,
        evaluate=evaluate,
        reconstruct=reconstruct,
        score=None if num_classes else ('log p(x), nats', score),
        num_classes=num_classes,
    )
