"""A fill is shared, rights to it are not."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, came_in, put

BLOB = random_bytes(3 * MIB, 700)
DIGEST = digest_of(BLOB)
APP, OTHER = f"/v2/team/app/blobs/{DIGEST}", f"/v2/team/other/blobs/{DIGEST}"


@pytest.fixture
def gate(registry: FakeRegistry) -> Gate:
    """The fill of the blob, which team/app has, is stuck after the first MiB."""
    put(registry, BLOB)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate)]
    return gate


async def test_two_repositories_share_a_fill(proxy: Proxy, registry: FakeRegistry, gate: Gate) -> None:
    """A second repository's reader joins the fill for the price of one HEAD."""
    put(registry, BLOB, "team/other")
    first = asyncio.create_task(proxy.get(APP))
    await gate.reached.wait()
    second = await Reader.open(proxy, OTHER)
    gate.open()
    assert await second.rest() == (await first).body == BLOB
    asked = [(seen.method, seen.path) for seen in registry.seen]
    assert asked == [("GET", APP), ("HEAD", OTHER)]
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_fill_proves_nothing_for_another_repository(proxy: Proxy, registry: FakeRegistry, gate: Gate) -> None:
    """While a blob is on its way for one repository it is 404 in one that does not have it, range or not."""
    first = asyncio.create_task(proxy.get(APP))
    await gate.reached.wait()
    for header in ({}, {"Range": "bytes=0-9"}, {"Range": "bytes=2000000-"}):
        answer = await proxy.get(OTHER, **header)
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert (await proxy.head(OTHER)).status == 404
    gate.open()
    assert (await first).body == BLOB


async def test_a_private_fill_is_not_for_everybody(
    settings: Callable[..., Settings], registry: FakeRegistry, gate: Gate, tmp_path: Path
) -> None:
    """What the proxy's own credential opened is 401 for a cluster that may not use it, while it is filled and after."""
    registry.private, registry.passwords = {"team/app": {"alice"}}, {"alice": "wonder"}
    (tmp_path / "password").write_text("wonder")
    credentials = {"username": "alice", "password_file": str(tmp_path / "password")}
    clusters = [{"name": "trusted", "credentials": True, "match": {"hosts": ["trusted.test"]}}, {"name": "others"}]
    async with running(settings({"credentials": credentials}, clusters=clusters)) as proxy:
        trusted = asyncio.create_task(proxy.get(APP, Host="trusted.test"))
        await gate.reached.wait()
        assert (await proxy.get(APP)).status == 401
        assert (await proxy.get(APP, Range="bytes=0-9")).status == 401
        gate.open()
        assert (await trusted).body == BLOB
        await proxy.stored(1)
        assert (await proxy.get(APP)).status == 401


async def test_a_refused_first_client_does_not_speak_for_a_second(
    settings: Callable[..., Settings], registry: FakeRegistry, tmp_path: Path
) -> None:
    """Whoever began a fill and was refused is 401; who waited with it and may read has the blob."""
    put(registry, BLOB)
    head = Gate(0)
    registry.private, registry.passwords = {"team/app": {"alice"}}, {"alice": "wonder"}
    (tmp_path / "password").write_text("wonder")
    credentials = {"username": "alice", "password_file": str(tmp_path / "password")}
    clusters = [{"name": "trusted", "credentials": True, "match": {"hosts": ["trusted.test"]}}, {"name": "others"}]
    registry.script = [Act(head_gate=head)]
    async with running(settings({"credentials": credentials}, clusters=clusters)) as proxy:
        head.open()
        refused, trusted = await asyncio.gather(proxy.get(APP), proxy.get(APP, Host="trusted.test"))
        assert (refused.status, trusted.status) == (401, 200)
        assert trusted.body == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


@pytest.mark.usefixtures("quick")
async def test_a_fill_goes_on_with_the_rights_of_another_reader(proxy: Proxy, registry: FakeRegistry) -> None:
    """The repository that began the fill is refused in the middle; a reader of another that may read carries it on."""
    registry.private = {"team/app": {""}, "team/other": {""}}
    put(registry, BLOB)
    put(registry, BLOB, "team/other")
    gate = Gate(MIB)
    registry.script = [Act(gate=gate, fin_at=MIB)]
    first = await Reader.open(proxy, APP)
    await gate.reached.wait()
    second = await Reader.open(proxy, OTHER)
    await came_in(proxy, MIB)
    registry.private["team/app"] = {"alice"}
    registry.revoke_tokens()
    gate.open()
    assert await second.rest() == BLOB
    assert await first.rest() == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    assert registry.record.requests[1].start == MIB


@pytest.mark.usefixtures("quick")
async def test_a_fill_that_nobody_may_go_on_with(proxy: Proxy, registry: FakeRegistry) -> None:
    """The only reader's repository turned private: its body ends with FIN; asked anew it is 401, bytes or not."""
    registry.private = {"team/app": {""}}
    put(registry, BLOB)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate, fin_at=MIB)]
    reader = await Reader.open(proxy, APP)
    await gate.reached.wait()
    await came_in(proxy, MIB)
    registry.private["team/app"] = {"alice"}
    registry.revoke_tokens()
    gate.open()
    body = await reader.rest()
    assert (BLOB.startswith(body), reader.end) == (True, "fin")
    proxy.clock.advance(301)
    assert (await proxy.get(APP)).status == 401
    assert (await proxy.get(APP, Range="bytes=0-9")).status == 401


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "missing"])
async def test_what_clients_may_not_have_fills_no_log(
    proxy: Proxy, registry: FakeRegistry, caplog: pytest.LogCaptureFixture, refused: bool
) -> None:
    """They may ask for as much as they like: operators are told of fills that fail for another reason."""
    blobs = [random_bytes(1000, 710 + number) for number in range(5)]
    if refused:
        registry.private = {"team/app": {"alice"}}
    paths = [put(registry, blob, "team/app" if refused else "team/other") for blob in blobs]
    caplog.set_level(logging.DEBUG, logger="pullthrough")
    for path in paths:
        answer = await proxy.get(path.replace("/team/other/", "/team/app/"))
        assert answer.status == (401 if refused else 404)
    failed = [record for record in caplog.records if record.getMessage().startswith("fill of ")]
    assert [record.levelno for record in failed] == [logging.DEBUG] * 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_fill_that_fails_for_another_reason_is_told(
    settings: Callable[..., Settings], registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong bytes: one line."""
    path = put(registry, BLOB[1:], digest=DIGEST)
    async with running(settings()) as proxy:
        reader = await Reader.open(proxy, path)
        await reader.rest()
    lines = [record for record in caplog.records if record.getMessage().startswith(f"fill of {DIGEST} ")]
    assert [record.levelno for record in lines] == [logging.WARNING]
