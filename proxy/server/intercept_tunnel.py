"""A tunnel: bytes from a client to a server that it asked for by CONNECT, and back, which nobody looks into.

Invariants:
- It is dialled at addresses that are public, each judged when it is connected to: a name that leads elsewhere, at once
  or when it is looked up again, leads nowhere.
- What one side does not take is not read from the other. A side that has sent everything leaves the other one open.
- Nothing holds it for ever: it ends when nothing goes through for `idle` seconds.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from proxy.policy.intercept import tunnel_refusal

# Seconds for a connection to come about.
_CONNECT = 10.0
_BUFFER = 256 * 1024


class NotTunnelled(Exception):
    """No connection comes about; `status` is for the client, the message one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Side(asyncio.Protocol):
    """One of two: what it receives goes out at the other."""

    def __init__(self, moved: Callable[[int], object]) -> None:
        """`moved` is told how many bytes came in."""
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved = moved
        # What came before there was another side.
        self._early: list[bytes] = []
        self._at_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - it is a stream
        self.transport = transport
        transport.set_write_buffer_limits(_BUFFER)

    def join(self, other: "Side") -> None:
        """From now on what comes in goes out at `other`."""
        self.other = other
        for data in self._early:
            other.send(data)
        self._early.clear()
        if self.ended.done() and other.transport is not None:
            other.transport.close()
        elif self._at_end:
            other.send_end()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._moved(len(data))
        if self.other is None:
            self._early.append(data)
            return
        self.other.send(data)

    def eof_received(self) -> bool:
        """See asyncio: the other direction stays open, where there may be two of them (not in TLS)."""
        self._at_end = True
        if self.other is not None:
            self.other.send_end()
        return self.transport is not None and self.transport.can_write_eof()

    def connection_lost(self, _error: Exception | None) -> None:
        """See asyncio."""
        if not self.ended.done():
            self.ended.set_result(None)
        if self.other is not None and self.other.transport is not None:
            # What was sent to it goes out still.
            self.other.transport.close()

    def pause_writing(self) -> None:
        """See asyncio: whoever is here does not take what comes."""
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """See asyncio."""
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def send(self, data: bytes) -> None:
        """Send `data` to whoever is here."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def send_end(self) -> None:
        """There is nothing more to be sent."""
        if self.transport is None or self.transport.is_closing():
            return
        if self._at_end or not self.transport.can_write_eof():
            # Both directions are over, or cannot be apart.
            self.transport.close()
        else:
            self.transport.write_eof()


class Tunnel:
    """From a client, whose transport this takes over, to `host` and `port`."""

    def __init__(self, host: str, port: int, idle: float, look_ups: Executor) -> None:
        """`idle` in seconds; names are looked up in `look_ups`."""
        self._host = host
        self._port = port
        self._idle = idle
        self._look_ups = look_ups
        self.to_client = 0
        self._used = 0.0
        self._client = Side(self._from_client)
        self._server = Side(self._from_server)

    async def dial(self) -> None:
        """Connect to the server. Raises NotTunnelled."""
        loop = asyncio.get_running_loop()
        self._used = loop.time()
        try:
            async with asyncio.timeout(_CONNECT):
                await self._connect(await look_up(self._look_ups, self._host, self._port))
        except TimeoutError as error:
            raise NotTunnelled(504, "the server does not answer") from error
        except (OSError, UnicodeError) as error:
            # The latter of names that no resolver takes.
            raise NotTunnelled(502, "the server cannot be reached") from error

    async def run(self, transport: asyncio.Transport, head: bytes) -> None:
        """Send `head` to the client and carry bytes until both are done."""
        transport.set_protocol(self._client)
        self._client.connection_made(transport)
        self._client.send(head)
        self._client.join(self._server)
        self._server.join(self._client)
        try:
            if transport.is_closing():
                # It has been lost meanwhile, and nobody would be told again.
                return
            transport.resume_reading()
            while not (self._client.ended.done() and self._server.ended.done()):
                left = self._used + self._idle - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                # Where one of them has ended the other has what is left of its time to take the rest.
                await asyncio.wait([self._client.ended, self._server.ended], timeout=left)
        finally:
            self.abort()

    def abort(self) -> None:
        """End it at once."""
        for side in (self._client, self._server):
            if side.transport is not None:
                side.transport.abort()

    async def _connect(self, addresses: list[tuple[Any, ...]]) -> None:
        refused, failed = "", OSError("no address")
        for address in addresses:
            # What was looked up is what is dialled, so no later answer can be another one.
            if (why := tunnel_refusal(str(address[0]))) is not None:
                refused = why
                continue
            try:
                # One that does not answer leaves time for the others.
                async with asyncio.timeout(_CONNECT / 3):
                    await asyncio.get_running_loop().create_connection(lambda: self._server, address[0], address[1])
            except OSError as error:
                failed = error
            else:
                return
        if refused:
            raise NotTunnelled(403, f"nothing is tunnelled there ({refused})")
        raise failed

    def _from_client(self, _count: int) -> None:
        self._used = asyncio.get_running_loop().time()

    def _from_server(self, count: int) -> None:
        self._used = asyncio.get_running_loop().time()
        self.to_client += count


async def look_up(threads: Executor, host: str, port: int) -> list[tuple[Any, ...]]:
    """Where `host` is, as sockets take it. Raises OSError, or UnicodeError for names that no resolver takes."""
    asked = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(threads, asked)
    return [address for _, _, _, _, address in found]
