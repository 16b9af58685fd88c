"""The memory before the metadata store: what it saves, and what it never hides."""

import asyncio
from pathlib import Path

import pytest

from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.remembered import Remembered
from tests.conformance.memory import MemoryMetadata

Shelf = dict[str, tuple[bytes, float]]


class Counting(MemoryMetadata):
    """Counts what is read from it; `gate` holds an answer back once it was read."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.read: list[str] = []
        self.gate: asyncio.Event | None = None

    async def get(self, *keys: str) -> list[bytes | None]:
        self.read += keys
        found = await super().get(*keys)
        if self.gate is not None:
            await self.gate.wait()
        return found


@pytest.fixture
def inner() -> Counting:
    return Counting({})


async def test_what_was_read_is_not_read_again(inner: Counting) -> None:
    """Nor what was found to be absent; a single key that is not known has all of them read."""
    store = Remembered(inner, 1 << 20)
    await store.put({"a": b"1"}, 60)
    for _ in range(3):
        assert await store.get("a", "b") == [b"1", None]
        assert await store.get("b") == [None]
    assert inner.read == ["a", "b"]


async def test_what_another_process_changes_is_read_anew(tmp_path: Path) -> None:
    """From the moment on at which that process says that it has changed it."""
    here, there = DiskcacheMetadata(tmp_path), DiskcacheMetadata(tmp_path)
    await here.open()
    await there.open()
    store = Remembered(here, 1 << 20)
    for value in (b"1", b"2", None, b"3"):
        await (there.delete("a") if value is None else there.put({"a": value}, 60))
        assert await store.get("a") == [value]
        assert await store.get("a") == [value]
    await here.close()
    await there.close()


async def test_what_changes_while_it_is_read_is_not_believed(inner: Counting) -> None:
    """The old value was read before the change, and its answer comes after it."""
    store = Remembered(inner, 1 << 20)
    await store.put({"a": b"old"}, 60)
    inner.gate = asyncio.Event()
    reading = asyncio.create_task(store.get("a"))
    while not inner.read:
        await asyncio.sleep(0)
    await store.put({"a": b"new"}, 60)
    inner.gate.set()
    assert await reading == [b"old"]
    assert await store.get("a") == [b"new"]


async def test_without_memory_all_is_read(inner: Counting) -> None:
    """A limit of 0, also one that comes later."""
    store = Remembered(inner, 1 << 20)
    await store.get("a")
    store.limit(0)
    await store.get("a")
    await store.get("a")
    assert inner.read == ["a"] * 3


async def test_what_was_read_long_ago_is_read_anew(inner: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute, since it may have come to its end in the store; or where the clock was set back."""
    now = 1_800_000_000.0
    monkeypatch.setattr("proxy.storage.remembered.time.time", lambda: now)
    store = Remembered(inner, 1 << 20)
    await store.put({"a": b"1"}, 60)
    for after, read in ((0.0, 1), (29.9, 1), (30.1, 2), (59.0, 2), (58.0, 2), (10.0, 3)):
        now = 1_800_000_000.0 + after
        assert await store.get("a") == [b"1"]
        assert len(inner.read) == read, after
