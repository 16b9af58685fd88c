"""How long to leave a failing upstream alone, and how much of it (DESIGN, section 4).

A circuit is opened by a failure for a *scope*: connection failures for the whole upstream, 5xx and timeouts for the
repository's manifests, blobs or lists, 429 and token-server failures for the principal at that upstream, so that one
client's 429 stops nobody else. An invalid answer speaks of its reference alone. What speaks of more than its principal
speaks of that and the reference as well: where a principal's right is the question, what others met is no answer.

A circuit is open for a step: stale answers leave at once and nobody asks. For as long again it is due: stale answers
still leave at once, while one probe goes out. Then it is over, and the next request asks for itself.
"""

from dataclasses import dataclass, replace
from typing import Literal

from proxy.oci.reference import Repository
from proxy.policy.access import Principal

# `offline` opens no circuit: it is the configuration's word.
Reason = Literal["connect", "timeout", "5xx", "429", "offline"]
Scope = tuple[str, ...]
# How the scopes begin that concern one principal and reference.
OWN = "own"

_FIRST_STEP = 1.0
_LONGEST_STEP = 60.0
_LONGEST_RETRY_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """Opened at `opened` (Unix seconds) for `step` seconds, after `failures` in a row, the last for `reason`.

    `due_for`: how many seconds it is due at least, where another process may have a probe under way.
    """

    failures: int
    opened: float
    step: float
    reason: Reason
    due_for: float = 0.0

    @property
    def until(self) -> float:
        """When it is due for a probe."""
        return self.opened + self.step

    def is_open(self, now: float) -> bool:
        """Is nobody to ask?"""
        return now < self.until

    def is_over(self, now: float) -> bool:
        """Does it say nothing any more? Also where the clock was set back: how old it is nobody knows then."""
        return not self.opened <= now < self.until + max(self.step, self.due_for)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about: its repository, whose it is, of which kind, and which reference."""

    repository: Repository
    principal: Principal
    kind: str
    reference: str

    def scopes(self) -> tuple[Scope, ...]:
        """Every scope that it is in."""
        registry, name = self.repository.registry, self.repository.name
        return (
            ("upstream", registry),
            ("principal", registry, self.principal.limited_as),
            ("repository", registry, name, self.kind),
            ("reference", registry, name, self.reference),
            self.own_scope(),
        )

    def own_scope(self) -> Scope:
        """What nobody else has met."""
        return OWN, self.repository.registry, self.repository.name, self.reference, self.principal.key

    def scopes_of_rights(self) -> tuple[Scope, ...]:
        """Every scope that says that its principal's right cannot be asked for."""
        upstream, principal, *_ = self.scopes()
        return upstream, principal, self.own_scope()

    def scope_of(self, reason: Reason, at_token_server: bool, invalid: bool) -> Scope:
        """What a failure of it speaks of."""
        upstream, principal, repository, reference, _ = self.scopes()
        if at_token_server or reason == "429":
            return principal
        if reason == "connect":
            return upstream
        return reference if invalid else repository


def open_circuit(
    before: Circuit | None, reason: Reason, retry_after: float | None, now: float, jitter: float
) -> Circuit:
    """The circuit after a failure at `now`. `jitter` in 0..1 spreads the probes of many proxies.

    The upstream's Retry-After (seconds) is obeyed when it is longer than our own step, up to an hour.
    """
    failures = before.failures + 1 if before is not None else 1
    step = min(_FIRST_STEP * 2.0 ** min(failures - 1, 16), _LONGEST_STEP) * (0.75 + 0.5 * jitter)
    return Circuit(failures, now, max(step, min(retry_after or 0.0, _LONGEST_RETRY_AFTER)), reason)


def prolonged(circuit: Circuit, reason: Reason, retry_after: float | None, now: float) -> Circuit | None:
    """The circuit, open at `now`, where another failure of the same step asks for a longer one; None where not."""
    until = now + min(retry_after or 0.0, _LONGEST_RETRY_AFTER)
    if until <= circuit.until:
        return None
    return replace(circuit, step=until - circuit.opened, reason=reason)
