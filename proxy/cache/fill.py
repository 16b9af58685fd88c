"""A fill: one blob on its way into the store, and any number of readers of it.

Invariants (DESIGN, section 5):
1. Nothing is published under a digest before all its bytes have been hashed to it.
2. Readers never drive or harm a fill. The client that caused it is a reader like the rest; readers come, stop early,
   stall and leave; the fill goes on.
3. A fill is of one source, which is a registry and its url. Within one machine no byte is asked of that twice while
   the fill lives: of all processes only the one that has the digest's claim downloads, the others read what its map
   says and tell it what their readers wait for. Readers of another source are streamed past the cache meanwhile
   (`OtherSource`): until they are hashed, one source's bytes are nothing to show to those who asked another.
4. A reader at any offset gets its head once the upstream, or a living fill, has confirmed the blob and its length,
   and its bytes as soon as they are there; where it waits is downloaded next (`plan`, `download`).
5. A body that began at offset 0 never completes before the hash is right: its last byte is held back until then; later
   ones are delivered as bytes arrive. On a mismatch every open body is cut short and the file is thrown away.
6. An upstream that breaks off is gone on with at the missing byte (`download`).
7. A process may die at any moment: what its map says stays, and whoever claims the digest next goes on from there. A
   mismatch on bytes that another run left is nobody's mistake: the next request begins afresh.
8. Cache trouble (`Uncacheable`) turns a request into a stream passed through.
9. The loop never waits for the disk or for hashing, and memory does not grow with the blob or its readers: they read
   from the file, and the hash follows the front through the file as well.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack

from proxy.cache.ask import Ask, user_of
from proxy.cache.download import Download, Uncacheable
from proxy.cache.hashing import hash_front, unless_hashing_fails
from proxy.cache.means import LeftBehindWrong, Means, OtherSource
from proxy.cache.place import Place
from proxy.cache.region import Wanted
from proxy.cache.shown import Shown
from proxy.cache.speed import Brake
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.storage.base import PartialBlob, StorageError, User
from proxy.storage.claims import named_claim
from proxy.storage.fillmap import BadMap, FillState
from proxy.telemetry.events import DigestMismatch, FillEnded, FillStarted
from proxy.upstream.errors import (
    UpstreamError,
    UpstreamFailure,
    UpstreamInvalid,
    UpstreamMissing,
    UpstreamRefused,
    WrongDigest,
)

_log = logging.getLogger("pullthrough.cache")

# How often another process's fill is looked at, in seconds.
_POLL = 0.02
_TRIES = 20


class Fill(Shown):
    """One blob on its way into the store. `run` is its task; everybody else only watches."""

    def __init__(self, digest: Digest, ask: Ask, start: int, means: Means) -> None:
        super().__init__(digest, ask)
        # Claimed before the digest: of all processes one for each source tries to fill it.
        self._turn = named_claim(means.source + str(digest).encode())
        # A client caused it, so that it goes on when everybody has left.
        self.for_readers = True
        # The blob was in the store already, put there by another process.
        self.present = False
        # Only to be read while another process fills it: a further replica asks, which says nothing of rights.
        self.follows = False
        # Whom the upstream has answered with the blob, by their rights.
        self.granted: dict[tuple[Repository, str], Ask] = {}
        self._failed_ask = ask
        self._start = start
        self._means = means
        self.brake = Brake(means.speed, lambda: self._readers.reading > 0 or any(True for _ in self.waiting()))
        # Bytes of it may be an earlier run's, or another replica's.
        self._inherited = False
        self._failures = 0
        self._more = asyncio.Event()
        self._place: Place = means.upstream

    @property
    def source(self) -> bytes:
        """See `Means`."""
        return self._means.source

    # The life of a fill.

    async def run(self) -> None:
        """Download, hash, publish, or follow another process that does.

        Never raises what concerns this blob only: that goes to those who wait and read.
        """
        means = self._means
        try:
            while not means.store.claim(self._turn):
                if await self._followed():
                    return
            try:
                await self._fill_in_turn()
            finally:
                means.store.release(self._turn)
        except UpstreamError as error:
            await means.failed(self._failed_ask, error)
            self._fail(error)
        except Uncacheable as error:
            self._fail(error)
        except (StorageError, OSError, BadMap) as error:
            self._fail(Uncacheable(str(error)))
        except Exception as error:  # noqa: BLE001 - whoever waits must be told, whatever it is
            _log.error("fill of %s from %s failed", self.digest, self.ask.repository, exc_info=error)
            self._fail(UpstreamInvalid(f"{self.ask.repository} {self.digest} could not be filled"))
        except asyncio.CancelledError:
            self._fail(Uncacheable("the proxy is shutting down"))
            raise
        finally:
            self.over, self.joinable = True, False
            self._let_go()

    async def _fill_in_turn(self) -> None:
        """With the claim of this source: whoever has the digest's meanwhile fills it from elsewhere."""
        tries = 0
        while not self._means.store.claim(self.digest):
            # Whoever makes room claims what was left behind, for a moment.
            if (tries := tries + 1) > _TRIES:
                raise OtherSource(f"{self.digest} is on its way from elsewhere")
            await asyncio.sleep(_POLL)
        try:
            await self._fill()
        finally:
            self._means.store.release(self.digest)

    async def _fill(self) -> None:
        """With the claim: nobody else fills this digest now."""
        self._stored = await self._means.store.open(self.digest, self._user)
        if self._stored is not None:
            self.present = self._partial is None
            self._confirm(self._stored.size, self._stored.file)
            self._verified()
            return
        if self._partial is not None and self._partial.map.state is not FillState.FILLING:
            self._partial_ended(self._partial.map.state)
            return
        registry = self.ask.repository.registry
        if self.follows:
            raise UpstreamMissing(f"nobody fills {self.digest} here")
        self._means.tell(FillStarted(registry))
        try:
            await self._bring()
        except UpstreamFailure:
            # What this one's principal is refused says nothing about the readers of other processes.
            if self._partial is not None:
                self._partial.map.give_up()
            raise
        finally:
            self._means.tell(FillEnded(registry))

    async def _bring(self) -> None:
        means = self._means
        if self._partial is None:
            self._partial = await means.store.attach(self.digest)
            if self._partial is not None and self._partial.map.source != means.source:
                # Left behind by a fill from elsewhere: what that sent is nothing to show to anybody here.
                await self._partial.discard()
                self._partial.close()
                self._partial = None
        self._inherited = self._partial is not None and self._partial.map.arrived > 0
        hashing = asyncio.get_running_loop().create_task(self._hash(), name=f"hash of {self.digest}")
        try:
            async with AsyncExitStack() as leased:
                if self._partial is not None and self._partial.map.gap(0) is None:
                    self._confirm(self._partial.size, self._partial.file)
                else:
                    await unless_hashing_fails(self._download_from_places(leased), hashing)
                await self._finish(await hashing)
        finally:
            self._look = None
            hashing.cancel()
            await asyncio.gather(hashing, return_exceptions=True)

    async def _download_from_places(self, leased: AsyncExitStack) -> None:
        means = self._means
        wanted = Wanted(self.digest, means.source, means.upstream, lambda: means.ensure(self.ask))
        places = means.region.places(wanted, leased)
        while self._partial is None or self._partial.map.gap(0) is not None:
            place = self._place = await places.next()
            self._inherited |= not place.vouches
            download = Download(self.digest, self, place, means.tell)
            self._look = download.look
            try:
                await download.run(self._partial, self._start)
            except UpstreamError as error:
                if place.vouches:
                    raise
                # What has come stays, and the next place goes on with it.
                _log.debug("%s does not come from the %s any more: %s", self.digest, place.kind, error)

    async def _finish(self, hashed: str) -> None:
        partial = self._partial
        assert partial is not None  # noqa: S101 - it was hashed
        if hashed != self.digest.hex:
            self._spoilt = True
            await partial.discard()
            if self._inherited:
                self._means.region.distrust(self.digest)
                raise LeftBehindWrong(f"what an earlier run, or another replica, had of {self.digest} was wrong")
            raise self._wrong()
        self._verified()
        try:
            await partial.publish()
            await self._means.region.stored(self.digest)
            self._stored = await self._means.store.open(self.digest, self._user)
        except StorageError as error:
            # Every byte is here and right: only keeping it failed, which no reader needs to know.
            _log.warning("blob %s is not kept: %s", self.digest, error)
            # Other processes' readers need not know either.
            partial.map.state = FillState.VERIFIED
            await partial.discard()

    def _wrong(self) -> WrongDigest:
        self._means.tell(DigestMismatch(self.ask.repository.registry))
        return WrongDigest(f"{self.ask.repository} {self.digest}: the blob's bytes have another digest")

    async def _hash(self) -> str:
        await asyncio.shield(self._confirmed)
        partial = self._partial
        assert partial is not None  # noqa: S101 - it was confirmed
        return await hash_front(self.digest.hasher(), partial, self._more)

    async def _followed(self) -> bool:
        """Look at what another process does with this blob; True once there is nothing more to follow."""
        means = self._means
        store, worker = means.store, means.worker
        if self._partial is None:
            self._partial = await store.attach(self.digest)
            if self._partial is not None and self._partial.map.source != means.source:
                # Left behind by a fill from elsewhere, or has just begun and says in a moment where from.
                self._partial.close()
                self._partial = None
            if self._partial is not None:
                self._failures = self._partial.map.failures
                self._confirm(self._partial.size, self._partial.file)
        if (partial := self._partial) is not None:
            if partial.map.state is not FillState.FILLING:
                self._partial_ended(partial.map.state)
                return True
            if partial.map.failures != self._failures:
                self._fail(UpstreamFailure("5xx", f"{self.ask.repository.registry} broke {self.digest} off"))
                return True
            partial.map.demand(worker, self._readers.positions)
            self._readers.wake()
        if not self._readers:
            return True
        await asyncio.sleep(_POLL)
        return False

    def _partial_ended(self, state: FillState) -> None:
        """Another process has ended the fill that this one has open."""
        if state is FillState.VERIFIED:
            self._verified()
        else:
            self._spoilt = True
            self._fail(UpstreamInvalid(f"{self.ask.repository} {self.digest}: another process gave its file up"))

    # What the download asks of it (`filling.Filling`).

    def lender(self, refused: set[object]) -> Ask | None:
        """See `Filling.lender`: the one that caused the fill, else any reader that the upstream has vouched for.

        All of them ask the same source, so nobody's credentials go to another one.
        """
        return next((ask for ask in (self.ask, *self._readers.lenders) if ask.rights not in refused), None)

    async def refused(self, ask: Ask, error: UpstreamRefused | UpstreamMissing) -> None:
        """See `Filling.refused`."""
        if self._place.vouches:
            await self._means.refused(ask, error)

    def waiting(self) -> Iterator[int]:
        """See `Filling.waiting`: this process's readers, then those of others."""
        yield from self._readers.positions
        if self._means.shared and self._partial is not None:
            yield from self._partial.map.demanded()

    async def found(self, ask: Ask, media_type: str, size: int) -> PartialBlob:
        """See `Filling.found`. Raises NoRoom, StorageError or UpstreamInvalid."""
        if self._place.vouches:
            await self._means.granted(ask, media_type, size)
            self.granted[ask.rights] = ask
        if self._partial is not None and self._partial.size != size:
            if self._confirmed.done():
                raise UpstreamInvalid(f"{ask.repository.registry} changed the length of {self.digest}")
            # An earlier run was told another length: that was of no use.
            await self._partial.discard()
            self._partial.close()
            self._partial, self._inherited = None, False
        if size == 0 and not self.digest.matches(b""):
            # There is no last byte that could be held back.
            raise self._wrong()
        if self._partial is None:
            self._partial = await self._means.store.begin(self.digest, size, self._user)
            self._partial.map.source = self._means.source
        self._confirm(size, self._partial.file)
        return self._partial

    def advanced(self, count: int) -> None:
        """See `Filling.advanced`."""
        self._more.set()
        self._readers.advanced(count)

    def failing(self, ask: Ask | None) -> None:
        """See `Filling.failing`."""
        if self._place.vouches:
            self.joinable = False
            self._failed_ask = ask or self.ask

    @property
    def _user(self) -> User:
        return user_of(self.ask)
