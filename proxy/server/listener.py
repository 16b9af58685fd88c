"""Listeners: aiohttp's low-level server, one for each address.

What aiohttp itself refuses (a request line that is too long, bytes that are no HTTP) leaves as OCI error JSON too, and
as one line in the log at level debug: it is the client's mistake, of any length and content.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from proxy.oci.errors import OCIError
from proxy.server.respond import error_response
from proxy.server.tls import HANDSHAKE_TIMEOUT, SHUTDOWN_TIMEOUT, ListenerTLS, TLSError
from proxy.settings import Address, TLSSettings

_log = logging.getLogger("pullthrough.server")

_CUT_AFTER = 0.2
_BACKLOG = 1024
# What a TLS connection keeps of what its client does not take: asyncio's own limit of 512 KiB is much for a thousand.
_TLS_BUFFER = 64 * 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ListenError(Exception):
    """An address cannot be listened on. The message is one line for operators."""


class _Protocol(RequestHandler):
    """aiohttp's connection, with errors of our own form."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See aiohttp."""
        super().connection_made(transport)
        if isinstance(transport, asyncio.WriteTransport) and transport.get_extra_info("sslcontext") is not None:
            transport.set_write_buffer_limits(_TLS_BUFFER)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never became a request, or what failed outside of the handler."""
        if isinstance(exc, ConnectionError):
            # The client left, or its body was cut: aiohttp ends the connection quietly on this.
            raise exc
        if status >= 500:
            _log.error("a request from %s failed", request.remote, exc_info=exc)
        else:
            _log.debug("a request from %s is no HTTP: %s", request.remote, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was sent in part already")
        code, text = ("UNKNOWN", "the proxy failed to answer this request")
        if status < 500:
            code, text = ("NAME_INVALID", "the request is not HTTP that this proxy takes")
        response = error_response(OCIError(code, text, status=status))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Listener:
    """One address that answers with `handler`."""

    def __init__(
        self,
        address: Address,
        handler: Handler,
        sockets: Sequence[socket.socket] = (),
        tls: TLSSettings | None = None,
    ) -> None:
        """`sockets`: those that listen on `address` already; without any, it makes its own."""
        self.address = address
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._tls = ListenerTLS(address, tls) if tls is not None else None
        # Whoever closes a listener has waited for its bodies already; what still runs then is cut.
        self._runner = web.ServerRunner(_server(handler), shutdown_timeout=_CUT_AFTER)

    async def start(self) -> None:
        """Listen. Raises ListenError. With port 0 the system chooses one; `address` then has it."""
        await self._runner.setup()
        options: dict[str, Any] = {"backlog": _BACKLOG}
        try:
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
        if self._tls is not None:
            await self._tls.look(asked=True)

    async def close(self) -> None:
        """Stop listening, close idle connections and end what still runs."""
        for server in self._servers:
            server.close()
        if self._tls is not None:
            await self._tls.close()
        await self._runner.cleanup()

    def _connection(self) -> RequestHandler:
        assert self._runner.server is not None  # noqa: S101 - set up before it listens
        return self._runner.server()


def _server(handler: Handler) -> _Server:
    # No access log of aiohttp's (telemetry has its own), and bodies of requests are never decompressed for anyone.
    # A handler whose client left is cancelled: it must not wait on, as a reader that nobody serves.
    options: dict[str, Any] = {
        "access_log": None, "auto_decompress": False, "keepalive_timeout": 75.0, "handler_cancellation": True,
    }  # fmt: skip
    return _Server(handler, loop=asyncio.get_running_loop(), **options)
