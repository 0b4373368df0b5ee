"""What bench.py measures: the workloads, their data, and what a contender gives."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FIRST_LETTER = 0x4E00  # token i of a text is this letter plus i: more letters follow than any vocabulary has tokens
PROMPT, NEW_TOKENS = 32, 200
ON_GPU = os.environ.get('BENCH_PLATFORM') == 'gpu'  # bench.py sets it for the process of a contender
DEVICE = 'cuda' if ON_GPU else 'cpu'  # PyTorch's name


class Contender(NamedTuple):
    """run(steps), for a multiple of steps_per_call, does that many; score(what it returned) is the last one's loss.

    peak() -> FLOP/s that its library's matrix product reaches here in the precision of the workload, measured now.
    seeds: how many models a step trains at once. memory() -> bytes, where it is not what the process has held at most.
    """

    run: Callable[[int], Any]
    parameters: int
    steps_per_call: int = 1
    score: Callable[[Any], float] = float
    peak: Callable[[], float] | None = None
    seeds: int = 1
    memory: Callable[[], float] | None = None


@dataclasses.dataclass(frozen=True)
class Workload:
    """config: ours, FILE:VARIANT in configs/; parameters: how many; loss: what it comes to after check_steps, in nats.
    Where these two are None they are what the first contender has, and the others are compared with it.

    unit: steps, which every contender's steps a call divide; counted: what a step has items_per_step of.
    """

    title: str
    config: str
    parameters: int | None
    loss: float | None
    batch_size: int
    check_steps: int
    unit: int
    learning_rate = 1e-3
    tolerance = 0.05  # of the loss
    counted, items_per_step = 'steps', 1
    flops = 0.0

    def known(self, facts: dict) -> 'Workload':
        """With what a contender has in place of what is None."""
        return dataclasses.replace(
            self,
            parameters=facts['parameters'] if self.parameters is None else self.parameters,
            loss=facts['loss'] if self.loss is None else self.loss,
        )

    def tiny(self) -> 'Workload':
        """The same work in a size that a test can afford; what it learns is not checked."""
        return dataclasses.replace(self, check_steps=self.unit, parameters=None, loss=None)


@dataclasses.dataclass(frozen=True)
class Examples(Workload):
    """data(num_examples) -> array; overrides: what differs from the config."""

    data: Callable[[int], np.ndarray]
    num_examples: int
    overrides: dict[str, Any]
    tolerance: float = 0.05
    suffix = 'npz'

    def write(self, path: str, num_examples: int | None = None) -> str:
        """Writes the examples as a file that `data.name=npz:FILE` reads; returns its path."""
        x = self.data(num_examples or self.num_examples)
        np.savez(path, train=x, valid=x[:200], test=x[:200])
        return path

    def tiny(self) -> 'Examples':
        return dataclasses.replace(super().tiny(), num_examples=1000)


@dataclasses.dataclass(frozen=True)
class Seeds(Examples):
    """As many models as the contenders say are trained in one program, without peers."""

    counted = 'steps of one seed'


@dataclasses.dataclass(frozen=True)
class Images(Workload):
    """A GAN of images (side, side, channels). features: of the generator, level by level; the discriminator has them
    the other way round."""

    side: int
    channels: int
    features: tuple[int, ...]
    precision: str = 'float32'
    tolerance: float = math.inf  # where a player wins, its loss says little
    num_examples: int = 20_000
    suffix = 'npz'

    def write(self, path: str, num_examples: int | None = None) -> str:
        """Writes the images as a file that `data.name=npz:FILE` reads; returns its path."""
        x = images(num_examples or self.num_examples, self.side, self.channels)
        np.savez(path, train=x, valid=x[:200], test=x[:200])
        return path

    @property
    def overrides(self) -> dict[str, Any]:
        return {
            'model.generator.features': self.features, 'model.discriminator.features': self.features[::-1],
            'optim.generator.ema_decay': 0.0, 'precision': self.precision,
        }  # fmt: skip

    def tiny(self) -> 'Images':
        # As many levels as there are, since the side stays what it is.
        few = tuple(min(features, 16) for features in self.features)
        return dataclasses.replace(super().tiny(), features=few, batch_size=4, unit=2, check_steps=2, num_examples=500)


@dataclasses.dataclass(frozen=True)
class Text(Workload):
    """A language model of tokens, Zipf-distributed, of which every other one is a function of the one before it."""

    vocab_size: int
    block: int
    layers: int
    width: int
    heads: int = 0  # 0: an LSTM
    precision: str = 'float32'
    largest: bool = False  # the batch is doubled for each contender while it fits
    counted = 'tokens'
    suffix = 'txt'

    def write(self, path: str, num_tokens: int = 1_000_000) -> str:
        """Writes the text as a file that `data.name=text:FILE` reads by characters; returns its path."""
        rng = np.random.default_rng(0)
        follower = rng.permutation(self.vocab_size).tolist()
        frequency = 1 / np.arange(1, self.vocab_size + 1)
        drawn = rng.choice(self.vocab_size, num_tokens, p=frequency / frequency.sum()).tolist()
        follows = (rng.random(num_tokens) < 0.5).tolist()
        tokens = list(range(self.vocab_size))  # each occurs
        for i in range(num_tokens):
            tokens.append(follower[tokens[-1]] if follows[i] else drawn[i])
        with open(path, 'w', encoding='utf-8') as file:
            file.write(''.join(chr(FIRST_LETTER + token) for token in tokens))
        return path

    @property
    def overrides(self) -> dict[str, Any]:
        model = {'layers': self.layers, 'features': self.width}
        if self.heads:
            model = {'layers': self.layers, 'width': self.width, 'mlp_width': 4 * self.width,
                     'heads': self.heads, 'kv_heads': self.heads}  # fmt: skip
        data = dict.fromkeys(('data.block', 'data.eval_block', 'data.eval_stride'), self.block)
        return {**data, 'precision': self.precision} | {f'model.{k}': v for k, v in model.items()}

    def tiny(self) -> 'Text':
        small = dict(vocab_size=11, width=16, layers=1, batch_size=4, check_steps=2, unit=2, heads=self.heads and 2)
        return dataclasses.replace(super().tiny(), **small, block=min(self.block, 64))

    @property
    def items_per_step(self) -> int:
        return self.batch_size * self.block

    @property
    def flops(self) -> float:
        """Of a training step: 6 for each weight of a product and token, and of attention 12 · layers · width · block.

        As PaLM (Chowdhery et al. 2022, appendix B) counts them: nothing is taken off for causality or for what is
        recomputed. A tied embedding is counted as the head; a table that is only looked up is not.
        """
        looked_up = (self.block if self.heads else self.vocab_size) * self.width
        attention = 12 * self.layers * self.width * self.block if self.heads else 0
        return self.items_per_step * (6 * (self.parameters - looked_up) + attention) if self.parameters else 0.0


@dataclasses.dataclass(frozen=True)
class Generation(Text):
    """A step writes NEW_TOKENS after each of batch_size prompts of PROMPT tokens, by sampling from the whole softmax.

    The networks are not trained. Their matrices are SCALE times as large as they are drawn, so that what is written is
    far from uniform, and how likely it is tells whether the network is the same.
    """

    SCALE = 10.0
    tolerance = 0.25  # every contender has drawn a network of its own
    flops = 0.0

    def tiny(self) -> 'Generation':
        return dataclasses.replace(super().tiny(), block=self.block, unit=1, check_steps=1)

    @property
    def items_per_step(self) -> int:
        return self.batch_size * NEW_TOKENS


@dataclasses.dataclass(frozen=True)
class Compressed(Generation):
    """The same by models that are compressed in several ways, which are neither as large nor write the same."""

    @property
    def overrides(self) -> dict[str, Any]:
        return super().overrides | {'data.tokenizer': 'char', 'model.zero_init': False}

    def known(self, facts: dict[str, Any]) -> 'Compressed':
        return self


@dataclasses.dataclass(frozen=True)
class Sets(Workload):
    """A step compares two sets of as many features: all pairs of them. metric: of aigc_jax.metrics.images."""

    metric: str
    num_features: int = 128
    tolerance = 1e-9
    counted = 'pairs'
    suffix = 'npz'

    def write(self, path: str, num_examples: int | None = None) -> str:
        """Writes them as arrays `real` and `fake`, which is a little narrower; returns the path."""
        size = num_examples or self.batch_size, self.num_features
        real, fake = np.random.default_rng(0).normal(size=(2, *size))
        np.savez(path, real=real, fake=0.95 * fake)
        return path

    @property
    def items_per_step(self) -> int:
        return self.batch_size**2

    def tiny(self) -> 'Sets':
        return dataclasses.replace(super().tiny(), batch_size=200, num_features=8)


def fastest(timed: Callable[[int], float]) -> float:
    """FLOP/s of the fastest n × n matrix product of some, timed(n) in seconds.

    n grows from 256 to 2048, or 16,384 on a GPU, while a product takes less than a tenth of a second: without
    instructions for bfloat16 the larger ones would take minutes.
    """
    n = 256
    while n < (16_384 if ON_GPU else 2048) and timed(n) < 0.1:
        n *= 2
    return 2 * n**3 / min(timed(n) for _ in range(5))


def images(num: int, side: int = 28, channels: int = 1) -> np.ndarray:
    """(num, side, side), or with an axis of channels, uint8: logistic functions of two factors, for a 2-D latent to
    find."""
    rng, size = np.random.default_rng(0), side * side * channels
    weights, bias = rng.normal(size=(2, size)), rng.normal(size=size)
    logits = (rng.normal(size=(num, 2)) @ weights + bias).astype(np.float32)
    shape = (num, side, side) if channels == 1 else (num, side, side, channels)
    return np.round(255 / (1 + np.exp(-logits))).astype(np.uint8).reshape(shape)


def points(num: int) -> np.ndarray:
    """(num, 2) float32, far from the origin: D's loss comes to 2 log 2 only after G has moved there."""
    return np.random.default_rng(0).normal((6.0, -4.0), (1.0, 0.5), (num, 2)).astype(np.float32)


ADAM = {'b1': 0.5, 'b2': 0.999}
SMALL = dict(vocab_size=65, block=64, layers=4, width=128, heads=4, batch_size=12, check_steps=300, unit=10)
LARGE = dict(vocab_size=65, block=256, layers=6, width=384, heads=6, batch_size=8, check_steps=60, unit=5)
LSTM = dict(block=64, layers=1, width=512, batch_size=32, unit=10)
GENERATE = dict(vocab_size=65, block=256, layers=4, width=128, heads=4, check_steps=1, unit=1)
SETS = dict(config='', parameters=0, batch_size=10_000, check_steps=1, unit=1)
WORKLOADS = {
    'vae': Examples(
        'VAE 784-128-64-2, Bernoulli, batch 128', 'vae.py', 218_644, 403.0, 128, 2000, 100, images, 60_000,
        {'model.latent_dim': 2, 'model.encoder.features': (128, 64), 'model.decoder.features': (64, 128)},
    ),
    'gan': Examples(
        'GAN, D 2-128-64-1 and G 2-128-64-2 in turn, batch 256', 'gan.py', 17_475, 2 * math.log(2), 256, 2000, 100,
        points, 100_000,
        {
            'model.latent_dim': 2, 'model.generator.features': (128, 64), 'model.discriminator.features': (128, 64),
            'task.loss': 'nonsaturating', 'task.r1': 0.0, 'task.r2': 0.0, 'optim.generator.ema_decay': 0.0,
            'optim.generator.options': ADAM, 'optim.discriminator.options': ADAM,
        },
    ),
    'dcgan': Images(
        'DCGAN 28×28: G 64-7·7·128-64-1 and D mirrored, batch normalization, batch 64', 'gan.py:dcgan', 672_578, 0.1,
        64, 100, 10, 28, 1, (128, 64), tolerance=0.9,  # D wins, so its loss says little
    ),
    'gpt_small': Text('GPT-2 4×4×128, block 64, batch 12, float32', 'gpt.py:nanogpt', 804_096, 2.41, **SMALL),
    'gpt_small_bf16': Text(
        'GPT-2 4×4×128, block 64, batch 12, bfloat16', 'gpt.py:nanogpt', 804_096, 2.41, precision='bfloat16', **SMALL
    ),
    'gpt': Text('GPT-2 6×6×384, block 256, batch 8, float32', 'gpt.py:nanogpt', 10_745_088, 2.42, **LARGE),
    'gpt_bf16': Text(
        'GPT-2 6×6×384, block 256, batch 8, bfloat16', 'gpt.py:nanogpt', 10_745_088, 2.42, precision='bfloat16', **LARGE
    ),
    'lstm': Text(
        'LSTM 512, 64 steps, batch 32, vocabulary 64', 'rnn_lm.py:shakespeare', 2_164_736, 2.44, vocab_size=64,
        check_steps=200, **LSTM,
    ),
    'lstm_10000': Text(
        'LSTM 512, 64 steps, batch 32, vocabulary 10,000', 'rnn_lm.py:shakespeare', 12_339_200, 7.46, vocab_size=10_000,
        check_steps=60, **LSTM,
    ),
    'prdc': Sets(
        'Precision, recall, density and coverage of 10,000 and 10,000 features of 128', loss=3.37442, metric='prdc',
        **SETS,
    ),
    'frechet': Sets('Fréchet distance of the same', loss=1.1163213776, metric='frechet_distance', **SETS),
    'generate': Generation(
        'GPT-2 4×4×128 writes 200 tokens after 32, batch 1', 'gpt.py:nanogpt,gpt2', 834_432, 2.45, batch_size=1,
        **GENERATE,
    ),
    'generate_32': Generation(
        'GPT-2 4×4×128 writes 200 tokens after 32, batch 32', 'gpt.py:nanogpt,gpt2', 834_432, 2.45, batch_size=32,
        **GENERATE,
    ),
}  # fmt: skip
COMPRESSED = {
    'compressed': Compressed(
        'The GPT of the study of compression writes 200 tokens after 32, batch 32', 'gpt.py', None, None, batch_size=32,
        **GENERATE | dict(vocab_size=1024),
    ),
}
