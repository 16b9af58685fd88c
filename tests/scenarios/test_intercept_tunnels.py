"""What CONNECT tunnels: bytes as they are, to where the operator allows it, until both sides are done with it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.server import intercept_connect, intercept_tunnel
from proxy.settings import Settings
from proxy.telemetry.events import RequestFinished
from tests.fakes.authority import Authority, Pair
from tests.fakes.clock import LoopClock
from tests.fakes.content import random_bytes
from tests.fakes.nodes import Signer, connect
from tests.fakes.peer import Peer, Streams, all_of, peer
from tests.fakes.proxy import Proxy, running
from tests.fakes.raw import Raw
from tests.scenarios.fills import MIB, until

MakeSettings = Callable[..., Settings]
IDLE = intercept_connect._IDLE

# A fault.


@pytest.fixture
def tunnels(monkeypatch: pytest.MonkeyPatch) -> list[intercept_tunnel.Tunnel]:
    """Those that were dialled; they may lead to this machine."""
    made: list[intercept_tunnel.Tunnel] = []

    class Kept(intercept_tunnel.Tunnel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(intercept_connect, "Tunnel", Kept)
    monkeypatch.setattr(intercept_tunnel, "tunnel_refusal", lambda _host: None)
    monkeypatch.setattr("proxy.policy.intercept.tunnel_refusal", lambda _host: None)
    return made


@pytest.fixture
async def server() -> AsyncIterator[Peer]:
    """Whom a client asks for."""
    async with peer() as started:
        yield started


@pytest.fixture
async def proxy(
    settings: MakeSettings, signer: Signer, server: Peer, tunnels: list[intercept_tunnel.Tunnel]
) -> AsyncIterator[Proxy]:
    """A proxy that tunnels to it."""
    async with running(settings(listen=[signer.listener(connect=True, tunnel=[server.address])])) as started:
        yield started


@asynccontextmanager
async def opened(proxy: Proxy, server: Peer, **how: Any) -> AsyncIterator[tuple[Streams, Streams]]:
    """The client's end of a tunnel, and the server's."""
    client = await Raw.connect(proxy, connect(server.address), **how)
    assert await client.answer() == 200
    assert client.headers == {}
    yield (client._reader, client._writer), await server.connection()
    client.leave()


async def exchange(sender: asyncio.StreamWriter, receiver: asyncio.StreamReader, content: bytes = b"once") -> None:
    """Send it at the one end; it comes out at the other."""
    sender.write(content)
    async with asyncio.timeout(20):
        _, came = await asyncio.gather(sender.drain(), receiver.readexactly(len(content)))
    assert came == content


def reset(writer: asyncio.StreamWriter) -> None:
    """End it with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


def connections(proxy: Proxy) -> int:
    return len(proxy.application._gate)


# What goes through.


async def test_bytes_are_what_they_were(proxy: Proxy, server: Peer, finished: list[RequestFinished]) -> None:
    """Megabytes both ways at once; the record says what went to the client, and to where, once it is over."""
    up, down = random_bytes(5 * MIB, 87), random_bytes(7 * MIB, 88)
    async with opened(proxy, server) as ((reader, writer), (there, back)):
        await asyncio.gather(exchange(writer, there, up), exchange(back, reader, down))
        assert not finished
        writer.write_eof()
        assert await all_of(there) == b""
        back.close()
        await until(lambda: len(finished) == 1)
    (told,) = finished
    assert (told.method, told.status, told.reference, told.bytes_sent) == ("CONNECT", 200, server.address, len(down))
    assert (told.cluster, told.registry, told.kind, told.cache, told.client) == (
        "default", "", "other", "pass", "127.0.0.1",
    )  # fmt: skip
    labels = 'cache="pass",cluster="default",kind="other",'
    assert await proxy.metric(f'pullthrough_requests_total{{{labels}method="CONNECT",registry="",status="200"}}') == 1
    assert await proxy.metric(f"pullthrough_client_bytes_total{{{labels}") == len(down)
    await until(lambda: connections(proxy) == 0)


async def test_a_server_that_speaks_first(proxy: Proxy, server: Peer) -> None:
    """What it says comes after the 200, all of it."""
    client = await Raw.connect(proxy)
    said = random_bytes(300_000, 89)
    await client.send(connect(server.address))
    _, back = await server.connection()
    back.write(said)
    back.close()
    assert await client.answer() == 200
    assert await client.end() == said


async def test_a_client_that_is_done_first(proxy: Proxy, server: Peer, finished: list[RequestFinished]) -> None:
    """It hears the rest of what the server says to it; then all is over."""
    async with opened(proxy, server) as ((reader, writer), (there, back)):
        writer.write(b"all there is")
        writer.write_eof()
        assert await all_of(there) == b"all there is"
        await exchange(back, reader, random_bytes(2 * MIB, 90))
        assert not finished
        back.close()
        assert await all_of(reader) == b""
        await until(lambda: len(finished) == 1)


async def test_a_server_that_is_done_first(proxy: Proxy, server: Peer, finished: list[RequestFinished]) -> None:
    """It hears the rest of what the client says to it; then all is over."""
    async with opened(proxy, server) as ((reader, writer), (there, back)):
        back.write(b"all there is")
        back.write_eof()
        assert await all_of(reader) == b"all there is"
        await exchange(writer, there, random_bytes(2 * MIB, 91))
        assert not finished
        writer.close()
        assert await all_of(there) == b""
        await until(lambda: len(finished) == 1)
    assert finished[0].bytes_sent == len(b"all there is")


@pytest.mark.parametrize("who", ["client", "server"])
async def test_one_that_breaks_off(proxy: Proxy, server: Peer, finished: list[RequestFinished], who: str) -> None:
    """The other one hears the end at once."""
    async with opened(proxy, server) as ((reader, writer), (there, back)):
        await exchange(writer, there)
        reset(writer if who == "client" else back)
        assert await all_of(there if who == "client" else reader) == b""
        await until(lambda: len(finished) == 1)
        await until(lambda: connections(proxy) == 0)


@pytest.mark.parametrize("who", ["client", "server"])
async def test_one_that_does_not_read(
    proxy: Proxy, server: Peer, tunnels: list[intercept_tunnel.Tunnel], who: str
) -> None:
    """The other one is not read from, so that little is kept, however much it sends; nothing is lost of it."""
    content = random_bytes(48 * MIB, 92)
    async with opened(proxy, server) as ((reader, writer), (there, back)):
        sender, receiver = (back, reader) if who == "client" else (writer, there)
        sender.write(content)
        (tunnel,) = tunnels
        near, far = (tunnel._client, tunnel._server) if who == "client" else (tunnel._server, tunnel._client)
        assert near.transport is not None and far.transport is not None
        source = far.transport
        await until(lambda: not source.is_reading())
        # Nothing moves any more: both ends' systems are full.
        assert sender.transport.get_write_buffer_size() > 8 * MIB
        assert near.transport.get_write_buffer_size() < MIB
        # The other way goes on.
        await (exchange(writer, there) if who == "client" else exchange(back, reader))
        async with asyncio.timeout(20):
            assert await receiver.readexactly(len(content)) == content
        assert source.is_reading()


# How long.


async def test_one_that_carries_nothing(
    proxy: Proxy, server: Peer, timers: LoopClock, finished: list[RequestFinished]
) -> None:
    """Ends after a while, for both; whatever goes through, either way, begins that while anew."""
    async with opened(proxy, server) as ((reader, writer), (there, back)):
        for sender, receiver in ((writer, there), (back, reader), (writer, there)):
            await timers.advance(IDLE - 5)
            await exchange(sender, receiver)
        await timers.advance(IDLE - 5)
        assert not finished
        await timers.advance(6)
        assert await all_of(reader) == await all_of(there) == b""
        await until(lambda: len(finished) == 1)
    assert finished[0].seconds >= 4 * (IDLE - 5)
    await until(lambda: connections(proxy) == 0)


async def test_half_a_one_that_carries_nothing(
    proxy: Proxy, server: Peer, timers: LoopClock, finished: list[RequestFinished]
) -> None:
    """Also where one side has said all it has to say."""
    async with opened(proxy, server) as ((reader, writer), (there, _)):
        writer.write_eof()
        assert await all_of(there) == b""
        await timers.advance(IDLE + 1)
        assert await all_of(reader) == b""
        await until(lambda: len(finished) == 1)


async def test_a_server_that_takes_nothing_when_its_client_has_left(
    proxy: Proxy, server: Peer, timers: LoopClock, tunnels: list[intercept_tunnel.Tunnel],
    finished: list[RequestFinished],
) -> None:  # fmt: skip
    """It is waited for no longer than that."""
    async with opened(proxy, server) as ((_, writer), _):
        writer.write(random_bytes(48 * MIB, 93))
        source = tunnels[0]._client.transport
        assert source is not None
        await until(lambda: not source.is_reading())
        # The proxy reads nothing, so it sees this only when it is told that the client resets.
        source.abort()
        await until(lambda: tunnels[0]._client.ended.done())
        await timers.advance(IDLE + 1)
        for _ in range(20):
            await asyncio.sleep(0)
        ended = len(finished)
    await timers.advance(IDLE + 1)
    await until(lambda: len(finished) == 1)
    assert ended == 1


async def test_the_proxys_end(
    settings: MakeSettings, signer: Signer, server: Peer, tunnels: list[intercept_tunnel.Tunnel],
    finished: list[RequestFinished],
) -> None:  # fmt: skip
    """Ends it for both sides, at once, and its record is written."""
    listen = [signer.listener(connect=True, tunnel=[server.address])]
    async with running(settings(listen=listen)) as proxy:
        client = await Raw.connect(proxy, connect(server.address))
        assert await client.answer() == 200
        there, back = await server.connection()
        await exchange(back, client._reader)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    assert await all_of(there) == b""
    assert await client.end() == b""
    assert [(one.method, one.status, one.bytes_sent) for one in finished] == [("CONNECT", 200, len(b"once"))]


async def test_it_makes_no_room(
    settings: MakeSettings, signer: Signer, server: Peer, tunnels: list[intercept_tunnel.Tunnel], timers: LoopClock
) -> None:
    """It is one of the connections that there may be, and is not ended for others, however quiet it is."""
    listen = [signer.listener(connect=True, tunnel=[server.address])]
    async with running(settings(listen=listen, limits={"max_connections": 1})) as proxy:
        async with opened(proxy, server) as ((_, writer), (there, _)):
            await timers.advance(60)
            more = await Raw.connect(proxy, connect(server.address))
            assert await more.answer() == 503
            more.leave()
            await exchange(writer, there)
            assert server.came.empty()


# Over TLS.


@pytest.fixture
def over_tls(settings: MakeSettings, signer: Signer, server: Peer, server_pair: Pair) -> Iterator[Settings]:
    """Settings of an HTTPS proxy that tunnels to the server."""
    tls = {"certificate": str(server_pair.certificate), "key": str(server_pair.key)}
    yield settings(listen=[signer.listener(connect=True, tls=tls, tunnel=[server.address])])


async def test_an_https_proxy(
    over_tls: Settings, server: Peer, authority: Authority, tunnels: list[intercept_tunnel.Tunnel],
    finished: list[RequestFinished],
) -> None:  # fmt: skip
    """Carries the same, and ends when its client leaves."""
    async with running(over_tls) as proxy:
        async with opened(proxy, server, tls=authority.client()) as ((reader, writer), (there, back)):
            up, down = random_bytes(3 * MIB, 94), random_bytes(3 * MIB, 95)
            await asyncio.gather(exchange(writer, there, up), exchange(back, reader, down))
            writer.close()
            assert await all_of(there) == b""
            await until(lambda: len(finished) == 1)
        assert finished[0].bytes_sent == len(down)


async def test_an_https_proxy_and_a_server_that_is_done(
    over_tls: Settings, server: Peer, authority: Authority, tunnels: list[intercept_tunnel.Tunnel]
) -> None:
    """Its client hears the end, as it does without TLS."""
    async with running(over_tls) as proxy:
        async with opened(proxy, server, tls=authority.client()) as ((reader, _), (_, back)):
            back.write(b"all there is")
            back.close()
            async with asyncio.timeout(10):
                assert await reader.readexactly(12) == b"all there is"
            ended = False
            try:
                async with asyncio.timeout(2):
                    ended = await reader.read() == b""
            except TimeoutError:
                pass
    assert ended


async def test_an_https_proxy_writes_no_line_about_it(
    over_tls: Settings, server: Peer, authority: Authority, tunnels: list[intercept_tunnel.Tunnel],
    caplog: pytest.LogCaptureFixture, finished: list[RequestFinished],
) -> None:  # fmt: skip
    """A client that leaves in TLS's own way is nothing to tell."""
    async with running(over_tls) as proxy:
        async with opened(proxy, server, tls=authority.client()) as ((_, writer), (there, _)):
            writer.close()
            assert await all_of(there) == b""
            await until(lambda: len(finished) == 1)
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []
