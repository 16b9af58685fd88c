"""How many connections there may be, in all and of one client: the others are served, whatever one of them does."""

import asyncio
import logging
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from tests.fakes.clock import LoopClock
from tests.fakes.content import make_image, random_bytes
from tests.fakes.fleet import fleet, write_config
from tests.fakes.proxy import Proxy, Served, running
from tests.fakes.raw import Raw
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, put, until

IMAGE = make_image(2, seed=90)
TAG = "/v2/team/app/manifests/v1"
GET = f"GET {TAG} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
OTHER = "127.0.0.9"


async def refused(proxy: Served, reason: str) -> float:
    return await proxy.metric(f'pullthrough_client_refusals_total{{reason="{reason}"}}')


async def busy(proxy: Proxy, registry: FakeRegistry, count: int, source: str = "127.0.0.1") -> tuple[list[Raw], Gate]:
    """So many connections whose bodies wait for the upstream until the gate is opened."""
    path = put(registry, random_bytes(MIB, 91))
    registry.pause = gate = Gate(256 * KIB)
    clients = []
    for _ in range(count):
        client = await Raw.connect(proxy, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), source)
        assert await client.answer(body=False) == 200
        clients.append(client)
    await gate.reached.wait()
    return clients, gate


def limits(**more: object) -> dict[str, object]:
    return {"limits": {"idle_timeout": "20s"} | more}


async def test_one_client_too_many_times(
    settings: Callable[..., Settings], registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """While its connections are all busy, further ones get 429 with Retry-After; other addresses are served."""
    registry.push("team/app", "v1", IMAGE)
    # The test's own session asks for metrics elsewhere.
    async with running(settings(**limits(max_connections_per_client=3))) as proxy:
        clients, gate = await busy(proxy, registry, 3)
        with caplog.at_level(logging.WARNING):
            for _ in range(10):
                more = await Raw.connect(proxy, GET)
                assert await more.answer() == 429
                assert more.code == "TOOMANYREQUESTS"
                assert int(more.headers["retry-after"]) >= 1
                assert await more.end() == b""
        assert len([record for record in caplog.records if "client-connections" in record.getMessage()]) == 1
        other = await Raw.connect(proxy, GET, OTHER)
        assert await other.answer() == 200
        assert await refused(proxy, "client-connections") == 10
        gate.open()
        for client in [*clients, other]:
            client.leave()
        gate_of = proxy.application._gate
        await until(lambda: len(gate_of) == 0)
        again = await Raw.connect(proxy, GET)
        assert await again.answer() == 200
        again.leave()


async def test_too_many_in_all(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """While all are busy: 503, whoever asks. Operators come in all the same."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(**limits(max_connections=3))) as proxy:
        clients, gate = await busy(proxy, registry, 3)
        more = await Raw.connect(proxy, GET, OTHER)
        assert await more.answer() == 503
        assert more.code == "UNAVAILABLE"
        assert await refused(proxy, "connections") == 1
        gate.open()
        for client in [*clients, more]:
            client.leave()


async def test_idle_connections_make_room(
    settings: Callable[..., Settings], registry: FakeRegistry, timers: LoopClock
) -> None:
    """The ones that have been at rest the longest, used or not; a busy one goes on."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(**limits(max_connections=4))) as proxy:
        (client,), gate = await busy(proxy, registry, 1)
        silent = [await Raw.connect(proxy) for _ in range(2)]
        used = await Raw.connect(proxy, GET)
        assert await used.answer() == 200
        admission = proxy.application._gate._admission
        await until(lambda: len(admission._resting) == 3)
        await timers.advance(0.3)
        others = []
        for idle in [*silent, used]:
            others.append(await Raw.connect(proxy, GET, OTHER))
            assert await others[-1].answer() == 200
            assert await idle.end() == b""
        assert await refused(proxy, "made-room") == 3
        assert await refused(proxy, "connections") == 0
        gate.open()
        for one in [client, *others]:
            one.leave()


async def test_who_is_refused_and_says_nothing(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is let go after a moment; of very many only some are told why."""
    monkeypatch.setattr("proxy.server.connection._LAST_WORD", 1.0)
    monkeypatch.setattr("proxy.server.gate._MOST_TOLD", 2)
    async with running(settings(**limits(max_connections_per_client=1))) as proxy:
        clients, gate = await busy(proxy, registry, 1)
        silent = [await Raw.connect(proxy) for _ in range(5)]
        async with asyncio.timeout(0.8):
            assert [await one.end() for one in silent[2:]] == [b""] * 3
        assert [await one.end() for one in silent[:2]] == [b""] * 2
        assert await refused(proxy, "client-connections") == 5
        told = await Raw.connect(proxy, GET)
        assert await told.answer() == 429
        gate.open()
        for one in (clients[0], told):
            one.leave()


async def test_trusted_proxies_are_many_clients(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """Their connections are not counted as one client's; what they say in X-Forwarded-For changes nothing there."""
    registry.push("team/app", "v1", IMAGE)
    more = limits(max_connections_per_client=1) | {"trusted_proxies": ["127.0.0.9/32"]}
    async with running(settings(**more)) as proxy:
        balancers, gate = await busy(proxy, registry, 3, OTHER)
        client = await Raw.connect(proxy, GET)
        assert await client.answer() == 200
        assert await refused(proxy, "client-connections") == 0
        gate.open()
        for one in [*balancers, client]:
            one.leave()


async def test_new_limits_count_after_a_reload(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """For the connections that come then; those that are there stay."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings()) as proxy:
        clients, gate = await busy(proxy, registry, 2)
        await proxy.application.reload(settings(**limits(max_connections_per_client=2)))
        more = await Raw.connect(proxy, GET)
        assert await more.answer() == 429
        await proxy.application.reload(settings(**limits(max_connections_per_client=0)))
        again = await Raw.connect(proxy, GET)
        assert await again.answer() == 200
        gate.open()
        for client in [*clients, more, again]:
            client.leave()


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "slow heads"])
async def test_ten_thousand_connections(tmp_path: Path, registry: FakeRegistry, silent: bool) -> None:
    """From four addresses, idle or dripping their heads: another client is served meanwhile, and at once."""
    registry.push("team/app", "v1", IMAGE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard - 500)
    most = count * 4 // 5
    config = write_config(
        tmp_path, {"registry.test": {"url": registry.url}}, workers=1, limits={"max_connections": most}
    )
    clients: list[asyncio.Transport] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        async with fleet(config) as proxy:
            port = int(proxy.url.rpartition(":")[2])
            loop = asyncio.get_running_loop()
            for number in range(count):
                source = f"127.0.0.{2 + number % 4}"
                transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port, local_addr=(source, 0))
                clients.append(transport)
                if not silent:
                    transport.write(b"GET /v2/ HTTP/1.1\r\nX: x")
                if number % 1000 == 999:
                    began = loop.time()
                    other = await Raw.connect(proxy, GET, OTHER)
                    assert await other.answer() == 200
                    assert other.body == IMAGE.manifest
                    assert loop.time() - began < 2
                    other.leave()
            assert await refused(proxy, "made-room") + await refused(proxy, "connections") > 0
            assert not [line for line in proxy.program.lines if "Traceback" in line or " error " in line]
    finally:
        for transport in clients:
            transport.abort()
        await asyncio.sleep(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_several_workers(tmp_path: Path, registry: FakeRegistry) -> None:
    """What a client is refused is counted over all of them, and a reload reaches all."""
    registry.push("team/app", "v1", IMAGE)
    config = write_config(tmp_path, {"registry.test": {"url": registry.url}}, limits={"max_url_length": "1KiB"})
    long = f"GET {TAG}?x={'a' * 1500} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with fleet(config) as proxy:
        for _ in range(20):
            client = await Raw.connect(proxy, long)
            assert await client.answer() == 414
            client.leave()
        assert await refused(proxy, "url-length") == 20
        write_config(tmp_path, {"registry.test": {"url": registry.url}}, limits={"max_url_length": "2KiB"})
        proxy.program.signal(1)
        await proxy.program.says("reloaded")
        for _ in range(20):
            client = await Raw.connect(proxy, long)
            assert await client.answer() == 200
            client.leave()
