"""The likelihood of a held-out text, beside n-gram models and compressors that have read the training text."""

import numpy as np

from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.types import TrainState
from aigc_jax.metrics import text_likelihood
from aigc_jax.metrics.ngram import COMPRESSORS, mixture_nats
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment


class _OfTokens(Report):
    needs = (CausalText,)

    def _nll(self, params, extra, batch, ctx):
        tokens = self.experiment.preprocess(batch, ctx)['tokens']
        return self.evaluator.task.get(CausalText).token_nll(params, extra, tokens), batch['counted']

    def _of_split(self, state: TrainState, seed: int, split: str) -> text_likelihood.Nats:
        """Of each token of a split but the first, which is given."""
        windows = self.experiment.dataset.splits[split]
        n = len(windows.tokens) - 1
        nats, end = text_likelihood.Nats(np.zeros(n), np.zeros(n), np.zeros(n, np.int32)), 0
        one = self.evaluator.of_split(self._nll, state, seed, split)
        for rows, counts in self.evaluator.chunks(one, len(windows)):
            for row, counted in zip(rows, counts, strict=True):
                end += counted
                nats.counted[end - counted : end] = row[len(row) - counted :]
                nats.total[end - len(row) : end] += row
                nats.times[end - len(row) : end] += 1
        return nats


class TextLikelihood(_OfTokens):
    """Nats a token, bits a byte and perplexity, with intervals over documents."""

    name = 'text_likelihood'
    title = 'likelihood of the {split} split'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return text_likelihood.names(experiment.dataset.spec.tokenizer.num_bytes is not None)

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        nats, clusters = self._of_split(state, seed, split), self.evaluator.text_splits.clusters(split)
        return text_likelihood.scores(nats, *clusters)


class Baselines(_OfTokens):
    """What an n-gram model, its mixture with this model, and compressors reach with the training text."""

    name, when, switch = 'baselines', 'final', 'ngram_order'
    title = 'n-gram model and compressors'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        lossless = experiment.dataset.spec.tokenizer.num_bytes is not None
        models = f'{experiment.config.eval.ngram_order}-gram', 'mixture'
        found = [name for model in models for name in text_likelihood.names_beside(model, lossless)]
        return found + [f'{name}/bits_per_byte' for name in COMPRESSORS] * lossless

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        data, order = self.evaluator.text_splits, self.config.ngram_order
        (clusters, num_bytes), theirs = data.clusters(split), data.ngram_nll(split)
        ours = self._of_split(state, seed, split).counted
        results, model = {}, clusters.sums(ours)
        by_name = {f'{order}-gram': clusters.sums(theirs), 'mixture': mixture_nats(ours, theirs, clusters.index)}
        for name, nats in by_name.items():
            results |= text_likelihood.beside(name, nats, model, clusters, num_bytes)
        return results | (data.compressors(split, int(num_bytes.sum())) if num_bytes is not None else {})
