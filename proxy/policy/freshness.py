"""Fresh, stale or expired: how old an answer is and whether it still counts (DESIGN, section 4).

`checked` is when the upstream last confirmed a tag. Until `tag_ttl` after it the tag is fresh; until `stale_if_error`
after that it is stale: good only while the upstream fails; then it is expired.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum, StrEnum
from fnmatch import fnmatchcase

from proxy.settings import ManifestOverrides, ManifestSettings

# How far a clock may have been set back before an entry from "the future" is checked again.
_CLOCK_SKEW = 60.0


class CacheState(StrEnum):
    """How an answer came about; also the values of the metrics' `cache` label."""

    HIT = "hit"
    REVALIDATED = "revalidated"
    STALE = "stale"
    MISS = "miss"
    JOINED = "joined"
    PASS = "pass"  # noqa: S105 - a cache state, not a password


class Freshness(Enum):
    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The times, in seconds, that hold for one cluster at one registry.

    `refresh_ahead`: a share of a tag's TTL. `tag_rules`: patterns of repositories and of tags, and the TTL where both
    fit. `offline`: the upstream is never asked. What is stored is every cluster's, so `lists_kept` and `proofs_kept`
    (of clients' own) say how long it may count for any, `deleted_kept` whether one serves what is gone upstream.
    """

    tag_ttl: float
    stale_if_error: float
    negative_ttl: float
    revalidate_timeout: float
    proof_ttl: float
    proof_stale_if_error: float
    strict_proofs: bool
    refresh_ahead: float
    serve_deleted: bool
    drift_interval: float
    tag_rules: tuple[tuple[str, str, float], ...]
    lists_kept: float
    proofs_kept: float
    deleted_kept: bool
    offline: bool = False

    def ttl_of(self, repository: str, tag: str) -> float:
        """The TTL of `tag` in the repository of that name: the first rule's that fits both, else `tag_ttl`."""
        return next(
            (
                ttl
                for repositories, tags, ttl in self.tag_rules
                if fnmatchcase(tag, tags) and fnmatchcase(repository, repositories)
            ),
            self.tag_ttl,
        )

    def is_ahead(self, repository: str, tag: str, age: float) -> bool:
        """Is a fresh tag, last checked `age` seconds ago, so near its end that it may be refreshed before it?"""
        return self.refresh_ahead > 0 and age >= self.fresh_for(repository, tag)

    def fresh_for(self, repository: str, tag: str) -> float:
        """For how many seconds after a check nothing is done about a tag, neither at its end nor ahead of it."""
        return self.ttl_of(repository, tag) * (1 - self.refresh_ahead)

    def freshness_of(self, checked: float, now: float, ttl: float) -> "Freshness":
        """See `freshness`. Where nobody can be asked nothing ends."""
        state = freshness(checked, now, ttl, self.stale_if_error)
        return Freshness.STALE if self.offline and state is Freshness.EXPIRED else state


def lifetimes_of(base: ManifestSettings, *overrides: ManifestOverrides, offline: bool = False) -> Lifetimes:
    """`base` with each of `overrides` laid over it, the last one winning: the upstream's, then the cluster's."""
    ours = {field.name for field in fields(Lifetimes)}
    values = {name: getattr(base, name) for name in ManifestSettings.model_fields if name in ours}
    for override in overrides:
        values |= {name: value for name in values if (value := getattr(override, name, None)) is not None}
    values["tag_rules"] = tuple((rule.repositories, rule.tags, rule.ttl) for rule in values["tag_rules"])
    return Lifetimes(
        **values,
        lists_kept=values["tag_ttl"] + values["stale_if_error"],
        proofs_kept=values["proof_ttl"] + values["proof_stale_if_error"],
        deleted_kept=values["serve_deleted"],
        offline=offline,
    )


def side_by_side(clusters: Mapping[str, Lifetimes]) -> dict[str, Lifetimes]:
    """The lifetimes of several clusters at one registry, so that none of them cuts short what others may still use."""
    lists = max(one.lists_kept for one in clusters.values())
    proofs = max(one.proofs_kept for one in clusters.values())
    deleted = any(one.deleted_kept for one in clusters.values())
    return {
        name: replace(one, lists_kept=lists, proofs_kept=proofs, deleted_kept=deleted) for name, one in clusters.items()
    }


def freshness(checked: float, now: float, ttl: float, stale_if_error: float) -> Freshness:
    """The state at `now` of what was confirmed at `checked` (both Unix seconds)."""
    age = now - checked
    if age < -_CLOCK_SKEW:
        # The clock was set back. How old the entry is nobody knows, so it counts only while the upstream fails.
        return Freshness.STALE
    if age < ttl:
        return Freshness.FRESH
    return Freshness.STALE if age < ttl + stale_if_error else Freshness.EXPIRED


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an answer came about, for its headers, its metrics and its log line.

    `age` in seconds since it was fetched or last checked; `ttl` in seconds left (negative: over), None where nothing
    ends; `detail` one word for operators; `warning` a sentence for the client's user.
    """

    state: CacheState
    age: float | None = None
    ttl: float | None = None
    detail: str | None = None
    warning: str | None = None
    attempted: bool = False


def why_not(reason: str) -> str:
    """Of a registry: why it was not asked, for people."""
    return "is offline by configuration" if reason == "offline" else f"cannot be asked now ({reason})"


def deleted(what: str, age: float, ttl: float | None, attempted: bool) -> Verdict:
    """The verdict on what is served on although it is gone upstream, where it was last seen `age` seconds ago."""
    warning = f"{what} is gone upstream; it was last seen there {int(age)} s ago"
    return Verdict(CacheState.STALE, age, ttl, "stale-404", warning, attempted)
