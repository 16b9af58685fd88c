"""What is asked for again and again: manifests and blobs that are here."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.fill.resources import LagWatch, prepare
from benchmarks.fill.transfers import MB
from benchmarks.generators import Load, gets, heads, served
from benchmarks.load.sides import FILES, PARSED, Sides, cpu, far_origin, fetched, files, others, proxy, turns
from benchmarks.programs import LOAD, Bench, NotStarted, Proxy, Server
from benchmarks.report import HERE, Figure, Sample, Scenario, at_least, at_most, failures, last, ratio, values_of

_SECONDS = 1
_CONNECTIONS = 64
_TAG, _DIGEST, _HEAD = "by tag", "by digest", "HEAD by tag"
_BY_TAG = "/v2/bench/app/manifests/v1"


def _manifests(bench: Bench) -> Iterator[Sample | Figure]:
    origin = far_origin(bench, *((40 + number, 4000) for number in range(10)))
    by_digest = f"/v2/bench/app/manifests/{origin.manifest}"
    manifest = fetched(origin, _BY_TAG)
    sides: Sides = {HERE: proxy(bench, origin), PARSED: proxy(bench, origin, fast_path=False)}
    sides |= others(bench, origin)
    sides[FILES] = files(bench, {_BY_TAG: manifest, by_digest: manifest})
    for server in sides.values():
        fetched(server, _BY_TAG)
        fetched(server, by_digest)
    samples: list[Sample] = []
    cases: dict[str, tuple[Callable[..., Load], str]] = {
        _TAG: (gets, _BY_TAG), _DIGEST: (gets, by_digest), _HEAD: (heads, _BY_TAG)
    }  # fmt: skip
    for case, (generator, path) in cases.items():
        for side, server in turns(bench, sides):
            samples.append(_loaded(bench, case, side, server, generator, path, _CONNECTIONS))
            yield samples[-1]
    yield from _manifest_figures(samples)


def _manifest_figures(samples: Sequence[Sample]) -> Iterator[Figure]:
    here = values_of(samples, _TAG, HERE, "cpu")
    parsed = values_of(samples, _TAG, PARSED, "cpu")
    nginx = values_of(samples, _TAG, FILES, "cpu")
    peer = values_of(samples, _DIGEST, "distribution", "cpu")
    yield Figure("by tag: CPU of nginx with a file / here", ratio(nginx, here), at_least(0.6))
    yield Figure("CPU of distribution by digest / here by tag", ratio(peer, here), at_least(10))
    yield Figure("without the fast path: CPU of nginx / here", ratio(nginx, parsed), at_least(0.12))
    p99 = values_of(samples, _TAG, HERE, "p99")
    yield Figure(f"p99 at {_CONNECTIONS} connections, ms", median(p99) * 1000 if p99 else None, at_most(10))
    failed = sum(one.values["failed"] for one in samples if one.side in {HERE, PARSED})
    yield Figure("requests that failed here", failed, at_most(0))


def _blobs(bench: Bench) -> Iterator[Sample | Figure]:
    small, large = (50, 4000), (51, MB)
    origin = far_origin(bench, small, large)
    sides: Sides = {HERE: proxy(bench, origin)}
    sides |= others(bench, origin)
    paths = {blob.size: blob.path for blob in origin.blobs}
    sides[FILES] = files(bench, {path: fetched(origin, path) for path in (_BY_TAG, *paths.values())})
    samples: list[Sample] = []
    for (_, size), case, connections in ((small, "4 kB", _CONNECTIONS), (large, "1 MB", 16)):
        path = paths[size]
        for server in sides.values():
            _until_stored(server, path)
        for side, server in turns(bench, sides):
            samples.append(_loaded(bench, case, side, server, gets, path, connections))
            yield samples[-1]
    rate = values_of(samples, "4 kB", HERE, "rate")
    yield Figure("4 kB: requests a second", median(rate) if rate else None, at_least(8000))
    failed = sum(one.values["failed"] for one in samples if one.side == HERE)
    yield Figure("requests that failed here", failed, at_most(0))


def _large(bench: Bench) -> Iterator[Sample | Figure]:
    size, case = 1000 * MB, "1 GB"
    origin = far_origin(bench, (52, size))
    [blob] = origin.blobs
    here = proxy(bench, origin)
    assert isinstance(here, Proxy)
    bench.read(here.port, blob, sha256="")
    file = here.file(blob)
    contents: dict[str, bytes | Path] = {_BY_TAG: fetched(origin, _BY_TAG), blob.path: file}
    sides: Sides = {HERE: here, **others(bench, origin), FILES: files(bench, contents)}
    for server in sides.values():
        # zot has blobs of what was asked for by its manifest.
        fetched(server, _BY_TAG)
        bench.read(server.port, blob, sha256="")
    samples: list[Sample] = []
    for side, server in turns(bench, sides):
        prepare(file, cached=True)
        before = cpu(server)
        with bench.on(LOAD):
            results = bench.read(server.port, blob, sha256="")
        if failures(results):
            raise NotStarted(f"{side}: {results[0].error}")
        values = {"speed": size / last(results), "cpu_gb": (cpu(server) - before) * 1e9 / size}
        samples.append(Sample(case, side, values))
        yield samples[-1]
    speed, used = (
        ratio(values_of(samples, case, HERE, one), values_of(samples, case, FILES, one)) for one in ("speed", "cpu_gb")
    )
    yield Figure("1 GB: throughput / nginx", speed, at_least(0.9))
    yield Figure("1 GB: CPU / nginx", used, at_most(1.4))
    with bench.on(LOAD), LagWatch(here) as lag:
        for _ in range(4):
            bench.read(here.port, blob, clients=4, sha256="")
    said = f"bystander {lag.bystander * 1000:.1f}"
    yield Figure("1 GB, 4 clients: loop lag at most, ms", lag.worst * 1000, at_most(20), None, said)


def _workers(bench: Bench) -> Iterator[Sample | Figure]:
    origin = far_origin(bench, (60, 4000))
    one = proxy(bench, origin)
    # Their processors are the load's too, which is part of what they are measured with.
    two = bench.proxy(origin, workers=2, log={"access": True})
    for server in (one, two):
        fetched(server, _BY_TAG)
    samples = []
    for side, server in turns(bench, {f"{HERE}, 1 worker": one, f"{HERE}, 2 workers": two}):
        load = _loaded(bench, _TAG, side, server, gets, _BY_TAG, _CONNECTIONS)
        samples.append(load)
        yield load
    used = [values_of(samples, _TAG, f"{HERE}, {name}", "cpu") for name in ("2 workers", "1 worker")]
    yield Figure("CPU of a request with 2 workers / with 1", ratio(*used), at_most(1.15))
    rate = values_of(samples, _TAG, f"{HERE}, 2 workers", "rate")
    yield Figure("requests a second, 2 workers and the load on 2 cores", median(rate) if rate else None)


def _loaded(
    bench: Bench, case: str, side: str, server: Server, generator: Callable[..., Load], path: str, connections: int
) -> Sample:
    before = cpu(server)
    load = generator(bench, server.port, path, _SECONDS, connections)
    return Sample(case, side, served([server], load, before))


def _until_stored(server: Server, path: str) -> None:
    """Ask more than once: the first answer may be over before the blob is stored. zot wants the manifest first."""
    fetched(server, _BY_TAG)
    for _ in range(3):
        fetched(server, path)
        time.sleep(0.2)


SCENARIOS: Mapping[str, Scenario] = {
    "manifests": Scenario("what does a cached manifest cost the server, and the one who waits for it?", _manifests),
    "blobs": Scenario("how many small blobs a second, from a cache that has them?", _blobs),
    "large": Scenario("how fast does a present blob of 1 GB leave, and for how much processor time?", _large),
    "workers": Scenario("do two workers get in each other's way?", _workers),
}
