"""Two processes of one run, through the real command line, each under a time limit."""

import pathlib
import socket
import subprocess
import time

SECONDS = 300  # that two processes may take together
# Before the command line of a process: which files of the workdir it opens for writing.
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
    """Two processes of one run, with one CPU device each.

    one: for each process what it alone has, of the arguments of `command_line.start`: 'env', 'before', 'workdir' and
    overrides; late: the process that `start` begins later. What they print on stderr stands in `errors()`.
    """

    def __init__(self, command_line, folder: pathlib.Path, config: str | None, one=({}, {}), late=None, env=None,
                 flags=(), **overrides):  # fmt: skip
        # Held to the end, so that nobody else is given this port; the coordinator may bind it beside, as gRPC does.
        self.port = socket.socket()
        self.port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.port.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{self.port.getsockname()[1]}'
        self.folder, self.workdir = folder, folder / 'run'
        folder.mkdir(exist_ok=True)
        self._env = {
            'JAX_COORDINATOR_ADDRESS': address, 'JAX_COORDINATOR_BIND_ADDRESS': address,
            'JAX_NUM_PROCESSES': '2', 'WORKDIR': str(self.workdir), **(env or {}),
        }  # fmt: skip
        self._command_line, self._config, self._overrides, self._one = command_line, config, overrides, one
        self._flags = flags
        self.processes: list[subprocess.Popen | None] = [None, None]
        try:
            for k in {0, 1} - {late}:
                self.start(k)
        except BaseException:
            self.kill()
            raise

    def start(self, k: int) -> None:
        own = dict(self._one[k])
        env = self._env | {'JAX_PROCESS_ID': str(k), 'OPENED': str(self.folder / f'opened{k}')} | own.pop('env', {})
        env = {name: value for name, value in env.items() if value is not None}
        before = AUDIT + own.pop('before', '')
        with open(self._log(k), 'w') as log:
            self.processes[k] = self._command_line.start(
                self._config, own.pop('workdir', self.workdir), *self._flags, env=env, stderr=log, before=before,
                **self._overrides | own,
            )

    def errors(self) -> list[str]:
        """What each has printed on stderr so far."""
        return [self._log(k).read_text() if self._log(k).exists() else '' for k in range(2)]

    def last(self) -> list[str]:
        """The last line of each on stderr."""
        return [(text.splitlines() or [''])[-1] for text in self.errors()]

    def wait_for(self, condition, seconds: float = SECONDS) -> None:
        """Until condition() is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and None in [p.poll() for p in self.processes if p], self.errors()
            time.sleep(0.02)

    def end(self, seconds: float = SECONDS) -> list[int]:
        """Both exit codes; the processes are killed where they take too long. output: what each printed on stdout."""
        try:
            end = time.monotonic() + seconds
            self.output = [p.communicate(timeout=max(0.1, end - time.monotonic()))[0] for p in self.processes]
        finally:
            self.kill()
        return [process.returncode for process in self.processes]

    def kill(self) -> None:
        for process in filter(None, self.processes):
            process.kill()
            process.communicate()
        self.port.close()

    def _log(self, k: int) -> pathlib.Path:
        return self.folder / f'stderr{k}'
