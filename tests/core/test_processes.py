"""Whatever happens to one of two processes, both end soon, with one line that names the process and the cause."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from pairs import Pair

import aigc_jax
from aigc_jax.core import environment, processes, star
from aigc_jax.core.errors import UserError

NOTICED = 10  # seconds in which all end
RESUMES = 'error: process %d has ended; the same command resumes'
# Before the command line of a process: it sends a signal to itself, or sleeps, when it comes to its data.
AT_DATA = """
import os, time
from aigc_jax import data
load = data.load
def slow(*arguments):
    %s
    return load(*arguments)
data.load = slow
"""
# The package in PYTHONPATH comes before that in the present folder.
FROM_PATH = "import os, sys; sys.path.insert(0, os.environ['PYTHONPATH'])"
# Files grow to no more than 50 kB when the checkpoint of a step is saved, as on a disk that is full.
FULL = """
import resource
from aigc_jax.runs.checkpoint import Checkpoints
save = Checkpoints.save
def filled(self, step, *arguments):
    if step == %d:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    save(self, step, *arguments)
Checkpoints.save = filled
"""
# Before this process joins the star, two strangers try to.
STRANGERS = """
import json, socket
from aigc_jax.core import star
found = star._value
def value(*arguments):
    text = found(*arguments)
    for message in (b'["a token", 1]\\n["end", 1, "forged", 1]\\n', b'[' * 100000):
        with socket.create_connection(('127.0.0.1', json.loads(text)[0])) as stranger:
            try:
                stranger.sendall(message)
                assert stranger.recv(1) == b''
            except ConnectionError:
                pass
    return text
star._value = value
"""


def ends_after(pair: Pair, k: int) -> float:
    """Seconds that the other process goes on after process k has ended."""
    pair.processes[k].wait(120)
    began = time.monotonic()
    pair.processes[1 - k].wait(NOTICED)
    return time.monotonic() - began


def test_a_run_whose_processes_are_killed_or_meet_a_full_disk_resumes(command_line, tmp_path, leaves, assert_same_bits):
    whole = Pair(command_line, tmp_path / 'whole', 'gan:smoke')
    assert whole.end() == [0, 0], whole.errors()

    def interrupted(one, ended: int) -> Pair:
        pair = Pair(command_line, tmp_path / 'parts', 'gan:smoke', one)
        ends_after(pair, ended)
        pair.end()
        assert not any(word in text for text in pair.errors() for word in ('Traceback', 'coordination', 'gloo'))
        return pair

    for k, step in ((0, 10), (1, 30)):
        one = [{}, {'before': STRANGERS}]
        one[k]['signalled'] = step, signal.SIGKILL
        pair = interrupted(one, k)
        assert pair.processes[1 - k].returncode == 1
        assert pair.last()[1 - k] == RESUMES % k, pair.errors()
        assert 'forged' not in pair.errors()[0]
    pair = interrupted([{'before': FULL % 40}, {}], 0)
    assert [process.returncode for process in pair.processes] == [1, 1]
    assert 'the checkpoint could not be written' in pair.errors()[0]
    assert 'the checkpoint could not be written and read back: process 0: File too large' in pair.errors()[1]
    assert [path.name for path in (pair.workdir / 'checkpoints').iterdir()] == ['20']

    pair = Pair(command_line, tmp_path / 'parts', 'gan:smoke')
    assert pair.end() == [0, 0], pair.errors()
    assert_same_bits(leaves(pair.workdir), leaves(whole.workdir))
    assert (pair.workdir / 'metrics.jsonl').read_bytes() == (whole.workdir / 'metrics.jsonl').read_bytes()


def test_a_slow_start_and_a_stop_are_survived(command_line, tmp_path):
    """Gloo waits for 30 seconds alone where two processes come to their first collective."""
    impatient = 'from aigc_jax.core import star; star.NOTED_SECONDS = 1'
    one = [{'before': impatient}, {'before': AT_DATA % 'time.sleep(33)'}]
    pair = Pair(command_line, tmp_path, 'gan:smoke', one, late=1, total_steps=10, eval_every_steps=10)
    time.sleep(1)
    pair.start(1)
    pair.wait_for(lambda: 'waits for process 1' in pair.errors()[0])
    pair.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(5)
    pair.processes[1].send_signal(signal.SIGCONT)
    assert pair.end() == [0, 0], pair.errors()


@pytest.fixture
def homes(tmp_path) -> list:
    """Two home folders, each with a folder for data."""
    folders = [tmp_path / f'home{k}' for k in range(2)]
    for folder in folders:
        folder.mkdir()
    return folders


def refused(command_line, tmp_path, one, **overrides) -> list[str]:
    """The last lines of two processes that begin nothing and end with exit code 2 each."""
    pair = Pair(command_line, tmp_path, 'vae:smoke', one, **overrides)
    assert pair.end(120) == [2, 2], pair.errors()
    assert not pair.workdir.exists()
    assert not any('Traceback' in text for text in pair.errors())
    return [text.partition('error: ')[2] for text in pair.errors()]


@pytest.mark.parametrize(
    'one, line',
    [
        ([{}, {'batch_size': 'many'}], 'batch_size: '),
        ([{'batch_sizes': '3'}, {}], 'batch_sizes: '),
        ([{}, {'before': 'import sys; sys.argv.append("--no_flag")'}], "Unknown command line flag 'no_flag'"),
    ],
)
def test_a_mistake_of_one_is_told_by_both(command_line, tmp_path, one, line):
    lines = refused(command_line, tmp_path, one)
    k = 0 if one[0] else 1
    assert lines[k].startswith(line)
    assert lines[1 - k].startswith(f'process {k}: {line}')


def test_a_file_that_one_lacks_or_has_otherwise_is_told_by_both(command_line, tmp_path, homes):
    one = [{'env': {'HOME': str(home)}} for home in homes]
    x = np.random.default_rng(0).uniform(size=(200, 8, 8, 1)).astype(np.float32)
    np.savez(homes[0] / 'x.npz', train=x, test=x[:50])
    fields = dict(data__name='npz:~/x.npz', eval__split='test')
    lines = refused(command_line, tmp_path, one, **fields)
    assert 'x.npz' in lines[1] and lines[0].startswith(f'process 1: {lines[1]}'[:40])
    np.savez(homes[1] / 'x.npz', train=1 - x, test=x[:50])
    for line in refused(command_line, tmp_path, one, **fields):
        assert line.startswith('process 1 differs from process 0: sha256 of the data: ')


def test_differing_fields_packages_and_flags_are_named_by_both(command_line, tmp_path):
    for line in refused(command_line, tmp_path, [{}, {'seed': 1, 'batch_size': 64}]):
        assert line.startswith('process 1 differs from process 0: batch_size: 64, not 32; seed: 1, not 0\n')
    paths = [tmp_path / f'installed{k}' for k in range(2)]  # no clone
    for path in paths:
        shutil.copytree(pathlib.Path(aigc_jax.__file__).parent, path / 'aigc_jax')
    with open(paths[1] / 'aigc_jax' / 'core' / 'rng.py', 'a') as file:
        file.write('# other code\n')
    for line in refused(
        command_line, tmp_path, [{'env': {'PYTHONPATH': f'{path}'}, 'before': FROM_PATH} for path in paths]
    ):
        assert line.startswith('process 1 differs from process 0: source: ')
    env = {'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') + ' --xla_cpu_enable_fast_math=true'}
    for line in refused(command_line, tmp_path, [{}, {'env': env}]):
        assert line.startswith('process 1 differs from process 0: XLA_FLAGS: ')


def test_folders_that_are_not_shared_are_refused_and_taken_away(command_line, tmp_path):
    other = tmp_path / 'other' / 'run'
    pair = Pair(command_line, tmp_path, 'gan:smoke', [{}, {'workdir': other}])
    assert pair.end() == [2, 2], pair.errors()
    for text, workdir in zip(pair.errors(), (pair.workdir, other), strict=True):
        assert f'workdir: process 1 does not see what process 0 writes in {workdir}' in text
    assert not pair.workdir.exists() and not other.parent.exists()


def test_a_run_that_one_alone_sees_is_refused(command_line, tmp_path, smoke):
    pair = Pair(command_line, tmp_path, 'gan:smoke', [{}, {'workdir': smoke('gan')}])
    assert pair.end() == [2, 2], pair.errors()
    for text in pair.errors():
        assert text.startswith('error: workdir: process 1 sees a run in ')
    assert not pair.workdir.exists()


def test_a_signal_is_heard_at_any_moment_of_the_start(command_line, tmp_path):
    one = [{}, {'before': AT_DATA % 'os.kill(os.getpid(), 15); time.sleep(60)'}]
    pair = Pair(command_line, tmp_path / 'data', 'vae:smoke', one)
    began = time.monotonic()
    assert pair.end() == [143, 143], pair.errors()
    assert time.monotonic() - began < 60
    assert pair.last() == ['process 1: SIGTERM: ended', 'SIGTERM: ended']
    assert not pair.workdir.exists()
    # Inside of JAX's own wait for a process that does not come.
    before = 'from aigc_jax.core import processes; processes.NOTED_SECONDS = 1'
    pair = Pair(command_line, tmp_path / 'alone', 'vae:smoke', [{'before': before}, {}], late=1)
    pair.wait_for(lambda: 'waits for the others' in pair.errors()[0])
    pair.processes[0].send_signal(signal.SIGINT)
    pair.processes[1] = pair.processes[0]
    assert pair.end(NOTICED) == [130, 130], pair.errors()
    assert pair.last()[0] == 'interrupted'


def test_the_first_is_killed_while_the_others_wait_for_one_more(command_line, tmp_path):
    one = [{'before': 'from aigc_jax.core import processes; processes.NOTED_SECONDS = 1'}] * 2
    pair = Pair(command_line, tmp_path, 'vae:smoke', one, late=1, env={'JAX_NUM_PROCESSES': '3'})
    for k in range(2):  # the second finds the first at once
        if k:
            pair.start(k)
        pair.wait_for(lambda: 'waits for the others' in pair.errors()[k])  # noqa: B023
    pair.processes[0].kill()
    assert ends_after(pair, 0) < NOTICED
    assert pair.end() == [-signal.SIGKILL, 1], pair.errors()
    assert pair.last()[1] == RESUMES % 0 and 'Check failed' not in pair.errors()[1]


def test_of_three_that_come_one_after_the_other_none_is_waited_for():
    """A line says who is late, not who is merely the last."""
    code = """
import os, time
from aigc_jax.core import processes
processes.start()
for _ in range(5):
    time.sleep(0.2 * int(os.environ['JAX_PROCESS_ID']))
    assert len(processes.gather('here', None)) == 3
processes.finish()
os._exit(0)
"""
    with socket.socket() as port:
        port.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{port.getsockname()[1]}'
    env = os.environ | {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '3'}
    three = [
        subprocess.Popen([sys.executable, '-c', code], env=env | {'JAX_PROCESS_ID': str(k)}, stderr=subprocess.PIPE)
        for k in range(3)
    ]
    told = [one.communicate(timeout=120)[1].decode() for one in three]
    assert [one.returncode for one in three] == [0, 0, 0], told
    assert not any('waits for process' in text for text in told), told


def test_the_relay_hides_from_its_client_that_the_coordinator_leaves():
    """A server of gRPC does so where a process that was stopped for a minute did not answer. Its client would abort."""
    frame = lambda kind, data: len(data).to_bytes(3, 'big') + bytes([kind, 0, 0, 0, 0, 0]) + data
    settings, goaway, data = frame(4, b'12'), frame(7, b'12345678'), frame(0, bytes(70_000))
    gone = threading.Event()
    with socket.create_server(('127.0.0.1', 0)) as coordinator:
        relay = star.Relay(f'127.0.0.1:{coordinator.getsockname()[1]}', gone.set)
        client = socket.create_connection(star.split_address(relay.address))
        server, _ = coordinator.accept()
        client.sendall(b'hello')
        assert server.recv(5) == b'hello'
        server.sendall(settings + goaway + data)
        server.close()
    with client, client.makefile('rb') as file:
        assert file.read(len(settings + data)) == settings + data
        assert gone.wait(NOTICED)
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):  # neither a byte nor the end
            client.recv(1)


def test_a_process_that_never_comes_is_told(command_line, tmp_path):
    before = 'from aigc_jax.core import processes; processes.start.__defaults__ = 2, None'
    for k in range(2):
        pair = Pair(command_line, tmp_path, 'vae:smoke', [{'before': before}] * 2, late=1 - k)
        pair.processes[1 - k] = pair.processes[k]
        assert pair.end(60) == [1, 1], pair.errors()
        assert f'error: process {k} of 2: the others did not come to 127.0.0.1:' in pair.last()[k]


@pytest.mark.parametrize(
    'environment, name',
    [
        ({'JAX_NUM_PROCESSES': '2'}, 'JAX_PROCESS_ID'),
        ({'JAX_NUM_PROCESSES': 'two', 'JAX_PROCESS_ID': '0'}, 'JAX_NUM_PROCESSES'),
        ({'JAX_NUM_PROCESSES': '0', 'JAX_PROCESS_ID': '0'}, 'JAX_NUM_PROCESSES'),
        ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '-1'}, 'JAX_PROCESS_ID'),
        ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'}, 'JAX_PROCESS_ID'),
        ({'JAX_PROCESS_ID': '1'}, 'JAX_NUM_PROCESSES'),
        ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}, 'JAX_COORDINATOR_ADDRESS'),
        ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1', 'JAX_COORDINATOR_ADDRESS': 'here'},
         'JAX_COORDINATOR_ADDRESS'),
        ({'JAX_NUM_PROCESSES': 30 * '9', 'JAX_PROCESS_ID': '0'}, 'JAX_NUM_PROCESSES'),
        ({'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '1'}, 'JAX_PROCESS_ID'),
        ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0', 'JAX_COORDINATOR_ADDRESS': 'here:8476',
          'JAX_LOCAL_DEVICE_IDS': 'all'}, 'JAX_LOCAL_DEVICE_IDS'),
        ({'SLURM_NTASKS': 'two'}, 'SLURM_NTASKS'),
        ({'SLURM_NTASKS': '2'}, 'JAX_COORDINATOR_ADDRESS'),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_named(monkeypatch, environment, name):
    for variable in [variable for variable in os.environ if variable.startswith(('SLURM', 'OMPI'))]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f'^{name}: '):
        processes.expected()


@pytest.mark.parametrize(
    'bind, words',
    [
        ('junk', "JAX_COORDINATOR_BIND_ADDRESS: 'junk'; it is HOST:PORT"),
        ('192.0.2.1:8476', 'JAX_COORDINATOR_BIND_ADDRESS: this process cannot listen at 192.0.2.1:8476: '),
        ('127.0.0.1:%d', 'JAX_COORDINATOR_BIND_ADDRESS: another program listens at 127.0.0.1:'),
        ('', 'JAX_COORDINATOR_ADDRESS: another program listens at 127.0.0.1:'),
    ],
)
def test_an_address_where_the_first_process_cannot_listen_is_named(monkeypatch, bind, words):
    with socket.create_server(('127.0.0.1', 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', bind % port if '%' in bind else bind)
        with pytest.raises(UserError, match=f'^{words}'):
            environment.check_free(f'127.0.0.1:{port}')


def test_a_mistake_in_the_environment_ends_with_one_line(command_line, tmp_path):
    done = command_line.run('vae:smoke', tmp_path / 'run', env={'JAX_NUM_PROCESSES': '2'}, returns=2)
    assert done.stderr.startswith('error: JAX_PROCESS_ID: ') and done.stderr.count('\n') == 1
