"""The peers of bench.py that are no language models: the VAE and the GAN in PyTorch and in Keras, and prdc."""

import functools

import numpy as np
from bench_workloads import DEVICE, Contender, Examples, Sets


def flat(data_file: str) -> np.ndarray:
    """What the peers train on, (N, D) float32: images are scaled to [0, 1] once, not in each step."""
    x = np.load(data_file)['train']
    return x.reshape(len(x), -1).astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)


def batches(torch, data, batch_size: int):
    """Shuffled batches of a tensor, without end."""
    while True:
        for index in torch.randperm(len(data), device=data.device).split(batch_size)[: len(data) // batch_size]:
            yield data[index]


def pytorch(workload: Examples, data_file: str, compiled: bool) -> Contender:
    """A plain loop over a tensor in memory, indexed by a permutation; fused Adam; the losses compiled, or not."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    data, batch_size = torch.from_numpy(flat(data_file)).to(DEVICE), workload.batch_size
    compile_ = torch.compile if compiled else lambda f: f
    noise = functools.partial(torch.randn, batch_size, 2, device=DEVICE)

    def mlp(activation, *sizes):
        layers = [[nn.Linear(a, b), activation()] for a, b in zip(sizes, sizes[1:], strict=False)]
        return nn.Sequential(*sum(layers, [])[:-1]).to(DEVICE)

    def updater(b1, *networks):
        parameters = [p for network in networks for p in network.parameters()]
        adam = torch.optim.Adam(parameters, workload.learning_rate, (b1, 0.999), fused=True)

        def update(loss):
            adam.zero_grad()
            loss.backward()
            adam.step()
            return loss.detach()

        return update

    def vae():
        encoder, decoder = mlp(nn.ReLU, 784, 128, 64, 4), mlp(nn.ReLU, 2, 64, 128, 784)

        @compile_
        def negative_elbo(x, epsilon):  # noise drawn inside a compiled function is slower
            mu, log_var = encoder(x).chunk(2, dim=1)
            logits = decoder(mu + torch.exp(0.5 * log_var) * epsilon)
            reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction='sum')
            return (reconstruction + 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum()) / batch_size

        update = updater(0.9, encoder, decoder)
        return (lambda x: update(negative_elbo(x, noise()))), encoder, decoder

    def gan():
        G, D = mlp(nn.LeakyReLU, 2, 128, 64, 2), mlp(nn.LeakyReLU, 2, 128, 64, 1)
        update_G, update_D = updater(0.5, G), updater(0.5, D)

        @compile_
        def loss_D(x, z):
            with torch.no_grad():
                fake = G(z)
            real, fake = D(torch.cat([x, fake])).chunk(2)  # one pass is faster than two
            return F.softplus(-real).mean() + F.softplus(fake).mean()

        @compile_
        def loss_G(z):
            return F.softplus(-D(G(z))).mean()

        def step(x):
            loss = update_D(loss_D(x, noise()))
            D.requires_grad_(False)  # no gradients of D's weights in G's turn
            update_G(loss_G(noise()))
            D.requires_grad_(True)
            return loss

        return step, G, D

    (step, *networks) = {'vae': vae, 'gan': gan}[workload.config.partition('.')[0]]()
    feed = batches(torch, data, batch_size)

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = step(next(feed))
        return loss.item()

    return Contender(run, sum(p.numel() for network in networks for p in network.parameters()))


def keras(workload: Examples, data_file: str, steps_per_execution: int) -> Contender:
    """`fit` of a Model with its own train_step on a tf.data pipeline in memory, as Keras's guides have it."""
    import keras
    import tensorflow as tf
    from keras import layers

    x, batch_size = flat(data_file), workload.batch_size

    def mlp(activation, *sizes):
        hidden = [layers.Dense(size, activation=activation) for size in sizes[1:-1]]
        return keras.Sequential([layers.Input((sizes[0],)), *hidden, layers.Dense(sizes[-1])])

    def updater(b1, *networks):
        variables = [v for network in networks for v in network.trainable_variables]
        adam = keras.optimizers.Adam(workload.learning_rate, beta_1=b1, beta_2=0.999)
        adam.build(variables)
        return lambda tape, loss: adam.apply(tape.gradient(loss, variables), variables)

    def vae():
        encoder, decoder = mlp('relu', 784, 128, 64, 4), mlp('relu', 2, 64, 128, 784)
        update = updater(0.9, encoder, decoder)

        def step(x):
            with tf.GradientTape() as tape:
                mu, log_var = tf.split(encoder(x, training=True), 2, axis=1)
                logits = decoder(mu + tf.exp(0.5 * log_var) * tf.random.normal((batch_size, 2)), training=True)
                reconstruction = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits))
                kl = 0.5 * tf.reduce_sum(mu**2 + tf.exp(log_var) - log_var - 1)
                loss = (reconstruction + kl) / batch_size
            update(tape, loss)
            return loss

        return step, encoder, decoder

    def gan():
        leaky_relu = functools.partial(tf.nn.leaky_relu, alpha=0.01)  # Keras's own slope is 0.2
        G, D = mlp(leaky_relu, 2, 128, 64, 2), mlp(leaky_relu, 2, 128, 64, 1)
        update_G, update_D = updater(0.5, G), updater(0.5, D)

        def step(x):
            fake = G(tf.random.normal((batch_size, 2)))
            with tf.GradientTape() as tape:
                real, fake = tf.split(D(tf.concat([x, fake], axis=0), training=True), 2)
                loss = tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))
            update_D(tape, loss)
            with tf.GradientTape() as tape:
                fake = G(tf.random.normal((batch_size, 2)), training=True)
                loss_G = tf.reduce_mean(tf.nn.softplus(-D(fake)))
            update_G(tape, loss_G)
            return loss

        return step, G, D

    step, *networks = {'vae': vae, 'gan': gan}[workload.config.partition('.')[0]]()

    class Model(keras.Model):
        def train_step(self, x):
            return {'last': step(x)}

    model = Model()
    model.networks, model.built = networks, True
    model.compile(steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x)).repeat().batch(batch_size, drop_remainder=True)
    data = data.prefetch(tf.data.AUTOTUNE)

    def run(steps: int) -> float:
        return float(model.fit(data, epochs=1, steps_per_epoch=steps, verbose=0).history['last'][-1])

    return Contender(run, sum(network.count_params() for network in networks), steps_per_execution)


def prdc(workload: Sets, data_file: str) -> Contender:
    """The package of Naeem et al. 2020, which holds the matrices of all distances."""
    from prdc import compute_prdc

    sets = np.load(data_file)
    real, fake = sets['real'], sets['fake']

    def run(steps: int) -> float:
        for _ in range(steps):
            found = compute_prdc(real, fake, 5)
        return found['density']

    return Contender(run, 0)
