"""Pulls that a registry counts are spent on what nobody has yet; what is cached goes on, and says so."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.cache.ask import Ask
from proxy.cache.origin import PullKept
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS
from proxy.settings import Settings
from tests.fakes.content import Image, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import WINDOW, FakeRegistry, FakeStorage

OLD, NEW, NEWER, OTHER = (make_image(10, seed=seed) for seed in range(41, 45))
TAG = "/v2/team/app/manifests/latest"
REMAINING, LIMIT = "pullthrough_upstream_ratelimit_remaining{", "pullthrough_upstream_ratelimit_limit{"

MakeSettings = Callable[..., Settings]


def pulls(cluster: str) -> str:
    return f'pullthrough_upstream_pulls_total{{cluster="{cluster}",registry="registry.test"}}'


def asked(registry: FakeRegistry) -> list[str]:
    """Every request for a manifest, by its method and the end of what it was for."""
    return [f"{seen.method} {seen.path.rpartition('/')[2]}" for seen in registry.seen if "/manifests/" in seen.path]


@pytest.fixture
def limited(registry: FakeRegistry) -> FakeRegistry:
    """20 pulls, one of which brings the tag into the cache; 10% are two."""
    registry.limits = {"": 20}
    registry.push("team/app", "latest", OLD)
    return registry


@pytest.fixture
async def moved(proxy: Proxy, limited: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy whose tag has ended and moved on upstream, while two pulls are left: the reserve."""
    await proxy.get(TAG)
    limited.push("team/app", "latest", NEW)
    limited.pulled[""] = 18
    proxy.clock.advance(700)
    limited.seen.clear()
    yield proxy


# What is seen.


async def test_budgets_are_seen_on_gets_and_heads(proxy: Proxy, limited: FakeRegistry) -> None:
    """Every answer says what is left; HEADs, and what others at the same address pull, cost us no pull of our own."""
    await proxy.get(TAG)
    assert (await proxy.metric(REMAINING), await proxy.metric(LIMIT)) == (19, 20)
    limited.pulled[""] = 5
    proxy.clock.advance(601)
    await proxy.get(TAG)
    assert asked(limited) == ["GET latest", "HEAD latest"]
    assert await proxy.metric(REMAINING) == 15
    assert await proxy.metric(pulls("default")) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
async def test_budgets_are_seen_on_errors(proxy: Proxy, registry: FakeRegistry, status: int) -> None:
    """Whatever the answer is; no such answer counts as a pull."""
    headers = {"ratelimit-remaining": "7;w=21600", "ratelimit-limit": "100;w=21600"}
    registry.fault = lambda request: web.Response(status=status, headers=headers)
    await proxy.get(TAG)
    assert (await proxy.metric(REMAINING), await proxy.metric(LIMIT)) == (7, 100)
    assert await proxy.metric("pullthrough_upstream_pulls_total") == 0


async def test_malformed_headers_are_no_error(proxy: Proxy, registry: FakeRegistry) -> None:
    """Nothing was announced, and the image is served."""
    registry.push("team/app", "latest", OLD)
    registry.limits = {"": 20}
    manifest = registry._manifest

    async def broken(request: web.BaseRequest, repository: str, reference: str) -> web.StreamResponse:
        response = await manifest(request, repository, reference)
        response.headers["ratelimit-remaining"] = "plenty;w=never"
        return response

    registry._limited = broken  # type: ignore[method-assign]
    assert (await proxy.get(TAG)).status == 200
    assert await proxy.metric(REMAINING) == 0


async def test_another_hosts_headers_are_not_the_registrys(
    proxy: Proxy, registry: FakeRegistry, storage: FakeStorage
) -> None:
    """Where a registry redirects to may have limits of its own."""

    async def elsewhere(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=404, headers={"x-ratelimit-remaining": "0", "x-ratelimit-limit": "9"})

    storage.answer = elsewhere  # type: ignore[method-assign,assignment]
    registry.fault = lambda request: web.Response(status=307, headers={"Location": f"{storage.url}/elsewhere"})
    assert (await proxy.get(TAG)).status == 404
    assert await proxy.metric(LIMIT) == 0


@pytest.mark.parametrize(("value", "shown"), [("7;w=21600", 7), ("7", 0)])
async def test_a_token_server_may_speak_of_pulls(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, value: str, shown: int
) -> None:
    """In Docker Hub's form; a plain number is of requests for tokens."""
    registry.private = {"team/app": {""}}
    registry.push("team/app", "latest", OLD)
    token = registry._token

    def announcing(request: web.BaseRequest) -> web.Response:
        response = token(request)
        response.headers["ratelimit-remaining"] = value
        return response

    monkeypatch.setattr(registry, "_token", announcing)
    assert (await proxy.get(TAG)).status == 200
    assert await proxy.metric(REMAINING) == shown


async def test_a_used_up_limit_is_not_asked_in_a_loop(proxy: Proxy, limited: FakeRegistry) -> None:
    """The 429 is handed on and its circuit holds the next ones back; when there is room again, the pull is made."""
    limited.pulled[""] = 20
    assert ((await proxy.get(TAG)).status, limited.pulled[""]) == (429, 20)
    for _ in range(5):
        assert (await proxy.get(TAG)).status == 429
    assert asked(limited) == ["GET latest"]
    limited.pulled[""] = 19
    proxy.clock.advance(10)
    assert (await proxy.get(TAG)).body == OLD.manifest


# What is kept.


async def test_the_reserve_keeps_a_changed_tag_back(moved: Proxy, limited: FakeRegistry) -> None:
    """It is served stale, says what it is upstream, and costs one HEAD in a TTL; an image nobody has is pulled."""
    first = await moved.get(TAG)
    assert (first.status, first.body) == (200, OLD.manifest)
    assert first.state == "pullthrough; fwd=stale; detail=stale-budget"
    assert first.headers["Age"] == "700"
    assert NEW.digest in first.headers["Warning"]
    assert "kept for images that are not cached" in first.headers["Warning"]
    for _ in range(3):
        again = await moved.get(TAG)
        assert again.body == OLD.manifest
        assert again.state == "pullthrough; hit; ttl=-100; detail=stale-budget"
        assert NEW.digest in again.headers["Warning"]
    assert (await moved.head(TAG)).headers["Docker-Content-Digest"] == OLD.digest
    assert asked(limited) == ["HEAD latest"]
    assert await moved.metric('pullthrough_stale_served_total{reason="budget"') == 5
    limited.push("team/app", "other", OTHER)
    assert (await moved.get("/v2/team/app/manifests/other")).body == OTHER.manifest
    assert limited.left() == 1


async def test_a_kept_tag_is_looked_at_once_a_ttl(moved: Proxy, limited: FakeRegistry) -> None:
    """It may have moved again, or back, and the HEAD says what is left."""
    await moved.get(TAG)
    limited.push("team/app", "latest", NEWER)
    for _ in range(3):
        moved.clock.advance(601)
        assert NEWER.digest in (await moved.get(TAG)).headers["Warning"]
        await moved.get(TAG)
    assert asked(limited) == ["HEAD latest"] * 4
    limited.push("team/app", "latest", OLD)
    moved.clock.advance(601)
    back = await moved.get(TAG)
    assert (back.state, back.headers.get("Warning")) == ("pullthrough; fwd=stale; fwd-status=200; ttl=600", None)


async def test_how_long_a_kept_tag_is_left_alone(settings: MakeSettings, limited: FakeRegistry) -> None:
    """For a TTL, where its proof holds for so long; a proof that lapses is renewed by a HEAD before."""
    clusters = [
        {"name": "long", "match": {"hosts": ["long.test"]}, "manifests": {"proof_ttl": "1d"}}, {"name": "short"},
    ]  # fmt: skip
    async with running(settings(clusters=clusters)) as proxy:
        await proxy.get(TAG)
        limited.push("team/app", "latest", NEW)
        limited.pulled[""] = 18
        proxy.clock.advance(700)
        await proxy.get(TAG)
        limited.seen.clear()
        proxy.clock.advance(301)
        assert "stale-budget" in (await proxy.get(TAG, Host="long.test")).state
        assert asked(limited) == []
        assert "stale-budget" in (await proxy.get(TAG)).state
        assert asked(limited) == ["HEAD latest"]
        proxy.clock.advance(599)
        await proxy.get(TAG, Host="long.test")
        assert asked(limited) == ["HEAD latest"]
        proxy.clock.advance(1)
        await proxy.get(TAG, Host="long.test")
        assert asked(limited) == ["HEAD latest"] * 2


async def test_a_kept_tag_moves_on_when_there_is_room(moved: Proxy, limited: FakeRegistry) -> None:
    """As soon as any answer says so, the tag's own HEAD or another image's."""
    await moved.get(TAG)
    limited.pulled[""] = 3
    limited.push("team/app", "other", OTHER)
    await moved.get("/v2/team/app/manifests/other")
    fresh = await moved.get(TAG)
    assert (fresh.body, fresh.headers.get("Warning")) == (NEW.manifest, None)


async def test_what_is_here_already_costs_no_pull(moved: Proxy, limited: FakeRegistry) -> None:
    """A tag that moved to what another tag brought into the cache moves on by its HEAD, in the reserve too."""
    assert (await moved.get(TAG)).body == OLD.manifest
    limited.push("team/app", "v2", NEW)
    assert (await moved.get("/v2/team/app/manifests/v2")).body == NEW.manifest
    limited.seen.clear()
    moved.clock.advance(601)
    answer = await moved.get(TAG)
    assert (answer.body, answer.headers["Docker-Content-Digest"]) == (NEW.manifest, NEW.digest)
    assert (answer.state, answer.headers.get("Warning")) == ("pullthrough; fwd=stale; fwd-status=200; ttl=600", None)
    assert asked(limited) == ["HEAD latest"]
    assert (await moved.get(TAG)).state == "pullthrough; hit; ttl=600"


async def test_what_nobody_waits_for_leaves_the_rest_alone(moved: Proxy, limited: FakeRegistry) -> None:
    """A look in the background is a HEAD, while anything is left; an operator's word spends the reserve."""
    house = moved.application._handlers.house  # type: ignore[union-attr]
    repository = Repository("registry.test", "team/app")
    ask = Ask(repository, ANONYMOUS, house.lifetimes["default", "registry.test"], "background")
    assert (await house.manifests.look(ask, "latest", fetch=False)).upstream_digest == NEW.digest
    limited.pulled[""] = 20
    limited.push("team/app", "latest", NEWER)
    assert (await house.manifests.look(ask, "latest", fetch=False)).upstream_digest == NEWER.digest
    with pytest.raises(PullKept):
        await house.manifests.look(ask, "latest", fetch=False)
    assert asked(limited) == ["HEAD latest"] * 2
    limited.pulled[""] = 19
    assert (await house.manifests.look(ask, "latest", fetch=True)).digest == NEWER.digest
    assert limited.left() == 0
    assert await moved.metric(pulls("background")) == 1


async def test_after_the_window_the_budget_says_nothing(moved: Proxy, limited: FakeRegistry) -> None:
    """All that was counted has run out by then, so the tag is pulled although nothing new was announced."""
    await moved.get(TAG)
    limited.limits.clear()
    moved.clock.advance(WINDOW - 1)
    assert (await moved.get(TAG)).body == OLD.manifest
    moved.clock.advance(1)
    assert (await moved.get(TAG)).body == NEW.manifest


async def test_after_the_stale_window_the_pull_is_made(moved: Proxy, limited: FakeRegistry) -> None:
    """The reserve makes nothing older than an outage would."""
    await moved.get(TAG)
    moved.clock.advance(86400)
    assert (await moved.get(TAG)).body == NEW.manifest
    assert limited.left() == 1


async def test_many_at_once_leave_the_reserve(
    settings: MakeSettings, limited: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten tags changed and three pulls left above the reserve: three are pulled, and the rest says that it is stale."""
    limited.limits = {"": 30}
    paths = [f"/v2/team/app{number}/manifests/v1" for number in range(10)]
    images = [make_image(10, seed=60 + number) for number in range(20)]
    for number in range(10):
        limited.push(f"team/app{number}", "v1", images[number])
    async with running(settings()) as proxy:
        for path in paths:
            await proxy.get(path)
        for number in range(10):
            limited.push(f"team/app{number}", "v1", images[10 + number])
        limited.pulled[""] = 24
        proxy.clock.advance(700)
        limited.seen.clear()
        # Every HEAD has said what is left before the first pull leaves: none of them knows of another's.
        seen, answer = asyncio.Semaphore(0), limited.answer

        async def together(request: web.BaseRequest) -> web.StreamResponse:
            response = await answer(request)
            if request.method == "HEAD":
                seen.release()
                while limited.count("HEAD", "/manifests/") < 10:
                    await asyncio.sleep(0)
            return response

        monkeypatch.setattr(limited, "answer", together)
        answers = await asyncio.gather(*(proxy.get(path) for path in paths))
    stale = [one for one in answers if "stale-budget" in one.state]
    assert (len(stale), limited.count("GET", "/manifests/"), limited.left()) == (7, 3, 3)


@pytest.mark.parametrize(("reserve", "left"), [("0%", 1), ("50%", 11), ("100%", None)])
async def test_how_much_is_kept(settings: MakeSettings, limited: FakeRegistry, reserve: str, left: int | None) -> None:
    """`pull_reserve` is of the limit that is announced; one more than that is spent. All of it: nothing is replaced."""
    async with running(settings({"pull_reserve": reserve})) as proxy:
        await proxy.get(TAG)
        limited.push("team/app", "latest", NEW)
        limited.pulled[""] = 20 - (left - 1 if left is not None else 20)
        proxy.clock.advance(700)
        assert (await proxy.get(TAG)).body == OLD.manifest
        if left is not None:
            limited.pulled[""] = 20 - left
            proxy.clock.advance(601)
            assert (await proxy.get(TAG)).body == NEW.manifest


async def test_a_reload_changes_the_reserve(moved: Proxy, settings: MakeSettings, limited: FakeRegistry) -> None:
    """It counts at once, with what is known of the limit; no connection is opened anew for it."""
    await moved.get(TAG)
    upstream = moved.application._upstreams["registry.test"]
    await moved.application.reload(settings({"pull_reserve": "5%"}))
    assert moved.application._upstreams["registry.test"] is upstream
    assert (await moved.get(TAG)).body == NEW.manifest


async def test_another_upstream_has_another_limit(moved: Proxy, settings: MakeSettings, limited: FakeRegistry) -> None:
    """After a reload that changes where the registry is, what the one before announced holds nothing back."""
    await moved.get(TAG)
    limited.limits.clear()
    await moved.application.reload(settings({"url": limited.url.replace("127.0.0.1", "localhost")}))
    assert (await moved.get(TAG)).body == NEW.manifest


# Whose it is.


async def test_pulls_are_counted_for_the_cluster_that_caused_them(
    settings: MakeSettings, limited: FakeRegistry
) -> None:
    """What is served from the cache, and HEADs, are nobody's."""
    clusters = [{"name": "prod", "match": {"hosts": ["prod.test"]}}, {"name": "dev"}]
    limited.push("team/app", "other", OTHER)
    async with running(settings(clusters=clusters)) as proxy:
        await proxy.get(TAG, Host="prod.test")
        await proxy.get(TAG)
        await proxy.get("/v2/team/app/manifests/other")
        proxy.clock.advance(601)
        await proxy.get(TAG)
        limited.push("team/app", "latest", NEW)
        proxy.clock.advance(601)
        await proxy.get(TAG)
        assert (await proxy.metric(pulls("prod")), await proxy.metric(pulls("dev"))) == (1, 2)
    assert limited.pulled[""] == 3


@pytest.fixture
def hub(limited: FakeRegistry) -> FakeRegistry:
    """Tokens, and a limit for each user."""
    limited.private = {"team/app": {"", "robot", "alice"}}
    limited.passwords = {"robot": "wonder"}
    limited.limits = {"": 20, "robot": 200, "alice": 30}
    return limited


async def test_a_clients_own_limit_does_not_disturb_the_proxys(proxy: Proxy, hub: FakeRegistry) -> None:
    """Alice has used hers up: what is left to nobody is shown and used as before, and nobody's is not hers."""
    await proxy.get(TAG)
    token = f"Bearer {hub.token('alice', 'team/app')}"
    hub.pulled["alice"] = 30
    hub.push("team/app", "latest", NEW)
    proxy.clock.advance(700)
    assert (await proxy.get(TAG, Authorization=token)).state.endswith("detail=stale-budget")
    assert await proxy.metric(REMAINING) == 19
    assert (await proxy.get(TAG)).body == NEW.manifest
    assert await proxy.metric(REMAINING) == 18
    assert hub.pulled == {"": 2, "alice": 30}


async def test_a_lent_credentials_limit_is_the_one_that_counts(
    settings: MakeSettings, hub: FakeRegistry, tmp_path: Path
) -> None:
    """With `credentials: public` nobody's may be used up, and the credential's reserve is kept."""
    (tmp_path / "password").write_text("wonder")
    upstream: dict[str, Any] = {"credentials": {"username": "robot", "password_file": str(tmp_path / "password")}}
    async with running(settings(upstream, clusters=[{"name": "default", "credentials": "public"}])) as proxy:
        hub.pulled[""] = 20
        for image, path in ((OLD, TAG), (NEW, TAG)):
            hub.push("team/app", "latest", image)
            assert (await proxy.get(path)).body == image.manifest
            proxy.clock.advance(700)
        assert hub.pulled == {"": 20, "robot": 2}
        assert await proxy.metric(REMAINING) == 198
        hub.pulled["robot"] = 179
        await pull_other(proxy, hub, OTHER)
        hub.push("team/app", "latest", NEWER)
        kept = await proxy.get(TAG)
        assert (kept.body, kept.state) == (NEW.manifest, "pullthrough; fwd=stale; detail=stale-budget")
        assert hub.pulled == {"": 20, "robot": 180}


async def pull_other(proxy: Proxy, hub: FakeRegistry, image: Image) -> None:
    """Something that was not there, which says what is left."""
    hub.push("team/app", "other", image)
    assert (await proxy.get("/v2/team/app/manifests/other")).body == image.manifest


async def test_a_push_through_here_is_seen_all_the_same(
    settings: MakeSettings, limited: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag that a push may have moved is pulled, whatever is left: its client wants to see its push."""
    clusters = [{"name": "default", "push": "forward"}]
    async with running(settings(clusters=clusters)) as proxy:
        await proxy.get(TAG)
        limited.pulled[""] = 18
        limited.push("team/app", "latest", NEW)
        proxy.clock.advance(700)
        assert "stale-budget" in (await proxy.get(TAG)).state
        answer = limited.answer

        async def lost(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=500) if request.method == "PUT" else await answer(request)

        monkeypatch.setattr(limited, "answer", lost)
        async with proxy.session.put(proxy.url + TAG, data=NEW.manifest) as response:
            assert response.status == 502
        assert (await proxy.get(TAG)).body == NEW.manifest
