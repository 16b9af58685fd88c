"""What an attempt does about a manifest: it reads again, asks the upstream, and writes down what that said.

Invariants:
- A tag's record changes only after the manifest it names was had, except where a HEAD asked for a tag nobody knew.
- What the upstream said before a push through here is not written down after it, in whatever process; nor is what it
  said earlier over what it said later.
- A pull is spent only on a manifest that is not here.
"""

from dataclasses import dataclass, replace

from proxy.cache.ask import Ask, Clock, Records
from proxy.cache.known import Knowledge, Known
from proxy.cache.origin import Content, ManifestOrigin, PullKept
from proxy.cache.records import TagRecord, manifest_key, pushed_key, tag_key
from proxy.oci.digest import Digest
from proxy.oci.manifest import ManifestInvalid, parse_manifest
from proxy.policy.budget import Wanted
from proxy.policy.freshness import CacheState, Freshness, Lifetimes
from proxy.upstream.budgets import Budgets
from proxy.upstream.errors import UpstreamMissing

# So often another attempt's word may come in between.
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt found: the content, the tag's record where a tag was asked for, and how.

    `asked`: by asking the upstream; else it was there already, and good by the times of who began (`lifetimes`).
    """

    content: Content
    state: CacheState
    record: TagRecord | None = None
    asked: bool = True
    lifetimes: Lifetimes | None = None


class Checks:
    """The checks of all registries' manifests; `cache.manifests` shares them out."""

    def __init__(
        self, origin: ManifestOrigin, records: Records, knowledge: Knowledge, budgets: Budgets, clock: Clock
    ) -> None:
        self._origin = origin
        self._records = records
        self._knowledge = knowledge
        self._budgets = budgets
        self._clock = clock

    async def digest(self, ask: Ask, digest: Digest, want_body: bool) -> Outcome:
        """A manifest by its digest. Raises UpstreamError."""
        # Read again: the attempt before this one may have ended after our caller looked.
        known = await self._knowledge.of_digest(ask, digest, want_body)
        if known.content is not None and known.standing.gone is None and known.is_proved(ask, self._clock()):
            return Outcome(known.content, CacheState.HIT, asked=False)
        local = known.content or await self._local(digest)
        if local is not None or not want_body:
            # The bytes are here, or not wanted: what is missing is the upstream's word, which a HEAD gives for free.
            content = await self._origin.head(ask, digest, local)
            return Outcome(content, CacheState.REVALIDATED if local is not None else CacheState.MISS)
        return Outcome(await self._origin.get(ask, digest), CacheState.MISS)

    async def tag(self, ask: Ask, tag: str, want_body: bool, ahead: bool = False) -> Outcome:
        """A tag; `ahead` of its end, if it is near that still. Raises UpstreamError."""
        generation = await self._records.generation(ask.repository)
        # Read again: the attempt before this one may have ended after our caller looked.
        known = await self._knowledge.of_tag(ask, tag, want_body)
        record, now = known.record, self._clock()
        ahead = ahead and record is not None and is_ahead(ask, tag, record, now)
        if record is not None and known.content is not None and known.is_good(ask, now) and not ahead:
            return Outcome(known.content, CacheState.HIT, record, asked=False)
        if (kept := self.kept_back(ask, tag, known)) is not None:
            return kept
        if record is not None and known.content is None and known.freshness is Freshness.FRESH:
            # A HEAD named this digest a while ago; a GET that named another one would contradict it.
            outcome = Outcome(await self._origin.get(ask, Digest.parse(record.digest)), CacheState.MISS, record)
        elif record is None or known.content is None:
            content = await (self._origin.get(ask, tag) if want_body else self._origin.head(ask, tag))
            outcome = Outcome(content, CacheState.MISS, TagRecord(str(content.digest), now, now))
        else:
            # What was gone and is there again is what it is now, to everybody.
            due = known.freshness is Freshness.FRESH and (ahead or record.gone is not None)
            state = Freshness.STALE if due else known.freshness
            outcome = await self._revalidate(ask, tag, record, known.content, state)
        if outcome.record is not None:
            await self._write(ask, tag, outcome.record, known.raw, generation)
        return outcome

    async def look(self, ask: Ask, tag: str, fetch: bool) -> Outcome:
        """What the upstream has for a tag, however fresh its entry is; see `Manifests.look`. Raises UpstreamError."""
        generation = await self._records.generation(ask.repository)
        known = await self._knowledge.of_tag(ask, tag, False)
        record, now = known.record, self._clock()
        if record is None or known.content is None:
            content = await (self._origin.get(ask, tag) if fetch else self._origin.head(ask, tag, pulls=False))
            outcome = Outcome(content, CacheState.MISS, TagRecord(str(content.digest), now, now, looked=now))
            if not fetch:
                # It went while this was under way: the next request asks for it.
                return outcome
        else:
            # The entry's own time is what a request would ask again for; whoever looks wants the upstream's word now.
            state = Freshness.EXPIRED if fetch else Freshness.FRESH
            try:
                outcome = await self._revalidate(ask, tag, record, known.content, state, pulls=fetch)
            except UpstreamMissing:
                if fetch:
                    raise
                # It stays what it is until its time ends, like one that has moved.
                outcome = Outcome(known.content, CacheState.HIT, record)
            outcome = replace(outcome, record=replace(outcome.record or record, looked=now))
        assert outcome.record is not None  # noqa: S101 - set above
        await self._write(ask, tag, outcome.record, known.raw, generation)
        return outcome

    def kept_back(self, ask: Ask, tag: str, known: Known) -> Outcome | None:
        """What is known, where its tag was seen to have moved on less than a TTL ago and is still not to be pulled."""
        record, now = known.record, self._clock()
        if record is None or known.content is None or record.kept_back is None or record.in_doubt:
            return None
        ttl = ask.lifetimes.ttl_of(ask.repository.name, tag)
        if known.freshness is not Freshness.STALE or abs(now - record.kept_back) >= ttl:
            return None
        if not known.is_proved(ask, now):
            return None
        if self._budgets.allows(ask.repository.registry, ask.principal, "cached"):
            return None
        return Outcome(known.content, CacheState.STALE, record, asked=False)

    async def _local(self, digest: Digest) -> Content | None:
        """The manifest as another repository had it; its bytes say what it is."""
        (body,) = await self._records.get(manifest_key(digest))
        if body is None or not digest.matches(body):
            return None
        try:
            return Content(digest, parse_manifest(body, "").media_type, len(body), body)
        except ManifestInvalid:
            return None

    async def _revalidate(
        self, ask: Ask, tag: str, record: TagRecord, content: Content, state: Freshness, pulls: bool = True
    ) -> Outcome:
        seen = await self._origin.head(ask, tag, content, pulls)
        now = self._clock()
        if seen.digest == content.digest:
            confirmed = replace(
                record, checked=now, upstream_digest=None, in_doubt=False, kept_back=None, gone=None
            )  # fmt: skip
            return Outcome(seen, CacheState.REVALIDATED, confirmed)
        differs = replace(record, upstream_digest=str(seen.digest), gone=None)
        if state is Freshness.FRESH:
            # Only the proof had lapsed. The tag stays what it is until its time ends, the same for every node; that
            # it has moved on is told.
            return Outcome(content, CacheState.HIT, differs)
        local = await self._local(seen.digest) if seen.body is None else None
        if local is not None:
            # Another tag brought it here, and that this one has it the HEAD has said.
            moved = replace(seen, body=local.body, size=local.size)
            return Outcome(moved, CacheState.REVALIDATED, TagRecord(str(moved.digest), now, now))
        # By digest, and only because it changed: this is what counts against a rate limit. What may be stale no longer,
        # and what was pushed through here, may spend what is kept for other images.
        wanted: Wanted = "uncached" if state is Freshness.EXPIRED or record.in_doubt else "cached"
        try:
            moved = seen if seen.body is not None else await self._origin.get(ask, seen.digest, wanted)
        except PullKept:
            return Outcome(content, CacheState.STALE, replace(differs, kept_back=now))
        return Outcome(moved, CacheState.MISS, TagRecord(str(moved.digest), now, now))

    async def _write(self, ask: Ask, tag: str, record: TagRecord, raw: bytes | None, generation: bytes | None) -> None:
        """Write `record` down in place of `raw`, unless something was pushed since `generation` was read.

        Nor over a later word of the upstream that another attempt, of whatever principal or process, has written.
        """
        key, pushed = tag_key(ask.repository, tag), pushed_key(ask.repository)
        written = {key: replace(record, proved_by=ask.principal.proves_as).dump()}
        for _ in range(_TRIES):
            before = TagRecord.load(raw)
            # A push changes the record as well, but not one that is in doubt already, nor one that is not there.
            guard = (key, raw) if before is not None and not before.in_doubt else (pushed, generation)
            if await self._records.put(written, only_while=guard):
                return
            raw, current = await self._records.get(key, pushed)
            found = TagRecord.load(raw)
            if current != generation or found is None or found.checked >= record.checked:
                return


def is_ahead(ask: Ask, tag: str, record: TagRecord, now: float) -> bool:
    """Is a fresh tag so near its end that it may be checked ahead of it? What is not to be pulled anyway is not."""
    # Of what is gone it is the upstream's word on that which ends.
    age = now - (record.gone or record.checked)
    return record.kept_back is None and ask.lifetimes.is_ahead(ask.repository.name, tag, age)
