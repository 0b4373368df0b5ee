"""Functions of Python's standard library: with their docstrings and names as pairs, with their identifiers tagged."""

import ast
import copy
import functools
import inspect
import platform
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.data import infilling
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.sources import examples, reading, text
from aigc_jax.data.sources.example_files import COLUMNS, columns
from aigc_jax.data.sources.examples import TaggedText

HIDDEN = '_'  # the name of a function whose name is to be told
_LEAST_WORDS, _LEAST_LINES = 3, 3  # of a docstring and of a function, as CodeSearchNet has them
_COLUMNS = ('code', 'docstring', 'name')


class Function(NamedTuple):
    """code: without its docstring. docstring: its first paragraph, on one line; '' where there is none."""

    module: str
    name: str
    code: str
    docstring: str


def modules(cfg, tokenizer) -> Dataset:
    """`python-modules`: the source of the standard library as `python-stdlib` has it, but divided as `docstrings` and
    `identifiers` are, by the hash of each module's name.

    So a model that is trained on it and then on these has seen none of the functions that they hold out, unless they
    hold out more percent: training modules that hold a copy of such a function, apart from its comments and docstring,
    are left out.
    """
    text.check_percents(cfg)
    percents = cfg.valid_percent, cfg.test_percent
    sources = text.by_module()
    by_split = {split: [] for split in text.SPLITS}
    for module in sources:
        by_split[text.split_of(module, *percents)].append(module)
    told = {one.module for one in functions() if _is_told(one)}
    for split, percent in zip(text.SPLITS[1:], percents, strict=True):
        if percent and not told.intersection(by_split[split]):
            raise UserError(f'data.{split}_percent: {percent:g}; no module of docstrings falls into {split}: give more')
    held_out = {one.code for one in functions() if one.module not in by_split['train']}
    copies = _with_a_copy({module: sources[module] for module in by_split['train']}, held_out)
    by_split['train'] = [module for module in by_split['train'] if module not in copies]
    if copies:
        note(
            f'data.name={cfg.name}: {len(copies)} training modules are left out, for they hold copies of functions of '
            f'held-out ones: {", ".join(sorted(copies))}'
        )
    documents = {split: reading.distinct([sources[one] for one in every]) for split, every in by_split.items()}
    cut_off = [f'{split} {cfg[f"{split}_percent"]:g} %' for split in text.SPLITS[1:]]
    origin = f'Python {platform.python_version()}; {", ".join(cut_off)} of the modules, by the hash of their name'
    return text.from_splits(cfg, documents, True, text.PSF, tokenizer, origin)


def docstrings(cfg, tokenizer) -> Dataset:
    """`docstrings`: functions with a docstring; data.columns names two of code, docstring and name.

    As CodeSearchNet (Husain et al. 2019, section 2.1) chooses and cuts them: a docstring is its first paragraph and has
    three words or more, a function three lines or more, copies are left out, and so are special methods and names with
    `test`. Where `name` is a column, HIDDEN stands for it in the others. No module is in two splits, and no held-out
    example has the code or the docstring of a training example.
    """
    names = columns(cfg, _COLUMNS[:2])
    if unknown := set(names) - set(_COLUMNS):
        raise UserError(f'data.columns: {", ".join(sorted(unknown))}; docstrings has {", ".join(_COLUMNS)}')
    found = [function for function in functions() if _is_told(function)]
    by_split, origin = _divided(cfg, found, lambda function: {function.code, function.docstring})
    chosen = {split: [_pair(function, names) for function in every] for split, every in by_split.items()}
    return examples.pairs(cfg, chosen, text.PSF, tokenizer, origin, names)


def code_ways(cfg) -> tuple[bool, ...]:
    """Of each way that the pairs of `cfg` are read in, one or, with data.both_ways, two in turn (examples.pairs):
    whether what is to be written is Python. Of `docstrings` and of both ways the names of the columns say so; else
    data.code does."""
    if not text.is_code(cfg):
        return (False,)
    is_own = cfg.name == 'docstrings'
    source, target = columns(cfg, _COLUMNS[:2] if is_own else COLUMNS['pairs'])
    ways = (target, source) if cfg.both_ways else (target,)
    return tuple('code' in name for name in ways) if is_own or cfg.both_ways else (True,)


def identifiers(cfg, tokenizer) -> Dataset:
    """`identifiers`: functions, their docstrings left out, and whether each token is (part of) an identifier: CodeT5's
    identifier tagging (Wang et al. 2021, section 3.2). Words in strings and comments, and keywords, are none."""
    if cfg.columns:
        raise UserError(f'data.columns: {cfg.columns!r}; identifiers has no columns to choose from, so leave it ()')
    by_split, origin = _divided(cfg, functions(), lambda function: {function.code})
    chosen = {split: [_tagged(function.code) for function in every] for split, every in by_split.items()}
    return examples.tagged(cfg, chosen, text.PSF, tokenizer, origin)


@functools.cache
def functions() -> tuple[Function, ...]:
    """Those of the modules of the standard library, in the order of their modules, each once by its code."""
    once = {}
    for module, source in text.by_module().items():
        for function in functions_of(module, source):
            once.setdefault(function.code, function)
    return tuple(once.values())


def functions_of(module: str, source: str) -> Iterator[Function]:
    """The functions of a module and of its classes, with their first paragraphs; not those inside functions."""
    lines = source.split('\n')
    level = list(_parsed(source).body)
    while level:
        node = level.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = _function(module, node, lines)
            if function and not re.match('__.*__$', node.name) and 'test' not in node.name.lower():
                yield function
        else:
            level = [*(inner for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.stmt)), *level]


def _function(module: str, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Function | None:
    """None where its docstring shares a line with code, or nothing else is left of it."""
    first, last = node.lineno, node.end_lineno
    kept = range(first, last + 1)
    docstring = ast.get_docstring(node) or ''
    if docstring:
        begin, end = node.body[0].lineno, node.body[0].end_lineno
        if len(node.body) == 1 or begin == first or node.body[1].lineno == end or node.body[0].col_offset == 0:
            return None
        if lines[begin - 1][: node.body[0].col_offset].strip():
            return None
        kept = [number for number in kept if not begin <= number <= end]
    code = textwrap.dedent('\n'.join(lines[number - 1] for number in kept)).strip('\n') + '\n'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    if len([line for line in code.split('\n') if line.strip()]) < _LEAST_LINES:
        return None
    paragraph = re.split(r'\n\s*\n', inspect.cleandoc(docstring), maxsplit=1)[0]
    return Function(module, node.name, code, ' '.join(paragraph.split()))


def _is_told(function: Function) -> bool:
    """Whether its docstring tells enough of it to be an example of `docstrings`."""
    return len(function.docstring.split()) >= _LEAST_WORDS


def _with_a_copy(sources: dict[str, str], codes: Iterable[str]) -> set[str]:
    """The modules with a function, at any depth, that has the name and the syntax tree of one of `codes`."""
    wanted: dict[str, set[str]] = {}
    for code in codes:
        name, tree = next(_trees(_parsed(code)))
        wanted.setdefault(name, set()).add(tree())
    return {
        module
        for module, source in sources.items()
        if any(name in wanted and tree() in wanted[name] for name, tree in _trees(_parsed(source)))
    }


def _trees(tree: ast.AST) -> Iterator[tuple[str, Callable[[], str]]]:
    """(name, its syntax tree without decorators and docstring, as a text) of each function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, functools.partial(_tree, node)


def _tree(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    node = copy.copy(node)
    node.body, node.decorator_list = node.body[ast.get_docstring(node) is not None :] or node.body, []
    return ast.dump(node)


def _parsed(source: str) -> ast.Module:
    """The syntax tree; an empty one where it does not parse, as that of another version of Python."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of escapes in the library's own strings
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return ast.Module([], [])


def _pair(function: Function, names: tuple[str, str]) -> tuple[str, str]:
    row = function._asdict()
    if 'name' in names:
        row['code'] = re.sub(rf'\b{re.escape(function.name)}\b', HIDDEN, function.code)
        row['docstring'] = re.sub(rf'\b{re.escape(function.name)}\b', HIDDEN, function.docstring)
    return tuple(row[name] for name in names)


def _tagged(code: str) -> TaggedText:
    spans = tuple(infilling.identifiers(code, True))
    return TaggedText(code, spans, ('identifier',) * len(spans), 'other')


def _divided(cfg, found: Sequence[Function], keys: Callable[[Function], set[str]]) -> tuple[dict, str]:
    """The functions by split, by the hash of their module; a held-out one that has a key of one before is left out."""
    by_split, origin = examples.divided(cfg, {'': found}, lambda function: function.module, 'their module')
    seen, kept = set(), {}
    for split, every in by_split.items():
        kept[split] = [function for function in every if split == 'train' or not keys(function) & seen]
        seen.update(*map(keys, every))
    sizes = ', '.join(f'{len(every)} {split}' for split, every in kept.items() if every)
    version, modules = platform.python_version(), len({function.module for function in found})
    note(
        f'data.name={cfg.name}: functions of {modules} modules of Python {version}, {sizes}; another Python has others'
    )
    return kept, f'Python {version}; {origin}'
