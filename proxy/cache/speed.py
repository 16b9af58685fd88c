"""The speed of fills that nobody waits for: those of a warm job, all of them together.

Invariant: whoever reads a fill has it at full speed from that moment on, in whatever process: a node that waits for an
image is worth more than an even load.
"""

import asyncio
from collections.abc import Callable

from proxy.policy.rate import Bucket

# What may come at once after a pause, in seconds' worth.
_BURST = 0.25
# How often it is looked at whether somebody reads, and how long one that did counts as reading, in seconds: a reader is
# not seen to wait while it sends what it was given.
_LOOK = 0.05
_READING = 2.0


class Speed:
    """So many bytes a second, for as many fills as share it."""

    def __init__(self, rate: float) -> None:
        self._bucket = Bucket(rate, rate * _BURST)

    def spend(self, count: int) -> float:
        """`count` bytes have come; gives when they are covered, by the clock of `now`."""
        at = now()
        return at + self._bucket.take(count, at)


class Brake:
    """What holds one fill back to `speed` (None: nothing does), as long as it is not read."""

    def __init__(self, speed: Speed | None, is_read: Callable[[], bool]) -> None:
        self._speed = speed
        self._is_read = is_read
        self._read_until = 0.0

    @property
    def is_on(self) -> bool:
        """Is it held back now?"""
        if self._speed is None:
            return False
        if self._is_read():
            self._read_until = now() + _READING
        return now() >= self._read_until

    def spend(self, count: int) -> float:
        """`count` bytes have come; gives when they are covered, by the clock of `now`."""
        return self._speed.spend(count) if self._speed is not None and self.is_on else 0.0

    async def wait(self, covered: float, unless: Callable[[], bool]) -> None:
        """Wait until then, or until somebody reads it, or `unless` is true."""
        while (left := covered - now()) > 0 and self.is_on and not unless():  # noqa: ASYNC110 - other processes' readers
            await asyncio.sleep(min(left, _LOOK))


def now() -> float:
    """Seconds of the loop's clock."""
    return asyncio.get_running_loop().time()
