"""Where CONNECT tunnels to: where a name leads is judged when it is dialled; what cannot be reached is an error."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any

import pytest

from proxy.policy.intercept import tunnel_refusal
from proxy.server import intercept_tunnel
from proxy.settings import Settings
from proxy.telemetry.events import RequestFinished
from tests.fakes.authority import Authority, Pair
from tests.fakes.clock import LoopClock
from tests.fakes.nodes import Signer, connect
from tests.fakes.peer import Peer, all_of, peer
from tests.fakes.proxy import Proxy, running
from tests.fakes.raw import Raw
from tests.scenarios.fills import until

MakeSettings = Callable[..., Settings]
Names = dict[str, list[str] | Exception]


@pytest.fixture
async def server() -> AsyncIterator[Peer]:
    """Whom a client asks for."""
    async with peer() as started:
        yield started


@pytest.fixture
async def proxy(settings: MakeSettings, signer: Signer) -> AsyncIterator[Proxy]:
    """A proxy that tunnels to everybody who is public."""
    async with running(settings(listen=[signer.listener(connect=True, tunnel=["*", "*:8443"])])) as started:
        yield started


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """What the loop's resolver says of names below `test`; those that are not in it wait for ever."""
    table: Names = {}
    real = intercept_tunnel.look_up

    async def look_up(threads: Executor, host: str, port: int) -> list[tuple[Any, ...]]:
        if not host.endswith(".test"):
            return await real(threads, host, port)
        if host not in table:
            await asyncio.Event().wait()
        found = table[host]
        if isinstance(found, Exception):
            raise found
        return [(address, port) for address in found]

    monkeypatch.setattr(intercept_tunnel, "look_up", look_up)
    return table


def allow(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Take these addresses for public ones."""
    real = tunnel_refusal

    def refusal(host: str) -> str | None:
        return None if host in hosts else real(host)

    monkeypatch.setattr(intercept_tunnel, "tunnel_refusal", refusal)
    monkeypatch.setattr("proxy.policy.intercept.tunnel_refusal", refusal)


def connections(proxy: Proxy) -> int:
    return len(proxy.application._gate)


async def said(proxy: Proxy, target: str, status: int, code: str) -> str:
    """The message of the error that it is answered with, which ends the connection."""
    client = await Raw.connect(proxy, connect(target))
    assert await client.answer() == status
    assert client.code == code
    assert await client.end() == b""
    await until(lambda: connections(proxy) == 0)
    return client.body.decode()


def told(finished: list[RequestFinished]) -> list[tuple[str, int, str]]:
    return [(one.method, one.status, one.reference) for one in finished]


# What cannot be reached.


@pytest.mark.parametrize("host", ["127.0.0.1", "gone.test"])
async def test_a_server_that_refuses(
    settings: MakeSettings, signer: Signer, monkeypatch: pytest.MonkeyPatch, names: Names,
    finished: list[RequestFinished], host: str,
) -> None:  # fmt: skip
    """502, by address and by name; the record says so."""
    allow(monkeypatch, "127.0.0.1")
    names["gone.test"] = ["127.0.0.1"]
    # It is bound and does not listen, so nobody else has the port.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"{host}:{taken.getsockname()[1]}"
        async with running(settings(listen=[signer.listener(connect=True, tunnel=[target])])) as proxy:
            assert "cannot be reached" in await said(proxy, target, 502, "UNAVAILABLE")
            assert told(finished) == [("CONNECT", 502, target)]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), OSError("no resolver"), []])
async def test_a_name_that_leads_nowhere(
    proxy: Proxy, names: Names, finished: list[RequestFinished], error: Any
) -> None:
    """502, in words of our own."""
    names["gone.test"] = error
    assert "cannot be reached" in await said(proxy, "gone.test:443", 502, "UNAVAILABLE")
    assert told(finished) == [("CONNECT", 502, "gone.test:443")]


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".test", ".a"])
async def test_a_name_that_is_none(proxy: Proxy, caplog: pytest.LogCaptureFixture, host: str) -> None:
    """It passes for one, but no resolver takes it: an error to its client, and none in the log."""
    client = await Raw.connect(proxy, connect(f"{host}:443"))
    try:
        status = await client.answer()
    except (asyncio.IncompleteReadError, ConnectionError):
        status = 0
    client.leave()
    await until(lambda: connections(proxy) == 0)
    assert status in {400, 403, 502}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_one_that_does_not_answer(
    proxy: Proxy, names: Names, timers: LoopClock, finished: list[RequestFinished]
) -> None:
    """504, after its time; the client is not read from meanwhile."""
    client = await Raw.connect(proxy, connect("slow.test:443"))
    await until(lambda: connections(proxy) == 1)
    for _ in range(10):
        await asyncio.sleep(0)
    await timers.advance(intercept_tunnel._CONNECT - 1)
    assert not finished
    await timers.advance(1.1)
    assert await client.answer() == 504
    assert client.code == "UNAVAILABLE"
    assert await client.end() == b""
    assert told(finished) == [("CONNECT", 504, "slow.test:443")]
    assert finished[0].seconds >= intercept_tunnel._CONNECT


@pytest.mark.parametrize("how", ["leaves", "resets"])
async def test_a_client_that_leaves_while_it_is_dialled(
    settings: MakeSettings, signer: Signer, server: Peer, names: Names, monkeypatch: pytest.MonkeyPatch,
    finished: list[RequestFinished], how: str,
) -> None:  # fmt: skip
    """The server sees the end, and nothing stays."""
    allow(monkeypatch, "127.0.0.1")
    found = asyncio.Event()

    async def look_up(_threads: Executor, _host: str, port: int) -> list[tuple[Any, ...]]:
        await found.wait()
        return [("127.0.0.1", port)]

    monkeypatch.setattr(intercept_tunnel, "look_up", look_up)
    target = f"slow.test:{server.port}"
    async with running(settings(listen=[signer.listener(connect=True, tunnel=[target])])) as proxy:
        client = await Raw.connect(proxy, connect(target))
        await until(lambda: connections(proxy) == 1)
        for _ in range(10):
            await asyncio.sleep(0)
        if how == "resets":
            await client.reset()
        else:
            client.leave()
        found.set()
        reader, back = await server.connection()
        assert await all_of(reader) == b""
        back.close()
        await until(lambda: connections(proxy) == 0)
        assert told(finished) == [("CONNECT", 200, target)]


async def test_a_client_of_an_https_proxy_that_resets_while_it_is_dialled(
    settings: MakeSettings, signer: Signer, server: Peer, monkeypatch: pytest.MonkeyPatch, server_pair: Pair,
    authority: Authority, finished: list[RequestFinished],
) -> None:  # fmt: skip
    """It is seen at once there, and the look-up ends with it: nobody is dialled for a client that is gone."""
    looked_up = asyncio.Event()

    async def look_up(_threads: Executor, _host: str, _port: int) -> list[tuple[Any, ...]]:
        looked_up.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(intercept_tunnel, "look_up", look_up)
    tls = {"certificate": str(server_pair.certificate), "key": str(server_pair.key)}
    target = f"slow.test:{server.port}"
    listen = [signer.listener(connect=True, tunnel=[target], tls=tls)]
    async with running(settings(listen=listen)) as proxy:
        for _ in range(3):
            looked_up.clear()
            client = await Raw.connect(proxy, connect(target), tls=authority.client())
            await looked_up.wait()
            await client.reset()
            await until(lambda: connections(proxy) == 0)
        await until(lambda: len(finished) == 3)
        assert {status for _, status, _ in told(finished)} == {499}


async def test_the_proxys_end_while_it_is_dialled(
    settings: MakeSettings, signer: Signer, names: Names, finished: list[RequestFinished]
) -> None:
    """Its client sees the end, and the record says that it was sent nothing."""
    async with running(settings(listen=[signer.listener(connect=True, tunnel=["*"])])) as proxy:
        client = await Raw.connect(proxy, connect("slow.test:443"))
        await until(lambda: connections(proxy) == 1)
        for _ in range(10):
            await asyncio.sleep(0)
    assert await client.end() == b""
    assert told(finished) == [("CONNECT", 499, "slow.test:443")]


# Where nothing leads.


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.100.100.200", "0.0.0.0"])
async def test_a_name_that_leads_inside(
    settings: MakeSettings, signer: Signer, server: Peer, names: Names, address: str
) -> None:
    """403, though the name itself is allowed; nothing is connected to."""
    names["rebound.test"] = [address]
    listen = [signer.listener(connect=True, tunnel=[f"rebound.test:{server.port}"])]
    async with running(settings(listen=listen)) as proxy:
        message = await said(proxy, f"rebound.test:{server.port}", 403, "DENIED")
        assert "nothing is tunnelled there" in message
        assert server.came.empty()


async def test_localhost(proxy: Proxy) -> None:
    """403: what it is called in the hosts file counts as little as any other name."""
    await said(proxy, "localhost:443", 403, "DENIED")


async def test_of_several_addresses_only_what_is_public_is_dialled(
    settings: MakeSettings, signer: Signer, server: Peer, names: Names,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where the other one stands first, and listens; a name is looked up once."""
    allow(monkeypatch, "127.0.0.2")
    names["mixed.test"] = ["127.0.0.1", "127.0.0.2"]
    listen = [signer.listener(connect=True, tunnel=[f"mixed.test:{server.port}"])]
    async with running(settings(listen=listen)) as proxy:
        other = await asyncio.start_server(server.connected, "127.0.0.2", server.port)
        client = await Raw.connect(proxy, connect(f"mixed.test:{server.port}"))
        assert await client.answer() == 200
        _, back = await server.connection()
        assert back.get_extra_info("sockname")[0] == "127.0.0.2"
        assert server.came.empty()
        client.leave()
        back.transport.abort()
        other.close()
        await other.wait_closed()


# What is allowed.


async def test_token_servers_are(
    settings: MakeSettings, signer: Signer, server: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the registries that are configured, without a word of the listener's; others are not."""
    allow(monkeypatch, "127.0.0.1")
    async with peer() as other:
        configured = settings({"token_realms": [server.address]}, listen=[signer.listener(connect=True)])
        async with running(configured) as proxy:
            client = await Raw.connect(proxy, connect(server.address))
            assert await client.answer() == 200
            reader, back = await server.connection()
            await client.send(b"hello")
            assert await reader.readexactly(5) == b"hello"
            client.leave()
            back.close()
            await said(proxy, other.address, 403, "DENIED")
            assert other.came.empty()


async def test_a_reload_takes_a_token_server_away(
    settings: MakeSettings, signer: Signer, server: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the next CONNECT on."""
    allow(monkeypatch, "127.0.0.1")
    listen = [signer.listener(connect=True)]
    async with running(settings({"token_realms": [server.address]}, listen=listen)) as proxy:
        assert await proxy.application.reload(settings(listen=listen)) == []
        await said(proxy, server.address, 403, "DENIED")
        assert server.came.empty()


@pytest.mark.parametrize(
    ("pattern", "target"),
    [
        ("*.allowed.test", "allowed.test:443"), ("*.allowed.test", "x.allowed.test:8443"),
        ("*.allowed.test", "x.allowed.test.evil:443"), ("x.test:8443", "x.test:443"), ("x.test:8443", "x.test:84430"),
        ("*", "x.test:25"), ("auth.*", "auth.test:22"),
    ],
)  # fmt: skip
async def test_what_a_pattern_does_not_allow(
    settings: MakeSettings, signer: Signer, names: Names, pattern: str, target: str
) -> None:
    """Other hosts, and other ports than 443 where it has none."""
    names[target.partition(":")[0]] = OSError("it was looked up")
    async with running(settings(listen=[signer.listener(connect=True, tunnel=[pattern])])) as proxy:
        client = await Raw.connect(proxy, connect(target))
        status = await client.answer()
        client.leave()
        assert status == 403


async def test_a_client_of_no_cluster(
    settings: MakeSettings, signer: Signer, names: Names, finished: list[RequestFinished]
) -> None:
    """403, and nobody's name is looked up for it."""
    clusters = [{"name": "far", "match": {"networks": ["10.0.0.0/8"]}}]
    listen = [signer.listener(connect=True, tunnel=["*"])]
    async with running(settings(listen=listen, clusters=clusters)) as proxy:
        await said(proxy, "public.test:443", 403, "DENIED")
    assert [(one.status, one.cluster) for one in finished] == [(403, "")]
