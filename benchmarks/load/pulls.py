"""Whole images: one client alone, and a cluster that boots."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.fill.transfers import MB
from benchmarks.images import REPOSITORY
from benchmarks.load.sides import cpu, far_origin, proxy
from benchmarks.nodes import Orders, Report, share_of
from benchmarks.peers import CACHES
from benchmarks.programs import LOAD, REGISTRY, SERVER, Bench, NotInstalled, NotStarted, Origin, Server
from benchmarks.report import HERE, Figure, Sample, Scenario, at_most, ratio, values_of
from benchmarks.watch import Peak

_IMAGE = (REPOSITORY, "v1")
DIRECT = "direct"
Start = Callable[[], Server]


def starts(bench: Bench, origin: Origin, **more: Any) -> dict[str, Start]:
    """How to start this proxy and the others, each with nothing in its cache, on the server's processor."""

    def peer(start: Callable[[Bench, Origin], Server]) -> Start:
        def started() -> Server:
            with bench.on(SERVER):
                return start(bench, origin)

        return started

    return {HERE: lambda: proxy(bench, origin, **more)} | {name: peer(start) for name, start in CACHES.items()}


def pulled(bench: Bench, origin: Origin, server: Server, nodes: int, **more: Any) -> tuple[Report, dict[str, float]]:
    """So many nodes pull the image at once, with what that was for the server and the origin."""
    orders = Orders(server.port, [_IMAGE] * nodes, nodes, namespace=REGISTRY, **more)
    origin.reset()
    before = cpu(server)
    with Peak(server.pids()) as peak, bench.on(LOAD):
        report = bench.pull(orders)
    asked = origin.requests()
    size = sum(count for _, count in origin.images[0].blobs)
    values = {
        "seconds": report.seconds,
        "p99": share_of(report.heads, 0.99),
        "cpu_seconds": cpu(server) - before,
        "memory": peak.bytes,
        "failed": len(report.failed),
        "upstream_bytes": sum(one.sent for one in asked if one.kind == "blob") / size,
        "upstream_requests": len(asked),
        "upstream_pulls": sum((one.kind, one.method) == ("manifest", "GET") for one in asked),
    }
    return report, values


def _cold(bench: Bench) -> Iterator[Sample | Figure]:
    case = "6 layers, 320 MB, 30 ms away, 50 MB/s a connection"
    sizes = (150, 80, 50, 25, 10, 5)
    origin = far_origin(
        bench, *((70 + number, size * MB) for number, size in enumerate(sizes)), latency=0.03, connection_rate=50 * MB
    )
    samples: list[Sample] = []
    for _ in range(min(bench.turns, 3)):
        for side, start in ({DIRECT: partial(_itself, origin)} | starts(bench, origin)).items():
            if (server := tried(side, start)) is None:
                continue
            _, values = pulled(bench, origin, server, 1, check_every=1)
            if side == DIRECT:
                values = {name: values[name] for name in ("seconds", "failed")}
            else:
                server.stop()
            samples.append(Sample(case, side, values))
            yield samples[-1]
    here, direct = (values_of(samples, case, side, "seconds") for side in (HERE, DIRECT))
    yield Figure("a cold image / the same directly, seconds", ratio(here, direct), at_most(1.1))
    yield Figure("upstream bytes / image", max(values_of(samples, case, HERE, "upstream_bytes")), at_most(1.01))


# What of the peers asks the origin for each node: no more nodes than can be waited for.
_FEW = 20
_MANY = (50, 200, 1000)
_RATE = 125 * MB
_BUFFER = 2 * MB


def _boot(bench: Bench) -> Iterator[Sample | Figure]:
    size = 5 * MB
    origin = far_origin(bench, *((80 + number, size) for number in range(10)), rate=_RATE)
    samples: list[Sample] = []
    for _ in range(min(bench.turns, 3)):
        for side, start in starts(bench, origin).items():
            if (server := tried(side, start)) is not None:
                # Without ranges: to one of a cold blob distribution answers with all of it.
                yield from _booted(bench, origin, side, server, _FEW, samples, buffer=0)
    for nodes in _MANY:
        for _ in range(bench.turns if nodes == 200 else 1):
            server = proxy(bench, origin)
            yield from _booted(bench, origin, HERE, server, nodes, samples, "warm", buffer=_BUFFER)
    yield from _boot_figures(samples, sum(count for _, count in origin.images[0].blobs) / _RATE)


def _booted(
    bench: Bench, origin: Origin, side: str, server: Server, nodes: int, samples: list[Sample], *again: str, buffer: int
) -> Iterator[Sample]:
    """The same boot cold and, where that is wanted, `again`; the server is stopped after it."""
    for what in ("cold", *again):
        report, values = pulled(bench, origin, server, nodes, buffer=buffer, timeout=300)
        if report.failed:
            print(f"  {side}, {what}: {report.failed[0]}")
        samples.append(Sample(_boot_case(nodes, what), side, values))
        yield samples[-1]
    server.stop()


def _boot_case(nodes: int, what: str) -> str:
    return f"{nodes} nodes × 10 layers × 5 MB, {what}"


def _boot_figures(samples: list[Sample], one_copy: float) -> Iterator[Figure]:
    cold, warm = (values_of(samples, _boot_case(200, what), HERE, "seconds") for what in ("cold", "warm"))
    yield Figure(
        "200 nodes: seconds / (one copy at the origin's rate + warm)",
        ratio(cold, [one_copy + seconds for seconds in warm]),
        at_most(1.15),
    )
    for nodes in _MANY:
        sent = values_of(samples, _boot_case(nodes, "cold"), HERE, "upstream_bytes")
        yield Figure(f"{nodes} nodes: upstream bytes / image", max(sent, default=None), at_most(1.01))
    failed = sum(one.values["failed"] for one in samples if one.side == HERE)
    yield Figure("nodes that failed", failed, at_most(0))


def _passing(bench: Bench) -> Iterator[Sample | Figure]:
    case, nodes = "20 nodes × 10 layers × 2 MB", 20
    samples: list[Sample] = []
    for redirects in (True, False):
        name = f"{case}, the upstream {'redirects' if redirects else 'sends itself'}"
        origin = far_origin(bench, *((100 + number, 2 * MB) for number in range(10)), redirect=redirects)
        clusters = {mode: [{"name": "nodes", "mode": mode}] for mode in ("transparent", "metadata-only")}
        sides: dict[str, Start] = {DIRECT: partial(_itself, origin)}
        for mode, cluster in clusters.items():
            sides[f"{HERE}, {mode}"] = partial(proxy, bench, origin, clusters=cluster)
        for _ in range(bench.turns):
            for side, start in sides.items():
                server = start()
                report, values = pulled(bench, origin, server, nodes)
                if report.failed:
                    print(f"  {side}: {report.failed[0]}")
                if side == DIRECT:
                    del values["cpu_seconds"], values["memory"]
                else:
                    server.stop()
                samples.append(Sample(name, side, values))
                yield samples[-1]
    failed = sum(one.values["failed"] for one in samples)
    yield Figure("nodes that failed", failed, at_most(0))
    pulls = [one.values["upstream_pulls"] for one in samples if one.side != DIRECT]
    yield Figure("pulls that the upstream counts", max(pulls), at_most(1), nodes)


# As Docker Hub has it for an address: so many pulls in six hours.
_PULLS, _WINDOW = 100, 21600
_PULLING = 150


def _limited(bench: Bench) -> Iterator[Sample | Figure]:
    case = f"{_PULLING} nodes, {_PULLS} pulls in six hours"
    found: list[Sample] = []
    for side in (DIRECT, HERE, *CACHES):
        origin = far_origin(bench, (150, 100_000), pulls=_PULLS, window=_WINDOW)
        start = partial(_itself, origin) if side == DIRECT else starts(bench, origin)[side]
        if (server := tried(side, start)) is None:
            continue
        _, values = pulled(bench, origin, server, _PULLING)
        found.append(Sample(case, side, {name: values[name] for name in ("seconds", "failed", "upstream_pulls")}))
        yield found[-1]
        server.stop()
    failed = {one.side: one.values["failed"] for one in found}
    yield Figure("nodes that failed", failed[HERE], at_most(0), failed[DIRECT])


def _itself(origin: Origin) -> Server:
    return origin


def tried(side: str, start: Start) -> Server | None:
    """The server, or None where it does not start, which is said."""
    try:
        return start()
    except (NotInstalled, NotStarted) as error:
        print(f"  without {side}: {str(error).splitlines()[0]}")
        return None


SCENARIOS: Mapping[str, Scenario] = {
    "cold": Scenario("how much longer than without a cache does one client wait for an image that is not here?", _cold),
    "boot": Scenario("what does a cluster that boots cost the upstream, and how long does it wait?", _boot),
    "limit": Scenario("how many nodes start from an upstream that counts pulls?", _limited),
    "metadata-only": Scenario("what does it cost to keep manifests only?", _passing),
}
