"""Processes of the command line that begin as a copy of one that has imported what they import: 2.4 CPU seconds less.

A process of its own each, all the same: with its environment, streams, exit code and signals. `Forks.start` is
subprocess.Popen; what needs an interpreter of its own, for its environment is read when Python or JAX begins, gets one.
"""

import array
import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys

# What a training imports, but for the door itself, which `python -m` is to import.
IMPORTED = (
    'absl.app', 'absl.logging', 'jax', 'flax.linen', 'optax', 'orbax.checkpoint', 'sklearn.datasets', 'tensorboardX',
    'matplotlib.figure', 'matplotlib.image', 'matplotlib.backends.backend_agg', 'scipy.optimize', 'scipy.stats',
    'aigc_jax.runs.fields', 'aigc_jax.runs.checkpoint', 'aigc_jax.tasks', 'aigc_jax.reports.evaluation',
    'aigc_jax.reports.pictures', 'aigc_jax.training.trainer', 'aigc_jax.training.loop',
)  # fmt: skip
# Variables that are read later than the imports, or by nobody. With any other difference a process is not forked.
LATE = {
    'JAX_COORDINATOR_ADDRESS', 'JAX_COORDINATOR_BIND_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'XLA_FLAGS',
    'OPENED', 'WORKDIR', 'PYTEST_CURRENT_TEST',
}  # fmt: skip
SEEDS = 1, 2  # of the order of sets of strings, in turn: two runs that are compared must not share it
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


class Forks:
    """start(arguments, env, cwd, …) is subprocess.Popen([sys.executable, *arguments], …).

    environment: that of the processes. One with another, but for LATE, gets an interpreter of its own.
    """

    def __init__(self, environment: dict):
        self._environment, self._servers, self._started = environment, {}, 0

    def start(self, arguments: list[str], env: dict, **options) -> subprocess.Popen:
        other = {name for name in env.keys() | self._environment.keys() if env.get(name) != self._environment.get(name)}
        if sys.platform != 'linux' or other - LATE:
            return subprocess.Popen([sys.executable, *arguments], env=env, **options)
        seed = SEEDS[self._started % len(SEEDS)]
        self._started += 1
        if seed not in self._servers:
            self._servers[seed] = Server(self._environment, seed)
        return _Forked(self._servers[seed], [sys.executable, *arguments], env=env, **options)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


class Server:
    """A process that has imported what is IMPORTED, and forks."""

    def __init__(self, env: dict, seed: int):
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno())]
        env = env | {'PYTHONHASHSEED': str(seed)}
        # Pipes, as the children's streams are: Python looks at its start whether it can seek in them.
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, pass_fds=[theirs.fileno()])
        theirs.close()

    def fork(self, request: dict, files: list[int]) -> int:
        """The id of a new child of this process, whose streams are `files`."""
        data = json.dumps(request).encode()
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(SUBREAPER, 1)  # the child's own parent ends at once, and it becomes this process's
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', files))]
            self._socket.sendmsg([len(data).to_bytes(8, 'big')], rights)
            self._socket.sendall(data)
            return int.from_bytes(_receive(self._socket, 8), 'big')
        except (EOFError, OSError) as error:
            raise RuntimeError(self._process.communicate(timeout=60)[1].decode()) from error
        finally:
            prctl(SUBREAPER, 0)

    def close(self) -> None:
        self._socket.close()
        self._process.communicate(timeout=60)


class _Forked(subprocess.Popen):
    def __init__(self, server: Server, arguments, **options):
        self._server = server
        super().__init__(arguments, **options)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags,
                       shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest):  # fmt: skip
        files = [own if given == -1 else given for own, given in ((0, p2cread), (1, c2pwrite), (2, errwrite))]
        self.pid = self._server.fork({'args': args[1:], 'cwd': str(cwd), 'env': env}, files)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b''
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError('the process that forks has ended')
        data += part
    return data


def _serve(connection: socket.socket) -> dict | None:
    """The request, in a new process for each; None at the end of all."""
    while True:
        size = array.array('i').itemsize
        head, ancillary, *_ = connection.recvmsg(8, socket.CMSG_SPACE(3 * size))
        if not head:
            return None
        head += _receive(connection, 8 - len(head))
        files = array.array('i', ancillary[0][2])
        request = json.loads(_receive(connection, int.from_bytes(head, 'big')))
        theirs, ours = os.pipe()
        middle = os.fork()
        if not middle:
            if pid := os.fork():
                os.write(ours, pid.to_bytes(8, 'big'))
                os._exit(0)
            for fd in (theirs, ours, connection.fileno()):
                os.close(fd)
            for k, fd in enumerate(files):
                os.dup2(fd, k)
            for fd in files:
                os.close(fd)
            return request
        for fd in (ours, *files):
            os.close(fd)
        os.waitpid(middle, 0)  # the child has its new parent
        connection.sendall(os.read(theirs, 8))
        os.close(theirs)


def _become(request: dict) -> None:
    """This process is `python ARGUMENTS` of the request from here on."""
    os.environ.clear()
    os.environ.update(request['env'])
    os.chdir(request['cwd'])
    kind, program, *arguments = request['args']
    sys.path[0] = '' if kind == '-c' else os.getcwd()
    sys.argv = [kind, *arguments]
    if kind == '-m':
        runpy.run_module(program, run_name='__main__', alter_sys=True)
    else:
        exec(compile(program, '<string>', 'exec'), {'__name__': '__main__', '__builtins__': __builtins__})


if __name__ == '__main__':
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.set_threshold(10_000)  # as in conftest.py
    gc.freeze()  # what the collector touches in a child is copied, page by page
    if request := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(request)
