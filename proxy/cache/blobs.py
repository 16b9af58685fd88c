"""Blobs: present, filling or absent; and who may be given them (DESIGN, sections 5 and 6).

Invariants:
- There is at most one fill for a digest in a process (`fills`).
- A principal is served only with a proof for its repository and the blob's membership there, however the bytes came.
- Trouble with the cache turns a request into a stream past it (`Uncacheable`), never into the client's error.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from proxy.cache.ask import Ask, Clock, Records, Rights, user_of
from proxy.cache.attempts import Attempts
from proxy.cache.blob_origin import BlobOrigin, is_page
from proxy.cache.blob_rights import BlobRights, Right
from proxy.cache.bodies import BlobAnswer, BlobHead, BlobSource, Brought, Present, whole
from proxy.cache.circuits import Circuits
from proxy.cache.download import Uncacheable
from proxy.cache.fill import Fill
from proxy.cache.fills import Fills
from proxy.cache.known import Lasting
from proxy.cache.means import OtherSource
from proxy.cache.readers import FillReader
from proxy.cache.records import UNKNOWN_SIZE, stored_key
from proxy.cache.region import Region
from proxy.cache.speed import Speed
from proxy.oci.digest import Digest
from proxy.oci.ranges import first_position, starts_past_zero
from proxy.policy.freshness import CacheState, Verdict
from proxy.storage.base import BlobStore, StorageError, StoredBlob
from proxy.telemetry.events import Tell
from proxy.upstream.client import Reply, Upstream
from proxy.upstream.errors import (
    UpstreamError,
)
from proxy.upstream.replicas import Dropped

_LOG_INTERVAL = 60.0
# Bytes of a blob that is answered from memory: configurations, above all, which every node wants.
_SMALL = 64 * 1024

_log = logging.getLogger("pullthrough.cache")


class Blobs:
    """The blobs of all registries."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        store: BlobStore,
        records: Records,
        rights: Rights,
        circuits: Circuits,
        clock: Clock,
        tell: Tell,
        worker: int | None = None,
        region: Region | None = None,
    ) -> None:
        """`worker`: this process's number among those that share the store; None where there is no other.

        `region`: what other replicas have, where there may be others.
        """
        self._region = region or Region(tell)
        self._upstreams = upstreams
        self._origin = BlobOrigin(upstreams)
        self._store = store
        self._records = records
        self._rights = rights
        self._clock = clock
        self._tell = tell
        self._worker = worker
        self._last_logged = 0.0
        self._attempts: Attempts[int] = Attempts("blob", records, rights, circuits, clock)
        self._access = BlobRights(records, rights, self._attempts, self._origin, self._size_here, clock)
        self._fills = Fills(
            upstreams, store, records, rights, self._attempts, self._access, clock, tell, worker, self._region
        )

    async def open(
        self, ask: Ask, digest: Digest, range_header: str | None, lasting: Lasting | None = None
    ) -> BlobAnswer:
        """The blob for `ask`, from the cache or by a fill that begins where `range_header` does.

        `lasting`: the right of `ask` to what is here, where it was looked up before and holds.

        Raises UpstreamError, or Uncacheable where the blob is to be streamed past the cache.
        """
        try:
            # Another process may have stored it meanwhile.
            if self._worker is not None or self._store.holds(digest):
                stored = await self._open_stored(ask, digest)
                if stored is not None and (answer := await self._present(ask, digest, stored, lasting)) is not None:
                    return answer
            self._fills.raise_if_troubled(digest)
            if starts_past_zero(range_header):
                await self._fills.raise_if_wrong(ask, digest)
            _, reader, verdict = await self._join(ask, digest, first_position(range_header))
            return BlobAnswer(reader, verdict)
        except Uncacheable as error:
            self._log_trouble(error)
            raise

    async def _present(
        self, ask: Ask, digest: Digest, stored: StoredBlob, lasting: Lasting | None
    ) -> BlobAnswer | None:
        """What is stored, for `ask`; None where it turns out to be damaged, and is stored no more."""
        try:
            right = await self._access.ensure(ask, digest) if lasting is None else self._access.lasts(lasting)
            body = None
            if stored.size > _SMALL:
                return BlobAnswer(Present(stored), right.verdict, right.lasting)
            with contextlib.suppress(OSError):
                body = await asyncio.to_thread(whole, stored, digest)
            if body is not None:
                return BlobAnswer(Present(stored), right.verdict, right.lasting, body)
        except BaseException:
            stored.close()
            raise
        stored.close()
        _log.warning("the blob %s is damaged, and fetched again", digest)
        if not await self._store.remove(digest, "digest"):
            raise Uncacheable(f"{digest} is damaged, and being read")
        return None

    async def redirect(self, ask: Ask, digest: Digest) -> tuple[str, Verdict] | None:
        """Where `ask` can have the blob straight from the object store; None where it is better given from here.

        The address is a credential for this blob, for a while. Raises UpstreamError where `ask` has no right to it.
        """
        address = await self._region.address(digest, _SMALL)
        return None if address is None else (address, (await self._access.ensure(ask, digest)).verdict)

    async def head(self, ask: Ask, digest: Digest, from_records: bool) -> BlobHead:
        """What is known of the blob, without a fill. `from_records`: what was recorded is enough, present or not."""
        if from_records:
            # Its bytes would come from the upstream, which has them no more.
            ask = replace(ask, lifetimes=replace(ask.lifetimes, serve_deleted=False))
        found = await self._access.known(ask, digest)
        member = found.member
        if member is None or member.size == UNKNOWN_SIZE or not (from_records or self._is_here(digest)):
            return BlobHead(await self._access.vouch(ask, digest, False), Verdict(CacheState.MISS, 0.0))
        right = await self._access.of_member(ask, digest, found, member)
        return BlobHead(member.size if right.size is None else right.size, right.verdict, right.lasting)

    def uses(self, ask: Ask, digest: Digest) -> Callable[[str], None]:
        """What is to be called whenever somebody is given the blob without `open`: it is used by that, too."""
        user, used = user_of(ask), self._store.used
        return lambda _client: used(digest, user)

    async def purge(self, digest: Digest) -> Dropped:
        """Take the finished blob away, where nobody reads it. Raises StorageError.

        Out of every process' memory it goes in any case, and out of every replica where there are several.
        """
        dropped = [await self.drop(digest), *await self._region.purge(digest)]
        return next((what for what in (Dropped.READ, Dropped.GONE) if what in dropped), Dropped.NONE)

    async def drop(self, digest: Digest) -> Dropped:
        """Take the finished blob away from this replica, and from the object store. Raises StorageError."""
        try:
            removed = await self._store.remove(digest, "purge")
            if (stored := await self._store.open(digest)) is not None:
                stored.close()
                return Dropped.READ
            return Dropped.GONE if removed else Dropped.NONE
        finally:
            await self._records.delete(stored_key(digest))
            await self._region.lost(digest)

    async def for_replica(self, digest: Digest, source: bytes | None) -> BlobSource | None:
        """The blob, or what some process here is filling of it from `source`, for another replica; None for neither.

        Who only looks for one that has it gives no source: two that fill it would else read from each other.

        Raises UpstreamError or Uncacheable where the fill that it was to come from has failed.
        """
        with contextlib.suppress(StorageError):
            if (stored := await self._store.open(digest)) is not None:
                return Present(stored)
        fill = self._fills.for_replica(digest, source) if source is not None else None
        if fill is None:
            return None
        reader = fill.join(fill.ask)
        try:
            await reader.confirmed()
        except BaseException:
            await reader.close()
            raise
        return reader

    @asynccontextmanager
    async def past(self, ask: Ask, digest: Digest, range_header: str | None, follow: bool) -> AsyncIterator[Reply]:
        """The upstream's own answer, past the cache; with `follow` False a redirect elsewhere is given back.

        It is a proof and a membership like any other. Raises UpstreamError.
        """
        generation = await self._attempts.generation(ask)
        ended = self._attempts.begin(ask, digest, generation)
        try:
            async with self._origin.pass_through(ask, digest, range_header, follow) as reply:
                self._attempts.succeeded(ask, digest)
                if reply.location is None and not is_page(reply):
                    # An address that nobody has looked at says nothing, nor does a page to log in at.
                    size = reply.content_length if reply.status == 200 else None
                    await self._rights.grant(ask, digest, "", UNKNOWN_SIZE if size is None else size, generation)
                yield reply
        except UpstreamError as error:
            await self._attempts.failed(ask, digest, error, generation)
            raise
        finally:
            ended()

    async def bring(self, ask: Ask, digest: Digest, speed: Speed | None) -> Brought:
        """Have the blob in the store for `ask`, without reading it, and wait until it is there.

        A fill that begins here keeps to `speed` (None: to none) as long as nobody reads it, or brings it without one.
        The last one to be cancelled ends such a fill; what has arrived stays to be gone on with. Raises UpstreamError,
        or Uncacheable where the blob cannot be kept.
        """
        while True:
            stored = await self._open_stored(ask, digest)
            if stored is not None:
                stored.close()
                await self._access.ensure(ask, digest)
                return Brought(stored.size, here=True)
            self._fills.raise_if_troubled(digest)
            try:
                fill, reader, _ = await self._join(ask, digest, 0, speed, brings=True)
                try:
                    await self._fills.over(fill)
                finally:
                    await reader.close()
            except asyncio.CancelledError:
                self._fills.abandon(digest)
                raise
            if isinstance(fill.error, UpstreamError) and fill.ask.rights != ask.rights:
                # Somebody else's failure.
                continue
            if fill.error is not None:
                raise fill.error.with_traceback(None)
            stored = await self._open_stored(ask, digest)
            if stored is None:
                raise Uncacheable(f"{digest} could not be kept")
            stored.close()
            return Brought(stored.size, here=False)

    async def damaged(self, digest: Digest) -> None:
        """The finished blob could not be read: let it go, so that the next request has it anew."""
        with contextlib.suppress(StorageError):
            await self._store.remove(digest, "digest")

    @property
    def fills(self) -> list[Fill]:
        """What is under way."""
        return self._fills.running

    async def close(self) -> None:
        """End all fills and wait for them; those that only have to be put in place are let finish."""
        await self._fills.close()
        await self._attempts.close()

    # Fills.

    async def _join(
        self, ask: Ask, digest: Digest, start: int, speed: Speed | None = None, brings: bool = False
    ) -> tuple[Fill, FillReader, Verdict]:
        """A reader of the fill, one that runs or a new one; see `bring` for `speed` and for what it `brings`."""
        generation = await self._attempts.generation(ask)
        while True:
            fill = self._fills.of(digest)
            own = fill is None or not fill.joinable
            if fill is not None and not own and fill.source != self._upstreams[ask.repository.registry].source:
                raise OtherSource(f"{digest} is on its way from elsewhere")
            if fill is None or own:
                fill = self._fills.start(ask, digest, start, generation, speed)
                fill.for_readers = not brings
            # Who keeps to no speed has not asked for that of another's job either.
            reader = fill.join(ask, reads=not brings or speed is None)
            verdict = Verdict(CacheState.MISS if own else CacheState.JOINED, 0.0)
            try:
                right: Right | None = None
                if ask.rights != fill.ask.rights:
                    # Meanwhile: those who may not have it are nobody's to wait for.
                    right = await self._access.ensure(ask, digest)
                    fill.vouched(reader)
                await reader.confirmed()
                if right is None and (not own or ask.rights not in fill.granted):
                    right = await self._access.ensure(ask, digest)
                verdict = right.verdict if right is not None and fill.present else verdict
            except BaseException as error:
                await reader.close()
                # Another principal's or repository's failure says nothing about this one: begin anew.
                if error is fill.error and isinstance(error, UpstreamError) and fill.ask.rights != ask.rights:
                    continue
                raise
            return fill, reader, verdict

    async def _open_stored(self, ask: Ask, digest: Digest) -> StoredBlob | None:
        try:
            return await self._store.open(digest, user_of(ask))
        except StorageError as error:
            raise Uncacheable(str(error)) from error

    async def _size_here(self, ask: Ask, digest: Digest) -> int | None:
        stored = await self._open_stored(ask, digest)
        if stored is None:
            return None
        stored.close()
        return stored.size

    def _log_trouble(self, error: Uncacheable) -> None:
        now = self._clock()
        if not isinstance(error, OtherSource) and abs(now - self._last_logged) >= _LOG_INTERVAL:
            self._last_logged = now
            _log.error("a blob is streamed past the cache: %s", error)

    def _is_here(self, digest: Digest) -> bool:
        return self._fills.of(digest) is not None or self._store.holds(digest)
