"""The cache stays within its limits, and trouble with it is never the client's error."""

from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from proxy.storage.partial import DiskPartial
from tests.fakes.content import random_bytes
from tests.fakes.proxy import running
from tests.fakes.registry import FakeRegistry

BLOBS = [random_bytes(400_000, 100 + number) for number in range(4)]


async def test_the_blob_used_longest_ago_goes(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """A cache for two blobs keeps the two that were used last."""
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1MB", "min_free": 0}
    paths = [f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', blob)}" for blob in BLOBS]
    async with running(settings(cache=cache)) as proxy:
        for number in (0, 1, 0, 2):
            assert (await proxy.get(paths[number])).body == BLOBS[number]
            await proxy.stored(
                min(number + 1, 2) if number else int(await proxy.metric("pullthrough_cache_blobs")) or 1
            )
        states = [(await proxy.head(path)).state for path in paths[:3]]
        assert [state.endswith("hit") for state in states] == [True, False, True]
        assert await proxy.metric('pullthrough_evictions_total{reason="size"}') == 1
        assert await proxy.metric("pullthrough_cache_bytes") == 800_000


async def test_a_blob_larger_than_the_cache_is_streamed(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """What can never fit evicts nothing and reaches its client as a stream."""
    cache = {"directory": str(tmp_path / "cache"), "max_size": "100KB", "min_free": 0}
    digest = registry.put("a", "application/octet-stream", BLOBS[0])
    async with running(settings(cache=cache)) as proxy:
        answer = await proxy.get(f"/v2/a/blobs/{digest}")
        assert (answer.status, answer.body) == (200, BLOBS[0])
        assert answer.state == "pullthrough; fwd=bypass; detail=cache-trouble"
        part = await proxy.get(f"/v2/a/blobs/{digest}", Range="bytes=5-9")
        assert (part.status, part.body) == (206, BLOBS[0][5:10])


async def test_min_free_is_kept(settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path) -> None:
    """A file system with less free space than `min_free` takes no blob; clients are served all the same."""
    cache = {"directory": str(tmp_path / "cache"), "max_size": "1GiB", "min_free": "1000TiB"}
    digest = registry.put("a", "application/octet-stream", BLOBS[0])
    async with running(settings(cache=cache)) as proxy:
        assert (await proxy.get(f"/v2/a/blobs/{digest}")).body == BLOBS[0]
        assert await proxy.metric("pullthrough_cache_blobs") == 0


async def test_a_disk_that_fails_at_the_start_is_passed_by(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a fill's file cannot be made the client gets a stream."""

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("proxy.storage.files._allocate", full)
    digest = registry.put("a", "application/octet-stream", BLOBS[0])
    async with running(settings()) as proxy:
        assert (await proxy.get(f"/v2/a/blobs/{digest}")).body == BLOBS[0]
        assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_a_blob_that_cannot_be_kept_is_still_served(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When only the last step fails, putting the verified blob in place, every client has its bytes."""

    async def broken(_partial: DiskPartial) -> None:
        from proxy.storage.base import StorageError

        raise StorageError("the disk is gone")

    monkeypatch.setattr(DiskPartial, "publish", broken)
    digest = registry.put("a", "application/octet-stream", BLOBS[0])
    async with running(settings()) as proxy:
        assert (await proxy.get(f"/v2/a/blobs/{digest}")).body == BLOBS[0]
        await proxy.stored(0)
        assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_a_blob_that_was_deleted_by_hand_is_fetched_again(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """A file that is gone from the directory, or cut short, is as good as absent."""
    digest = registry.put("a", "application/octet-stream", BLOBS[0])
    path = f"/v2/a/blobs/{digest}"
    async with running(settings()) as proxy:
        for damage in (Path.unlink, lambda file: (file.chmod(0o600), file.write_bytes(b"short"))):
            assert (await proxy.get(path)).body == BLOBS[0]
            await proxy.stored(1)
            (file,) = (file for file in (tmp_path / "cache" / "blobs").rglob("*") if file.is_file())
            damage(file)
        assert (await proxy.get(path)).body == BLOBS[0]
    assert registry.count("GET", "/blobs/") == 3
