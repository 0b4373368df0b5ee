"""What bench.py measures on a GPU, the most important first: where the time is up the rest is left out."""

from bench_workloads import ADAM, GENERATE, Generation, Images, Seeds, Text, Workload, images, points


def gpt(layers: int, heads: int, width: int, block: int, batch_size: int, precision: str, **more) -> Text:
    short = {'bfloat16': 'bfloat16', 'float32': 'float32 (TF32)'}[precision]
    largest = ', the batch doubled while it fits' if more.get('largest') else ''
    title = f'GPT-2 {layers}×{heads}×{width}, block {block}, batch {batch_size}{largest}, {short}'
    return Text(
        title, 'gpt.py:nanogpt', None, None, batch_size, check_steps=20, unit=5, vocab_size=65, block=block,
        layers=layers, width=width, heads=heads, precision=precision, **more,
    )  # fmt: skip


def lstm(vocab_size: int, batch_size: int, precision: str) -> Text:
    title = f'LSTM 512, 64 steps, batch {batch_size}, vocabulary {vocab_size:,}, {precision}'
    return Text(
        title, 'rnn_lm.py:shakespeare', None, None, batch_size, check_steps=60, unit=10, vocab_size=vocab_size,
        block=64, layers=1, width=512, precision=precision,
    )  # fmt: skip


def gan(kind: str, side: int, channels: int, features: tuple[int, ...], batch_size: int, precision: str) -> Images:
    title = f'{kind.upper()} {side}×{side}×{channels}, features {features}, batch {batch_size}, {precision}'
    return Images(
        title, f'gan.py:{kind}', None, None, batch_size, 20, 10, side, channels, features, precision,
    )  # fmt: skip


def generate(batch_size: int) -> Generation:
    fields = {**GENERATE, 'layers': 6, 'width': 384, 'heads': 6}
    title = f'GPT-2 6×6×384 writes 200 tokens after 32, batch {batch_size}'
    return Generation(title, 'gpt.py:nanogpt,gpt2', None, None, batch_size=batch_size, **fields)


SMALL, MIDDLE, LARGE = (6, 6, 384, 256), (12, 12, 768, 1024), (24, 16, 1024, 1024)
WIDE = 512, 256, 128, 64
_MLP = {
    'vae': {'model.latent_dim': 2, 'model.encoder.features': (128, 64), 'model.decoder.features': (64, 128)},
    'gan': {
        'model.latent_dim': 2, 'model.generator.features': (128, 64), 'model.discriminator.features': (128, 64),
        'task.loss': 'nonsaturating', 'task.r1': 0.0, 'task.r2': 0.0, 'optim.generator.ema_decay': 0.0,
        'optim.generator.options': ADAM, 'optim.discriminator.options': ADAM,
    },
}  # fmt: skip
GPU_WORKLOADS: dict[str, Workload] = {
    'gpu_gpt_768': gpt(*MIDDLE, 16, 'bfloat16'),
    'gpu_gpt_384': gpt(*SMALL, 64, 'bfloat16'),
    'gpu_gpt_1024': gpt(*LARGE, 8, 'bfloat16'),
    'gpu_dcgan_64': gan('dcgan', 64, 3, WIDE, 128, 'float32'),
    'gpu_r3gan_64': gan('r3gan', 64, 3, WIDE, 128, 'float32'),
    'gpu_lstm': lstm(64, 128, 'float32'),
    'gpu_generate_1': generate(1),
    'gpu_generate_32': generate(32),
    'gpu_generate_256': generate(256),
    'gpu_gan_seeds': Seeds(
        'GAN, D 2-128-64-1 and G 2-128-64-2 in turn, batch 256, seeds in one program', 'gan.py', 17_475, None, 256,
        200, 100, points, 100_000, _MLP['gan'],
    ),
    'gpu_vae_seeds': Seeds(
        'VAE 784-128-64-2, Bernoulli, batch 128, seeds in one program', 'vae.py', 218_644, None, 128, 200, 100, images,
        60_000, _MLP['vae'],
    ),
    'gpu_dcgan_28': gan('dcgan', 28, 1, (128, 64), 64, 'float32'),
    'gpu_r3gan_28': gan('r3gan', 28, 1, (64, 32), 64, 'float32'),
    'gpu_gpt_768_largest': gpt(*MIDDLE, 32, 'bfloat16', largest=True),
    'gpu_gpt_384_f32': gpt(*SMALL, 64, 'float32'),
    'gpu_gpt_768_f32': gpt(*MIDDLE, 8, 'float32'),
    'gpu_dcgan_64_bf16': gan('dcgan', 64, 3, WIDE, 128, 'bfloat16'),
    'gpu_r3gan_64_bf16': gan('r3gan', 64, 3, WIDE, 128, 'bfloat16'),
    'gpu_lstm_bf16': lstm(64, 128, 'bfloat16'),
    'gpu_lstm_10000': lstm(10_000, 128, 'float32'),
    'gpu_gpt_384_largest': gpt(*SMALL, 256, 'bfloat16', largest=True),
    'gpu_gpt_1024_largest': gpt(*LARGE, 16, 'bfloat16', largest=True),
}  # fmt: skip
