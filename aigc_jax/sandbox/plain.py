"""Plain values as JSON, and back: the language of the two processes of a program, one of which may be hostile.

Decoding is strict and bounded. It gives exact builtin types, and `deque`, `Fraction` and `Decimal`, which it makes from
plain values. No code is sent, and no class.

An atom (None, bool, int, float, str) stands for itself. Anything else is a list that begins with its tag. A question
and its answer are an exchange. The lists, dicts, sets, deques and bytearrays of an exchange are numbered as they occur.
So an answer can refer to those of its question and say how the function has changed them.
"""

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEPTH = 100  # levels of nesting
_LONG = 2000  # bits of an int; longer ones are hexadecimal, which takes linear time
ATOMS = frozenset((type(None), bool, float, str))
_MUTABLE = {'l': list, 'd': dict, 's': set, 'q': deque, 'a': bytearray}
_TAGS = {kind: tag for tag, kind in _MUTABLE.items()}
_TYPES = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, type(None))
}
_VIEWS = {'keys': type({}.keys()), 'values': type({}.values()), 'items': type({}.items())}
# A subclass (Counter, a named tuple, an IntEnum) is sent as its base. These methods ignore what it overrides.
_BASES = {int: int.__int__, float: float.__float__, str: str.__str__} | {
    kind: kind for kind in (complex, bytes, bytearray, list, tuple, dict, set, frozenset, deque)
}


class Malformed(Exception):
    """A frame that is not of this language, or beyond its bounds."""


class Encoder:
    """Makes JSON of values. known: the values with a number, which grow. name: gives JSON of what has no plain form."""

    def __init__(self, name: Callable[[Any], list], known: list = ()):
        self.known, self._name = list(known), name
        self._numbers = {id(value): number for number, value in enumerate(self.known)}

    def __call__(self, x: Any, depth: int = DEPTH) -> Any:
        kind = type(x)
        if kind in ATOMS:
            return x
        if kind is int:
            return x if x.bit_length() < _LONG else ['i', format(x, 'x')]
        if depth <= 0:
            raise ValueError(f'a value is nested more than {DEPTH} deep')
        if kind in _TAGS:
            return self._mutable(x, x, depth)
        if kind is tuple or kind is frozenset:
            return ['t' if kind is tuple else 'f', *self._all(x, depth)]
        if kind is bytes:
            return ['b', x.decode('latin-1')]
        if kind is complex:
            return ['c', x.real, x.imag]
        if kind is range:
            return ['range', *self._all((x.start, x.stop, x.step), depth)]
        if kind is Fraction:
            return ['fraction', *self._all((x.numerator, x.denominator), depth)]
        if kind is Decimal:
            return ['decimal', str(x)]
        for tag, view in _VIEWS.items():
            if isinstance(x, view):
                return [tag, *self._all([part for item in x for part in item] if tag == 'items' else x, depth)]
        if kind is type and _TYPES.get(x.__name__) is x:
            return ['type', x.__name__]
        base = next((base for base in _BASES if isinstance(x, base)), None)
        if base is not None and type(plain := _BASES[base](x)) is base:
            return self._mutable(x, plain, depth) if base in _TAGS else self(plain, depth)
        return self._name(x)

    def contents(self, x: Any) -> list:
        """A numbered value in full, once more."""
        return self._full(x, DEPTH)

    def _mutable(self, x: Any, plain: Any, depth: int) -> list:
        number = self._numbers.setdefault(id(x), len(self.known))
        if number < len(self.known):
            return ['r', number]
        self.known.append(x)  # which keeps its id from another
        return self._full(plain, depth)

    def _full(self, x: Any, depth: int) -> list:
        return [_TAGS[type(x)], *self._all(parts(x), depth)]

    def _all(self, values: Any, depth: int) -> list:
        return [value if type(value) in ATOMS else self(value, depth - 1) for value in values]


class Decoder:
    """Makes values of JSON, even hostile. known: as in Encoder. named: the inverse of its `name`. Raises Malformed."""

    def __init__(self, named: Callable[[list], Any], known: list = ()):
        self.known, self._named = list(known), named

    def __call__(self, x: Any) -> Any:
        return self._strictly(lambda: self._value(x, DEPTH))

    def refill(self, change: Any) -> None:
        """Puts x, as by Encoder.contents, into a numbered value; change: [its number, x]."""
        self._strictly(lambda: self._refill(*change))

    def _strictly(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (MemoryError, Malformed):
            raise
        except Exception as error:  # a dict of lists, a number that is no Decimal, an odd number of keys and values, …
            raise Malformed(f'{type(error).__name__}: {error}') from None

    def _refill(self, number: Any, x: Any) -> None:
        value = self.known[index(number, self.known)]
        if not isinstance(value, _MUTABLE[x[0]]):
            raise Malformed('a value that has become another kind')
        _fill(value, _MUTABLE[x[0]], [self._value(part, DEPTH) for part in x[1:]])

    def _value(self, x: Any, depth: int) -> Any:
        if type(x) in ATOMS or type(x) is int:
            return x
        if type(x) is not list or not x or type(x[0]) is not str or depth <= 0:
            raise Malformed('no plain value')
        tag, depth = x[0], depth - 1
        if tag in _MUTABLE:
            value = _MUTABLE[tag]()
            self.known.append(value)
            _fill(value, _MUTABLE[tag], [self._value(part, depth) for part in x[1:]])
            return value
        if tag in ('t', 'f'):
            items = [self._value(part, depth) for part in x[1:]]
            return tuple(items) if tag == 't' else frozenset(items)
        if tag in ('keys', 'values', 'items'):
            items = [self._value(part, depth) for part in x[1:]]
            if tag == 'items':
                return dict(zip(items[::2], items[1::2], strict=True)).items()
            return dict.fromkeys(items).keys() if tag == 'keys' else dict(enumerate(items)).values()
        if tag in ('range', 'fraction'):
            values = [self._value(part, 1) for part in x[1:]]
            if {type(value) for value in values} != {int}:
                raise Malformed(f'a {tag} of other than ints')
            return range(*values) if tag == 'range' else Fraction(*values)
        if tag == 'c':
            real, imag = x[1:]
            return complex(only(float, real), only(float, imag))
        (one,) = x[1:] if len(x) == 2 else (None,)  # what `named` takes may have more
        if tag == 'r':
            return self.known[index(one, self.known)]
        if tag == 'b':
            return only(str, one).encode('latin-1')
        if tag == 'i':
            return int(only(str, one), 16)
        if tag == 'decimal':
            return Decimal(only(str, one))
        if tag == 'type':
            return _TYPES[one]
        return self._named(x)


def parts(x: Any) -> list:
    """What a mutable value holds, flat."""
    if isinstance(x, dict):
        return [part for item in dict.items(x) for part in item]
    return [x.decode('latin-1')] if isinstance(x, bytearray) else list(x)


def _fill(x: Any, kind: type, items: list) -> None:
    if kind is bytearray:
        (one,) = items
        x[:] = only(str, one).encode('latin-1')
    elif kind is list:
        list.__setitem__(x, slice(None), items)
    else:
        items = zip(items[::2], items[1::2], strict=True) if kind is dict else items
        kind.clear(x)
        (kind.extend if kind is deque else kind.update)(x, items)


def only(kind: type, x: Any) -> Any:
    if type(x) is not kind:
        raise Malformed(f'no {kind.__name__}')
    return x


def index(number: Any, of: list) -> int:
    if not 0 <= only(int, number) < len(of):
        raise Malformed('a number of nothing')
    return number
