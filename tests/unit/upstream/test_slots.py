"""Turns for ranges: in order, no more than the limit, and none lost with one who stops waiting."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.slots import Slots


class Visitors:
    """Tasks that want a slot of one place and hold it until they are let go."""

    def __init__(self, limit: int) -> None:
        self.slots = Slots(limit)
        self.holding: list[int] = []
        self.order: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._leave: list[asyncio.Event] = []

    def come(self) -> int:
        number = len(self.tasks)
        self._leave.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._visit(number)))
        return number

    def leave(self, number: int) -> None:
        self._leave[number].set()

    async def _visit(self, number: int) -> None:
        async with self.slots.slot():
            self.holding.append(number)
            self.order.append(number)
            try:
                await self._leave[number].wait()
            finally:
                self.holding.remove(number)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settle() -> None:
    """Let every task do what it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_turns_come_in_the_order_of_asking() -> None:
    """At most `limit` at a time; who waits longest is next."""
    visitors = Visitors(2)
    for _ in range(5):
        visitors.come()
    await settle()
    assert (visitors.holding, visitors.slots.idle) == ([0, 1], False)
    visitors.leave(1)
    await settle()
    assert visitors.holding == [0, 2]
    for number in (0, 2, 3, 4):
        visitors.leave(number)
        await settle()
    assert visitors.order == [0, 1, 2, 3, 4]
    assert visitors.slots.idle


async def test_nobody_overtakes_who_waits() -> None:
    """One who asks in the moment that a slot is given back stands behind those who waited."""
    visitors = Visitors(1)
    first, second = visitors.come(), visitors.come()
    await settle()
    visitors.leave(first)
    await asyncio.gather(visitors.tasks[first])
    third = visitors.come()
    await settle()
    assert visitors.holding == [second]
    await visitors.end()
    assert third not in visitors.order


async def test_who_stops_waiting_gives_its_turn_on() -> None:
    """The next one gets it, and the slot is not lost."""
    visitors = Visitors(1)
    first, second, third = visitors.come(), visitors.come(), visitors.come()
    await settle()
    visitors.tasks[second].cancel()
    visitors.leave(first)
    await settle()
    assert visitors.holding == [third]
    await visitors.end()
    assert visitors.slots.idle


async def test_who_stops_with_the_slot_just_handed_to_it_gives_it_on() -> None:
    """Cancelled between its turn's coming and its own waking."""
    visitors = Visitors(1)
    async with visitors.slots.slot():
        first, second = visitors.come(), visitors.come()
        await settle()
    visitors.tasks[first].cancel()
    await settle()
    assert visitors.order == [second]
    await visitors.end()
    assert visitors.slots.idle


async def test_a_failure_gives_the_slot_back() -> None:
    """Whatever ends the work with it."""
    slots = Slots(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            async with slots.slot():
                raise ValueError("no")
    assert slots.idle


ACTIONS = st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel", "settle"]), st.integers(0, 9)), max_size=40)


@given(st.integers(1, 3), ACTIONS)
def test_no_slot_is_lost_and_none_is_made(limit: int, actions: list[tuple[str, int]]) -> None:
    """Whoever comes, leaves and is cancelled, whenever: never more than the limit, and in the end all are free."""

    async def play() -> None:
        visitors = Visitors(limit)
        for action, number in actions:
            if action == "come":
                visitors.come()
            elif action == "settle":
                await settle()
            elif number < len(visitors.tasks):
                visitors.leave(number) if action == "leave" else visitors.tasks[number].cancel()
            assert len(visitors.holding) <= limit
        await settle()
        left = [task for task in visitors.tasks if not task.done()]
        assert len(visitors.holding) == min(limit, len(left))
        assert visitors.order == sorted(visitors.order)
        await visitors.end()
        assert visitors.slots._free == limit

    asyncio.run(play())
