"""What a broken connection or a killed process costs."""

import os
import signal
from collections.abc import Iterator

from benchmarks.client import Task
from benchmarks.fill.transfers import MB, attempt, beside, first_bytes
from benchmarks.peers import distribution
from benchmarks.programs import Bench, NotStarted, Origin, Proxy, Server
from benchmarks.report import Figure, Scenario, at_least, at_most, failures, last
from benchmarks.watch import connections

_REOPEN = 20


def _cuts(bench: Bench) -> Iterator[Figure]:
    size, clients = 64 * MB, 8
    for number, way in enumerate(("fin", "rst")):
        origin = bench.origin((10 + number, size), rate=50 * MB, cut_every=10 * MB, cut_with=way)
        [blob] = origin.blobs
        alone = bench.read(origin.port, blob, reopen=_REOPEN)
        direct = origin.sent() / size if not failures(alone) else None

        def said(server: Server, origin: Origin = origin) -> str:
            results = bench.read(server.port, origin.blobs[0], clients=2, reopen=_REOPEN, timeout=30)
            return f"{origin.sent() / size:.2f}, {failures(results)} of 2 failed"

        other = beside(bench, origin, said)
        proxy = attempt(bench, origin)
        results = bench.read(proxy.port, blob, clients=clients) if proxy else []
        # Clients that were cut never asked for the rest: few bytes would be no merit.
        sent = origin.sent() / size if results and not failures(results) else None
        bar = at_most(1.03) if way == "fin" else None
        name = way.upper()
        yield Figure(f"{name}: clients that failed", failures(results) if proxy else None, at_most(0))
        yield Figure(f"{name}: upstream bytes / blob", sent, bar, direct, other)
        yield Figure(f"{name}: last client / one direct", last(results) / last(alone) if sent else None)


def _kill(bench: Bench) -> Iterator[Figure]:
    size = 128 * MB
    origin = bench.origin((12, size), rate=40 * MB)
    [blob] = origin.blobs

    def killed_at_half(server: Server) -> None:
        first = bench.clients(Task(server.port, blob.path, size, blob.sha256))
        first_bytes(origin, blob, size / 2)
        server.kill()
        first.results()
        origin.reset()

    def peer() -> str:
        folder = bench.folder()
        try:
            killed_at_half(distribution(bench, origin, folder))
            again = distribution(bench, origin, folder)
        except NotStarted:
            return "-"
        failed = failures(bench.read(again.port, blob))
        again.stop()
        return f"{origin.sent() / size:.2f}" + (", wrong bytes" if failed else "")

    other = peer()
    proxy = attempt(bench, origin)
    if proxy is None:
        yield Figure("second run's upstream bytes / blob", None, at_most(0.55))
        return
    killed_at_half(proxy)
    proxy.restart()
    results = bench.read(proxy.port, blob)
    yield Figure("second run's upstream bytes / blob", origin.sent() / size, at_most(0.55), 0.5, other)
    yield Figure("clients without the right bytes", failures(results), at_most(0))


def _worker_kill(bench: Bench) -> Iterator[Figure]:
    size, clients = 128 * MB, 16
    origin = bench.origin((13, size), rate=30 * MB)
    [blob] = origin.blobs
    direct = last(bench.read(origin.port, blob))
    proxy = attempt(bench, origin, workers=2)
    if proxy is None:
        yield Figure("clients without the right bytes", None, at_most(0))
        return
    running = bench.clients(Task(proxy.port, blob.path, size, blob.sha256, clients=clients, reopen=10))
    first_bytes(origin, blob, size / 3)
    victims = _kill_worker(proxy)
    results = running.results()
    noticed = sum(result.fins + result.resets > 0 for result in results)
    yield Figure("clients on the killed worker", victims, at_least(1))
    yield Figure("other clients that noticed", max(0, noticed - victims), at_most(0))
    yield Figure("clients without the right bytes", failures(results), at_most(0))
    yield Figure("upstream bytes / blob", origin.sent() / size, None, 1)
    yield Figure("last client / one direct download", last(results) / direct, None, 1)


def _kill_worker(proxy: Proxy) -> int:
    """Kill the worker with the most clients, but not all; gives how many it had."""
    counted = {pid: connections(pid, proxy.port) for pid in proxy.pids()[1:]}
    victim = max(counted, key=lambda pid: counted[pid], default=None)
    if victim is None or not counted[victim]:
        return 0
    os.kill(victim, signal.SIGKILL)
    return counted[victim]


SCENARIOS = {
    "cuts": Scenario("8 clients, a cold blob of 64 MB, origin 50 MB/s in all that cuts every 10 MB", _cuts),
    "kill": Scenario("kill -9 at half of a cold blob of 128 MB, restart on the same cache", _kill),
    "worker-kill": Scenario("2 workers, 16 clients, a cold blob of 128 MB, one worker killed -9", _worker_kill),
}
