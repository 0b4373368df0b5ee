"""The rows of a sweep, each checked as the config that it is, before anything starts."""

import ast
import functools
import json
import operator
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from aigc_jax import tasks
from aigc_jax.core import schema, user_code
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import fields
from aigc_jax.studies import measurable, space
from aigc_jax.studies.sweeps import Row, Sweep, Trial, fingerprint, name_of

MOST_ROWS = 100_000
_MOST_KINDS = 16  # of rows that are asked for a metric
_APART = {'seed': 'give --seeds=N', 'num_seeds': 'give --seeds=N'}  # what no row sets


def load(
    config: str, overrides: list[tuple[str, str]], grid: list[tuple[str, str]] = (), seeds: int | None = None
) -> Sweep:  # fmt: skip
    """The sweep of 'FILE.py[:variant,…]': the rows of its sweep(), if it has one, with every combination of `grid`.

    overrides: [(field, text)] for all rows. grid: [(field, 'value,value,…')], of the command line. seeds: how many a
    row is repeated with, from the config's seed on; None: one. Raises UserError, for the first row that is wrong.
    """
    base = config_lib.load(config, overrides)
    rows = _rows(config, grid, seeds)
    if len(rows) > MOST_ROWS:
        raise UserError(f'sweep: {len(rows)} rows; at most {MOST_ROWS}')
    given = {field for field, _ in overrides}
    if twice := [field for row in rows for field in row if field in given]:
        raise UserError(f'--config.{twice[0]}: the sweep sets this field; leave out one of the two')
    if base.num_seeds > 1 and (seeds or 1) > 1:
        raise UserError(f'--seeds={seeds}: num_seeds is {base.num_seeds}, which repeats each row already; set one to 1')
    found, seen = [], {}
    resolver = Resolver(base)
    for number, own in enumerate(rows, 1):
        try:
            row = resolver.row(own)
        except UserError as error:
            raise UserError(f'sweep, row {number} of {len(rows)}, {_words(own)}: {_of_field(error)}') from None
        if (twin := seen.setdefault((row.fingerprint, row.total_steps), number)) != number:
            raise UserError(f'sweep: rows {twin} and {number} are the same config, {_words(own)}; remove one of them')
        found.append(row)
    numbers = tuple(range(base.seed, base.seed + (seeds or 1)))
    if numbers[-1] >= 2**31:
        raise UserError(f'--seeds={seeds}: seeds lie between −2**31 and 2**31 − 1')
    return Sweep(config, tuple(overrides), tuple(found), numbers, base.eval.best_metric)


def check_metric(sweep: Sweep, metric: str) -> None:
    """Raises UserError where the evaluations of no row will have the metric. Of rows that differ in numbers alone the
    first one is asked; of many others none."""
    kinds = {}
    for row in sweep.rows:
        kinds.setdefault(repr({field: v for field, v in row.fields.items() if type(v) not in (int, float)}), row)
    if len(kinds) > _MOST_KINDS:
        return
    error = None
    for row in kinds.values():
        try:
            config = resolved(Trial(row, sweep.seeds[0], pathlib.Path(), sweep.config, sweep.overrides))
            measurable.Measurable().check(metric, '', config, '--metric')
            return
        except UserError as found:
            error = error or found
    raise error


def overrides_of(trial: Trial) -> list[tuple[str, str]]:
    """[(field, text)] on top of the file of its config."""
    start = [(trial.into, str(trial.start.folder.absolute()))] if trial.start else []
    return [*trial.overrides, *texts(trial.row.fields), *start, ('seed', str(trial.seed))]


def resolved(trial: Trial) -> ConfigDict:
    """The config of a trial, as its process resolves it."""
    return config_lib.load(trial.config, overrides_of(trial))


def texts(row: dict[str, Any]) -> list[tuple[str, str]]:
    """[(field, text)], as the command line has them."""
    return [(field, value if isinstance(value, str) else repr(value)) for field, value in row.items()]


def _rows(config: str, grid: list[tuple[str, str]], seeds: int | None) -> list[dict[str, Any]]:
    path, _ = config_lib.file_and_argument(config)
    module = user_code.load(path, '--config')
    rows: Any = [{}]
    if hasattr(module, 'sweep'):
        with user_code.errors_of(path, '--config'):
            rows = module.sweep()
            if not isinstance(rows, (list, tuple)):
                raise TypeError(f'sweep() returns {type(rows).__name__}, not a list of rows')
            for row in rows:
                if not isinstance(row, dict) or not all(isinstance(field, str) for field in row):
                    raise TypeError(f'sweep() has the row {str(row)[:80]!r}; a row is {{field: value}}')
            json.dumps(rows)  # raises unless all values are plain
        if not rows:
            raise UserError(f'--config: sweep() of {path} returns no row')
    elif not grid and not seeds:
        raise UserError(f'--config: {path} has no sweep(); write one, or give --sweep.FIELD=VALUE,VALUE or --seeds=N')
    try:
        return space.product(rows, *(space.values(field, _options(field, text)) for field, text in grid))
    except ValueError as error:
        raise UserError(f'--sweep: {error}; leave out one of them') from None


def _options(field: str, text: str) -> list[Any]:
    """The values of '1e-3,3e-4' or 'hinge,wasserstein' or '(16,),(32,32)'."""
    found = _literal(f'[{text}]')
    if isinstance(found, str):
        found = [_literal(part.strip()) for part in text.split(',')]
    if not found or '' in found:
        raise UserError(f'--sweep.{field}: {text!r} lacks a value; give VALUE,VALUE')
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


class Resolver:
    """Rows on top of one checked config.

    A full check of a config takes milliseconds, and a sweep may have 10,000 rows. Numbers do not decide which fields a
    config has; names and kinds do. So of the rows that differ in numbers alone the first is resolved as a config file
    is, and the numbers of the others are checked each against its own field. The fields of an own task may depend on
    whole numbers as well; with one only floats are checked like that.
    """

    def __init__(self, base: ConfigDict):
        self._base, self._templates = base, {}
        self._kinds = (int, float) if base.task.name in tasks.TASKS else (float,)
        self._fixed = {'total_steps', 'steps_per_call'}

    def row(self, own: dict[str, Any]) -> Row:
        """Raises UserError."""
        for field, how in _APART.items():
            if field in own:
                raise UserError(f'{field}: no row sets it, for repeats are no part of a search; {how}')
        numbers = {field: v for field, v in own.items() if type(v) in self._kinds and field not in self._fixed}
        key = json.dumps({field: None if field in numbers else value for field, value in own.items()})
        if template := self._templates.get(key):
            return template.row(numbers)
        template = _Template(self._resolve(own), own, list(numbers), self._kinds)
        if template.numbers.keys() == numbers.keys():
            self._templates[key] = template
        self._fixed |= numbers.keys() - template.numbers.keys()
        return template.row(template.numbers)

    def _resolve(self, own: dict[str, Any]) -> ConfigDict:
        config = config_lib.resolved(self._base, texts(own))
        flat = config_lib.flatten(config)
        for field, value in own.items():
            if isinstance(value, str) and not isinstance(flat.get(field), str):
                raise UserError(f'{field}: {value!r} is a text; the field holds {flat.get(field)!r}')
        return config


class _Template:
    """The resolved config of a row, in whose text the numbers of others take the places of its own.

    numbers: those of its fields that are of these kinds, as they are resolved.
    """

    def __init__(self, config: ConfigDict, own: dict[str, Any], numbers: list[str], kinds: tuple[type, ...]):
        self._flat = flat = config_lib.flatten(config)
        self._own = {field: flat[field] if field in flat else _plain(config, field) for field in own}
        self.numbers = {field: self._own[field] for field in numbers if type(self._own[field]) in kinds}
        self._fields = {field: schema.find(fields.FIELDS, config, field) for field in self.numbers}
        marked, by_mark = config.to_dict(), {}
        for k, field in enumerate(self.numbers, 1):
            *parents, last = field.split('.')
            group = functools.reduce(operator.getitem, parents, marked)
            group[last] = mark = (-1.0 - 1e-9 * k) * 2.0**900  # a number that stands nowhere else
            by_mark[json.dumps(mark)] = field
        text = config_lib.to_json(ConfigDict(marked))
        parts = re.split('(' + '|'.join(map(re.escape, by_mark)) + ')', text) if by_mark else [text]
        self._parts = [by_mark[part] if k % 2 else part for k, part in enumerate(parts)]
        self._total_steps = config.total_steps

    def row(self, numbers: dict[str, Any]) -> Row:
        """That of the row with these numbers. Raises UserError."""
        numbers = {field: _as(type(self.numbers[field]), field, value) for field, value in numbers.items()}
        for field, value in numbers.items():
            config_lib.check_value(field, value)
            if self._fields[field] is not None:
                self._fields[field].check(field, value)
        config_lib.check_together(self._flat | numbers)
        parts = [json.dumps(numbers[part]) if k % 2 else part for k, part in enumerate(self._parts)]
        own = {field: numbers.get(field, value) for field, value in self._own.items()}
        return Row(name_of(own), own, fingerprint(''.join(parts)), self._total_steps)


def _as(kind: type, field: str, value: int | float) -> int | float:
    if kind is int and not float(value).is_integer():
        raise UserError(f'{field}: {value} is no whole number, which the field holds')
    return kind(value)


def _plain(config: ConfigDict, field: str) -> Any:
    """What a group holds, such as the options of an optimizer, as plain data."""
    for part in field.split('.'):
        config = config[part]
    return json.loads(config_lib.to_json(config))


def _words(row: dict[str, Any]) -> str:
    return str(row)[:200]


def _of_field(error: UserError) -> str:
    return str(error).removeprefix('--config.')
