"""The peers of bench.py's convolutional workload: a DCGAN in PyTorch, in both layouts, and in Keras."""

import numpy as np
from bench_peers import batches, flat
from bench_workloads import Contender, Examples

LATENT = 64
BETAS = 0.5, 0.999


def images(data_file: str) -> np.ndarray:
    """(N, 28, 28, 1) float32 in [−1, 1]."""
    return (flat(data_file) * 2 - 1).reshape(-1, 28, 28, 1)


def pytorch(workload: Examples, data_file: str, how: str) -> Contender:
    """how: 'contiguous', 'channels_last', or 'compiled', which is the latter with its losses compiled."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    layout = torch.contiguous_format if how == 'contiguous' else torch.channels_last
    compile_ = torch.compile if how == 'compiled' else lambda f: f
    G = nn.Sequential(
        nn.Linear(LATENT, 6272, bias=False), nn.Unflatten(1, (128, 7, 7)), nn.BatchNorm2d(128), nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Tanh(),
    ).to(memory_format=layout)  # fmt: skip
    D = nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(6272, 1),
    ).to(memory_format=layout)  # fmt: skip
    data = torch.from_numpy(images(data_file)).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    adam_G, adam_D = (torch.optim.Adam(n.parameters(), workload.learning_rate, BETAS, fused=True) for n in (G, D))

    def noise():
        return torch.randn(workload.batch_size, LATENT)

    def update(adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    @compile_
    def loss_D(x, z):
        with torch.no_grad():
            fake = G(z)
        return F.softplus(-D(x)[:, 0]).mean() + F.softplus(D(fake)[:, 0]).mean()

    @compile_
    def loss_G(z):
        return F.softplus(-D(G(z))).mean()

    feed = batches(torch, data, workload.batch_size)

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = update(adam_D, loss_D(next(feed), noise()))
            D.requires_grad_(False)  # no gradients of D's weights in G's turn
            update(adam_G, loss_G(noise()))
            D.requires_grad_(True)
        return loss.item()

    return Contender(run, sum(p.numel() for network in (G, D) for p in network.parameters()))


def keras(workload: Examples, data_file: str, steps_per_execution: int) -> Contender:
    """`fit` of a Model with its own train_step on a tf.data pipeline in memory, as Keras's guides have it."""
    import keras
    import tensorflow as tf
    from keras import layers

    x, batch_size = images(data_file), workload.batch_size

    # With Keras's own initial values and ε the game goes another way: D loses its lead within the steps of the check.
    normal = lambda fan_in: keras.initializers.RandomNormal(stddev=fan_in**-0.5)
    norm = lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-5)

    def conv(kind, channels, features, **more):
        initial = normal(16 * channels)
        return kind(features, 4, strides=2, padding='same', kernel_initializer=initial, **more)

    def dense(fan_in, features, **more):
        return layers.Dense(features, kernel_initializer=normal(fan_in), **more)

    up, down = layers.Conv2DTranspose, layers.Conv2D
    G = keras.Sequential([
        layers.Input((LATENT,)), dense(LATENT, 6272, use_bias=False), layers.Reshape((7, 7, 128)), norm(),
        layers.ReLU(), conv(up, 128, 64, use_bias=False), norm(), layers.ReLU(), conv(up, 64, 1, activation='tanh'),
    ])  # fmt: skip
    D = keras.Sequential([
        layers.Input((28, 28, 1)), conv(down, 1, 64), layers.LeakyReLU(0.2), conv(down, 64, 128, use_bias=False),
        norm(), layers.LeakyReLU(0.2), layers.Flatten(), dense(6272, 1),
    ])  # fmt: skip
    adam = {}
    for network in (G, D):
        adam[network] = keras.optimizers.Adam(workload.learning_rate, BETAS[0], BETAS[1], epsilon=1e-8)
        adam[network].build(network.trainable_variables)

    def update(network, tape, loss):
        variables = network.trainable_variables
        adam[network].apply(tape.gradient(loss, variables), variables)

    class Model(keras.Model):
        def train_step(self, x):
            noise = lambda: tf.random.normal((batch_size, LATENT))
            fake = G(noise(), training=True)
            with tf.GradientTape() as tape:
                real, fake = D(x, training=True), D(fake, training=True)
                loss = tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))
            update(D, tape, loss)
            with tf.GradientTape() as tape:
                loss_G = tf.reduce_mean(tf.nn.softplus(-D(G(noise(), training=True), training=True)))
            update(G, tape, loss_G)
            return {'last': loss}

    model = Model()
    model.networks, model.built = (G, D), True
    model.compile(steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x)).repeat().batch(batch_size, drop_remainder=True)
    data = data.prefetch(tf.data.AUTOTUNE)

    def run(steps: int) -> float:
        return float(model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0).history['last'][-1])

    count = sum(int(np.prod(v.shape)) for network in (G, D) for v in network.trainable_variables)
    return Contender(run, count, steps_per_execution)
