"""Two processes through the real command line: what they train, write and save is what one process does."""

import json
import os
import signal
import socket
import time

import numpy as np
import pytest

SECONDS = 300  # that two processes may take together
# Reductions over two processes round otherwise than over one: 4e-7 of a value was measured.
TOLERANCE = dict(rtol=2e-5, atol=1e-6)
# Loaded by Python at its start: which files of the workdir the process opens for writing.
AUDIT = """
import os, sys
log = open(os.environ['OPENED'], 'a', buffering=1)
def hook(event, arguments):
    if event == 'open' and isinstance(arguments[0], str) and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR) and os.environ['WORKDIR'] in arguments[0]:
            print(arguments[0], file=log)
sys.addaudithook(hook)
"""


class Pair:
    """Two processes of one run, with one CPU device each."""

    def __init__(self, command_line, folder, config, **overrides):
        # Held to the end, so that nobody else is given this port; the coordinator may bind it beside, as gRPC does.
        self.port = socket.socket()
        self.port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.port.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{self.port.getsockname()[1]}'
        self.folder, self.workdir = folder, folder / 'run'
        folder.mkdir(exist_ok=True)
        (folder / 'sitecustomize.py').write_text(AUDIT)
        path = [str(folder), str(command_line.root), os.environ.get('PYTHONPATH', '')]
        shared = {
            'JAX_COORDINATOR_ADDRESS': address, 'JAX_COORDINATOR_BIND_ADDRESS': address,
            'JAX_NUM_PROCESSES': '2', 'WORKDIR': str(self.workdir), 'PYTHONPATH': os.pathsep.join(path),
        }  # fmt: skip
        self.processes = [
            command_line.start(config, self.workdir, **overrides,
                               env={**shared, 'JAX_PROCESS_ID': str(k), 'OPENED': str(folder / f'opened{k}')})
            for k in range(2)
        ]  # fmt: skip

    def end(self) -> list[int]:
        """Both exit codes; the processes are killed where they take too long."""
        try:
            end = time.monotonic() + SECONDS
            self.errors = [p.communicate(timeout=max(1, end - time.monotonic()))[1] for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
            self.port.close()
        return [process.returncode for process in self.processes]


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def assert_near(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, err_msg=name, **TOLERANCE)


def assert_same_run(leaves, workdir, other) -> None:
    """The newest checkpoints and all the rows of metrics.jsonl, within tolerance."""
    assert_near(leaves(workdir), leaves(other))
    ours, theirs = rows(workdir), rows(other)
    assert [(row['step'], row['split']) for row in ours] == [(row['step'], row['split']) for row in theirs]
    for row, same in zip(ours, theirs, strict=True):
        row.pop('split'), same.pop('split')
        assert_near(row, same)


def test_two_processes_train_as_one_and_the_first_alone_writes(command_line, tmp_path, smoke, leaves):
    pair = Pair(command_line, tmp_path, 'vae:smoke')
    assert pair.end() == [0, 0], pair.errors
    assert_same_run(leaves, pair.workdir, smoke('vae'))
    manifest = json.loads((pair.workdir / 'manifest.json').read_text())
    assert manifest['device']['processes'] == manifest['device']['count'] == 2
    assert len(manifest['starts']) == 1
    opened = [(tmp_path / f'opened{k}').read_text().splitlines() for k in range(2)]
    checkpoints = str(pair.workdir / 'checkpoints')
    assert any('metrics.jsonl' in name for name in opened[0]) and any('.png' in name for name in opened[0])
    assert not [name for name in opened[1] if not name.startswith(checkpoints)]


def test_streamed_terminated_and_resumed_two_processes_train_as_one(command_line, tmp_path, smoke, leaves):
    fields = dict(data__stream=True)
    pair = Pair(command_line, tmp_path, 'gan:smoke', signalled=(10, signal.SIGTERM), **fields)
    assert pair.end() == [143, 143], pair.errors
    step = max(int(p.name) for p in (pair.workdir / 'checkpoints').iterdir() if p.name.isdigit())
    assert step == 10
    assert leaves(pair.workdir)['step'] == step  # one process reads what two have saved
    pair = Pair(command_line, tmp_path, 'gan:smoke', **fields)
    assert pair.end() == [0, 0], pair.errors
    assert_same_run(leaves, pair.workdir, smoke('gan'))


@pytest.mark.parametrize('mode', ['pmap'])
def test_pmap_of_two_processes_is_refused_by_both(command_line, tmp_path, mode):
    pair = Pair(command_line, tmp_path, 'vae:smoke', parallel__mode=mode)
    assert pair.end() == [2, 2], pair.errors
    assert all('parallel.mode: pmap' in error for error in pair.errors)
    assert not pair.workdir.exists()
