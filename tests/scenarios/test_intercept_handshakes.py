"""Clients that come to a listener in registries' names and do not get through their handshake: nobody else feels it."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.server.tls import HANDSHAKE_TIMEOUT
from proxy.settings import Settings
from tests.fakes.clock import LoopClock
from tests.fakes.content import make_image
from tests.fakes.nodes import Node, Signer, real_clock
from tests.fakes.proxy import Proxy, running
from tests.fakes.raw import Raw
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import until

IMAGE = make_image(2, seed=83)
TAG = "/v2/team/app/manifests/v1"
# The beginning of a ClientHello.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

MakeSettings = Callable[..., Settings]


@pytest.fixture
def trust(signer: Signer) -> ssl.SSLContext:
    """What nodes go by."""
    return signer.trust()


@pytest.fixture
async def by_name(settings: MakeSettings, signer: Signer, registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy that answers in the registry's name."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(listen=[signer.listener()]), real_clock()) as proxy:
        yield proxy


async def refused(proxy: Proxy, reason: str) -> float:
    return await proxy.metric(f'pullthrough_client_refusals_total{{reason="{reason}"}}')


async def served(proxy: Proxy, trust: ssl.SSLContext) -> None:
    """Another client is. Connections are accepted in their order, so whoever came before has been by then."""
    node = await Node.by_name(proxy, trust)
    assert await node.ask(TAG) == 200
    node.leave()


@pytest.mark.parametrize("sent", [b"", HELLO], ids=["nothing", "half a hello"])
async def test_who_does_not_go_on(by_name: Proxy, trust: ssl.SSLContext, timers: LoopClock, sent: bytes) -> None:
    """Is let go when its time is over, and not before; others are served meanwhile."""
    client = await Raw.connect(by_name, sent)
    await served(by_name, trust)
    await timers.advance(HANDSHAKE_TIMEOUT - 1)
    await served(by_name, trust)
    await until(lambda: len(by_name.application._gate) == 1)
    await timers.advance(1.1)
    assert await client.end() == b""
    await until(lambda: len(by_name.application._gate) == 0)


async def test_who_says_nothing_in_tls(by_name: Proxy, trust: ssl.SSLContext, timers: LoopClock) -> None:
    """It has the time that heads have, and that is counted as for everybody."""
    node = await Node.by_name(by_name, trust)
    await until(lambda: len(by_name.connections) == 1)
    await timers.advance(by_name.application._settings.limits.header_timeout + 0.1)
    assert await node.end() == b""
    assert await refused(by_name, "header-timeout") == 1


@pytest.mark.parametrize("how", ["plain HTTP", "noise", "leaves", "resets", "resets halfway"])
async def test_handshakes_that_fail(
    by_name: Proxy, trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The connection is closed, nothing of it stays, and no line above debug is written."""
    sent = {"plain HTTP": f"GET {TAG} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), "noise": bytes(range(256))}
    client = await Raw.connect(by_name, sent.get(how, HELLO if how == "resets halfway" else b""))
    if how == "leaves":
        client.leave()
    elif how in sent:
        assert not (await client.end()).startswith(b"HTTP")
    else:
        await client.reset()
    await served(by_name, trust)
    await until(lambda: len(by_name.application._gate) == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_client_that_does_not_trust_it(by_name: Proxy, trust: ssl.SSLContext) -> None:
    """It ends the handshake itself, and nothing of it stays."""
    with pytest.raises(ssl.SSLCertVerificationError):
        await Node.by_name(by_name, ssl.create_default_context())
    await served(by_name, trust)
    await until(lambda: len(by_name.application._gate) == 0)


@pytest.mark.parametrize(
    ("limit", "reason", "status"),
    [("max_connections", "connections", 503), ("max_connections_per_client", "client-connections", 429)],
)
async def test_handshakes_are_connections(
    settings: MakeSettings, signer: Signer, registry: FakeRegistry, trust: ssl.SSLContext, timers: LoopClock,
    monkeypatch: pytest.MonkeyPatch, limit: str, reason: str, status: int,
) -> None:  # fmt: skip
    """So many in all, and of one client: one more is told so in TLS once it asks. Those that have been in theirs for
    a while make room."""
    registry.push("team/app", "v1", IMAGE)
    monkeypatch.setattr("proxy.policy.admission._SETTLED", 5.0)
    async with running(settings(listen=[signer.listener()], limits={limit: 2}), real_clock()) as proxy:
        silent = [await Raw.connect(proxy) for _ in range(2)]
        more = await Node.by_name(proxy, trust)
        assert await more.ask(TAG) == status
        assert int(more.headers["retry-after"]) >= 1
        assert await more.end() == b""
        assert await refused(proxy, "made-room") == 0
        await timers.advance(5.1)
        node = await Node.by_name(proxy, trust)
        assert await node.ask(TAG) == 200
        assert await refused(proxy, "made-room") == 1
        assert await silent[0].end() == b""
        for one in (silent[1], node):
            one.leave()


async def test_one_that_is_too_many_is_counted_once(
    settings: MakeSettings, signer: Signer, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on other listeners: a connection that is refused is one refusal."""
    monkeypatch.setattr("proxy.policy.admission._SETTLED", 100.0)
    async with running(settings(listen=[signer.listener()], limits={"max_connections": 1}), real_clock()) as proxy:
        silent = await Raw.connect(proxy)
        more = await Node.by_name(proxy, trust)
        status, counted = await more.ask(TAG), await refused(proxy, "connections")
        more.leave()
        silent.leave()
        assert (status, counted) == (503, 1)


@pytest.mark.parametrize("sent", [b"", HELLO], ids=["nothing", "half a hello"])
async def test_the_end(
    settings: MakeSettings, signer: Signer, registry: FakeRegistry, trust: ssl.SSLContext, sent: bytes
) -> None:
    """Of the proxy: a handshake that hangs holds nothing up, and its client sees the end, as an idle one does."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(listen=[signer.listener()]), real_clock()) as proxy:
        client = await Raw.connect(proxy, sent)
        idle = await Node.by_name(proxy, trust)
        assert await idle.ask(TAG) == 200
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 5
    assert await client.end() == b""
    assert await idle.end() == b""
