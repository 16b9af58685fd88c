"""Which range of a fill is asked of the upstream next. Pure.

Where readers wait comes first, then the front. A range ends where bytes begin that have arrived or are on their way, so
that nothing is asked twice. A reader that waits inside a range that is on its way, but far ahead of it, gets a range of
its own: the running one ends where that begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.storage.fillmap import BLOCK, FillMap

# A range takes about this many seconds: long enough for its round trip not to count, short enough for order to.
_RANGE_SECONDS = 0.5
FIRST_RANGE = 4 * 1024 * 1024
_LONGEST_RANGE = 64 * 1024 * 1024
_SHORTEST_RANGE = 1024 * 1024
# A reader waits so long, in seconds, for a range on its way; what would take longer gets a range of its own, and what
# was on the wire beyond its beginning is lost. A range that has just begun has shown nothing yet.
_PATIENCE = 1.0
_GRACE = 0.3
# How many seconds before its end a range does not count any more, unless it is younger than that.
_LEAD = 0.15
# Smaller blobs are here before several connections pay.
_SINGLE = 32 * 1024 * 1024
# How long one range alone, and several together, are measured, in seconds; and how much more they have to bring.
_MEASURE_ALONE = 0.2
_MEASURE = 0.4
_WORTH = 1.5
# Ranges for readers, besides those from the front: containerd's parallel fetch has ten connections at most.
_FOR_READERS = 12


@dataclass(slots=True, eq=False)
class Running:
    """A range on its way: its next byte is `position`, it ends before `stop`.

    It has run for `age` seconds, and brought `rate` bytes in each of them.
    """

    position: int
    stop: int
    age: float = 0.0
    rate: float = 0.0

    def is_soon_at(self, position: int) -> bool:
        """Will a reader at `position` not wait long?"""
        return self.age < _GRACE or position - self.position <= self.rate * _PATIENCE

    @property
    def is_nearly_here(self) -> bool:
        """Is it about to end, if it goes on as it did?"""
        return self.age >= _LEAD and self.stop - self.position <= self.rate * _LEAD


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of the upstream: bytes a second of one connection (0: nothing yet), ranges at a time.

    `spare`: how many more there may be for the moments in which one ends and the next begins.
    """

    rate: float
    parallel: int
    spare: int = 0

    def streams(self, size: int) -> int:
        """How many ranges from the front a blob of `size` bytes is worth."""
        return self.parallel if size > _SINGLE else 1

    def ahead(self, size: int, running: Iterable[Running]) -> int:
        """How many ranges more than these are worth it now, because so many of those on their way are nearly here."""
        return min(self.spare, sum(one.is_nearly_here for one in running)) if size > _SINGLE else 0

    def length(self, left: int, streams: int) -> int:
        """How long a range should be while `left` bytes are to be asked for: so that all streams end together."""
        length = min(max(int(self.rate * _RANGE_SECONDS), FIRST_RANGE), _LONGEST_RANGE)
        return max(min(length, left // streams), _SHORTEST_RANGE) if streams > 1 else length


@dataclass(frozen=True, slots=True)
class Next:
    """Ask for the bytes from `start` to `stop`. `reader`: somebody waits there. `shorten` ends at `start`."""

    start: int
    stop: int
    reader: bool
    shorten: Running | None = None


def next_range(fill: FillMap, running: Sequence[Running], waiting: Iterable[int], pace: Pace) -> Next | None:
    """What to ask for next, or None: nothing is missing, it is all on its way, or enough is.

    `waiting`: the positions that readers wait for, who waits longest first.
    """
    front = pace.streams(fill.size)
    if len(running) < front + _FOR_READERS:
        for position in waiting:
            if (found := _for_reader(fill, running, position, pace, front)) is not None:
                return found
    if len(running) < front + pace.ahead(fill.size, running):
        return _from_front(fill, running, pace, front)
    return None


def _for_reader(fill: FillMap, running: Sequence[Running], position: int, pace: Pace, streams: int) -> Next | None:
    gap = fill.gap(position) if position < fill.size else None
    if gap is None or gap[0] > position:
        return None
    start = gap[0]
    carrier = _carrier(running, start)
    if carrier is None:
        return Next(start, _stop(fill, running, gap, start, pace, streams), reader=True)
    # Whoever carries the block's beginning may still be far from it.
    start = max(start, position - position % BLOCK)
    if start <= carrier.position or start >= carrier.stop or carrier.is_soon_at(start):
        return None
    gap = (start, carrier.stop)
    return Next(start, _stop(fill, running, gap, start, pace, streams), reader=True, shorten=carrier)


def _from_front(fill: FillMap, running: Sequence[Running], pace: Pace, streams: int) -> Next | None:
    for gap in fill.gaps():
        start = gap[0]
        while (carrier := _carrier(running, start)) is not None:
            start = carrier.stop
        if start < gap[1]:
            return Next(start, _stop(fill, running, gap, start, pace, streams), reader=False)
    return None


def _carrier(running: Sequence[Running], position: int) -> Running | None:
    """The range on its way that brings the byte at `position`."""
    return next((one for one in running if one.position <= position < one.stop), None)


def _stop(fill: FillMap, running: Sequence[Running], gap: tuple[int, int], start: int, pace: Pace, streams: int) -> int:
    under_way = sum(one.stop - one.position for one in running)
    length = pace.length(fill.size - fill.arrived - under_way, streams)
    stop = (start + length) // BLOCK * BLOCK
    ahead = (one.position for one in running if one.position > start)
    return min(gap[1], max(stop, start - start % BLOCK + BLOCK), *ahead)


class Gain:
    """Do several ranges at a time bring more than one? Where the upstream limits all of them together they do not.

    Then one is better: what arrives in order can be sent to everybody at once.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self._most = parallel
        self._alone: float | None = None
        self._mark: tuple[float, int] | None = None
        self._judged = False

    @property
    def allowed(self) -> int:
        """How many ranges from the front to run now."""
        return 1 if self._alone is None else self.parallel

    @property
    def spare(self) -> int:
        """How many more the upstream can be asked for at a time; none while one alone is measured."""
        return self._most - self.allowed if self._alone is not None else 0

    def look(self, now: float, running: Sequence[Running], received: int) -> None:
        """Learn from what runs at `now` (seconds), and from the bytes `received` by all ranges so far."""
        if self._alone is None:
            if running and running[0].age >= _MEASURE_ALONE:
                self._alone = running[0].rate
        elif self._judged or len(running) < 2:
            self._mark = None
        elif self._mark is None:
            if all(one.rate > 0 for one in running):
                self._mark = now, received
        elif now - self._mark[0] >= _MEASURE:
            self._judged = True
            together = (received - self._mark[1]) / (now - self._mark[0])
            if together < _WORTH * self._alone:
                self.parallel = 1

    def ended(self, rate: float) -> None:
        """A range was brought at `rate`, from its first byte to its last."""
        if self._alone is None:
            self._alone = rate

    def refused(self, left: int) -> None:
        """A range failed while `left` others went on: it was one too many."""
        self.parallel = self._most = max(1, min(self.parallel, left))
