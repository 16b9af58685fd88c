"""A real HTTP server on loopback that a test scripts: it counts what reaches it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Seen:
    """One request that reached the server."""

    method: str
    path: str
    query: str
    headers: dict[str, str]


@dataclass
class FakeServer:
    """Serves `answer` on a port of its own. `seen` is every request, `sent` the bytes of bodies that left."""

    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    url: str = ""
    _runner: web.ServerRunner | None = None

    async def start(self) -> None:
        options: dict[str, Any] = {"access_log": None}
        self._runner = web.ServerRunner(web.Server(self._handle, **options), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Refuse connections from now on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    def count(self, method: str, part: str) -> int:
        """How many requests with `method` had `part` in their path."""
        return sum(1 for seen in self.seen if seen.method == method and part in seen.path)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        url = request.rel_url
        headers = {name.title(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.method, url.raw_path, url.raw_query_string, headers))
        return await self.answer(request)

    async def send(
        self,
        request: web.BaseRequest,
        body: bytes,
        headers: dict[str, str],
        status: int = 200,
        pause: Callable[[int], Awaitable[None]] | None = None,
        cut_at: int | None = None,
        length: bool = True,
    ) -> web.StreamResponse:
        """Send `body` in pieces; before each `pause(offset)` is awaited; at `cut_at` the connection ends with FIN."""
        response = web.StreamResponse(status=status, headers=headers)
        if length:
            response.content_length = len(body)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        if request.method == "HEAD":
            await response.write_eof()
            return response
        piece = 64 * 1024
        for offset in range(0, len(body), piece):
            if pause is not None:
                await pause(offset)
            stop = min(offset + piece, len(body) if cut_at is None else cut_at)
            if stop > offset:
                await response.write(body[offset:stop])
                self.sent += stop - offset
            if cut_at is not None and stop >= cut_at:
                assert request.transport is not None
                request.transport.close()
                raise ConnectionResetError
        await response.write_eof()
        return response


class Gate:
    """A barrier in a server's body: the server waits at `offset` until a test opens the gate."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._opened = asyncio.Event()
        self.reached = asyncio.Event()

    async def __call__(self, offset: int) -> None:
        if offset >= self._offset:
            self.reached.set()
            await self._opened.wait()

    def open(self) -> None:
        self._opened.set()
