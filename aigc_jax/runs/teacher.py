"""The teacher that a run is distilled from: read anew at each start, and the same one each time."""

import contextlib
import copy
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from aigc_jax import adapt, tasks
from aigc_jax.adapt import huggingface
from aigc_jax.core import parallel
from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.core.step import abstract_params
from aigc_jax.core.types import Task, Tree
from aigc_jax.data import Dataset, Text, tokenizer_files
from aigc_jax.runs import classes, initial, manifest, pretrained
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

_STEP, _DIGEST, _SAID = 'teacher_step', 'teacher_sha256', 'teacher_config'  # in the manifest, of each start
MODEL = r'(model|adapt|quantize)\..*'  # what of the teacher's config says what its parameters compute


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model with its parameters. taken: which checkpoint they are of, for the manifest."""

    task: Task
    params: dict[str, Tree]
    taken: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Model:
    """What `initial.as_saved` reads of an Experiment."""

    config: ConfigDict
    dataset: Dataset
    plan: parallel.Plan
    task: Task


def load(experiment: Experiment, run: Run, newest: int | None) -> Teacher | None:
    """The teacher that distill.run names; None where it names none. Raises UserError.

    run, newest: that is trained, and its newest checkpoint. Where its manifest says which teacher it had, that one and
    no other is its teacher.
    """
    wanted = experiment.config.distill
    if not wanted.run:
        if wanted.step:
            raise UserError(f'distill.step: {wanted.step}, but distill.run names no run; name its folder')
        return None
    before = _before(run, newest)
    if before and not os.path.isdir(os.path.expanduser(wanted.run)):
        raise UserError(
            f'distill.run: there is no folder {wanted.run}, which this run was trained with; where it lies elsewhere '
            'now, add --config.distill.run=FOLDER'
        )
    with _as_field_of_distill():
        model = _model(experiment, before.get(_STEP))
        experiment.want_room(abstract_params(model.task), 'distill.run: the teacher')
        (params, _), step = initial.as_saved(model)
        taken = {_STEP: step, _DIGEST: initial.digest(model.config, step)}
    if before and taken != {name: before.get(name) for name in taken}:
        raise UserError(
            f'distill.run: the checkpoint of step {step} in {wanted.run} is not the one that this run was trained with '
            f'(sha256 {str(before.get(_DIGEST))[:8]}… there, {taken[_DIGEST][:8]}… now); bring that one back'
        )
    said = initial.said(wanted.run, MODEL)
    if text := initial.changed('distill.run', wanted.run, before.get(_SAID, {}), said):
        raise UserError(text)
    return Teacher(model.task, params, {**taken, _SAID: said})


def abstract(experiment: Experiment) -> Teacher | None:
    """The teacher with the shapes and the shardings of its parameters alone; None where there is none."""
    if not experiment.config.distill.run:
        return None
    with _as_field_of_distill():
        model = _model(experiment, None)
    params = abstract_params(model.task)
    return Teacher(model.task, parallel.abstract(params, experiment.plan.param_shardings(params)), {})


@contextlib.contextmanager
def _as_field_of_distill() -> Iterator[None]:
    """What reads a checkpoint names its fields init.*; those here are distill.*."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r'(?<![\w/.-])init\.(?=(run|step|average)\b)', 'distill.', str(error))) from None


def _before(run: Run, newest: int | None) -> dict[str, Any]:
    """What the manifest says of the teacher that the run had; {} of a new run."""
    starts = manifest.read(run.paths.manifest).get('starts', [])
    found = [start for start in starts if start.keys() >= {_STEP, _DIGEST}]
    if newest is not None and not found:
        raise UserError(
            f'{run.paths.manifest}: does not say which teacher this run was trained with; bring it back from a copy'
        )
    return found[-1] if found else {}


def _model(experiment: Experiment, step: int | None) -> _Model:
    """The teacher's model, which reads the data of `experiment` with its draws. step: of the checkpoint; None:
    distill.step says it."""
    ours, wanted, spec = experiment.config, experiment.config.distill, experiment.dataset.spec
    config = copy.deepcopy(ours)
    of = {'run': wanted.run, 'step': wanted.step if step is None else str(step), 'average': wanted.average}
    config.init.update({**of, 'rename': (), 'drawn': '', 'unused': ''})
    if huggingface.is_folder(wanted.run):
        config.init.step = wanted.step
        for name, fields in adapt.FIELDS.items():
            config[name] = ConfigDict({field: one.default for field, one in fields.fields.items()})
        block = ours.data.block
        pretrained.fit(config, ())
        if config.data.block < block:
            raise UserError(f'data.block: {block}; the model of distill.run, {wanted.run}, reads {config.data.block}')
        own = tokenizer_files.read(wanted.run) if tokenizer_files.are_in(wanted.run) else None
        mend = f'set data.tokenizer to hf:{wanted.run}'
    else:
        run = initial.source(wanted.run, 'distill.run')
        theirs, own, mend = run.config, run.tokenizer, 'train both with the same tokenizer'
        if theirs.task.name != ours.task.name:
            raise UserError(
                f'distill.run: {run.folder} is a run of task.name={theirs.task.name}, and this one of '
                f'{ours.task.name}; name a run of the same kind of model'
            )
        for name in ('model', *adapt.FIELDS):
            config[name] = copy.deepcopy(theirs[name])
        for name in ('scale', 'binarize'):  # what a model sees of the same images or points
            before, now = (one.data.to_dict().get(name) for one in (theirs, ours))
            if before != now:
                raise UserError(
                    f'distill.run: {run.folder} was trained with data.{name}={before}, and this run has {now}; give '
                    'both the same'
                )
    if words := classes.other(wanted.run, experiment, 'distill.run'):
        raise UserError(f'{words}; name a teacher of the same classes in the same order')
    if isinstance(spec, Text):
        if own is None:
            note(f'distill.run: {wanted.run} holds no tokenizer; its tokens are taken to be those of this run')
        elif not own.writes_as(spec.tokenizer):
            raise UserError(
                f'distill.run: the tokenizer of {wanted.run} ({own.vocab_size} tokens) is another than that of this '
                f'run ({spec.tokenizer.vocab_size} tokens); {mend}'
            )
    initial.silence(config.model)
    task = adapt.adapted(tasks.make(config, experiment.dataset), config)
    return _Model(config, experiment.dataset, experiment.plan, task)
