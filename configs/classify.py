"""Classes of images, told by a fully connected or a convolutional network.

    python -m aigc_jax.main --config=configs/classify.py --workdir=runs/digits
    python -m aigc_jax.main --config=configs/classify.py:lenet --config.data.name=idx:DIR --workdir=runs/lenet
    python -m aigc_jax.main --config=configs/classify.py --config.init.run=runs/digits --config.prune.keep=0.1 \
        --workdir=runs/pruned

The first trains on scikit-learn's 8×8 digits, and the last keeps a tenth of its weights and trains these on. DIR holds
the four files of MNIST.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=2000,
            steps_per_call=100,
            log_every_steps=100,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            batch_size=60,
            optim=dict(
                model=dict(name='adam', schedule=dict(name='constant_schedule', value=1.2e-3)),
            ),
            data=dict(name='digits'),
            model=dict(classifier=dict(features=(300, 100), activation='relu', bias_init='zeros')),
            task=dict(name='classify'),
            eval=dict(best_metric='nats', extractor=''),
        )
    )


VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 10, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'model.classifier.features': (16,), 'data.num_examples': 1000,
    },
    'mnist': {'data.name': 'tfds:mnist', 'data.valid_examples': 5000, 'total_steps': 20_000, 'eval_every_steps': 1000},
    # LeNet-300-100 as Frankle & Carbin (2019, figure 2) train it on MNIST.
    'lenet': {
        'data.name': 'tfds:mnist', 'data.valid_examples': 5000, 'total_steps': 50_000, 'eval_every_steps': 1000,
        'checkpoint_every_steps': 5000, 'model.classifier.kernel_init': 'glorot_normal',
    },
    # Convolutional, residual, with batch normalization.
    'conv': {
        'model.kind': 'conv', 'steps_per_call': 20,
        'model.classifier': {
            'features': (16, 32), 'block': 'residual', 'norm': 'batch', 'activation': 'relu', 'spectral': False,
            'attention': 0, 'depth': 1,
        },
    },
}  # fmt: skip
