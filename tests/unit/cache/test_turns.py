"""Turns over processes: one asks, the others wait, and never for long."""

import asyncio

import pytest

from proxy.cache.turns import Turns
from proxy.oci.digest import Digest
from proxy.storage.base import StorageError
from tests.conformance.memory import MemoryBlobs, Shelf


def two() -> tuple[Turns, Turns]:
    """Of two processes that share a store."""
    shelf = Shelf()
    return Turns(MemoryBlobs(shelf, 0, 0)), Turns(MemoryBlobs(shelf, 0, 0))


async def test_one_has_it_at_a_time() -> None:
    """The other one waits until it is given back, and has it then."""
    one, other = two()
    assert await one.take("tag")
    assert not await other.take("tag")
    assert await other.take("another tag")
    waiting = asyncio.create_task(other.wait("tag"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    await one.give_back("tag")
    assert await waiting
    assert not await one.take("tag")


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that hangs with it in its hands the others are free after a while."""
    monkeypatch.setattr("proxy.cache.turns._LONGEST_WAIT", 0.02)
    one, other = two()
    assert await one.take("tag")
    assert not await other.wait("tag")


async def test_how_long_is_waited_may_be_said() -> None:
    """A probe waits for another one's for as long as that may take."""
    one, other = two()
    assert await one.take("tag")
    assert not await other.wait("tag", longest=0.02)


async def test_alone_there_is_nothing_to_wait_for() -> None:
    """Where there is one process every turn is its own, at no cost."""
    alone = Turns()
    assert not alone.shared
    assert two()[0].shared
    assert await alone.take("tag")
    assert await alone.take("tag")
    assert await alone.wait("tag")
    await alone.give_back("tag")


async def test_a_store_that_fails_stops_nobody() -> None:
    """Asking twice is better than not asking."""

    class Broken:
        def claim(self, digest: Digest) -> bool:
            raise StorageError("no locks")

        def release(self, digest: Digest) -> None:
            raise OSError("no locks")

    turns = Turns(Broken())
    assert await turns.take("tag")
    await turns.give_back("tag")


async def test_no_blob_can_take_a_turn() -> None:
    """What is claimed is the digest of no content that a client could make up."""
    claimed: list[Digest] = []

    class Recording:
        def claim(self, digest: Digest) -> bool:
            claimed.append(digest)
            return True

        def release(self, digest: Digest) -> None:
            claimed.append(digest)

    turns = Turns(Recording())
    await turns.take("tag")
    await turns.give_back("tag")
    assert claimed[0] == claimed[1]
    assert claimed[0] not in {Digest.of(b"tag"), Digest.of(b"tag\0tag")}
