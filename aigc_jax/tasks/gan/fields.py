"""The fields of a config with task.name=gan."""

from aigc_jax.core.schema import Field
from aigc_jax.nn import networks
from aigc_jax.tasks.gan import augmentation
from aigc_jax.tasks.gan.losses import LOSSES

TASK = {
    'loss': Field(str, choices=tuple(LOSSES), doc='the objectives of both players'),
    'r1': Field(float, 0.0, least=0, doc='γ of the gradient penalty on real examples'),
    'r2': Field(float, 0.0, least=0, doc='γ of the gradient penalty on generated examples'),
    'penalty_schedule': Field(
        dict, dict(name='constant_schedule', value=1.0),
        doc='factor on both as training goes on, any of the schedules of optax, as in optim',
    ),
    'gradient_penalty': Field(float, 0.0, least=0, doc="λ of the Wasserstein GAN's penalty (Gulrajani et al. 2017)"),
    'n_critic': Field(int, 1, least=1, doc="the discriminator's updates before each of the generator's"),
    'simultaneous': Field(bool, False, doc="whether both players' gradients are taken at the same parameters"),
    'dragan': Field(float, 0.0, least=0, doc='λ of the same penalty around real examples (Kodali et al. 2017)'),
    'dragan_std': Field(
        float, 0.5, least=0, doc="standard deviation of the noise that leads there, in units of the model's x"
    ),
    'penalty_every': Field(
        int, 1, least=1, doc='steps from one to the next of all these penalties, which then weigh as much more'
    ),
    'packing': Field(int, 1, least=1, doc='examples that the discriminator judges together (Lin et al. 2018)'),
    'lecam': Field(
        float, 0.0, least=0,
        doc='λ of the squared distance of the logits from the moving averages of the other kind (Tseng et al. 2021)',
    ),
    'lecam_decay': Field(float, 0.99, least=0, below=1, doc='of these averages, a step'),
    'augmentation': Field(
        str, 'none', choices=('none', 'fixed', 'adaptive'),
        doc='what the discriminator sees: images as they are (`none`), transformed (`fixed`: DiffAugment), or '
        'transformed with a probability that grows where it overfits (`adaptive`: ADA)',
    ),
    'transforms': Field(
        tuple, ('colour', 'translation', 'cutout'), items=Field(str, choices=tuple(augmentation.TRANSFORMS)),
        doc='of augmentation and consistency; those of DiffAugment by default, the others are of ADA',
    ),
    'ada_target': Field(float, 0.6, above=-1, below=1, doc='mean sign of the logits of training examples'),
    'ada_examples': Field(int, 500_000, least=1, doc='over which the probability can rise from 0 to 1'),
    'consistency_real': Field(
        float, 0.0, least=0, doc='λ of the squared difference of the logits of a real image and of it transformed'
    ),
    'consistency_fake': Field(float, 0.0, least=0, doc='the same of generated images'),
    'unrolled_steps': Field(
        int, 0, least=0,
        doc="steps of the discriminator's gradient descent that the generator of a zero-sum loss looks ahead",
    ),
    'unrolled_rate': Field(float, 0.01, least=0, doc='learning rate of these steps'),
    'top_k': Field(
        float, 1.0, above=0, most=1,
        doc='share of the batch, those with the highest logits, that the generator comes to learn from; 1: all',
    ),
    'top_k_percent': Field(
        float, 50.0, least=0, most=100, doc='of total_steps, over which that share falls from 1'
    ),
    'auxiliary': Field(
        float, 0.0, least=0,
        doc='weight of classification; with it the discriminator tells classes instead of being told them',
    ),
}  # fmt: skip
FIELDS = {
    'task': TASK,
    'model': {
        'kind': networks.KIND,
        'latent_dim': Field(int, least=1, doc='of z, which is drawn from a standard normal'),
        'conditional': Field(bool, False, doc='whether both players are told the class'),
        'generator': networks.field('Generator', 'from z to an example'),
        'discriminator': networks.field('Discriminator', 'from an example to a logit'),
    },
}
