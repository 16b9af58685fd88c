"""Turns over processes and replicas: a claim and a lease together, or neither."""

import asyncio

import pytest

from proxy.cache.turns import Turns
from proxy.storage.base import StorageError
from tests.conformance.memory import MemoryBlobs, Shelf
from tests.fakes.region import Common, Member


class Replica:
    """Two processes of one, and what they have taken."""

    def __init__(self, common: Common, address: str) -> None:
        self.shelf = Shelf()
        self.member = Member(common, address)
        self.turns = Turns(MemoryBlobs(self.shelf, 0, 0), self.member)
        self.other = Turns(MemoryBlobs(self.shelf, 0, 0), self.member)


@pytest.fixture
def common() -> Common:
    return Common()


@pytest.fixture
def here(common: Common) -> Replica:
    return Replica(common, "http://here")


@pytest.fixture
def there(common: Common) -> Replica:
    return Replica(common, "http://there")


async def test_one_replica_has_it_at_a_time(here: Replica, there: Replica) -> None:
    """The other one waits until it is given back, and has it then."""
    assert await here.turns.take("tag")
    waiting = asyncio.create_task(there.turns.wait("tag"))
    while len(there.member.taken) < 2:
        await asyncio.sleep(0)
    assert not waiting.done()
    await here.turns.give_back("tag")
    assert await waiting
    assert not await here.turns.take("tag")


async def test_a_lease_that_is_refused_gives_the_claim_back(here: Replica, there: Replica) -> None:
    """Between two tries another process of this replica may ask."""
    assert await there.turns.take("tag")
    assert not await here.turns.take("tag")
    assert not here.shelf.claims
    await there.turns.give_back("tag")
    assert await here.other.take("tag")


async def test_one_process_of_each_replica_asks_for_the_lease(here: Replica) -> None:
    """Whoever has no claim does not ask the server at all."""
    assert await here.turns.take("tag")
    for _ in range(3):
        assert not await here.other.take("tag")
    assert len(here.member.taken) == 1


async def test_both_are_given_back(here: Replica, common: Common) -> None:
    """Nothing is left of it, here or at the server."""
    assert await here.turns.take("tag")
    assert len(common.leases) == len(here.shelf.claims) == 1
    await here.turns.give_back("tag")
    assert not common.leases
    assert not here.shelf.claims


async def test_a_replica_of_one_process_leases(common: Common) -> None:
    """There is nothing to claim, and there are other replicas all the same."""
    one, other = (Turns(None, Member(common, address)) for address in ("http://one", "http://other"))
    assert not one.shared
    assert await one.take("tag")
    assert not await other.take("tag")
    assert not await other.wait("tag", longest=0.0)
    await one.give_back("tag")
    assert await other.take("tag")


@pytest.mark.parametrize("error", [StorageError("away"), RuntimeError("whatever")])
async def test_an_error_leaves_nothing_taken(here: Replica, error: Exception) -> None:
    """The next one may ask at once."""
    here.member.error = error
    with pytest.raises(type(error)):
        await here.turns.take("tag")
    assert not here.shelf.claims
    here.member.error = None
    assert await here.other.take("tag")


async def test_whoever_is_cancelled_leaves_nothing_taken(here: Replica) -> None:
    """While it waits for the server's answer."""
    here.member.gate = asyncio.Event()
    taking = asyncio.create_task(here.turns.wait("tag"))
    while not here.member.taken:
        await asyncio.sleep(0)
    assert here.shelf.claims
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not here.shelf.claims


async def test_the_claim_is_given_back_where_the_server_fails(here: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease ends by itself; the claim would not."""

    async def release(name: str) -> None:
        raise StorageError(name)

    assert await here.turns.take("tag")
    monkeypatch.setattr(here.member, "release", release)
    with pytest.raises(StorageError):
        await here.turns.give_back("tag")
    assert not here.shelf.claims


async def test_without_the_server_each_replica_has_its_turn(here: Replica, there: Replica, common: Common) -> None:
    """Twice is better than not at all; within one replica it is still one."""
    common.away = True
    assert await here.turns.take("tag")
    assert await there.turns.take("tag")
    assert not await here.other.take("tag")


async def test_the_server_sees_nobody_s_name(here: Replica) -> None:
    """Whose rights it is about, and of which repository, is not in what is leased."""
    await here.turns.take("team/app alice")
    assert all("alice" not in name and "app" not in name for name in here.member.taken)
    assert await here.turns.take("team/app bob")
    assert len(set(here.member.taken)) == 2
