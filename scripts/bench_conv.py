"""The peers of bench.py's convolutional workloads: a DCGAN and an R3GAN in PyTorch, and a DCGAN in Keras."""

import contextlib

import numpy as np
from bench_peers import batches, flat
from bench_workloads import DEVICE, Contender, Images

LATENT = 64
BETAS = {'dcgan': (0.5, 0.999), 'r3gan': (0.0, 0.99)}


def images(workload: Images, data_file: str) -> np.ndarray:
    """(N, side, side, channels) float32 in [−1, 1]."""
    return (flat(data_file) * 2 - 1).reshape(-1, workload.side, workload.side, workload.channels)


def dcgan(workload: Images):
    """G and D: convolutions 4×4 of stride 2, batch normalization (Radford et al. 2016)."""
    from torch import nn

    features, start = workload.features, workload.side >> len(workload.features)
    flat_size = features[0] * start**2
    G = [nn.Linear(LATENT, flat_size, bias=False), nn.Unflatten(1, (features[0], start, start))]
    G += [nn.BatchNorm2d(features[0]), nn.ReLU()]
    for before, after in zip(features, features[1:], strict=False):
        G += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    G += [nn.ConvTranspose2d(features[-1], workload.channels, 4, 2, 1), nn.Tanh()]
    back = features[::-1]
    D = [nn.Conv2d(workload.channels, back[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for before, after in zip(back, back[1:], strict=False):
        D += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*G), nn.Sequential(*D, nn.Flatten(), nn.Linear(flat_size, 1))


def r3gan(workload: Images):
    """G and D of blocks without normalization, 1×1, grouped 3×3 and 1×1 (Huang et al. 2024)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    features, start = workload.features, workload.side >> len(workload.features)
    flat_size = features[0] * start**2

    class Blur(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            taps = torch.tensor([0.25, 0.5, 0.25])
            self.register_buffer('kernel', (taps[:, None] * taps).expand(channels, 1, 3, 3).contiguous())

        def forward(self, x):
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode='replicate'), self.kernel.to(x.dtype), groups=x.shape[1])

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    def block(before, after):
        inner = 2 * after
        last = nn.Conv2d(inner, after, 1, bias=False)
        nn.init.zeros_(last.weight)
        groups = max(inner // 16, 1) if inner % 16 == 0 else 1
        layers = [nn.Conv2d(before, after, 1, bias=False)] * (before != after)
        return layers + [Residual(
            nn.Conv2d(after, inner, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(inner, inner, 3, padding=1, groups=groups), nn.LeakyReLU(0.2), last,
        )]  # fmt: skip

    G, before = [nn.Linear(LATENT, flat_size), nn.Unflatten(1, (features[0], start, start))], features[0]
    for after in features:
        G += [nn.Upsample(scale_factor=2), Blur(before), *block(before, after)]
        before = after
    G += [nn.LeakyReLU(0.2), nn.Conv2d(before, workload.channels, 3, padding=1), nn.Tanh()]
    D, before = [], workload.channels
    for after in features[::-1]:
        D += [*block(before, after), Blur(after), nn.AvgPool2d(2)]
        before = after
    return nn.Sequential(*G), nn.Sequential(*D, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(flat_size, 1))


def pytorch(workload: Images, data_file: str, layout: str, compiled: str | None = None) -> Contender:
    """layout: 'contiguous' or 'channels_last'; compiled: torch.compile's mode for the losses; bfloat16 by autocast."""
    import torch
    from torch.nn import functional as F

    kind = workload.config.partition(':')[2]
    layout = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}[layout]
    compile_ = (lambda f: torch.compile(f, mode=compiled)) if compiled else lambda f: f
    G, D = (network.to(DEVICE, memory_format=layout) for network in {'dcgan': dcgan, 'r3gan': r3gan}[kind](workload))
    data = torch.from_numpy(images(workload, data_file)).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(DEVICE)
    adams = (torch.optim.Adam(n.parameters(), workload.learning_rate, BETAS[kind], fused=True) for n in (G, D))
    adam_G, adam_D = adams
    half = workload.precision == 'bfloat16'
    cast = (lambda: torch.autocast(DEVICE, torch.bfloat16)) if half else contextlib.nullcontext

    def noise():
        return torch.randn(workload.batch_size, LATENT, device=DEVICE)

    def judge(x):
        with cast():
            return D(x)[:, 0].float()

    def make(z):
        with cast():
            return G(z).float()

    def update(adam, loss):
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    def penalized(x):
        """D(x), and the mean squared length of its gradient."""
        x = x.detach().requires_grad_()
        logits = judge(x)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return logits, gradient.square().sum((1, 2, 3)).mean()

    @compile_
    def loss_D(x, z):
        with torch.no_grad():
            fake = make(z)
        if kind == 'dcgan':
            return F.softplus(-judge(x)).mean() + F.softplus(judge(fake)).mean()
        (real, r1), (fake, r2) = penalized(x), penalized(fake)
        return F.softplus(fake - real).mean() + (r1 + r2) / 2

    @compile_
    def loss_G(x, z):
        fake = judge(make(z))
        if kind == 'dcgan':
            return F.softplus(-fake).mean()
        return F.softplus(judge(x) - fake).mean()

    feed = batches(torch, data, workload.batch_size)

    def run(steps: int) -> float:
        for _ in range(steps):
            x = next(feed)
            loss = update(adam_D, loss_D(x, noise()))
            D.requires_grad_(False)  # no gradients of D's weights in G's turn
            update(adam_G, loss_G(x, noise()))
            D.requires_grad_(True)
        return loss.item()

    return Contender(run, sum(p.numel() for network in (G, D) for p in network.parameters()))


def keras(workload: Images, data_file: str, steps_per_execution: int) -> Contender:
    """`fit` of a Model with its own train_step on a tf.data pipeline in memory, as Keras's guides have it."""
    import keras
    import tensorflow as tf
    from keras import layers

    x, batch_size = images(workload, data_file), workload.batch_size

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
        adam[network] = keras.optimizers.Adam(workload.learning_rate, *BETAS['dcgan'], epsilon=1e-8)
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
