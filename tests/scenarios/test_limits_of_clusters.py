"""What a cluster may have: repositories, requests and bytes a second; the other clusters are none the worse."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.content import make_image, random_bytes
from tests.fakes.fleet import fleet, write_config
from tests.fakes.proxy import Answer, Served, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import KIB, MIB, put

IMAGE = make_image(2, seed=100)
TAG = "/v2/team/app/manifests/v1"


def clusters(**limited: Any) -> list[dict[str, Any]]:
    """One that is limited, for who names the host `limited`, and one that is not."""
    return [{"name": "limited", "match": {"hosts": ["limited"]}, **limited}, {"name": "free"}]


async def refused(proxy: Served) -> float:
    return await proxy.metric('pullthrough_client_refusals_total{reason="requests-per-second"}')


# Repositories.


@pytest.mark.parametrize("mode", ["transparent", "metadata-only"])
async def test_repositories(settings: Callable[..., Settings], registry: FakeRegistry, mode: str) -> None:
    """What does not match is 404 NAME_UNKNOWN, cached or not, whatever is asked of it, and nothing is dialled."""
    registry.push("team/app", "v1", IMAGE)
    registry.push("other/app", "v1", IMAGE)
    limited = clusters(repositories=["registry.test/team/*"], mode=mode)
    async with running(settings(clusters=limited)) as proxy:
        assert (await proxy.get(TAG, Host="limited")).status == 200
        assert (await proxy.get("/v2/other/app/manifests/v1")).status == 200
        registry.seen.clear()
        for path in (
            "/v2/other/app/manifests/v1", f"/v2/other/app/manifests/{IMAGE.digest}", "/v2/other/app/tags/list",
            f"/v2/other/app/blobs/{IMAGE.digest}", f"/v2/other/app/referrers/{IMAGE.digest}",
            "/v2/registry.test/other/app/manifests/v1", "/v2/team/manifests/v1",
        ):  # fmt: skip
            answer = await proxy.get(path, Host="limited")
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
        assert not registry.seen
        assert (await proxy.get("/v2/", Host="limited")).status == 200
        assert await proxy.application.reload(settings(clusters=clusters(repositories=["*"]))) == []
        assert (await proxy.get("/v2/other/app/manifests/v1", Host="limited")).status == 200


# Requests.


async def test_requests_a_second(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst passes; then requests wait, and what would wait too long is 429 with Retry-After; others are free."""
    monkeypatch.setattr("proxy.server.pace._LONGEST_WAIT", 0.5)
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(clusters=clusters(limits={"requests_per_second": 4}))) as proxy:
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(proxy.get(TAG, Host="limited") for _ in range(60)))
        took = asyncio.get_running_loop().time() - began
        statuses = [answer.status for answer in answers]
        # Ten seconds' worth at once, and what comes within the longest wait.
        assert 40 + 2 <= statuses.count(200) <= 40 + 4 * (0.5 + took) + 1
        assert statuses.count(200) + statuses.count(429) == 60
        late = [answer for answer in answers if answer.status == 429]
        assert {answer.code for answer in late} == {"TOOMANYREQUESTS"}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in late)
        assert await refused(proxy) == len(late)
        assert (await proxy.get("/v2/", Host="limited")).status == 200
        free: list[Answer] = await asyncio.gather(*(proxy.get(TAG) for _ in range(60)))
        assert {answer.status for answer in free} == {200}
        # The same limits go on after a reload, and none is none.
        await proxy.application.reload(settings(clusters=clusters(limits={"requests_per_second": 4})))
        again = await asyncio.gather(*(proxy.get(TAG, Host="limited") for _ in range(20)))
        assert 429 in {answer.status for answer in again}
        await proxy.application.reload(settings(clusters=clusters()))
        again = await asyncio.gather(*(proxy.get(TAG, Host="limited") for _ in range(60)))
        assert {answer.status for answer in again} == {200}


async def test_who_leaves_while_it_waits(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """Its turn is the others'."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(clusters=clusters(limits={"requests_per_second": 1}))) as proxy:
        pace = proxy.application._handlers.house.paces["limited"]  # type: ignore[union-attr]
        assert {(await proxy.get(TAG, Host="limited")).status for _ in range(10)} == {200}
        waiting = [asyncio.create_task(proxy.get(TAG, Host="limited")) for _ in range(3)]
        async with asyncio.timeout(5):
            while pace._requests._level > -2:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        async with asyncio.timeout(5):
            while pace._requests._level < -1:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)


# Bytes.


@pytest.mark.parametrize(
    ("mode", "warm"),
    [("transparent", True), ("transparent", False), ("metadata-only", False)],
    ids=["warm", "cold", "passed through"],
)
async def test_bytes_a_second(settings: Callable[..., Settings], registry: FakeRegistry, mode: str, warm: bool) -> None:
    """All readers of the cluster together are no faster, each has its share, and other clusters are as fast as ever."""
    blob = random_bytes(MIB, 101)
    path = put(registry, blob)
    limited = clusters(limits={"bytes_per_second": "1MiB"}, mode=mode)
    async with running(settings(clusters=limited)) as proxy:
        loop = asyncio.get_running_loop()
        if warm:
            await proxy.get(path)
            await proxy.stored(1)
        began = loop.time()
        bodies = asyncio.gather(*(proxy.get(path, Host="limited") for _ in range(3)))
        free = await proxy.get(path)
        assert free.body == blob
        assert loop.time() - began < 1.5
        assert [answer.body for answer in await bodies] == [blob] * 3
        # One of the three is the burst.
        assert 1.9 <= loop.time() - began < 4


async def test_a_slow_rate_is_not_a_slow_client(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """Who waits for its cluster's rate for longer than `send_timeout` is not cut off."""
    blob = random_bytes(160 * KIB, 102)
    path = put(registry, blob)
    limited = clusters(limits={"bytes_per_second": "64KiB"})
    async with running(settings(clusters=limited, limits={"send_timeout": "100ms"})) as proxy:
        assert (await proxy.get(path, Host="limited")).body == blob


async def test_manifests_count_too(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """They leave at once, and bodies wait for them."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(clusters=clusters(limits={"bytes_per_second": "64KiB"}))) as proxy:
        pace = proxy.application._handlers.house.paces["limited"]  # type: ignore[union-attr]
        before = pace._bytes._level  # type: ignore[union-attr]
        assert (await proxy.get(TAG, Host="limited")).body == IMAGE.manifest
        assert before - pace._bytes._level == len(IMAGE.manifest)  # type: ignore[union-attr]


# Several workers.


async def test_workers_share_a_rate(tmp_path: Path, registry: FakeRegistry) -> None:
    """Each has its part, so that all together keep to the whole."""
    registry.push("team/app", "v1", IMAGE)
    limited = [{"name": "all", "limits": {"requests_per_second": 2}}]
    config = write_config(tmp_path, {"registry.test": {"url": registry.url}}, clusters=limited)
    async with fleet(config) as proxy:
        readers = [await Reader.connect(proxy) for _ in range(80)]
        for reader in readers:
            reader.ask(TAG)
        for reader in readers:
            await reader.head()
            reader.leave()
        passed = [reader.status for reader in readers].count(200)
        # Bursts of ten seconds' worth, and what waited for five.
        assert passed <= 20 + 10 + 4
        assert passed + [reader.status for reader in readers].count(429) == 80
        assert await refused(proxy) == 80 - passed
