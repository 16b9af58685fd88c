"""Who waits in a fill is woken when its bytes are there, a few at a time, and nobody is forgotten."""

import asyncio

from proxy.cache.readers import Readers

# What is worth waking somebody for at once.
ENOUGH = 512 * 1024


class Waiters:
    """Readers that wait at positions, of a fill in which everything before `there` may be sent."""

    def __init__(self) -> None:
        self.there = 0
        self.readers = Readers(lambda position, _: max(position, self.there))
        self.woken: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def wait(self, *positions: int) -> None:
        for position in positions:
            self.tasks.append(asyncio.create_task(self._one(position)))
        await asyncio.sleep(0)

    async def _one(self, position: int) -> None:
        await self.readers.wait(position, from_start=False)
        self.woken.append(position)

    async def all_woken(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)

    def advance(self, count: int) -> None:
        self.there += count
        self.readers.advanced(count)


async def turns(count: int) -> None:
    """Let the loop run so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_only_those_whose_bytes_are_there() -> None:
    """A reader further on goes on waiting."""
    here = Waiters()
    await here.wait(0, ENOUGH, 10)
    here.advance(ENOUGH)
    await turns(3)
    assert here.woken == [0, 10]
    assert here.readers.positions == [ENOUGH]
    here.advance(ENOUGH)
    await here.all_woken()


async def test_a_few_in_one_turn_and_all_in_the_end() -> None:
    """Between them the loop serves others; their order is that of coming."""
    here = Waiters()
    await here.wait(*[0] * 30)
    here.advance(ENOUGH)
    # The first ones are told now, and run in the next turn.
    await turns(1)
    assert 0 < len(here.woken) < 30
    await here.all_woken()
    assert len(here.woken) == 30
    assert here.readers.positions == []


async def test_more_bytes_while_some_are_still_to_be_woken() -> None:
    """Whoever has come meanwhile is woken behind them."""
    here = Waiters()
    await here.wait(*[0] * 30)
    here.advance(ENOUGH)
    await here.wait(*[1] * 30)
    here.advance(ENOUGH)
    await here.all_woken()
    assert here.woken == [0] * 30 + [1] * 30


async def test_some_leave_before_their_turn() -> None:
    """Those behind them are woken all the same."""
    here = Waiters()
    await here.wait(*range(30))
    here.advance(ENOUGH)
    for task in here.tasks[:25]:
        task.cancel()
    await asyncio.gather(*here.tasks, return_exceptions=True)
    assert set(range(25, 30)) <= set(here.woken)
    await here.wait(0)
    here.advance(ENOUGH)
    async with asyncio.timeout(5):
        await here.tasks[-1]


async def test_everybody_is_woken_where_nothing_more_comes() -> None:
    """Each then finds out for itself why."""
    here = Waiters()
    await here.wait(*range(0, 100 * ENOUGH, ENOUGH))
    here.readers.wake(everybody=True)
    await here.all_woken()
    assert len(here.woken) == 100


async def test_a_few_bytes_wake_a_moment_later() -> None:
    """However little comes, nobody waits for it for long."""
    here = Waiters()
    await here.wait(0)
    here.advance(1)
    await turns(1)
    assert here.woken == []
    await here.all_woken()
