"""How many ranges are asked of an upstream at a time, and whose turn is next.

Invariants:
- At most `limit` slots are out; who waits gets one in the order of coming, so that no fill waits for another's end:
  a slot is held for one range, not for a blob.
- Whoever stops waiting gives its turn, or the slot it was just handed, to the next.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """The slots of one upstream."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Is there a slot that nobody waits for?"""
        return self._free > 0

    @property
    def wanted(self) -> bool:
        """Does anybody wait for one?"""
        return bool(self._queue)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot, after all who asked for one before."""
        await self._take()
        try:
            yield
        finally:
            self._give_back()

    async def _take(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
