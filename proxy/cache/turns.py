"""Whose turn it is, of all worker processes and of all replicas, to ask an upstream for one thing.

Invariants:
- A turn is a claim under a name of ours (`storage.claims`): it ends with its process, however that ends. Where there
  are other replicas it is a lease besides, which is taken by who has the claim: so one worker of each waits for it.
- Whoever waits for one does so for `_LONGEST_WAIT`, or as long as it says, and then asks without: a process that hangs
  holds the others up for no longer than a slow upstream would.
- Where there is no other worker nothing is claimed, where there is no other replica nothing is leased; nobody waits.
"""

import asyncio
import contextlib
from typing import Protocol

from proxy.oci.digest import Digest
from proxy.storage.base import Leases, StorageError
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
    """The turns of one process among those that share `store`, and of its replica among those that share `leases`.

    None of either where it is alone.
    """

    def __init__(self, store: Claiming | None = None, leases: Leases | None = None) -> None:
        self._store = store
        self._leases = leases

    @property
    def shared(self) -> bool:
        """Are there other processes, which tell each other of failures?"""
        return self._store is not None

    async def take(self, name: str) -> bool:
        """Take the turn called `name`, if it is nobody's. Who took it gives it back."""
        if not self._claim(name):
            return False
        try:
            if self._leases is None or await self._leases.take(_leased(name)) is None:
                return True
        except BaseException:
            self._unclaim(name)
            raise
        self._unclaim(name)
        return False

    async def wait(self, name: str, longest: float | None = None) -> bool:
        """Wait for the turn and take it; False where that takes too long, for more than `longest` seconds."""
        now, pause = asyncio.get_running_loop().time, _FIRST_PAUSE
        until = now() + (_LONGEST_WAIT if longest is None else longest)
        while not await self.take(name):
            if now() >= until:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    async def give_back(self, name: str) -> None:
        """Let the next one have it."""
        try:
            if self._leases is not None:
                await self._leases.release(_leased(name))
        finally:
            self._unclaim(name)

    def _claim(self, name: str) -> bool:
        if self._store is None:
            return True
        try:
            return self._store.claim(_claimed(name))
        except (StorageError, OSError):
            # Twice is better than not at all.
            return True

    def _unclaim(self, name: str) -> None:
        if self._store is not None:
            with contextlib.suppress(StorageError, OSError):
                self._store.release(_claimed(name))


def _claimed(name: str) -> Digest:
    return named_claim(f"tag\0{name}".encode())


def _leased(name: str) -> str:
    # Whose rights it is about is nothing for the server to see.
    return f"turn:{_claimed(name).hex}"
