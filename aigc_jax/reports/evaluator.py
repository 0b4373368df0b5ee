"""Evaluation and sampling of any task, on the state of one replica."""

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np

from aigc_jax.core import optim, parallel, progress, records, rng
from aigc_jax.core.capabilities import (
    CausalText,
    Codebook,
    LatentSpace,
    Measures,
    Reconstructs,
    Samples,
    ScalarField,
    SplitStatistic,
)
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.files import atomic_write
from aigc_jax.core.kept import cached_method
from aigc_jax.core.types import Extra, TrainState
from aigc_jax.data import is_code
from aigc_jax.data.labels import in_turn
from aigc_jax.metrics import intervals, python_code, text_likelihood
from aigc_jax.metrics import text as text_samples
from aigc_jax.metrics.codebook import perplexity, used_share
from aigc_jax.metrics.intervals import ratio
from aigc_jax.metrics.mixture import mixture_metrics, perfect_sampler
from aigc_jax.metrics.ngram import COMPRESSORS, KneserNey, compressed_bits, mixture_nats
from aigc_jax.runs.experiment import Experiment

# {metric: {'value', 'n', and if known 'over' with 'ci' or 'low' and 'high' (see metrics.intervals), 'difference' (to
# the model, a row), 'perfect', 'held_out' or 'real'}}
Results = dict[str, dict[str, float]]
_SURFACE_POINTS = 100  # along each axis


class Evaluator:
    """The compiled functions of one experiment; each sees the averaged parameters where an average is kept."""

    def __init__(self, experiment: Experiment):
        self._experiment, task, plan = experiment, experiment.task, experiment.plan
        shards = math.prod(plan.mesh.shape[axis] for axis in parallel.BATCH_AXES)
        self._chunk = experiment.config.eval.batch_size
        fits = not plan.replicas and plan.mode == 'jit' and self._chunk % shards == 0
        self._placement = plan.examples if fits else plan.replicated

        def compiled(function, stream):
            def call(state, seed, index, *args):
                params = optim.averaged(state.params, state.opt)
                ctx = rng.context(seed, stream, 0, index)  # the same draws at every step: curves stay comparable
                return function(params, Extra(state.stats, state.carry), *args, ctx)

            if plan.mode == 'pmap':
                return jax.jit(call)
            return jax.jit(call, out_shardings=plan.replicated, compiler_options=plan.compiler_options)

        to_data, preprocess = experiment.scaling.to_data, experiment.preprocess
        self._on_data = [one.on_data(preprocess, to_data) for one in task.capabilities]
        self.text, self.samples = self._get(CausalText), self._get(Samples)
        self.field, self.codebook = self._get(ScalarField), self._get(Codebook)

        def originals(params, extra, batch, ctx):
            return to_data(preprocess(batch, ctx)['x'])

        def nll(params, extra, batch, ctx):
            return self.text.token_nll(params, extra, preprocess(batch, ctx)['tokens']), batch['counted']

        def attention(params, extra, batch, ctx):
            return self.text.attention(params, extra, batch['tokens'])

        def sample(params, extra, labels, ctx):
            return self.samples.draw(params, extra, ctx, labels)

        def decode(params, extra, codes, labels, ctx):
            return space.decode(params, extra, codes, labels)

        self._originals = compiled(originals, 'eval')
        self._sample = compiled(sample, 'sample') if self.samples else None
        self._attention = compiled(attention, 'eval') if self.text and self.text.attention else None
        self._nll = compiled(nll, 'eval') if self.text else None
        self._measure = compiled(found.per_example, 'eval') if (found := self._get(Measures)) else None
        self._reconstruct = compiled(found.reconstruct, 'eval') if (found := self._get(Reconstructs)) else None
        self._codes = compiled(self.codebook.index, 'eval') if self.codebook else None
        self._score = compiled(self.field.value, 'score') if self.field else None
        space = self._get(LatentSpace)
        self._encode = compiled(space.encode, 'eval') if space else None
        self._decode = compiled(decode, 'sample') if space else None
        statistics = [one for one in self._on_data if isinstance(one, SplitStatistic)]
        self._statistics = [(one, compiled(one.collect, 'eval')) for one in statistics]

    def _get(self, kind):
        return next((one for one in self._on_data if isinstance(one, kind)), None)

    def evaluate(self, state: TrainState, seed: int, split: str) -> Results:
        """Means over a split with their 95 % intervals; metrics of samples where the data's density is known."""
        results = {}
        if self._measure:
            n = len(self._experiment.dataset.splits[split])
            found = self._over_split(self._measure, state, seed, split, n)
            for name in sorted(found, key=_by_numbers):
                results[name] = _mean(found[name])
        if self._nll:
            results |= text_likelihood.scores(self._text_nats(state, seed, split), *self._clusters(split))
        use = self.code_use(state, seed, split)
        if use is not None:
            n = len(self._experiment.dataset.splits[split])
            results |= {f'codes/{f.__name__}': {'value': f(use), 'n': n} for f in (perplexity, used_share)}
        density = self._experiment.dataset.density
        if density is not None:
            n = self._experiment.config.eval.num_samples
            samples = self.sample(state, seed, n)
            perfect = perfect_sampler(density, n)
            finite = np.isfinite(samples).all()
            found = mixture_metrics(samples, density) if finite else dict.fromkeys(perfect, math.nan)
            for name, value in found.items():
                row = results[f'samples/{name}'] = {'value': float(value), 'perfect': float(perfect[name]), 'n': n}
                if name == 'high_quality' and finite:  # in percent
                    low, high = _share(value / 100, n)
                    row |= {'low': 100 * low, 'high': 100 * high, 'over': 'samples'}
        return results

    def diagnostics(self, state: TrainState, seed: int, split: str) -> Results:
        """What the task says of a split as a whole (core.capabilities.SplitStatistic); for the final evaluation."""
        results, size = {}, len(self._experiment.dataset.splits[split])
        for diagnostic, collect in self._statistics:
            where = rng.fixed_choice(size, diagnostic.most or size)
            found = diagnostic.summarize(self._over_split(collect, state, seed, split, where))
            for name in sorted(found, key=_by_numbers):
                value = found[name]
                results[name] = _mean(value) if np.ndim(value) else {'value': float(value), 'n': len(where)}
        return results

    def baselines(self, state: TrainState, seed: int, split: str) -> Results:
        """Of text: what an n-gram model, its mixture with this one, and compressors reach with the training text."""
        if not self._nll or not (order := self._experiment.config.eval.ngram_order):
            return {}
        (clusters, num_bytes), theirs = self._clusters(split), self._ngram_nats(split)
        ours = self._text_nats(state, seed, split).counted
        results, model = {}, clusters.sums(ours)
        by_name = {f'{order}-gram': clusters.sums(theirs), 'mixture': mixture_nats(ours, theirs, clusters.index)}
        for name, nats in by_name.items():
            results |= text_likelihood.beside(name, nats, model, clusters, num_bytes)
        return results | (self._compressors(split, int(num_bytes.sum())) if num_bytes is not None else {})

    def _text_nats(self, state: TrainState, seed: int, split: str) -> text_likelihood.Nats:
        """Of each token of a text split but the first, which is given."""
        windows = self._experiment.dataset.splits[split]
        n = len(windows.tokens) - 1
        nats, end = text_likelihood.Nats(np.zeros(n), np.zeros(n), np.zeros(n, np.int32)), 0
        for rows, counts in self._chunks(self._of_split(self._nll, state, seed, split), len(windows)):
            for row, counted in zip(rows, counts, strict=True):
                end += counted
                nats.counted[end - counted : end] = row[len(row) - counted :]
                nats.total[end - len(row) : end] += row
                nats.times[end - len(row) : end] += 1
        return nats

    @cached_method
    def _clusters(self, split: str) -> tuple[text_likelihood.Clusters, np.ndarray | None]:
        """(what the tokens of a text split but the first are grouped by, the bytes that each stands for or None)."""
        tokens, tokenizer = self._experiment.dataset.splits[split].tokens, self._experiment.dataset.tokenizer
        num_bytes = None if tokenizer.num_bytes is None else tokenizer.num_bytes[tokens[1:]]
        return text_likelihood.Clusters.of_text(tokens, tokenizer.end), num_bytes

    @functools.cached_property
    def ngram(self) -> KneserNey:
        """Of order eval.ngram_order, of the training text."""
        dataset, order = self._experiment.dataset, self._experiment.config.eval.ngram_order
        return KneserNey(dataset.splits['train'].tokens, order, dataset.tokenizer.vocab_size)

    @cached_method
    def _ngram_nats(self, split: str) -> np.ndarray:
        return self.ngram.nats(self._experiment.dataset.splits[split].tokens)[1:]

    @cached_method
    def _compressors(self, split: str, num_bytes: int) -> Results:
        training, held_out = self._text('train'), self._text(split)
        found = {name: compressed_bits(name, training, held_out) / num_bytes for name in COMPRESSORS}
        return {f'{name}/bits_per_byte': {'value': value, 'n': num_bytes} for name, value in found.items()}

    @cached_method
    def _text(self, split: str) -> bytes:
        dataset = self._experiment.dataset
        return dataset.tokenizer.decode(dataset.splits[split].tokens).encode()

    def texts(self, state: TrainState, seed: int, split: str) -> Results:
        """Metrics of eval.num_samples samples of a language model, and of as much held-out text, cut to their lengths.

        No more samples than the split has pieces of eval.sample_tokens tokens, which overlap otherwise.
        """
        config, dataset = self._experiment.config, self._experiment.dataset
        if dataset.kind != 'text' or not config.eval.num_samples:
            return {}
        tokens, end, most = dataset.splits[split].tokens, dataset.tokenizer.end, config.eval.sample_tokens
        n = min(config.eval.num_samples, max(len(tokens) // most, 1))
        ours = [text_samples.until_end(row, end) for row in self.sample(state, seed, n)]
        starts = text_samples.held_out_starts(tokens, end, n)
        pieces = zip(starts, ours, strict=True)
        theirs = [text_samples.until_end(tokens[start : start + len(row)], end) for start, row in pieces]
        both = [[dataset.tokenizer.decode(row) for row in rows] for rows in (ours, theirs)]
        found, reference = (text_samples.text_metrics(texts, self._text('train')) for texts in both)
        if is_code(config.data):
            beginnings = self._beginnings(split, n, most)
            for what in (python_code.parses, python_code.compiles):
                found[what.__name__] = text_samples.python_share(what, both[0], [len(row) == most for row in ours])
                reference[what.__name__] = text_samples.python_share(what, *beginnings)
        results = {
            f'samples/{name}': {'value': value, 'held_out': reference[name], 'n': n} for name, value in found.items()
        }
        for name in ('copied_whole', 'parses', 'compiles'):  # shares of the texts
            if name in found:
                low, high = _share(found[name], n)
                results[f'samples/{name}'] |= {'low': low, 'high': high, 'over': 'samples'}
        return results

    def _beginnings(self, split: str, n: int, most: int) -> tuple[list[str], list[bool]]:
        """Those of n held-out documents, or of all, of at most so many tokens, and which of them were cut there."""
        dataset = self._experiment.dataset
        tokens, end = dataset.splits[split].tokens, dataset.tokenizer.end
        starts = np.flatnonzero(tokens == end)[:n] + 1 if end is not None else ()
        rows = [text_samples.until_end(tokens[start : start + most], end) for start in starts]
        return [dataset.tokenizer.decode(row) for row in rows], [len(row) == most for row in rows]

    def sample(self, state: TrainState, seed: int, n: int, labels: np.ndarray | None = None) -> np.ndarray:
        """(n, *shape); sample i is a function of (seed, i) alone. labels (n,); None: they run through the classes."""
        classes = self._experiment.num_classes
        labels = in_turn(n, classes) if labels is None else labels

        def one(index):
            return self._sample(state, np.int32(seed), index, None if not classes else np.asarray(labels)[index])

        return self._in_chunks(one, n)

    def reconstruct(self, state: TrainState, seed: int, split: str, n: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(originals, reconstructions) of the first n examples of a split, or None where the task has none."""
        if not self._reconstruct:
            return None
        n = min(n, len(self._experiment.dataset.splits[split]))
        pair = (self._originals, self._reconstruct)
        return tuple(self._over_split(function, state, seed, split, n) for function in pair)

    def encode(self, state: TrainState, seed: int, split: str, n: int) -> np.ndarray | None:
        """(n, d) codes of the first n examples of a split, or None where the task has none."""
        n = min(n, len(self._experiment.dataset.splits[split]))
        return self._over_split(self._encode, state, seed, split, n) if self._encode else None

    def decode(self, state: TrainState, z: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """(n, *shape) of codes (n, d), with labels (n,) where the model is conditional."""
        z, classes = np.asarray(z, np.float32), self._experiment.num_classes
        one = lambda index: self._decode(state, np.int32(0), index, z[index], labels[index] if classes else None)
        return self._in_chunks(one, len(z))

    def code_use(self, state: TrainState, seed: int, split: str) -> np.ndarray | None:
        """(K,) how often each code stands for the examples of a split; None where the task has none."""
        if not self._codes:
            return None
        found = self._over_split(self._codes, state, seed, split, len(self._experiment.dataset.splits[split]))
        return np.bincount(found.ravel(), minlength=self.codebook.size)

    def attention(self, state: TrainState, tokens: np.ndarray) -> np.ndarray | None:
        """Weights (layers, heads, L, L) over the tokens (L,), [query, key] last; None where the model has none."""
        if not self._attention:
            return None
        batch = {'tokens': np.asarray(tokens, np.int32)[None]}
        return parallel.fetch(self._attention(state, np.int32(0), np.zeros(1, np.int32), batch))[:, 0]

    def surface(self, state: TrainState, seed: int, extent: tuple[float, float, float, float]):
        """(xs, ys, values (len(ys), len(xs)), label) of the task's score over a rectangle; None where it has none."""
        if not self._score or self._experiment.dataset.shape != (2,):
            return None
        xs = np.linspace(extent[0], extent[1], _SURFACE_POINTS)
        ys = np.linspace(extent[2], extent[3], _SURFACE_POINTS)
        points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float32)
        one = lambda index: self._score(state, np.int32(seed), index, points[index])
        values = self._in_chunks(one, len(points)).reshape(len(ys), len(xs))
        return xs, ys, values, self.field.label

    def _over_split(self, function, state, seed, split, where):
        """`function` of the examples at these places of a split, (n,); an int: the first so many."""
        places = np.asarray(where if np.ndim(where) else np.arange(where), np.int32)
        one = self._of_split(function, state, seed, split)
        return self._in_chunks(lambda row: one(places[row]), len(places))

    def _of_split(self, function, state, seed, split) -> Callable:
        def one(index):
            examples = parallel.put(self._experiment.examples(split, index), self._placement)
            return function(state, np.int32(seed), index, examples)

        return one

    def _in_chunks(self, one: Callable, n: int):
        """What `_chunks` yields, joined."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *self._chunks(one, n))

    def _chunks(self, one: Callable, n: int) -> Iterator:
        """`one` of index chunks of one shape (the last is filled up, and cut), on the host."""
        chunk = min(self._chunk, n) if self._placement.is_fully_replicated else self._chunk
        for start in progress.each(range(0, n, chunk)):
            index = np.minimum(np.arange(start, start + chunk, dtype=np.int32), n - 1)
            yield jax.tree.map(lambda leaf, left=n - start: leaf[:left], parallel.fetch(one(index)))


def _mean(values: np.ndarray | tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Over examples, of what Task.evaluate says of each."""
    if isinstance(values, tuple):
        return ratio(*values)
    return intervals.wilson(values.sum(), len(values)) if values.dtype == bool else ratio(values)


def _share(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n samples; nan where that is undefined."""
    return (math.nan, math.nan) if math.isnan(share) else intervals.limits(intervals.wilson(share * n, n))


def _by_numbers(name: str) -> list:
    """A key that sorts k2 before k10, where a compiled function returns them by the letters."""
    parts = re.split(r'(\d+(?:\.\d+)?(?:e[-+]?\d+)?)', name)
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def write(path: pathlib.Path, step: int, by_seed: dict[int, Results]) -> None:
    """evaluation.json: {"step", metric: {"value", …}}; with replicas as `across` has it."""
    atomic_write(path, json.dumps({'step': step, **_finite(across(by_seed))}, indent=2) + '\n')


def read(path: pathlib.Path) -> tuple[int, Results] | None:
    """(step, what `across` gave) of an evaluation.json; None where there is none. Raises UserError."""
    if not path.exists():
        return None
    nan = lambda row: {key: math.nan if value is None else value for key, value in row.items()}
    try:
        found = records.read(path)
        step, results = found.pop('step'), {name: nan(row) for name, row in found.items()}
        if printable(shown := table(results)) != shown:
            raise ValueError('a name holds control characters')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}: cannot be read as an evaluation ({error}); remove it, and --mode=evaluate makes it again'
        ) from None
    return step, results


def across(by_seed: dict[int, Results]) -> Results:
    """One replica's results as they are; several as their means with intervals over seeds (intervals.across).

    What is the exponential of another metric is that of its mean: the mean of exponentials would be above it.
    """
    if len(by_seed) == 1:
        return next(iter(by_seed.values()))
    first = next(iter(by_seed.values()))
    joined = {
        name: intervals.across({str(seed): results[name] for seed, results in by_seed.items()}) for name in first
    }
    for name, found in joined.items():
        if 'exp_of' in found:
            values = found['values']
            joined[name] = intervals.exponential(found['exp_of'], joined[found['exp_of']]) | {'values': values}
    return joined


def table(results: Results) -> str:
    """The evaluation for a person: one metric a line."""
    width = max(32, *map(len, results)) if results else 0
    marks = {'perfect': 'perfect sampler', 'held_out': 'held-out text', 'real': 'real images'}
    lines = []
    for name, found in results.items():
        mark = ''.join(f'  {label} {found[key]:.5g}' for key, label in marks.items() if key in found)
        if 'difference' in found:
            less = found['difference']
            mark += f'  minus the model {less["value"]:.4g}{_interval(less)}'
            mark += f' over {less["n"]} {less["over"]}' if less['over'] != found['over'] else ''
        if 'diverged' in found:
            mark += f'  {found["diverged"]} of {len(found["values"])} diverged'
        interval = _interval(found)
        over = f'over {found["n"]} {found["over"]}' if interval else f'(n={found["n"]})'
        lines.append((f'{name:<{width}} {found["value"]:>12.6g}{interval}', f'{over}{mark}'))
    width = max((len(begin) for begin, _ in lines), default=0)
    return '\n'.join(f'{begin:<{width}} {rest}' for begin, rest in lines)


def _interval(row: dict[str, float]) -> str:
    if not (limits := intervals.limits(row)):
        return ''
    return f' ± {row["ci"]:.4g}' if 'ci' in row else ' ({:.4g}–{:.4g})'.format(*limits)


def _finite(value):
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
