"""The connections to one upstream, each pool opened by its first request: one for blobs on their way into the cache,
one for those that clients take past it, at a pace of their own, and one for everything else.

Invariant: once retired, no connection is open while no request runs.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import aiohttp

from proxy import __version__
from proxy.settings import UpstreamSettings

# A stream holds twice this at most while its last piece is being written.
_READ_BUFFER = 512 * 1024


Pool = Literal["metadata", "blobs", "passing"]


class Pools:
    """`start` them in the running loop and `close` them there."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.retired = False
        # The file of the upstream's own certificate authorities, as it was read.
        self.ca = b""
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self._open: dict[str, aiohttp.ClientSession] = {}
        self._requests = 0

    async def start(self) -> None:
        """Read the certificate authorities; opens nothing. Raises OSError or ssl.SSLError where `ca` is no good."""
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

    def pool(self, name: Pool) -> aiohttp.ClientSession:
        """The pool, for a request inside of `in_use`."""
        if (session := self._open.get(name)) is not None:
            return session
        assert self._context is not None  # noqa: S101 - it was started
        session = self._open[name] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._settings.max_connections, ssl=self._context),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._settings.connect_timeout, sock_read=self._settings.read_timeout
            ),
            # Digests are of the bytes as they travel; cookies would make one client's answers another's.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"pullthrough/{__version__}", "Accept-Encoding": "identity"},
            read_bufsize=_READ_BUFFER,
        )
        return session

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


def _ssl_context(ca: Path | None) -> tuple[ssl.SSLContext, bytes]:
    """The system's certificate authorities, and the upstream's own besides; and the file of the latter."""
    context = ssl.create_default_context()
    if ca is None:
        return context, b""
    context.load_verify_locations(cafile=ca)
    return context, ca.read_bytes()
