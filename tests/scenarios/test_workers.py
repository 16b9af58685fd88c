"""Several worker processes serve as one: they share fills and counts, and the end of one is nobody's trouble."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.acts import Act, Record
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.fleet import Fleet, eventually, fleet, is_stopped, lives, program, write_config
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry, wrong_digest
from tests.fakes.server import Gate
from tests.scenarios.fills import BLOCK, MIB, put

SIZE = 8 * MIB
HALF = 3 * MIB
BLOB = random_bytes(SIZE, 1000)

WriteConfig = Callable[..., Path]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[FakeRegistry]:
    """The registry behind all proxies here."""
    fake = FakeRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def registry(upstream: FakeRegistry) -> FakeRegistry:
    """The same, as if it had just started."""
    upstream.script, upstream.pause, upstream.record = None, None, Record()
    return upstream


def writer(directory: Path, registry: FakeRegistry) -> WriteConfig:
    """Writes the file of a proxy of two workers with the fake registry behind it; keywords are further settings."""

    def write(upstream: dict[str, Any] | None = None, **more: Any) -> Path:
        return write_config(directory, {"registry.test": {"url": registry.url} | (upstream or {})}, **more)

    return write


@pytest.fixture
def config(tmp_path: Path, registry: FakeRegistry) -> WriteConfig:
    """For a proxy of a test's own."""
    return writer(tmp_path, registry)


@pytest.fixture(scope="module")
def shared_config(tmp_path_factory: pytest.TempPathFactory, upstream: FakeRegistry) -> WriteConfig:
    """For the proxy that several tests share."""
    return writer(tmp_path_factory.mktemp("shared"), upstream)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(shared_config: WriteConfig) -> AsyncIterator[Fleet]:
    """A proxy of two workers that is there for all tests that leave two behind, and the configuration as it was."""
    async with fleet(shared_config()) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def two(config: WriteConfig) -> AsyncIterator[Fleet]:
    """One of a test's own, which it may end."""
    async with fleet(config()) as started:
        yield started


async def gone_by(proxy: Fleet, worker: int) -> list[int]:
    """Wait until `worker` is no more and there are two again; gives them."""
    await eventually(lambda: worker not in proxy.workers() and len(proxy.workers()) == 2)
    return proxy.workers()


@asynccontextmanager
async def one_more_is_stored(proxy: Fleet, size: int) -> AsyncIterator[None]:
    """Inside of it a blob of `size` bytes is asked for; at its end that is in the cache, by the supervisor's word."""
    blobs, stored = await proxy.metric("pullthrough_cache_blobs"), await proxy.metric("pullthrough_cache_bytes")
    yield
    await proxy.stored(int(blobs) + 1)
    assert await proxy.metric("pullthrough_cache_bytes") == stored + size


async def whole(reader: Reader) -> bytes:
    """Its head and its body."""
    await reader.head()
    return await reader.rest()


# Together.


async def test_both_serve_and_count_as_one(shared: Fleet, registry: FakeRegistry) -> None:
    """Connections go to both; requests are counted over both exactly, the machine's gauges once, none by process."""
    before = await shared.metric("pullthrough_requests_total")
    pings = 'pullthrough_requests_total{cache="pass",cluster="default",kind="ping"'
    pings_before = await shared.metric(pings)
    clients = [await Reader.open(shared, "/v2/") for _ in range(50)]
    assert {client.status for client in clients} == {200}
    assert {await shared.accepted(client) for client in clients} == set(shared.workers())
    blob = random_bytes(SIZE, 1001)
    async with one_more_is_stored(shared, SIZE):
        assert (await shared.get(put(registry, blob))).body == blob
    async with asyncio.timeout(20):
        while await shared.metric("pullthrough_requests_total") < before + 51:
            await asyncio.sleep(0)
    assert await shared.metric(pings) == pings_before + 50
    assert await shared.metric("pullthrough_requests_total") == before + 51
    _, text = await shared.admin("/metrics")
    assert "pid=" not in text
    assert len([line for line in text.splitlines() if line.startswith("pullthrough_cache_")]) == 2
    for client in clients:
        client.leave()


async def test_a_blob_is_fetched_once_for_both(shared: Fleet, registry: FakeRegistry) -> None:
    """Twenty clients over both workers cost one download, each byte once; then it is a hit for either."""
    blob = random_bytes(SIZE, 1002)
    path = put(registry, blob)
    gate = Gate(HALF)
    registry.script = [Act(gate=gate)]
    readers = [await Reader.send(shared, path) for _ in range(20)]
    await gate.reached.wait()
    assert {await shared.accepted(reader) for reader in readers} == set(shared.workers())
    async with one_more_is_stored(shared, 0):
        gate.open()
        bodies = await asyncio.gather(*(whole(reader) for reader in readers))
    assert set(bodies) == {blob}
    assert registry.record.times_sent(digest_of(blob)) == [(0, len(blob), 1)]
    asked = len(registry.record.requests)
    for worker in shared.workers():
        reader = await shared.reader_at(worker, path)
        assert await whole(reader) == blob
        assert reader.headers["cache-status"] == "pullthrough; hit"
    assert len(registry.record.requests) == asked


async def test_a_reader_far_ahead_of_the_other_workers_fill(shared: Fleet, registry: FakeRegistry) -> None:
    """While the front is stuck at one worker, a client of the other gets the bytes further on that it waits for."""
    blob = random_bytes(SIZE, 1003)
    path = put(registry, blob)
    one, other = shared.workers()
    gate = Gate(BLOCK)
    registry.script = [Act(gate=gate)]
    front = await shared.reader_at(one, path)
    await gate.reached.wait()
    far = await shared.reader_at(other, path, 6 * MIB)
    assert await whole(far) == blob[6 * MIB :]
    assert far.status == 206
    async with one_more_is_stored(shared, 0):
        gate.open()
        assert await whole(front) == blob
    assert registry.record.times_sent(digest_of(blob)) == [(0, len(blob), 1)]


async def test_wrong_bytes_are_known_to_both(shared: Fleet, registry: FakeRegistry) -> None:
    """What one worker found wrong, the other refuses: ranges past 0 get 502, and nobody fills it again for them."""
    blob = random_bytes(SIZE, 1004)
    path = put(registry, blob, digest=wrong_digest(blob))
    one, other = shared.workers()
    reader = await shared.reader_at(one, path)
    await whole(reader)
    assert reader.end == "fin"
    asked = len(registry.record.requests)
    for worker in (one, other):
        refused = await shared.reader_at(worker, path, 5)
        await refused.head()
        assert refused.status == 502
        refused.leave()
    assert len(registry.record.requests) == asked
    assert await shared.metric("pullthrough_digest_mismatches_total") == 1


# The end of one.


async def test_a_worker_is_killed_in_its_fill(shared: Fleet, registry: FakeRegistry) -> None:
    """The other's clients notice nothing and nothing is fetched twice; it is replaced, and no count goes down."""
    blob = random_bytes(SIZE, 1005)
    path = put(registry, blob)
    one, other = shared.workers()
    gate = Gate(HALF)
    registry.script = [Act(gate=gate)]
    filling = await shared.reader_at(one, path)
    await gate.reached.wait()
    reading = await shared.reader_at(other, path)
    await reading.head()
    assert await reading.to(HALF) == blob[:HALF]
    before, asked = await shared.counters(), len(registry.record.requests)
    registry.script, said = None, len(shared.program.lines)
    async with one_more_is_stored(shared, 0):
        os.kill(one, signal.SIGKILL)
        assert await reading.rest() == blob
    await whole(filling)
    assert filling.end in {"fin", "reset"}
    assert all(start >= HALF for start, _ in registry.record.asked(digest_of(blob))[asked:])
    assert registry.record.times_sent(digest_of(blob)) == [(0, len(blob), 1)]
    new = await gone_by(shared, one)
    assert other in new
    replaced = next(worker for worker in new if worker != other)
    assert await whole(await shared.reader_at(replaced, path)) == blob
    after = await shared.counters()
    assert {name: value for name, value in before.items() if after.get(name, -1) < value} == {}
    line = await shared.program.says("is replaced", said)
    assert shared.program.lines[said:] == [line]
    assert "SIGKILL" in line


async def test_connections_queued_at_a_worker_that_is_killed(shared: Fleet) -> None:
    """Those it had not accepted yet are answered by the one that takes its place; none is reset."""
    one, other = shared.workers()
    os.kill(one, signal.SIGSTOP)
    await eventually(lambda: is_stopped(one))
    clients = [await Reader.send(shared, "/v2/") for _ in range(16)]
    while shared.carrier(clients[-1]) != other or all(shared.carrier(client) for client in clients):
        # The other accepts them in their order: once it has the last one, whoever still waits is queued here.
        clients.append(await Reader.send(shared, "/v2/"))
        assert len(clients) < 200
    queued = [client for client in clients if shared.carrier(client) is None]
    os.kill(one, signal.SIGKILL)
    for client in clients:
        await client.head()
        assert client.status == 200
    (replaced,) = set(shared.workers()) - {other}
    assert {shared.carrier(client) for client in queued} == {replaced}
    for client in clients:
        client.leave()


# The end of all.


async def test_every_request_has_its_line_when_both_have_ended(config: WriteConfig) -> None:
    """Whole lines, one a request, though each worker writes them in batches to a log that both share."""
    async with fleet(config(log={"access": True})) as proxy:
        workers = proxy.workers()
        for _ in range(100):
            assert (await proxy.get("/v2/")).status == 200
        for worker in workers:
            reader = await proxy.reader_at(worker, "/v2/")
            await reader.head()
            reader.leave()
        proxy.program.signal(signal.SIGTERM)
        assert await proxy.program.exit() == 0
        lines = [line for line in proxy.program.lines if "pullthrough.access" in line]
        served = re.compile(r"\S+Z info pullthrough\.access: client=127\.0\.0\.1 .* status=200 .*seconds=[\d.]+")
        assert all(served.fullmatch(line) for line in lines)
        assert len(lines) == 102


@pytest.mark.parametrize("terminal", [False, True])
async def test_the_end_lets_bodies_finish(two: Fleet, registry: FakeRegistry, terminal: bool) -> None:
    """SIGTERM, or a terminal's SIGINT to all processes: readiness turns, running bodies end, and then the program."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(HALF)
    readers = [await two.reader_at(worker, path) for worker in two.workers()]
    for reader in readers:
        await reader.head()
    await gate.reached.wait()
    assert await two.admin("/readyz") == (200, "ok\n")
    if terminal:
        two.program.signal_group(signal.SIGINT)
    else:
        two.program.signal(signal.SIGTERM)
    await two.program.says("shutting down")
    assert await two.admin("/readyz") == (503, "shutting down\n")
    gate.open()
    for reader in readers:
        assert await reader.rest() == BLOB
    assert await two.program.exit() == 0
    # Nothing besides: no worker took a signal of its own.
    assert len(two.program.lines) == 3
    assert two.program.lines[2].endswith(" stopped")


async def test_a_second_signal_ends_at_once(two: Fleet, registry: FakeRegistry) -> None:
    """Bodies that run are cut then, long before shutdown_timeout."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(HALF)
    reader = await Reader.open(two, path)
    await gate.reached.wait()
    two.program.signal(signal.SIGTERM)
    await two.program.says("shutting down")
    two.program.signal(signal.SIGTERM)
    assert await two.program.exit() == 0
    await reader.rest()
    assert reader.end in {"fin", "reset"}
    gate.open()


async def test_no_worker_outlives_the_supervisor(two: Fleet, registry: FakeRegistry) -> None:
    """It is killed without a word while bodies run: its workers end too, and the address is free again."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(HALF)
    reader = await Reader.open(two, path)
    await gate.reached.wait()
    workers = two.workers()
    two.program.signal(signal.SIGKILL)
    assert await two.program.exit() == -signal.SIGKILL
    await eventually(lambda: not any(lives(worker) for worker in workers))
    with pytest.raises(ConnectionRefusedError):
        await Reader.connect(two)
    reader.leave()
    gate.open()


# A start that fails.


async def test_an_address_in_use(config: WriteConfig) -> None:
    """Exit status 1 and one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for key in ({"listen": [{"address": address}]}, {"admin": {"address": address}}):
            async with program(config(**key)) as started:
                assert await started.exit() == 1
                (line,) = started.lines
                assert f"{address} cannot be listened on" in line


async def test_a_worker_that_cannot_start(config: WriteConfig, tmp_path: Path) -> None:
    """What no time would mend ends the program with status 1 and one line; nothing is tried again."""
    async with program(config({"ca": str(tmp_path / "none.crt")})) as started:
        assert await started.exit() == 1
        (line,) = started.lines
        assert "the ca of registry.test cannot be used" in line


# SIGHUP.


async def test_a_reload_counts_in_both(shared: Fleet, shared_config: WriteConfig, registry: FakeRegistry) -> None:
    """From the line on that says so, every worker serves by the new file; one that is broken changes nothing."""

    async def statuses() -> dict[int, int]:
        found = {}
        for worker in shared.workers():
            reader = await shared.reader_at(worker, "/v2/")
            await reader.head()
            found[worker] = reader.status
            reader.leave()
        return found

    assert set((await statuses()).values()) == {200}
    edge = [{"name": "edge", "match": {"hosts": ["edge.test"]}}]
    shared_config(clusters=edge)
    shared.program.signal(signal.SIGHUP)
    await shared.program.says(": reloaded")
    assert list((await statuses()).values()) == [403, 403]
    said = len(shared.program.lines)
    shared_config(clusters=[{"name": "default", "mode": "none"}])
    shared.program.signal(signal.SIGHUP)
    await shared.program.says("not reloaded, the running configuration stays", said)
    assert list((await statuses()).values()) == [403, 403]
    killed = shared.workers()[0]
    os.kill(killed, signal.SIGKILL)
    await gone_by(shared, killed)
    assert list((await statuses()).values()) == [403, 403]
    shared_config()
    shared.program.signal(signal.SIGHUP)
    await shared.program.says(": reloaded", said)
    assert list((await statuses()).values()) == [200, 200]
