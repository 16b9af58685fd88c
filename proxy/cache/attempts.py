"""Asking an upstream, and what its answer or its failure teaches; the same for manifests, blobs and lists.

Invariants:
- All who want the same thing share one attempt, in this process and, where it takes turns, in all of them; it belongs
  to nobody who waits.
- Whoever has something to fall back on waits `revalidate_timeout` at most, and not at all while a circuit stands.
  That long waits only who began the attempt: others leave it when it has run for `_PATIENCE`, so that an upstream that
  falls silent is noticed by one client a thing and not by all who come in those seconds. (Not so where a client's own
  right is the question: it may be about to be refused.)
- What a circuit lets through once a step is one attempt of all processes: it has the turns of all circuits that it is
  the probe of.
- Nobody joins an attempt that began before the repository's last push through here, and no 404 from before it counts.
- A refusal ends the principal's proof; a 404 is remembered for that principal and ends what it contradicts, or marks it
  as gone where a cluster serves that on; a failure opens a circuit; every other answer closes those it was in.
- An upstream that is offline is not asked, in whatever way.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Generic, TypeVar

from proxy.cache.ask import Ask, Clock, Records, Rights
from proxy.cache.circuits import LONGEST_ATTEMPT, Circuits, left_alone
from proxy.cache.missing import Missing
from proxy.cache.records import MemberRecord, TagRecord, member_key, proof_key, tag_key
from proxy.cache.singleflight import SingleFlight
from proxy.cache.turns import Turns
from proxy.oci.digest import Digest
from proxy.policy.backoff import Scope, Subject
from proxy.upstream.client import HEAD_LIMIT
from proxy.upstream.errors import (
    LeftAlone,
    UpstreamError,
    UpstreamFailure,
    UpstreamMissing,
    UpstreamOffline,
    UpstreamRefused,
)

T = TypeVar("T")
Attempt = Callable[[], Coroutine[Any, Any, T]]

# For so long, in seconds, an attempt may have run before those who joined it leave with what they have.
_PATIENCE = 0.5
# Seconds: longer than what one process has met is on its way to the others.
_NEWS = 0.1


class Attempts(Generic[T]):
    """The attempts of one kind: `manifest`, `blob` or `list`. With `turns` they are shared by all processes."""

    def __init__(
        self,
        kind: str,
        records: Records,
        rights: Rights,
        circuits: Circuits,
        clock: Clock,
        turns: Turns | None = None,
    ) -> None:
        self._kind = kind
        self._records = records
        self._rights = rights
        self._circuits = circuits
        self._missing = Missing(clock)
        self._clock = clock
        self._turns = turns or Turns()
        self._flights: SingleFlight[T] = SingleFlight(kind)
        # Attempts that wait for another process's.
        self._following: set[Hashable] = set()

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
        _raise_if_offline(ask)
        subject, generation = self._subject(ask, reference), await self.generation(ask)
        self._missing.raise_if_known(ask, str(reference), generation)
        key = (generation, key)
        circuit = self._circuits.failing(subject, proved)
        if usable and circuit is not None:
            if self._circuits.may_ask(subject, proved):
                # One probe a step goes out in the background, shared and owned like any attempt.
                self._start(ask, reference, key, attempt, usable, proved)
            raise left_alone(subject, circuit, self._clock())
        if self._flights.age(key) is None:
            self._circuits.raise_if_hopeless(subject, again=True)
        task, joined = self._start(ask, reference, key, attempt, usable, proved)
        patient = not usable or (not proved and ask.principal.kind == "client")
        until = asyncio.get_running_loop().time() + (ask.lifetimes.revalidate_timeout if usable else HEAD_LIMIT)
        try:
            if not patient:
                await self._while_patient(ask, key, task, joined)
            async with asyncio.timeout_at(until):
                return await asyncio.shield(task), joined
        except TimeoutError as error:
            failure = UpstreamFailure("timeout", f"{ask.repository.registry} did not answer in time")
            self._circuits.failed(subject, failure)
            raise failure from error

    async def ahead(self, ask: Ask, reference: str, key: Hashable, attempt: Attempt[T]) -> None:
        """Begin `attempt` for nobody who waits, unless it runs already or the upstream fails."""
        subject = self._subject(ask, reference)
        if ask.lifetimes.offline or not self._circuits.may_ask(subject):
            return
        key = (await self.generation(ask), key)
        if self._flights.age(key) is None and self._circuits.may_ask(subject):
            self._start(ask, reference, key, attempt, usable=True, proved=True)

    async def generation(self, ask: Ask) -> bytes | None:
        """The generation of what is asked for, for an attempt of the caller's own."""
        return await self._records.generation(ask.repository)

    def begin(self, ask: Ask, reference: str | Digest, generation: bytes | None) -> Callable[[], None]:
        """An attempt of the caller's own begins; what this gives is to be called when it has ended.

        Where a circuit is due it is the probe, as any attempt is. Raises UpstreamMissing or LeftAlone where it would
        be pointless.
        """
        _raise_if_offline(ask)
        self._missing.raise_if_known(ask, str(reference), generation)
        subject = self._subject(ask, reference)
        self._circuits.raise_if_hopeless(subject)
        return self._circuits.asking(subject)

    def succeeded(self, ask: Ask, reference: str | Digest) -> None:
        """An attempt of the caller's own was answered."""
        self._missing.forget(ask, str(reference))
        self._circuits.succeeded(self._subject(ask, reference))

    async def failed(self, ask: Ask, reference: str | Digest, error: UpstreamError, generation: bytes | None) -> None:
        """An attempt of the caller's own, which began in `generation`, met `error`."""
        if isinstance(error, UpstreamFailure):
            if not isinstance(error, LeftAlone):
                self._circuits.failed(self._subject(ask, reference), error)
            return
        self._circuits.succeeded(self._subject(ask, reference))
        if isinstance(error, UpstreamRefused):
            await self._rights.refuse(ask)
        elif isinstance(error, UpstreamMissing):
            await self._gone(ask, reference, generation)

    async def close(self) -> None:
        """End what is under way."""
        await self._flights.close()

    def _start(
        self,
        ask: Ask,
        reference: str | Digest,
        key: tuple[bytes | None, Hashable],
        attempt: Attempt[T],
        usable: bool,
        proved: bool,
    ) -> tuple[asyncio.Task[T], bool]:
        """The attempt for `key`, begun now or joined; and whether it was joined."""
        subject = self._subject(ask, reference)
        probed = self._circuits.probed(subject, usable, proved)
        task, joined = self._flights.start(key, lambda: self._in_turn(ask, reference, key, attempt, probed, usable))
        if not joined:
            ended = self._circuits.asking(subject)
            task.add_done_callback(lambda _: ended())
        return task, joined

    async def _while_patient(self, ask: Ask, key: Hashable, task: asyncio.Task[T], joined: bool) -> None:
        """Wait as long as those do who have not begun the attempt.

        Raises UpstreamFailure where it is time for them to leave, LeftAlone where it was before they came.
        """
        age = self._flights.age(key) or 0.0
        patience = min(max(0.0, _PATIENCE - age), ask.lifetimes.revalidate_timeout)
        await asyncio.wait({task}, timeout=patience)
        if task.done() or not (joined or key in self._following):
            return
        message = f"{ask.repository.registry} has not answered yet"
        raise UpstreamFailure("timeout", message) if patience else LeftAlone("timeout", message)

    async def _in_turn(
        self,
        ask: Ask,
        reference: str | Digest,
        key: tuple[bytes | None, Hashable],
        attempt: Attempt[T],
        probed: tuple[Scope, ...],
        usable: bool,
    ) -> T:
        generation, _ = key
        subject = self._subject(ask, reference)
        # Not by the key: for one reference and the same rights it is one turn, whatever is wanted of it.
        turn = f"{self._kind} {ask.repository} {reference} {ask.principal.limited_as} {generation!r}"
        async with AsyncExitStack() as taken:
            await self._probe(subject, probed, usable, taken)
            mine = await self._turns.take(turn)
            followed = not mine
            if followed:
                self._following.add(key)
                try:
                    mine = await self._turns.wait(turn)
                finally:
                    self._following.discard(key)
            if mine:
                taken.push_async_callback(self._turns.give_back, turn)
            if followed:
                self._circuits.raise_if_open(subject)
            if not mine and not probed:
                # Whoever has it was not answered for long: of the circuits that this opened, here is the probe.
                await self._probe(subject, self._circuits.probed(subject, usable, proved=True), False, taken)
            return await self._learning(ask, reference, attempt, generation)

    async def _probe(self, subject: Subject, probed: tuple[Scope, ...], waits: bool, taken: AsyncExitStack) -> None:
        """Take the turns of the circuits of `probed`; `taken` gives them back.

        Another process's probe is waited for where nobody does for this one. Raises LeftAlone where that failed, or is
        still under way.
        """
        for scope in probed:
            turn = "probe " + "/".join(scope)
            if await self._turns.take(turn) or (waits and await self._turns.wait(turn, LONGEST_ATTEMPT)):
                taken.push_async_callback(self._turns.give_back, turn)
            elif not waits and (circuit := self._circuits.failing(subject)) is not None:
                raise left_alone(subject, circuit, self._clock())
        if probed and self._turns.shared:
            await asyncio.sleep(_NEWS)
            self._circuits.raise_if_open(subject, probed)

    async def _learning(self, ask: Ask, reference: str | Digest, attempt: Attempt[T], generation: bytes | None) -> T:
        try:
            result = await attempt()
        except UpstreamError as error:
            await self.failed(ask, reference, error, generation)
            raise
        self.succeeded(ask, reference)
        return result

    async def _gone(self, ask: Ask, reference: str | Digest, generation: bytes | None) -> None:
        self._missing.remember(ask, str(reference), generation)
        if self._kind == "list":
            return
        (proof,) = await self._records.get(proof_key(ask.principal, ask.repository))
        if self._rights.proof(ask, proof) is None:
            # To those who may not read the repository some registries say 404 as well: that ends nothing.
            return
        record_type: type[MemberRecord | TagRecord]
        if isinstance(reference, Digest):
            key, record_type = member_key(ask.repository, reference), MemberRecord
        else:
            key, record_type = tag_key(ask.repository, reference), TagRecord
        if not ask.lifetimes.deleted_kept:
            await self._records.delete(key)
            return
        (raw,) = await self._records.get(key)
        if (record := record_type.load(raw)) is not None:
            gone = replace(record, gone=self._clock())
            await self._records.put({key: gone.dump()}, only_while=(key, raw))

    def _subject(self, ask: Ask, reference: str | Digest) -> Subject:
        return Subject(ask.repository, ask.principal, self._kind, str(reference))


def _raise_if_offline(ask: Ask) -> None:
    if ask.lifetimes.offline:
        raise UpstreamOffline(ask.repository.registry)
