"""Age, Cache-Status, OCI-Namespace and Warning of every kind of answer, errors of every class among them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Answer, Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE, OTHER = make_image(5000, seed=1), make_image(5000, seed=2)
TAG = "/v2/team/app/manifests/v1"
MANIFEST = f"/v2/team/app/manifests/{IMAGE.digest}"
BLOB = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}"
LIST = "/v2/team/app/tags/list"
REFERRERS = f"/v2/team/app/referrers/{IMAGE.digest}"
COLD = "/v2/team/app/manifests/cold"
KINDS = {"tag": TAG, "digest": MANIFEST, "blob": BLOB, "list": LIST}
UPLOADS = "/v2/team/app/blobs/uploads/"

CLUSTERS = [
    {"name": "edge", "mode": "metadata-only", "match": {"hosts": ["edge.test"]}},
    {"name": "closed", "match": {"hosts": ["closed.test"]}, "repositories": ["registry.test/other/*"]},
    {"name": "default", "push": "forward"},
]


@pytest.fixture
async def proxy(settings: Callable[..., Settings], registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy of all kinds of clusters; back-off steps have no jitter."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(clusters=CLUSTERS)) as started:
        started.application._learnt.circuits._jitter = lambda: 0.5
        yield started


@dataclass(frozen=True)
class Said:
    """What an answer says of itself; `warning` is a part of it."""

    status: int
    state: str
    age: int | None = None
    warning: str | None = None


def said(answer: Answer) -> Said:
    assert answer.headers["OCI-Namespace"] == "registry.test"
    age = answer.headers.get("Age")
    return Said(answer.status, answer.state, int(age) if age is not None else None, answer.headers.get("Warning"))


def agrees(answer: Answer, expected: Said) -> bool:
    """Does it say that? The Warning only has to hold the words."""
    found = said(answer)
    words = expected.warning
    right = found.warning is None if words is None else words in (found.warning or "")
    return right and (found.status, found.state, found.age) == (expected.status, expected.state, expected.age)


def hit(status: int = 200, age: int = 0, ttl: int | None = None) -> Said:
    return Said(status, "pullthrough; hit" + (f"; ttl={ttl}" if ttl is not None else ""), age)


async def warm(proxy: Proxy) -> None:
    for path in KINDS.values():
        assert (await proxy.get(path)).status == 200
    await proxy.stored(1)


@pytest.mark.parametrize("kind", KINDS)
async def test_from_the_upstream(proxy: Proxy, kind: str) -> None:
    """What was not here was fetched and stored; it is not old."""
    assert agrees(await proxy.get(KINDS[kind]), Said(200, "pullthrough; fwd=miss; stored", 0))


@pytest.mark.parametrize("kind", KINDS)
async def test_from_here(proxy: Proxy, kind: str) -> None:
    """A hit, with its age; tags and lists have an end. HEAD says the same as GET, a range as the whole."""
    await warm(proxy)
    proxy.clock.advance(60)
    ttl = 540 if kind in {"tag", "list"} else None
    assert agrees(await proxy.get(KINDS[kind]), hit(age=60, ttl=ttl))
    if kind != "list":
        assert agrees(await proxy.head(KINDS[kind]), hit(age=60, ttl=ttl))
    if kind == "blob":
        assert agrees(await proxy.get(BLOB, Range="bytes=10-19"), hit(206, 60))
        assert agrees(await proxy.get(BLOB, Range="bytes=99999-"), hit(416, 60))


@pytest.mark.parametrize(("kind", "ttl"), [("tag", "; ttl=600"), ("digest", ""), ("blob", "")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_checked(proxy: Proxy, kind: str, ttl: str, method: str) -> None:
    """What has ended, or whose reader has to be proved again, and is the same: as young as the answer."""
    await warm(proxy)
    proxy.clock.advance(601)
    expected = Said(200, f"pullthrough; fwd=stale; fwd-status=200{ttl}", 0)
    assert agrees(await proxy.get(KINDS[kind], method), expected)


@pytest.mark.parametrize(("kind", "words"), [("tag", "v1 was last checked 601 s ago"), ("list", "fetched 601 s ago")])
@pytest.mark.parametrize(("status", "reason"), [(503, "5xx"), (429, "429"), (None, "connect")])
async def test_stale(
    proxy: Proxy, registry: FakeRegistry, kind: str, words: str, status: int | None, reason: str
) -> None:
    """After an attempt, and during the back-off after that; with a Warning both times, also on HEAD."""
    await warm(proxy)
    proxy.clock.advance(601)
    if status is None:
        await registry.stop()
    registry.fault = lambda request: web.Response(status=status or 500)
    first = Said(200, f"pullthrough; fwd=stale; detail=stale-{reason}", 601, words)
    assert agrees(await proxy.get(KINDS[kind]), first)
    again = Said(200, f"pullthrough; hit; ttl=-1; detail=stale-{reason}", 601, words)
    assert agrees(await proxy.get(KINDS[kind]), again)
    if kind == "tag":
        assert agrees(await proxy.head(TAG), again)


async def test_moved(proxy: Proxy, registry: FakeRegistry) -> None:
    """A tag that is known to be another one upstream says which."""
    await warm(proxy)
    registry.push("team/app", "v1", OTHER)
    proxy.clock.advance(301)
    for method in ("GET", "HEAD"):
        expected = Said(200, "pullthrough; hit; ttl=299", 301, f"v1 is {OTHER.digest} upstream")
        assert agrees(await proxy.get(TAG, method), expected)


@pytest.mark.parametrize("path", [*KINDS.values(), REFERRERS])
@pytest.mark.parametrize(
    ("upstream", "status", "state"),
    [
        (401, 401, "fwd=miss; fwd-status=401"),
        (403, 403, "fwd=miss; fwd-status=403"),
        (404, 404, "fwd=miss; fwd-status=404"),
        (400, 400, "fwd=miss; fwd-status=400"),
        (429, 429, "fwd=miss; fwd-status=429; detail=upstream-429"),
        (500, 502, "fwd=miss; fwd-status=500; detail=upstream-5xx"),
        (503, 502, "fwd=miss; fwd-status=503; detail=upstream-5xx"),
        (None, 502, "fwd=miss; detail=upstream-connect"),
    ],
)
async def test_errors_of_the_upstream(
    proxy: Proxy, registry: FakeRegistry, path: str, upstream: int | None, status: int, state: str
) -> None:
    """What it answered, and of which class that is; no age, since nothing is kept. HEAD and GET agree."""
    registry.fault = lambda request: web.Response(status=upstream or 500)
    if upstream is None:
        await registry.stop()
    assert agrees(await proxy.get(path), Said(status, f"pullthrough; {state}"))
    if "tags" in path or "referrers" in path:
        return
    proxy.clock.advance(3600)
    assert agrees(await proxy.head(path), Said(status, f"pullthrough; {state}"))


@pytest.mark.parametrize("path", [TAG, MANIFEST, LIST])
async def test_an_invalid_answer(proxy: Proxy, registry: FakeRegistry, path: str) -> None:
    """200 with what is no such thing is a failure, and the 200 is told."""
    registry.fault = lambda request: web.Response(text="<html>", content_type="text/html")
    assert agrees(await proxy.get(path), Said(502, "pullthrough; fwd=miss; fwd-status=200; detail=upstream-5xx"))


async def test_silence(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """No answer has no status."""
    release = asyncio.Event()

    async def silent(_request: web.BaseRequest) -> web.StreamResponse:
        await release.wait()
        return web.Response(status=503)

    registry.answer = silent  # type: ignore[method-assign,assignment]
    async with running(settings({"read_timeout": "50ms"})) as proxy:
        assert agrees(await proxy.get(TAG), Said(504, "pullthrough; fwd=miss; detail=upstream-timeout"))
        release.set()


@pytest.mark.parametrize("path", [COLD, f"/v2/team/app/blobs/{digest_of(b'none')}", "/v2/team/none/tags/list"])
async def test_a_404_that_is_remembered(proxy: Proxy, path: str) -> None:
    """It is a hit, with its age and what is left of it."""
    assert agrees(await proxy.get(path), Said(404, "pullthrough; fwd=miss; fwd-status=404"))
    proxy.clock.advance(3)
    assert agrees(await proxy.get(path), Said(404, "pullthrough; hit; ttl=7; detail=negative", 3))
    if "tags" not in path:
        assert agrees(await proxy.head(path), Said(404, "pullthrough; hit; ttl=7; detail=negative", 3))
    assert await proxy.metric('pullthrough_requests_total{cache="hit"') > 0
    proxy.clock.advance(7)
    assert agrees(await proxy.get(path), Said(404, "pullthrough; fwd=miss; fwd-status=404"))


@pytest.mark.parametrize(
    ("upstream", "status", "reason"), [(429, 429, "429"), (503, 502, "5xx"), (None, 502, "connect")]
)
async def test_a_circuit_that_leaves_the_upstream_alone(
    proxy: Proxy, registry: FakeRegistry, upstream: int | None, status: int, reason: str
) -> None:
    """Says so: nothing was forwarded, and nothing was here; and when to come again."""
    registry.fault = lambda request: web.Response(status=upstream or 500)
    if upstream is None:
        await registry.stop()
    await proxy.get(COLD)
    asked = len(registry.seen)
    for method in ("GET", "HEAD"):
        alone = await proxy.get(COLD, method)
        assert agrees(alone, Said(status, f"pullthrough; detail=left-alone-{reason}"))
        assert alone.headers["Retry-After"] == "1"
    assert len(registry.seen) == asked


async def test_past_the_cache(proxy: Proxy, registry: FakeRegistry, storage: FakeStorage) -> None:
    """metadata-only: redirects, streams and errors go past it; the upstream's status is told of errors."""

    async def edge(path: str = BLOB, **headers: Any) -> Answer:
        return await proxy.get(path, Host="edge.test", **headers)

    assert agrees(await edge(), Said(200, "pullthrough; fwd=bypass; detail=metadata-only"))
    registry.storage, storage.blobs = storage, {digest_of(IMAGE.blobs[1]): IMAGE.blobs[1]}
    assert agrees(await edge(), Said(307, "pullthrough; fwd=bypass; detail=metadata-only"))
    none = f"/v2/team/app/blobs/{digest_of(b'none')}"
    assert agrees(await edge(none), Said(404, "pullthrough; fwd=bypass; fwd-status=404; detail=metadata-only"))
    assert agrees(await edge(none), Said(404, "pullthrough; hit; ttl=10; detail=negative", 0))
    registry.fault = lambda request: web.Response(status=429)
    assert agrees(await edge(), Said(429, "pullthrough; fwd=bypass; fwd-status=429; detail=upstream-429"))
    assert agrees(await edge(), Said(429, "pullthrough; detail=left-alone-429"))
    assert agrees(await proxy.head(BLOB, Host="edge.test"), Said(200, "pullthrough; hit", 0))


async def test_pushes(proxy: Proxy, registry: FakeRegistry) -> None:
    """All of them go past it, and errors have the upstream's status."""
    registry.fault = lambda request: web.Response(status=202, headers={"Location": f"{UPLOADS}1"})
    assert agrees(await proxy.get(UPLOADS, "POST"), Said(202, "pullthrough; fwd=bypass; detail=push"))
    for upstream, status, detail in ((401, 401, "push"), (404, 404, "push"), (503, 502, "upstream-5xx")):
        registry.fault = lambda request, upstream=upstream: web.Response(status=upstream)
        expected = Said(status, f"pullthrough; fwd=bypass; fwd-status={upstream}; detail={detail}")
        assert agrees(await proxy.get(UPLOADS, "POST"), expected)
    await registry.stop()
    assert agrees(await proxy.get(UPLOADS, "POST"), Said(502, "pullthrough; fwd=bypass; detail=upstream-connect"))


async def test_what_never_comes_to_the_cache(proxy: Proxy, registry: FakeRegistry) -> None:
    """Refused before that: the registry it was for, and no word of a cache."""
    refused = await proxy.get(TAG, Host="closed.test")
    assert (refused.status, refused.headers["OCI-Namespace"]) == (404, "registry.test")
    assert "Cache-Status" not in refused.headers
    unknown = await proxy.get(f"{TAG}?ns=unknown.test")
    assert unknown.status == 404
    assert not {"OCI-Namespace", "Cache-Status"} & set(unknown.headers)
    assert "Cache-Status" not in (await proxy.get("/v2/")).headers
    assert registry.seen == []


async def test_an_error_tells_nobody_what_is_here(proxy: Proxy, registry: FakeRegistry) -> None:
    """Who is refused is told the same of what is cached and of what is not."""
    await warm(proxy)
    registry.private = {"team/app": {"alice"}}
    proxy.clock.advance(601)
    absent = {TAG: COLD, MANIFEST: f"/v2/team/app/manifests/{OTHER.digest}", BLOB: f"/v2/team/app/blobs/{OTHER.digest}"}
    for here, not_here in absent.items():
        found = [said(await proxy.get(path, Authorization="Bearer wrong")) for path in (here, not_here)]
        assert found == [Said(401, "pullthrough; fwd=miss; fwd-status=401")] * 2
