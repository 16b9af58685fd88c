"""The map of a fill: what of a blob has arrived, in a buffer that processes can share and a crash leaves behind.

One process writes (the one that holds the blob's claim), any number read. Invariants:
- A block is filled from its start on; `record` comes after the bytes are in the file. So what the map says is there,
  is there, whoever looks and whenever a process is killed.
- Only a machine that lost its power can leave a map that says too much: the hash of the whole finds that out.

Layout, little-endian: magic, block size, the blob's size, state, how often its writers gave up; where the bytes come
from; the positions that readers of each worker wait for; a byte for each block (untouched, begun, full); four bytes for
each, aligned, how much of it has arrived. Those four count: a process killed in `record` may leave a byte that lags
behind them.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from mmap import mmap

BLOCK = 256 * 1024
# More workers than any machine of today has cores for; more positions a worker than streams of a fill.
MOST_WORKERS = 64
_POSITIONS = 8

_MAGIC = b"ptfill1\n"
_HEAD = struct.Struct("<8sIQII")
_STATE_AT = 8 + 4 + 8
_FAILURES_AT = _STATE_AT + 4
_SOURCE_AT = 32
SOURCE_BYTES = 16
_DEMANDS_AT = 64
_DEMANDS = struct.Struct(f"<{_POSITIONS}Q")
_BLOCKS_AT = _DEMANDS_AT + MOST_WORKERS * _DEMANDS.size
_UINT = struct.Struct("<I")

_UNTOUCHED, _BEGUN, _FULL = b"\0", b"\1", b"\2"


class FillState(IntEnum):
    """What became of a fill."""

    FILLING = 0
    # All bytes were right; the file is a finished blob now, or is about to be.
    VERIFIED = 1
    # The bytes were not what the digest names, or the file is of no use for another reason: begin anew.
    DROPPED = 2


class BadMap(Exception):
    """The buffer is no map of a blob of this size."""


class FillMap:
    """See above. All positions and lengths are bytes of the blob."""

    def __init__(self, buffer: mmap | bytearray, size: int) -> None:
        """Read `buffer` as the map of a blob of `size` bytes. Raises BadMap."""
        self._buffer = buffer
        self.size = size
        self._blocks = blocks_of(size)
        self._marks_end = _BLOCKS_AT + self._blocks
        self._parts_at = _aligned(self._marks_end)
        if len(buffer) < map_bytes(size) or _HEAD.unpack_from(buffer)[:3] != (_MAGIC, BLOCK, size):
            raise BadMap("not the map of this blob")
        if max(self._all_parts(), default=0) > BLOCK:
            raise BadMap("more than a block in a block")

    @staticmethod
    def format(buffer: mmap | bytearray, size: int) -> "FillMap":
        """Make the zeroed `buffer` the map of a blob of `size` bytes of which nothing has arrived."""
        _HEAD.pack_into(buffer, 0, _MAGIC, BLOCK, size, FillState.FILLING, 0)
        return FillMap(buffer, size)

    @property
    def state(self) -> FillState:
        """What became of the fill. Raises BadMap where that cannot be read."""
        try:
            return FillState(_UINT.unpack_from(self._buffer, _STATE_AT)[0])
        except ValueError as error:
            raise BadMap("no such state") from error

    @state.setter
    def state(self, state: FillState) -> None:
        self._put(_STATE_AT, _UINT.pack(state))

    @property
    def failures(self) -> int:
        """How often those who filled it gave up."""
        return int(_UINT.unpack_from(self._buffer, _FAILURES_AT)[0])

    def give_up(self) -> None:
        """Tell the readers in other processes that whoever filled it gave up."""
        self._put(_FAILURES_AT, _UINT.pack((self.failures + 1) & 0xFFFFFFFF))

    @property
    def source(self) -> bytes:
        """Where the bytes come from, as its writer has it; zeros before that is known."""
        return bytes(self._buffer[_SOURCE_AT : _SOURCE_AT + SOURCE_BYTES])

    @source.setter
    def source(self, source: bytes) -> None:
        """`source` has SOURCE_BYTES bytes."""
        self._put(_SOURCE_AT, source)

    # What has arrived.

    @property
    def arrived(self) -> int:
        """How many bytes in all."""
        return sum(self._all_parts())

    def record(self, position: int, count: int) -> None:
        """The bytes from `position` on are in the file: they follow what has arrived in their first block.

        Raises ValueError for what would leave a hole.
        """
        stop = position + count
        while position < stop:
            block = position // BLOCK
            start = block * BLOCK
            if stop > self.size or position - start > self._part(block):
                raise ValueError(f"{position} does not follow what has arrived")
            end = min(stop, start + BLOCK)
            part = max(end - start, self._part(block))
            full = start + part == min(start + BLOCK, self.size)
            self._put(self._parts_at + 4 * block, _UINT.pack(part))
            self._put(_BLOCKS_AT + block, _FULL if full else _BEGUN)
            position = end

    def readable(self, position: int, most: int) -> int:
        """The end of what has arrived from `position` on without a hole, looked at for `most` bytes about."""
        end = position
        while end < self.size and end - position < most:
            start = end - end % BLOCK
            here = start + self._part(end // BLOCK)
            if here <= end:
                break
            end = here
            if end < min(start + BLOCK, self.size):
                break
        return end

    def gap(self, position: int) -> tuple[int, int] | None:
        """The first gap in the block of `position` or after it: its first missing byte, and where it ends at most.

        It ends where the next block begins of which something has arrived. None where nothing is missing.
        """
        block = self._find(position // BLOCK, _UNTOUCHED, _BEGUN)
        while block is not None and self._part(block) == min(BLOCK, self.size - block * BLOCK):
            # Whoever recorded the block was killed before it was marked.
            self._put(_BLOCKS_AT + block, _FULL)
            block = self._find(block + 1, _UNTOUCHED, _BEGUN)
        if block is None:
            return None
        after = self._find(block + 1, _BEGUN, _FULL)
        return block * BLOCK + self._part(block), self.size if after is None else after * BLOCK

    def gaps(self) -> Iterator[tuple[int, int]]:
        """All gaps, as `gap` gives them."""
        gap = self.gap(0)
        while gap is not None:
            yield gap
            gap = self.gap(gap[1]) if gap[1] < self.size else None

    # What readers of other processes wait for.

    def demand(self, worker: int, positions: Sequence[int]) -> None:
        """The readers of `worker` (below MOST_WORKERS) wait at `positions`; only the first few are told."""
        if not 0 <= worker < MOST_WORKERS:
            raise ValueError(f"there is no worker {worker}")
        told = [position + 1 for position in positions[:_POSITIONS]]
        at = _DEMANDS_AT + worker * _DEMANDS.size
        self._put(at, _DEMANDS.pack(*told, *[0] * (_POSITIONS - len(told))))

    def demanded(self) -> list[int]:
        """The positions that readers of all workers wait for. One that died may have left some of its own."""
        told = memoryview(self._buffer)[_DEMANDS_AT:_BLOCKS_AT].cast("Q")
        try:
            return [position - 1 for position in told if 0 < position <= self.size]
        finally:
            told.release()

    def _all_parts(self) -> "array[int]":
        return array("I", self._buffer[self._parts_at : self._parts_at + 4 * self._blocks])

    def _put(self, at: int, value: bytes) -> None:
        # Not pack_into: it writes zeros first, which other processes would see, and a killed one would leave behind.
        self._buffer[at : at + len(value)] = value

    def _part(self, block: int) -> int:
        return int(_UINT.unpack_from(self._buffer, self._parts_at + 4 * block)[0])

    def _find(self, block: int, *marks: bytes) -> int | None:
        """The first block from `block` on with one of `marks`."""
        places = (self._buffer.find(mark, _BLOCKS_AT + block, self._marks_end) for mark in marks)
        found = [place - _BLOCKS_AT for place in places if place >= 0]
        return min(found, default=None)


def blocks_of(size: int) -> int:
    """How many blocks a blob of `size` bytes has."""
    return -(-size // BLOCK)


def map_bytes(size: int) -> int:
    """How long the map of a blob of `size` bytes is."""
    return _aligned(_BLOCKS_AT + blocks_of(size)) + 4 * blocks_of(size)


def _aligned(place: int) -> int:
    """The next place where four bytes are written at once, so that no process reads half of a number."""
    return place + -place % 4
