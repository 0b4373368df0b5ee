"""Programming problems from files: HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021)."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from aigc_jax.core import records
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import read_text

_HUMANEVAL_STOPS = ('\nclass', '\ndef', '\n#', '\nif', '\nprint')  # Chen et al. 2021, section 2.2
_MBPP_STOPS = ('\nassert', '\n"""', '\nif __name__', '\nprint')


class Problem(NamedTuple):
    """A completion of `prompt` ends before the first of `stops`; it is right if `program` of it comes to its end."""

    name: str
    prompt: str
    stops: tuple[str, ...]
    program: Callable[[str], str]

    def cut(self, completion: str) -> str:
        """The completion up to the first stop text."""
        return completion[: min((at for stop in self.stops if (at := completion.find(stop)) >= 0), default=None)]


def humaneval(path: str) -> tuple[Problem, ...]:
    """HumanEval.jsonl, compressed or not: the prompt is the head of a function with its docstring. Raises UserError."""
    problems = []
    for where, row in _rows(pathlib.Path(path)):
        prompt, test, entry, name = (_text(row, field, where) for field in ('prompt', 'test', 'entry_point', 'task_id'))
        behind = f'\n{test}\ncheck({entry})\n'
        problems.append(Problem(name, prompt, _HUMANEVAL_STOPS, _around(prompt, behind)))
    return _some(problems, path)


def mbpp(path: str) -> tuple[Problem, ...]:
    """mbpp.jsonl or sanitized-mbpp.json: the prompt is a docstring of the task and its tests. Raises UserError."""
    problems = []
    for where, row in _rows(pathlib.Path(path)):
        tests = _texts(row, 'test_list', where)
        task = _text(row, 'text' if 'text' in row else 'prompt', where)
        before = [_text(row, 'test_setup_code', where)] if 'test_setup_code' in row else []
        before += _texts(row, 'test_imports', where) if 'test_imports' in row else []
        number = row.get('task_id')
        if not isinstance(number, int):
            raise UserError(f'{where}: the field "task_id" is no whole number')
        prompt = '"""\n' + '\n'.join([task.strip(), *tests]) + '\n"""\n'
        behind = '\n'.join(['', *before, *tests, ''])
        problems.append(Problem(f'MBPP/{number}', prompt, _MBPP_STOPS, _around(prompt, behind)))
    return _some(problems, path)


READERS = {'humaneval:': humaneval, 'mbpp:': mbpp}


def _around(before: str, behind: str) -> Callable[[str], str]:
    return lambda completion: f'{before}{completion}{behind}'


def _some(problems: list[Problem], path: str) -> tuple[Problem, ...]:
    if not problems:
        raise UserError(f'{path}: holds no problem')
    return tuple(problems)


def _rows(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """[('FILE, line N' or 'FILE, problem N', object)] of JSON lines, compressed or not, or of one JSON array."""
    text = read_text(path)
    if text.lstrip().startswith('['):
        try:
            rows = [(f'{path}, problem {i}', row) for i, row in enumerate(records.parse(text), 1)]
        except ValueError as error:
            raise UserError(f'{path}, line {getattr(error, "lineno", 1)}: is no JSON') from None
    else:
        rows = []
        for number, line in enumerate(text.split('\n'), 1):
            if line.strip():
                try:
                    rows.append((f'{path}, line {number}', records.parse(line)))
                except ValueError:
                    raise UserError(f'{path}, line {number}: is no JSON') from None
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f'{where}: is no JSON object')
    return rows


def _text(row: dict, field: str, where: str) -> str:
    if not isinstance(row.get(field), str):
        raise UserError(f'{where}: the field "{field}" is {"no text" if field in row else "missing"}')
    return row[field]


def _texts(row: dict, field: str, where: str) -> list[str]:
    value = row.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f'{where}: the field "{field}" is {"no list of texts" if field in row else "missing"}')
    return value
