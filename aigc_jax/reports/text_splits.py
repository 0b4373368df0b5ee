"""What depends on the splits of a text alone, computed once: its bytes, its n-gram model, its compressed size."""

import functools

import numpy as np

from aigc_jax.core.kept import cached_method
from aigc_jax.metrics import text_likelihood
from aigc_jax.metrics.ngram import COMPRESSORS, KneserNey, compressed_bits
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment


class TextSplits:
    def __init__(self, experiment: Experiment):
        self._dataset, self._config = experiment.dataset, experiment.config.eval

    @cached_method
    def clusters(self, split: str) -> tuple[text_likelihood.Clusters, np.ndarray | None]:
        """(what the tokens of a split but the first are grouped by, the bytes that each stands for or None)."""
        tokens, tokenizer = self._dataset.splits[split].tokens, self._dataset.spec.tokenizer
        num_bytes = None if tokenizer.num_bytes is None else tokenizer.num_bytes[tokens[1:]]
        return text_likelihood.Clusters.of_text(tokens, tokenizer.end), num_bytes

    @functools.cached_property
    def ngram(self) -> KneserNey:
        """Of order eval.ngram_order, of the training text."""
        return KneserNey(
            self._dataset.splits['train'].tokens, self._config.ngram_order, self._dataset.spec.tokenizer.vocab_size
        )

    @cached_method
    def ngram_nll(self, split: str) -> np.ndarray:
        """−log p of each token of a split but the first by the n-gram model, in nats."""
        return self.ngram.nats(self._dataset.splits[split].tokens)[1:]

    @cached_method
    def compressors(self, split: str, num_bytes: int) -> Results:
        """Bits a byte of compressors that have read the training text."""
        training, held_out = self.text('train'), self.text(split)
        found = {name: compressed_bits(name, training, held_out) / num_bytes for name in COMPRESSORS}
        return {f'{name}/bits_per_byte': {'value': value, 'n': num_bytes} for name, value in found.items()}

    @cached_method
    def text(self, split: str) -> bytes:
        return self._dataset.spec.tokenizer.decode(self._dataset.splits[split].tokens).encode()
