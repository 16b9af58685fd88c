"""The readers of one fill: whose rights they have, and where they wait.

Invariants:
- A reader that waits is woken when the byte at its position may be sent, or never will be; nobody else is woken.
- Wakes are at least a few hundred kilobytes or some milliseconds apart, however small the packets are.
- A few are woken in one turn of the loop, the rest in the next ones: between them the upstream is read from and others
  are served, however many readers there are.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import BinaryIO, Protocol

from proxy.cache.ask import Ask

_WAKE_BYTES = 512 * 1024
_WAKE_SECONDS = 0.05
# Each may send a window at once, in a fraction of a millisecond.
_WAKE_TOGETHER = 8


class Served(Protocol):
    """What readers are served from."""

    @property
    def size(self) -> int:
        """The whole blob's size in bytes, once it is confirmed."""
        ...

    @property
    def file(self) -> BinaryIO:
        """Where its bytes are, once it is confirmed."""
        ...

    async def confirmed(self) -> None:
        """Wait until the blob is known to be there. Raises Uncacheable or UpstreamError."""
        ...

    async def readable(self, position: int, from_start: bool) -> int:
        """Wait until the byte at `position` may be sent; gives the end of what may be sent from there on.

        Raises Uncacheable or UpstreamError where it never may.
        """
        ...

    async def left(self, reader: object) -> None:
        """`reader` is done."""
        ...


class Readers:
    """See above. `sendable` gives the end of what may be sent from a position on, the position itself if nothing."""

    def __init__(self, sendable: Callable[[int, bool], int]) -> None:
        self._sendable = sendable
        self._asks: dict[object, Ask] = {}
        self._vouched: dict[object, Ask] = {}
        # Those who only want the blob to be there, whenever that is.
        self._idle: set[object] = set()
        self._waits: dict[asyncio.Future[None], tuple[int, bool]] = {}
        self._due: deque[asyncio.Future[None]] = deque()
        self._unwoken = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._asks)

    @property
    def reading(self) -> int:
        """How many of them want its bytes."""
        return len(self._asks) - len(self._idle)

    @property
    def lenders(self) -> list[Ask]:
        """Those of whom the upstream has said that they may have the blob."""
        return list(self._vouched.values())

    @property
    def positions(self) -> list[int]:
        """Where readers wait, who waits longest first."""
        return [position for position, _ in self._waits.values()]

    def add(self, reader: object, ask: Ask, reads: bool = True) -> None:
        """A reader has come; with `reads` False one that only wants the blob to be there."""
        self._asks[reader] = ask
        if not reads:
            self._idle.add(reader)

    def vouched(self, reader: object) -> None:
        """The upstream has said that a reader, if it is still here, may have the blob."""
        if reader in self._asks:
            self._vouched[reader] = self._asks[reader]

    def drop(self, reader: object) -> None:
        """It has left."""
        self._asks.pop(reader, None)
        self._vouched.pop(reader, None)
        self._idle.discard(reader)

    async def wait(self, position: int, from_start: bool) -> None:
        """Wait to be woken for `position`."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits[turn] = position, from_start
        try:
            await turn
        finally:
            # Gone already, where it was woken.
            self._waits.pop(turn, None)

    def advanced(self, count: int) -> None:
        """`count` more bytes have arrived somewhere: wake those who wait for them, now or a moment later."""
        self._unwoken += count
        if self._unwoken >= _WAKE_BYTES:
            self.wake()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAKE_SECONDS, self.wake)

    def wake(self, everybody: bool = False) -> None:
        """Wake those whose bytes are there, or everybody: what they wait for has changed."""
        idle, self._unwoken = not self._due, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends: dict[tuple[int, bool], bool] = {}
        for turn, place in list(self._waits.items()):
            if not everybody and place not in ends:
                ends[place] = self._sendable(*place) > place[0]
            if everybody or ends[place]:
                del self._waits[turn]
                self._due.append(turn)
        if not idle:
            return
        self._wake_some()

    def _wake_some(self) -> None:
        for _ in range(min(_WAKE_TOGETHER, len(self._due))):
            turn = self._due.popleft()
            if not turn.done():
                turn.set_result(None)
        if self._due:
            asyncio.get_running_loop().call_soon(self._wake_some)


class FillReader:
    """One body out of a fill; a `bodies.BlobSource` once it is `confirmed`."""

    file: BinaryIO

    def __init__(self, served: Served) -> None:
        self.size = 0
        self._served = served
        self._open = True

    async def confirmed(self) -> None:
        """Wait until there is a size and a file. Raises Uncacheable or UpstreamError."""
        await self._served.confirmed()
        self.file = self._served.file
        self.size = self._served.size

    async def ready(self, position: int, from_start: bool) -> int:
        """See `BlobSource.ready`. Raises UpstreamError or Uncacheable where the fill has failed."""
        return await self._served.readable(position, from_start)

    async def close(self) -> None:
        """See `BlobSource.close`."""
        if self._open:
            self._open = False
            await self._served.left(self)
