"""Several processes of one run: they begin together, agree at each phase, and end together, whatever happens to one."""

import contextlib
import itertools
import os
import pathlib
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from aigc_jax.core import environment, slurm
from aigc_jax.core.errors import RunError, UserError, one_line
from aigc_jax.core.star import GRACE_SECONDS, NOTED_SECONDS, Center, Ray, Relay, ended

START_SECONDS = environment.START_SECONDS
# A process that is stopped for a while is not dead, and its connection to JAX's service may be; a death is noticed by
# the star.
_HEARTBEAT_SECONDS = 10**8
_EARLY_SECONDS = 60  # that a process with a mistake in its flags waits for the others, to tell them
_SHARED_SECONDS = 10
_CAUSE_SECONDS = 5  # to wait for the cause of a connection's error
_LOST = re.compile(r'gloo|nccl|connection (closed|reset)|coordination|unavailable|deadline_exceeded', re.IGNORECASE)

failure = RunError.exit_code  # that of a process which fails; `command.run` sets it

_ending = threading.RLock()  # held by the thread that ends this process, to the end
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
    """Around a phase that may fail on one process alone. All wait for each other at its end; if one fails, all fail.

    If the body raises UserError, RunError or OSError, this process raises it at the end. The others raise an error with
    the same exit code, whose text begins with "process K: ". A process that does not reach the end within two seconds
    of the failure, since it waits in a collective or is slow, ends with that line. what: names the phase.
    """
    if not several():
        yield
        return
    failed = None
    try:
        yield
    except (UserError, RunError, OSError) as error:
        failed = error
        _star().failing(*_told(error))
    found = gather(what, failed and _told(failed))
    if failed:
        raise failed
    for k, other in enumerate(found):
        if other:
            text, exit_code = other
            error = (UserError if exit_code == UserError.exit_code else RunError)(f'process {k}: {text}')
            error.exit_code = exit_code
            raise error


def gather(name: str, value: Any) -> list:
    """The value, of what JSON knows, of each process, in order. All call it with the same `name`, from the main thread.

    Waits for the others without a limit: a process that has ended ends this one.
    """
    return [value] if not several() else _star().gather(name, value)


def expected() -> bool:
    """Whether the environment names several processes. Raises UserError."""
    return environment.named()[0] > 1


def start(seconds: float = START_SECONDS, too_late: Callable[[], None] | None = None) -> None:
    """Joins the processes that the environment names: JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS,
    Slurm's or Open MPI's variables. From here on SIGTERM and Ctrl-C end all, until others handle them.

    too_late: called where they have not come together after `seconds`; ends this process. Raises UserError.
    """
    count, index, address = environment.named()
    if count == 1:
        return
    if index == 0:
        environment.check_free(address)
    _hear_signals()
    import jax

    jax.config.update('jax_enable_preemption_service', False)  # which would take SIGTERM for itself
    line = f'process {index} of {count}: the others did not come to {address}'
    too_late = too_late or (lambda: _end(f'{line} within {seconds:.0f} seconds', failure, tell=False))
    note = lambda: _say(f'note: process {index} of {count} waits for the others, at {address}')
    gone = lambda: _stars or _end(ended(0), failure, tell=False)  # later the star tells of it
    timers = [threading.Timer(NOTED_SECONDS, note), threading.Timer(seconds, too_late)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(
            address if index == 0 else Relay(address, gone).address, count, index,
            initialization_timeout=int(seconds) + 60,  # after that JAX aborts with pages of C++
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )  # fmt: skip
        _star()
    except (RuntimeError, ValueError) as error:
        raise RunError(f'process {index} of {count} cannot join the others at {address}: {one_line(error)}') from None
    finally:
        for timer in timers:
            timer.cancel()


def connect(mesh=None) -> None:
    """Runs a collective over each set of axes of the mesh (None: over all devices), once all processes are here.

    Gloo waits only 30 seconds for a process in the first collective of some devices, and half an hour in later ones.
    """
    if not several():
        return
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = mesh or jax.make_mesh((jax.device_count(),), ('all',))
    every = PartitionSpec(mesh.axis_names)
    wide = [name for name, size in mesh.shape.items() if size > 1]
    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, every), lambda _: np.ones(1, np.float32))
    gather('connect', None)
    with _silent():
        for number in range(1, len(wide) + 1):
            for axes in itertools.combinations(wide, number):
                total = lambda x, axes=axes: jax.lax.psum(x, axes)
                call = jax.shard_map(total, mesh=mesh, in_specs=every, out_specs=every, check_vma=False)
                jax.block_until_ready(jax.jit(call)(ones))


def finish() -> None:
    """At the normal end: waits for all. From here on the end of a process is no failure. Each is to end at once: JAX's
    own shutdown would wait for those whose connection to its service was lost while they were stopped."""
    if several():
        gather('end', None)
        _star().say_goodbye()


def fail(error: Exception) -> NoReturn:
    """Ends this process at once, with its error on stderr, which the others are told and end with, too."""
    _main_ends.set()
    if is_lost(error):
        time.sleep(_CAUSE_SECONDS)  # another process has ended: the star says which, and ends this one
    _end(*_told(error), tell=True)


def fail_early(error: Exception) -> NoReturn:
    """The same before `start`: joins the others, to tell them."""
    _ending.acquire()
    _say(f'error: {error}')
    text, exit_code = _told(error)
    with contextlib.suppress(Exception):
        start(_EARLY_SECONDS, lambda: os._exit(exit_code))
        _star().tell(text, exit_code)
    os._exit(exit_code)


def stop(number: int, frame=None) -> NoReturn:
    """Ends all, as a handler of this signal."""
    text = 'interrupted' if number == signal.SIGINT else f'{signal.Signals(number).name}: ended'
    _end(text, 128 + number, tell=True)


def alike(what: str, facts: dict[str, Any], mend: str) -> None:
    """Raises UserError, which names what differs, where a process has other `facts`, of `what`, than the first."""
    first, *others = gather(what, facts)
    for k, own in enumerate(others, 1):
        names = sorted(name for name in first.keys() | own.keys() if own.get(name) != first.get(name))
        if names:
            differing = '; '.join(f'{n}: {_short(own.get(n))}, not {_short(first.get(n))}' for n in names)
            raise UserError(f'process {k} differs from process 0: {differing}\n{mend}')


def check_shared(folder: pathlib.Path) -> None:
    """Raises UserError where a process does not see what the first one writes in `folder`."""
    if not several():
        return
    token = folder / f'.shared_{secrets.token_hex(8)}' if first() else None
    try:
        with together('a file for all to see'):
            if token:
                token.touch()
        name = gather('its name', token and token.name)[0]
        seen = gather('whether it is seen', _appears(folder / name))
    finally:
        if token:
            token.unlink(missing_ok=True)
    if not all(seen):
        raise UserError(
            f'workdir: process {seen.index(False)} does not see what process 0 writes in {folder}; '
            'name a folder that all processes share'
        )


def _appears(path: pathlib.Path) -> bool:
    """Whether it is there within _SHARED_SECONDS: network file systems show late what others have written."""
    end = time.monotonic() + _SHARED_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if path.name in os.listdir(path.parent):  # opening a folder asks the server anew
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + '…'


def is_lost(error: Exception) -> bool:
    """Whether it looks like that of a connection to a process that has ended."""
    return not isinstance(error, UserError) and bool(_LOST.search(str(error)))


def _told(error: Exception) -> tuple[str, int]:
    """What is said of an error, and its exit code."""
    if hasattr(error, 'exit_code'):
        return str(error), error.exit_code
    return one_line(error), failure


def _end_with_others(text: str, exit_code: int, at_once: bool) -> NoReturn:
    if not at_once and _main_ends.wait(GRACE_SECONDS):
        time.sleep(GRACE_SECONDS)  # the main thread has an error of its own to print
    _end(text, exit_code, tell=False)


def _end(text: str, exit_code: int, tell: bool) -> NoReturn:
    _ending.acquire()  # another thread that holds it ends the process
    with contextlib.suppress(Exception):
        if tell and _stars:
            _stars[0].tell(text, exit_code)
    _say(f'error: {text}' if exit_code < 128 else text)
    slurm.stay(exit_code, first())
    os._exit(exit_code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, (text + '\n').encode(errors='replace'))  # Python's own stream may be held by another thread


# Signals


def _hear_signals() -> None:
    """SIGTERM and SIGINT end all, also while the main thread is inside of JAX."""
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)

    def hear():
        heard = 0
        with sending:  # closed at the end, because the wakeup descriptor is its own
            while numbers := receiving.recv(1):
                heard += 1
                if heard > 1 or signal.getsignal(numbers[0]) is stop:
                    stop(numbers[0])

    threading.Thread(target=hear, name='signals', daemon=True).start()


@contextlib.contextmanager
def _silent():
    """Gloo tells of its connections on stdout, which is for results."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


_stars: list[Center | Ray] = []


def _star() -> Center | Ray:
    if not _stars:
        from jax._src import distributed

        state = distributed.global_state
        kind = Ray if state.process_id else Center
        _stars.append(kind(state, environment.named()[2], _end_with_others, _say))
    return _stars[0]
