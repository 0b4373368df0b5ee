"""An evaluation: its reports one after the other, each announced, and what is done kept until all is."""

import hashlib
import json
import pathlib
from collections.abc import Callable

import jax

from aigc_jax import reports
from aigc_jax.core import processes, progress, records
from aigc_jax.core.errors import RunError
from aigc_jax.core.files import atomic_write
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.tables import Results, across, checked, finite, table
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.paths import Paths


class Evaluation:
    """The reports that apply to an experiment that `reports.check` has passed."""

    def __init__(self, evaluator: Evaluator):
        self.evaluator, self.experiment = evaluator, evaluator.experiment
        self.reports = [report(evaluator) for report in reports.of(self.experiment)]

    def each(self, state: TrainState, seed: int, split: str) -> Results:
        """What is measured at each evaluation while training, of one replica's state."""
        results = {}
        for report in self.reports:
            if reports.is_each(type(report), self.experiment):
                results |= checked(report.measure(state, seed, split), report.name)
        return results

    def final(
        self, state: TrainState, digest: str, between: Callable[[], None] = lambda: None
    ) -> dict[int, Results]:
        """{seed: rows of every report}; on processes but the first they may lack what an earlier call computed.

        A report that is done is kept in the run's folder until `forget`, so that an interrupted evaluation goes on from
        there, of the same state, data, config, code and kind of device alone. digest: of the state; between: called
        after each report.
        """
        experiment, split = self.experiment, self.experiment.config.eval.final_split
        paths = self.evaluator.paths
        kept = _Kept(paths and paths.partial, _identity(experiment, digest))
        by_seed: dict[int, Results] = {seed: {} for seed in experiment.seeds}
        wanted = [(k, seed, report) for k, seed in enumerate(experiment.seeds) for report in self.reports]
        # The first process alone reads the file, and all must compute the same.
        done = processes.gather('kept parts', [kept.has(seed, report.name) for _, seed, report in wanted])[0]
        if any(done):
            note(f'{sum(done)} of {len(wanted)} parts of this evaluation were done before it was interrupted')
        for n, ((k, seed, report), is_done) in enumerate(zip(wanted, done, strict=True), 1):
            if not is_done:
                of_seed = f', seed {seed}' if len(by_seed) > 1 else ''
                with progress.work(f'evaluation {n}/{len(wanted)}: {report.title.format(split=split)}{of_seed}'):
                    found = checked(report.measure(experiment.replica(state, k), seed, split), report.name)
                    kept.add(seed, report.name, found)
                processes.gather('part', None)  # only the first one measures, for longer than Gloo would wait
            by_seed[seed] |= kept.get(seed, report.name)
            between()
        return by_seed


def forget(paths: Paths) -> None:
    """The evaluation is whole and written: its parts are kept no longer."""
    if processes.first():
        paths.partial.unlink(missing_ok=True)


def save(paths: Paths, experiment: Experiment, step: int, by_seed: dict[int, Results]) -> pathlib.Path:
    """evaluations/STEP-SETTINGS.json: the metrics, and all that they were made with. None overwrites another.

    SETTINGS are the first 8 hex digits of the sha256 of what is written beside the metrics, so that the same
    evaluation has the same file.
    """
    config = experiment.config.to_dict()
    manifest_bytes = paths.manifest.read_bytes() if paths.manifest.exists() else None
    made_with = {
        'step': step,
        'split': experiment.config.eval.final_split,
        'data': config['data'],
        'sample': config['sample'],
        'eval': config['eval'],
        'fingerprint': experiment.dataset.fingerprint,
        'manifest': manifest_bytes and hashlib.sha256(manifest_bytes).hexdigest(),
        **manifest.own_code(experiment.config),
    }
    settings = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:8]
    path = paths.evaluations / f'{step:08d}-{settings}.json'
    atomic_write(path, json.dumps({**made_with, 'metrics': finite(across(by_seed))}, indent=2) + '\n')
    return path


class _Kept:
    """The parts that are done, {seed/name: Results}, in memory and, by the first process, in the folder."""

    def __init__(self, path: pathlib.Path | None, identity: str):
        self._path, self._identity, self._parts = path, identity, {}
        if self._path and processes.first() and self._path.exists():
            try:
                whole = records.read(self._path)
                self._parts = whole['parts'] if whole['of'] == identity else {}
                for results in self._parts.values():
                    table(results)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what cannot be read is computed again
                self._parts = {}

    def has(self, seed: int, name: str) -> bool:
        return f'{seed}/{name}' in self._parts

    def get(self, seed: int, name: str) -> Results:
        return self._parts.get(f'{seed}/{name}', {})

    def add(self, seed: int, name: str, results: Results) -> None:
        self._parts[f'{seed}/{name}'] = results
        if self._path and processes.first():
            try:
                atomic_write(self._path, json.dumps({'of': self._identity, 'parts': self._parts}))
            except RunError as error:  # it serves an interruption alone
                note(f'{error}; an interrupted evaluation would begin anew')


def _identity(experiment: Experiment, digest: str) -> str:
    """sha256 (hex) over all that an evaluation depends on."""
    files = [path for report in reports.of(experiment) for path in report.files(experiment)]
    named = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
    device = jax.devices()[0].device_kind, jax.__version__
    everything = [
        digest, experiment.dataset.fingerprint, config_lib.to_json(experiment.config), named, manifest.code(),
        manifest.own_code(experiment.config), device, dict(experiment.plan.mesh.shape),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()
