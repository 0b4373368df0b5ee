"""A star of plain TCP connections, from every process of a run to the first. They tell of failures and deaths.

A connection that closes without a goodbye is a death, which all notice at once; a line that is sent over it tells of a
failure, or carries a value that all are to know. So nobody waits in a collective for a process that will never come,
and a process that is merely slow, or stopped for a while, is waited for.

The address of the star and a random token go through the key-value store of JAX's coordination service. JAX's own
client ends a process with pages of C++ and SIGABRT as soon as the coordinator closes the connection or says that it
will (gRPC's server does so when this process is stopped for a minute and does not answer a ping). The client takes no
callback from Python (jaxlib 0.10 fails to convert its argument). So the client reaches the coordinator through a relay
in its own process, which leaves the client's side open.
"""

import contextlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from aigc_jax.core.errors import RunError

JOIN_SECONDS = 300  # from the start of JAX's service to the star
GRACE_SECONDS = 2  # that a process has to print an error of its own, or to reach the phase where another one failed
NOTED_SECONDS = 30  # after which one line says who is waited for
_KEY = 'aigc_jax/star'
_FRAME_HEAD, _FRAME_TYPE, _GOAWAY = 9, 3, 7  # bytes of the head of an HTTP/2 frame, the place of its type, a type
_HELLO_BYTES = 200  # at most that an unknown peer may send


def split_address(address: str) -> tuple[str, int]:
    """'HOST:PORT' or '[IPv6]:PORT' as (host, port)."""
    host, _, port = address.rpartition(':')
    return host.strip('[]'), int(port)


def ended(k: int) -> str:
    return f'process {k} has ended; the same command resumes'


class Relay:
    """Between JAX's client in this process and the coordinator; the client never sees the coordinator's side close.

    gone: called where a connection has closed and the coordinator takes no other one.
    """

    def __init__(self, coordinator: str, gone: Callable[[], None]):
        self._coordinator, self._gone = split_address(coordinator), gone
        self._clients: list[socket.socket] = []  # Python closes a socket that nothing refers to
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address = f'127.0.0.1:{self._listener.getsockname()[1]}'
        _thread(self._accept)

    def _accept(self) -> None:
        while True:
            _thread(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        try:
            coordinator = socket.create_connection(self._coordinator, timeout=20)
        except OSError:  # it has not begun yet: the client tries again
            return client.close()
        coordinator.settimeout(None)
        self._clients.append(client)
        for one in (client, coordinator):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _thread(self._answer, coordinator, client)
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                coordinator.sendall(data)
        with contextlib.suppress(OSError):
            coordinator.shutdown(socket.SHUT_RDWR)

    def _answer(self, coordinator: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), coordinator.makefile('rb') as file:
            while len(head := file.read(_FRAME_HEAD)) == _FRAME_HEAD:  # HTTP/2: RFC 9113, section 4.1
                frame = head + file.read(int.from_bytes(head[:3], 'big'))
                if frame[_FRAME_TYPE] != _GOAWAY:
                    client.sendall(frame)
        time.sleep(GRACE_SECONDS)  # the system may close the listening socket of a process that has ended last
        try:
            socket.create_connection(self._coordinator, timeout=20).close()
        except OSError:
            self._gone()


def _thread(target: Callable, *arguments) -> None:
    threading.Thread(target=target, args=arguments, name=f'star {target.__name__}', daemon=True).start()


class Star:
    """What both ends share. A thread listens to each connection, whose messages are lines of JSON.

    Each end has its own `gather`; its `_join` connects it, and its `_arrived` takes a value that has come.

    end(text, exit code, at_once) ends this process, since another one has ended or failed; say(text) prints a line.
    """

    def __init__(self, state, address: str, end: Callable[[str, int, bool], None], say: Callable[[str], None]):
        self._count, self._index = state.num_processes, state.process_id
        self._end, self._say = end, say
        self._news = threading.Condition()
        self._sending = threading.Lock()
        self._number = 0  # of the next gather
        self._peers: dict[int, socket.socket] = {}
        self._is_over = False  # the end of a process is no failure any more, or this process ends already
        self._own: tuple[str, int] | None = None  # the failure of this process that the others have been told
        self._join(state.client, address)

    def tell(self, text: str, exit_code: int) -> None:
        """The others are to end, too, with this text and exit code."""
        self._send_all(['end', self._index, text, exit_code])

    def failing(self, text: str, exit_code: int) -> None:
        """This process takes its failure to the next gather: the others come there, too, within seconds, or end."""
        self._own = text, exit_code
        self._send_all(['failing', self._number, self._index, text, exit_code])

    def say_goodbye(self) -> None:
        """From here on the end of a process is no failure."""
        self._is_over = True
        self._send_all(['bye'])

    def _listen(self, k: int, lines: BinaryIO) -> None:
        """Until process k closes its side."""
        try:
            for line in lines:
                if line.endswith(b'\n'):  # else it ended within the line
                    self._take(k, *json.loads(line))
        except OSError:
            pass
        except Exception as error:  # without this thread this process hears nothing of the other
            self._end(f'the connections between the processes: {type(error).__name__}: {error}', 1, True)
        self._told(k, ended(k), 1, True)

    def _take(self, k: int, kind: str, *rest) -> None:
        if kind == 'end':
            whose, text, exit_code = rest
            self._told(whose, text if text.startswith('process ') else f'process {whose}: {text}', exit_code, False)
        elif kind == 'failing':
            number, whose, text, exit_code = rest
            self._send_all(['failing', *rest], but=whose)
            _thread(self._end_unless_here, number, f'process {whose}: {text}', exit_code)
        elif kind == 'bye':
            self._is_over = True  # all have reached the end
        else:
            with self._news:
                self._arrived(k, *rest)
                self._news.notify_all()

    def _told(self, whose: int, text: str, exit_code: int, at_once: bool) -> None:
        """Another process has ended or failed. The first one that is reported is the cause."""
        with self._news:
            was_over, self._is_over = self._is_over, True
        if not was_over:
            if self._own:  # which the other has ended with
                text, exit_code = self._own
            self._send_all(['end', whose, text, exit_code], but=whose)
            _thread(self._end, text, exit_code, at_once)

    def _end_unless_here(self, number: int, text: str, exit_code: int) -> None:
        with self._news:
            if self._news.wait_for(lambda: self._number > number, GRACE_SECONDS):
                return
        self._end(text, exit_code, True)

    def _next(self) -> int:
        with self._news:
            self._number += 1
            self._news.notify_all()
            return self._number - 1

    def _wait(self, ready: Callable[[], bool], waited_for: Callable[[], str]) -> None:
        """Until ready(), which is called under the lock; the first process says who is waited for, if that is long."""
        if not self._news.wait_for(ready, NOTED_SECONDS):
            if self._index == 0:
                self._say(f'note: waits for {waited_for()}')
            self._news.wait_for(ready)

    def _send_all(self, message: list, but: int | None = None) -> None:
        data = json.dumps(message).encode() + b'\n'
        for k, peer in list(self._peers.items()):
            if k != but:
                # A handler of a signal may have interrupted its own thread while it sent.
                held = self._sending.acquire(timeout=1)
                try:
                    peer.sendall(data)
                except OSError:  # that process has ended; the listening thread notices
                    pass
                finally:
                    if held:
                        self._sending.release()


class Center(Star):
    """The end of the first process."""

    def _join(self, client, address: str) -> None:
        self._token, self._values = secrets.token_hex(16), {}
        bind = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS')
        host = split_address(bind)[0] if bind else ''
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ':' in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, dualstack_ipv6=both)
        _thread(self._accept)
        client.key_value_set(_KEY, json.dumps([self._listener.getsockname()[1], self._token]))
        end = time.monotonic() + JOIN_SECONDS
        with self._news:
            while missing := set(range(1, self._count)) - self._peers.keys():
                if not self._news.wait(max(0, end - time.monotonic())):
                    raise RunError(ended(min(missing)))

    def gather(self, name: str, value: Any) -> list:
        number = self._next()
        with self._news:
            values = self._values.setdefault(number, {})
            values[0] = [name, value]
            missing = lambda: ', '.join(map(str, sorted(set(range(self._count)) - values.keys())))
            self._wait(lambda: len(values) == self._count, lambda: f'process {missing()}, at {name!r}')
            del self._values[number]
        for k, (own, _) in sorted(values.items()):
            if own != name:
                raise RunError(f'process {k} is at {own!r}, process 0 at {name!r}: they run different programs')
        found = [values[k][1] for k in range(self._count)]
        self._send_all(['values', number, found])
        self._own = None
        return json.loads(json.dumps(found))

    def _arrived(self, k: int, number: int, name: str, value: Any) -> None:
        self._values.setdefault(number, {})[k] = [name, value]

    def _accept(self) -> None:
        while True:
            _thread(self._greet, self._listener.accept()[0])

    def _greet(self, stranger: socket.socket) -> None:
        """Listens to a peer that knows the token, and closes any other."""
        with stranger, contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            lines = _lines(stranger)
            token, k = json.loads(lines.readline(_HELLO_BYTES))
            if not hmac.compare_digest(str(token).encode(), self._token.encode()):
                return
            with self._news:
                if k in self._peers or k not in range(1, self._count):
                    return
                self._peers[k] = stranger
                self._news.notify_all()
            self._listen(k, lines)


class Ray(Star):
    """The end of every other process."""

    def _join(self, client, address: str) -> None:
        port, token = json.loads(_value(client, _KEY))
        self._results: dict[int, list] = {}
        try:
            self._peers[0] = socket.create_connection((split_address(address)[0], port), timeout=60)
        except OSError as error:
            raise RunError(f'process 0 cannot be reached at port {port}: {error.strerror or error}') from None
        lines = _lines(self._peers[0])
        self._send_all([token, self._index])
        _thread(self._listen, 0, lines)

    def gather(self, name: str, value: Any) -> list:
        number = self._next()
        self._send_all(['value', number, name, value])
        with self._news:
            self._wait(lambda: number in self._results, lambda: 'process 0')
            self._own = None
            return self._results.pop(number)

    def _arrived(self, k: int, number: int, values: list) -> None:
        self._results[number] = values


def _lines(connection: socket.socket) -> BinaryIO:
    """The lines that come over a connection."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A machine that vanishes closes nothing: it is noticed after half a minute.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 4}.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection.makefile('rb')


def _value(client, key: str) -> str:
    """The value of the key-value store, as soon as it is there."""
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)
        except Exception as error:  # JAX raises its own kinds
            if 'DEADLINE_EXCEEDED' not in str(error) or time.monotonic() > end:
                raise RunError(ended(0)) from None
