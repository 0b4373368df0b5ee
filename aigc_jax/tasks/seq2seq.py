"""Encoder-decoders, p(target given source) = Π p(y_t given y_<t, x), by maximum likelihood: T5 (Raffel et al. 2020).

One player, 'model'. On pairs of texts the source is given and the target is to be written. On windows of text both are
made of the window, by task.objective (data/denoising.py). Of some windows the encoder may tell which tokens are of
identifiers instead (task.tagging_share).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures, Seq2Seq
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn
from aigc_jax.data import NO_TAG, Dataset, Pairs, Tokens, denoising, rows
from aigc_jax.decoding import Sampling, from_config
from aigc_jax.nn import encoder_decoder
from aigc_jax.nn.build import build, compute_dtype, drawn, embedding_rows, fields
from aigc_jax.tasks.lm import VOCAB_SIZE, chosen
from aigc_jax.tasks.mlm import judged

OBJECTIVES = ('spans', 'prefix', 'identifiers', 'identifier_aware')
FIELDS = {
    'task': {
        'objective': Field(
            str, 'spans', choices=OBJECTIVES,
            doc='of windows of text: `spans` are hidden and to be written (T5), or `identifiers`, or one of both in '
            'turn, `identifier_aware` (CodeT5), or what follows a `prefix` of a drawn length; pairs are as they are',
        ),
        'noise_density': Field(float, 0.15, above=0, below=1, doc='share of the tokens that spans hide'),
        'mean_span': Field(float, 3.0, least=1, doc='tokens of a span, on average'),
        'tagging_share': Field(
            float, 0.0, least=0, below=1,
            doc='of `identifier_aware`, the share of the windows of which nothing is hidden, and the encoder tells of '
            'each token whether it is of an identifier (CodeT5: 1/3)',
        ),
        'z_loss': Field(float, 0.0, least=0, doc='weight of log² Z (Chowdhery et al. 2022, section 5)'),
        'label_smoothing': Field(
            float, 0.0, least=0, below=1, doc='share of the target that all tokens have alike (Szegedy et al. 2016)'
        ),
    },
    'model': {'vocab_size': VOCAB_SIZE, **fields(encoder_decoder.EncoderDecoder)},
    'sample': fields(Sampling),
    'eval': {
        'num_generated': Field(
            int, 200, least=0, doc='of the final evaluation, targets of pairs that are written; 0: none'
        ),
        'generated_beams': Field(int, 1, least=1, doc='of the search for them; 1: the likeliest token each time'),
        'code_bleu': Field(bool, False, doc='whether they are Python, so that CodeBLEU is measured, too'),
    },
}  # fmt: skip


class Tagging(NamedTuple):
    """Which share of the windows is tagged, and the weight of a tagged token in the loss, where that of a token that is
    written is 1."""

    share: float
    weight: float


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderDecoderModel:
    """The functions of the task.

    objective: makes pairs of windows; its transform is the identity where the data are pairs. bos: the token before
    each target, which is not written. z_loss, label_smoothing: of the loss. whole: whether it is measured which targets
    are right as a whole. tagging: None: there is none.

    With tagging the loss is one mean, over the tokens that are written and those that are tagged, in the weights that
    Tagging tells, so that parts of a batch add up to the whole. A training tells this mean alone, for a batch may have
    no window of one kind. An evaluation takes each window for both, so that it hides what it hides without tagging.
    """

    module: encoder_decoder.EncoderDecoder
    tokenizer: Any
    objective: denoising.Objective
    before: tuple[int, ...]
    bos: int
    z_loss: float
    label_smoothing: float
    whole: bool
    tagging: Tagging | None = None

    def init(self, key: Array):
        tokens = jnp.zeros((1, 8), jnp.int32)  # no shape of the parameters depends on how many
        inputs, method = (tokens, jnp.ones((1, 8), bool), tokens), 'both' if self.tagging else '__call__'
        params = drawn(self.module, rng.named(key, 'model'), *inputs, method=method)
        return {'model': params}, Extra({}, {})

    def apply(self, params, *arguments, method: str = '__call__'):
        return self.module.apply({'params': params['model']}, *arguments, method=method)

    def score(self, params, pair: Batch, draw=None) -> tuple[Array, Array]:
        """logits (n, T, vocabulary) of the tokens of the targets, and which of them there are, bool (n, T)."""
        parts = (pair['source_part'], pair['target_part']) if 'target_part' in pair else None  # see rows.packed
        logits = self.apply(params, *self._inputs(pair), draw, parts)
        return logits, rows.mask(pair['target_length'], pair['target'].shape[1])

    def _inputs(self, pair: Batch) -> tuple[Array, Array, Array]:
        """(source, where it has a token, the token before each of the target)."""
        source, target = pair['source'], pair['target']
        before = jnp.concatenate([jnp.full_like(target[:, :1], self.bos), target[:, :-1]], axis=1)
        if 'target_part' in pair:
            before = jnp.where(jnp.diff(pair['target_part'], axis=1, prepend=0) != 0, self.bos, before)
        return source, rows.mask(pair['source_length'], source.shape[1]), before

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        pair, draw = self.objective.transform(batch, ctx), ctx.uniform if self.module.dropout else None
        if self.tagging:
            return self._tagged_loss(params, extra, batch, pair, ctx, draw)
        logits, there = self.score(params, pair, draw)
        count = jnp.sum(there)
        value, nats = self._written(logits, pair['target'], lambda x: jnp.sum(jnp.where(there, x, 0)) / count)
        return value, Aux({'nats_per_token': nats}, extra, count.astype(jnp.float32), (logits, there))

    def _tagged_loss(self, params, extra: Extra, batch: Batch, pair: Batch, ctx: rng.Context, draw):
        tagging = self.tagging
        pair = denoising.partly_tagged(pair, batch, ctx, tagging.share, self.objective.behind)
        logits, tag_logits = self.apply(params, *self._inputs(pair), draw, method='both')
        there = rows.mask(pair['target_length'], pair['target'].shape[1])
        tags = _judged_tags(tag_logits, pair['tags'])
        count = jnp.sum(there) + tagging.weight * jnp.sum(tags.there)
        value, _ = self._written(logits, pair['target'], lambda x: jnp.sum(jnp.where(there, x, 0)) / count)
        return value + tagging.weight * jnp.sum(tags.nats) / count, Aux({}, extra, count)

    def _written(self, logits: Array, target: Array, mean) -> tuple[Array, Array]:
        """(the loss, its −log p of the targets). mean: over the tokens of targets."""
        log_z = jax.nn.logsumexp(logits, axis=-1)
        value = nats = mean(log_z - chosen(logits, target))
        if self.label_smoothing:
            uniform = mean(log_z - jnp.mean(logits, axis=-1))
            value = (1 - self.label_smoothing) * value + self.label_smoothing * uniform
        if self.z_loss:
            value = value + self.z_loss * mean(log_z**2)
        return value, nats

    def measure(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> dict[str, Any]:
        """Nats and accuracy of each token of a target, given those before it. exact_match: all are the likeliest, so
        that greedy decoding writes the target."""
        pair = self.objective.transform(batch, rng.context(0, 'eval', 0, ctx.index))  # the same for each seed
        logits, there = self.score(params, pair)
        total = lambda x: jnp.sum(jnp.where(there, x, 0), axis=1)
        count = jnp.sum(there, axis=1)
        nats, right = judged(logits, pair['target'])
        found = {'model/nats_per_token': (total(nats), count), 'model/accuracy': (total(right), count)}
        found |= {'model/exact_match': jnp.all(right | ~there, axis=1)} if self.whole else {}
        return found | (self._measured_tags(params, batch) if self.tagging else {})

    def _measured_tags(self, params, batch: Batch) -> dict[str, Any]:
        """Of each window as it is. identifier_share: of the tokens; its complement, or itself, is the accuracy of who
        says the same of all."""
        whole = denoising.tagged(batch, self.objective.behind)
        memory = self.apply(params, *self._inputs(whole)[:2], method='encode')
        tags = _judged_tags(self.apply(params, memory, method='tag'), whole['tags'])
        count = jnp.sum(tags.there, axis=1)
        sums = {'nats_per_token': tags.nats, 'accuracy': tags.right, 'identifier_share': whole['tags'] == 1}
        return {f'tagging/{name}': (jnp.sum(x, axis=1), count) for name, x in sums.items()}

    def decode(self, params, extra: Extra, tokens: Array, cache: Tree):
        """Of the tokenizer's tokens alone: checkpoints may have more rows than that."""
        logits, cache = self.apply(params, tokens, None, None, cache, method='decode')
        return logits[..., : self.tokenizer.vocab_size], cache

    def init_cache(self, params, extra: Extra, source: Array, start: Array, columns: int) -> Tree:
        mask = jnp.arange(source.shape[1]) >= start[:, None]
        memory = self.apply(params, source, mask, method='encode')
        return self.apply(params, memory, mask, columns, method='initial_state')

    def token_nll(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> tuple[Array, Array]:
        pair = self.objective.transform(batch, ctx)
        logits, there = self.score(params, pair)
        return judged(logits, pair['target'])[0], there

    def task(self) -> Task:
        return Task(
            init=self.init,
            rounds=((Turn('model', self.loss),),),
            capabilities=(
                Measures(self.measure),
                Seq2Seq(
                    decode=self.decode,
                    init_cache=self.init_cache,
                    token_nll=self.token_nll,
                    frame=(self.before, self.objective.behind),
                    vocab_size=self.tokenizer.vocab_size,
                    eos=self.tokenizer.end,
                    bos=self.bos,
                    columns=True,
                ),
            ),
        )


class _JudgedTags(NamedTuple):
    """(n, S) each: whether a token has a tag; of those that have one −log p of it, and whether it is the likelier."""

    there: Array
    nats: Array
    right: Array


def _judged_tags(logits: Array, tags: Array) -> _JudgedTags:
    """logits (n, S) that the tag is 1; tags (n, S): 1, 0 or NO_TAG."""
    there, is_one = tags != NO_TAG, tags == 1
    nats = optax.sigmoid_binary_cross_entropy(logits, is_one)
    return _JudgedTags(there, jnp.where(there, nats, 0), there & ((logits > 0) == is_one))


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    spec, options = dataset.spec, config.task
    if not isinstance(spec, (Tokens, Pairs)):
        raise UserError(f'task.name: seq2seq reads text or pairs of texts; {config.data.name} holds {spec.words}')
    tokenizer = spec.tokenizer
    model = config.model.copy_and_resolve_references()
    vocab_size = embedding_rows(model, tokenizer.vocab_size)
    dtype = compute_dtype(config.precision)
    module = build(encoder_decoder.EncoderDecoder, 'model', model, vocab_size=vocab_size, dtype=dtype)
    encoder_decoder.check(module, 'model')
    from_config(config.sample).check(tokenizer.vocab_size, 'sample.')
    is_pairs = isinstance(spec, Pairs)
    packed = 'packed' in config.data and config.data.packed  # a folder of Hugging Face has the fields of text
    if packed and 'train' in (config.eval.split, config.eval.final_split):
        raise UserError('data.packed: the rows of train hold several pairs each, so evaluate another split than train')
    return EncoderDecoderModel(
        module=module,
        tokenizer=tokenizer,
        objective=denoising.Objective(lambda batch, ctx: batch, tokenizer.frame.behind) if is_pairs
        else _objective(config, spec),
        before=tokenizer.frame.before if is_pairs else (),
        bos=tokenizer.filler,
        z_loss=options.z_loss,
        label_smoothing=options.label_smoothing,
        whole=is_pairs,
        tagging=_tagging(config, spec) if options.tagging_share else None,
    ).task()  # fmt: skip


def _tagging(config, spec: Tokens | Pairs) -> Tagging:
    options = config.task
    given = f'task.tagging_share: {options.tagging_share:g}'
    if isinstance(spec, Pairs):
        raise UserError(f'{given}; it is of windows of text, and {config.data.name} holds {spec.words}; set it to 0')
    if options.objective != 'identifier_aware':
        raise UserError(f'{given}; task.objective={options.objective} has none, but identifier_aware; set it to 0')
    if config.distill.run:
        raise UserError(f'{given}; what the encoder tells is not learned from distill.run; set it to 0')
    # A window that is tagged weighs as much as one of which spans are hidden.
    has_end = spec.tokenizer.end is not None
    written = denoising.span_sizes(spec.block, options.noise_density, options.mean_span, has_end).target
    return Tagging(options.tagging_share, written / spec.block)


def _objective(config, spec: Tokens) -> denoising.Objective:
    options, data = config.task, config.data
    if spec.contiguous:
        raise UserError('data.order: no state is carried from block to block; set it to shuffled')
    if data.eval_block not in (0, data.block):
        raise UserError(f'data.eval_block: {data.eval_block}; sources and targets are made of windows of data.block')
    if data.fim_rate:
        raise UserError('data.fim_rate: infilling is for task.name=lm; here task.objective hides what is to be written')
    if options.objective == 'prefix':
        if spec.block < 2:
            raise UserError(f'data.block: {spec.block}; a window is divided into source and target, so 2 or more')
        return denoising.prefix()
    by_name = options.objective in ('identifiers', 'identifier_aware')
    if by_name and not data.number_identifiers:
        raise UserError(f'data.number_identifiers: False; task.objective={options.objective} wants it: set it to True')
    if options.objective == 'identifiers':
        found = denoising.names(spec.tokenizer)
    else:
        make_one = denoising.identifier_aware if by_name else denoising.spans
        found = make_one(spec.tokenizer, options.noise_density, options.mean_span)
    window = dict.fromkeys(('tokens', 'names'), jax.ShapeDtypeStruct((1, spec.block + 1), jnp.int32))
    jax.eval_shape(lambda batch: found.transform(batch, rng.context(0, 'eval', 0, jnp.arange(1))), window)
    return found
