"""Generative adversarial networks (Goodfellow et al. 2014): two players, 'discriminator' and 'generator'.

D(x) below is the logit, so that σ(D(x)) is the probability that x is real.
"""

import jax
import jax.numpy as jnp

from aigc_jax.core import optim, rng
from aigc_jax.core.errors import UserError, check_fields, near
from aigc_jax.core.types import Array, Batch, Extra, Task, Tree, Turn
from aigc_jax.data.dataset import Dataset
from aigc_jax.nn.build import build, compute_dtype
from aigc_jax.nn.mlp import Discriminator, Generator


def nonsaturating(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = −E log σ(D(x)) − E log(1 − σ(D(G(z)))), 2 log 2 at D = 0; L_G = −E log σ(D(G(z))).
    Goodfellow et al. 2014, eq. 1 and section 3."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake), jax.nn.softplus(-fake)


def hinge(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))); L_G = −E D(G(z)). Lim & Ye 2017; Miyato et al. 2018, eq. 16."""
    return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), -fake


def wasserstein(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = E D(G(z)) − E D(x); L_G = −E D(G(z)). Arjovsky et al. 2017, eq. 2; wants gradient_penalty."""
    return fake - real, -fake


def relativistic(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = −E log σ(D(x) − D(G(z))); L_G = −E log σ(D(G(z)) − D(x)), in pairs.
    Jolicoeur-Martineau 2019, eq. 5 and 6 (RpGAN); Huang et al. 2024 (R3GAN), eq. 2."""
    return jax.nn.softplus(fake - real), jax.nn.softplus(real - fake)


LOSSES = {f.__name__: f for f in (nonsaturating, hinge, wasserstein, relativistic)}  # -> (L_D, L_G), (n,) each


def make(config, dataset: Dataset) -> Task:
    """The task of a config whose `task` holds loss, gradient_penalty, r1, r2, penalty_schedule, n_critic, simultaneous;
    `model` generator, discriminator, latent_dim, conditional. Raises UserError for a field that does not fit."""
    model, options, shape, d = config.model, config.task, dataset.shape, config.model.get('latent_dim')
    check_fields(
        options,
        dict(name=str, loss=str, r1=float, r2=float, penalty_schedule=dict, gradient_penalty=float, n_critic=int,
             simultaneous=bool),
        'task',
    )  # fmt: skip
    check_fields(model, dict(latent_dim=int, conditional=bool, generator=dict, discriminator=dict), 'model')
    if options.loss not in LOSSES:
        raise UserError(f'task.loss: {options.loss!r}{near(options.loss, LOSSES)}')
    if options.n_critic < 1 or (options.simultaneous and options.n_critic != 1):
        raise UserError('task.n_critic: 1 or more, and 1 where task.simultaneous is True')
    if dataset.kind == 'image' and config.data.scale != 'symmetric':
        raise UserError('data.scale: the generator ends in tanh, so images lie in [−1, 1]: set it to symmetric')
    if model.conditional and not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    anneal = optim.schedule(options.penalty_schedule, config.total_steps, 'task.penalty_schedule')
    dtype = compute_dtype(config.precision)
    generator = build(
        Generator, 'model.generator', model.generator, shape=shape, bounded=dataset.kind == 'image', dtype=dtype
    )
    discriminator = build(Discriminator, 'model.discriminator', model.discriminator, dtype=dtype)
    loss, num_classes = LOSSES[options.loss], dataset.num_classes if model.conditional else 0

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    def init(key: Array):
        c = one_hot(jnp.zeros((1,), jnp.int32))
        return {
            'discriminator': discriminator.init(rng.named(key, 'discriminator'), jnp.zeros((1, *shape)), c)['params'],
            'generator': generator.init(rng.named(key, 'generator'), jnp.zeros((1, d)), c)['params'],
        }, Extra({}, {})

    def G(params: dict[str, Tree], ctx: rng.Context, c: Array | None) -> Array:
        return generator.apply({'params': params['generator']}, ctx.normal('z', (d,)), c)

    def critic(params: dict[str, Tree], c: Array | None):
        return lambda x: discriminator.apply({'params': params['discriminator']}, x, c)

    def discriminator_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        x, c = batch['x'], one_hot(batch.get('label'))
        D, fake_x = critic(params, c), G(params, ctx, c)
        real, r1 = _logits_and_penalty(D, x, options.r1)
        fake, r2 = _logits_and_penalty(D, fake_x, options.r2)
        value = jnp.mean(loss(real, fake)[0])
        metrics = {'real_logit': jnp.mean(real), 'fake_logit': jnp.mean(fake), 'adversarial': value}
        half = anneal(ctx.step) / 2
        if options.r1:  # γ/2 E‖∇D(x)‖² (Mescheder et al. 2018, eq. 9), γ annealed as in Huang et al. 2024
            metrics['r1'], value = r1, value + options.r1 * half * r1
        if options.r2:  # the same on generated examples
            metrics['r2'], value = r2, value + options.r2 * half * r2
        if options.gradient_penalty:  # λ E(‖∇D(x̂)‖ − 1)², x̂ between real and generated (Gulrajani et al. 2017, eq. 3)
            u = ctx.uniform('interpolate').reshape(-1, *[1] * len(shape))
            norm = jnp.sqrt(_squared_gradient(D, u * x + (1 - u) * fake_x)[1] + 1e-12)
            metrics['gradient_penalty'] = jnp.mean((norm - 1) ** 2)
            value = value + options.gradient_penalty * metrics['gradient_penalty']
        return value, (metrics, extra)

    def generator_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        c = one_hot(batch.get('label'))
        D = critic(params, c)
        return jnp.mean(loss(D(batch['x']), D(G(params, ctx, c)))[1]), ({}, extra)

    def evaluate(params, extra, batch: Batch, ctx: rng.Context):
        """Logits on held-out and on generated examples: their gap against the training set's shows overfitting."""
        c = one_hot(batch.get('label'))
        D = critic(params, c)
        return {'discriminator/real_logit': D(batch['x']), 'discriminator/fake_logit': D(G(params, ctx, c))}

    def sample(params, extra, ctx: rng.Context, labels: Array | None) -> Array:
        return G(params, ctx, one_hot(labels))

    def score(params, extra, x: Array, ctx: rng.Context) -> Array:
        return critic(params, None)(x)

    turns = Turn('discriminator', discriminator_loss), Turn('generator', generator_loss)
    return Task(
        init=init,
        rounds=(turns,) if options.simultaneous else (turns[:1],) * options.n_critic + (turns[1:],),
        sample=sample,
        evaluate=evaluate,
        score=None if num_classes else ('D(x), logit', score),
        num_classes=num_classes,
    )


def _squared_gradient(D, x: Array) -> tuple[Array, Array]:
    """(D(x), ‖∇D(x)‖²), (n,) each, by one forward and one backward pass."""
    logits, pull = jax.vjp(D, x)
    (gradient,) = pull(jnp.ones_like(logits))
    return logits, jnp.sum(gradient.reshape(x.shape[0], -1) ** 2, axis=-1)


def _logits_and_penalty(D, x: Array, weight: float) -> tuple[Array, Array | None]:
    if not weight:
        return D(x), None
    logits, squared = _squared_gradient(D, x)
    return logits, jnp.mean(squared)
