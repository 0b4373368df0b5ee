"""Masked language models: an encoder that tells hidden tokens from those on both sides (Devlin et al. 2019; Liu et al.
2019). One player, 'model'.

A window of the data is framed as labelled texts are: the token cls before it and sep behind it, where the tokenizer has
them. With task.sentence_order its halves are two texts, of which the second comes first in every other window, and the
model tells which (Lan et al. 2020, section 3.1).
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core import rng
from aigc_jax.core.capabilities import FillsIn, Measures
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Turn
from aigc_jax.data import Dataset, Tokens
from aigc_jax.data.masking import Masked, Masking
from aigc_jax.nn import encoder
from aigc_jax.nn.build import fields
from aigc_jax.tasks.lm import VOCAB_SIZE

_TEXT = -1  # in a layout, for the place of a token of the text


def model_fields(model, around=None) -> Group:
    return {'vocab_size': VOCAB_SIZE, **fields(encoder.Encoder)}


MASKING = {
    'mask_rate': Field(float, 0.15, above=0, most=1, doc='share of the tokens of a window that are to be told'),
    'mask_share': Field(float, 0.8, least=0, most=1, doc='share of these that are hidden behind the mask token'),
    'random_share': Field(float, 0.1, least=0, most=1, doc='share of these that become another token'),
    'whole_words': Field(bool, False, doc='whether words are hidden whole'),
}  # fmt: skip
FIELDS = {
    'task': {
        **MASKING,
        'sentence_order': Field(
            float, 0.0, least=0,
            doc='weight of telling which half of a window comes first (ALBERT: 1); 0: it is left out',
        ),
    },
    'model': model_fields,
}  # fmt: skip


class Hidden(NamedTuple):
    """Framed texts (n, L), which of their tokens may be hidden, the types of the tokens, whether the halves are
    exchanged, (n,), and the texts with some tokens hidden."""

    tokens: Array
    may: Array
    types: Array | None
    exchanged: Array
    masked: Masked


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedLanguageModel:
    """The functions of the task. sentence_order: the weight of its loss. player: that has the parameters."""

    module: encoder.Encoder
    masking: Masking
    sentence_order: float = 0.0
    player: str = 'model'

    def init(self, key: Array):
        return {self.player: encoder.init(self.module, rng.named(key, self.player))}, Extra({}, {})

    def framed(self, window: Array, may: Array, ctx: rng.Context) -> tuple[Array, Array, Array | None, Array]:
        """A window (n, L) and which of its tokens may be hidden -> the same of a framed text, the types of its tokens,
        and whether its halves are exchanged, (n,)."""
        before, between, behind = self.masking.tokenizer.frame
        half = window.shape[1] // 2
        layout, types = np.array([*before, *[_TEXT] * window.shape[1], *behind]), None
        exchanged = jnp.zeros(window.shape[:1], bool)
        if self.sentence_order:
            layout = np.array([*before, *[_TEXT] * half, *between, *[_TEXT] * half, *behind])
            types = jnp.asarray(np.arange(len(layout)) >= len(before) + half + len(between), jnp.int32)[None]
            exchanged = ctx.uniform('order') < 0.5
            # The first token of a window of an odd number of them is left out.
            even = lambda x: x[:, x.shape[1] - 2 * half :]
            window, may = (
                jnp.where(exchanged[:, None], jnp.roll(even(x), half, axis=1), even(x)) for x in (window, may)
            )
        where = np.flatnonzero(layout == _TEXT)
        put = lambda row, x: jnp.broadcast_to(jnp.asarray(row, x.dtype), (x.shape[0], len(row))).at[:, where].set(x)
        return put(layout, window), put(np.zeros(len(layout)), may), types, exchanged

    def hidden(self, batch: Batch, ctx: rng.Context) -> Hidden:
        window = batch['tokens'][:, 1:]
        may = jnp.ones(window.shape, bool)
        if 'counted' in batch:  # of windows that overlap, so that each token is in one of them
            may = jnp.arange(window.shape[1]) >= window.shape[1] - batch['counted'][:, None]
        tokens, may, types, exchanged = self.framed(window, may, ctx)
        return Hidden(tokens, may, types, exchanged, self.masking(tokens, may, ctx))

    def outputs(self, params, hidden: Hidden, draw=None) -> encoder.Outputs:
        """At the places where tokens are hidden."""
        masked = hidden.masked
        inputs = masked.tokens, None, hidden.types, masked.places, draw
        return self.module.apply({'params': params[self.player]}, *inputs)

    def sums(self, params, batch: Batch, ctx: rng.Context, draw=None) -> tuple[dict[str, Array], tuple[Array, Array]]:
        """Of each window, (n,): the sums `nats` and `right` over its hidden tokens, their number `count`, and with
        sentence_order `order_nats` and `order_right`. Then the logits of the hidden tokens, and where there is one."""
        hidden = self.hidden(batch, ctx)
        masked, found = hidden.masked, self.outputs(params, hidden, draw)
        nats, right = judged(found.tokens, masked.targets)
        over = lambda x: jnp.sum(jnp.where(masked.counted, x, 0), axis=1).astype(jnp.float32)
        sums = {'nats': over(nats), 'right': over(right), 'count': over(1)}
        if self.sentence_order:
            sums['order_nats'], sums['order_right'] = judged(found.label, hidden.exchanged.astype(jnp.int32))
        return sums, (found.tokens, masked.counted)

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        found, logits = self.sums(params, batch, ctx, ctx.uniform if self.module.dropout else None)
        count = jnp.sum(found['count'])
        mean = lambda total: jnp.sum(total) / jnp.maximum(count, 1)
        value = mean(found['nats'])
        metrics = {'nats_per_masked_token': value, 'masked_accuracy': mean(found['right'])}
        if self.sentence_order:
            # Weighted by the hidden tokens of a window, as all else is, so that parts of a batch add up to the whole.
            metrics['order_accuracy'] = mean(found['order_right'] * found['count'])
            value = value + self.sentence_order * mean(found['order_nats'] * found['count'])
        return value, Aux(metrics, extra, count, logits)

    def per_example(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        """With masks that are functions of the place of a window in its split alone."""
        found, _ = self.sums(params, batch, rng.context(0, 'eval', 0, ctx.index))
        measured = {
            'nats_per_masked_token': (found['nats'], found['count']),
            'masked_accuracy': (found['right'], found['count']),
        }
        return measured | ({'order_accuracy': found['order_right']} if self.sentence_order else {})

    def fill(self, params, extra: Extra, tokens: Array, lengths: Array) -> Array:
        logits = self.module.apply({'params': params[self.player]}, tokens, lengths).tokens
        return logits[..., : self.masking.tokenizer.vocab_size]  # checkpoints may have more rows than that

    def task(self) -> Task:
        return Task(
            init=self.init,
            rounds=((Turn(self.player, self.loss),),),
            capabilities=(Measures(self.per_example), FillsIn(self.fill, self.module.positions)),
        )


def judged(logits: Array, targets: Array) -> tuple[Array, Array]:
    """logits (…, classes), targets (…,) -> −log p of the target, and whether it is the likeliest class."""
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats, jnp.argmax(logits, axis=-1) == targets


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    order = config.task.sentence_order
    masking, longest, what = checked(config, dataset)
    tokenizer = masking.tokenizer
    if order and (tokenizer.cls is None or tokenizer.sep is None):
        raise UserError("task.sentence_order: two texts want the tokens 'cls' and 'sep'; add them to data.special")
    if order and config.model.token_types == 1:
        raise UserError('model.token_types: 1; task.sentence_order has texts of two types, so set it to 2, or to 0')
    longest += len(tokenizer.frame.between) if order else 0
    heads = {'masked': True, 'classes': 2 if order else 0}
    module = encoder.make(config, tokenizer.vocab_size, longest, what, **heads)
    return MaskedLanguageModel(module, masking, order).task()


def checked(config, dataset: Dataset) -> tuple[Masking, int, str]:
    """(how tokens are hidden, the most tokens of a framed window, what has so many). Raises UserError."""
    spec, own = dataset.spec, config.task
    if not isinstance(spec, Tokens):
        raise UserError(f'task.name: {own.name} reads windows of text; {config.data.name} holds {spec.words}')
    if spec.tokenizer.mask is None:
        raise UserError("data.special: the tokenizer has no token for what is hidden; add 'mask', such as ('mask',)")
    if spec.contiguous:
        raise UserError('data.order: an encoder carries no state from window to window; set it to shuffled')
    if own.mask_share + own.random_share > 1 + 1e-9:
        raise UserError(f'task.random_share: {own.random_share}; with task.mask_share, {own.mask_share}, at most 1')
    masking = Masking(spec.tokenizer, own.mask_rate, own.mask_share, own.random_share, own.whole_words)
    block, frame = max(config.data.block, config.data.eval_block), spec.tokenizer.frame
    what = f'a window of {block} tokens, with its special tokens,'
    return masking, block + len(frame.before) + len(frame.behind), what
