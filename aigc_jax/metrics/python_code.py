"""Metrics of generated Python: whether it is any, without running it, and pass@k of what was run."""

import ast
import codeop
import math
import warnings
from collections.abc import Callable

# What the parser and the compiler raise for a text that is no Python, or nested too deep for them.
FAILURES = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


def parses(text: str) -> bool:
    """Whether `text` is a Python module by the grammar of the interpreter that runs."""
    return _succeeds(ast.parse, text)


def compiles(text: str) -> bool:
    """Whether it also compiles, which refuses a `return` outside a function, two arguments of one name, …"""
    return _succeeds(lambda source: compile(source, '<text>', 'exec', dont_inherit=True), text)


def may_become(what: Callable[[str], bool], text: str) -> bool:
    """Whether `text`, whole lines, `parses` or `compiles`, or may by what follows: an open bracket, string or block."""
    return what(text) or _succeeds(lambda source: codeop.compile_command(source, symbol='exec'), text)


def _succeeds(function, text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of escapes and literals that a later Python will refuse
        try:
            function(text)
        except FAILURES:
            return False
    return True


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): the probability that one of k samples is right, taken from n of which c are.

    Unbiased (Chen et al. 2021, eq. 1); the binomials are not formed.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f'n = {n}, c = {c}, k = {k}: 0 <= c <= n and 1 <= k <= n')
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
