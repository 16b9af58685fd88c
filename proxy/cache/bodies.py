"""Where a body's bytes come from, for whoever sends it."""

import os
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from proxy.cache.known import Lasting
from proxy.oci.digest import Digest
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
    """A blob's body for a client; whoever has it closes the source.

    `body` is all of it, checked against its digest, where it is small; `lasting`: see there.
    """

    source: BlobSource
    verdict: Verdict
    lasting: Lasting | None = None
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class BlobHead:
    """What a HEAD tells of a blob: its size in bytes."""

    size: int
    verdict: Verdict
    lasting: Lasting | None = None


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


def whole(stored: StoredBlob, digest: Digest) -> bytes | None:
    """All bytes of a small blob; None where they are not its own. Blocks. Raises OSError."""
    body = os.pread(stored.file.fileno(), stored.size, 0)
    return body if digest.matches(body) else None


@dataclass(frozen=True, slots=True)
class Brought:
    """A blob that is in the store: `size` in bytes, and whether it was `here` before."""

    size: int
    here: bool
