"""Checkpoints by Orbax, each beside a record of what was saved, so that what is restored is what was saved.

    checkpoints/STEP/arrays/           what Orbax writes
    checkpoints/STEP/checkpoint.json   metrics; shape, dtype and digest of every leaf; sha256 of every file

A step is written under another name and renamed when it is whole. Orbax loads a flipped byte without an
error, passes over missing keys in some cases, casts dtypes in silence, and fills the screen where a file is
cut short; here the files are compared before Orbax reads them and the leaves after it, and what does not fit
is named.

The sha256 of the files protects from damage on the disk. The digest of a leaf (core/digest.py) protects from faults in
writing and reading, such as shards that are put together wrongly.

Each process writes and reads its own shards, a group of leaves at a time, so no process and no device holds more of a
state than its share. What fails on one process is an error on all (core/processes.py): no Orbax function that waits for
other processes is called.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from aigc_jax.core import digest, parallel, processes, tree
from aigc_jax.core.errors import RunError, UserError, one_line
from aigc_jax.core.files import disk_errors
from aigc_jax.core.types import Tree
from aigc_jax.runs import record, store

_ARRAYS = 'arrays'
_UNFINISHED, _DELETED = '.unfinished', '.deleted'  # behind the step; purged when the run is opened again


class OtherModel(UserError):
    """A checkpoint has other parameters than the model."""


class _Corrupt(UserError):
    """A checkpoint's files or leaves are not those that were saved."""


class _NoRoom(RunError):
    """The disk is full."""


class Checkpoints:
    """The checkpoints of one run, in `directory`.

    keep: how many of the newest stay; best_metric, best_mode: the best one by this metric stays beside them.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 1, best_metric: str = '', best_mode: str = 'min',
                 read_only: bool = False):  # fmt: skip
        self._directory = directory.absolute()
        self._keep, self._best_metric, self._sign = keep, best_metric, 1 if best_mode == 'max' else -1
        self._links = contextlib.ExitStack()
        self._orbaxs_directory = self._links.enter_context(store.plain_path(self._directory))
        self._read_back = False  # whether a checkpoint of this process has been
        if not read_only:
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            if processes.first():
                for path in self._directory.glob('*'):
                    if path.suffix in (_UNFINISHED, _DELETED):  # what a killed process left half written or deleted
                        shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._directory.glob('*') if path.name.isdecimal())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def resolve(self, step: str | int | None, what: str = 'step') -> int:
        """The step that 'best', a number or None (the newest) names; `what`: the field or flag. Raises UserError."""
        if step is None:
            return self.latest()
        if step == 'best':
            best = self._best()
            if best is None:
                raise UserError(f'{what}=best: no checkpoint has a value of {self._best_metric!r}; '
                                f'name a step: {self.steps()}')  # fmt: skip
            return best
        if not str(step).isdecimal():
            raise UserError(f"{what}={step}: a number or 'best'")
        return int(step)

    def save(self, step: int, state: Tree, metrics: dict[str, float] | None = None) -> None:
        """Writes the whole or nothing; the first that this process writes is read back before it counts.

        Raises RunError where the disk is full or cannot be written, or where what was written cannot be read.
        """
        unfinished = self._directory / f'{step}{_UNFINISHED}'
        arrays = self._arrays(unfinished.name)
        leaves = _described(tree.flatten(state))
        try:
            _by_first('room', lambda: store.claim_room(unfinished / _ARRAYS, state))
            _alike('write', lambda: store.write(arrays, state))
            _by_first('merge', lambda: store.merge(arrays))
            if not self._read_back:
                _alike('read back', lambda: self._verify(unfinished.name, leaves))
                self._read_back = True
            files = _digests_of_files(unfinished)
            found = {'step': step, 'metrics': metrics or {}, 'leaves': leaves}
            _by_first('record', lambda: record.write(unfinished, found, files))
            _by_first('rename', lambda: unfinished.rename(self._directory / str(step)))
        except (UserError, RunError) as error:
            if processes.first():
                _remove(unfinished)
            good = self._good_before(step)
            raise RunError(
                f'{self._directory}/{step}: the checkpoint could not be written and read back: {error}\n'
                f'The last good one is {"none" if good is None else f"that of step {good}"}; '
                f'{"make room" if isinstance(error, _NoRoom) else "see to that"} and give the same command again.'
            ) from None
        if processes.first():
            self._delete_old()

    def restore(self, step: int, template: Tree) -> Tree:
        """The state of `step` on the shardings of `template` (abstract arrays). Raises UserError by name."""
        try:
            leaves = self._checked_record(step)['leaves']
            self._compare(step, leaves, template)
            return self._read(step, template, leaves)
        except _Corrupt as error:
            good = self._good_before(step)
            if good is not None:
                mend = f'To mend it, delete that folder to go on from step {good}.'
            elif self.steps() == [step]:
                mend = 'To mend it, delete that folder to start anew.'
            else:
                mend = 'No earlier one is good either: bring the files back from a copy, or name another folder.'
            raise UserError(f'{error}\n{mend}') from None

    def wants(self, step: int) -> bool:
        """Whether a state is to be saved at `step`, besides those that the config says."""
        return False

    def check(self, step: int) -> None:
        """Raises UserError by name where a file of `step` is not as it was saved."""
        self._checked_record(step)

    def metrics(self, step: int) -> dict[str, float]:
        """Those that were saved with it. Raises UserError."""
        return self._record(step)['metrics']

    def parts(self, step: int, template: Tree) -> Iterator[dict[str, Any]]:
        """{name: array} of `step` on the shardings of `template`, some leaves at a time. Raises UserError by name."""
        leaves = self._checked_record(step)['leaves']
        self._compare(step, leaves, template)
        yield from self._parts(step, template, leaves)

    def parameters(self, step: int) -> dict[str, list[int]]:
        """{name, as PLAYER/block_0/query/kernel: shape}, as its record says. Raises UserError."""
        self._must_exist(step)
        own = {name: leaf for name, leaf in self._record(step)['leaves'].items() if name.startswith('params/')}
        return {name.removeprefix('params/'): leaf[0] for name, leaf in own.items()}

    def digest(self, step: int) -> str:
        """sha256 (hex) that only this very state has. Raises UserError where it is not there, or damaged."""
        self._must_exist(step)
        return record.sha256(json.dumps(self._record(step)['leaves']).encode())

    def restore_model(
        self, step: int, params: Tree, stats: dict[str, Tree], opt: Tree,
        leaves_out: Callable[[str], bool] = lambda name: False, own_name: Callable[[str], str] = lambda name: name,
    ) -> tuple[Tree, dict[str, Tree], Tree]:  # fmt: skip
        """(parameters, statistics, optimizers' states) of `step`, on the shardings of these: for `init.run`.

        own_name(name): what a leaf of the checkpoint is called here. leaves_out(name): whether the checkpoint may have
        this leaf, by its name here, besides; it is not read.
        `params` must fit, and `opt`, which is {} where it is not wanted. Of `stats`, those that the checkpoint has in
        the same shape are restored: another loss may keep others.
        """
        saved = self._checked_record(step)['leaves']
        theirs = {own_name(name): name for name in saved}
        leaves = {name: saved[of] for name, of in theirs.items()}
        wanted = {'params': params, 'opt': opt} if opt else {'params': params}
        own = {
            name: leaf for name, leaf in leaves.items() if name.partition('/')[0] in wanted and not leaves_out(name)
        }
        self._compare(step, own, wanted)
        fits = lambda part: all(leaves.get(name, [])[:2] == kind for name, kind in _kinds({'stats': part}).items())
        template = {**wanted, 'stats': {name: part for name, part in stats.items() if fits({name: part})}}
        template = {name: part for name, part in template.items() if part}
        found = self._read(step, {theirs[name]: leaf for name, leaf in tree.flatten(template).items()}, saved)
        found = tree.map_named(lambda name, _: found[theirs[name]], template)
        return found['params'], found.get('stats', {}), found.get('opt', {})

    def close(self) -> None:
        self._links.close()

    def _checked_record(self, step: int) -> dict:
        """What checkpoint.json says, once every file is as it was saved. Each process reads a share of the files."""
        self._must_exist(step)
        found = _alike('record', lambda: self._record(step))
        folder, files = self._directory / str(step), found['files']

        def check():
            with self._corrupt(step):
                record.files_of(folder)  # whatever Orbax opens there is a file
                record.check(folder, files, _own_share(sorted(files)))

        _alike('files', check)
        return found

    def _must_exist(self, step: int) -> None:
        if step not in self.steps():
            raise UserError(f'{self._directory}: no checkpoint of step {step}; there are {self.steps()}')

    def _record(self, step: int) -> dict:
        with self._corrupt(step):
            return record.read(self._directory / str(step))

    @contextlib.contextmanager
    def _corrupt(self, step: int | str):
        try:
            yield
        except record.Damaged as error:
            raise _Corrupt(f'{self._directory}/{step}: the checkpoint is corrupt: {error}') from None

    def _compare(self, step: int, saved: dict[str, list], template: Tree) -> None:
        wanted = _kinds(template)
        first = lambda name: (not name.startswith('params/'), name)  # the optimizer's follow from them
        missing, extra = (
            sorted(names, key=first) for names in (wanted.keys() - saved.keys(), saved.keys() - wanted.keys())
        )
        extra = [name for name in extra if not _is_average_of_frozen(name, wanted)]
        other = [
            f'{name} is {saved[name][1]}{saved[name][0]}, the model has {wanted[name][1]}{wanted[name][0]}'
            for name in sorted(wanted.keys() & saved.keys(), key=first)
            if saved[name][:2] != wanted[name]
        ]
        lines = [f'it lacks {_few(missing)}'] * bool(missing) + [f'it has {_few(extra)} besides'] * bool(extra)
        lines += [_few(other)] * bool(other)
        if lines:
            raise OtherModel(f'{self._directory}/{step}: the checkpoint is of another model: {"; ".join(lines)}')

    def _read(self, step: int, template: Tree, leaves: dict[str, list]) -> Tree:
        """The leaves that `template` names, on its shardings, or where it has none as arrays on the host."""
        found = {name: leaf for part in self._parts(step, template, leaves) for name, leaf in part.items()}
        return tree.map_named(lambda name, _: found[name], template)

    def _parts(self, step: int, template: Tree, leaves: dict[str, list]) -> Iterator[dict[str, Any]]:
        wanted = tree.flatten(template)
        saved = _alike('structure', lambda: self._structure(str(step), leaves))
        for group in store.groups(wanted):
            here = {name: wanted[name] for name in group}
            part = _alike('read', lambda: self._load(str(step), saved, here))  # noqa: B023
            now = _described(part, leaves)
            _alike('compare', lambda: self._must_equal(str(step), now, leaves))  # noqa: B023
            yield part

    def _verify(self, folder: str, leaves: dict[str, list]) -> None:
        """Raises where what lies there is not these leaves. Each process reads some, on its host, and keeps none."""
        own = {name: jax.ShapeDtypeStruct(leaves[name][0], leaves[name][1]) for name in _own_share(sorted(leaves))}
        saved = self._structure(folder, leaves)
        for group in store.groups(own):
            part = self._load(folder, saved, {name: own[name] for name in group})
            self._must_equal(folder, _described(part, leaves), leaves)

    def _must_equal(self, folder: str, now: dict[str, list], leaves: dict[str, list]) -> None:
        differing = [name for name, leaf in now.items() if leaf != leaves[name]]
        with self._corrupt(folder):
            if differing:
                raise record.Damaged(f'the bytes of {_few(differing)} are not those that were saved')

    def _arrays(self, folder: str) -> pathlib.Path:
        return self._orbaxs_directory / folder / _ARRAYS

    def _structure(self, folder: str, leaves: dict[str, list]) -> Tree:
        with self._unreadable(folder):
            saved = store.structure(self._arrays(folder))
        with self._corrupt(folder):
            if differing := store.differing(saved, leaves):
                raise record.Damaged(f'the arrays of {_few(differing)} are not of the shapes that its record names')
        return saved

    def _load(self, folder: str, saved: Tree, wanted: dict[str, Any]) -> dict[str, Any]:
        with self._unreadable(folder):
            return store.load(self._arrays(folder), saved, wanted)

    @contextlib.contextmanager
    def _unreadable(self, folder: str):
        try:
            yield
        except Exception as error:  # its files are as they were saved, so this is no damage
            raise RunError(
                f'{self._directory}/{folder}: the checkpoint cannot be read here: {one_line(error)}'
            ) from None

    def _good_before(self, step: int) -> int | None:
        """The newest step before it that can be read, every leaf of it as it was saved."""
        for earlier in sorted((s for s in self.steps() if s < step), reverse=True):
            with contextlib.suppress(UserError, RunError):
                leaves = self._checked_record(earlier)['leaves']
                _alike('verify', lambda: self._verify(str(earlier), leaves))  # noqa: B023
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
        """Deletes all but the newest and the best; nothing if a record cannot be read, because that may be the best."""
        try:
            kept = {self._best(), *self.steps()[-self._keep :]}
        except UserError:
            return
        for step in set(self.steps()) - kept:
            deleted = self._directory / f'{step}{_DELETED}'  # deleting is not atomic, renaming is
            with contextlib.suppress(OSError):
                (self._directory / str(step)).rename(deleted)
                shutil.rmtree(deleted)


def _remove(folder: pathlib.Path) -> None:
    """Removes a folder where threads of tensorstore may still make files, until none does, for two seconds at most."""
    end = time.monotonic() + 2
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _own_share(names: list[str]) -> list[str]:
    """Those that this process takes care of."""
    return names[jax.process_index() :: jax.process_count()]


def _by_first(what: str, call: Callable[[], None]) -> None:
    _alike(what, lambda: call() if processes.first() else None)


def _alike(what: str, call: Callable[[], Any]) -> Any:
    """What `call` returns; where it fails on one process, all raise an error of that kind."""
    value = failed = None
    try:
        value = call()
    except Exception as error:  # Orbax and tensorstore raise bare Exceptions, ValueErrors and OSErrors
        if isinstance(error, _KINDS):
            failed = [next(kind.__name__ for kind in _KINDS if isinstance(error, kind)), str(error)]
        elif full := next((words for words in _FULL if words in str(error)), None):  # perhaps behind much else
            failed = [_NoRoom.__name__, full]
        else:
            failed = [RunError.__name__, one_line(error)]
    for k, other in enumerate(processes.gather(f'checkpoint: {what}', failed)):
        if other:
            kind = next(kind for kind in _KINDS if kind.__name__ == other[0])
            raise kind(other[1] if k == jax.process_index() else f'process {k}: {other[1]}')
    return value


_KINDS = (_Corrupt, _NoRoom, UserError, RunError)
_FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


def _digests_of_files(folder: pathlib.Path) -> dict[str, str]:
    """{name: sha256} of what lies below `folder`. Each process reads a share."""
    names = processes.gather('files', _alike('list', lambda: record.files_of(folder)))[0]
    own = _alike('hash', lambda: {name: record.digest_of(folder, name) for name in _own_share(names)})
    return {name: value for part in processes.gather('digests of files', own) for name, value in sorted(part.items())}


def _described(leaves: dict[str, Any], before: dict[str, list] | None = None) -> dict[str, list]:
    """{name: [shape, dtype, digest]}. before: an earlier record of them; its kind of digest is used."""
    is_old = lambda name: before is not None and not before[name][2].startswith(digest.KIND)
    found = digest.digests({name: leaf for name, leaf in leaves.items() if not is_old(name)})
    for name in filter(is_old, leaves):  # the sha256 of the whole, as records of earlier days have it
        found[name] = record.sha256(np.ascontiguousarray(parallel.fetch(leaves[name])).tobytes())
    return {name: [list(np.shape(leaf)), str(leaf.dtype), found[name]] for name, leaf in leaves.items()}


def _kinds(template: Tree) -> dict[str, list]:
    """{name: [shape, dtype]}, as the record of a checkpoint begins with."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in tree.flatten(template).items()}


def _is_average_of_frozen(name: str, wanted: Collection[str]) -> bool:
    """Whether `name`, which is not wanted, is the average of a parameter that is frozen. Runs of before SCHEMA 4 kept
    these copies, which nothing reads now. The average of what is trained is wanted."""
    player, average, path = name.partition('/average/')
    of_player = f'params/{player.split("/")[1]}/{path}' if average and player.startswith('opt/') else ''
    return of_player in wanted and any(other.startswith(f'{player}/average/') for other in wanted)


def _few(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
