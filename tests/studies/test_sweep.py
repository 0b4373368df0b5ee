"""Sweeps through the command line: real runs, failures, kills, two launchers at once, drift."""

import contextlib
import copy
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from aigc_jax import sweep as door

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE = 'optim.generator.schedule.init_value'
SECONDS = 240
SMALL = (
    '--config=configs/gan.py:ring8,smoke', '--config.total_steps=20', '--config.eval_every_steps=20',
    '--config.checkpoint_every_steps=10', '--config.data.num_examples=100',
)  # fmt: skip
GRID = (*SMALL, f'--sweep.{RATE}=1e-3,3e-4', '--seeds=2', '--jobs=2')


def start(workdir, *arguments) -> subprocess.Popen:
    command = [sys.executable, '-m', 'aigc_jax.sweep', *arguments, f'--workdir={workdir}']
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )  # fmt: skip


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path}


def sweep(workdir, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    process = start(workdir, *arguments)
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def until(true, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(workdir) -> dict[str, pathlib.Path]:
    return {f'{path.parent.name}/{path.name}': path for path in workdir.glob('*/seed-*') if path.is_dir()}


def bits(workdir) -> dict[str, bytes]:
    names = 'metrics.jsonl', 'evaluation.json', 'config.json'
    return {f'{run}/{name}': (path / name).read_bytes() for run, path in runs(workdir).items() for name in names}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """(the folder, the table) of two learning rates × two seeds, trained by two launchers at once."""
    workdir = tmp_path_factory.mktemp('sweep') / 'two'
    launchers = [start(workdir, *GRID) for _ in range(2)]
    answers = [process.communicate(timeout=SECONDS) for process in launchers]
    assert [process.returncode for process in launchers] == [0, 0], answers
    (table, _), (other, _) = answers
    assert table == other
    return workdir, table


def test_two_launchers_at_once_double_nothing(finished):
    workdir, table = finished
    assert sorted(path.name for path in workdir.iterdir() if path.is_dir()) == sorted(
        line.split()[0] for line in table.splitlines()[1:]
    )
    assert len(runs(workdir)) == 4
    for path in runs(workdir).values():
        assert len(json.loads((path / 'manifest.json').read_text())['starts']) == 1
        log = path.with_name(f'{path.name}.log').read_text()
        assert log.count('\n$ ') == 1 and '\nerror: ' not in log and 'Traceback' not in log
    first, second = (line.split() for line in table.splitlines()[1:])
    assert first[0].startswith('init_value=0.001-') and second[0].startswith('init_value=0.0003-')
    assert first[1] == second[1] == '2/2'
    values = [
        json.loads((workdir / first[0] / f'seed-{seed}' / 'evaluation.json').read_text())['discriminator/fake_logit']
        for seed in range(2)
    ]
    mean = sum(value['value'] for value in values) / 2
    assert float(first[2]) == pytest.approx(mean, rel=1e-4)
    assert float(first[4]) == pytest.approx(abs(values[0]['value'] - mean) * 2**0.5, rel=0.06)


def test_the_same_command_again_does_nothing(finished):
    workdir, table = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.name != 'sweep.json'}
    code, out, err = sweep(workdir, *GRID)
    assert (code, out) == (0, table)
    assert '4 runs, 4 of them done' in err
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.name != 'sweep.json'}
    assert after.keys() == before.keys() and all(after[path] == before[path] for path in before if path != workdir)
    assert sweep(workdir, *GRID, '--dry_run') == (0, '', '')
    code, out, _ = sweep(workdir, 'status', '--metric=samples/modes')
    assert code == 0 and out.splitlines()[0].split() == ['row', 'done', 'samples/modes']
    assert out.splitlines()[-1].startswith('4 runs: 4 done; ')
    assert sweep(workdir, 'status')[1].startswith(table)
    code, out, err = sweep(workdir, *GRID, '--metric=samples/mode')
    assert (code, out) == (2, '') and 'did you mean samples/modes' in err and '4 runs' not in err


def test_a_changed_config_under_a_run_is_named_and_refused(finished, tmp_path):
    workdir = tmp_path / 'copy'
    shutil.copytree(finished[0], workdir)
    before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    code, out, err = sweep(workdir, *GRID, '--config.task.r1=0.5')
    assert (code, out) == (2, '')
    assert '4 of 4 runs were made with another config' in err and 'task.r1: 0.5 now, 0.01 there' in err
    assert len(err.splitlines()) <= 3
    assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before
    # Rows that go leave their runs where they are, with a note; logging and the layout bear no identity.
    code, out, err = sweep(workdir, *SMALL, f'--sweep.{RATE}=1e-3', '--config.parallel.mesh.data=1')
    assert code == 0 and len(out.splitlines()) == 2
    (gone,) = (path.name for path in workdir.glob('init_value=0.0003-*'))
    (row,) = (path.name for path in workdir.glob('init_value=0.001-*'))
    assert f'not in this sweep: {gone}, {row}/seed-1\n' in err
    # Without stderr what is said goes nowhere; stdout is for results.
    command = f'{sys.executable} -m aigc_jax.sweep status --workdir={workdir} 2>&-'
    done = subprocess.run(['sh', '-c', command], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    assert done.returncode == 0 and out in done.stdout and 'note: ' not in done.stdout


def test_a_failure_stops_nothing_and_is_tried_again(tmp_path):
    grid = (*SMALL, f'--sweep.{RATE}=1e30,1e-3', '--jobs=2')
    path = tmp_path / 'own.npy'
    code, table, err = sweep(tmp_path / 'sweep', *grid)
    assert code == 1
    lines = table.splitlines()
    assert [line.split()[1] for line in lines[1:3]] == ['0/1', '1/1']
    assert lines[3].startswith(lines[1].split()[0] + '/seed-0: failed: step ') and 'is nan' in lines[3]
    assert err.splitlines()[-1].startswith('2 runs: 1 done, 1 failed; ')
    code, out, _ = sweep(tmp_path / 'sweep', *grid, '--dry_run')
    assert code == 0 and out.count('\n') == 1 and f'{RATE}=1e+30' in out
    code, again, err = sweep(tmp_path / 'sweep', *grid)
    assert (code, again) == (1, table) and '2 runs, 1 of them done' in err
    logs = {log.parent.name: log.read_text().count('\n$ ') for log in tmp_path.glob('sweep/*/seed-0.log')}
    assert sorted(logs.values()) == [1, 2]
    assert sweep(tmp_path / 'sweep', 'status')[1].startswith(table)
    # One that is refused before its folder is made.
    code, out, _ = sweep(tmp_path / 'data', *SMALL, f'--sweep.data.name=npy:{path}')
    assert code == 1 and 'failed: ' in out and str(path) in out


def processes(workdir) -> dict[int, str]:
    """{pid: the name of its run; '' of a launcher} of what works on the sweep in this folder."""
    found = {}
    for entry in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            words = (entry / 'cmdline').read_bytes().decode().split('\0')
        except OSError:  # it has ended
            continue
        flag = f'--workdir={workdir}'
        mine = [word.removeprefix('--workdir=') for word in words if word == flag or word.startswith(f'{flag}/')]
        if mine and 'aigc_jax.sweep' in words:
            found[int(entry.name)] = ''
        elif mine and 'aigc_jax.main' in words:
            found[int(entry.name)] = os.path.relpath(mine[0], workdir)
    return found


def newest(run) -> int:
    """The step of the newest checkpoint that is whole."""
    return max((int(path.name) for path in run.glob('checkpoints/[0-9]*') if path.name.isdecimal()), default=0)


def starts(run) -> list[int]:
    """The steps that its processes went on from."""
    path = run / 'manifest.json'
    return [start['step'] for start in json.loads(path.read_text())['starts']] if path.exists() else []


def strike(workdir, moments, saved) -> None:
    """One event strikes one or all of what works on the sweep. saved: gets (run, starts before, newest checkpoint)."""
    time.sleep(moments.uniform(0, 6))
    if not (alive := processes(workdir)):
        return
    struck = [*alive] if moments.random() < 0.2 else [moments.choice([*alive])]
    if moments.random() < 0.2:
        stop_a_while(struck, moments.uniform(0.1, 3))
        return
    for pid in struck:
        if run := alive[pid]:
            saved.append((run, len(starts(workdir / run)), newest(workdir / run)))
        signal_(pid, signal.SIGKILL)


def stop_a_while(pids, seconds) -> None:
    for pid in pids:
        signal_(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        signal_(pid, signal.SIGCONT)


def signal_(pid, number) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='processes are found in /proc')
def test_what_is_killed_or_stopped_at_any_moment_leaves_the_same_table(finished, tmp_path):
    """Launchers, one or two at a time, and runs. AIGC_JAX_KILLS=100 strikes so often."""
    _, table = finished
    moments, left = random.Random(0), int(os.environ.get('AIGC_JAX_KILLS', '4'))
    while left > 0:
        workdir, launchers, saved = tmp_path / f'left-{left}', [], []
        for _ in range(min(left, 10)):
            launchers = [process for process in launchers if process.poll() is None]
            while len(launchers) < 1 + (moments.random() < 0.3):
                launchers.append(start(workdir, *GRID))
            strike(workdir, moments, saved)
            left -= 1
        last = start(workdir, *GRID)
        for process in [*launchers, last]:
            out, err = process.communicate(timeout=SECONDS)
            assert process.returncode == -signal.SIGKILL or (process.returncode, out) in ((0, table), (1, out)), err
        code, out, err = sweep(workdir, *GRID)
        assert (code, out) == (0, table), err
        assert bits(workdir) == bits(finished[0])
        for run, before, step in saved:
            assert all(begun >= step for begun in starts(workdir / run)[before:]), (run, before, step)


@pytest.mark.skipif('AIGC_JAX_KILLS' not in os.environ or os.geteuid() != 0, reason='AIGC_JAX_KILLS=N, as root')
def test_a_full_disk_loses_nothing(finished, tmp_path):
    """A disk of its own, which takes two of the four runs."""
    workdir, table = finished
    mount = lambda options: subprocess.run(['mount', *options, str(tmp_path)], check=True)
    mount(['-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs'])
    try:
        code, out, err = sweep(tmp_path / 'sweep', *GRID)
        assert code == 1 and 'No space left on device' in out and 'Traceback' not in out + err
        mount(['-o', 'remount,size=16m'])
        code, out, err = sweep(tmp_path / 'sweep', *GRID)
        assert (code, out) == (0, table), err
        assert bits(tmp_path / 'sweep') == bits(workdir)
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)


def test_a_signal_saves_all_runs(tmp_path):
    long = (*GRID, '--config.total_steps=10_000_000', '--config.checkpoint_every_steps=10_000_000')
    process = start(tmp_path, *long)
    trained = lambda: [path for path in tmp_path.glob('*/seed-*.log') if 'step ' in path.read_text()]
    until(lambda: len(trained()) == 2)
    code, out, _ = sweep(tmp_path, 'status')
    assert code == 0 and out.count(': running, step ') == 2 and ' left without evaluations' in out
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, err
    assert 'SIGTERM: the same command goes on from here' in err
    for log in trained():
        assert 'SIGTERM: saved at step' in log.read_text()
    code, out, _ = sweep(tmp_path, 'status')
    assert out.count(': stopped, step ') == 2 and '4 runs: 2 stopped, 2 missing' in out


def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = door.FLAGS
    for arguments, word in (
        ((), '--config: missing'),
        (('--config=configs/gan.py',), 'has no sweep()'),
        (('--config=configs/gan.py', '--sweep.task.r2=x'), "task.r2: 'x' is no float"),
        (('--config=configs/gan.py', '--sweep.task.r3=1,2'), 'did you mean r'),
        (('--config=configs/gan.py', '--sweep=1'), '--sweep: give --sweep.FIELD=VALUE,VALUE'),
        (('--config=configs/gan.py', '--launcher=kubernetes'), '--launcher'),
        (('--config=configs/gan.py', '--jobs=0'), 'jobs'),
        (('--seedz=3',), 'seeds'),
        (('status', '--config=configs/gan.py'), 'leave it out'),
        (('status',), 'no sweep is there'),
        (('state',), 'status is the only one'),
    ):
        monkeypatch.setattr(door, 'FLAGS', copy.deepcopy(flags))  # as they are before any command
        with pytest.raises(SystemExit) as ended:
            door.main(['sweep', *arguments, f'--workdir={tmp_path / "none"}'])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, '') and err.startswith('error: ') and word in err, (arguments, err)
        assert 'Traceback' not in err and len(err.splitlines()) <= 3
    assert not (tmp_path / 'none').exists()
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none' / 'config.json').write_text('{}')
    monkeypatch.setattr(door, 'FLAGS', copy.deepcopy(flags))
    with pytest.raises(SystemExit):
        door.main(['sweep', '--config=configs/gan.py', '--seeds=2', f'--workdir={tmp_path / "none"}'])
    assert 'is the folder of a run' in capsys.readouterr().err
