"""A variational auto-encoder with MLP encoder and decoder (Kingma & Welling 2013).

    python -m aigc_jax.main --config=configs/vae.py --workdir=runs/vae
    python -m aigc_jax.main --config=configs/vae.py:binarized_mnist --workdir=runs/bmnist --config.data.name=amat:DIR

The first trains on scikit-learn's 8×8 digits. configs/README.md holds what each is measured to reach, and how fast.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=10_000,
            steps_per_call=100,
            log_every_steps=100,
            optim=dict(
                model=dict(
                    name='adam',
                    options=dict(b1=0.9, b2=0.999),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    # The learned scale of a likelihood, where there is one: Adam moves each parameter by the rate at
                    # most, and log σ has further to go than a weight.
                    learning_rate_rules=(('log_scale', 10.0),),
                ),
            ),
            data=dict(name='digits'),
            model=dict(
                latent_dim=16,
                encoder=dict(features=(256, 128), activation='relu', bias_init='zeros'),
                decoder=dict(features=(128, 256), activation='relu', bias_init='zeros'),
            ),
            task=dict(name='vae', likelihood='bernoulli'),
            eval=dict(best_metric='model/nll'),
        )
    )


VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 10, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'eval.k': 4, 'eval.k_chunk': 2, 'eval.num_samples': 200,
        'eval.num_shown': 16, 'model.latent_dim': 2, 'model.encoder.features': (16,), 'model.decoder.features': (16,),
        'data.num_examples': 1000, 'eval.extractor': '', 'model.pseudo_inputs': 20, 'model.flow.layers': 2,
        'model.flow.features': (16,), 'model.second.latent_dim': 2, 'model.second.features': (16,),
    },
    # 2-D data: z of the data's own dimension, a Gaussian likelihood with a learned scale.
    'points': {
        'data.name': 'ring8', 'task.likelihood': 'gaussian', 'model.latent_dim': 2,
        'model.encoder.features': (128, 128), 'model.decoder.features': (128, 128), 'batch_size': 256,
    },
    # Statically binarized MNIST with 784-400-40 (the setting of Rezende & Mohamed 2015 and of Pythae's table). All
    # 60,000 images are trained on, so there are none to choose a checkpoint by: the last one is the result.
    'binarized_mnist': {
        'data.name': 'amat:binarized_mnist', 'data.valid_examples': 0, 'eval.split': 'test', 'eval.best_metric': '',
        'batch_size': 100, 'total_steps': 240_000, 'model.latent_dim': 40,
        'model.encoder.features': (400,), 'model.encoder.activation': 'gelu',
        'model.decoder.features': (400,), 'model.decoder.activation': 'gelu',
        'optim.model.name': 'adamw', 'optim.model.options.weight_decay': 0.05,
        'optim.model.schedule.init_value': 3e-3, 'optim.model.ema_decay': 0.999,
        'eval_every_steps': 20_000, 'checkpoint_every_steps': 5000, 'log_every_steps': 1000, 'eval.k': 32,
        'eval.extractor': '',  # the set has no labels, and samples are means, which binary images are not
    },
    # Convolutional, residual, with group normalization.
    'conv': {
        'model.kind': 'conv', 'model.latent_dim': 32, 'steps_per_call': 20,
        'model.encoder': {
            'features': (32, 64), 'block': 'residual', 'norm': 'group', 'activation': 'silu', 'spectral': False,
            'attention': 0, 'depth': 1,
        },
        'model.decoder': {
            'features': (64, 32), 'block': 'residual', 'norm': 'group', 'activation': 'silu', 'spectral': False,
            'attention': 0, 'depth': 1,
        },
    },
    # What follows goes with any data: `binarized_mnist,iwae` is the first network of Burda et al. 2016.
    'iwae': {
        'task.k': 5, 'model.latent_dim': 50, 'batch_size': 100,
        'model.encoder.features': (200, 200), 'model.encoder.activation': 'tanh',
        'model.decoder.features': (200, 200), 'model.decoder.activation': 'tanh',
        'optim.model.schedule.init_value': 1e-3,
    },
    # On top of `iwae`: their second, with 100 and 50 latent variables.
    'two_layers': {
        'model.stochastic_layers': 2, 'model.latent_dim': 100, 'model.second.latent_dim': 50,
        'model.second.features': (100, 100), 'model.second.activation': 'tanh',
    },
    # 500 pseudo-inputs (Tomczak & Welling 2018), which begin as training examples.
    'vamp': {'model.prior': 'vamp', 'model.pseudo_inputs': 500},
    # A RealNVP of 6 couplings as the prior, of codes that have the same dimension.
    'flow_prior': {'model.prior': 'flow', 'model.flow.layers': 6, 'model.flow.features': (128, 128)},
    # The article's network.
    'article': {'model.latent_dim': 2, 'model.encoder.features': (128, 64), 'model.decoder.features': (64, 128)},
}  # fmt: skip
