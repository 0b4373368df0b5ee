"""Early stopping: what it watches, and whether a run is over by it."""

import math
from collections.abc import Iterable

import numpy as np

from aigc_jax.runs.folder import Run


class Watch:
    """What early stopping watches: the best value so far, and the evaluations since. rows: of metrics.jsonl."""

    def __init__(self, config, rows: list[dict]):
        self._config = config
        self.best, self.waited = math.inf, 0
        for values in _by_step(row for row in rows if row['split'] == 'eval'):
            self.see(values)

    def see(self, values: dict) -> None:
        name = self._config.best_metric
        if not name or name not in values:
            return
        value = math.nan if values[name] is None else values[name]
        value = value if self._config.best_mode == 'min' else -value
        better = value < self.best  # NaN never is
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)

    def out_of_patience(self) -> bool:
        return 0 < self._config.patience <= self.waited


def is_over(config, run: Run, step: int) -> bool:
    """Whether training has ended at `step`, the newest checkpoint's, with a row of the final evaluation."""
    rows = [row for row in run.rows() if row['step'] <= step]
    if not any(row['split'] == 'final' and row['step'] == step for row in rows):
        return False
    return step == config.total_steps or Watch(config.eval, rows).out_of_patience()


def _by_step(rows: Iterable[dict]) -> list[dict]:
    """One row a step: the mean over replicas where there are several."""
    steps = {}
    for row in rows:
        steps.setdefault(row['step'], []).append(row)
    joined = []
    for same in steps.values():
        names = {name for row in same for name in row if name not in ('step', 'split', 'seed')}
        alive = {name: [row[name] for row in same if row.get(name) is not None] for name in names}
        joined.append({name: float(np.mean(values)) if values else None for name, values in alive.items()})
    return joined
