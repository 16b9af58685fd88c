"""The bytes of one fill on their way from the upstream into its file, by as many ranges as are worth it.

Invariants:
- What has arrived is never asked for again while the upstream honours ranges; each range is bounded, and they do not
  overlap. Bytes are in the file before the map says so.
- A range that fails is gone on with at its missing byte: at once after progress, then with back-off; without any
  progress of any range the download ends after a few tries. Everything that arrived stays.
- An upstream that ignores ranges is read by one stream from its start; one that refuses several at a time gets fewer.
- Every range is a task owned by `run`, which has awaited all of them when it returns or raises.
- A download that keeps to a speed does so as long as nobody reads what it brings: one range at a time, which ends early
  where another fill waits for its turn.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from proxy.cache.ask import Ask
from proxy.cache.filling import Filling
from proxy.cache.place import Place, RangeReply
from proxy.cache.plan import FIRST_RANGE, Gain, Next, Pace, Running, next_range
from proxy.oci.digest import Digest
from proxy.oci.manifest import content_type_of
from proxy.oci.ranges import parse_content_range
from proxy.storage.base import PartialBlob
from proxy.storage.fillmap import BLOCK
from proxy.telemetry.events import FillResumed, Tell
from proxy.upstream.errors import (
    RangeRefused,
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamMissing,
    UpstreamRefused,
)

T = TypeVar("T")

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 8.0
# Pieces under this many bytes are gathered for so many seconds, where fewer bytes a second come than that.
_SMALL = 128 * 1024
_GATHER = 0.015
_FAST = 100e6
# How often it is looked at who waits, in seconds: a range can slow down while a reader counts on it.
_LOOK = 0.1


class Uncacheable(Exception):
    """This blob cannot go through the cache now (no length, no room, storage trouble): stream it past the cache."""


class _NoRanges(Exception):
    """The upstream cannot be asked for ranges: it sends all of the blob, or others than were asked for."""


class _Stream(Running):
    """A range and the task that brings it."""

    def __init__(self, span: tuple[int, int], whole: bool, address: str | None, ask: Ask, now: float) -> None:
        super().__init__(*span)
        self.ask = ask
        # None: the upstream is asked for all of the blob.
        self.span = None if whole else span
        self.address = address
        self.received = 0
        self._begun = now
        self.task: asyncio.Task[None] | None = None

    def measure(self, now: float) -> float:
        """Bring `age` and `rate` up to date."""
        self.age = now - self._begun
        self.rate = self.received / max(self.age, 0.001)
        return self.rate


class Download:
    """All that is missing of one blob. `run` is called once."""

    def __init__(self, digest: Digest, filling: Filling, place: Place, tell: Tell) -> None:
        self._digest = digest
        self._filling = filling
        self._request = place.request
        self._slots = place.slots
        self._gain = Gain(place.parallel)
        self._tries = place.tries
        self._received = 0
        self._tell = tell
        self._partial: PartialBlob | None = None
        self._confirmed = False
        self._ranges = True
        self._address: str | None = None
        self._refused: set[object] = set()
        # With whose rights it was that the upstream last failed.
        self._failed_ask: Ask | None = None
        self._streams: list[_Stream] = []
        self._rate = 0.0
        self._failures = 0
        self._not_before = 0.0
        # When what has come is covered, where the fill is held back.
        self._covered = 0.0
        self._last_error: UpstreamFailure | None = None
        self.look = asyncio.Event()

    async def run(self, partial: PartialBlob | None, start: int) -> None:
        """Bring what is missing of `partial`, beginning at `start`; without one the first answer says how much it is.

        `look` is set by whoever has a new reader that waits. Raises UpstreamError, Uncacheable, StorageError, OSError.
        """
        self._partial = partial
        try:
            self._start(self._first(start))
            while self._streams or not self._complete():
                await self._wait()
                for stream in [one for one in self._streams if one.task is not None and one.task.done()]:
                    self._ended(stream)
                if self._plan() and not self._streams and not self._complete():
                    raise Uncacheable(f"the map of {self._digest} makes no sense")
                self._check_goes_on()
        except Exception:
            self._filling.failing(self._failed_ask)
            raise
        finally:
            tasks = [stream.task for stream in self._streams if stream.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._streams.clear()

    def _check_goes_on(self) -> None:
        """Raise what ends the download where nothing is on its way, and will not be for long (Retry-After)."""
        left = self._not_before - asyncio.get_running_loop().time()
        if self._streams or self._complete():
            return
        if left > _LONGEST_PAUSE and self._last_error is not None:
            raise self._last_error

    @property
    def _is_held(self) -> bool:
        return self._covered > asyncio.get_running_loop().time() and self._filling.brake.is_on

    def _complete(self) -> bool:
        return self._confirmed and self._partial is not None and self._partial.map.gap(0) is None

    # What is asked for.

    def _first(self, start: int) -> tuple[int, int]:
        """The range that is asked for before anything is known, or before the upstream was heard of again."""
        if self._partial is None:
            start -= start % BLOCK
            return start, start + FIRST_RANGE
        pace = Pace(0.0, 1)
        found = next_range(self._partial.map, (), [start], pace)
        assert found is not None  # noqa: S101 - whoever has a complete one does not call
        return found.start, found.stop

    def _plan(self) -> bool:
        """Start what is to be asked for now; False where it is not the time to ask for anything."""
        loop = asyncio.get_running_loop()
        if not self._confirmed or self._partial is None or loop.time() < self._not_before or self._is_held:
            return False
        if not self._ranges:
            if not self._streams and not self._complete():
                self._start((0, self._partial.size))
            return True
        for stream in self._streams:
            stream.measure(loop.time())
        self._gain.look(loop.time(), self._streams, self._received)
        while (found := self._next()) is not None:
            if found.shorten is not None:
                found.shorten.stop = found.start
            self._start((found.start, found.stop))
        return True

    def _next(self) -> Next | None:
        assert self._partial is not None  # noqa: S101 - `_plan` has looked
        pace = Pace(self._rate, self._gain.allowed, self._gain.spare)
        if self._filling.brake.is_on:
            pace = Pace(self._rate, 1)
        found = next_range(self._partial.map, self._streams, self._filling.waiting(), pace)
        # A further range nobody waits for takes no other fill's turn.
        if found is not None and not found.reader and self._streams and not self._slots.idle:
            return None
        return found

    def _start(self, span: tuple[int, int]) -> None:
        loop = asyncio.get_running_loop()
        ask = self._filling.lender(self._refused)
        if ask is None:
            raise UpstreamRefused(401, f"nobody is left who may read {self._digest}")
        stream = _Stream(span, not self._ranges, self._address, ask, loop.time())
        stream.task = loop.create_task(self._bring(stream), name=f"range {span[0]}-{span[1]} of {self._digest}")
        stream.task.add_done_callback(lambda _: self.look.set())
        self._streams.append(stream)

    async def _wait(self) -> None:
        """Until a range has ended, a reader waits somewhere new, or it is time to look again."""
        pause = max(self._not_before - asyncio.get_running_loop().time(), 0.0) or _LOOK
        try:
            async with asyncio.timeout(min(pause, _LOOK) if self._streams else pause):
                await self.look.wait()
        except TimeoutError:
            pass
        self.look.clear()

    # What becomes of it.

    def _ended(self, stream: _Stream) -> None:
        assert stream.task is not None  # noqa: S101 - it was done
        self._streams.remove(stream)
        rate = stream.measure(asyncio.get_running_loop().time())
        error = stream.task.exception()
        self._failed_ask = stream.ask if error is not None else self._failed_ask
        if error is None:
            self._rate, self._failures = rate, 0
            self._gain.ended(rate)
        elif isinstance(error, _NoRanges):
            # The others go on to their ends; then one stream brings the rest.
            self._ranges = False
            if not self._confirmed:
                self._start((0, FIRST_RANGE))
        elif isinstance(error, UpstreamError) and self._confirmed:
            self._failed(stream, error)
        else:
            raise error

    def _failed(self, stream: _Stream, error: UpstreamError) -> None:
        """Decide how to go on after a failure in the middle. Raises what ends the download."""
        self._tell(FillResumed())
        if stream.address is not None:
            # A signed address may be over: that is asked for afresh first, and is nobody's failure.
            self._address = None if self._address == stream.address else self._address
            return
        if isinstance(error, UpstreamRefused | UpstreamMissing) and self._filling.lender(self._refused) is not None:
            return
        if not isinstance(error, UpstreamFailure):
            raise error
        self._failures = 0 if stream.received else self._failures + 1
        pause = _FIRST_PAUSE * 2.0 ** (self._failures - 1) if self._failures else 0.0
        if stream.span is None:
            # Each try brings everything again up to where the last one ended.
            pause = max(pause, _FIRST_PAUSE)
        pause = max(min(pause, _LONGEST_PAUSE), error.retry_after or 0.0)
        self._last_error = error
        if self._streams and not stream.received:
            # Others still bring bytes: this one may have been one too many.
            self._gain.refused(len(self._streams))
        if not self._streams and self._failures > self._tries:
            raise error
        self._not_before = asyncio.get_running_loop().time() + pause

    # One range.

    async def _bring(self, stream: _Stream) -> None:
        span, ask = stream.span, stream.ask
        try:
            async with self._slots.slot(), self._request(ask, span, stream.address) as reply:
                position = await self._accept(stream, ask, reply)
                self._address = reply.address
                await self._receive(stream, position, reply)
        except (UpstreamRefused, UpstreamMissing) as error:
            # What an address that redirects led to says is nothing about anybody's rights.
            if stream.address is None:
                self._refused.add(ask.rights)
                await self._filling.refused(ask, error)
            raise
        except RangeRefused as error:
            if self._confirmed or span is None:
                raise
            _, _, size = parse_content_range(error.content_range) or (0, 0, None)
            if size is None or span[0] < size:
                raise _NoRanges from error
            # Nothing is there from its start on: that much is known, and how long the blob is.
            stream.stop = stream.position
            await self._found(ask, "", size)
            self._confirmed = True

    async def _accept(self, stream: _Stream, ask: Ask, reply: RangeReply) -> int:
        """Take the head of an answer to the range of `stream`; gives where its body begins. Raises UpstreamInvalid."""
        registry = ask.repository.registry
        position = 0
        if content_type_of(reply.headers.get("Content-Type", "")) == "text/html":
            # A page to log in at, which is no word on anybody's rights.
            raise UpstreamInvalid(f"{registry} answered for {self._digest} with a page")
        if reply.content_length is None:
            if stream.span is not None and reply.status == 206:
                raise _NoRanges
            raise self._useless(f"{registry} does not say how long {self._digest} is")
        if reply.status == 206 and stream.span is None:
            raise UpstreamInvalid(f"{registry} answered with a range that it was not asked for")
        if reply.status == 206:
            span = parse_content_range(reply.headers.get("Content-Range"))
            if span is None or span[0] != stream.position or span[1] - span[0] != reply.content_length:
                raise _NoRanges
            position, stop, size = span
            stream.stop = min(stream.stop, stop)
            if size is None:
                raise _NoRanges
        elif len(self._streams) > 1:
            raise _NoRanges
        else:
            size = reply.content_length
            self._ranges = self._ranges and size <= stream.stop and stream.position == 0
            stream.position, stream.stop = 0, size
        await self._found(ask, reply.headers.get("Content-Type", ""), size)
        self._confirmed = True
        self.look.set()
        return position

    def _useless(self, reason: str) -> Exception:
        return UpstreamInvalid(reason) if self._confirmed else Uncacheable(reason)

    async def _found(self, ask: Ask, media_type: str, size: int) -> None:
        if self._confirmed:
            if self._partial is None or size != self._partial.size:
                raise UpstreamInvalid(f"{ask.repository.registry} changed the length of {self._digest}")
            return
        self._partial = await self._filling.found(ask, media_type, size)

    async def _receive(self, stream: _Stream, position: int, reply: RangeReply) -> None:
        """Write the body, which begins at `position`, up to the end of the range or of the bytes that are wanted."""
        async for piece in reply.pieces():
            view = memoryview(piece)
            while view and position < stream.stop:
                count, new = await self._keep(position, view[: stream.stop - position])
                view, position = view[count:], position + count
                # What was here already is no progress, however often it comes.
                stream.received += new
                stream.position = position
            await self._hold_back(stream, len(piece))
            if position >= stream.stop:
                return
            if len(piece) < _SMALL and 0.0 < stream.rate < _FAST:
                # A thread and a wake for each packet would cost more than the packets: let a few come together.
                await asyncio.sleep(_GATHER)
        if position < stream.stop and not stream.received:
            raise UpstreamFailure("5xx", "the upstream's answer was empty")

    async def _hold_back(self, stream: _Stream, count: int) -> None:
        """Wait until `count` bytes that have come are covered; end the range where others wait for its turn."""
        brake = self._filling.brake
        if not brake.is_on:
            return

        def is_wanted() -> bool:
            return stream.span is not None and self._slots.wanted

        self._covered = brake.spend(count)
        await brake.wait(self._covered, is_wanted)
        if self._is_held and is_wanted():
            stream.stop = stream.position

    async def _keep(self, position: int, data: memoryview) -> tuple[int, int]:
        """Write what is missing of `data`; gives how much of it is dealt with, and how much of that was new.

        Only a stream that was sent more than was asked for meets bytes that are there.
        """
        partial = self._partial
        assert partial is not None  # noqa: S101 - the head was accepted
        there = partial.map.readable(position, len(data)) - position
        if there > 0:
            return min(there, len(data)), 0
        gap = partial.map.gap(position)
        if gap is not None:
            data = data[: gap[1] - position]
        written = False

        def write() -> None:
            nonlocal written
            partial.write(position, data)
            written = True

        try:
            await finished_in_thread(write)
        finally:
            # Also of a download that is ended meanwhile: whoever goes on with it has that.
            if written:
                partial.map.record(position, len(data))
        self._received += len(data)
        self._filling.advanced(len(data))
        return len(data), len(data)


async def finished_in_thread(call: Callable[..., T], *arguments: object) -> T:
    """Run `call` in a thread; who is cancelled, however often, waits for its end, since the file is closed then."""
    task = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        # Looked at, so that nobody misses it.
        task.exception()
        raise asyncio.CancelledError
    return task.result()
