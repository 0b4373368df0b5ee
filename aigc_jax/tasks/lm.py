"""Autoregressive language models, p(x) = Π p(x_t given x_<t), by maximum likelihood; recurrent or self-attention.

One player, 'model'. A recurrent model on contiguous data carries its state from block to block (truncated
back-propagation through time, Mikolov et al. 2010), in TrainState.carry.
"""

import jax
import jax.numpy as jnp

from aigc_jax.core import rng, schema
from aigc_jax.core.capabilities import CausalText, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Array, Batch, Extra, Task, Turn
from aigc_jax.data import Dataset, Tokens
from aigc_jax.decoding import Sampling, sample
from aigc_jax.nn import recurrent, transformer
from aigc_jax.nn.build import build, compute_dtype, fields

MODELS = {'transformer': transformer.Transformer, 'recurrent': recurrent.Recurrent}
KIND = Field(str, choices=tuple(MODELS), doc='the network, which has the other fields of the group')


def _of_kind(model, around=None) -> Group:
    return {'kind': KIND, **fields(MODELS[schema.chosen(model, 'kind', KIND, 'model')])}


FIELDS = {
    'task': {
        'z_loss': Field(float, 0.0, least=0, doc='weight of log² Z (Chowdhery et al. 2022, section 5)'),
        'separate_documents': Field(
            bool, True, doc='whether attention stops, or the state begins anew, where a document begins'
        ),
    },
    'model': _of_kind,
    'eval': {
        'sample_tokens': Field(
            int, -1, doc='of each sample; -1: 200, or as many as the model and the held-out text allow'
        )
    },
}  # fmt: skip


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    options, spec = config.task, dataset.spec
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
    if config.eval.sample_tokens < 1 or (not is_recurrent and config.eval.sample_tokens + 1 > module.context):
        raise UserError(
            f'eval.sample_tokens: {config.eval.sample_tokens}; 1 or more, and less than the data.block of a '
            'transformer; -1: as many as fit, 200 at most'
        )
    # The first token of a text that has no prompt: the end of another document, or what begins a line.
    first = tokenizer.end if tokenizer.end is not None else _newline(tokenizer)
    rows = len(dataset.splits['train']) // config.batch_size if spec.contiguous else 0

    def init(key: Array):
        # Eight tokens: no shape of the parameters depends on how many.
        params = module.init(rng.named(key, 'model'), jnp.zeros((1, 8), jnp.int32))['params']
        carry = module.initial_state(config.batch_size).layers if spec.contiguous else {}
        return {'model': params}, Extra({}, carry)

    def forward(params, tokens: Array, state=None, draw=None):
        return module.apply({'params': params['model']}, tokens, state, draw)

    def nats(params, tokens: Array, state=None, draw=None):
        """tokens (n, L + 1) -> −log p of the last L, (n, L), log Z of their logits, and the state after them."""
        logits, state = forward(params, tokens[:, :-1], state, draw)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        return log_z - chosen, log_z, state

    def loss(params, extra: Extra, batch: Batch, ctx: rng.Context):
        state = None
        if spec.contiguous:
            state = module.initial_state(batch['tokens'].shape[0])
            going_on = jnp.where(ctx.step % rows == 0, 0.0, 1.0)  # the rows begin anew together
            state = state._replace(layers=jax.tree.map(lambda x: x * going_on, extra.carry))
        draw = ctx.uniform if module.dropout else None
        per_token, log_z, state = nats(params, batch['tokens'], state, draw)
        value = jnp.mean(per_token)
        metrics = {'nats_per_token': value}
        if options.z_loss:  # ζ log² Z (Chowdhery et al. 2022, section 5)
            value = value + options.z_loss * jnp.mean(log_z**2)
        return value, (metrics, extra._replace(carry=state.layers) if spec.contiguous else extra)

    def apply(params, extra, tokens: Array, state):
        return forward(params, tokens, state)

    def attention(params, extra, tokens: Array) -> Array:
        whole = module.clone(attention='einsum', remat=False)  # what a fused kernel never holds
        _, found = whole.apply({'params': params['model']}, tokens, mutable='intermediates')
        n, length = tokens.shape
        found = found['intermediates']
        if module.scan_layers:
            weights = found['blocks']['attention'][0]
        else:
            weights = jnp.stack([found[f'block_{i}']['attention'][0] for i in range(module.layers)])
        return weights.reshape(module.layers, n, module.heads, length, length)

    def draw_sample(params, extra, ctx: rng.Context, labels) -> Array:
        """(n, eval.sample_tokens) tokens drawn from the model itself, 0 behind the end of a text."""
        n = ctx.index.shape[0]
        state = module.initial_state(n, config.eval.sample_tokens + 1)
        start = jnp.full((n, 1), first, jnp.int32)
        call = lambda tokens, state: forward(params, tokens, state)
        most = config.eval.sample_tokens
        return sample(call, state, start, ctx.key, ctx.index, Sampling(), most, tokenizer.end).tokens

    return Task(
        init=init,
        rounds=((Turn('model', loss),),),
        capabilities=(
            Samples(draw_sample),
            CausalText(
                decode=apply,
                token_nll=lambda params, extra, tokens: nats(params, tokens)[0],
                init_cache=module.initial_state,
                context=0 if is_recurrent else module.context,
                vocab_size=tokenizer.vocab_size,
                eos=tokenizer.end,
                bos=first,
                attention=None if is_recurrent else attention,
            ),
        ),
    )


def _build(config, tokenizer):
    model = config.model.copy_and_resolve_references()
    kind = model.kind
    del model['kind']
    end = tokenizer.end if config.task.separate_documents else None
    dtype = compute_dtype(config.precision)
    # No position beyond a training window has been trained, so none is read.
    context = {'context': config.data.block} if kind == 'transformer' else {}
    module = build(MODELS[kind], 'model', model, vocab_size=tokenizer.vocab_size, end=end, dtype=dtype, **context)
    if kind == 'transformer':
        transformer.check(module, 'model')
        return module
    return module


def _newline(tokenizer) -> int:
    if tokenizer.kind in ('byte', 'bpe'):
        return int(tokenizer.encode('\n')[0])
    return tokenizer.pieces.index('\n') if '\n' in tokenizer.pieces else 0
