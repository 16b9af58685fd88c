"""Sticky tags as operators see them, and what they do with them: list, refresh, purge, hold, release.

Invariants:
- All of it is in the metadata, which every process reads for every request, so a change is in force everywhere when
  its call returns; a new generation keeps attempts that began before it from writing over it.
- The proxy asks with rights of its own only: as nobody, or with its own credential where that proved the tag. What
  needs a client's credential is asked for with the next client's request, and said to be unchecked until then.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Protocol

from proxy.cache.ask import Ask, Clock, Records
from proxy.cache.changes import Change, Changes
from proxy.cache.history import History
from proxy.cache.manifests import Manifests
from proxy.cache.records import (
    HistoryRecord,
    HoldRecord,
    MemberRecord,
    NodesRecord,
    Prover,
    TagRecord,
    history_key,
    hold_key,
    manifest_key,
    member_key,
    named_in,
    tag_key,
)
from proxy.cache.sticky import Counts, Named, StickyTag, Wanted, fits, is_named, is_so, text_of
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.freshness import Freshness, Lifetimes, freshness
from proxy.storage.base import StorageError
from proxy.upstream.errors import UpstreamError, UpstreamFailure

_log = logging.getLogger("pullthrough.cache")

_PAGE = 500
_AT_ONCE = 8
# So often a push or a purge may come in between an answer of the upstream and its being written down.
_TRIES = 4
# Seconds: whoever counts reads every tag.
_COUNT_INTERVAL = 5.0
_KEEP_HOLD = 3650 * 86400.0
_UNWRITABLE = "the metadata cache cannot be written"


class Configured(Protocol):
    """The configuration, as far as it matters here."""

    def lifetimes_in(self, registry: str, cluster: str = "") -> Lifetimes | None:
        """What holds at `registry` for a cluster, or for the proxy itself; None where either is not known."""
        ...

    def background(self, repository: Repository, proved_by: Prover | None) -> Ask | None:
        """How the proxy itself asks for what `proved_by` has a right to; None where it cannot."""
        ...


class CannotHold(Exception):
    """The digest cannot be served for the tag. The message is one line for operators."""


class TooMany(Exception):
    """More tags than can be dealt with at once. The message is one line for operators."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A tag's digest before and after; `error`: why the upstream could not be asked now."""

    repository: Repository
    tag: str
    before: str | None
    after: str | None
    error: str | None = None


class Control:
    """The tags of all registries."""

    def __init__(
        self,
        manifests: Manifests,
        changes: Changes,
        history: History,
        records: Records,
        configured: Callable[[], Configured],
        clock: Clock,
    ) -> None:
        """`configured` gives what counts at present."""
        self._manifests = manifests
        self._changes = changes
        self._history = history
        self._records = records
        self._configured = configured
        self._clock = clock
        self._counts = Counts()
        self._counted_at = -_COUNT_INTERVAL
        self._counting = asyncio.Lock()

    # What there is.

    async def tags(self, wanted: Wanted, n: int, last: str = "") -> list[StickyTag]:
        """The first `n` tags that are wanted, in the order of their references, after the one called `last`.

        Raises StorageError.
        """
        found: list[StickyTag] = []
        await self._history.write()
        async for page in self._pages(last):
            # Histories are long: only those of tags that are wanted by all else are read.
            page = [named for named in page if is_named(named, wanted)]
            if wanted.drifted or wanted.held or wanted.unchecked:
                without = await self._read(page, wanted.cluster, histories=False)
                page = [(one.repository, one.tag) for one in without if is_so(one, wanted)]
            found += [one for one in await self._read(page, wanted.cluster) if fits(one, wanted)]
            if len(found) >= n:
                break
        return found[:n]

    async def tag(self, named: Named, cluster: str = "") -> StickyTag:
        """This one, even where nothing but its history is left, or not even that. Raises StorageError."""
        await self._history.write()
        (found,) = await self._read([named], cluster)
        return found

    async def counts(self) -> Counts | None:
        """How many there are, no older than a few seconds; None where they cannot be counted now."""
        # Whoever comes while somebody counts waits for that: many who count at once would all be late.
        async with self._counting:
            now = self._clock()
            if abs(now - self._counted_at) >= _COUNT_INTERVAL:
                counts = Counts()
                try:
                    async for page in self._pages(""):
                        for one in await self._read(page, "", histories=False):
                            counts.add(one)
                except StorageError as error:
                    _log.debug("tags cannot be counted: %s", error)
                    return None
                self._counts, self._counted_at = counts, now
            return self._counts

    async def nodes(self, named: Named, digest: str) -> NodesRecord:
        """Which clients were given `digest` for this tag. Raises StorageError."""
        return await self._history.nodes(*named, digest)

    async def matching(self, pattern: str, most: int) -> list[Named]:
        """The tags whose `registry/repository:tag` fits the shell pattern. Raises TooMany, StorageError."""
        found: list[Named] = []
        async for page in self._pages(""):
            found += [named for named in page if fnmatchcase(text_of(named), pattern)]
            if len(found) > most:
                raise TooMany(f"more than {most} tags fit that pattern")
        return found

    # What is done with it.

    async def refresh(self, several: Sequence[Named]) -> list[Refreshed]:
        """Ask the upstream for each now; what has moved is served from then on. What was under way is not believed.

        Raises StorageError where it cannot be read what they are.
        """
        turn = asyncio.Semaphore(_AT_ONCE)
        befores: dict[Named, TagRecord | None] = {}
        unwritable: set[Repository] = set()
        silent: dict[str, str] = {}
        # All of a repository at once and before the first is asked for: what is asked in one generation is not written
        # down in the next. Then each is asked for at the next request in any case.
        for repository, tags in _by_repository(several).items():
            found = await self._records.read(*(tag_key(repository, tag) for tag in tags))
            befores |= {(repository, tag): TagRecord.load(raw) for tag, raw in zip(tags, found, strict=True)}
            if not await self._changes.in_doubt(Change(repository, tags)):
                unwritable.add(repository)

        async def one(named: Named) -> Refreshed:
            before = befores[named]
            digest = before.digest if before is not None else None
            if named[0] in unwritable:
                return Refreshed(*named, digest, digest, _UNWRITABLE)
            async with turn:
                if (error := silent.get(named[0].registry)) is not None:
                    # A thousand tags would wait for as many time-outs.
                    return Refreshed(*named, digest, digest, error)
                return await self._refresh(named, before, silent)

        # All have ended before the first failure is raised.
        ended = await asyncio.gather(*map(one, several), return_exceptions=True)
        for one_ended in ended:
            if isinstance(one_ended, BaseException):
                raise one_ended
        return [one_ended for one_ended in ended if isinstance(one_ended, Refreshed)]

    async def purge(self, several: Sequence[Named]) -> None:
        """Forget what each tag is: the next request asks the upstream. Holds and history stay. Raises StorageError."""
        for repository, tags in _by_repository(several).items():
            _written(await self._changes.happened(Change(repository, tags)))

    async def purge_manifest(self, repository: Repository, digest: Digest) -> None:
        """Forget a manifest, and that the repository has it. Raises StorageError."""
        _written(await self._changes.happened(Change(repository, deleted=(digest,))))
        _written(await self._records.delete(manifest_key(digest)))

    async def hold(self, named: Named, digest: Digest, by: str) -> None:
        """Serve `digest` for the tag until it is released.

        Raises CannotHold where that could not be served, StorageError.
        """
        repository, tag = named
        raw_member, body = await self._records.read(member_key(repository, digest), manifest_key(digest))
        member = MemberRecord.load(raw_member)
        if member is None or member.gone is not None or body is None:
            await self._have(named, digest)
        hold = HoldRecord(str(digest), self._clock(), by)
        _written(await self._records.put({hold_key(repository, tag): hold.dump()}, _KEEP_HOLD))
        self._history.seen(repository, tag, str(digest))

    async def release(self, several: Sequence[Named]) -> list[Named]:
        """Let them go by the upstream again; gives those that were held. Raises StorageError."""
        keys = [hold_key(*named) for named in several]
        found = await self._records.read(*keys)
        held = [named for named, raw in zip(several, found, strict=True) if raw is not None]
        _written(await self._records.delete(*(hold_key(*named) for named in held)))
        return held

    async def _have(self, named: Named, digest: Digest) -> None:
        repository = named[0]
        (raw,) = await self._records.get(tag_key(*named))
        record = TagRecord.load(raw)
        ask = self._configured().background(repository, record.proved_by if record is not None else None)
        if ask is None:
            raise CannotHold(f"{digest} is not in the cache, and only clients have a right to ask for it")
        try:
            await self._manifests.get(ask, digest, want_body=True)
        except UpstreamError as error:
            raise CannotHold(f"{digest} is not in the cache and cannot be had: {error}") from error

    async def _refresh(self, named: Named, before: TagRecord | None, silent: dict[str, str]) -> Refreshed:
        """Refresh one; a registry that does not answer is added to `silent`, with what to say of its other tags."""
        repository, tag = named
        (raw_hold,) = await self._records.read(hold_key(*named))
        hold, digest = HoldRecord.load(raw_hold), before.digest if before is not None else None
        ask = self._configured().background(repository, before.proved_by if before is not None else None)
        error, after = None, digest
        if ask is not None:
            try:
                after = await self._have_looked(ask, tag)
            except UpstreamError as failure:
                error = str(failure)
                if isinstance(failure, UpstreamFailure) and failure.reason in {"connect", "timeout"}:
                    silent[repository.registry] = error
            if error is None and after is None:
                error, after = "the repository changes all the time; the next request asks for it", digest
        elif before is not None and before.proved_by == "client":
            error = "it is asked for with the next client's credential"
        else:
            error = "the credential or the registry to ask with is not configured"
        if hold is not None:
            # Whatever it is upstream, it is served as it is held.
            return Refreshed(repository, tag, hold.digest, hold.digest, error or "it is held until it is released")
        return Refreshed(repository, tag, digest, after, error)

    async def _have_looked(self, ask: Ask, tag: str) -> str | None:
        """The digest that is in force for `tag` once the upstream was asked; None where that was not written down.

        Raises UpstreamError, StorageError.
        """
        for _ in range(_TRIES):
            await self._manifests.look(ask, tag, fetch=True)
            (raw,) = await self._records.read(tag_key(ask.repository, tag))
            # Anything that is pushed to or purged from the repository meanwhile keeps the answer from being believed.
            if (record := TagRecord.load(raw)) is not None and not record.in_doubt:
                return record.digest
        return None

    async def _pages(self, last: str) -> AsyncIterator[list[Named]]:
        """All tags that have an entry or a hold, in order, after the one called `last`. Raises StorageError."""
        held = [key.partition("/")[2] for key in await self._records.scan("hold/", f"hold/{last}", limit=100_000)]
        while True:
            keys = await self._records.scan("tag/", f"tag/{last}", _PAGE)
            names = {key.partition("/")[2] for key in keys}
            over = len(keys) < _PAGE
            until = max(names, default="")
            page = sorted(names | {name for name in held if name > last and (over or name <= until)})
            if page:
                yield [named_in(f"tag/{name}") for name in page]
                last = page[-1]
            if over:
                return

    async def _read(self, several: Sequence[Named], cluster: str, histories: bool = True) -> list[StickyTag]:
        kinds = (tag_key, hold_key, history_key) if histories else (tag_key, hold_key)
        found = iter(await self._records.read(*(key(*named) for named in several for key in kinds)))
        return [self._sticky(named, cluster, *islice(found, len(kinds))) for named in several]

    def _sticky(
        self,
        named: Named,
        cluster: str,
        raw_tag: bytes | None,
        raw_hold: bytes | None,
        raw_history: bytes | None = None,
    ) -> StickyTag:
        repository, tag = named
        configured, now = self._configured(), self._clock()
        record, history = TagRecord.load(raw_tag), HistoryRecord.load(raw_history) or HistoryRecord()
        state, ttls, unchecked = Freshness.EXPIRED, {}, None
        if record is not None:
            checked = record.gone or record.checked
            for name in {cluster, *(name for served in history.digests for name in served.clusters)}:
                if (lifetimes := configured.lifetimes_in(repository.registry, name)) is not None:
                    whole = lifetimes.ttl_of(repository.name, tag)
                    ttls[name] = checked + whole - now
                    if name == cluster:
                        state = freshness(checked, now, whole, lifetimes.stale_if_error)
            if record.in_doubt and state is Freshness.FRESH:
                state = Freshness.STALE
            unchecked = self._why_unchecked(repository, record)
        ttl = ttls.get(cluster, 0.0)
        ttls.pop("", None)
        return StickyTag(repository, tag, record, HoldRecord.load(raw_hold), history, state, ttl, unchecked, ttls)

    def _why_unchecked(self, repository: Repository, record: TagRecord) -> str | None:
        if record.proved_by == "client":
            return "only clients' own credentials may ask for it"
        if self._configured().background(repository, record.proved_by) is None:
            return "the credential or the registry it was asked for with is not configured any more"
        return None


def _by_repository(several: Iterable[Named]) -> dict[Repository, tuple[str, ...]]:
    found: dict[Repository, list[str]] = {}
    for repository, tag in several:
        found.setdefault(repository, []).append(tag)
    return {repository: tuple(tags) for repository, tags in found.items()}


def _written(done: bool) -> None:
    """What is in force when the call returns has to be in the store: raise StorageError where it is not."""
    if not done:
        raise StorageError(_UNWRITABLE)
