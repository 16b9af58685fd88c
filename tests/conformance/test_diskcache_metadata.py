"""What is particular to metadata in diskcache: pickles, culling, damage."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import diskcache
import pytest

from proxy.storage import metadata
from proxy.storage.base import StorageError
from proxy.storage.metadata import DiskcacheMetadata
from tests.fakes.clock import ManualClock


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (Path(self.folder),)


async def opened(directory: Path) -> DiskcacheMetadata:
    store = DiskcacheMetadata(directory)
    await store.open()
    return store


@pytest.mark.parametrize("size", [0, 1 << 20], ids=["in the database", "in a file"])
async def test_a_planted_pickle_is_never_unpickled(tmp_path: Path, size: int) -> None:
    """CVE-2025-69872: what somebody put into the directory is as good as absent, by whatever mode it is stored."""
    directory, proof = tmp_path / "metadata", tmp_path / "executed"
    with diskcache.Cache(str(directory)) as planted:
        planted.set("pickle", (Payload(str(proof)), b"x" * size))
        planted.set("text", "t" * size)
        planted.set("number", 5)
        planted.set("file", b"b" * max(size, 1 << 20))
        planted.set("good", b"bytes")
    store = await opened(directory)
    assert await store.get("pickle", "text", "number", "file", "good") == [None, None, None, None, b"bytes"]
    await store.put({"pickle": b"mine"}, 60)
    assert await store.get("pickle") == [b"mine"]
    await store.delete("text")
    await store.close()
    assert not proof.exists()
    # The plant works: the stock store does execute it.
    with diskcache.Cache(str(tmp_path / "control")) as control:
        control.set("pickle", Payload(str(proof)))
        control.get("pickle")
    assert proof.exists()


async def test_only_strings_and_bytes_are_stored(tmp_path: Path) -> None:
    """diskcache would pickle the rest."""
    store = await opened(tmp_path)
    wrong: list[dict[Any, Any]] = [{"key": "text"}, {"key": 5}, {"key": None}, {5: b"x"}, {("a",): b"x"}]
    for entries in wrong:
        with pytest.raises(TypeError):
            await store.put(entries, 60)
    await store.close()


async def test_values_are_in_the_database_and_nowhere_else(tmp_path: Path) -> None:
    """A record is written whole or not at all, the largest manifest included."""
    store = await opened(tmp_path)
    await store.put({"key": b"m" * (4 << 20)}, 60)
    await store.close()
    assert {file.name.partition("-")[0] for file in tmp_path.rglob("*") if file.is_file()} == {
        "cache.db",
        "stamps",
    }


async def test_nothing_is_culled_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diskcache's limit of 1 GiB, here of a kibibyte, must not touch what cannot be fetched again."""
    monkeypatch.setitem(diskcache.core.DEFAULT_SETTINGS, "size_limit", 1024)
    store = await opened(tmp_path)
    keys = [f"key{number}" for number in range(200)]
    for key in keys:
        await store.put({key: b"x" * 1000}, 3600)
    assert None not in await store.get(*keys)
    await store.close()


async def test_what_has_ended_is_removed_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little by little, as new records come."""
    clock = ManualClock()
    monkeypatch.setattr(time, "time", clock)
    store = await opened(tmp_path)
    await store.put({f"old{number}": b"x" for number in range(50)}, 60)
    clock.advance(61)
    for number in range(50):
        await store.put({f"new{number}": b"x"}, 60)
    await store.close()
    with diskcache.Cache(str(tmp_path)) as cache:
        assert len(cache) == 50


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_damaged_database_is_a_storage_error(tmp_path: Path, damage: bytes) -> None:
    """One line for operators, and the store can still be closed, twice."""
    (tmp_path / "cache.db").write_bytes(damage)
    store = DiskcacheMetadata(tmp_path)
    with pytest.raises(StorageError, match="the metadata cache failed"):
        await store.open()
    await store.close()
    await store.close()


async def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "file").write_text("")
    store = DiskcacheMetadata(tmp_path / "file")
    with pytest.raises(StorageError):
        await store.open()
    await store.close()


async def test_keys_are_listed_by_the_index(tmp_path: Path) -> None:
    """However many rows there are: the table's own index on keys is what a listing walks along."""
    store = await opened(tmp_path / "metadata")
    await store.close()
    with diskcache.Cache(str(tmp_path / "metadata")) as cache:
        plan = cache._sql("EXPLAIN QUERY PLAN " + metadata._SCAN, ("a", "", "b", 0.0, 10)).fetchall()
    assert [row[3].split(" (")[0] for row in plan] == ["SEARCH Cache USING INDEX Cache_key_raw"]


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
async def test_without_room_for_the_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """Who is alone goes on with its own memory; one of several does not start: others would not see its changes."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = DiskcacheMetadata(tmp_path, shared)
    if shared:
        with pytest.raises(StorageError, match="No space"):
            await store.open()
    else:
        await store.open()
        stamp = store.stamp("a")
        assert stamp.holds()
        await store.put({"a": b"1"}, 60)
        assert not stamp.holds()
    await store.close()
