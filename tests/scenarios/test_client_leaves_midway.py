"""Readers never drive or harm a fill, nor the end of the proxy."""

import asyncio

from tests.fakes.content import random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.raw import Raw
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, put, until

BLOB = random_bytes(2_000_000, 3)


async def test_the_fill_goes_on_when_its_only_client_leaves(proxy: Proxy, registry: FakeRegistry) -> None:
    """The client that caused a fill leaves in the middle; the blob is in the cache all the same."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.pause = gate = Gate(1_000_000)
    url = f"{proxy.url}/v2/team/app/blobs/{digest}"
    async with proxy.session.get(url) as response:
        await response.content.readexactly(1000)
        await gate.reached.wait()
    gate.open()
    await proxy.stored(1)
    again = await proxy.get(f"/v2/team/app/blobs/{digest}")
    assert (again.body, again.state) == (BLOB, "pullthrough; hit")
    assert registry.count("GET", "/blobs/") == 1


async def test_a_reader_that_leaves_harms_no_other(proxy: Proxy, registry: FakeRegistry) -> None:
    """One of two readers of a fill leaves; the other gets every byte."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.pause = gate = Gate(1_000_000)
    url = f"{proxy.url}/v2/team/app/blobs/{digest}"
    staying = asyncio.create_task(proxy.get(f"/v2/team/app/blobs/{digest}"))
    await gate.reached.wait()
    async with proxy.session.get(url) as leaving:
        await leaving.content.readexactly(10)
    gate.open()
    assert (await staying).body == BLOB


async def test_a_client_that_left_unseen_does_not_spoil_the_end(proxy: Proxy, registry: FakeRegistry) -> None:
    """It sends a body that nobody reads, so that its reset is not read either: the proxy closes as ever."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(0)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{MIB:x}\r\n"
    client = await Raw.connect(proxy, head.encode())
    assert await client.answer(body=False) == 200
    await gate.reached.wait()
    (connection,) = proxy.connections
    sending = asyncio.create_task(client.send(bytes(MIB)))
    await until(lambda: connection._reading_paused)
    await client.reset()
    await sending
    assert connection.connected
    closing = asyncio.create_task(proxy.application.close())
    # It waits for the body then, which can be sent to nobody.
    await until(lambda: connection._force_close)
    gate.open()
    await closing
    assert not connection.connected
