"""Nodes that are not configured log in as they would without a proxy: what the registry says of it is passed on."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.clock import LoopClock
from tests.fakes.content import make_image
from tests.fakes.nodes import NAME, Node, Signer, login, real_clock
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import until
from tests.scenarios.repeats import Counts

IMAGE = make_image(3000, seed=96)

MakeSettings = Callable[..., Settings]


@pytest.fixture
def trust(signer: Signer) -> ssl.SSLContext:
    """What nodes go by."""
    return signer.trust()


@pytest.fixture
def bearer(registry: FakeRegistry) -> FakeRegistry:
    """The registry wants tokens; anonymous may read `team/app`, alice `team/secret` too."""
    registry.private = {"team/app": {"", "alice"}, "team/secret": {"alice"}}
    registry.passwords = {"alice": "wonder"}
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/secret", "v1", IMAGE)
    return registry


@pytest.fixture
def basic(registry: FakeRegistry) -> FakeRegistry:
    """The registry wants user and password, of alice; also at its ping."""
    registry.private = {"": {"alice"}, "team/app": {"alice"}}
    registry.passwords = {"alice": "wonder"}
    registry.basic = True
    registry.push("team/app", "v1", IMAGE)
    return registry


@pytest.fixture
async def by_name(settings: MakeSettings, signer: Signer) -> AsyncIterator[Proxy]:
    """A proxy that answers in the registry's name."""
    async with running(settings(listen=[signer.listener()]), real_clock()) as proxy:
        yield proxy


def challenge(registry: FakeRegistry) -> str:
    """What it says to a ping without credentials."""
    return f'Bearer realm="{registry.url}/token",service="fake",scope="repository::pull"'


def pings(registry: FakeRegistry) -> int:
    return sum(seen.path == "/v2/" for seen in registry.seen)


async def ping(proxy: Proxy, trust: ssl.SSLContext, **headers: str) -> Node:
    """The answer to one, on a connection of its own, which is left then."""
    node = await Node.by_name(proxy, trust)
    await node.ask("/v2/", **headers)
    node.leave()
    return node


def hold(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """It answers nothing more until that is set."""
    opened, answer = asyncio.Event(), registry.answer

    async def held(request: web.BaseRequest) -> web.StreamResponse:
        await opened.wait()
        return await answer(request)

    monkeypatch.setattr(registry, "answer", held)
    return opened


# Pings.


async def test_the_registrys_challenge_is_passed_on(
    by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """401 with it, also to HEAD, and where neither the Host nor the path has a name but TLS has."""
    node = await Node.by_name(by_name, trust)
    for method, host in (("GET", NAME), ("HEAD", NAME), ("GET", "x.test")):
        assert await node.ask("/v2/", method, Host=host) == 401
        assert node.headers["www-authenticate"] == challenge(bearer)
        assert node.headers["docker-distribution-api-version"] == "registry/2.0"
    assert node.code == "UNAUTHORIZED"
    node.leave()


async def test_a_registry_that_asks_for_nothing(by_name: Proxy, registry: FakeRegistry, trust: ssl.SSLContext) -> None:
    """Is answered for as it answers itself: 200."""
    registry.fault = lambda request: web.Response(text="{}") if request.rel_url.path == "/v2/" else None
    answer = await ping(by_name, trust)
    assert (answer.status, answer.body) == (200, b"{}")
    assert pings(registry) == 1


async def test_many_clients_at_once(
    by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is asked once for all of them, and all are told the same."""
    opened = hold(bearer, monkeypatch)
    asking = asyncio.gather(*(ping(by_name, trust) for _ in range(20)))
    await until(lambda: len(counts.walked) == 20)
    await until(lambda: pings(bearer) == 1)
    opened.set()
    answers = await asking
    assert {(one.status, one.headers["www-authenticate"]) for one in answers} == {(401, challenge(bearer))}
    assert pings(bearer) == 1


async def test_a_client_that_leaves_while_it_is_asked(
    by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes nothing from the others, who wait for the same."""
    opened = hold(bearer, monkeypatch)
    first = await Node.by_name(by_name, trust)
    await first.send(f"GET /v2/ HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    await until(lambda: pings(bearer) == 1)
    asking = asyncio.gather(*(ping(by_name, trust) for _ in range(5)))
    await until(lambda: len(counts.walked) == 6)
    first.leave()
    await until(lambda: len(by_name.application._gate) == 5)
    opened.set()
    assert {one.status for one in await asking} == {401}
    assert pings(bearer) <= 2


async def test_it_is_asked_once_a_minute(by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext) -> None:
    """And says anew then whatever it wants."""
    for _ in range(3):
        assert (await ping(by_name, trust)).status == 401
    by_name.clock.advance(59)
    assert (await ping(by_name, trust)).status == 401
    assert pings(bearer) == 1
    bearer.realm = f"{bearer.url}/token/new"
    by_name.clock.advance(2)
    assert f"{bearer.url}/token/new" in (await ping(by_name, trust)).headers["www-authenticate"]
    assert pings(bearer) == 2


async def test_what_is_sent_along_is_tried_each_time(
    by_name: Proxy, basic: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Right: 200; wrong: 401 with the challenge; neither is remembered for anybody."""
    right, wrong = login(), login(password="guess")
    for authorization, status in ((right, 200), (wrong, 401), (right, 200), (wrong, 401)):
        before = len(basic.seen)
        answer = await ping(by_name, trust, Authorization=authorization)
        assert answer.status == status
        assert [(seen.path, seen.headers["Authorization"]) for seen in basic.seen[before:]] == [("/v2/", authorization)]
    assert answer.headers["www-authenticate"] == 'Basic realm="here"'
    assert answer.code == "UNAUTHORIZED"
    assert (await ping(by_name, trust)).status == 401
    assert "Authorization" not in basic.seen[-1].headers


async def test_what_is_no_text_is_not_tried(by_name: Proxy, basic: FakeRegistry, trust: ssl.SSLContext) -> None:
    """400, as for everything else that is asked for: it would go out as something else than it came."""
    node = await Node.by_name(by_name, trust)
    await node.send(f"GET /v2/ HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: {login()}".encode() + b"\xff\r\n\r\n")
    status = await node.answer()
    node.leave()
    assert (status, basic.seen) == (400, [])


async def test_a_foreign_realm(by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext) -> None:
    """No client is sent there."""
    bearer.realm = "https://evil.test/token"
    answer = await ping(by_name, trust)
    assert answer.status == 401
    assert "www-authenticate" not in answer.headers


# Outages.


@pytest.mark.parametrize("how", ["stopped", "503", "429"])
async def test_an_outage(by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext, how: str) -> None:
    """What the registry said last is said, however long ago; what is sent along is judged later, where it counts."""
    assert (await ping(by_name, trust)).status == 401
    if how == "stopped":
        await bearer.stop()
    else:
        bearer.fault = lambda _: web.Response(status=int(how))
    for _ in range(3):
        by_name.clock.advance(3600)
        answer = await ping(by_name, trust)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge(bearer))
        assert (await ping(by_name, trust, Authorization="Bearer whatever")).status == 200


async def test_an_outage_from_the_beginning(by_name: Proxy, bearer: FakeRegistry, trust: ssl.SSLContext) -> None:
    """Nobody is asked to log in, until the registry is there again."""
    bearer.fault = lambda _: web.Response(status=500)
    assert (await ping(by_name, trust)).status == 200
    assert (await ping(by_name, trust)).status == 200
    assert pings(bearer) == 1
    bearer.fault = None
    by_name.clock.advance(61)
    assert (await ping(by_name, trust)).status == 401


async def test_a_registry_that_is_not_to_be_asked(
    settings: MakeSettings, signer: Signer, bearer: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """It is not, and clients are let in."""
    async with running(settings({"offline": True}, listen=[signer.listener()]), real_clock()) as proxy:
        for headers in ({}, {"Authorization": login()}):
            assert (await ping(proxy, trust, **headers)).status == 200
        assert not bearer.seen


# Who is asked nothing of the registry.


async def test_clusters_that_log_in_or_have_credentials(
    settings: MakeSettings, signer: Signer, bearer: FakeRegistry, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    """The proxy asks by itself in the one, and nobody in the other; the registry hears of no ping."""
    (tmp_path / "password").write_text("wonder\n")
    own = {"credentials": {"username": "alice", "password_file": str(tmp_path / "password")}}
    for cluster, status, asks in (({"login": True}, 401, "Basic"), ({"credentials": True}, 200, "")):
        clusters = [{"name": "default"} | cluster]
        async with running(settings(own, listen=[signer.listener()], clusters=clusters), real_clock()) as proxy:
            answer = await ping(proxy, trust)
            assert (answer.status, answer.headers.get("www-authenticate", "").partition(" ")[0]) == (status, asks)
            assert (await ping(proxy, trust, Authorization=login(password="guess"))).status == 200
    assert pings(bearer) == 0


@pytest.mark.parametrize("connects", [False, True])
async def test_other_listeners(settings: MakeSettings, signer: Signer, bearer: FakeRegistry, connects: bool) -> None:
    """Mirrors know nothing of it, nor does what comes to a CONNECT listener without CONNECT: 200, and no token."""
    second = signer.listener(connect=True) if connects else {"address": "127.0.0.1:0"}
    async with running(settings(listen=[signer.listener(), second]), real_clock()) as proxy:
        url = f"http://{proxy.application.listeners[1].address}"
        for path, status in (("/v2/", 200), ("/token?service=fake", 404)):
            for headers in ({}, {"Authorization": login()}):
                async with proxy.session.get(url + path, headers={"Host": NAME} | headers) as answer:
                    assert answer.status == status
        assert not bearer.seen


async def test_nodes_that_come_by_connect(
    settings: MakeSettings, signer: Signer, bearer: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Are told what those are who come by name."""
    async with running(settings(listen=[signer.listener(connect=True)]), real_clock()) as proxy:
        node = await Node.by_connect(proxy, trust)
        assert await node.ask("/v2/") == 401
        assert node.headers["www-authenticate"] == challenge(bearer)
        node.leave()


# Registries that are slow, and clients that ask too often.


async def test_nobody_waits_for_a_registry_that_is_slow(
    settings: MakeSettings, signer: Signer, bearer: FakeRegistry, trust: ssl.SSLContext, timers: LoopClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What it said last is told at once to all but the one who asks, and to that one after two seconds."""
    clock = real_clock()
    async with running(settings(listen=[signer.listener()]), clock) as proxy:
        assert (await ping(proxy, trust)).status == 401
        hold(bearer, monkeypatch)
        clock.advance(61)
        before = pings(bearer)
        slow = asyncio.create_task(ping(proxy, trust))
        await until(lambda: pings(bearer) == before + 1)
        for _ in range(5):
            assert (await ping(proxy, trust)).status == 401
        assert not slow.done()
        await timers.advance(2.1)
        assert (await slow).status == 401
        assert (await ping(proxy, trust)).status == 401
        assert pings(bearer) == before + 1
        # Soon after that it is asked again.
        clock.advance(5.1)
        again = asyncio.create_task(ping(proxy, trust))
        await until(lambda: pings(bearer) == before + 2)
        await timers.advance(2.1)
        assert (await again).status == 401


async def test_log_ins_have_their_turns(
    settings: MakeSettings, signer: Signer, bearer: FakeRegistry, trust: ssl.SSLContext
) -> None:
    """Whoever tries one password after another is held to the cluster's rate."""
    limits = {"requests_per_second": 1}
    clusters = [{"name": "default", "limits": limits}]
    async with running(settings(listen=[signer.listener()], clusters=clusters), real_clock()) as proxy:
        asking = [asyncio.create_task(ping(proxy, trust, Authorization=login("alice", f"w{n}"))) for n in range(40)]
        statuses = [one.status for one in await asyncio.gather(*asking)]
        assert statuses.count(429) > 20
        assert pings(bearer) < 20
