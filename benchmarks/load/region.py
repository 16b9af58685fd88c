"""A region: three replicas that share a metadata server, and more nodes than one of them is meant for.

The nodes have all the work that nodes have but the bytes: their image is small, so that what is met is what a request
costs, what a connection costs, and what replicas tell each other. Replicas, their server, nodes and upstream share the
processors there are: seconds say little, sums of processor time and counts say how it grows.
"""

import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.images import REPOSITORY
from benchmarks.load.sides import cpu
from benchmarks.nodes import Orders, Report, share_of
from benchmarks.programs import REGISTRY, Bench, Origin, Proxy, Server, free_port, program
from benchmarks.report import HERE, Figure, Sample, Scenario, at_most
from benchmarks.watch import Peak

_REPLICAS = 3
_NODES = (300, 3_000, 10_000)
_LAYERS, _LAYER = 10, 100_000
_IMAGE = (REPOSITORY, "v1")
# What containerd opens at most for one image, and a few of each node's that have not been closed yet.
_CONNECTIONS = 65536


class _Valkey(Server):
    """The metadata server."""

    def told(self, section: str) -> dict[str, str]:
        """A section of its INFO."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"INFO {section}\r\nQUIT\r\n".encode())
            text = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def _valkey(bench: Bench) -> _Valkey:
    folder, port = bench.folder(), free_port()
    command = [program("valkey-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = bench.start([*command, "--dir", str(folder)], folder / "log")
    server = _Valkey(process, port)
    for _ in range(200):
        try:
            server.told("server")
        except OSError:
            continue
        break
    return server


def _replicas(bench: Bench, origin: Origin, valkey: Server) -> list[Proxy]:
    """All of them, with nothing in their caches."""
    secret = bench.folder() / "secret"
    secret.write_text(secrets.token_hex(32))
    url, limits = f"redis://127.0.0.1:{valkey.port}/0?prefix={secrets.token_hex(4)}", {"max_connections": _CONNECTIONS}
    return [
        bench.proxy(
            origin,
            limits=limits | {"max_connections_per_client": 0},
            shared={"metadata": url, "secret_file": str(secret), "listen": f"127.0.0.1:{free_port()}"},
        )
        for _ in range(_REPLICAS)
    ]


def _pulled(bench: Bench, servers: Sequence[Server], nodes: int) -> list[Report]:
    """Nodes pull, as many through each."""
    orders = [
        Orders(server.port, [_IMAGE] * (nodes // len(servers)), nodes // len(servers), namespace=REGISTRY, timeout=600)
        for server in servers
    ]
    with ThreadPoolExecutor(len(servers)) as threads:
        return list(threads.map(bench.pull, orders))


def _values(
    bench: Bench, origin: Origin, valkey: _Valkey, replicas: Sequence[Proxy], nodes: int
) -> tuple[list[Report], dict[str, float]]:
    origin.reset()
    servers: tuple[Server, ...] = (*replicas, valkey)
    before, commands = [cpu(server) for server in servers], int(valkey.told("stats")["total_commands_processed"])
    with Peak([pid for replica in replicas for pid in replica.pids()]) as peak:
        reports = _pulled(bench, replicas, nodes)
    *used, asked = (cpu(server) - earlier for server, earlier in zip(servers, before, strict=True))
    requests, size = origin.requests(), sum(count for _, count in origin.images[0].blobs)
    return reports, {
        "seconds": max(report.seconds for report in reports),
        "p99": share_of([seconds for report in reports for seconds in report.heads], 0.99),
        "cpu_seconds": sum(used),
        "metadata_cpu_seconds": asked,
        "metadata_commands": int(valkey.told("stats")["total_commands_processed"]) - commands,
        "metadata_memory": int(valkey.told("memory")["used_memory"]),
        "memory": peak.bytes,
        "failed": sum(len(report.failed) for report in reports),
        "upstream_bytes": sum(one.sent for one in requests if one.kind == "blob") / size,
        "upstream_pulls": sum((one.kind, one.method) == ("manifest", "GET") for one in requests),
        "upstream_requests": len(requests),
    }


def _region(bench: Bench) -> Iterator[Sample | Figure]:
    origin = bench.origin(*((200 + number, _LAYER) for number in range(_LAYERS)))
    samples: list[Sample] = []
    for nodes in _NODES:
        valkey = _valkey(bench)
        replicas = _replicas(bench, origin, valkey)
        for what in ("cold", "warm"):
            reports, values = _values(bench, origin, valkey, replicas, nodes)
            for report in reports:
                if report.failed:
                    print(f"  {nodes} nodes, {what}: {report.failed[0]}")
            case = f"{nodes} nodes × {_LAYERS} layers × 100 kB at {_REPLICAS} replicas, {what}"
            samples.append(Sample(case, HERE, values))
            yield samples[-1]
        for server in (*replicas, valkey):
            server.stop()
    cold = [one.values for one in samples if one.case.endswith("cold")]
    yield Figure(
        "upstream bytes / image, whatever the nodes", max(one["upstream_bytes"] for one in cold), at_most(1.01)
    )
    yield Figure("pulls that the upstream counts", max(one["upstream_pulls"] for one in cold), at_most(1))
    yield Figure("nodes that failed", sum(one.values["failed"] for one in samples), at_most(0))


SCENARIOS: Mapping[str, Scenario] = {"region": Scenario("10,000 nodes at three replicas that share metadata", _region)}
