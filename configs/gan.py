"""A generative adversarial network (Goodfellow et al. 2014).

    python -m aigc_jax.main --config=configs/gan.py --workdir=runs/gan
    python -m aigc_jax.main --config=configs/gan.py:ring8 --workdir=runs/ring8 --config.num_seeds=16
    python -m aigc_jax.main --config=configs/gan.py:dcgan --config.data.name=idx:DIR --workdir=runs/dcgan

The first trains on scikit-learn's 8×8 digits. configs/README.md holds what each is measured to reach, and how fast.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
    config = ConfigDict(
        dict(
            seed=0,
            total_steps=10_000,  # optimizer steps
            batch_size=128,  # examples of each round, over all devices
            micro_batches=1,  # parts that a batch is cut into, to save memory
            steps_per_call=100,  # steps fused into one compiled call
            log_every_steps=100,
            eval_every_steps=2000,
            checkpoint_every_steps=2000,
            keep_checkpoints=3,  # the newest ones; the best one is kept beside them
            num_seeds=1,  # replicas, seeds seed, seed + 1, …, trained as one program
            replicas='vmap',  # 'vmap' for speed, 'map' where a replica must equal its single run bit for bit
            init_from='',  # a run's folder whose newest parameters and statistics to start from
            precision='float32',  # of the products: 'float32' or 'bfloat16'; parameters are float32
            parallel=dict(
                mode='jit',  # 'jit' over the mesh, or 'pmap' over all devices
                mesh=dict(data=-1, fsdp=1, tensor=1),  # devices along each axis; -1: those that are left
                rules=(),  # ((regex of parameters, 'fsdp' | 'replicated' | tuple of axes), …)
            ),
            optim=dict(
                discriminator=dict(
                    name='adam',
                    options=dict(b1=0.0, b2=0.99),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    clip_norm=0.0,  # global norm; 0: not clipped
                    clip_weights=0.0,  # bound of every parameter; 0: none
                    weight_decay_regex='kernel',
                    learning_rate_rules=(),  # ((regex of parameters, factor), …)
                    freeze='',  # regex of parameters
                    ema_decay=0.0,
                ),
                generator=dict(
                    name='adam',
                    options=dict(b1=0.0, b2=0.99),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    clip_norm=0.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel',
                    learning_rate_rules=(),  # ((regex of parameters, factor), …)
                    freeze='',  # regex of parameters
                    ema_decay=0.999,  # of the parameters that are evaluated and sampled; 0: those trained
                ),
            ),
            data=dict(
                name='digits',
                dir='',  # where TFDS keeps its sets; '': its default
                num_examples=100_000,  # of the 2-D and stacked sets' training split
                # held out if the data have no valid split; -1: 10,000, or a fifth of the training examples where those
                # are fewer; 0: there is none, all is trained on
                valid_examples=-1,
                shape=(),  # (H, W) of images that an npz, npy, mat or amat holds as rows of pixels; (): square
                binarize='none',  # 'none', 'threshold', 'static' or 'dynamic'
                scale='symmetric',  # integer levels to [0, 1] ('unit') or [-1, 1] ('symmetric')
                stream=False,  # read by Grain while training, instead of resident on the device
                augment=dict(  # of training images, on the device, by draws of each step
                    flip=False,  # half of them left to right
                    shift=0,  # pixels, at most, along each axis
                    rotation=0.0,  # degrees, at most, either way
                    scale=0.0,  # by a factor in 1 ± this
                    cutout=0,  # pixels, the side of a black square
                    mixup=0.0,  # α of the Beta distribution of the shares of two examples
                ),
            ),
            model=dict(
                kind='mlp',  # or 'conv', for images
                latent_dim=32,
                conditional=False,  # on the class
                generator=dict(features=(256, 256), activation='leaky_relu', bias_init='zeros'),
                discriminator=dict(features=(256, 256), activation='leaky_relu', bias_init='zeros'),
            ),
            task=dict(
                name='gan',
                # or 'nonsaturating', 'saturating', 'least_squares', 'hinge', 'wasserstein'
                loss='relativistic',
                r1=1.0,  # γ of the gradient penalty on real examples
                r2=1.0,  # γ of the same on generated ones
                # factor on both as training goes on, any of optax's schedules; a decay_rate of 1 leaves them alone
                penalty_schedule=dict(
                    name='exponential_decay', init_value=1.0, transition_percent=100.0, decay_rate=1.0
                ),
                gradient_penalty=0.0,  # λ of the Wasserstein GAN's penalty
                n_critic=1,  # discriminator's updates before each of the generator's
                simultaneous=False,  # both players' gradients at the same parameters
                dragan=0.0,  # λ of the same penalty around real examples
                dragan_std=0.5,  # standard deviation of the noise that leads there, in units of the model's x
                penalty_every=1,  # steps from one to the next of all these penalties, which then weigh as much more
                packing=1,  # examples that the discriminator judges together
                lecam=0.0,  # λ of the squared distance of the logits from the moving averages of the other kind
                lecam_decay=0.99,  # of these averages, a step
                # what the discriminator sees: images as they are ('none'), transformed ('fixed': DiffAugment), or
                # transformed with a probability that grows where it overfits ('adaptive': ADA)
                augmentation='none',
                # DiffAugment's; and 'flip', 'rotate90', 'scale', 'rotation', 'aniso', 'lumaflip', 'hue', of ADA
                transforms=('colour', 'translation', 'cutout'),
                ada_target=0.6,  # mean sign of the logits of training examples
                ada_examples=500_000,  # over which the probability can rise from 0 to 1
                consistency_real=0.0,  # λ of the squared difference of the logits of a real image and of it transformed
                consistency_fake=0.0,  # the same of generated ones
                unrolled_steps=0,  # of the discriminator's gradient descent that the generator of a zero-sum loss sees
                unrolled_rate=0.01,  # learning rate of these steps
                top_k=1.0,  # share of the batch, those with the highest logits, that the generator comes to learn from
                top_k_percent=50.0,  # of total_steps, over which the share falls from 1
                auxiliary=0.0,  # weight of classification; the discriminator tells classes instead of being told them
            ),
            eval=dict(
                # that is evaluated while training; 'auto': valid, or test where there is none. The final evaluation is
                # on `final_split`
                split='auto',
                final_split='test',
                batch_size=500,  # examples
                num_samples=10_000,  # for metrics of samples
                # What images are compared by in the final evaluation: 'classifier' (trained here, on the labels),
                # 'pixels', another run's extractor.npz, 'onnx:FILE'; '': no metrics of images; 'auto': classifier, or
                # pixels where there are no labels
                extractor='auto',
                num_shown=64,  # in a picture
                best_metric='',  # the checkpoint with the best value is kept; '': none
                best_mode='min',
                patience=0,  # evaluations without a better value before stopping; 0: never
            ),
        )
    )
    for variant in filter(None, arg.split(',')):
        config.update_from_flattened_dict(VARIANTS[variant])
    return config


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
