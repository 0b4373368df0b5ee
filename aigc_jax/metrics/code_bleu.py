"""CodeBLEU of Python (Ren et al. 2020, arXiv:2009.10297), by the parser of the interpreter that runs.

It is 100 times the mean of four shares, each of a whole corpus with one reference a candidate: BLEU, BLEU with heavier
keywords, the subtrees of syntax and the items of data flow that agree. The published implementations, CodeXGLUE's and
the package `codebleu`, differ from the paper, and from each other, where this one does not:

- Both kinds of BLEU divide by what the candidate has and share one brevity penalty, so without keywords they are equal;
  theirs divides the weighted one by what the reference has (equation 2; CodeXGLUE's issue 191, codebleu's 52 and 85).
- A subtree or an item of the reference is matched by one of the candidate at most (equations 4 and 5); theirs counts
  each that occurs at all.
- Variables are numbered in the order of the text; theirs follows that of a Python set, which changes from run to run
  (codebleu's issue 35).
- Where no reference has data flow there is no such share, and CodeBLEU is the mean of the others; theirs is 0 in
  CodeXGLUE, and 1 in codebleu, which also makes 1 of a share that is 0 (its issue 59).
- Operators and kinds of constants are part of the syntax; theirs tells no + from − (codebleu's issue 32).
- An order of n-grams that no reference is long enough for is left out, so an exact copy always has 100.

A candidate that does not parse agrees in no subtree and no data flow; theirs parses around the mistake. The syntax tree
is another one than theirs, so values are comparable only with values of this module, and of one version of Python.
"""

import ast
import keyword
import math
import re
import token
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.core.notes import note
from aigc_jax.metrics import data_flow
from aigc_jax.metrics.intervals import Measurement, ratio, wilson
from aigc_jax.metrics.python_code import FAILURES

ORDERS = (1, 2, 3, 4)
KEYWORD_WEIGHT = 5  # of a keyword among the unigrams; any other token has 1
NAMES = ('code_bleu', 'code_ngrams', 'code_keywords', 'code_syntax', 'code_dataflow', 'code_parses')
_LEAST = 0.1  # of what agrees, in an order of n-grams where nothing does (Chen & Cherry 2014, smoothing 1)
_OPERATORS = sorted(map(re.escape, token.EXACT_TOKEN_TYPES), key=len, reverse=True)
_TOKEN = re.compile('|'.join([r'\w+', *_OPERATORS, r'\S']))


class Parts(NamedTuple):
    """What a text that parses has, with how many times: subtrees, by numbers, and items of data flow."""

    subtrees: Counter
    flow: Counter


def scores(written: Sequence[str], wanted: Sequence[str]) -> dict[str, Measurement]:
    """NAMES of candidates against their references, all but the last of 0 to 100; the last is the share of candidates
    that parse. Measured where the reference parses, which one that was cut off does not; a note counts the others."""
    numbers: dict[Any, int] = {}
    pairs = zip(written, wanted, strict=True)
    found = [(ours, parts(ours, numbers), theirs, parts(theirs, numbers)) for ours, theirs in pairs]
    found = [row for row in found if row[3]]
    if len(found) < len(wanted):
        note(f'code_bleu: {len(wanted) - len(found)} of {len(wanted)} targets are no whole Python, and are left out')
    if not found:
        return {}
    tokens = [(_TOKEN.findall(ours), _TOKEN.findall(theirs)) for ours, _, theirs, _ in found]
    weigh = lambda gram: KEYWORD_WEIGHT if len(gram) == 1 and keyword.iskeyword(gram[0]) else 1
    shares = {
        'code_ngrams': {'value': 100 * bleu(tokens, lambda gram: 1), 'n': len(found)},
        'code_keywords': {'value': 100 * bleu(tokens, weigh), 'n': len(found)},
    }
    for name, of in (('code_syntax', lambda one: one.subtrees), ('code_dataflow', lambda one: one.flow)):
        total = np.array([of(theirs).total() for _, _, _, theirs in found])
        agree = np.array([(of(ours) & of(theirs)).total() if ours else 0 for _, ours, _, theirs in found])
        if total.any():
            shares[name] = ratio(100 * agree, total)
    mean = sum(share['value'] for share in shares.values()) / len(shares)
    parsed = wilson(sum(ours is not None for _, ours, _, _ in found), len(found))
    return {'code_bleu': {'value': mean, 'n': len(found)}, **shares, 'code_parses': parsed}


def parts(text: str, numbers: dict[Any, int]) -> Parts | None:
    """None where the text does not parse, or is nested too deep. numbers: of subtrees, the same for all texts."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of escapes and literals that a later Python will refuse
        try:
            tree = ast.parse(text)
            _leave_out_docstrings(tree)
            subtrees: Counter = Counter()
            _number(tree, numbers, subtrees)
            return Parts(subtrees, Counter(data_flow.items(tree)))
        except FAILURES:
            return None


def bleu(pairs: Sequence[tuple[list[str], list[str]]], weigh: Callable[[tuple[str, ...]], float]) -> float:
    """BLEU-4 of (candidate, reference), 0 to 1, with weighted n-grams: the geometric mean over the orders of
    Σ weight · clipped count / Σ weight · count of the candidates' n-grams, times the brevity penalty."""
    logs = []
    for order in ORDERS:
        agree = total = possible = 0
        for ours, theirs in pairs:
            has, wants = _grams(ours, order), _grams(theirs, order)
            agree += sum(weigh(gram) * count for gram, count in (has & wants).items())
            total += sum(weigh(gram) * count for gram, count in has.items())
            possible += len(wants)
        if order == 1 and not agree:
            return 0.0
        if possible:
            logs.append(math.log((agree or _LEAST) / (total or 1)))
    ours, theirs = (sum(map(len, side)) for side in zip(*pairs, strict=True))
    return min(1.0, math.exp(1 - theirs / ours)) * math.exp(sum(logs) / len(logs))


def _grams(tokens: list[str], order: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))


def _leave_out_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]


def _number(node: ast.AST, numbers: dict[Any, int], subtrees: Counter) -> int:
    """The number of a tree: the same for the same tree of types, without names and values. Those that have a branch are
    counted in `subtrees`."""
    below = tuple((field, _number(child, numbers, subtrees)) for field, child in _children(node))
    key = (type(node), type(node.value) if isinstance(node, ast.Constant) else None, below)
    number = numbers.setdefault(key, len(numbers))
    if below:
        subtrees[number] += 1
    return number


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.expr_context):
                yield field, child
