"""Generative adversarial networks (Goodfellow et al. 2014): two players, 'discriminator' and 'generator'.

D(x) below is the logit, so that σ(D(x)) is the probability that x is real.
"""

import jax
import jax.numpy as jnp

from aigc_jax.core import optim, rng
from aigc_jax.core.errors import UserError, check_fields, near
from aigc_jax.core.types import Array, Batch, Extra, Task, Tree, Turn
from aigc_jax.data.dataset import Dataset
from aigc_jax.nn import networks


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
    networks.check_model(model, dict(latent_dim=int, conditional=bool, generator=dict, discriminator=dict))
    if options.loss not in LOSSES:
        raise UserError(f'task.loss: {options.loss!r}{near(options.loss, LOSSES)}')
    if options.n_critic < 1 or (options.simultaneous and options.n_critic != 1):
        raise UserError('task.n_critic: 1 or more, and 1 where task.simultaneous is True')
    if dataset.kind == 'image' and config.data.scale != 'symmetric':
        raise UserError('data.scale: the generator ends in tanh, so images lie in [−1, 1]: set it to symmetric')
    if model.conditional and not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    anneal = optim.schedule(options.penalty_schedule, config.total_steps, 'task.penalty_schedule')
    bounded = dataset.kind == 'image'
    generator = networks.make(config, 'Generator', model.generator, shape, shape=shape, bounded=bounded)
    discriminator = networks.make(config, 'Discriminator', model.discriminator, shape)
    players = {'discriminator': discriminator, 'generator': generator}
    loss, num_classes = LOSSES[options.loss], dataset.num_classes if model.conditional else 0

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    def init(key: Array):
        c = one_hot(jnp.zeros((1,), jnp.int32))
        inputs = {'discriminator': jnp.zeros((1, *shape)), 'generator': jnp.zeros((1, d))}
        drawn = {player: net.init(rng.named(key, player), inputs[player], c) for player, net in players.items()}
        stats = {player: stats for player, (_, stats) in drawn.items() if stats}
        return {player: params for player, (params, _) in drawn.items()}, Extra(stats, {})

    def run(player: str, params: dict[str, Tree], stats: Tree, *inputs):
        """(output, stats) of a network while training."""
        output, own = players[player].train(params[player], stats.get(player, {}), *inputs)
        return output, {**stats, player: own} if own else stats

    def G(params: dict[str, Tree], stats: Tree, ctx: rng.Context, c: Array | None):
        return run('generator', params, stats, ctx.normal('z', (d,)), c)

    def discriminator_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        x, c = batch['x'], one_hot(batch.get('label'))
        fake_x, stats = G(params, extra.stats, ctx, c)
        D = lambda x, stats: run('discriminator', params, stats, x, c)
        (real, stats), r1 = _with_penalty(D, x, stats, options.r1)
        (fake, stats), r2 = _with_penalty(D, fake_x, stats, options.r2)
        value = jnp.mean(loss(real, fake)[0])
        metrics = {'real_logit': jnp.mean(real), 'fake_logit': jnp.mean(fake), 'adversarial': value}
        half = anneal(ctx.step) / 2
        if options.r1:  # γ/2 E‖∇D(x)‖² (Mescheder et al. 2018, eq. 9), γ annealed as in Huang et al. 2024
            metrics['r1'], value = r1, value + options.r1 * half * r1
        if options.r2:  # the same on generated examples
            metrics['r2'], value = r2, value + options.r2 * half * r2
        if options.gradient_penalty:  # λ E(‖∇D(x̂)‖ − 1)², x̂ between real and generated (Gulrajani et al. 2017, eq. 3)
            u = ctx.uniform('interpolate').reshape(-1, *[1] * len(shape))
            norm = jnp.sqrt(_squared_gradient(D, u * x + (1 - u) * fake_x, stats)[1] + 1e-12)
            metrics['gradient_penalty'] = jnp.mean((norm - 1) ** 2)
            value = value + options.gradient_penalty * metrics['gradient_penalty']
        return value, (metrics, extra._replace(stats=stats))

    def generator_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        c = one_hot(batch.get('label'))
        fake_x, stats = G(params, extra.stats, ctx, c)
        # The discriminator's statistics are renewed in its own turn alone.
        real, _ = run('discriminator', params, stats, batch['x'], c)
        fake, _ = run('discriminator', params, stats, fake_x, c)
        return jnp.mean(loss(real, fake)[1]), ({}, extra._replace(stats=stats))

    def D_trained(params, extra: Extra, x: Array, c: Array | None) -> Array:
        return discriminator(params['discriminator'], extra.stats.get('discriminator', {}), x, c)

    def sample(params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        stats = extra.stats.get('generator', {})
        return generator(params['generator'], stats, ctx.normal('z', (d,)), one_hot(labels))

    def evaluate(params, extra, batch: Batch, ctx: rng.Context):
        """Logits on held-out and on generated examples: their gap against the training set's shows overfitting."""
        D = lambda x: D_trained(params, extra, x, one_hot(batch.get('label')))
        fake_x = sample(params, extra, ctx, batch.get('label'))
        return {'discriminator/real_logit': D(batch['x']), 'discriminator/fake_logit': D(fake_x)}

    def score(params, extra, x: Array, ctx: rng.Context) -> Array:
        return D_trained(params, extra, x, None)

    turns = Turn('discriminator', discriminator_loss), Turn('generator', generator_loss)
    return Task(
        init=init,
        rounds=(turns,) if options.simultaneous else (turns[:1],) * options.n_critic + (turns[1:],),
        sample=sample,
        evaluate=evaluate,
        score=None if num_classes else ('D(x), logit', score),
        num_classes=num_classes,
    )


def _squared_gradient(D, x: Array, stats: Tree):
    """D(x, stats) and ‖∇D(x)‖², (n,), by one forward and one backward pass."""
    logits, pull, stats = jax.vjp(lambda x: D(x, stats), x, has_aux=True)
    (gradient,) = pull(jnp.ones_like(logits))
    return (logits, stats), jnp.sum(gradient.reshape(x.shape[0], -1) ** 2, axis=-1)


def _with_penalty(D, x: Array, stats: Tree, weight: float):
    """D(x, stats) and E‖∇D(x)‖², or None where it has no weight."""
    if not weight:
        return D(x, stats), None
    found, squared = _squared_gradient(D, x, stats)
    return found, jnp.mean(squared)
