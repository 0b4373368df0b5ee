"""Small programs from examples: a benchmark that a small model can be measured on, and its training text.

A program is a chain of one to DEPTH operators on a list of small whole numbers, a string, or a list of words, and
prints as one Python expression of x. A problem shows what it gives for SHOWN inputs and asks for the expression; it is
solved by one that gives the same for HIDDEN inputs and for all probes of its kind besides.

Chains are grown by one operator at a time; of those that give the same for all _PROBES inputs of their kind, the
probes, the shortest is kept, and those that hardly depend on x are dropped. So no two programs of one kind, in whatever
splits, are the same function as far as the probes tell, and no problem is solved by a program of its kind but its own.
An expression for strings may work for lists too: a problem that such an expression of the training text solves is left
out. Of the chains of DEPTH operators, which are many, a share is drawn. Chains of one
operator are all trained on; any other belongs to a split by the hash of its operators, and a chain that contains a
held-out one is not trained on either: no chain of operators of valid or test occurs in the training text, alone or
within a longer one.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any, NamedTuple

from aigc_jax.data.dataset import Dataset
from aigc_jax.data.sources import text
from aigc_jax.data.tokenizers import Tokenizer

DEPTH, SHOWN, HIDDEN = 4, 4, 12
START = 'f = lambda x: '
_SEED, _COPIES = 0, 8  # of the benchmark; training documents of each program
_PROBES, _DISTINCT, _LONGEST = 48, 8, 40  # inputs that tell functions apart; least distinct values; characters of one
_LETTERS = 'aaabcdeno'
_GROWN = 600  # chains of DEPTH − 1 operators that are made longer

# name: (kinds of the argument -> kinds of the value, the expression of it). L: list of numbers, I: number, S: string,
# W: list of strings.
OPERATORS = {
    'sort': ('LL WW', 'sorted({})'),
    'reverse': ('LL SS WW', '{}[::-1]'),
    'unique': ('LL WW', 'list(dict.fromkeys({}))'),
    'first2': ('LL SS WW', '{}[:2]'),
    'first3': ('LL SS WW', '{}[:3]'),
    'rest': ('LL SS WW', '{}[1:]'),
    'most': ('LL SS WW', '{}[:-1]'),
    'second': ('LL SS WW', '{}[::2]'),
    'increment': ('LL', '[v+1 for v in {}]'),
    'decrement': ('LL', '[v-1 for v in {}]'),
    'double': ('LL', '[v*2 for v in {}]'),
    'square': ('LL', '[v*v for v in {}]'),
    'halve': ('LL', '[v//2 for v in {}]'),
    'mod3': ('LL', '[v%3 for v in {}]'),
    'odd': ('LL', '[v for v in {} if v%2]'),
    'even': ('LL', '[v for v in {} if v%2<1]'),
    'large': ('LL', '[v for v in {} if v>4]'),
    'small': ('LL', '[v for v in {} if v<5]'),
    'sum': ('LI', 'sum({})'),
    'len': ('LI SI WI', 'len({})'),
    'max': ('LI', 'max({},default=0)'),
    'min': ('LI', 'min({},default=0)'),
    'upper': ('SS', '{}.upper()'),
    'title': ('SS', '{}.title()'),
    'letters': ('SW', 'list({})'),
    'split': ('SW', '{}.split()'),
    'drop_a': ('SS', "{}.replace('a','')"),
    'join': ('WS', "''.join({})"),
    'dash': ('WS', "'-'.join({})"),
    'uppers': ('WW', '[w.upper() for w in {}]'),
    'backward': ('WW', '[w[::-1] for w in {}]'),
    'heads': ('WW', '[w[:1] for w in {}]'),
    'long': ('WW', '[w for w in {} if len(w)>2]'),
    'lengths': ('WL', '[len(w) for w in {}]'),
}
_CALLS = {name: eval(f'lambda x: {form.format("x")}') for name, (_, form) in OPERATORS.items()}


class Program(NamedTuple):
    """kind: of its input, 'L' or 'S'; chain: names of OPERATORS in the order in which they act."""

    kind: str
    chain: tuple[str, ...]

    @property
    def text(self) -> str:
        expression = 'x'
        for name in self.chain:
            expression = OPERATORS[name][1].format(expression)
        return expression

    def __call__(self, x: Any) -> Any:
        for name in self.chain:
            x = _CALLS[name](x)
        return x


class Example(NamedTuple):
    """A program with inputs, and what it gives for each."""

    program: Program
    pairs: tuple[tuple[Any, Any], ...]

    @property
    def prompt(self) -> str:
        """The first SHOWN pairs as comments, and the start of the program."""
        return ''.join(f'# {show(x)} -> {show(y)}\n' for x, y in self.pairs[:SHOWN]) + START

    @property
    def document(self) -> str:
        return f'{self.prompt}{self.program.text}\n'

    def solved_by(self, program: Program) -> bool:
        """Whether a program, of this kind or the other, is right for every pair: `tests` without a sandbox."""
        try:
            return all(repr(program(x)) == repr(y) for x, y in self.pairs)
        except (TypeError, AttributeError):  # a string's method of a list, or a number of a letter
            return False

    @property
    def tests(self) -> str:
        """Python that comes to its end if `f`, which START and the completion define, is right for every pair."""
        return ''.join(f'assert repr(f({x!r})) == {repr(y)!r}\n' for x, y in self.pairs)


def show(value: Any) -> str:
    """repr without the spaces between items."""
    return '[' + ','.join(map(show, value)) + ']' if isinstance(value, list) else repr(value)


def draw_input(kind: str, random: Random) -> Any:
    """A list of 2 to 6 of the numbers 0 to 9, or a string of 1 to 3 words, which repeat letters often."""
    below = lambda n: int(random.random() * n)  # the one method of Random that promises the same numbers for ever
    if kind == 'L':
        return [below(10) for _ in range(2 + below(5))]
    return ' '.join(''.join(_LETTERS[below(9)] for _ in range(1 + below(4))) for _ in range(1 + below(3)))


def probes(random: Random) -> dict[str, list[Any]]:
    """{kind: the inputs that tell its programs apart}; those of the benchmark are the first draws of Random(_SEED)."""
    return {kind: [draw_input(kind, random) for _ in range(_PROBES)] for kind in 'LS'}


@functools.cache
def generate() -> tuple[Program, ...]:
    """All programs, in order of size; those of one size in a random order, always the same."""
    random = Random(_SEED)
    inputs_of = probes(random)
    seen = {(kind, *map(show, inputs)) for kind, inputs in inputs_of.items()}  # the identity
    layer, kept = [(Program(kind, ()), kind, inputs) for kind, inputs in inputs_of.items()], []
    for depth in range(1, DEPTH + 1):
        following = []
        for program, kind, values in layer[: _GROWN if depth == DEPTH else None]:
            for name, (kinds, _) in OPERATORS.items():
                to = next((pair[1] for pair in kinds.split() if pair[0] == kind), None)
                if to is None:
                    continue
                outputs = [_CALLS[name](value) for value in values]
                shown = [show(value) for value in outputs]
                key = (program.kind, *shown)
                if key in seen or max(map(len, shown)) > _LONGEST:
                    continue
                seen.add(key)
                if len(set(shown)) >= _DISTINCT:
                    following.append((Program(program.kind, (*program.chain, name)), to, outputs))
        layer = sorted(following, key=lambda _: random.random())
        kept += [program for program, _, _ in layer]
    return tuple(kept)


@functools.cache
def split(valid_percent: float, test_percent: float) -> dict[str, tuple[Program, ...]]:
    """{'train', 'valid', 'test': programs}; the percentages are of the chains of two operators or more."""
    by_split = {'train': [], 'valid': [], 'test': []}
    for program in generate():
        by_hash = text.split_of(_name(program), valid_percent, test_percent)
        by_split['train' if len(program.chain) == 1 else by_hash].append(program)
    held_out = {program.chain for name in ('valid', 'test') for program in by_split[name]}
    by_split['train'] = [program for program in by_split['train'] if held_out.isdisjoint(_within(program.chain))]
    return {name: tuple(programs) for name, programs in by_split.items()}


def load(cfg, tokenizer: Tokenizer | None) -> Dataset:
    """The benchmark's text as `cfg`, the config's `data`, says; the percentages are of its chains of operators."""
    text.check_percents(cfg)
    by_split = documents(cfg.valid_percent, cfg.test_percent)
    return text.from_splits(cfg, by_split, True, 'made by this package', tokenizer, 'by the operators of a program')


def documents(valid_percent: float, test_percent: float) -> dict[str, list[str]]:
    """{split: texts} of the benchmark: _COPIES of each program to train on, with other inputs each, one held out."""
    texts = {}
    for name, programs in split(valid_percent, test_percent).items():
        copies = range(_COPIES if name == 'train' else 1)
        texts[name] = [example(program, copy, SHOWN).document for copy in copies for program in programs]
    random = Random(_SEED)
    return {**texts, 'train': sorted(texts['train'], key=lambda _: random.random())}


@functools.cache
def problems(valid_percent: float, test_percent: float, most: int) -> tuple[Example, ...]:
    """Examples with SHOWN pairs, HIDDEN ones and the probes for at most so many programs of test, as many of each size
    as there are; no program of train solves one."""
    by_split, inputs_of = split(valid_percent, test_percent), probes(Random(_SEED))
    by_size = [[p for p in by_split['test'] if len(p.chain) == size] for size in range(1, DEPTH + 1)]
    in_turn = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*by_size)))
    # No copy that is trained on has the number −1.
    examples = (example(program, -1, SHOWN + HIDDEN, inputs_of[program.kind]) for program in in_turn)
    unknown = (one for one in examples if not any(map(one.solved_by, by_split['train'])))
    return tuple(itertools.islice(unknown, most))


def example(program: Program, copy: int, num_pairs: int, more: Iterable[Any] = ()) -> Example:
    """The program with different inputs, a function of the program and `copy`, and behind them those of `more`."""
    random = Random(f'{_hash(program)} {copy}')
    inputs = {}
    while len(inputs) < num_pairs:
        x = draw_input(program.kind, random)
        inputs[repr(x)] = x
    inputs |= {repr(x): x for x in more}
    return Example(program, tuple((x, program(x)) for x in inputs.values()))


def _name(program: Program) -> str:
    return ' '.join((program.kind, *program.chain))


def _hash(program: Program) -> int:
    return int.from_bytes(hashlib.sha256(_name(program).encode()).digest()[:8], 'big')


def _within(chain: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The chain and every part of it."""
    ends = range(len(chain) + 1)
    return (chain[i:j] for i in ends for j in ends if i < j)
