"""How much memory is free: on the machine, in the control groups of the process, and below its own limit."""

import contextlib
import io
import os
import pathlib
import resource
from collections.abc import Iterator
from typing import BinaryIO

from aigc_jax.core.errors import UserError

_PART = 1 << 26  # bytes that are read at once
_SHARE = 0.9  # of what is available, which may be taken at once


def available() -> int:
    """Bytes that this process may still take. The cache of files counts as free."""
    return max(0, min(_of_machine(), _of_process(), *_of_groups()))


def want(num_bytes: float, what: str, free: int | None = None) -> None:
    """Raises UserError, which begins with `what`, if so much memory is not free. free: of a device; None: here."""
    free = available() if free is None else free
    if num_bytes > _SHARE * free:
        raise UserError(f'{what}: takes {words(num_bytes)} of memory, and {words(free)} are free here')


def read_whole(file: BinaryIO, what: str) -> bytes:
    """The rest of a file, which may decompress to many times its size. Raises UserError, which begins with `what`, if
    it does not fit the memory, and what reading raises."""
    with contextlib.suppress(io.UnsupportedOperation):
        want(os.fstat(file.fileno()).st_size, what)
    most, held = _SHARE * available(), io.BytesIO()
    while part := file.read(_PART):
        if held.tell() + len(part) > most:
            raise UserError(f'{what}: holds more than the {words(most)} of memory that are free here')
        held.write(part)
    return held.getvalue()


def _of_machine() -> int:
    for line in _lines('/proc/meminfo'):
        if line.startswith('MemAvailable:'):
            return 1024 * int(line.split()[1])
    return 1 << 62  # a system that does not say


def _of_process() -> int:
    """Bytes that are left below `ulimit -v`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 1 << 62
    pages = next(_lines('/proc/self/statm'), '0').split()[0]
    return limit - int(pages) * resource.getpagesize()


def _of_groups() -> Iterator[int]:
    """Bytes that are left in each control group of the process, of either version. A batch job has one."""
    for line in _lines('/proc/self/cgroup'):
        _, kinds, place = line.split(':', 2)
        if kinds == '':
            root, most, used = '/sys/fs/cgroup', 'memory.max', 'memory.current'
            cached = 'inactive_file', 'active_file'
        elif 'memory' in kinds.split(','):
            root, most, used = '/sys/fs/cgroup/memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes'
            cached = 'total_inactive_file', 'total_active_file'
        else:
            continue
        # In a container the group's own place may not be seen, only the root.
        for folder in {pathlib.PurePath(root + place), *pathlib.PurePath(root + place).parents}:
            if folder.is_relative_to(root) and (limit := next(_lines(folder / most), '')).isdigit():
                cache = [int(line.split()[1]) for line in _lines(folder / 'memory.stat') if line.startswith(cached)]
                yield int(limit) - int(next(_lines(folder / used), '0')) + sum(cache)


def _lines(path) -> Iterator[str]:
    try:
        yield from pathlib.Path(path).read_text().splitlines()
    except OSError:
        return


def words(num_bytes: float) -> str:
    """'26.9 kB', '1,230 GB'."""
    for unit in ('bytes', 'kB', 'MB', 'GB'):
        if num_bytes < 1000 or unit == 'GB':
            return f'{num_bytes:.3g} {unit}' if num_bytes < 1000 else f'{num_bytes:,.0f} {unit}'
        num_bytes /= 1000
