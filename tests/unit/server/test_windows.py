"""A few megabytes a turn of the loop, whoever waited longest first, and everything else in between."""

import asyncio
from itertools import pairwise

import pytest

from proxy.server.windows import Windows

MIB = 1024 * 1024


class Loop:
    """Counts turns of the event loop, as long as somebody sends."""

    def __init__(self) -> None:
        self.turn = 0
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.turn += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


class Sent:
    """Who sent a window, and in which turn of the loop."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.loop = Loop()
        self.asked: list[object] = []
        self.names: list[object] = []
        self.turns: list[int] = []

    async def body(self, name: object, count: int = 1, size: int = MIB) -> None:
        """One body of so many windows; in one turn of the loop there is room for four of a mebibyte."""
        for _ in range(count):
            self.asked.append(name)
            await self.windows.turn(size)
            self.names.append(name)
            self.turns.append(self.loop.turn)

    def most(self) -> int:
        """The most in one turn."""
        return max(self.turns.count(turn) for turn in self.turns)


@pytest.fixture
async def sent() -> Sent:
    return Sent(Windows())


@pytest.mark.parametrize(("bodies", "windows"), [(1, 40), (4, 10), (40, 1), (200, 3)])
async def test_no_more_than_a_few_a_turn(sent: Sent, bodies: int, windows: int) -> None:
    """However many could send one: one body or hundreds; and all of them come to their end."""
    async with asyncio.timeout(10):
        await asyncio.gather(*(sent.body(name, windows) for name in range(bodies)))
    sent.loop.stop()
    assert len(sent.names) == bodies * windows
    assert sent.most() <= 4


@pytest.mark.parametrize(("size", "most"), [(2 * MIB, 2), (3 * MIB, 2), (64 * 1024, 64), (1, 1000)])
async def test_what_counts_is_bytes(sent: Sent, size: int, most: int) -> None:
    """Small windows are many a turn, large ones few; the last one may be larger than what is left of the turn."""
    await asyncio.gather(*(sent.body(name, 1, size) for name in range(1000)))
    sent.loop.stop()
    assert sent.most() == most


async def test_first_come_first_served(sent: Sent) -> None:
    """In the order in which they asked: who has sent one stands behind all who wait."""
    await asyncio.gather(*(sent.body(name, 3) for name in range(20)))
    sent.loop.stop()
    assert sent.names == sent.asked
    assert sent.names[-18:] == [*range(2, 20)]


@pytest.mark.parametrize("leave", [0, 4])
async def test_who_was_cancelled_takes_no_turn(sent: Sent, leave: int) -> None:
    """Those behind take the place, in the same turn of the loop as if nobody had been there."""
    tasks = [asyncio.create_task(sent.body(name)) for name in range(8 + leave)]
    await asyncio.sleep(0)
    assert sent.names == [0, 1, 2, 3]
    for task in tasks[4 : 4 + leave]:
        task.cancel()
    await asyncio.wait(tasks)
    sent.loop.stop()
    assert sent.names == [0, 1, 2, 3, *range(4 + leave, 8 + leave)]
    assert {turn - sent.turns[0] for turn in sent.turns[4:]} == {2}


async def test_who_leaves_with_its_turn_in_hand(sent: Sent) -> None:
    """Is missed by nobody: the others go on."""
    tasks = [asyncio.create_task(sent.body(name)) for name in range(20)]
    while len(sent.names) < 4:
        await asyncio.sleep(0)
    # The next four are let go at the end of this turn of the loop, and these two would send in the following one.
    asyncio.get_running_loop().call_soon(lambda: [task.cancel() for task in tasks[4:6]])
    async with asyncio.timeout(5):
        await asyncio.wait(tasks)
    sent.loop.stop()
    assert sent.names == [0, 1, 2, 3, *range(6, 20)]


async def test_a_lone_body_is_not_slowed_down(sent: Sent) -> None:
    """With a turn of the loop between its windows, in which its client reads, it never waits."""
    for _ in range(50):
        before = sent.loop.turn
        await sent.body("lone")
        assert sent.loop.turn == before
        await asyncio.sleep(0)
    sent.loop.stop()


async def test_a_rest_saves_nothing_up(sent: Sent) -> None:
    """After however many turns with less than there might be, or nothing, there is as much as ever in one."""
    for _ in range(20):
        await sent.body("few")
        for _ in range(5):
            await asyncio.sleep(0)
    await asyncio.gather(*(sent.body(name) for name in range(20)))
    sent.loop.stop()
    assert sent.most() == 4


async def test_other_work_is_done_in_between(sent: Sent) -> None:
    """Whatever else is due runs once for every few windows, and so does what is due then."""
    done: list[int] = []

    async def other() -> None:
        while len(sent.names) < 400:
            done.append(len(sent.names))
            await asyncio.sleep(0)

    await asyncio.gather(other(), *(sent.body(name, 10) for name in range(40)))
    sent.loop.stop()
    assert max(after - before for before, after in pairwise(done)) <= 4


async def test_nothing_runs_when_nobody_sends(sent: Sent) -> None:
    """An idle process is not woken again and again."""
    sent.loop.stop()
    await sent.body("last", 4)
    loop = asyncio.get_running_loop()
    for _ in range(5):
        await asyncio.sleep(0)
    assert [handle for handle in loop._ready if "Windows" in repr(handle)] == []  # type: ignore[attr-defined]
    assert not sent.windows._renews
