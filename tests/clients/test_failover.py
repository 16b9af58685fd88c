"""Shared metadata by Sentinels, and in a Cluster: when the master is gone, the link goes on with the next one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.storage.link import Away, Link
from proxy.storage.servers import Place
from proxy.storage.stamps import Stamps
from proxy.storage.valkey import ValkeyMetadata
from proxy.telemetry.events import silent
from tests.clients.process import Daemon, free_port, run, wait_for
from tests.clients.valkey import Refused, ValkeyServer

_NAME = "region"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[ValkeyServer, ValkeyServer, int]]:
    """A master with a replica of its own, and the port of a Sentinel that watches them."""
    master = ValkeyServer(tmp_path / "master", {"repl-diskless-sync-delay": "0"})
    follower = ValkeyServer(tmp_path / "follower", {"replicaof": f"127.0.0.1 {master.port}"})
    port, config = free_port(), tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor {_NAME} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {_NAME} 500\nsentinel failover-timeout {_NAME} 3000\n"
    )
    sentinel = Daemon(["redis-server", config, "--sentinel"], tmp_path / "sentinel.log")
    try:
        sentinel.wait_until(lambda: f"slave{0}" in _info(port) or "slaves=1" in _info(port))
        yield master, follower, port
    finally:
        sentinel.stop()
        follower.stop()
        master.stop()


async def test_the_next_master_is_found(servers: tuple[ValkeyServer, ValkeyServer, int]) -> None:
    """What was stored is there, and what comes is stored, as soon as there is another master."""
    master, follower, port = servers
    link = Link(Place.of(f"redis+sentinel://127.0.0.1:{port}/{_NAME}?prefix=tests"), silent)
    store = ValkeyMetadata(link, Stamps(None))
    link.heard, link.turned = store.hear, store.forget
    await link.start()
    try:
        async with asyncio.timeout(20):
            while not link.up:
                await asyncio.sleep(0.05)
        assert await store.put({"key": b"before"}, 600)
        await asyncio.to_thread(wait_for, "the copy", lambda: follower.command("EXISTS", "{tests}:1:r:key") == 1)
        await asyncio.to_thread(master.kill)
        async with asyncio.timeout(20):
            while not (link.up and await _stored(store)):
                await asyncio.sleep(0.05)
        assert await store.get("key", "after") == [b"before", b"after"]
    finally:
        await link.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[ValkeyServer]]:
    """Three masters, and a replica for each."""
    options = {
        "cluster-enabled": "yes", "cluster-node-timeout": "1000", "repl-diskless-sync-delay": "0",
        "cluster-replica-validity-factor": "0",
    }  # fmt: skip
    # The nodes' own port would be 10,000 above the other, where anybody may be.
    ports = [{"cluster-port": str(free_port())} for _ in range(6)]
    servers = [ValkeyServer(tmp_path / str(number), options | port) for number, port in enumerate(ports)]
    try:
        nodes = [f"127.0.0.1:{server.port}" for server in servers]
        run("redis-cli", "--cluster", "create", *nodes, "--cluster-replicas", "1", "--cluster-yes")
        wait_for(
            "the cluster", lambda: all("cluster_state:ok" in str(one.command("CLUSTER", "INFO")) for one in servers)
        )
        yield servers
    finally:
        for server in servers:
            server.stop()


async def test_a_cluster_loses_the_node_that_has_our_slot(cluster: list[ValkeyServer]) -> None:
    """All keys are in one slot; what is changed there is heard of, and its replica takes over."""
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in cluster) + "?prefix=tests"
    link, other = Link(Place.of(url), silent), Link(Place.of(url), silent)
    store, listening = ValkeyMetadata(link, Stamps(None)), ValkeyMetadata(other, Stamps(None))
    for one, its in ((link, store), (other, listening)):
        one.heard, one.turned = its.hear, its.forget
        await one.start()
    try:
        async with asyncio.timeout(20):
            while not (link.up and other.up):
                await asyncio.sleep(0.05)
        stamp = listening.stamp("key")
        assert await store.put({"key": b"before"}, 600)
        await other.sync()
        assert not stamp.holds()
        assert await store.scan("k") == ["key"]
        name = "{tests}:1:r:key"
        slot = int(str(cluster[0].command("CLUSTER", "KEYSLOT", name)))
        owner = next(one for one in cluster if _owns(one, slot) == "ok")
        await asyncio.to_thread(wait_for, "the copy", lambda: sum(_has(one, slot) for one in cluster) >= 2)
        await asyncio.to_thread(owner.kill)
        async with asyncio.timeout(30):
            while not (link.up and await _stored(store)):
                await asyncio.sleep(0.05)
        assert await store.get("key", "after") == [b"before", b"after"]
    finally:
        await link.close()
        await other.close()


def _is_ok(server: ValkeyServer) -> bool:
    return "cluster_state:ok" in str(server.command("CLUSTER", "INFO"))


def _owns(server: ValkeyServer, slot: int) -> str:
    """`ok` where it is the master of the slot."""
    try:
        server.command("READWRITE")
        server.command("GET", "{tests}:1:r:key")
    except Refused:
        return "no"
    return "ok" if "role:master" in str(server.command("INFO", "replication")) and slot >= 0 else "no"


def _has(server: ValkeyServer, slot: int) -> bool:
    return int(str(server.command("CLUSTER", "COUNTKEYSINSLOT", str(slot)))) > 0


async def _stored(store: ValkeyMetadata) -> bool:
    try:
        return await store.put({"after": b"after"}, 600)
    except Away:
        return False


def _info(port: int) -> str:
    probe = ValkeyServer.__new__(ValkeyServer)
    probe.host, probe.port = "127.0.0.1", port
    return str(probe.command("INFO", "sentinel")) if probe.answers() else ""
