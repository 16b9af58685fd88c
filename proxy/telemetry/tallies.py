"""Requests that are answered again just as one before: counted and logged as all are, for a small part of the cost.

Invariants:
- `Tally.add` has the effect of telling the event with that client and those seconds. The metrics have it at the next
  flush: before they are read in this process, twice a second for those who read them elsewhere, and at the end.
- A tally is kept by whoever adds to it; from its first request after a flush to the next flush by the metrics too, so
  that whatever it counted is counted on, and nothing else of it stays.
- All of it is called from one thread, that of the event loop.
"""

import asyncio
from bisect import bisect_left

from proxy.telemetry.events import RequestFinished
from proxy.telemetry.lines import AccessLine
from proxy.telemetry.logs import access_log
from proxy.telemetry.metrics import SECONDS, Metrics

# Seconds.
_INTERVAL = 0.5
_NO_BUCKETS = [0] * (len(SECONDS) + 1)


class Tally:
    """Requests that differ in client and time only."""

    __slots__ = ("_buckets", "_event", "_line", "_log", "_metrics", "_seconds", "_waits")

    def __init__(self, event: RequestFinished, metrics: Metrics) -> None:
        """See `Tallies.of`."""
        self._event = event
        self._metrics = metrics
        self._waits = False
        # By bucket of the histogram, how many; and the sum of all.
        self._buckets = _NO_BUCKETS.copy()
        self._seconds = 0.0
        # Whose lines `_line` makes.
        self._log: object = None
        self._line: AccessLine | None = None

    def add(self, client: str, seconds: float) -> None:
        """One more such request: its client, and the seconds to its first byte and to its end."""
        if not self._waits:
            self._waits = True
            self._metrics.hold_back(self._count)
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._seconds += seconds
        if (log := access_log()) is not None:
            if log is not self._log or self._line is None:
                self._log, self._line = log, log.access(self._event)
            log.write_later(self._line.of(log.now(), client, seconds))

    def _count(self) -> None:
        self._metrics.requests_like(self._event).several(self._event.bytes_sent, self._buckets, self._seconds)
        self._waits, self._buckets, self._seconds = False, _NO_BUCKETS.copy(), 0.0


class Tallies:
    """The tallies of one process, which count into its metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def of(self, event: RequestFinished) -> Tally:
        """A tally of requests like `event`, whose client, `first_byte_seconds` and `seconds` are not looked at.

        The event itself is not counted.
        """
        return Tally(event, self._metrics)

    def flush(self) -> None:
        """Count all that was added so far into the metrics."""
        self._metrics.flush()

    async def flush_now_and_then(self) -> None:
        """Flush twice a second, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            self.flush()
