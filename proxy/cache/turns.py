"""Whose turn it is, of all worker processes, to ask an upstream for one thing.

Invariants:
- A turn is a claim under a name of ours (`storage.claims`): it ends with its process, however that ends.
- Whoever waits for one does so for `_LONGEST_WAIT`, or as long as it says, and then asks without: a process that hangs
  holds the others up for no longer than a slow upstream would.
- Where there is no other worker nothing is claimed and nobody waits.
"""

import asyncio
import contextlib
from typing import Protocol

from proxy.oci.digest import Digest
from proxy.storage.base import StorageError
from proxy.storage.claims import named_claim

# Seconds. What is left of the time a client waits is enough to ask the upstream.
_LONGEST_WAIT = 10.0
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.05


class Claiming(Protocol):
    """What of a `BlobStore` this needs."""

    def claim(self, digest: Digest) -> bool:
        """See `BlobStore.claim`."""
        ...

    def release(self, digest: Digest) -> None:
        """See `BlobStore.release`."""
        ...


class Turns:
    """The turns of one process among those that share `store`; None where it is alone."""

    def __init__(self, store: Claiming | None = None) -> None:
        self._store = store

    @property
    def shared(self) -> bool:
        """Are there other processes?"""
        return self._store is not None

    def take(self, name: str) -> bool:
        """Take the turn called `name`, if it is nobody's. Never waits; who took it gives it back."""
        if self._store is None:
            return True
        try:
            return self._store.claim(_claimed(name))
        except (StorageError, OSError):
            # Twice is better than not at all.
            return True

    async def wait(self, name: str, longest: float | None = None) -> bool:
        """Wait for the turn and take it; False where that takes too long, for more than `longest` seconds."""
        now, pause = asyncio.get_running_loop().time, _FIRST_PAUSE
        until = now() + (_LONGEST_WAIT if longest is None else longest)
        while not self.take(name):
            if now() >= until:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def give_back(self, name: str) -> None:
        """Let the next one have it."""
        if self._store is not None:
            with contextlib.suppress(StorageError, OSError):
                self._store.release(_claimed(name))


def _claimed(name: str) -> Digest:
    return named_claim(f"tag\0{name}".encode())
