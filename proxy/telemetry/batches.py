"""Log lines on their way to standard error: access lines in batches, all others at once.

Invariants:
- Lines are written in the order in which they came: any other line takes the access lines before it along.
- A batch is written when the next line would make it longer than `_MOST` bytes, at the latest `_DELAY` seconds after
  its first line, and at the end of the program. What kills the program loses one batch at most. Without an event loop
  nothing waits.
- Each write is of whole lines, and of no more than a pipe takes in one piece (a single longer line excepted, and what
  the stream itself kept of a write that failed): the lines of workers that share one do not mix.
- Nobody fails for a line. What standard error does not take (its reader is gone, its disk is full) is dropped, and the
  next batch is tried anew. A reader that stands still holds the program up, as it does any that writes.
- Lines come from several threads. What waits is a queue that any of them may add to without a lock; only who writes
  holds the handler's, so that batches keep their order. How much waits is a guess, and what is written is measured.
"""

import asyncio
import contextlib
import logging
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

from proxy.telemetry.events import RequestFinished
from proxy.telemetry.lines import AccessLine, timestamp

# Bytes: on Linux 4,096 (pipe(7)).
_MOST = select.PIPE_BUF
# Seconds.
_DELAY = 0.2


class BatchHandler(logging.StreamHandler[TextIO]):
    """Writes records at once, and access lines (`write_later`) in batches."""

    def __init__(
        self,
        stream: TextIO,
        access: Callable[[RequestFinished], AccessLine],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`access`: what access lines look like. `clock`: Unix time in nanoseconds."""
        super().__init__(stream)
        self.access = access
        self._clock = clock
        self._lines: deque[str] = deque()
        self._size = 0
        # Where a timer runs that will flush.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._millisecond = 0
        self._timestamp = ""

    def now(self) -> str:
        """The time that a line of now has."""
        millisecond = self._clock() // 1_000_000
        if millisecond != self._millisecond:
            self._millisecond, self._timestamp = millisecond, timestamp(millisecond / 1000)
        return self._timestamp

    def write_later(self, line: str) -> None:
        """Write `line`, which has its line end, with its batch. Called in the event loop's thread."""
        size = _size(line)
        if self._size + size > _MOST:
            self.flush()
        self._lines.append(line)
        self._size += size
        if len(self._lines) == 1:
            self._flush_soon()

    def emit(self, record: logging.LogRecord) -> None:
        """Write what came before, and the line of `record`. The lock is held."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a message that does not fit its values; said as the library says it
            self.handleError(record)
            return
        self._lines.append(f"{line}\n")
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        assert self.lock is not None  # noqa: S101 - every handler has one
        with self.lock:
            self._size = 0
            waiting = []
            while self._lines:
                waiting.append(self._lines.popleft())
            for batch in _batches(waiting):
                self._write(batch)

    def _write(self, text: str) -> None:
        # There is no other place where this could be told.
        with contextlib.suppress(Exception):
            self.stream.write(text)
            self.stream.flush()

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(_DELAY, self._flush_now)

    def _flush_now(self) -> None:
        self._loop = None
        self.flush()


def _size(line: str) -> int:
    """In bytes, as it is written."""
    return len(line) if line.isascii() else len(line.encode(errors="backslashreplace"))


def _batches(lines: list[str]) -> Iterator[str]:
    """Whole lines, as many together as are written in one piece."""
    text = "".join(lines)
    if _size(text) <= _MOST:
        if text:
            yield text
        return
    batch, size = "", 0
    for line in lines:
        if batch and size + _size(line) > _MOST:
            yield batch
            batch, size = "", 0
        batch += line
        size += _size(line)
    yield batch
