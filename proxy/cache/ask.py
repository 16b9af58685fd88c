"""What every use case is asked with, and the shells around the store and the back-off that all of them share."""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.cache.records import KEEP_CONTENT, MemberRecord, dump_proof, member_key, proof_key
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import Principal, Proof
from proxy.policy.backoff import Circuit, Scope, open_circuit, scope_of, scopes_of
from proxy.policy.freshness import Lifetimes
from proxy.storage.base import MetadataStore, StorageError
from proxy.upstream.errors import UpstreamFailure

_log = logging.getLogger("pullthrough.cache")

_MOST_CIRCUITS = 4096
_MOST_MISSING = 8192
_LOG_INTERVAL = 60.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Ask:
    """Who asks in which repository, and the times that hold for them."""

    repository: Repository
    principal: Principal
    lifetimes: Lifetimes


class Records:
    """The metadata store, without its troubles: what cannot be read is absent, what cannot be written is logged.

    A broken store costs requests to upstreams, never an answer.
    """

    def __init__(self, store: MetadataStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._last_logged = 0.0

    async def get(self, *keys: str) -> list[bytes | None]:
        """The values of `keys`; None for what is absent or cannot be read."""
        try:
            return await self._store.get(*keys)
        except StorageError as error:
            self._trouble(error)
            return [None] * len(keys)

    async def put(self, entries: Mapping[str, bytes], keep: float = KEEP_CONTENT) -> None:
        """Store all of `entries` for `keep` seconds, if the store can."""
        try:
            await self._store.put(entries, keep)
        except StorageError as error:
            self._trouble(error)

    async def delete(self, *keys: str) -> None:
        """Remove `keys`, if the store can."""
        try:
            await self._store.delete(*keys)
        except StorageError as error:
            self._trouble(error)

    def _trouble(self, error: StorageError) -> None:
        now = self._clock()
        if abs(now - self._last_logged) >= _LOG_INTERVAL:
            self._last_logged = now
            _log.error("%s; going on without it", error)


class Rights:
    """Proofs and membership as they are written; `policy.access` judges them."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock

    async def grant(self, ask: Ask, digest: Digest, media_type: str, size: int) -> MemberRecord:
        """The upstream answered `ask` with this manifest or blob: a proof for the one, membership for the other."""
        now = self._clock()
        member = MemberRecord(media_type, size, now)
        await self._records.put({member_key(ask.repository, digest): member.dump()})
        await self.prove(ask)
        return member

    async def prove(self, ask: Ask) -> None:
        """The upstream answered `ask`."""
        lifetimes = ask.lifetimes
        keep = lifetimes.proof_ttl + max(lifetimes.stale_if_error, lifetimes.proof_stale_if_error)
        await self._records.put({proof_key(ask.principal, ask.repository): dump_proof(Proof(self._clock()))}, keep)

    async def refuse(self, ask: Ask) -> None:
        """The upstream refused `ask`: its proof ends."""
        await self._records.delete(proof_key(ask.principal, ask.repository))


class Circuits:
    """The back-off of every scope that fails at present."""

    def __init__(self, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._circuits: dict[Scope, Circuit] = {}

    def failing(self, ask: Ask) -> Circuit | None:
        """The circuit that holds `ask` back longest; it may be due for a probe (`until` has passed)."""
        found = [self._circuits[scope] for scope in scopes_of(ask.repository, ask.principal) if scope in self._circuits]
        return max(found, key=lambda circuit: circuit.until, default=None)

    def failed(self, ask: Ask, failure: UpstreamFailure) -> None:
        """`ask` met `failure`."""
        now = self._clock()
        if len(self._circuits) >= _MOST_CIRCUITS:
            self._circuits = {scope: circuit for scope, circuit in self._circuits.items() if circuit.until > now}
        scope = scope_of(failure.reason, failure.at_token_server, ask.repository, ask.principal)
        before = self._circuits.get(scope)
        if before is None or before.until <= now:
            # A failure while the circuit is open is one more of the same, not a further step, nor a further line.
            circuit = open_circuit(before, failure.reason, failure.retry_after, now, self._jitter())
            self._circuits[scope] = circuit
            _log.warning("%s (%s, failure %d of %s)", failure, failure.reason, circuit.failures, "/".join(scope[:2]))

    def succeeded(self, ask: Ask) -> None:
        """`ask` was answered."""
        for scope in scopes_of(ask.repository, ask.principal):
            self._circuits.pop(scope, None)

    def raise_if_hopeless(self, ask: Ask) -> None:
        """Raise the failure again where asking is pointless now: no connection, or a rate limit that still runs.

        A 5xx may concern one manifest only, so others of the repository still ask.
        """
        circuit, now = self.failing(ask), self._clock()
        if circuit is not None and circuit.until > now and circuit.reason in {"connect", "429"}:
            raise UpstreamFailure(
                circuit.reason,
                f"{ask.repository.registry} is left alone after failing ({circuit.reason})",
                retry_after=circuit.until - now,
            )


class Missing:
    """404s remembered for a while, for each principal: (principal, repository, reference) → the upstream's code."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[tuple[str, Repository, str], tuple[float, str | None]] = {}

    def remember(self, ask: Ask, reference: str, code: str | None) -> None:
        """The upstream has no `reference` for `ask`."""
        now = self._clock()
        if len(self._until) >= _MOST_MISSING:
            self._until = {key: entry for key, entry in self._until.items() if entry[0] > now}
        if ask.lifetimes.negative_ttl > 0 and len(self._until) < _MOST_MISSING:
            key = (ask.principal.key, ask.repository, reference)
            self._until[key] = (now + ask.lifetimes.negative_ttl, code)

    def find(self, ask: Ask, reference: str) -> tuple[float, str | None] | None:
        """Seconds the 404 still counts, and its code; None where it is to be asked again."""
        entry = self._until.get((ask.principal.key, ask.repository, reference))
        left = entry[0] - self._clock() if entry is not None else 0.0
        # A 404 never counts longer than for the one who asks, nor after the clock was set back.
        return (left, entry[1]) if entry is not None and 0 < left <= ask.lifetimes.negative_ttl else None
