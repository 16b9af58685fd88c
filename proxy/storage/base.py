"""The ports of storage. tests/conformance runs one suite over every implementation of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from proxy.oci.digest import Digest


class StorageError(Exception):
    """The store cannot do this now (full, unwritable, an I/O error). The message is one line for operators.

    It is never the client's error: whoever meets it serves the client without the store.
    """


class NoRoom(StorageError):
    """There is no room for a blob of this size, and nothing left that may be evicted."""


class MetadataStore(Protocol):
    """Small records by key. Values are bytes; keys are strings of our own making."""

    async def get(self, *keys: str) -> list[bytes | None]:
        """The values of `keys`, in their order; None for what is absent or has ended. Raises StorageError."""
        ...

    async def put(self, entries: Mapping[str, bytes], keep: float) -> None:
        """Store all of `entries`, or none of them, for `keep` seconds at least. Raises StorageError."""
        ...

    async def delete(self, *keys: str) -> None:
        """Remove `keys`; absent ones are no error. Raises StorageError."""
        ...

    async def close(self) -> None:
        """Write out what is pending. No other method may be called afterwards."""
        ...


class StoredBlob(Protocol):
    """A finished blob, held open: until `close` it is not evicted."""

    @property
    def file(self) -> BinaryIO:
        """Open for reading, unbuffered. Readers share it and read at offsets of their own."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def close(self) -> None:
        """Let it go. May be called more than once."""
        ...


class PartialBlob(Protocol):
    """A blob that is being written, with room reserved for all of it."""

    @property
    def file(self) -> BinaryIO:
        """Open for reading and writing, unbuffered; what was not written yet reads as zeros."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`. Blocks: call it in a thread. Raises OSError."""
        ...

    async def publish(self) -> None:
        """Make it a finished blob, atomically. The caller has checked every byte. Raises StorageError."""
        ...

    async def discard(self) -> None:
        """Forget it and give its room back. After `publish` this only closes the file."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """`bytes` of finished blobs and of room reserved for others; `blobs` finished ones."""

    bytes: int
    blobs: int


class BlobStore(Protocol):
    """Finished blobs by digest, and room for more."""

    async def open(self, digest: Digest) -> StoredBlob | None:
        """The finished blob, marked as used now; None where there is none. Raises StorageError."""
        ...

    async def begin(self, digest: Digest, size: int) -> PartialBlob:
        """Reserve room for `size` bytes, evicting what was used longest ago. Raises NoRoom or StorageError."""
        ...

    async def remove(self, digest: Digest, reason: str) -> bool:
        """Remove a finished blob. False where there is none, or somebody reads it."""
        ...

    def holds(self, digest: Digest) -> bool:
        """Is there a finished blob, as far as is known without looking? Never waits."""
        ...

    def usage(self) -> Usage:
        """How much is stored. Never waits."""
        ...
