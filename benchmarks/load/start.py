"""The program itself: how soon it is ready, and what it costs to have it."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median

from benchmarks.load.sides import FILES, cpu, far_origin, files
from benchmarks.peers import CACHES
from benchmarks.programs import SERVER, Bench, NotInstalled, NotStarted, Server
from benchmarks.report import HERE, Figure, Sample, Scenario, at_most, values_of
from benchmarks.watch import proportional_memory

_IDLE = 3.0
_CASE = "from its command to its first answer"


def _start(bench: Bench) -> Iterator[Sample | Figure]:
    origin = far_origin(bench, (140, 1000))
    starts: dict[str, Callable[[], Server]] = {
        HERE: partial(bench.proxy, origin),
        f"{HERE}, 2 workers": partial(bench.proxy, origin, workers=2),
        **{name: partial(start, bench, origin) for name, start in CACHES.items()},
        FILES: partial(files, bench, {}),
    }
    samples: list[Sample] = []
    for _ in range(bench.turns):
        for side, start in starts.items():
            try:
                with bench.on(SERVER):
                    began = time.perf_counter()
                    server = start()
                    seconds = time.perf_counter() - began
            except (NotInstalled, NotStarted) as error:
                print(f"  without {side}: {str(error).splitlines()[0]}")
                continue
            samples.append(Sample(_CASE, side, {"seconds": seconds, "cpu_seconds": cpu(server)}))
            yield samples[-1]
            server.stop()
    for side, start in starts.items():
        try:
            yield _idle(side, start())
        except (NotInstalled, NotStarted):
            continue
    here = values_of(samples, _CASE, HERE, "seconds")
    yield Figure("seconds until it is ready", median(here), at_most(0.5))


def _idle(side: str, server: Server) -> Sample:
    """What it takes to do nothing, for a while."""
    time.sleep(1)
    before, began = cpu(server), time.perf_counter()
    time.sleep(_IDLE)
    used = (cpu(server) - before) / (time.perf_counter() - began)
    memory = sum(proportional_memory(pid) for pid in server.pids())
    server.stop()
    return Sample("idle", side, {"share": used, "memory": memory})


SCENARIOS: Mapping[str, Scenario] = {"start": Scenario("how soon is it ready, and what does it cost idle?", _start)}
