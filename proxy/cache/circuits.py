"""The back-off of every scope that fails at present, and who may ask meanwhile (`policy.backoff`).

Invariants:
- A circuit that is due lets one attempt through. Until that has ended the circuit stands: everybody else is left alone,
  and its steps grow however long an upstream takes to fail.
- What another process has met counts as if it had been met here, and is not told on (`heard`). It stands for as long as
  a probe may take: of one that is under way there nothing is known here.
- What was asked for before a rate limit was met ends no wait that it was met with: it may not have counted.
"""

import logging
import math
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from proxy.cache.ask import Clock
from proxy.policy.backoff import OWN, Circuit, Scope, Subject, open_circuit, prolonged
from proxy.upstream.client import HEAD_LIMIT
from proxy.upstream.errors import LeftAlone, UpstreamFailure, UpstreamInvalid

_log = logging.getLogger("pullthrough.cache")

# Another process's circuit, None where that was answered, and when.
OnChange = Callable[[Scope, Circuit | None, float], None]

_MOST_CIRCUITS = 4096
# An attempt that takes longer, in seconds, holds nobody up any more: heads come within the limit, a body may trickle.
LONGEST_ATTEMPT = 2 * HEAD_LIMIT
# What asking again would meet as well, whatever it is that is asked for.
_HOPELESS = frozenset({"connect", "429"})


def _nobody(_scope: Scope, _circuit: Circuit | None, _at: float) -> None:
    """There are no other processes."""


class Circuits:
    """The circuits of one process. `on_change` is told of each that opens here, and of each that ends by an answer."""

    def __init__(self, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self.on_change: OnChange = _nobody
        self._clock = clock
        self._jitter = jitter
        self._circuits: dict[Scope, Circuit] = {}
        # When the attempts that are under way began, by scope.
        self._asking: dict[Scope, dict[object, float]] = {}

    def failing(self, subject: Subject, proved: bool = True) -> Circuit | None:
        """The circuit that holds `subject` back longest; it is open, or due for a probe.

        Where it is not `proved`, only what the principal itself met, or what nobody can bring about, counts: else
        whoever lost a right could make the upstream fail for somebody else, and be served on.
        """
        found = (circuit for _, circuit in self._found(subject, proved))
        return max(found, key=lambda circuit: circuit.until, default=None)

    def may_ask(self, subject: Subject, proved: bool = True) -> bool:
        """Is every circuit of `subject` due, and nobody asking already?"""
        return not any(self._holds(scope, circuit) for scope, circuit in self._found(subject, proved))

    def probed(self, subject: Subject, usable: bool, proved: bool) -> tuple[Scope, ...]:
        """The scopes of the circuits that an attempt of `subject` would be the probe of, always in the same order.

        Where there is nothing `usable` to fall back on, of those alone that hold everybody back.
        """
        own = subject.own_scope()
        found = self._found(subject, proved if usable else True)
        return tuple(scope for scope, circuit in found if usable or circuit.reason in _HOPELESS or scope == own)

    def asking(self, subject: Subject) -> Callable[[], None]:
        """An attempt of `subject` has begun; what this gives is to be called when it has ended."""
        token, now = object(), self._clock()
        for scope in subject.scopes():
            self._asking.setdefault(scope, {})[token] = now

        def ended() -> None:
            for scope in subject.scopes():
                others = self._asking.get(scope, {})
                others.pop(token, None)
                if not others:
                    self._asking.pop(scope, None)

        return ended

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
        self._forget_some(now)

    def succeeded(self, subject: Subject) -> None:
        """`subject` was answered."""
        now = self._clock()
        for scope in subject.scopes():
            circuit = self._circuits.get(scope)
            if circuit is None or (circuit.reason == "429" and circuit.is_open(now)):
                continue
            del self._circuits[scope]
            self.on_change(scope, None, now)

    def heard(self, scope: Scope, circuit: Circuit | None, at: float) -> None:
        """Another process says what became of `scope` at `at` (Unix seconds): see `on_change`."""
        before = self._circuits.get(scope)
        if circuit is None:
            # What failed here since then, it could not know of.
            if before is not None and before.opened <= at:
                del self._circuits[scope]
        elif before is None or before.until <= circuit.until:
            self._circuits[scope] = replace(circuit, due_for=LONGEST_ATTEMPT)
            self._forget_some(self._clock())

    def living(self) -> list[tuple[Scope, Circuit]]:
        """What is left alone at present, and how."""
        now = self._clock()
        return [(scope, circuit) for scope, circuit in self._circuits.items() if not circuit.is_over(now)]

    def forget(self, registries: Collection[str]) -> None:
        """Other upstreams serve `registries` now: how those before them failed says nothing."""
        self._circuits = {scope: circuit for scope, circuit in self._circuits.items() if scope[1] not in registries}
        self._asking = {scope: begun for scope, begun in self._asking.items() if scope[1] not in registries}

    def raise_if_hopeless(self, subject: Subject, again: bool = False) -> None:
        """Raise LeftAlone where asking is pointless now: no connection, or a rate limit that still runs.

        A 5xx may concern one thing only, so others of the repository still ask; with `again` not the very same one.
        """
        own, now = subject.own_scope(), self._clock()
        for scope, circuit in self._found(subject):
            pointless = circuit.reason in _HOPELESS or (again and scope == own)
            if pointless and self._holds(scope, circuit):
                raise left_alone(subject, circuit, now)

    def raise_if_open(self, subject: Subject, probed: Collection[Scope] = ()) -> None:
        """Raise LeftAlone where what `subject` is about to ask, or is the probe of, has just failed elsewhere."""
        own, now = subject.own_scope(), self._clock()
        for scope, circuit in self._found(subject):
            if circuit.is_open(now) and (circuit.reason in _HOPELESS or scope == own or scope in probed):
                raise left_alone(subject, circuit, now)

    def _open(self, scope: Scope, failure: UpstreamFailure, now: float) -> bool:
        """Open the circuit of `scope` for a step; where it is open, that failure is one more of the same."""
        circuit = self._living(scope)
        if circuit is None or not circuit.is_open(now):
            opened = open_circuit(circuit, failure.reason, failure.retry_after, now, self._jitter())
        else:
            longer = prolonged(circuit, failure.reason, failure.retry_after, now)
            if longer is None:
                return False
            opened = longer
        self._circuits[scope] = opened
        self.on_change(scope, opened, now)
        return True

    def _found(self, subject: Subject, proved: bool = True) -> Iterator[tuple[Scope, Circuit]]:
        for scope in subject.scopes() if proved else subject.scopes_of_rights():
            if (circuit := self._living(scope)) is not None:
                yield scope, circuit

    def _living(self, scope: Scope) -> Circuit | None:
        circuit = self._circuits.get(scope)
        if circuit is not None and circuit.is_over(self._clock()) and not self._is_asked(scope, circuit):
            del self._circuits[scope]
            return None
        return circuit

    def _holds(self, scope: Scope, circuit: Circuit) -> bool:
        # What began before it opened keeps it standing, but may be as lost as what opened it.
        return circuit.is_open(self._clock()) or self._is_asked(scope, circuit, since=circuit.opened)

    def _is_asked(self, scope: Scope, circuit: Circuit, since: float = -math.inf) -> bool:
        """Is an attempt under way, begun after `since`, whose end will say what becomes of `circuit`?"""
        now = self._clock()
        begun = self._asking.get(scope, {}).values()
        return circuit.opened <= now and any(since < at and 0 <= now - at < LONGEST_ATTEMPT for at in begun)

    def _forget_some(self, now: float) -> None:
        if len(self._circuits) > _MOST_CIRCUITS:
            self._circuits = _most_of(self._circuits, now)


def left_alone(subject: Subject, circuit: Circuit, now: float) -> LeftAlone:
    """What whoever is not to ask is told."""
    message = f"{subject.repository.registry} is left alone after failing ({circuit.reason})"
    return LeftAlone(circuit.reason, message, retry_after=max(0.0, circuit.until - now))


def _most_of(circuits: dict[Scope, Circuit], now: float) -> dict[Scope, Circuit]:
    """Without those that are over, and half as many at most; what concerns one principal and reference goes first."""
    living = [item for item in circuits.items() if not item[1].is_over(now)]
    half = _MOST_CIRCUITS // 2
    living.sort(key=lambda item: item[0][0] != OWN)
    return dict(living[-half:])
