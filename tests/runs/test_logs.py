"""writer.py: what a resumed run finds and leaves, exact numbers, the progress line."""

import errno
import fcntl
import inspect
import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from aigc_jax.core.errors import RunError
from aigc_jax.core.files import atomic_write, open_append
from aigc_jax.runs.logs import NullWriter, Writer, read_rows
from aigc_jax.runs.pace import NullProgress, Pace, Progress
from aigc_jax.runs.paths import Paths


def train(writer, first, last, final=False):
    """What the loop writes for the steps first..last: train every step, eval every second."""
    for step in range(first, last + 1):
        writer.metrics(step, 'train', {'model/loss': np.float32(1) / step, 'model/kl': math.pi * step})
        writer.timing(step=step, seconds=0.1)
        if step % 2 == 0:
            writer.metrics(step, 'eval', {'model/loss': 2.0 / step})
    if final:
        writer.metrics(last, 'final', {'model/loss': 7.0})
    writer.close()


def test_a_row_has_all_digits_and_no_nan(tmp_path):
    writer = Writer(tmp_path, 0)
    value = np.float32(0.1)
    values = {'b/x': value, 'a/y': 1 / 3, 'a/n': math.nan, 'a/i': -math.inf, 'a/k': 8}
    writer.metrics(3, 'train', values, seed=2)
    line = (tmp_path / 'metrics.jsonl').read_text()  # there before any flush
    writer.flush()
    assert line == (
        '{"step": 3, "split": "train", "seed": 2, "a/i": null, "a/k": 8.0, "a/n": null, '
        '"a/y": 0.3333333333333333, "b/x": 0.10000000149011612}\n'
    )
    assert writer.rows() == [json.loads(line)]
    assert np.float32(writer.rows()[0]['b/x']) == value
    writer.close()


@pytest.mark.parametrize('torn', [b'', b'{"step": 6, "spl', b'{"step": 1, "split": "train"}', b'\0\0\0'])
def test_interrupted_and_resumed_leaves_the_file_of_an_uninterrupted_run(tmp_path, torn):
    train(Writer(tmp_path / 'whole', 0), 1, 8, final=True)
    cut = tmp_path / 'cut'
    train(Writer(cut, 0), 1, 6, final=True)
    with open(cut / 'metrics.jsonl', 'ab') as file:
        file.write(torn)
    train(Writer(cut, 4), 5, 8, final=True)
    assert (cut / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
    # The clock's log forgets nothing.
    assert len((cut / 'timing.jsonl').read_text().splitlines()) == 6 + 4


def test_kept_lines_stay_byte_for_byte(tmp_path):
    odd = b'{"split":"train",   "step": 1,"m/x": 1.50e0}\n'
    later = b'{"split": "train", "step": 2}\n'
    final = b'{"split": "final", "step": 1}\n'
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(odd + final + later)
    Writer(tmp_path, 1).close()
    assert path.read_bytes() == odd
    before = path.stat()
    Writer(tmp_path, 1).close()  # nothing to cut: the file is not rewritten
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.jsonl', 'timing.jsonl']


def test_a_torn_timing_line_goes_and_the_time_is_written(tmp_path):
    (tmp_path / 'timing.jsonl').write_bytes(b'{"time": 1.0}\n{"time": 2')
    writer = Writer(tmp_path, 0)
    writer.timing(step=5, compile_seconds=1.5)
    writer.close()
    first, second = map(json.loads, (tmp_path / 'timing.jsonl').read_text().splitlines())
    assert first == {'time': 1.0}
    assert [*second] == ['time', 'elapsed', 'step', 'compile_seconds'] and second['compile_seconds'] == 1.5
    assert second['time'] > 1.6e9 and 0 <= second['elapsed'] < 60


@pytest.mark.parametrize('line', [b'not json\n', b'{"split": "train"}\n', b'7\n'])
def test_a_foreign_line_inside_is_named_and_nothing_is_touched(tmp_path, line):
    old = line + b'{"step": 9, "split": "train"}\n'
    (tmp_path / 'metrics.jsonl').write_bytes(old)
    with pytest.raises(RunError, match='metrics.jsonl, line 1: '):
        Writer(tmp_path, 4)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == old


class FullDisk:
    """A file that takes `room` bytes."""

    def __init__(self, path, room):
        self.name, self.room, self.data = path, room, b''

    def write(self, data):
        taken = data[: self.room - len(self.data)]
        if not taken:
            raise OSError(errno.ENOSPC, 'No space left on device')
        self.data += taken
        return len(taken)


def test_a_full_disk_ends_the_run_with_one_line(tmp_path):
    writer = Writer(tmp_path, 0)
    writer.close()
    writer._metrics = FullDisk('RUN/metrics.jsonl', room=60)
    writer.metrics(1, 'train', {'m/x': 1.0})
    with pytest.raises(RunError) as error:
        writer.metrics(2, 'train', {'m/x': 1.0})
    assert str(error.value) == 'cannot write RUN/metrics.jsonl: No space left on device'
    assert len(writer._metrics.data) == 60  # what fitted was written: the torn line that the next start drops


FILLED = """
import resource, sys
from aigc_jax.core.errors import RunError
from aigc_jax.runs.logs import Writer

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
writer = Writer(sys.argv[1], 0)
try:
    for step in range(1, 5000):
        writer.metrics(step, 'train', {'m/loss': 1.0})
except RunError as error:
    print(error, flush=True)
writer.close()
"""


def test_a_full_disk_loses_tensorboard_and_hangs_nothing(command_line, tmp_path):
    """A file that may not grow is met as a full disk is; its events are longer than the rows, and meet it first."""
    done = command_line.python('-c', FILLED, tmp_path, seconds=60)
    assert done.returncode == 0, done.stderr
    (said,) = done.stderr.splitlines()
    assert said == f'note: {tmp_path}/tb: cannot be written (File too large); the run goes on without TensorBoard'
    assert done.stdout == f'cannot write {tmp_path}/metrics.jsonl: File too large\n'
    (file,) = (tmp_path / 'tb').iterdir()
    *_, last = events_of(file)  # to the end: no event is torn
    assert 500 < last.step < len(read_rows(tmp_path / 'metrics.jsonl'))


def test_a_copy_by_hard_links_does_not_grow_with_the_run(tmp_path):
    train(Writer(tmp_path / 'run', 0), 1, 4)
    (tmp_path / 'copy').mkdir()
    names = 'metrics.jsonl', 'timing.jsonl'
    for name in names:
        (tmp_path / 'copy' / name).hardlink_to(tmp_path / 'run' / name)
    before = [(tmp_path / 'copy' / name).read_bytes() for name in names]
    train(Writer(tmp_path / 'run', 4), 5, 8)
    assert [(tmp_path / 'copy' / name).read_bytes() for name in names] == before
    train(Writer(tmp_path / 'whole', 0), 1, 8)
    assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()


def test_a_log_is_no_link(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'timing.jsonl').symlink_to(tmp_path / 'mine')
    with pytest.raises(RunError, match='cannot write'):
        Writer(tmp_path / 'run', 0)
    assert not (tmp_path / 'mine').exists()


def test_a_temporary_name_cannot_be_foretold(tmp_path):
    """Nor does its end: whoever may read what is written else may read this."""
    (tmp_path / 'mine').write_text('mine')
    for name in ('.a.json.tmp', f'.a.json.{os.getpid()}.tmp', 'a.json'):
        (tmp_path / name).symlink_to(tmp_path / 'mine')
    atomic_write(tmp_path / 'a.json', 'theirs')
    assert (tmp_path / 'mine').read_text() == 'mine'
    assert (tmp_path / 'a.json').read_text() == 'theirs' and not (tmp_path / 'a.json').is_symlink()
    assert (tmp_path / 'a.json').stat().st_mode == (tmp_path / 'mine').stat().st_mode


WRITING = """
import os, sys
from aigc_jax.core import files

fsync = os.fsync
os.fsync = lambda file: (fsync(file), print('written', flush=True), sys.stdin.readline())
files.atomic_write(sys.argv[1], 'whole')
"""


@pytest.mark.parametrize('killed', [True, False])
def test_what_a_killed_process_left_is_cleared_and_what_is_being_written_stays(command_line, tmp_path, killed):
    path = tmp_path / 'samples' / 'a.txt'
    process = subprocess.Popen(
        [sys.executable, '-c', WRITING, path], cwd=command_line.root, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == 'written\n'
        (left,) = path.parent.iterdir()
        Paths(tmp_path).clear_leftovers()
        assert left.exists()
        if killed:
            process.kill()
            process.wait(timeout=60)
            assert left.exists()
            Paths(tmp_path).clear_leftovers()
            assert not list(path.parent.iterdir())
        else:
            process.communicate('\n', timeout=60)
            assert path.read_text() == 'whole' and list(path.parent.iterdir()) == [path]
    finally:
        process.kill()
        process.communicate()


LOCKS = 'import fcntl, sys; fcntl.lockf(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)'


def test_clearing_follows_no_link_and_waits_for_no_pipe(tmp_path):
    """A process loses its lock of a file when it closes that file by any other name."""
    (tmp_path / '.a.aigc_jax.tmp').symlink_to('.lock')
    os.mkfifo(tmp_path / '.b.aigc_jax.tmp')
    with open_append(tmp_path / '.lock') as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        Paths(tmp_path).clear_leftovers()
        done = subprocess.run([sys.executable, '-c', LOCKS, tmp_path / '.lock'], capture_output=True, text=True)
    assert 'BlockingIOError' in done.stderr


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(RunError, match='cannot write .*file'):
        Writer(tmp_path / 'file' / 'run', 0)


def events_of(path) -> list:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, events = path.read_bytes(), []
    while data:  # TFRecord: length (8 bytes), its CRC (4), the record, its CRC (4)
        size = int.from_bytes(data[:8], 'little')
        event = data[12 : 12 + size]
        for part, crc in ((data[:8], data[8:12]), (event, data[12 + size : 16 + size])):
            assert masked_crc32c(part) == int.from_bytes(crc, 'little')
        events.append(Event.FromString(event))
        data = data[16 + size :]
    assert events[0].file_version == 'brain.Event:2'
    return events


def test_tensorboard_has_the_finite_values_and_hides_repeated_steps(tmp_path):
    writer = Writer(tmp_path, 4)
    assert not (tmp_path / 'tb').exists()  # not before the first scalar
    writer.metrics(5, 'train', {'m/loss': 1.5, 'm/bad': math.nan}, seed=3)
    writer.metrics(5, 'eval', {'m/loss': 2.5, 'm/kl': 0.5})
    writer.close()
    (file,) = (tmp_path / 'tb').iterdir()
    events = events_of(file)
    scalars = {(value.tag, e.step): value.simple_value for e in events for value in e.summary.value}
    assert scalars == {('train/m/loss/seed3', 5): 1.5, ('eval/m/loss', 5): 2.5, ('eval/m/kl', 5): 0.5}
    assert [e.step for e in events if e.HasField('session_log')] == [5]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_file_is_plain_lines():
    stream = io.StringIO()
    progress = Progress(10_000, 0, stream)
    progress.update(200)
    progress.log(200, {'model/loss': 123.4321, 'model/kl': 3.21}, ['800 steps/s', '0:00:12 left'])
    progress.evaluated(200, {'model/nll': 7.5})
    progress.log(1200, {f'm/{i}': 1.0 for i in range(9)}, [])  # at most six values
    progress.close()
    assert stream.getvalue().splitlines() == [
        'step   200/10000  model/loss 123.4  model/kl 3.21  800 steps/s  0:00:12 left',
        'step   200/10000  evaluation  model/nll 7.5',
        'step  1200/10000  m/0 1  m/1 1  m/2 1  m/3 1  m/4 1  m/5 1',
    ]


def test_progress_on_a_terminal_is_a_bar_that_starts_where_the_run_resumes():
    stream = Terminal()
    progress = Progress(100, 40, stream)
    progress.update(50)
    progress.evaluated(50, {'model/nll': 7.5})
    progress.log(60, {'model/loss': 1.25}, ['800 steps/s', '0:00:12 left'])
    progress.close()
    text = stream.getvalue()
    assert '40/100' in text and 'model/loss 1.25' in text
    assert re.search(r'60/100 .*800 steps/s, 0:00:12 left', text) and 'it/s' not in text
    assert 'step 60' not in text and 'step  50/100  evaluation  model/nll 7.5\n' in text


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_pace_is_that_of_the_training_and_the_time_left_counts_what_is_ahead():
    """100 steps a second; an evaluation every 200 steps takes 50 s, the first one 90."""
    clock = Clock()
    pace = Pace(1000, 0, {'evaluation': 200, 'checkpoint': 500}, clock)
    assert pace.words() == []
    for step in range(100, 401, 100):
        clock.now += 1.0
        assert pace.measure(step) == pytest.approx(100)
        if step == 200:
            assert pace.words() == ['100 steps/s', '0:00:08 and 5 evaluations, 2 checkpoints left']
        if step % 200 == 0:
            with pace.pause('evaluation', step):
                clock.now += 90.0 if step == 200 else 50.0
            assert pace.last('evaluation') == (90.0 if step == 200 else 50.0)
    with pace.pause('checkpoint', 400):
        clock.now += 2.0
    clock.now += 1.0
    assert pace.measure(500) == pytest.approx(100)
    # 5 s of training, the evaluations at 600, 800 and 1000, the checkpoints at 500 and 1000.
    assert pace.words() == ['100 steps/s', '0:02:39 left']


def test_the_speed_that_is_shown_is_smoothed_and_follows():
    clock = Clock()
    pace = Pace(10**6, 0, {}, clock)
    shown = []
    for step in range(10, 3010, 10):
        clock.now += 0.05 if step % 20 else 0.15  # 200 and 67 steps a second in turn: 100 in the mean
        pace.measure(step)
        shown.append(float(pace.words()[0].split()[0]))
    assert all(98 < speed < 102 for speed in shown[-100:])
    step = 3010
    for _ in range(400):
        clock.now, step = clock.now + 1.0, step + 10
        pace.measure(step)
    assert pace.words()[0] == '10 steps/s'


@pytest.mark.parametrize('real, null', [(Writer, NullWriter), (Progress, NullProgress)])
def test_what_stands_in_on_other_processes_has_the_very_methods(real, null):
    """Another name, or other arguments, must fail there too."""
    own = lambda kind: {
        name: str(inspect.signature(value)) for name, value in vars(kind).items()
        if callable(value) and not name.startswith('_')
    }  # fmt: skip
    assert own(real) == own(null) and own(real)
    assert not hasattr(null(), 'metrix')
