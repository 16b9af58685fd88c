"""Answers that look like the upstream's word on somebody's rights, and are none; and refusals that count at once."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import ClientPayloadError, web

from proxy.settings import Settings
from tests.fakes.acts import Act
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage, error
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, put, until

IMAGE = make_image(5000, seed=77)
LAYER = IMAGE.blobs[1]
LARGE = random_bytes(2 * MIB, 99)
MANIFEST, BLOB = "/v2/team/app/manifests/v1", f"/v2/team/app/blobs/{digest_of(LAYER)}"
ALICE = {"Authorization": "Bearer alice"}


def page_for_nobody(request: web.BaseRequest) -> web.Response | None:
    """A registry behind a gateway that answers whoever is not logged in with a page."""
    if "Authorization" in request.headers:
        return None
    return web.Response(text="<html>log in</html>", content_type="text/html")


async def warm(proxy: Proxy) -> None:
    """Alice has pulled the image."""
    for path in (MANIFEST, BLOB):
        assert (await proxy.get(path, **ALICE)).status == 200
    await proxy.stored(1)


async def test_a_list_proves_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """Who may list tags and not pull is given the list, from the cache too, and no content."""
    registry.push("team/app", "v1", IMAGE)
    registry.fault = lambda request: (
        error(403, "DENIED")
        if request.headers.get("Authorization") == "Bearer lister" and "/tags/" not in request.path
        else None
    )
    await warm(proxy)
    lister = {"Authorization": "Bearer lister"}
    for _ in range(2):
        assert (await proxy.get("/v2/team/app/tags/list", **lister)).status == 200
    assert registry.count("GET", "/tags/") == 1
    assert [(await proxy.get(path, **lister)).status for path in (MANIFEST, BLOB)] == [403, 403]


async def test_a_page_to_log_in_at_is_no_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """200 with a page instead of a blob's head opens neither the blob nor its repository."""
    registry.push("team/app", "v1", IMAGE)
    registry.fault = page_for_nobody
    await warm(proxy)
    assert [(await proxy.get(path)).status for path in (BLOB, MANIFEST, BLOB)] == [502, 502, 502]


async def test_a_page_to_log_in_at_is_no_fill(proxy: Proxy, registry: FakeRegistry) -> None:
    """The same of a blob that nobody has had, and it stays as it is for those who may have it."""
    registry.push("team/app", "v1", IMAGE)
    registry.fault = page_for_nobody
    assert (await proxy.get(BLOB)).status == 502
    await warm(proxy)
    assert (await proxy.get(BLOB)).status == 502


async def test_wrong_bytes_are_no_proof(proxy: Proxy, registry: FakeRegistry) -> None:
    """A body that was not what its digest names gives no right to what is; a head of another length neither."""
    registry.push("team/app", "v1", IMAGE)
    other = {"Content-Type": "application/octet-stream"}
    registry.fault = lambda request: (
        None if "Authorization" in request.headers else web.Response(body=b"x" * 100, headers=other)
    )
    with pytest.raises(ClientPayloadError):
        await proxy.get(BLOB)
    proxy.clock.advance(60)
    await warm(proxy)
    for path in (BLOB, MANIFEST):
        assert (await proxy.get(path)).status == 502


async def test_an_address_that_nobody_looked_at_makes_no_member(
    settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage
) -> None:
    """metadata-only: an upstream that signs addresses without looking. The other cluster is not served by that."""
    registry.push("team/app", "v1", IMAGE)
    address = storage.address(digest_of(LAYER))
    registry.fault = lambda request: (
        web.Response(status=307, headers={"Location": address}) if "/eve/" in request.path else None
    )
    clusters = [
        {"name": "redirecting", "mode": "metadata-only", "match": {"hosts": ["redirecting.test"]}},
        {"name": "default"},
    ]
    async with running(settings(clusters=clusters)) as proxy:
        assert (await proxy.get(BLOB)).status == 200
        await proxy.stored(1)
        path = f"/v2/eve/app/blobs/{digest_of(LAYER)}"
        assert (await proxy.get(path, Host="redirecting.test")).status == 307
        assert (await proxy.get(path)).status == 404


async def test_a_head_of_a_blob_does_not_change_a_manifests_type(proxy: Proxy, registry: FakeRegistry) -> None:
    """Whoever asks for a manifest among the blobs leaves its Content-Type as it is."""
    registry.push("team/app", "v1", IMAGE)
    before = (await proxy.get(MANIFEST)).headers["Content-Type"]
    assert (await proxy.head(f"/v2/team/app/blobs/{IMAGE.digest}")).status == 200
    assert (await proxy.get(MANIFEST)).headers["Content-Type"] == before


async def test_a_part_of_a_blob_does_not_change_a_manifests_size(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """metadata-only: whoever asks for a part of a manifest among the blobs leaves its Content-Length as it is."""
    registry.push("team/app", "v1", IMAGE)
    path = f"/v2/team/app/manifests/{IMAGE.digest}"
    async with running(settings(clusters=[{"name": "default", "mode": "metadata-only"}])) as proxy:
        before = (await proxy.head(path)).headers["Content-Length"]
        part = await proxy.get(f"/v2/team/app/blobs/{IMAGE.digest}", Range="bytes=0-1")
        assert (part.status, part.body) == (206, IMAGE.manifest[:2])
        assert (await proxy.head(path)).headers["Content-Length"] == before


async def test_nobody_is_served_on_by_an_outage_of_his_own_making(proxy: Proxy, registry: FakeRegistry) -> None:
    """Some registries answer 500 to tokens they cannot parse: that is no outage for whoever has lost a right."""
    registry.private = {"team/app": {""}}
    registry.push("team/app", "v1", IMAGE)
    path = f"/v2/team/app/manifests/{IMAGE.digest}"
    assert (await proxy.get(path)).status == 200
    registry.private = {"team/app": {"alice"}}
    registry.revoke_tokens()
    crash = {"Authorization": "Bearer crash"}
    registry.fault = lambda request: (
        error(500, "UNKNOWN") if request.headers.get("Authorization") == crash["Authorization"] else None
    )
    proxy.clock.advance(12 * 3600)
    assert (await proxy.get(path, **crash)).status == 502
    assert (await proxy.get(path)).status == 401


async def test_in_an_outage_each_asks_once_a_step(proxy: Proxy, registry: FakeRegistry) -> None:
    """What others met is no answer to a right that has lapsed; what one met itself is, for as long as any circuit."""
    registry.push("team/app", "v1", IMAGE)
    path = f"/v2/team/app/manifests/{IMAGE.digest}"
    nodes = [{"Authorization": f"Bearer node-{number}"} for number in range(3)]
    for node in nodes:
        assert (await proxy.get(path, **node)).status == 200
    registry.fault = lambda request: error(500, "UNKNOWN")
    proxy.clock.advance(3600)
    registry.seen.clear()
    for _ in range(4):
        for node in nodes:
            assert (await proxy.get(path, **node)).body == IMAGE.manifest
    assert len(registry.seen) == len(nodes)


async def test_what_was_refused_does_not_tell_what_is_cached(proxy: Proxy, registry: FakeRegistry) -> None:
    """The upstream's own code comes with a GET only, which is not how it is asked for what is here."""
    registry.push("team/app", "v1", IMAGE)
    registry.fault = lambda request: (
        error(400, "DENIED") if request.headers.get("Authorization") == "Bearer eve" else None
    )
    await warm(proxy)
    eve = {"Authorization": "Bearer eve"}
    cached = await proxy.get(f"/v2/team/app/manifests/{IMAGE.digest}", **eve)
    absent = await proxy.get(f"/v2/team/app/manifests/{digest_of(b'nobody has this')}", **eve)
    assert (cached.status, cached.body) == (absent.status, absent.body)


async def test_an_authorization_that_is_no_text_is_nobodys(proxy: Proxy, registry: FakeRegistry) -> None:
    """It would go out as something else than it came: 400, and the upstream is not asked."""
    host, _, port = proxy.url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"GET {MANIFEST} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: ".encode()
    writer.write(head + b"Bearer to\xff\xfeken\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert registry.seen == []


@pytest.mark.usefixtures("quick")
async def test_a_refusal_in_the_middle_of_a_fill_ends_the_proof(proxy: Proxy, registry: FakeRegistry) -> None:
    """Another reader's rights bring the rest; whoever was refused meanwhile is refused."""
    registry.private = {"team/app": {"alice"}}
    path = put(registry, LARGE)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate, fin_at=MIB)]
    one, two = (f"Bearer {registry.token('alice', 'team/app')}" for _ in range(2))
    first = asyncio.create_task(proxy.get(path, Authorization=one))
    await gate.reached.wait()
    async with proxy.session.get(proxy.url + path, headers={"Authorization": two}) as second:
        registry.revoke(one.removeprefix("Bearer "))
        gate.open()
        assert await second.read() == LARGE
    await first
    assert (await proxy.get(path, Authorization=one)).status == 401


@pytest.mark.usefixtures("quick")
async def test_who_is_not_vouched_for_lends_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """A reader from another repository waits for its own answer: the fill of others does not ask with its rights."""
    registry.private = {"team/app": {"alice"}, "eve/app": {"eve"}}
    path = put(registry, LARGE)
    gate, slow, asked = Gate(MIB), asyncio.Event(), registry.answer
    registry.script = [Act(gate=gate, fin_at=MIB)]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "HEAD" and "/eve/" in request.path:
            await slow.wait()
        return await asked(request)

    registry.answer = answer  # type: ignore[method-assign]
    one, last = (f"Bearer {registry.token('alice', 'team/app')}" for _ in range(2))
    first = asyncio.create_task(proxy.get(path, Authorization=one))
    await gate.reached.wait()
    eve = {"Authorization": f"Bearer {registry.token('eve', 'eve/app')}"}
    evil = asyncio.create_task(proxy.get(f"/v2/eve/app/blobs/{digest_of(LARGE)}", **eve))
    await until(lambda: registry.count("HEAD", "/eve/") == 1)
    async with proxy.session.get(proxy.url + path, headers={"Authorization": last}) as third:
        registry.revoke(one.removeprefix("Bearer "))
        gate.open()
        assert await third.read() == LARGE
    assert registry.count("GET", "/eve/") == 0
    slow.set()
    assert (await evil).status == 404
    await first
    assert (await proxy.get(path, Authorization=one)).status == 401


async def test_nobody_waits_for_strangers_to_be_refused(proxy: Proxy, registry: FakeRegistry) -> None:
    """The first fill is still unanswered while all others are refused, and while whoever may have it is let in."""
    registry.private = {"team/app": {"alice"}}
    path, held, asked = put(registry, LARGE), asyncio.Event(), registry.answer

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Bearer no0":
            await held.wait()
        return await asked(request)

    registry.answer = answer  # type: ignore[method-assign]
    first = asyncio.create_task(proxy.get(path, Authorization="Bearer no0"))
    await until(lambda: len(registry.seen) == 1)
    strangers = [proxy.get(path, Authorization=f"Bearer no{number}") for number in range(1, 30)]
    assert {answer.status for answer in await asyncio.gather(*strangers)} == {401}
    token = registry.token("alice", "team/app")
    alice = asyncio.create_task(proxy.get(path, Authorization=f"Bearer {token}"))
    await until(lambda: any(seen.headers.get("Authorization") == f"Bearer {token}" for seen in registry.seen))
    held.set()
    assert (await alice).body == LARGE
    assert (await first).status == 401
