"""Samples of data whose density is known: which modes they have, how well and how wide."""

import math

import numpy as np

from aigc_jax.core.capabilities import Samples
from aigc_jax.core.types import TrainState
from aigc_jax.data import Points
from aigc_jax.metrics.mixture import mixture_metrics, perfect_sampler
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results, share_limits
from aigc_jax.runs.experiment import Experiment


class MixtureSamples(Report):
    """Metrics of eval.num_samples samples of a Gaussian mixture, each beside what a perfect sampler reaches."""

    name, needs = 'mixture_samples', (Samples, Points)
    title = 'samples of the mixture'

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        return super().applies(experiment) and experiment.dataset.spec.density is not None

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return [f'samples/{name}' for name in perfect_sampler(experiment.dataset.spec.density, 1)]

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        results, density, n = {}, self.experiment.dataset.spec.density, self.config.num_samples
        samples, perfect = self.evaluator.sample(state, seed, n), perfect_sampler(density, n)
        finite = np.isfinite(samples).all()
        found = mixture_metrics(samples, density) if finite else dict.fromkeys(perfect, math.nan)
        for name, value in found.items():
            row = results[f'samples/{name}'] = {'value': float(value), 'perfect': float(perfect[name]), 'n': n}
            if name == 'high_quality' and finite:  # in percent
                low, high = share_limits(value / 100, n)
                row |= {'low': 100 * low, 'high': 100 * high, 'over': 'samples'}
        return results
