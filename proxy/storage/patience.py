"""Time-outs that do not count what the event loop itself was late.

A loop that a thousand nodes keep busy reads an answer seconds after it has come. To take that for the other side's
silence would have it give up what works, and do more work instead.

Invariants:
- Its owner calls `look` again and again: all who wait have as much longer as each look is late. While nobody looks,
  nobody's limit ends but by `give_up`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Patience:
    """See above; for one loop."""

    def __init__(self, interval: float) -> None:
        """`interval` in seconds: so often the clock is looked at."""
        self._interval = interval
        self._looked: float | None = None
        # Those who wait: since when, where lateness has moved that on, and for how many seconds at most.
        self._waiting: dict[asyncio.Timeout, tuple[float, float]] = {}

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """Raises TimeoutError where what is inside takes longer, or `give_up` is called."""
        deadline = asyncio.timeout(None)
        async with deadline:
            self._waiting[deadline] = asyncio.get_running_loop().time(), seconds
            try:
                yield
            finally:
                del self._waiting[deadline]

    async def look(self) -> tuple[float, float]:
        """Look at the clock an interval after the last look; gives when that was due, and when it was.

        What the caller does between looks counts as late, too, where it takes longer than that.
        """
        loop = asyncio.get_running_loop()
        last = loop.time() if self._looked is None else self._looked
        await asyncio.sleep(self._interval)
        now = loop.time()
        due = min(now, last + self._interval)
        self._looked = now
        for deadline, (since, seconds) in list(self._waiting.items()):
            since = moved_on(since, due, now)
            self._waiting[deadline] = since, seconds
            if now - since > seconds:
                _end(deadline, now)
        return due, now

    def give_up(self) -> None:
        """Nobody needs to wait any more."""
        now = asyncio.get_running_loop().time()
        for deadline in list(self._waiting):
            _end(deadline, now)


def moved_on(since: float, due: float, now: float) -> float:
    """Since when somebody waits who waited since `since`, but for what this loop was late: `due` it looked `now`."""
    return min(since + max(0.0, now - due), now)


def _end(deadline: asyncio.Timeout, now: float) -> None:
    if not deadline.expired():
        deadline.reschedule(now)
