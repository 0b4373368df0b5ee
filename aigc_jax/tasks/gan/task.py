"""Generative adversarial networks (Goodfellow et al. 2014): two players, 'discriminator' and 'generator'.

D(x) below is the logit, so that σ(D(x)) is the probability that x is real.
"""

import jax
import jax.numpy as jnp

from aigc_jax.core import optim, parallel, rng
from aigc_jax.core.capabilities import Measures, Samples, ScalarField
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Images
from aigc_jax.nn import networks
from aigc_jax.tasks.gan import augmentation, regularizers
from aigc_jax.tasks.gan.fields import FIELDS
from aigc_jax.tasks.gan.losses import CALIBRATED, LOSSES, ZERO_SUM

__all__ = ['FIELDS', 'make']


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, options, shape, d = config.model, config.task, dataset.spec.shape, config.model.latent_dim
    if options.simultaneous and options.n_critic != 1:
        raise UserError('task.n_critic: it is 1 where task.simultaneous is True')
    if isinstance(dataset.spec, Images) and config.data.scale != 'symmetric':
        raise UserError('data.scale: the generator ends in tanh, so images lie in [−1, 1]: set it to symmetric')
    if model.conditional and not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    _check(options, config, dataset)
    anneal = optim.schedule(options.penalty_schedule, config.total_steps, 'task.penalty_schedule')
    loss, num_classes = LOSSES[options.loss], dataset.num_classes if model.conditional else 0
    judges = num_classes if options.auxiliary else 0  # classes that the discriminator tells apart
    bounded = isinstance(dataset.spec, Images)
    generator = networks.make(config, 'Generator', model.generator, shape, shape=shape, bounded=bounded)
    discriminator = networks.make(config, 'Discriminator', model.discriminator, shape, outputs=1 + judges)
    players = {'discriminator': discriminator, 'generator': generator}
    m, packed = options.packing, (*shape[:-1], options.packing * shape[-1])
    T = augmentation.make(options.transforms)
    adaptive, always = options.augmentation == 'adaptive', options.augmentation == 'fixed'
    top_k_steps = options.top_k_percent / 100 * config.total_steps

    def one_hot(labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, num_classes) if num_classes else None

    def told(c: Array | None) -> Array | None:
        """What D is told of the class: nothing where it is to tell it."""
        return None if judges else c

    def init(key: Array):
        c = one_hot(jnp.zeros((1,), jnp.int32))
        inputs = {'discriminator': (jnp.zeros((1, *packed)), told(c)), 'generator': (jnp.zeros((1, d)), c)}
        drawn = {player: net.init(rng.named(key, player), *inputs[player]) for player, net in players.items()}
        stats = {player: stats for player, (_, stats) in drawn.items() if stats}
        stats |= {'adaptation': augmentation.start()} if adaptive else {}
        stats |= {'lecam': regularizers.start_lecam()} if options.lecam else {}
        return {player: params for player, (params, _) in drawn.items()}, Extra(stats, {})

    def run(player: str, params: dict[str, Tree], stats: Tree, *inputs):
        """(output, stats) of a network while training."""
        output, own = players[player].train(params[player], stats.get(player, {}), *inputs)
        return output, {**stats, player: own} if own else stats

    def G(params: dict[str, Tree], stats: Tree, ctx: rng.Context, c: Array | None):
        return run('generator', params, stats, ctx.normal('z', (d,)), c)

    def critic(params: dict[str, Tree], stats: Tree, c: Array | None):
        """D: x -> (logits, (logits of the classes or None, renewed stats)), while training."""

        def D(x: Array):
            neighbours = model.discriminator.get('deviation', 0)
            if neighbours and len(x) % neighbours:
                raise UserError(
                    f'model.discriminator.deviation: {neighbours}; it must divide the {len(x)} that D sees at once '
                    '(batch_size by micro_batches, packing, and the devices of pmap)'
                )
            out, renewed = run('discriminator', params, stats, x, told(c))
            return (out[:, 0], (out[:, 1:], renewed)) if judges else (out, (None, renewed))

        return D

    def see(x: Array, ctx: rng.Context, name: str, p: Array | float) -> Array:
        """What D is given of x: transformed with probability p, in packs."""
        return regularizers.pack(T(x, ctx, name, p) if adaptive or always else x, m)

    def penalties(D, x: Array, fake_x: Array, ctx: rng.Context, taken=()) -> dict[str, Array]:
        """The gradient penalties that are asked for, but for those `taken` already; unweighted."""
        found = {}
        if options.r1 and 'r1' not in taken:
            found['r1'] = regularizers.zero_centred(D, x)[1]
        if options.r2 and 'r2' not in taken:
            found['r2'] = regularizers.zero_centred(D, fake_x)[1]
        if options.gradient_penalty:
            u = ctx.uniform('interpolate')[::m].reshape(-1, *[1] * len(shape))
            found['gradient_penalty'] = regularizers.one_centred(D, u * x + (1 - u) * fake_x)
        if options.dragan:
            noise = options.dragan_std * ctx.normal('dragan', shape)
            found['dragan'] = regularizers.one_centred(D, x + regularizers.pack(noise, m))
        return found

    def discriminator_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        stats, p = extra.stats, 1.0
        if adaptive:
            speed = config.batch_size / options.ada_examples
            p = augmentation.adapt(stats['adaptation'], options.ada_target, speed)
        original, c = batch['x'], one_hot(batch.get('label'))
        made, stats = G(params, stats, ctx, c)
        x, fake_x = see(original, ctx, 'T/real', p), see(made, ctx, 'T/fake', p)
        # Every step: in the same passes as the logits.
        taken = [name for name in ('r1', 'r2') if getattr(options, name) and options.penalty_every == 1]

        def judge(x: Array, stats: Tree, name: str):
            D = critic(params, stats, c)
            return regularizers.zero_centred(D, x) if name in taken else (D(x), None)

        (real, (real_class, stats)), r1 = judge(x, stats, 'r1')
        (fake, (fake_class, stats)), r2 = judge(fake_x, stats, 'r2')
        D = critic(params, stats, c)
        found = {name: value for name, value in (('r1', r1), ('r2', r2)) if name in taken}
        more = lambda: penalties(D, x, fake_x, ctx, taken)
        found |= more() if options.penalty_every == 1 else regularizers.every(options.penalty_every, ctx.step, more)
        value = jnp.mean(loss(real, fake)[0])
        metrics = {'real_logit': jnp.mean(real), 'fake_logit': jnp.mean(fake), 'adversarial': value, **found}
        half = anneal(ctx.step) / 2
        if options.r1:  # γ/2 E‖∇D(x)‖² (Mescheder et al. 2018, eq. 9), γ annealed as in Huang et al. 2024
            value = value + options.r1 * half * found['r1']
        if options.r2:  # the same on generated examples
            value = value + options.r2 * half * found['r2']
        if options.gradient_penalty:  # λ E(‖∇D(x̂)‖ − 1)², x̂ between real and generated (Gulrajani et al. 2017, eq. 3)
            value = value + options.gradient_penalty * found['gradient_penalty']
        if options.dragan:  # the same around real examples
            value = value + options.dragan * found['dragan']
        if options.lecam:
            metrics['lecam'], renewed = regularizers.lecam(real, fake, stats['lecam'], options.lecam_decay)
            value, stats = value + options.lecam * metrics['lecam'], {**stats, 'lecam': renewed}
        if adaptive:
            metrics['p'] = p
            stats = {**stats, 'adaptation': augmentation.Adaptation(p, augmentation.mean_sign(real))}
        for name, weight, logits, given in (
            ('real', options.consistency_real, real, original), ('fake', options.consistency_fake, fake, made),
        ):  # fmt: skip
            if weight:
                again, _ = D(regularizers.pack(T(given, ctx, f'T/{name}', 1.0), m))
                metrics[f'consistency_{name}'] = regularizers.consistency(logits, again)
                value = value + weight * metrics[f'consistency_{name}']
        if judges:
            metrics['class_loss'] = _cross_entropy(real_class, c) + _cross_entropy(fake_class, c)
            value = value + options.auxiliary * metrics['class_loss']
        return value, (metrics, extra._replace(stats=stats))

    def generator_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        c, metrics = one_hot(batch.get('label')), {}
        if options.unrolled_steps:  # each on the batch and the z of this turn

            def surrogate(own):
                return discriminator_loss({**params, 'discriminator': own}, extra, batch, ctx)[0]

            own = regularizers.unroll(surrogate, params['discriminator'], options.unrolled_steps, options.unrolled_rate)
            params = {**params, 'discriminator': own}
        p = extra.stats['adaptation'].p if adaptive else 1.0
        made, stats = G(params, extra.stats, ctx, c)
        D = critic(params, stats, c)  # whose statistics are renewed in its own turn alone
        real, _ = D(see(batch['x'], ctx, 'T/real', p))
        fake, (classes, _) = D(see(made, ctx, 'T/fake', p))
        values = loss(real, fake)[1]
        if options.unrolled_steps:
            # The whole −L_D: through the steps ahead G reaches D(x) too (Metz et al. 2017, eq. 10).
            values = -loss(real, fake)[0]
        if options.top_k < 1:
            share = regularizers.top_k_share(ctx.step, options.top_k, top_k_steps)
            value = jnp.sum(regularizers.top_k_weights(fake, share) * values)
        else:
            value = jnp.mean(values)
        if judges:
            metrics['class_loss'] = _cross_entropy(classes, c)
            value = value + options.auxiliary * metrics['class_loss']
        return value, (metrics, extra._replace(stats=stats))

    def D_trained(params, extra: Extra, x: Array, c: Array | None) -> Array:
        return discriminator(params['discriminator'], extra.stats.get('discriminator', {}), x, told(c))

    def sample(params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        stats = extra.stats.get('generator', {})
        return generator(params['generator'], stats, ctx.normal('z', (d,)), one_hot(labels))

    def evaluate(params, extra, batch: Batch, ctx: rng.Context):
        """Logits on held-out and on generated examples: their gap against the training set's shows overfitting, unless
        D is trained on transformed examples, or has batch norm, whose statistics are here those of both kinds together.
        Of an auxiliary classifier, whether it tells their classes.

        Of packs of m, each m-th one counts: those between share examples with it."""
        found, counts = {}, (jnp.arange(len(batch['x'])) % m == m - 1).astype(jnp.float32)
        for name, x in (('real', batch['x']), ('fake', sample(params, extra, ctx, batch.get('label')))):
            out = D_trained(params, extra, regularizers.pack_all(x, m), one_hot(batch.get('label')))
            found[f'discriminator/{name}_logit'] = out[:, 0] if judges else out
            if judges:
                right = jnp.argmax(out[:, 1:], axis=-1) == batch['label']
                found[f'discriminator/{name}_accuracy'] = right
        return found if m == 1 else {name: (values * counts, counts) for name, values in found.items()}

    def score(params, extra, x: Array, ctx: rng.Context) -> Array:
        return D_trained(params, extra, x, None)

    turns = Turn('discriminator', discriminator_loss), Turn('generator', generator_loss)
    return Task(
        init=init,
        rounds=(turns,) if options.simultaneous else (turns[:1],) * options.n_critic + (turns[1:],),
        capabilities=(
            Measures(evaluate),
            Samples(sample, num_classes),
            *([] if num_classes or m > 1 else [ScalarField('D(x), logit', score)]),
        ),
    )


def _cross_entropy(logits: Array, c: Array) -> Array:
    """−E log p(class given x): −L_C of Odena et al. 2017, eq. 3, on either kind of example."""
    return -jnp.mean(jnp.sum(c * jax.nn.log_softmax(logits), axis=-1))


def _check(options, config, dataset: Dataset) -> None:
    """Raises UserError for fields of `task` that contradict each other or the rest of the config."""
    consistent = options.consistency_real or options.consistency_fake
    is_image = isinstance(dataset.spec, Images)
    if (consistent or options.augmentation != 'none') and not (is_image and options.transforms):
        raise UserError('task.augmentation, task.consistency_*: want images, and transforms in task.transforms')
    if is_image:
        height, width, channels = dataset.spec.shape
        if 'rotate90' in options.transforms and height != width or 'hue' in options.transforms and channels != 3:
            raise UserError(
                'task.transforms: rotate90 wants square images, hue three channels; those of '
                f'{config.data.name} are {height}×{width}×{channels}'
            )
    if consistent and options.augmentation != 'none':
        raise UserError(
            'task.consistency_real, _fake: D sees transformed examples alone by task.augmentation; choose one'
        )
    if options.augmentation == 'adaptive' and options.loss not in CALIBRATED:
        raise UserError(
            f'task.augmentation: adaptive reads the sign of D(x), which says nothing under task.loss={options.loss}; '
            f'choose {", ".join(CALIBRATED)}'
        )
    penalties = [name for name in ('r1', 'r2', 'gradient_penalty', 'dragan') if getattr(options, name)]
    if penalties and config.model.discriminator.get('norm') == 'batch':
        raise UserError(
            f'task.{penalties[0]}: is of the gradient at each example, which batch norm makes depend on the others; '
            f'set model.discriminator.norm to group, layer or none, or task.{penalties[0]} to 0'
        )
    if options.penalty_every > 1 and not penalties:
        raise UserError('task.penalty_every: there is no gradient penalty to take rarely; set it to 1')
    if options.unrolled_steps and options.loss not in ZERO_SUM:
        raise UserError(
            f'task.unrolled_steps: is of a zero-sum game, which {options.loss} is not; set task.loss to '
            f'{" or ".join(ZERO_SUM)}'
        )
    if options.unrolled_steps and options.simultaneous:
        raise UserError('task.unrolled_steps: looks ahead of the discriminator, which task.simultaneous forgoes')
    if options.top_k < 1:
        parallel.want_whole_batch(config, 'task.top_k: ranks a whole batch')
    if options.unrolled_steps:
        parallel.want_whole_batch(config, 'task.unrolled_steps: wants a whole batch')
    if options.packing > 1 and config.model.conditional:
        raise UserError('task.packing: a pack has no class; set it to 1 or model.conditional to False')
    if options.packing > 1 and config.batch_size % (options.packing * config.micro_batches):
        raise UserError(
            f'batch_size: {config.batch_size} does not divide into packs of {options.packing} (task.packing)'
        )
    if options.auxiliary and not config.model.conditional:
        raise UserError('task.auxiliary: the auxiliary classifier tells classes apart; set model.conditional to True')
