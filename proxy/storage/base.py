"""The ports of storage. tests/conformance runs one suite over every implementation of each."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from proxy.oci.digest import Digest
from proxy.storage.fillmap import FillMap


class StorageError(Exception):
    """The store cannot do this now (full, unwritable, an I/O error). The message is one line for operators.

    It is never the client's error: whoever meets it serves the client without the store.
    """


class NoRoom(StorageError):
    """There is no room for a blob of this size, and nothing left that may be evicted."""


class Stamp(Protocol):
    """Whether what was read still holds."""

    def holds(self) -> bool:
        """Has no change of its keys been told of since it was taken? Never waits; False where nobody knows."""
        ...


class MetadataStore(Protocol):
    """Small records by key. Values are bytes; keys are strings of our own making."""

    def stamp(self, *keys: str) -> Stamp:
        """A stamp for `keys`, to be taken before they are read.

        It holds no longer once a `put` or `delete` of one of them has returned, in whatever process, or was begun and
        nobody knows how it ended.
        """
        ...

    async def get(self, *keys: str) -> list[bytes | None]:
        """The values of `keys`, in their order; None for what is absent or has ended. Raises StorageError."""
        ...

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """The first `limit` keys that begin with `prefix` and come after `after`, in the order of their code points.

        Only those that have a value now. Raises StorageError.
        """
        ...

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        """Store all of `entries`, or none of them, for `keep` seconds at least; gives whether. Raises StorageError.

        `only_while`: a key and the value that it has to have at that moment (None: to be absent), whatever other
        processes do; otherwise nothing is stored.
        """
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
    """A blob being filled, with room reserved for all of it. Several processes may have it open; only the one that
    holds the claim for its digest writes, publishes or discards it."""

    @property
    def size(self) -> int:
        """Bytes of the whole blob."""
        ...

    @property
    def file(self) -> BinaryIO:
        """Open for reading and writing, unbuffered, and at the same offsets for all. It stays good after `publish`."""
        ...

    @property
    def map(self) -> FillMap:
        """What of it has arrived."""
        ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`; the map is the caller's to tell. Blocks: call it in a thread. Raises OSError."""
        ...

    async def publish(self) -> None:
        """Make it a finished blob, atomically. The caller has checked every byte. Raises StorageError."""
        ...

    async def discard(self) -> None:
        """It is of no use: its file goes and its room is given back. It stays open; never raises."""
        ...

    def close(self) -> None:
        """Let go of it; what was neither published nor discarded stays, to be gone on with. May be called again."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """`bytes` of finished blobs and of room reserved for others; `blobs` finished ones."""

    bytes: int
    blobs: int


@dataclass(frozen=True, slots=True)
class User:
    """For whom a blob is stored or read: what eviction's shares and kept patterns go by. All as configured names."""

    registry: str
    repository: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A finished blob: its size in bytes, when it was stored and last used (Unix seconds), and for whom."""

    digest: Digest
    size: int
    stored: float
    used: float
    user: User


class BlobStore(Protocol):
    """Finished blobs by digest, and those being filled. Processes may share one; each has an object of its own."""

    async def open(self, digest: Digest, user: User | None = None) -> StoredBlob | None:
        """The finished blob, whoever published it, marked as used now by `user`; None where there is none.

        Raises StorageError.
        """
        ...

    def used(self, digest: Digest, user: User) -> None:
        """The finished blob, if there is one, was given by `user` without being opened. Never waits."""
        ...

    def claim(self, digest: Digest) -> bool:
        """Become the one process that fills `digest`; False where another one is. Never waits.

        It ends with `release`, or with the process, however that ends.
        """
        ...

    def release(self, digest: Digest) -> None:
        """Give the claim up."""
        ...

    async def begin(self, digest: Digest, size: int, user: User | None = None) -> PartialBlob:
        """Reserve room for `size` bytes, evicting others where it has to be. The caller has the claim.

        A fill of the same digest that was left behind is replaced. Raises NoRoom or StorageError.
        """
        ...

    async def attach(self, digest: Digest) -> PartialBlob | None:
        """The fill that another process runs, or one that was left behind; None where there is none that can be used.

        Raises StorageError.
        """
        ...

    async def remove(self, digest: Digest, reason: str) -> bool:
        """Remove a finished blob. False where there is none, or somebody reads it, in whatever process."""
        ...

    def holds(self, digest: Digest) -> bool:
        """Is there a finished blob, as far as this process knows without looking? Never waits."""
        ...

    async def usage(self) -> Usage:
        """How much is stored. Raises StorageError."""
        ...

    async def listed(self, after: str, limit: int) -> Sequence[Listed]:
        """The first `limit` finished blobs after the digest `after`, in the order of their digests as text.

        When they were used last, and by whom, may be a little behind. Raises StorageError.
        """
        ...


class ObjectStoreError(StorageError):
    """The object store cannot do this now. `reason`: connect, timeout, 5xx or denied (it refuses, or has no bucket)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WrongObject(StorageError):
    """The object store has other bytes than were stored, or what it says of them makes no sense."""


class Kept(Protocol):
    """A blob that the object store has all of."""

    @property
    def digest(self) -> Digest:
        """Its digest."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


class ObjectStore(Protocol):
    """Finished blobs by digest, in an object store that all replicas share. What it gives is not believed unseen."""

    async def find(self, digest: Digest) -> Kept | None:
        """The blob; None where there is none. Raises ObjectStoreError, or WrongObject for one that is of no use."""
        ...

    def read(self, kept: Kept, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to `stop`, each piece checked against what was stored before it is given.

        Raises WrongObject where they are others, and ObjectStoreError, also where nothing comes for a while.
        """
        ...

    async def store(self, digest: Digest, file: BinaryIO, size: int) -> bool:
        """Have all of `file` (read at offsets only) there, checked against `digest` on its way.

        False where it was there already, or became so meanwhile by another replica; either way it is there once and
        whole. Raises WrongObject where the file has other bytes, OSError where it cannot be read, ObjectStoreError.
        """
        ...

    async def remove(self, digest: Digest) -> bool:
        """Remove it; False where there is none. Raises ObjectStoreError."""
        ...

    async def address(self, kept: Kept, seconds: float) -> str:
        """Where anybody can have its bytes for so long: a signed URL, never to be logged.

        Raises ObjectStoreError, or WrongObject where its bytes are not there any more.
        """
        ...

    async def close(self) -> None:
        """End all connections. No other method may be called afterwards."""
        ...


class Leases(Protocol):
    """Who of all replicas does a thing, by its name. They save work, and nothing depends on them: see `take`."""

    @property
    def address(self) -> str:
        """Where others read from this one."""
        ...

    async def take(self, name: str) -> str | None:
        """Have it until `release`, or until this process ends. None: it is had; else the address of who has it.

        It is had also where nobody can be asked who has it. Whoever has it has heard of all that the last one changed.
        """
        ...

    async def holder(self, name: str) -> str | None:
        """The address of who has it; None where nobody has. Raises StorageError where nobody can be asked."""
        ...

    async def release(self, name: str) -> None:
        """Let the next one have it; what is not had is no error."""
        ...


class Holders(Protocol):
    """Which replicas have a finished blob, as far as they said so, and which are there at all. By their addresses."""

    async def add(self, digest: Digest) -> None:
        """This replica has it."""
        ...

    async def of(self, digest: Digest) -> Sequence[str]:
        """Others that have it, the latest first. Raises StorageError."""
        ...

    async def drop(self, digest: Digest, address: str | None = None) -> None:
        """The one at `address`, or this one, has it no more."""
        ...

    async def everybody(self) -> Sequence[str]:
        """All others that are there. Raises StorageError."""
        ...
