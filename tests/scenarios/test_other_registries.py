"""What one registry says of a digest, or is told, is nothing to another one: fills, credentials, unhashed bytes."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.fleet import Fleet, fleet, write_config
from tests.fakes.proxy import make_settings, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, put, until

BLOB = random_bytes(2 * MIB, 99)
DIGEST = digest_of(BLOB)
HERE, THERE = f"/v2/team/app/blobs/{DIGEST}", f"/v2/team/secret/blobs/{DIGEST}?ns=other.test"
TIMES = {"connect_timeout": "1s", "read_timeout": "2s"}


def two(tmp_path: Path, registry: FakeRegistry, other: FakeRegistry, **more: Any) -> Settings:
    upstreams = {"registry.test": {"url": registry.url} | TIMES, "other.test": {"url": other.url} | TIMES}
    return make_settings(tmp_path / "cache", upstreams, **more)


@pytest.fixture
async def shared(tmp_path: Path, registry: FakeRegistry, other: FakeRegistry) -> AsyncIterator[Fleet]:
    """Two workers in front of both."""
    config = write_config(tmp_path, {"registry.test": {"url": registry.url}, "other.test": {"url": other.url}})
    async with fleet(config) as started:
        yield started


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["bearer", "password"])
async def test_a_fill_lends_no_credential_of_another_registrys_reader(
    tmp_path: Path, registry: FakeRegistry, other: FakeRegistry, kind: str
) -> None:
    """Whoever began it here is refused in the middle; who reads the same layer there has its token go there only."""
    registry.private, registry.passwords = {"team/app": {"eve"}}, {"eve": "x"}
    other.private, other.passwords = {"team/secret": {"alice"}}, {"alice": "wonder"}
    put(registry, BLOB)
    put(other, BLOB, "team/secret")
    gate = Gate(MIB)
    registry.script = [Act(gate=gate, fin_at=MIB)]
    cluster = {"name": "default", "login": kind == "password", "allow_plain_login": kind == "password"}
    async with running(two(tmp_path, registry, other, clusters=[cluster])) as proxy:
        eve = registry.token("eve", "team/app")
        first = asyncio.create_task(proxy.get(HERE, Authorization=f"Bearer {eve}"))
        await gate.reached.wait()
        secret = f"Bearer {other.token('alice', 'team/secret')}"
        if kind == "password":
            secret = "Basic " + base64.b64encode(b"alice:wonder").decode()
        answer = await proxy.get(THERE, Authorization=secret)
        assert (answer.status, answer.body) == (200, BLOB)
        registry.revoke(eve)
        gate.open()
        await asyncio.gather(first, return_exceptions=True)
    assert registry.seen
    assert not [seen for seen in registry.seen if seen.headers.get("Authorization") == secret]


@pytest.mark.usefixtures("quick")
async def test_a_fill_lends_nothing_to_the_upstream_before_a_reload(
    tmp_path: Path, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """The name has another url now: a token that comes afterwards is for that one."""
    registry.private = other.private = {"team/app": {"alice"}}
    put(registry, BLOB)
    put(other, BLOB)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate, fin_at=MIB)]
    before, after = (
        make_settings(tmp_path / "cache", {"registry.test": {"url": one.url} | TIMES}) for one in (registry, other)
    )
    async with running(before) as proxy:
        old = registry.token("alice", "team/app")
        first = asyncio.create_task(proxy.get(HERE, Authorization=f"Bearer {old}"))
        await gate.reached.wait()
        await proxy.application.reload(after)
        other._given += 1
        new = f"Bearer {other.token('alice', 'team/app')}"
        assert (await proxy.get(HERE, Authorization=new)).body == BLOB
        registry.revoke(old)
        gate.open()
        await asyncio.gather(first, return_exceptions=True)
    assert not [seen for seen in registry.seen if seen.headers.get("Authorization") == new]


async def test_nobody_gets_another_registrys_bytes_before_they_are_hashed(
    tmp_path: Path, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """That registry has other bytes under the digest, of another length: who asks here has the right ones at once."""
    put(registry, BLOB)
    put(other, bytes(3 * MIB), "team/secret", DIGEST)
    gate = Gate(MIB)
    other.script = [Act(gate=gate)]
    async with running(two(tmp_path, registry, other)) as proxy:
        lying = asyncio.create_task(proxy.get(THERE))
        await gate.reached.wait()
        answer = await proxy.get(HERE, Range="bytes=1000-1009")
        assert answer.headers["Content-Range"] == f"bytes 1000-1009/{len(BLOB)}"
        assert answer.body == BLOB[1000:1010]
        gate.open()
        await asyncio.gather(lying, return_exceptions=True)
        assert (await proxy.get(HERE)).body == BLOB


async def test_another_registrys_silence_is_nobody_elses(
    tmp_path: Path, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """It never answers for the digest: who asks here is served meanwhile."""
    put(registry, BLOB)
    put(other, BLOB, "team/secret")
    gate = Gate(0)
    other.script = [Act(head_gate=gate)]
    async with running(two(tmp_path, registry, other)) as proxy:
        silent = asyncio.create_task(proxy.get(THERE))
        await gate.reached.wait()
        assert (await proxy.get(HERE)).body == BLOB
        gate.open()
        assert (await silent).body == BLOB


async def test_another_registrys_bytes_are_none_of_another_workers_either(
    shared: Fleet, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """One worker fills from there; who comes to the other one is sent what is here."""
    put(registry, BLOB)
    put(other, bytes(2 * MIB), "team/secret", DIGEST)
    gate = Gate(MIB)
    other.script = [Act(gate=gate)]
    one, another = shared.workers()
    lying = await shared.reader_at(one, THERE)
    await gate.reached.wait()
    reader = await shared.reader_at(another, HERE, 1000, 1010)
    await reader.head()
    assert await reader.rest() == BLOB[1000:1010]
    reader.leave()
    lying.leave()
    gate.open()


async def test_another_registrys_silence_at_another_worker(
    shared: Fleet, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """It never answers for the digest, and one worker waits for it: who asks here at the other one is served."""
    put(registry, BLOB)
    put(other, BLOB, "team/secret")
    gate = Gate(0)
    other.script = [Act(head_gate=gate)]
    one, another = shared.workers()
    silent = await shared.reader_at(one, THERE)
    await gate.reached.wait()
    reader = await shared.reader_at(another, HERE)
    await reader.head()
    assert await reader.rest() == BLOB
    gate.open()
    silent.leave()
    reader.leave()


async def test_a_fill_stays_shared_whoever_asks_elsewhere(
    shared: Fleet, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """A reader of another registry comes to the worker that follows: those of the fill's own one go on sharing it."""
    put(registry, BLOB)
    put(other, BLOB, "team/secret")
    gate = Gate(MIB)
    registry.script = [Act(gate=gate)]
    one, another = shared.workers()
    first = await shared.reader_at(one, HERE)
    await gate.reached.wait()
    foreign = await shared.reader_at(another, THERE)
    await foreign.head()
    assert await foreign.rest() == BLOB
    second = await shared.reader_at(another, HERE)
    await second.head()
    gate.open()
    assert await second.rest() == BLOB
    for reader in (first, foreign, second):
        reader.leave()
    assert registry.count("GET", "/blobs/") == 1


@pytest.mark.usefixtures("quick")
async def test_a_fill_from_elsewhere_was_left_behind(
    tmp_path: Path, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """A start later, who asks here has none of its bytes, at no offset."""
    put(registry, BLOB)
    put(other, bytes(2 * MIB), "team/secret", DIGEST)
    gate = Gate(MIB)
    other.script = [Act(gate=gate)]
    settings = two(tmp_path, registry, other, shutdown_timeout="0s")
    async with running(settings) as proxy:
        lying = asyncio.create_task(proxy.get(THERE))
        await gate.reached.wait()
        await until(lambda: other.sent > 0)
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)
    async with running(settings) as proxy:
        assert (await proxy.get(HERE, Range="bytes=1000-1009")).body == BLOB[1000:1010]
        assert (await proxy.get(HERE)).body == BLOB
    gate.open()
