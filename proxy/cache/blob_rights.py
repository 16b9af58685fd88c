"""Who may be given a blob that is here, and whether the upstream has to be asked for that (DESIGN, section 6)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.attempts import Attempts
from proxy.cache.blob_origin import BlobOrigin
from proxy.cache.known import Lasting, member_for
from proxy.cache.missing import KnownMissing
from proxy.cache.records import MemberRecord, member_key, proof_key, stored_key
from proxy.cache.standing import Standing
from proxy.oci.digest import Digest
from proxy.policy.freshness import CacheState, Freshness, Verdict, deleted
from proxy.storage.base import Stamp
from proxy.upstream.errors import UpstreamFailure, UpstreamInvalid, UpstreamMissing


@dataclass(frozen=True, slots=True)
class Right:
    """`ask` may have the blob. `size` where the upstream was asked for it; `lasting` where nobody has to be for now."""

    verdict: Verdict
    size: int | None = None
    lasting: Lasting | None = None


@dataclass(frozen=True, slots=True)
class KnownBlob:
    """What the records say; `stamp` is for all that was read, and for the blob's being stored."""

    standing: Standing
    member: MemberRecord | None
    stamp: Stamp


class BlobRights:
    """Judges by the records, and asks by HEAD what they do not say."""

    def __init__(
        self,
        records: Records,
        rights: Rights,
        attempts: Attempts[int],
        origin: BlobOrigin,
        size_here: Callable[[Ask, Digest], Awaitable[int | None]],
        clock: Clock,
    ) -> None:
        """`size_here`: that of the blob in the store, None where there is none."""
        self._records = records
        self._rights = rights
        self._attempts = attempts
        self._origin = origin
        self._size_here = size_here
        self._clock = clock

    async def known(self, ask: Ask, digest: Digest) -> KnownBlob:
        """What the records say of `ask` and the blob."""
        keys = proof_key(ask.principal, ask.repository), member_key(ask.repository, digest)
        stamp = self._records.stamp(*keys, stored_key(digest))
        raw_proof, raw_member = await self._records.get(*keys)
        member = member_for(ask, raw_member)
        standing = Standing(self._rights.proof(ask, raw_proof), member.gone if member is not None else None)
        return KnownBlob(standing, member, stamp)

    async def ensure(self, ask: Ask, digest: Digest) -> Right:
        """Make sure `ask` may have a blob that is here, asking the upstream where that is not known.

        Raises UpstreamError.
        """
        known = await self.known(ask, digest)
        if known.member is None:
            return Right(Verdict(CacheState.REVALIDATED, 0.0), await self.vouch(ask, digest, False))
        return await self.of_member(ask, digest, known, known.member)

    def lasts(self, lasting: Lasting) -> Right:
        """The right that was looked up before."""
        return Right(Verdict(CacheState.HIT, max(0.0, self._clock() - lasting.checked)), lasting=lasting)

    async def of_member(self, ask: Ask, digest: Digest, known: KnownBlob, member: MemberRecord) -> Right:
        """The right to what is `known` as a member. Raises UpstreamError."""
        now, standing = self._clock(), known.standing
        if standing.freshness(ask, now) is Freshness.FRESH and standing.counts(ask, now):
            return Right(self._hit(member), lasting=_lasting(ask, known, member))
        usable = standing.counts_in_outage(ask, now)
        try:
            return Right(Verdict(CacheState.REVALIDATED, 0.0), await self.vouch(ask, digest, usable))
        except UpstreamMissing as error:
            if not standing.counts_when_deleted(ask, now):
                raise
            age = max(0.0, self._clock() - member.at)
            return Right(deleted("this blob", age, None, not isinstance(error, KnownMissing)))
        except UpstreamFailure:
            if not usable:
                raise
            if ask.lifetimes.offline:
                await self._rights.keep_on(ask, member_key(ask.repository, digest))
            return Right(self._hit(member))

    async def vouch(self, ask: Ask, digest: Digest, usable: bool) -> int:
        """The upstream's word that the blob is in this repository, and its size; shared by all who want it."""
        key = (ask.principal.key, ask.repository, digest)
        size, _ = await self._attempts.run(ask, digest, key, lambda: self._ask_head(ask, digest), usable)
        return size

    def _hit(self, member: MemberRecord) -> Verdict:
        age = max(0.0, self._clock() - member.at)
        return Verdict(CacheState.HIT, age) if member.gone is None else deleted("this blob", age, None, False)

    async def _ask_head(self, ask: Ask, digest: Digest) -> int:
        generation = await self._attempts.generation(ask)
        size = await self._origin.size(ask, digest)
        here = await self._size_here(ask, digest)
        if here is not None and size != here:
            # Whatever it speaks of, it is not this blob.
            raise UpstreamInvalid(f"{ask.repository} {digest} has {size} bytes there and {here} here")
        await self._rights.grant(ask, digest, "", size, generation)
        return size


def _lasting(ask: Ask, known: KnownBlob, member: MemberRecord) -> Lasting | None:
    until = known.standing.proved_until(ask)
    return None if member.gone is not None or until is None else Lasting(until, known.stamp, member.at, None)
