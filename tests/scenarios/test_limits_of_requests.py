"""Sizes and times of single requests: a clear error, counted, and others are served meanwhile."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.settings import Settings
from tests.fakes.authority import Authority, Pair
from tests.fakes.clock import LoopClock
from tests.fakes.content import make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.raw import Raw
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, put, until

IMAGE = make_image(2, seed=80)
TAG = "/v2/team/app/manifests/v1"
GET = f"GET {TAG} HTTP/1.1\r\nHost: x\r\n".encode()
SEVERAL = GET + b"".join(b"X-%d: " % number + b"x" * 1000 + b"\r\n" for number in range(5)) + b"\r\n"
LIMITS = {
    "max_header_size": "4KiB", "max_url_length": "4KiB", "header_timeout": "2s", "idle_timeout": "4s",
    "send_timeout": "3s",
}  # fmt: skip


@pytest.fixture(params=["plain", "tls"])
async def limited(
    request: pytest.FixtureRequest, settings: Callable[..., Settings], registry: FakeRegistry, authority: Authority,
    server_pair: Pair, monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[Proxy, ssl.SSLContext | None]]:  # fmt: skip
    """A proxy with low limits, and what its clients need for TLS."""
    # Over TLS there is no half of an end: nobody is told before all of it.
    monkeypatch.setattr("proxy.server.connection._LAST_WORD", 0.3)
    registry.push("team/app", "v1", IMAGE)
    tls = authority.client() if request.param == "tls" else None
    more = {}
    if tls is not None:
        described = {"certificate": str(server_pair.certificate), "key": str(server_pair.key)}
        more = {"listen": [{"address": "127.0.0.1:0", "tls": described}]}
    async with running(settings(limits=LIMITS, **more), tls=tls) as proxy:
        yield proxy, tls


async def refused(proxy: Proxy, reason: str) -> float:
    return await proxy.metric(f'pullthrough_client_refusals_total{{reason="{reason}"}}')


async def served(proxy: Proxy) -> None:
    """Somebody else has an answer."""
    assert (await proxy.get(TAG)).status == 200


# Sizes.


@pytest.mark.parametrize(
    ("sent", "status", "code", "reason"),
    [
        (f"GET /v2/{'a' * 5000}/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 414, "NAME_INVALID", "url-length"),
        (f"GET {TAG}?ns={'a' * 5000} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 414, "NAME_INVALID", "url-length"),
        (GET + b"X: " + b"x" * 5000 + b"\r\n\r\n", 431, "UNSUPPORTED", "header-size"),
        (GET + b"x" * 5000 + b": x\r\n\r\n", 431, "UNSUPPORTED", "header-size"),
        (GET + b"Authorization: Bearer " + b"x" * 1_000_000 + b"\r\n\r\n", 431, "UNSUPPORTED", "header-size"),
        (SEVERAL, 431, "UNSUPPORTED", "header-size"),
        (GET + b"X: x\r\n" * 200 + b"\r\n", 431, "UNSUPPORTED", "header-size"),
        (GET + b"Content-Length: 9000000\r\n\r\n", 413, "SIZE_INVALID", "body-size"),
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", 400, "NAME_INVALID", "malformed"),
    ],
    ids=["path", "query", "value", "name", "million", "several", "many", "body", "noise"],
)  # fmt: skip
async def test_what_is_too_large(
    limited: tuple[Proxy, ssl.SSLContext | None], registry: FakeRegistry,
    sent: bytes, status: int, code: str, reason: str,
) -> None:  # fmt: skip
    """It is answered, whatever is still coming, then the connection ends; nothing reaches the upstream.

    Unless the head was whole, and each part of it small enough: then the next request may come.
    """
    proxy, tls = limited
    client = await Raw.connect(proxy, tls=tls)
    sending = asyncio.create_task(client.send(sent))
    assert await client.answer() == status
    assert client.code == code
    await sending
    assert not registry.seen
    if reason != "body-size" and sent != SEVERAL:
        assert await client.end() == b""
    client.leave()
    assert await refused(proxy, reason) == 1
    await served(proxy)


async def test_a_head_that_never_ends(limited: tuple[Proxy, ssl.SSLContext | None]) -> None:
    """Small headers, one after the other: together they are too large long before memory is."""
    proxy, tls = limited
    client = await Raw.connect(proxy, GET, tls=tls)
    for number in range(100):
        await client.send(f"X-{number}: {'x' * 100}\r\n".encode())
        await asyncio.sleep(0)
    assert await client.answer() == 431
    assert await client.end() == b""
    assert await refused(proxy, "header-size") == 1


async def test_what_just_fits(limited: tuple[Proxy, ssl.SSLContext | None]) -> None:
    """An address and headers of almost the limits, in pieces of any size."""
    proxy, tls = limited
    head = f"GET {TAG}?x={'a' * 3900} HTTP/1.1\r\nHost: x\r\nX: {'x' * 3900}\r\n\r\n".encode()
    client = await Raw.connect(proxy, tls=tls)
    for start in range(0, len(head), 1000):
        await client.send(head[start : start + 1000])
        await asyncio.sleep(0)
    assert await client.answer() == 200
    assert client.body == IMAGE.manifest
    client.leave()


@pytest.mark.parametrize("pieces", [1, 20], ids=["late", "large"])
async def test_a_refusal_never_stands_in_another_answer(
    settings: Callable[..., Settings], registry: FakeRegistry, timers: LoopClock, pieces: int
) -> None:
    """A head that does not end behind a request whose body is under way: that body is whole, and it was the last."""
    blob = random_bytes(MIB, 81)
    path = put(registry, blob)
    registry.pause = gate = Gate(256 * KIB)
    async with running(settings(limits=LIMITS)) as proxy:
        client = await Raw.connect(proxy, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answering = asyncio.create_task(client.answer())
        await gate.reached.wait()
        (connection,) = proxy.connections
        await client.send(GET)
        await until(lambda: connection._head_bytes > 0)
        for _ in range(pieces):
            await client.send(b"X: " + b"x" * 1000 + b"\r\n")
        if pieces == 1:
            assert not connection._close
            await timers.advance(2)
        # It is refused by then.
        await until(lambda: connection._close)
        gate.open()
        assert await answering == 200
        assert client.body == blob
        await client.send(b"\r\n")
        assert await client.end() == b""


# Times.


async def test_slow_heads(limited: tuple[Proxy, ssl.SSLContext | None], timers: LoopClock) -> None:
    """Byte by byte, many at a time, until the time for a head is over: 408 for each of them."""
    proxy, tls = limited
    clients = [await Raw.connect(proxy, GET + b"X: ", tls=tls) for _ in range(50)]
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(client.answer()) for client in clients]
        while not all(answer.done() for answer in answers):
            for client in clients:
                await client.send(b"x")
            await served(proxy)
            await timers.advance(0.4)
    assert {task.result() for task in answers} == {408}
    for client in clients:
        assert client.code == "UNAVAILABLE"
        assert await client.end() == b""
    assert await refused(proxy, "header-timeout") == 50
    await served(proxy)


async def test_who_says_nothing_is_let_go(limited: tuple[Proxy, ssl.SSLContext | None], timers: LoopClock) -> None:
    """Without an answer, which would be to nothing; empty lines are nothing too."""
    proxy, tls = limited
    clients = [await Raw.connect(proxy, sent, tls=tls) for sent in (b"", b"\r\n", b"\r\n\r\n")]
    await served(proxy)
    await timers.advance(2)
    assert [await client.end() for client in clients] == [b"", b"", b""]
    assert await refused(proxy, "header-timeout") == 3


async def test_a_rest_between_requests_has_its_own_time(
    limited: tuple[Proxy, ssl.SSLContext | None], timers: LoopClock
) -> None:
    """Longer than a head's; a head that begins in it has the time of heads; one that ends is no refusal."""
    proxy, tls = limited
    client = await rested(proxy, tls, timers)
    await timers.advance(1)
    await client.send(b"\r\n")
    assert await client.answer() == 200
    await until(lambda: proxy.connections[-1]._waiter is not None)
    await timers.advance(4)
    assert await client.end() == b""
    assert await refused(proxy, "header-timeout") == 0
    client = await rested(proxy, tls, timers)
    await timers.advance(2)
    assert await client.answer() == 408
    assert await client.end() == b""


async def rested(proxy: Proxy, tls: ssl.SSLContext | None, timers: LoopClock) -> Raw:
    """A client whose second head has begun after it was at rest for longer than a head may take."""
    client = await Raw.connect(proxy, GET + b"\r\n", tls=tls)
    assert await client.answer() == 200
    connection = proxy.connections[-1]
    await until(lambda: connection._waiter is not None)
    await timers.advance(3)
    await client.send(GET)
    await until(lambda: connection._head_bytes > 0)
    return client


@pytest.mark.parametrize("where", ["blob", "manifest"])
async def test_who_takes_nothing_is_cut_off(
    settings: Callable[..., Settings], registry: FakeRegistry, timers: LoopClock, where: str
) -> None:
    """Of a blob or of a manifest: once `send_timeout` is over the connection is gone; others are served meanwhile."""
    blob = random_bytes(8 * MIB, 82)
    path = put(registry, blob)
    if where == "manifest":
        large = b'{"schemaVersion": 2, "x": "' + b"x" * (3 * MIB) + b'"}'
        digest = registry.put("team/app", "application/vnd.oci.image.manifest.v1+json", large)
        path = f"/v2/team/app/manifests/{digest}"
    async with running(settings(limits=LIMITS)) as proxy:
        await proxy.get(path)
        if where == "blob":
            await proxy.stored(1)
        # What the system does not take shows sooner.
        proxy.application.listeners[0]._servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
        stalled = await Reader.open(proxy, path)
        assert stalled.status == 200
        async with asyncio.timeout(10):
            while not await refused(proxy, "send-timeout"):
                assert (await proxy.get("/v2/")).status == 200
                await timers.advance(0.5)
        await stalled.rest()
        assert stalled.end in {"reset", "fin"}
        assert await refused(proxy, "send-timeout") == 1
        await until(lambda: len(proxy.connections) == 1)


async def test_a_slow_client_that_goes_on_is_served(
    settings: Callable[..., Settings], registry: FakeRegistry, timers: LoopClock
) -> None:
    """What counts is that it takes what it is handed, not how long the whole takes."""
    blob = random_bytes(6 * MIB, 83)
    path = put(registry, blob)
    async with running(settings(limits=LIMITS)) as proxy:
        reader = await Reader.open(proxy, path)
        while not reader.end:
            await reader.read(512 * KIB)
            await timers.advance(0.5)
        assert bytes(reader.received) == blob
        assert await refused(proxy, "send-timeout") == 0


async def test_new_limits_count_from_the_next_connection_on(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """After a reload; connections that are there go on by those that they began with."""
    registry.push("team/app", "v1", IMAGE)
    long = f"GET {TAG}?x={'a' * 6000} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with running(settings()) as proxy:
        before = await Raw.connect(proxy, long)
        assert await before.answer() == 200
        assert await proxy.application.reload(settings(limits=LIMITS)) == []
        after = await Raw.connect(proxy, long)
        assert await after.answer() == 414
        await before.send(long)
        assert await before.answer() == 200
        for client in (before, after):
            client.leave()


async def test_trailers_are_bounded_as_headers_are(settings: Callable[..., Settings]) -> None:
    """All of them together, not each; what comes too much ends the connection, answered or not, and is counted."""
    async with running(settings()) as proxy:
        client = await Raw.connect(proxy, b"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await client.answer() == 200
        with contextlib.suppress(ConnectionError):
            await client.send(b"0\r\n")
            for number in range(20):
                await client.send(b"X-%d: " % number + b"a" * 16000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert await client.end() == b""
        client.leave()
        assert await proxy.metric('pullthrough_client_refusals_total{reason="header-size"}') == 1
