"""Checkpoints by Orbax, with a sha256 of every leaf, so that what is restored is what was saved.

Orbax loads a flipped byte without an error, passes over missing keys in some cases and casts dtypes in silence;
here names, shapes, dtypes and bytes are compared, and whatever does not fit is named.
"""

import hashlib
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from aigc_jax.core import parallel, tree
from aigc_jax.core.errors import RunError, UserError
from aigc_jax.core.types import Tree

_DELETED = '.deleted'  # deleting is not atomic: a step is renamed into this folder first, then purged


class Checkpoints:
    """The checkpoints of one run, in `directory`.

    keep: how many of the newest stay; best_metric, best_mode: the best one by this metric stays beside them.
    """

    def __init__(self, directory: pathlib.Path, keep: int = 1, best_metric: str = '', best_mode: str = 'min',
                 read_only: bool = False):  # fmt: skip
        self._directory = directory
        policies, self._value = ocp.checkpoint_managers, lambda metrics: -math.inf
        preserve = [policies.LatestN(keep)]
        if best_metric:
            # Orbax's BestN keeps the highest of what it is given, whatever the mode is called.
            sign = 1 if best_mode == 'max' else -1
            self._value = lambda metrics: sign * metrics.get(best_metric, -sign * math.inf)
            preserve.append(policies.BestN(n=1, get_metric_fn=self._value, keep_checkpoints_without_metrics=False))
        if not read_only:
            directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            enable_async_checkpointing=False,  # small states are saved faster so, and nothing is lost at the end
            cleanup_tmp_directories=not read_only,
            todelete_subdir=_DELETED,
            read_only=read_only,
            create=False,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        if not read_only:
            self._purge()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def resolve(self, step: str | int | None) -> int:
        """The step that 'best', a number or None (the newest) names. Raises UserError."""
        if step is None:
            return self.latest()
        if step == 'best':
            values = {s: self._value(self._manager.metrics(s)) for s in self.steps() if self._manager.metrics(s)}
            if not values:
                raise UserError('--step=best: no checkpoint has a value of eval.best_metric; name a step')
            return max(values, key=values.get)
        if not str(step).isdigit():
            raise UserError(f"--step={step}: a number or 'best'")
        return int(step)

    def save(self, step: int, state: Tree, metrics: dict[str, float] | None = None) -> None:
        """Writes the whole or nothing. Raises RunError where the disk is full or cannot be written."""
        leaves = {name: _describe(leaf) for name, leaf in tree.flatten(parallel.fetch(state)).items()}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), leaves=ocp.args.JsonSave(leaves))
        try:
            self._manager.save(step, args=items, metrics=metrics, force=True)
            self._manager.wait_until_finished()
        except Exception as error:
            raise RunError(
                f'{self._directory}/{step}: the checkpoint could not be written: {_one_line(error)}\n'
                f'The last good one is {_name(self._good_before(step))}; make room and give the same command again.'
            ) from None
        self._purge()

    def restore(self, step: int, template: Tree) -> Tree:
        """The state of `step` on the shardings of `template` (abstract arrays). Raises UserError by name."""
        if step not in self.steps():
            raise UserError(f'{self._directory}: no checkpoint of step {step}; there are {self.steps()}')
        saved = self._read(step, 'leaves', ocp.args.JsonRestore())
        wanted = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in tree.flatten(template).items()}
        _compare(f'{self._directory}/{step}', saved, wanted)
        state = self._read(step, 'state', ocp.args.StandardRestore(template))
        for name, leaf in tree.flatten(parallel.fetch(state)).items():
            if _describe(leaf) != saved[name]:
                raise self._corrupt(step, f'the bytes of {name} are not those that were saved')
        return state

    def restore_params(self, step: int, template: Tree) -> Tree:
        """{player: parameters} of `step`, whatever else it holds: for `init_from`."""
        leaves = self._read(step, 'leaves', ocp.args.JsonRestore())
        whole = self._read(step, 'state', ocp.args.StandardRestore())
        params = whole['params'] if isinstance(whole, dict) else whole.params
        found = {name: np.asarray(leaf) for name, leaf in tree.flatten({'params': params}).items()}
        wanted = {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in tree.flatten({'params': template}).items()}
        saved = {name: leaf for name, leaf in leaves.items() if name.startswith('params/')}
        _compare(f'{self._directory}/{step}', saved, wanted)
        for name, leaf in found.items():
            if _describe(leaf) != saved[name]:
                raise self._corrupt(step, f'the bytes of {name} are not those that were saved')
        return tree.map_named(lambda name, _: found[name], {'params': template})['params']

    def close(self) -> None:
        self._manager.close()

    def _read(self, step: int, item: str, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # Orbax and tensorstore raise bare Exceptions, ValueErrors and OSErrors
            raise self._corrupt(step, f'{item} cannot be read: {_one_line(error)}') from None

    def _corrupt(self, step: int, why: str) -> UserError:
        good = self._good_before(step)
        mend = f'delete that folder to go on from step {good}' if good is not None else 'delete that folder to start anew'
        return UserError(f'{self._directory}/{step}: the checkpoint is corrupt: {why}\nTo mend it, {mend}.')

    def _good_before(self, step: int) -> int | None:
        return max((s for s in self.steps() if s < step), default=None)

    def _purge(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)


def _describe(leaf: Any) -> list:
    """[shape, dtype, sha256] of a host array."""
    array = np.ascontiguousarray(leaf)
    return [list(np.shape(leaf)), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]


def _compare(where: str, saved: dict[str, list], wanted: dict[str, list]) -> None:
    missing, extra = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    other = [
        f'{name} is {saved[name][1]}{saved[name][0]}, the model has {wanted[name][1]}{wanted[name][0]}'
        for name in sorted(wanted.keys() & saved.keys())
        if saved[name][:2] != wanted[name]
    ]
    lines = [f'it lacks {_few(missing)}'] * bool(missing) + [f'it has {_few(extra)} besides'] * bool(extra)
    lines += [_few(other)] * bool(other)
    if lines:
        raise UserError(f'{where}: the checkpoint is of another model: {"; ".join(lines)}')


def _few(names: list[str]) -> str:
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def _one_line(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def _name(step: int | None) -> str:
    return 'none' if step is None else f'that of step {step}'
