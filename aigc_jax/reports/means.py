"""Means over the examples of a split, and statistics of a split as a whole."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import tasks
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
        return list(_shapes(experiment, experiment.task.get(Measures).per_example, 1))

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        measure, n = self.evaluator.task.get(Measures).per_example, len(self.experiment.dataset.splits[split])
        found = self.evaluator.over_split(measure, state, seed, split, n)
        return {name: mean_row(found[name]) for name in sorted(found, key=by_numbers)}


def _shapes(experiment: Experiment, of_examples, n: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What of_examples(params, extra, batch, ctx) returns of n examples; nothing is computed."""
    examples = experiment.dataset.splits[experiment.config.eval.split][np.zeros(n, int)]

    def measured():
        ctx = rng.context(0, 'eval', 0, jnp.arange(n))
        params, extra = experiment.task.init(rng.stream(0, 'init'))
        return of_examples(params, extra, experiment.preprocess(examples, ctx), ctx)

    return jax.eval_shape(measured)


class SplitStatistics(Report):
    """What the task says of a split as a whole (core.capabilities.SplitStatistic)."""

    name, when, needs = 'split_statistics', 'final', (SplitStatistic,)
    title = 'diagnostics'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        """Of the tasks of the package alone: what an own task makes of zeros is not known."""
        found: list[str] = []
        for statistic in () if tasks.is_own(experiment.config.task.name) else experiment.task.all(SplitStatistic):
            shapes = _shapes(experiment, statistic.collect, 4)
            collected = {name: np.zeros(of.shape, of.dtype) for name, of in shapes.items()}
            with np.errstate(all='ignore'):
                found += statistic.summarize(collected)
        return found

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        results, size = {}, len(self.experiment.dataset.splits[split])
        for statistic in self.evaluator.task.all(SplitStatistic):
            where = rng.fixed_choice(size, statistic.most or size)
            found = statistic.summarize(self.evaluator.over_split(statistic.collect, state, seed, split, where))
            for name in sorted(found, key=by_numbers):
                value = found[name]
                results[name] = mean_row(value) if np.ndim(value) else {'value': float(value), 'n': len(where)}
        return results
