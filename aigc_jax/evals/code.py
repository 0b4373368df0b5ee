"""Metrics of generated Python programs."""

import ast
import math
import warnings
from collections.abc import Callable


def parses(text: str) -> bool:
    """Whether the text is a Python module by its grammar. Nothing is executed."""
    return _accepted(lambda: ast.parse(text))


def compiles(text: str) -> bool:
    """The same, and by the rules that the grammar lacks (a `return` outside of a function, say)."""
    return _accepted(lambda: compile(text, '<text>', 'exec', dont_inherit=True))


def _accepted(read: Callable[[], object]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of invalid escapes, and of `is` with a literal
        try:
            read()
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return False  # ValueError: a null byte, or a number of too many digits; the others: nested too deeply
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
