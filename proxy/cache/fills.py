"""The fills of one process: begun, found, and ended.

Invariants:
- There is at most one fill for a digest that anybody may join. Its task is owned here, and ended by `close`.
- What a fill has found out of its upstream is told before anybody who waits is woken: rights by those that it answered,
  wrong bytes for all processes, trouble with keeping it for this one.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.attempts import Attempts
from proxy.cache.blob_origin import failing_place, upstream_place
from proxy.cache.blob_rights import BlobRights
from proxy.cache.download import Uncacheable
from proxy.cache.fill import Fill
from proxy.cache.means import LeftBehindWrong, Means, OtherSource
from proxy.cache.records import dump_time, load_time, wrong_key
from proxy.cache.region import Region
from proxy.cache.speed import Speed
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings
from proxy.storage.base import BlobStore
from proxy.telemetry.events import Tell
from proxy.upstream.client import Upstream
from proxy.upstream.errors import (
    LeftAlone,
    UpstreamError,
    UpstreamFailure,
    UpstreamMissing,
    UpstreamRefused,
    WrongDigest,
)

# No `negative_ttl` in use is longer; what is older is dropped.
_LONGEST_WRONG = 86400.0
# For so long, in seconds, a blob that could not be kept is not tried to be kept again.
_TROUBLED = 10.0

_log = logging.getLogger("pullthrough.cache")


class Fills:
    """See above. `worker` and `region` as for `Blobs`."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        store: BlobStore,
        records: Records,
        rights: Rights,
        attempts: Attempts[int],
        access: BlobRights,
        clock: Clock,
        tell: Tell,
        worker: int | None,
        region: Region,
    ) -> None:
        self._upstreams = upstreams
        self._store = store
        self._records = records
        self._rights = rights
        self._attempts = attempts
        self._access = access
        self._clock = clock
        self._tell = tell
        self._worker = worker
        self._region = region
        self._fills: dict[Digest, Fill] = {}
        self._tasks: dict[asyncio.Task[None], Fill] = {}
        self._wrong: dict[tuple[str, Digest], float] = {}
        self._troubled: dict[Digest, float] = {}

    def of(self, digest: Digest) -> Fill | None:
        """The fill of `digest`, which may be one that nobody is to join any more."""
        return self._fills.get(digest)

    @property
    def running(self) -> list[Fill]:
        """What is under way."""
        return [fill for fill in self._tasks.values() if not fill.over]

    async def close(self) -> None:
        """End all fills and wait for them; those that only have to be put in place are let finish."""
        for task, fill in self._tasks.items():
            if not fill.verified:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, ask: Ask, digest: Digest, start: int, generation: bytes | None, speed: Speed | None) -> Fill:
        """Begin to fill `digest` with the rights of `ask`, at `start`; the attempt is of `generation`."""
        upstream = self._upstreams[ask.repository.registry]
        place, ended = upstream_place(digest, upstream), _nothing
        try:
            ended = self._attempts.begin(ask, digest, generation)
        except UpstreamFailure as error:
            if not self._region.is_shared:
                raise
            # The region may have it all the same.
            place = failing_place(place, error)

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
            level = logging.DEBUG if of_the_client or isinstance(error, LeftAlone) else logging.WARNING
            _log.log(level, "fill of %s from %s failed: %s", digest, ask.repository, error)

        means = Means(
            self._store, place, self._region, partial(self._access.ensure, digest=digest),
            granted, refused, failed, self._tell, upstream.source, self._worker or 0, self._worker is not None, speed,
        )  # fmt: skip
        fill = self._begin(Fill(digest, ask, start, means))
        self._of(fill).add_done_callback(lambda _: ended())
        return fill

    def for_replica(self, digest: Digest, source: bytes) -> Fill | None:
        """The fill of `digest` from `source`, of whatever process here; None where none can be.

        One of another process is followed as long as it goes on, and ends with it.
        """
        fill = self._fills.get(digest)
        if fill is not None and fill.joinable:
            return fill if fill.source == source else None
        registry = next((name for name, one in self._upstreams.items() if one.source == source), None)
        if registry is None or self._worker is None:
            return None
        upstream = self._upstreams[registry]
        return self._begin(_following(digest, registry, upstream, self._store, self._worker, self._region, self._tell))

    def _begin(self, fill: Fill) -> Fill:
        self._fills[fill.digest] = fill
        task = asyncio.get_running_loop().create_task(self._run_fill(fill), name=f"fill {fill.digest}")
        self._tasks[task] = fill
        task.add_done_callback(self._tasks.pop)
        return fill

    def _of(self, fill: Fill) -> asyncio.Task[None]:
        return next(task for task, one in self._tasks.items() if one is fill)

    async def over(self, fill: Fill) -> None:
        """Wait for the end of `fill`."""
        if tasks := [task for task, one in self._tasks.items() if one is fill]:
            await asyncio.wait(tasks)

    def abandon(self, digest: Digest) -> None:
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

    def raise_if_troubled(self, digest: Digest) -> None:
        """A blob that could not be kept a moment ago is streamed at once: its client gets one body, not a cut one."""
        if self._is_recent(self._troubled.get(digest, -_TROUBLED)):
            raise Uncacheable(f"{digest} could not be kept a moment ago")

    async def _remember_wrong(self, ask: Ask, digest: Digest) -> None:
        now, registry = self._clock(), ask.repository.registry
        self._wrong = {key: at for key, at in self._wrong.items() if abs(now - at) < _LONGEST_WRONG}
        self._wrong[registry, digest] = now
        await self._records.put({wrong_key(registry, digest): dump_time(now)}, _LONGEST_WRONG)

    async def raise_if_wrong(self, ask: Ask, digest: Digest) -> None:
        """A client whose body was cut for its digest comes back for the rest: it must not begin the next round."""
        registry, now = ask.repository.registry, self._clock()
        at = self._wrong.get((registry, digest))
        if at is None and self._worker is not None:
            at = load_time((await self._records.get(wrong_key(registry, digest)))[0])
        if at is not None and abs(now - at) < ask.lifetimes.negative_ttl:
            raise WrongDigest(f"{ask.repository} {digest} had other bytes a moment ago; ask for all of it")


def _following(
    digest: Digest, registry: str, upstream: Upstream, store: BlobStore, worker: int, region: Region, tell: Tell
) -> Fill:
    """A fill that only follows another process's: nobody's rights are behind it, so it asks nobody."""
    ask = Ask(Repository(registry, ""), ANONYMOUS, lifetimes_of(ManifestSettings()))
    means = Means(
        store, upstream_place(digest, upstream), region, _nobody, _nobody, _nobody, _nobody, tell, upstream.source,
        worker, True,
    )  # fmt: skip
    fill = Fill(digest, ask, 0, means)
    fill.follows = True
    return fill


def _nothing() -> None:
    """Nothing has begun."""


async def _nobody(*_told: object) -> None:
    """Nobody is told."""
