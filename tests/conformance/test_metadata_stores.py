"""What every MetadataStore does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.storage.base import MetadataStore
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.remembered import Remembered
from tests.conformance.memory import MemoryMetadata
from tests.fakes.clock import ManualClock


class Stores:
    """Opens the store, and opens it again as after a restart."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._open: Any = None

    async def start(self) -> MetadataStore:
        await self.stop()
        self._open = self._make()
        await self._open.open()
        return cast(MetadataStore, self._open)

    async def stop(self) -> None:
        if self._open is not None:
            store, self._open = self._open, None
            await store.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The wall clock, which records end by."""
    manual = ManualClock()
    monkeypatch.setattr(time, "time", manual)
    return manual


class _RememberedDiskcache(Remembered):
    """As the program has it."""

    def __init__(self, directory: Path) -> None:
        self._disk = DiskcacheMetadata(directory)
        super().__init__(self._disk, 64 << 20)

    async def open(self) -> None:
        await self._disk.open()


@pytest.fixture(params=["diskcache", "memory", "remembered"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    shelf: dict[str, tuple[bytes, float]] = {}
    made: dict[str, Callable[[], Any]] = {
        "diskcache": lambda: DiskcacheMetadata(tmp_path / "metadata"),
        "memory": lambda: MemoryMetadata(shelf),
        "remembered": lambda: _RememberedDiskcache(tmp_path / "metadata"),
    }
    opened = Stores(made[request.param])
    yield opened
    await opened.stop()


@pytest.fixture
async def store(stores: Stores) -> MetadataStore:
    return await stores.start()


@pytest.mark.parametrize("value", [b"", b"x", bytes(range(256)), b"\x80\x04K\x01.", b"{}", b"m" * (5 << 20)])
async def test_bytes_come_back_as_they_were(store: MetadataStore, value: bytes) -> None:
    """Empty, binary, what looks like a pickle, and more than the largest manifest."""
    await store.put({"key": value}, 60)
    assert await store.get("key") == [value]


@pytest.mark.parametrize(
    "key", ["", "a", "tag/docker.io/library/nginx:latest", "ä/ü", "../../etc/passwd", "x" * 2000, "%", "a\nb"]
)
async def test_any_text_is_a_key(store: MetadataStore, key: str) -> None:
    """Keys are of our own making, and hold what clients asked for."""
    await store.put({key: b"v"}, 60)
    assert await store.get(key, f"{key} ") == [b"v", None]


async def test_values_come_in_the_order_of_their_keys(store: MetadataStore) -> None:
    """None for what is absent; nothing asked, nothing given."""
    await store.put({"a": b"1", "b": b"2"}, 60)
    assert await store.get("b", "missing", "a", "b") == [b"2", None, b"1", b"2"]
    assert await store.get() == []


async def test_the_last_value_counts(store: MetadataStore) -> None:
    """A put replaces, larger and smaller values alike."""
    for value in (b"small", b"l" * 100_000, b""):
        await store.put({"key": value}, 60)
        assert await store.get("key") == [value]


async def test_deleted_is_absent(store: MetadataStore) -> None:
    """Deleting what is not there is no error."""
    await store.put({"a": b"1", "b": b"2", "c": b"3"}, 60)
    await store.delete("a", "c", "missing")
    await store.delete("a")
    await store.delete()
    assert await store.get("a", "b", "c") == [None, b"2", None]


async def test_a_record_ends_when_its_time_is_over(store: MetadataStore, clock: ManualClock) -> None:
    """Kept for `keep` seconds at least, and no more than a few longer; a new put starts anew."""
    await store.put({"short": b"1", "again": b"1"}, 60)
    await store.put({"long": b"2"}, 3600)
    clock.advance(59)
    assert await store.get("short", "long") == [b"1", b"2"]
    await store.put({"again": b"3"}, 60)
    clock.advance(32)
    assert await store.get("short", "long", "again") == [None, b"2", b"3"]


async def test_everything_is_there_after_a_restart(stores: Stores) -> None:
    """And what was deleted is not."""
    store = await stores.start()
    await store.put({f"key{number}": str(number).encode() for number in range(100)}, 3600)
    await store.delete("key7")
    store = await stores.start()
    values = await store.get(*(f"key{number}" for number in range(100)))
    assert values == [None if number == 7 else str(number).encode() for number in range(100)]


async def test_all_of_a_put_or_nothing(store: MetadataStore) -> None:
    """One entry that cannot be stored keeps the others out, and what was there stays."""
    await store.put({"one": b"before"}, 60)
    with pytest.raises(TypeError):
        await store.put({"one": b"after", "two": cast(bytes, "no bytes")}, 60)
    assert await store.get("one", "two") == [b"before", None]


async def test_many_at_once(store: MetadataStore) -> None:
    """Concurrent use loses nothing and mixes nothing up."""

    async def use(number: int) -> None:
        key, value = f"key{number}", bytes([number]) * 1000
        await store.put({key: value, "shared": value}, 60)
        assert await store.get(key) == [value]
        if number % 2:
            await store.delete(key)

    await asyncio.gather(*(use(number) for number in range(60)))
    found = await store.get(*(f"key{number}" for number in range(60)))
    assert [value is not None for value in found] == [number % 2 == 0 for number in range(60)]
    (shared,) = await store.get("shared")
    assert shared is not None
    assert len(set(shared)) == 1


async def test_a_waiter_that_leaves_harms_nobody(store: MetadataStore) -> None:
    """Its put may or may not have happened; the store goes on."""
    leaving: list[Awaitable[bool]] = []
    for number in range(20):
        task = asyncio.ensure_future(store.put({f"key{number}": b"x"}, 60))
        await asyncio.sleep(0)
        task.cancel()
        leaving.append(task)
    await asyncio.gather(*leaving, return_exceptions=True)
    await store.put({"after": b"y"}, 60)
    assert await store.get("after") == [b"y"]


@pytest.mark.parametrize(("before", "stored"), [(b"1", True), (b"2", False), (None, False)])
async def test_what_is_stored_only_while_a_key_has_a_value(
    store: MetadataStore, before: bytes | None, stored: bool
) -> None:
    """All of it where the key still has the value that was seen, nothing where it changed, and no error."""
    await store.put({"guard": b"1"}, 60)
    assert await store.put({"a": b"a", "b": b"b"}, 60, only_while=("guard", before)) is stored
    assert await store.get("a", "b") == ([b"a", b"b"] if stored else [None, None])


async def test_what_is_stored_only_while_a_key_is_absent(store: MetadataStore, clock: ManualClock) -> None:
    """Absent is what was never there, and what has ended."""
    await store.put({"a": b"1"}, 600, only_while=("guard", None))
    await store.put({"guard": b"1"}, 60)
    await store.put({"b": b"1"}, 600, only_while=("guard", None))
    clock.advance(61)
    await store.put({"c": b"1"}, 600, only_while=("guard", None))
    assert await store.get("a", "b", "c") == [b"1", None, b"1"]


async def test_keys_are_listed_by_their_beginning_in_order_and_in_pages(store: MetadataStore) -> None:
    """Code points decide the order, patterns' characters mean themselves, and a page begins after the last one's."""
    keys = ["tag/b", "tag/a:2", "tag/a:10", "tag/é", "tag/%", "tag/_", "tag/a", "tag", "tagx/a", "s/tag/a"]
    await store.put(dict.fromkeys(keys, b"1"), 60)
    wanted = sorted(key for key in keys if key.startswith("tag/"))
    assert await store.scan("tag/") == wanted
    assert await store.scan("tag/", limit=3) == wanted[:3]
    assert await store.scan("tag/", wanted[2], 3) == wanted[3:6]
    assert await store.scan("tag/%") == ["tag/%"]
    assert await store.scan("none/") == []


async def test_what_has_ended_or_was_removed_is_not_listed(store: MetadataStore, clock: ManualClock) -> None:
    """Only keys that have a value."""
    await store.put({"k/short": b"1", "k/removed": b"1"}, 60)
    await store.put({"k/long": b"1"}, 600)
    await store.delete("k/removed")
    clock.advance(61)
    assert await store.scan("k/") == ["k/long"]


@pytest.mark.parametrize("change", ["put", "delete", "put of several", "guarded put"])
async def test_a_stamp_holds_until_one_of_its_keys_is_changed(store: MetadataStore, change: str) -> None:
    """And not a moment longer than that; other keys' changes are (but for rare chances) nothing to it."""
    await store.put({"a": b"1", "b": b"2"}, 60)
    stamp, other = store.stamp("a", "b"), store.stamp("c")
    assert await store.get("a", "b") == [b"1", b"2"]
    assert stamp.holds()
    if change == "put":
        await store.put({"b": b"2"}, 60)
    elif change == "delete":
        await store.delete("a")
    elif change == "put of several":
        await store.put({"x": b"1", "a": b"1"}, 60)
    else:
        await store.put({"a": b"3"}, 60, only_while=("b", b"2"))
    assert not stamp.holds()
    assert other.holds()
    assert store.stamp("a", "b").holds()


async def test_a_stamp_for_what_is_absent(store: MetadataStore) -> None:
    """Until it is there."""
    stamp = store.stamp("a")
    assert await store.get("a") == [None]
    assert stamp.holds()
    await store.put({"a": b""}, 60)
    assert not stamp.holds()
    assert await store.get("a") == [b""]


async def test_what_was_not_stored_changes_nothing_that_is_read(store: MetadataStore) -> None:
    """A put whose guard does not fit."""
    await store.put({"a": b"1"}, 60)
    assert await store.get("a") == [b"1"]
    assert not await store.put({"a": b"2"}, 60, only_while=("a", b"other"))
    assert await store.get("a") == [b"1"]
