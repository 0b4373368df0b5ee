"""How far samples of points are from held-out points, where no density is known."""

import math

import numpy as np

from aigc_jax.core.capabilities import Samples
from aigc_jax.core.types import TrainState
from aigc_jax.data import Points
from aigc_jax.metrics import transport
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment


class PointTransport(Report):
    """The squared 2-Wasserstein distance of n samples to the first n points of a split, beside that of as many real
    points: n is eval.transport_samples, or half of the split where that is less.

    The assignment is exact. On one core 2000 points take 0.15 s and 10,000 take 14 s."""

    name, needs = 'point_transport', (Samples, Points)
    title = 'distance of samples to the {split} split'

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        return super().applies(experiment) and experiment.dataset.spec.density is None

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return ['samples/squared_wasserstein']

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        count = len(self.experiment.dataset.splits[split])
        n = min(self.config.transport_samples, count // 2)
        if n < 1:  # a split of one point
            return {}
        real = self.experiment.examples(split, np.arange(count))['x']
        samples, value = self.evaluator.sample(state, seed, n), math.nan
        if np.isfinite(samples).all():
            value = transport.squared_wasserstein(samples, real[:n])
        return {'samples/squared_wasserstein': {'value': value, 'perfect': transport.floor(real, n), 'n': n}}
