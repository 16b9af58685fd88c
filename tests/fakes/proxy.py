"""A whole proxy in the test's process, on real sockets, with a clock that the test moves; and a client of any proxy."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from proxy.app import Application
from proxy.server.connection import Connection
from proxy.settings import Settings
from tests.fakes.clock import ManualClock


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def state(self) -> str:
        return self.headers.get("Cache-Status", "")

    @property
    def code(self) -> str:
        """The OCI error code; fails where the body is no OCI error."""
        errors = json.loads(self.body)["errors"]
        assert self.headers["Content-Type"].startswith("application/json")
        return str(errors[0]["code"])


class Served:
    """A client of a proxy that runs somewhere."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def admin_url(self) -> str:
        raise NotImplementedError

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """One request, its redirects not followed; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.url + path, headers=named, allow_redirects=False) as response:
            return Answer(response.status, response.headers, await response.read())

    async def head(self, path: str, **headers: str) -> Answer:
        return await self.get(path, "HEAD", **headers)

    async def stored(self, blobs: int) -> None:
        """Wait until so many blobs are in the cache: a body may end a moment before its blob is published."""
        async with asyncio.timeout(10):
            while await self.metric("pullthrough_cache_blobs") != blobs or await self.metric(
                "pullthrough_fills_active"
            ):
                await asyncio.sleep(0)

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples that begin with `name` (labels may be part of it)."""
        async with self.session.get(self.admin_url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


class Proxy(Served):
    """A running proxy and a client of it."""

    def __init__(
        self, application: Application, clock: ManualClock, session: aiohttp.ClientSession, scheme: str = "http"
    ) -> None:
        super().__init__(session)
        self.scheme = scheme
        self.application = application
        self.clock = clock

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.application.listeners[0].address}"

    @property
    def admin_url(self) -> str:
        assert self.application.admin is not None
        return f"http://{self.application.admin.address}"

    @property
    def connections(self) -> list[Connection]:
        """Those of clients at the first listener, the oldest first."""
        return self.connections_at(0)

    def connections_at(self, listener: int) -> list[Connection]:
        """Those at the listener of that number."""
        server = self.application.listeners[listener]._runner.server
        assert server is not None
        return [one for one in server.connections if isinstance(one, Connection)]


def make_settings(directory: Path, upstreams: Mapping[str, Mapping[str, Any]], **more: Any) -> Settings:
    """Settings for one test; the first upstream is the default."""
    first = next(iter(upstreams))
    document: dict[str, Any] = {
        "listen": [{"address": "127.0.0.1:0"}],
        "admin": {"address": "127.0.0.1:0"},
        "cache": {"directory": str(directory), "max_size": "1GiB", "min_free": 0},
        "upstreams": {name: {"default": name == first, **upstream} for name, upstream in upstreams.items()},
        "shutdown_timeout": "5s",
    } | more
    return Settings(**document)


@asynccontextmanager
async def running(
    settings: Settings, clock: ManualClock | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Proxy]:
    """A proxy that runs inside the context. `tls`: its first listener speaks TLS, and the client goes by that."""
    clock = clock or ManualClock()
    application = Application(settings, clock)
    await application.start()
    try:
        options = aiohttp.ClientTimeout(total=20)
        connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=options) as session:
            yield Proxy(application, clock, session, "http" if tls is None else "https")
    finally:
        await application.close()
