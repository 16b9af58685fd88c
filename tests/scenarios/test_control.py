"""Sticky tags under an operator's control: list, refresh, purge, hold, release, and what of it clients see."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.cache import control
from proxy.oci.reference import Repository
from proxy.server import api
from tests.fakes.clock import ManualClock
from tests.fakes.content import digest_of, make_image, make_index
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry, wrong_digest
from tests.fakes.server import Gate
from tests.scenarios.conftest import MakeSettings
from tests.scenarios.operators import break_store, call, done, hold_answer, names, tag, tags

OLD, NEW, THIRD = make_image(10, seed=1), make_image(10, seed=2), make_image(10, seed=3)
TAG = "/v2/team/app/manifests/v1"
REFERENCE = "registry.test/team/app:v1"
EDGE = [
    {"name": "edge", "match": {"hosts": ["edge.test"]}, "manifests": {"tag_ttl": "1m"}},
    {"name": "own", "match": {"hosts": ["own.test"]}, "credentials": True},
    {"name": "default"},
]


@pytest.fixture
async def proxy(settings: MakeSettings) -> AsyncIterator[Proxy]:
    """A proxy of three clusters; the tags of one live for a minute only."""
    async with running(settings(clusters=EDGE)) as started:
        yield started


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The audit lines so far; one list for the whole test."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    caplog.set_level(logging.INFO, "pullthrough.audit")
    logger, handler = logging.getLogger("pullthrough.audit"), Lines()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


async def pulled(proxy: Proxy, *paths: str, **headers: str) -> None:
    for path in paths:
        assert (await proxy.get(path, **headers)).status == 200


def digest_at(answer: Any) -> str:
    return str(answer.headers["Docker-Content-Digest"])


# What there is.


async def test_everything_about_a_tag(proxy: Proxy, registry: FakeRegistry) -> None:
    """Which digest, since when, until when, who was given it how often, and what the upstream has."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG, TAG)
    proxy.clock.advance(70)
    await pulled(proxy, TAG, Host="edge.test")
    (found,) = await tags(proxy, nodes="true")
    history = found.pop("history")
    assert found == {
        "registry": "registry.test", "repository": "team/app", "tag": "v1", "reference": REFERENCE,
        "digest": OLD.digest, "state": "fresh", "fetched": "2027-01-15T08:00:00Z", "checked": "2027-01-15T08:01:10Z",
        "expires": "2027-01-15T08:11:10Z", "age": 0, "pulls": 3, "clusters": {"default": 2, "edge": 1},
        "upstream_digest": None, "drifted": False, "unchecked": None, "held": None, "gone": None,
        "expires_in": {"default": "2027-01-15T08:11:10Z", "edge": "2027-01-15T08:02:10Z"},
    }  # fmt: skip
    (nodes,) = [one.pop("nodes") for one in history]
    assert history == [
        {
            "digest": OLD.digest, "first_seen": "2027-01-15T08:00:00Z", "last_seen": "2027-01-15T08:01:10Z",
            "pulls": 3, "clusters": {"default": 2, "edge": 1}, "other_pulls": 0,
        }
    ]  # fmt: skip
    assert [(node["address"], node["pulls"]) for node in nodes] == [("127.0.0.1", 3)]


async def test_each_digest_has_its_own_clients(proxy: Proxy, registry: FakeRegistry) -> None:
    """After a tag has moved its history says who was given what, the newest first; HEADs count as pulls do."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(601)
    assert (await proxy.head(TAG, Host="edge.test")).status == 200
    await pulled(proxy, TAG, Host="edge.test")
    history = (await tag(proxy, REFERENCE, nodes="true"))["history"]
    assert [(one["digest"], one["clusters"]) for one in history] == [
        (NEW.digest, {"edge": 2}),
        (OLD.digest, {"default": 1}),
    ]
    assert [one["nodes"][0]["cluster"] for one in history] == ["edge", "default"]


async def test_states(proxy: Proxy, registry: FakeRegistry) -> None:
    """Fresh, stale, expired, absent by the clock; by the cluster's times where one is asked about."""

    async def state(**query: str) -> Any:
        return (await tag(proxy, REFERENCE, **query))["state"]

    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    await pulled(proxy, TAG, Host="edge.test")
    assert (await state(), await state(cluster="edge")) == ("fresh", "fresh")
    proxy.clock.advance(61)
    assert (await state(), await state(cluster="edge")) == ("fresh", "stale")
    assert (await tag(proxy, REFERENCE, cluster="edge"))["expires"] == "2027-01-15T08:01:00Z"
    proxy.clock.advance(600)
    assert await state() == "stale"
    proxy.clock.advance(86400)
    assert await state() == "expired"
    await done(proxy, "DELETE", "tags", reference=REFERENCE)
    gone = await tag(proxy, REFERENCE)
    assert (gone["state"], gone["digest"], gone["checked"], gone["expires"]) == ("absent", None, None, None)
    assert gone["pulls"] == 2


@pytest.fixture
async def many(settings: MakeSettings, registry: FakeRegistry, other: FakeRegistry) -> AsyncIterator[Proxy]:
    """Tags at two registries: for two clusters, one moved, one held, one that a client's own credential proved."""
    for number in range(3):
        registry.push("team/app", f"v{number}", OLD)
        other.push("lib/base", f"v{number}", OLD)
    made = settings(clusters=EDGE)
    described = made.upstreams["registry.test"].model_copy(update={"url": other.url, "default": False})
    made = made.model_copy(update={"upstreams": made.upstreams | {"other.test": described}})
    async with running(made) as proxy:
        for number in range(3):
            await pulled(proxy, f"/v2/team/app/manifests/v{number}")
            await pulled(proxy, f"/v2/other.test/lib/base/manifests/v{number}", Host="edge.test")
        registry.push("team/app", "v1", NEW)
        proxy.clock.advance(301)
        await pulled(proxy, TAG)
        await pulled(proxy, "/v2/team/app/manifests/v2", Authorization="Basic eDp5")
        await done(proxy, "POST", "tags/hold", f"other.test/lib/base:v0@{OLD.digest}")
        yield proxy


APP = [f"registry.test/team/app:v{number}" for number in range(3)]
BASE = [f"other.test/lib/base:v{number}" for number in range(3)]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, BASE + APP),
        ({"registry": "other.test"}, BASE),
        ({"registry": "elsewhere.test"}, []),
        ({"repository": "team/app"}, APP),
        ({"repository": "*/ba[rs]e"}, BASE),
        ({"cluster": "edge"}, BASE),
        ({"cluster": "own"}, []),
        ({"drifted": "true"}, [APP[1]]),
        ({"drifted": ""}, [APP[1]]),
        ({"drifted": "0"}, BASE + APP),
        ({"held": "1"}, [BASE[0]]),
        ({"unchecked": "TRUE"}, [APP[2]]),
        ({"reference": "*:v1"}, [BASE[1], APP[1]]),
        ({"reference": "registry.test/*"}, APP),
        ({"reference": "team/app:v1"}, [APP[1]]),
        ({"reference": "other.test/lib/base:v0"}, [BASE[0]]),
        ({"reference": "registry.test/team/app"}, []),
        ({"reference": "*", "drifted": "true", "cluster": "default"}, [APP[1]]),
        ({"reference": "*", "drifted": "true", "cluster": "edge"}, []),
        ({"reference": "team/app:v1", "drifted": "true"}, [APP[1]]),
        ({"reference": "team/app:v0", "drifted": "true"}, []),
        ({"reference": "team/app:v1", "cluster": "edge"}, []),
    ],
)
async def test_filters(many: Proxy, query: dict[str, str], wanted: list[str]) -> None:
    """All that are given must fit; patterns are shell patterns; a reference is read as in commands."""
    assert names(await tags(many, **query)) == wanted


@pytest.mark.parametrize("n", [1, 2, 5, 6, 1000])
async def test_pages(many: Proxy, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Every tag once, in order, whatever the size of pages here and in the store; tags known by a hold alone too.

    Also where those are far behind the page of the others.
    """
    monkeypatch.setattr(control, "_PAGE", 2)
    await done(many, "POST", "tags/hold", f"{APP[2]}@{OLD.digest}")
    for reference in (BASE[0], APP[2]):
        await done(many, "DELETE", "tags", reference=reference)
    found: list[str] = []
    query: dict[str, str] = {}
    while True:
        page = await done(many, "GET", "tags", n=n, **query)
        assert len(page["tags"]) <= n
        found += names(page["tags"])
        if "last" not in page:
            break
        query = {"last": page["last"]}
    assert found == BASE + APP
    assert names(await tags(many, registry="registry.test", n=1, last=APP[0])) == [APP[1]]
    assert names(await tags(many, last=APP[2])) == []
    assert names(await tags(many, last="zzz")) == []


async def test_a_page_ends_where_it_has_brought_enough_nodes(many: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tags were asked for; the next page goes on behind it, and there is always one tag in it."""
    monkeypatch.setattr(api, "_MOST_NODES", 2)
    page = await done(many, "GET", "tags", nodes="true", n=100)
    assert (names(page["tags"]), page["last"]) == (BASE[:2], BASE[1])
    assert names((await done(many, "GET", "tags", n=100))["tags"]) == BASE + APP
    monkeypatch.setattr(api, "_MOST_NODES", 1)
    assert names((await done(many, "GET", "tags", nodes="true", last=APP[1]))["tags"]) == [APP[2]]


@pytest.mark.parametrize(
    "query",
    [
        *({"n": n} for n in ("0", "-1", "1001", "x", "", "1.5", "1e2", "٣", "000000001999999", "9" * 5000)),
        {"drifted": "yes"},
        {"cluster": "none"},
        {"reference": ""},
        {"reference": "elsewhere.test/app"},
        {"reference": f"nginx@{OLD.digest}"},
        {"reference": "*" * 2000},
        {"reference": "*\n"},
        {"repository": "*a" * 1000},
        {"last": "a\0b"},
        {"last": "x" * 2000},
    ],
)
async def test_questions_that_mean_nothing(proxy: Proxy, query: dict[str, str]) -> None:
    """400 and one line that says so."""
    status, found = await call(proxy, "GET", "tags", **query)
    assert status == 400
    assert list(found) == ["error"]
    assert "\n" not in found["error"]


@pytest.mark.parametrize("pattern", ["[", "[z-a]", "[!]", "[[:alpha:]]", "[]", "**", "[a&&b]*", "?" * 900, "[!a-" * 99])
async def test_patterns_that_fit_nothing(many: Proxy, pattern: str) -> None:
    """No pattern is an error, however odd."""
    assert await tags(many, reference=pattern) in ([], await tags(many))
    assert (await call(many, "POST", "tags/release", {"reference": pattern}))[0] == 200


# Refresh.


async def test_refreshing_a_tag_that_has_not_moved(proxy: Proxy, registry: FakeRegistry) -> None:
    """One HEAD, and its time begins anew."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    proxy.clock.advance(100)
    (found,) = (await done(proxy, "POST", "tags/refresh", REFERENCE))["tags"]
    assert found == {
        "reference": REFERENCE, "before": OLD.digest, "after": OLD.digest, "changed": False, "error": None,
    }  # fmt: skip
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD"]
    assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=600"


async def test_refreshing_a_tag_that_has_moved(proxy: Proxy, registry: FakeRegistry) -> None:
    """One HEAD and one GET by digest, and from the answer on every client is given the new one from here."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    registry.push("team/app", "v1", NEW)
    (found,) = (await done(proxy, "POST", "tags/refresh", "team/app:v1"))["tags"]
    assert (found["before"], found["after"], found["changed"]) == (OLD.digest, NEW.digest, True)
    asked = [(seen.method, seen.path) for seen in registry.seen[1:]]
    assert asked == [("HEAD", TAG), ("GET", f"/v2/team/app/manifests/{NEW.digest}")]
    assert (await proxy.get(TAG)).body == NEW.manifest
    assert digest_at(await proxy.head(TAG)) == NEW.digest
    assert len(registry.seen) == 3


async def test_refreshing_what_nobody_asked_for_yet(proxy: Proxy, registry: FakeRegistry) -> None:
    """It is fetched; what does not exist upstream, or at all, says so."""
    registry.push("team/app", "v1", OLD)
    (found,) = (await done(proxy, "POST", "tags/refresh", REFERENCE))["tags"]
    assert (found["before"], found["after"], found["changed"], found["error"]) == (None, OLD.digest, True, None)
    (found,) = (await done(proxy, "POST", "tags/refresh", "team/app:v9"))["tags"]
    assert (found["after"], found["changed"]) == (None, False)
    assert found["error"]
    assert (await done(proxy, "POST", "tags/refresh", "nothing/*"))["tags"] == []


async def test_refreshing_while_the_upstream_fails(proxy: Proxy, registry: FakeRegistry) -> None:
    """It says so and loses nothing: the tag is served as stale, and asked for as soon as that is possible."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    registry.fault = lambda _: web.Response(status=503)
    (found,) = (await done(proxy, "POST", "tags/refresh", REFERENCE))["tags"]
    assert (found["before"], found["after"], found["changed"]) == (OLD.digest, OLD.digest, False)
    assert found["error"]
    assert (await tag(proxy, REFERENCE))["state"] == "stale"
    answer = await proxy.get(TAG)
    assert (answer.body, "stale-5xx" in answer.state) == (OLD.manifest, True)
    registry.fault = None
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(300)
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_refreshing_many_tags_of_a_silent_upstream(settings: MakeSettings, registry: FakeRegistry) -> None:
    """The first that are asked for wait for it; of the others the same is said at once, and nobody is asked."""
    gate, answered = Gate(0), registry.answer
    async with running(settings({"read_timeout": "1s"})) as proxy:
        for number in range(20):
            registry.push("team/app", f"w{number:02}", OLD)
            await pulled(proxy, f"/v2/team/app/manifests/w{number:02}")
        registry.seen.clear()

        async def silent(request: web.BaseRequest) -> web.StreamResponse:
            await gate(0)
            return await answered(request)

        registry.answer = silent  # type: ignore[method-assign]
        found = (await done(proxy, "POST", "tags/refresh", "*/app:w*"))["tags"]
        assert (len(found), all(one["error"] for one in found)) == (20, True)
        assert {one["after"] for one in found} == {OLD.digest}
        assert len({seen.path for seen in registry.seen}) == 8
        gate.open()


async def test_refreshing_a_tag_that_is_gone_upstream(proxy: Proxy, registry: FakeRegistry) -> None:
    """It says so, and is gone here too: that is the upstream's word now."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    del registry.tags["team/app", "v1"]
    (found,) = (await done(proxy, "POST", "tags/refresh", REFERENCE))["tags"]
    assert found["error"]
    assert (await proxy.get(TAG)).status == 404


async def test_refreshing_by_a_pattern(many: Proxy, registry: FakeRegistry, other: FakeRegistry) -> None:
    """Each tag that fits is asked for once, and each says for itself what came of it."""
    # Another image than the other registry's tag has: what that one brought here would not be fetched again.
    other.push("lib/base", "v2", THIRD)
    registry.seen.clear()
    other.seen.clear()
    found = (await done(many, "POST", "tags/refresh", "*:v[12]"))["tags"]
    assert [(one["reference"], one["changed"], one["error"] is None) for one in found] == [
        (BASE[1], False, True), (BASE[2], True, True), (APP[1], True, True), (APP[2], False, False),
    ]  # fmt: skip
    assert (other.count("HEAD", ""), registry.count("HEAD", "")) == (2, 1)
    assert (other.count("GET", ""), registry.count("GET", "")) == (1, 1)


async def test_refreshing_many_tags_of_one_repository(proxy: Proxy, registry: FakeRegistry) -> None:
    """One HEAD and one GET each, and each is in force: none keeps the answer to another from being written down."""
    named, images = [f"w{number:02}" for number in range(20)], [make_image(10, seed=100 + n) for n in range(20)]
    paths = [f"/v2/team/app/manifests/{name}" for name in named]
    for name in named:
        registry.push("team/app", name, OLD)
    await pulled(proxy, *paths)
    for name, image in zip(named, images, strict=True):
        registry.push("team/app", name, image)
    registry.seen.clear()
    found = (await done(proxy, "POST", "tags/refresh", "*/app:w*"))["tags"]
    assert [(one["after"], one["error"]) for one in found] == [(image.digest, None) for image in images]
    assert [(await proxy.get(path)).body for path in paths] == [image.manifest for image in images]
    assert (registry.count("HEAD", ""), registry.count("GET", "")) == (20, 20)


@pytest.mark.parametrize("also", ["purge", "refresh"])
async def test_refreshing_while_the_repository_changes(proxy: Proxy, registry: FakeRegistry, also: str) -> None:
    """What is said to be served now is, whatever was done with other tags of the repository before the answer came."""
    registry.push("team/app", "v1", OLD)
    registry.push("team/app", "v2", OLD)
    await pulled(proxy, TAG, "/v2/team/app/manifests/v2")
    registry.push("team/app", "v1", NEW)
    gate = hold_answer(registry, TAG)
    refreshing = asyncio.create_task(done(proxy, "POST", "tags/refresh", REFERENCE))
    await gate.reached.wait()
    if also == "purge":
        await done(proxy, "DELETE", "tags", reference="team/app:v2")
    else:
        await done(proxy, "POST", "tags/refresh", "team/app:v2")
    gate.open()
    (found,) = (await refreshing)["tags"]
    assert (found["after"], found["error"]) == (NEW.digest, None)
    assert registry.count("GET", NEW.digest) == 1
    await registry.stop()
    assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=600"
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_what_a_clients_own_credential_proved(many: Proxy, registry: FakeRegistry) -> None:
    """The proxy does not ask for it; the next client's request does, with its own right, and sees the new one."""
    registry.push("team/app", "v2", NEW)
    (found,) = (await done(many, "POST", "tags/refresh", APP[2]))["tags"]
    assert (found["changed"], found["error"]) == (False, "it is asked for with the next client's credential")
    registry.seen.clear()
    path = "/v2/team/app/manifests/v2"
    assert (await many.get(path, Authorization="Basic eDp5")).body == NEW.manifest
    assert [seen.method for seen in registry.seen] == ["HEAD", "GET"]
    assert registry.seen[0].headers["Authorization"] == "Basic eDp5"


async def test_what_was_under_way_before_a_refresh_is_not_believed(proxy: Proxy, registry: FakeRegistry) -> None:
    """A client's question from before, answered after it, does not bring the old manifest back."""
    registry.push("team/app", "v1", OLD)
    gate = hold_answer(registry, TAG)
    early = asyncio.create_task(proxy.get(TAG))
    await gate.reached.wait()
    registry.push("team/app", "v1", NEW)
    await done(proxy, "POST", "tags/refresh", REFERENCE)
    gate.open()
    assert (await early).body == OLD.manifest
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_an_operator_who_leaves_in_the_middle(proxy: Proxy, registry: FakeRegistry, audit: list[str]) -> None:
    """What was begun comes to its end, and is in the log."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    registry.push("team/app", "v1", NEW)
    gate = hold_answer(registry, TAG)
    leaving = asyncio.create_task(call(proxy, "POST", "tags/refresh", {"reference": REFERENCE}))
    await gate.reached.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    async with asyncio.timeout(10):
        while registry.connections > 1 or len(proxy.connections) > 1:
            await asyncio.sleep(0)
    gate.open()
    async with asyncio.timeout(10):
        while not audit:
            await asyncio.sleep(0)
    assert audit == [f"refresh {REFERENCE} by 127.0.0.1"]
    asked = len(registry.seen)
    assert (await proxy.get(TAG)).body == NEW.manifest
    assert len(registry.seen) == asked


# Purge.


async def test_after_a_purge_the_next_request_asks(many: Proxy, registry: FakeRegistry, other: FakeRegistry) -> None:
    """Once for each tag that was purged, one GET; others are as they were. History stays."""
    assert (await done(many, "DELETE", "tags", reference=APP[0]))["tags"] == [APP[0]]
    registry.seen.clear()
    other.seen.clear()
    for number in range(3):
        await pulled(many, f"/v2/team/app/manifests/v{number}", f"/v2/team/app/manifests/v{number}")
    assert [(seen.method, seen.path) for seen in registry.seen] == [("GET", "/v2/team/app/manifests/v0")]
    assert (await tag(many, APP[0]))["pulls"] == 3
    assert (await done(many, "DELETE", "tags", reference="*/base:v[01]"))["tags"] == BASE[:2]
    assert names(await tags(many)) == [BASE[0], BASE[2], *APP]


async def test_an_attempt_from_before_a_purge_writes_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """Its client is answered; whoever comes after the purge does not join it, and is not served by it."""
    registry.push("team/app", "v1", OLD)
    gate = hold_answer(registry, TAG)
    early = asyncio.create_task(proxy.get(TAG))
    await gate.reached.wait()
    registry.push("team/app", "v1", NEW)
    await done(proxy, "DELETE", "tags", reference=REFERENCE)
    assert (await proxy.get(TAG)).body == NEW.manifest
    gate.open()
    assert (await early).body == OLD.manifest
    asked = len(registry.seen)
    assert (await proxy.get(TAG)).body == NEW.manifest
    assert len(registry.seen) == asked


async def test_a_purge_ends_a_404(settings: MakeSettings, registry: FakeRegistry) -> None:
    """What was missing a moment ago is asked for again."""
    async with running(settings(manifests={"negative_ttl": "1h"})) as proxy:
        assert (await proxy.get(TAG)).status == 404
        registry.push("team/app", "v1", OLD)
        assert (await proxy.get(TAG)).status == 404
        await done(proxy, "DELETE", "tags", reference=REFERENCE)
        assert (await proxy.get(TAG)).status == 200


async def test_purging_a_manifest(proxy: Proxy, registry: FakeRegistry, audit: list[str]) -> None:
    """By digest: it is had anew, and held against its digest."""
    registry.push("team/app", "v1", OLD)
    path = f"/v2/team/app/manifests/{OLD.digest}"
    await pulled(proxy, path, path)
    found = await done(proxy, "DELETE", "tags", reference=f"team/app@{OLD.digest}")
    assert found["tags"] == [f"registry.test/team/app@{OLD.digest}"]
    await pulled(proxy, path)
    assert registry.count("GET", OLD.digest) == 2
    assert audit == [f"purge registry.test/team/app@{OLD.digest} by 127.0.0.1"]


async def test_what_is_too_much_at_once(many: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that fits more tags than one command may concern is refused whole, instead of half done."""
    monkeypatch.setattr(api, "_MOST_MATCHING", 5)
    for method, path, query in (("DELETE", "tags", {"reference": "*"}), ("POST", "tags/refresh", {})):
        status, found = await call(many, method, path, {"reference": "*"}, **query)
        assert (status, found) == (400, {"error": "more than 5 tags fit that pattern"})
    assert names(await tags(many)) == BASE + APP


# Hold and release.


async def test_a_held_tag_while_the_upstream_moves(proxy: Proxy, registry: FakeRegistry) -> None:
    """GET and HEAD of every cluster say the held digest, that it is held, and what it is upstream, as far as known."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    (held,) = (await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}"))["tags"]
    assert (held["state"], held["digest"], held["drifted"]) == ("held", OLD.digest, False)
    assert held["held"] == {"digest": OLD.digest, "since": "2027-01-15T08:00:00Z", "by": "127.0.0.1"}
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(90_000)
    for host in ("default.test", "edge.test"):
        got, head = await proxy.get(TAG, Host=host), await proxy.head(TAG, Host=host)
        assert got.body == OLD.manifest
        for answer in (got, head):
            assert (answer.status, digest_at(answer)) == (200, OLD.digest)
            assert answer.headers["Warning"] == '299 - "v1 is held at this digest by an operator"'
        assert head.state == "pullthrough; hit; detail=held"
    assert registry.count("HEAD", TAG) == registry.count("GET", NEW.digest) == 0
    (found,) = (await done(proxy, "POST", "tags/refresh", REFERENCE))["tags"]
    assert (found["before"], found["after"], found["changed"]) == (OLD.digest, OLD.digest, False)
    assert found["error"] == "it is held until it is released"
    answer = await proxy.get(TAG)
    assert answer.body == OLD.manifest
    assert answer.headers["Warning"].endswith(f'; upstream it is {NEW.digest}"')
    (drifted,) = await tags(proxy, drifted="true")
    assert (drifted["digest"], drifted["upstream_digest"]) == (OLD.digest, NEW.digest)


async def test_releasing(proxy: Proxy, registry: FakeRegistry) -> None:
    """The tag goes by the upstream again at once; what was not held is not listed."""
    registry.push("team/app", "v1", OLD)
    registry.push("team/app", "v2", OLD)
    await pulled(proxy, TAG, "/v2/team/app/manifests/v2")
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(601)
    assert (await proxy.get(TAG)).body == OLD.manifest
    (released,) = (await done(proxy, "POST", "tags/release", "registry.test/*"))["tags"]
    assert (released["reference"], released["held"], released["state"]) == (REFERENCE, None, "stale")
    answer = await proxy.get(TAG)
    assert (answer.body, "Warning" in answer.headers) == (NEW.manifest, False)
    assert (await done(proxy, "POST", "tags/release", REFERENCE))["tags"] == []


async def test_rolling_back_in_an_outage(proxy: Proxy, registry: FakeRegistry) -> None:
    """An earlier digest that is cached can be held and is served while the upstream cannot be asked for anything."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(601)
    assert (await proxy.get(TAG)).body == NEW.manifest
    await registry.stop()
    proxy.clock.advance(3600)
    assert (await proxy.get(TAG)).body == NEW.manifest
    earlier = (await tag(proxy, REFERENCE))["history"][1]["digest"]
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{earlier}")
    for _ in range(2):
        got = await proxy.get(TAG)
        assert (got.body, digest_at(await proxy.head(TAG))) == (OLD.manifest, OLD.digest)
    assert (await tag(proxy, REFERENCE))["drifted"]


async def test_holding_what_is_not_cached(proxy: Proxy, registry: FakeRegistry) -> None:
    """It is fetched first, also for a tag that nobody asked for; then it needs nobody."""
    registry.push("team/app", "v1", NEW)
    registry.put("team/app", OLD.media_type, OLD.manifest)
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
    assert registry.count("GET", OLD.digest) == 1
    assert names(await tags(proxy, held="true")) == [REFERENCE]
    assert (await proxy.get(TAG)).body == OLD.manifest
    assert len(registry.seen) == 1


async def test_holding_what_tags_are_now(proxy: Proxy, registry: FakeRegistry) -> None:
    """A tag, or all that fit a pattern, stay what they are; what is held already is held as it was."""
    registry.push("team/app", "v1", OLD)
    registry.push("team/app", "v2", OLD)
    await pulled(proxy, TAG, TAG.replace("v1", "v2"))
    await done(proxy, "POST", "tags/hold", REFERENCE)
    since = (await tag(proxy, REFERENCE))["held"]["since"]
    proxy.clock.advance(60)
    held = await done(proxy, "POST", "tags/hold", "registry.test/team/*")
    assert names(held["tags"]) == [REFERENCE.replace("v1", "v2")]
    assert (await tag(proxy, REFERENCE))["held"]["since"] == since
    for one in ("v1", "v2"):
        registry.push("team/app", one, NEW)
    proxy.clock.advance(3600)
    for one in ("v1", "v2"):
        assert (await proxy.get(TAG.replace("v1", one))).body == OLD.manifest
    assert (await done(proxy, "POST", "tags/hold", "registry.test/none/*"))["tags"] == []


async def test_holding_a_tag_that_is_not_known(proxy: Proxy) -> None:
    """What it is now nobody knows, so the digest has to be said."""
    status, found = await call(proxy, "POST", "tags/hold", {"reference": REFERENCE})
    assert (status, found["error"]) == (409, f"{REFERENCE} is not known here: say which digest to hold it at")


@pytest.mark.parametrize("failing", [False, True])
async def test_holding_what_does_not_exist(proxy: Proxy, registry: FakeRegistry, failing: bool) -> None:
    """409 with the reason, and nothing is held: unknown upstream, a blob's digest, or nobody to ask."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG, f"/v2/team/app/blobs/{digest_of(OLD.blobs[1])}")
    if failing:
        await registry.stop()
    for digest in (wrong_digest(b"x"), digest_of(OLD.blobs[1])):
        status, found = await call(proxy, "POST", "tags/hold", {"reference": f"{REFERENCE}@{digest}"})
        assert status == 409
        assert found["error"].startswith(f"{REFERENCE}: {digest} is not in the cache and cannot be had: ")
    assert await tags(proxy, held="true") == []


async def test_holding_what_only_clients_may_ask_for(proxy: Proxy, registry: FakeRegistry) -> None:
    """A digest that is cached can be held; another one cannot be fetched without a client's right: 409."""
    registry.push("team/app", "v1", OLD)
    registry.put("team/app", NEW.media_type, NEW.manifest)
    await pulled(proxy, TAG, Authorization="Basic eDp5")
    status, found = await call(proxy, "POST", "tags/hold", {"reference": f"{REFERENCE}@{NEW.digest}"})
    assert (status, "only clients" in found["error"]) == (409, True)
    assert len(registry.seen) == 1
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")


async def test_holding_what_the_upstream_deleted(settings: MakeSettings, registry: FakeRegistry) -> None:
    """It is held where all are served it on; not where some clusters would answer 404, even if others have it still."""
    for keeping, status in (({}, 409), ({"serve_deleted": True}, 200)):
        clusters = [
            {"name": "edge", "match": {"hosts": ["edge.test"]}, "manifests": {"serve_deleted": True}},
            {"name": "default"},
        ]
        async with running(settings(clusters=clusters, manifests=keeping)) as proxy:
            registry.push("team/app", "v1", OLD)
            await pulled(proxy, TAG)
            registry.members.discard(("team/app", OLD.digest))
            registry.push("team/app", "v1", NEW)
            proxy.clock.advance(601)
            assert (await proxy.get(f"/v2/team/app/manifests/{OLD.digest}", Host="edge.test")).status == 200
            found = await call(proxy, "POST", "tags/hold", {"reference": f"{REFERENCE}@{OLD.digest}"})
            assert found[0] == status
            assert (await proxy.get(TAG)).body == (OLD if status == 200 else NEW).manifest


async def test_a_tag_that_is_gone_upstream_and_served_on(settings: MakeSettings, registry: FakeRegistry) -> None:
    """The list says since when it is known to be gone, and when that is asked again."""
    async with running(settings(manifests={"serve_deleted": True})) as proxy:
        registry.push("team/app", "v1", OLD)
        await pulled(proxy, TAG)
        assert (await tag(proxy, REFERENCE))["gone"] is None
        del registry.tags["team/app", "v1"]
        proxy.clock.advance(601)
        await pulled(proxy, TAG)
        found = await tag(proxy, REFERENCE)
        assert (found["gone"], found["checked"]) == ("2027-01-15T08:10:01Z", "2027-01-15T08:00:00Z")
        assert (found["state"], found["expires"]) == ("fresh", "2027-01-15T08:20:01Z")


async def test_a_hold_gives_nobody_a_right(settings: MakeSettings, registry: FakeRegistry, tmp_path: Path) -> None:
    """What is held for a private repository is given to those who may read it, and to nobody else."""
    registry.private, registry.passwords = {"team/app": {"robot"}}, {"robot": "wonder"}
    registry.push("team/app", "v1", OLD)
    (tmp_path / "password").write_text("wonder")
    credentials = {"credentials": {"username": "robot", "password_file": str(tmp_path / "password")}}
    async with running(settings(credentials, clusters=EDGE)) as proxy:
        await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
        assert (await proxy.get(TAG, Host="own.test")).body == OLD.manifest
        for answer in (await proxy.get(TAG), await proxy.head(TAG)):
            assert answer.status == 401
            assert OLD.manifest not in answer.body


async def test_holds_and_history_outlive_a_restart(settings: MakeSettings, registry: FakeRegistry) -> None:
    """So does what a purge has taken away."""
    registry.push("team/app", "v1", OLD)
    registry.push("team/app", "v2", OLD)
    clock = ManualClock()
    async with running(settings(), clock) as proxy:
        await pulled(proxy, TAG, "/v2/team/app/manifests/v2")
        await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
        await done(proxy, "DELETE", "tags", reference="team/app:v2")
    registry.push("team/app", "v1", NEW)
    clock.advance(601)
    async with running(settings(), clock) as proxy:
        assert (await proxy.get(TAG)).body == OLD.manifest
        assert names(await tags(proxy)) == [REFERENCE]
        assert [(await tag(proxy, f"team/app:v{n}"))["pulls"] for n in (1, 2)] == [2, 1]


async def test_what_the_file_does_not_name_any_more(
    settings: MakeSettings, registry: FakeRegistry, other: FakeRegistry
) -> None:
    """After a reload without an upstream and a cluster their tags are listed, say why nobody asks, and can go."""
    registry.push("team/app", "v1", OLD)
    other.push("lib/base", "v1", OLD)
    first = settings(clusters=EDGE)
    described = first.upstreams["registry.test"].model_copy(update={"url": other.url, "default": False})
    both = first.model_copy(update={"upstreams": first.upstreams | {"other.test": described}})
    reference = "other.test/lib/base:v1"
    async with running(both) as proxy:
        await pulled(proxy, "/v2/other.test/lib/base/manifests/v1", Host="edge.test")
        await done(proxy, "POST", "tags/hold", f"{reference}@{OLD.digest}")
        await proxy.application.reload(settings())
        (found,) = await tags(proxy, registry="other.test")
        assert (found["state"], found["clusters"]) == ("held", {"edge": 1})
        assert "not configured" in found["unchecked"]
        assert (await call(proxy, "GET", "tags", cluster="edge"))[0] == 400
        assert (await call(proxy, "GET", "tags", reference=reference))[0] == 400
        (refreshed,) = (await done(proxy, "POST", "tags/refresh", "other.test/*"))["tags"]
        assert "not configured" in refreshed["error"]
        stats = await done(proxy, "GET", "stats")
        assert (stats["tags"]["held"], [one["registry"] for one in stats["upstreams"]]) == (1, ["registry.test"])
        assert await proxy.metric("pullthrough_tag_drift") == 0
        assert names((await done(proxy, "POST", "tags/release", "other.test/*"))["tags"]) == [reference]
        assert (await done(proxy, "DELETE", "tags", reference="other.test/*"))["tags"] == [reference]
        assert await tags(proxy) == []
    assert other.count("HEAD", "") == 0


async def test_a_clock_that_was_set_back(proxy: Proxy, registry: FakeRegistry) -> None:
    """Nothing has a negative age, and what lies ahead is not believed to be fresh."""
    registry.push("team/app", "v1", OLD)
    await pulled(proxy, TAG)
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
    proxy.clock.advance(-7200)
    await pulled(proxy, TAG)
    found = await tag(proxy, REFERENCE)
    assert (found["age"], found["pulls"], found["history"][0]["first_seen"]) == (0, 2, "2027-01-15T06:00:00Z")
    assert found["history"][0]["last_seen"] == "2027-01-15T08:00:00Z"
    await done(proxy, "POST", "tags/release", REFERENCE)
    assert (await tag(proxy, REFERENCE))["state"] == "stale"


async def test_times_beyond_the_calendar(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A TTL of a million years ends with the year 9999, as far as it can be said."""
    registry.push("team/app", "v1", OLD)
    async with running(settings(manifests={"tag_ttl": "365000000d"})) as proxy:
        await pulled(proxy, TAG)
        assert (await tag(proxy, REFERENCE))["expires"] == "9999-12-31T23:59:59Z"


async def test_the_proxys_rate_limit_alone(settings: MakeSettings, registry: FakeRegistry, tmp_path: Path) -> None:
    """With `credentials: public` a refresh asks as nobody by HEAD, and pulls what moved with the credential."""
    registry.private, registry.passwords = {"team/app": {"", "robot"}}, {"robot": "wonder"}
    registry.push("team/app", "v1", OLD)
    (tmp_path / "password").write_text("wonder")
    credentials = {"credentials": {"username": "robot", "password_file": str(tmp_path / "password")}}
    async with running(settings(credentials, clusters=[{"name": "default", "credentials": "public"}])) as proxy:
        await pulled(proxy, TAG)
        registry.push("team/app", "v1", NEW)
        registry.seen.clear()
        (found,) = (await done(proxy, "POST", "tags/refresh", REFERENCE))["tags"]
        assert (found["after"], found["error"]) == (NEW.digest, None)
        asked = [
            (seen.method, seen.headers["Authorization"].rpartition("-")[2])
            for seen in registry.seen
            if "Authorization" in seen.headers and seen.path.startswith("/v2/")
        ]
        assert asked == [("HEAD", "anonymous"), ("GET", "robot")]
        assert (await proxy.get(TAG)).body == NEW.manifest
        # Without the cluster that used it the proxy has no right to ask in this way any more.
        await proxy.application.reload(settings(credentials))
        assert "not configured" in (await tag(proxy, REFERENCE))["unchecked"]


# The audit log.


async def test_every_change_leaves_a_line(many: Proxy, audit: list[str]) -> None:
    """What, which, by whom, as one line each; questions and refusals leave none."""
    await done(many, "POST", "tags/hold", f"{APP[0]}@{OLD.digest}")
    await done(many, "POST", "tags/release", APP[0])
    await done(many, "POST", "tags/refresh", "*/app:v[01]")
    await done(many, "DELETE", "tags", reference=BASE[1])
    await done(many, "DELETE", "tags", reference="nothing*")
    assert audit == [
        f"hold {APP[0]}@{OLD.digest} by 127.0.0.1",
        f"release {APP[0]} by 127.0.0.1",
        f"refresh {APP[0]} by 127.0.0.1",
        f"refresh {APP[1]} by 127.0.0.1",
        f"purge {BASE[1]} by 127.0.0.1",
        "purge by 127.0.0.1: 0 tags in all",
    ]
    said = len(audit)
    await tags(many)
    await call(many, "POST", "tags/hold", {"reference": f"{APP[0]}@{wrong_digest(b'x')}"})
    await call(many, "DELETE", "tags", reference="elsewhere.test/app:v1\npurge everything by root")
    await call(many, "POST", "tags/refresh", {"reference": "*\npurge everything by root"})
    assert audit[said:] == []


async def test_a_change_of_many_tags_leaves_some_lines(proxy: Proxy, registry: FakeRegistry, audit: list[str]) -> None:
    """Twenty, and how many there were."""
    for number in range(30):
        registry.push("team/app", f"v{number:02}", OLD)
        await pulled(proxy, f"/v2/team/app/manifests/v{number:02}")
    await done(proxy, "DELETE", "tags", reference="*")
    assert len(audit) == 21
    assert audit[-1] == "purge by 127.0.0.1: 30 tags in all"


# Blobs.


async def test_blobs(proxy: Proxy, registry: FakeRegistry, audit: list[str]) -> None:
    """What is stored, for whom, page by page; one that is removed is fetched again, one that is read is not removed."""
    # More than sockets take while nobody reads.
    image = make_image(16_000_000, 500_000, seed=7)
    registry.push("team/app", "v1", image)
    paths = {digest_of(blob): f"/v2/team/app/blobs/{digest_of(blob)}" for blob in image.blobs}
    await pulled(proxy, *paths.values(), Host="edge.test")
    await proxy.stored(3)
    page = await done(proxy, "GET", "blobs", n=2)
    rest = await done(proxy, "GET", "blobs", last=page["last"])
    found = page["blobs"] + rest["blobs"]
    assert [one["digest"] for one in found] == sorted(paths)
    assert "last" not in rest
    assert {(one["registry"], one["repository"], one["cluster"]) for one in found} == {
        ("registry.test", "team/app", "edge")
    }
    large = digest_of(image.blobs[1])
    assert {one["digest"]: one["size"] for one in found}[large] == 16_000_000
    reader = await Reader.open(proxy, paths[large])
    status, refused = await call(proxy, "DELETE", f"blobs/{large}")
    assert (status, refused["error"]) == (409, f"{large} is being read at present")
    reader.leave()
    async with asyncio.timeout(10):
        while (await call(proxy, "DELETE", f"blobs/{large}"))[0] == 409:
            await asyncio.sleep(0)
    assert audit == [f"remove {large} by 127.0.0.1"]
    assert (await call(proxy, "DELETE", f"blobs/{large}"))[0] == 404
    assert await proxy.metric("pullthrough_cache_blobs") == 2
    assert (await proxy.get(paths[large])).body == image.blobs[1]
    assert registry.record.times_sent(large) == [(0, 16_000_000, 2)]


@pytest.mark.parametrize("path", ["blobs/latest", "blobs/sha256:", "blobs/..%2F..%2Fetc", "blobs/sha256:" + "A" * 64])
async def test_what_is_no_digest_is_no_blob(proxy: Proxy, path: str) -> None:
    """400, and nothing is looked for."""
    assert (await call(proxy, "DELETE", path))[0] in {400, 404}


# Bodies and paths of all kinds.

DEEP = b'{"reference": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"7", b'"docker.io/library/nginx"', b"{}", b'{"reference": null}', b"\xff\xfe",
        b'{"reference": 7}', b'{"reference": ["a"]}', b'{"reference": ""}', b'{"reference": {"a": 1}}', DEEP,
        b"[" * 900 + b"]" * 900, b'{"reference": ' + b"[" * 900 + b"]" * 900 + b"}", b"9" * 5000, b"NaN",
        b'{"reference": "\\ud800"}', b'{"reference": "*\\ud800"}', b'{"reference": "a\\u0000b"}',
        json.dumps({"reference": "*a" * 400_000}).encode(), json.dumps({"reference": "x" * 900_000}).encode(),
        b'{"reference": "elsewhere.test/app:v1"}', b'{"reference": "nginx:"}',
    ],
    ids=lambda body: body[:24].decode(errors="replace"),
)  # fmt: skip
@pytest.mark.parametrize("path", ["tags/refresh", "tags/hold", "tags/release"])
async def test_bodies_that_mean_nothing(proxy: Proxy, registry: FakeRegistry, path: str, body: bytes) -> None:
    """400 and one line, at once, whatever it is; nobody is asked and nothing is changed."""
    status, found = await call(proxy, "POST", path, body)
    assert (status, list(found)) == (400, ["error"])
    assert len(found["error"]) < 300
    assert registry.seen == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 404), ("GET", "tags/", 404), ("GET", "nothing", 404), ("POST", "tags", 404), ("PUT", "tags", 404),
        ("GET", "tags/refresh", 404), ("DELETE", "tags/refresh", 404), ("OPTIONS", "tags", 404),
        ("DELETE", "tags", 400), ("DELETE", "blobs", 404), ("GET", "../../healthz", 404), ("PATCH", "stats", 404),
    ],
)  # fmt: skip
async def test_what_there_is_not(proxy: Proxy, method: str, path: str, status: int) -> None:
    """An error as JSON for every method and path."""
    url = f"{proxy.admin_url}/api/v1/{path}"
    async with proxy.session.request(method, url) as response:
        if "healthz" not in path:
            assert (response.status, list(json.loads(await response.read()))) == (status, ["error"])


async def test_a_head_is_a_get_without_its_body(proxy: Proxy) -> None:
    """With the length of what a GET would bring."""
    async with proxy.session.get(f"{proxy.admin_url}/api/v1/tags") as got:
        length = len(await got.read())
    async with proxy.session.head(f"{proxy.admin_url}/api/v1/tags") as head:
        assert (head.status, int(head.headers["Content-Length"]), await head.read()) == (200, length, b"")
        assert head.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large(proxy: Proxy, chunked: bool) -> None:
    """413, whether it says so at once or not."""
    body = b" " * (1024 * 1024 + 1)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    data = pieces() if chunked else io.BytesIO(body)
    async with proxy.session.post(f"{proxy.admin_url}/api/v1/tags/refresh", data=data) as response:
        assert (response.status, list(json.loads(await response.read()))) == (413, ["error"])


async def test_an_error_nobody_thought_of(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Is 500 as JSON without a word of what it was, and one line in the log."""

    def odd(*_: Any) -> Any:
        raise RuntimeError("odd")

    for place in ("proxy.cache.control.Control.tags", "proxy.server.admin.parse_body"):
        with monkeypatch.context() as patch:
            patch.setattr(place, odd)
            assert await call(proxy, "GET", "tags") == (500, {"error": "the proxy failed to answer this request"})
    assert [record.getMessage() for record in caplog.records] == ["GET /api/v1/tags failed"] * 2


# A store that fails.


async def test_a_store_that_cannot_be_written(
    many: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, audit: list[str]
) -> None:
    """Nothing is said to be in force that is not: 503, or the tag's own error; no audit line says it was done."""
    said = len(audit)
    break_store(many, monkeypatch, "put", "delete")
    for method, path, reference, query in (
        ("POST", "tags/hold", f"{APP[0]}@{OLD.digest}", {}),
        ("POST", "tags/release", BASE[0], {}),
        ("DELETE", "tags", None, {"reference": APP[0]}),
        ("DELETE", "tags", None, {"reference": f"team/app@{OLD.digest}"}),
    ):
        status, found = await call(many, method, path, {"reference": reference}, **query)
        assert (status, found) == (503, {"error": "the metadata cache cannot be written"})
    assert audit[said:] == []
    asked = len(registry.seen)
    (found,) = (await done(many, "POST", "tags/refresh", APP[0]))["tags"]
    assert (found["changed"], found["error"]) == (False, "the metadata cache cannot be written")
    assert len(registry.seen) == asked
    assert (await many.get(TAG)).status == 200


async def test_a_store_that_cannot_be_read(many: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are 503 and not empty; what else there is to tell is told, and clients are served."""
    assert await many.metric("pullthrough_tag_drift") == 1
    many.clock.advance(6)
    break_store(many, monkeypatch, "scan")
    for method, path, query in (
        ("GET", "tags", {}), ("GET", "tags", {"drifted": "true"}), ("DELETE", "tags", {"reference": "*"}),
    ):  # fmt: skip
        assert (await call(many, method, path, **query))[0] == 503
    stats = await done(many, "GET", "stats")
    assert (stats["tags"], len(stats["upstreams"])) == (None, 2)
    assert await many.metric("pullthrough_tag_drift") == 1
    assert (await many.get(TAG)).status == 200


async def test_a_store_that_cannot_be_asked(
    many: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 for whatever goes by what is stored: nobody is told that there is no such tag, or that it was not held."""
    await done(many, "POST", "tags/hold", f"{APP[0]}@{OLD.digest}")
    asked = len(registry.seen)
    with monkeypatch.context() as patch:
        break_store(many, patch, "get")
        for method, path, reference, query in (
            ("GET", "tags", None, {}),
            ("GET", "tags", None, {"reference": APP[0]}),
            ("POST", "tags/refresh", APP[0], {}),
            ("POST", "tags/hold", f"{APP[1]}@{OLD.digest}", {}),
            ("POST", "tags/release", APP[0], {}),
        ):
            body = {"reference": reference} if reference is not None else None
            status, found = await call(many, method, path, body, **query)
            assert (status, found) == (503, {"error": "the metadata cache failed: no disk"})
        many.clock.advance(6)
        assert (await done(many, "GET", "stats"))["tags"] is None
    assert len(registry.seen) == asked
    assert (await tag(many, APP[0]))["state"] == "held"


# Stats.


async def test_many_who_look_at_once_count_once(many: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting reads every tag: browsers and scrapes that come while somebody counts wait for that."""
    store = many.application._records._store
    scanned: list[str] = []
    scan = store.scan

    async def counted(prefix: str, *more: Any) -> list[str]:
        scanned.append(prefix)
        return await scan(prefix, *more)

    monkeypatch.setattr(store, "scan", counted)
    many.clock.advance(6)
    await asyncio.gather(*(done(many, "GET", "stats") for _ in range(5)), many.metric("pullthrough_tag_drift"))
    assert scanned.count("tag/") == 1


async def test_stats(many: Proxy, registry: FakeRegistry) -> None:
    """Clusters with their ratios, upstreams and how they fail, fills, tags."""
    registry.push("team/app", "big", make_image(3_000_000, seed=9))
    blob = make_image(3_000_000, seed=9).blobs[1]
    registry.pause = gate = Gate(1_000_000)
    reader = await Reader.open(many, f"/v2/team/app/blobs/{digest_of(blob)}")
    await gate.reached.wait()
    found = await done(many, "GET", "stats")
    (fill,) = found["fills"]
    assert (fill["digest"], fill["size"], fill["readers"], fill["repository"]) == (
        digest_of(blob), len(blob), 1, "team/app",
    )  # fmt: skip
    assert 0 <= fill["arrived"] < len(blob)
    gate.open()
    assert await reader.rest() == blob
    many.clock.advance(10)
    registry.fault = lambda _: web.Response(status=429, headers={"Retry-After": "60"})
    await many.get("/v2/team/app/manifests/other")
    found = await done(many, "GET", "stats")
    assert found["tags"] | {"drifted_by_registry": 0} == {
        "known": 6, "drifted": 1, "held": 1, "unchecked": 1, "drifted_by_registry": 0,
    }  # fmt: skip
    assert found["workers"] == {"configured": 1, "serving": 1}
    by_name = {one["name"]: one for one in found["clusters"]}
    assert (by_name["edge"]["requests"], by_name["edge"]["hit_ratio"], by_name["own"]["hit_ratio"]) == (3, 0.0, None)
    limited = next(one for one in found["upstreams"] if one["registry"] == "registry.test")
    assert (limited["state"], limited["errors"], limited["failing"][0]["reason"]) == ("limited", 1, "429")
    assert await many.metric('pullthrough_tag_drift{registry="registry.test"}') == 1
    assert await many.metric('pullthrough_tag_drift{registry="other.test"}') == 0


async def test_an_index_can_be_held(proxy: Proxy, registry: FakeRegistry) -> None:
    """What most tags are; its children are had by digest as ever."""
    index = make_index(OLD, NEW)
    registry.push("team/app", "v1", index)
    for image in (OLD, NEW):
        registry.put("team/app", image.media_type, image.manifest)
    await done(proxy, "POST", "tags/hold", f"{REFERENCE}@{index.digest}")
    registry.push("team/app", "v1", THIRD)
    assert (await proxy.get(TAG)).body == index.manifest
    await pulled(proxy, f"/v2/team/app/manifests/{OLD.digest}")


async def test_names_with_ports(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A registry with a port in its name is listed, refreshed and purged by that name, and by its alias."""
    registry.push("team/app", "v1", OLD)
    made = settings({"aliases": ["local"]})
    described = made.upstreams["registry.test"]
    made = made.model_copy(update={"upstreams": {"registry.test:5000": described}})
    async with running(made) as proxy:
        await pulled(proxy, TAG)
        reference = "registry.test:5000/team/app:v1"
        assert names(await tags(proxy)) == [reference]
        assert names([await tag(proxy, "local/team/app:v1"), await tag(proxy, reference)]) == [reference] * 2
        assert (await done(proxy, "POST", "tags/refresh", reference))["tags"][0]["error"] is None
        assert (await done(proxy, "DELETE", "tags", reference=reference))["tags"] == [reference]
        assert await tags(proxy) == []


def test_a_reference_is_a_key_and_back() -> None:
    """Whatever characters registries' names have."""
    from proxy.cache.records import history_key, hold_key, named_in, tag_key

    for registry in ("docker.io", "reg.test:5000", "[::1]:5000"):
        named = (Repository(registry, "a/b"), "v1.0")
        assert [named_in(key(*named)) for key in (tag_key, history_key, hold_key)] == [named] * 3
