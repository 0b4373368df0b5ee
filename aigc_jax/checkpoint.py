"""Checkpoints by Orbax, each beside a record of what was saved, so that what is restored is what was saved.

    checkpoints/STEP/arrays/           what Orbax writes
    checkpoints/STEP/checkpoint.json   metrics; shape, dtype and sha256 of every leaf; sha256 of every file

A step is written under another name and renamed when it is whole. Orbax loads a flipped byte without an
error, passes over missing keys in some cases, casts dtypes in silence, and fills the screen where a file is
cut short; here the files are compared before Orbax reads them and the leaves after it, and what does not fit
is named.
"""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from aigc_jax.core import parallel, tree
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.files import atomic_write, disk_errors
from aigc_jax.core.types import Tree

_ARRAYS, _RECORD = 'arrays', 'checkpoint.json'
_BYTES_A_LEAF, _BYTES_A_STEP = 4096, 65536  # that Orbax and the record take at most beside the arrays
_UNFINISHED, _DELETED = '.unfinished', '.deleted'  # behind the step; purged when the run is opened again


class _Corrupt(UserError):
    """A checkpoint's files or leaves are not those that were saved."""


class Checkpoints:
    """The checkpoints of one run, in `directory`.

    keep: how many of the newest stay; best_metric, best_mode: the best one by this metric stays beside them.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 1, best_metric: str = '', best_mode: str = 'min',
                 read_only: bool = False):  # fmt: skip
        self._directory = directory.absolute()
        self._keep, self._best_metric, self._sign = keep, best_metric, 1 if best_mode == 'max' else -1
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._links = contextlib.ExitStack()
        self._orbaxs_directory = self._links.enter_context(_plain_path(self._directory))
        self._read_back = False  # whether a checkpoint of this process has been
        if not read_only:
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            self._purge()

    def steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._directory.glob('*') if path.name.isdecimal())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def resolve(self, step: str | int | None) -> int:
        """The step that 'best', a number or None (the newest) names. Raises UserError."""
        if step is None:
            return self.latest()
        if step == 'best':
            best = self._best()
            if best is None:
                raise UserError(f'--step=best: no checkpoint has a value of {self._best_metric!r}; '
                                f'name a step: {self.steps()}')  # fmt: skip
            return best
        if not str(step).isdecimal():
            raise UserError(f"--step={step}: a number or 'best'")
        return int(step)

    def save(self, step: int, state: Tree, metrics: dict[str, float] | None = None) -> None:
        """Writes the whole or nothing; the first that this process writes is read back before it counts.

        Raises RunError where the disk is full or cannot be written, or where what was written cannot be read.
        """
        leaves = {name: _describe(leaf) for name, leaf in tree.flatten(parallel.fetch(state)).items()}
        unfinished = self._directory / f'{step}{_UNFINISHED}'
        first = jax.process_index() == 0
        try:
            if first:
                _claim_room(unfinished, state)
            arrays = self._orbaxs_directory / unfinished.name / _ARRAYS
            self._orbax.save(arrays, args=ocp.args.PyTreeSave(state), force=True)
            if not self._read_back:
                self._read(unfinished.name, _on_host(state), leaves)
                self._read_back = True
            if first:
                _write_record(unfinished, {'step': step, 'metrics': metrics or {}, 'leaves': leaves})
                unfinished.rename(self._directory / str(step))
        except Exception as error:  # Orbax and tensorstore raise bare Exceptions, ValueErrors and OSErrors
            if first:
                shutil.rmtree(unfinished, ignore_errors=True)
            good = self._good_before(step, state)
            raise RunError(
                f'{self._directory}/{step}: the checkpoint could not be written and read back: {_one_line(error)}\n'
                f'The last good one is {"none" if good is None else f"that of step {good}"}; '
                f'{_mend(error)} and give the same command again.'
            ) from None
        if first:
            self._delete_old()

    def restore(self, step: int, template: Tree) -> Tree:
        """The state of `step` on the shardings of `template` (abstract arrays). Raises UserError by name."""
        try:
            return self._restore(step, template)
        except _Corrupt as error:
            good = self._good_before(step, template)
            if good is not None:
                mend = f'To mend it, delete that folder to go on from step {good}.'
            elif self.steps() == [step]:
                mend = 'To mend it, delete that folder to start anew.'
            else:
                mend = 'No earlier one is good either: bring the files back from a copy, or name another --workdir.'
            raise UserError(f'{error}\n{mend}') from None

    def digest(self, step: int) -> str:
        """sha256 (hex) that only this very state has. Raises UserError where its record is damaged."""
        return _digest(json.dumps(self._record(step)['leaves']).encode())

    def restore_model(self, step: int, params: Tree, stats: dict[str, Tree]) -> tuple[Tree, dict[str, Tree]]:
        """(parameters, statistics) of `step`, on the host, whatever else it holds: for `init_from`.

        params must fit; of `stats` come those that it has in the same shape, for another loss may keep others.
        """
        leaves = self._checked_record(step)['leaves']
        own = {name: leaf for name, leaf in leaves.items() if name.startswith('params/')}
        self._compare(step, own, {'params': params})
        fits = lambda part: all(leaves.get(name, [])[:2] == kind for name, kind in _kinds({'stats': part}).items())
        template = {'params': params, 'stats': {name: part for name, part in stats.items() if fits({name: part})}}
        found = self._read(str(step), {name: part for name, part in template.items() if part}, leaves)
        return found['params'], found.get('stats', {})

    def close(self) -> None:
        self._orbax.close()
        self._links.close()

    def _restore(self, step: int, template: Tree) -> Tree:
        leaves = self._checked_record(step)['leaves']
        self._compare(step, leaves, template)
        return self._read(str(step), template, leaves)

    def _checked_record(self, step: int) -> dict:
        """What checkpoint.json says, once every file is as it was saved."""
        if step not in self.steps():
            raise UserError(f'{self._directory}: no checkpoint of step {step}; there are {self.steps()}')
        folder, record = self._directory / str(step), self._record(step)
        for name, digest in record['files'].items():
            try:
                found = _digest_of_file(folder / name)
            except OSError as error:
                raise self._corrupt(step, f'{name} cannot be read: {error.strerror or error}') from None
            if found != digest:
                raise self._corrupt(step, f'{name} is not as it was saved')
        return record

    def _record(self, step: int) -> dict:
        try:
            whole = json.loads((self._directory / str(step) / _RECORD).read_bytes())
            if whole['sha256'] == _digest(json.dumps(whole['record']).encode()):
                return whole['record']
            why = 'is not as it was saved'
        except OSError as error:
            why = f'cannot be read: {error.strerror or error}'
        except (ValueError, KeyError, TypeError, RecursionError):
            why = 'is not as it was saved'
        raise self._corrupt(step, f'{_RECORD} {why}')

    def _compare(self, step: int, saved: dict[str, list], template: Tree) -> None:
        wanted = _kinds(template)
        first = lambda name: (not name.startswith('params/'), name)  # the optimizer's follow from them
        missing, extra = (
            sorted(names, key=first) for names in (wanted.keys() - saved.keys(), saved.keys() - wanted.keys())
        )
        other = [
            f'{name} is {saved[name][1]}{saved[name][0]}, the model has {wanted[name][1]}{wanted[name][0]}'
            for name in sorted(wanted.keys() & saved.keys(), key=first)
            if saved[name][:2] != wanted[name]
        ]
        lines = [f'it lacks {_few(missing)}'] * bool(missing) + [f'it has {_few(extra)} besides'] * bool(extra)
        lines += [_few(other)] * bool(other)
        if lines:
            raise UserError(f'{self._directory}/{step}: the checkpoint is of another model: {"; ".join(lines)}')

    def _read(self, name: str, template: Tree, leaves: dict[str, list]) -> Tree:
        """The leaves that `template` names, of the folder `name`; those without a sharding as arrays on the host."""

        def argument(leaf):
            sharding = getattr(leaf, 'sharding', None)
            return ocp.ArrayRestoreArgs(sharding=sharding) if sharding else ocp.RestoreArgs(restore_type=np.ndarray)

        arguments = ocp.args.PyTreeRestore(
            item=template, restore_args=jax.tree.map(argument, template), partial_restore=True
        )
        try:
            state = self._orbax.restore(self._orbaxs_directory / name / _ARRAYS, args=arguments)
        except Exception as error:  # its files are as they were saved, so this is no damage
            raise RunError(
                f'{self._directory}/{name}: the checkpoint cannot be read here: {_one_line(error)}'
            ) from None
        for leaf_name, leaf in tree.flatten(parallel.fetch(state)).items():
            if _describe(leaf) != leaves[leaf_name]:
                raise self._corrupt(name, f'the bytes of {leaf_name} are not those that were saved')
        return state

    def _corrupt(self, step: int | str, why: str) -> UserError:
        return _Corrupt(f'{self._directory}/{step}: the checkpoint is corrupt: {why}')

    def _good_before(self, step: int, template: Tree) -> int | None:
        """The newest step before it that can be read, every leaf of it as it was saved."""
        for earlier in sorted((s for s in self.steps() if s < step), reverse=True):
            with contextlib.suppress(UserError, RunError):
                if jax.process_count() > 1:  # Orbax would wait for the others, who may not have failed
                    self._checked_record(earlier)
                else:
                    self._restore(earlier, _on_host(template))
                return earlier
        return None

    def _best(self) -> int | None:
        """The step with the best finite value of the metric, the newest of equals. Raises UserError."""
        values = {step: self._record(step)['metrics'].get(self._best_metric) for step in self.steps()}
        values = {
            step: self._sign * value for step, value in values.items() if value is not None and math.isfinite(value)
        }
        return max(values, key=lambda step: (values[step], step), default=None)

    def _delete_old(self) -> None:
        """All but the newest and the best; nothing where a record cannot be read, as that may be the best."""
        try:
            kept = {self._best(), *self.steps()[-self._keep :]}
        except UserError:
            return
        for step in set(self.steps()) - kept:
            deleted = self._directory / f'{step}{_DELETED}'  # deleting is not atomic, renaming is
            with contextlib.suppress(OSError):
                (self._directory / str(step)).rename(deleted)
                shutil.rmtree(deleted)

    def _purge(self) -> None:
        """Removes what a killed process left half written or half deleted."""
        if jax.process_index() == 0:
            for path in self._directory.glob('*'):
                if path.suffix in (_UNFINISHED, _DELETED):
                    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _plain_path(directory: pathlib.Path):
    """`directory` by a name that Orbax can work with: a link in the temporary directory where its own is none.

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


def _on_host(template: Tree) -> Tree:
    """The same without shardings: it is read into arrays on the host."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)


def _mend(error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return 'make room' if full else 'see to that'


def _claim_room(folder: pathlib.Path, state: Tree) -> None:
    """Makes `folder`; raises OSError where the disk has no room in it for `state`.

    Orbax meets a full disk in many threads, each of which prints a traceback of its own.
    """
    leaves = jax.tree.leaves(state)
    num_bytes = int(1.1 * sum(leaf.nbytes for leaf in leaves)) + _BYTES_A_LEAF * len(leaves) + _BYTES_A_STEP
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(file.fileno(), 0, num_bytes)


def _write_record(folder: pathlib.Path, record: dict) -> None:
    """checkpoint.json: the record with the digest of every file that lies there, and a digest of itself."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    record['files'] = {path.relative_to(folder).as_posix(): _digest_of_file(path) for path in files}
    atomic_write(folder / _RECORD, json.dumps({'sha256': _digest(json.dumps(record).encode()), 'record': record}))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of_file(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _describe(leaf: Any) -> list:
    """[shape, dtype, sha256] of a host array."""
    array = np.ascontiguousarray(leaf)
    return [list(np.shape(leaf)), str(array.dtype), _digest(array.tobytes())]


def _kinds(template: Tree) -> dict[str, list]:
    """{name: [shape, dtype]}, as the record of a checkpoint begins with."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in tree.flatten(template).items()}


def _few(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _one_line(error: BaseException) -> str:
    name = '' if isinstance(error, (UserError, RunError)) else f'{type(error).__name__}: '
    return ' '.join(f'{name}{error}'.split())[:300]
