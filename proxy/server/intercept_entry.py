"""How a connection that means a registry begins: TLS in that one's name, and then it is one like all others.

Invariants:
- From its first moment on it is counted among the connections of clients (`Gate`); a handshake has its time.
- Each handshake has a task, owned here: `close` ends them and awaits them.
- A handshake that fails leaves nothing behind. Its exception would keep its connection, buffers and all, until the
  next full garbage collection: it is let go of here.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiohttp.web_protocol import RequestHandler

from proxy.server.gate import Gate
from proxy.server.tls import HANDSHAKE_TIMEOUT, SHUTDOWN_TIMEOUT

# Seconds for a client that is refused.
LAST_WORD = 2.0

_log = logging.getLogger("pullthrough.server")

# Makes an ordinary connection of the listener; told whether it is for a client that did not ask for this proxy.
Make = Callable[[bool], RequestHandler]


class Beginnings:
    """The connections of one listener that are no ordinary ones yet, and their tasks."""

    def __init__(self) -> None:
        self.entries: set[Entry] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Own a task."""
        task = asyncio.get_running_loop().create_task(work, name="a connection that begins")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for entry in list(self.entries):
            entry.transport.abort()
            entry.leave()


class Entry(asyncio.Protocol):
    """A connection until it is known what it is. A `Guest`."""

    def __init__(self, gate: Gate, beginnings: Beginnings, make: Make) -> None:
        self.gate = gate
        self.beginnings = beginnings
        self.peer = ""
        self._make = make
        # What is done for it, while nobody else has its transport.
        self.task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """The client's; there from `connection_made` on."""
        assert self._transport is not None  # noqa: S101 - see above
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - it is a stream
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.beginnings.entries.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio."""
        self.leave()
        if self.task is not None:
            self.task.cancel()

    def make_room(self) -> None:
        """See `Guest`."""
        self.transport.abort()

    def leave(self) -> None:
        """It is counted no longer."""
        self.beginnings.entries.discard(self)
        self.gate.leave(self)

    async def speak_tls(self, context: ssl.SSLContext, limit: float = HANDSHAKE_TIMEOUT) -> None:
        """Shake hands with the client, whose transport is paused, and hand it over; or close it."""
        early = _Early()
        try:
            inner = await asyncio.get_running_loop().start_tls(
                self.transport, early, context, server_side=True,
                ssl_handshake_timeout=limit, ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )  # fmt: skip
        except OSError as error:
            # TLS's errors and time-outs are such, too: its client's affair.
            _log.debug("a handshake with %s failed: %s", self.peer, type(error).__name__)
            error.__traceback__ = None
            inner = None
        except BaseException:
            self.transport.abort()
            self.leave()
            raise
        if inner is None or early.lost:
            self.transport.abort()
            self.leave()
            return
        self.hand_over(inner, True, early.data)
        if early.at_end:
            inner.close()

    def hand_over(self, transport: asyncio.Transport, intercepted: bool, data: Sequence[bytes]) -> None:
        """It is an ordinary connection from here on, which has received `data`."""
        self.leave()
        connection = self._make(intercepted)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        for piece in data:
            connection.data_received(piece)


class NamedEntry(Entry):
    """A connection that begins with TLS; by the name that it asks for it is known who is meant."""

    def __init__(self, gate: Gate, beginnings: Beginnings, make: Make, front: ssl.SSLContext) -> None:
        super().__init__(gate, beginnings, make)
        self._front = front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        try:
            # One that is too many hears of it, and is counted, once it has said what it wants.
            excess = self.gate.enter(self, self.peer, comes_again=True)
        except ConnectionError:
            self.transport.abort()
            return
        self.transport.pause_reading()
        self.beginnings.begin(self.speak_tls(self._front, HANDSHAKE_TIMEOUT if excess is None else LAST_WORD))


class _Early(asyncio.Protocol):
    """Keeps what a client sends before its connection is made."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.at_end = self.lost = False

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.data.append(data)

    def eof_received(self) -> None:
        """See asyncio."""
        self.at_end = True

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio."""
        self.lost = True
