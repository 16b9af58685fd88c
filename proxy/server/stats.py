"""`GET /api/v1/stats`: what every process knows of itself, and what is known of the machine, as one picture."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import Metric

from proxy import __version__
from proxy.cache.fill import Fill
from proxy.cache.sticky import Counts
from proxy.policy.backoff import Circuit, Scope
from proxy.server.api import ApiRequest, ApiResponse
from proxy.server.described import rfc3339
from proxy.settings import Settings
from proxy.storage.base import Usage
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import SharedMetrics

_STATS = ("GET", "stats")
_HITS = frozenset({"hit", "revalidated", "stale", "joined"})


def part(
    limits: Mapping[str, Mapping[str, object] | None],
    circuits: Iterable[tuple[Scope, Circuit]],
    fills: Iterable[Fill],
    counts: Counts | None,
    now: float,
) -> dict[str, Any]:
    """What one process that serves knows: how upstreams fail it, what it downloads, and the tags, which all share.

    `limits`: by registry, what is left of its rate limit; `counts` is None where they cannot be counted now.
    """
    failing = _circuits_as_json(circuits, now)
    return {
        "upstreams": {
            registry: {"failing": failing.get(registry, []), "rate_limit": limit} for registry, limit in limits.items()
        },
        "fills": [_fill_as_json(fill, now) for fill in fills],
        "tags": _counts_as_json(counts) if counts is not None else None,
    }


def _counts_as_json(counts: Counts) -> dict[str, Any]:
    return {
        "known": counts.known,
        "drifted": sum(counts.drifted.values()),
        "held": counts.held,
        "unchecked": counts.unchecked,
        "drifted_by_registry": counts.drifted,
    }


def _fill_as_json(fill: Fill, now: float) -> dict[str, Any]:
    arrived, readers = fill.progress
    return {
        "digest": str(fill.digest),
        "registry": fill.ask.repository.registry,
        "repository": fill.ask.repository.name,
        "size": fill.size,
        "arrived": arrived,
        "readers": readers,
        "started": rfc3339(now - (asyncio.get_running_loop().time() - fill.began)),
    }


def _circuits_as_json(circuits: Iterable[tuple[Scope, Circuit]], now: float) -> dict[str, list[dict[str, Any]]]:
    """By registry, what is left alone after failing: how much of it, why, and until when. Principals stay unnamed."""
    found = defaultdict(list)
    for scope, circuit in circuits:
        kind, registry, *rest = scope
        if kind == "own" or circuit.is_over(now):
            # It says of one principal what another line says of all.
            continue
        found[registry].append(
            {
                "scope": kind if kind in {"upstream", "principal"} else "/".join(rest),
                "reason": circuit.reason,
                "failures": circuit.failures,
                "until": rfc3339(circuit.until),
            }
        )
    return dict(found)


def overview(
    settings: Settings,
    parts: Sequence[Mapping[str, Any]],
    metrics: Iterable[Metric],
    usage: Usage | None,
    started: float,
    workers: tuple[int, int],
) -> dict[str, Any]:
    """All of it. `parts` are what the processes that serve said; `workers`: how many there are to be, and serve."""
    counts = _Counts(metrics)
    sent, received = counts.sum("pullthrough_client_bytes"), counts.sum("pullthrough_upstream_bytes")
    return {
        "version": __version__,
        "started": rfc3339(started),
        "workers": {"configured": workers[0], "serving": workers[1]},
        "cache": {
            "bytes": usage.bytes if usage is not None else None,
            "blobs": usage.blobs if usage is not None else None,
            "max_size": settings.cache.max_size,
        },
        "bytes": {"client": sent, "upstream": received, "saved": max(0, sent - received)},
        "clusters": [
            {
                "name": cluster.name,
                "mode": cluster.mode,
                "upstreams": list(cluster.upstreams) if cluster.upstreams is not None else None,
                **_served(counts, cluster.name),
            }
            for cluster in settings.clusters
        ],
        "upstreams": [_upstream(settings, registry, parts, counts) for registry in settings.upstreams],
        "fills": _fills(parts),
        "tags": next((part["tags"] for part in parts if part["tags"] is not None), None),
        "warm": parts[0].get("warm", []) if parts else [],
    }


class _Counts:
    """Sums of counters."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._samples = defaultdict(list)
        for metric in metrics:
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    self._samples[sample.name].append(sample)

    def sum(self, name: str, **labels: str | frozenset[str]) -> int:
        """Of all samples whose labels have these values, or one of them."""
        return int(
            sum(
                sample.value
                for sample in self._samples[f"{name}_total"]
                if all(
                    sample.labels.get(key) in (value if isinstance(value, frozenset) else {value})
                    for key, value in labels.items()
                )
            )
        )


def _served(counts: _Counts, cluster: str) -> dict[str, Any]:
    kinds = frozenset({"manifest", "blob", "tags", "referrers"})
    good = frozenset({"200", "206", "307"})
    requests = counts.sum("pullthrough_requests", cluster=cluster, kind=kinds, status=good)
    hits = counts.sum("pullthrough_requests", cluster=cluster, kind=kinds, status=good, cache=_HITS)
    return {
        "requests": requests,
        "hits": hits,
        "hit_ratio": hits / requests if requests else None,
        "client_bytes": counts.sum("pullthrough_client_bytes", cluster=cluster),
    }


def _upstream(settings: Settings, registry: str, parts: Sequence[Mapping[str, Any]], counts: _Counts) -> dict[str, Any]:
    told = [part["upstreams"].get(registry, {}) for part in parts]
    failing: dict[str, dict[str, Any]] = {}
    for one in (one for part in told for one in part.get("failing", ())):
        # Of two workers that met the same, the one that waits longer.
        before = failing.get(one["scope"])
        if before is None or before["until"] < one["until"]:
            failing[one["scope"]] = one
    requests = counts.sum("pullthrough_upstream_requests", registry=registry)
    good = frozenset(map(str, range(200, 500))) - {"429"}
    limits = [part["rate_limit"] for part in told if part.get("rate_limit") is not None]
    return {
        "registry": registry,
        "url": settings.upstreams[registry].url,
        "state": "offline" if settings.upstreams[registry].offline else _state(failing.values(), bool(requests)),
        "failing": sorted(failing.values(), key=lambda one: one["scope"]),
        "rate_limit": max(limits, key=lambda one: str(one["seen"]), default=None),
        "requests": requests,
        "errors": requests - counts.sum("pullthrough_upstream_requests", registry=registry, status=good),
        "bytes": counts.sum("pullthrough_upstream_bytes", registry=registry),
    }


def _state(failing: Iterable[Mapping[str, Any]], asked: bool) -> str:
    reasons = {(one["scope"], one["reason"]) for one in failing}
    if any(scope == "upstream" for scope, _ in reasons):
        return "failing"
    if any(reason == "429" for _, reason in reasons):
        return "limited"
    if reasons:
        return "failing"
    return "ok" if asked else "unused"


def _fills(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fills of all processes: one downloads, and others that have readers of it follow."""
    found: dict[str, dict[str, Any]] = {}
    for one in (one for part in parts for one in part["fills"]):
        before = found.get(one["digest"])
        if before is None:
            found[one["digest"]] = dict(one)
            continue
        before["size"] = max(before["size"], one["size"])
        before["arrived"] = max(before["arrived"], one["arrived"])
        before["readers"] += one["readers"]
        before["started"] = min(before["started"], one["started"])
    return sorted(found.values(), key=lambda one: (one["started"], one["digest"]))


class Machine:
    """Answers the admin API for all processes: what concerns each of them is asked of each, the rest of one."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        metrics: Metrics | SharedMetrics,
        usage: Callable[[], Awaitable[Usage | None]],
        ask: Callable[[ApiRequest], Awaitable[ApiResponse]],
        ask_all: Callable[[ApiRequest], Awaitable[Sequence[ApiResponse]]],
        workers: Callable[[], tuple[int, int]],
        started: float,
    ) -> None:
        """`workers`: how many there are to be, and serve; `started` in Unix seconds."""
        self._settings = settings
        self._metrics = metrics
        self._usage = usage
        self._ask = ask
        self._ask_all = ask_all
        self._workers = workers
        self._started = started

    async def answer(self, request: ApiRequest) -> ApiResponse:
        """Answer one request of the API."""
        if (request.method, request.path) != _STATS:
            return await self._ask(request)
        told = [answer.body for answer in await self._ask_all(request) if answer.status == 200]
        self._metrics.flush()
        metrics = await asyncio.to_thread(lambda: list(self._metrics.collect()))
        workers = self._workers()
        return ApiResponse(200, overview(self._settings(), told, metrics, await self._usage(), self._started, workers))

    async def drift(self) -> Mapping[str, int] | None:
        """By registry, how many tags are known to be other ones upstream; None where nobody can tell now."""
        told = [answer.body["tags"] for answer in await self._ask_all(ApiRequest(*_STATS)) if answer.status == 200]
        found = next((tags for tags in told if tags is not None), None)
        drifted: Mapping[str, int] | None = found["drifted_by_registry"] if found is not None else None
        return drifted
