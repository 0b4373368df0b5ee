"""What a sweep is: rows × seeds, a folder for each, and the record of it that `status` and later commands read."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from aigc_jax.core import records
from aigc_jax.core.errors import UserError, cause
from aigc_jax.core.files import atomic_write

RECORD = 'sweep.json'
# Of a config.json, which bears no identity: the seed stands in the name of the folder, total_steps may grow, and a run
# may go on with another layout.
_FREE = re.compile(r'\n  "(?:(?:seed|total_steps)": -?\d+|parallel": \{.*?\n  \}),?', re.DOTALL)
# The folder of an own task's or own data's file, which may move; manifests tell what the file holds.
_PLACE = re.compile(r'(\n    "name": ")(?:[^"]*/)(?=[^"/]+\.py["#:])')
_STRANGE = re.compile(r'[^\w.+-]+', re.ASCII)  # in the name of a folder


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting. fields: {field: value} on top of the sweep's config. fingerprint: of the whole resolved config."""

    name: str
    fields: dict[str, Any]
    fingerprint: str
    total_steps: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Another evaluation of a finished run. fields: [(field, text)] on top of the run's config. made_with: {field: what
    the resolved config holds}, which tells its file in evaluations/ from those of others."""

    fields: tuple[tuple[str, str], ...]
    made_with: dict[str, Any]

    @functools.cached_property
    def name(self) -> str:
        return f'evaluation-{hashlib.sha256(json.dumps(self.fields).encode()).hexdigest()[:8]}'


@dataclasses.dataclass(frozen=True)
class Trial:
    """A row with one seed, in the folder `workdir` of the sweep.

    config: FILE.py[:variant,…] that the row's fields are set in, after those of `overrides`, [(field, text)].
    evaluation: of a trial that evaluates the run of the row and seed once more; None of one that trains it.
    start: the trial whose run this one starts from, wherever it lies; the row's field `into`, such as init.run, is the
    name of its row.
    """

    row: Row
    seed: int
    workdir: pathlib.Path
    config: str
    overrides: tuple[tuple[str, str], ...] = ()
    evaluation: Evaluation | None = None
    start: 'Trial | None' = None
    into: str = 'init.run'

    @functools.cached_property
    def folder(self) -> pathlib.Path:
        """Of its run."""
        return self.workdir / f'{self.row.name}/seed-{self.seed}'

    @property
    def log(self) -> pathlib.Path:
        """What its processes wrote on stdout and stderr."""
        return self.workdir / f'{self.name}.log'

    @property
    def name(self) -> str:
        return f'{self.row.name}/seed-{self.seed}' + (f'-{self.evaluation.name}' if self.evaluation else '')


@dataclasses.dataclass(frozen=True)
class Sweep:
    """config: FILE.py[:variant,…], with overrides [(field, text)] for all rows. metric: its eval.best_metric, or ''."""

    config: str
    overrides: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    metric: str = ''

    def trials(self, workdir: pathlib.Path) -> list[Trial]:
        """All of them. The seeds of a row come last, so that every row has a result early."""
        return [Trial(row, seed, workdir, self.config, self.overrides) for seed in self.seeds for row in self.rows]

    def write(self, workdir: pathlib.Path) -> None:
        atomic_write(workdir / RECORD, json.dumps(dataclasses.asdict(self)) + '\n')


def read(workdir: pathlib.Path) -> Sweep | None:
    """The sweep that the newest command ran in this folder; None where there is none. Raises UserError."""
    path = workdir / RECORD
    try:
        found = records.read(path)
        rows = tuple(Row(**row) for row in found.pop('rows'))
        overrides = tuple((field, text) for field, text in found.pop('overrides'))
        sweep = Sweep(**found | {'rows': rows, 'overrides': overrides, 'seeds': tuple(found['seeds'])})
        for row in rows:
            if '/' in row.name or row.name.startswith('.'):
                raise ValueError(f'{row.name!r} is no name of a row')
        return sweep
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}: cannot be read as a sweep: {cause(error)}; remove it, and the command of the sweep makes it '
            'again'
        ) from None


def others(sweep: Sweep, workdir: pathlib.Path) -> Iterator[str]:
    """ROW, or ROW/seed-S, of the folders that hold runs of rows and seeds which the sweep no longer has."""
    rows, seeds = {row.name for row in sweep.rows}, {f'seed-{seed}' for seed in sweep.seeds}
    for name in sorted(os.listdir(workdir)):
        folder, known = os.path.join(workdir, name), seeds if name in rows else ()
        try:
            unknown = sorted(run for run in os.listdir(folder) if run.startswith('seed-') and run not in known)
        except OSError:  # a file, or a folder that is gone by now
            continue
        found = [f'{name}/{run}' for run in unknown if os.path.exists(os.path.join(folder, run, 'config.json'))]
        yield from found if name in rows else [name] * bool(found)


def fingerprint(config: str) -> str:
    """Of the text of a config.json (runs.config.to_json), sha256 (hex) over all that bears identity."""
    return hashlib.sha256(_PLACE.sub(r'\1', _FREE.sub('', config)).encode()).hexdigest()


def name_of(fields: dict[str, Any]) -> str:
    """The name of a row's folder: its fields in short, and 8 hex digits over them. Other rows have no part in it, so
    that it stays what it is where rows are added."""
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    shown = ','.join(f'{_short(field, fields)}={_shown(value)}' for field, value in fields.items())
    return f'{shown[:80] or "config"}-{digest}'


def _short(field: str, fields: dict[str, Any]) -> str:
    """As many of the last parts of its name as no other field of the row ends with."""
    parts = field.split('.')
    for count in range(1, len(parts)):
        end = '.'.join(parts[-count:])
        if not any(other != field and f'.{other}'.endswith(f'.{end}') for other in fields):
            return end
    return field


def _shown(value: Any) -> str:
    text = 'x'.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return _STRANGE.sub('_', text)[:24]
