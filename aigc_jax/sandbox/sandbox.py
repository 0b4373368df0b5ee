"""Running Python programs that nobody has read: see README.md for what is guaranteed, against whom, and where.

A program and its tests run in two processes of their own, and both are jailed. The tests know functions of the program
by name and call them across a pipe with plain values. Only the tests say whether the program passes.
"""

import json
import math
import os
import pathlib
import selectors
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from aigc_jax.core import parallel, progress
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.sandbox import folders

STATUSES = ('passed', 'failed', 'exited', 'timeout', 'memory', 'output', 'forbidden', 'unsupported')
MEMORY = 1 << 29  # bytes of address space
_LEAST_MEMORY, _MOST_MEMORY, _MOST_SECONDS = 1 << 26, 1 << 50, 86_400


class Program(NamedTuple):
    """text: the program. tests: what judges it; they use its functions, classes and constants by `names`.

    classes: whether the tests use attributes of its objects. If not, the program cannot return an object that answers
    each question as suits it, where a text or a list is expected. The program passes when it comes to its end and then
    its tests come to theirs. Without tests, it passes when it comes to its end.
    """

    text: str
    tests: str = ''
    names: tuple[str, ...] = ()
    classes: bool = False


class Result(NamedTuple):
    """status: 'passed'; 'failed', by an exception; 'exited' before its end, also by a crash; 'timeout'; 'memory';
    'output', printed too much; 'forbidden', attempted what is not allowed; 'unsupported', its tests hand over what has
    no plain form. message: the exception, signal or attempt.
    """

    status: str
    message: str

    @property
    def passed(self) -> bool:
        return self.status == 'passed'


class Sandbox:
    """A context manager. workers: programs that run at the same time; None: one for each CPU that this process may use.

    kernel_layers: which of 'seccomp' and 'landlock' hold the programs here. The thread that enters must live as long as
    the sandbox. Raises RunError where no process can start.
    """

    def __init__(self, workers: int | None = None):
        self._workers: list[_Worker] = []
        self._count = workers or parallel.cores()

    def __enter__(self) -> 'Sandbox':
        folders.clean(tempfile.gettempdir())
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

    def run(self, programs: Sequence[Program], seconds: float = 5.0, memory: int = MEMORY) -> list[Result]:
        """How each program ended, in their order. Raises UserError for limits that are none.

        seconds: of wall time for each, its tests included; memory: bytes of address space of each of the two processes.
        """
        _check(seconds, memory)
        results: list[Result | None] = [None] * len(programs)
        waiting = progress.each(range(len(programs)), 'programs executed')
        with selectors.DefaultSelector() as selector:

            def give(place: int) -> None:
                index = next(waiting, None)
                if index is not None:
                    self._workers[place].ask(programs[index], seconds, memory)
                    selector.register(self._workers[place].answers, selectors.EVENT_READ, (place, index))

            try:
                for place in range(len(self._workers)):
                    give(place)
                while selector.get_map():
                    for key, _ in selector.select():
                        place, index = key.data
                        selector.unregister(key.fileobj)
                        results[index] = self._workers[place].answer()
                        if results[index] is None:  # without the kernel's layers a program can end its server
                            results[index] = Result('exited', 'ended the process that watched it')
                            self._workers[place].close()
                            self._workers[place] = _Worker()
                        give(place)
            except BaseException:  # Ctrl-C: answers would be taken for those of the next programs
                self.__exit__()
                raise
        return results


def _check(seconds: float, memory: int) -> None:
    if type(seconds) not in (int, float) or not (math.isfinite(seconds) and 0 < seconds <= _MOST_SECONDS):
        raise UserError(f'the sandbox: seconds = {seconds!r}; a number above 0, at most {_MOST_SECONDS}')
    if type(memory) is not int or not _LEAST_MEMORY <= memory <= _MOST_MEMORY:
        raise UserError(f'the sandbox: memory = {memory!r}; a whole number of bytes, {_LEAST_MEMORY} to {_MOST_MEMORY}')


class _Worker:
    """A server process, `jail`, which runs one program at a time."""

    def __init__(self):
        # As -I, but for the hash seed: sets of texts have the same order in every run.
        folder = str(pathlib.Path(__file__).parent)
        start = f'import sys; sys.path.insert(0, {folder!r}); import jail; del sys.path[0]; jail.serve(sys.argv[1])'
        command = [sys.executable, '-P', '-s', '-S', '-c', start, tempfile.gettempdir()]
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
            raise RunError(f'the sandbox: its server ended at once; {shlex.join(command)} tells why')
        self.layers = tuple(name for name, has in zip(('seccomp', 'landlock'), offered, strict=True) if has)

    def ask(self, program: Program, seconds: float, memory: int) -> None:
        # The server reads the first of two frames, and the process of the tests the second.
        limits = {'text': program.text, 'seconds': seconds, 'memory': memory}
        try:
            for frame in (limits, {'tests': program.tests, 'names': program.names, 'classes': program.classes}):
                data = json.dumps(frame).encode()
                self._process.stdin.write(len(data).to_bytes(4, 'big') + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells

    def answer(self) -> Result | None:
        """None: the server is gone."""
        line = self._line()
        if line is None:
            return None
        result = Result(*line)
        if result.status not in STATUSES:
            raise RunError(f'the sandbox: its server answered {result.status!r}, which is no status')
        return result

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
