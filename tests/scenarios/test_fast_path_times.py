"""Connections that are answered by bytes only are used connections, for every timer and for whoever makes room."""

from collections.abc import Callable

import pytest

from proxy.server.gate import Gate, Guest
from proxy.settings import Settings
from tests.fakes.clock import LoopClock
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import until
from tests.scenarios.repeats import Client, Counts, repeat, request

IMAGE = make_image(10, seed=1)
GET = request()
LIMITS = {"header_timeout": "2s", "idle_timeout": "4s"}


@pytest.fixture
def limited(settings: Callable[..., Settings], registry: FakeRegistry) -> Callable[..., Settings]:
    """Short times, and further limits."""
    registry.push("team/app", "v1", IMAGE)
    return lambda **limits: settings(limits=LIMITS | limits)


async def test_a_connection_in_use_is_not_closed_for_being_idle(
    limited: Callable[..., Settings], counts: Counts, timers: LoopClock
) -> None:
    """However long it lives; `idle_timeout` after its last use it is, and no sooner."""
    async with running(limited()) as proxy:
        await repeat(proxy, GET)
        client = await Client.to(proxy)
        with counts.none():
            for _ in range(10):
                assert await client.ask(GET) == IMAGE.manifest
                await timers.advance(3)
        await client.ask(GET)
        await timers.advance(3.9)
        assert client.connection.transport is not None
        await timers.advance(0.1)
        assert await client.end() == b""


async def test_the_first_request_may_be_known(
    limited: Callable[..., Settings], counts: Counts, timers: LoopClock
) -> None:
    """The time for a first head is over with it: the rest after it is a rest."""
    async with running(limited()) as proxy:
        await repeat(proxy, GET)
        client = await Client.to(proxy)
        with counts.none():
            await client.ask(GET)
            assert client.connection._timer is None
            await timers.advance(3)
            await client.ask(GET)
        assert await proxy.metric('pullthrough_client_refusals_total{reason="header-timeout"}') == 0
        client.leave()


async def test_a_head_that_begins_after_it(limited: Callable[..., Settings], timers: LoopClock) -> None:
    """Has the time of heads, counted from its own first byte."""
    async with running(limited()) as proxy:
        await repeat(proxy, GET)
        client = await Client.to(proxy)
        await client.ask(GET)
        await timers.advance(3)
        await client.send(GET[:20])
        await until(lambda: client.connection._head_bytes > 0)
        await timers.advance(1.9)
        assert client.connection.transport is not None
        await timers.advance(0.2)
        assert await client.answer() == 408
        assert await client.end() == b""


def gate(proxy: Proxy) -> Gate:
    return proxy.application._gate


async def test_who_makes_room_for_another(limited: Callable[..., Settings], counts: Counts, timers: LoopClock) -> None:
    """The one that was not used for longest: uses by bytes are uses, told a tenth of a second apart at most."""
    async with running(limited(max_connections=3)) as proxy:
        # That of this test's own session, and those of it, are gone before the three come.
        await repeat(proxy, GET)
        await until(lambda: not len(gate(proxy)))
        clients = [await Client.to(proxy) for _ in range(3)]
        with counts.none():
            for client in clients:
                await client.ask(GET)
            await timers.advance(1.5)
            # The oldest is used again, so the second is the one that rests for longest.
            await clients[0].ask(GET)
            await timers.advance(1.5)
            another = await Client.to(proxy)
            await another.ask(GET)
        assert await clients[1].end() == b""
        for client in (clients[0], clients[2], another):
            assert client.connection.transport is not None
            client.leave()
        assert await proxy.metric('pullthrough_client_refusals_total{reason="made-room"}') == 1


async def test_the_gate_is_not_told_of_every_request(
    limited: Callable[..., Settings], counts: Counts, timers: LoopClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred within a tenth of a second are one use; the next one after it is told."""
    told: list[object] = []
    busy = Gate.busy

    def tells(gate: Gate, guest: Guest) -> None:
        told.append(guest)
        busy(gate, guest)

    monkeypatch.setattr(Gate, "busy", tells)
    async with running(limited()) as proxy:
        await repeat(proxy, GET)
        client = await Client.to(proxy)
        await timers.advance(0.2)
        told.clear()
        with counts.none():
            for _ in range(20):
                await client.ask(GET)
            first = len(told)
            await timers.advance(0.2)
            await client.ask(GET)
        assert 1 <= first <= 3
        assert len(told) == first + 1
        client.leave()
