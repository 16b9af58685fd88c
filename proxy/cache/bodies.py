"""Where a body's bytes come from, for whoever sends it."""

from dataclasses import dataclass
from typing import BinaryIO, Protocol

from proxy.policy.freshness import Verdict
from proxy.storage.base import StoredBlob


class BlobSource(Protocol):
    """A body's bytes, in a file that holds them, or will."""

    @property
    def size(self) -> int:
        """The whole blob's size in bytes."""
        ...

    @property
    def file(self) -> BinaryIO:
        """The file, shared with other readers: read at offsets only."""
        ...

    async def ready(self, position: int, from_start: bool) -> int:
        """Wait until the byte at `position` may be sent; gives the end of what may be sent from there on.

        `from_start`: the body began at offset 0, so its end is held back until the hash is right. Raises where the
        bytes never come.
        """
        ...

    async def close(self) -> None:
        """The body is done, or its client left."""
        ...


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob's body for a client; whoever has it closes the source."""

    source: BlobSource
    verdict: Verdict


class Present:
    """A finished blob as a source."""

    def __init__(self, stored: StoredBlob) -> None:
        self.size = stored.size
        self.file = stored.file
        self._stored = stored

    async def ready(self, position: int, from_start: bool) -> int:
        return self.size

    async def close(self) -> None:
        self._stored.close()


@dataclass(frozen=True, slots=True)
class Brought:
    """A blob that is in the store: `size` in bytes, and whether it was `here` before."""

    size: int
    here: bool
