"""The link to a real metadata server: what ends it, and what does not."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.storage.leases import ValkeyLeases
from proxy.storage.link import Away, Link
from proxy.storage.servers import Place
from proxy.telemetry.events import silent
from tests.clients.valkey import ValkeyServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(Path(tmp_path_factory.mktemp("valkey")))
    yield server
    server.stop()


class Way:
    """A way to the server that can lose everything but what the connection with a subscription carries."""

    def __init__(self, port: int) -> None:
        self._there = port
        self._carrying: set[asyncio.Task[None]] = set()
        self.loses = asyncio.Event()

    async def start(self) -> int:
        """Gives the port that leads to it."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._there)
        subscribed = asyncio.Event()
        for one, other in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._carry(one, other, subscribed))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subscribed: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                if b"SUBSCRIBE" in data:
                    subscribed.set()
                if not self.loses.is_set() or subscribed.is_set():
                    writer.write(data)


@pytest.fixture
async def way(server: ValkeyServer) -> AsyncIterator[Way]:
    way = Way(server.port)
    yield way
    await way.close()


@pytest.fixture
async def link(way: Way) -> AsyncIterator[Link]:
    link = Link(Place.of(f"redis://127.0.0.1:{await way.start()}/0?prefix=link"), silent)
    await link.start()
    assert link.up
    yield link
    await link.close()


async def test_a_command_that_is_not_answered_is_its_own_affair(link: Link) -> None:
    """As long as pings are, the others go on."""
    slow = asyncio.create_task(link.ask(lambda client: client.blpop(["nothing"], 0)))
    async with asyncio.timeout(30):
        while not slow.done():
            await asyncio.sleep(0.1)
            assert await link.ask(lambda client: client.get("anything")) is None
    with pytest.raises(Away):
        await slow
    assert link.up


async def test_a_way_that_carries_pings_only(link: Link, way: Way) -> None:
    """Nobody waits for more than one time-out, however many they are, and it is tried again later."""
    way.loses.set()
    began = time.monotonic()
    asking = [link.ask(lambda client: client.get("anything")) for _ in range(300)]
    assert all(isinstance(met, Away) for met in await asyncio.gather(*asking, return_exceptions=True))
    assert time.monotonic() - began < 10
    assert not link.up
    way.loses.clear()
    async with asyncio.timeout(30):
        while not link.up:
            await asyncio.sleep(0.05)
    assert await link.ask(lambda client: client.get("anything")) is None


async def test_a_loop_that_is_late_loses_nothing(server: ValkeyServer) -> None:
    """Neither the server, nor a lease, nor what is asked meanwhile; also where it is late for longer than they last."""
    link = Link(Place.of(f"redis://127.0.0.1:{server.port}/0?prefix=late"), silent)
    await link.start()
    leases = ValkeyLeases(link, "http://replica:5002")
    await leases.start()
    assert await leases.take("one") is None
    asking = [asyncio.create_task(link.ask(lambda client: client.get("anything"))) for _ in range(20)]
    for _ in range(2):
        until = time.monotonic() + 7
        while time.monotonic() < until:
            sum(range(1000))
        await asyncio.sleep(0)
    assert await asyncio.gather(*asking) == [None] * 20
    assert link.up
    assert await leases.holder("one") == leases.address
    await leases.close()
    assert await leases.holder("one") is None
    await link.close()
