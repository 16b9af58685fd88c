"""Tags and what they were, as the admin API describes them: JSON values, times as RFC 3339 has them."""

from datetime import UTC, datetime
from typing import Any, Literal

from proxy.cache.control import Refreshed
from proxy.cache.records import NodesRecord, Served
from proxy.cache.sticky import Named, StickyTag

# Of the year 9999.
_LAST_SECOND = 253402300799.0


def rfc3339(at: float) -> str:
    """Unix seconds as people and machines both read them (RFC 3339); what is beyond the calendar is its end."""
    told = datetime.fromtimestamp(min(max(at, 0.0), _LAST_SECOND), UTC)
    return told.isoformat(timespec="seconds").replace("+00:00", "Z")


def tag_as_json(one: StickyTag, now: float) -> dict[str, Any]:
    """A tag without its history (DESIGN, section 9)."""
    record, hold = one.record, one.hold
    pulls = sum(served.pulls for served in one.history.digests)
    clusters: dict[str, int] = {}
    for served in one.history.digests:
        for name, count in served.clusters.items():
            clusters[name] = clusters.get(name, 0) + count
    return {
        "registry": one.repository.registry,
        "repository": one.repository.name,
        "tag": one.tag,
        "reference": f"{one.repository}:{one.tag}",
        "digest": one.digest,
        "fetched": rfc3339(record.fetched) if record is not None else None,
        "checked": rfc3339(record.checked) if record is not None else None,
        "expires": rfc3339(now + one.ttl) if record is not None else None,
        "expires_in": {name: rfc3339(now + ttl) for name, ttl in sorted(one.ttls.items())},
        "gone": rfc3339(record.gone) if record is not None and record.gone is not None else None,
        "age": max(0, int(now - record.checked)) if record is not None else None,
        "state": _state(one),
        "pulls": pulls,
        "clusters": clusters,
        "upstream_digest": one.upstream_digest if one.drifted else None,
        "drifted": one.drifted,
        "unchecked": one.unchecked,
        "held": {"digest": hold.digest, "since": rfc3339(hold.since), "by": hold.by} if hold is not None else None,
    }


def _state(one: StickyTag) -> Literal["held", "fresh", "stale", "expired", "absent"]:
    if one.hold is not None:
        return "held"
    if one.record is None:
        return "absent"
    match one.freshness.value:
        case "fresh":
            return "fresh"
        case "stale":
            return "stale"
    return "expired"


def digest_as_json(served: Served, nodes: NodesRecord | None) -> dict[str, Any]:
    """A digest that a tag had, with who was given it where that is told."""
    described: dict[str, Any] = {
        "digest": served.digest,
        "first_seen": rfc3339(served.first),
        "last_seen": rfc3339(served.last),
        "pulls": served.pulls,
        "clusters": served.clusters,
    }
    if nodes is None:
        return described
    listed = [
        {
            "address": address, "cluster": node.cluster, "pulls": node.pulls,
            "first": rfc3339(node.first), "last": rfc3339(node.last),
        }
        for address, node in sorted(nodes.nodes.items(), key=lambda item: item[1].last, reverse=True)
    ]  # fmt: skip
    return described | {"nodes": listed, "other_pulls": nodes.others}


def refreshed_as_json(one: Refreshed) -> dict[str, Any]:
    """What a refresh has found."""
    return {
        "reference": text_of((one.repository, one.tag)),
        "before": one.before,
        "after": one.after,
        "changed": one.before != one.after,
        "error": one.error,
    }


def text_of(named: Named) -> str:
    """A tag as people write it."""
    return f"{named[0]}:{named[1]}"
