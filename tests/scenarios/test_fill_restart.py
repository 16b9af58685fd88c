"""A fill that was interrupted is gone on with from its map; an end at any moment leaves nothing that is not right."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.crash import copy_as_killed
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import BLOCK, MIB, came_in, no_fill_runs, put, until

BLOB = random_bytes(6 * MIB, 900)
DIGEST = digest_of(BLOB)
HALF = 3 * MIB

pytestmark = pytest.mark.usefixtures("quick")


async def fill_half(proxy: Proxy, registry: FakeRegistry, path: str) -> Reader:
    """Begin a fill that has the first HALF bytes of the blob, and no more comes."""
    gate = Gate(HALF)
    registry.script = [Act(gate=gate)]
    reader = await Reader.open(proxy, path)
    await gate.reached.wait()
    await came_in(proxy, HALF)
    # What a reader is given has been written, and stands in the map.
    await reader.to(HALF - BLOCK)
    return reader


@asynccontextmanager
async def after_a_crash(tmp_path: Path, registry: FakeRegistry, number: int = 1) -> AsyncIterator[Proxy]:
    """A proxy on what `kill -9` would leave of the cache directory of the one that runs: a copy, as it is now."""
    copy = tmp_path / f"crashed-{number}"
    copy_as_killed(tmp_path / "cache", copy)
    upstream = {"url": registry.url, "connect_timeout": "1s", "read_timeout": "2s"}
    async with running(make_settings(copy, {"registry.test": upstream})) as proxy:
        yield proxy


def fill_data(directory: Path) -> Path:
    """The file that holds what has arrived."""
    return max((file for file in (directory / "fills").iterdir()), key=lambda file: file.stat().st_size)


async def test_a_restart_at_half(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """After an end in the middle only the rest is fetched, beginning at the missing byte, once somebody asks."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    assert BLOB.startswith(await reader.rest())
    registry.script = None
    before = len(registry.record.requests)
    async with running(settings()) as proxy:
        answer = await proxy.get(path)
        assert (answer.status, answer.body) == (200, BLOB)
        await proxy.stored(1)
        assert await proxy.metric("pullthrough_upstream_bytes_total") == len(BLOB) - HALF
    assert registry.record.requests[before].start == HALF
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_nothing_is_fetched_before_somebody_asks(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """A restart alone asks nobody for anything, and what was left behind is no blob of the cache."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    seen = len(registry.seen)
    async with running(settings()) as proxy:
        assert await proxy.metric("pullthrough_cache_blobs") == 0
        assert await proxy.metric("pullthrough_fills_active") == 0
        assert (await proxy.get("/v2/")).status == 200
    assert len(registry.seen) == seen


async def test_a_crash_at_half(settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path) -> None:
    """An end without any last word leaves a fill that is gone on with at the missing byte."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
        await reader.to(HALF)
        registry.script = None
        before = len(registry.record.requests)
        async with after_a_crash(tmp_path, registry) as revived:
            assert (await revived.get(path)).body == BLOB
            await revived.stored(1)
        assert registry.record.requests[before].start == HALF
        reader.leave()


@pytest.mark.parametrize("start", [0, 1, HALF - 1, HALF, 5 * MIB, len(BLOB) - 1])
async def test_a_restart_and_a_reader_anywhere(
    settings: Callable[..., Settings], registry: FakeRegistry, start: int
) -> None:
    """Whatever range is asked for first after a restart, it is right, and the blob becomes whole for only the rest."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    registry.script = None
    async with running(settings()) as proxy:
        answer = await proxy.get(path, Range=f"bytes={start}-")
        assert (answer.status, answer.body) == (206, BLOB[start:])
        await proxy.stored(1)
        assert (await proxy.get(path)).body == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_holes_are_kept_over_a_restart(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """Bytes from the middle and the end that had arrived are not fetched again."""
    path = put(registry, BLOB)
    gates = [Gate(5 * MIB), Gate(3 * MIB), Gate(MIB)]
    registry.script = [Act(gate=gate) for gate in gates]
    async with running(settings()) as proxy:
        readers = [await Reader.open(proxy, path, start) for start in (4 * MIB, 2 * MIB, 0)]
        await until(lambda: all(gate.waiting for gate in gates))
        await came_in(proxy, 3 * MIB)
        for reader in readers:
            await reader.read(MIB - BLOCK)
    for reader in readers:
        reader.leave()
    registry.script = None
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)
        assert await proxy.metric("pullthrough_upstream_bytes_total") == 3 * MIB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_many_restarts(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """A proxy that ends again and again makes progress each time, and fetches each byte once."""
    path = put(registry, BLOB)
    for stop in range(MIB, len(BLOB), MIB):
        gate = Gate(stop)
        registry.script = lambda request, gate=gate: Act(gate=gate)
        async with running(settings()) as proxy:
            reader = await Reader.open(proxy, path)
            await gate.reached.wait()
            await came_in(proxy, MIB)
            await reader.to(stop - BLOCK)
        reader.leave()
    registry.script = None
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_damage_from_before_a_restart_is_nobodys_fault(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """Bytes that rotted on disk: the first body is cut, no 502 follows, and the next request has it all afresh."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    registry.script = None
    data = fill_data(tmp_path / "cache")
    with data.open("r+b") as file:
        file.seek(MIB)
        file.write(b"rotten")
    async with running(settings()) as proxy:
        first = await Reader.open(proxy, path)
        await first.rest()
        assert first.end == "fin"
        assert await proxy.metric("pullthrough_cache_blobs") == 0
        assert await proxy.metric("pullthrough_digest_mismatches_total") == 0
        part = await proxy.get(path, Range=f"bytes={5 * MIB}-")
        assert (part.status, part.body) == (206, BLOB[5 * MIB :])
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)
        # All of it, for the damaged part could be anywhere.
        assert await proxy.metric("pullthrough_upstream_bytes_total") == len(BLOB) - HALF + len(BLOB)


async def test_an_upstream_that_is_wrong_after_a_restart(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """The second attempt, all of it from this run, is wrong as well: now that is said, and ranges past 0 are 502."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    registry.script = lambda request: Act(body=bytes(len(BLOB)))
    async with running(settings()) as proxy:
        for expected in (0, 1):
            reader = await Reader.open(proxy, path)
            await reader.rest()
            assert reader.end == "fin"
            assert await proxy.metric("pullthrough_digest_mismatches_total") == expected
        assert (await proxy.get(path, Range="bytes=5-")).status == 502


@pytest.mark.parametrize("damage", ["empty", "garbage", "gone"])
async def test_a_map_that_cannot_be_read(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path, damage: str
) -> None:
    """A fill whose small file is damaged or lost begins anew; the client notices nothing."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    registry.script = None
    data = fill_data(tmp_path / "cache")
    for file in (tmp_path / "cache" / "fills").iterdir():
        if file == data:
            continue
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(b"" if damage == "empty" else os.urandom(file.stat().st_size))
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)


async def test_data_that_is_gone(settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path) -> None:
    """A map without its data is no fill, and data cut short is not trusted."""
    path = put(registry, BLOB)
    for damage in (Path.unlink, lambda file: os.truncate(file, MIB)):
        async with running(settings()) as proxy:
            reader = await fill_half(proxy, registry, path)
        reader.leave()
        registry.script = None
        damage(fill_data(tmp_path / "cache"))
        async with running(settings()) as proxy:
            assert (await proxy.get(path)).body == BLOB
            await proxy.stored(1)
        shutil.rmtree(tmp_path / "cache")


async def test_strangers_in_the_directory(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """Files that are none of ours among the fills do not stop a start, nor a fill."""
    fills = tmp_path / "cache" / "fills"
    fills.mkdir(parents=True)
    (fills / "README").write_text("hello")
    (fills / DIGEST.partition(":")[2]).write_bytes(b"not what you think")
    (fills / "folder").mkdir()
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)


async def test_a_404_stays_404(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """Bytes that were left behind are given to nobody whom the upstream refuses the blob."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
        clock = proxy.clock
    reader.leave()
    registry.script = None
    registry.members.clear()
    put(registry, b"something", "team/other")
    clock.advance(1000)
    async with running(settings(), clock) as proxy:
        for where in (path, f"/v2/team/other/blobs/{DIGEST}"):
            for header in ({}, {"Range": "bytes=0-9"}, {"Range": f"bytes={HALF}-"}):
                answer = await proxy.get(where, **header)
                assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
        await no_fill_runs(proxy)


async def test_another_repository_after_a_restart(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """What one repository began is gone on with for another that has the blob, with that one's rights."""
    path = put(registry, BLOB)
    put(registry, BLOB, "team/other")
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    registry.script = None
    async with running(settings()) as proxy:
        assert (await proxy.get(f"/v2/team/other/blobs/{DIGEST}")).body == BLOB
        await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_another_size_after_a_restart(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """The upstream says another length than before: nothing is mixed, and what it sends has to have the digest."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        reader = await fill_half(proxy, registry, path)
    reader.leave()
    registry.script = lambda request: Act(body=BLOB + b"more")
    async with running(settings()) as proxy:
        reader = await Reader.open(proxy, path)
        if reader.status == 200:
            # The end is held back; the upstream's more is not.
            assert (BLOB + b"more").startswith(await reader.rest())
            assert reader.end == "fin"
        await no_fill_runs(proxy)
        proxy.clock.advance(120)
        registry.script = None
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)


async def test_a_finished_blob_over_a_restart(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """What is present is served after a restart without a byte from upstream, and no fill is left of it."""
    path = put(registry, BLOB)
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)
    async with running(settings()) as proxy:
        answer = await proxy.get(path)
        assert (answer.body, answer.state) == (BLOB, "pullthrough; hit")
        assert await proxy.metric("pullthrough_cache_bytes") == len(BLOB)
    assert registry.sent == len(BLOB)


# A process of its own.


@asynccontextmanager
async def process(config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m proxy serve`, killed at the end if it still runs."""
    command = (sys.executable, "-m", "proxy", "serve", "--config", str(config))
    started = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def connected(port: int, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask the process on `port` for a blob, as soon as it listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_kill_9(registry: FakeRegistry, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> None:
    """A process that is killed in the middle of a fill goes on with it when it is started again and asked."""
    path = put(registry, BLOB)
    port = unused_tcp_port_factory()
    document = {
        "listen": [{"address": f"127.0.0.1:{port}"}],
        "admin": {"address": f"127.0.0.1:{unused_tcp_port_factory()}"},
        "cache": {"directory": str(tmp_path / "cache"), "max_size": "1GiB", "min_free": 0},
        "upstreams": {"registry.test": {"url": registry.url, "default": True}},
    }
    config = tmp_path / "proxy.yaml"
    config.write_text(yaml.safe_dump(document))
    gate = Gate(HALF)
    registry.script = [Act(gate=gate)]
    async with process(config) as killed:
        reader, writer = await connected(port, path)
        await gate.reached.wait()
        # All that was sent has arrived once a client has it.
        assert await reader.readexactly(HALF) == BLOB[:HALF]
        killed.send_signal(signal.SIGKILL)
        await killed.wait()
        writer.transport.abort()
    registry.script = None
    async with process(config):
        reader, writer = await connected(port, path)
        assert await reader.readexactly(len(BLOB)) == BLOB
        writer.transport.abort()
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
