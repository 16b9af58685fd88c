"""One warm job at work: its references, several at a time, and their blobs.

Invariants:
- Everything is asked for as a request of the job's cluster would ask for it: the same rights, circuits, shared attempts
  and fills. Of a rate limit it takes nothing that is kept for what clients wait for.
- At most `concurrency` references are walked at a time, and at most so many blobs are brought at a time.
- An upstream that fails is waited for (`policy.patience`): by all references at that registry together, so that a dead
  one does not cost each of them the whole time. What has come stays.
- A job never makes the cache drop what it put there: what would not fit beside it fails, and says so. What went all the
  same, since others came, is found at the end and said.
- `items` is changed on the loop only, and whole: whoever looks sees a state that was.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from proxy.cache.ask import Ask, Clock, Records
from proxy.cache.blobs import Blobs
from proxy.cache.bodies import Brought
from proxy.cache.download import Uncacheable
from proxy.cache.manifests import Manifests
from proxy.cache.means import OtherSource
from proxy.cache.origin import Content
from proxy.cache.records import manifest_key, tag_key
from proxy.cache.speed import Speed
from proxy.cache.warm_image import CannotWarm, Image, walk
from proxy.cache.warm_records import ENDED, Item, Items, Job, State, summed
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import TagOrDigest
from proxy.policy.freshness import CacheState
from proxy.policy.patience import next_try
from proxy.policy.platforms import parse_platforms
from proxy.storage.base import BlobStore, StorageError
from proxy.upstream.errors import UpstreamError, UpstreamFailure, UpstreamInvalid, UpstreamMissing, UpstreamRefused

_log = logging.getLogger("pullthrough.cache")
_T = TypeVar("_T")

# How often it is looked at the clock while an upstream is waited for, in seconds.
_LOOK = 0.5
# Another upstream's fill of the same blob is looked at again after so many seconds.
_OTHERS_FILL = 2.0
# Failures that may pass by themselves; what an operator configured does not.
_PASSES = frozenset({"connect", "timeout", "5xx", "429"})
# What is served stale on purpose, as the configuration has it: that is as good as it gets.
_ON_PURPOSE = frozenset({"stale-offline", "stale-budget"})
# Of blobs in the cache that are looked at together.
_PAGE = 1000

# Who asks, and for what, where `cluster` asks for a reference. Raises OCIError.
AskFor = Callable[[str, str], tuple[Ask, TagOrDigest]]


@dataclass(frozen=True, slots=True)
class WarmMeans:
    """What jobs work with. `room`: how many bytes the cache may hold at present; `spare`: may a pull be spent on an ask
    that no client waits for?
    """

    manifests: Manifests
    blobs: Blobs
    records: Records
    store: BlobStore
    ask_for: AskFor
    room: Callable[[], int]
    spare: Callable[[Ask], bool]
    clock: Clock


class WarmRun:
    """A job from where it stands to its end."""

    def __init__(self, job: Job, items: Items, means: WarmMeans) -> None:
        self.items = list(items)
        self._job = job
        self._means = means
        self._wanted = parse_platforms(job.platforms)
        self._speed = Speed(job.bandwidth) if job.bandwidth is not None else None
        self._turns = asyncio.Semaphore(job.concurrency)
        # What is to be in the cache when it ends, with sizes in bytes and their sum.
        self._held: dict[Digest, int] = {}
        self._held_bytes = 0
        # Of each reference: the blobs that are there, those on their way, and what is waited for.
        self._of_item: dict[int, set[Digest]] = {}
        self._coming: dict[int, set[Digest]] = {}
        self._waits: dict[int, list[str]] = {}
        # Since when nothing was had of a registry.
        self._failing: dict[str, float] = {}
        self._full = False

    def snapshot(self) -> tuple[Job, Items]:
        """How it stands now."""
        arrived = {fill.digest: fill.progress[0] for fill in self._means.blobs.fills}
        items = tuple(self._seen_now(number, item, arrived) for number, item in enumerate(self.items))
        return summed(replace(self._job, note=self._note()), items), items

    async def run(self) -> tuple[Job, Items]:
        """Bring everything; gives how it ended. Raises nothing but CancelledError."""
        waiting = deque(number for number, item in enumerate(self.items) if item.state not in ENDED)
        for number, item in enumerate(self.items):
            if item.state == "done":
                await self._recall(number, item)

        async def lane() -> None:
            while waiting:
                await self._item(waiting.popleft())

        await _all(lane() for _ in range(min(self._job.concurrency, len(waiting))))
        await self._find_evicted()
        job, items = self.snapshot()
        state: State = "failed" if any(item.state == "failed" for item in items) else "done"
        return replace(job, state=state, ended=self._means.clock()), items

    async def _recall(self, number: int, item: Item) -> None:
        """Count what an earlier run has put there for a reference: the rest of the job must not push that out."""

        async def kept(named: TagOrDigest) -> Content:
            digest = Digest.parse(str(named))
            (body,) = await self._means.records.get(manifest_key(digest))
            if body is None:
                raise CannotWarm("its manifest was purged")
            return Content(digest, "", len(body), body)

        try:
            image = await walk(kept, Digest.parse(item.digest or ""), self._wanted)
        except (CannotWarm, OCIError) as error:
            _log.warning("what was warmed of %s is not known any more: %s", item.reference, error)
            return
        self._of_item[number] = set(image.blobs)
        for digest, size in image.blobs.items():
            if digest not in self._held:
                self._held[digest] = size
                self._held_bytes += size

    # One reference.

    async def _item(self, number: int) -> None:
        # What an earlier run had counted is counted again.
        self.items[number] = Item(self.items[number].reference, "running")
        try:
            await self._warm(number)
        except (CannotWarm, Uncacheable) as error:
            self._fail(number, str(error))
        except OCIError as error:
            self._fail(number, error.message)
        except UpstreamError as error:
            self._fail(number, _told(error))
        except Exception as error:  # noqa: BLE001 - the other references go on, whatever it is
            _log.error("warming %s failed", self.items[number].reference, exc_info=error)
            self._fail(number, "the proxy failed; its log says more")
        else:
            self._set(number, state="done")
        finally:
            self._coming.pop(number, None)

    async def _warm(self, number: int) -> None:
        ask, reference = self._means.ask_for(self._job.cluster, self.items[number].reference)
        tag_note: list[str] = []

        async def get(named: TagOrDigest) -> Content:
            return await self._patiently(number, ask, lambda: self._manifest(ask, named, tag_note))

        image = await walk(get, reference, self._wanted)
        for digest in image.manifests:
            if await self._means.records.get(manifest_key(digest)) == [None]:
                raise CannotWarm("its manifests could not be kept: the log says why")
        self._set(
            number, digest=str(image.digest), manifests=len(image.manifests), blobs_total=len(image.blobs),
            bytes_total=sum(image.blobs.values()), note=self._item_note(image, tag_note),
        )  # fmt: skip
        self._coming[number], self._of_item[number] = set(), set()
        left = deque(image.blobs.items())

        async def lane() -> None:
            while left:
                await self._blob(number, ask, *left.popleft())

        await _all(lane() for _ in range(min(self._job.concurrency, len(left))))

    async def _manifest(self, ask: Ask, named: TagOrDigest, note: list[str]) -> Content:
        if not self._means.spare(ask) and not await self._is_known(ask, named):
            raise UpstreamFailure("429", f"{ask.repository.registry}: the pulls that are left are kept for clients")
        answer = await self._means.manifests.get(ask, named, want_body=True)
        if answer.verdict.state is CacheState.STALE and answer.verdict.detail not in _ON_PURPOSE:
            # Clients are served it; a job would rather wait for what is there now.
            registry = ask.repository.registry
            raise UpstreamFailure("connect", f"{registry} cannot be asked whether {named} is still the same")
        if answer.verdict.warning is not None:
            note.append(answer.verdict.warning)
        return answer.content

    async def _is_known(self, ask: Ask, named: TagOrDigest) -> bool:
        """Is it here, so that a HEAD is all it may take?"""
        key = manifest_key(named) if isinstance(named, Digest) else tag_key(ask.repository, named)
        return await self._means.records.get(key) != [None]

    async def _blob(self, number: int, ask: Ask, digest: Digest, size: int) -> None:
        self._reserve(digest, size)
        try:
            found = await self._patiently(number, ask, lambda: self._bring(number, ask, digest))
        except BaseException:
            if not any(digest in brought for brought in self._of_item.values()):
                self._held_bytes -= self._held.pop(digest, 0)
            raise
        self._held_bytes += found.size - self._held.get(digest, 0)
        self._held[digest] = found.size
        self._of_item[number].add(digest)
        item = self.items[number]
        self._set(
            number, blobs=item.blobs + 1, bytes=item.bytes + found.size,
            bytes_total=item.bytes_total + found.size - size,
            present=item.present + (found.size if found.here else 0),
        )  # fmt: skip

    async def _bring(self, number: int, ask: Ask, digest: Digest) -> Brought:
        async with self._turns:
            self._coming[number].add(digest)
            try:
                return await self._means.blobs.bring(ask, digest, self._speed)
            finally:
                self._coming[number].discard(digest)

    def _reserve(self, digest: Digest, size: int) -> None:
        """Raise CannotWarm where the cache cannot hold the blob beside what the job has put there."""
        room, held = self._means.room(), self._held_bytes
        if digest in self._held:
            return
        if held + size > room:
            self._full = True
            beside = f"beside the {held} bytes of this job that are there" if held else "at all"
            raise CannotWarm(f"no room: a blob of {size} bytes does not fit {beside}, the cache holds {room}")
        self._held[digest] = size
        self._held_bytes += size

    # An upstream that fails.

    async def _patiently(self, number: int, ask: Ask, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """What `attempt` gives, tried again while there is hope. Raises UpstreamError, Uncacheable or CannotWarm."""
        registry, clock = ask.repository.registry, self._means.clock
        failures, since = 0, clock()
        while True:
            try:
                found = await attempt()
            except OtherSource:
                pause = _OTHERS_FILL
                reason = "another registry's download of the same blob is waited for"
            except UpstreamFailure as error:
                if error.reason not in _PASSES:
                    raise
                failures += 1
                since = min(since, self._failing.setdefault(registry, clock()))
                invalid = isinstance(error, UpstreamInvalid)
                again = next_try(failures, error.retry_after, clock() - since, invalid)
                if again is None:
                    raise
                pause = again
                reason = f"{_told(error)}; it is tried again in {max(1, round(pause))} s"
            else:
                self._failing.pop(registry, None)
                return found
            waits = self._waits.setdefault(number, [])
            waits.append(reason)
            try:
                await self._sleep(pause)
            finally:
                waits.remove(reason)

    async def _sleep(self, seconds: float) -> None:
        """Until so many seconds have passed by either clock: the one that goes on, and the one that circuits go by."""
        loop, clock = asyncio.get_running_loop(), self._means.clock
        until, wakes = clock() + seconds, loop.time() + seconds
        while clock() < until and (left := wakes - loop.time()) > 0:  # noqa: ASYNC110 - clocks set no event
            await asyncio.sleep(min(left, _LOOK))

    # What is told.

    def _set(self, number: int, **changes: Any) -> None:
        self.items[number] = replace(self.items[number], **changes)

    def _fail(self, number: int, error: str) -> None:
        self._set(number, state="failed", error=error, note=None)

    def _seen_now(self, number: int, item: Item, arrived: Mapping[Digest, int]) -> Item:
        """With what is on its way, and what is waited for."""
        coming = sum(arrived.get(digest, 0) for digest in self._coming.get(number, ()))
        waits = self._waits.get(number)
        if not coming and not waits:
            return item
        note = waits[0] if waits else item.note
        return replace(item, bytes=min(item.bytes + coming, item.bytes_total), note=note)

    def _item_note(self, image: Image, warnings: list[str]) -> str | None:
        missing = [str(one) for one in image.missing] if self._job.platforms else []
        notes = [*warnings, *([f"it is not there for {', '.join(missing)}"] if missing else [])]
        return "; ".join(notes) or None

    def _note(self) -> str | None:
        if self._full:
            return f"this job is larger than the cache, which holds {self._means.room()} bytes (cache.max_size)"
        return None

    async def _find_evicted(self) -> None:
        """Others' images came meanwhile: what had to go for them is not in the cache, as it was asked to be."""
        gone = dict.fromkeys(self._held)
        try:
            after: str | None = "" if gone else None
            while after is not None:
                listed = await self._means.store.listed(after, _PAGE)
                for one in listed:
                    gone.pop(one.digest, None)
                after = str(listed[-1].digest) if len(listed) == _PAGE else None
        except StorageError as error:
            _log.warning("whether all that was warmed is still there cannot be told: %s", error)
            return
        for number, digests in self._of_item.items():
            lost = digests & gone.keys()
            if lost and self.items[number].state == "done":
                size = sum(self._held[digest] for digest in lost)
                self._fail(
                    number,
                    f"{len(lost)} of its blobs, {size} bytes, were evicted again before the job had ended: "
                    "the cache is too small for all that comes into it",
                )


def _told(error: UpstreamError) -> str:
    """What operators are told of an upstream's answer."""
    if isinstance(error, UpstreamRefused):
        return f"{error}: the cluster's rights do not reach so far"
    if isinstance(error, UpstreamMissing):
        return str(error) or "the upstream does not have it"
    return str(error)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it at the same time; the first that raises ends the others, which have ended when this raises."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
