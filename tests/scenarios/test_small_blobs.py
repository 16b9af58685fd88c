"""Small blobs are answered from memory: checked against their digest, counted as used, gone when they are removed."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.oci.digest import Digest
from proxy.settings import Settings
from proxy.storage.base import User
from proxy.storage.disk import DiskBlobs
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import KIB, put
from tests.scenarios.operators import call, done
from tests.scenarios.repeats import Client, Counts, asked, request

SMALL = random_bytes(1000, 5)
PATH = f"/v2/team/app/blobs/{digest_of(SMALL)}"
GET = request(PATH)


class Opened:
    """The blobs that were opened, and those that were used without it: which, and by whom."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.used: list[tuple[str, User]] = []
        opening, using = DiskBlobs.open, DiskBlobs.used

        async def opens(store: DiskBlobs, digest: Digest, user: User | None = None) -> object:
            self.opened.append(str(digest))
            return await opening(store, digest, user)

        def uses(store: DiskBlobs, digest: Digest, user: User) -> None:
            self.used.append((str(digest), user))
            using(store, digest, user)

        monkeypatch.setattr(DiskBlobs, "open", opens)
        monkeypatch.setattr(DiskBlobs, "used", uses)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


async def have(proxy: Proxy, sent: bytes = GET) -> None:
    """Have the blob fetched."""
    await asked(proxy, sent)
    await proxy.stored(1)


@pytest.fixture
async def proxy(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, store: Opened
) -> AsyncIterator[Proxy]:
    """A proxy that has fetched the blob."""
    put(registry, SMALL)
    async with running(settings()) as started:
        await have(started)
        registry.seen.clear()
        store.opened.clear()
        yield started


def file_of(folder: Path) -> Path:
    (found,) = [file for file in (folder / "cache" / "blobs").rglob("*") if file.is_file()]
    return found


def damage(folder: Path) -> None:
    """Another byte in the file, whose size stays."""
    file = file_of(folder)
    file.chmod(0o600)
    file.write_bytes(b"!" + SMALL[1:])


async def test_the_second_time_no_file_is_opened(proxy: Proxy, registry: FakeRegistry, store: Opened) -> None:
    """Nor is any from then on, whoever asks; the answer is the same in all that it says."""
    first = await asked(proxy, GET)
    assert store.opened == [digest_of(SMALL)]
    for fields in ([], [], ["X: y"], ["X: y"]):
        again = await asked(proxy, request(PATH, *fields))
        assert (again.body, again.headers) == (SMALL, first.headers | {"date": again.headers["date"]})
    assert store.opened == [digest_of(SMALL)]
    assert first.headers["cache-status"] == "pullthrough; hit"
    assert registry.seen == []


async def test_the_largest_that_is_small(
    settings: Callable[..., Settings], registry: FakeRegistry, store: Opened
) -> None:
    """64 KiB are, one byte more are not; nothing at all is."""
    for size, opened in ((0, 1), (64 * KIB, 1), (64 * KIB + 1, 4)):
        blob = random_bytes(size, 7)
        path = put(registry, blob)
        async with running(settings()) as proxy:
            await asked(proxy, request(path))
            await proxy.stored(1)
            store.opened.clear()
            for _ in range(4):
                assert (await asked(proxy, request(path))).body == blob
            assert len(store.opened) == opened, size
            await done(proxy, "DELETE", f"blobs/{digest_of(blob)}")


@pytest.mark.parametrize(
    ("ranged", "start", "stop"),
    [("0-0", 0, 1), ("100-199", 100, 200), ("990-", 990, 1000), ("-10", 990, 1000), ("0-5000", 0, 1000)],
)
async def test_ranges(proxy: Proxy, store: Opened, counts: Counts, ranged: str, start: int, stop: int) -> None:
    """From its beginning, its middle, its end, and past that: 206, the first time and from memory."""
    sent = request(PATH, f"Range: bytes={ranged}")
    for _ in range(3):
        client = await asked(proxy, sent, 206)
        assert client.body == SMALL[start:stop]
        assert client.headers["content-range"] == f"bytes {start}-{stop - 1}/1000"
        assert client.headers["content-length"] == str(stop - start)
    assert len(store.opened) == 1
    assert counts.handled.count(f"GET {PATH}") == 2


async def test_a_range_past_the_end(proxy: Proxy) -> None:
    """416 each time, with the size; nothing is kept of it, and the next one is answered."""
    client = await Client.to(proxy)
    for _ in range(3):
        await client.ask(request(PATH, "Range: bytes=1000-"), 416)
        assert client.headers["content-range"] == "bytes */1000"
        assert await client.ask(request(PATH, "Range: bytes=999-"), 206) == SMALL[-1:]
    client.leave()


async def test_head_and_get(proxy: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """A HEAD is looked up each time: it says that the blob is here, which may change unseen. No GET is taken for it."""
    client = await Client.to(proxy)
    await client.ask(GET)
    for _ in range(3):
        with counts.all():
            await client.ask(request(PATH, method="HEAD"))
        assert client.headers["content-length"] == "1000"
        assert await client.ask(GET) == SMALL
    store = proxy.application._store
    assert store is not None
    assert await store.remove(Digest.parse(digest_of(SMALL)), "size")
    assert registry.seen == []
    await client.ask(request(PATH, method="HEAD"))
    assert client.headers["cache-status"].startswith("pullthrough; fwd=miss")
    assert [(seen.method, seen.path) for seen in registry.seen] == [("HEAD", PATH)]
    client.leave()


async def test_a_head_in_a_cluster_without_blobs(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """Is answered from what was recorded, whether the blob is here or not, and so from memory."""
    put(registry, SMALL)
    async with running(settings(clusters=[{"name": "default", "mode": "metadata-only"}])) as proxy:
        for _ in range(3):
            await asked(proxy, request(PATH, method="HEAD"))
        with counts.none():
            client = await asked(proxy, request(PATH, method="HEAD"))
        assert client.headers["content-length"] == "1000"
        assert registry.count("HEAD", PATH) == 1


# Damage.


async def test_a_damaged_file_is_never_served(
    proxy: Proxy, registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is noticed before a byte leaves, removed, and fetched anew, within the same request; then it is good."""
    damage(tmp_path)
    assert (await asked(proxy, GET)).body == SMALL
    await proxy.stored(1)
    assert "is damaged, and fetched again" in caplog.text
    assert [(seen.method, seen.path) for seen in registry.seen] == [("GET", PATH)]
    assert file_of(tmp_path).read_bytes() == SMALL
    for _ in range(3):
        assert (await asked(proxy, GET)).body == SMALL
    assert len(registry.seen) == 1
    assert await proxy.metric('pullthrough_evictions_total{reason="digest"}') == 1


async def test_a_range_of_a_damaged_file(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """Also one that has none of the damage: the whole is looked at."""
    damage(tmp_path)
    assert (await asked(proxy, request(PATH, "Range: bytes=500-599"), 206)).body == SMALL[500:600]
    assert registry.count("GET", PATH) == 1


async def test_damage_after_it_was_read(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """What is in memory was good, and stays it."""
    await asked(proxy, GET)
    damage(tmp_path)
    for _ in range(3):
        assert (await asked(proxy, GET)).body == SMALL
    assert registry.seen == []


async def test_a_file_that_cannot_be_read(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error is damage too, and no client's error."""

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("proxy.cache.blobs.whole", broken)
    assert (await asked(proxy, GET)).body == SMALL
    assert registry.count("GET", PATH) == 1


async def test_a_damaged_file_that_somebody_reads(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """It cannot be removed then, so the blob is streamed past the cache; once it is let go it is fetched anew."""
    store = proxy.application._store
    assert store is not None
    reader = await store.open(Digest.parse(digest_of(SMALL)))
    assert reader is not None
    damage(tmp_path)
    for _ in range(2):
        client = await asked(proxy, GET)
        assert client.body == SMALL
        assert client.headers["cache-status"].startswith("pullthrough; fwd=bypass")
    assert registry.count("GET", PATH) == 2
    reader.close()
    assert (await asked(proxy, GET)).headers["cache-status"] == "pullthrough; fwd=miss; stored"
    await proxy.stored(1)
    assert (await asked(proxy, GET)).headers["cache-status"] == "pullthrough; hit"
    assert file_of(tmp_path).read_bytes() == SMALL


# Removal.


async def test_an_operator_removes_it(proxy: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """It goes from memory with the file: whole, its ranges, and its HEAD; the next one fetches it."""
    ranged = request(PATH, "Range: bytes=0-9")
    for _ in range(2):
        await asked(proxy, GET)
        await asked(proxy, ranged, 206)
    with counts.none():
        await asked(proxy, GET)
        await asked(proxy, ranged, 206)
    assert await done(proxy, "DELETE", f"blobs/{digest_of(SMALL)}") == {"blobs": [digest_of(SMALL)]}
    with counts.all(2):
        assert (await asked(proxy, ranged, 206)).headers["cache-status"].startswith("pullthrough; fwd=miss")
        assert (await asked(proxy, GET)).body == SMALL
    await proxy.stored(1)
    assert registry.count("GET", PATH) == 1


async def test_it_cannot_be_removed_while_it_is_read(proxy: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """409, and the file stays; out of memory it goes in any case, and is looked up there."""
    await asked(proxy, GET)
    await asked(proxy, GET)
    store = proxy.application._store
    assert store is not None
    reader = await store.open(Digest.parse(digest_of(SMALL)))
    assert reader is not None
    assert (await call(proxy, "DELETE", f"blobs/{digest_of(SMALL)}"))[0] == 409
    with counts.all():
        assert (await asked(proxy, GET)).body == SMALL
    reader.close()
    assert (await call(proxy, "DELETE", f"blobs/{digest_of(SMALL)}"))[0] == 200
    assert registry.seen == []


async def test_an_operator_removes_what_was_evicted(proxy: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Eviction leaves what is in memory; an operator means that as well, though there is no file any more."""
    await asked(proxy, GET)
    await asked(proxy, GET)
    store = proxy.application._store
    assert store is not None
    assert await store.remove(Digest.parse(digest_of(SMALL)), "size")
    with counts.none():
        assert (await asked(proxy, GET)).body == SMALL
    assert (await call(proxy, "DELETE", f"blobs/{digest_of(SMALL)}"))[0] == 404
    registry.members.clear()
    with counts.all():
        await asked(proxy, GET, 404)


# Use.


async def test_it_counts_as_used(proxy: Proxy, store: Opened, counts: Counts) -> None:
    """By the cluster and repository of who asked, whole or in part; a HEAD uses nothing."""
    ranged, head = request(PATH, "Range: bytes=0-9"), request(PATH, method="HEAD")
    for _ in range(2):
        await asked(proxy, GET)
        await asked(proxy, ranged, 206)
    store.used.clear()
    used = (digest_of(SMALL), User("registry.test", "team/app", "default"))
    for number in range(1, 4):
        await asked(proxy, head)
        with counts.none():
            await asked(proxy, GET)
            await asked(proxy, ranged, 206)
        assert store.used == [used] * 2 * number
    assert store.opened == [digest_of(SMALL)] * 2


async def test_what_is_used_from_memory_is_not_evicted(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path, counts: Counts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where one of two has to go, it is the one that nobody asked for lately."""
    # The uses of this test are less than a second apart.
    monkeypatch.setattr("proxy.storage.disk._USE_INTERVAL", 0.0)
    blobs = [random_bytes(40 * KIB, seed) for seed in (1, 2, 3)]
    paths = [put(registry, blob) for blob in blobs]
    cache = {"directory": str(tmp_path / "cache"), "max_size": "100KiB", "min_free": 0}
    async with running(settings(cache=cache)) as proxy:
        for number, path in enumerate(paths[:2], 1):
            await asked(proxy, request(path))
            await proxy.stored(number)
        # The second one is the last that was opened.
        for path in (*paths[:2], *paths[:2]):
            await asked(proxy, request(path))
        with counts.none():
            await asked(proxy, request(paths[0]))
        await asked(proxy, request(paths[2]))
        await proxy.stored(2)
        store = proxy.application._store
        assert store is not None
        assert [store.holds(Digest.of(blob)) for blob in blobs] == [True, False, True]


@pytest.mark.parametrize(
    "cluster",
    [{"mode": "metadata-only"}, {"limits": {"requests_per_second": 1000}}],
    ids=["metadata-only", "rate-limited"],
)
async def test_clusters_that_keep_nothing_in_memory(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, cluster: dict[str, object]
) -> None:
    """Where blobs are the upstream's, or each request counts, every GET is looked up."""
    path = put(registry, SMALL)
    clusters = [{"name": "default", **cluster}]
    async with running(settings(clusters=clusters)) as proxy:
        client = await Client.to(proxy)
        for _ in range(4):
            with counts.all(2):
                assert await client.ask(request(path)) == SMALL
                assert await client.ask(request(path, "Range: bytes=0-9"), 206) == SMALL[:10]
        client.leave()
        if "mode" in cluster:
            assert registry.count("GET", path) == 8


async def test_many_at_once(proxy: Proxy, registry: FakeRegistry, store: Opened) -> None:
    """Before it is in memory, while it gets there, and after it: all of them have it whole, and no file stays open."""
    before = len(os.listdir("/proc/self/fd"))
    found = await asyncio.gather(*(asked(proxy, GET) for _ in range(50)))
    assert {client.body for client in found} == {SMALL}
    opened = len(store.opened)
    await asyncio.gather(*(asked(proxy, GET) for _ in range(50)))
    assert (len(store.opened), registry.seen) == (opened, [])
    async with asyncio.timeout(10):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0)
