"""How far a long piece of work has come: a bar on a terminal, elsewhere a line every ten seconds.

Nothing is shown until `shown_on` names a stream. Each thread has its own.
"""

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent import futures
from types import SimpleNamespace
from typing import TextIO

from aigc_jax.core import processes
from aigc_jax.core.errors import UserError

SECONDS = 10.0  # between two plain lines


class _OfThread(threading.local):
    stream: TextIO | None = None
    work: SimpleNamespace | None = None  # the one under way: its name, and when it began and was told of last


_own = _OfThread()


@contextlib.contextmanager
def shown_on(stream: TextIO | None) -> Iterator[None]:
    """Within, `work` of this thread is shown on `stream`; None: nowhere."""
    if stream is not None and not hasattr(stream, 'write'):
        raise UserError(f'progress: {stream!r}; it is a stream, such as sys.stderr, or None')
    before, _own.stream = _own.stream, stream
    try:
        yield
    finally:
        _own.stream = before


@contextlib.contextmanager
def work(name: str) -> Iterator[None]:
    """Announces a piece of work; until it ends, every loop over `each` shows how far it is. The first process alone."""
    if _own.stream is None or not processes.first():
        yield
        return
    print(name, file=_own.stream, flush=True)
    now = time.monotonic()
    before, _own.work = _own.work, SimpleNamespace(name=name, began=now, told=now)
    try:
        yield
    finally:
        _own.work = before


def each(items: Collection, what: str = '') -> Iterator:
    """The items, in turn; `what` they are for, behind the name of the work. Silent outside of any work."""
    if not _own.work:
        yield from items
        return
    name = f'{_own.work.name}, {what}' if what else _own.work.name
    if _own.stream.isatty():
        from tqdm import tqdm

        yield from tqdm(items, name, file=_own.stream, leave=False, delay=1, dynamic_ncols=True)
        return
    for done, item in enumerate(items):
        _tell(name, f'{100 * done // len(items)} %, ')
        yield item


def in_threads(function: Callable, arguments: Sequence, what: str) -> list:
    """[function(argument) for each], a thread for each: for C code that lets go of Python's lock.

    Ctrl-C is heard meanwhile, which code that does not come back to Python would not hear for minutes; its threads run
    on until they end, or the process does.
    """
    pool = futures.ThreadPoolExecutor(len(arguments))
    try:
        wanted = [pool.submit(function, argument) for argument in arguments]
        while futures.wait(wanted, timeout=1).not_done:
            if _own.work:
                _tell(f'{_own.work.name}, {what}')
        return [future.result() for future in wanted]
    finally:
        pool.shutdown(wait=False)


def _tell(name: str, done: str = '') -> None:
    now, time_now = _own.work, time.monotonic()
    if time_now - now.told >= SECONDS:
        now.told = time_now
        passed = datetime.timedelta(seconds=round(time_now - now.began))
        print(f'{name}: {done}{passed}', file=_own.stream, flush=True)
