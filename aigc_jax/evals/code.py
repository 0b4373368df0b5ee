"""Whether text is Python: nothing of it is run."""

import ast
import codeop
import warnings

# What the parser and the compiler raise for a text that is no Python, or nested too deep for them.
_FAILURES = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


def parses(text: str) -> bool:
    """Whether `text` is a Python module by the grammar of the interpreter that runs."""
    return _succeeds(ast.parse, text)


def compiles(text: str) -> bool:
    """Whether it also compiles, which refuses a `return` outside a function, two arguments of one name, …"""
    return _succeeds(lambda source: compile(source, '<text>', 'exec', dont_inherit=True), text)


def begins(text: str) -> bool:
    """Whether `text`, whole lines, is a module or may become one by what follows: an open bracket, string or block."""
    return parses(text) or _succeeds(lambda source: codeop.compile_command(source, symbol='exec'), text)


def _succeeds(function, text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of escapes and literals that a later Python will refuse
        try:
            function(text)
        except _FAILURES:
            return False
    return True
