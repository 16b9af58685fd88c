"""Events → Prometheus metrics. Names, labels and their values are a contract (DESIGN, section 9)."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)

from proxy.telemetry import events
from proxy.telemetry.events import Event

_log = logging.getLogger("pullthrough.telemetry")

# How one value comes of those of several workers.
_Mode = Literal["livesum", "livemax", "livemin", "livemostrecent"]

# The upper bounds of the buckets of `request_seconds`.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)


@dataclass(frozen=True, slots=True)
class RequestSeries:
    """What is counted of requests whose labels are all the same."""

    requests: Counter
    first_byte: Histogram
    sent: Counter

    def one(self, sent: int, seconds: float) -> None:
        """Count one, of `sent` bytes, whose first byte came after `seconds`."""
        self.requests.inc()
        self.first_byte.observe(seconds)
        self.sent.inc(sent)

    def several(self, sent: int, buckets: Sequence[int], seconds: float) -> None:
        """Count as many as there are in `buckets`, one for each of `SECONDS` and one for what is above, each of `sent`
        bytes; `seconds` is the sum of all."""
        count = sum(buckets)
        self.requests.inc(count)
        self.sent.inc(sent * count)
        # The library counts one at a time: `observe` is this for one, and a test holds them against each other.
        self.first_byte._sum.inc(seconds)
        for bucket, several in zip(self.first_byte._buckets, buckets, strict=True):
            if several:
                bucket.inc(several)


class Metrics:
    """All metrics of one process, in a registry of their own; `record` is the way in, and `requests_like`.

    In a worker's process they are kept in files that the supervisor reads (`shared`). `labels` takes longer than
    counting does, so what it gives is kept: labels have few values.
    """

    def __init__(self, machine: bool = True) -> None:
        """`machine`: what belongs to the machine is told here; among workers the supervisor does that (`shared`)."""
        # The times at which each series began would be half of all lines, and nobody asks for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._held_back: list[Callable[[], None]] = []
        self._requests = self._counter(
            "requests", "Requests of clients.", "cluster", "registry", "kind", "method", "status", "cache"
        )
        self._request_seconds = Histogram(
            "pullthrough_request_seconds",
            "Seconds from a client's request to the first byte of its answer.",
            ["kind", "cache"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._client_bytes = self._counter(
            "client_bytes", "Bytes of bodies sent to clients.", "cluster", "registry", "kind", "cache"
        )
        self._upstream_requests = self._counter(
            "upstream_requests", "Requests to upstreams.", "registry", "kind", "method", "status"
        )
        self._upstream_bytes = self._counter("upstream_bytes", "Bytes of bodies received from upstreams.", "registry")
        self._fills = self._gauge("fills_active", "Blobs being downloaded into the cache.", "livesum")
        self._resumes = self._counter(
            "fill_resumes", "Times that an upstream broke off in a blob, which was gone on with."
        )
        self._mismatches = self._counter(
            "digest_mismatches", "Manifests and blobs whose bytes were not what their digest names.", "registry"
        )
        self._stale = self._counter(
            "stale_served", "Stale tags served: the upstream failed, or pulls were kept back.", "registry", "reason"
        )
        self._refused_targets = self._counter(
            "upstream_refused_targets",
            "Redirects, token realms and uploads of upstreams to where they may not lead.",
            "registry",
            "reason",
        )
        self._evictions = self._counter("evictions", "Blobs removed from the cache.", "reason")
        self._refusals = self._counter(
            "client_refusals", "Clients that were refused something, or cut off, for a limit.", "reason"
        )
        self._series = cache(self._new_series)
        self._count_pulls()
        self._count_shared()
        self._machine = MachineGauges(self.registry) if machine else None
        self._lag = self._gauge(
            "event_loop_lag_seconds", "How late the event loop was when it was last looked at.", "livemax"
        )

    def _count_pulls(self) -> None:
        self._remaining = self._gauge(
            "upstream_ratelimit_remaining", "Pulls the upstream says are left.", "livemostrecent", "registry"
        )
        self._limit = self._gauge(
            "upstream_ratelimit_limit", "Pulls the upstream allows in its window.", "livemostrecent", "registry"
        )
        self._pulls = self._counter(
            "upstream_pulls", "Manifests had by GET, which counts against rate limits.", "registry", "cluster"
        )

    def _count_shared(self) -> None:
        self._shared_up = self._gauge(
            "shared_up", "Does what replicas share answer? Of several workers: every one of them.", "livemin", "store"
        )
        self._shared_errors = self._counter("shared_errors", "Failures of what replicas share.", "store", "reason")
        self._shared_bytes = self._counter(
            "shared_bytes", "Bytes of blobs from other replicas and from the object store.", "source"
        )
        self._uploads = self._counter("object_uploads", "Blobs uploaded to the object store, or not.", "outcome")
        self._object_mismatches = self._counter(
            "object_mismatches", "Blobs in the object store whose bytes were not those that were stored."
        )

    def set_cache(self, stored: int, blobs: int) -> None:
        """What the store holds: bytes, with the room reserved for fills, and finished blobs."""
        if self._machine is not None:
            self._machine.set_cache(stored, blobs)

    def set_drift(self, tags: Mapping[str, int]) -> None:
        """By registry, how many tags are known to be other ones upstream."""
        if self._machine is not None:
            self._machine.set_drift(tags)

    def hold_back(self, count: Callable[[], None]) -> None:
        """Have `count` called once, at the next `flush`."""
        self._held_back.append(count)

    def flush(self) -> None:
        """Count what was held back. For the event loop's thread, before others `collect` or `render`."""
        held_back, self._held_back = self._held_back, []
        while held_back:
            count = held_back.pop()
            try:
                count()
            except Exception as error:  # noqa: BLE001 - a full disk, say; what comes after it is counted all the same
                _log.warning("requests could not be counted: %s", error)

    def requests_like(self, event: events.RequestFinished) -> RequestSeries:
        """What counts requests with the labels of `event`."""
        return self._series(event.cluster, event.registry, event.kind, event.method, event.status, event.cache)

    def collect(self) -> Iterable[Metric]:
        """All metrics, for a program."""
        return self.registry.collect()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def record(self, event: Event) -> None:
        """Count `event`."""
        match event:
            case events.RequestFinished():
                self.requests_like(event).one(event.bytes_sent, event.first_byte_seconds)
            case events.UpstreamAnswered(registry, kind, method, status):
                self._upstream_requests.labels(registry, kind, method, status).inc()
            case events.UpstreamBytes(registry, count):
                self._upstream_bytes.labels(registry).inc(count)
            case events.RateLimitSeen(registry, remaining, limit):
                self._remaining.labels(registry).set(remaining)
                if limit is not None:
                    self._limit.labels(registry).set(limit)
            case events.UpstreamPulled(registry, cluster):
                self._pulls.labels(registry, cluster).inc()
            case events.FillStarted():
                self._fills.inc()
            case events.FillEnded():
                self._fills.dec()
            case events.FillResumed():
                self._resumes.inc()
            case events.DigestMismatch(registry):
                self._mismatches.labels(registry).inc()
            case events.StaleServed(registry, reason):
                self._stale.labels(registry, reason).inc()
            case events.TargetWasRefused(registry, reason):
                self._refused_targets.labels(registry, reason).inc()
            case events.BlobEvicted(reason):
                self._evictions.labels(reason).inc()
            case events.ClientRefused(reason):
                self._refusals.labels(reason).inc()
            case events.LoopLag(seconds):
                self._lag.set(seconds)
            case _:
                self._record_shared(event)

    def _record_shared(self, event: Event) -> None:
        match event:
            case events.SharedStoreTurned(store, up):
                self._shared_up.labels(store).set(up)
            case events.SharedStoreFailed(store, reason):
                self._shared_errors.labels(store, reason).inc()
            case events.SharedBytes(source, count):
                self._shared_bytes.labels(source).inc(count)
            case events.ObjectUploaded(outcome):
                self._uploads.labels(outcome).inc()
            case events.ObjectMismatch():
                self._object_mismatches.inc()

    def _new_series(
        self, cluster: str, registry: str, kind: str, method: str, status: int, cache: str
    ) -> RequestSeries:
        return RequestSeries(
            self._requests.labels(cluster, registry, kind, method, str(status), cache),
            self._request_seconds.labels(kind, cache),
            self._client_bytes.labels(cluster, registry, kind, cache),
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pullthrough_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: _Mode, *labels: str) -> Gauge:
        return Gauge(f"pullthrough_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)


class MachineGauges:
    """What is one for all processes: `cache_bytes`, `cache_blobs` and `tag_drift`, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bytes = Gauge(
            "pullthrough_cache_bytes", "Bytes of the blobs in the cache and of the room for fills.", registry=registry
        )
        self._blobs = Gauge("pullthrough_cache_blobs", "Blobs in the cache.", registry=registry)
        self._drift = Gauge(
            "pullthrough_tag_drift", "Tags served here that are other ones upstream.", ["registry"], registry=registry
        )

    def set_cache(self, stored: int, blobs: int) -> None:
        """`stored` in bytes."""
        self._bytes.set(stored)
        self._blobs.set(blobs)

    def set_drift(self, tags: Mapping[str, int]) -> None:
        """See `Metrics.set_drift`."""
        self._drift.clear()
        for registry, count in tags.items():
            self._drift.labels(registry).set(count)
