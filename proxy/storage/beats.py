"""What has to be done every second, however busy this process is: in a thread, with a loop and a client of its own.

Thousands of nodes that boot make the process's own loop late by many seconds. What others hear of it by then is that it
has died, so they do its work again, and it is none the less alive.

Invariants:
- The thread gets its turn as long as the process does; a process that is stopped, or dead, is not heard of.
- A loop that has not been seen for `_HUNG` is no better than a dead one: then it is silent, too.
- `close` ends the thread and waits for it; it ends with the process's loop as well, whoever forgot to close it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import redis.asyncio as redis

from proxy.storage.link import FAILURES, described
from proxy.storage.servers import Server

_log = logging.getLogger("pullthrough.storage")

# Seconds.
BEAT = 1.0
_LIMIT = 2.0
_HUNG = 20.0


class Beats:
    """`beat` is called in the thread, with a client of the server that `connect` gives."""

    def __init__(self, connect: Callable[[], Server], beat: Callable[[redis.Redis], Awaitable[None]]) -> None:
        self._connect = connect
        self._beat = beat
        self._running: asyncio.Future[None] | None = None
        self._living: asyncio.Task[None] | None = None
        # When the process's loop was seen, by the clock that no loop owns.
        self._seen = 0.0
        self._closing = False
        self._stop: Callable[[], object] = lambda: None

    async def start(self) -> None:
        """Begin; the server need not be there."""
        self._seen = time.monotonic()
        self._living = asyncio.create_task(self._live(), name="the loop is there")
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, thread_name_prefix="beats")
        self._running = loop.run_in_executor(thread, lambda: asyncio.run(self._run()))
        self._running.add_done_callback(_say_if_failed)
        # Nothing else is to be done there.
        thread.shutdown(wait=False)
        # What has not begun is not ended, either.
        await asyncio.sleep(0)

    async def close(self) -> None:
        """End it; what is under way is done first."""
        self._end()
        if self._living is not None:
            self._living.cancel()
            await asyncio.gather(self._living, return_exceptions=True)
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def _live(self) -> None:
        try:
            while True:
                self._seen = time.monotonic()
                await asyncio.sleep(BEAT)
        finally:
            self._end()

    def _end(self) -> None:
        self._closing = True
        # There may be no loop any more that could be stopped.
        with contextlib.suppress(RuntimeError):
            self._stop()

    # In the thread.

    async def _run(self) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        server: Server | None = None
        # `close` may have come before there was anything to stop.
        while not (self._closing or stopped.is_set()):
            if time.monotonic() - self._seen < _HUNG:
                server = await self._try(server)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await stopped.wait()
        if server is not None:
            with contextlib.suppress(*FAILURES):
                await server.close()

    async def _try(self, server: Server | None) -> Server | None:
        """Beat; gives the server by which the next one goes."""
        try:
            server = server or self._connect()
            async with asyncio.timeout(_LIMIT):
                await self._beat(server.client)
        except FAILURES as error:
            # The link says so to operators, and this goes on trying.
            _log.debug("a beat failed: %s", described(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one may do
            _log.error("a beat failed", exc_info=error)
        return server


def _say_if_failed(running: "asyncio.Future[None]") -> None:
    if not running.cancelled() and (error := running.exception()) is not None:
        _log.error("this replica cannot say that it is there: others may do its work again", exc_info=error)
