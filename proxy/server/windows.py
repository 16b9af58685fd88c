"""How much of all bodies goes out in one turn of the event loop.

Invariants:
- In one turn no more than a few megabytes are sent, however many clients could take some: between turns upstreams are
  read, heads answered and clients accepted, so that none of these waits for thousands of bodies.
- Whoever waited longest is next.
"""

import asyncio
from collections import deque

# Bytes: a few milliseconds' worth.
_A_TURN = 4 * 1024 * 1024


class Windows:
    """Those of one process. A window is sent by whoever's `turn` has come, without waiting in between."""

    def __init__(self) -> None:
        self._left = _A_TURN
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._renews = False

    async def turn(self, size: int) -> None:
        """Wait until a window of `size` bytes may be sent."""
        if self._left > 0:
            self._left -= size
            self._renew_soon()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        await turn

    def _renew_soon(self) -> None:
        if not self._renews:
            self._renews = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._renews, self._left = False, _A_TURN
        while self._left > 0 and self._waiting:
            turn, size = self._waiting.popleft()
            # Whoever has left needs none.
            if not turn.done():
                turn.set_result(None)
                self._left -= size
        if self._left < _A_TURN:
            self._renew_soon()
