"""A run's logs: metrics.jsonl (deterministic), timing.jsonl (the clock), TensorBoard, the progress line."""

import datetime
import json
import math
import os
import pathlib
import sys
import time

from aigc_jax.core.errors import RunError
from aigc_jax.core.files import atomic_write, disk_errors

# Metrics that a progress line has room for.
_SHOWN = 6


class Writer:
    """Appends to the logs in `workdir`, which it makes, after cutting them back to `step`.

    Opening drops from metrics.jsonl the rows of later steps and those of split 'final', and a last line that
    a crash left torn; the lines kept stay as they are, byte for byte, so that an interrupted and resumed run
    leaves the same file as an uninterrupted one. timing.jsonl keeps its whole history. TensorBoard hides the
    events of the steps that are trained again.

    Raises RunError if the disk refuses, or if a line before the last is no row.
    """

    def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool = True):
        workdir = pathlib.Path(workdir)
        with disk_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        self._step = step
        self._path = workdir / 'metrics.jsonl'
        self._tb_dir = workdir / 'tb' if tensorboard else None
        self._tb = None
        _cut_back(self._path, lambda row: row['step'] <= step and row['split'] != 'final')
        _cut_back(workdir / 'timing.jsonl', lambda row: True)
        # Unbuffered: a row is in the file when `metrics` returns, and a full disk is met there, not at close.
        with disk_errors(workdir):
            self._metrics = open(self._path, 'ab', buffering=0)
            self._timing = open(workdir / 'timing.jsonl', 'ab', buffering=0)

    def metrics(self, step: int, split: str, values: dict[str, float], seed: int | None = None) -> None:
        """Writes one row: {"step", "split", "seed" if not None, **values sorted by name}.

        Values are written with all their digits (a float32 returns exactly). JSON has no NaN and no infinity:
        a value that is not finite is written as null.
        """
        row = {'step': int(step), 'split': split} | ({} if seed is None else {'seed': int(seed)})
        scalars = {name: float(values[name]) for name in sorted(values)}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        _append(self._metrics, row | finite)
        if self._tb_dir is not None:
            self._tensorboard(step, split, finite, seed)

    def timing(self, **fields) -> None:
        """Writes one row: {"time": seconds since the epoch, **fields}."""
        _append(self._timing, {'time': time.time()} | fields)

    def flush(self) -> None:
        """Brings metrics.jsonl to the disk; call it before the checkpoint that its rows belong to."""
        with disk_errors(self._path):
            os.fsync(self._metrics.fileno())
            if self._tb is not None:
                self._tb.flush()

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl, oldest first; a value that was not finite is None."""
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]

    def close(self) -> None:
        self._metrics.close()
        self._timing.close()
        if self._tb is not None:
            self._tb.close()

    def _tensorboard(self, step, split, values, seed):
        if self._tb is None:
            # Here, not at the top: a run that logs no scalar does not pay for the import.
            from tensorboardX import SummaryWriter

            self._tb = SummaryWriter(str(self._tb_dir), purge_step=self._step + 1)
        suffix = '' if seed is None else f'/seed{seed}'
        for name, value in values.items():
            if value is not None:
                self._tb.add_scalar(f'{split}/{name}{suffix}', value, step)


def _append(file, row: dict) -> None:
    line = json.dumps(row, allow_nan=False).encode() + b'\n'
    with disk_errors(file.name):
        while line:  # a disk that fills up takes a part first and refuses the rest
            line = line[file.write(line) :]


def _cut_back(path: pathlib.Path, keep) -> None:
    """Drops from a JSON-lines file the rows that `keep` refuses and a torn last line, if there are any."""
    old = path.read_bytes() if path.exists() else b''
    lines = old.splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            wanted = line.endswith(b'\n') and keep(row)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise RunError(f'{path}, line {number}: not a row of this log; remove the line') from error
            wanted = False
        if wanted:
            kept.append(line)
    if (new := b''.join(kept)) != old:
        atomic_write(path, new)


class Progress:
    """Where the run stands: a bar on a terminal, elsewhere one plain line per `log`.

    `total_steps` and `start_step` are training steps; `stream` is stderr unless given; `clock` (seconds) is
    for tests.
    """

    def __init__(self, total_steps: int, start_step: int, stream=None, clock=time.monotonic):
        self._total = total_steps
        self._stream = stream or sys.stderr
        self._clock = clock
        self._last = start_step, clock()
        self._bar = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps, initial=start_step, file=self._stream, unit=' steps', dynamic_ncols=True
            )

    def update(self, step: int) -> None:
        """Says that `step` steps are done; cheap enough for every call of the step function."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Shows the first few of `values`, in their order, the speed since the last `log`, the time left."""
        shown = [f'{name} {value:.4g}' for name, value in list(values.items())[:_SHOWN]]
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(shown), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        (last_step, last_time), now = self._last, self._clock()
        self._last = step, now
        words = [f'step {step:>{len(str(self._total))}}/{self._total}', *shown]
        if step > last_step and now > last_time:
            speed = (step - last_step) / (now - last_time)
            left = datetime.timedelta(seconds=round((self._total - step) / speed))
            words += [f'{speed:.3g} steps/s' if speed < 1000 else f'{speed:.0f} steps/s', f'{left} left']
        print('  '.join(words), file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
