"""Sentinels say where the shared metadata is: when the master is gone, the link goes on with the next one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.storage.link import Away, Link
from proxy.storage.servers import Place
from proxy.storage.stamps import Stamps
from proxy.storage.valkey import ValkeyMetadata
from proxy.telemetry.events import silent
from tests.clients.process import Daemon, free_port, wait_for
from tests.clients.valkey import ValkeyServer

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
        assert link.up
        assert await store.put({"key": b"before"}, 600)
        await asyncio.to_thread(wait_for, "the copy", lambda: follower.command("EXISTS", "{tests}:1:r:key") == 1)
        await asyncio.to_thread(master.kill)
        async with asyncio.timeout(20):
            while not (link.up and await _stored(store)):
                await asyncio.sleep(0.05)
        assert await store.get("key", "after") == [b"before", b"after"]
    finally:
        await link.close()


async def _stored(store: ValkeyMetadata) -> bool:
    try:
        return await store.put({"after": b"after"}, 600)
    except Away:
        return False


def _info(port: int) -> str:
    probe = ValkeyServer.__new__(ValkeyServer)
    probe.host, probe.port = "127.0.0.1", port
    return str(probe.command("INFO", "sentinel")) if probe.answers() else ""
