"""A run proves itself: it is run again, and compared bit for bit with what its folder holds.

The rerun trains in a temporary folder by `training.trainer`, as the run itself did. Its checkpoints are compared with
those that the run's folder keeps instead of being written; each row of its metrics.jsonl is compared as it is written.
It ends at the first difference. Nothing is written to the run's folder, whose lock is held meanwhile.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import TextIO

import jax
import numpy as np
from ml_collections import ConfigDict

from aigc_jax.core import parallel, processes, records, tree
from aigc_jax.core.errors import RunError, UserError, first_line
from aigc_jax.core.files import atomic_write, disk_errors
from aigc_jax.core.types import TrainState
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import logs
from aigc_jax.runs.checkpoint import Checkpoints
from aigc_jax.runs.folder import Run
from aigc_jax.studies import comparable, differences
from aigc_jax.studies.differences import Difference
from aigc_jax.training import trainer
from aigc_jax.training.early_stopping import is_over
from aigc_jax.training.loop import Diverged

IDENTICAL, DIFFERENT, NOT_COMPARABLE = 'identical', 'different', 'not comparable'


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    kind: IDENTICAL, DIFFERENT or NOT_COMPARABLE. start, end: the steps that were run again are those behind start, up
    to end. checkpoints: the steps of those that were compared and found equal; rows: how many of metrics.jsonl were;
    evaluation: whether evaluation.json was. found: the differences, none unless DIFFERENT, or NOT_COMPARABLE where
    something else explains them. reasons: why it is not comparable. notes: what else is to be known.
    """

    kind: str
    start: int
    end: int
    checkpoints: tuple[int, ...] = ()
    rows: int = 0
    evaluation: bool = False
    found: tuple[Difference, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return {IDENTICAL: 0, DIFFERENT: 1, NOT_COMPARABLE: 2}[self.kind]

    def __str__(self) -> str:
        steps = ', '.join(map(str, self.checkpoints))
        parts = [f'checkpoint{"s" * (len(self.checkpoints) > 1)} {steps}'] * bool(self.checkpoints)
        parts += [f'{self.rows} row{"s" * (self.rows != 1)} of metrics.jsonl'] * bool(self.rows)
        parts += ['evaluation.json'] * self.evaluation
        equal = f'{" and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))}' or 'nothing'
        if self.kind == IDENTICAL:
            lines = [f'identical: steps {self.start} to {self.end}; {equal}']
        else:
            lines = [self.kind]
            lines += [f'  {reason}' for reason in self.reasons] + [f'  {difference}' for difference in self.found]
            lines += [f'  before that, equal: {equal}'] * bool(parts and self.found)
        return '\n'.join(lines + [f'note: {note}' for note in self.notes])


def verify(folder: str | pathlib.Path, from_step: int = 0, *, progress: TextIO | None = None) -> Verdict:
    """Runs the run in `folder` again, from step 0 or from its checkpoint of `from_step`, and compares.

    A finished run is compared to its end, with its final evaluation; any other up to its newest checkpoint. It takes no
    longer than the run itself did. progress: a stream that the progress is shown on.

    Raises UserError where there is no run, no such checkpoint, where another trains in the folder, or where the disk or
    the memory here is full, which says nothing of the run. What else keeps the run from being run again is a Verdict.
    """
    run = Run(folder)
    config = run.trusted_config()
    config_lib.check(config)
    with contextlib.ExitStack() as held:
        with processes.together('lock'):
            if processes.first():
                run.paths.check()
                held.enter_context(run.unchanged())
        try:
            return _verified(run, config, from_step, progress)
        except (RunError, MemoryError) as error:
            raise UserError(f'{run.folder}: cannot be run again here: {first_line(error)}') from None


def _verified(run: Run, config: ConfigDict, from_step: int, progress: TextIO | None) -> Verdict:
    with contextlib.closing(run.checkpoints(config)) as checkpoints:
        kept = checkpoints.steps()
        if not kept:
            return Verdict(NOT_COMPARABLE, 0, 0, reasons=(f'{run.folder}: no checkpoint is kept',))
        if from_step and from_step not in kept:
            raise UserError(f'--from_step={from_step}: no checkpoint of that step is kept; there are {kept}')
        end = kept[-1]
        verdict = functools.partial(Verdict, start=from_step, end=end)
        for step in (step for step in kept if step >= from_step):
            try:
                checkpoints.check(step)
            except UserError as error:
                place, text = f'checkpoint of step {step}', first_line(error)
                return verdict(DIFFERENT, found=(Difference(step, place, text),))
    try:
        finished = is_over(config, run, end) or (end == config.total_steps and _evaluated_at(run.paths.evaluation, end))
        lines = logs.read_lines(run.paths.metrics) if run.paths.metrics.exists() else []
    except RunError as error:
        return verdict(DIFFERENT, found=(Difference(None, 'metrics.jsonl', str(error)),))
    try:
        run.tokenizer  # noqa: B018 (it reads its file)
    except UserError as error:
        return verdict(DIFFERENT, found=(Difference(None, run.paths.tokenizer.name, first_line(error)),))
    if from_step == end and not finished:
        return verdict(NOT_COMPARABLE, reasons=(f'nothing is kept behind step {end}, and the run is not finished',))
    try:
        ground = comparable.Ground(run, config, from_step, kept)
    except UserError as error:
        return verdict(NOT_COMPARABLE, reasons=(str(error),))
    if ground.reasons:
        return verdict(NOT_COMPARABLE, reasons=ground.reasons, notes=ground.notes)
    notes = ground.notes if finished else (f'the run is not finished; it is verified up to step {end}', *ground.notes)
    with _temporary_folder() as temporary:
        rerun = _Rerun(run, temporary, ground.config, from_step, kept, finished, lines)
        try:
            rerun.train(progress)
        except UserError as error:
            return verdict(NOT_COMPARABLE, reasons=(first_line(error),), notes=notes)
        doubts = ground.doubts + _of_loaders(run.manifest, rerun.manifest)
        equal = {'checkpoints': tuple(rerun.equal), 'rows': rerun.rows_equal, 'evaluation': rerun.evaluation_equal}
    if not rerun.found:
        return verdict(IDENTICAL, notes=notes, **equal)
    kind = NOT_COMPARABLE if doubts else DIFFERENT
    return verdict(kind, found=tuple(rerun.found), reasons=doubts, notes=notes, **equal)


def _of_loaders(there: dict, here: dict) -> tuple[str, ...]:
    """The doubt that a file of the user's own, which returns the data, is another."""
    before, now = (found.get('data', {}).get('loader_sha256') for found in (there, here))
    return ('data.name: the file that returns the data is another',) if before and now and before != now else ()


def _evaluated_at(path: pathlib.Path, step: int) -> bool:
    """Whether the final evaluation there is of this step, or cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return path.exists() and records.read(path).get('step') == step
    return True


@contextlib.contextmanager
def _temporary_folder() -> Iterator[pathlib.Path]:
    """One for all processes."""
    with contextlib.ExitStack() as held:
        own = None
        with processes.together('temporary folder'), disk_errors('a temporary folder (TMPDIR says where)'):
            if processes.first():
                own = held.enter_context(tempfile.TemporaryDirectory(prefix='aigc_jax_verify_'))
        yield pathlib.Path(processes.gather('temporary folder', own)[0])


class _Ended(Exception):
    """The rerun need not go on."""


class _Rerun(Run):
    """A run in a temporary folder that goes on from step `start` of `original`, and is compared with it."""

    draws = False

    def __init__(
        self, original: Run, folder: pathlib.Path, config: ConfigDict, start: int, kept: list[int], finished: bool,
        lines: list[bytes],
    ):  # fmt: skip
        super().__init__(folder / 'run')
        self._original, self._config, self._start, self._finished = original, config, start, finished
        self._end, self._kept = kept[-1], [step for step in kept if step > start or not start]
        self.found: list[Difference] = []
        self.equal: list[int] = []  # steps of the checkpoints that are
        self.evaluation_equal = False
        self._log: _Log | None = None
        whole = [line for line in lines if line.endswith(b'\n')]
        self._lines = whole if finished else [line for line in whole if _step(line) <= self._end]

    def train(self, progress: TextIO | None) -> None:
        """Sets found, equal and evaluation_equal. Raises UserError where it cannot be run again."""
        with processes.together('temporary folder'), disk_errors(self.folder):
            if processes.first():
                self._prepare()
        try:
            trainer.train(self._config, self, progress=progress)
        except _Ended:
            pass
        except Diverged as error:
            self._row_differs()
            self.found.append(Difference(None, 'the rerun', f'it diverged where the run did not: {first_line(error)}'))
        if processes.first() and not self.found:
            self._compare_ends()
        self.found = [Difference(*each) for each in processes.gather('found', self.found)[0]]

    @property
    def rows_equal(self) -> int:
        return self._log.equal if self._log else 0

    @property
    def seeds(self) -> list[int] | None:
        """Of the replicas, if there are several."""
        return [self._config.seed + k for k in range(n)] if (n := self._config.num_seeds) > 1 else None

    def checkpoints(self, config: ConfigDict | None = None, read_only: bool = True) -> Checkpoints:
        return _Compared(self, self._original.paths.checkpoints, self._start)

    def log(self, step: int):
        """The log that compares each row as it is written."""
        if not processes.first():
            return logs.NullWriter()
        self._log = _Log(self.folder, step, self._lines)
        return self._log

    def _prepare(self) -> None:
        """What the rerun finds in its folder: the manifest, by which the data are checked, and what lies before it."""
        theirs, own = self._original.paths, self.paths
        self.folder.mkdir()
        shutil.copyfile(theirs.manifest, own.manifest)
        if not self._start:
            return
        atomic_write(own.config, config_lib.to_json(self._config))
        for name in ('metrics', 'tokenizer', 'extractor'):
            if getattr(theirs, name).exists():
                shutil.copyfile(getattr(theirs, name), getattr(own, name))

    def reached(self, step: int) -> bool:
        """Whether `step` is that of a kept checkpoint; raises _Ended where a row has differed."""
        if step in self._kept:
            return True
        if step % self._config.log_every_steps == 0 and self._row_differs():
            raise _Ended
        return False

    def compared(self, step: int, text: str | None) -> None:
        """text: how the checkpoint of `step` differs. Raises _Ended where it does, a row did, or the end is reached."""
        row_differs = self._row_differs()
        if text:
            self.found.append(Difference(step, f'checkpoint of step {step}', text))
        else:
            self.equal.append(step)
        if text or row_differs or (step == self._end and not self._finished):
            raise _Ended

    def _row_differs(self) -> bool:
        """Whether a row that was written so far differs; it is taken into `found`. The first process has the log."""
        if self._log and self._log.difference and self._log.difference not in self.found:
            self.found.append(self._log.difference)
        return processes.gather('rows', bool(self.found))[0]

    def _compare_ends(self) -> None:
        """What is compared behind the last step: the end of metrics.jsonl, tokenizer.json and evaluation.json."""
        if self._log and (difference := self._log.difference or self._log.missing()):
            self.found.append(difference)
        left = [step for step in self._kept if step not in self.equal]
        if left and not self.found:
            text = f'the rerun ends without a state at step {left[0]}'
            self.found.append(Difference(left[0], f'checkpoint of step {left[0]}', text))
        for name in ('tokenizer', 'evaluation'):
            there, here = getattr(self._original.paths, name), getattr(self.paths, name)
            if self.found or not there.exists() or not (here.exists() or self._finished):
                continue
            if not here.exists() or there.read_bytes() != here.read_bytes():
                self.found.append(Difference(None, there.name, _of_files(there, here)))
        self.evaluation_equal = not self.found and self._finished and self._original.paths.evaluation.exists()


def _of_files(there: pathlib.Path, here: pathlib.Path) -> str:
    if not here.exists():
        return 'the rerun writes none'
    try:
        found = differences.of_values(records.read(there), records.read(here))
    except (OSError, ValueError) as error:
        return f'it cannot be read: {error}'
    return found or 'the same values, written in other letters'


def _step(line: bytes) -> int:
    """That of a row; 0 of what is no row, which is compared in any case."""
    try:
        return int(records.parse(line)['step'])
    except (ValueError, KeyError, TypeError):
        return 0


class _Log(logs.Writer):
    """Compares each row that is written with the `lines` of another metrics.jsonl. The first difference is kept."""

    def __init__(self, folder: pathlib.Path, step: int, lines: list[bytes]):
        super().__init__(folder, step)
        self._lines = lines
        self._next = len(logs.read_lines(self._path))  # those that the file holds already are a beginning of them
        self.difference: Difference | None = None
        self.equal = 0

    def _write(self, row: dict) -> None:
        super()._write(row)
        if self.difference:
            return
        place = f'metrics.jsonl, line {self._next + 1}'
        if self._next == len(self._lines):
            text = f'there is none; the rerun writes the row of {differences.row_name(row)}'
        else:
            text = differences.of_lines(self._lines[self._next], logs.as_line(row))
        if text:
            self.difference = Difference(row['step'], place, text)
            return
        self._next, self.equal = self._next + 1, self.equal + 1

    def missing(self) -> Difference | None:
        """The first line that the rerun did not write."""
        if self._next == len(self._lines):
            return None
        line = self._lines[self._next]
        return Difference(_step(line), f'metrics.jsonl, line {self._next + 1}', 'the rerun writes no such row')


class _Compared(Checkpoints):
    """The checkpoints of the original run, with which the states of the rerun are compared instead of being saved."""

    def __init__(self, rerun: _Rerun, directory: pathlib.Path, start: int):
        super().__init__(directory, read_only=True)
        self._rerun, self._start = rerun, start

    def latest(self) -> int | None:
        """Of the rerun."""
        return self._start or None

    def wants(self, step: int) -> bool:
        return self._rerun.reached(step)

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        if self._rerun.reached(step):
            self._rerun.compared(step, self._difference(step, state, metrics or {}))

    def restore(self, step: int, template: TrainState) -> TrainState:
        try:
            return super().restore(step, template)
        except UserError as error:
            self._rerun.compared(step, first_line(error))
            raise

    def _difference(self, step: int, state: TrainState, metrics: dict[str, float]) -> str | None:
        """How the state and its metrics differ from what was saved: the first leaf, parameters before all else."""
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        now, found = tree.flatten(state), {}
        try:
            for part in self.parts(step, template):
                for name, leaf in part.items():
                    there, here = (np.asarray(parallel.fetch(x)) for x in (leaf, now[name]))
                    found[name] = differences.of_arrays(there, here, self._rerun.seeds)
        except UserError as error:  # it is damaged, or another model's
            return first_line(error)
        differing = sorted((name for name in found if found[name]), key=lambda name: not name.startswith('params/'))
        if differing:
            return f'{len(differing)} of {len(found)} leaves differ; {differing[0]}: {found[differing[0]]}'
        if text := differences.of_values(self.metrics(step), metrics):
            return f'its metrics differ: {text}'
        return None
