"""Samples of a language model, beside as much held-out text."""

import numpy as np

from aigc_jax.core.capabilities import CausalText, Samples
from aigc_jax.core.types import TrainState
from aigc_jax.data import is_code
from aigc_jax.metrics import python_code
from aigc_jax.metrics import text as text_metrics
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results, share_limits
from aigc_jax.runs.experiment import Experiment

_OF_CODE = python_code.parses, python_code.compiles


class TextSamples(Report):
    """Metrics of eval.num_samples samples, and of as much held-out text, cut to their lengths.

    No more samples than the split has pieces of eval.sample_tokens tokens, which overlap otherwise.
    """

    name, when, needs, switch = 'text_samples', 'final', (CausalText, Samples), 'num_samples'
    title = 'samples of text'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        found = [*text_metrics.text_metrics(['a'], b'a')]
        if is_code(experiment.config.data):
            found += [what.__name__ for what in _OF_CODE]
        return [f'samples/{name}' for name in found]

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        dataset = self.experiment.dataset
        tokens, end, most = dataset.splits[split].tokens, dataset.spec.tokenizer.end, self.config.sample_tokens
        n = min(self.config.num_samples, max(len(tokens) // most, 1))
        ours = [text_metrics.until_end(row, end) for row in self.evaluator.sample(state, seed, n)]
        starts = text_metrics.held_out_starts(tokens, end, n)
        pieces = zip(starts, ours, strict=True)
        theirs = [text_metrics.until_end(tokens[start : start + len(row)], end) for start, row in pieces]
        both = [[dataset.spec.tokenizer.decode(row) for row in rows] for rows in (ours, theirs)]
        training = self.evaluator.text_splits.text('train')
        found, reference = (text_metrics.text_metrics(texts, training) for texts in both)
        if is_code(self.experiment.config.data):
            beginnings = self._beginnings(split, n, most)
            for what in _OF_CODE:
                found[what.__name__] = text_metrics.python_share(what, both[0], [len(row) == most for row in ours])
                reference[what.__name__] = text_metrics.python_share(what, *beginnings)
        results = {
            f'samples/{name}': {'value': value, 'held_out': reference[name], 'n': n} for name, value in found.items()
        }
        for name in ('copied_whole', 'parses', 'compiles'):  # shares of the texts
            if name in found:
                low, high = share_limits(found[name], n)
                results[f'samples/{name}'] |= {'low': low, 'high': high, 'over': 'samples'}
        return results

    def _beginnings(self, split: str, n: int, most: int) -> tuple[list[str], list[bool]]:
        """Those of n held-out documents, or of all, of at most so many tokens, and which of them were cut there."""
        dataset = self.experiment.dataset
        tokens, end = dataset.splits[split].tokens, dataset.spec.tokenizer.end
        starts = np.flatnonzero(tokens == end)[:n] + 1 if end is not None else ()
        rows = [text_metrics.until_end(tokens[start : start + most], end) for start in starts]
        return [dataset.spec.tokenizer.decode(row) for row in rows], [len(row) == most for row in rows]
