"""How much, how fast: token buckets for clusters. Pure.

A bucket holds what may be used at once, fills at its rate, and may be overdrawn: who overdraws it waits until it is
covered, so that turns are in the order of asking. Whoever takes equal portions and comes back for each has an equal
share. Times are in seconds of any clock that never goes back.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Bucket:
    """`rate` a second, and `burst` of it at once."""

    rate: float
    burst: float
    _level: float = field(init=False)
    _at: float | None = None

    def __post_init__(self) -> None:
        self._level = self.burst

    def take(self, count: float, now: float) -> float:
        """Take `count`, of which there may not be enough yet; gives the seconds until it is covered."""
        self._refill(now)
        self._level -= count
        return self._wait()

    def take_within(self, count: float, now: float, longest: float) -> tuple[bool, float]:
        """Take `count` if it is covered in `longest` seconds; gives whether it was taken, and the seconds until it is
        covered or would have been."""
        wait = self.take(count, now)
        if wait <= longest:
            return True, wait
        self.give_back(count)
        return False, wait

    def give_back(self, count: float) -> None:
        """What was taken is not used after all."""
        self._level = min(self.burst, self._level + count)

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._level = min(self.burst, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now

    def _wait(self) -> float:
        return max(0.0, -self._level / self.rate)
