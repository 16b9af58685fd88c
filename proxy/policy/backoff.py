"""How long to leave a failing upstream alone, and how much of it (DESIGN, section 4).

A circuit is opened by a failure for a *scope*: connection failures for the whole upstream, 5xx for the repository, 429
and token-server failures for the principal at that upstream, so that one client's 429 stops nobody else. While it is
open stale answers leave at once; one probe a step may go out.
"""

from dataclasses import dataclass
from typing import Literal

from proxy.oci.reference import Repository
from proxy.policy.access import Principal

Reason = Literal["connect", "timeout", "5xx", "429"]
Scope = tuple[str, ...]

_FIRST_STEP = 1.0
_LONGEST_STEP = 60.0
_LONGEST_RETRY_AFTER = 3600.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """Open until `until` (Unix seconds) after `failures` in a row, the last of them for `reason`."""

    failures: int
    until: float
    reason: Reason


def scope_of(reason: Reason, at_token_server: bool, repository: Repository, principal: Principal) -> Scope:
    """What a failure speaks of."""
    if at_token_server or reason == "429":
        return ("principal", repository.registry, principal.key)
    if reason == "connect":
        return ("upstream", repository.registry)
    return ("repository", repository.registry, repository.name)


def scopes_of(repository: Repository, principal: Principal) -> tuple[Scope, ...]:
    """Every scope that a request is in."""
    return (
        ("upstream", repository.registry),
        ("repository", repository.registry, repository.name),
        ("principal", repository.registry, principal.key),
    )


def open_circuit(
    before: Circuit | None, reason: Reason, retry_after: float | None, now: float, jitter: float
) -> Circuit:
    """The circuit after a failure at `now`. `jitter` in 0..1 spreads the probes of many proxies.

    The upstream's Retry-After (seconds) is obeyed when it is longer than our own step, up to an hour.
    """
    failures = before.failures + 1 if before is not None else 1
    step = min(_FIRST_STEP * 2.0 ** min(failures - 1, 16), _LONGEST_STEP) * (0.75 + 0.5 * jitter)
    wait = max(step, min(retry_after or 0.0, _LONGEST_RETRY_AFTER))
    return Circuit(failures, now + wait, reason)
