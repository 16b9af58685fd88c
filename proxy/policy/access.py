"""May this principal see this? Proofs and membership (DESIGN, section 6).

Content is stored once. To be given it, a principal needs a *proof*, that the upstream answered it for this repository
lately, and the content needs *membership*, that the upstream served it in this repository.
"""

import base64
from dataclasses import dataclass, field
from typing import Literal

from proxy.policy.freshness import Lifetimes


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose rights a request has. `key` tells principals apart wherever they are kept; it is no secret.

    `authorization` is the client's own header, held in memory only.
    """

    kind: Literal["anonymous", "own", "client"]
    key: str
    authorization: str | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """The upstream answered a principal for a repository at `at` (Unix seconds)."""

    at: float


def proof_counts(proof: Proof | None, now: float, lifetimes: Lifetimes) -> bool:
    """Is the proof good without asking?"""
    return proof is not None and abs(now - proof.at) < lifetimes.proof_ttl


def proof_counts_in_outage(proof: Proof | None, principal: Principal, now: float, lifetimes: Lifetimes) -> bool:
    """Is it good while the upstream cannot be asked? A refusal has ended it before; only age is left to judge."""
    if proof is None:
        return False
    longer = lifetimes.proof_stale_if_error if principal.kind == "client" else lifetimes.stale_if_error
    return abs(now - proof.at) < lifetimes.proof_ttl + longer


def is_empty_authorization(header: str) -> bool:
    """An Authorization that says nothing: blank, or Basic with neither user nor password (some clients send that)."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() != "basic":
        return not scheme
    try:
        return base64.b64decode(value.strip(), validate=True) in {b"", b":"}
    except ValueError:
        return False
