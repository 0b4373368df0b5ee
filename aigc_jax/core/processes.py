"""Several processes of one run: they begin together, agree at each phase, and end together, whatever happens to one."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.star import NOTED_SECONDS, Center, Ray, Relay, Star

START_SECONDS = 600  # that the processes may begin one after the other
# A process that is stopped for a while is not dead; a death is noticed by the star.
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 1800, 300
_CAUSE_SECONDS = 5  # that an error of a connection waits for its cause
_GRACE_SECONDS = 2  # in which a process whose error all have prints it itself
_LOST = re.compile(r'gloo|nccl|connection (closed|reset)|coordination|unavailable|deadline_exceeded', re.IGNORECASE)

_ending = threading.Lock()  # held by the thread that ends this process, to the end
_main_ends = threading.Event()


def several() -> bool:
    """True from `start` on, where there are several processes."""
    distributed = sys.modules.get('jax._src.distributed')  # nothing is imported to tell of a mistake in a flag
    return distributed is not None and distributed.global_state.client is not None


def first() -> bool:
    """True on the process that writes."""
    from jax._src import distributed

    return distributed.global_state.process_id == 0


@contextlib.contextmanager
def together(what: str):
    """Around a phase that can fail on one process alone: all wait for each other at its end, and all fail with one.

    Where the body raises UserError, RunError or OSError, the process raises it behind the end, and the others raise an
    error with the same exit code, whose text begins with "process K: ". what: names the phase. No collective may stand
    inside unless all reach it.
    """
    if not several():
        yield
        return
    failed = None
    try:
        yield
    except (UserError, RunError, OSError) as error:
        failed = error
    told = gather(what, failed and [getattr(failed, 'exit_code', 1), str(failed)])
    if failed:
        raise failed
    for k, other in enumerate(told):
        if other:
            raise _error(other[0], f'process {k}: {other[1]}')


def gather(name: str, value: Any) -> list:
    """The value, of what JSON knows, of each process, in order. All call it with the same `name`, from the main thread.

    Waits for the others without a limit: a process that has ended ends this one.
    """
    return [value] if not several() else _star().gather(name, value)


def start() -> None:
    """Joins the processes that the environment names: JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS,
    Slurm's or Open MPI's variables. From here on SIGTERM and Ctrl-C end all, until others handle them.

    Raises UserError.
    """
    count, index, address = _environment()
    if count == 1:
        return
    _hear_signals()
    import jax

    jax.config.update('jax_enable_preemption_service', False)  # which would take SIGTERM for itself
    reached = address if index == 0 else Relay(address).address
    said = threading.Timer(NOTED_SECONDS, _say, [f'note: waits for the other processes, at {address}'])
    said.daemon = True
    said.start()
    try:
        jax.distributed.initialize(
            reached, count, index, initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f'process {index} of {count}: the processes did not come together at {address}: {_one_line(error)}'
        ) from None
    finally:
        said.cancel()
    _star()


def connect() -> None:
    """The first collective of all devices, directly behind `start`: Gloo gives its connections 30 seconds."""
    if several():
        from jax.experimental import multihost_utils

        gather('connect', None)
        with _stdout_to_stderr():
            multihost_utils.sync_global_devices('connect')


def finish() -> None:
    """At the normal end: waits for all, and takes leave of JAX's service and of the others."""
    if several():
        import jax

        gather('end', None)
        jax.distributed.shutdown()
        _star().say_goodbye()


def fail(error: Exception) -> NoReturn:
    """Ends this process at once, with its error on stderr, which the others are told and end with, too."""
    _main_ends.set()
    if is_lost(error):
        time.sleep(_CAUSE_SECONDS)  # another process has ended: the star says which, and ends this one
    known = hasattr(error, 'exit_code')
    text = str(error) if known else f'{type(error).__name__}: {_one_line(error)}'
    _end(text, error.exit_code if known else RunError.exit_code, tell=True)


def is_lost(error: Exception) -> bool:
    """Whether it looks like that of a connection to a process that has ended."""
    return not isinstance(error, UserError) and bool(_LOST.search(str(error)))


def _error(exit_code: int, text: str) -> Exception:
    error = UserError(text) if exit_code == UserError.exit_code else RunError(text)
    error.exit_code = exit_code
    return error


def _end_with_others(text: str, exit_code: int, is_death: bool) -> NoReturn:
    if not is_death and _main_ends.wait(_GRACE_SECONDS):
        time.sleep(_GRACE_SECONDS)  # the main thread has an error of its own to print
    _end(text, exit_code, tell=False)


def _end(text: str, exit_code: int, tell: bool) -> NoReturn:
    _ending.acquire()  # another thread that holds it ends the process
    with contextlib.suppress(Exception):
        if tell and _stars:
            _stars[0].tell(text, exit_code)
    _say(f'error: {text}' if exit_code < 128 else text)
    os._exit(exit_code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, (text + '\n').encode(errors='replace'))  # Python's own stream may be held by another thread


def _one_line(error: BaseException) -> str:
    return (' '.join(str(error).split()) or type(error).__name__)[:300]


# The environment


def _environment() -> tuple[int, int, str]:
    """(number of processes, this one's place, the first one's address)."""
    environment = os.environ
    if 'JAX_NUM_PROCESSES' not in environment:
        if 'JAX_PROCESS_ID' in environment:
            raise UserError('JAX_NUM_PROCESSES: missing, though JAX_PROCESS_ID is set; set both, or none')
        if _number('SLURM_NTASKS', 1, 1) == 1 and _number('OMPI_COMM_WORLD_SIZE', 1, 1) == 1:
            return 1, 0, ''
        return _of_cluster()
    count = _number('JAX_NUM_PROCESSES', 1)
    index = _number('JAX_PROCESS_ID', 0, 0 if count == 1 else None)
    if index >= count:
        raise UserError(f'JAX_PROCESS_ID: {index}, but the {count} processes are counted from 0 to {count - 1}')
    if count == 1:
        return 1, 0, ''
    address = environment.get('JAX_COORDINATOR_ADDRESS', '')
    return count, index, _checked(address) if address else _of_cluster()[2]


def _of_cluster() -> tuple[int, int, str]:
    from jax._src.clusters import ClusterEnv

    address = os.environ.get('JAX_COORDINATOR_ADDRESS')
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, START_SECONDS)
    except Exception as error:  # of variables that the cluster's manager has not set as JAX expects
        raise UserError(f'the variables of Slurm or Open MPI cannot be read: {_one_line(error)}') from None
    address, count, index = found[:3]
    if None in (address, count, index):
        raise UserError(
            'JAX_COORDINATOR_ADDRESS: missing; several processes need JAX_NUM_PROCESSES, JAX_PROCESS_ID and '
            'JAX_COORDINATOR_ADDRESS=HOST:PORT of the first, or to be started by srun or mpirun'
        )
    return count, index, _checked(address)


def _number(name: str, least: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UserError(f'{name}: missing, though JAX_NUM_PROCESSES is set; set both, or none')
    if not text.isascii() or not text.strip().isdecimal() or int(text) < least:
        raise UserError(f'{name}: {text!r}; it is a whole number from {least} on')
    return int(text)


def _checked(address: str) -> str:
    host, colon, port = address.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f'JAX_COORDINATOR_ADDRESS: {address!r}; it is HOST:PORT of the first process')
    return address


# Signals


def _hear_signals() -> None:
    """SIGTERM and SIGINT end all, also while the main thread is inside of JAX."""
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)

    def hear():
        with sending:  # which the descriptor is of
            while numbers := receiving.recv(1):
                if signal.getsignal(numbers[0]) is _on_signal:
                    _on_signal(numbers[0])

    threading.Thread(target=hear, name='signals', daemon=True).start()


def _on_signal(number: int, frame=None) -> NoReturn:
    _end('interrupted' if number == signal.SIGINT else f'{signal.Signals(number).name}: ended', 128 + number, tell=True)


@contextlib.contextmanager
def _stdout_to_stderr():
    """Gloo tells of its connections on stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


_stars: list[Star] = []


def _star() -> Star:
    if not _stars:
        from jax._src import distributed

        state = distributed.global_state
        kind = Ray if state.process_id else Center
        _stars.append(kind(state, _environment()[2], _end_with_others, _say))
    return _stars[0]
