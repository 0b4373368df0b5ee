"""Replaced-token detection (Clark et al. 2020, ELECTRA): a small masked language model, the player 'generator', draws
what stands in the place of hidden tokens, and the player 'model' tells of each token whether it was replaced.

Both are trained in one round. The paper adds the two losses, the second weighted by 50; here each has an optimizer of
its own, so that no weight is needed. The paper's models share their embeddings (section 3.2), which learn from the sum
of both losses; a player here learns from its own loss alone, so these share none.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core import rng
from aigc_jax.core.capabilities import FillsIn, Measures
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Turn
from aigc_jax.data import Dataset
from aigc_jax.nn import encoder, stacks
from aigc_jax.tasks import mlm

FIELDS = {
    'task': {
        **mlm.MASKING,
        'generator_share': Field(
            float, 0.25, above=0, most=1, doc="heads and widths of the generator, as a share of the model's"
        ),
    },
    'model': mlm.model_fields,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ReplacedTokens:
    """The functions of the task. generator: hides tokens, and is trained to tell them."""

    module: encoder.Encoder
    generator: mlm.MaskedLanguageModel

    def init(self, key: Array):
        params, extra = self.generator.init(key)
        return {**params, 'model': encoder.init(self.module, rng.named(key, 'model'))}, extra

    def sums(self, params, batch: Batch, ctx: rng.Context, draw=None) -> dict[str, Array]:
        """Of each window, (n,): the sums `nats` and `right` over its tokens, their number `count`, and how many of them
        are `replaced`."""
        hidden = self.generator.hidden(batch, ctx)
        masked, share = hidden.masked, jax.nn.softmax(self.generator.outputs(params, hidden).tokens, axis=-1)
        # By the inverse of the distribution function, one draw a token.
        below = jnp.cumsum(share, axis=-1)
        u = ctx.uniform('replaced', masked.places.shape[1:])[..., None] * below[..., -1:]
        drawn = jnp.sum(below < u, axis=-1, dtype=jnp.int32)
        put = jax.vmap(lambda row, where, value: row.at[where].set(value))
        tokens = put(hidden.tokens, masked.places, jnp.where(masked.counted, drawn, masked.targets))
        replaced = tokens != hidden.tokens  # what is drawn as it was counts as the text's own (section 2)
        inputs = tokens, None, hidden.types, None, draw
        logits = self.module.apply({'params': params['model']}, *inputs).tags[..., 0]
        over = lambda x: jnp.sum(jnp.where(hidden.may, x, 0), axis=1).astype(jnp.float32)
        nats = optax.sigmoid_binary_cross_entropy(logits, replaced)
        right = (logits > 0) == replaced
        return {'nats': over(nats), 'right': over(right), 'replaced': over(replaced), 'count': over(1)}

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        found = self.sums(params, batch, ctx, ctx.uniform if self.module.dropout else None)
        count = jnp.sum(found['count'])
        mean = lambda name: jnp.sum(found[name]) / jnp.maximum(count, 1)
        metrics = {'accuracy': mean('right'), 'replaced_share': mean('replaced')}
        return mean('nats'), Aux(metrics, extra, count)

    def per_example(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """With masks and tokens in their place that are functions of the place of a window in its split alone."""
        fixed = rng.context(0, 'eval', 0, ctx.index)
        found = self.sums(params, batch, fixed)
        names = {'nats': 'nats_per_token', 'right': 'accuracy', 'replaced': 'replaced_share'}
        own = {f'detection/{metric}': (found[name], found['count']) for name, metric in names.items()}
        return self.generator.per_example(params, extra, batch, ctx) | own

    def task(self) -> Task:
        fills_in = FillsIn(self.generator.fill, self.generator.module.positions)
        return Task(
            init=self.init,
            rounds=((Turn('generator', self.generator.loss), Turn('model', self.loss)),),
            capabilities=(Measures(self.per_example), fills_in),
        )


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    masking, longest, what = mlm.checked(config, dataset)
    module = encoder.make(config, masking.tokenizer.vocab_size, longest, what, tags=1)
    part = lambda count: max(1, round(config.task.generator_share * count))
    heads = part(module.heads)
    width = part(module.width) // heads * heads
    if not width:
        raise UserError(
            f'task.generator_share: {config.task.generator_share} of model.width leaves no width a head; give a larger '
            'share, or fewer model.heads'
        )
    small = {'heads': heads, 'kv_heads': heads, 'width': width, 'mlp_width': part(module.mlp_width)}
    generator = module.clone(**small, masked=True, tags=0)
    stacks.check(generator, 'task.generator_share, model')
    return ReplacedTokens(module, mlm.MaskedLanguageModel(generator, masking, player='generator')).task()
