"""A listener that takes CONNECT: what begins otherwise is answered as anywhere, what is no good CONNECT is refused."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.server.connection import _LAST_WORD
from proxy.server.tls import HANDSHAKE_TIMEOUT
from proxy.settings import Settings
from proxy.telemetry.events import RequestFinished
from tests.fakes.clock import LoopClock
from tests.fakes.content import make_image
from tests.fakes.nodes import NAME, Node, Signer, connect, real_clock
from tests.fakes.proxy import Proxy, Served, running
from tests.fakes.raw import Raw
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import until

IMAGE = make_image(3000, seed=86)
TAG = "/v2/team/app/manifests/v1"
GET = f"GET {TAG} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
TARGET = f"{NAME}:443"

MakeSettings = Callable[..., Settings]

# Faults.


@pytest.fixture
def by_connect(settings: MakeSettings, signer: Signer) -> MakeSettings:
    """Settings with a listener that takes CONNECT and would tunnel to anybody, and an ordinary one."""
    listen = [signer.listener(connect=True, tunnel=["*"]), {"address": "127.0.0.1:0"}]

    def make(**more: object) -> Settings:
        return settings(**({"listen": listen} | more))

    return make


@pytest.fixture
async def proxy(by_connect: MakeSettings, registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """One of these, whose registry has the image."""
    registry.push("team/app", "v1", IMAGE)
    async with running(by_connect(), real_clock()) as started:
        yield started


async def refused(proxy: Served, reason: str) -> float:
    return await proxy.metric(f'pullthrough_client_refusals_total{{reason="{reason}"}}')


def connections(proxy: Proxy) -> int:
    return len(proxy.application._gate)


async def ordinary(proxy: Proxy) -> Raw:
    """A connection to the other listener."""
    where = proxy.application.listeners[1].address
    return Raw(*await asyncio.open_connection(where.host, where.port))


# What is none.


@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize(
    "sent",
    [
        GET, GET + GET, b"\r\n" + GET, b"CONN /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", b"C /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECTION /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", b"connect registry.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"COPY /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)  # fmt: skip
async def test_other_requests(proxy: Proxy, sent: bytes, pieces: str) -> None:
    """They are answered byte for byte as on a listener that knows of no CONNECT, also when they begin like one."""
    answers = []
    for client in (await Raw.connect(proxy), await ordinary(proxy)):
        for piece in [sent] if pieces == "whole" else [bytes([byte]) for byte in sent]:
            await client.send(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        answered = []
        for _ in range(sent.count(b"GET") or 1):
            answered.append((await client.answer(), client.body, sorted(client.headers)))
        answers.append(answered)
        client.leave()
    assert answers[0] == answers[1]
    assert (answers[0][0][0] == 200) is (b"GET" in sent)


async def test_a_connection_is_kept(proxy: Proxy, registry: FakeRegistry) -> None:
    """One request after another; a CONNECT that is not the first is none, and opens nothing."""
    client = await Raw.connect(proxy, GET)
    assert await client.answer() == 200
    await client.send(GET)
    assert await client.answer() == 200
    seen = len(registry.seen)
    await client.send(connect(TARGET))
    assert await client.answer() >= 400
    assert len(registry.seen) == seen
    client.leave()


# What is no good.


@pytest.mark.parametrize(
    "sent",
    [
        b"CONNECT registry.test:443\r\n\r\n", b"CONNECT registry.test:443 HTTP/2.0\r\n\r\n",
        b"CONNECT registry.test:443 HTTP/1.1 \r\n\r\n", b"CONNECT  registry.test:443 HTTP/1.1\r\n\r\n",
        b"CONNECT registry.test:443 \xff\r\n\r\n", b"CONNECT  HTTP/1.1 x\r\n\r\n",
        connect(TARGET) + b"\x16\x03\x01", connect(TARGET) + GET,
    ],
)  # fmt: skip
async def test_heads_that_are_malformed(proxy: Proxy, registry: FakeRegistry, sent: bytes) -> None:
    """And data that comes before the answer does: 400, and the end; counted."""
    client = await Raw.connect(proxy, sent)
    assert await client.answer() == 400
    assert client.code == "UNSUPPORTED"
    assert client.headers["connection"] == "close"
    assert await client.end() == b""
    assert await refused(proxy, "malformed") == 1
    await until(lambda: connections(proxy) == 0)
    assert not registry.seen


@pytest.mark.parametrize("ends", [False, pytest.param(True)], ids=["without an end", "whole"])
async def test_a_head_that_is_too_long(by_connect: MakeSettings, ends: bool) -> None:
    """431, and the end; counted."""
    limits = {"max_header_size": "1KiB", "max_url_length": "1KiB"}
    async with running(by_connect(limits=limits), real_clock()) as proxy:
        head = connect(TARGET)[:-2] + b"X: " + b"a" * 4000
        client = await Raw.connect(proxy, head + b"\r\n\r\n" * ends)
        status, counted = await client.answer(), await refused(proxy, "header-size")
        client.leave()
        assert (status, counted) == (431, 1)
        assert client.code == "UNSUPPORTED"


@pytest.mark.parametrize("sent", [b"", b"C", connect(TARGET)[:-1]], ids=["nothing", "one byte", "all but one"])
async def test_a_head_that_does_not_come(proxy: Proxy, timers: LoopClock, sent: bytes) -> None:
    """Its client is let go when its time is over, and not before; counted."""
    client = await Raw.connect(proxy, sent)
    await until(lambda: connections(proxy) == 1)
    limit = proxy.application._settings.limits.header_timeout
    await timers.advance(limit - 1)
    assert await refused(proxy, "header-timeout") == 0
    assert connections(proxy) == 1
    await timers.advance(1.1)
    assert await client.end() == b""
    assert await refused(proxy, "header-timeout") == 1
    await until(lambda: connections(proxy) == 0)


async def test_a_handshake_that_does_not_come(proxy: Proxy, timers: LoopClock) -> None:
    """After the 200 it has its time, and no more."""
    client = await Raw.connect(proxy, connect(TARGET))
    assert await client.answer() == 200
    await until(lambda: connections(proxy) == 1)
    await timers.advance(HANDSHAKE_TIMEOUT + 0.1)
    assert await client.end() == b""
    await until(lambda: connections(proxy) == 0)


@pytest.mark.parametrize(
    "target",
    [
        f"{NAME}:80", f"{NAME}:8443", NAME, f"{NAME}:", f"{NAME}:0", f"{NAME}:65536", ":443", "x@registry.test:443",
        f"sub.{NAME}:443", f"https://{NAME}:443", "-", "..:443",
    ],
)  # fmt: skip
async def test_what_is_not_configured(
    settings: MakeSettings, signer: Signer, finished: list[RequestFinished], target: str
) -> None:
    """Names, other ports, and what is no host with a port: 403 as an OCI error, and the end; the access record and
    the metrics say CONNECT."""
    async with running(settings(listen=[signer.listener(connect=True, tunnel=["*.allowed.test"])])) as proxy:
        client = await Raw.connect(proxy, connect(target))
        assert await client.answer() == 403
        assert client.code == "DENIED"
        assert await client.end() == b""
        assert [(one.method, one.status, one.cluster, one.registry, one.reference) for one in finished] == [
            ("CONNECT", 403, "default", "", "")
        ]
        name = 'pullthrough_requests_total{cache="pass",cluster="default",kind="other",method="CONNECT",registry="",'
        assert await proxy.metric(f'{name}status="403"}}') == 1
        await until(lambda: connections(proxy) == 0)


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:443", "127.0.0.1:443", "[::1]:443", "[::ffff:127.0.0.1]:443", "169.254.169.254:443", "[fe80::1]:443",
        "192.168.1.1:443", "168.63.129.16:443", "0.0.0.0:443", "[::]:443", "2130706433:443", "127.1:443",
        "0x7f.0.0.1:443", "127.0.0.1.:443", "[64:ff9b::7f00:1]:443", "224.0.0.1:443",
    ],
)  # fmt: skip
async def test_private_literals(proxy: Proxy, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """403 wherever they lead, though anybody else may be tunnelled to; nobody is asked to look them up."""
    client, looked_up = await Raw.connect(proxy), []

    async def look_up(*asked: object) -> list[object]:
        looked_up.append(asked)
        return []

    monkeypatch.setattr("proxy.server.intercept_tunnel.look_up", look_up)
    await client.send(connect(target))
    assert await client.answer() == 403
    assert client.code == "DENIED"
    assert "nothing is tunnelled there" in client.body.decode()
    assert await client.end() == b""
    assert looked_up == []


# Limits, and the end.


@pytest.mark.parametrize("sent", [connect(TARGET), GET], ids=["CONNECT", "GET"])
@pytest.mark.parametrize(
    ("limit", "reason", "status"),
    [("max_connections", "connections", 503), ("max_connections_per_client", "client-connections", 429)],
)
async def test_too_many_connections(
    by_connect: MakeSettings, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, signer: Signer,
    sent: bytes, limit: str, reason: str, status: int,
) -> None:  # fmt: skip
    """One more is told so as soon as it has sent something; of those there are some have not said what they want."""
    registry.push("team/app", "v1", IMAGE)
    monkeypatch.setattr("proxy.policy.admission._SETTLED", 100.0)
    async with running(by_connect(limits={limit: 2}), real_clock()) as proxy:
        silent = await Raw.connect(proxy)
        node = await Node.by_connect(proxy, signer.trust())
        more = await Raw.connect(proxy, sent[:1])
        assert await more.answer() == status
        assert more.code == ("UNAVAILABLE" if status == 503 else "TOOMANYREQUESTS")
        assert int(more.headers["retry-after"]) >= 1
        assert await more.end() == b""
        assert await refused(proxy, reason) == 1
        assert await node.ask(TAG) == 200
        for one in (silent, node):
            one.leave()


async def test_who_does_not_go_on_keeps_nobody_out(
    by_connect: MakeSettings, registry: FakeRegistry, timers: LoopClock
) -> None:
    """Who connects, or sends a CONNECT, and then nothing makes room for others."""
    registry.push("team/app", "v1", IMAGE)
    async with running(by_connect(limits={"max_connections": 2}), real_clock()) as proxy:
        hanging = [await Raw.connect(proxy, connect(TARGET)) for _ in range(2)]
        assert [await one.answer() for one in hanging] == [200, 200]
        await timers.advance(1)
        client = await Raw.connect(proxy, GET)
        status = await client.answer()
        for one in (*hanging, client):
            one.leave()
    assert status == 200


@pytest.mark.parametrize("connects", [True, False])
async def test_who_is_refused_and_says_nothing(
    settings: MakeSettings, signer: Signer, timers: LoopClock, monkeypatch: pytest.MonkeyPatch, connects: bool
) -> None:
    """Is let go after a moment, as at other listeners: few can be told why at a time."""
    monkeypatch.setattr("proxy.policy.admission._SETTLED", 100.0)
    listen, limits = [signer.listener(connect=connects)], {"max_connections": 1}
    async with running(settings(listen=listen, limits=limits), real_clock()) as proxy:
        clients = [await Raw.connect(proxy) for _ in range(2)]
        told = proxy.application._gate._told
        await until(lambda: len(told) == 1)
        for _ in range(10):
            await asyncio.sleep(0)
        await timers.advance(_LAST_WORD + 0.1)
        for _ in range(10):
            await asyncio.sleep(0)
        left = len(told)
        for client in clients:
            client.leave()
    assert not left


@pytest.mark.parametrize(
    "sent",
    [connect(TARGET), pytest.param(connect(TARGET)[:-1]), pytest.param(b"")],
    ids=["handshake", "head", "nothing"],
)
async def test_the_proxys_end(by_connect: MakeSettings, sent: bytes) -> None:
    """Whatever is under way ends with it, and its client sees that."""
    async with running(by_connect(), real_clock()) as proxy:
        client = await Raw.connect(proxy, sent)
        await until(lambda: connections(proxy) == 1)
        if sent.endswith(b"\r\n\r\n"):
            assert await client.answer() == 200
    try:
        async with asyncio.timeout(2):
            ended = await client._reader.read() == b""
    except TimeoutError:
        ended = False
    client.leave()
    await until(lambda: connections(proxy) == 0)
    assert ended


async def test_a_connect_after_the_proxys_end(by_connect: MakeSettings) -> None:
    """Nothing is begun any more."""
    async with running(by_connect(), real_clock()) as proxy:
        client = await Raw.connect(proxy)
        await until(lambda: connections(proxy) == 1)
    await client.send(connect(TARGET))
    said = b""
    try:
        async with asyncio.timeout(2):
            said = await client._reader.read(12)
    except TimeoutError:
        pass
    client.leave()
    await until(lambda: connections(proxy) == 0)
    assert said == b""
