"""Load by requests: wrk for GET; hey for HEAD, where wrk waits for a body that never comes and ab speaks HTTP/1.0."""

import csv
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.nodes import ACCEPT, share_of
from benchmarks.programs import LOAD, Bench, NotStarted, Server, program
from benchmarks.watch import cpu_seconds, memory

_SCRIPT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f, "worst": %f}\\n',
    summary.requests, summary.duration / 1e6, errors.connect + errors.read + errors.write + errors.status +
    errors.timeout, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, latency.max / 1e6))
end
"""
# What containerd sends besides.
_LINES = ("-H", "User-Agent: containerd/v2.4.2", "-H", f"Accept: {ACCEPT}")


@dataclass(frozen=True)
class Load:
    """What the generator saw: requests, and seconds."""

    requests: int
    seconds: float
    failed: int
    p50: float
    p99: float
    worst: float


def gets(bench: Bench, port: int, path: str, seconds: int, connections: int) -> Load:
    """GET as often as it can be had, over so many connections that stay."""
    script = bench.folder() / "done.lua"
    script.write_text(_SCRIPT)
    command = [
        program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script),
        *_LINES, _url(port, path),
    ]  # fmt: skip
    return Load(**json.loads(_run(bench, command).strip().splitlines()[-1]))


def heads(bench: Bench, port: int, path: str, seconds: int, connections: int) -> Load:
    """The same with HEAD."""
    command = [
        program("hey"), "-z", f"{seconds}s", "-c", str(connections), "-t", "30", "-m", "HEAD", "-o", "csv", *_LINES,
        _url(port, path),
    ]  # fmt: skip
    rows = list(csv.DictReader(_run(bench, command).splitlines()))
    took = sorted(float(row["response-time"]) for row in rows)
    failed = sum(row["status-code"] != "200" for row in rows)
    over = max((float(row["offset"]) + float(row["response-time"]) for row in rows), default=0)
    return Load(len(rows), over, failed, share_of(took, 0.5), share_of(took, 0.99), share_of(took, 1))


def served(servers: Sequence[Server], load: Load, before: float) -> dict[str, float]:
    """What such a load was for a server whose processes had used `before` seconds of processor time."""
    pids = [pid for server in servers for pid in server.pids()]
    return {
        "rate": load.requests / load.seconds,
        "cpu": (cpu_seconds(pids) - before) / max(1, load.requests),
        "p50": load.p50,
        "p99": load.p99,
        "worst": load.worst,
        "failed": load.failed,
        "memory": sum(memory(pid) for pid in pids),
    }


def _url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}{path}"


def _run(bench: Bench, command: Sequence[str]) -> str:
    with bench.on(LOAD):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise NotStarted(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
