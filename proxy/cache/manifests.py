"""Manifests by tag and by digest (DESIGN, section 4).

Invariants:
- Nothing is stored under a digest that it does not have, and nothing is given to a principal without a proof for the
  repository and the manifest's membership in it.
- GET and HEAD are answered from the same record, so they agree.
- All requests for one tag share one attempt; the attempt belongs to nobody who waits. What it found is judged by the
  times of each who waited: a cluster with shorter ones than who began it asks again.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.attempts import Attempt, Attempts
from proxy.cache.checks import Checks, Outcome, is_ahead
from proxy.cache.circuits import Circuits
from proxy.cache.known import Both, Knowledge, Known, Lasting
from proxy.cache.missing import KnownMissing
from proxy.cache.origin import Content, ManifestOrigin, PullKept
from proxy.cache.records import HoldRecord, TagRecord, manifest_key, member_key, tag_key
from proxy.cache.turns import Turns
from proxy.oci.digest import Digest
from proxy.oci.reference import TagOrDigest
from proxy.policy.freshness import CacheState, Freshness, Verdict, deleted, freshness, why_not
from proxy.telemetry.events import StaleServed, Tell
from proxy.upstream.budgets import Budgets
from proxy.upstream.client import Upstream
from proxy.upstream.errors import LeftAlone, UpstreamFailure, UpstreamMissing


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest for a client; `body` is None where only its head was asked for.

    `lasting`: for how long the same may be answered without looking; None where it may not.
    """

    content: Content
    verdict: Verdict
    lasting: Lasting | None = None


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
        turns: Turns | None = None,
    ) -> None:
        """`turns` are those of all processes that share the records, where there are several."""
        self._budgets = budgets
        self._rights = rights
        self._clock = clock
        self._tell = tell
        self._knowledge = Knowledge(records, rights, clock)
        origin = ManifestOrigin(upstreams, records, rights, budgets, tell)
        self._checks = Checks(origin, records, self._knowledge, budgets, clock)
        self._attempts: Attempts[Outcome] = Attempts("manifest", records, rights, circuits, clock, turns)

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
        known, now = await self._knowledge.of_digest(ask, digest, want_body), self._clock()
        if known.content is not None and known.is_good(ask, now):
            answer = self._known_digest(ask, known, known.content)
            return replace(answer, lasting=known.lasting(ask, None))
        usable = known.is_usable(ask, now)
        key = ("digest", ask.principal.limited_as, ask.repository, digest, want_body)
        try:
            outcome = await self._find(
                ask, digest, key, partial(self._checks.digest, ask, digest, want_body), known, usable
            )
        except UpstreamMissing as error:
            if known.content is None or not known.outlives(ask, now):
                raise
            return self._deleted_digest(ask, known.content, attempted=not isinstance(error, KnownMissing))
        except UpstreamFailure:
            if known.content is None or not usable:
                raise
            if ask.lifetimes.offline:
                await self._rights.keep_on(ask, member_key(ask.repository, digest), manifest_key(digest))
            return self._known_digest(ask, known, known.content)
        return _digest_answer(outcome.content, outcome.state, self._clock())

    def _known_digest(self, ask: Ask, known: Known, content: Content) -> ManifestAnswer:
        if known.standing.gone is not None:
            return self._deleted_digest(ask, content, attempted=False)
        return _digest_answer(content, CacheState.HIT, self._clock())

    def _deleted_digest(self, ask: Ask, content: Content, attempted: bool) -> ManifestAnswer:
        self._tell(StaleServed(ask.repository.registry, "404"))
        age = max(0.0, self._clock() - content.at)
        return ManifestAnswer(content, deleted("this manifest", age, None, attempted))

    # By tag.

    async def _by_tag(self, ask: Ask, tag: str, want_body: bool) -> ManifestAnswer:
        known, now = await self._knowledge.of_tag(ask, tag, want_body), self._clock()
        if known.hold is not None:
            return await self._held_answer(ask, tag, known, known.hold, want_body)
        if known.record is not None and known.content is not None and known.is_good(ask, now):
            if is_ahead(ask, tag, known.record, now):
                check = partial(self._checks.tag, ask, tag, False, ahead=True)
                await self._attempts.ahead(ask, tag, self._tag_key(ask, tag, False), self._by_its_times(ask, check))
            answer = self._tag_answer(ask, tag, Outcome(known.content, CacheState.HIT, known.record))
            return replace(answer, lasting=known.lasting(ask, tag))
        if (kept := self._checks.kept_back(ask, tag, known)) is not None:
            return self._tag_answer(ask, tag, kept)
        usable = known.freshness is not Freshness.EXPIRED and known.is_usable(ask, now)
        # A HEAD that knows nothing costs no pull, so it must not be what a GET joins.
        key = self._tag_key(ask, tag, want_body and known.content is None)
        try:
            outcome = await self._find(ask, tag, key, partial(self._checks.tag, ask, tag, want_body), known, usable)
        except UpstreamMissing as error:
            if known.content is None or known.record is None or not known.outlives(ask, now):
                raise
            attempted = not isinstance(error, KnownMissing)
            return self._deleted_tag(ask, tag, known.content, known.record, attempted)
        except UpstreamFailure as failure:
            if not usable:
                raise
            return await self._stale_answer(ask, tag, known, failure)
        return self._tag_answer(ask, tag, outcome, attempted=outcome.asked)

    def _tag_key(self, ask: Ask, tag: str, whole: bool) -> Hashable:
        return "tag", ask.principal.limited_as, ask.repository, tag, whole

    async def _find(
        self,
        ask: Ask,
        reference: TagOrDigest,
        key: Hashable,
        attempt: Attempt[Outcome],
        known: Known,
        usable: bool,
    ) -> Outcome:
        """What an attempt finds, its own or one that was joined, as it came about for `ask`. Raises UpstreamError."""
        by_its_times = self._by_its_times(ask, attempt)
        now = self._clock()
        proved = known.is_proved(ask, now)
        outcome, joined = await self._attempts.run(ask, reference, key, by_its_times, usable, proved)
        if joined and not self._suits(ask, reference, outcome, now):
            # Only those with the same times share this one.
            key = (key, ask.lifetimes)
            outcome, joined = await self._attempts.run(ask, reference, key, by_its_times, usable, proved)
        return replace(outcome, state=_shared(outcome.state, joined))

    def _by_its_times(self, ask: Ask, attempt: Attempt[Outcome]) -> Attempt[Outcome]:
        async def by_its_times() -> Outcome:
            return replace(await attempt(), lifetimes=ask.lifetimes)

        return by_its_times

    def _suits(self, ask: Ask, reference: TagOrDigest, outcome: Outcome, since: float) -> bool:
        """Is what was found in an attempt of whoever began it good for `ask`, who looked at `since`, as well?"""
        if outcome.lifetimes == ask.lifetimes:
            return True
        record = outcome.record
        if record is None or not outcome.asked:
            return outcome.asked
        ttl = ask.lifetimes.ttl_of(ask.repository.name, str(reference))
        return record.checked >= since or freshness(record.checked, self._clock(), ttl, 0.0) is Freshness.FRESH

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
            partial(self._checks.look, ask, tag, fetch), not fetch, not fetch,
        )  # fmt: skip
        assert outcome.record is not None  # noqa: S101 - what `Checks.look` gives
        return outcome.record

    # Answers.

    async def _held_answer(self, ask: Ask, tag: str, known: Known, hold: HoldRecord, want_body: bool) -> ManifestAnswer:
        record, answer = known.record, await self._by_digest(ask, Digest.parse(hold.digest), want_body)
        warning = f"{tag} is held at this digest by an operator"
        if record is not None and (upstream := record.upstream_digest or record.digest) != hold.digest:
            warning += f"; upstream it is {upstream}"
        verdict, lasting = replace(answer.verdict, detail="held", warning=warning), answer.lasting
        if lasting is not None:
            lasting = replace(lasting, stamp=Both(known.stamp, lasting.stamp))
        return ManifestAnswer(answer.content, verdict, lasting)

    def _tag_answer(self, ask: Ask, tag: str, outcome: Outcome, attempted: bool = False) -> ManifestAnswer:
        record = outcome.record
        if record is not None and record.gone is not None:
            return self._deleted_tag(ask, tag, outcome.content, record, attempted)
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
        ttl = ask.lifetimes.ttl_of(ask.repository.name, tag) - age
        return ManifestAnswer(outcome.content, Verdict(outcome.state, age, ttl, detail, warning, attempted))

    def _deleted_tag(self, ask: Ask, tag: str, content: Content, record: TagRecord, attempted: bool) -> ManifestAnswer:
        self._tell(StaleServed(ask.repository.registry, "404"))
        age = max(0.0, self._clock() - record.checked)
        ttl = ask.lifetimes.ttl_of(ask.repository.name, tag) - age
        return ManifestAnswer(content, deleted(tag, age, ttl, attempted))

    async def _stale_answer(self, ask: Ask, tag: str, known: Known, failure: UpstreamFailure) -> ManifestAnswer:
        assert known.record is not None and known.content is not None  # noqa: S101 - what `usable` means
        if ask.lifetimes.offline:
            digest = known.content.digest
            keys = (tag_key(ask.repository, tag), member_key(ask.repository, digest), manifest_key(digest))
            await self._rights.keep_on(ask, *keys)
        if known.freshness is Freshness.FRESH:
            # Only the proof had lapsed, and while the upstream fails it counts on.
            return self._tag_answer(ask, tag, Outcome(known.content, CacheState.HIT, known.record))
        self._tell(StaleServed(ask.repository.registry, failure.reason))
        age = max(0.0, self._clock() - known.record.checked)
        verdict = Verdict(
            CacheState.STALE,
            age,
            ask.lifetimes.ttl_of(ask.repository.name, tag) - age,
            detail=f"stale-{failure.reason}",
            warning=f"{tag} was last checked {int(age)} s ago; the registry {why_not(failure.reason)}",
            attempted=not isinstance(failure, LeftAlone),
        )
        return ManifestAnswer(known.content, verdict)


def _digest_answer(content: Content, state: CacheState, now: float) -> ManifestAnswer:
    return ManifestAnswer(content, Verdict(state, max(0.0, now - content.at)))


def _shared(state: CacheState, joined: bool) -> CacheState:
    return CacheState.JOINED if joined and state is CacheState.MISS else state
