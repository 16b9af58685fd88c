"""The metrics of several processes are one page: added up, kept when one of them ends."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.telemetry.shared import SharedMetrics

ROOT = Path(__file__).parents[3]
# Counts what it is told to, and says so; its lag is the number of bytes.
WORKER = """
import sys
from proxy.telemetry import events
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import share_metrics

share_metrics(int(sys.argv[1]))
metrics = Metrics(machine=False)
for line in sys.stdin:
    count = int(line)
    metrics.record(events.UpstreamBytes("docker.io", count))
    metrics.record(events.FillStarted("docker.io"))
    metrics.record(events.LoopLag(float(count)))
    metrics.record(events.RateLimitSeen("docker.io", count))
    metrics.record(events.RequestFinished(
        "192.0.2.1", "default", "docker.io", "blob", "GET", "a", "b", 200, "hit", "", count, 0.004, 0.005
    ))
    print("counted", flush=True)
"""
# Tallies one request a line, and only then says so; others read what it counted.
TALLYING_WORKER = """
import asyncio, sys
from proxy.telemetry.events import RequestFinished
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import share_metrics
from proxy.telemetry.tallies import Tallies

async def main():
    share_metrics(int(sys.argv[1]))
    tallies = Tallies(Metrics(machine=False))
    flushing = asyncio.create_task(tallies.flush_now_and_then())
    while line := await asyncio.to_thread(sys.stdin.readline):
        event = RequestFinished("", "default", "docker.io", "blob", "GET", "a", "b", 200, "hit", "", int(line), 0, 0)
        tallies.of(event).add("192.0.2.1", 0.004)
        print("counted", flush=True)

asyncio.run(main())
"""
SENT = 'pullthrough_client_bytes_total{cache="hit",cluster="default",kind="blob",registry="docker.io"}'


class Worker:
    """A process that counts."""

    def __init__(self, directory: Path, number: int, program: str = WORKER) -> None:
        environment = dict(os.environ) | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
        command = (sys.executable, "-c", program, str(number))
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.number = number

    def count(self, number: int) -> None:
        """Let it count so many bytes, once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "counted\n"

    def kill(self) -> None:
        self._process.kill()
        with self._process:
            pass


@contextmanager
def workers(directory: Path, count: int, program: str = WORKER) -> Iterator[list[Worker]]:
    """So many processes; killed in the end."""
    made = [Worker(directory, number, program) for number in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            worker.kill()


def values(metrics: SharedMetrics) -> dict[str, float]:
    """By name and labels as they are written."""
    lines = [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_counters_are_added_up_and_do_not_go_down(tmp_path: Path) -> None:
    """Over two processes, after one of them was killed, and with the one that takes its place."""
    metrics = SharedMetrics(tmp_path)
    with workers(tmp_path, 3) as (one, other, late):
        one.count(100)
        other.count(20)
        other.count(3)
        upstream = 'pullthrough_upstream_bytes_total{registry="docker.io"}'
        assert (values(metrics)[upstream], values(metrics)[SENT]) == (123, 123)
        seconds = 'pullthrough_request_seconds_count{cache="hit",kind="blob"}'
        assert values(metrics)[seconds] == 3
        before = values(metrics)
        one.kill()
        metrics.ended(one.number)
        counters = {name for name in before if "_total" in name or ("_seconds_" in name and "lag" not in name)}
        assert {name: before[name] for name in counters} == {name: values(metrics)[name] for name in counters}
        late.count(1000)
        assert (values(metrics)[upstream], values(metrics)[seconds]) == (1123, 4)


async def test_tallies_are_seen_by_the_supervisor(tmp_path: Path) -> None:
    """Those of all workers, by themselves and within moments: nobody tells workers that they are read."""
    metrics = SharedMetrics(tmp_path)
    with workers(tmp_path, 2, TALLYING_WORKER) as (one, other):
        for worker, count in ((one, 100), (other, 20), (one, 3)):
            worker.count(count)
        async with asyncio.timeout(20):
            while (await asyncio.to_thread(values, metrics)).get(SENT) != 123:
                pass
        found = await asyncio.to_thread(values, metrics)
        assert found['pullthrough_request_seconds_count{cache="hit",kind="blob"}'] == 3


def test_gauges_are_of_those_that_live(tmp_path: Path) -> None:
    """Fills are added up, of the lags the worst is shown, of the rate limits the last; a dead one's count no more."""
    metrics = SharedMetrics(tmp_path)
    remaining = 'pullthrough_upstream_ratelimit_remaining{registry="docker.io"}'
    with workers(tmp_path, 2) as (one, other):
        one.count(9)
        other.count(5)
        found = values(metrics)
        assert (found["pullthrough_fills_active"], found["pullthrough_event_loop_lag_seconds"]) == (2, 9)
        assert found[remaining] == 5
        one.kill()
        metrics.ended(one.number)
        found = values(metrics)
        assert (found["pullthrough_fills_active"], found["pullthrough_event_loop_lag_seconds"]) == (1, 5)


def test_no_process_shows(tmp_path: Path) -> None:
    """No label tells one from another, and what the store holds comes from here alone."""
    metrics = SharedMetrics(tmp_path)
    metrics.set_cache(100, 2)
    with workers(tmp_path, 2) as counting:
        for worker in counting:
            worker.count(1)
        text = metrics.render().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert not [sample for sample in samples if "pid" in sample.labels]
    stored = {sample.name: sample.value for sample in samples if "_cache_" in sample.name}
    assert stored == {"pullthrough_cache_bytes": 100, "pullthrough_cache_blobs": 2}


@pytest.mark.parametrize("process", [1, 4_000_000])
def test_the_end_of_one_that_counted_nothing(tmp_path: Path, process: int) -> None:
    """Is no trouble."""
    metrics = SharedMetrics(tmp_path)
    metrics.ended(process)
    assert values(metrics)["pullthrough_cache_blobs"] == 0
