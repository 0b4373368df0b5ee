"""A generative adversarial network (Goodfellow et al. 2014).

    python -m aigc_jax.main --config=configs/gan.py --workdir=runs/gan
    python -m aigc_jax.main --config=configs/gan.py:ring8 --workdir=runs/ring8 --config.num_seeds=16
    python -m aigc_jax.main --config=configs/gan.py:dcgan --config.data.name=idx:DIR --workdir=runs/dcgan

The first trains on scikit-learn's 8×8 digits. configs/README.md holds what each is measured to reach, and how fast.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    adam = dict(
        name='adam',
        options=dict(b1=0.0, b2=0.99),
        schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
    )
    return ConfigDict(
        dict(
            total_steps=10_000,
            steps_per_call=100,
            log_every_steps=100,
            eval_every_steps=2000,
            checkpoint_every_steps=2000,
            optim=dict(discriminator=adam, generator=dict(**adam, ema_decay=0.999)),
            data=dict(name='digits', scale='symmetric'),
            model=dict(
                latent_dim=32,
                generator=dict(features=(256, 256), activation='leaky_relu', bias_init='zeros'),
                discriminator=dict(features=(256, 256), activation='leaky_relu', bias_init='zeros'),
            ),
            task=dict(
                name='gan',
                loss='relativistic',
                r1=1.0,
                r2=1.0,
                # A decay_rate of 1 leaves both penalties alone.
                penalty_schedule=dict(
                    name='exponential_decay', init_value=1.0, transition_percent=100.0, decay_rate=1.0
                ),
            ),
        )
    )


_POINTS = {
    'total_steps': 40_000, 'batch_size': 256, 'model.latent_dim': 2, 'task.r1': 0.01, 'task.r2': 0.01,
    'task.penalty_schedule.decay_rate': 1e-3,  # weak at the end, or the discriminator does not resolve a mode
    'model.generator.features': (128, 128), 'model.generator.activation': 'relu',
    'model.discriminator.features': (128, 128), 'model.discriminator.activation': 'relu',
    'eval_every_steps': 5000, 'checkpoint_every_steps': 5000,
}  # fmt: skip

_RMSPROP = {
    f'optim.{player}.{field}': value
    for player in ('discriminator', 'generator')
    for field, value in (
        # PyTorch's defaults, which the authors' code has
        ('name', 'rmsprop'), ('options', {'decay': 0.99, 'eps_in_sqrt': False}),
        ('schedule.init_value', 5e-5), ('schedule.alpha', 1.0),
    )
}
_CONV = {'activation': 'leaky_relu_0.2', 'spectral': False, 'attention': 0, 'depth': 1}
_CLASSIC = {
    'model.kind': 'conv', 'model.latent_dim': 64, 'batch_size': 64, 'steps_per_call': 20,
    'task.r1': 0.0, 'task.r2': 0.0,
    'task.loss': 'nonsaturating', 'data.name': 'idx:mnist',
    'optim.generator.options.b1': 0.5, 'optim.discriminator.options.b1': 0.5,
    'optim.generator.options.b2': 0.999, 'optim.discriminator.options.b2': 0.999,
    'optim.generator.schedule.init_value': 2e-4, 'optim.discriminator.schedule.init_value': 2e-4,
}  # fmt: skip
_DCGAN = {
    **_CLASSIC, 'optim.generator.schedule.init_value': 1e-3,  # faster than the discriminator, which wins otherwise
    'optim.generator.ema_decay': 0.99,
    'model.generator': {**_CONV, 'features': (128, 64), 'block': 'plain', 'norm': 'batch', 'activation': 'relu'},
    'model.discriminator': {**_CONV, 'features': (64, 128), 'block': 'plain', 'norm': 'batch', 'deviation': 0},
}  # fmt: skip

VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 10, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'eval.num_samples': 200, 'eval.num_shown': 16,
        'model.latent_dim': 2, 'model.generator.features': (16,), 'model.discriminator.features': (16,),
        'data.num_examples': 1000, 'eval.extractor': '',
    },
    # 2-D mixtures with known density (Srivastava et al. 2017).
    'ring8': {**_POINTS, 'data.name': 'ring8', 'batch_size': 1024},  # with 256 the modes come out too narrow
    'grid25': {
        **_POINTS, 'data.name': 'grid25', 'data.scale': 'standard', 'task.r1': 0.1, 'task.r2': 0.1,
        'task.penalty_schedule.decay_rate': 1e-5, 'total_steps': 48_000,
        'model.generator.bias_init': 'uniform', 'model.discriminator.bias_init': 'uniform',
        'optim.discriminator.schedule.init_value': 4e-3, 'optim.generator.schedule.init_value': 4e-3,
        'eval_every_steps': 6000, 'checkpoint_every_steps': 6000,
    },
    # Images, convolutional. DCGAN (Radford et al. 2016) in the classic shape for 28×28: dense 7×7×128 → 64 → 1.
    'dcgan': _DCGAN,
    # The same networks in the game of R3GAN: penalties in place of the discriminator's normalization.
    'rpgan': {
        **_DCGAN, 'task.loss': 'relativistic', 'task.r1': 1.0, 'task.r2': 1.0,
        'optim.discriminator.schedule.init_value': 1e-3,
        'model.discriminator': {**_DCGAN['model.discriminator'], 'norm': 'none'},
    },
    # Residual networks, hinge loss, a spectrally normalized discriminator with five steps (Miyato et al. 2018).
    'sngan': {
        **_CLASSIC, 'task.loss': 'hinge', 'task.n_critic': 5,
        'optim.generator.options.b1': 0.0, 'optim.discriminator.options.b1': 0.0,
        'optim.generator.options.b2': 0.9, 'optim.discriminator.options.b2': 0.9,
        'model.generator': {**_CONV, 'features': (32, 32), 'block': 'residual', 'norm': 'batch', 'activation': 'relu'},
        'model.discriminator': {
            **_CONV, 'features': (32, 32), 'block': 'residual', 'norm': 'none', 'activation': 'relu', 'spectral': True,
            'deviation': 0,
        },
    },
    # Relativistic, penalties on real and on generated images, no normalization (Huang et al. 2024).
    'r3gan': {
        **_CLASSIC, 'task.loss': 'relativistic', 'task.r1': 1.0, 'task.r2': 1.0,
        'optim.generator.options.b1': 0.0, 'optim.discriminator.options.b1': 0.0,
        'optim.generator.options.b2': 0.99, 'optim.discriminator.options.b2': 0.99,
        'model.generator': {**_CONV, 'features': (64, 32), 'block': 'modern', 'norm': 'none'},
        'model.discriminator': {**_CONV, 'features': (32, 64), 'block': 'modern', 'norm': 'none', 'deviation': 0},
    },
    # Wasserstein with gradient penalty: five critic steps (Gulrajani et al. 2017).
    'wgan_gp': {'task.loss': 'wasserstein', 'task.gradient_penalty': 10.0, 'task.r1': 0.0, 'task.r2': 0.0,
                'task.n_critic': 5, 'optim.discriminator.options.b2': 0.9, 'optim.generator.options.b2': 0.9},
    # Wasserstein with clipped weights (Arjovsky et al. 2017, algorithm 1). Their code has 100 critic steps before each
    # of the first 25 generator steps and each 500th; here there are five throughout, as every step runs one program.
    'wgan': {'task.loss': 'wasserstein', 'task.r1': 0.0, 'task.r2': 0.0, 'task.n_critic': 5, **_RMSPROP,
             'optim.discriminator.clip_weights': 0.01},
    # Three digits as the channels of an image (Lin et al. 2018), for 'dcgan,stacked' and the like.
    'stacked': {'data.name': 'stacked:idx:mnist', 'data.num_examples': 128_000},
    # Two time scales (Heusel et al. 2017), in the rates of Zhang et al. 2019 (SAGAN).
    'ttur': {'task.loss': 'hinge', 'task.r1': 0.0, 'task.r2': 0.0, 'optim.discriminator.schedule.init_value': 4e-4,
             'optim.generator.schedule.init_value': 1e-4, 'optim.discriminator.schedule.alpha': 1.0,
             'optim.generator.schedule.alpha': 1.0, 'optim.discriminator.options.b2': 0.9,
             'optim.generator.options.b2': 0.9},
}  # fmt: skip
