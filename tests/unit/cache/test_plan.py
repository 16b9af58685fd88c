"""What a fill asks for next, whatever has arrived, runs and is waited for; and whether several ranges are worth it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.plan import FIRST_RANGE, Gain, Next, Pace, Running, next_range
from proxy.storage.fillmap import BLOCK, FillMap, blocks_of, map_bytes

MIB = 1024 * 1024
# The longest range, and how many of them there are for readers besides those from the front.
LONGEST = 64 * MIB
FOR_READERS = 12


def empty(size: int) -> FillMap:
    return FillMap.format(bytearray(map_bytes(size)), size)


def missing(fill: FillMap) -> int:
    return fill.size - fill.arrived


@dataclass
class Situation:
    """A fill in the middle: blocks that have arrived (whole, or their beginnings), and ranges on their way."""

    fill: FillMap
    pace: Pace
    running: list[Running] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)

    def next(self) -> Next | None:
        return next_range(self.fill, self.running, self.waiting, self.pace)

    def start(self, found: Next) -> Running:
        """What the download does with an answer."""
        if found.shorten is not None:
            found.shorten.stop = found.start
        self.running.append(Running(found.start, found.stop))
        return self.running[-1]

    def ended(self, one: Running, brought: int | None = None) -> None:
        """It has brought so many bytes, or all, and runs no more."""
        stop = one.stop if brought is None else min(one.stop, one.position + brought)
        if stop > one.position:
            self.fill.record(one.position, stop - one.position)
        self.running.remove(one)


SIZES = st.one_of(st.integers(1, 5 * BLOCK), st.integers(1, 24 * MIB), st.integers(32 * MIB, 80 * MIB))
PACES = st.builds(Pace, st.sampled_from([0.0, 1e3, 1e6, 5e6, 1e8, 1e10]), st.integers(1, 16), st.integers(0, 3))


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Any that a download can come to: each range begins where bytes are missing, and overlaps no other."""
    size = draw(SIZES)
    fill = empty(size)
    for block in draw(st.sets(st.integers(0, blocks_of(size) - 1), max_size=12)):
        length = min(BLOCK, size - block * BLOCK)
        fill.record(block * BLOCK, draw(st.one_of(st.just(length), st.integers(1, length))))
    here = Situation(fill, draw(PACES))
    for _ in range(draw(st.integers(0, 6))):
        # As planned, for somebody somewhere or for nobody, and then brought up to some point.
        at = draw(st.sampled_from([0, BLOCK, 3 * BLOCK, 5 * MIB, size - 1]) | st.integers(0, size - 1))
        found = next_range(fill, here.running, draw(st.sampled_from([[at], []])), here.pace)
        if found is None:
            continue
        one = here.start(found)
        brought = draw(st.integers(0, one.stop - one.position))
        if 0 < brought < one.stop - one.position:
            fill.record(one.position, brought)
            one.position += brought
        one.age, one.rate = draw(st.sampled_from([(0.1, 0.0), (1.0, 1e4), (2.0, 1e6), (5.0, 1e8)]))
    # Readers wait anywhere, and most of all where something begins to be missing.
    places = [gap[0] for gap in fill.gaps()] or [size]
    here.waiting = draw(st.lists(st.one_of(st.sampled_from(places), st.integers(0, size)), max_size=4))
    return here


def arrived_in(fill: FillMap, start: int, stop: int) -> int:
    """How many bytes from `start` to `stop` are here, counted block by block."""
    count = 0
    for block in range(start // BLOCK, blocks_of(stop)):
        begin = block * BLOCK
        here = fill.readable(begin, 1)
        here = min(here, begin + BLOCK)
        count += max(0, min(here, stop) - max(begin, start))
    return count


def carriers(running: Sequence[Running], start: int, stop: int) -> list[Running]:
    return [one for one in running if max(one.position, start) < min(one.stop, stop)]


@given(situations())
def test_what_is_asked_for_is_missing_and_nobody_else_brings_it(here: Situation) -> None:
    """Only a range that is cut short for it overlaps, and that one ends where it begins."""
    found = here.next()
    if found is None:
        return
    assert 0 <= found.start < found.stop <= here.fill.size
    assert arrived_in(here.fill, found.start, found.stop) == 0
    overlapped = carriers(here.running, found.start, found.stop)
    assert overlapped == ([] if found.shorten is None else [found.shorten])
    if found.shorten is not None:
        assert found.shorten.position < found.start
        assert found.stop <= found.shorten.stop


@given(situations())
def test_how_long_and_how_many(here: Situation) -> None:
    """A range ends at a block's end, or where there is something, and is no longer than it should be."""
    found = here.next()
    front = here.pace.streams(here.fill.size)
    if len(here.running) >= front + FOR_READERS:
        assert found is None
    if found is None:
        return
    assert found.reader or len(here.running) < front + here.pace.spare
    assert found.stop - found.start <= max(LONGEST, BLOCK)
    begins = {one.position for one in here.running} | {one.stop for one in here.running} | {here.fill.size}
    assert found.stop % BLOCK == 0 or found.stop in begins


@given(situations())
def test_who_waits_comes_first(here: Situation) -> None:
    """The byte that the longest waiting reader lacks and nobody brings is what is asked for, if there is room."""
    lacking = [at for at in here.waiting if at < here.fill.size and here.fill.readable(at, 1) == at]
    uncarried = [at for at in lacking if not carriers(here.running, at - at % BLOCK, at + 1)]
    if not uncarried or len(here.running) >= here.pace.streams(here.fill.size) + FOR_READERS:
        return
    found = here.next()
    assert found is not None
    assert found.reader
    at = uncarried[0]
    if lacking[0] == at:
        # Everything before it in its block is missing just as well, for a block is filled from its start.
        assert found.start == max(here.fill.readable(at - at % BLOCK, 1), at - at % BLOCK)
        assert found.start <= at < found.stop


@given(situations(), st.randoms(use_true_random=False), st.booleans())
def test_everything_is_asked_for_in_the_end(here: Situation, order: random.Random, failing: bool) -> None:
    """Whichever range ends first, and where some break off: the blob becomes whole, and no byte comes twice."""
    steps = 0
    while missing(here.fill):
        while (found := here.next()) is not None:
            here.start(found)
        assert here.running, "something is missing and nothing runs"
        one = order.choice(here.running)
        length = one.stop - one.position
        short = failing and steps < 20 and order.random() < 0.5
        # `record` counts what is new only, so this is where a byte that comes twice would be seen.
        before, brought = here.fill.arrived, length // 2 if short else length
        here.ended(one, brought)
        assert here.fill.arrived == before + brought
        steps += 1
        assert steps < 2000
    here.running.clear()
    assert here.next() is None


def test_a_small_blob_is_one_stream() -> None:
    """Whatever the upstream allows, several connections do not pay for it."""
    here = Situation(empty(32 * MIB), Pace(1e6, 4))
    found = here.next()
    assert found is not None
    assert (found.start, found.stop, found.reader) == (0, FIRST_RANGE, False)
    here.start(found)
    assert here.next() is None


def test_a_large_one_is_several() -> None:
    """As many as are allowed, one after the other from the front."""
    here = Situation(empty(100 * MIB), Pace(0.0, 4))
    starts = []
    while (found := here.next()) is not None:
        starts.append(found.start)
        here.start(found)
    assert starts == [number * FIRST_RANGE for number in range(4)]


# One range of 4 MiB on its way, 1 MiB of it missing: at 10 MB/s that is a tenth of a second.
NEARLY = 10e6


@pytest.mark.parametrize(
    ("size", "spare", "age", "rate", "expected"),
    [
        (40 * MIB, 1, 1.0, NEARLY, 4 * MIB),
        (40 * MIB, 0, 1.0, NEARLY, None),
        (40 * MIB, 1, 0.1, NEARLY, None),
        (40 * MIB, 1, 1.0, NEARLY / 2, None),
        (32 * MIB, 1, 1.0, NEARLY, None),
    ],
    ids=["nearly here", "none to spare", "too young to tell", "too slow", "small blob"],
)
def test_the_next_is_asked_for_before_one_has_ended(
    size: int, spare: int, age: float, rate: float, expected: int | None
) -> None:
    """So that the upstream never waits for a round trip, where it may have one more connection for a moment."""
    here = Situation(empty(size), Pace(rate, 1, spare), [Running(3 * MIB, 4 * MIB, age, rate)])
    here.fill.record(0, 3 * MIB)
    found = here.next()
    assert (found and found.start) == expected
    if found is not None:
        assert not found.reader
        here.start(found)
        assert here.next() is None


def test_no_more_than_there_are_to_spare() -> None:
    """Several that end together are followed by as many as the upstream may have."""
    running = [Running((4 * number + 3) * MIB, 4 * (number + 1) * MIB, 1.0, NEARLY) for number in range(3)]
    here = Situation(empty(100 * MIB), Pace(NEARLY, 3, 2), running)
    for number in range(3):
        here.fill.record(4 * number * MIB, 3 * MIB)
    for _ in range(2):
        found = here.next()
        assert found is not None
        here.start(found)
    assert here.next() is None


@pytest.mark.parametrize(("age", "rate", "own"), [(0.1, 0.0, False), (1.0, 3e6, False), (1.0, 1e5, True)])
def test_a_reader_ahead_in_a_range_on_its_way(age: float, rate: float, own: bool) -> None:
    """It waits for one that has just begun, or is soon there; what would take long is cut short for it."""
    here = Situation(empty(8 * MIB), Pace(1e5, 1), [Running(0, 4 * MIB, age, rate)], [2 * MIB + 5])
    found = here.next()
    if not own:
        assert found is None
        return
    assert found == Next(2 * MIB, 4 * MIB, True, here.running[0])


# Is it worth it?


def measured(gain: Gain, alone: float, together: float) -> None:
    """One range at `alone` bytes a second, then several that bring `together`."""
    first = Running(0, 4 * MIB, 0.3, alone)
    gain.look(0.0, [first], 0)
    both = [first, Running(4 * MIB, 8 * MIB, 0.1, together / 2)]
    gain.look(1.0, both, 0)
    gain.look(1.5, both, int(together * 0.5))


@pytest.mark.parametrize(("together", "expected"), [(1.0, 1), (1.4, 1), (1.6, 4), (4.0, 4)])
def test_several_have_to_bring_half_as_much_again(together: float, expected: int) -> None:
    """Where the upstream limits all of them together, one is left."""
    gain = Gain(4)
    measured(gain, 10e6, together * 10e6)
    assert gain.allowed == expected


def test_one_alone_is_measured_first() -> None:
    """Several are allowed once it is known what one brings: after a moment, or when it has ended."""
    gain = Gain(4)
    assert gain.allowed == 1
    gain.look(0.0, [Running(0, MIB, 0.1, 1e6)], 0)
    assert gain.allowed == 1
    gain.ended(1e6)
    assert gain.allowed == 4


def test_the_judgement_is_final() -> None:
    """What was measured once is not measured again in this fill."""
    gain = Gain(4)
    measured(gain, 10e6, 40e6)
    measured(gain, 10e6, 1e6)
    assert gain.allowed == 4


def test_it_is_not_judged_before_all_have_brought_something() -> None:
    """A range that waits for its first byte says nothing of the upstream's pace."""
    gain = Gain(4)
    gain.ended(10e6)
    both = [Running(0, 4 * MIB, 1.0, 10e6), Running(4 * MIB, 8 * MIB, 0.1, 0.0)]
    gain.look(0.0, both, 0)
    gain.look(10.0, both, 0)
    assert gain.allowed == 4


@pytest.mark.parametrize(("together", "expected"), [(1.0, 3), (4.0, 0)])
def test_what_is_not_used_is_to_spare(together: float, expected: int) -> None:
    """Never more at a time than are configured: those that bring nothing are left for the ends of the one."""
    gain = Gain(4)
    measured(gain, 10e6, together * 10e6)
    assert gain.spare == expected
    assert Gain(1).spare == 0


def test_none_is_to_spare_while_one_is_measured() -> None:
    """What one range alone brings is only known while it is alone."""
    gain = Gain(4)
    assert gain.spare == 0
    gain.ended(1e6)
    assert (gain.allowed, gain.spare) == (4, 0)


def test_none_is_to_spare_after_a_refusal() -> None:
    """The upstream does not want as many as that, not for a moment either."""
    gain = Gain(4)
    measured(gain, 10e6, 10e6)
    gain.refused(1)
    assert (gain.allowed, gain.spare) == (1, 0)


@pytest.mark.parametrize(("left", "expected"), [(3, 3), (1, 1), (0, 1), (9, 4)])
def test_a_refused_range_was_one_too_many(left: int, expected: int) -> None:
    """So many as went on are allowed from then on, and one at least."""
    gain = Gain(4)
    gain.ended(1e6)
    gain.refused(left)
    assert gain.allowed == expected
