"""Questions and answers between two processes, one of which does not trust the other. `plain` has the values.

A function or an instance has no plain form. It stays with its owner, and the other process holds a `Remote`.
"""

import builtins
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import plain
from plain import Decoder, Encoder, Malformed, index, only

FRAME = 1 << 23  # bytes of one question or answer
_ERRORS = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
}


class Gone(Exception):
    """The other process has closed its end."""


class NotPlain(TypeError):
    """A value that has no plain form, and that the other process must not hold."""


class Remote:
    """Stands for an object of the other process: it can be called, and equals nothing but itself."""

    __slots__ = ('_remote_peer', '_remote_number', '_remote_true', '_remote_ended')

    def __init__(self, peer: 'Peer', number: int, true: bool):
        for name, value in zip(Remote.__slots__, (peer, number, true, False), strict=True):
            object.__setattr__(self, name, value)

    def __call__(self, *args, **kwargs):
        return self._remote_peer.ask('call', self._remote_number, args, kwargs)

    def __getattr__(self, name):
        if not self._remote_peer.attributes or name.startswith('__'):  # which Python itself looks for
            raise AttributeError(f'what another process holds has no attribute {name!r} here')
        return self._remote_peer.ask('get', self._remote_number, name)

    def __setattr__(self, name, value):
        if not self._remote_peer.attributes:
            raise AttributeError(f'what another process holds can be given no attribute {name!r} here')
        self._remote_peer.ask('set', self._remote_number, name, value)

    def __bool__(self):
        return self._remote_true


class Stream(Remote):
    """Stands for an iterator of the other process. It can be run through once, so it cannot give other values later."""

    __slots__ = ()

    def __iter__(self):
        if self._remote_ended:
            raise ValueError('an iterator of the program is iterated a second time')
        return self

    def __next__(self):
        if not self._remote_ended:
            try:
                return self._remote_peer.ask('next', self._remote_number)
            except Exception:
                object.__setattr__(self, '_remote_ended', True)
                raise
        raise StopIteration


class Peer:
    """One end: asks the other end about its objects, and answers its questions.

    operations: {name: function of one of our objects and values} that the other may ask for. trusting: whether the
    other may name any builtin function or class and hold any object of ours; else it may hold only functions and
    iterators. attributes: whether attributes of its objects can be read and set. An object with attributes could pass
    for a text or a list, and answer each question as suits it.
    """

    def __init__(
        self, read: int, write: int, operations: dict[str, Callable], trusting: bool, attributes: bool = False,
        objects: list = (),
    ):  # fmt: skip
        self.attributes = attributes
        self._read, self._write, self._operations, self._trusting = read, write, operations, trusting
        self._objects, self._numbers, self._others = list(objects), {}, {}

    def _name(self, x: Any) -> list:
        """The JSON of an object without a plain form: ours, or the other's."""
        if isinstance(x, Remote):
            return ['yours', x._remote_number]
        if not self._trusting:
            if vars(builtins).get(getattr(x, '__name__', None)) is x:
                return ['builtin', x.__name__]
            if not callable(x) and not isinstance(x, Iterator):
                raise NotPlain(f'{type(x).__name__} is no plain value')
        number = self._numbers.setdefault(id(x), len(self._objects))
        if number == len(self._objects):
            self._objects.append(x)
        try:
            true = bool(x)
        except Exception:
            true = True
        return ['mine', number, true, isinstance(x, Iterator)]

    def _named(self, x: list) -> Any:
        """The object of such JSON."""
        if x[0] == 'yours' and len(x) == 2:
            return self._objects[index(x[1], self._objects)]
        if x[0] == 'builtin' and self._trusting:
            return getattr(builtins, x[1])
        if x[0] != 'mine' or len(x) != 4:
            raise Malformed('an unknown tag')
        number, true, stream = only(int, x[1]), only(bool, x[2]), only(bool, x[3])
        if number not in self._others:
            self._others[number] = (Stream if stream else Remote)(self, number, true)
        return self._others[number]

    def ask(self, operation: str, number: int, *values: Any) -> Any:
        """What the other answers, or raises: a builtin exception of the name that it gives. Raises Gone, Malformed."""
        encoder = Encoder(self._name)
        self._send([operation, number, encoder(values)])
        while len(frame := self._receive()) == 3 and type(frame[0]) is str:
            self._answer(*frame)
        if len(frame) != 3 or type(frame[0]) is not bool or type(frame[1]) is not list:
            raise Malformed('no answer')
        (well, changes, x), decoder = frame, Decoder(self._named, encoder.known)
        for change in changes:
            decoder.refill(change)
        value = decoder(x)
        if well:
            return value
        if type(value) is not tuple or len(value) != 2 or type(value[0]) is not str or type(value[1]) is not tuple:
            raise Malformed('no exception')
        error = _error(*value)
        if isinstance(error, StopIteration) and operation != 'next':  # it would end a `map` over calls in silence
            error = RuntimeError('raised StopIteration')
        raise error

    def serve(self) -> None:
        """Answers until the other has gone."""
        try:
            while True:
                self._answer(*self._receive())
        except Gone:
            pass

    def _answer(self, operation: str, number: int, x: Any) -> None:
        decoder = Decoder(self._named)
        values = decoder(x)
        if type(operation) is not str or operation not in self._operations or type(values) is not tuple:
            raise Malformed('no question')
        before = [plain.parts(value) for value in decoder.known]
        encoder = Encoder(self._name, decoder.known)
        try:
            value = self._operations[operation](self._objects[index(number, self._objects)], *values)
            well = True
        except (Gone, Malformed):
            raise
        except Exception as error:
            value, well = _told(error), False
        try:
            changes = [
                [place, encoder.contents(known)]
                for place, (known, were) in enumerate(zip(decoder.known, before, strict=True))
                if _differ(plain.parts(known), were)
            ]
            self._send([well, changes, encoder(value)])
        except Gone:
            raise
        except Exception as error:  # too deep, too large, or what it overrides has raised
            self._send([False, [], Encoder(self._name)(_told(error))])

    def _send(self, frame: list) -> None:
        data = json.dumps(frame, separators=(',', ':')).encode()
        if len(data) > FRAME:
            raise ValueError(f'a value takes more than {FRAME} bytes')
        left = memoryview(len(data).to_bytes(4, 'big') + data)
        try:
            while left:
                left = left[os.write(self._write, left) :]
        except BrokenPipeError:
            raise Gone from None

    def _receive(self) -> list:
        size = int.from_bytes(self._exactly(4), 'big')
        if size > FRAME:
            raise Malformed(f'{size} bytes')
        data = self._exactly(size)
        try:
            frame = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Malformed(f'{type(error).__name__}: {error}') from None
        if type(frame) is not list:
            raise Malformed('no frame')
        return frame

    def _exactly(self, size: int) -> bytes:
        found = read_exactly(self._read, size)
        if found is None:
            raise Gone
        return found


def read_exactly(fd: int, size: int) -> bytes | None:
    """None: the end comes before."""
    found = bytearray()
    while len(found) < size:
        more = os.read(fd, min(size - len(found), 1 << 16))
        if not more:
            return None
        found += more
    return bytes(found)


def _differ(some: list, others: list) -> bool:
    return len(some) != len(others) or any(a is not b for a, b in zip(some, others, strict=True))


def _told(error: Exception) -> tuple[str, tuple]:
    """The name of the nearest builtin exception, and the arguments where they are atoms, else the message."""
    name = next(kind.__name__ for kind in type(error).__mro__ if _ERRORS.get(kind.__name__) is kind)
    args = error.args
    if not all(type(arg) in (int, *plain.ATOMS) for arg in args):
        args = (f'{error}',)
    return name, tuple(arg[:1000] if type(arg) is str else arg for arg in args[:9])


def _error(name: str, args: tuple) -> Exception:
    for kind in _ERRORS.get(name, Exception).__mro__:
        try:
            return kind(*args)
        except (TypeError, ValueError):  # UnicodeDecodeError takes five arguments, of their kinds
            pass
