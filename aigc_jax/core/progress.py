"""How far a long piece of work has come, on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent import futures

from aigc_jax.core import processes

SECONDS = 10.0  # between two plain lines
_works: list['_Work'] = []  # the one under way, if any


class _Work:
    def __init__(self, name: str):
        self.name, self.began, self.told = name, time.monotonic(), time.monotonic()


@contextlib.contextmanager
def work(name: str) -> Iterator[None]:
    """Announces a piece of work; until it ends, every loop over `each` shows how far it is. The first process alone."""
    if not processes.first():
        yield
        return
    print(name, file=sys.stderr, flush=True)
    _works.append(_Work(name))
    try:
        yield
    finally:
        _works.pop()


def each(items: Collection, what: str = '') -> Iterator:
    """The items, in turn; `what` they are for, behind the name of the work. Silent outside of any work."""
    if not _works:
        yield from items
        return
    name = f'{_works[-1].name}, {what}' if what else _works[-1].name
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, name, file=sys.stderr, leave=False, delay=1, dynamic_ncols=True)
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
            if _works:
                _tell(f'{_works[-1].name}, {what}')
        return [future.result() for future in wanted]
    finally:
        pool.shutdown(wait=False)


def _tell(name: str, done: str = '') -> None:
    now, time_now = _works[-1], time.monotonic()
    if time_now - now.told >= SECONDS:
        now.told = time_now
        passed = datetime.timedelta(seconds=round(time_now - now.began))
        print(f'{name}: {done}{passed}', file=sys.stderr, flush=True)
