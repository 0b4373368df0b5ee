"""The door for Python: what the command line does, as functions, and a trained model on raw arrays and text.

    import aigc_jax

    outcome = aigc_jax.train('configs/vae.py', '~/runs/vae', {'total_steps': 2000})
    run = aigc_jax.open('~/runs/vae')
    images = run.sample(16, seed=1)
    codes = run.encode(images)

overrides, wherever it stands: {field: value}, such as {'optim.model.schedule.value': 1e-3}; on a finished run data.*,
eval.*, parallel.* and sample.* alone. A mistake raises aigc_jax.core.errors.UserError, whose text is that of the
command line.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import reports
from aigc_jax.core import arguments, processes
from aigc_jax.core import progress as progress_lib
from aigc_jax.core.capabilities import WritesText
from aigc_jax.core.errors import UserError
from aigc_jax.decoding.generate import Text
from aigc_jax.reports import evaluation, pictures, tables
from aigc_jax.reports import export as export_lib
from aigc_jax.reports import texts as texts_lib
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.trained import Trained
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial, pretrained, raw
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.training import trainer
from aigc_jax.training.trainer import Outcome

Overrides = Mapping[str, Any] | Sequence[tuple[str, str]]


class Evaluation(NamedTuple):
    """step: of the checkpoint; config: with the overrides; results: {metric: {'value', …}}, over the replicas where
    there are several (reports.tables.across)."""

    step: int
    config: ConfigDict
    results: tables.Results


def train(
    config, workdir, overrides: Overrides = (), *, signals: bool = False, progress: TextIO | None = None,
    devices: list | None = None,
) -> Outcome:  # fmt: skip
    """Trains the run in `workdir`, or goes on with it; see training.trainer.train.

    config: 'FILE.py[:variant,…]', or a ConfigDict, which stays as it is.
    """
    if isinstance(config, ConfigDict):
        config = config_lib.resolved(config, _texts(overrides))
    elif isinstance(config, (str, os.PathLike)):
        config = config_lib.load(os.fspath(config), _texts(overrides))
    else:
        raise UserError(f"config: is {type(config).__name__}; it is 'FILE.py[:variant,…]' or a ConfigDict")
    if devices is not None and not (devices and all(isinstance(one, jax.Device) for one in devices)):
        raise UserError(f'devices: {devices!r}; it is a list of some of jax.devices(), or None for all')
    return trainer.train(config, Run(workdir), signals=signals, progress=progress, devices=devices)


def open(workdir, step: str | int | None = None, overrides: Overrides = ()) -> Trained:  # noqa: A001
    """The trained model of a run's folder. step: a number, 'best', or None for the newest checkpoint.

    Of a run of several seeds it is the first replica; `replica(k)` gives the others.
    """
    run = Run(workdir)
    run.paths.check()
    return Trained(run, *run.open(step, _texts(overrides)))


def from_pretrained(folder, overrides: Overrides = ()) -> Trained:
    """The model in a folder in Hugging Face's format, with its tokenizer: what `open` gives of a run, without a run.

    overrides: of precision, parallel.* and sample.*, for example. Raises UserError.
    """
    config = config_lib.resolved(pretrained.config_of(folder), _texts(overrides))
    tokenizer = pretrained.tokenizer(config)
    if tokenizer is None:
        raise UserError(f'from_pretrained: {config.init.run} holds no tokenizer')
    experiment = Experiment(config, tokenizer=tokenizer, dataset=pretrained.no_data(config, tokenizer))
    model, _ = initial.model(experiment)
    return Trained(None, experiment, experiment.create_state(*model))


def load(workdir, step: str | int | None = None):
    """(config, task, state) of a run's folder, for a notebook.

    workdir: the folder; step: a number, 'best', or None for the newest checkpoint. The task's functions read raw data,
    and give them in the same units (aigc_jax.runs.raw). The state's leaves have a leading axis of replicas where
    num_seeds > 1. Raises aigc_jax.core.errors.UserError where there is none.
    """
    experiment, state = Run(workdir).open(step)
    return experiment.config, raw.task_of(experiment), state


def evaluate(
    workdir, step: str | int | None = None, overrides: Overrides = (), *, progress: TextIO | None = None
) -> Evaluation:
    """Evaluates a checkpoint as the end of a training does, and writes evaluations/STEP-SETTINGS.json."""
    run = Run(workdir)
    run.paths.check()
    with progress_lib.shown_on(progress):
        experiment, state = run.open(step, _texts(overrides))
        reports.check(experiment)
        number = int(experiment.replica(state, 0).step)
        with contextlib.closing(run.checkpoints(experiment.config)) as checkpoints:
            digest = checkpoints.digest(number)
        by_seed = evaluation.Evaluation(Evaluator(experiment, run.paths)).final(state, digest)
    with processes.together('evaluation'):
        if processes.first():
            evaluation.save(run.paths, experiment, number, by_seed)
    evaluation.forget(run.paths)
    run.paths.clear_leftovers()
    return Evaluation(number, experiment.config, tables.across(by_seed))


def sample(
    run, n: int = 64, seed: int = 0, labels: Sequence[int] | None = None, *, step: str | int | None = None,
    overrides: Overrides = (),
) -> dict[pathlib.Path, np.ndarray]:  # fmt: skip
    """{samples/STEP_sampleSEED[-SETTINGS].npz: samples (n, *shape)} of each replica, with a picture beside each.

    run: a folder, or what `open` gave; `replica` gives one alone. labels (n,): the classes of a conditional model;
    None: they run through all.
    """
    run, found = _opened(run, step, overrides), {}
    if run.can(WritesText):
        raise UserError(f'sample: {run.config.task.name} writes text; call generate')
    labels = run.labels_of(n, labels)
    for one in run.written():
        samples = one.sample(n, seed, labels)
        path = one.samples_path(seed)
        with processes.together('samples'):
            if processes.first():
                pictures.save_samples(path, run.experiment, samples, labels)
        found[path.with_suffix('.npz')] = samples
    run.run.paths.clear_leftovers()
    return found


def generate(
    run, prompts: str | Sequence[str] = '', n: int = 1, seed: int = 0, *, stream: Callable[[str], None] | None = None,
    step: str | int | None = None, overrides: Overrides = (), **how,
) -> dict[pathlib.Path, list[Text]]:  # fmt: skip
    """{samples/STEP_sampleSEED[-SETTINGS].npz: n texts for each prompt} of each replica, with a .txt beside each.

    run: a folder, or what `open` gave; `replica` gives one alone. how, stream: as `Trained.generate` has them.
    """
    run, found = _opened(run, step, overrides), {}
    writer = run.writer(**how)
    for one in run.written():
        texts = writer.generate(one.state, prompts, n, seed, stream)
        path = one.samples_path(seed, writer.how)
        with processes.together('samples'):
            if processes.first():
                texts_lib.save(path, texts)
        found[path.with_suffix('.npz')] = texts
    run.run.paths.clear_leftovers()
    return found


def export(
    run, folder, form: str = 'hf', n: int = 64, *, step: str | int | None = None, overrides: Overrides = (), **how
) -> list[pathlib.Path]:
    """Writes a model into a new folder in a form that other programs read; see reports.export.export.

    run: a run's folder, or what `open` gave. how: see there, too.
    """
    run = _opened(run, step, overrides)
    with processes.together('export'):
        return export_lib.export(run, folder, form, arguments.checked('n', n, arguments.N), **how)


def _opened(run, step, overrides) -> Trained:
    if not isinstance(run, Trained):
        return open(run, step, overrides)
    if step is not None or overrides:
        raise UserError('step, overrides: the run is open already; give them to aigc_jax.open')
    return run


def _texts(overrides: Overrides) -> list[tuple[str, str]]:
    """As the command line gives them. Raises UserError."""
    pairs = list(overrides.items() if isinstance(overrides, Mapping) else overrides or ())
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"overrides: holds {pair!r}; it is {{field: value}}, such as {{'total_steps': 2000}}")
    plain = [(name, jax.tree.map(arguments.plain, value)) for name, value in pairs]
    return [(name, value if isinstance(value, str) else repr(value)) for name, value in plain]
