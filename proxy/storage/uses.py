"""Uses of blobs, on their way to the index.

Invariants:
- No use is lost but by a crash: it waits in `_waiting` until the index has it.
- A blob's use is told by itself once a minute at most; the others go along with the next that is told, or with the
  next eviction of this process, which so goes by what was used last.
- One task at a time tells; it belongs to this object, and `close` waits for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from proxy.oci.digest import Digest
from proxy.storage.base import StorageError
from proxy.storage.index import Use

_log = logging.getLogger("pullthrough.storage")


class Uses:
    """See above; `tell` tells the index."""

    def __init__(self, tell: Callable[[list[Use]], Awaitable[None]]) -> None:
        self._tell = tell
        self._waiting: dict[Digest, Use] = {}
        self._due = False
        self._task: asyncio.Task[None] | None = None

    def add(self, use: Use, due: bool) -> None:
        """A blob was used; `due`, and the index is to know it now."""
        earlier = self._waiting.pop(use.digest, None)
        if earlier is not None and not use.kept and (earlier.kept or earlier.user.registry):
            use = replace(use, user=earlier.user, kept=earlier.kept)
        self._waiting[use.digest] = use
        self._due |= due
        if self._due and self._task is None:
            self._task = asyncio.create_task(self._run(), name="uses of blobs")

    def take(self) -> list[Use]:
        """All that wait; whoever takes them tells the index."""
        waiting, self._waiting, self._due = self._waiting, {}, False
        return list(waiting.values())

    async def close(self) -> None:
        """Tell what waits."""
        if self._task is not None:
            await asyncio.wait([self._task])
        self._due = bool(self._waiting)
        await self._run()

    async def _run(self) -> None:
        try:
            while self._due:
                await self._tell(self.take())
        except StorageError as error:
            # What is used most may be evicted for it; nobody's request fails.
            _log.warning("%s", error)
        finally:
            self._task = None
