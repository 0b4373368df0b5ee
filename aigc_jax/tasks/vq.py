"""Auto-encoders of discrete latents, VQ-VAE (van den Oord et al. 2017) and FSQ (Mentzer et al. 2024), with their prior.

Two players, trained together on the same batches: 'model' {encoder, decoder, and log_scale where the likelihood
learns one}, and 'prior', a Transformer over the codes in raster order, p(z given y) = Π p(z_t given z_<t, y), which
sees the codes and not the encoder's gradient.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import optax

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Codebook, Measures, Reconstructs, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Images
from aigc_jax.decoding import Generated, Sampling, from_config
from aigc_jax.decoding import sample as write
from aigc_jax.nn import convnets, quantizers, stacks, transformer
from aigc_jax.nn.build import build, compute_dtype, fields
from aigc_jax.tasks import conditional, likelihoods

FIELDS = {
    'task': {'likelihood': likelihoods.FIELD},
    'model': {
        'quantizer': Field(dict, fields=quantizers.quantizer_fields),
        'conditional': Field(bool, False, doc='whether the prior is told the class'),
        'encoder': Field(
            dict, fields=fields(quantizers.GridEncoder),
            doc='halves the sides once for each of `features`; the grid that is left has a code at each place',
        ),
        'decoder': Field(dict, fields=fields(quantizers.GridDecoder)),
        'prior': Field(dict, fields=fields(transformer.Transformer), doc='over the codes in raster order'),
    },
    'sample': fields(Sampling),  # of the codes that the prior draws
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """p(z given y) = Π p(z_t given z_<t, y) over `places` codes in 0..num_codes − 1, by a Transformer.

    What it reads first is a token of its own behind the codes, one for each of num_classes (0: the same for all); it is
    never predicted. labels: (n,) int32, read where there are classes.
    """

    network: transformer.Transformer
    num_codes: int
    places: int
    num_classes: int

    def _first(self, n: int, labels: Array | None) -> Array:
        token = self.num_codes + (labels if self.num_classes else jnp.zeros((n,), jnp.int32))
        return token[:, None]

    def _logits(self, params: Tree, tokens: Array, state=None, draw=None):
        logits, state = self.network.apply({'params': params}, tokens, state, draw)
        return logits[..., : self.num_codes], state

    def code_nll(self, params: Tree, index: Array, labels: Array | None, uniform=None) -> Array:
        """−log p of each code (n, places) given those before it. uniform: of the context, for dropout; None: none."""
        tokens = jnp.concatenate([self._first(index.shape[0], labels), index[:, :-1]], axis=1)
        logits, _ = self._logits(params, tokens, None, uniform if self.network.dropout else None)
        return optax.softmax_cross_entropy_with_integer_labels(logits, index)

    def draw(self, params: Tree, ctx: rng.Context, labels: Array | None, how: Sampling) -> Generated:
        """Codes (n, places) in `tokens`, and log p of them, written with a cache."""
        n = ctx.index.shape[0]
        call = lambda tokens, state: self._logits(params, tokens, state)
        state = self.network.initial_state(n, self.places + 1)
        return write(call, state, self._first(n, labels), ctx.key, ctx.index, how, self.places)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedAutoEncoder:
    """The functions of the task.

    shape: of an example. grid: (height, width) of the codes. to_data: from the model's units to those of the data.
    batch_size: of a training step, on all devices. sampling: of the codes that the prior draws for samples.
    """

    encoder: nn.Module
    decoder: nn.Module
    quantizer: quantizers.VQ | quantizers.FSQ
    likelihood: likelihoods.Likelihood
    prior: Prior
    shape: tuple[int, ...]
    grid: tuple[int, int]
    to_data: Callable[[Array], Array]
    batch_size: int
    sampling: Sampling

    def init(self, key: Array):
        x, z = jnp.zeros((1, *self.shape)), jnp.zeros((1, *self.grid, self.quantizer.dim))
        params = {
            'encoder': self.encoder.init(rng.named(key, 'encoder'), x)['params'],
            'decoder': self.decoder.init(rng.named(key, 'decoder'), z)['params'],
        }
        if self.likelihood.scale:
            params['log_scale'] = jnp.float32(self.likelihood.start)
        codes = jnp.zeros((1, self.prior.places), jnp.int32)
        prior = self.prior.network.init(rng.named(key, 'prior'), codes)['params']
        return {'model': params, 'prior': prior}, Extra(self.quantizer.init(rng.named(key, 'codebook')), {})

    def encode(self, params, extra: Extra, batch: Batch) -> tuple[Array, Array, Array]:
        """z (n, h, w, d) as it leaves the encoder, as the decoder gets it, and its codes (n, h·w)."""
        z = self.encoder.apply({'params': params['model']['encoder']}, batch['x'])
        z_q, index = self.quantizer.quantize(extra.stats, z)
        return z, z_q, index.reshape(-1, self.prior.places)

    def decode(self, params, z_q: Array) -> Array:
        """z_q (n, h, w, d) -> what the likelihood takes, (n, *shape) with the likelihood's channels for each one."""
        return self.decoder.apply({'params': params['model']['decoder']}, z_q)

    def reconstruction_nll(self, params, x: Array, out: Array) -> Array:
        """−log p(x given z_q), (n,)."""
        log_scale = params['model'].get('log_scale')
        return -self.likelihood.log_prob(x.reshape(len(x), -1), out.reshape(len(x), -1), log_scale)

    def mean(self, params, out: Array) -> Array:
        """E[x given z_q], (n, *shape)."""
        return self.likelihood.mean(out, params['model'].get('log_scale'))

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        z, z_q, index = self.encode(params, extra, batch)
        reconstruction = jnp.mean(self.reconstruction_nll(params, batch['x'], self.decode(params, z_q)))
        penalty = jnp.mean(self.quantizer.penalty(z, z_q))
        metrics = {'reconstruction': reconstruction}
        if extra.stats:
            dead = jnp.sum(self.quantizer.dead(extra.stats))
            metrics |= {'commitment': penalty, 'dead_codes': dead.astype(jnp.float32)}
        flat = z.reshape(-1, self.prior.places, self.quantizer.dim)
        stats = self.quantizer.renew(extra.stats, flat, index, ctx, self.batch_size)
        return reconstruction + penalty, Aux(metrics, extra._replace(stats=stats))

    def prior_loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        index = self.encode(params, extra, batch)[2]
        code_nll = self.prior.code_nll(params['prior'], index, batch.get('label'), ctx.uniform)
        return jnp.mean(code_nll), Aux({}, extra)

    def measure(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """nll_bound: −log p(x given z_q) − log p(z_q). It is an upper bound of −log p(x), as p(x) is the sum of
        p(x given z) p(z) over all z, of which the encoder's own is one. Densities (tasks.likelihoods) and the squared
        error are in the data's own units."""
        z, z_q, index = self.encode(params, extra, batch)
        out = self.decode(params, z_q)
        reconstruction = self.reconstruction_nll(params, batch['x'], out)
        prior_nll = jnp.sum(self.prior.code_nll(params['prior'], index, batch.get('label')), axis=1)
        bound = reconstruction + prior_nll
        square = (self.to_data(self.mean(params, out)) - self.to_data(batch['x'])) ** 2
        return {
            'model/reconstruction': reconstruction,
            'model/mse': jnp.mean(square, axis=(1, 2, 3)),
            'prior/nats_per_code': prior_nll / self.prior.places,
            'prior/nats': prior_nll,
            'model/nll_bound': bound,
            'model/bits_per_dim': bound / (math.prod(self.shape) * math.log(2)),
        }

    def sample(self, params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        """E[x given z] of codes z that the prior draws."""
        drawn = self.prior.draw(params['prior'], ctx, labels, self.sampling)
        index = drawn.tokens.reshape(-1, *self.grid)
        return self.mean(params, self.decode(params, self.quantizer.vectors(extra.stats, index)))

    def reconstruct(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        return self.mean(params, self.decode(params, self.encode(params, extra, batch)[1]))

    def codes(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        return self.encode(params, extra, batch)[2]

    def task(self) -> Task:
        return Task(
            init=self.init,
            rounds=((Turn('model', self.loss), Turn('prior', self.prior_loss)),),
            capabilities=(
                Measures(self.measure),
                Samples(self.sample, self.prior.num_classes),
                Reconstructs(self.reconstruct),
                Codebook(self.quantizer.codes, self.codes),
            ),
        )


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, options, shape = config.model, config.task, dataset.spec.shape
    if not isinstance(dataset.spec, Images):
        raise UserError(f'task.name: vq is for images; {config.data.name} holds {dataset.spec.words}')
    likelihood = likelihoods.make(options.likelihood, dataset, config.data)
    if likelihood.scale == 'optimal':
        raise UserError(f'task.likelihood: {options.likelihood} is for a VAE; choose gaussian, which learns its scale')
    quantizer, dtype = quantizers.make_quantizer(model.quantizer, 'model.quantizer'), compute_dtype(config.precision)
    encoder = build(quantizers.GridEncoder, 'model.encoder', model.encoder, dim=quantizer.dim, dtype=dtype)
    outputs = (*shape[:-1], shape[-1] * likelihood.channels)
    decoder = build(quantizers.GridDecoder, 'model.decoder', model.decoder, shape=outputs, dtype=dtype)
    for role, module in (('encoder', encoder), ('decoder', decoder)):
        convnets.check(module, shape, f'model.{role}')
    if len(encoder.features) != len(decoder.features):
        raise UserError('model.decoder.features: as many levels as model.encoder.features, which halve what it doubles')
    grid = tuple(side // 2 ** len(encoder.features) for side in shape[:2])
    places, num_codes = math.prod(grid), quantizer.codes
    num_classes = conditional.classes(config, dataset)
    network = build(
        transformer.Transformer, 'model.prior', model.prior, vocab_size=num_codes + max(num_classes, 1),
        context=places + 1, end=None, dtype=dtype,
    )  # fmt: skip
    stacks.check(network, 'model.prior')
    sampling = from_config(config.sample)
    sampling.check(num_codes, 'sample.')
    return QuantizedAutoEncoder(
        encoder=encoder,
        decoder=decoder,
        quantizer=quantizer,
        likelihood=likelihood,
        prior=Prior(network, num_codes, places, num_classes),
        shape=tuple(shape),
        grid=grid,
        to_data=dataset.scaling(config.data).to_data,
        batch_size=config.batch_size,
        sampling=sampling,
    ).task()
