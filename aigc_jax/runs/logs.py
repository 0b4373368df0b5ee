"""A run's logs: metrics.jsonl (deterministic), timing.jsonl (the clock), TensorBoard, the progress line."""

import json
import math
import os
import pathlib
import socket
import struct
import time

from aigc_jax.core import records
from aigc_jax.core.errors import RunError
from aigc_jax.core.files import atomic_write, disk_errors, open_append
from aigc_jax.core.memory import read_whole
from aigc_jax.core.notes import note
from aigc_jax.runs.paths import Paths


class Writer:
    """Appends to the logs in `workdir`, which it makes, after cutting them back to `step`.

    Opening drops from metrics.jsonl the rows of later steps and those of split 'final', and a last line that
    a crash left torn; the lines kept stay as they are, byte for byte, so that an interrupted and resumed run
    leaves the same file as an uninterrupted one. timing.jsonl keeps its whole history. TensorBoard hides the
    events of the steps that are trained again; where its events cannot be written, a note says so and the run goes on
    without them, for metrics.jsonl holds all of them.

    Raises RunError if the disk refuses, or if a line before the last is no row.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        paths = Paths(workdir)
        with disk_errors(workdir):
            paths.folder.mkdir(parents=True, exist_ok=True)
        self._path = paths.metrics
        self._tb = _Events(paths.tensorboard, step)
        _cut_back(self._path, lambda line: (row := _row(line))['step'] <= step and row['split'] != 'final')
        _cut_back(paths.timing, lambda line: records.parse(line) is not None)
        # Unbuffered: a row is in the file when `metrics` returns, and a full disk is met there, not at close.
        self._opened = time.monotonic()
        with disk_errors(workdir):
            self._metrics = open_append(self._path)
            self._timing = open_append(paths.timing)

    def metrics(self, step: int, split: str, values: dict[str, float], seed: int | None = None) -> None:
        """Writes one row: {"step", "split", "seed" if not None, **values sorted by name}.

        Values are written with all their digits (a float32 returns exactly). JSON has no NaN and no infinity:
        a value that is not finite is written as null.
        """
        row = {'step': int(step), 'split': split} | ({} if seed is None else {'seed': int(seed)})
        scalars = {name: float(values[name]) for name in sorted(values)}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._write(row | finite)
        suffix = '' if seed is None else f'/seed{seed}'
        shown = {f'{split}/{name}{suffix}': value for name, value in finite.items() if value is not None}
        self._tb.add(step, shown)

    def _write(self, row: dict) -> None:
        """Appends one row to metrics.jsonl."""
        _append(self._metrics, as_line(row))

    def timing(self, **fields) -> None:
        """Writes one row: {"time": seconds since the epoch, "elapsed": seconds since the logs were opened, by a clock
        that nobody sets, **fields}."""
        elapsed = round(time.monotonic() - self._opened, 6)
        _append(self._timing, as_line({'time': time.time(), 'elapsed': elapsed} | fields))

    def flush(self) -> None:
        """Brings metrics.jsonl to the disk; call it before the checkpoint that its rows belong to."""
        with disk_errors(self._path):
            os.fsync(self._metrics.fileno())

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl, oldest first; a value that was not finite is None."""
        return read_rows(self._path)

    def close(self) -> None:
        self._tb.close()
        with disk_errors(self._path):
            self._metrics.close()
            self._timing.close()


class _Events:
    """Writes the scalars after `step` for TensorBoard, to a file in `folder` that the first of them makes.

    tensorboardX's own writer leaves that to a thread, and waits for ever once the thread has met a full disk.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        self._folder, self._step, self._file, self._lost = folder, step, None, False

    def add(self, step: int, values: dict[str, float]) -> None:
        # Here, not at the top: a run that logs no scalar does not pay for the import.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if self._lost or not values:
            return
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        events = [Event(step=step, summary=scalars)]
        try:
            if self._file is None:
                self._folder.mkdir(exist_ok=True)
                name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}'
                self._file = open(self._folder / name, 'xb', buffering=0)
                start = Event(step=self._step + 1, session_log=SessionLog(status=SessionLog.START))
                events = [Event(file_version='brain.Event:2'), start, *events]
            for event in events:
                event.wall_time = time.time()
                self._append(event.SerializeToString())
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:  # some network file systems tell of a full disk here
                self._lose(error)

    def _append(self, event: bytes) -> None:
        """One TFRecord: its length, the checksum of that, the event, its checksum. Raises OSError, nothing written."""
        from tensorboardX.record_writer import masked_crc32c

        length = struct.pack('<Q', len(event))
        record = b''.join(part + struct.pack('<I', masked_crc32c(part)) for part in (length, event))
        whole = self._file.tell()
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError:
            self._file.truncate(whole)
            raise

    def _lose(self, error: OSError) -> None:
        self._lost = True
        note(f'{self._folder}: cannot be written ({error.strerror or error}); the run goes on without TensorBoard')


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics.jsonl, oldest first, without a last line that is torn. Raises RunError."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if line.endswith(b'\n'):
            try:
                rows.append(_row(line))
            except ValueError as error:
                raise RunError(f'{path}, line {number}: not a row of this log; remove the line') from error
    return rows


def _row(line: bytes) -> dict:
    """{"step", "split", perhaps "seed", metric: number or null}. Raises ValueError."""
    row = records.parse(line)
    if not isinstance(row, dict) or not {'step', 'split'} <= row.keys():
        raise ValueError('no row')
    kinds = {'step': (int,), 'split': (str,), 'seed': (int,)}
    for name, value in row.items():
        if type(value) not in kinds.get(name, (int, float, type(None))):
            raise ValueError(f'{name} is {type(value).__name__}')
        if '$' in name or not name.isprintable() or type(value) is int and abs(value) >= 2**63:  # what no plot shows
            raise ValueError(f'{name} is no name of a metric, or too large')
    return row


def read_lines(path: pathlib.Path) -> list[bytes]:
    """The lines of a log as they stand, oldest first. Raises RunError."""
    try:
        with open(path, 'rb', opener=records.regular) as file:
            return read_whole(file, str(path)).splitlines(keepends=True)
    except OSError as error:
        raise RunError(f'{path}: cannot be read: {error.strerror or error}') from None


def as_line(row: dict) -> bytes:
    """As it stands in a log."""
    return json.dumps(row, allow_nan=False).encode() + b'\n'


def _append(file, data: bytes) -> None:
    with disk_errors(file.name):
        while data:  # a disk that fills up takes a part first and refuses the rest
            data = data[file.write(data) :]


def _cut_back(path: pathlib.Path, keep) -> None:
    """Drops from a JSON-lines file the lines that `keep` refuses and a torn last one, if there are any."""
    lines = read_lines(path) if path.exists() else []
    shared = path.exists() and path.stat().st_nlink > 1
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            wanted = keep(line) and line.endswith(b'\n')
        except ValueError as error:
            if number < len(lines):
                raise RunError(f'{path}, line {number}: not a row of this log; remove the line') from error
            wanted = False
        if wanted:
            kept.append(line)
    # A copy by hard links, as backups are, must not grow with the run.
    if kept != lines or shared:
        atomic_write(path, b''.join(kept))


class NullWriter:
    """The Writer of every process but the first: nothing is written."""

    def metrics(self, step: int, split: str, values: dict[str, float], seed: int | None = None) -> None: ...
    def timing(self, **fields) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...

    def rows(self) -> list[dict]:
        return []
