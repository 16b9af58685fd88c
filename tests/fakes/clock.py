"""A clock that only a test moves, and the event loop's own, which a test can set forward."""

import asyncio
from collections.abc import Callable


class ManualClock:
    """Unix seconds; calling it tells the time."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds


class LoopClock:
    """Seconds as the event loop counts them, put in the place of its `time`.

    It goes on by itself as well, so that a test that waits in vain still ends.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._time() + self._ahead

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once; what is due then has been run, before anything that is sent later comes in."""
        self._ahead += seconds
        for _ in range(2):
            await asyncio.sleep(0)
