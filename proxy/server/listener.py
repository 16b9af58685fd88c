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
from proxy.settings import Address

_log = logging.getLogger("pullthrough.server")

_CUT_AFTER = 0.2
_BACKLOG = 1024

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ListenError(Exception):
    """An address cannot be listened on. The message is one line for operators."""


class _Protocol(RequestHandler):
    """aiohttp's connection, with errors of our own form."""

    __slots__ = ()

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

    def __init__(self, address: Address, handler: Handler, sockets: Sequence[socket.socket] = ()) -> None:
        """`sockets`: those that listen on `address` already; without any, it makes its own."""
        self.address = address
        self._sockets = sockets
        # Whoever closes a listener has waited for its bodies already; what still runs then is cut.
        self._runner = web.ServerRunner(_server(handler), shutdown_timeout=_CUT_AFTER)

    async def start(self) -> None:
        """Listen. Raises ListenError. With port 0 the system chooses one; `address` then has it."""
        await self._runner.setup()
        sites: list[web.BaseSite] = [web.SockSite(self._runner, one, backlog=_BACKLOG) for one in self._sockets]
        if not sites:
            sites = [web.TCPSite(self._runner, self.address.host, self.address.port, backlog=_BACKLOG)]
        try:
            for site in sites:
                await site.start()
        except (OSError, socket.gaierror) as error:
            raise ListenError(f"{self.address} cannot be listened on: {error.strerror}") from error
        self.address = Address(self.address.host, self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening, close idle connections and end what still runs."""
        await self._runner.cleanup()


def _server(handler: Handler) -> _Server:
    # No access log of aiohttp's (telemetry has its own), and bodies of requests are never decompressed for anyone.
    # A handler whose client left is cancelled: it must not wait on, as a reader that nobody serves.
    options: dict[str, Any] = {
        "access_log": None, "auto_decompress": False, "keepalive_timeout": 75.0, "handler_cancellation": True,
    }  # fmt: skip
    return _Server(handler, loop=asyncio.get_running_loop(), **options)
