"""The server of the sandbox: started by `sandbox.Sandbox`, without the package and without site-packages.

For each program it forks two processes: one runs the program, the other its tests. It never reads the tests itself, so
the memory that a program inherits from it does not hold them.
"""

import collections  # noqa: F401  modules that programs often import are imported once, before the forks
import functools  # noqa: F401
import gc
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import os
import re  # noqa: F401
import select
import signal
import sys
import time
import typing  # noqa: F401
from collections.abc import Callable

import folders
import kernel
import peer
import sides

OUTPUT = 1 << 16  # bytes that a program may print
_TOLD = 1 << 12  # bytes, at most, in which a process says how it ended
_OF_JUDGE = ('passed', 'failed', 'exited', 'memory', 'forbidden', sides.GONE, sides.UNSUPPORTED)
_OF_PROGRAM = ('failed', 'exited', 'memory', 'forbidden')  # all that a program can say of itself


def serve(base: str) -> None:
    """Answers each request on stdin, up to its end, with a line [status, message] on stdout. base: where its folder is.

    A request is a frame {'text', 'seconds', 'memory'}, and a frame {'tests', 'names', 'classes'} that the judge reads.
    """
    kernel.end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked, which ends this one
    folder = folders.make(base)
    try:
        layers, null = kernel.layers(), os.open(os.devnull, os.O_RDWR)
        _tell([layer is not None for layer in layers])
        sides.clear()
        gc.freeze()  # a collection in a child would copy every page
        cwd = os.path.join(folder, 'cwd')
        while (request := _frame()) is not None:
            os.mkdir(cwd)
            try:
                _tell(_run(request, cwd, layers, null))
            finally:
                folders.remove(cwd)
    finally:
        folders.remove(folder)


def _frame() -> dict | None:
    size = peer.read_exactly(0, 4)
    data = None if size is None else peer.read_exactly(0, int.from_bytes(size, 'big'))
    return None if data is None else json.loads(data)


def _tell(answer: list) -> None:
    os.write(1, json.dumps(answer).encode() + b'\n')


def _run(request: dict, cwd: str, layers: kernel.Layers, null: int) -> tuple[str, str]:
    """(status, message) of one program."""
    seconds, server, pids = request['seconds'], os.getpid(), {}
    pipes = questions, answers, verdict, report, out = [os.pipe() for _ in range(5)]
    open_ends = {end for pipe in pipes for end in pipe}

    def close(*ends: int) -> None:
        for end in ends:
            os.close(end)
            open_ends.remove(end)

    def confine(*descriptors: int) -> None:
        kernel.confine([null, *descriptors], seconds, request['memory'], cwd, layers, server)

    def judge() -> None:
        tests = _frame()
        os.write(verdict[1], b'.')
        confine(null, null, answers[0], questions[1], verdict[1])
        sides.judge(**tests)

    def candidate() -> None:
        confine(out[1], out[1], questions[0], answers[1], report[1])
        sides.candidate(request['text'])

    try:
        pids['tests'] = _fork(judge)
        close(answers[0], questions[1], verdict[1])  # the candidate must not have them
        if not os.read(verdict[0], 1):
            sys.exit(1)
        pids['program'] = _fork(candidate)
        close(questions[0], answers[1], report[1], out[1])
        watch, whose = _Watch(out[0], time.monotonic() + seconds), 'tests'
        status, message = watch.until(verdict[0]) or _told(verdict[0], _OF_JUDGE)
        if status == sides.GONE:
            whose = 'program'
            status, message = watch.until(report[0], pids['program']) or _told(report[0], _OF_PROGRAM)
    finally:
        ended = {name: _end(pid) for name, pid in pids.items()}
    watch.read()
    close(*open_ends)
    if watch.printed > OUTPUT:
        return 'output', f'{OUTPUT} bytes'
    return (status, message) if status else _how(ended[whose])


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(1)
    return pid


class _Watch:
    """Reads what a program prints, and waits."""

    def __init__(self, out: int, deadline: float):
        self.printed = 0
        self._out, self._deadline, self._open = out, deadline, True
        os.set_blocking(out, False)

    def until(self, told: int, pid: int | None = None) -> tuple[str, str] | None:
        """Waits until `told` has something to read or is closed, and process `pid`, if given, has ended.

        Returns None then; before that, the (status, message) of a program that has to be ended.
        """
        poll = select.poll()
        for descriptor, events in ((told, select.POLLIN), (0, 0), (self._out, select.POLLIN))[: 2 + self._open]:
            poll.register(descriptor, events)  # of stdin only that its other end is closed
        found = {}
        while told not in found:
            left = self._deadline - time.monotonic()
            if left <= 0:
                return 'timeout', 'its time was over'
            found = dict(poll.poll(left * 1000))
            if 0 in found:  # the process that asked is gone
                sys.exit(1)
            if self._out in found and not self.read():
                poll.unregister(self._out)
            if self.printed > OUTPUT:
                return 'output', ''
        while pid and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if time.monotonic() > self._deadline:
                return 'timeout', 'its time was over'
            time.sleep(0.0005)
        return None

    def read(self) -> bool:
        """Whether there may be more."""
        try:
            while self._open and self.printed <= OUTPUT:
                read = len(os.read(self._out, OUTPUT))
                self.printed += read
                self._open = read > 0
        except BlockingIOError:
            pass
        return self._open


def _told(descriptor: int, known: tuple[str, ...]) -> tuple[str, str]:
    """The (status, message) that a process has told; ('', '') if it told none of the `known` ones."""
    status, _, message = os.read(descriptor, _TOLD).decode(errors='replace').partition('\n')
    return (status, message[: sides.MESSAGE]) if status in known else ('', '')


def _how(wait_status: int) -> tuple[str, str]:
    """(status, message) of a process that ended without telling any."""
    if not os.WIFSIGNALED(wait_status):
        return 'exited', f'exit code {os.waitstatus_to_exitcode(wait_status)} before its end'
    number = os.WTERMSIG(wait_status)
    status = {signal.SIGSYS: 'forbidden', signal.SIGXCPU: 'timeout'}.get(number, 'exited')
    return status, signal.Signals(number).name


def _end(pid: int) -> int:
    """Kills a process and its group. Returns its wait status."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has ended, or not come to its setsid
            pass
    return os.waitpid(pid, 0)[1]
