"""Text that always parses: which tokens a grammar lets come next, on the host, by the library llguidance.

The prompt is the beginning of the text that is parsed. (A grammar of what follows alone has a first rule that takes any
prompt.) The named grammars are bounded in the nesting and the length of single expressions, so that no text of theirs
meets a limit of its parser.

A text ends within its budget of tokens, as far as decoding/endings.py finds a way to its end: where few tokens are
left, those that leave no way to end in time are not allowed.
"""

import itertools
import keyword
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aigc_jax.core.errors import UserError, first_line, near
from aigc_jax.core.files import SUFFIXES, read_text
from aigc_jax.data.tokenizers import END, Tokenizer, bytes_of_letters
from aigc_jax.decoding import endings

_INDENT = 4  # spaces a level
_LEVELS = 4  # of Python's statements: 0 to 3
_NESTING = {'json': 16, 'arithmetic': 6, 'python': 4}  # brackets within brackets
_NEAR = 32  # tokens to spare below which each token's way to the end is looked at; more than one token can add


class Grammar:
    """A grammar over the texts that a tokenizer can spell.

    name: 'json', one value; 'arithmetic', one expression of Python in numbers, + - * / ** and parentheses (it parses;
    that it divides by zero is not ruled out); 'python', lines of a subset of Python that ast.parse and compile take
    without a warning; or FILE.lark, a grammar in Lark's notation as llguidance reads it.

    Raises UserError for another name, a file that cannot be read or is no grammar, and a tokenizer of words, or of
    characters that lack one of those that the grammar cannot do without.
    """

    def __init__(self, name: str, tokenizer: Tokenizer):
        import llguidance

        self.name, self.vocab_size, self.end = name, tokenizer.vocab_size, tokenizer.end
        self._tokenizer = tokenizer
        rules, needs = _read(name)
        if tokenizer.kind not in ('byte', 'char', 'bpe'):
            why = 'words' if tokenizer.kind == 'word' else f'tokens of kind {tokenizer.kind}'
            raise UserError(f'grammar={name}: {why} cannot spell every text; the tokenizer must be byte, char or bpe')
        lacking = sorted(set(needs) - set(tokenizer.pieces)) if tokenizer.kind == 'char' else []
        if lacking:
            raise UserError(
                f'grammar={name}: the characters that the model was trained with lack {"".join(lacking)!r}'
            )
        spelled = _Spelled(tokenizer)
        self.columns = len(spelled.tokens)
        self.halves = [token.decode(errors='ignore').encode() != token for token in spelled.tokens]
        single = {token: i for i, token in enumerate(spelled.tokens) if len(token.decode(errors='replace')) == 1}
        # Of the tokens that spell one character, those that a text can need to be ended.
        self._letters = [single[c] for c in map(str.encode, needs) if c in single] if needs else [*single.values()]
        self._letters.sort()
        library = llguidance.LLTokenizer(llguidance.TokenizerWrapper(spelled), n_vocab=self.columns)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        # Where the text is forced, too, its tokens are drawn: whichever spell it may come.
        rules += '\n%llguidance {"no_forcing": true}\n'
        self._first = llguidance.LLMatcher(library, rules, log_level=0, limits=limits)
        if self._first.is_error():
            raise UserError(f'grammar={name}: {first_line(self._first.get_error())}')
        self._begun: dict[tuple[int, ...], tuple] = {}

    def begin(self, prompts: Sequence[Sequence[int]]) -> 'Matchers':
        """For texts that begin with these tokens. Raises UserError where no text of the grammar does."""
        prompts = [tuple(map(int, prompt)) for prompt in prompts]
        for prompt in prompts:
            if prompt not in self._begun:
                self._begun[prompt] = self._read(prompt)
        return Matchers(self, [self._begun[prompt] for prompt in prompts])

    def way_to_end(self, matcher, before: Sequence[int], most: int | None = None) -> list[int] | None:
        return endings.way_to_end(matcher, before, self._letters, self.columns - 1, most)

    def _read(self, prompt: tuple[int, ...]) -> tuple:
        """(matcher behind the prompt, the prompt, a way to end the text, whether it still ends it)."""
        matcher = self._first.deep_copy()
        way = self.way_to_end(matcher, [])
        known, way = way is not None, way or []
        for i, token in enumerate(prompt):
            if not matcher.try_consume_tokens([token]):
                before, behind = self._tokenizer.decode(prompt[:i]), self._tokenizer.decode(prompt[i:])
                place = f'behind {before[-40:]!r}' if before else 'its first part'
                raise UserError(
                    f'prompt: no text of grammar={self.name} begins with it: {place} may not be {behind[:20]!r}'
                )
            found = self.way_to_end(matcher, way)
            known, way = found is not None, way if found is None else found
        return matcher, prompt, way, known


class Matchers:
    """Where each of n texts stands in a grammar.

    closed: (n,) bool, whether a token was ruled out because it left no way to end in time.
    """

    def __init__(self, grammar: Grammar, read: list[tuple]):
        import llguidance

        self._grammar, self._matchers = grammar, [matcher.deep_copy() for matcher, *_ in read]
        self._written, self._ways = [[*prompt] for _, prompt, *_ in read], [way for *_, way, _ in read]
        self._known, self._ends = [known for *_, known in read], int(grammar.end is not None)
        self.closed, self._left = np.zeros(len(read), bool), None
        # A matcher alone is called directly: threads would cost more than its mask.
        self._executor = llguidance.LLExecutor() if len(read) > 1 else None
        self._bits = np.zeros((len(read), -(-grammar.columns // 32)), np.int32)

    def least(self) -> list[int]:
        """The tokens that each text takes to end, its end token too, as far as a search found; 0: it found no way."""
        return [known * (len(way) + self._ends) for known, way in zip(self._known, self._ways, strict=True)]

    def allowed(self, alive: np.ndarray | None = None, left: int | None = None) -> np.ndarray:
        """(n, vocab_size) bool: what may come next; the end token where the text may end, alone where it is finished.
        No token of a text that is finished where the tokenizer has no end, or that is not alive (n,); None: all are.
        left: the tokens that a text may still get, within which it is to end; None, each time: any number.
        Raises UserError where no token of the tokenizer can go on with a text."""
        from llguidance import numpy as masks

        self._left = left
        rows = range(len(self._matchers)) if alive is None else np.flatnonzero(alive).tolist()
        self._bits[:] = 0
        if self._executor and rows:
            masks.fill_next_token_bitmask_par(self._executor, [(self._matchers[i], i) for i in rows], self._bits)
        elif rows:
            masks.fill_next_token_bitmask(self._matchers[0], self._bits)
        allowed = np.unpackbits(self._bits.view(np.uint8), axis=1, bitorder='little')
        allowed = allowed[:, : self._grammar.vocab_size].astype(bool)
        for i in rows:
            if not allowed[i].any() and not self._matchers[i].is_accepting():
                self._fail(i)
            if left is not None and left - len(self._ways[i]) - self._ends <= _NEAR:
                self._leave_time(i, allowed[i], left - 1 - self._ends)
        return allowed

    def _leave_time(self, i: int, allowed: np.ndarray, most: int) -> None:
        """Takes from `allowed` (vocab_size,) the tokens after which text i cannot end within `most` others."""
        grammar, matcher, way = self._grammar, self._matchers[i].deep_copy(), self._ways[i]
        late, others = [], {}
        for token in np.flatnonzero(allowed).tolist():
            if token == grammar.end:
                continue
            matcher.consume_token(token)
            if endings.tail(matcher, way, grammar.columns - 1, most) is None:
                # Tokens after which the same may come end alike, but for letters of which some bytes are still to come.
                kind = matcher.compute_bitmask(), token if grammar.halves[token] else None
                if matcher.is_error():  # nothing may
                    late.append(token)
                    matcher = self._matchers[i].deep_copy()
                    continue
                if kind not in others:
                    others[kind] = grammar.way_to_end(matcher, way, most)
                if others[kind] is None:
                    late.append(token)
            matcher.rollback(1)
        # Where none leaves a way, the text is cut off, unless it may end here.
        if late and (len(late) < allowed.sum() or matcher.is_accepting()):
            allowed[late] = False
            self.closed[i] = True

    def consume(self, tokens: np.ndarray, alive: np.ndarray) -> None:
        """Appends tokens (n,) to the texts where alive (n,). Raises ValueError for a token that is not allowed."""
        for i in np.flatnonzero(alive):
            token = int(tokens[i])
            if not self._matchers[i].consume_token(token):
                raise ValueError(f'grammar={self._grammar.name}: text {i} may not go on with token {token}')
            self._written[i].append(token)
            if self._left is not None and token != self._grammar.end:
                way = self._grammar.way_to_end(self._matchers[i], self._ways[i], self._left - 1 - self._ends)
                self._known[i], self._ways[i] = way is not None, self._ways[i] if way is None else way

    def may_end(self) -> np.ndarray:
        """(n,) bool: what is written is a whole text of the grammar."""
        return np.array([matcher.is_accepting() for matcher in self._matchers])

    def finished(self) -> np.ndarray:
        """(n,) bool: it is, and nothing can follow; or its end token was written."""
        return np.array([matcher.is_stopped() and matcher.is_accepting() for matcher in self._matchers])

    def _fail(self, i: int) -> None:
        grammar, matcher = self._grammar, self._matchers[i]
        text = grammar._tokenizer.decode(self._written[i])
        error = first_line(matcher.get_error())
        reason = 'the tokenizer has no token that can follow' if error.startswith('NoExtension') else error
        raise UserError(f'grammar={grammar.name}: after {text[-40:]!r}: {reason}')


class _Spelled:
    """What llguidance asks of a tokenizer: the bytes of each token, and which one is the end."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        if tokenizer.kind == 'byte':
            tokens = [bytes([byte]) for byte in range(256)]
        elif tokenizer.kind == 'bpe':
            byte = bytes_of_letters()
            tokens = [bytes(byte[letter] for letter in piece) for piece in tokenizer.pieces]
        else:
            # A byte that was no UTF-8 is a lone surrogate, and no text has it: it stands for nothing here.
            tokens = [piece.encode(errors='ignore') for piece in tokenizer.pieces]
        # The library wants an end: where there is none, a token behind the vocabulary. No text has other special ones.
        special = [*(spelling.encode() for spelling in tokenizer.special_ids if spelling != END), END.encode()]
        self.tokens = [*tokens, *special]
        self.special_token_ids = [len(tokens) + i for i in range(len(special))]
        self.eos_token_id = self.special_token_ids[-1]

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError  # asked for texts that a grammar forces alone


def _read(name: str) -> tuple[str, str]:
    """The rules, and the characters that a text, once begun, can need to be ended."""
    if name in NAMED:
        write, needs = NAMED[name]
        return '\n'.join(write()) + '\n', needs
    if not name.endswith(('.lark', *('.lark' + suffix for suffix in SUFFIXES))):
        raise UserError(f'grammar: {name!r}{near(name, [*NAMED, "FILE.lark"])}')
    return read_text(pathlib.Path(name).expanduser(), 'grammar: ').replace('\r\n', '\n'), ''


def _json() -> Iterator[str]:
    """RFC 8259, with at most one space or indented line break where space may be, and numbers of some 16 digits."""
    yield 'start: value_0'
    for d in range(_NESTING['json']):
        yield f'value_{d}: object_{d} | array_{d} | scalar'
        yield f'object_{d}: "{{" SPACE? "}}" | "{{" SPACE? member_{d} ("," SPACE? member_{d})* SPACE? "}}"'
        yield f'member_{d}: STRING ":" SPACE? value_{d + 1}'
        yield f'array_{d}: "[" SPACE? "]" | "[" SPACE? value_{d + 1} ("," SPACE? value_{d + 1})* SPACE? "]"'
    yield f'value_{_NESTING["json"]}: scalar'
    yield r"""
scalar: STRING | NUMBER | "true" | "false" | "null"
SPACE: / |\n {0,32}/
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt]|\\u[0-9a-fA-F]{4})*"/
NUMBER: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,3})?/"""


def _arithmetic() -> Iterator[str]:
    """An exponent is one digit, so that the value of no expression is long in coming."""
    last = _NESTING['arithmetic']
    yield 'start: sum_0'
    for d in range(last + 1):
        yield f'sum_{d}: product_{d} (PLUS product_{d}){{0,15}}'
        yield f'product_{d}: factor_{d} (TIMES factor_{d}){{0,15}}'
        yield f'factor_{d}: "-"? atom_{d} (POWER EXPONENT)?'
        yield f'atom_{d}: NUMBER' + (f' | "(" sum_{d + 1} ")"' if d < last else '')
    yield r"""
PLUS: / ?[+-] ?/
TIMES: / ?[*\/] ?/
POWER: / ?\*\* ?/
EXPONENT: /-?[0-9]/
NUMBER: /(0|[1-9][0-9]{0,8})(\.[0-9]{1,8})?/"""


def _python() -> Iterator[str]:
    """Statements by level, and by whether `return`, and `break` and `continue`, may stand there."""
    yield 'start: statement_0_0_0+'
    for level, function, loop in itertools.product(range(_LEVELS), (0, 1), (0, 1)):
        yield from _statements(level, function, loop)
    yield from _parameters()
    for d in range(_NESTING['python'] + 1):
        yield from _expressions(d, d == _NESTING['python'])
    reserved = '|'.join([*keyword.kwlist, '__debug__'])
    yield rf"""
assignment: target (", " target){{0,2}} " = " (target " = ")? test_0 (", " test_0)?
augmented: target OPERATE test_0
target: NAME | NAME trailer_0{{0,3}} ("." NAME | "[" index_0 "]")
called: NAME trailer_0{{0,3}} "(" arguments_0? ")"
import: "import " module (" as " NAME)? | "from " module " import " NAME (", " NAME){{0,3}}
module: MODULE ("." MODULE){{0,3}}
OPERATE: / (\+|-|\*|\/|\/\/|%|\*\*)= /
COMPARE: / (==|!=|<|<=|>|>=|in|not in) /
COMMENT: /#( [^\x00-\x1f\x7f:=]{{1,100}})?/
DOCUMENT: /\"\"\"([^"\\\x00-\x1f\x7f]|\n)*\"\"\"/
STRING: /"([^"\\\x00-\x1f\x7f]|\\[nt\\"'])*"/ | /'([^'\\\x00-\x1f\x7f]|\\[nt\\"'])*'/
NUMBER: /(0|[1-9][0-9]{{0,15}})(\.[0-9]{{1,16}})?/
RESERVED: /{reserved}/
MODULE: /[a-z]{{1,24}}/ & ~RESERVED
NAME: /[A-Za-z_][A-Za-z0-9_]{{0,23}}/ & ~RESERVED"""


def _statements(level: int, function: int, loop: int) -> Iterator[str]:
    name, indent = f'{level}_{function}_{loop}', f'"{" " * _INDENT * level}" ' if level else ''
    compound = f' | compound_{name}' if level + 1 < _LEVELS else ''
    yield rf'statement_{name}: "\n"? ({indent}COMMENT "\n")? ({indent}simple_{name} "\n"{compound})'
    words = [word for word, fits in (('return', function), ('break', loop), ('continue', loop)) if fits]
    returned = ' | "return " test_0' if function else ''
    yield f'simple_{name}: assignment | augmented | called | import | "pass" | "raise " test_0 | DOCUMENT{returned}' + (
        ''.join(f' | "{word}"' for word in words)
    )
    if not compound:
        return

    def body(function, loop):
        return rf'":\n" statement_{level + 1}_{function}_{loop}+'

    here, looped = body(function, loop), body(function, 1)
    yield f'compound_{name}: ' + '\n  | '.join([
        f'{indent}"if " test_0 {here} ({indent}"elif " test_0 {here}){{0,3}} ({indent}"else" {here})?',
        f'{indent}"for " target (", " target)? " in " test_0 {looped}',
        f'{indent}"while " test_0 {looped}',
        f'{indent}"def " NAME "(" parameters? ")" {body(1, 0)}',
        f'{indent}"class " NAME ("(" NAME ")")? {body(0, 0)}',
        f'{indent}"try" {here} {indent}"except " NAME (" as " NAME)? {here}',
        f'{indent}"with " test_0 (" as " NAME)? {here}',
    ])  # fmt: skip


def _parameters() -> Iterator[str]:
    """At most three; no two can be the same name, since their first letters lie in different parts of the alphabet."""
    parts = 'a-hA-H', 'i-rI-R', 's-zS-Z_'
    for i, part in enumerate(parts):
        yield f'PARAMETER_{i}: /[{part}][A-Za-z0-9_]{{0,23}}/ & ~RESERVED'
    orders = [order for n in (1, 2, 3) for order in itertools.permutations(range(3), n)]
    sequences = [' ", " '.join(f'PARAMETER_{i}' for i in order) for order in orders]
    yield f'parameters: ({" | ".join(sequences)}) ("=" test_0)?'


def _expressions(d: int, last: bool) -> Iterator[str]:
    yield f'test_{d}: or_{d} (" if " or_{d} " else " or_{d})?'
    yield f'or_{d}: and_{d} (" or " and_{d}){{0,3}}'
    yield f'and_{d}: not_{d} (" and " not_{d}){{0,3}}'
    yield f'not_{d}: "not "? (sum_{d} (COMPARE sum_{d}){{0,2}} | NAME (" is None" | " is not None"))'
    yield f'sum_{d}: product_{d} ((" + " | " - ") product_{d}){{0,7}}'
    yield f'product_{d}: power_{d} ((" * " | " / " | " // " | " % ") power_{d}){{0,7}}'
    yield f'power_{d}: "-"? atom_{d} (" ** " "-"? atom_{d})?'
    simple = f'NAME trailer_{d}{{0,4}} | NUMBER | STRING ("." NAME "(" arguments_{d}? ")")? | "None" | "True" | "False"'
    if last:
        yield f'atom_{d}: NAME | NUMBER | STRING | "None" | "True" | "False"'
        return
    inner = f'test_{d + 1}'
    several = f'{inner} (", " {inner})*'
    loop = f'{inner} " for " NAME " in " or_{d + 1} (" if " or_{d + 1})?'
    pair = f'{inner} ": " {inner}'
    yield (
        f'atom_{d}: {simple} | "(" {inner} ")" | "(" {inner} ("," | (", " {inner})+) ")" '
        f'| "[" ({several} | {loop})? "]" | "{{" ({pair} (", " {pair})*)? "}}"'
    )
    yield f'trailer_{d}: "." NAME | "(" arguments_{d}? ")" | "[" index_{d} "]"'
    yield f'arguments_{d}: {several} (", " NAME "=" {inner})? | NAME "=" {inner}'
    yield f'index_{d}: {inner} | {inner}? ":" {inner}?'


NAMED: dict[str, tuple[Callable[[], Iterator[str]], str]] = {
    'json': (_json, '"{}[]:,0aeflnrstu'),
    'arithmetic': (_arithmetic, '()0'),
    'python': (_python, 'abcdefghijklmnopqrstuvwxyzN \n()[]{}:=,."\'0'),
}
