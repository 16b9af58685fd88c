"""Events become the metrics of the design."""

from prometheus_client.parser import text_string_to_metric_families

from proxy.telemetry import events
from proxy.telemetry.events import Event
from proxy.telemetry.metrics import Metrics

REQUEST = events.RequestFinished(
    "192.0.2.1",
    "default",
    "docker.io",
    "manifest",
    "GET",
    "library/nginx",
    "latest",
    200,
    "hit",
    "",
    1234,
    0.004,
    0.005,
)
CONTRACT = {
    "requests_total": ("cluster", "registry", "kind", "method", "status", "cache"),
    "request_seconds_bucket": ("kind", "cache", "le"),
    "client_bytes_total": ("cluster", "registry", "kind", "cache"),
    "upstream_requests_total": ("registry", "kind", "method", "status"),
    "upstream_bytes_total": ("registry",),
    "fills_active": (),
    "fill_resumes_total": (),
    "digest_mismatches_total": ("registry",),
    "stale_served_total": ("registry", "reason"),
    "cache_bytes": (),
    "cache_blobs": (),
    "evictions_total": ("reason",),
    "client_refusals_total": ("reason",),
    "upstream_ratelimit_remaining": ("registry",),
    "upstream_ratelimit_limit": ("registry",),
    "upstream_pulls_total": ("registry", "cluster"),
    "event_loop_lag_seconds": (),
    "shared_up": ["store"],
    "shared_errors_total": ["store", "reason"],
    "shared_bytes_total": ["source"],
    "object_uploads_total": ["outcome"],
    "object_mismatches_total": [],
}
EVERY_EVENT: list[Event] = [
    REQUEST,
    events.UpstreamAnswered("docker.io", "manifest", "GET", "200"),
    events.UpstreamBytes("docker.io", 10),
    events.RateLimitSeen("docker.io", 76, 100),
    events.UpstreamPulled("docker.io", "default"),
    events.FillStarted("docker.io"),
    events.FillEnded("docker.io"),
    events.FillResumed(),
    events.DigestMismatch("docker.io"),
    events.StaleServed("docker.io", "429"),
    events.TargetWasRefused("docker.io", "loopback"),
    events.BlobEvicted("size"),
    events.ClientRefused("connections"),
    events.LoopLag(0.25),
    events.SharedStoreTurned("metadata", True),
    events.SharedStoreFailed("blobs", "timeout"),
    events.SharedBytes("replica", 10),
    events.ObjectUploaded("stored"),
    events.ObjectMismatch(),
]


def samples(metrics: Metrics) -> dict[str, tuple[dict[str, str], float]]:
    """The last sample of each name: its labels and value."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: (sample.labels, sample.value) for family in families for sample in family.samples}


def test_names_and_labels_are_the_contract() -> None:
    """Every metric of the design with something to count yet, and its labels."""
    metrics = Metrics()
    metrics.set_cache(100, 2)
    for event in EVERY_EVENT:
        metrics.record(event)
    found = samples(metrics)
    for name, labels in CONTRACT.items():
        assert set(found[f"pullthrough_{name}"][0]) == set(labels), name


def test_every_event_is_counted() -> None:
    """Each kind of event changes what is rendered."""
    assert {type(event) for event in EVERY_EVENT} == set(events.Event.__args__)
    for event in EVERY_EVENT:
        metrics = Metrics()
        before = metrics.render()
        metrics.record(event)
        assert metrics.render() != before or isinstance(event, events.FillEnded)


def test_values() -> None:
    """Bytes are added up, gauges show the last value, fills go up and down."""
    metrics = Metrics()
    metrics.set_cache(100, 2)
    for event in [*EVERY_EVENT, REQUEST, events.FillStarted("ghcr.io"), events.RateLimitSeen("docker.io", 75)]:
        metrics.record(event)
    found = {name: value for name, (_, value) in samples(metrics).items()}
    assert found["pullthrough_client_bytes_total"] == 2468
    assert found["pullthrough_requests_total"] == 2
    assert found["pullthrough_request_seconds_count"] == 2
    assert found["pullthrough_fills_active"] == 1
    assert found["pullthrough_upstream_ratelimit_remaining"] == 75
    # An answer without one takes nothing back.
    assert found["pullthrough_upstream_ratelimit_limit"] == 100
    assert (found["pullthrough_cache_bytes"], found["pullthrough_cache_blobs"]) == (100, 2)
    assert found["pullthrough_event_loop_lag_seconds"] == 0.25


def test_what_clients_write_is_no_label() -> None:
    """Repositories, references and addresses are unbounded."""
    metrics = Metrics()
    metrics.record(REQUEST)
    text = metrics.render().decode()
    for unbounded in ("library/nginx", "latest", "192.0.2.1"):
        assert unbounded not in text


def test_two_sets_of_metrics_do_not_meet() -> None:
    """A registry of their own: nothing is global."""
    one, other = Metrics(), Metrics()
    one.record(REQUEST)
    assert b'method="GET"' not in other.render()
