"""The two processes of a program: the candidate's, which runs it, and the judge's, which runs its tests.

Each is jailed before it comes here. It reads from descriptor 3, writes to 4, and tells on 5 how it ended. Only the
judge can tell that a program has passed: the candidate has no descriptor of the pipe on which it does.
"""

import builtins
import os
import sys
import types
from collections.abc import Callable
from typing import NoReturn

import kernel
from peer import Gone, Malformed, NotPlain, Peer

_READ, _WRITE, _END = 3, 4, 5
MESSAGE = 200  # characters
GONE, UNSUPPORTED = 'gone', 'unsupported'  # only the judge tells these

_OURS = frozenset('ctypes _ctypes fcntl folders jail kernel peer plain sides'.split())


def end(status: str, message: str = '', write=os.write, leave=os._exit) -> NoReturn:
    """Ends the process and tells why. It has its functions as defaults, for a program may have replaced those of os."""
    write(_END, f'{status}\n{message[:MESSAGE]}'.encode(errors='replace'))
    leave(0)


def candidate(text: str) -> NoReturn:
    """Runs a program to its end, and then answers the judge's questions."""
    space = _space()
    operations = {'global': _global, 'call': _call, 'get': getattr, 'set': setattr, 'next': next}
    peer = Peer(_READ, _WRITE, operations, trusting=True, objects=[space])
    _ended(lambda: (exec(_compiled(text, '<program>'), space), peer.serve()))


def judge(tests: str, names: list[str], classes: bool) -> NoReturn:
    """Runs tests as `sandbox.Program` has them; names that the candidate does not have stay undefined."""
    space = _space()
    peer = _Judge(_READ, _WRITE, {'call': _call, 'next': next}, trusting=False, attributes=classes)

    def run():
        peer.ask('global', 0, '__name__')  # is answered once the program has come to its end
        for name in names:
            try:
                space[name] = peer.ask('global', 0, name)
            except NameError:
                pass
        exec(_compiled(tests, '<tests>'), space)

    _ended(run, 'passed')


class _Judge(Peer):
    """Ends the process where an answer is missing or malformed, so that no `except` of a test can go on without it."""

    def ask(self, *question):
        try:
            return super().ask(*question)
        except Gone:
            end(GONE)
        except Malformed as error:
            end('failed', f'the program sent what is no plain value: {error}')
        except NotPlain as error:
            end(UNSUPPORTED, f'the tests hand over what cannot be: {error}')
        except MemoryError as error:
            end('memory', str(error))


def clear() -> None:
    """Removes, before the forks, what a program has no business with."""
    for name in [name for name in sys.modules if name.split('.')[0] in _OURS]:
        del sys.modules[name]
    sys.argv, sys.dont_write_bytecode = [''], True
    os.environ.clear()


def _space() -> dict:
    """The names of a new module, which is the main one."""
    module = sys.modules['__main__'] = types.ModuleType('__main__')
    kernel.deny(end)
    return module.__dict__


def _compiled(text: str, name: str):
    return compile(text, name, 'exec', dont_inherit=True)


def _call(function: Callable, args: tuple, kwargs: dict):
    return function(*args, **kwargs)


def _global(space: dict, name: str):
    try:
        return space[name] if name in space else getattr(builtins, name)
    except AttributeError:
        raise NameError(f'name {name!r} is not defined') from None


def _ended(run: Callable[[], None], status: str = '') -> NoReturn:
    message = ''
    try:
        run()
    except MemoryError as error:
        status, message = 'memory', str(error)
    except BaseException as error:  # whatever it raises, even SystemExit, it did not come to its end
        status = 'exited' if isinstance(error, SystemExit) else 'failed'
        message = ' '.join(f'{type(error).__name__}: {error}'.split())
    end(status, message)
