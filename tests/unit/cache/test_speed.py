"""The speed of fills that nobody waits for."""

import asyncio

import pytest

from proxy.cache import speed
from proxy.cache.speed import Brake, Speed
from tests.fakes.clock import ManualClock

KIB = 1024


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock that speeds go by, from 0 on."""
    manual = ManualClock(1000.0)
    monkeypatch.setattr(speed, "now", manual)
    return manual


async def test_all_that_share_it_are_as_fast_as_it_together(clock: ManualClock) -> None:
    """What has come is covered later the more came before it, from whichever fill."""
    shared = Speed(100 * KIB)
    one, other = Brake(shared, lambda: False), Brake(shared, lambda: False)
    assert one.spend(25 * KIB) == clock.now
    assert other.spend(100 * KIB) == clock.now + 1
    assert one.spend(50 * KIB) == clock.now + 1.5
    clock.advance(60)
    # A pause earns no more than a moment's worth.
    assert one.spend(125 * KIB) == clock.now + 1


async def test_nothing_holds_back_what_has_no_speed(clock: ManualClock) -> None:
    """Nor what somebody reads, and for a while what somebody read: those bytes are not counted either."""
    assert not Brake(None, lambda: False).is_on
    shared, readers = Speed(100 * KIB), [1]
    brake = Brake(shared, lambda: bool(readers))
    assert (brake.is_on, brake.spend(500 * KIB)) == (False, 0.0)
    readers.clear()
    clock.advance(1.9)
    assert not brake.is_on
    clock.advance(0.2)
    assert (brake.is_on, brake.spend(25 * KIB)) == (True, clock.now)


async def test_a_reader_ends_the_wait(clock: ManualClock) -> None:
    """Whoever comes while a fill waits has it go on at once."""
    readers: list[int] = []
    brake = Brake(Speed(KIB), lambda: bool(readers))
    waiting = asyncio.create_task(brake.wait(clock.now + 3600, lambda: False))
    await asyncio.sleep(0)
    assert not waiting.done()
    readers.append(1)
    async with asyncio.timeout(5):
        await waiting


async def test_something_else_ends_the_wait(clock: ManualClock) -> None:
    """Whatever it was told to look at."""
    wanted: list[int] = []
    waiting = asyncio.create_task(Brake(Speed(KIB), lambda: False).wait(clock.now + 3600, lambda: bool(wanted)))
    await asyncio.sleep(0)
    wanted.append(1)
    async with asyncio.timeout(5):
        await waiting
