"""May this principal see this? Proofs and membership (DESIGN, section 6).

Content is stored once. To be given it, a principal needs a *proof*, that the upstream answered it for this repository
lately, and the content needs *membership*, that the upstream served it in this repository.
"""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field, replace
from typing import Literal

from proxy.policy.freshness import Lifetimes


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose rights a request has. `key` tells principals apart wherever they are kept; it is no secret.

    `authorization` is the client's own header, held in memory only. `basic`: user and password out of it, where the
    proxy may exchange them for a token at the upstream's own realm. `expires`: when what the client sent ends, in Unix
    seconds, where that is known. `pulls_as`: whose rate limit may be used for what this one was proved to have a right
    to; it lends no right of its own.
    """

    kind: Literal["anonymous", "own", "client"]
    key: str
    authorization: str | None = field(default=None, repr=False, compare=False)
    basic: tuple[str, str] | None = field(default=None, repr=False, compare=False)
    expires: float | None = field(default=None, compare=False)
    pulls_as: "Principal | None" = field(default=None, compare=False)

    @property
    def proves_as(self) -> Literal["anonymous", "public", "own", "client"]:
        """Whose right is confirmed when this one is answered; `public` is nobody's, on the proxy's own account."""
        return self.kind if self.pulls_as is None else "public"

    @property
    def limited_as(self) -> str:
        """Under which key upstreams' rate limits, and token servers that fail, are counted."""
        return self.key if self.pulls_as is None else f"{self.key} by {self.pulls_as.key}"


@dataclass(frozen=True, slots=True)
class Proof:
    """The upstream answered a principal for a repository at `at` (Unix seconds)."""

    at: float


ANONYMOUS = Principal("anonymous", "anonymous")


def client_principal(key: bytes, registry: str, authorization: str, takes_basic: bool) -> Principal:
    """The principal of a client that sent `authorization` in a request for `registry`.

    `key` is the random key that principals are hashed with; `takes_basic`: clients like this one are asked for user and
    password by the proxy itself.
    """
    return Principal(
        "client",
        _hash(key, "client", registry, authorization),
        authorization,
        basic=_basic(authorization) if takes_basic else None,
        expires=_end_of_token(authorization),
    )


def own_principal(key: bytes, registry: str, identity: str) -> Principal:
    """The principal of the proxy's own credential for `registry`; `identity` tells it from another one."""
    return Principal("own", _hash(key, "own", registry, identity))


def public_principal(own: Principal) -> Principal:
    """Nobody, with nobody's rights, whose pulls count against the rate limit of the proxy's `own` credential."""
    return replace(ANONYMOUS, pulls_as=own)


def takes_basic(login: bool, renamed: bool, secure: bool, allow_plain: bool) -> bool:
    """Does the proxy ask a client for user and password itself, instead of handing it the upstream's challenge?

    In clusters that log in (`login`), and for clients that name the repository otherwise than the upstream does
    (`renamed`): they would ask the token server for the name they know. Never over a connection that others can read,
    unless that is allowed.
    """
    return (login or renamed) and (secure or allow_plain)


def proof_counts(proof: Proof | None, principal: Principal, now: float, lifetimes: Lifetimes) -> bool:
    """Is the proof good without asking?"""
    if proof is None or _is_over(principal, now):
        return False
    return abs(now - proof.at) < lifetimes.proof_ttl


def proof_ends(proof: Proof | None, principal: Principal, lifetimes: Lifetimes) -> float | None:
    """When it stops being good without asking (Unix seconds); None where there is none."""
    if proof is None:
        return None
    end = proof.at + lifetimes.proof_ttl
    return end if principal.expires is None else min(end, principal.expires)


def proof_counts_in_outage(proof: Proof | None, principal: Principal, now: float, lifetimes: Lifetimes) -> bool:
    """Is it good while the upstream cannot be asked? A refusal has ended it before; only age is left to judge."""
    if lifetimes.strict_proofs:
        return proof_counts(proof, principal, now, lifetimes)
    if proof is None or _is_over(principal, now):
        return False
    if lifetimes.offline and principal.kind != "client":
        return True
    longer = lifetimes.proof_stale_if_error if principal.kind == "client" else lifetimes.stale_if_error
    return abs(now - proof.at) < lifetimes.proof_ttl + longer


def proof_counts_when_deleted(proof: Proof | None, principal: Principal, now: float, lifetimes: Lifetimes) -> bool:
    """Is it good where the upstream says 404, and what it has deleted is served on (`serve_deleted`)?

    A 404 ends no right, and renews none. To a client whose right is not known now it may be a refusal.
    """
    if not lifetimes.serve_deleted:
        return False
    if principal.kind == "client" or lifetimes.strict_proofs:
        return proof_counts(proof, principal, now, lifetimes)
    return proof is not None


def is_empty_authorization(header: str) -> bool:
    """An Authorization that says nothing: blank, or Basic with neither user nor password (some clients send that)."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() != "basic":
        return not scheme
    try:
        return base64.b64decode(value.strip(), validate=True) in {b"", b":"}
    except ValueError:
        return False


def _is_over(principal: Principal, now: float) -> bool:
    return principal.expires is not None and now >= principal.expires


def _hash(key: bytes, *parts: str) -> str:
    return hmac.new(key, "\0".join(parts).encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:32]


def _basic(header: str) -> tuple[str, str] | None:
    """User and password (RFC 7617); None where the header has none, or in no charset that anybody would expect."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return (user, password) if colon else None


def _end_of_token(header: str) -> float | None:
    """When a bearer token ends that says so itself: `exp` of a JSON web token (RFC 7519, section 4.1.4).

    It is read without being verified: the upstream has taken the token, or nobody relies on it.
    """
    scheme, _, token = header.strip().partition(" ")
    parts = token.strip().split(".")
    if scheme.lower() != "bearer" or len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
