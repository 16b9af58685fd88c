"""Where the bytes of a fill come from: what the region has already, and the upstream for one replica of all.

Invariants:
- Of all replicas one asks the upstream for a blob: the one that has its lease, from before it asks until the blob is
  here, and said to be. The others read what it has, as it comes, and go on by themselves where it ends.
- What comes from within the region is nobody's right: a replica that has no word of the upstream for who asks gets that
  by itself. Bytes of the object store are not fetched for those who have no right to them.
- Whatever of this fails costs time: the upstream is the last place, and the lease's holder is waited for no longer than
  it is there.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from proxy.cache.ask import Ask
from proxy.cache.place import Place, RangeReply
from proxy.oci.digest import Digest
from proxy.storage.base import Holders, Kept, Leases, ObjectStore, StorageError, WrongObject
from proxy.telemetry.events import ObjectMismatch, SharedBytes, Tell
from proxy.upstream.errors import UpstreamFailure
from proxy.upstream.replicas import Dropped, Replicas, ReplicaUnreachable
from proxy.upstream.slots import Slots

_log = logging.getLogger("pullthrough.cache")

# Seconds. For so long a replica that has a lease, and cannot be reached, keeps the others from the upstream.
_PATIENCE = 8.0
_PAUSE = 0.1
_MOST_ASKED = 20
_DISTRUSTED = 60.0
# A body that has begun goes on after it.
_SIGNED_FOR = 900.0
_SLOTS = 64
# How many ranges of one blob at a time: a replica's fill comes in one order; an object store likes several.
_FROM_REPLICA, _FROM_OBJECT = 1, 4
# Tries that bring nothing, before another place is looked for.
_NO_TRIES = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob that is to be filled: from which `source`, and how its `upstream` is asked. `ensure` makes sure that who
    asks has a right to it; raises UpstreamError where not."""

    digest: Digest
    source: bytes
    upstream: Place
    ensure: Callable[[], Awaitable[object]]


class Region:
    """What one process knows of the others' blobs. Any of its parts may be missing."""

    def __init__(
        self,
        tell: Tell,
        leases: Leases | None = None,
        holders: Holders | None = None,
        replicas: Replicas | None = None,
        objects: ObjectStore | None = None,
    ) -> None:
        self._tell = tell
        self._leases = leases
        self._holders = holders
        self._replicas = replicas
        self._objects = objects
        self._from_replicas = Slots(_SLOTS)
        self._from_objects = Slots(_SLOTS)
        # Of what the region had other bytes for, and when that was seen.
        self._distrusted: dict[Digest, float] = {}

    @property
    def here(self) -> str:
        """Where other replicas read from this one."""
        return self._leases.address if self._leases is not None else ""

    @property
    def is_shared(self) -> bool:
        """May anybody else have a blob?"""
        return self._objects is not None or self._holders is not None

    def places(self, wanted: Wanted, stack: AsyncExitStack) -> "Places":
        """The places of a fill; what is held for it is given back when `stack` ends."""
        return Places(self, wanted, stack)

    async def stored(self, digest: Digest) -> None:
        """A blob is here now, for other replicas as well."""
        if self._holders is not None:
            await self._holders.add(digest)

    async def purge(self, digest: Digest) -> list[Dropped]:
        """Have all other replicas drop the blob; gives what became of it there. Raises StorageError where one fails."""
        if self._holders is None or self._replicas is None:
            return []
        addresses = list(await self._holders.everybody())
        done = await asyncio.gather(
            *(self._replicas.remove(address, digest) for address in addresses), return_exceptions=True
        )
        dropped = []
        for address, result in zip(addresses, done, strict=True):
            await self._holders.drop(digest, address)
            if isinstance(result, Dropped):
                dropped.append(result)
            else:
                _log.warning("the blob %s may be left at another replica: %s", digest, result)
        if len(dropped) < len(addresses):
            raise StorageError("a replica does not answer: the blob may be left there")
        return dropped

    async def lost(self, digest: Digest) -> None:
        """The blob is not here any more."""
        if self._holders is not None:
            await self._holders.drop(digest)

    def distrust(self, digest: Digest) -> None:
        """What the region had for it was wrong: for a while it is had from the upstream only."""
        now = asyncio.get_running_loop().time()
        self._distrusted = {one: at for one, at in self._distrusted.items() if now - at < _DISTRUSTED}
        self._distrusted[digest] = now

    def distrusts(self, digest: Digest) -> bool:
        """Is it to be had from the upstream only?"""
        at = self._distrusted.get(digest)
        return at is not None and asyncio.get_running_loop().time() - at < _DISTRUSTED

    async def gone(self, digest: Digest, address: str) -> None:
        """The replica there has it no more."""
        if self._holders is not None:
            await self._holders.drop(digest, address)

    async def is_there(self, address: str) -> bool:
        """Is the replica there, as far as anybody knows? A busy one may be silent for a while."""
        if self._holders is None:
            return False
        try:
            return address in await self._holders.everybody()
        except StorageError:
            return False

    async def address(self, digest: Digest, least: int) -> str | None:
        """A signed address of the blob in the object store; None where it is not there, or has under `least` bytes."""
        kept = await self.object(digest)
        if self._objects is None or kept is None or kept.size < least:
            return None
        try:
            return await self._objects.address(kept, _SIGNED_FOR)
        except WrongObject as error:
            await self._wrong(self._objects, digest, error)
            return None
        except StorageError as error:
            self._failed(error)
            return None

    # What `Places` asks.

    async def lease(self, name: str, stack: AsyncExitStack) -> str | None:
        """Have the lease called `name` until `stack` ends; the address of who has it where another one has."""
        if self._leases is None:
            return None
        leases = self._leases
        holder = await leases.take(name)
        if holder is None:
            stack.push_async_callback(leases.release, name)
        return holder

    async def replicas_with(self, digest: Digest) -> list[str]:
        """The addresses of replicas that have all of the blob."""
        if self._holders is None:
            return []
        try:
            addresses = await self._holders.of(digest)
            # Others may have been gone for a day.
            there = set(await self._holders.everybody()) if addresses else set()
            return [address for address in addresses if address in there]
        except StorageError:
            return []

    async def object(self, digest: Digest) -> Kept | None:
        """What the object store has of it."""
        if self._objects is None:
            return None
        try:
            return await self._objects.find(digest)
        except WrongObject as error:
            await self._wrong(self._objects, digest, error)
        except StorageError as error:
            self._failed(error)
        return None

    def at_replica(
        self, wanted: Wanted, address: str, answered: Callable[[bool], Awaitable[None]], filling: bool = False
    ) -> Place | None:
        """Another replica as a place, which has the blob, or is `filling` it; `answered` is told whether it is one."""
        replicas = self._replicas
        if replicas is None:
            return None

        @asynccontextmanager
        async def request(_ask: Ask, span: tuple[int, int] | None, _address: str | None) -> AsyncIterator[RangeReply]:
            try:
                async with replicas.blob(address, wanted.digest, wanted.source if filling else None, span) as reply:
                    await answered(True)
                    yield reply
            except ReplicaUnreachable:
                await answered(False)
                raise

        return Place("replica", request, self._from_replicas, _FROM_REPLICA, _NO_TRIES)

    def at_object_store(self, kept: Kept) -> Place | None:
        """The object store as a place for what it has."""
        objects = self._objects
        if objects is None:
            return None

        def request(
            _ask: Ask, span: tuple[int, int] | None, _address: str | None
        ) -> AbstractAsyncContextManager[RangeReply]:
            return self._object_reply(objects, kept, span)

        return Place("object", request, self._from_objects, _FROM_OBJECT, _NO_TRIES)

    @asynccontextmanager
    async def _object_reply(
        self, objects: ObjectStore, kept: Kept, span: tuple[int, int] | None
    ) -> AsyncIterator[RangeReply]:
        start, stop = span or (0, kept.size)
        stop = min(stop, kept.size)

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in reading:
                    self._tell(SharedBytes("object", len(piece)))
                    yield piece
            except WrongObject as error:
                await self._wrong(objects, kept.digest, error)
                raise UpstreamFailure("5xx", str(error)) from error
            except StorageError as error:
                self._failed(error)
                raise UpstreamFailure("5xx", str(error)) from error

        async with aclosing(objects.read(kept, start, stop)) as reading:
            yield _ObjectReply(start, stop, kept.size, pieces)

    async def _wrong(self, objects: ObjectStore, digest: Digest, error: WrongObject) -> None:
        """It is of no use to anybody: let it go, so that whoever has the blob stores it anew."""
        self._tell(ObjectMismatch())
        _log.warning("the object store has other bytes for %s, which are dropped: %s", digest, error)
        with suppress(StorageError):
            await objects.remove(digest)

    def _failed(self, error: StorageError) -> None:
        _log.debug("the object store: %s", error)


class _ObjectReply:
    """What the object store has, as an answer to a request for a range."""

    address: str | None = None
    status = 206

    def __init__(self, start: int, stop: int, size: int, pieces: Callable[[], AsyncIterator[bytes]]) -> None:
        self.content_length: int | None = stop - start
        self.headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.pieces = pieces
        if start == 0 and stop == size:
            self.status, self.headers = 200, {}


class Places:
    """The places of one fill, one after another. `stack` holds its lease."""

    def __init__(self, region: Region, wanted: Wanted, stack: AsyncExitStack) -> None:
        self._region = region
        self._wanted = wanted
        self._stack = stack
        self._name = f"fill:{wanted.source.hex()}:{wanted.digest}"
        self._leased = self._followed = False
        # Places that are not tried again, and how often each replica was.
        self._tried: set[str] = set()
        self._asked: Counter[str] = Counter()
        # Since when each that has the lease could not be reached.
        self._unreachable: dict[str, float] = {}

    async def next(self) -> Place:
        """Where to ask next. Raises UpstreamError where nothing may be asked."""
        while True:
            if self._region.distrusts(self._wanted.digest):
                return self._wanted.upstream
            if (place := await self._in_the_region()) is not None:
                return place
            if self._leased:
                return self._wanted.upstream
            if self._followed:
                await asyncio.sleep(_PAUSE)
            self._followed = True
            holder = await self._region.lease(self._name, self._stack)
            if holder is None:
                # Who had it before may have brought all of it meanwhile.
                self._leased = True
                continue
            if holder == self._region.here:
                # An earlier run's, or that of a replica that says it is where this one is.
                await self._holder_answered(holder, False)
                if self._is_patient(holder):
                    continue
            elif self._is_patient(holder):
                answered = partial(self._holder_answered, holder)
                place = self._region.at_replica(self._wanted, holder, answered, filling=True)
                if place is not None:
                    return place
            _log.warning("the replica at %s fills %s and cannot be read from", holder, self._wanted.digest)
            return self._wanted.upstream

    async def _in_the_region(self) -> Place | None:
        """Whoever has all of it."""
        wanted, region = self._wanted, self._region
        for address in await region.replicas_with(wanted.digest):
            if await self._is_worth_asking(address):
                return region.at_replica(wanted, address, partial(self._answered, address))
        if "object" not in self._tried and (kept := await region.object(wanted.digest)) is not None:
            self._tried.add("object")
            await wanted.ensure()
            return region.at_object_store(kept)
        return None

    async def _answered(self, address: str, has_it: bool) -> None:
        if not has_it:
            await self._gone(address)

    async def _gone(self, address: str) -> None:
        self._tried.add(address)
        await self._region.gone(self._wanted.digest, address)

    async def _is_worth_asking(self, address: str) -> bool:
        """One that has fallen silent is asked again as long as it is there; one that cannot be reached is dropped."""
        if address in self._tried:
            return False
        asked, self._asked[address] = self._asked[address], self._asked[address] + 1
        if asked and (asked >= _MOST_ASKED or not await self._region.is_there(address)):
            await self._gone(address)
            return False
        return True

    async def _holder_answered(self, holder: str, fills_it: bool) -> None:
        if fills_it:
            self._unreachable.pop(holder, None)
        else:
            self._unreachable.setdefault(holder, asyncio.get_running_loop().time())

    def _is_patient(self, holder: str) -> bool:
        since = self._unreachable.get(holder)
        return since is None or asyncio.get_running_loop().time() - since < _PATIENCE
