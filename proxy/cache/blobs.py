"""Blobs: present, filling or absent; and who may be given them (DESIGN, sections 5 and 6).

Invariants:
- There is at most one fill for a digest in a process (`_fills`); its task is owned here and ended by `close`.
- A principal is served only with a proof for its repository and the blob's membership there, however the bytes came.
- Trouble with the cache turns a request into a stream past it (`Uncacheable`), never into the client's error.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from proxy.cache.ask import Ask, Clock, Records, Rights, user_of
from proxy.cache.attempts import Attempts
from proxy.cache.blob_origin import BlobOrigin, is_page, ranges_of
from proxy.cache.bodies import BlobAnswer, Brought, Present
from proxy.cache.circuits import Circuits
from proxy.cache.download import Uncacheable
from proxy.cache.fill import Fill
from proxy.cache.known import member_for
from proxy.cache.means import LeftBehindWrong, Means, OtherSource
from proxy.cache.missing import KnownMissing
from proxy.cache.readers import FillReader
from proxy.cache.records import (
    UNKNOWN_SIZE,
    MemberRecord,
    dump_time,
    load_time,
    member_key,
    proof_key,
    wrong_key,
)
from proxy.cache.speed import Speed
from proxy.cache.standing import Standing
from proxy.oci.digest import Digest
from proxy.oci.ranges import first_position, starts_past_zero
from proxy.policy.freshness import CacheState, Freshness, Verdict, deleted
from proxy.storage.base import BlobStore, StorageError, StoredBlob
from proxy.telemetry.events import Tell
from proxy.upstream.client import Reply, Upstream
from proxy.upstream.errors import (
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamMissing,
    UpstreamRefused,
    WrongDigest,
)

# No `negative_ttl` in use is longer; what is older is dropped.
_LONGEST_WRONG = 86400.0
_LOG_INTERVAL = 60.0
# For so long, in seconds, a blob that could not be kept is not tried to be kept again.
_TROUBLED = 10.0

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
    ) -> None:
        """`worker`: this process's number among those that share the store; None where there is no other."""
        self._upstreams = upstreams
        self._origin = BlobOrigin(upstreams)
        self._store = store
        self._records = records
        self._rights = rights
        self._clock = clock
        self._tell = tell
        self._fills: dict[Digest, Fill] = {}
        self._tasks: dict[asyncio.Task[None], Fill] = {}
        self._wrong: dict[tuple[str, Digest], float] = {}
        self._worker = worker
        self._last_logged = 0.0
        self._troubled: dict[Digest, float] = {}
        self._attempts: Attempts[int] = Attempts("blob", records, rights, circuits, clock)

    async def open(self, ask: Ask, digest: Digest, range_header: str | None) -> BlobAnswer:
        """The blob for `ask`, from the cache or by a fill that begins where `range_header` does.

        Raises UpstreamError, or Uncacheable where the blob is to be streamed past the cache.
        """
        try:
            # Another process may have stored it meanwhile.
            if self._worker is not None or self._store.holds(digest):
                stored = await self._open_stored(ask, digest)
                if stored is not None:
                    return await self._present(ask, digest, stored)
            self._raise_if_troubled(digest)
            if starts_past_zero(range_header):
                await self._raise_if_wrong(ask, digest)
            _, reader, verdict = await self._join(ask, digest, first_position(range_header))
            return BlobAnswer(reader, verdict)
        except Uncacheable as error:
            self._log_trouble(error)
            raise

    async def _present(self, ask: Ask, digest: Digest, stored: StoredBlob) -> BlobAnswer:
        try:
            return BlobAnswer(Present(stored), await self._ensure_right(ask, digest))
        except BaseException:
            stored.close()
            raise

    async def head(self, ask: Ask, digest: Digest, from_records: bool) -> tuple[int, Verdict]:
        """The blob's size, without a fill. `from_records`: what was recorded of it is enough, present or not."""
        if from_records:
            # Its bytes would come from the upstream, which has them no more.
            ask = replace(ask, lifetimes=replace(ask.lifetimes, serve_deleted=False))
        standing, member = await self._standing(ask, digest)
        known = member is not None and member.size != UNKNOWN_SIZE and (from_records or self._is_here(digest))
        if not known or member is None:
            return await self._vouch(ask, digest, False), Verdict(CacheState.MISS, 0.0)
        size, verdict = await self._right(ask, digest, standing, member)
        return member.size if size is None else size, verdict

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
                await (await self._present(ask, digest, stored)).source.close()
                return Brought(stored.size, here=True)
            self._raise_if_troubled(digest)
            try:
                fill, reader, _ = await self._join(ask, digest, 0, speed, brings=True)
                try:
                    await self._over(fill)
                finally:
                    await reader.close()
            except asyncio.CancelledError:
                self._abandon(digest)
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
        return [fill for fill in self._tasks.values() if not fill.over]

    async def close(self) -> None:
        """End all fills and wait for them; those that only have to be put in place are let finish."""
        for task, fill in self._tasks.items():
            if not fill.verified:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._attempts.close()

    # Fills.

    async def _join(
        self, ask: Ask, digest: Digest, start: int, speed: Speed | None = None, brings: bool = False
    ) -> tuple[Fill, FillReader, Verdict]:
        """A reader of the fill, one that runs or a new one; see `bring` for `speed` and for what it `brings`."""
        generation = await self._attempts.generation(ask)
        while True:
            fill = self._fills.get(digest)
            own = fill is None or not fill.joinable
            if fill is not None and not own and fill.source != self._upstreams[ask.repository.registry].source:
                raise OtherSource(f"{digest} is on its way from elsewhere")
            if fill is None or own:
                fill = self._start_fill(ask, digest, start, generation, speed)
                fill.for_readers = not brings
            # Who keeps to no speed has not asked for that of another's job either.
            reader = fill.join(ask, reads=not brings or speed is None)
            verdict = Verdict(CacheState.MISS if own else CacheState.JOINED, 0.0)
            try:
                right: Verdict | None = None
                if ask.rights != fill.ask.rights:
                    # Meanwhile: those who may not have it are nobody's to wait for.
                    right = await self._ensure_right(ask, digest)
                    fill.vouched(reader)
                await reader.confirmed()
                if right is None and (not own or ask.rights not in fill.granted):
                    right = await self._ensure_right(ask, digest)
                verdict = right if right is not None and fill.present else verdict
            except BaseException as error:
                await reader.close()
                # Another principal's or repository's failure says nothing about this one: begin anew.
                if error is fill.error and isinstance(error, UpstreamError) and fill.ask.rights != ask.rights:
                    continue
                raise
            return fill, reader, verdict

    def _start_fill(self, ask: Ask, digest: Digest, start: int, generation: bytes | None, speed: Speed | None) -> Fill:
        ended = self._attempts.begin(ask, digest, generation)
        upstream = self._upstreams[ask.repository.registry]

        async def granted(asked: Ask, media_type: str, size: int) -> None:
            self._attempts.succeeded(asked, digest)
            await self._rights.grant(asked, digest, media_type, size, generation)

        async def refused(asked: Ask, error: UpstreamRefused | UpstreamMissing) -> None:
            await self._attempts.failed(asked, digest, error, generation)

        async def failed(asked: Ask, error: UpstreamError) -> None:
            if isinstance(error, WrongDigest):
                await self._remember_wrong(ask, digest)
                for one in fill.granted.values():
                    await self._rights.withdraw(one, digest)
            of_the_client = isinstance(error, UpstreamRefused | UpstreamMissing)
            if not of_the_client and not isinstance(error, LeftBehindWrong):
                await self._attempts.failed(asked, digest, error, generation)
            # Clients choose what they ask for, and whoever asks for what is not theirs is to fill no log.
            level = logging.DEBUG if of_the_client else logging.WARNING
            _log.log(level, "fill of %s from %s failed: %s", digest, ask.repository, error)

        means = Means(
            self._store, upstream.slots, upstream.parallel, ranges_of(digest, upstream), granted, refused, failed,
            self._tell, upstream.source, self._worker or 0, self._worker is not None, speed,
        )  # fmt: skip
        fill = self._fills[digest] = Fill(digest, ask, start, means)
        task = asyncio.get_running_loop().create_task(self._run_fill(fill), name=f"fill {digest}")
        self._tasks[task] = fill
        task.add_done_callback(self._tasks.pop)
        task.add_done_callback(lambda _: ended())
        return fill

    async def _over(self, fill: Fill) -> None:
        if tasks := [task for task, one in self._tasks.items() if one is fill]:
            await asyncio.wait(tasks)

    def _abandon(self, digest: Digest) -> None:
        """End the fill that began for no reader if nobody has it. Its task is awaited by `close`, like all of them."""
        fill = self._fills.get(digest)
        if fill is None or fill.for_readers or fill.progress[1] or fill.verified:
            return
        fill.joinable = False
        for task, one in self._tasks.items():
            if one is fill:
                task.cancel()

    async def _run_fill(self, fill: Fill) -> None:
        try:
            await fill.run()
            if isinstance(fill.error, Uncacheable) and not isinstance(fill.error, OtherSource):
                self._troubled = {key: at for key, at in self._troubled.items() if self._is_recent(at)}
                self._troubled[fill.digest] = self._clock()
        finally:
            if self._fills.get(fill.digest) is fill:
                del self._fills[fill.digest]

    def _is_recent(self, at: float) -> bool:
        return abs(self._clock() - at) < _TROUBLED

    def _raise_if_troubled(self, digest: Digest) -> None:
        """A blob that could not be kept a moment ago is streamed at once: its client gets one body, not a cut one."""
        if self._is_recent(self._troubled.get(digest, -_TROUBLED)):
            raise Uncacheable(f"{digest} could not be kept a moment ago")

    async def _remember_wrong(self, ask: Ask, digest: Digest) -> None:
        now, registry = self._clock(), ask.repository.registry
        self._wrong = {key: at for key, at in self._wrong.items() if abs(now - at) < _LONGEST_WRONG}
        self._wrong[registry, digest] = now
        await self._records.put({wrong_key(registry, digest): dump_time(now)}, _LONGEST_WRONG)

    async def _raise_if_wrong(self, ask: Ask, digest: Digest) -> None:
        """A client whose body was cut for its digest comes back for the rest: it must not begin the next round."""
        registry, now = ask.repository.registry, self._clock()
        at = self._wrong.get((registry, digest))
        if at is None and self._worker is not None:
            at = load_time((await self._records.get(wrong_key(registry, digest)))[0])
        if at is not None and abs(now - at) < ask.lifetimes.negative_ttl:
            raise WrongDigest(f"{ask.repository} {digest} had other bytes a moment ago; ask for all of it")

    async def _open_stored(self, ask: Ask, digest: Digest) -> StoredBlob | None:
        try:
            return await self._store.open(digest, user_of(ask))
        except StorageError as error:
            raise Uncacheable(str(error)) from error

    def _log_trouble(self, error: Uncacheable) -> None:
        now = self._clock()
        if not isinstance(error, OtherSource) and abs(now - self._last_logged) >= _LOG_INTERVAL:
            self._last_logged = now
            _log.error("a blob is streamed past the cache: %s", error)

    def _is_here(self, digest: Digest) -> bool:
        return digest in self._fills or self._store.holds(digest)

    # Rights.

    async def _standing(self, ask: Ask, digest: Digest) -> tuple[Standing, MemberRecord | None]:
        raw_proof, raw_member = await self._records.get(
            proof_key(ask.principal, ask.repository), member_key(ask.repository, digest)
        )
        member = member_for(ask, raw_member)
        return Standing(self._rights.proof(ask, raw_proof), member.gone if member is not None else None), member

    async def _ensure_right(self, ask: Ask, digest: Digest) -> Verdict:
        """Make sure `ask` may have a blob that is here, asking the upstream by HEAD where that is not known.

        Raises UpstreamError.
        """
        standing, member = await self._standing(ask, digest)
        if member is None:
            await self._vouch(ask, digest, False)
            return Verdict(CacheState.REVALIDATED, 0.0)
        _, verdict = await self._right(ask, digest, standing, member)
        return verdict

    async def _right(
        self, ask: Ask, digest: Digest, standing: Standing, member: MemberRecord
    ) -> tuple[int | None, Verdict]:
        """The verdict on a member, and its size where the upstream was asked. Raises UpstreamError."""
        now = self._clock()
        if standing.freshness(ask, now) is Freshness.FRESH and standing.counts(ask, now):
            return None, self._hit(member)
        usable = standing.counts_in_outage(ask, now)
        try:
            return await self._vouch(ask, digest, usable), Verdict(CacheState.REVALIDATED, 0.0)
        except UpstreamMissing as error:
            if not standing.counts_when_deleted(ask, now):
                raise
            age = max(0.0, self._clock() - member.at)
            return None, deleted("this blob", age, None, not isinstance(error, KnownMissing))
        except UpstreamFailure:
            if not usable:
                raise
            if ask.lifetimes.offline:
                await self._rights.keep_on(ask, member_key(ask.repository, digest))
            return None, self._hit(member)

    def _hit(self, member: MemberRecord) -> Verdict:
        age = max(0.0, self._clock() - member.at)
        return Verdict(CacheState.HIT, age) if member.gone is None else deleted("this blob", age, None, False)

    async def _vouch(self, ask: Ask, digest: Digest, usable: bool) -> int:
        """The upstream's word that the blob is in this repository, and its size; shared by all who want it."""
        key = (ask.principal.key, ask.repository, digest)
        size, _ = await self._attempts.run(ask, digest, key, lambda: self._ask_head(ask, digest), usable)
        return size

    async def _ask_head(self, ask: Ask, digest: Digest) -> int:
        generation = await self._attempts.generation(ask)
        size = await self._origin.size(ask, digest)
        if (stored := await self._open_stored(ask, digest)) is not None:
            here = stored.size
            stored.close()
            if size != here:
                # Whatever it speaks of, it is not this blob.
                raise UpstreamInvalid(f"{ask.repository} {digest} has {size} bytes there and {here} here")
        await self._rights.grant(ask, digest, "", size, generation)
        return size
