"""Autoregressive language models, p(x) = Π p(x_t given x_<t), by maximum likelihood; recurrent or self-attention.

One player, 'model'. A recurrent model on contiguous data carries its state from block to block (truncated
back-propagation through time, Mikolov et al. 2010), in TrainState.carry.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core import rng, schema
from aigc_jax.core.capabilities import CausalText, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import Dataset, Tokens
from aigc_jax.decoding import Sampling, from_config
from aigc_jax.decoding import sample as write
from aigc_jax.nn import recurrent, stacks, transformer
from aigc_jax.nn.build import build, compute_dtype, drawn, embedding_rows, fields

MODELS = {'transformer': transformer.Transformer, 'recurrent': recurrent.Recurrent}
KIND = Field(str, choices=tuple(MODELS), doc='the network, which has the other fields of the group')
VOCAB_SIZE = Field(int, 0, least=0, doc='rows of the embedding; 0: as many as the tokenizer has tokens')


def _of_kind(model, around=None) -> Group:
    return {'kind': KIND, 'vocab_size': VOCAB_SIZE, **fields(MODELS[schema.chosen(model, 'kind', KIND, 'model')])}


FIELDS = {
    'task': {
        'z_loss': Field(float, 0.0, least=0, doc='weight of log² Z (Chowdhery et al. 2022, section 5)'),
        'separate_documents': Field(
            bool, True, doc='whether attention stops, or the state begins anew, where a document begins'
        ),
    },
    'model': _of_kind,
    'sample': fields(Sampling),
    'eval': {
        'sample_tokens': Field(
            int, -1, doc='of each sample; -1: 200, or as many as the model and the held-out text allow'
        )
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """The functions of the task. tokens are int32; a state is what `module` has read of the texts (initial_state).

    bos: the token that a text without a prompt begins with. rows_length: blocks in a row of contiguous data, after
    which the rows begin anew; 0: the blocks are shuffled, and no state is carried. batch_size: of a training step.
    z_loss: weight of log² Z. sample_tokens: of each sample. sampling: how each token of it is drawn.
    """

    module: transformer.Transformer | recurrent.Recurrent
    tokenizer: Any
    bos: int
    rows_length: int
    batch_size: int
    z_loss: float
    sample_tokens: int
    sampling: Sampling

    @property
    def is_recurrent(self) -> bool:
        return isinstance(self.module, recurrent.Recurrent)

    def init(self, key: Array):
        # Eight tokens: no shape of the parameters depends on how many.
        params = drawn(self.module, rng.named(key, 'model'), jnp.zeros((1, 8), jnp.int32))
        carry = self.module.initial_state(self.batch_size).layers if self.rows_length else {}
        return {'model': params}, Extra({}, carry)

    def forward(self, params, tokens: Array, state: Tree = None, draw=None) -> tuple[Array, Tree]:
        """tokens (n, L) -> logits (n, L, vocabulary), and the state after them. draw: of the context, for dropout."""
        return self.module.apply({'params': params['model']}, tokens, state, draw)

    def score(self, params, tokens: Array, state: Tree = None, draw=None) -> tuple[Array, Array, Array, Tree]:
        """tokens (n, L + 1) -> −log p of the last L, (n, L), log Z of their logits, these, and the state after them."""
        logits, state = self.forward(params, tokens[:, :-1], state, draw)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return log_z - chosen(logits, tokens[:, 1:]), log_z, logits, state

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        state = None
        if self.rows_length:
            state = self.module.initial_state(batch['tokens'].shape[0])
            going_on = jnp.where(ctx.step % self.rows_length == 0, 0.0, 1.0)  # the rows begin anew together
            state = state._replace(layers=jax.tree.map(lambda x: x * going_on, extra.carry))
        draw = ctx.uniform if self.module.dropout else None
        token_nll, log_z, logits, state = self.score(params, batch['tokens'], state, draw)
        value = jnp.mean(token_nll)
        metrics = {'nats_per_token': value}
        if self.z_loss:  # ζ log² Z (Chowdhery et al. 2022, section 5)
            value = value + self.z_loss * jnp.mean(log_z**2)
        extra = extra._replace(carry=state.layers) if self.rows_length else extra
        return value, Aux(metrics, extra, logits=(logits, jnp.ones(token_nll.shape, bool)))

    def decode(self, params, extra: Extra, tokens: Array, cache: Tree):
        return self._written(params, tokens, cache)

    def _written(self, params, tokens: Array, cache: Tree):
        """`forward`, with the logits of the tokenizer's tokens alone: checkpoints may have more rows than that."""
        logits, cache = self.forward(params, tokens, cache)
        return logits[..., : self.tokenizer.vocab_size], cache

    def token_nll(self, params, extra: Extra, tokens: Array) -> Array:
        return self.score(params, tokens)[0]

    def attention(self, params, extra: Extra, tokens: Array) -> Array:
        """The weights (layers, n, heads, L, L) of a Transformer."""
        whole = self.module.clone(attention='einsum', remat=False)  # what a fused kernel never holds
        _, found = whole.apply({'params': params['model']}, tokens, mutable='intermediates')
        n, length = tokens.shape
        found = found['intermediates']
        if whole.scan_layers:
            weights = found['blocks']['attention'][0]
        else:
            weights = jnp.stack([found[f'block_{i}']['attention'][0] for i in range(whole.layers)])
        return weights.reshape(whole.layers, n, whole.heads, length, length)

    def sample(self, params, extra: Extra, ctx: rng.Context, labels: Array | None) -> Array:
        """(n, sample_tokens) tokens, 0 behind the end of a text."""
        n, most = ctx.index.shape[0], self.sample_tokens
        state = self.module.initial_state(n, most + 1)
        start = jnp.full((n, 1), self.bos, jnp.int32)
        call = lambda tokens, state: self._written(params, tokens, state)
        return write(call, state, start, ctx.key, ctx.index, self.sampling, most, self.tokenizer.end).tokens

    def task(self) -> Task:
        return Task(
            init=self.init,
            rounds=((Turn('model', self.loss),),),
            capabilities=(
                Samples(self.sample),
                CausalText(
                    decode=self.decode,
                    token_nll=self.token_nll,
                    init_cache=self.module.initial_state,
                    context=0 if self.is_recurrent else self.module.context,
                    vocab_size=self.tokenizer.vocab_size,
                    eos=self.tokenizer.end,
                    bos=self.bos,
                    attention=None if self.is_recurrent else self.attention,
                    columns=not self.is_recurrent,
                ),
            ),
        )


def chosen(logits: Array, tokens: Array) -> Array:
    """(…, vocabulary), (…) -> the logit of each token, (…)."""
    return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    spec = dataset.spec
    if not isinstance(spec, Tokens):
        raise UserError(f'task.name: lm reads text; {config.data.name} holds {spec.words}')
    tokenizer = spec.tokenizer
    module, block = _build(config, tokenizer), config.data.block
    is_recurrent = isinstance(module, recurrent.Recurrent)
    if spec.contiguous and not is_recurrent:
        raise UserError('data.order: a transformer carries no state from block to block; set it to shuffled')
    if not is_recurrent and config.data.eval_block > block:
        raise UserError(
            f'data.eval_block: {config.data.eval_block}; a transformer sees no more than data.block, {block}'
        )
    most = config.eval.sample_tokens  # -1 as long as nobody has chosen by the context of the task
    if most != -1 and (most < 1 or (not is_recurrent and most + 1 > module.context)):
        raise UserError(
            f'eval.sample_tokens: {most}; 1 or more, and less than the data.block of a '
            'transformer; -1: as many as fit, 200 at most'
        )
    sampling = from_config(config.sample)
    sampling.check(tokenizer.vocab_size, 'sample.')
    return LanguageModel(
        module=module,
        tokenizer=tokenizer,
        # The first token of a text that has no prompt: the end of another document, or what begins a line.
        bos=tokenizer.bos if tokenizer.bos is not None else _newline(tokenizer),
        rows_length=len(dataset.splits['train']) // config.batch_size if spec.contiguous else 0,
        batch_size=config.batch_size,
        z_loss=config.task.z_loss,
        sample_tokens=most,
        sampling=sampling,
    ).task()


def _build(config, tokenizer):
    model = config.model.copy_and_resolve_references()
    kind = model.kind
    vocab_size = embedding_rows(model, tokenizer.vocab_size)
    del model['kind']
    end = tokenizer.end if config.task.separate_documents else None
    dtype = compute_dtype(config.precision)
    # No position beyond a training window has been trained, so none is read.
    context = {'context': config.data.block} if kind == 'transformer' else {}
    module = build(MODELS[kind], 'model', model, vocab_size=vocab_size, end=end, dtype=dtype, **context)
    if kind == 'transformer':
        stacks.check(module, 'model')
    return module


def _newline(tokenizer) -> int:
    """The token of a newline, or the first one. A tokenizer that was exported and read again has the same, for what a
    model says of a text depends on it."""
    if tokenizer.kind in ('char', 'word'):
        return tokenizer.pieces.index('\n') if '\n' in tokenizer.pieces else 0
    try:
        found = tokenizer.encode('\n')
    except UserError:  # characters alone, without this one
        return 0
    return int(found[0]) if len(found) and tokenizer.decode(found) == '\n' else 0
