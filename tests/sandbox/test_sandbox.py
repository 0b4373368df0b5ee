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
        'def opened(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n'
        'assert [*filter(opened, range(1024))] == [0, 1, 2, 3, 4, 5]\n'
    )
    hashes = Program('raise KeyError(hash("x"))')
    # Its tests find the same, and print into nothing.
    found = sandbox.run([Program(program), hashes, hashes, Program('', f'{program}print("x" * 99_999)')], SECONDS)
    assert found[0] == found[3] == ('passed', '') and found[1] == found[2]


def test_results_keep_their_order(sandbox):
    texts = [f'import time\ntime.sleep({0.05 * (i % 3)})\nassert {i} % 2' for i in range(12)]
    found = sandbox.run([*map(Program, texts)], SECONDS)
    assert [result.passed for result in found] == [bool(i % 2) for i in range(12)]


VALUES = """[
    None, True, 0, -(1 << 9999), 1.5, -0.0, float('inf'), 1e-308, 2 + 3j,
    '', 'a\\u00e9\\ud800', b'\\x00\\xff', bytearray(b'x'),
    [], [[]], (), ((1,),), {}, {'a': [1], (1, 2): {3}}, {1, 'a', (2,)}, frozenset({1}), range(1, 9, 3), int, type(None),
    collections.deque([1, [2]]), fractions.Fraction(1, 3), decimal.Decimal('0.10'),
]"""
KNOWN = """
import collections, decimal, fractions
same = lambda a, b: (
    type(a) is type(b) and repr(a) == repr(b) and a == b
    and (not isinstance(a, (list, tuple, collections.deque)) or all(map(same, a, b)))
)
"""
# A program's text; what its tests say.
TRAVELS = {
    'every plain value, to and fro': (
        f'f = lambda x: x\n{KNOWN}values = {VALUES}',
        f'{KNOWN}assert same(f({VALUES}), {VALUES}) and same(values, {VALUES})'),
    'no other number': ('f = lambda x: float("nan")', 'assert f(0) != f(0) and type(f(0)) is float'),
    'subclasses, as their base': (
        'import collections, enum\nclass E(enum.IntEnum): A = 3\nclass S(str): pass\n'
        'P = collections.namedtuple("P", "x y")\n'
        'd = collections.defaultdict(list)\nd["a"].append(1)\n'
        'f = lambda x: [collections.Counter("aab"), E.A, S("s"), P(1, 2), d, collections.OrderedDict(a=1)]',
        'assert repr(f(0)) == repr([{"a": 2, "b": 1}, 3, "s", (1, 2), {"a": [1]}, {"a": 1}])'),
    'views': (
        'd = {1: 2, "a": []}\nf = lambda x: (d.keys(), d.values(), d.items())',
        'k, v, i = f(0)\nassert k == {1, "a"} and [*v] == [2, []] and [*i] == [(1, 2), ("a", [])] and k != [1, "a"]'),
    'iterators': (
        'import itertools\nf = lambda x: itertools.count() if x == 0 else map(str, x)\n'
        'def g():\n    yield 1\n    raise KeyError',
        'c = f(0)\nassert [next(c), next(c)] == [0, 1] and list(f([1, 2])) == ["1", "2"] and f([]) != [] and f([1])\n'
        'it = g()\nassert next(it) == 1\ntry: next(it)\nexcept KeyError: pass\nelse: raise AssertionError'),
    'iterators of the tests': (
        'f = lambda x: [2 * v for v in x]', 'assert f(iter([1, 2])) == f(v for v in (1, 2)) == [2, 4]'),
    'changes of arguments': (
        'def f(a, b, c, d, e):\n    a.sort(); a.append(b); b["k"] = a; c.discard(1); d.appendleft(0); e[0] = 1\n'
        '    return b',
        'import collections\na, b, c, d, e = [3, 1], {}, {1, 2}, collections.deque([5]), bytearray(2)\n'
        'r = f(a, b, c, d, e)\n'
        'assert r is b and a[:2] == [1, 3] and a[2] is b and b["k"] is a\n'
        'assert c == {2} and d == collections.deque([0, 5]) and e == b"\\1\\0"'),
    'changes before an error': (
        'def f(a):\n    a.clear()\n    raise ValueError("v", 3)',
        'a = [1]\ntry: f(a)\nexcept ValueError as error: assert error.args == ("v", 3) and a == []\n'
        'else: raise AssertionError'),
    'no change where there is none': (
        'f = lambda a: a == [[1], [1]] and a[0] is a[1]',
        'i = [1]\na = [i, i]\nassert f(a) is True and a[0] is a[1] is i'),
    'errors, as the nearest builtin': (
        'class E(KeyError): pass\ndef f(x):\n    if x: raise E("k")\n    b"\\xff".decode()',
        'for x, kind in ((1, KeyError), (0, ValueError)):\n'
        '    try: f(x)\n    except kind as error: assert type(error).__module__ == "builtins"\n'
        '    else: raise AssertionError'),
    'functions': (
        'def f(g, x, *, by=1): return g(x) + by\ndef adder(n): return lambda x: x + n\nLIMIT = 7\nf.calls = 0',
        'assert f(lambda x: 2 * x, 3, by=LIMIT) == 13 and f(len, [1]) == 2 and adder(2)(3) == 5 and f != adder\n'
        'def again(x): return f(abs, x)\nassert f(again, -3) == 5'),
    'errors of a function that the tests lend': (
        'def f(g):\n    try: g(0)\n    except ZeroDivisionError: return "caught"',
        'assert f(lambda x: 1 / x) == "caught"'),
    'names that it does not have': ('g = 1', 'try: f(0)\nexcept NameError: pass\nelse: raise AssertionError'),
}  # fmt: skip
FAILS = {
    'a value that cannot be handed over': (
        'f = lambda x: x', 'import datetime\nassert f(datetime.date(2000, 1, 1))', 'unsupported'),
    'a value that is too large': ('f = lambda x: len(x)', 'assert f("x" * (1 << 24)) == 1 << 24', 'failed'),
    'an attribute of a function': ('def f(x): pass\nf.calls = 3', 'assert f.calls == 3', 'failed'),
    'no class, no attributes': ('class C:\n    x = 1\nf = lambda x: C()', 'assert f(0).x == 1', 'failed'),
}  # fmt: skip


def test_what_travels_between_a_program_and_its_tests(sandbox):
    names = ('f', 'g', 'adder', 'LIMIT', 'values')
    found = sandbox.run([Program(text, tests, names) for text, tests in TRAVELS.values()], SECONDS)
    assert not {name: result for name, result in zip(TRAVELS, found, strict=True) if not result.passed}
    found = sandbox.run([Program(text, tests, ('f',)) for text, tests, _ in FAILS.values()], SECONDS)
    statuses = {name: result.status for name, result in zip(FAILS, found, strict=True)}
    assert statuses == {name: status for name, (_, _, status) in FAILS.items()}


def test_objects_where_the_tests_use_a_class(sandbox):
    text = 'class Node:\n    def __init__(self, x): self.x, self.left = x, None\n    def sum(self): return f(self)\n'
    text += 'def f(n): return n.x + f(n.left) if n else 0\n'
    tests = 'a = Node(1)\na.left = Node(2)\na.left.left = Node(3)\nassert f(a) == a.sum() == 6 and a.left.left.x == 3\n'
    tests += 'assert a.left.left.left is None and a.left is a.left and a != Node(1)\n'
    tests += 'try: a.right\nexcept AttributeError: pass\nelse: raise AssertionError\n'
    (result,) = sandbox.run([Program(text, tests, ('Node', 'f'), classes=True)], SECONDS)
    assert result == ('passed', '')


@pytest.mark.parametrize(
    'limits',
    [dict(seconds=s) for s in (float('nan'), float('inf'), -1, 0, 10**9, '5', None, True)]
    + [dict(memory=m) for m in (-1, 0, 1 << 20, 1 << 60, 2.0**29, '1', None, True)],
    ids=str,
)
def test_limits_that_are_none_are_refused(limits, sandbox):
    with pytest.raises(UserError) as error:
        sandbox.run([Program('x = 1')], **limits)
    assert next(iter(limits)) in str(error.value) and '\n' not in str(error.value)


def test_a_status_that_is_none_is_refused():
    with Sandbox(1) as sandbox:
        sandbox._workers[0]._line = lambda: ['solved', '']
        with pytest.raises(RunError, match="'solved', which is no status"):
            sandbox.run([Program('x = 1')])


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


ENDLESS = """
import jail, os, sys, time
def run(*_):
    print(os.getpid(), file=sys.stderr, flush=True)
    while True: time.sleep(0) if {sleeps} else None
jail._run = run
jail.serve(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='no other kernel ends a process with its parent')
@pytest.mark.parametrize('sleeps', [True, False])
def test_a_server_ends_with_its_parent_whatever_it_does(sleeps, tmp_path):
    """One that never looks at its stdin again, as with seconds = nan."""
    folder = pathlib.Path(sys.modules[Sandbox.__module__].__file__).parent
    script = (
        'import subprocess, sys\n'
        'server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n'
        'server.stdout.readline()\nserver.stdin.write(b"\\0\\0\\0\\2{}")\nserver.stdin.flush()\nserver.wait()\n'
    )
    server = [sys.executable, '-c', ENDLESS.replace('{sleeps}', str(sleeps)), str(tmp_path)]
    env = {**os.environ, 'PYTHONPATH': str(folder)}
    with subprocess.Popen([sys.executable, '-c', script, *server], env=env, stderr=subprocess.PIPE) as parent:
        pid = int(parent.stderr.readline())
        assert list(tmp_path.iterdir())
        parent.kill()
        parent.wait(timeout=SECONDS)
        begun = time.monotonic()
        while (there := os.path.exists(f'/proc/{pid}')) and time.monotonic() < begun + 60:
            time.sleep(0.01)
        if there:
            os.kill(pid, signal.SIGKILL)
        assert not there and not list(tmp_path.iterdir())


def test_what_a_killed_server_left_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    others = tmp_path / 'others'
    others.mkdir()
    (others / 'kept').write_text('kept')
    (tmp_path / f'aigc_jax_{"0" * 16}').symlink_to(others)
    (tmp_path / f'aigc_jax_{"1" * 16}').write_text('a file')
    (tmp_path / f'aigc_jax_xla_{"2" * 8}').mkdir()  # of another kind
    kept = {path.name for path in tmp_path.iterdir()}
    now = lambda: {path.name for path in tmp_path.iterdir()} - kept
    with Sandbox(1) as first:
        (alive,) = now()
        assert folders._NAME.fullmatch(alive)
        with Sandbox(1) as second:
            (killed,) = now() - {alive}
            second._workers[0]._process.kill()
            second._workers[0]._process.wait()
            (tmp_path / killed / 'cwd').mkdir()
            (tmp_path / killed / 'cwd' / 'written').write_text('without the layer of the kernel')
        assert now() == {alive, killed}
        with Sandbox(1) as third:
            assert killed not in now() and alive in now() and len(now()) == 2
            assert first.run([Program('x = 1')], SECONDS) == third.run([Program('x = 1')], SECONDS) == [('passed', '')]
    assert not now() and (others / 'kept').read_text() == 'kept'
