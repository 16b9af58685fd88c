"""What the replicas of a region share, in memory and with faults: leases, who has what, other replicas, objects."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from proxy.oci.digest import Digest
from proxy.storage.base import Kept, ObjectStoreError, StorageError, WrongObject
from proxy.telemetry.events import silent
from proxy.upstream.errors import UpstreamFailure
from proxy.upstream.replicas import Dropped, ReplicaReply, Replicas, ReplicaUnreachable

# As large as they come: smaller ones are gathered, which takes its time.
_PIECE = 256 * 1024


class Common:
    """What a server for leases knows. `away`: it answers nobody."""

    def __init__(self) -> None:
        self.leases: dict[str, str] = {}
        self.holders: dict[Digest, list[str]] = {}
        self.there: list[str] = []
        self.away = False


class Member:
    """The `Leases` and the `Holders` of the replica at `address`.

    `taken` and `released` are the names it was asked with; `error`: what `take` raises; `gate`: what it waits for.
    """

    def __init__(self, common: Common, address: str) -> None:
        self.address = address
        self.taken: list[str] = []
        self.released: list[str] = []
        self.error: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self._common = common
        if address not in common.there:
            common.there.append(address)

    async def take(self, name: str) -> str | None:
        self.taken.append(name)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self._common.away:
            return None
        holder = self._common.leases.setdefault(name, self.address)
        return None if holder == self.address else holder

    async def holder(self, name: str) -> str | None:
        self._answer()
        return self._common.leases.get(name)

    async def release(self, name: str) -> None:
        self.released.append(name)
        if self._common.leases.get(name) == self.address:
            del self._common.leases[name]

    async def add(self, digest: Digest) -> None:
        held = self._common.holders.setdefault(digest, [])
        if not self._common.away and self.address not in held:
            held.insert(0, self.address)

    async def of(self, digest: Digest) -> Sequence[str]:
        self._answer()
        return [address for address in self._common.holders.get(digest, []) if address != self.address]

    async def drop(self, digest: Digest, address: str | None = None) -> None:
        with suppress(ValueError):
            self._common.holders.get(digest, []).remove(address or self.address)

    async def everybody(self) -> Sequence[str]:
        self._answer()
        return [address for address in self._common.there if address != self.address]

    def _answer(self) -> None:
        if self._common.away:
            raise StorageError("the server for leases does not answer")


class FakeReply(ReplicaReply):
    """The bytes from `start` to `stop` of `content`; the body breaks off before `breaks_at`."""

    def __init__(self, content: bytes, start: int, stop: int, breaks_at: int | None) -> None:
        self.status = 206
        self.headers: Mapping[str, str] = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self.content_length = stop - start
        self._body = content[start : stop if breaks_at is None else min(stop, breaks_at)]
        self._breaks = breaks_at is not None and breaks_at < stop

    async def pieces(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), _PIECE):
            yield self._body[start : start + _PIECE]
        if self._breaks:
            raise UpstreamFailure("timeout", "the replica fell silent")


class FakeReplicas(Replicas):
    """Other replicas by their addresses: what each has, and what it does instead of answering.

    `asked` are the addresses in the order of asking, `spans` and `sources` what for; `removed` what was to be removed,
    and where.
    """

    def __init__(self) -> None:
        super().__init__(b"", silent, lambda: 0.0)
        self.has: dict[str, dict[Digest, bytes]] = {}
        self.faults: dict[str, UpstreamFailure] = {}
        self.breaks_at: dict[str, int] = {}
        self.asked: list[str] = []
        self.spans: list[tuple[int, int] | None] = []
        self.sources: list[bytes | None] = []
        self.removed: list[tuple[str, Digest]] = []

    @asynccontextmanager
    async def blob(
        self, address: str, digest: Digest, source: bytes | None, span: tuple[int, int] | None
    ) -> AsyncIterator[ReplicaReply]:
        self.asked.append(address)
        self.spans.append(span)
        self.sources.append(source)
        content = self._at(address).get(digest)
        if content is None:
            raise ReplicaUnreachable("connect", f"the replica at {address} answered 404")
        start, stop = span or (0, len(content))
        yield FakeReply(content, start, min(stop, len(content)), self.breaks_at.get(address))

    async def remove(self, address: str, digest: Digest) -> Dropped:
        self.removed.append((address, digest))
        return Dropped.GONE if self._at(address).pop(digest, None) is not None else Dropped.NONE

    def _at(self, address: str) -> dict[Digest, bytes]:
        if (fault := self.faults.get(address)) is not None:
            raise fault
        return self.has.setdefault(address, {})


@dataclass(frozen=True)
class FakeKept:
    """A `Kept`."""

    digest: Digest
    size: int


class FakeObjects:
    """An `ObjectStore`.

    `calls` are what it was asked, with the digest; `faults` what its methods raise, by their names; `gates` what they
    wait for. A read breaks off before `breaks_at` with its fault.
    """

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.calls: list[tuple[str, Digest]] = []
        self.faults: dict[str, StorageError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.breaks_at: int | None = None
        self.closed = False

    def asked(self, what: str) -> int:
        """How often."""
        return sum(name == what for name, _ in self.calls)

    async def find(self, digest: Digest) -> Kept | None:
        await self._called("find", digest)
        content = self.blobs.get(digest)
        return FakeKept(digest, len(content)) if content is not None else None

    async def read(self, kept: Kept, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        if self.breaks_at is None:
            await self._called("read", kept.digest)
        else:
            self.calls.append(("read", kept.digest))
        content = self.blobs[kept.digest]
        for place in range(start, stop, _PIECE):
            if self.breaks_at is not None and place + _PIECE > self.breaks_at:
                yield content[place : self.breaks_at]
                raise self.faults["read"]
            yield content[place : min(place + _PIECE, stop)]

    async def store(self, digest: Digest, file: BinaryIO, size: int) -> bool:
        await self._called("store", digest)
        content = await asyncio.to_thread(os.pread, file.fileno(), size, 0)
        if not digest.matches(content):
            raise WrongObject("the file has other bytes")
        new = digest not in self.blobs
        self.blobs[digest] = content
        return new

    async def remove(self, digest: Digest) -> bool:
        await self._called("remove", digest)
        return self.blobs.pop(digest, None) is not None

    async def address(self, kept: Kept, seconds: float) -> str:
        await self._called("address", kept.digest)
        return f"https://objects.test/{kept.digest}?for={seconds:g}"

    async def close(self) -> None:
        self.closed = True

    async def _called(self, what: str, digest: Digest) -> None:
        self.calls.append((what, digest))
        if (gate := self.gates.get(what)) is not None:
            await gate.wait()
        if (fault := self.faults.get(what)) is not None:
            raise fault


def failing(reason: str = "connect") -> ObjectStoreError:
    """A failure of an object store."""
    return ObjectStoreError(reason, "the object store does not answer")
