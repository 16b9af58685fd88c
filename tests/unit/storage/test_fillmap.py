"""The map of a fill, against a set of the bytes that have arrived."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.storage.fillmap import BLOCK, MOST_WORKERS, BadMap, FillMap, FillState, blocks_of, map_bytes

# Positions in eighths of a block are enough to meet every edge.
STEP = BLOCK // 8
SIZES = st.one_of(st.integers(0, 40).map(lambda steps: steps * STEP), st.integers(0, 5 * BLOCK))


def new(size: int) -> FillMap:
    return FillMap.format(bytearray(map_bytes(size)), size)


class Model:
    """How much of each block has arrived, as a plain list."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts = [0] * blocks_of(size)

    def length(self, block: int) -> int:
        return min(BLOCK, self.size - block * BLOCK)

    def has(self, position: int) -> bool:
        return position % BLOCK < self.parts[position // BLOCK]

    def readable(self, position: int) -> int:
        while position < self.size and self.has(position):
            position = position - position % BLOCK + self.parts[position // BLOCK]
        return position

    def gaps(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for block, part in enumerate(self.parts):
            start, end = block * BLOCK + part, block * BLOCK + self.length(block)
            if start < end and found and found[-1][1] == block * BLOCK and not part:
                found[-1] = (found[-1][0], end)
            elif start < end:
                found.append((start, end))
        return found


@given(SIZES, st.data())
def test_it_says_what_a_set_of_bytes_would(size: int, data: st.DataObject) -> None:
    """Whatever is recorded in whatever order: what has arrived, how far one can read, what is missing."""
    filled, model = new(size), Model(size)
    starts = st.integers(0, max(0, len(model.parts) - 1))
    for _ in range(data.draw(st.integers(0, 8))):
        if not model.parts:
            break
        block = data.draw(starts)
        position = block * BLOCK + data.draw(st.integers(0, model.parts[block]))
        count = data.draw(st.one_of(st.integers(0, 20).map(lambda n: n * STEP), st.integers(0, 3 * BLOCK)))
        count = min(count, size - position)
        filled.record(position, count)
        for here in range(block, len(model.parts)):
            reaches = min(position + count - here * BLOCK, model.length(here))
            model.parts[here] = max(model.parts[here], reaches)
    assert filled.arrived == sum(model.parts)
    assert list(filled.gaps()) == model.gaps()
    for block, part in enumerate(model.parts):
        for position in {block * BLOCK, block * BLOCK + part // 2, block * BLOCK + part}:
            if position < size:
                assert filled.readable(position, size) == model.readable(position)


def test_reading_looks_no_further_than_asked() -> None:
    """A piece of a large blob costs the same wherever it is; what is given may be the whole of its last block."""
    filled = new(100 * BLOCK)
    filled.record(0, 50 * BLOCK)
    assert filled.readable(0, 1) == BLOCK
    assert filled.readable(10, 2 * BLOCK) == 3 * BLOCK
    assert filled.readable(50 * BLOCK, BLOCK) == 50 * BLOCK


@pytest.mark.parametrize(("position", "count"), [(1, 1), (BLOCK + 1, 1), (0, 2 * BLOCK + 1), (2 * BLOCK, 1)])
def test_no_holes_and_nothing_past_the_end(position: int, count: int) -> None:
    """A block is filled from its start on; the map stays as it was."""
    filled = new(2 * BLOCK)
    with pytest.raises(ValueError, match="does not follow"):
        filled.record(position, count)
    assert filled.arrived == 0


def test_a_gap_ends_where_something_has_arrived() -> None:
    """Behind a position the first gap is that of its own block."""
    filled = new(4 * BLOCK)
    filled.record(2 * BLOCK, 10)
    assert filled.gap(0) == (0, 2 * BLOCK)
    assert filled.gap(BLOCK + 5) == (BLOCK, 2 * BLOCK)
    assert filled.gap(2 * BLOCK) == (2 * BLOCK + 10, 4 * BLOCK)
    filled.record(2 * BLOCK + 10, 2 * BLOCK - 10)
    assert filled.gap(2 * BLOCK) is None


@pytest.mark.parametrize("mark", [0, 1])
def test_who_is_killed_while_recording_leaves_no_gap_without_bytes(mark: int) -> None:
    """The number of bytes is written before the mark of its block: the number counts."""
    buffer = bytearray(map_bytes(3 * BLOCK))
    filled = FillMap.format(buffer, 3 * BLOCK)
    filled.record(0, 3 * BLOCK)
    marks = bytes(buffer).rindex(b"\2\2\2")
    buffer[marks + 1] = mark
    assert filled.gap(0) is None
    assert list(filled.gaps()) == []
    assert filled.arrived == 3 * BLOCK
    assert buffer[marks + 1] == 2


def test_state_and_failures_are_seen_by_others() -> None:
    """Two maps over one buffer; failures count on past the largest number."""
    buffer = bytearray(map_bytes(10))
    one = FillMap.format(buffer, 10)
    other = FillMap(buffer, 10)
    for state in FillState:
        one.state = state
        assert other.state is state
    one.give_up()
    assert other.failures == 1
    buffer[24:28] = b"\xff" * 4
    one.give_up()
    assert other.failures == 0


def test_demands_of_all_workers_come_together() -> None:
    """A worker's later word replaces its earlier; position 0 is one; too many are cut; none of it touches the rest."""
    filled = new(3 * BLOCK)
    filled.demand(0, [0, 5])
    filled.demand(MOST_WORKERS - 1, range(100, 120))
    assert filled.demanded() == [0, 5, *range(100, 108)]
    filled.demand(0, [7])
    filled.demand(MOST_WORKERS - 1, ())
    assert filled.demanded() == [7]
    assert filled.arrived == 0
    with pytest.raises(ValueError, match="worker"):
        filled.demand(MOST_WORKERS, [1])


@pytest.mark.parametrize("size", [0, 1, BLOCK, 10 * BLOCK + 1])
def test_another_map_is_refused(size: int) -> None:
    """Zeros, another blob's size, cut short, an unknown state."""
    buffer = bytearray(map_bytes(size))
    with pytest.raises(BadMap):
        FillMap(buffer, size)
    FillMap.format(buffer, size)
    FillMap(buffer, size)
    for wrong, of in ((buffer, size + 1), (buffer[:-1], size), (bytearray(), size)):
        with pytest.raises(BadMap):
            FillMap(wrong, of)
    buffer[20] = 9
    with pytest.raises(BadMap):
        _ = FillMap(buffer, size).state


def test_a_mapped_file_is_closed_after_use(tmp_path: Path) -> None:
    """Nothing that a map gives keeps its buffer from being closed."""
    file = tmp_path / "map"
    file.write_bytes(bytes(map_bytes(2 * BLOCK)))
    with open(file, "r+b") as stream:
        buffer = mmap.mmap(stream.fileno(), 0)
    filled = FillMap.format(buffer, 2 * BLOCK)
    filled.record(0, 10)
    filled.demand(0, [20])
    kept = (filled.demanded(), filled.arrived, filled.gap(0), list(filled.gaps()), filled.state)
    buffer.close()
    assert kept == ([20], 10, (10, BLOCK * 2), [(10, BLOCK * 2)], FillState.FILLING)


RECORDER = """
import mmap, sys
from proxy.storage.fillmap import FillMap, map_bytes
size = int(sys.argv[2])
with open(sys.argv[1], "r+b") as stream:
    filled = FillMap.format(mmap.mmap(stream.fileno(), 0), size)
print("begun", flush=True)
position = 0
while position < size:
    filled.record(position, 1)
    position += 1
"""


def test_a_reader_in_another_process_never_sees_less_than_before(tmp_path: Path) -> None:
    """Numbers are written at once; and what a killed writer has recorded stays."""
    size = BLOCK * 64
    file = tmp_path / "map"
    file.write_bytes(bytes(map_bytes(size)))
    writer = subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(file), str(size)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert writer.stdout is not None
    with writer.stdout, open(file, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as buffer:
        assert writer.stdout.readline() == b"begun\n"
        filled, seen = FillMap(buffer, size), 0
        try:
            while seen < BLOCK:
                now = filled.readable(0, size)
                assert now >= seen
                seen = now
        finally:
            writer.kill()
            writer.wait()
        assert filled.arrived >= seen > 0
        assert filled.gap(0) == (filled.arrived, size)
