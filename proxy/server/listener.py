"""Listeners: aiohttp's low-level server, one for each address."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from proxy.server.connection import Connection
from proxy.server.fast import FastConnection, Table
from proxy.server.gate import Gate
from proxy.server.tls import HANDSHAKE_TIMEOUT, SHUTDOWN_TIMEOUT, ListenerTLS, TLSError
from proxy.settings import Address, TLSSettings

_CUT_AFTER = 0.2
_BACKLOG = 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ListenError(Exception):
    """An address cannot be listened on. The message is one line for operators."""


class Interceptor(Protocol):
    """What stands before the connections of clients that know of no proxy (`intercept`)."""

    async def start(self) -> None:
        """Raises TLSError."""
        ...

    async def look(self, asked: bool = False) -> None:
        """Take what its files hold now."""
        ...

    def entry(self, make: Callable[[bool], RequestHandler]) -> asyncio.Protocol:
        """What a connection begins with; `make` makes that of a client which means a registry, or this proxy."""
        ...

    async def close(self) -> None:
        """End what has no connection yet."""
        ...


class _Server(web.Server):
    def __init__(
        self, handler: Handler, gate: Gate, address: Address, table: Table | None = None, **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self._gate = gate
        self._address = address
        self._table = table

    def __call__(self) -> RequestHandler:
        if self._table is None:
            return Connection(self, self._gate, loop=self._loop, **self._kwargs)
        return FastConnection(self, self._gate, self._address, self._table, loop=self._loop, **self._kwargs)


class Listener:
    """One address that answers with `handler`."""

    def __init__(
        self,
        address: Address,
        handler: Handler,
        gate: Gate,
        sockets: Sequence[socket.socket] = (),
        tls: TLSSettings | None = None,
        table: Table | None = None,
        interceptor: Interceptor | None = None,
    ) -> None:
        """`sockets`: those that listen on `address` already; without any, it makes its own.

        `table` gives that of the answers that are ready, where there is one.
        """
        self.address = address
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._tls = ListenerTLS(address, tls) if tls is not None else None
        self._interceptor = interceptor
        # Whoever closes a listener has waited for its bodies already; what still runs then is cut.
        self._runner = web.ServerRunner(_server(handler, gate, address, table), shutdown_timeout=_CUT_AFTER)

    async def start(self) -> None:
        """Listen. Raises ListenError. With port 0 the system chooses one; `address` then has it."""
        await self._runner.setup()
        options: dict[str, Any] = {"backlog": _BACKLOG}
        try:
            if self._interceptor is not None:
                await self._interceptor.start()
            if self._tls is not None:
                await self._tls.start()
                options |= {
                    "ssl": self._tls.context,
                    "ssl_handshake_timeout": HANDSHAKE_TIMEOUT,
                    "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT,
                }
            # aiohttp's sites cannot be told how long a handshake may take.
            places: list[dict[str, Any]] = [{"sock": one} for one in self._sockets]
            for place in places or [{"host": self.address.host, "port": self.address.port}]:
                server = await asyncio.get_running_loop().create_server(self._connection, **place, **options)
                self._servers.append(server)
        except TLSError as error:
            raise ListenError(f"{self.address} cannot be listened on: {error}") from error
        except (OSError, socket.gaierror) as error:
            raise ListenError(f"{self.address} cannot be listened on: {error.strerror}") from error
        self.address = Address(self.address.host, self._servers[0].sockets[0].getsockname()[1])

    async def reread(self) -> None:
        """Look at once whether certificates have changed."""
        for certificates in (self._tls, self._interceptor):
            if certificates is not None:
                await certificates.look(asked=True)

    async def close(self) -> None:
        """Stop listening, close idle connections and end what still runs."""
        for server in self._servers:
            server.close()
        for certificates in (self._tls, self._interceptor):
            if certificates is not None:
                await certificates.close()
        await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        return self._made(False) if self._interceptor is None else self._interceptor.entry(self._made)

    def _made(self, intercepted: bool) -> RequestHandler:
        assert self._runner.server is not None  # noqa: S101 - set up before it listens
        connection = self._runner.server()
        if isinstance(connection, Connection):
            connection.intercepted = intercepted
        return connection


def _server(handler: Handler, gate: Gate, address: Address, table: Table | None) -> _Server:
    # No access log of aiohttp's (telemetry has its own), and bodies of requests are never decompressed for anyone.
    # A handler whose client left is cancelled: it must not wait on, as a reader that nobody serves.
    options: dict[str, Any] = {"access_log": None, "auto_decompress": False, "handler_cancellation": True}
    return _Server(handler, gate, address, table, loop=asyncio.get_running_loop(), **options)
