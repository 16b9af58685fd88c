"""The metadata of a replica: what is shared counts while it is there, and copies while it is away."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from proxy.storage.base import StorageError
from proxy.storage.link import Away
from proxy.storage.metadata import DiskcacheMetadata
from proxy.storage.valkey import DELETED_FOR, LASTING
from tests.fakes.clock import ManualClock
from tests.fakes.shared import FakeReplica, FakeServer

DAY = 86400.0

Start = Callable[..., Awaitable[FakeReplica]]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The wall clock, which records end by."""
    manual = ManualClock()
    monkeypatch.setattr(time, "time", manual)
    return manual


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def start(server: FakeServer, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a replica by its name, on the disk that it had before."""
    opened: list[tuple[FakeReplica, DiskcacheMetadata]] = []

    async def started(name: str = "here", there: bool = True, first: bool = True) -> FakeReplica:
        local = DiskcacheMetadata(tmp_path / name, shared=True)
        await local.open()
        store = FakeReplica(local, server, first)
        opened.append((store, local))
        store.link.reachable = there
        await store.start()
        return store

    yield started
    for store, local in opened:
        await store.close()
        await local.close()


@pytest.fixture
async def here(start: Start) -> FakeReplica:
    return await start("here")


@pytest.fixture
async def there(start: Start) -> FakeReplica:
    return await start("there")


async def test_what_one_replica_writes_the_other_reads(here: FakeReplica, there: FakeReplica) -> None:
    """Values, their absence, and the list of keys; without what a replica keeps for itself."""
    assert await here.put({"a": b"1", "b": b"2"}, 60)
    assert await there.get("b", "a", "c") == [b"2", b"1", None]
    assert await there.scan("") == ["a", "b"]
    await there.delete("a")
    assert await here.get("a", "b") == [None, b"2"]
    assert not await here.put({"b": b"3"}, 60, ("b", b"1"))
    assert await there.put({"b": b"3"}, 60, ("b", b"2"))
    assert await here.get("b") == [b"3"]


async def test_the_copies_count_while_it_is_away(here: FakeReplica, there: FakeReplica, clock: ManualClock) -> None:
    """What was written here and what was read, until it ends; nothing else is known."""
    await here.put({"written": b"1", "short": b"2"}, 60)
    await here.put({"short": b"2"}, 10)
    await there.put({"read": b"3", "not read": b"4"}, 60)
    assert await here.get("read") == [b"3"]
    await here.write()
    here.link.leave()
    keys = ("written", "short", "read", "not read")
    assert await here.get(*keys) == [b"1", b"2", b"3", None]
    assert await here.scan("") == ["read", "short", "written"]
    clock.advance(20)
    assert await here.get(*keys) == [b"1", None, b"3", None]


async def test_copies_outlive_a_restart(start: Start, server: FakeServer) -> None:
    """A replica that starts while the server is away serves what it had."""
    store = await start("here")
    await store.put({"a": b"1"}, 60)
    await store.close()
    again = await start("here", there=False)
    assert await again.get("a") == [b"1"]
    assert await again.scan("") == ["a"]


async def test_what_is_written_while_it_is_away_is_brought_to_it(
    here: FakeReplica, there: FakeReplica, server: FakeServer
) -> None:
    """Before it counts again: what is new, and what this replica alone has changed."""
    await here.put({"changed": b"old"}, 60)
    here.link.leave()
    assert await here.put({"changed": b"newer"}, 60)
    assert await here.put({"changed": b"newest", "new": b"1"}, 60)
    assert await here.get("changed", "new") == [b"newest", b"1"]
    assert server.value("changed") == b"old"
    await here.link.come()
    assert await there.get("changed", "new") == [b"newest", b"1"]
    assert here.unheard == set()
    before = len(server.calls)
    here.link.leave()
    await here.link.come()
    assert len(server.calls) == before


async def test_conditions_hold_among_the_copies(here: FakeReplica) -> None:
    """While it is away a guard is held against what there is here."""
    await here.put({"a": b"1"}, 60)
    here.link.leave()
    assert not await here.put({"a": b"2"}, 60, ("a", b"other"))
    assert not await here.put({"a": b"2"}, 60, ("a", None))
    assert here.unheard == set()
    assert await here.put({"a": b"2"}, 60, ("a", b"1"))
    assert await here.get("a") == [b"2"]


async def test_another_replica_s_value_wins(here: FakeReplica, there: FakeReplica) -> None:
    """Over what was stored here while the server was away, whether there was something before or not."""
    await here.put({"changed": b"old"}, 60)
    here.link.leave()
    await here.put({"changed": b"here", "new": b"here"}, 60)
    await there.put({"changed": b"there", "new": b"there"}, 60)
    await here.link.come()
    for store in (here, there):
        assert await store.get("changed", "new") == [b"there", b"there"]
    await here.write()
    here.link.leave()
    assert await here.get("changed", "new") == [b"there", b"there"]


async def test_what_another_replica_has_deleted_stays_deleted(here: FakeReplica, there: FakeReplica) -> None:
    """Though it was changed here meanwhile: what it was changed from is there no more."""
    await here.put({"a": b"old"}, 60)
    here.link.leave()
    await here.put({"a": b"here"}, 60)
    await there.delete("a")
    await here.link.come()
    assert await here.get("a") == [None]
    here.link.leave()
    assert await here.get("a") == [None]


async def test_what_has_ended_is_not_brought(here: FakeReplica, server: FakeServer, clock: ManualClock) -> None:
    """An outage may be longer than a value is kept."""
    here.link.leave()
    await here.put({"a": b"1"}, 60)
    clock.advance(61)
    await here.link.come()
    assert server.records == {}
    assert here.unheard == set()


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_deletion_while_it_is_away(here: FakeReplica, there: FakeReplica, on_disk: bool) -> None:
    """It counts here at once and everywhere when it can be told; whoever wants it is told that it is not yet so."""
    await there.put({"a": b"1"}, 60)
    assert await here.get("a") == [b"1"]
    if on_disk:
        await here.write()
    here.link.leave()
    with pytest.raises(StorageError):
        await here.delete("a")
    assert await here.get("a") == [None]
    assert await here.scan("") == []
    assert await there.get("a") == [b"1"]
    await here.link.come()
    assert await there.get("a") == [None]
    assert await there.scan("") == []


async def test_a_deletion_of_what_was_written_while_it_is_away(here: FakeReplica, there: FakeReplica) -> None:
    """It is the last word."""
    await there.put({"a": b"old"}, 60)
    assert await here.get("a") == [b"old"]
    here.link.leave()
    await here.put({"a": b"new"}, 60)
    with pytest.raises(StorageError):
        await here.delete("a")
    await here.link.come()
    assert await there.get("a") == [None]


async def test_what_is_never_fetched_again_while_it_is_away(here: FakeReplica, there: FakeReplica) -> None:
    """It counts here, and is brought to the server; whoever stores it is told that the others have not heard of it."""
    here.link.leave()
    with pytest.raises(StorageError):
        await here.put({"a": b"1"}, LASTING)
    assert await here.get("a") == [b"1"]
    await here.link.come()
    assert await there.get("a") == [b"1"]


async def test_a_server_that_fails_while_it_is_there(here: FakeReplica, server: FakeServer) -> None:
    """A single call: what was put here gets there at once, so nothing has to be brought later."""
    server.fails = 1
    assert await here.put({"a": b"1"}, 60)
    assert server.value("a") == b"1"
    assert here.unheard == set()


async def test_the_server_goes_while_it_is_told(here: FakeReplica, there: FakeReplica, server: FakeServer) -> None:
    """What was not brought yet waits for the next time."""
    here.link.leave()
    await here.put({"a": b"1"}, 60)
    with pytest.raises(StorageError):
        await here.delete("b")
    for fails in (1, 2):
        server.fails = fails
        with pytest.raises(Away):
            await here.link.come()
        assert here.unheard
        server.fails = 0
    assert await here.get("a", "b") == [b"1", None]
    await here.link.come()
    assert await there.get("a") == [b"1"]
    assert here.unheard == set()


async def test_lost_memory_is_offered_back_when_it_is_missed(here: FakeReplica, server: FakeServer) -> None:
    """A key that the server knows nothing of is had from the copies, and there again when it was read."""
    await here.put({"a": b"1"}, 60)
    server.records.clear()
    assert await here.get("a", "b") == [b"1", None]
    assert server.value("a") == b"1"
    calls = len(server.calls)
    assert await here.get("a") == [b"1"]
    assert server.calls[calls:] == [("read", ("a",))]


async def test_what_was_changed_is_brought_to_a_server_that_has_lost_its_memory(
    here: FakeReplica, server: FakeServer
) -> None:
    """What it was changed from is not there any more either, and nobody else has stored anything."""
    await here.put({"a": b"old"}, 60)
    here.link.leave()
    await here.put({"a": b"new"}, 60)
    server.lose()
    await here.link.come()
    assert server.value("a") == b"new"
    await here.refilled()
    assert server.value("a") == b"new"


async def test_all_of_it_is_offered_back(start: Start, server: FakeServer, clock: ManualClock) -> None:
    """By one process of each replica, for as long as each would have been kept; what others know counts."""
    one, second = await start("one"), await start("one", first=False)
    other = await start("other")
    await one.put({"a": b"1", "short": b"2"}, 60)
    await one.put({"lasting": b"3"}, LASTING)
    await other.put({"b": b"4"}, 60)
    await one.write()
    for store in (one, second, other):
        store.link.leave()
    await other.put({"a": b"other"}, 60)
    server.lose()
    clock.advance(30)
    await second.link.come()
    await second.refilled()
    assert server.records == {}
    await other.link.come()
    await one.link.come()
    await one.refilled()
    await other.refilled()
    assert await second.scan("") == ["a", "b", "lasting", "short"]
    assert await second.get("a", "b", "lasting") == [b"other", b"4", b"3"]
    clock.advance(31)
    assert await second.scan("") == ["lasting"]


async def test_a_replica_meets_the_server_for_the_first_time(start: Start, server: FakeServer) -> None:
    """What it had while it was alone is offered; after a restart that is not done again."""
    alone = await start("here", there=False)
    await alone.put({"a": b"1"}, 60)
    await alone.close()
    store = await start("here")
    await store.refilled()
    assert server.value("a") == b"1"
    await store.close()
    server.calls.clear()
    await (await start("here")).refilled()
    assert server.calls == []


async def test_what_was_deleted_is_not_offered(here: FakeReplica, there: FakeReplica, server: FakeServer) -> None:
    """A replica that hears of a deletion has no copy any more, and one that was away is told that it was deleted."""
    await here.put({"heard": b"1", "missed": b"2"}, 60)
    await here.write()
    await there.delete("heard")
    here.link.leave()
    await there.delete("missed")
    await here.link.come()
    assert await here.get("missed", "heard") == [None, None]
    there.link.leave()
    here.link.leave()
    server.lose()
    await here.link.come()
    await here.refilled()
    assert await here.get("missed", "heard") == [None, None]
    assert await here.scan("") == []


async def test_a_deletion_that_was_heard_drops_the_copy(here: FakeReplica, there: FakeReplica) -> None:
    """It counts while the server is away."""
    await here.put({"a": b"1", "b": b"2"}, 60)
    await here.write()
    await there.delete("a")
    await here.write()
    here.link.leave()
    assert await here.get("a", "b") == [None, b"2"]


async def test_a_deletion_of_one_s_own_drops_the_copy(here: FakeReplica) -> None:
    """In memory and on disk."""
    await here.put({"a": b"1"}, 60)
    await here.write()
    await here.delete("a")
    here.link.leave()
    assert await here.get("a") == [None]
    assert await here.scan("") == []
    assert await here.get("a") == [None]


async def test_a_change_that_was_heard_leaves_the_copy(here: FakeReplica, there: FakeReplica) -> None:
    """While the server is away an older value is better than none."""
    await here.put({"a": b"1"}, 60)
    await there.put({"a": b"2"}, 60)
    here.link.leave()
    assert await here.get("a") == [b"1"]


async def test_nonsense_that_is_heard(here: FakeReplica) -> None:
    """Whoever else writes to the server's channel changes nothing."""
    await here.put({"a": b"1"}, 60)
    for message in (b"", b"\xff", b"[]", b'["deleted", 1, ["a"]]', b'["deleted", "x", "a"]', b'["other", "x", ["a"]]'):
        here.link.heard(message)
    here.link.leave()
    assert await here.get("a") == [b"1"]


@pytest.mark.parametrize(("days", "kept"), [(3, True), (8, False)])
async def test_old_copies(start: Start, clock: ManualClock, days: float, kept: bool) -> None:
    """Whoever was not there for as long as deletions are remembered has copies that nobody can vouch for."""
    store = await start("here")
    await store.put({"a": b"1"}, LASTING)
    await store.work()
    store.link.leave()
    clock.advance(days * DAY)
    assert await store.get("a") == [b"1"]
    store.link.server.records.clear()
    await store.link.come()
    assert await store.get("a") == [b"1" if kept else None]
    assert DELETED_FOR == 7 * DAY


async def test_a_replica_that_stays_keeps_its_copies(start: Start, clock: ManualClock) -> None:
    """However long: now and then it says that it is there."""
    store = await start("here")
    await store.put({"a": b"1"}, LASTING)
    for _ in range(10):
        clock.advance(DAY)
        await store.work()
    store.link.leave()
    await store.link.come()
    store.link.leave()
    assert await store.get("a") == [b"1"]


async def test_a_server_that_is_full(here: FakeReplica, there: FakeReplica, server: FakeServer) -> None:
    """What is stored counts at this replica, and the server knows nothing older of it."""
    await here.put({"a": b"old"}, 60)
    server.full = True
    assert not await here.put({"a": b"new"}, 60, ("a", b"another"))
    assert await here.put({"a": b"new"}, 60, ("a", b"old"))
    assert server.record("a") is None
    assert await here.get("a") == [b"new"]
    with pytest.raises(StorageError):
        await here.put({"lasting": b"1"}, LASTING)
    await here.delete("a")
    assert await here.get("a") == [None]
    server.full = False
    assert await there.get("a") == [None]


async def test_a_guard_passes_at_a_server_that_is_full(
    here: FakeReplica, there: FakeReplica, server: FakeServer
) -> None:
    """It was held against what is shared; that this replica's copy is an older one is no matter."""
    await here.put({"a": b"older"}, 60)
    await there.put({"a": b"old"}, 60)
    server.full = True
    assert await here.put({"a": b"new"}, 60, ("a", b"old"))
    assert await here.get("a") == [b"new"]


async def test_stamps(here: FakeReplica, there: FakeReplica) -> None:
    """They end by what other replicas change, and when the server goes or comes: anything may have been missed."""
    await here.put({"a": b"1", "b": b"2"}, 60)
    one, other = here.stamp("a"), here.stamp("b")
    assert await here.get("a") == [b"1"]
    assert one.holds()
    await there.put({"a": b"2"}, 60)
    assert not one.holds()
    assert other.holds()
    here.link.leave()
    assert not other.holds()
    other = here.stamp("b")
    await here.put({"b": b"3"}, 60)
    assert not other.holds()
    other = here.stamp("b")
    await here.link.come()
    assert not other.holds()


async def test_its_own_keys_are_nobody_s(here: FakeReplica, server: FakeServer) -> None:
    """What a replica keeps for itself is neither listed nor offered."""
    here.link.leave()
    assert await here.scan("") == []
    server.lose()
    await here.link.come()
    await here.refilled()
    assert server.records == {}
