"""Generative adversarial networks (Goodfellow et al. 2014): two players, 'discriminator' and 'generator'.

D(x) below is the logit, so that σ(D(x)) is the probability that x is real.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from aigc_jax.core import optim, parallel, rng
from aigc_jax.core.capabilities import Measures, Samples, ScalarField
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Images
from aigc_jax.nn import convnets, networks
from aigc_jax.nn.networks import Network
from aigc_jax.tasks import conditional
from aigc_jax.tasks.gan import augmentation, regularizers
from aigc_jax.tasks.gan.fields import FIELDS
from aigc_jax.tasks.gan.losses import CALIBRATED, LOSSES, ZERO_SUM

__all__ = ['FIELDS', 'make']
_PENALTIES = ('r1', 'r2', 'gradient_penalty', 'dragan')  # the gradient penalties; the fields hold their weights


@dataclasses.dataclass(frozen=True, eq=False)
class GAN:
    """The functions of the task. x is (n, *shape), z (n, latent_dim), and c the classes (n, num_classes), one-hot, or
    None. Logits are (n,), of packs (n / packing,).

    num_classes: that the players are told; 0: none. options: of fields.TASK. objectives: of losses.LOSSES.
    penalty_schedule: step -> the factor on r1 and r2. transform: the T of augmentation.make. ada_speed: by how much the
    probability of the transforms changes in a step, with ADA. top_k_steps: steps in which the share of top_k falls.
    """

    generator: Network
    discriminator: Network
    shape: tuple[int, ...]
    latent_dim: int
    num_classes: int
    options: dict
    objectives: Callable[[Array, Array], tuple[Array, Array]]
    penalty_schedule: optax.Schedule
    transform: Callable[[Array, rng.Context, str, Array | float], Array]
    ada_speed: float
    top_k_steps: float

    @property
    def adaptive(self) -> bool:
        """Whether the probability of the transforms adapts to how far the discriminator overfits (ADA)."""
        return self.options['augmentation'] == 'adaptive'

    @property
    def classifies(self) -> bool:
        """Whether the discriminator tells the classes (AC-GAN), instead of being told them."""
        return bool(self.num_classes and self.options['auxiliary'])

    def init(self, key: Array):
        x, c = self._pack(jnp.zeros((self.options['packing'], *self.shape))), self._one_hot(jnp.zeros((1,), jnp.int32))
        inputs = {'discriminator': (x, self._condition(c)), 'generator': (jnp.zeros((1, self.latent_dim)), c)}
        drawn = {name: getattr(self, name).init(rng.named(key, name), *inputs[name]) for name in inputs}
        stats = {name: stats for name, (_, stats) in drawn.items() if stats}
        stats |= {'adaptation': augmentation.start()} if self.adaptive else {}
        stats |= {'lecam': regularizers.start_lecam()} if self.options['lecam'] else {}
        return {name: params for name, (params, _) in drawn.items()}, Extra(stats, {})

    def _one_hot(self, labels: Array | None) -> Array | None:
        return jax.nn.one_hot(labels, self.num_classes) if self.num_classes else None

    def _condition(self, c: Array | None) -> Array | None:
        """What the discriminator is told of the class: nothing where it is to tell it."""
        return None if self.classifies else c

    def _pack(self, x: Array) -> Array:
        return regularizers.pack(x, self.options['packing'])

    def _train(self, player: str, params: dict[str, Tree], stats: Tree, *inputs):
        """(output, renewed stats) of a player's network."""
        output, own = getattr(self, player).train(params[player], stats.get(player, {}), *inputs)
        return output, {**stats, player: own} if own else stats

    def generate(self, params: dict[str, Tree], stats: Tree, ctx: rng.Context, c: Array | None) -> tuple[Array, Tree]:
        """(G(z), renewed stats), while training."""
        return self._train('generator', params, stats, ctx.normal('z', (self.latent_dim,)), c)

    def critic(self, params: dict[str, Tree], stats: Tree, c: Array | None) -> regularizers.Critic:
        """D: x -> (logits, (logits of the classes (n, num_classes) or None, renewed stats)), while training."""

        def D(x: Array):
            module = self.discriminator.module
            neighbours = module.deviation if isinstance(module, convnets.Discriminator) else 0
            if neighbours and len(x) % neighbours:
                raise UserError(
                    f'model.discriminator.deviation: {neighbours}; it must divide the {len(x)} that D sees at once '
                    '(batch_size by micro_batches, packing, and the devices of pmap)'
                )
            out, renewed = self._train('discriminator', params, stats, x, self._condition(c))
            return (out[:, 0], (out[:, 1:], renewed)) if self.classifies else (out, (None, renewed))

        return D

    def _transformed(self, x: Array, ctx: rng.Context, kind: str, p: Array | float) -> Array:
        """The 'real' or 'fake' x, each transform done with probability p, in packs."""
        return self._pack(self.transform(x, ctx, f'T/{kind}', p))

    def _augmented(self, x: Array, ctx: rng.Context, kind: str, p: Array | float) -> Array:
        """What the discriminator is given of the 'real' or 'fake' x, in packs."""
        return self._pack(x) if self.options['augmentation'] == 'none' else self._transformed(x, ctx, kind, p)

    def _gradient_penalties(self, D, real_x: Array, fake_x: Array, ctx: rng.Context, known=()) -> dict[str, Array]:
        """{name: penalty} of those with a weight but for those `known` already, unweighted; real_x and fake_x are what
        D is given, (n / packing, …)."""
        options, found = self.options, {}
        if options['r1'] and 'r1' not in known:
            found['r1'] = regularizers.zero_centred(D, real_x)[1]
        if options['r2'] and 'r2' not in known:
            found['r2'] = regularizers.zero_centred(D, fake_x)[1]
        if options['gradient_penalty']:
            u = ctx.uniform('interpolate')[:: options['packing']].reshape(-1, *[1] * len(self.shape))
            found['gradient_penalty'] = regularizers.one_centred(D, u * real_x + (1 - u) * fake_x)
        if options['dragan']:
            noise = options['dragan_std'] * ctx.normal('dragan', self.shape)
            found['dragan'] = regularizers.one_centred(D, real_x + self._pack(noise))
        return found

    def _penalty_weights(self, step: Array) -> dict[str, Array | float]:
        """What each of the gradient penalties is multiplied by in L_D."""
        half = self.penalty_schedule(step) / 2
        return {
            # γ/2 E‖∇D(x)‖² (Mescheder et al. 2018, eq. 9), γ annealed as in Huang et al. 2024
            'r1': self.options['r1'] * half,
            # the same on generated examples
            'r2': self.options['r2'] * half,
            # λ E(‖∇D(x̂)‖ − 1)², x̂ between real and generated (Gulrajani et al. 2017, eq. 3)
            'gradient_penalty': self.options['gradient_penalty'],
            # the same around real examples
            'dragan': self.options['dragan'],
        }

    def discriminator_loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """L_D on the batch and on as many generated examples, with all that is added to it."""
        options, stats, p = self.options, extra.stats, 1.0
        if self.adaptive:
            p = augmentation.adapt(stats['adaptation'], options['ada_target'], self.ada_speed)
        c = self._one_hot(batch.get('label'))
        fake_x, stats = self.generate(params, stats, ctx, c)
        examples = {'real': batch['x'], 'fake': fake_x}
        inputs = {kind: self._augmented(x, ctx, kind, p) for kind, x in examples.items()}
        every_step = options['penalty_every'] == 1
        # These come from the same passes as the logits.
        in_pass = [name for name in ('r1', 'r2') if options[name] and every_step]
        logits, class_logits, penalties = {}, {}, {}
        for name, (kind, x) in zip(('r1', 'r2'), inputs.items(), strict=True):
            D = self.critic(params, stats, c)
            if name in in_pass:
                found, penalties[name] = regularizers.zero_centred(D, x)
            else:
                found = D(x)
            logits[kind], (class_logits[kind], stats) = found
        D, real, fake = self.critic(params, stats, c), logits['real'], logits['fake']
        more = lambda: self._gradient_penalties(D, inputs['real'], inputs['fake'], ctx, in_pass)
        penalties |= more() if every_step else regularizers.every(options['penalty_every'], ctx.step, more)
        value = jnp.mean(self.objectives(real, fake)[0])
        metrics = {'real_logit': jnp.mean(real), 'fake_logit': jnp.mean(fake), 'adversarial': value, **penalties}
        for name, weight in self._penalty_weights(ctx.step).items():
            if name in penalties:
                value = value + weight * penalties[name]
        if options['lecam']:
            metrics['lecam'], renewed = regularizers.lecam(real, fake, stats['lecam'], options['lecam_decay'])
            value, stats = value + options['lecam'] * metrics['lecam'], {**stats, 'lecam': renewed}
        if self.adaptive:
            metrics['p'] = p
            stats = {**stats, 'adaptation': augmentation.Adaptation(p, augmentation.mean_sign(real))}
        for kind, x in examples.items():
            if weight := options[f'consistency_{kind}']:
                again, _ = D(self._transformed(x, ctx, kind, 1.0))
                metrics[f'consistency_{kind}'] = regularizers.consistency(logits[kind], again)
                value = value + weight * metrics[f'consistency_{kind}']
        if self.classifies:
            metrics['class_loss'] = _cross_entropy(class_logits['real'], c) + _cross_entropy(class_logits['fake'], c)
            value = value + options['auxiliary'] * metrics['class_loss']
        return value, Aux(metrics, extra._replace(stats=stats))

    def _unrolled(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> dict[str, Tree]:
        """params, with the discriminator's after unrolled_steps, each on the batch and the z of this turn."""

        def surrogate(own: Tree) -> Array:
            return self.discriminator_loss({**params, 'discriminator': own}, extra, batch, ctx)[0]

        steps, rate = self.options['unrolled_steps'], self.options['unrolled_rate']
        return {**params, 'discriminator': regularizers.unroll(surrogate, params['discriminator'], steps, rate)}

    def generator_loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """L_G on as many generated examples as the batch has."""
        c, metrics, options = self._one_hot(batch.get('label')), {}, self.options
        if options['unrolled_steps']:
            params = self._unrolled(params, extra, batch, ctx)
        p = extra.stats['adaptation'].p if self.adaptive else 1.0
        fake_x, stats = self.generate(params, extra.stats, ctx, c)
        D = self.critic(params, stats, c)  # whose statistics are renewed in its own turn alone
        real, _ = D(self._augmented(batch['x'], ctx, 'real', p))
        fake, (class_logits, _) = D(self._augmented(fake_x, ctx, 'fake', p))
        values = self.objectives(real, fake)[1]
        if options['unrolled_steps']:
            # The whole −L_D: through the steps ahead G reaches D(x) too (Metz et al. 2017, eq. 10).
            values = -self.objectives(real, fake)[0]
        if options['top_k'] < 1:
            share = regularizers.top_k_share(ctx.step, options['top_k'], self.top_k_steps)
            value = jnp.sum(regularizers.top_k_weights(fake, share) * values)
        else:
            value = jnp.mean(values)
        if self.classifies:
            metrics['class_loss'] = _cross_entropy(class_logits, c)
            value = value + options['auxiliary'] * metrics['class_loss']
        return value, Aux(metrics, extra._replace(stats=stats))

    def sample(self, params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        """G(z), (n, *shape)."""
        stats = extra.stats.get('generator', {})
        z = ctx.normal('z', (self.latent_dim,))
        return self.generator(params['generator'], stats, z, self._one_hot(labels))

    def discriminate(self, params, extra: Extra, x: Array, c: Array | None) -> Array:
        """What the trained discriminator gives of packs x: logits (n,), or (n, 1 + num_classes) where it classifies."""
        stats = extra.stats.get('discriminator', {})
        return self.discriminator(params['discriminator'], stats, x, self._condition(c))

    def measure(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """Logits on held-out and on generated examples: their gap against the training set's shows overfitting, unless
        D is trained on transformed examples, or has batch norm, whose statistics are here those of both kinds together.
        Of an auxiliary classifier, whether it tells their classes.

        Of packs of m, each m-th one counts: those between share examples with it."""
        found, m = {}, self.options['packing']
        counts = (jnp.arange(len(batch['x'])) % m == m - 1).astype(jnp.float32)
        for kind, x in (('real', batch['x']), ('fake', self.sample(params, extra, ctx, batch.get('label')))):
            out = self.discriminate(params, extra, regularizers.pack_all(x, m), self._one_hot(batch.get('label')))
            found[f'discriminator/{kind}_logit'] = out[:, 0] if self.classifies else out
            if self.classifies:
                right = jnp.argmax(out[:, 1:], axis=-1) == batch['label']
                found[f'discriminator/{kind}_accuracy'] = right
        return found if m == 1 else {name: (values * counts, counts) for name, values in found.items()}

    def logit(self, params, extra: Extra, x: Array, ctx: rng.Context) -> Array:
        """D(x), (n,), of an unconditional model without packs."""
        return self.discriminate(params, extra, x, None)

    def task(self) -> Task:
        turns = Turn('discriminator', self.discriminator_loss), Turn('generator', self.generator_loss)
        capabilities = [Measures(self.measure), Samples(self.sample, self.num_classes)]
        if not self.num_classes and self.options['packing'] == 1:
            capabilities.append(ScalarField('D(x), logit', self.logit))
        return Task(
            init=self.init,
            rounds=(turns,) if self.options['simultaneous'] else (turns[:1],) * self.options['n_critic'] + (turns[1:],),
            capabilities=tuple(capabilities),
        )


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, options, shape = config.model, config.task, dataset.spec.shape
    _check_data(config, dataset)
    num_classes = conditional.classes(config, dataset)
    outputs = 1 + num_classes if options.auxiliary else 1  # an auxiliary classifier has a logit for each class
    bounded = isinstance(dataset.spec, Images)
    generator = networks.make(config, 'Generator', model.generator, shape, shape=shape, bounded=bounded)
    discriminator = networks.make(config, 'Discriminator', model.discriminator, shape, outputs=outputs)
    _check(options, config, discriminator.module)
    return GAN(
        generator=generator,
        discriminator=discriminator,
        shape=tuple(shape),
        latent_dim=model.latent_dim,
        num_classes=num_classes,
        options=dict(options),
        objectives=LOSSES[options.loss],
        penalty_schedule=optim.schedule(options.penalty_schedule, config.total_steps, 'task.penalty_schedule'),
        transform=augmentation.make(options.transforms),
        ada_speed=config.batch_size / options.ada_examples,
        top_k_steps=options.top_k_percent / 100 * config.total_steps,
    ).task()


def _cross_entropy(logits: Array, c: Array) -> Array:
    """−E log p(class given x): −L_C of Odena et al. 2017, eq. 3, on either kind of example."""
    return jnp.mean(optax.softmax_cross_entropy(logits, c))


def _check_data(config, dataset: Dataset) -> None:
    """Raises UserError for fields that do not fit the data."""
    options, is_image = config.task, isinstance(dataset.spec, Images)
    if is_image and config.data.scale != 'symmetric':
        raise UserError('data.scale: the generator ends in tanh, so images lie in [−1, 1]: set it to symmetric')
    transformed = options.augmentation != 'none' or options.consistency_real or options.consistency_fake
    if transformed and not (is_image and options.transforms):
        raise UserError('task.augmentation, task.consistency_*: want images, and transforms in task.transforms')
    if is_image:
        height, width, channels = dataset.spec.shape
        if 'rotate90' in options.transforms and height != width or 'hue' in options.transforms and channels != 3:
            raise UserError(
                'task.transforms: rotate90 wants square images, hue three channels; those of '
                f'{config.data.name} are {height}×{width}×{channels}'
            )


def _check(options, config, discriminator: nn.Module) -> None:
    """Raises UserError for fields of `task` that contradict each other or the rest of the config."""
    if options.simultaneous and options.n_critic != 1:
        raise UserError('task.n_critic: it is 1 where task.simultaneous is True')
    if (options.consistency_real or options.consistency_fake) and options.augmentation != 'none':
        raise UserError(
            'task.consistency_real, _fake: D sees transformed examples alone by task.augmentation; choose one'
        )
    if options.augmentation == 'adaptive' and options.loss not in CALIBRATED:
        raise UserError(
            f'task.augmentation: adaptive reads the sign of D(x), which says nothing under task.loss={options.loss}; '
            f'choose {", ".join(CALIBRATED)}'
        )
    penalties = [name for name in _PENALTIES if options[name]]
    if penalties and isinstance(discriminator, convnets.ImageNetwork) and discriminator.norm == 'batch':
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
        raise UserError(
            'task.unrolled_steps: looks ahead of the discriminator, which task.simultaneous forgoes; choose one'
        )
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
