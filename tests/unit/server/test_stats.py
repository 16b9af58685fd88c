"""What several processes know of themselves as one picture."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Metric

from proxy.cache.sticky import Counts
from proxy.policy.backoff import Circuit, Scope
from proxy.server.api import ApiRequest, ApiResponse, failed
from proxy.server.stats import Machine, overview, part
from proxy.settings import Settings
from proxy.storage.base import Usage
from proxy.telemetry.metrics import Metrics

NOW = 1_800_000_000.0
SETTINGS = Settings(
    upstreams={"a.test": {"url": "http://a.test", "default": True}, "b.test": {"url": "http://b.test:5000"}},
    clusters=[{"name": "prod", "upstreams": ["a.test"]}, {"name": "edge", "mode": "metadata-only"}],
)
UPSTREAM: Scope = ("upstream", "a.test")
LIMITED: Scope = ("principal", "a.test", "anonymous")
BROKEN: Scope = ("repository", "a.test", "team/app", "manifest")


def circuit(reason: Any, failures: int = 1, step: float = 30.0, opened: float = NOW) -> Circuit:
    return Circuit(failures, opened, step, reason)


def said(circuits: dict[Scope, Circuit] | None = None, fills: tuple[Any, ...] = (), known: int = 0) -> dict[str, Any]:
    counts = Counts(known, 1, 2, {"a.test": 3})
    told = part(dict.fromkeys(SETTINGS.upstreams), (circuits or {}).items(), (), counts, NOW)
    return told | {"fills": list(fills)}


def fill(digest: str, arrived: int, readers: int, started: str, size: int = 100) -> dict[str, Any]:
    return {
        "digest": digest, "registry": "a.test", "repository": "x", "size": size, "arrived": arrived,
        "readers": readers, "started": started,
    }  # fmt: skip


def metrics(requests: dict[tuple[str, str, str, str], int], upstream: dict[tuple[str, str], int]) -> list[Metric]:
    """Requests by cluster, kind, status and cache; an upstream's by registry and status; ten bytes for each."""
    registry = CollectorRegistry()
    served = Counter("pullthrough_requests", "x", ["cluster", "kind", "status", "cache"], registry=registry)
    sent = Counter("pullthrough_client_bytes", "x", ["cluster", "kind", "status", "cache"], registry=registry)
    asked = Counter("pullthrough_upstream_requests", "x", ["registry", "status"], registry=registry)
    received = Counter("pullthrough_upstream_bytes", "x", ["registry"], registry=registry)
    for labels, count in requests.items():
        served.labels(*labels).inc(count)
        sent.labels(*labels).inc(10 * count)
    for pair, count in upstream.items():
        asked.labels(*pair).inc(count)
        received.labels(pair[0]).inc(10 * count)
    return list(registry.collect())


def picture(*parts: dict[str, Any], found: list[Metric] | None = None) -> dict[str, Any]:
    return overview(SETTINGS, parts, found or [], Usage(7, 2), NOW, (2, len(parts)))


def test_nothing_has_happened_yet() -> None:
    """Every cluster and upstream of the file is there, without a ratio that nobody could know."""
    found = picture(said())
    assert [one["name"] for one in found["clusters"]] == ["prod", "edge"]
    assert found["clusters"][0]["upstreams"] == ["a.test"]
    assert (found["clusters"][1]["upstreams"], found["clusters"][1]["mode"]) == (None, "metadata-only")
    assert [one["hit_ratio"] for one in found["clusters"]] == [None, None]
    assert [(one["registry"], one["state"]) for one in found["upstreams"]] == [
        ("a.test", "unused"), ("b.test", "unused"),
    ]  # fmt: skip
    assert found["bytes"] == {"client": 0, "upstream": 0, "saved": 0}
    assert found["cache"] == {"bytes": 7, "blobs": 2, "max_size": SETTINGS.cache.max_size}
    assert found["workers"] == {"configured": 2, "serving": 1}
    assert (found["fills"], found["warm"], found["started"]) == ([], [], "2027-01-15T08:00:00Z")


def test_no_process_answers() -> None:
    """What is known of the machine is told; tags are unknown, not none."""
    found = picture()
    assert found["tags"] is None
    assert found["workers"]["serving"] == 0
    assert len(found["upstreams"]) == 2


def test_tags_are_counted_once_by_whoever_could() -> None:
    """All processes share them, so they are not added up; one that cannot read the store now is passed over."""
    blind = said() | {"tags": None}
    assert picture(said(known=5), said(known=5))["tags"]["known"] == 5
    found = picture(blind, said(known=5))["tags"]
    assert found == {"known": 5, "drifted": 3, "held": 1, "unchecked": 2, "drifted_by_registry": {"a.test": 3}}
    assert picture(blind)["tags"] is None


def test_ratios() -> None:
    """Hits of those that were served: pings, pushes, errors and other clusters do not count."""
    found = picture(
        said(),
        found=metrics(
            {
                ("prod", "manifest", "200", "hit"): 3,
                ("prod", "manifest", "200", "revalidated"): 1,
                ("prod", "blob", "206", "joined"): 1,
                ("prod", "blob", "307", "stale"): 1,
                ("prod", "blob", "200", "miss"): 2,
                ("prod", "blob", "404", "miss"): 50,
                ("prod", "ping", "200", "pass"): 50,
                ("edge", "blob", "200", "pass"): 4,
            },
            {},
        ),
    )
    prod, edge = found["clusters"]
    assert (prod["requests"], prod["hits"], prod["hit_ratio"]) == (8, 6, 0.75)
    assert (edge["requests"], edge["hits"], edge["hit_ratio"]) == (4, 0, 0.0)
    assert (prod["client_bytes"], edge["client_bytes"]) == (1080, 40)


def test_what_was_saved() -> None:
    """What clients were sent beyond what upstreams sent; never less than nothing."""
    requests = {("prod", "blob", "200", "hit"): 5}
    found = picture(said(), found=metrics(requests, {("a.test", "200"): 2}))
    assert found["bytes"] == {"client": 50, "upstream": 20, "saved": 30}
    found = picture(said(), found=metrics(requests, {("a.test", "200"): 9}))
    assert found["bytes"]["saved"] == 0


def test_errors_of_an_upstream() -> None:
    """5xx, 429 and no answer at all; a 404 or a 401 is an answer."""
    statuses = {"200": 4, "404": 2, "401": 1, "429": 3, "503": 2, "error": 1}
    found = picture(said(), found=metrics({}, {("a.test", status): count for status, count in statuses.items()}))
    upstream = found["upstreams"][0]
    assert (upstream["requests"], upstream["errors"], upstream["bytes"]) == (13, 6, 130)
    assert (upstream["state"], found["upstreams"][1]["state"]) == ("ok", "unused")


@pytest.mark.parametrize(
    ("circuits", "state"),
    [
        ({UPSTREAM: circuit("connect")}, "failing"),
        ({UPSTREAM: circuit("connect"), LIMITED: circuit("429")}, "failing"),
        ({LIMITED: circuit("429")}, "limited"),
        ({LIMITED: circuit("429"), BROKEN: circuit("5xx")}, "limited"),
        ({LIMITED: circuit("5xx")}, "failing"),
        ({BROKEN: circuit("timeout")}, "failing"),
        ({BROKEN: circuit("timeout", opened=NOW - 100)}, "unused"),
        ({("own", "a.test", "team/app", "v1", "key"): circuit("5xx")}, "unused"),
    ],
)
def test_how_an_upstream_does(circuits: dict[Scope, Circuit], state: str) -> None:
    """The whole upstream first, then its rate limit, then the rest; nothing where it is over, or one principal's."""
    assert picture(said(circuits))["upstreams"][0]["state"] == state


def test_of_what_two_processes_met_the_one_that_waits_longer_counts() -> None:
    """One line for each scope; principals stay unnamed."""
    one = said({LIMITED: circuit("429", 2, 60.0), BROKEN: circuit("5xx")})
    other = said({LIMITED: circuit("429", 3, 30.0)})
    failing = picture(one, other)["upstreams"][0]["failing"]
    assert failing == picture(other, one)["upstreams"][0]["failing"]
    assert failing == [
        {"scope": "principal", "reason": "429", "failures": 2, "until": "2027-01-15T08:01:00Z"},
        {"scope": "team/app/manifest", "reason": "5xx", "failures": 1, "until": "2027-01-15T08:00:30Z"},
    ]


def test_the_rate_limit_is_the_one_seen_last() -> None:
    """Of two processes that were told."""
    parts = [said(), said(), said()]
    for told, left, seen in zip(parts, (9, 5, None), ("08:00", "08:05", None), strict=True):
        limit = {"remaining": left, "limit": 100, "window": 21600, "seen": seen} if left is not None else None
        told["upstreams"]["a.test"]["rate_limit"] = limit
    assert picture(*parts)["upstreams"][0]["rate_limit"]["remaining"] == 5
    assert picture(*parts)["upstreams"][1]["rate_limit"] is None


def test_a_fill_that_several_processes_follow_is_one() -> None:
    """Its readers are added up, it began with the first, and has arrived as far as anybody knows; the oldest first."""
    one = said(fills=(fill("sha256:b", 30, 1, "08:01"), fill("sha256:c", 1, 1, "08:03")))
    other = said(fills=(fill("sha256:b", 50, 4, "08:02", size=0), fill("sha256:a", 0, 1, "08:03")))
    fills = picture(one, other)["fills"]
    assert [each["digest"] for each in fills] == ["sha256:b", "sha256:a", "sha256:c"]
    assert fills[0] == fill("sha256:b", 50, 5, "08:01")


def test_an_upstream_that_one_process_does_not_know_yet() -> None:
    """In the middle of a reload; whoever knows it tells."""
    old = part({"a.test": None}, (), (), Counts(), NOW)
    new = said({("upstream", "b.test"): circuit("connect")})
    assert [one["state"] for one in picture(old, new)["upstreams"]] == ["unused", "failing"]


# All processes.


class Workers:
    """Answers for the processes; `told` are theirs, `asked` what was asked of one."""

    def __init__(self) -> None:
        self.told: list[ApiResponse] = []
        self.asked: list[ApiRequest] = []
        self.machine = Machine(
            lambda: SETTINGS, Metrics(), self._usage, self._ask, self._ask_all, lambda: (2, len(self.told)), NOW
        )

    async def _usage(self) -> Usage | None:
        return None

    async def _ask(self, request: ApiRequest) -> ApiResponse:
        self.asked.append(request)
        return ApiResponse(200, "one")

    async def _ask_all(self, request: ApiRequest) -> list[ApiResponse]:
        return self.told


async def test_stats_are_asked_of_all_and_the_rest_of_one() -> None:
    """One that fails is left out."""
    workers = Workers()
    workers.told = [failed(503, "no"), ApiResponse(200, said(known=4))]
    found = await workers.machine.answer(ApiRequest("GET", "stats"))
    assert (found.status, found.body["tags"]["known"], found.body["cache"]["bytes"]) == (200, 4, None)
    assert workers.asked == []
    assert (await workers.machine.answer(ApiRequest("GET", "tags"))).body == "one"
    assert (await workers.machine.answer(ApiRequest("POST", "stats"))).body == "one"


async def test_drift_is_told_by_whoever_can_tell() -> None:
    """A worker that fails, or a store that cannot be read, does not say that there is none."""
    workers = Workers()
    workers.told = [failed(503, "no"), ApiResponse(200, said() | {"tags": None}), ApiResponse(200, said())]
    assert await workers.machine.drift() == {"a.test": 3}
    for told in ([], [failed(503, "no")], [ApiResponse(200, said() | {"tags": None})]):
        workers.told = told
        assert await workers.machine.drift() is None
