"""Time-outs that do not count what the loop itself was late."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.storage.patience import Patience
from tests.fakes.clock import LoopClock

INTERVAL = 0.25
LIMIT = 5.0


@pytest.fixture
async def patience(timers: LoopClock) -> AsyncIterator[Patience]:
    """One whose clock is looked at."""
    patience = Patience(INTERVAL)

    async def look() -> None:
        while True:
            await patience.look()

    looking = asyncio.create_task(look())
    await timers.advance(INTERVAL)
    yield patience
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def waiting(patience: Patience) -> str:
    """Wait for what never comes; gives how that ends."""
    try:
        async with patience.limit(LIMIT):
            await asyncio.Event().wait()
    except TimeoutError:
        return "too long"
    return "never"


async def in_time(timers: LoopClock, seconds: float) -> None:
    """Let them pass with every look in time."""
    for _ in range(int(seconds / INTERVAL)):
        await timers.advance(INTERVAL)
        # The next look is begun.
        await asyncio.sleep(0)


async def test_who_waits_for_too_long_is_told(patience: Patience, timers: LoopClock) -> None:
    """After the limit and a look, where the loop is in time."""
    wait = asyncio.create_task(waiting(patience))
    await in_time(timers, LIMIT - 1)
    assert not wait.done()
    await in_time(timers, 2)
    assert await wait == "too long"


async def test_what_the_loop_is_late_does_not_count(patience: Patience, timers: LoopClock) -> None:
    """However late it is; what is in time does, before that and after."""
    wait = asyncio.create_task(waiting(patience))
    await in_time(timers, LIMIT / 2)
    for _ in range(5):
        await timers.advance(60)
        await asyncio.sleep(0)
    assert not wait.done()
    await in_time(timers, LIMIT / 2 - 2)
    assert not wait.done()
    await in_time(timers, 2)
    assert await wait == "too long"


async def test_who_comes_while_the_loop_is_late_waits_from_then_on(patience: Patience, timers: LoopClock) -> None:
    """Not from when the last look was due."""
    loop = asyncio.get_running_loop()
    waits: list[asyncio.Task[str]] = []
    loop.call_later(0.1, lambda: waits.append(asyncio.create_task(waiting(patience))))
    await timers.advance(60)
    await asyncio.sleep(0)
    await in_time(timers, LIMIT - 1)
    assert len(waits) == 1
    assert not waits[0].done()
    await in_time(timers, 2)
    assert await waits[0] == "too long"


async def test_what_its_owner_does_between_looks_is_late(timers: LoopClock) -> None:
    """It is no time in which anybody could have been heard."""
    patience = Patience(INTERVAL)
    looking = asyncio.create_task(patience.look())
    await timers.advance(INTERVAL)
    await looking
    wait = asyncio.create_task(waiting(patience))
    await asyncio.sleep(0)
    await timers.advance(60)
    looking = asyncio.create_task(patience.look())
    await timers.advance(INTERVAL)
    due, now = await looking
    assert now - due == pytest.approx(60, abs=1)
    await asyncio.sleep(0)
    assert not wait.done()
    patience.give_up()
    assert await wait == "too long"


async def test_who_gives_up_ends_every_wait(patience: Patience) -> None:
    """At once, also where it is told twice; and later ones are not touched by that."""
    waits = [asyncio.create_task(waiting(patience)) for _ in range(3)]
    await asyncio.sleep(0)
    patience.give_up()
    patience.give_up()
    assert await asyncio.gather(*waits) == ["too long"] * 3
    async with patience.limit(LIMIT):
        await asyncio.sleep(0)


async def test_what_is_done_in_time_is_forgotten(patience: Patience, timers: LoopClock) -> None:
    """Its limit ends nothing that comes after it, and an error of its own is that."""
    async with patience.limit(LIMIT):
        await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with patience.limit(LIMIT):
            raise KeyError
    await in_time(timers, 2 * LIMIT)


async def test_the_first_look_may_be_late_as_well(timers: LoopClock) -> None:
    """A loop that is busy from the start on."""
    patience = Patience(INTERVAL)
    wait = asyncio.create_task(waiting(patience))
    looking = asyncio.create_task(patience.look())
    await asyncio.sleep(0)
    await timers.advance(60)
    await looking
    await asyncio.sleep(0)
    assert not wait.done()
    patience.give_up()
    assert await wait == "too long"
