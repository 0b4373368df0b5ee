"""What a run says at its start and at its end, in the first process alone. stream: a text file; None: it is silent."""

from typing import TextIO

import jax
from ml_collections import ConfigDict

from aigc_jax.core import memory, optim, processes
from aigc_jax.core.errors import printable
from aigc_jax.core.notes import note
from aigc_jax.core.output import show
from aigc_jax.data import Pairs, Spec, Text, Tokens
from aigc_jax.reports import tables
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run


def begin(stream: TextIO | None, experiment: Experiment, run: Run, start: int) -> None:
    """The data, the players, the memory, the devices and the folder, a line each."""
    config, sizes = experiment.config, experiment.sizes()
    of_replicas = f' in each of {config.num_seeds} replicas' if config.num_seeds > 1 else ''
    players = ', '.join(f'{player} {number:,}' for player, number in sizes['parameters'].items())
    lines = [
        f'data: {_data(experiment)}',
        f'parameters: {players}{of_replicas}',
        f'memory: state {memory.words(sizes["bytes"]["state"])}, data on the device '
        + ('none, streamed' if config.data.stream else memory.words(sizes['bytes']['resident_data'])),
        f'devices: {_devices(experiment)}',
        f'folder: {run.folder}' + (f', from step {start} on' if start else ''),
    ]
    _say(stream, '\n'.join(lines))


def _data(experiment: Experiment) -> str:
    dataset, config = experiment.dataset, experiment.config.data
    spec, unit = dataset.spec, 'windows' if isinstance(dataset.spec, Tokens) else 'examples'
    splits = ', '.join(f'{split} {len(source):,}' for split, source in dataset.splits.items())
    words = [f'{config.name}, {spec.words}{_size(spec)}', f'{unit}: {splits} ({dataset.origin})']
    if dataset.num_classes:
        words.append(f'{dataset.num_classes} classes')
    if isinstance(spec, Text):
        words.append(f'vocabulary {spec.tokenizer.vocab_size:,}')
    return '; '.join([*words, f'sha256 {dataset.fingerprint[:8]}'])


def _size(spec: Spec) -> str:
    if isinstance(spec, Tokens):
        return f', windows of {spec.block} tokens'
    if isinstance(spec, Pairs):
        return f', up to {spec.block} and {spec.target_block} tokens'
    return f', up to {spec.block} tokens' if isinstance(spec, Text) else ' ' + '×'.join(map(str, spec.shape))


def _devices(experiment: Experiment) -> str:
    mesh = experiment.plan.mesh
    kind = mesh.devices.ravel()[0].device_kind
    axes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1)
    of_several = f', {jax.process_count()} processes' if jax.process_count() > 1 else ''
    return f'{mesh.size} × {kind}' + (f' ({axes})' if axes else '') + of_several


def grown(experiment: Experiment, before: int, step: int) -> None:
    """That total_steps is no longer what `step` was trained by."""
    now, rates = experiment.config.total_steps, []
    for player, config in experiment.config.optim.items():
        what = f'optim.{player}.schedule'
        then, here = (float(optim.schedule(config.schedule, total, what)(step)) for total in (before, now))
        rates += [f'{player} from {then:.3g} to {here:.3g}'] if then != here else []
    told = f'; the learning rate at step {step} changes: {", ".join(rates)}' if rates else ''
    note(
        f'total_steps: {now}, {before} before: what is in percent of it is laid over {now} steps, unlike up to step '
        f"{step}{told}; a row 'final' of step {step} leaves metrics.jsonl"
    )


def end(stream: TextIO | None, run: Run) -> None:
    """The folder, with what lies in it now."""
    pictures = sorted(path.name for path in run.paths.plots.glob('*.png'))
    shown = f', plots/ with {", ".join(pictures)}' if pictures else ''
    samples = ', samples/' if run.paths.samples.is_dir() else ''
    _say(stream, f'{run.folder}: evaluation.json{samples}{shown}')


def finished(stream: TextIO | None, run: Run, step: int) -> None:
    """That the run ended at `step` before."""
    _say(stream, f'{run.folder}: this run is finished, at step {step}; a larger total_steps goes on with it')
    end(stream, run)


def table(config: ConfigDict, step: int, results: Results) -> None:
    """The evaluation, on stdout."""
    if processes.first():
        show(printable(f'step {step}, {config.data.name}, split {config.eval.final_split}\n'))
        show(tables.table(results) + '\n')


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None and processes.first():
        print(printable(text), file=stream, flush=True)
