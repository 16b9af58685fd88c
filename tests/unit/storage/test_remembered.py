"""The memory before the metadata store: what it saves, and what it never hides."""

import asyncio
from pathlib import Path

import pytest

from proxy.storage.base import StorageError
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
        self.error: StorageError | None = None

    async def get(self, *keys: str) -> list[bytes | None]:
        self.read += keys
        found = await super().get(*keys)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
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


async def several(store: Remembered, inner: Counting, count: int, *keys: str) -> list[asyncio.Task[list[bytes | None]]]:
    """As many who ask for `keys` at once, and wait for the store's answer."""
    inner.gate = asyncio.Event()
    asking = [asyncio.create_task(store.get(*keys)) for _ in range(count)]
    while not inner.read:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return asking


@pytest.mark.parametrize("limit", [1 << 20, 0])
async def test_those_who_ask_for_the_same_are_one_reading(inner: Counting, limit: int) -> None:
    """Also where nothing is remembered; each has an answer of its own, and others are not mixed with it."""
    store = Remembered(inner, limit)
    await store.put({"a": b"1"}, 60)
    asking = await several(store, inner, 1000, "a", "b")
    other = asyncio.create_task(store.get("a"))
    await asyncio.sleep(0)
    assert inner.read == ["a", "b", "a"]
    assert inner.gate is not None
    inner.gate.set()
    found = await asyncio.gather(*asking)
    assert found == [[b"1", None]] * 1000
    assert len({id(one) for one in found}) == 1000
    assert await other == [b"1"]


async def test_who_asks_after_a_change_has_not_what_was_read_before_it(inner: Counting) -> None:
    """They read it anew, once for all of them."""
    store = Remembered(inner, 1 << 20)
    await store.put({"a": b"old"}, 60)
    (before,) = await several(store, inner, 1, "a")
    await store.put({"a": b"new"}, 60)
    after = [asyncio.create_task(store.get("a")) for _ in range(10)]
    await asyncio.sleep(0)
    gate, inner.gate = inner.gate, None
    assert gate is not None
    gate.set()
    assert await before == [b"old"]
    assert await asyncio.gather(*after) == [[b"new"]] * 10
    assert inner.read == ["a", "a"]


async def test_one_who_stops_reading_stops_no_other(inner: Counting) -> None:
    """Another one reads it for all who are left."""
    store = Remembered(inner, 1 << 20)
    await store.put({"a": b"1"}, 60)
    first, *others = await several(store, inner, 10, "a")
    others[0].cancel()
    first.cancel()
    await asyncio.gather(first, others[0], return_exceptions=True)
    assert inner.gate is not None
    inner.gate.set()
    assert await asyncio.gather(*others[1:]) == [[b"1"]] * 8
    assert inner.read == ["a", "a"]


async def test_a_reading_that_fails_fails_for_all_who_wait_for_it(inner: Counting) -> None:
    """Nobody tries it again by themselves, one after another; who comes later does."""
    store = Remembered(inner, 1 << 20)
    inner.error = StorageError("it is broken")
    asking = await several(store, inner, 10, "a")
    assert inner.gate is not None
    inner.gate.set()
    met = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(one) for one in met] == ["it is broken"] * 10
    assert inner.read == ["a"]
    inner.error = None
    assert await store.get("a") == [None]
