"""Running Python programs that nobody has read: each in a process of its own, with nothing to break.

What holds a program, from the outside in:

1. Everywhere: a process in its own session, killed as a group at its deadline, when it has printed too much, and when
   whoever asked is gone, Ctrl-C included; limits of the kernel on address space, CPU time, open files, and the size of
   a file (0 bytes); an empty environment, no site-packages, and an empty working directory that is removed afterwards.
2. On Linux, x86_64 and aarch64: a seccomp filter that answers only the system calls of a program that computes.
   Whatever would start a process or a thread, send a signal, open a socket, remove or rename, kills the program; a
   file opened for writing, and every other call, is refused. Where there is Landlock (Linux 5.13), no file beside the
   interpreter's and the system's libraries can be read. This is the layer that is meant to withstand hostile code,
   native code too: it guarantees, as far as the kernel does, that nothing outside is written, removed, signalled or
   reached.
3. Everywhere: an audit hook ends a program at the first attempt, so that it cannot catch the error and go on. It keeps
   honest mistakes from doing harm where there is no layer 2, and no more: hostile Python code can get around it.

A program passes when it comes to its end without an exception; one that leaves before (`sys.exit`, `os._exit`) has
not. No layer keeps a program from passing by tampering with its own tests, which run in the same process.
"""

import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from aigc_jax.core import parallel, progress
from aigc_jax.core.errors import RunError

STATUSES = ('passed', 'failed', 'exited', 'timeout', 'memory', 'output', 'forbidden')
MEMORY = 1 << 29  # bytes of address space


class Result(NamedTuple):
    """status: 'passed'; 'failed', by an exception; 'exited' before its end, also by a crash; 'timeout'; 'memory';
    'output', printed too much; 'forbidden', attempted what is not allowed. message: the exception, signal or attempt.
    """

    status: str
    message: str

    @property
    def passed(self) -> bool:
        return self.status == 'passed'


class Sandbox:
    """A context manager. workers: programs that run at the same time; None: one for each CPU that this process may use.

    kernel_layers: which of 'seccomp' and 'landlock' hold the programs here. Raises RunError where no process can start.
    """

    def __init__(self, workers: int | None = None):
        self._workers: list[_Worker] = []
        self._count = workers or parallel.cores()

    def __enter__(self) -> 'Sandbox':
        try:
            self._workers = [_Worker() for _ in range(self._count)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []

    @property
    def kernel_layers(self) -> tuple[str, ...]:
        return self._workers[0].layers

    def run(self, programs: Sequence[str], seconds: float = 5.0, memory: int = MEMORY) -> list[Result]:
        """How each program ended, in their order. seconds: of wall time each; memory: bytes of address space each."""
        results: list[Result | None] = [None] * len(programs)
        waiting = progress.each(range(len(programs)), 'programs executed')
        with selectors.DefaultSelector() as selector:

            def give(place: int) -> None:
                index = next(waiting, None)
                if index is not None:
                    self._workers[place].ask({'program': programs[index], 'seconds': seconds, 'memory': memory})
                    selector.register(self._workers[place].answers, selectors.EVENT_READ, (place, index))

            try:
                for place in range(len(self._workers)):
                    give(place)
                while selector.get_map():
                    for key, _ in selector.select():
                        place, index = key.data
                        selector.unregister(key.fileobj)
                        results[index] = self._workers[place].answer()
                        if results[index] is None:  # without layer 2 a program can take its server with it
                            results[index] = Result('exited', 'ended the process that watched it')
                            self._workers[place].close()
                            self._workers[place] = _Worker()
                        give(place)
            except BaseException:  # Ctrl-C: answers would be taken for those of the next programs
                self.__exit__()
                raise
        return results


class _Worker:
    """A server process of `jail`, which runs one program at a time."""

    def __init__(self):
        # As -I, but for the hash seed: sets of texts have the same order in every run.
        script = str(pathlib.Path(__file__).with_name('jail.py'))
        # The server removes this folder when it ends.
        command = [sys.executable, '-P', '-s', '-S', script, tempfile.mkdtemp(prefix='aigc_jax_')]
        env = {'PYTHONHASHSEED': '0', 'LC_ALL': 'C.UTF-8'}
        env |= {name: os.environ[name] for name in ('LD_LIBRARY_PATH',) if name in os.environ}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd='/', start_new_session=True
            )
        except OSError as error:
            raise RunError(f'the sandbox: {sys.executable} cannot be started: {error.strerror or error}') from None
        self.answers = self._process.stdout
        offered = self._line()
        if offered is None:
            self.close()
            raise RunError(f'the sandbox: its server ended at once; {" ".join(command)} tells why')
        self.layers = tuple(name for name, has in zip(('seccomp', 'landlock'), offered, strict=True) if has)

    def ask(self, request: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(request).encode() + b'\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells

    def answer(self) -> Result | None:
        """None: the server is gone."""
        line = self._line()
        return None if line is None else Result(*line)

    def _line(self):
        line = self.answers.readline()
        return json.loads(line) if line.endswith(b'\n') else None

    def close(self) -> None:
        """Ends the server, which ends its program."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.answers.close()
