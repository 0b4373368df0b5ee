"""The loop of every model. Its order is fixed: evaluate → save → feed → call → log."""

import math
from typing import TextIO

import jax
import numpy as np

from aigc_jax import reports
from aigc_jax.core import parallel, processes
from aigc_jax.core.errors import RunError
from aigc_jax.core.types import TrainState
from aigc_jax.reports import evaluation, pictures, tables
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs.checkpoint import Checkpoints
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.runs.logs import NullWriter, Writer
from aigc_jax.runs.pace import NullProgress, Pace, Progress
from aigc_jax.training.early_stopping import Watch
from aigc_jax.training.signals import Interrupted, Signals


class Diverged(RunError):
    """A loss, or another metric of the training, is not finite."""


class Loop:
    """What happens between the calls: evaluation, checkpoints, logs, early stopping, and the end."""

    def __init__(
        self, experiment: Experiment, run: Run, checkpoints: Checkpoints, log: Writer | NullWriter, start: int,
        stream: TextIO | None,
    ):  # fmt: skip
        self.experiment, self.run, self.checkpoints = experiment, run, checkpoints
        self.config, self.step = experiment.config, start
        # Of a run without steps the model that it begins with is evaluated and saved.
        self.saved = None if checkpoints.latest() is None and not self.config.total_steps else start
        self.log = log
        watched = stream is not None and processes.first()
        self.progress = Progress(self.config.total_steps, start, stream) if watched else NullProgress()
        between = {'evaluation': self.config.eval_every_steps, 'checkpoint': self.config.checkpoint_every_steps}
        self.pace = Pace(self.config.total_steps, start, between)
        self.evaluation = evaluation.Evaluation(Evaluator(experiment, run.paths))
        self.pending = None  # metrics of the last call, fetched while the next one runs
        self.seeds = experiment.seeds if experiment.plan.replicas else [None]
        rows = self.log.rows()
        self.watch = Watch(self.config.eval, rows)
        lost = {row['seed'] for row in rows if 'diverged' in row}
        # The first process alone reads the log, and all must stop at the same step.
        self.watch.waited, lost = processes.gather('log', (self.watch.waited, [seed in lost for seed in self.seeds]))[0]
        self.diverged = {seed for seed, is_lost in zip(self.seeds, lost, strict=True) if is_lost}
        # Virtual devices and processes on CPUs can deadlock in a collective when calls run ahead of each other.
        self.blocking = jax.default_backend() == 'cpu' and experiment.plan.mesh.size > 1

    def called(self, state: TrainState, metrics) -> None:
        """After each call: fetch what the call before it returned."""
        if self.blocking:
            jax.block_until_ready(state)
        self.step += self.config.steps_per_call
        self._drain()
        self.pending = self.step, metrics
        self.progress.update(self.step)

    def finished(self, state: TrainState, signals: Signals) -> bool:
        """Before each call: evaluate and save where it is due. True where training is over."""
        config, new, results = self.config, self.step != self.saved, None
        asked = signals.requested(self.step % config.log_every_steps == 0)
        over = self.step >= config.total_steps
        if new and self.step % config.eval_every_steps == 0:
            self._drain()
            with self.pace.pause('evaluation', self.step):
                results = self._evaluate(state)
            self.log.timing(event='evaluation', step=self.step, seconds=self.pace.last('evaluation'))
        over = over or self.watch.out_of_patience()
        best = results is not None and config.eval.best_metric and not self.watch.waited  # which is to be kept
        due = self.checkpoints.wants(self.step) or self.step % config.checkpoint_every_steps == 0
        if new and (due or best or over or asked):
            self._drain()
            self.log.flush()
            with self.pace.pause('checkpoint', self.step):
                self.checkpoints.save(self.step, state, results)
            self.log.timing(event='checkpoint', step=self.step, seconds=self.pace.last('checkpoint'))
        if asked and not over:
            raise Interrupted(asked, self.step)
        return over

    def conclude(self, state: TrainState, signals: Signals) -> tables.Results:
        """The final evaluation, over all replicas; then the pictures, and evaluation.json at the very end.

        Raises Interrupted at any moment: the state is saved, and so is each part of the evaluation that is done.
        """
        self.progress.close()
        with signals.heard_at_once(self.step):
            digest, between = self.checkpoints.digest(self.step), lambda: signals.raise_if_asked(self.step)
            found = self.evaluation.final(state, digest, between)
            by_seed = dict(zip(self.seeds, found.values(), strict=True))
            for seed, results in by_seed.items():
                self.log.metrics(self.step, 'final', {name: found['value'] for name, found in results.items()}, seed)
            for k, seed in enumerate(self.seeds):
                self._draw(state, k, seed, final=True)
            if processes.first():
                self.log.flush()
                tables.write(self.run.paths.evaluation, self.step, found)
                self.log.timing(event='end', step=self.step)
        evaluation.forget(self.run.paths)
        return tables.across(found)

    def _drain(self) -> None:
        """Logs the pending metrics where that is due; raises RunError on NaN, or marks the replica that diverged."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = {name: np.asarray(value) for name, value in sorted(parallel.fetch(metrics).items())}
        replicas = {
            seed: {name: value[k] if self.experiment.plan.replicas else value for name, value in metrics.items()}
            for k, seed in enumerate(self.seeds)
        }
        for seed, own in replicas.items():
            self._check_finite(step, own, seed)
        if step % self.config.log_every_steps:
            return
        for seed, own in replicas.items():  # no row of a step at which another replica ends the run
            # The mean over the call's steps: smoother than one step, and the same after a resume.
            self.log.metrics(step, 'train', {name: value.mean(dtype=np.float64) for name, value in own.items()}, seed)
        shown = {name: float(value.mean()) for name, value in metrics.items()}
        speed = self.pace.measure(step)
        by_loss = sorted(shown.items(), key=lambda item: not item[0].endswith('/loss'))
        self.progress.log(step, dict(by_loss), self.pace.words())
        self.log.timing(event='log', step=step, steps_per_second=speed)

    def _check_finite(self, step: int, metrics: dict[str, np.ndarray], seed: int | None) -> None:
        if seed in self.diverged:
            return
        # Counted from the call's last step, which every metric has.
        found = [
            (int(np.argmin(np.isfinite(v))) - len(v), name) for name, v in metrics.items() if not np.isfinite(v).all()
        ]
        if not found:
            return
        offset, name = min(found)
        at, value = step + offset + 1, metrics[name][offset]
        if seed is None:
            self.log.metrics(at, 'train', {'diverged': 1.0})
            raise Diverged(
                f'step {at}: {name} is {value}; training stopped. The last good checkpoint is '
                f'{self.checkpoints.latest() or "none"}; try a lower learning rate, or optim.*.clip_norm.'
            )
        self.diverged.add(seed)
        self.log.metrics(at, 'train', {'diverged': 1.0}, seed)
        if len(self.diverged) == len(self.seeds):
            raise Diverged(f'step {at}: all {len(self.seeds)} replicas diverged, the last with {name} = {value}')

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        by_seed = {
            seed: self.evaluation.each(
                self.experiment.replica(state, k), self.experiment.seeds[k], self.config.eval.split
            )
            for k, seed in enumerate(self.seeds)
        }
        for seed, results in by_seed.items():
            self.log.metrics(self.step, 'eval', {name: found['value'] for name, found in results.items()}, seed)
        if self.step < self.config.total_steps:  # else the final evaluation follows, and draws
            self._draw(state, 0, self.seeds[0])
        values = {name: found['value'] for name, found in tables.across(by_seed).items()}
        if best := self.config.eval.best_metric:
            values[best] = values.get(reports.named(best, values), math.nan)
        self.progress.evaluated(self.step, values)
        self.watch.see(values)
        self.watch.waited = processes.gather('evaluated', self.watch.waited)[0]
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _name(self, seed: int | None) -> str:
        return f'{self.step:08d}' + ('' if seed is None else f'_seed{seed}')

    def _draw(self, state: TrainState, k: int, seed: int | None, final: bool = False) -> None:
        if not self.run.draws:
            return
        own, rows = self.experiment.replica(state, k), None if k else self.log.rows()  # plots/ shows the first replica
        evaluator, of_draws = self.evaluation.evaluator, self.experiment.seeds[k]
        pictures.draw(evaluator, self._name(seed), own, of_draws, rows, final)
