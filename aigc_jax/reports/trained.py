"""A trained model on raw arrays and text, in the data's own units, for a notebook."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import tasks
from aigc_jax.core import arguments, parallel, rng
from aigc_jax.core.capabilities import (
    CausalText,
    Classifies,
    FillsIn,
    LatentSpace,
    LogDensity,
    Reconstructs,
    Samples,
    WritesText,
)
from aigc_jax.core.errors import UserError, check_type
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Extra, TrainState
from aigc_jax.data import Images
from aigc_jax.data import Text as TextSpec
from aigc_jax.data.labels import in_turn
from aigc_jax.decoding import Sampling, from_config
from aigc_jax.decoding.generate import Generator, Text
from aigc_jax.metrics import latent_codes
from aigc_jax.metrics.text import until_end
from aigc_jax.reports import classifying, filling
from aigc_jax.reports import texts as texts_lib
from aigc_jax.runs import raw
from aigc_jax.runs.calls import Calls
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

_WORDS = {
    WritesText: 'writes no text',
    Classifies: 'tells no classes',
    FillsIn: 'fills in no hidden token',
    LatentSpace: 'has no latent space',
    LogDensity: 'has no density over the data',
    Reconstructs: 'reconstructs nothing',
    Samples: 'draws no samples',
}
# What `generate` takes besides prompts, with values of the types that they have.
_HOW = {field.name: field.default for field in dataclasses.fields(Sampling)}
_HOW |= {'max_new_tokens': None, 'stop': '', 'suffix': '', 'grammar': '', 'draft': ''}
_COLUMNS = 64  # of tokens, to whose multiples a text is filled up, so that few programs are compiled


def _columns(longest: int, context: int) -> int:
    """Of tokens, for texts of at most `longest`. context: the most that the model reads; 0: any number."""
    columns = -(-longest // _COLUMNS) * _COLUMNS
    return min(columns, context) if context else columns


class Trained:
    """One replica of a run at one checkpoint: config, step, and what the model can do.

    run: None of a model that is of no run. k: of which replica; None: the first one, which stands for all where samples
    are written. shared: what is compiled, of all replicas.

    x, in and out, is (n, *shape) in the data's own units. Images go in as whole numbers 0..levels, as the set stores
    them, or as floats in [0, 1]. They come out as floats; samples are clipped to [0, 1], as metrics and pictures have
    them, and all else is as the model gives it. Points are floats.
    labels (n,): whole numbers below num_classes, which a conditional model wants and no other takes. All else raises
    UserError, and so does what the model cannot do.

    n is any number; the arrays are computed in chunks of eval.batch_size. Example i is a function of (seed, i) alone:
    neither the other examples nor the size of a chunk change its draws. Numbers may differ in the last bits where the
    chunk has another shape.
    """

    def __init__(
        self, run: Run | None, experiment: Experiment, state: TrainState, k: int | None = None,
        shared: dict | None = None,
    ):  # fmt: skip
        self.run, self.experiment, self.config = run, experiment, experiment.config
        spec = experiment.dataset.spec
        self.tokenizer = spec.tokenizer if isinstance(spec, TextSpec) else None
        self.num_classes = experiment.num_classes
        self._all, self._is_one, self._k = state, k is not None, k or 0
        self.state = experiment.replica(state, self._k)
        self.step = int(self.state.step)
        self._calls = Calls(experiment)
        self._compiled = {} if shared is None else shared  # {name: the compiled function}, of all replicas
        self._read = raw.Reader(experiment)
        self.task = experiment.task.on_data(self._read, experiment.scaling.to_data)

    def replica(self, k: int) -> 'Trained':
        """That of seed config.seed + k."""
        k = arguments.checked('k', k, Field(int))
        if not 0 <= k < len(self.experiment.seeds):
            raise UserError(f'replica: {k}; the run has {len(self.experiment.seeds)}, counted from 0')
        return Trained(self.run, self.experiment, self._all, k, self._compiled)

    def replicas(self) -> 'list[Trained]':
        return [self.replica(k) for k in range(len(self.experiment.seeds))]

    def written(self) -> 'list[Trained]':
        """Those whose samples `aigc_jax.sample` and `generate` write: all, or this one if `replica` gave it."""
        return [self] if self._is_one else self.replicas()

    def can(self, kind: type) -> bool:
        """Whether the model has a capability (core.capabilities)."""
        return self.task.get(kind) is not None

    def encode(self, x, labels=None, seed: int = 0) -> np.ndarray:
        """Codes (n, d): of a VAE the means of q(z given x)."""
        space = self._get(LatentSpace, 'encode')
        return self._of_examples('encode', space.encode, 'eval', seed, x, labels)

    def decode(self, codes, labels=None) -> np.ndarray:
        """x of codes (n, d): of a VAE the mean of p(x given z)."""
        space, codes = self._get(LatentSpace, 'decode'), arguments.array('codes', codes)
        if not (jnp.issubdtype(codes.dtype, jnp.floating) or jnp.issubdtype(codes.dtype, jnp.integer)):
            raise UserError(f'codes: {codes.dtype}; decode wants numbers')
        codes = codes.astype(np.float32)
        if codes.ndim != 2 or not len(codes):
            raise UserError(f'codes: of shape {codes.shape}; decode wants (n, d), as encode gives them')
        if codes.shape[1] != (d := self._code_width):
            raise UserError(f'codes: of shape {codes.shape}; decode wants (n, {d}), as encode gives them')
        if not np.isfinite(codes).all():
            raise UserError('codes: some are NaN or infinite')
        labels = self._classes(labels, len(codes))
        decode = lambda params, extra, codes, labels, ctx: space.decode(params, extra, codes, labels)
        return self._over('decode', decode, 'sample', 0, len(codes), codes, labels)

    @functools.cached_property
    def _code_width(self) -> int:
        """d of the codes (n, d); nothing is computed."""
        encode, index = self.experiment.task.get(LatentSpace).encode, np.zeros(1, np.int32)
        batch = {'x': np.zeros((1, *self.experiment.dataset.spec.shape), np.float32)}
        batch |= {'label': index} if self.num_classes else {}
        extra = Extra(self.state.stats, self.state.carry)
        of_batch = lambda params, extra: encode(params, extra, batch, rng.context(0, 'eval', 0, index))
        return jax.eval_shape(of_batch, self.state.params, extra).shape[1]

    def reconstruct(self, x, labels=None, seed: int = 0) -> np.ndarray:
        """(n, *shape): what the model keeps of each example."""
        function = self._get(Reconstructs, 'reconstruct').reconstruct
        return self._of_examples('reconstruct', function, 'eval', seed, x, labels)

    def interpolate(self, a, b, steps: int = 11, labels=None, how: str = '', seed: int = 0) -> np.ndarray:
        """(n, steps, *shape): from examples a to examples b, (n, *shape) each, through the latent space.

        how: 'linear' or 'spherical' (metrics.latent_codes.interpolations); '': eval.interpolation of the config.
        labels: of both, and of what lies between.
        """
        self._get(LatentSpace, 'interpolate')
        how = arguments.checked('how', how, Field(str, choices=('', *latent_codes.INTERPOLATIONS)))
        steps = arguments.checked('steps', steps, Field(int, least=2))
        a, b = arguments.array('a', a), arguments.array('b', b)
        if a.shape != b.shape:
            raise UserError(f'interpolate: a is {a.shape}, b {b.shape}; give as many of each')
        ends = [self.encode(x, labels, seed) for x in (a, b)]
        codes = latent_codes.interpolations(*ends, steps, how or self.config.eval.interpolation)
        each = None if labels is None else np.repeat(labels, steps)
        x = self.decode(codes.reshape(-1, codes.shape[-1]), each)
        return x.reshape(len(codes), steps, *x.shape[1:])

    def log_prob(self, x, seed: int = 0) -> np.ndarray:
        """log p(x) in nats, (n,).

        Of a VAE it is a lower bound in expectation: the importance-weighted bound with 64 draws (Burda et al. 2016, eq.
        8); the draws of example i are those of (seed, i). Continuous x has a density in the data's units, where images
        are in [0, 1]; a discrete likelihood has probabilities.
        Of a language model x is a list of texts, and it is exact: the sum over the tokens of each text, from the
        beginning of a document, with its end where the tokenizer has one.
        """
        if self.can(CausalText):
            return self._log_prob_of_texts(x)
        value = self._get(LogDensity, 'log_prob').value
        function = lambda params, extra, batch, ctx: value(params, extra, batch['x'], ctx)
        return self._of_examples('log_prob', function, 'score', seed, x, None)

    def sample(self, n: int, seed: int = 0, labels=None) -> np.ndarray | list[str]:
        """(n, *shape) samples, or of a language model n texts, drawn as `sample` of the config says; labels: None lets
        them run through the classes."""
        draw, n = self._get(Samples, 'sample').draw, arguments.checked('n', n, arguments.N)
        labels = self.labels_of(n, labels)
        function = lambda params, extra, labels, ctx: draw(params, extra, ctx, labels)
        samples = self._over('sample', function, 'sample', seed, n, labels)
        if not self.can(CausalText):
            return samples.clip(0, 1) if isinstance(self.experiment.dataset.spec, Images) else samples
        return [self.tokenizer.decode(until_end(tokens, self.tokenizer.end)) for tokens in samples]

    def generate(self, prompts: str | Sequence[str] = '', n: int = 1, seed: int = 0, stream=None, **how) -> list[Text]:
        """n texts that go on from each prompt, or are written for it; str(text) is all of one. Text i of all is a
        function of (seed, i).

        how: fields of decoding.Sampling (temperature, top_k, top_p, min_p, repetition_penalty, beam_size,
        length_penalty), for which the config's `sample` stands where they are left out, and max_new_tokens, stop,
        suffix and grammar as decoding.generate.Generator has them; draft: 'ngram', of the training text.
        stream: is called with a single text while it grows.
        """
        return self.writer(**how).generate(self.state, prompts, n, seed, stream)

    def fill(self, texts: str | Sequence[str], k: int = 5) -> list[filling.Filled]:
        """Each text with the likeliest token for each <mask> in it, and the k likeliest with their probabilities."""
        model, texts = self._get(FillsIn, 'fill'), arguments.texts('texts', texts)
        k = arguments.checked('k', k, Field(int, least=1, most=self.tokenizer.vocab_size))
        if not texts:
            raise UserError('fill: it is given no text')
        tokens = [filling.framed(self.tokenizer, text, model.context) for text in texts]
        columns = _columns(max(map(len, tokens)), model.context)

        def likeliest(params, extra, tokens, lengths, ctx):
            return jax.lax.top_k(jax.nn.softmax(model.fill(params, extra, tokens, lengths)), k)

        arrays = filling.rows(tokens, columns, self.tokenizer.filler)
        found = self._over(f'fill {k}', likeliest, 'eval', 0, len(texts), *arrays)
        return [filling.filled(self.tokenizer, own, *of) for own, *of in zip(tokens, *found, strict=True)]

    def classify(self, x) -> list[classifying.Told] | list[list[classifying.Told]]:
        """Of each example the probability of each class; str of it is the likeliest one.

        x: texts, each a str, or a tuple of two that are told of together. A tagger gives a list for each text: of its
        words, or of its tokens where these are tagged. Of a classifier of images x is an array of them.
        """
        model, dataset = self._get(Classifies, 'classify'), self.experiment.dataset
        names, spec = dataset.class_names, dataset.spec
        if not model.context:
            found = self._of_examples('classify', model.logits, 'eval', 0, x, None)
            return [classifying.told('', own, names) for own in found]
        texts = [(one,) if isinstance(one, str) else one for one in (x if isinstance(x, list) else [x])]
        for one in texts:
            classifying.check_count(one, ('text',) if model.by_token else spec.columns)
            arguments.texts('x', one)
        if not texts:
            raise UserError('classify: it is given no text')
        framed = [classifying.framed(self.tokenizer, one, model.context) for one in texts]
        columns = _columns(max(len(tokens) for tokens, _ in framed), model.context)
        tokens, lengths = filling.rows([tokens for tokens, _ in framed], columns, self.tokenizer.filler)
        types, _ = filling.rows([types for _, types in framed], columns, 0)
        batch = {'tokens': tokens, 'tokens_length': lengths, 'types': types}
        found = self._over('classify', model.logits, 'eval', 0, len(texts), batch)
        if not model.by_token:
            return [classifying.told(one[0], own, names) for one, own in zip(texts, found, strict=True)]
        words = [classifying.words(self.tokenizer, *one, spec.of_words) for one in texts]
        return [
            [classifying.told(word, own[place], names) for place, word in of_text]
            for of_text, own in zip(words, found, strict=True)
        ]

    def metrics(self) -> list[dict]:
        """The rows of metrics.jsonl, oldest first: {'step', 'split', 'seed' of a replica, metric: number or None}."""
        return self._saved('metrics').rows()

    def evaluations(self) -> dict[str, dict]:
        """{name of a file: what it holds}. 'evaluation', of the finished run, has {'step', metric: {'value', …}}. Every
        other evaluation has {'step', 'split', 'data', 'sample', …, 'metrics': {metric: {'value', …}}}."""
        return self._saved('evaluations').evaluations()

    def writer(self, **how) -> Generator:
        """For many calls with the same settings; see `generate`."""
        self._get(WritesText, 'generate')
        if unknown := [name for name in how if name not in _HOW]:
            raise UserError(f'generate: there is no {unknown[0]}; known: {", ".join(_HOW)}')
        for name, value in how.items():
            how[name] = value = arguments.plain(value)
            if name == 'max_new_tokens' and value is not None:
                arguments.MAX_NEW_TOKENS.check(name, value)
            if name != 'max_new_tokens':
                check_type(name, value, type(_HOW[name]))
        names = Sampling.__dataclass_fields__
        rest = {name: how[name] for name in how if name not in names}
        return texts_lib.writer(self.experiment, self.sampling(**how), **rest)

    def sampling(self, **how) -> Sampling:
        """The settings of `generate`: those of its fields that `how` holds, and of the config's `sample`."""
        given = {name: value for name, value in how.items() if name in Sampling.__dataclass_fields__}
        return from_config(self.config.sample, **given)

    def labels_of(self, n: int, labels=None) -> np.ndarray | None:
        """(n,) int32 classes to draw; None of an unconditional model. Raises UserError."""
        n = arguments.checked('n', n, arguments.N)
        return in_turn(n, self.num_classes) if labels is None else self._classes(labels, n)

    def samples_path(self, seed: int, how: Sampling | None = None) -> pathlib.Path:
        """Where samples of this replica are kept, without a suffix: STEP_sampleSEED, and -SETTINGS, a digest, where
        they are drawn in another way than the run's own config says. how: of texts."""
        of_replica = f'_seed{self.experiment.seeds[self._k]}' if len(self.experiment.seeds) > 1 else ''
        run = self._saved('samples')
        now, own = self.config.sample.to_dict(), run.config.sample.to_dict()
        if how is not None:
            now |= dataclasses.asdict(how)
            own |= dataclasses.asdict(from_config(own))
        digest = hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:8]
        return run.paths.samples / f'{self.step:08d}_sample{seed}{of_replica}{f"-{digest}" * (now != own)}'

    def _saved(self, what: str) -> Run:
        if self.run is None:
            raise UserError(f'{what}: this model is of no run, so there is no folder of them')
        return self.run

    def _get(self, kind: type, what: str):
        found = self.task.get(kind)
        if found is None:
            # A task's module names the capabilities that it can give.
            modules = {name: vars(sys.modules[make.__module__]).values() for name, make in tasks.TASKS.items()}
            is_one = lambda x: isinstance(x, type) and issubclass(x, kind)
            able = [name for name, own in modules.items() if any(map(is_one, own))]
            raise UserError(
                f'{what}: {self.config.task.name}, as it is configured here, {_WORDS[kind]}; '
                f'of the tasks {", ".join(able) or "none"} can'
            )
        return found

    def _classes(self, labels, n: int) -> np.ndarray | None:
        """(n,) int32; None of an unconditional model. Raises UserError for labels that it does not take."""
        if not self.num_classes:
            if labels is not None:
                raise UserError('labels: this model is unconditional; leave them out')
            return None
        labels = labels if labels is None else arguments.array('labels', labels)
        raw.check_labels(labels, n, self.num_classes)
        return labels.astype(np.int32)

    def _of_examples(self, name: str, function, stream: str, seed: int, x, labels) -> np.ndarray:
        """`function` of (params, extra, batch, ctx) over raw examples, once they are checked."""
        x = arguments.array('x', x)
        if not x.ndim or not len(x):
            raise UserError(f'x: of shape {x.shape}; it holds no example')
        labels = self._classes(labels, len(x))
        batch = {'x': x} | ({} if labels is None else {'label': labels})
        self._read.check(batch)
        return self._over(name, function, stream, seed, len(x), batch)

    def _over(self, name: str, function, stream: str, seed: int, n: int, *arrays):
        """`function` of (params, extra, *arrays, ctx) over trees of n examples, in chunks, on the host."""
        seed = arguments.checked('seed', seed, arguments.SEED)
        if name not in self._compiled:
            self._compiled[name] = self._calls.compiled(function, stream)

        def one(index):
            own = jax.tree.map(lambda x: parallel.put(x[index], self._calls.placement), arrays)
            return self._compiled[name](self.state, np.int32(seed), index, *own)

        return self._calls.joined(one, n)

    def _log_prob_of_texts(self, texts) -> np.ndarray:
        text, texts = self.task.get(CausalText), arguments.texts('x', texts)
        if not texts:
            raise UserError('log_prob: it is given no text')
        end = [] if text.eos is None else [text.eos]
        rows = [np.concatenate([[text.bos], self.tokenizer.encode(one), end]).astype(np.int32) for one in texts]
        longest = max(map(len, rows)) - 1
        if text.context and longest > text.context:
            k = max(range(len(rows)), key=lambda k: len(rows[k]))
            raise UserError(f'log_prob: text {k} has {longest} tokens, the model reads {text.context}; cut it')
        columns = 1 + _columns(longest, text.context)
        tokens = np.zeros((len(rows), columns), np.int32)  # what stands behind a text changes nothing before it
        for one, row in zip(tokens, rows, strict=True):
            one[: len(row)] = row
        function = lambda params, extra, tokens, ctx: text.token_nll(params, extra, tokens)
        nll = self._over('token_nll', function, 'eval', 0, len(rows), tokens)
        return np.array([-own[: len(row) - 1].sum(dtype=np.float64) for own, row in zip(nll, rows, strict=True)])
