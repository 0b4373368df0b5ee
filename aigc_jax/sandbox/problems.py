"""Programming problems from files: HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021)."""

import ast
import builtins
import pathlib
import symtable
from collections.abc import Callable
from typing import Any, NamedTuple

from aigc_jax.core import records
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import read_text
from aigc_jax.core.schema import Field
from aigc_jax.sandbox.sandbox import Program

# Of `eval`, of text.
FIELDS = {
    'problems': Field(
        str, '',
        doc='solved in the final evaluation: `programs`, `humaneval:FILE`, `mbpp:FILE`; empty: none',
    ),
    'problem_samples': Field(int, 10, least=1, doc='programs written for each problem, and executed'),
    'pass_k': Field(tuple, (1, 10), items=Field(int, least=1), doc='pass@k of these k, at most problem_samples'),
    'problem_tokens': Field(int, 128, least=1, doc='the most of each program'),
    'problem_temperature': Field(float, 0.8, least=0, doc='that the programs are drawn with; 0: the likeliest tokens'),
    'problem_beam': Field(int, 8, least=1, doc='of solved@beam; 1: there is none'),
}  # fmt: skip
_HUMANEVAL_STOPS = ('\nclass', '\ndef', '\n#', '\nif', '\nprint')  # Chen et al. 2021, section 2.2
_MBPP_STOPS = ('\nassert', '\n"""', '\nif __name__', '\nprint')


class Problem(NamedTuple):
    """A completion of `prompt` ends before the first of `stops`; it is right if `program` of it passes."""

    name: str
    prompt: str
    stops: tuple[str, ...]
    program: Callable[[str], Program]

    def cut(self, completion: str) -> str:
        """The completion up to the first stop text."""
        return completion[: min((at for stop in self.stops if (at := completion.find(stop)) >= 0), default=None)]


def humaneval(path: str) -> tuple[Problem, ...]:
    """HumanEval.jsonl, compressed or not: the prompt is the head of a function with its docstring. Raises UserError."""
    problems = []
    for where, row in _rows(path):
        prompt, test, entry, name = (_text(row, field, where) for field in ('prompt', 'test', 'entry_point', 'task_id'))
        head = _head(prompt)
        tests = f'{_without(entry, head)}\n{test}\ncheck({entry})\n'
        judged = _judged(prompt, tests, head, f'{where}: the field "test"')
        problems.append(Problem(name, prompt, _HUMANEVAL_STOPS, judged))
    return tuple(problems)


def mbpp(path: str) -> tuple[Problem, ...]:
    """mbpp.jsonl or sanitized-mbpp.json: the prompt is a docstring of the task and its tests. Raises UserError."""
    problems = []
    for where, row in _rows(path):
        tests = _texts(row, 'test_list', where)
        task = _text(row, 'text' if 'text' in row else 'prompt', where)
        before = [_text(row, 'test_setup_code', where)] if 'test_setup_code' in row else []
        before += _texts(row, 'test_imports', where) if 'test_imports' in row else []
        number = row.get('task_id')
        if not isinstance(number, int):
            raise UserError(f'{where}: the field "task_id" is no whole number')
        prompt = '"""\n' + '\n'.join([task.strip(), *tests]) + '\n"""\n'
        solution = _text(row, 'code', where) if 'code' in row else ''
        judged = _judged(prompt, '\n'.join([*before, *tests, '']), solution, f'{where}: the tests')
        problems.append(Problem(f'MBPP/{number}', prompt, _MBPP_STOPS, judged))
    return tuple(problems)


READERS = {'humaneval:': humaneval, 'mbpp:': mbpp}


def _judged(prompt: str, tests: str, solution: str, where: str) -> Callable[[str], Program]:
    """Programs of completions. A name that the tests use and do not define is the completion's.

    But the tests themselves import a module that the reference solution imports, and a builtin is Python's own unless
    the solution redefines it. solution: '' for none; a name like Node is then a class, and one like LIMIT is not.
    """
    try:
        used = _unbound(tests)
    except (SyntaxError, ValueError) as error:
        raise UserError(f'{where}: is no Python: {error}') from None
    body = _body(solution)
    imports = {
        (name.asname or name.name).partition('.')[0]: ast.unparse(node)
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names = {name for name in used - {*imports} if name in defined or not hasattr(builtins, name)}
    if body:
        classes = names & {node.name for node in body if isinstance(node, ast.ClassDef)}
    else:
        classes = {name for name in names if name[:1].isupper() and not name.isupper()}
    tests = ''.join(f'{line}\n' for name, line in imports.items() if name in used) + tests
    return lambda completion: Program(prompt + completion, tests, tuple(sorted(names)), bool(classes))


def _unbound(text: str) -> set[str]:
    """Names of the module that it uses and does not assign, import or define."""
    used, bound, tables = set(), set(), [symtable.symtable(text, '<tests>', 'exec')]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        top = table.get_type() == 'module'
        for symbol in table.get_symbols():
            if top or symbol.is_global():
                if symbol.is_assigned() or symbol.is_imported():
                    bound.add(symbol.get_name())
                if symbol.is_referenced():
                    used.add(symbol.get_name())
    return used - bound


def _body(text: str) -> list[ast.stmt]:
    """The statements of a module; [] of what is no Python."""
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError):
        return []


def _head(prompt: str) -> str:
    """The prompt as a module whose last function, which it only begins, does nothing; '' where it begins none."""
    ends = ('', '    pass\n', '        pass\n')
    return next((prompt + end for end in ends if _body(prompt + end)), '')


def _without(name: str, text: str) -> str:
    """A module without its function of that name: the tests may use what stands beside it."""
    return ast.unparse(ast.Module([node for node in _body(text) if getattr(node, 'name', '') != name], []))


def _rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    """[('FILE, line N' or 'FILE, problem N', object)] of JSON lines, compressed or not, or of one JSON array."""
    path = pathlib.Path(path)
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
    if not rows:
        raise UserError(f'{path}: holds no problem')
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
