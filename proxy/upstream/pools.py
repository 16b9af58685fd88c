"""The connections to one upstream, each pool opened by its first request: one for blobs on their way into the cache,
one for those that clients take past it, at a pace of their own, one for pushes, one for clients' own log-ins, which
nobody but they chooses, and one for everything else.

Invariants:
- Once retired, no connection is open while no request runs.
- What the upstream led to (redirects, token realms) has connections apart from those to its own origin, each of them to
  an address that `policy.dial` lets pass: it is judged when its socket is made, after every look-up, so that a name
  cannot be another one meanwhile. Behind an HTTP proxy, where addresses are not seen, there is no such promise.
- Each address that is refused is told (`TargetWasRefused`) here and nowhere else: of a name with several addresses,
  what the connector raises in the end may be another one's fault.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import aiohttp

from proxy import __version__
from proxy.policy.dial import Reach, Zone, address_refusal, own_refusal, strictest
from proxy.settings import UpstreamSettings
from proxy.telemetry.events import TargetWasRefused, Tell
from proxy.upstream.errors import AddressRefused

# A stream holds twice this at most while its last piece is being written.
_READ_BUFFER = 512 * 1024


Pool = Literal["metadata", "blobs", "passing", "push", "login"]


class Pools:
    """`start` them in the running loop and `close` them there."""

    def __init__(self, registry: str, settings: UpstreamSettings, tell: Tell) -> None:
        self.retired = False
        # The file of the upstream's own certificate authorities, as it was read.
        self.ca = b""
        self._registry = registry
        self._settings = settings
        self._tell = tell
        # True is aiohttp's own, with the system's certificate authorities: to read them again takes a while.
        self._context: ssl.SSLContext | Literal[True] = True
        self._open: dict[tuple[Pool, bool], aiohttp.ClientSession] = {}
        # The strictest zone that the upstream's own host was seen in; behind a proxy only an address says it.
        self._own: Zone | None = None
        with suppress(ValueError):
            self._own = strictest(None, urlsplit(settings.url).hostname or "")
        # An address in the URL is the operator's word; what a name resolves to is that of the name's owner.
        self._named = self._own is None
        self._requests = 0

    async def start(self) -> None:
        """Read the upstream's own certificate authorities; opens nothing.

        Raises OSError or ssl.SSLError where `ca` is no good.
        """
        if self._settings.ca is not None:
            self._context, self.ca = await asyncio.to_thread(_ssl_context, self._settings.ca)

    @property
    def idle(self) -> bool:
        """Does no request run?"""
        return self._requests == 0

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """A request runs."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            await self.close_if_over()

    @property
    def reach(self) -> Reach:
        """How far the upstream may lead, by what is known of its own address."""
        return Reach(self._own, self._settings.private_networks)

    def pool(self, name: Pool, own: bool) -> aiohttp.ClientSession:
        """The pool, for a request inside of `in_use`. `own`: to the upstream's own origin, not to what it led to."""
        if (session := self._open.get((name, own))) is not None:
            return session
        factory = self._own_socket if own else self._foreign_socket
        # A connection that was kept may be over, and what changes the upstream is not to be sent twice to find out.
        once = name == "push"
        session = self._open[name, own] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._settings.max_connections,
                ssl=self._context,
                force_close=once,
                # The only address that is seen behind a proxy is the proxy's.
                socket_factory=factory if self._settings.proxy is None else None,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._settings.connect_timeout, sock_read=self._settings.read_timeout
            ),
            # Digests are of the bytes as they travel; cookies would make one client's answers another's.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"pullthrough/{__version__}", "Accept-Encoding": "identity"},
            read_bufsize=_READ_BUFFER,
        )
        # aiohttp sends PUT and DELETE again on fresh connections too, with what is left of a body that streamed.
        session._retry_connection = not once
        return session

    def _own_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        if self._named:
            self._check(own_refusal(address[4][0]))
        self._own = strictest(self._own, address[4][0])
        return _socket(address)

    def _foreign_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        self._check(address_refusal(address[4][0], self.reach))
        return _socket(address)

    def _check(self, refused: Zone | None) -> None:
        if refused is not None:
            self._tell(TargetWasRefused(self._registry, refused))
            raise AddressRefused(refused)

    async def close_if_over(self) -> None:
        """End all connections if this is retired and no request runs."""
        # Looked at before each, since a request may begin while a pool closes.
        while self.retired and self.idle and self._open:
            await self._close_one()

    async def close(self) -> None:
        """End all connections."""
        while self._open:
            await self._close_one()

    async def _close_one(self) -> None:
        _, session = self._open.popitem()
        await session.close()


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)


def _ssl_context(ca: Path) -> tuple[ssl.SSLContext, bytes]:
    """The system's certificate authorities, and the upstream's own besides; and the file of the latter."""
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=ca)
    return context, ca.read_bytes()
