"""How the codes of a discrete latent are used over a split."""

from aigc_jax.core.capabilities import Codebook
from aigc_jax.core.types import TrainState
from aigc_jax.metrics.codebook import perplexity, used_share
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment

_METRICS = (perplexity, used_share)


class CodebookUse(Report):
    name, needs = 'codebook', (Codebook,)
    title = 'use of the codes on the {split} split'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return [f'codes/{metric.__name__}' for metric in _METRICS]

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        use, n = self.evaluator.code_use(state, seed, split), len(self.experiment.dataset.splits[split])
        return {f'codes/{metric.__name__}': {'value': metric(use), 'n': n} for metric in _METRICS}
