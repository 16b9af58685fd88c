"""Clients that ask the same again, and how far into the proxy their requests came."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import pytest
from aiohttp import web

from proxy.server.connection import Connection
from proxy.server.exchange import Exchange
from proxy.server.handlers import Handlers
from proxy.settings import Address
from tests.fakes.proxy import Proxy
from tests.fakes.raw import Raw

TAG = "/v2/team/app/manifests/v1"


def request(path: str = TAG, *fields: str, method: str = "GET", version: str = "1.1", host: str = "a.test") -> bytes:
    """A request's bytes."""
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}", *fields, "", ""]
    return "\r\n".join(lines).encode()


class Client(Raw):
    """One connection; `connection` is the proxy's end of it."""

    connection: Connection

    @classmethod
    async def to(cls, proxy: Proxy, source: str = "127.0.0.1", listener: int = 0) -> Self:
        """Connect from `source` to the listener of that number."""
        address = proxy.application.listeners[listener].address
        streams = await asyncio.open_connection(address.host, address.port, local_addr=(source, 0))
        client = cls(*streams)
        own = client._writer.get_extra_info("sockname")
        async with asyncio.timeout(10):
            while not (found := [one for one in proxy.connections_at(listener) if peer(one) == own]):
                await asyncio.sleep(0)
        (client.connection,) = found
        return client

    async def rests(self) -> None:
        """Wait until all that was sent is answered, or the connection is closed, in the proxy's eyes too."""
        connection = self.connection
        async with asyncio.timeout(10):
            while connection.transport is not None and (connection._waiter is None or connection._waiter.done()):
                await asyncio.sleep(0)

    async def ask(self, sent: bytes, status: int = 200) -> bytes:
        """The body that it is answered with."""
        await self.rests()
        await self.send(sent)
        assert await self.answer(body=not sent.startswith(b"HEAD")) == status
        return self.body


def peer(connection: Connection) -> object:
    return connection.transport.get_extra_info("peername") if connection.transport is not None else None


async def asked(proxy: Proxy, sent: bytes, status: int = 200, source: str = "127.0.0.1") -> Client:
    """The answer to it on a connection of its own, which is left then."""
    client = await Client.to(proxy, source)
    await client.ask(sent, status)
    client.leave()
    return client


async def repeat(proxy: Proxy, sent: bytes, source: str = "127.0.0.1") -> None:
    """Ask until it is known by its bytes: once to have it, once to find it here, and once to look it up."""
    for _ in range(3):
        await asked(proxy, sent, source=source)


@dataclass
class Counts:
    """`handled`: the requests that a handler saw, all but those known by their bytes; `walked`: those looked up."""

    handled: list[str] = field(default_factory=list)
    walked: list[str] = field(default_factory=list)

    @contextmanager
    def none(self) -> Iterator[None]:
        """No request comes so far that a handler sees it."""
        before = self.handled[:]
        yield
        assert self.handled == before

    @contextmanager
    def all(self, count: int = 1, walked: int | None = None) -> Iterator[None]:
        """So many requests come to a handler, and so many of them, all unless it is said, are looked up anew."""
        before = len(self.handled), len(self.walked)
        yield
        found = len(self.handled) - before[0], len(self.walked) - before[1]
        assert found == (count, count if walked is None else walked)


def count_requests(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Count those of proxies that are started later."""
    counts = Counts()
    handle, walk = Handlers.handle, Handlers._walk

    async def handled(self: Handlers, listener: Address, request: web.BaseRequest) -> web.StreamResponse:
        counts.handled.append(f"{request.method} {request.raw_path}")
        return await handle(self, listener, request)

    async def walked(self: Handlers, exchange: Exchange) -> web.StreamResponse:
        counts.walked.append(f"{exchange.request.method} {exchange.request.raw_path}")
        return await walk(self, exchange)

    monkeypatch.setattr(Handlers, "handle", handled)
    monkeypatch.setattr(Handlers, "_walk", walked)
    return counts
