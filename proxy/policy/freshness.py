"""Fresh, stale or expired: how old an answer is and whether it still counts (DESIGN, section 4).

`checked` is when the upstream last confirmed a tag. Until `tag_ttl` after it the tag is fresh; until `stale_if_error`
after that it is stale: good only while the upstream fails; then it is expired.
"""

from dataclasses import dataclass, fields
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
    """The times, in seconds, that hold for one cluster at one registry."""

    tag_ttl: float
    stale_if_error: float
    negative_ttl: float
    revalidate_timeout: float
    proof_ttl: float
    proof_stale_if_error: float
    strict_proofs: bool = False
    drift_interval: float = 900.0
    tag_rules: tuple[tuple[str, float], ...] = ()

    def ttl_of(self, tag: str) -> float:
        """The tag's own TTL: the first rule whose pattern fits, else `tag_ttl`."""
        return next((ttl for pattern, ttl in self.tag_rules if fnmatchcase(tag, pattern)), self.tag_ttl)


def lifetimes_of(base: ManifestSettings, *overrides: ManifestOverrides) -> Lifetimes:
    """`base` with each of `overrides` laid over it, the last one winning: the upstream's, then the cluster's."""
    values = {field.name: getattr(base, field.name) for field in fields(Lifetimes)}
    for override in overrides:
        values |= {key: value for key in values if (value := getattr(override, key, None)) is not None}
    values["tag_rules"] = tuple((rule.tags, rule.ttl) for rule in values["tag_rules"])
    return Lifetimes(**values)


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
