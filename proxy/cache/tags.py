"""Lists: a repository's tags, a manifest's referrers. Kept like tags: for `tag_ttl`, longer while upstream fails."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.attempts import Attempts
from proxy.cache.circuits import Circuits
from proxy.cache.records import ListRecord, list_key, proof_key, pushed_key
from proxy.oci.manifest import OCI_INDEX, content_type_of
from proxy.oci.route import PAGE_KEYS
from proxy.policy.access import proof_counts, proof_counts_in_outage
from proxy.policy.freshness import CacheState, Freshness, Verdict, why_not
from proxy.telemetry.events import StaleServed, Tell
from proxy.upstream.client import Call, Reply, Upstream
from proxy.upstream.errors import LeftAlone, UpstreamFailure, UpstreamInvalid

# Nothing larger is held in memory; registries page long before.
_LIST_LIMIT = 8 * 1024 * 1024
# Nothing larger is kept: clients choose the queries, and each has a row of its own.
_LARGEST_KEPT = 512 * 1024

_LINK = re.compile(r"<([^<>]*)>([^<]*)")
_LONGEST_LINK = 4096
_NEXT = re.compile(r";\s*rel\s*=\s*(?:\"[^\"]*\bnext\b[^\"]*\"|next\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ListQuestion:
    """Which list: `path` is its place upstream after `/v2/<name>/`, `query` as upstream is to see it."""

    kind: Literal["tags", "referrers"]
    path: str
    query: tuple[tuple[str, str], ...]


class Lists:
    """The lists of all registries."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        records: Records,
        rights: Rights,
        circuits: Circuits,
        clock: Clock,
        tell: Tell,
    ) -> None:
        self._upstreams = upstreams
        self._records = records
        self._rights = rights
        self._clock = clock
        self._tell = tell
        self._attempts: Attempts[ListRecord] = Attempts("list", records, rights, circuits, clock)

    async def get(self, ask: Ask, question: ListQuestion) -> tuple[ListRecord, Verdict]:
        """The list. Raises UpstreamError; a 404 is the upstream's own: an invented empty list would hide signatures."""
        key = list_key(question.kind, ask.repository, f"{question.path}?{urlencode(question.query)}")
        raw_list, raw_proof, raw_generation = await self._records.get(
            key, proof_key(ask.principal, ask.repository, "list"), pushed_key(ask.repository)
        )
        generation = (raw_generation or b"").decode()
        record, proof, now = ListRecord.load(raw_list), self._rights.proof(ask, raw_proof, "list"), self._clock()
        lifetimes = ask.lifetimes
        state = Freshness.EXPIRED
        if record is not None:
            state = lifetimes.freshness_of(record.fetched, now, lifetimes.tag_ttl)
            if record.generation != generation and state is Freshness.FRESH:
                # Something was pushed since, or may have been.
                state = Freshness.STALE
            if state is Freshness.FRESH and proof_counts(proof, ask.principal, now, lifetimes):
                return record, self._verdict(ask, record, CacheState.HIT)
        usable = state is not Freshness.EXPIRED and proof_counts_in_outage(proof, ask.principal, now, lifetimes)
        try:
            fetched, joined = await self._attempts.run(
                ask,
                question.path,
                (ask.principal.key, key),
                lambda: self._fetch(ask, question, key, generation),
                usable,
                proof_counts(proof, ask.principal, now, lifetimes),
            )
        except UpstreamFailure as failure:
            if record is None or not usable:
                raise
            self._tell(StaleServed(ask.repository.registry, failure.reason))
            if lifetimes.offline:
                await self._rights.keep_on(ask, key, what="list")
            return record, self._verdict(ask, record, CacheState.STALE, failure)
        return fetched, self._verdict(ask, fetched, CacheState.JOINED if joined else CacheState.MISS)

    async def close(self) -> None:
        """End what is under way."""
        await self._attempts.close()

    def _verdict(
        self, ask: Ask, record: ListRecord, state: CacheState, failure: UpstreamFailure | None = None
    ) -> Verdict:
        age = max(0.0, self._clock() - record.fetched)
        if failure is None:
            return Verdict(state, age, ask.lifetimes.tag_ttl - age)
        return Verdict(
            state,
            age,
            ask.lifetimes.tag_ttl - age,
            detail=f"stale-{failure.reason}",
            warning=f"this list was fetched {int(age)} s ago; the registry {why_not(failure.reason)}",
            attempted=not isinstance(failure, LeftAlone),
        )

    async def _fetch(self, ask: Ask, question: ListQuestion, key: str, generation: str) -> ListRecord:
        call = Call(
            question.kind, "GET", ask.repository, ask.principal, question.path,
            headers={"Accept": f"{OCI_INDEX}, application/json"}, query=question.query,
        )  # fmt: skip
        async with self._upstreams[ask.repository.registry].request(call) as reply:
            record = await self._record(ask, reply, generation)
        if len(record.body) <= _LARGEST_KEPT:
            await self._records.put({key: record.dump()}, ask.lifetimes.lists_kept)
        await self._rights.prove(ask, "list")
        return record

    async def _record(self, ask: Ask, reply: Reply, generation: str) -> ListRecord:
        media_type = content_type_of(reply.headers.get("Content-Type", ""))
        if not media_type.endswith("json"):
            raise UpstreamInvalid(f"{ask.repository.registry} answered a list that is not JSON", reply.status)
        try:
            body = (await reply.read(_LIST_LIMIT)).decode()
        except UnicodeDecodeError as error:
            raise UpstreamInvalid(
                f"{ask.repository.registry} answered a list that is not UTF-8", reply.status
            ) from error
        return ListRecord(
            media_type, body, self._clock(), next_query(reply.headers.getall("Link", [])),
            reply.headers.get("OCI-Filters-Applied"), generation,
        )  # fmt: skip


def next_query(links: list[str]) -> str | None:
    """The query of the next page, out of Link headers (RFC 8288); None on the last page.

    Only the query is taken: wherever upstream says its next page is, ours is at the same path as this one.
    """
    for target, parameters in _LINK.findall(", ".join(links)[:_LONGEST_LINK]):
        if _NEXT.search(parameters):
            try:
                pairs = parse_qsl(urlsplit(target).query, keep_blank_values=True)
            except ValueError:
                return None
            kept = [(name, value) for name, value in pairs if name != "ns"]
            if any(name not in PAGE_KEYS | {"artifactType"} for name, _ in kept):
                # It would not come back to us whole, and a client that follows it would never end.
                return None
            return urlencode(kept) if kept else None
    return None
