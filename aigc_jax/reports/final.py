"""The final evaluation: its parts one after the other, each announced, and what is done kept until all is."""

import hashlib
import json
import pathlib
from collections.abc import Callable

import jax

from aigc_jax.core import processes, progress, records
from aigc_jax.core.capabilities import SplitStatistic
from aigc_jax.core.errors import RunError
from aigc_jax.core.files import atomic_write
from aigc_jax.core.notes import note
from aigc_jax.core.types import TrainState
from aigc_jax.reports import image_samples, problems
from aigc_jax.reports.evaluator import Evaluator, Results, table
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest
from aigc_jax.runs.experiment import Experiment

PARTIAL = 'evaluation.json.partial'  # in a run's folder, until the evaluation is whole
Part = Callable[[TrainState, int], Results]


def parts(experiment: Experiment, evaluator: Evaluator, image: image_samples.ImageMetrics) -> dict[str, Part]:
    """What there is to measure, {name in words: function (state of a replica, its seed) -> Results}."""
    problems.check(experiment)
    config, task, split = experiment.config.eval, experiment.task, experiment.config.eval.final_split
    text = experiment.dataset.kind == 'text'
    of_split = {
        f'the {split} split': (evaluator.evaluate, True),
        'diagnostics': (evaluator.diagnostics, bool(task.all(SplitStatistic))),
        'samples of text': (evaluator.texts, text and bool(config.num_samples)),
        'n-gram model and compressors': (evaluator.baselines, text and bool(config.ngram_order)),
    }
    bind = lambda part: lambda state, seed: part(state, seed, split)
    found = {name: bind(part) for name, (part, there) in of_split.items() if there}
    if text and config.problems:
        found['programming problems'] = problems.Solver(experiment, evaluator).solve
    if image_samples.wanted(experiment):
        found['metrics of samples'] = image.measure
    return found


def evaluate(
    experiment: Experiment, evaluator: Evaluator, image: image_samples.ImageMetrics, state: TrainState,
    workdir: pathlib.Path, digest: str, between: Callable[[], None] = lambda: None,
) -> dict[int, Results]:  # fmt: skip
    """{seed: results of every part}; on processes but the first they may lack what an earlier call computed.

    A part that is done is kept in `workdir` until `forget`, so that an interrupted evaluation goes on from there, of
    the same state, data, config, code and kind of device alone. digest: of the state; between: called after each part.
    """
    by_part = parts(experiment, evaluator, image)
    kept = _Kept(workdir, _identity(experiment, digest))
    by_seed: dict[int, Results] = {seed: {} for seed in experiment.seeds}
    wanted = [(k, seed, name) for k, seed in enumerate(experiment.seeds) for name in by_part]
    # The first process alone reads the file, and all must compute the same.
    done = processes.gather('kept parts', [kept.has(seed, name) for _, seed, name in wanted])[0]
    if any(done):
        note(f'{sum(done)} of {len(wanted)} parts of this evaluation were done before it was interrupted')
    for n, ((k, seed, name), is_done) in enumerate(zip(wanted, done, strict=True), 1):
        if not is_done:
            of_seed = f', seed {seed}' if len(by_seed) > 1 else ''
            with progress.work(f'evaluation {n}/{len(wanted)}: {name}{of_seed}'):
                kept.add(seed, name, by_part[name](experiment.replica(state, k), seed))
            processes.gather('part', None)  # only the first one measures, for longer than Gloo would wait
        by_seed[seed] |= kept.get(seed, name)
        between()
    return by_seed


def forget(workdir: pathlib.Path) -> None:
    """The evaluation is whole and written: its parts are kept no longer."""
    if processes.first():
        (workdir / PARTIAL).unlink(missing_ok=True)


class _Kept:
    """The parts that are done, {seed/name: Results}, in memory and, by the first process, in the folder."""

    def __init__(self, workdir: pathlib.Path, identity: str):
        self._path, self._identity, self._parts = workdir / PARTIAL, identity, {}
        if processes.first() and self._path.exists():
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
        if processes.first():
            try:
                atomic_write(self._path, json.dumps({'of': self._identity, 'parts': self._parts}))
            except RunError as error:  # it serves an interruption alone
                note(f'{error}; an interrupted evaluation would begin anew')


def _identity(experiment: Experiment, digest: str) -> str:
    """sha256 (hex) over all that an evaluation depends on."""
    config = experiment.config
    given = config.eval.problems if experiment.dataset.kind == 'text' else config.eval.extractor
    files = [pathlib.Path(given.split(':')[-1]).expanduser()] if given else []
    named = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
    device = jax.devices()[0].device_kind, jax.__version__
    everything = [
        digest, experiment.dataset.fingerprint, config_lib.to_json(config), named, manifest.code(), device,
        dict(experiment.plan.mesh.shape),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()
