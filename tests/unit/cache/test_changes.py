"""Pushes that were done, and pushes of which nobody knows, in whatever order they are written down."""

import asyncio
from collections.abc import Mapping

import pytest

from proxy.cache.ask import Records
from proxy.cache.changes import Change, Changes
from proxy.cache.records import TagRecord, tag_key
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from tests.fakes.clock import ManualClock

REPOSITORY = Repository("registry.test", "team/app")
KEY = tag_key(REPOSITORY, "v1")
CHANGE = Change(REPOSITORY, ("v1",))


class Store:
    """Rows in memory; its calls go on one by one, as the test says."""

    def __init__(self) -> None:
        self.rows = {KEY: TagRecord(str(Digest.of(b"old")), 1.0, 1.0).dump()}
        self.turns: list[asyncio.Event] = []

    async def _turn(self) -> None:
        turn = asyncio.Event()
        self.turns.append(turn)
        await turn.wait()

    async def get(self, *keys: str) -> list[bytes | None]:
        await self._turn()
        return [self.rows.get(key) for key in keys]

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        await self._turn()
        stored = only_while is None or self.rows.get(only_while[0]) == only_while[1]
        if stored:
            self.rows |= entries
        return stored

    async def delete(self, *keys: str) -> None:
        await self._turn()
        for key in keys:
            self.rows.pop(key, None)


@pytest.mark.parametrize("order", [f"{number:06b}" for number in range(64)])
async def test_doubt_brings_nothing_back_that_a_push_took_away(order: str) -> None:
    """However the two are interleaved, the tag of before is gone once both are written down."""
    store = Store()
    changes = Changes(Records(store, ManualClock()))  # type: ignore[arg-type]
    tasks = []
    for work in (changes.in_doubt(CHANGE), changes.happened(CHANGE)):
        tasks.append(asyncio.create_task(work))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
    picks = [int(digit) for digit in order]
    while not all(task.done() for task in tasks):
        waiting = [turn for turn in store.turns if not turn.is_set()]
        if waiting:
            waiting[picks.pop(0) % len(waiting) if picks else 0].set()
        await asyncio.sleep(0.0)
    assert KEY not in store.rows
