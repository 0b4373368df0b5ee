"""Auto-encoders of discrete latents, VQ-VAE (van den Oord et al. 2017) and FSQ (Mentzer et al. 2024), with their prior.

Two players, trained together on the same batches: 'model' {encoder, decoder, and log_scale where the likelihood
learns one}, and 'prior', a Transformer over the codes in raster order, p(z given y) = Π p(z_t given z_<t, y), which
sees the codes and not the encoder's gradient.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Codebook, Measures, Reconstructs, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Images
from aigc_jax.decoding import Generated, Sampling
from aigc_jax.decoding import sample as write
from aigc_jax.nn import convnets, quantizers, transformer
from aigc_jax.nn.build import build, compute_dtype, fields
from aigc_jax.tasks import likelihoods

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
    'eval': {
        'temperature': Field(
            float, 1.0, least=0, doc='of the codes that the prior draws for samples; 0: the likeliest ones'
        ),
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
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

    def nats(self, params: Tree, index: Array, labels: Array | None, uniform=None) -> Array:
        """−log p of each code (n, places) given those before it. uniform: of the context, for dropout; None: none."""
        tokens = jnp.concatenate([self._first(index.shape[0], labels), index[:, :-1]], axis=1)
        logits, _ = self._logits(params, tokens, None, uniform if self.network.dropout else None)
        chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    def draw(self, params: Tree, ctx: rng.Context, labels: Array | None, how: Sampling) -> Generated:
        """Codes (n, places) in `tokens`, and log p of them, written with a cache."""
        n = ctx.index.shape[0]
        call = lambda tokens, state: self._logits(params, tokens, state)
        state = self.network.initial_state(n, self.places + 1)
        return write(call, state, self._first(n, labels), ctx.key, ctx.index, how, self.places)


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    model, options, shape = config.model, config.task, dataset.spec.shape
    if not isinstance(dataset.spec, Images):
        raise UserError(f'task.name: vq is for images; {config.data.name} holds {dataset.spec.words}')
    likelihood = likelihoods.make(options.likelihood, dataset, config.data)
    if likelihood.scale == 'optimal':
        raise UserError(f'task.likelihood: {options.likelihood} is for a VAE; choose gaussian, which learns its scale')
    if model.conditional and not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    quantizer, dtype = quantizers.make_quantizer(model.quantizer, 'model.quantizer'), compute_dtype(config.precision)
    encoder = build(quantizers.GridEncoder, 'model.encoder', model.encoder, dim=quantizer.dim, dtype=dtype)
    outputs = (*shape[:-1], shape[-1] * likelihood.channels)
    decoder = build(quantizers.GridDecoder, 'model.decoder', model.decoder, shape=outputs, dtype=dtype)
    for role, module in (('encoder', encoder), ('decoder', decoder)):
        convnets.check(module, shape, f'model.{role}')
    if len(encoder.features) != len(decoder.features):
        raise UserError('model.decoder.features: as many levels as model.encoder.features, which halve what it doubles')
    grid = tuple(side // 2 ** len(encoder.features) for side in shape[:2])
    places, num_dims, K = math.prod(grid), math.prod(shape), quantizer.codes
    to_data = dataset.scaling(config.data).to_data
    num_classes = dataset.num_classes if model.conditional else 0
    network = build(
        transformer.Transformer, 'model.prior', model.prior, vocab_size=K + max(num_classes, 1), context=places + 1,
        end=None, dtype=dtype,
    )  # fmt: skip
    transformer.check(network, 'model.prior')
    prior = Prior(network, K, places, num_classes)
    temperature = config.eval.temperature

    def init(key: Array):
        x, z = jnp.zeros((1, *shape)), jnp.zeros((1, *grid, quantizer.dim))
        params = {
            'encoder': encoder.init(rng.named(key, 'encoder'), x)['params'],
            'decoder': decoder.init(rng.named(key, 'decoder'), z)['params'],
        }
        if likelihood.scale:
            params['log_scale'] = jnp.float32(likelihood.start)
        own = network.init(rng.named(key, 'prior'), jnp.zeros((1, places), jnp.int32))['params']
        return {'model': params, 'prior': own}, Extra(quantizer.init(rng.named(key, 'codebook')), {})

    def encode(params, extra: Extra, batch: Batch):
        """z (n, h, w, d) as it leaves the encoder, as the decoder gets it, and its codes (n, h·w)."""
        z = encoder.apply({'params': params['model']['encoder']}, batch['x'])
        z_q, index = quantizer.quantize(extra.stats, z)
        return z, z_q, index.reshape(-1, places)

    def decode(params, z_q: Array) -> Array:
        return decoder.apply({'params': params['model']['decoder']}, z_q)

    def reconstruction_nats(theta: Tree, x: Array, out: Array) -> Array:
        """−log p(x given z_q), (n,)."""
        return -likelihood.log_prob(x.reshape(len(x), -1), out.reshape(len(x), -1), theta.get('log_scale'))

    def mean(params, out: Array) -> Array:
        return likelihood.mean(out, params['model'].get('log_scale'))

    def loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        z, z_q, index = encode(params, extra, batch)
        reconstruction = jnp.mean(reconstruction_nats(params['model'], batch['x'], decode(params, z_q)))
        penalty = jnp.mean(quantizer.penalty(z, z_q))
        metrics = {'reconstruction': reconstruction}
        if extra.stats:
            metrics |= {'commitment': penalty, 'dead_codes': jnp.sum(quantizer.dead(extra.stats)).astype(jnp.float32)}
        flat = z.reshape(-1, places, quantizer.dim)
        stats = quantizer.renew(extra.stats, flat, index, ctx, config.batch_size)
        return reconstruction + penalty, (metrics, extra._replace(stats=stats))

    def prior_loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        index = encode(params, extra, batch)[2]
        nats = prior.nats(params['prior'], index, batch.get('label'), ctx.uniform)
        return jnp.mean(nats), ({}, extra)

    def evaluate(params, extra: Extra, batch: Batch, ctx: rng.Context):
        """nll_bound: −log p(x given z_q) − log p(z_q). It is an upper bound of −log p(x), as p(x) is the sum of
        p(x given z) p(z) over all z, of which the encoder's own is one. Densities (tasks.likelihoods) and the squared
        error are in the data's own units."""
        z, z_q, index = encode(params, extra, batch)
        out = decode(params, z_q)
        reconstruction = reconstruction_nats(params['model'], batch['x'], out)
        nats = jnp.sum(prior.nats(params['prior'], index, batch.get('label')), axis=1)
        bound = reconstruction + nats
        return {
            'model/reconstruction': reconstruction,
            'model/mse': jnp.mean((to_data(mean(params, out)) - to_data(batch['x'])) ** 2, axis=(1, 2, 3)),
            'prior/nats_per_code': nats / places,
            'prior/nats': nats,
            'model/nll_bound': bound,
            'model/bits_per_dim': bound / (num_dims * math.log(2)),
        }

    def sample(params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        """E[x given z] of codes z that the prior draws."""
        drawn = prior.draw(params['prior'], ctx, labels, Sampling(temperature=temperature))
        index = drawn.tokens.reshape(-1, *grid)
        return mean(params, decode(params, quantizer.vectors(extra.stats, index)))

    def reconstruct(params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        return mean(params, decode(params, encode(params, extra, batch)[1]))

    return Task(
        init=init,
        rounds=((Turn('model', loss), Turn('prior', prior_loss)),),
        capabilities=(
            Measures(evaluate),
            Samples(sample, num_classes),
            Reconstructs(reconstruct),
            Codebook(K, lambda params, extra, batch, ctx: encode(params, extra, batch)[2]),
        ),
    )
