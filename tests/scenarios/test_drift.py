"""Tags that have moved on upstream are found by a HEAD now and then; nothing that is served changes for it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from proxy.cache import drift as module
from proxy.cache.drift import Drift
from proxy.cache.turns import Turns
from tests.conformance.memory import MemoryBlobs, Shelf
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.conftest import MakeSettings
from tests.scenarios.operators import break_store, done, hold_answer, tag, tags

OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)
TAG = "/v2/team/app/manifests/v1"
REFERENCE = "registry.test/team/app:v1"
LONG = {"tag_ttl": "1d", "proof_ttl": "30d"}


def drift_of(proxy: Proxy) -> Drift:
    """Its checks, which a test makes when it wants them."""
    operating = proxy.application._operating
    assert operating is not None
    return operating._drift


def another(proxy: Proxy, shelf: Shelf) -> Drift:
    """The checks of another process with the same metadata; those with one `shelf` share their claims."""
    first = drift_of(proxy)
    turns = Turns(MemoryBlobs(shelf, 1, 0))
    return Drift(first._manifests, first._history, first._records, turns, first._configured, proxy.clock)


async def check(proxy: Proxy) -> int:
    """One round, with everything that was served written down before."""
    await tags(proxy)
    return await drift_of(proxy).check()


@pytest.fixture(autouse=True)
def no_rounds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test makes them, without the pauses in between."""
    monkeypatch.setattr(module, "_TICK", 3600.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.0)


@pytest.fixture
async def proxy(settings: MakeSettings) -> AsyncIterator[Proxy]:
    """A proxy whose tags and proofs live long."""
    async with running(settings(manifests=LONG)) as started:
        yield started


@pytest.fixture
def moved(registry: FakeRegistry) -> FakeRegistry:
    """A registry with a tag that moves once it was pulled."""
    registry.push("team/app", "v1", OLD)
    return registry


async def pull_and_move(proxy: Proxy, registry: FakeRegistry, **headers: str) -> None:
    """The tag is pulled, moves, and time passes; what was asked so far is forgotten."""
    assert (await proxy.get(TAG, **headers)).status == 200
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(901)
    registry.seen.clear()


def asked(registry: FakeRegistry) -> list[tuple[str, str]]:
    return [(seen.method, seen.path) for seen in registry.seen]


async def test_a_tag_that_has_moved(proxy: Proxy, moved: FakeRegistry) -> None:
    """It is found by one HEAD; clients are told by a Warning, operators by list, history and metric."""
    await pull_and_move(proxy, moved)
    assert await check(proxy) == 1
    assert asked(moved) == [("HEAD", TAG)]
    for answer in (await proxy.get(TAG), await proxy.head(TAG)):
        assert answer.headers["Docker-Content-Digest"] == OLD.digest
        assert NEW.digest in answer.headers["Warning"]
        assert answer.state == "pullthrough; hit; ttl=85499"
    (found,) = await tags(proxy, drifted="true")
    assert (found["digest"], found["upstream_digest"], found["state"]) == (OLD.digest, NEW.digest, "fresh")
    assert found["checked"] == "2027-01-15T08:00:00Z"
    assert {one["digest"]: one["pulls"] for one in found["history"]} == {OLD.digest: 3, NEW.digest: 0}
    assert await proxy.metric('pullthrough_tag_drift{registry="registry.test"}') == 1
    assert asked(moved) == [("HEAD", TAG)]


async def test_a_tag_that_has_not_moved(proxy: Proxy, moved: FakeRegistry) -> None:
    """One HEAD each interval, again and again, and no Warning; that it was confirmed counts for its time."""
    assert (await proxy.get(TAG)).status == 200
    moved.seen.clear()
    for number in range(1, 4):
        proxy.clock.advance(901)
        assert await check(proxy) == 1
        assert asked(moved) == [("HEAD", TAG)] * number
        answer = await proxy.get(TAG)
        assert ("Warning" in answer.headers, answer.state) == (False, "pullthrough; hit; ttl=86400")
    assert await proxy.metric("pullthrough_tag_drift") == 0


async def test_a_tag_that_moves_back(proxy: Proxy, moved: FakeRegistry) -> None:
    """Has not drifted any more."""
    await pull_and_move(proxy, moved)
    await check(proxy)
    moved.push("team/app", "v1", OLD)
    proxy.clock.advance(901)
    await check(proxy)
    assert "Warning" not in (await proxy.get(TAG)).headers
    assert await tags(proxy, drifted="true") == []


async def test_within_the_interval_nobody_is_asked(proxy: Proxy, moved: FakeRegistry) -> None:
    """It begins with whatever last asked: a client, a refresh, or a check; moved or not."""
    assert (await proxy.get(TAG)).status == 200
    proxy.clock.advance(899)
    assert await check(proxy) == 0
    await done(proxy, "POST", "tags/refresh", REFERENCE)
    proxy.clock.advance(899)
    assert await check(proxy) == 0
    moved.push("team/app", "v1", NEW)
    proxy.clock.advance(2)
    assert await check(proxy) == 1
    proxy.clock.advance(899)
    assert await check(proxy) == 0
    proxy.clock.advance(2)
    assert await check(proxy) == 1


async def test_a_tag_that_nobody_uses(proxy: Proxy, moved: FakeRegistry) -> None:
    """After seven days without a pull it is asked for no more, whenever it was checked; one pull brings it back."""
    assert (await proxy.get(TAG)).status == 200
    proxy.clock.advance(7 * 86400 - 1)
    assert await check(proxy) == 1
    proxy.clock.advance(901)
    assert await check(proxy) == 0
    assert (await proxy.get(TAG)).status == 200
    proxy.clock.advance(901)
    assert await check(proxy) == 1


async def test_what_checks_see_is_no_use(proxy: Proxy, moved: FakeRegistry) -> None:
    """A tag that went back upstream to what clients were once given is in nobody's use for that."""
    await pull_and_move(proxy, moved)
    proxy.clock.advance(86400)
    assert (await proxy.get(TAG)).body == NEW.manifest
    moved.push("team/app", "v1", OLD)
    for _ in range(7):
        proxy.clock.advance(86399)
        assert await check(proxy) == 1
    proxy.clock.advance(86399)
    assert await check(proxy) == 0


async def test_what_only_a_client_may_ask_for(proxy: Proxy, moved: FakeRegistry) -> None:
    """Is not asked for, and said to be unchecked."""
    await pull_and_move(proxy, moved, Authorization="Basic eDp5")
    assert await check(proxy) == 0
    assert asked(moved) == []
    (found,) = await tags(proxy, unchecked="true")
    assert found["unchecked"] == "only clients' own credentials may ask for it"
    assert (await done(proxy, "GET", "stats"))["tags"]["unchecked"] == 1


async def test_with_the_proxys_own_credential(settings: MakeSettings, moved: FakeRegistry, tmp_path: Path) -> None:
    """Where that was what last proved the tag, and only as long as a cluster may use it."""
    moved.private, moved.passwords = {"team/app": {"robot"}}, {"robot": "wonder"}
    (tmp_path / "password").write_text("wonder")
    credentials = {"credentials": {"username": "robot", "password_file": str(tmp_path / "password")}}
    own = [{"name": "default", "credentials": True}]
    async with running(settings(credentials, clusters=own, manifests=LONG)) as proxy:
        await pull_and_move(proxy, moved)
        assert await check(proxy) == 1
        heads = [seen.headers.get("Authorization", "") for seen in moved.seen if seen.method == "HEAD"]
        assert heads[-1].endswith("-robot")
        assert (await tag(proxy, REFERENCE))["drifted"]
        await proxy.application.reload(settings(credentials, manifests=LONG))
        proxy.clock.advance(901)
        moved.seen.clear()
        assert await check(proxy) == 0
        assert asked(moved) == []


@pytest.mark.parametrize("where", ["file", "upstream"])
async def test_never(settings: MakeSettings, moved: FakeRegistry, where: str) -> None:
    """With an interval of 0, for all upstreams or one."""
    never = {"drift_interval": 0}
    made = settings(manifests=LONG | never) if where == "file" else settings({"manifests": never}, manifests=LONG)
    async with running(made) as proxy:
        await pull_and_move(proxy, moved)
        proxy.clock.advance(86400)
        assert await check(proxy) == 0
    assert asked(moved) == []


async def test_an_upstream_with_an_interval_of_its_own(settings: MakeSettings, moved: FakeRegistry) -> None:
    """It counts over the file's, from the next round after a reload on."""
    async with running(settings(manifests=LONG)) as proxy:
        await pull_and_move(proxy, moved)
        await proxy.application.reload(settings({"manifests": {"drift_interval": "1h"}}, manifests=LONG))
        assert await check(proxy) == 0
        proxy.clock.advance(2700)
        assert await check(proxy) == 1


# What fails.


async def test_while_the_upstream_is_left_alone_nobody_asks(proxy: Proxy, moved: FakeRegistry) -> None:
    """A 5xx that a client or a check has met holds the next check back for its step; other tags wait with it."""
    moved.push("team/app", "v2", OLD)
    for number in (1, 2):
        assert (await proxy.get(f"/v2/team/app/manifests/v{number}")).status == 200
    proxy.clock.advance(901)
    moved.fault = lambda _: web.Response(status=503)
    moved.seen.clear()
    assert await check(proxy) == 1
    assert len(moved.seen) == 1
    assert await check(proxy) == 1
    assert len(moved.seen) == 1
    for number in (1, 2):
        answer = await proxy.get(f"/v2/team/app/manifests/v{number}")
        assert answer.state.startswith("pullthrough; hit")
    assert len(moved.seen) == 1
    moved.fault = None
    proxy.clock.advance(300)
    assert await check(proxy) == 2
    assert len(moved.seen) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_one_tag_that_may_not_be_asked_for_holds_up_no_other(
    proxy: Proxy, registry: FakeRegistry, status: int
) -> None:
    """It is asked for once each interval like the others, and they are all asked for."""
    for name in ("a/first", "b/second", "c/third"):
        registry.push(name, "v1", OLD)
        assert (await proxy.get(f"/v2/{name}/manifests/v1")).status == 200
    refused = "/v2/a/first/manifests/v1"
    registry.fault = lambda request: web.Response(status=status) if request.rel_url.path == refused else None
    for number in range(1, 4):
        registry.seen.clear()
        proxy.clock.advance(901)
        assert await check(proxy) == 3
        assert registry.count("HEAD", "/v2/b/second") == registry.count("HEAD", "/v2/c/third") == 1
        assert registry.count("HEAD", refused) == 1, number
        assert await check(proxy) == 0
        proxy.clock.advance(30)
        assert await check(proxy) == 0


async def test_a_tag_that_is_gone_upstream_stays_until_its_time_ends(proxy: Proxy, moved: FakeRegistry) -> None:
    """A check takes nothing away; the first request after its TTL is told."""
    assert (await proxy.get(TAG)).status == 200
    del moved.tags["team/app", "v1"]
    proxy.clock.advance(901)
    assert await check(proxy) == 1
    answer = await proxy.get(TAG)
    assert (answer.status, answer.state) == (200, "pullthrough; hit; ttl=85499")
    proxy.clock.advance(86400)
    assert (await proxy.get(TAG)).status == 404


@pytest.mark.parametrize("silent", ["405", "no digest"])
async def test_an_upstream_whose_heads_say_nothing(proxy: Proxy, moved: FakeRegistry, silent: str) -> None:
    """Is not asked by GET instead: that would be a pull for each tag and interval."""
    assert (await proxy.get(TAG)).status == 200
    moved.push("team/app", "v1", NEW)
    proxy.clock.advance(901)
    moved.seen.clear()

    def fault(request: web.BaseRequest) -> web.Response | None:
        if request.method != "HEAD":
            return None
        return web.Response(status=405 if silent == "405" else 200)

    moved.fault = fault
    assert await check(proxy) == 1
    assert asked(moved) == [("HEAD", TAG)]
    assert (await proxy.get(TAG)).body == OLD.manifest


async def test_a_tag_that_is_purged_meanwhile(proxy: Proxy, moved: FakeRegistry) -> None:
    """A check that was under way does not bring it back: the next request asks."""
    await pull_and_move(proxy, moved)
    gate = hold_answer(moved, TAG)
    checking = asyncio.create_task(check(proxy))
    await gate.reached.wait()
    await done(proxy, "DELETE", "tags", reference=REFERENCE)
    gate.open()
    assert await checking == 1
    assert await tags(proxy) == []
    asked_before = len(moved.seen)
    assert (await proxy.get(TAG)).body == NEW.manifest
    assert len(moved.seen) == asked_before + 1


async def test_a_tag_that_is_purged_before_its_turn(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a round that had it on its list."""
    for name in ("a/first", "b/second"):
        registry.push(name, "v1", OLD)
        assert (await proxy.get(f"/v2/{name}/manifests/v1")).status == 200
    proxy.clock.advance(901)
    gate = hold_answer(registry, "/v2/a/first/manifests/v1")
    checking = asyncio.create_task(check(proxy))
    await gate.reached.wait()
    await done(proxy, "DELETE", "tags", reference="b/second:v1")
    gate.open()
    await checking
    assert [one["repository"] for one in await tags(proxy)] == ["a/first"]


async def test_a_held_tag_is_checked_like_others(proxy: Proxy, moved: FakeRegistry) -> None:
    """It is served as it is held, and said to have moved."""
    assert (await proxy.get(TAG)).status == 200
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
    moved.push("team/app", "v1", NEW)
    proxy.clock.advance(901)
    assert await check(proxy) == 1
    answer = await proxy.get(TAG)
    assert (answer.body, answer.headers["Warning"].endswith(f'upstream it is {NEW.digest}"')) == (OLD.manifest, True)
    assert [one["state"] for one in await tags(proxy, drifted="true")] == ["held"]


async def test_a_clock_that_was_set_back(proxy: Proxy, moved: FakeRegistry) -> None:
    """What lies ahead says nothing: the tag is asked for once, and then after each interval of the new time."""
    assert (await proxy.get(TAG)).status == 200
    moved.push("team/app", "v1", NEW)
    proxy.clock.advance(-7200)
    moved.seen.clear()
    assert await check(proxy) == 1
    for _ in range(3):
        proxy.clock.advance(15)
        assert await check(proxy) == 0
    proxy.clock.advance(901)
    assert await check(proxy) == 1
    assert len(moved.seen) == 2


async def test_a_store_that_cannot_be_read(
    proxy: Proxy, moved: FakeRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is asked, nothing is logged for each round, and the rounds go on."""
    await pull_and_move(proxy, moved)
    await tags(proxy)
    with monkeypatch.context() as broken:
        break_store(proxy, broken, "scan")
        broken.setattr(module, "_TICK", 0.0)
        again = another(proxy, Shelf())
        again.start()
        for _ in range(20):
            await asyncio.sleep(0)
        assert caplog.records == []
    async with asyncio.timeout(10):
        while not moved.seen:
            await asyncio.sleep(0)
    await again.close()


# Several processes.


async def test_one_of_several_processes_does_it(proxy: Proxy, moved: FakeRegistry) -> None:
    """One at a time, and what one has looked at is not due for the others; when it ends another one goes on."""
    await pull_and_move(proxy, moved)
    await tags(proxy)
    shelf = Shelf()
    several = [another(proxy, shelf) for _ in range(2)]
    for number in range(1, 4):
        assert await asyncio.gather(*(one.check() for one in several)) == [1, 0]
        assert [await one.check() for one in several] == [0, 0]
        proxy.clock.advance(901)
        assert moved.count("HEAD", TAG) == number
    await several[1].close()
    assert [await several[0].check(), len(shelf.claims)] == [1, 0]
    await several[0].close()
    assert len(shelf.claims) == 0
    proxy.clock.advance(901)
    assert await several[1].check() == 1
    await several[1].close()


@pytest.mark.parametrize("how", ["offline", "never", "gone"])
async def test_a_reload_in_the_middle_of_a_round(
    settings: MakeSettings, proxy: Proxy, moved: FakeRegistry, other: FakeRegistry, how: str
) -> None:
    """What was due and is not to be looked at any more is not; a registry that is gone ends no round."""
    moved.push("team/app", "v2", OLD)
    for tag_ in ("v1", "v2"):
        assert (await proxy.get(f"/v2/team/app/manifests/{tag_}")).status == 200
    proxy.clock.advance(901)
    await tags(proxy)
    gate = hold_answer(moved, TAG)
    moved.seen.clear()
    round_ = asyncio.create_task(drift_of(proxy).check())
    await gate.reached.wait()
    changed = {
        "offline": lambda: settings({"offline": True}, manifests=LONG),
        "never": lambda: settings(manifests=LONG | {"drift_interval": 0}),
        "gone": lambda: make_settings(proxy.application._settings.cache.directory, {"other.test": {"url": other.url}}),
    }[how]()
    await proxy.application.reload(changed)
    gate.open()
    await round_
    assert asked(moved) == [("HEAD", TAG)]


async def test_many_tags_are_no_burst(proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two questions there is a pause: a second, or less where that would take longer than half an interval."""
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 1.0)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    for number in range(5):
        registry.push("team/app", f"v{number}", OLD)
        assert (await proxy.get(f"/v2/team/app/manifests/v{number}")).status == 200
    proxy.clock.advance(901)
    await tags(proxy)
    with monkeypatch.context() as patch:
        patch.setattr("proxy.cache.drift.asyncio.sleep", sleep)
        assert await drift_of(proxy).check() == 5
    assert pauses == [1.0] * 4
