"""The arrays of a checkpoint, as Orbax keeps them: written and read in shards, a group of leaves at a time.

No function of Orbax that waits for other processes is called: what fails on one of them would leave the others waiting.
"""

import contextlib
import glob
import logging
import math
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath  # Orbax's own paths, which its handlers ask for

from aigc_jax.core import tree
from aigc_jax.core.types import Tree

_BYTES_AT_ONCE = 32e6  # of a state on their way to or from the disk, in each process; a leaf's shard at least
_LATE = 10.0  # seconds
_BYTES_A_LEAF, _BYTES_A_STEP = 4096, 65536  # that Orbax and the record take at most beside the arrays


def write(folder: pathlib.Path, state: Tree) -> None:
    """Writes this process's shards into `folder`, which is there; `merge` makes one whole of those of all."""
    # Orbax fills a file in memory.
    arguments = ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=int(_BYTES_AT_ONCE))
    with _raised_alone():
        _orbax().save(epath.Path(folder), args=arguments)


def merge(folder: pathlib.Path) -> None:
    """Run by one process, once all have written."""
    with _raised_alone():
        _orbax().finalize(epath.Path(folder))


def structure(folder: pathlib.Path) -> Tree:
    """The tree that was saved, as Orbax keeps it, of dicts and lists. Raises ValueError, and what Orbax raises."""
    if (folder / 'checkpoint').exists():  # where Orbax would take leaves of any kind from
        raise ValueError('the file "checkpoint", of older versions of Orbax, is among its arrays')
    with _raised_alone():
        return _orbax().metadata(epath.Path(folder)).tree


def differing(saved: Tree, leaves: dict[str, list]) -> list[str]:
    """The names of `leaves`, {name: [shape, dtype, …]}, that the `structure` of a folder holds otherwise, or in chunks
    that are larger than the leaf: what tensorstore would take memory for."""
    found = tree.flatten(saved)

    def fits(name: str) -> bool:
        shape, dtype = leaves[name][:2]
        leaf = found.get(name)
        if not isinstance(leaf, ocp.metadata.ArrayMetadata) or (list(leaf.shape), str(leaf.dtype)) != (shape, dtype):
            return False
        chunk = leaf.storage.chunk_shape
        return len(chunk) == len(shape) and all(part <= max(1, size) for part, size in zip(chunk, shape, strict=True))

    return [name for name in leaves if not fits(name)]


def load(folder: pathlib.Path, saved: Tree, wanted: dict[str, Any]) -> dict[str, Any]:
    """{name: array} of the leaves `wanted`, on their shardings, or where they have none on the host.

    saved: the `structure` of the folder.
    """

    def argument(leaf):
        if leaf is ocp.PLACEHOLDER:
            return ocp.RestoreArgs()
        sharding = getattr(leaf, 'sharding', None)
        return ocp.ArrayRestoreArgs(sharding=sharding) if sharding else ocp.RestoreArgs(restore_type=np.ndarray)

    item = tree.map_named(lambda name, _: wanted.get(name, ocp.PLACEHOLDER), saved)
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=jax.tree.map(argument, item))
    with _raised_alone():
        found = tree.flatten(_orbax().restore(epath.Path(folder), args=arguments))
    return {name: found[name] for name in wanted}


def groups(leaves: dict[str, Any]) -> Iterator[list[str]]:
    """The names of (abstract) leaves, in groups that have _BYTES_AT_ONCE together, or a single one that has more."""
    group, total = [], 0
    for name, leaf in leaves.items():
        size = _bytes_a_process(leaf)
        if group and total + size > _BYTES_AT_ONCE:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _bytes_a_process(leaf) -> int:
    """Bytes of a leaf's shards in a process. All processes compute the same number."""
    size, sharding = leaf.size * leaf.dtype.itemsize, getattr(leaf, 'sharding', None)
    if sharding is None:
        return size
    shard = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return min(size, shard * math.ceil(sharding.num_devices / jax.process_count()))


def claim_room(folder: pathlib.Path, state: Tree) -> None:
    """Makes `folder` anew; raises OSError where the disk has no room in it for `state`.

    Orbax meets a full disk in many threads, each of which prints a traceback of its own.
    """
    leaves = jax.tree.leaves(state)
    num_bytes = int(1.1 * sum(leaf.nbytes for leaf in leaves)) + _BYTES_A_LEAF * len(leaves) + _BYTES_A_STEP
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(file.fileno(), 0, num_bytes)


@contextlib.contextmanager
def plain_path(directory: pathlib.Path):
    """A path to `directory` that Orbax can work with: itself, or a link to it in the temporary directory.

    Orbax 0.12 globs below the path as it stands, so that `[…]` and `**` in it match something else, and tensorstore
    takes `\\` for `/` and cannot read a name that is no UTF-8.
    """
    name = str(directory)
    if glob.escape(name) == name and '\\' not in name and name.isprintable():
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix='checkpoints_') as folder:
        link = pathlib.Path(folder) / 'checkpoints'
        link.symlink_to(directory)
        yield link


class _Quiet:
    """What fails in a thread of Orbax is raised where the thread is waited for. Without this, more would be printed
    for each leaf: by Orbax's log, by asyncio's, and by tensorstore, which tells a loop that has ended of its failures.

    It is on while any thread of this process is within. After a failure it stays on for _LATE seconds, because other
    threads of Orbax have not met the failure yet.
    """

    def __init__(self):
        self._lock, self._within = threading.Lock(), 0
        self._loggers = absl_logging.get_absl_logger(), logging.getLogger('asyncio')

    @contextlib.contextmanager
    def __call__(self):
        self._add(1)
        try:
            yield
        except BaseException:
            late = threading.Timer(_LATE, self._add, [-1])
            late.daemon = True
            late.start()
            raise
        self._add(-1)

    def _add(self, one: int) -> None:
        with self._lock:
            before, self._within = self._within, self._within + one
            if not before:
                for logger in self._loggers:
                    logger.addFilter(_told)
                self._hook = sys.unraisablehook
                sys.unraisablehook = self._heard
            elif not self._within:
                for logger in self._loggers:
                    logger.removeFilter(_told)
                sys.unraisablehook = self._hook

    def _heard(self, found) -> None:
        if not isinstance(found.exc_value, RuntimeError) or str(found.exc_value) != 'Event loop is closed':
            self._hook(found)


def _told(record: logging.LogRecord) -> bool:
    return not record.exc_info and record.name != 'asyncio'


_raised_alone = _Quiet()


def _orbax() -> ocp.PyTreeCheckpointHandler:
    """Without the Checkpointer around it, which waits for the other processes by collectives of the devices."""
    return ocp.PyTreeCheckpointHandler(
        save_device_host_concurrent_gb=_BYTES_AT_ONCE / 1e9, is_prioritized_key_fn=lambda _: False
    )
