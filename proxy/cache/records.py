"""What the metadata store holds, and under which keys. JSON objects and manifests' bytes, nothing else.

tag/<repository>:<tag>              which digest a tag has, since when, and when that was checked
manifest/<digest>                   a manifest's bytes
member/<repository>@<digest>        the upstream served this manifest or blob in this repository
proof/<principal>/<repository>      the upstream answered this principal for this repository
list/<kind>/<repository>?<query>    a list of tags or of referrers
wrong/<registry>/<digest>           when the registry last sent other bytes for this blob
pushed/<repository>                 another value after each push through here, and each purge (its generation)
history/<repository>:<tag>          the digests that a tag had, and how often each was served
nodes/<repository>:<tag>@<digest>   which clients were given that digest for the tag
hold/<repository>:<tag>             the digest that an operator had the tag keep
"""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository
from proxy.policy.access import Principal, Proof

# Content that can be fetched again is forgotten when nobody stored or confirmed it for this long, in seconds.
KEEP_CONTENT = 90 * 86400.0

# The size of a member that the upstream redirected to, or answered a part of: it is there, and nobody said how long.
UNKNOWN_SIZE = -1


def tag_key(repository: Repository, tag: str) -> str:
    return f"tag/{repository}:{tag}"


def manifest_key(digest: Digest) -> str:
    return f"manifest/{digest}"


def member_key(repository: Repository, digest: Digest) -> str:
    return f"member/{repository}@{digest}"


def stored_key(digest: Digest) -> str:
    """Nothing is kept under it: it is stamped anew when an operator takes the blob out of the store."""
    return f"stored/{digest}"


# Whose right it was: nobody's, nobody's with pulls on the proxy's own account, the proxy's own, or a client's own.
Prover = Literal["anonymous", "public", "own", "client"]

# What an upstream has answered a principal with. Many registries let people list what they may not pull.
Proved = Literal["content", "list"]


def proof_key(principal: Principal, repository: Repository, what: Proved = "content") -> str:
    kind = "proof" if what == "content" else "list-proof"
    return f"{kind}/{principal.key}/{repository}"


def list_key(kind: str, repository: Repository, query: str) -> str:
    return f"list/{kind}/{repository}?{query}"


def wrong_key(registry: str, digest: Digest) -> str:
    return f"wrong/{registry}/{digest}"


def history_key(repository: Repository, tag: str) -> str:
    return f"history/{repository}:{tag}"


def nodes_key(repository: Repository, tag: str, digest: str) -> str:
    return f"nodes/{repository}:{tag}@{digest}"


def hold_key(repository: Repository, tag: str) -> str:
    return f"hold/{repository}:{tag}"


def named_in(key: str) -> tuple[Repository, str]:
    """The repository and the tag of a key of a tag, of its history or of its hold."""
    named, _, tag = key.partition("/")[2].rpartition(":")
    registry, _, name = named.partition("/")
    return Repository(registry, name), tag


def pushed_key(repository: Repository) -> str:
    return f"pushed/{repository}"


Time = Annotated[float, Field(allow_inf_nan=False)]


class _Record:
    """A frozen dataclass that is kept as JSON; what cannot be read (another version, a damaged row) is absent."""

    def dump(self) -> bytes:
        """As bytes for the store."""
        return adapter(type(self)).dump_json(self)

    @classmethod
    def load(cls, raw: bytes | None) -> Self | None:
        """Out of the store's bytes, or None."""
        if raw is None:
            return None
        try:
            found: Self = adapter(cls).validate_json(raw, strict=True)
        except (ValueError, OCIError):
            return None
        return found


_ADAPTERS: dict[object, TypeAdapter[Any]] = {}


def adapter(kept: Any) -> TypeAdapter[Any]:
    """What reads and writes values of the type `kept`; made when it is first wanted, which takes a while."""
    if kept not in _ADAPTERS:
        _ADAPTERS[kept] = TypeAdapter(kept)
    return _ADAPTERS[kept]


@dataclass(frozen=True, slots=True)
class TagRecord(_Record):
    """`fetched`: when the tag was first seen with this digest; `checked`: when the upstream last confirmed it.

    `upstream_digest`: what the tag has upstream, where it is known to differ. `in_doubt`: a push may have moved it
    since, so the upstream is to be asked before this is served; while it cannot be, this is the best there is.
    `proved_by`: whose right to it the upstream last confirmed; `looked`: when it was last asked in the background.
    `kept_back`: when it was last seen to differ and was not pulled, to save the pulls that are left.
    `gone`: when the upstream last said that it has no such tag any more; kept only where some cluster wants it still.
    """

    digest: str
    fetched: Time
    checked: Time
    upstream_digest: str | None = None
    in_doubt: bool = False
    proved_by: Prover = "client"
    looked: Time = 0.0
    kept_back: Time | None = None
    gone: Time | None = None

    def __post_init__(self) -> None:
        Digest.parse(self.digest)


@dataclass(frozen=True, slots=True)
class HoldRecord(_Record):
    """The digest that a tag is to have here until it is released; since when, and by whose word."""

    digest: str
    since: Time
    by: str

    def __post_init__(self) -> None:
        Digest.parse(self.digest)


@dataclass(frozen=True, slots=True)
class Served:
    """A digest that a tag had: first and last seen, how often it was served, and to which clusters how often.

    `given`: when a client was last served it.
    """

    digest: str
    first: Time
    last: Time
    pulls: int = 0
    clusters: dict[str, int] = field(default_factory=dict)
    given: Time = 0.0


@dataclass(frozen=True, slots=True)
class HistoryRecord(_Record):
    """The digests of a tag, the one last seen first."""

    digests: tuple[Served, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A client that was given a digest: for which cluster, first, last, and how often."""

    cluster: str
    first: Time
    last: Time
    pulls: int


@dataclass(frozen=True, slots=True)
class NodesRecord(_Record):
    """By address, those that are counted one by one, and how many pulls of others there were."""

    nodes: dict[str, Node] = field(default_factory=dict)
    others: int = 0


@dataclass(frozen=True, slots=True)
class MemberRecord(_Record):
    """Media type and size in bytes as the upstream answered them in this repository, at `at`.

    `gone`: when it last said that it is not there any more; kept only where some cluster wants it still.
    """

    media_type: str
    size: int
    at: Time
    gone: Time | None = None


@dataclass(frozen=True, slots=True)
class ListRecord(_Record):
    """A list of tags or referrers: the body as text, the query of its next page, and when it was fetched.

    `generation`: the repository's when the list was asked for; it is fresh only as long as that is the same.
    """

    media_type: str
    body: str
    fetched: Time
    next_query: str | None = None
    filters_applied: str | None = None
    generation: str = ""


def dump_proof(proof: Proof) -> bytes:
    """A proof as bytes for the store."""
    return dump_time(proof.at)


def load_proof(raw: bytes | None) -> Proof | None:
    """A proof out of the store's bytes, or None."""
    at = load_time(raw)
    return Proof(at) if at is not None else None


def dump_time(at: float) -> bytes:
    """Unix seconds as bytes for the store."""
    return json.dumps(at).encode()


def load_time(raw: bytes | None) -> float | None:
    """Unix seconds out of the store's bytes, or None."""
    try:
        return float(adapter(Time).validate_json(raw, strict=True)) if raw is not None else None
    except ValueError:
        return None
