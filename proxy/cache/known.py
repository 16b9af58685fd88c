"""What the store knows of a manifest before an upstream is asked, and what that is worth to the one who asks."""

from dataclasses import dataclass

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.origin import Content
from proxy.cache.records import (
    HoldRecord,
    MemberRecord,
    TagRecord,
    hold_key,
    manifest_key,
    member_key,
    proof_key,
    tag_key,
)
from proxy.cache.standing import Standing
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.freshness import Freshness
from proxy.storage.base import Stamp


@dataclass(frozen=True, slots=True)
class Lasting:
    """What was answered may be answered again, to whoever asks the same with the same rights, without looking.

    That is until `until` (Unix seconds), as long as `stamp` holds. `checked` is what its age counts from, `ttl` how
    many seconds it counts for from then on; None where nothing ends.
    """

    until: float
    stamp: Stamp
    checked: float
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Known:
    """The content, where it may be given by its membership; of a tag its record (`raw` as it is stored) besides.

    Where a tag is gone, its freshness is that of the upstream's word that it is. `stamp` is for all that was read.
    """

    standing: Standing
    content: Content | None
    stamp: Stamp
    record: TagRecord | None = None
    raw: bytes | None = None
    freshness: Freshness = Freshness.EXPIRED
    hold: HoldRecord | None = None

    def is_proved(self, ask: Ask, now: float) -> bool:
        """Is it known without asking that `ask` may read the repository?"""
        return self.standing.is_proved(ask, now)

    def is_good(self, ask: Ask, now: float) -> bool:
        """Is it to be served without asking?"""
        is_there = self.standing.gone is None or self._is_whole
        return self.freshness is Freshness.FRESH and is_there and self.standing.counts(ask, now)

    def is_usable(self, ask: Ask, now: float) -> bool:
        """Has `ask` a right to the content while the upstream fails?"""
        return self.content is not None and self.standing.counts_in_outage(ask, now)

    def outlives(self, ask: Ask, now: float) -> bool:
        """Is it to be served although the upstream has just said 404?"""
        return self._is_whole and self.standing.counts_when_deleted(ask, now)

    def lasting(self, ask: Ask, tag: str | None) -> Lasting | None:
        """For how long that `is_good` may be relied on; None where it has to be looked at each time.

        `tag` is what was asked for, None where that was a digest.
        """
        proved_until = self.standing.proved_until(ask)
        if self.content is None or self.standing.gone is not None or proved_until is None:
            return None
        if tag is None or self.record is None:
            return Lasting(proved_until, self.stamp, self.content.at, None)
        checked, name = self.record.checked, ask.repository.name
        ttl = ask.lifetimes.ttl_of(name, tag)
        until = min(proved_until, checked + ask.lifetimes.fresh_for(name, tag))
        return Lasting(until, self.stamp, checked, ttl)

    @property
    def _is_whole(self) -> bool:
        # Of what is gone upstream a HEAD promises no bytes that are not here, as a GET could not give them.
        return self.content is not None and self.content.body is not None


class Both:
    """The stamp of what was read in two goes."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Stamp, second: Stamp) -> None:
        self._first = first
        self._second = second

    def holds(self) -> bool:
        """See `Stamp.holds`."""
        return self._first.holds() and self._second.holds()


class Knowledge:
    """Reads it."""

    def __init__(self, records: Records, rights: Rights, clock: Clock) -> None:
        self._records = records
        self._rights = rights
        self._clock = clock

    async def of_digest(self, ask: Ask, digest: Digest, want_body: bool) -> Known:
        """Of a manifest by its digest."""
        keys = proof_key(ask.principal, ask.repository), *_content_keys(ask.repository, digest)
        stamp = self._records.stamp(*keys)
        raw_proof, raw_member, body = await self._records.get(*keys)
        member = member_for(ask, raw_member)
        standing = Standing(self._rights.proof(ask, raw_proof), member.gone if member is not None else None)
        content = _content(digest, member, body, want_body)
        return Known(standing, content, stamp, freshness=standing.freshness(ask, self._clock()))

    async def of_tag(self, ask: Ask, tag: str, want_body: bool) -> Known:
        """Of a tag."""
        keys = tag_key(ask.repository, tag), proof_key(ask.principal, ask.repository), hold_key(ask.repository, tag)
        stamp = self._records.stamp(*keys)
        raw_tag, raw_proof, raw_hold = await self._records.get(*keys)
        record, proof, hold = TagRecord.load(raw_tag), self._rights.proof(ask, raw_proof), HoldRecord.load(raw_hold)
        if record is None or (record.gone is not None and not ask.lifetimes.serve_deleted):
            return Known(Standing(proof), None, stamp, hold=hold)
        digest = Digest.parse(record.digest)
        more = _content_keys(ask.repository, digest)
        stamp = Both(stamp, self._records.stamp(*more))
        raw_member, body = await self._records.get(*more)
        member = member_for(ask, raw_member)
        if member is None:
            # The manifest went, by a push or by the upstream's word; which one the tag has now is not known.
            return Known(Standing(proof), None, stamp, hold=hold)
        content, state = _content(digest, member, body, want_body), self._freshness(ask, tag, record)
        return Known(Standing(proof, record.gone), content, stamp, record, raw_tag, state, hold)

    def _freshness(self, ask: Ask, tag: str, record: TagRecord) -> Freshness:
        ttl, checked = ask.lifetimes.ttl_of(ask.repository.name, tag), record.gone or record.checked
        state = ask.lifetimes.freshness_of(checked, self._clock(), ttl)
        return Freshness.STALE if record.in_doubt and state is Freshness.FRESH else state


def _content_keys(repository: Repository, digest: Digest) -> tuple[str, str]:
    return member_key(repository, digest), manifest_key(digest)


def member_for(ask: Ask, raw: bytes | None) -> MemberRecord | None:
    """The membership that was stored as `raw`; what is gone is one only for those who are served it on."""
    member = MemberRecord.load(raw)
    return None if member is None or (member.gone is not None and not ask.lifetimes.serve_deleted) else member


def _content(digest: Digest, member: MemberRecord | None, body: bytes | None, want_body: bool) -> Content | None:
    """The content as the store has it; None where membership, or a body that is wanted, is missing or damaged."""
    if member is None:
        return None
    if body is not None and digest.matches(body):
        return Content(digest, member.media_type, len(body), body, member.at)
    return None if want_body else Content(digest, member.media_type, member.size, None, member.at)
