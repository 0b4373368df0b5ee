"""What the commands share: flags read with one line for a mistake, JAX set up, and how a command ends."""

import contextlib
import io
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from absl import flags

from aigc_jax.core import environment, processes, slurm, user_code
from aigc_jax.core.errors import RunError, UserError, one_line, printable
from aigc_jax.core.output import Closed, drop, open_closed, show

_AGAIN = 0.1  # seconds until a signal whose exception was dropped is sent again
_THREADS, _THREADS_PER_CORE = 24, 2  # of a training on a CPU: 23 on one core, 28 on two, 56 on 16 were seen
NO_VERDICT = 3  # the exit code of a command whose 1 is a verdict, where it fails


def parse(argv: list[str], check: Callable[[], None]) -> list[str]:
    """absl's flags_parser: `argv` read by absl, then `check`, which raises UserError for flags that do not fit;
    mistakes end in one line and exit code 2."""
    with mistakes():
        try:
            left = _read(flags.FLAGS, argv)
        except SystemExit:
            sys.exit(0)  # absl has printed the help that was asked for, which it holds to be an error
        if len(left) > 1:
            raise UserError(f'{left[1]!r} is no flag; flags begin with --')
        check()
    return left


def read(values: flags.FlagValues, argv: list[str], about: str, module: str) -> list[str]:
    """The words of `argv`, the program's name first, that are no flags; `values` gets the flags. --help shows `about`
    and the flags of `module`, and ends the program. Raises UserError."""
    if {'--help', '-h'} & {*argv}:
        show(f'{about}\n{values.module_help(module).strip().partition(chr(10))[2]}\n')  # without the module's name
        sys.exit(0)
    values.unparse_flags()  # what an earlier call in this process has set
    return _read(values, argv)[1:]


def _read(values: flags.FlagValues, argv: list[str]) -> list[str]:
    try:
        return values(argv)
    except flags.Error as error:
        raise UserError(' '.join(str(error).split()) + ' (see --help)') from None


@contextlib.contextmanager
def mistakes():
    """Ends the program with one line and exit code 2 where the body raises UserError."""
    open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')  # a terminal that has no ± shows ?
    try:
        yield
    except UserError as error:
        end(error)


def run(body: Callable[[], int | None], failed: int = RunError.exit_code) -> None:
    """Calls `body`, and ends the program with the exit code that it returns (None: 0), or by what it raises: a mistake
    of the user with one line and exit code 2, anything else with the exit code `failed`."""
    processes.failure = failed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs would ignore it
    if slurm.is_in_job():
        signal.signal(signal.SIGTERM, _stop_in_job)  # until a training handles it
    sys.unraisablehook = _send_again
    try:
        exit_code = body() or 0
        show('')
        if processes.several():
            processes.finish()
            _leave(exit_code)
        if exit_code > 128:
            _leave(exit_code)
        if exit_code:
            sys.exit(exit_code)
    except (Closed, BrokenPipeError):  # the latter of stderr
        drop()
        sys.exit(Closed.exit_code)
    except (UserError, RunError) as error:
        end(error)
    except MemoryError as error:
        end(RunError(f'there is no memory left: {error or "a smaller batch, model or data set takes less"}'))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        _leave(130)
    except Exception as error:  # a fault of the program, or a collective with a process that has ended
        if type(error).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(error):
            end(RunError(f'the device has no memory left: {one_line(error)}; a smaller batch or model takes less'))
        user_code.name_file(error)
        if not processes.several() and failed == RunError.exit_code:
            raise
        if not processes.is_lost(error):
            traceback.print_exc()
        if not processes.several():
            sys.exit(failed)
        processes.fail(error)


def check_start(runs_of: str = '') -> None:
    """What keeps a program from beginning, in one line each, before NumPy and JAX are imported.

    That it starts runs, as `runs_of` ('a sweep'), and is one of several processes itself: raises UserError. That it
    cannot start as many threads as JAX will, which OpenBLAS and XLA answer with Ctrl-C and pages of C++: ends the
    program; other processes are not told, for that takes threads.
    """
    if runs_of:
        environment.check_alone(runs_of)
    # They are started and not counted: `ulimit -u`, a container's limit and the system's each count what else runs, and
    # reading /proc for that takes longer than these threads do (28 ms and 4 ms on two busy cores).
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    wanted, over, threads = _THREADS + _THREADS_PER_CORE * cores, threading.Event(), []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        print(
            f'error: no more threads are allowed: this process needs {wanted}, and can start {len(threads)}; allow '
            'more (ulimit -u, or the limit of the container), or run fewer processes',
            file=sys.stderr,
        )
        sys.exit(processes.failure)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def set_up_jax() -> None:
    """The compilation cache, on unless the user says otherwise; several processes, where a cluster started them."""
    import jax
    from absl import logging

    # Libraries tell of each of their steps, and of the accelerators that are not here, on the INFO level.
    logging.set_verbosity(logging.WARNING)
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        folder = pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'aigc_jax' / 'xla'
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):  # JAX would warn of each program otherwise
            jax.config.update('jax_compilation_cache_dir', str(folder))
            jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    processes.start()
    try:
        jax.devices()
    except Exception as error:  # a RuntimeError, or an AssertionError without a word
        wanted = os.environ.get('JAX_PLATFORMS')
        why = (' '.join(str(error).split()) or 'no such device is here')[:200]
        raise UserError(
            f'{f"JAX_PLATFORMS={wanted}" if wanted else "JAX"}: no devices: {why}\n'
            'Set JAX_PLATFORMS=cpu, or leave it out for what is here; a GPU needs the jaxlib and driver that fit it.'
        ) from None
    processes.connect()


def end(error: UserError | RunError) -> None:
    if error.exit_code == RunError.exit_code:
        error.exit_code = processes.failure
    if processes.several():
        processes.fail(error)
    with contextlib.suppress(UserError):
        if processes.expected():
            processes.fail_early(error)
    if isinstance(error, user_code.Raised):
        traceback.print_exception(error.__cause__)
    print(printable(f'error: {error}' if error.exit_code < 128 else str(error)), file=sys.stderr)
    if error.exit_code > 128:
        _leave(error.exit_code)
    sys.exit(error.exit_code)


def _send_again(dropped) -> None:
    """Python drops an exception that a signal's handler raises while a finalizer or a callback of the garbage collector
    runs. The signal that it was raised for is sent again then, shortly after."""
    error = dropped.exc_value
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, 'exit_code', getattr(error, 'code', 0))
    if not isinstance(code, int) or code <= 128:
        sys.__unraisablehook__(dropped)
        return
    again = threading.Timer(_AGAIN, signal.pthread_kill, [threading.main_thread().ident, code - 128])
    again.daemon = True
    again.start()


def _stop_in_job(number, frame) -> None:
    if slurm.deciding:
        return
    slurm.stay(128 + number)
    os._exit(128 + number)


def _leave(exit_code: int) -> None:
    """At once. Otherwise Python waits at its end for what XLA and its threads still compute, or other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    slurm.stay(exit_code)
    os._exit(exit_code)
