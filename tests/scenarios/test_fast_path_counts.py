"""Answers by bytes are counted, logged and remembered as all are, and keep to their share of memory."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from proxy.cache.manifests import Manifests
from proxy.server.answers import Answers
from proxy.settings import Settings
from proxy.telemetry.logs import flush_logging
from tests.fakes.content import make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import put
from tests.scenarios.operators import tag
from tests.scenarios.repeats import TAG, Client, Counts, asked, repeat, request
from tests.scenarios.test_from_memory import access_lines

IMAGE = make_image(10, seed=1)
GET, HEAD = request(), request(method="HEAD")
SMALL = random_bytes(1000, 5)


async def counted(proxy: Proxy, **labels: str) -> tuple[float, float, float]:
    """Of all requests with these labels: how many there were, their bytes, and how many times to a first byte."""
    method = labels.pop("method", "GET")
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    async with proxy.session.get(proxy.admin_url + "/metrics") as response:
        lines = (await response.text()).splitlines()

    def total(name: str, *labels: str) -> float:
        found = [line for line in lines if line.startswith(name) and all(one in line for one in labels)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    return (
        total("pullthrough_requests_total", *wanted, f'method="{method}"'),
        total("pullthrough_client_bytes_total", *[one for one in wanted if not one.startswith("status")]),
        total("pullthrough_request_seconds_count", *[one for one in wanted if one.startswith(("kind", "cache"))]),
    )


async def test_metrics(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """Requests, bytes and times: one for each, under the labels that the handler's have."""
    registry.push("team/app", "v1", IMAGE)
    labels = {"cluster": "default", "registry": "registry.test", "kind": "manifest", "cache": "hit", "status": "200"}
    async with running(settings()) as proxy:
        await repeat(proxy, GET)
        await repeat(proxy, HEAD)
        requests, size, times = await counted(proxy, **labels)
        heads = (await counted(proxy, method="HEAD", **labels))[0]
        with counts.none():
            client = await Client.to(proxy)
            for _ in range(10):
                await client.ask(GET)
                await client.ask(HEAD)
            client.leave()
        after = await counted(proxy, **labels)
        assert after == (requests + 10, size + 10 * len(IMAGE.manifest), times + 20)
        assert (await counted(proxy, method="HEAD", **labels))[0] == heads + 10


async def test_those_of_a_range(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """206, and the bytes of the range."""
    path = put(registry, SMALL)
    labels = {"kind": "blob", "status": "206", "cache": "hit"}
    async with running(settings()) as proxy:
        await asked(proxy, request(path))
        await proxy.stored(1)
        ranged = request(path, "Range: bytes=0-99")
        await asked(proxy, ranged, 206)
        before = await counted(proxy, **labels)
        with counts.none():
            await asked(proxy, ranged, 206)
        requests, size, times = await counted(proxy, **labels)
        assert requests == before[0] + 1
        assert times == before[2] + 1
        assert size == before[1] + 100


async def test_after_a_client_that_left(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its head was about to be sent: that was no answer, and those who come later are not counted like it."""
    registry.push("team/app", "v1", IMAGE)
    get = Manifests.get
    labels = {"kind": "manifest", "method": "HEAD"}
    async with running(settings()) as proxy:
        await asked(proxy, GET)
        leaving = await Client.to(proxy)

        async def leaves(self: Manifests, *arguments: Any) -> Any:
            found = await get(self, *arguments)
            assert leaving.connection.transport is not None
            # What a client's FIN comes to; its handler hears of it one turn of the loop later.
            leaving.connection.transport.close()
            return found

        monkeypatch.setattr(Manifests, "get", leaves)
        await leaving.send(HEAD)
        await leaving.end()
        monkeypatch.setattr(Manifests, "get", get)
        assert (await counted(proxy, status="499", **labels))[0] == 1
        for _ in range(3):
            await asked(proxy, HEAD)
        assert (await counted(proxy, status="499", **labels))[0] == 1
        assert (await counted(proxy, status="200", **labels))[0] == 3


async def test_access_lines(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """One for each, as the handler's but for its client and its seconds."""
    registry.push("team/app", "v1", IMAGE)
    with access_lines() as text:
        async with running(settings()) as proxy:
            await repeat(proxy, GET)
            await repeat(proxy, HEAD)
            flush_logging()
            text.seek(0)
            text.truncate()
            with counts.none():
                for source in ("127.0.0.1", "127.0.0.2"):
                    await asked(proxy, GET, source=source)
                    await asked(proxy, HEAD, source=source)
            # The same as if it had been parsed: with another header it is.
            await asked(proxy, request(TAG, "X: y"), source="127.0.0.1")
            flush_logging()
            lines = [re.sub(r"^\S+ | seconds=\S+$", "", line) for line in text.getvalue().splitlines()]
    assert len(lines) == 5
    first = lines[4]
    assert lines[0] == first
    assert lines[1] == first.replace("GET", "HEAD").replace(f"bytes={len(IMAGE.manifest)}", "bytes=0")
    assert lines[2] == first.replace("127.0.0.1", "127.0.0.2")
    assert lines[3] == lines[1].replace("127.0.0.1", "127.0.0.2")
    assert all("127.0.0." in line and "team/app" in line for line in lines)


async def test_pulls(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """A tag's history has each of them, with its client."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings()) as proxy:
        await repeat(proxy, GET)
        before = (await tag(proxy, "team/app:v1"))["pulls"]
        with counts.none():
            for source in ("127.0.0.2", "127.0.0.3", "127.0.0.3"):
                await asked(proxy, GET, source=source)
        found = await tag(proxy, "team/app:v1", nodes="true")
        assert found["pulls"] == before + 3
        nodes = {node["address"]: node["pulls"] for node in found["history"][0]["nodes"]}
        assert nodes == {"127.0.0.1": before, "127.0.0.2": 1, "127.0.0.3": 2}


def held(table: Answers) -> int:
    """The bytes of all keys and bodies in it."""
    keys = [part for key in table._answers._entries if isinstance(key, tuple) for part in key]
    bodies = [entry.value.body for entry in table._answers._entries.values()]
    return sum(len(part) for part in (*keys, *bodies) if isinstance(part, str | bytes))


@pytest.mark.parametrize("what", ["paths", "headers", "blobs"])
async def test_memory_is_bounded(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: object, what: str
) -> None:
    """However many distinct requests come: addresses, other headers, or small blobs."""
    registry.push("team/app", "v1", IMAGE)
    limit = 256 * 1024
    cache = {"directory": f"{tmp_path}/cache", "max_size": "1GiB", "min_free": 0, "memory": "256KiB"}
    blobs = [put(registry, random_bytes(5000, number)) for number in range(40)]
    async with running(settings(cache=cache)) as proxy:
        await repeat(proxy, GET)
        client = await Client.to(proxy)
        assert proxy.application._handlers is not None
        table = proxy.application._handlers.house.answers
        for number in range(300):
            if what == "paths":
                sent = request(f"{TAG}?x={number}")
            elif what == "headers":
                sent = request(TAG, f"X-Id: {number}")
            else:
                sent = request(blobs[number % len(blobs)])
            await client.ask(sent)
            assert held(table) <= table._answers.size <= limit // 2
        assert table._answers.size > limit // 8
        client.leave()
