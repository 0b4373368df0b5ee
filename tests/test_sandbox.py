"""Hostile programs: each ends within its limit, none passes, and nothing outside is written, removed or signalled."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from aigc_jax.core.errors import RunError, UserError
from aigc_jax.sandbox import folders
from aigc_jax.sandbox.sandbox import Program, Sandbox

SECONDS = 300  # for what ends by itself

# {}: a folder that belongs to somebody. Of two statuses either may come first.
HOSTILE = {
    'loop': ('while True: pass', 'timeout'),
    'loop that swallows': ('while True:\n try:\n  while True: pass\n except BaseException: pass', 'timeout'),
    'swallows Ctrl-C': (
        'import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
        'while True:\n try:\n  while True: pass\n except KeyboardInterrupt: pass', 'timeout'),
    'sleep': ('import time\ntime.sleep(1000)', 'timeout'),
    'big number': ('x = 7 ** 7 ** 12', 'timeout'),
    'fork bomb': ('import os\nwhile True:\n try: os.fork()\n except BaseException: pass', 'forbidden'),
    'fork': ('import os\nif os.fork(): os.wait()', 'forbidden'),
    'threads': ('import threading\nwhile True: threading.Thread(target=lambda: None).start()', 'forbidden'),
    'subprocess': ('import subprocess\nsubprocess.run(["touch", "{}/new"])', 'forbidden'),
    'system': ('import os\nos.system("touch {}/new")', 'forbidden'),
    'exec': ('import os\nos.execv("/bin/sh", ["sh", "-c", "touch {}/new"])', 'forbidden'),
    'write': ('open("{}/new", "w")', 'forbidden'),
    'append': ('open("{}/kept", "a").write("x")', 'forbidden'),
    'write here': ('open("here", "w").write("x")', 'forbidden'),
    'write at home': ('import os\nopen(os.path.expanduser("~/aigc_jax_was_here"), "w")', 'forbidden'),
    'write and swallow': ('try: open("{}/new", "w")\nexcept BaseException: pass', 'forbidden'),
    'os.open': ('import os\nos.open("{}/new", os.O_CREAT | os.O_RDWR)', 'forbidden'),
    'pathlib': ('import pathlib\npathlib.Path("{}/new").touch()', 'forbidden'),
    'remove': ('import os\nos.remove("{}/kept")', 'forbidden'),
    'rename': ('import os\nos.rename("{}/kept", "{}/new")', 'forbidden'),
    'truncate': ('import os\nos.truncate("{}/kept", 0)', 'forbidden'),
    'rmtree': ('import shutil\nshutil.rmtree("{}")', 'forbidden'),
    'memory': ('x = bytearray(1 << 40)', 'memory'),
    'memory bit by bit': ('x = []\nwhile True: x.append(bytearray(1 << 24))', 'memory timeout'),
    'memory, swallowed': (
        'x = []\nwhile True:\n try: x.append(bytearray(1 << 22))\n except MemoryError: pass', 'timeout'),
    'printing': ('while True: print("x" * 1000)', 'output'),
    'printing errors': ('import sys\nwhile True: sys.stderr.write("x" * 1000)', 'output'),
    'socket': ('import socket\nsocket.socket()', 'forbidden'),
    'url': ('import urllib.request\nurllib.request.urlopen("http://127.0.0.1:1")', 'forbidden'),
    'ctypes': ('import ctypes\nctypes.CDLL(None).fork()', 'forbidden'),
    'ctypes that is there': (
        'import gc, sys\nfor m in gc.get_objects():\n if getattr(m, "__name__", "") == "ctypes": m.CDLL(None).fork()',
        'forbidden'),
    'sys.exit': ('import sys\nsys.exit(0)', 'exited'),
    'exit swallowed above': ('raise SystemExit', 'exited'),
    'os._exit': ('import os\nos._exit(0)', 'exited'),
    'verdict closed': ('import os\nos.closerange(0, 10)\nwhile True: pass', 'timeout'),
    'kill the parent': ('import os\nos.kill(os.getppid(), 9)', 'forbidden'),
    'kill all': ('import os\nos.kill(-1, 9)', 'forbidden'),
    'recursion': ('def f(): f()\nf()', 'failed'),
    'nested': ('x = ' + '(' * 10_000, 'failed'),
    'null byte': ('x = "\0"', 'failed'),
    'error': ('assert 1 == 2, "no"', 'failed'),
    'a site-package': ('import numpy', 'failed'),
}  # fmt: skip


@pytest.fixture(scope='module')
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('theirs')
    (folder / 'kept').write_text('kept')
    return folder


@pytest.mark.parametrize('where', ['program', 'call'])
def test_hostile_programs_end_in_time_and_change_nothing(where, sandbox, theirs):
    """As a program, and within a function that its tests call."""
    within = lambda text: 'def f():\n' + ''.join(f' {line}\n' for line in text.split('\n'))
    shape = within if where == 'call' else lambda text: f'{text}\nf = list'
    ended = {}
    for seconds in (1, SECONDS):  # those that never end by themselves, and the others, however slow the machine is
        some = {name: how for name, how in HOSTILE.items() if ('timeout' in how[1]) == (seconds == 1)}
        texts = [program.replace('{}', str(theirs)) for program, _ in some.values()]
        found = sandbox.run([Program(text, 'f()', ('f',)) for text in map(shape, texts)], seconds)
        ended |= {name: (result.status, how[1]) for (name, how), result in zip(some.items(), found, strict=True)}
    assert len(ended) == len(HOSTILE)
    assert not {name: both for name, both in ended.items() if both[0] not in both[1].split()}
    assert [path.name for path in theirs.iterdir()] == ['kept'] and (theirs / 'kept').read_text() == 'kept'
    assert not (pathlib.Path.home() / 'aigc_jax_was_here').exists()
    programs = [Program('x = 1'), Program('raise KeyError("k")')]
    assert sandbox.run(programs, SECONDS) == [('passed', ''), ('failed', "KeyError: 'k'")]


# What the kernel itself does, where there is no audit hook: most of these would work, or do harm, without it.
NATIVE = {
    'os.fork()': 'killed',
    'os.remove(there + "/kept")': 'killed',
    'os.kill(os.getppid(), 9)': 'killed',
    'os.execv("/bin/true", ["true"])': 'killed',
    'socket.socket()': 'killed',
    'threading.Thread(target=print).start()': 'killed',
    'kernel._LIBC.kill(os.getppid(), 9)': 'killed',
    'os.open(there + "/new", os.O_CREAT | os.O_WRONLY)': 'refused',
    'os.open(there + "/kept", os.O_RDONLY | os.O_TRUNC)': 'refused',
    'os.open(there + "/kept", os.O_RDONLY)': 'refused',
    'os.mkdir(there + "/new")': 'refused',
    'os.chmod(there + "/kept", 0)': 'refused',
    'resource.setrlimit(resource.RLIMIT_CPU, (1, 1))': 'refused',
    'fcntl.fcntl(1, 8, os.getppid())': 'refused',  # F_SETOWN: signals to another
    'assert kernel._LIBC.prctl(1, 0) == 0': 'refused',
    'assert kernel._LIBC.syscall(444, None, 0, 1) > 0': 'refused',
}
SCRIPT = """
import ctypes, fcntl, json, os, resource, signal, socket, sys, threading
folder, there, statements = json.loads(sys.argv[1])
sys.path.insert(0, folder)
import jail, kernel
kernel.deny = lambda end: None
sys.modules['kept'] = sys.modules['__main__']
jail._frame = lambda: {'tests': '', 'names': [], 'classes': False}
layers, null = kernel.layers(), os.open(os.devnull, os.O_RDWR)
for statement in statements:
    text = 'import kept\\nglobals().update(vars(kept))\\n'
    text += f'try: {statement}\\nexcept Exception: raise SystemExit("no")'
    print(jail._run({'text': text, 'seconds': 20, 'memory': 1 << 30}, '/', layers, null), flush=True)
"""


def test_the_kernel_refuses_without_the_audit_hook(sandbox, theirs):
    if len(sandbox.kernel_layers) < 2:
        pytest.skip('no seccomp or no Landlock here')
    folder = str(pathlib.Path(sys.modules[Sandbox.__module__].__file__).parent)
    command = [sys.executable, '-c', SCRIPT, json.dumps([folder, str(theirs), list(NATIVE)])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        found = [process.stdout.readline().strip() for _ in NATIVE]
    words = {"('forbidden', 'SIGSYS')": 'killed', "('exited', 'SystemExit: no')": 'refused'}
    assert {name: words.get(line, line) for name, line in zip(NATIVE, found, strict=True)} == NATIVE
    assert [path.name for path in theirs.iterdir()] == ['kept'] and (theirs / 'kept').read_text() == 'kept'


def test_a_program_finds_an_empty_place_and_the_library(sandbox):
    program = (
        'import collections, dataclasses, datetime, hashlib, os, random, statistics, sys\n'
        'assert dict(os.environ) == {} and sys.argv == [""] and sys.stdin.read() == "" and __name__ == "__main__"\n'
        'assert hashlib.md5(b"").hexdigest()[:4] == "d41d"\n'
        '@dataclasses.dataclass\nclass Point:\n x: int\n'
        'assert Point(1) == Point(1)\nprint("a little")\n'
    )
    hashes = Program('raise KeyError(hash("x"))')
    # Its tests find the same, and print into nothing.
    found = sandbox.run([Program(program), hashes, hashes, Program('', f'{program}print("x" * 99_999)')], SECONDS)
    assert found[0] == found[3] == ('passed', '') and found[1] == found[2]


def test_results_keep_their_order(sandbox):
    texts = [f'import time\ntime.sleep({0.05 * (i % 3)})\nassert {i} % 2' for i in range(12)]
    found = sandbox.run([*map(Program, texts)], SECONDS)
    assert [result.passed for result in found] == [bool(i % 2) for i in range(12)]


def descendants(pid: int) -> list[int]:
    out = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in out.splitlines()}
    found, before = {pid}, set()
    while found != before:
        before, found = found, found | {child for child, parent in parents.items() if parent in found}
    return sorted(found - {pid})


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(number, tmp_path):
    script = (
        'from aigc_jax.sandbox.sandbox import Program, Sandbox\nimport sys\nwith Sandbox(2) as sandbox:\n'
        ' print("begun", flush=True)\n sandbox.run([Program("while True: pass")] * 4, seconds=1000)\n'
    )
    env = {**os.environ, 'TMPDIR': str(tmp_path), 'PYTHONPATH': os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, '-c', 'import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n' + script],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
    )  # fmt: skip
    assert process.stdout.readline() == b'begun\n'
    deadline = time.monotonic() + SECONDS
    while len(children := descendants(process.pid)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 6  # two servers, two programs, the tests of each
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    while any(os.path.exists(f'/proc/{pid}') for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if os.path.exists(f'/proc/{pid}')]
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())
