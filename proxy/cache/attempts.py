"""Asking an upstream, and what its answer or its failure teaches; the same for manifests, blobs and lists.

Invariants:
- All who want the same thing share one attempt; it belongs to nobody who waits.
- Whoever has something to fall back on waits `revalidate_timeout` at most, and not at all while a circuit stands.
- Nobody joins an attempt that began before the repository's last push through here, and no 404 from before it counts.
- A refusal ends the principal's proof; a 404 is remembered for that principal and ends what it contradicts; a failure
  opens a circuit; every other answer closes those it was in.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.records import member_key, proof_key, tag_key
from proxy.cache.singleflight import SingleFlight
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.backoff import OWN, Circuit, Scope, Subject, open_circuit
from proxy.upstream.client import HEAD_LIMIT
from proxy.upstream.errors import UpstreamError, UpstreamFailure, UpstreamInvalid, UpstreamMissing, UpstreamRefused

T = TypeVar("T")
Attempt = Callable[[], Coroutine[Any, Any, T]]

_log = logging.getLogger("pullthrough.cache")

_MOST_CIRCUITS = 4096
_MOST_MISSING = 8192


class LeftAlone(UpstreamFailure):
    """The upstream was not asked, since it failed a moment ago."""


class Circuits:
    """The back-off of every scope that fails at present."""

    def __init__(self, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._circuits: dict[Scope, Circuit] = {}

    def failing(self, subject: Subject, proved: bool = True) -> Circuit | None:
        """The circuit that holds `subject` back longest; it is open, or due for a probe.

        Where it is not `proved`, only what the principal itself met, or what nobody can bring about, counts: else
        whoever lost a right could make the upstream fail for somebody else, and be served on.
        """
        scopes = subject.scopes() if proved else subject.scopes_of_rights()
        found = [circuit for scope in scopes if (circuit := self._living(scope)) is not None]
        return max(found, key=lambda circuit: circuit.until, default=None)

    def failed(self, subject: Subject, failure: UpstreamFailure) -> None:
        """`subject` met `failure`. A 429 without Retry-After learns how long our own step is."""
        now = self._clock()
        invalid = isinstance(failure, UpstreamInvalid)
        scope = subject.scope_of(failure.reason, failure.at_token_server, invalid)
        opened = self._open(scope, failure, now)
        circuit = self._circuits[scope]
        if opened:
            _log.warning("%s (%s, failure %d of %s)", failure, failure.reason, circuit.failures, "/".join(scope))
        if scope not in subject.scopes_of_rights():
            self._open(subject.own_scope(), failure, now)
        if failure.reason == "429" and failure.retry_after is None:
            failure.retry_after = circuit.until - now
        if len(self._circuits) > _MOST_CIRCUITS:
            self._circuits = _most_of(self._circuits, now)

    def _open(self, scope: Scope, failure: UpstreamFailure, now: float) -> bool:
        """Open the circuit of `scope` for a step; not where it is open: that failure is one more of the same."""
        circuit = self._living(scope)
        if circuit is not None and circuit.is_open(now):
            return False
        self._circuits[scope] = open_circuit(circuit, failure.reason, failure.retry_after, now, self._jitter())
        return True

    def succeeded(self, subject: Subject) -> None:
        """`subject` was answered."""
        for scope in subject.scopes():
            self._circuits.pop(scope, None)

    def living(self) -> list[tuple[Scope, Circuit]]:
        """What is left alone at present, and how."""
        now = self._clock()
        return [(scope, circuit) for scope, circuit in self._circuits.items() if not circuit.is_over(now)]

    def forget(self, registries: Collection[str]) -> None:
        """Other upstreams serve `registries` now: how those before them failed says nothing."""
        self._circuits = {scope: circuit for scope, circuit in self._circuits.items() if scope[1] not in registries}

    def raise_if_hopeless(self, subject: Subject) -> None:
        """Raise LeftAlone where asking is pointless now: no connection, or a rate limit that still runs.

        A 5xx may concern one thing only, so others of the repository still ask.
        """
        circuit, now = self.failing(subject), self._clock()
        if circuit is not None and circuit.is_open(now) and circuit.reason in {"connect", "429"}:
            raise _left_alone(subject, circuit, now)

    def _living(self, scope: Scope) -> Circuit | None:
        circuit = self._circuits.get(scope)
        if circuit is not None and circuit.is_over(self._clock()):
            del self._circuits[scope]
            return None
        return circuit


def _most_of(circuits: dict[Scope, Circuit], now: float) -> dict[Scope, Circuit]:
    """Without those that are over, and half as many at most; what concerns one principal and reference goes first."""
    living = [item for item in circuits.items() if not item[1].is_over(now)]
    half = _MOST_CIRCUITS // 2
    living.sort(key=lambda item: item[0][0] != OWN)
    return dict(living[-half:])


class Missing:
    """404s remembered for a while, for each principal: (principal, repository, reference) → until when.

    `generation` is the repository's when the upstream was asked, or when the 404 is to count.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[tuple[str, Repository, str], tuple[float, bytes | None]] = {}

    def remember(self, ask: Ask, reference: str, generation: bytes | None) -> None:
        """The upstream has no `reference` for `ask`."""
        now = self._clock()
        if len(self._until) >= _MOST_MISSING:
            self._until = {key: entry for key, entry in self._until.items() if entry[0] > now}
        if ask.lifetimes.negative_ttl > 0 and len(self._until) < _MOST_MISSING:
            key = (ask.principal.key, ask.repository, reference)
            self._until[key] = (now + ask.lifetimes.negative_ttl, generation)

    def raise_if_known(self, ask: Ask, reference: str, generation: bytes | None) -> None:
        """Raise UpstreamMissing where the 404 still counts: never longer than for the one who asks now."""
        key = (ask.principal.key, ask.repository, reference)
        until, before = self._until.get(key, (0.0, None))
        if before == generation and 0 < until - self._clock() <= ask.lifetimes.negative_ttl:
            raise UpstreamMissing(f"{ask.repository} has no {reference}, as asked before")


class Attempts(Generic[T]):
    """The attempts of one kind: `manifest`, `blob` or `list`."""

    def __init__(self, kind: str, records: Records, rights: Rights, circuits: Circuits, clock: Clock) -> None:
        self._kind = kind
        self._records = records
        self._rights = rights
        self._circuits = circuits
        self._missing = Missing(clock)
        self._clock = clock
        self._flights: SingleFlight[T] = SingleFlight(kind)

    async def run(
        self,
        ask: Ask,
        reference: str | Digest,
        key: Hashable,
        attempt: Attempt[T],
        usable: bool,
        proved: bool = False,
    ) -> tuple[T, bool]:
        """The result of `attempt`, shared under `key`, and whether another one's was joined.

        `usable`: the caller has something to fall back on when this raises UpstreamFailure. `proved`: its proof counts,
        so that this is no question of rights. Raises UpstreamError.
        """
        subject, generation = self._subject(ask, reference), await self.generation(ask)
        self._missing.raise_if_known(ask, str(reference), generation)
        key, learning = (generation, key), self._learning(ask, reference, attempt, generation)
        circuit, now = self._circuits.failing(subject, proved), self._clock()
        if usable and circuit is not None:
            if not circuit.is_open(now):
                # One probe a step goes out in the background, shared and owned like any attempt.
                self._flights.start(key, learning)
            raise _left_alone(subject, circuit, now)
        self._circuits.raise_if_hopeless(subject)
        task, joined = self._flights.start(key, learning)
        try:
            async with asyncio.timeout(ask.lifetimes.revalidate_timeout if usable else HEAD_LIMIT):
                return await asyncio.shield(task), joined
        except TimeoutError as error:
            failure = UpstreamFailure("timeout", f"{ask.repository.registry} did not answer in time")
            self._circuits.failed(subject, failure)
            raise failure from error

    async def generation(self, ask: Ask) -> bytes | None:
        """The generation of what is asked for, for an attempt of the caller's own."""
        return await self._records.generation(ask.repository)

    def check(self, ask: Ask, reference: str | Digest, generation: bytes | None) -> None:
        """Raise UpstreamMissing or LeftAlone where an attempt of the caller's own would be pointless."""
        self._missing.raise_if_known(ask, str(reference), generation)
        self._circuits.raise_if_hopeless(self._subject(ask, reference))

    def succeeded(self, ask: Ask, reference: str | Digest) -> None:
        """An attempt of the caller's own was answered."""
        self._circuits.succeeded(self._subject(ask, reference))

    async def failed(self, ask: Ask, reference: str | Digest, error: UpstreamError, generation: bytes | None) -> None:
        """An attempt of the caller's own, which began in `generation`, met `error`."""
        if isinstance(error, UpstreamFailure):
            if not isinstance(error, LeftAlone):
                self._circuits.failed(self._subject(ask, reference), error)
            return
        self.succeeded(ask, reference)
        if isinstance(error, UpstreamRefused):
            await self._rights.refuse(ask)
        elif isinstance(error, UpstreamMissing):
            await self._gone(ask, reference, generation)

    async def close(self) -> None:
        """End what is under way."""
        await self._flights.close()

    def _learning(self, ask: Ask, reference: str | Digest, attempt: Attempt[T], generation: bytes | None) -> Attempt[T]:
        async def run() -> T:
            try:
                result = await attempt()
            except UpstreamError as error:
                await self.failed(ask, reference, error, generation)
                raise
            self.succeeded(ask, reference)
            return result

        return run

    async def _gone(self, ask: Ask, reference: str | Digest, generation: bytes | None) -> None:
        self._missing.remember(ask, str(reference), generation)
        if self._kind == "list":
            return
        (proof,) = await self._records.get(proof_key(ask.principal, ask.repository))
        if self._rights.proof(ask, proof) is None:
            # To those who may not read the repository some registries say 404 as well: that ends nothing.
            return
        if isinstance(reference, Digest):
            await self._records.delete(member_key(ask.repository, reference))
        else:
            await self._records.delete(tag_key(ask.repository, reference))

    def _subject(self, ask: Ask, reference: str | Digest) -> Subject:
        return Subject(ask.repository, ask.principal, self._kind, str(reference))


def _left_alone(subject: Subject, circuit: Circuit, now: float) -> LeftAlone:
    message = f"{subject.repository.registry} is left alone after failing ({circuit.reason})"
    return LeftAlone(circuit.reason, message, retry_after=max(0.0, circuit.until - now))
