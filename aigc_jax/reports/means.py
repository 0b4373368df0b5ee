"""Means over the examples of a split, and statistics of a split as a whole."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures, SplitStatistic
from aigc_jax.core.types import TrainState
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results, by_numbers, mean_row
from aigc_jax.runs.experiment import Experiment


class Means(Report):
    """What the task says of each example (core.capabilities.Measures), with 95 % intervals."""

    name, needs = 'means', (Measures,)
    title = 'means over the {split} split'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        example = experiment.dataset.splits[experiment.config.eval.split][np.arange(1)]

        def measured():
            ctx = rng.context(0, 'eval', 0, jnp.arange(1))
            params, extra = experiment.task.init(rng.stream(0, 'init'))
            batch = experiment.preprocess(example, ctx)
            return experiment.task.get(Measures).per_example(params, extra, batch, ctx)

        return list(jax.eval_shape(measured))

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        measure, n = self.evaluator.task.get(Measures).per_example, len(self.experiment.dataset.splits[split])
        found = self.evaluator.over_split(measure, state, seed, split, n)
        return {name: mean_row(found[name]) for name in sorted(found, key=by_numbers)}


class SplitStatistics(Report):
    """What the task says of a split as a whole (core.capabilities.SplitStatistic)."""

    name, when, needs = 'split_statistics', 'final', (SplitStatistic,)
    title = 'diagnostics'

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        results, size = {}, len(self.experiment.dataset.splits[split])
        for statistic in self.evaluator.task.all(SplitStatistic):
            where = rng.fixed_choice(size, statistic.most or size)
            found = statistic.summarize(self.evaluator.over_split(statistic.collect, state, seed, split, where))
            for name in sorted(found, key=by_numbers):
                value = found[name]
                results[name] = mean_row(value) if np.ndim(value) else {'value': float(value), 'n': len(where)}
        return results
