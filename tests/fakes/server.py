"""A real HTTP server on loopback that a test scripts: it counts what reaches it."""

import asyncio
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

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        # A handler whose client has gone is cancelled, so that what waits at a gate waits for nobody.
        options: dict[str, Any] = {"access_log": None, "handler_cancellation": True}
        self._runner = web.ServerRunner(web.Server(self._handle, **options), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Refuse connections from now on."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        assert self._runner is not None and self._runner.server is not None
        return len(self._runner.server.connections)

    def count(self, method: str, part: str) -> int:
        """How many requests with `method` had `part` in their path."""
        return sum(1 for seen in self.seen if seen.method == method and part in seen.path)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        url = request.rel_url
        headers = {name.title(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.method, url.raw_path, url.raw_query_string, headers))
        return await self.answer(request)


class Gate:
    """A barrier in a server's body: the server waits at `offset` until a test opens the gate.

    `waiting` is how many requests have come to it.
    """

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self._opened = asyncio.Event()
        self.reached = asyncio.Event()
        self.waiting = 0

    async def __call__(self, offset: int) -> None:
        if offset >= self.offset:
            self.reached.set()
            self.waiting += 1
            await self._opened.wait()

    def open(self) -> None:
        self._opened.set()
