"""The data flow of Python: which variables each occurrence of a variable has its value from, in a syntax tree.

After GraphCodeBERT (Guo et al. 2021, section 3) and CodeBLEU (Ren et al. 2020, section 3.3). A variable is a name: that
of an argument, a function, a class or an import, too. What is assigned to an attribute or an item of a variable flows
into the variable.
"""

import ast
from collections.abc import Callable, Iterable
from typing import NamedTuple

Place = tuple[int, int]  # line and column of an occurrence
Occurrence = tuple[str, Place]
State = dict[str, frozenset[Place]]  # where each variable may have got the value that it has

COMES, COMPUTED = 'comesFrom', 'computedFrom'
_TWICE = 4  # loops inside one another that are read twice each: what a model writes may be nested much deeper
Item = tuple[int, str, tuple[int, ...]]  # a variable, how, and from which variables; by their numbers


class _Flow(NamedTuple):
    name: str
    how: str
    sources: dict[Occurrence, None]  # in their order


def items(tree: ast.AST) -> list[Item]:
    """An item for each occurrence that has its value from others or gives it to them, in the order of the text.

    Variables are numbered in the order in which these items hold them, sources first. Raises RecursionError for trees
    that are nested too deep.
    """
    reader = _Reader()
    reader.visit(tree, {})
    given = {place for flow in reader.flows.values() for _, place in flow.sources}
    numbers: dict[str, int] = {}
    number = lambda name: numbers.setdefault(name, len(numbers))
    found = []
    for place, flow in sorted(reader.flows.items()):
        if flow.sources or place in given:
            sources = tuple(map(number, dict.fromkeys(name for name, _ in flow.sources)))
            found.append((number(flow.name), flow.how, sources))
    return found


class _Reader:
    """visit(node, state) reads a tree in the order in which it runs and changes `state`; loops are read twice, so that
    what a round leaves reaches the next one. flows: by the place of the occurrence."""

    def __init__(self):
        self.flows: dict[Place, _Flow] = {}
        self._loops = 0  # around what is read

    def visit(self, node: ast.AST | None, state: State) -> None:
        if node is not None:
            getattr(self, f'_{type(node).__name__}', self._other)(node, state)

    def _every(self, nodes: Iterable[ast.AST | None], state: State) -> None:
        for node in nodes:
            self.visit(node, state)

    def _other(self, node: ast.AST, state: State) -> None:
        self._every(ast.iter_child_nodes(node), state)

    def _add(self, name: str, place: Place, how: str, sources: Iterable[Occurrence]) -> None:
        self.flows.setdefault(place, _Flow(name, how, {})).sources.update(dict.fromkeys(sources))

    def _bind(self, name: str, place: Place, state: State, how: str, sources: Iterable[Occurrence] = ()) -> None:
        self._add(name, place, how, sources)
        state[name] = frozenset([place])

    def _Name(self, node: ast.Name, state: State) -> None:
        self._add(node.id, _place(node), COMES, _origins(node.id, state))
        state.setdefault(node.id, frozenset([_place(node)]))

    # Assignments

    def _assign(self, target: ast.AST, value: ast.AST, state: State, more: Iterable[Occurrence] = ()) -> None:
        if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
            both = [*target.elts, *value.elts]
            if len(target.elts) == len(value.elts) and not any(isinstance(one, ast.Starred) for one in both):
                for one, its in zip(target.elts, value.elts, strict=True):
                    self._assign(one, its, state, more)
                return
        self._store(target, [*more, *_names(value)], state)

    def _store(self, target: ast.AST, sources: list[Occurrence], state: State) -> None:
        match target:
            case ast.Name():
                self._bind(target.id, _place(target), state, COMPUTED, sources)
            case ast.Tuple() | ast.List():
                for one in target.elts:
                    self._store(one, sources, state)
            case ast.Starred() | ast.Attribute():
                self._store(target.value, sources, state)
            case ast.Subscript():
                self.visit(target.slice, state)
                self._store(target.value, sources, state)
            case _:  # such as the result of a call
                self.visit(target, state)

    def _Assign(self, node: ast.Assign, state: State) -> None:
        self.visit(node.value, state)
        for target in node.targets:
            self._assign(target, node.value, state)

    def _AugAssign(self, node: ast.AugAssign, state: State) -> None:
        self.visit(node.value, state)
        before = [origin for name, _ in _names(node.target)[:1] for origin in _origins(name, state)]
        self._assign(node.target, node.value, state, before)

    def _AnnAssign(self, node: ast.AnnAssign, state: State) -> None:
        self._every([node.annotation, node.value], state)
        if node.value:
            self._assign(node.target, node.value, state)

    def _NamedExpr(self, node: ast.NamedExpr, state: State) -> None:
        self.visit(node.value, state)
        self._assign(node.target, node.value, state)

    def _withitem(self, node: ast.withitem, state: State) -> None:
        self.visit(node.context_expr, state)
        if node.optional_vars:
            self._assign(node.optional_vars, node.context_expr, state)

    def _alias(self, node: ast.alias, state: State) -> None:
        self._bind(node.asname or node.name.partition('.')[0], _place(node), state, COMES)

    # Branches and loops

    def _If(self, node: ast.If, state: State) -> None:
        self.visit(node.test, state)
        self._branches([node.body, node.orelse], state)

    def _branches(self, bodies: Iterable[list[ast.stmt]], state: State) -> None:
        """One of the bodies runs."""
        ends = []
        for body in bodies:
            ends.append(dict(state))
            self._every(body, ends[-1])
        _become(state, ends)

    def _For(self, node: ast.For | ast.AsyncFor, state: State) -> None:
        self._loop(lambda: self._bind_each(node, state), node, state)

    _AsyncFor = _For

    def _bind_each(self, node: ast.For | ast.AsyncFor | ast.comprehension, state: State) -> None:
        self.visit(node.iter, state)
        self._store(node.target, _names(node.iter), state)

    def _While(self, node: ast.While, state: State) -> None:
        self._loop(lambda: self.visit(node.test, state), node, state)

    def _loop(self, begin: Callable[[], None], node: ast.For | ast.AsyncFor | ast.While, state: State) -> None:
        before, self._loops = dict(state), self._loops + 1
        for _ in range(2 if self._loops <= _TWICE else 1):
            begin()
            self._every(node.body, state)
        self._loops -= 1
        _become(state, [before, dict(state)])
        self._every(node.orelse, state)

    def _Try(self, node: ast.Try, state: State) -> None:
        before = dict(state)
        self._every(node.body, state)
        ends = []
        for handler in node.handlers:
            ends.append({})
            _become(ends[-1], [before, state])
            self.visit(handler, ends[-1])
        self._every(node.orelse, state)
        _become(state, [dict(state), *ends])
        self._every(node.finalbody, state)

    _TryStar = _Try

    def _ExceptHandler(self, node: ast.ExceptHandler, state: State) -> None:
        self.visit(node.type, state)
        if node.name:
            self._bind(node.name, _place(node), state, COMPUTED, _names(node.type))
        self._every(node.body, state)

    def _Match(self, node: ast.Match, state: State) -> None:
        self.visit(node.subject, state)
        ends = [dict(state)]
        for case in node.cases:
            ends.append(dict(state))
            for pattern in ast.walk(case.pattern):
                name = getattr(pattern, 'rest' if isinstance(pattern, ast.MatchMapping) else 'name', None)
                if name and isinstance(pattern, ast.pattern):
                    end = pattern.end_lineno, pattern.end_col_offset  # it begins where `Point` of `Point() as p` does
                    self._bind(name, end, ends[-1], COMPUTED, _names(node.subject))
            self._every([case.pattern, case.guard, *case.body], ends[-1])
        _become(state, ends)

    # Scopes of their own

    def _FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef, state: State) -> None:
        self._every([*node.decorator_list, node.returns], state)
        self._bind(node.name, _place(node), state, COMES)
        self._function(node.args, node.body, state)

    _AsyncFunctionDef = _FunctionDef

    def _Lambda(self, node: ast.Lambda, state: State) -> None:
        self._function(node.args, [node.body], state)

    def _function(self, arguments: ast.arguments, body: Iterable[ast.AST], state: State) -> None:
        inner = dict(state)
        named = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(named) - len(arguments.defaults)) + arguments.defaults
        named += [*filter(None, [arguments.vararg]), *arguments.kwonlyargs, *filter(None, [arguments.kwarg])]
        defaults += [*[None] * bool(arguments.vararg), *arguments.kw_defaults, *[None] * bool(arguments.kwarg)]
        for argument, default in zip(named, defaults, strict=True):
            self._every([argument.annotation, default], state)
            self._bind(argument.arg, _place(argument), inner, COMES, _names(default))
        self._every(body, inner)

    def _ClassDef(self, node: ast.ClassDef, state: State) -> None:
        self._every([*node.decorator_list, *node.bases, *node.keywords], state)
        self._bind(node.name, _place(node), state, COMES)
        self._every(node.body, dict(state))

    def _ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, state: State) -> None:
        inner = dict(state)
        for one in node.generators:
            self._bind_each(one, inner)
            self._every(one.ifs, inner)
        self._every([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt], inner)

    _SetComp = _GeneratorExp = _DictComp = _ListComp


def _place(node: ast.AST) -> Place:
    return node.lineno, node.col_offset


def _names(node: ast.AST | None) -> list[Occurrence]:
    """The variables of an expression, in the order of the text."""
    found = [one for one in ast.walk(node) if isinstance(one, ast.Name)] if node else []
    return [(one.id, _place(one)) for one in sorted(found, key=_place)]


def _origins(name: str, state: State) -> list[Occurrence]:
    return [(name, place) for place in sorted(state.get(name, ()))]


def _become(state: State, ends: Iterable[State]) -> None:
    """The state after one of several ways, of which it is not known which was taken."""
    joined: State = {}
    for end in ends:
        for name, places in end.items():
            joined[name] = joined.get(name, frozenset()) | places
    state.clear()
    state.update(joined)
