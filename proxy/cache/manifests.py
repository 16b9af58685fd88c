"""Manifests by tag and by digest (DESIGN, section 4).

Invariants:
- Nothing is stored under a digest that it does not have, and nothing is given to a principal without a proof for the
  repository and the manifest's membership in it.
- A tag's record changes only after the manifest it names was had, except where a HEAD asked for a tag nobody knew.
- GET and HEAD are answered from the same record, so they agree.
- All requests for one tag share one attempt; the attempt belongs to nobody who waits.
- What the upstream said before a push through here is not written down after it, in whatever process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.attempts import Attempts, Circuits, LeftAlone
from proxy.cache.origin import Content, ManifestOrigin, PullKept
from proxy.cache.records import (
    HoldRecord,
    MemberRecord,
    TagRecord,
    hold_key,
    manifest_key,
    member_key,
    proof_key,
    pushed_key,
    tag_key,
)
from proxy.oci.digest import Digest
from proxy.oci.manifest import ManifestInvalid, parse_manifest
from proxy.oci.reference import TagOrDigest
from proxy.policy.access import Proof, proof_counts, proof_counts_in_outage
from proxy.policy.budget import Wanted
from proxy.policy.freshness import CacheState, Freshness, Verdict, freshness
from proxy.telemetry.events import StaleServed, Tell
from proxy.upstream.budgets import Budgets
from proxy.upstream.client import Upstream
from proxy.upstream.errors import UpstreamFailure, UpstreamMissing


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest for a client; `body` is None where only its head was asked for."""

    content: Content
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What an attempt found: the content, the tag's record where a tag was asked for, and how."""

    content: Content
    state: CacheState
    record: TagRecord | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store knew before an attempt."""

    proof: Proof | None
    content: Content | None
    record: TagRecord | None = None
    freshness: Freshness = Freshness.EXPIRED
    hold: HoldRecord | None = None


class Manifests:
    """The manifests of all registries."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        records: Records,
        rights: Rights,
        circuits: Circuits,
        budgets: Budgets,
        clock: Clock,
        tell: Tell,
    ) -> None:
        self._origin = ManifestOrigin(upstreams, records, rights, budgets, tell)
        self._budgets = budgets
        self._records = records
        self._rights = rights
        self._clock = clock
        self._tell = tell
        self._attempts: Attempts[_Outcome] = Attempts("manifest", records, rights, circuits, clock)

    async def get(self, ask: Ask, reference: TagOrDigest, want_body: bool) -> ManifestAnswer:
        """The manifest that `reference` means for `ask`.

        Raises UpstreamRefused, UpstreamMissing, UpstreamRejected or UpstreamFailure.
        """
        if isinstance(reference, Digest):
            return await self._by_digest(ask, reference, want_body)
        return await self._by_tag(ask, reference, want_body)

    async def close(self) -> None:
        """End what is under way."""
        await self._attempts.close()

    # By digest: immutable, so all that can be missing is the content, its membership or the proof.

    async def _by_digest(self, ask: Ask, digest: Digest, want_body: bool) -> ManifestAnswer:
        known = await self._know_digest(ask, digest, want_body)
        now = self._clock()
        if known.content is not None and proof_counts(known.proof, ask.principal, now, ask.lifetimes):
            return _digest_answer(known.content, CacheState.HIT, now)
        usable = known.content is not None and self._counts_in_outage(ask, known)
        key = ("digest", ask.principal.limited_as, ask.repository, digest, want_body)
        try:
            outcome, joined = await self._attempts.run(
                ask, digest, key, lambda: self._fetch_digest(ask, digest, want_body), usable
            )
        except UpstreamFailure:
            if known.content is None or not usable:
                raise
            return _digest_answer(known.content, CacheState.HIT, now)
        return _digest_answer(outcome.content, _shared(outcome.state, joined), self._clock())

    async def _know_digest(self, ask: Ask, digest: Digest, want_body: bool) -> _Known:
        raw_proof, raw_member, body = await self._records.get(
            proof_key(ask.principal, ask.repository), member_key(ask.repository, digest), manifest_key(digest)
        )
        content = _content(digest, MemberRecord.load(raw_member), body, want_body)
        return _Known(self._rights.proof(ask, raw_proof), content)

    async def _fetch_digest(self, ask: Ask, digest: Digest, want_body: bool) -> _Outcome:
        # Read again: the attempt before this one may have ended after our caller looked.
        known = await self._know_digest(ask, digest, want_body)
        if known.content is not None and proof_counts(known.proof, ask.principal, self._clock(), ask.lifetimes):
            return _Outcome(known.content, CacheState.HIT)
        local = known.content or await self._local(digest)
        if local is not None or not want_body:
            # The bytes are here, or not wanted: what is missing is the upstream's word, which a HEAD gives for free.
            content = await self._origin.head(ask, digest, local)
            return _Outcome(content, CacheState.REVALIDATED if local is not None else CacheState.MISS)
        return _Outcome(await self._origin.get(ask, digest), CacheState.MISS)

    async def _local(self, digest: Digest) -> Content | None:
        """The manifest as another repository had it; its bytes say what it is."""
        (body,) = await self._records.get(manifest_key(digest))
        if body is None or not digest.matches(body):
            return None
        try:
            return Content(digest, parse_manifest(body, "").media_type, len(body), body)
        except ManifestInvalid:
            return None

    # By tag.

    async def _by_tag(self, ask: Ask, tag: str, want_body: bool) -> ManifestAnswer:
        known = await self._know_tag(ask, tag, want_body)
        if known.hold is not None:
            return await self._held_answer(ask, tag, known.hold, known.record, want_body)
        if known.record is not None and known.content is not None and self._good(ask, known):
            return self._tag_answer(ask, tag, _Outcome(known.content, CacheState.HIT, known.record))
        if (kept := self._kept_back(ask, tag, known)) is not None:
            return self._tag_answer(ask, tag, kept)
        usable = (
            known.content is not None
            and known.freshness is not Freshness.EXPIRED
            and self._counts_in_outage(ask, known)
        )
        # A HEAD that knows nothing costs no pull, so it must not be what a GET joins.
        key = ("tag", ask.principal.limited_as, ask.repository, tag, want_body and known.content is None)
        try:
            outcome, joined = await self._attempts.run(
                ask, tag, key, lambda: self._check_tag(ask, tag, want_body), usable,
                proof_counts(known.proof, ask.principal, self._clock(), ask.lifetimes),
            )  # fmt: skip
        except UpstreamFailure as failure:
            if not usable:
                raise
            return self._stale_answer(ask, tag, known, failure)
        return self._tag_answer(ask, tag, replace(outcome, state=_shared(outcome.state, joined)), attempted=True)

    async def _know_tag(self, ask: Ask, tag: str, want_body: bool) -> _Known:
        raw_tag, raw_proof, raw_hold = await self._records.get(
            tag_key(ask.repository, tag), proof_key(ask.principal, ask.repository), hold_key(ask.repository, tag)
        )
        record, proof, hold = TagRecord.load(raw_tag), self._rights.proof(ask, raw_proof), HoldRecord.load(raw_hold)
        if record is None:
            return _Known(proof, None, hold=hold)
        digest = Digest.parse(record.digest)
        raw_member, body = await self._records.get(member_key(ask.repository, digest), manifest_key(digest))
        if raw_member is None:
            # The manifest went, by a push or by the upstream's word; which one the tag has now is not known.
            return _Known(proof, None, hold=hold)
        lifetimes = ask.lifetimes
        state = freshness(record.checked, self._clock(), lifetimes.ttl_of(tag), lifetimes.stale_if_error)
        if record.in_doubt and state is Freshness.FRESH:
            state = Freshness.STALE
        content = _content(digest, MemberRecord.load(raw_member), body, want_body)
        return _Known(proof, content, record, state, hold)

    def _good(self, ask: Ask, known: _Known) -> bool:
        return known.freshness is Freshness.FRESH and proof_counts(
            known.proof, ask.principal, self._clock(), ask.lifetimes
        )

    def _counts_in_outage(self, ask: Ask, known: _Known) -> bool:
        return proof_counts_in_outage(known.proof, ask.principal, self._clock(), ask.lifetimes)

    async def _check_tag(self, ask: Ask, tag: str, want_body: bool) -> _Outcome:
        generation = await self._records.generation(ask.repository)
        # Read again: the attempt before this one may have ended after our caller looked.
        known = await self._know_tag(ask, tag, want_body)
        record, now = known.record, self._clock()
        if record is not None and known.content is not None and self._good(ask, known):
            return _Outcome(known.content, CacheState.HIT, record)
        if (kept := self._kept_back(ask, tag, known)) is not None:
            return kept
        if record is not None and known.content is None and known.freshness is Freshness.FRESH:
            # A HEAD named this digest a while ago; a GET that named another one would contradict it.
            outcome = _Outcome(await self._origin.get(ask, Digest.parse(record.digest)), CacheState.MISS, record)
        elif record is None or known.content is None:
            content = await (self._origin.get(ask, tag) if want_body else self._origin.head(ask, tag))
            outcome = _Outcome(content, CacheState.MISS, TagRecord(str(content.digest), now, now))
        else:
            outcome = await self._revalidate(ask, tag, record, known.content, known.freshness)
        if outcome.record is not None:
            # Not where something was pushed meanwhile: the answer may be older than that.
            await self._write(ask, tag, outcome.record, generation)
        return outcome

    async def _write(self, ask: Ask, tag: str, record: TagRecord, generation: bytes | None) -> None:
        record = replace(record, proved_by=ask.principal.proves_as)
        await self._records.put(
            {tag_key(ask.repository, tag): record.dump()}, only_while=(pushed_key(ask.repository), generation)
        )

    async def _revalidate(
        self, ask: Ask, tag: str, record: TagRecord, content: Content, state: Freshness, pulls: bool = True
    ) -> _Outcome:
        seen = await self._origin.head(ask, tag, content, pulls)
        now = self._clock()
        if seen.digest == content.digest:
            confirmed = replace(record, checked=now, upstream_digest=None, in_doubt=False, kept_back=None)
            return _Outcome(seen, CacheState.REVALIDATED, confirmed)
        if state is Freshness.FRESH:
            # Only the proof had lapsed. The tag stays what it is until its time ends, the same for every node; that
            # it has moved on is told.
            return _Outcome(content, CacheState.HIT, replace(record, upstream_digest=str(seen.digest)))
        local = await self._local(seen.digest) if seen.body is None else None
        if local is not None:
            # Another tag brought it here, and that this one has it the HEAD has said.
            moved = replace(seen, body=local.body, size=local.size)
            return _Outcome(moved, CacheState.REVALIDATED, TagRecord(str(moved.digest), now, now))
        # By digest, and only because it changed: this is what counts against a rate limit. What may be stale no longer,
        # and what was pushed through here, may spend what is kept for other images.
        wanted: Wanted = "uncached" if state is Freshness.EXPIRED or record.in_doubt else "cached"
        try:
            moved = seen if seen.body is not None else await self._origin.get(ask, seen.digest, wanted)
        except PullKept:
            kept = replace(record, upstream_digest=str(seen.digest), kept_back=now)
            return _Outcome(content, CacheState.STALE, kept)
        return _Outcome(moved, CacheState.MISS, TagRecord(str(moved.digest), now, now))

    def _kept_back(self, ask: Ask, tag: str, known: _Known) -> _Outcome | None:
        """What is known, where its tag was seen to have moved on less than a TTL ago and is still not to be pulled."""
        record, now = known.record, self._clock()
        if record is None or known.content is None or record.kept_back is None or record.in_doubt:
            return None
        if known.freshness is not Freshness.STALE or abs(now - record.kept_back) >= ask.lifetimes.ttl_of(tag):
            return None
        if not proof_counts(known.proof, ask.principal, now, ask.lifetimes):
            return None
        if self._budgets.allows(ask.repository.registry, ask.principal, "cached"):
            return None
        return _Outcome(known.content, CacheState.STALE, record)

    # In the background, and at an operator's word.

    async def look(self, ask: Ask, tag: str, fetch: bool) -> TagRecord:
        """What the upstream has for `tag` now, however fresh the entry is; with `fetch` a manifest it moved to is had.

        Without it the entry stays what it is, and says from now on that the tag has moved; then nobody is asked while
        the upstream is left alone, nor by GET. Raises UpstreamError; PullKept, without having asked, where nobody is to
        `fetch` and nothing is left of the rate limit.
        """
        if not fetch and not self._budgets.allows(ask.repository.registry, ask.principal, "check"):
            raise PullKept("429", f"{ask.repository.registry}: nothing is left of the pull limit")
        outcome, _ = await self._attempts.run(
            ask, tag, ("look", ask.principal.limited_as, ask.repository, tag, fetch),
            lambda: self._look(ask, tag, fetch), not fetch, not fetch,
        )  # fmt: skip
        assert outcome.record is not None  # noqa: S101 - what `_look` gives
        return outcome.record

    async def _look(self, ask: Ask, tag: str, fetch: bool) -> _Outcome:
        generation = await self._records.generation(ask.repository)
        known = await self._know_tag(ask, tag, False)
        record, now = known.record, self._clock()
        if record is None or known.content is None:
            content = await (self._origin.get(ask, tag) if fetch else self._origin.head(ask, tag, pulls=False))
            outcome = _Outcome(content, CacheState.MISS, TagRecord(str(content.digest), now, now, looked=now))
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
                outcome = _Outcome(known.content, CacheState.HIT, record)
            outcome = replace(outcome, record=replace(outcome.record or record, looked=now))
        assert outcome.record is not None  # noqa: S101 - set above
        await self._write(ask, tag, outcome.record, generation)
        return outcome

    # Answers.

    async def _held_answer(
        self, ask: Ask, tag: str, hold: HoldRecord, record: TagRecord | None, want_body: bool
    ) -> ManifestAnswer:
        answer = await self._by_digest(ask, Digest.parse(hold.digest), want_body)
        warning = f"{tag} is held at this digest by an operator"
        if record is not None and (upstream := record.upstream_digest or record.digest) != hold.digest:
            warning += f"; upstream it is {upstream}"
        return replace(answer, verdict=replace(answer.verdict, detail="held", warning=warning))

    def _tag_answer(self, ask: Ask, tag: str, outcome: _Outcome, attempted: bool = False) -> ManifestAnswer:
        record = outcome.record
        age = max(0.0, self._clock() - record.checked) if record is not None else 0.0
        detail = warning = None
        if record is not None and record.upstream_digest is not None:
            warning = f"{tag} is {record.upstream_digest} upstream by now; pin the digest to be sure of what runs"
        if record is not None and outcome.state is CacheState.STALE:
            self._tell(StaleServed(ask.repository.registry, "budget"))
            detail = "stale-budget"
            warning = (
                f"{tag} is {record.upstream_digest} upstream by now; the pulls that are left of the registry's limit "
                "are kept for images that are not cached"
            )
        ttl = ask.lifetimes.ttl_of(tag) - age
        return ManifestAnswer(outcome.content, Verdict(outcome.state, age, ttl, detail, warning, attempted))

    def _stale_answer(self, ask: Ask, tag: str, known: _Known, failure: UpstreamFailure) -> ManifestAnswer:
        assert known.record is not None and known.content is not None  # noqa: S101 - what `usable` means
        if known.freshness is Freshness.FRESH:
            # Only the proof had lapsed, and while the upstream fails it counts on.
            return self._tag_answer(ask, tag, _Outcome(known.content, CacheState.HIT, known.record))
        self._tell(StaleServed(ask.repository.registry, failure.reason))
        age = max(0.0, self._clock() - known.record.checked)
        verdict = Verdict(
            CacheState.STALE,
            age,
            ask.lifetimes.ttl_of(tag) - age,
            detail=f"stale-{failure.reason}",
            warning=f"{tag} was last checked {int(age)} s ago; the registry cannot be asked now ({failure.reason})",
            attempted=not isinstance(failure, LeftAlone),
        )
        return ManifestAnswer(known.content, verdict)


def _content(digest: Digest, member: MemberRecord | None, body: bytes | None, want_body: bool) -> Content | None:
    """The content as the store has it; None where membership, or a body that is wanted, is missing or damaged."""
    if member is None:
        return None
    if body is not None and digest.matches(body):
        return Content(digest, member.media_type, len(body), body, member.at)
    return None if want_body else Content(digest, member.media_type, member.size, None, member.at)


def _digest_answer(content: Content, state: CacheState, now: float) -> ManifestAnswer:
    return ManifestAnswer(content, Verdict(state, max(0.0, now - content.at)))


def _shared(state: CacheState, joined: bool) -> CacheState:
    return CacheState.JOINED if joined and state is CacheState.MISS else state
