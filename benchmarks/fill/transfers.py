"""How soon, and how many upstream bytes, where nothing breaks."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks.client import Result, Task
from benchmarks.content import Made, sha256
from benchmarks.peers import distribution
from benchmarks.programs import Bench, Blob, NotStarted, Origin, Proxy, Server
from benchmarks.report import Figure, Scenario, at_least, at_most, failures, last

MB = 1_000_000
RATE = 20 * MB
_TURNS = 3
_HERD_SEED = 1


def attempt(bench: Bench, origin: Origin, **more: Any) -> Proxy | None:
    """A proxy with an origin that counts from nothing; None, with the reason printed, where this one cannot."""
    origin.reset()
    try:
        return bench.proxy(origin, **more)
    except NotStarted as error:
        print(f"  not started: {str(error).splitlines()[-1]}")
        return None


def beside(bench: Bench, origin: Origin, measure: Callable[[Server], str]) -> str:
    """What `measure` says of distribution as a cold cache of the same origin."""
    origin.reset()
    try:
        server = distribution(bench, origin)
    except NotStarted:
        return "-"
    said = measure(server)
    server.stop()
    return said


def _herd(bench: Bench) -> Iterator[Figure]:
    size, many, few = 64 * MB, 64, 4
    origin = bench.origin((_HERD_SEED, size), rate=RATE)
    [blob] = origin.blobs

    def said(server: Server) -> str:
        results = bench.read(server.port, blob, clients=few)
        sent, longer = origin.sent() / size, last(results) / last(bench.read(origin.port, blob))
        failed = f", {failures(results)} failed" if failures(results) else ""
        return f"{sent:.2f}, {longer:.2f} ({few} clients{failed})"

    other = beside(bench, origin, said)
    for workers in (1, 2):
        name = f"{workers} worker{'s' * (workers > 1)}: "
        turns = list(_herd_turns(bench, origin, workers, many))
        sent, longer, failed = map(list, zip(*turns, strict=True)) if turns else ([], [], [])
        yield Figure(f"{name}upstream bytes / blob", max(sent, default=None), at_most(1.01), 1, other * (workers == 1))
        yield Figure(f"{name}last client / one direct download", median(longer) if longer else None, at_most(1.10), 1)
        yield Figure(f"{name}clients without the right bytes", sum(failed) if failed else None, at_most(0))


def _herd_turns(bench: Bench, origin: Origin, workers: int, clients: int) -> Iterator[tuple[float, float, int]]:
    """Of each turn: upstream bytes a blob, last client by a direct download just before, clients that failed."""
    [blob] = origin.blobs
    for _ in range(_TURNS):
        direct = last(bench.read(origin.port, blob, seed=_HERD_SEED))
        proxy = attempt(bench, origin, workers=workers)
        if proxy is None:
            return
        # Sixty-four clients that hash would need more than two cores have, and be what is measured.
        results = bench.read(proxy.port, blob, clients=clients, seed=_HERD_SEED)
        yield origin.sent() / blob.size, last(results) / direct, failures(results)
        proxy.stop()


def _tail(bench: Bench) -> Iterator[Figure]:
    size, tail = 256 * MB, 1 << 20
    digest = sha256(Made(2, size), size - tail)
    origin = bench.origin((2, size), connection_rate=RATE)
    [blob] = origin.blobs

    def read_tail(port: int) -> Result:
        return bench.read(port, blob, start=size - tail, sha256=digest)[0]

    direct = read_tail(origin.port).seconds

    def said(server: Server) -> str:
        result = read_tail(server.port)
        return f"{result.seconds:.2f} s, status {result.status}"

    other = beside(bench, origin, said)
    for running in (False, True):
        name = "with a reader from 0: " if running else "alone: "
        proxy = attempt(bench, origin)
        if proxy is None:
            yield Figure(f"{name}seconds for the last 1 MiB", None, at_most(0.5))
            continue
        whole = bench.clients(Task(proxy.port, blob.path, size, blob.sha256)) if running else None
        if running:
            _until(lambda: origin.sent() > 0)
            time.sleep(0.5)
        result = read_tail(proxy.port)
        yield Figure(
            f"{name}seconds for the last 1 MiB", result.seconds, at_most(0.5), direct, "" if running else other
        )
        yield Figure(f"{name}wrong bytes or status", float(not result.good or result.status != 206), at_most(0))
        if whole:
            yield Figure("the reader from 0 without the right bytes", failures(whole.results()), at_most(0))
            yield Figure("upstream bytes / blob", origin.sent() / size, at_most(1.01))
        proxy.kill()


def _parallel(bench: Bench) -> Iterator[Figure]:
    size = 128 * MB
    origin = bench.origin((3, size), connection_rate=RATE)
    [blob] = origin.blobs
    direct = last(bench.read(origin.port, blob))
    other = beside(bench, origin, lambda server: f"{direct / last(bench.read(server.port, blob)):.2f}")
    proxy = attempt(bench, origin, upstream={"parallel": 4})
    if proxy is None:
        yield Figure("times as fast as direct", None, at_least(3))
        return
    results = bench.read(proxy.port, blob)
    yield Figure("times as fast as direct", direct / last(results), at_least(3), 1, other)
    yield Figure("upstream bytes / blob", origin.sent() / size, at_most(1.01), 1)
    yield Figure("clients without the right bytes", failures(results), at_most(0))


def first_bytes(origin: Origin, blob: Blob, count: float) -> None:
    """Wait until the origin has sent so many bytes of the blob."""
    _until(lambda: origin.sent(blob) >= count)


def _until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        if time.monotonic() > end:
            raise NotStarted("the origin is not asked")
        time.sleep(0.01)


SCENARIOS = {
    "herd": Scenario("64 clients, a cold blob of 64 MB, origin 20 MB/s in all", _herd),
    "tail": Scenario("the last 1 MiB of a cold blob of 256 MB, origin 20 MB/s a connection", _tail),
    "parallel": Scenario("a cold blob of 128 MB, origin 20 MB/s a connection, 4 upstream ranges", _parallel),
}
