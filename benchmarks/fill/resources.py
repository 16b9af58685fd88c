"""Memory, processor time, loop lag and disk."""

import os
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.client import Task
from benchmarks.fill.transfers import MB, attempt, beside
from benchmarks.peers import nginx_files
from benchmarks.programs import Bench, Blob, NotStarted, Proxy, Server
from benchmarks.report import Figure, Scenario, at_least, at_most, failures, last
from benchmarks.watch import Peak, cpu_seconds, memory

_GB = 1000 * MB
# A single connection takes one of two speeds, by which core its client happens to run on: more runs for its median.
_ALTERNATIONS = {1: 9, 4: 5}
# The gauge is set four times a second: a body is over after a few of them.
_LAG_READS = 4
_ASK_EVERY = 0.05
_LAG = re.compile(r"^pullthrough_event_loop_lag_seconds(?:{[^}]*})? (\S+)", re.MULTILINE)


def _memory(bench: Bench) -> Iterator[Figure]:
    clients = 16
    origin = bench.origin((20, _GB))
    [blob] = origin.blobs
    direct = last(bench.read(origin.port, blob, clients=clients))

    def said(server: Server) -> str:
        failed = failures(bench.read(server.port, blob, clients=2))
        return f"{memory(server.process.pid) / MB:.0f} (2 clients{f', {failed} failed' if failed else ''})"

    other = beside(bench, origin, said)
    seconds = []
    for stalled in (False, True):
        proxy = attempt(bench, origin)
        if proxy is None:
            yield Figure("peak resident MB of a process", None, at_most(150))
            return
        staller = bench.clients(Task(proxy.port, blob.path, _GB, stall_after=1 << 20)) if stalled else None
        with Peak(proxy.pids()) as peak:
            results = bench.read(proxy.port, blob, clients=clients)
        highest = max(memory(pid) for pid in proxy.pids())
        seconds.append(last(results))
        name = "with a stalled client: " if stalled else ""
        yield Figure(f"{name}peak resident MB (VmHWM)", highest / MB, at_most(150), None, "" if stalled else other)
        yield Figure(f"{name}peak resident MB, sampled", peak.bytes / MB, at_most(150))
        yield Figure(f"{name}upstream bytes / blob", origin.sent() / _GB, at_most(1.01), 1)
        yield Figure(f"{name}clients without the right bytes", failures(results), at_most(0))
        if staller:
            staller.end()
        proxy.kill()
    yield Figure("last of 16 clients, seconds", seconds[0], None, direct)
    yield Figure("last client with / without a stalled one", seconds[1] / seconds[0])


@dataclass
class _Runs:
    """Runs of one server: seconds of processor time per GB, and GB per second."""

    cpu: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)

    def add(self, bench: Bench, server: Server, path: str, clients: int) -> None:
        before = cpu_seconds(server.pids())
        task = Task(server.port, path, _GB, clients=clients)
        results = bench.clients(task).results()
        if failures(results):
            raise NotStarted(results[0].error)
        self.cpu.append((cpu_seconds(server.pids()) - before) / clients)
        self.speed.append(clients / last(results))

    def __str__(self) -> str:
        return f"{statistics.median(self.cpu):.3f} s/GB, {statistics.median(self.speed):.2f} GB/s"


def _present(bench: Bench) -> Iterator[Figure]:
    origin = bench.origin((21, _GB))
    [blob] = origin.blobs
    proxy = attempt(bench, origin)
    if proxy is None:
        yield Figure("processor time / nginx", None, at_most(1.4))
        return
    wrong = failures(bench.read(proxy.port, blob))
    yield Figure("cold: wrong bytes", wrong, at_most(0))
    file = proxy.file(blob)
    nginx = nginx_files(bench, file.parent)
    for cached in (True, False):
        for clients in (1, 4):
            yield from _compare(bench, (proxy, blob), (nginx, f"/{file.name}"), file, cached, clients)
    for cached in (True, False):
        with LagWatch(proxy) as lag:
            for _ in range(_LAG_READS):
                prepare(file, cached)
                bench.read(proxy.port, blob, clients=4, sha256="")
        yield Figure(
            f"{_name(cached, 4)}loop lag at most, ms",
            lag.worst * 1000,
            at_most(20),
            None,
            f"bystander {lag.bystander * 1000:.1f}",
        )
        yield Figure(f"{_name(cached, 4)}slowest answer of /metrics, ms", lag.slowest * 1000)
    yield Figure("present: wrong bytes", failures(bench.read(proxy.port, blob)), at_most(0))


def _compare(
    bench: Bench, ours: tuple[Proxy, Blob], nginx: tuple[Server, str], file: Path, cached: bool, clients: int
) -> Iterator[Figure]:
    """Both, in turns, on the same file."""
    here, there = _Runs(), _Runs()
    for _ in range(_ALTERNATIONS[clients]):
        prepare(file, cached)
        here.add(bench, ours[0], ours[1].path, clients)
        prepare(file, cached)
        there.add(bench, *nginx, clients)
    name, said = _name(cached, clients), f"nginx {there}"
    yield Figure(f"{name}cpu seconds a GB", statistics.median(here.cpu), None, None, said)
    yield Figure(f"{name}cpu / nginx", _ratio(here.cpu, there.cpu), at_most(1.4))
    yield Figure(f"{name}GB a second", statistics.median(here.speed))
    yield Figure(f"{name}throughput / nginx", _ratio(here.speed, there.speed), at_least(0.9))


def _ratio(here: list[float], there: list[float]) -> float:
    """The median of the turns' ratios: a machine that is slow for a while is slow for both sides of a turn."""
    return statistics.median(ours / theirs for ours, theirs in zip(here, there, strict=True))


def _name(cached: bool, clients: int) -> str:
    return f"{'page cache' if cached else 'disk'}, {clients} client{'s' * (clients > 1)}: "


def prepare(file: Path, cached: bool) -> None:
    """Bring the file into the page cache, or out of it."""
    with file.open("rb") as opened:
        if cached:
            while opened.read(1 << 24):
                pass
        else:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class LagWatch:
    """The worst loop lag that the admin listener tells while it is watched, and the slowest of its own answers.

    `bystander` is how late a sleep was here, which is no part of the proxy: the machine's share. All in seconds.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.worst = 0.0
        self.slowest = 0.0
        self.bystander = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        due = time.perf_counter() + _ASK_EVERY
        while not self._over.wait(max(0.0, due - time.perf_counter())):
            asked = time.perf_counter()
            self.bystander = max(self.bystander, asked - due)
            told = self._proxy.metrics()
            self.slowest = max(self.slowest, time.perf_counter() - asked)
            self.worst = max([self.worst, *map(float, _LAG.findall(told))])
            due = time.perf_counter() + _ASK_EVERY


def _tiny_disk(bench: Bench) -> Iterator[Figure]:
    size, clients = 200 * MB, 4
    origin = bench.origin((22, size), rate=100 * MB)
    [blob] = origin.blobs
    cache = _small_disk(bench) if os.geteuid() == 0 else None
    if cache is None:
        print("  needs root and a loop device")
        return
    direct = last(bench.read(origin.port, blob))
    proxy = attempt(bench, origin, cache=cache)
    results = bench.read(proxy.port, blob, clients=clients) if proxy else []
    answered = sum(result.status == 200 for result in results)
    yield Figure("clients answered 200", answered, at_least(clients))
    yield Figure("clients without the right bytes", failures(results) if proxy else None, at_most(0))
    yield Figure("upstream bytes / blob", origin.sent() / size, None, 1)
    yield Figure("last client / one direct download", last(results) / direct if proxy else None, None, 1)
    if proxy:
        proxy.stop()


def _small_disk(bench: Bench) -> Path | None:
    """A file system of 64 MB, ended with the scenario."""
    folder = bench.folder()
    image, mounted = folder / "disk", folder / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    commands = [["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(mounted)]]
    for command in commands:
        if shutil.which(command[0]) is None or subprocess.run(command, check=False).returncode:
            return None
    bench.callback(["umount", "--lazy", str(mounted)])
    return mounted


SCENARIOS = {
    "memory": Scenario("16 clients, a cold blob of 1 GB, origin without limit", _memory),
    "present": Scenario("a present blob of 1 GB beside nginx's sendfile of the same file", _present),
    "tiny-disk": Scenario("4 clients, a cold blob of 200 MB, a cache of 64 MB", _tiny_disk),
}
