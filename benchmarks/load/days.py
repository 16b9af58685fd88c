"""What happens to a cache over its days: more images than fit, tags that end together, an upstream that is gone."""

import random
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.images import REPOSITORY
from benchmarks.load.pulls import Start, starts, tried
from benchmarks.load.sides import cpu, far_origin, fetched, proxy
from benchmarks.nodes import Orders, Report, share_of
from benchmarks.peers import CACHES, nginx_cache
from benchmarks.programs import LOAD, REGISTRY, SERVER, Bench, Origin, Server
from benchmarks.report import HERE, Figure, Sample, Scenario, at_least, at_most
from benchmarks.watch import Peak

_IMAGES = 2000
_PULLS = 8000
_AT_A_TIME = 4
# As much as is between them in the requests to web sites and registries that were measured: 0.6 to 1.0.
_ZIPF = 0.9


def _mixed(bench: Bench) -> Iterator[Sample | Figure]:
    case = f"{_PULLS} pulls of {_IMAGES} images (Zipf {_ZIPF}), room for half"
    origin = far_origin(bench, (110, 1000), images=_IMAGES, image_size=150_000)
    images = list(origin.images[1:])
    room = sum(size for image in images for _, size in image.blobs) // 2
    day = random.Random(11)
    pulls = day.choices(images, [1 / (rank + 1) ** _ZIPF for rank in range(len(images))], k=_PULLS)
    # Without a memory of small blobs, which would be room besides.
    server = proxy(bench, origin, cache_size=f"{room >> 10}KiB", memory="0KiB")
    origin.reset()
    before = cpu(server)
    with Peak(server.pids()) as peak, bench.on(LOAD):
        orders = Orders(server.port, [(one.repository, one.tag) for one in pulls], _AT_A_TIME, namespace=REGISTRY)
        report = bench.pull(orders)
    asked = origin.requests()
    misses = sum((one.kind, one.method) == ("blob", "GET") for one in asked)
    wanted = [blob for image in pulls for blob in image.blobs]
    hits = 1 - misses / len(wanted)
    values = {
        "seconds": report.seconds, "cpu_seconds": cpu(server) - before, "memory": peak.bytes, "hits": hits,
        "upstream_requests": len(asked), "failed": len(report.failed),
        "upstream_bytes": sum(one.sent for one in asked if one.kind == "blob") / room / 2,
    }  # fmt: skip
    yield Sample(case, HERE, values)
    best = least_recently_used(wanted, room)
    yield Sample(case, "LRU, computed", {"hits": best})
    yield Figure("hit ratio / that of an offline LRU", hits / best, at_least(0.97))
    yield Figure("pulls that failed", len(report.failed), at_most(0))


def least_recently_used(wanted: Sequence[tuple[str, int]], room: int) -> float:
    """The hit ratio of a cache of `room` bytes that drops what was used least recently."""
    held: OrderedDict[str, int] = OrderedDict()
    used = hits = 0
    for name, size in wanted:
        if name in held:
            hits += 1
            held.move_to_end(name)
            continue
        held[name] = size
        used += size
        while used > room:
            used -= held.popitem(last=False)[1]
    return hits / len(wanted)


_TAGS = 50
_NODES = 250
_ASKED = 10


def _storm(bench: Bench) -> Iterator[Sample | Figure]:
    case = f"{_TAGS} tags that end together, each asked for {_ASKED} times by {_NODES} nodes, 50 ms away"
    origin = far_origin(bench, (120, 1000), tags=_TAGS)
    tags = [(image.repository, image.tag) for image in origin.images[1:]]
    found: list[Sample] = []
    for side, start in _with_ends(bench, origin, "2s").items():
        origin.moved(0)
        if (server := tried(side, start)) is not None:
            found.append(Sample(case, side, _stormed(bench, origin, server, tags)))
            yield found[-1]
            server.stop()
    here = [one.values for one in found if one.side == HERE]
    asked = max(one["upstream_requests"] for one in here)
    yield Figure("requests upstream for each tag", asked / _TAGS, at_most(1), _ASKED)
    yield Figure("pulls that the upstream counts", max(one["upstream_pulls"] for one in here), at_most(0))
    yield Figure("requests that failed", sum(one["failed"] for one in here), at_most(0))


def _with_ends(bench: Bench, origin: Origin, ttl: str) -> dict[str, Start]:
    """All sides; where what is cached ends by itself, it does so after `ttl`."""
    sides = starts(bench, origin, manifests={"tag_ttl": ttl, "proof_ttl": "5m"})

    def nginx() -> Server:
        with bench.on(SERVER):
            return nginx_cache(bench, origin, valid=ttl)

    return sides | {"nginx cache": nginx}


def _stormed(bench: Bench, origin: Origin, server: Server, tags: list[tuple[str, str]]) -> dict[str, float]:
    with bench.on(LOAD):
        bench.pull(Orders(server.port, tags, 4, namespace=REGISTRY, only_tags=True))
        origin.moved(0.05)
        time.sleep(2.1)
        origin.reset()
        before = cpu(server)
        asking = [tag for tag in tags for _ in range(_ASKED)]
        report = bench.pull(Orders(server.port, asking, _NODES, namespace=REGISTRY, only_tags=True))
    asked = origin.requests()
    return {
        "seconds": report.seconds,
        "cpu_seconds": cpu(server) - before,
        **_waited(report),
        "upstream_requests": len(asked),
        "upstream_pulls": sum(one.method == "GET" for one in asked),
    }


def _waited(report: Report) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "worst": 1.0}
    waits = {name: share_of(report.heads, share) for name, share in shares.items()}
    return waits | {"failed": len(report.failed)}


_CLIENTS = 16
_HEADS = 8000


def _outage(bench: Bench) -> Iterator[Sample | Figure]:
    found: list[Sample] = []
    for side in (HERE, *CACHES):
        origin = far_origin(bench, (130, 1000), latency=0.02)
        if (server := tried(side, _with_ends(bench, origin, "1s")[side])) is None:
            continue
        fetched(server, f"/v2/{REPOSITORY}/manifests/v1")
        for case, act in _OUTAGES.items():
            act(origin)
            # What was cached has ended by then, wherever it does.
            time.sleep(1.1)
            found.append(_during(bench, case, side, server))
            yield found[-1]
        server.stop()
    gone = [one.values for one in found if one.side == HERE and one.case != _BEFORE]
    yield Figure("requests for a cached tag that failed", sum(one["failed"] for one in gone), at_most(0))
    yield Figure("p99 while the upstream is gone, seconds", max(one["p99"] for one in gone), at_most(1))


_BEFORE = "before"
_OUTAGES: Mapping[str, Callable[[Origin], Any]] = {
    _BEFORE: lambda _origin: None,
    "the upstream hangs": lambda origin: origin.process.send_signal(signal.SIGSTOP),
    "the upstream is gone": lambda origin: origin.kill(),
}


def _during(bench: Bench, case: str, side: str, server: Server) -> Sample:
    before = cpu(server)
    asking = [(REPOSITORY, "v1")] * (_HEADS if side in {HERE, "nginx cache"} else _HEADS // 20)
    with bench.on(LOAD):
        orders = Orders(server.port, asking, _CLIENTS, namespace=REGISTRY, only_tags=True, timeout=20)
        report = bench.pull(orders)
    done = max(1, len(report.heads))
    values = {"rate": done / report.seconds, "cpu": (cpu(server) - before) / done, **_waited(report)}
    return Sample(case, side, values)


SCENARIOS: Mapping[str, Scenario] = {
    "mixed": Scenario("how often is what is wanted here, when half of it fits?", _mixed),
    "storm": Scenario("what do nodes and the upstream notice when all tags end at once?", _storm),
    "outage": Scenario("what do nodes notice of an upstream that is gone, of what is cached?", _outage),
}
