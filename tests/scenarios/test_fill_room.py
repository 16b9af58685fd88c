"""Trouble with the cache is never the client's error, and fills stay within the cache's room."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, came_in, no_fill_runs, put

BLOBS = [random_bytes(2 * MIB, 800 + number) for number in range(4)]
BYPASS = "pullthrough; fwd=bypass; detail=cache-trouble"


def small_cache(tmp_path: Path, size: str) -> dict[str, Any]:
    return {"cache": {"directory": str(tmp_path / "cache"), "max_size": size, "min_free": 0}}


async def bypasses(proxy: Proxy) -> float:
    """How many requests for blobs were counted as passed by the cache."""
    async with proxy.session.get(proxy.admin_url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    counted = [line for line in lines if line.startswith("pullthrough_requests_total") and 'kind="blob"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in counted if 'cache="pass"' in line)


async def test_a_blob_larger_than_the_cache(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """What can never fit is streamed past the cache with 200, said so and counted; what fits is kept as ever."""
    large, fitting = put(registry, BLOBS[0]), put(registry, BLOBS[1][:100_000])
    async with running(settings(**small_cache(tmp_path, "1MiB"))) as proxy:
        assert (await proxy.get(fitting)).status == 200
        await proxy.stored(1)
        for number in (1, 2):
            answer = await proxy.get(large)
            assert (answer.status, answer.body, answer.state) == (200, BLOBS[0], BYPASS)
            assert await bypasses(proxy) == number
        assert (await proxy.get(fitting)).state == "pullthrough; hit"
        assert await proxy.metric("pullthrough_evictions_total") == 0


async def test_the_range_of_a_blob_larger_than_the_cache(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """A range past the cache is right, whether it is answered as one or with the whole."""
    path = put(registry, BLOBS[0])
    async with running(settings(**small_cache(tmp_path, "1MiB"))) as proxy:
        answer = await proxy.get(path, Range="bytes=1000000-")
        assert answer.state == BYPASS
        assert (answer.status, answer.body) in [(206, BLOBS[0][1_000_000:]), (200, BLOBS[0])]


async def test_trouble_is_logged_once_a_minute(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many requests that meet the same trouble leave one line, not one each."""
    path = put(registry, BLOBS[0])
    with caplog.at_level(logging.WARNING, logger="pullthrough"):
        async with running(settings(**small_cache(tmp_path, "1MiB"))) as proxy:
            for _ in range(5):
                assert (await proxy.get(path)).status == 200
    lines = [record for record in caplog.records if record.name.startswith("pullthrough")]
    assert len([record for record in lines if record.levelno >= logging.WARNING]) == 1


async def test_a_directory_that_cannot_be_written(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """Where no fill can be made clients get a stream; when that is mended the blob is kept."""
    path = put(registry, BLOBS[0])
    async with running(settings()) as proxy:
        fills = tmp_path / "cache" / "fills"
        fills.rename(tmp_path / "elsewhere")
        fills.write_bytes(b"in the way")
        answer = await proxy.get(path)
        assert (answer.status, answer.body, answer.state) == (200, BLOBS[0], BYPASS)
        assert await bypasses(proxy) == 1
        fills.unlink()
        (tmp_path / "elsewhere").rename(fills)
        proxy.clock.advance(120)
        assert (await proxy.get(path)).body == BLOBS[0]
        await proxy.stored(1)


async def test_a_disk_that_is_full_before_the_first_byte(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When room cannot be had of the file system clients get a stream, and nothing stays reserved."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    path = put(registry, BLOBS[0])
    async with running(settings()) as proxy:
        answer = await proxy.get(path)
        assert (answer.status, answer.body, answer.state) == (200, BLOBS[0], BYPASS)
        await no_fill_runs(proxy)
        assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_a_disk_that_fails_in_the_middle(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing fails under an open body: that gets no wrong byte, and whoever asks from then on is served past it."""
    path = put(registry, BLOBS[0])
    gate = Gate(MIB)
    registry.script = [Act(gate=gate)]
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    async with running(settings()) as proxy:
        reader = await Reader.open(proxy, path)
        await gate.reached.wait()
        await came_in(proxy, MIB)
        with monkeypatch.context() as broken:
            broken.setattr(os, "pwrite", full)
            gate.open()
            body = await reader.rest()
            assert BLOBS[0].startswith(body)
            assert reader.end in {"fin", "whole"}
            answer = await proxy.get(path)
            assert (answer.status, answer.body) == (200, BLOBS[0])
        await no_fill_runs(proxy)
        proxy.clock.advance(120)
        assert (await proxy.get(path)).body == BLOBS[0]
        await proxy.stored(1)


@pytest.mark.parametrize("header", [None, "bytes=0-", "bytes=1000000-"])
async def test_a_blob_of_unknown_length(proxy: Proxy, registry: FakeRegistry, header: str | None) -> None:
    """Where the upstream does not say how long a blob is, it is streamed with 200, ranges or not, and not kept."""
    path = put(registry, BLOBS[0])
    registry.blob_length, registry.honour_ranges = False, False
    answer = await proxy.get(path, **({} if header is None else {"Range": header}))
    assert (answer.status, answer.body, answer.state) == (200, BLOBS[0], BYPASS)
    assert await proxy.metric("pullthrough_cache_blobs") == 0
    assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_room_is_reserved_while_a_blob_is_filled(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """A fill counts with its whole size from its start: another for which nothing is left is streamed past."""
    paths = [put(registry, blob) for blob in BLOBS[:2]]
    gate = Gate(MIB)
    registry.script = [Act(gate=gate)]
    async with running(settings(**small_cache(tmp_path, "3MiB"))) as proxy:
        first = await Reader.open(proxy, paths[0])
        await gate.reached.wait()
        assert await proxy.metric("pullthrough_cache_bytes") == 2 * MIB
        second = await proxy.get(paths[1])
        assert (second.status, second.body, second.state) == (200, BLOBS[1], BYPASS)
        gate.open()
        assert await first.rest() == BLOBS[0]
        await proxy.stored(1)


async def test_a_blob_that_is_read_is_not_evicted(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """A finished blob with a reader stays, and so does what it is sent, when another one needs the room."""
    paths = [put(registry, blob) for blob in BLOBS]
    async with running(settings(**small_cache(tmp_path, "5MiB"))) as proxy:
        for number in (0, 1):
            assert (await proxy.get(paths[number])).body == BLOBS[number]
            await proxy.stored(number + 1)
        reader = await Reader.open(proxy, paths[0])
        assert (await proxy.get(paths[2])).body == BLOBS[2]
        await proxy.stored(2)
        assert await reader.rest() == BLOBS[0]
        assert (await proxy.get(paths[0])).state == "pullthrough; hit"
        assert (await proxy.get(paths[2])).state == "pullthrough; hit"


async def test_a_fill_makes_room_by_evicting(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """The blob used longest ago goes when a fill begins; the cache never holds more than it may."""
    paths = [put(registry, blob) for blob in BLOBS]
    async with running(settings(**small_cache(tmp_path, "5MiB"))) as proxy:
        for path, blob in zip(paths, BLOBS, strict=True):
            assert (await proxy.get(path)).body == blob
            await no_fill_runs(proxy)
            assert await proxy.metric("pullthrough_cache_bytes") <= 5 * MIB
        await proxy.stored(2)
        assert await proxy.metric("pullthrough_evictions_total") == 2
    assert all(registry.record.times_sent(digest_of(blob)) == [(0, len(blob), 1)] for blob in BLOBS)


@pytest.mark.usefixtures("quick")
async def test_what_was_left_behind_gives_way(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """A fill that nobody goes on with holds no room against one that somebody wants."""
    paths = [put(registry, blob) for blob in BLOBS[:2]]
    registry.script = lambda request: Act(fin_at=MIB) if request.digest == digest_of(BLOBS[0]) else None
    async with running(settings(**small_cache(tmp_path, "3MiB"))) as proxy:
        reader = await Reader.open(proxy, paths[0])
        await reader.rest()
        await no_fill_runs(proxy)
        answer = await proxy.get(paths[1])
        assert (answer.body, answer.state) == (BLOBS[1], "pullthrough; fwd=miss; stored")
        await proxy.stored(1)
