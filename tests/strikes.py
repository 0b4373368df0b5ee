"""What tests/chaos.py does to the two processes of a run: the runs, the events, and the judge of what comes of them.

A run passes marks (`compile`, `step 20`, `saving 20`, …), which its files and lines show. An event strikes a share of
the time behind one of them, as long as that time was in the uninterrupted run.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOTAL, EVERY = 80, 20  # steps; of them between evaluations, and between checkpoints
LIMIT = 15.0  # seconds in which both processes must have ended once an event can be noticed
STOPPED = 60.0  # seconds of a SIGSTOP
LEFT = 3.0  # seconds that a launcher leaves the others alone where one ended before they could know of it
POLL = 0.02
DISK = 32 << 20  # bytes of the disk of a run

# Loaded by Python at its start: the data come from a slow disk.
SLOW = """
import os, sys, time
left = [float(os.environ['SLOW'])]
def hook(event, arguments):
    if event == 'open' and left and str(arguments[0]).endswith('/' + os.environ['SLOW_FILE']):
        time.sleep(left.pop())
sys.addaudithook(hook)
"""
# The sha256 of every leaf of the newest checkpoint.
LEAVES = """
import hashlib, json, sys
import numpy as np
from aigc_jax.reports import evaluation
import aigc_jax
from aigc_jax.core import tree
leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(aigc_jax.load(sys.argv[1])[2]).items()}
digest = lambda leaf: hashlib.sha256(f'{leaf.dtype}{leaf.shape}'.encode() + leaf.tobytes()).hexdigest()
print(json.dumps({name: digest(leaf) for name, leaf in leaves.items()}))
"""
# What a crash alone prints: Python's, and that of the C++ of XLA, Gloo and gRPC.
NOISE = re.compile(r'Traceback|^[WEF]\d{4} |^\*\*\* |terminate called|Fatal Python|Exception ignored|Check failed')
# Of code that one process runs alone: the last words of a line, and what stands there instead.
CHANGED = 'aigc_jax/core/rng.py', "impl='threefry2x32'), name)", "impl='threefry2x32'), name + '2')"


@dataclasses.dataclass(frozen=True)
class Model:
    """A kind of model with the data that it learns and the field that holds its learning rate."""

    name: str
    file: str
    rate: str = 'optim.model.schedule.init_value'

    def flags(self) -> dict[str, object]:
        """The fields of its config. A relative path names the data: each process has a copy in its own folder."""
        source = 'text' if self.file.endswith('.txt') else 'npz'
        every = dict.fromkeys(('eval_every_steps', 'checkpoint_every_steps'), EVERY)
        return {'data.name': f'{source}:{self.file}', 'total_steps': TOTAL, **every}

    def data(self, other: bool = False) -> bytes:
        """The file; other: one letter or one pixel of it is another."""
        if self.file.endswith('.txt'):
            from pydoc_data.topics import topics

            text = ''.join(topics[name] for name in sorted(topics))[:60_000]
            return (text[:5000] + 'xz'[text[5000] == 'x'] + text[5001:] if other else text).encode()
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = digits.images[:900].astype(np.uint8)
        images[450, 4, 4] ^= other
        np.savez(file := io.BytesIO(), x=images, y=digits.target[:900])
        return file.getvalue()


MODELS = {
    model.name: model
    for model in (
        Model('vae', 'digits.npz'),
        Model('gan', 'digits.npz', 'optim.generator.schedule.init_value'),
        Model('vq', 'digits.npz'),
        Model('rnn_lm', 'corpus.txt', 'optim.model.schedule.peak_value'),
        Model('gpt', 'corpus.txt', 'optim.model.schedule.peak_value'),
    )
}


@dataclasses.dataclass(frozen=True)
class Event:
    """What happens to the processes `who`, a `share` of the time to the next mark behind `mark`.

    kind and detail:
        sigkill, sigterm, sigstop
        disk     full (amount: bytes left on the disk of both), limit (amount: the most bytes of a file of one process)
        file     missing, truncated, other: the data of one process
        differs  seed, batch_size, total_steps, rate; code (another line), installed (the same, without a clone)
        late     start, loading (amount: seconds)
        none     nothing
    """

    kind: str
    detail: str = ''
    who: tuple[int, ...] = ()
    mark: str = 'begin'
    share: float = 0.0
    amount: float = 0.0

    @property
    def at_start(self) -> bool:
        return self.kind in ('file', 'differs', 'late', 'none')

    @property
    def may_go_on(self) -> bool:
        return self.kind in ('sigstop', 'disk', 'late', 'none')


KINDS = {'sigkill': 22, 'sigterm': 20, 'sigstop': 10, 'disk': 16, 'file': 10, 'differs': 12, 'late': 10}
DETAILS = {
    'disk': ('full', 'limit'), 'file': ('missing', 'truncated', 'other'), 'late': ('start', 'loading'),
    'differs': ('seed', 'batch_size', 'total_steps', 'rate', 'code', 'installed'),
}  # fmt: skip


def draw(key: str, marks: list[str]) -> Event:
    """The random event of this key. marks: those that the run will pass."""
    rng = random.Random(key)
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    detail = rng.choice(DETAILS.get(kind, ('',)))
    who = rng.choice([(0,), (1,), (0,), (1,), (0, 1)][: 5 if kind.startswith('sig') else 2])
    by_phase = {}
    for mark in marks:
        by_phase.setdefault(phase(mark), []).append(mark)
    mark, share = rng.choice(by_phase[rng.choice(sorted(by_phase))]), round(rng.random(), 3)
    amount = {'disk': int(10 ** rng.uniform(2, 6)), 'late': round(rng.uniform(5, 40), 1)}.get(kind, 0)
    if detail == 'full':
        who = (0, 1)
    event = Event(kind, detail, who, mark, share, amount)
    return dataclasses.replace(event, mark='begin', share=0.0) if event.at_start else event


def phase(mark: str) -> str:
    """What a run does behind the mark."""
    name, _, step = mark.partition(' ')
    if name == 'step':
        return 'steps' if int(step) % EVERY else 'evaluation'
    if name == 'saved':
        return 'steps' if int(step) < TOTAL else 'final evaluation'
    names = {'begin': 'start-up', 'connected': 'data', 'compile': 'compile', 'loop': 'steps', 'saving': 'checkpoint',
             'evaluated': 'checkpoint', 'drawing': 'drawing', 'end': 'end'}  # fmt: skip
    return names[name]


class Process:
    """One of the two, its lines on stderr with the moments at which they came, and the moment of its end."""

    def __init__(self, k: int, arguments: list[str], env: dict[str, str], folder: pathlib.Path):
        self.k, self.lines, self.ended, self.connected, self.began = k, [], None, None, time.monotonic()
        # Its own session, for its children are to end with it; it ends with the thread that has started it.
        setpriv = ['setpriv', '--pdeathsig=KILL'] if shutil.which('setpriv') else []
        self._popen = subprocess.Popen(
            [*setpriv, sys.executable, '-m', 'aigc_jax.main', *arguments], env=env, cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors='replace',
            start_new_session=True,
        )  # fmt: skip
        self.pid = self._popen.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._popen.stderr:
            self.lines.append((time.monotonic(), line.rstrip('\n')))

    def poll(self, port: int) -> int | None:
        """The exit code, or None; sees, too, whether it has met the coordinator."""
        if self.ended is None and self._popen.poll() is not None:
            self.ended = time.monotonic()
            self._reader.join(2)
        elif self.ended is None and self.connected is None and _is_connected(self.pid, port):
            self.connected = time.monotonic()
        return self._popen.returncode

    def words(self) -> list[str]:
        """Its last words: what stands on stderr from the first line on that says why it ends."""
        lines = [line for _, line in self.lines]
        begins = [n for n, line in enumerate(lines) if re.match(r'error: |(process \d+: )?SIGTERM: (?!stops)', line)]
        return lines[begins[0] :] if begins else []

    def first_word(self) -> float | None:
        """When it said so."""
        words = self.words()
        return self.lines[-len(words)][0] if words else None

    def signal(self, number: int) -> None:
        if self.ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._reader.join(2)
        self._popen.stderr.close()


def _is_connected(pid: int, port: int) -> bool:
    """Whether it holds a connection to the coordinator, as the kernel shows them."""
    with contextlib.suppress(OSError):
        rows = [line.split() for name in ('tcp', 'tcp6') for line in open(f'/proc/net/{name}')]
        remote = {f'socket:[{row[9]}]' for row in rows if row[2].endswith(f':{port:04X}') and row[3] == '01'}
        return bool(remote) and any(os.readlink(f) in remote for f in pathlib.Path(f'/proc/{pid}/fd').iterdir())
    return False


class Run:
    """A run's folder, the copies of its data that the two processes have, and a disk of its own where that can be."""

    def __init__(self, model: Model, folder: pathlib.Path, disk: bool):
        self.model, self.folder = model, folder
        self.disk = folder / 'disk'
        self.disk.mkdir(parents=True)
        self.mounted = disk and can_mount(self.disk)
        self.workdir = self.disk / 'run'
        self.hosts = [folder / f'host{k}' for k in range(2)]
        for host in self.hosts:
            host.mkdir()
            (host / model.file).write_bytes(model.data())

    def close(self, keep: bool = True) -> None:
        if self.mounted:
            if keep:
                shutil.copytree(self.disk, self.folder / 'kept', dirs_exist_ok=True)
            subprocess.run(['umount', '-l', self.disk], check=True)
        if not keep:
            shutil.rmtree(self.folder)

    def step(self) -> int:
        """Of the newest checkpoint; 0: there is none."""
        return max((int(name) for name in _names(self.workdir / 'checkpoints') if name.isdecimal()), default=0)

    def files(self) -> dict[str, tuple]:
        """What lies in the folder, but for the lock."""
        found = [path for path in self.workdir.rglob('*') if path.is_file() and path.name != '.lock']
        return {str(path.relative_to(self.workdir)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    def result(self) -> dict[str, str]:
        """The sha256 of each file and each leaf that the seed and the config determine."""
        names = ['metrics.jsonl', 'evaluation.json', *(f'samples/{name}' for name in _names(self.workdir / 'samples'))]
        paths = {name: self.workdir / name for name in names}
        found = {n: hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else 'none' for n, p in paths.items()}
        done = subprocess.run(
            [sys.executable, '-c', LEAVES, self.workdir], cwd=self.hosts[0], env=environment(), capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            return found | {'checkpoint': ' '.join(done.stderr.split())[-300:]}
        return found | {'checkpoint': str(self.step())} | json.loads(done.stdout)

    def stray(self) -> list[str]:
        """Files that are no part of a run."""
        strange = re.compile(r'\.tmp$|\.unfinished|\.deleted|\.partial$|orbax-checkpoint-tmp')
        found = [path for path in self.workdir.rglob('*') if strange.search(path.name)]
        return [str(path.relative_to(self.workdir)) for path in found]


def environment(code: pathlib.Path = ROOT, **more: str) -> dict[str, str]:
    return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(code), **more}


def can_mount(folder: pathlib.Path) -> bool:
    """Mounts a small disk at `folder`, where that is allowed."""
    command = ['mount', '-t', 'tmpfs', '-o', f'size={DISK}', 'tmpfs', folder]
    return bool(shutil.which('mount')) and not subprocess.run(command, capture_output=True).returncode


def _names(folder: pathlib.Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []


class Pair:
    """The two processes of one start of a run, one CPU device each, and the marks that they have passed."""

    def __init__(self, run: Run, event: Event, code: pathlib.Path):
        self.run, self.event, self.code = run, event, code
        # Held to the end, so that nobody else is given this port; the coordinator may bind it beside, as gRPC does.
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(('127.0.0.1', 0))
        self.port, self.token = self._socket.getsockname()[1], os.urandom(8).hex()
        self.began, self.marks, self._seen, self._read = time.monotonic(), {}, self._state(), 0
        self.marks['begin'] = self.began
        self.processes: list[Process] = []
        for k in self._order()[: 1 if event.detail == 'start' else 2]:
            self.start(k)

    def _order(self) -> list[int]:
        return sorted(range(2), key=lambda k: k in self.event.who)

    def start(self, k: int) -> None:
        address, event, model = f'127.0.0.1:{self.port}', self.event, self.run.model
        struck, code, more = k in event.who, ROOT, {}
        if event.detail in ('code', 'installed'):
            code = self.code / ('other' if struck else 'same') if struck or event.detail == 'installed' else ROOT
        if event.detail == 'loading' and struck:
            more = {'SLOW': str(event.amount), 'SLOW_FILE': model.file}
        path = os.pathsep.join([str(self.code / 'slow'), str(code)] if more else [str(code)])
        env = environment() | more | {
            'PYTHONPATH': path, 'JAX_COORDINATOR_ADDRESS': address, 'JAX_COORDINATOR_BIND_ADDRESS': address,
            'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(k), 'CHAOS': self.token,
        }  # fmt: skip
        flags = model.flags()
        if event.kind == 'differs' and struck:
            other = {'seed': ('seed', 1), 'batch_size': ('batch_size', 16), 'rate': (model.rate, 2e-3),
                     'total_steps': ('total_steps', TOTAL + EVERY)}  # fmt: skip
            flags |= dict([other[event.detail]] if event.detail in other else [])
        arguments = [f'--config={ROOT}/configs/{model.name}.py:smoke', f'--workdir={self.run.workdir}']
        arguments += [f'--config.{name}={value}' for name, value in flags.items()]
        self.processes.append(Process(k, arguments, env, self.run.hosts[k]))
        self.processes.sort(key=lambda process: process.k)

    def _state(self) -> dict[str, object]:
        """What of the folder shows how far a run is."""
        workdir = self.run.workdir
        when = lambda path: path.stat().st_mtime_ns if path.exists() else 0
        names, final = [name for name in _names(workdir / 'checkpoints') if name[:1].isdecimal()], False
        with contextlib.suppress(OSError):
            final = b'"split": "final"' in (workdir / 'metrics.jsonl').read_bytes()[-5000:]
        return {
            'loop': when(workdir / 'manifest.json'), 'end': when(workdir / 'evaluation.json'), 'drawing': final,
            **{f'saving {name.partition(".")[0]}': True for name in names if not name.isdecimal()},
            **{f'saved {name}': True for name in names if name.isdecimal()},
        }  # fmt: skip

    def poll(self) -> bool:
        """Looks for new marks. True where both processes have ended."""
        codes = [process.poll(self.port) for process in self.processes]
        now, state = time.monotonic(), self._state()
        for name, value in state.items():
            if value and value != self._seen.get(name) and name not in self.marks:
                self.marks[name] = now
        self._seen = state
        first = self.processes[0]
        while first.k == 0 and self._read < len(first.lines):
            at, line = first.lines[self._read]
            self._read += 1
            if match := re.match(r'step +(\d+)/\d+  (evaluation)?', line):
                self.marks.setdefault(f'{"evaluated" if match[2] else "step"} {match[1]}', at)
            elif line.startswith('data: '):
                self.marks.setdefault('compile', at)
        if len(self.processes) == 2 and all(process.connected for process in self.processes):
            self.marks.setdefault('connected', max(process.connected for process in self.processes))
        return len(codes) == 2 and None not in codes

    def ended(self) -> list[Process]:
        return [process for process in self.processes if process.ended is not None]

    def codes(self) -> list[int | None]:
        return [process.poll(self.port) for process in self.processes]

    def left(self) -> list[int]:
        """Processes that this start has left behind, by the token in their environment."""
        found = []
        for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
            with contextlib.suppress(OSError):
                if f'CHAOS={self.token}'.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._socket.close()


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an uninterrupted run is, and how long it takes: `marks` are seconds from its start."""

    marks: dict[str, float]
    seconds: float
    result: dict[str, str]
    metrics: str

    def ahead(self, step: int) -> list[str]:
        """The marks that a run will pass that goes on from `step`."""
        of = lambda mark: int(mark.partition(' ')[2] or TOTAL + 1)
        return [mark for mark in self.marks if of(mark) > step]

    def behind(self, mark: str) -> float:
        """Seconds from a mark to the next one."""
        times = [*self.marks.values(), (self.marks['end'] + self.seconds) / 2]
        return next((time for time in times if time > self.marks[mark]), times[-1]) - self.marks[mark]


class Strike:
    """One start of a run, the event that strikes it, and the judgement.

    factor: of all limits, for a machine that does other work, too. rest, work: are called when the run begins to wait
    without computing, and when it goes on. stop: ends it early.
    """

    def __init__(self, run: Run, event: Event, reference: Reference | None, code: pathlib.Path, factor: float = 1.0,
                 rest=lambda: None, stop: threading.Event | None = None):  # fmt: skip
        self.run, self.event, self.reference, self.code, self.factor = run, event, reference, code, factor
        self._rest, self._stop = rest, stop or threading.Event()
        self.seconds_whole = reference.seconds if reference else 300.0
        self.struck = self.noticed = self.went_on = self.left_alone = None  # moments
        self.unaware: list[Process] = []  # those that cannot know of the others
        self.hung: list[int] = []
        self.faults: list[str] = []

    def __call__(self) -> dict[str, object]:
        """Runs it to its end: the row of the results."""
        run, event = self.run, self.event
        step, self._before, self._stray = run.step(), run.files(), run.stray()
        with contextlib.ExitStack() as undo:
            self._undo = undo
            if event.kind == 'file':
                self._spoil()
            self.pair = pair = Pair(run, event, self.code)
            undo.callback(pair.close)
            if event.at_start:
                self.struck = pair.began
            if event.detail == 'start':
                self._rest()
            while not pair.poll():
                if self._stop.is_set():
                    raise KeyboardInterrupt
                now = time.monotonic()
                self._act(now)
                if now > self._deadline():
                    self.hung = [process.k for process in pair.processes if process.ended is None]
                    break
                time.sleep(POLL)
            self.codes = pair.codes()
            if self.reference:
                self._notice()
                self._judge(step, event if self.struck is not None else Event('none'))
            self.behind = pair.left()
        last = max([process.ended or time.monotonic() for process in pair.processes])
        row = dataclasses.asdict(event) | {
            'phase': 'start-up' if event.at_start else phase(event.mark), 'step': step, 'to_step': run.step(),
            'seconds': round(time.monotonic() - pair.began, 1),
            'to_end': round(last - self.noticed, 1) if self.noticed else None,
            'codes': self.codes, 'lines': [[line[:300] for _, line in p.lines[-8:]] for p in pair.processes],
            'verdict': 'fault' if self.faults else 'missed' if self.struck is None else 'ok', 'faults': self.faults,
        }  # fmt: skip
        return row

    def _spoil(self) -> None:
        """Takes the data away from one process, until the end of this start."""
        for k in self.event.who:
            path = self.run.hosts[k] / self.run.model.file
            data = path.read_bytes()
            self._undo.callback(path.write_bytes, data)
            if self.event.detail == 'missing':
                path.unlink()
            elif self.event.detail == 'truncated':
                path.write_bytes(data[: len(data) // 2])
            else:
                path.write_bytes(self.run.model.data(other=True))

    def _act(self, now: float) -> None:
        event, pair = self.event, self.pair
        if self.struck is None:
            if event.mark in pair.marks and (now >= pair.marks[event.mark] + self._share() or self._is_behind()):
                self._hit(now)
        elif event.detail == 'start' and len(pair.processes) == 1 and now >= pair.began + event.amount:
            pair.start(event.who[0])
        elif event.kind == 'sigstop' and self.went_on is None and now >= self.struck + STOPPED:
            self._signal(signal.SIGCONT)
            self.went_on = now
        elif event.kind in ('sigkill', 'sigterm'):
            self._end_unaware(now)
        self._notice()

    def _share(self) -> float:
        """Seconds from its mark to the event."""
        return self.reference.behind(self.event.mark) * self.event.share if self.reference else 0.0

    def _is_behind(self) -> bool:
        """Whether the run is faster than the uninterrupted one was, and has passed the next mark already."""
        marks = list(self.reference.marks) if self.reference else []
        return any(mark in self.pair.marks for mark in marks[marks.index(self.event.mark) + 1 :])

    def _hit(self, now: float) -> None:
        event, pair = self.event, self.pair
        targets = [process for process in pair.processes if process.k in event.who and process.ended is None]
        if not targets:
            return
        self.struck = now
        aware = [process for process in pair.processes if process.connected and process.connected < now - 0.5]
        if event.kind in ('sigkill', 'sigterm') and len(aware) < 2:
            self.unaware = [process for process in pair.processes if process.k not in event.who]
        if event.kind == 'sigkill':
            self._signal(signal.SIGKILL)
        elif event.kind == 'sigterm':
            self._signal(signal.SIGTERM)
        elif event.kind == 'sigstop':
            self._signal(signal.SIGSTOP)
            self._rest()
        elif event.detail == 'limit':
            for process in targets:
                with contextlib.suppress(ProcessLookupError):
                    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (int(event.amount), hard))
        elif event.detail == 'full':
            self._fill()

    def _fill(self) -> None:
        """Leaves `amount` bytes on the disk, until the end of this start."""
        path, disk = self.run.disk / 'filler', os.statvfs(self.run.disk)
        self._undo.callback(path.unlink, missing_ok=True)
        with open(path, 'wb') as file:
            if (room := disk.f_bavail * disk.f_frsize - int(self.event.amount)) > 0:
                os.posix_fallocate(file.fileno(), 0, room)

    def _signal(self, number: int) -> None:
        for process in self.pair.processes:
            if process.k in self.event.who:
                process.signal(number)

    def _end_unaware(self, now: float) -> None:
        """What the launcher does: it ends those that wait for a process that has ended before they met it."""
        struck = [process for process in self.pair.processes if process.k in self.event.who]
        if self.unaware and self.left_alone is None and all(process.ended is not None for process in struck):
            if now > max(process.ended for process in struck) + LEFT:
                self.left_alone = now
                for process in self.unaware:
                    process.signal(signal.SIGTERM)

    def _notice(self) -> None:
        """Sets the moment at which the processes can know of the event."""
        if self.noticed is not None or self.struck is None:
            return
        moments = [process.first_word() for process in self.pair.processes]
        moments += [process.ended for process in self.pair.processes]
        if self.event.kind in ('sigkill', 'sigterm'):
            moments = [self.struck]
        elif self.event.kind in ('file', 'differs'):
            moments.append(self.pair.marks.get('connected'))
        self.noticed = min((moment for moment in moments if moment is not None), default=None)

    def _limit(self, process: Process) -> float | None:
        """The moment at which the process must have ended, where one is known."""
        if self.noticed is None:
            return None
        moments = [self.noticed]
        if process in self.unaware:
            moments.append(self.left_alone or time.monotonic())
        if self.event.kind == 'sigstop' and process.k in self.event.who:
            moments.append(self.went_on or time.monotonic())
        return max(moments) + LIMIT * self.factor

    def _deadline(self) -> float:
        if self.struck is None:
            return self.pair.began + (3 * self.seconds_whole + 2 * LIMIT) * self.factor
        running = [process for process in self.pair.processes if process.ended is None]
        limits = [self._limit(process) for process in running]
        if limits and None not in limits:
            return max(limits)
        waited = {'sigstop': STOPPED, 'late': self.event.amount}.get(self.event.kind, 0.0)
        return (self.went_on or self.struck + waited) + (2 * self.seconds_whole + LIMIT) * self.factor

    def _fault(self, wrong: object, words: str) -> None:
        if wrong:
            self.faults.append(words)

    def _judge(self, step: int, event: Event) -> None:
        processes = self.pair.processes
        for k in self.hung:
            self.faults.append(f'hang: process {k}')
        for process in processes:
            limit = self._limit(process)
            if process.ended and limit and process.ended > limit:
                self.faults.append(f'slow: process {process.k} ended {process.ended - self.noticed:.1f} s later')
            self._judge_process(process, event)
        if len(processes) < 2:
            self.faults.append('end: before the other had begun')
        if not self.hung:
            self._fault(self._left(), 'left behind: processes')
        self._judge_files(step)
        if 0 in self.codes:
            self._judge_result()

    def _left(self) -> list[int]:
        for _ in range(10):
            if not (left := self.pair.left()):
                break
            time.sleep(0.1)
        return left

    def _judge_process(self, process: Process, event: Event) -> None:
        """Its exit code, and what it has said."""
        k, code, words = process.k, process.poll(self.pair.port), process.words()
        struck = k in event.who
        if k in self.hung:
            return
        wanted = {
            'sigkill': {-9} if struck else {0, 1}, 'sigterm': {0, 143}, 'sigstop': {0, 1},
            'disk': {0, 1}, 'file': {2}, 'differs': {2}, 'late': {0}, 'none': {0},
        }[event.kind]  # fmt: skip
        if event.kind == 'sigterm' and 'loop' not in self.pair.marks:  # nothing to save, nor anybody who would hear it
            wanted |= {-15} if struck else {1}
        if event.kind == 'sigterm' and event.mark == 'end' and struck:
            wanted |= {-15}  # all is written, and Python's own end takes its handlers away: 143 for a shell
        if process in self.unaware:
            wanted |= {1, 143, -15}
        right = ' or '.join(map(str, sorted(wanted)))
        self._fault(code not in wanted, f'exit code: process {k} {code} instead of {right}')
        if code == -9:
            return
        noise = next((line for _, line in process.lines if NOISE.search(line)), None)
        self._fault(noise, f'noise: process {k}: {(noise or "")[:150]}')
        if code not in (1, 2, 143):
            return
        self._fault(not words, f'silent: process {k} ends with {code} without a word')
        self._fault(len(words) > 3, f'long: process {k} says {len(words)} lines')
        text = ' '.join(words)
        detail = {'rate': re.escape(self.run.model.rate), 'code': r'code|commit|diff', 'installed': r'code|rng\.py'}
        ended = r'ended|died|gone|lost|killed'
        cause = {
            'sigkill': ended, 'sigterm': rf'SIGTERM|{ended}', 'disk': r'No space|File too large|room',
            'file': rf'data|{re.escape(self.run.model.file)}', 'differs': detail.get(event.detail, event.detail),
        }.get(event.kind, '')  # fmt: skip
        if process in self.unaware:
            cause += '|SIGTERM'
        elif event.who and not struck and code != 143:
            named = any(f'process {other}' in text for other in event.who)
            self._fault(words and not named, f'name: process {k} does not name the process that failed')
        self._fault(words and not re.search(cause, text), f'cause: process {k} does not say it')

    def _judge_files(self, step: int) -> None:
        run, event = self.run, self.event
        if event.kind in ('file', 'differs'):
            now = run.files()
            changed = sorted(name for name in now | self._before if now.get(name) != self._before.get(name))
            self._fault(changed, f'written: {", ".join(changed[:3])}')
        path = run.workdir / 'metrics.jsonl'
        text = path.read_bytes() if path.exists() else b''
        whole = text[: text.rfind(b'\n') + 1].decode(errors='replace')
        self._fault(not self.reference.metrics.startswith(whole), 'metrics: rows unlike those of the uninterrupted run')
        for name in ('config.json', 'manifest.json', 'evaluation.json'):
            try:
                if (run.workdir / name).exists():
                    json.loads((run.workdir / name).read_text())
            except ValueError:
                self.faults.append(f'torn: {name}')
        self._fault(run.step() < step, f'lost: the checkpoint of step {step}')
        for process in self.pair.processes:
            saved = re.search(r'saved at step (\d+)', ' '.join(process.words()))
            self._fault(saved and int(saved[1]) != run.step(), f'lost: {saved and saved[0]}, but {run.step()} is there')
        if not self.hung and all(code is not None and code > 0 for code in self.codes):
            stray = [name for name in run.stray() if name not in self._stray and not name.endswith('.partial')]
            self._fault(stray, f'half-written: {", ".join(stray[:3])}')

    def _judge_result(self) -> None:
        """One that ends with 0 says that the run is done: so it must be, and equal to the uninterrupted one."""
        found, wanted = self.run.result(), self.reference.result
        different = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
        few = ', '.join(different[:3]) + (f' and {len(different) - 3} more' if len(different) > 3 else '')
        self._fault(different, f'result: exit 0, but unlike the uninterrupted run: {few}')
        stray = self.run.stray() if set(self.codes) == {0} else []
        self._fault(stray, f'half-written: {", ".join(stray[:3])}')
