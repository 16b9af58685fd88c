"""Pushes of a cluster with `push: forward`: streamed to the upstream, and seen by the next pull."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web

from tests.fakes.content import Image, digest_of, make_image, random_bytes
from tests.fakes.proxy import Answer, Proxy, running
from tests.fakes.pushable import PushableRegistry
from tests.fakes.reader import Reader
from tests.fakes.server import FakeServer, Gate
from tests.scenarios.conftest import MakeSettings
from tests.scenarios.fills import MIB, until

ONE, TWO = make_image(1000, seed=1), make_image(1000, seed=2)
CLUSTERS = [
    {"name": "edge", "mode": "metadata-only", "push": "forward", "match": {"hosts": ["edge.test"]}},
    {"name": "closed", "match": {"hosts": ["closed.test"]}},
    {"name": "default", "push": "forward"},
]
REPOSITORY = "/v2/team/app"


@pytest.fixture
def registry(pushable: PushableRegistry) -> PushableRegistry:
    """A registry that takes pushes."""
    return pushable


@pytest.fixture
async def proxy(settings: MakeSettings) -> AsyncIterator[Proxy]:
    """A proxy with clusters that may push, and one that may not."""
    async with running(settings(clusters=CLUSTERS)) as started:
        yield started


@pytest.fixture
async def impatient(settings: MakeSettings) -> AsyncIterator[Proxy]:
    """One that waits for no client for long, and takes no large bodies."""
    limits = {"body_timeout": "400ms", "max_body_size": "4MiB", "max_upload_size": "6MiB"}
    async with running(settings(clusters=CLUSTERS, limits=limits)) as started:
        yield started


async def send(proxy: Proxy, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """One request with a body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with proxy.session.request(
        method, proxy.url + path, data=io.BytesIO(body) if body else None, headers=named, allow_redirects=False
    ) as response:
        assert response.reason != "the upstream's own words"
        return Answer(response.status, response.headers, await response.read())


def with_digest(location: str, content: bytes) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest_of(content)}"


async def push_blob(proxy: Proxy, content: bytes, repository: str = REPOSITORY, query: str = "") -> Answer:
    begun = await send(proxy, "POST", f"{repository}/blobs/uploads/{query}")
    assert begun.status == 202
    return await send(proxy, "PUT", with_digest(begun.headers["Location"], content), content)


async def push_manifest(proxy: Proxy, image: Image, reference: str, **headers: str) -> Answer:
    path = f"{REPOSITORY}/manifests/{reference}"
    return await send(proxy, "PUT", path, image.manifest, Content_Type=image.media_type, **headers)


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(proxy.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def begin(
    proxy: Proxy, *headers: str, method: str = "PATCH"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open an upload and send the head of a request with a body for it."""
    location = (await send(proxy, "POST", f"{REPOSITORY}/blobs/uploads/")).headers["Location"]
    reader, writer = await connect(proxy)
    writer.write("\r\n".join([f"{method} {location} HTTP/1.1", "Host: x", *headers, "", ""]).encode())
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(10):
        return int((await reader.readuntil(b"\r\n\r\n")).split()[1])


@pytest.mark.parametrize("host", ["x", "edge.test"])
@pytest.mark.parametrize(
    ("prefix", "query"),
    [("", ""), ("registry.test/", ""), ("", "?ns=registry.test"), ("registry.test/", "?ns=registry.test")],
)
async def test_an_image_is_pushed(proxy: Proxy, registry: PushableRegistry, host: str, prefix: str, query: str) -> None:
    """Chunk by chunk, by whichever way the registry is named: addresses lead back the same way, and pulls see it."""
    repository = f"/v2/{prefix}team/app"
    for blob in ONE.blobs:
        begun = await send(proxy, "POST", f"{repository}/blobs/uploads/{query}", Host=host)
        assert begun.status == 202
        assert begun.headers["Location"].startswith(f"{repository}/blobs/uploads/session-")
        assert ("ns=registry.test" in begun.headers["Location"]) == bool(query)
        assert begun.headers["OCI-Chunk-Min-Length"] == "1024"
        first = await send(
            proxy, "PATCH", begun.headers["Location"], blob[:50], Host=host, Content_Range="0-49",
            Content_Type="application/octet-stream",
        )  # fmt: skip
        assert (first.status, first.headers["Range"]) == (202, "0-49")
        state = await send(proxy, "GET", first.headers["Location"], Host=host)
        assert (state.status, state.headers["Range"]) == (204, "0-49")
        last = await send(proxy, "PUT", with_digest(state.headers["Location"], blob), blob[50:], Host=host)
        assert (last.status, last.state) == (201, "pullthrough; fwd=bypass; detail=push")
        pulled = await proxy.get(last.headers["Location"], Host=host)
        assert (pulled.status, pulled.body) == (200, blob)
    path = f"{repository}/manifests/v1{query}"
    done = await send(proxy, "PUT", path, ONE.manifest, Host=host, Content_Type=ONE.media_type)
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, ONE.digest)
    assert done.headers["Location"] == f"{repository}/manifests/{ONE.digest}{query}"
    assert (await proxy.get(path, Host=host)).body == ONE.manifest
    assert {seen.query.count("ns=") for seen in registry.seen} == {0}
    assert await proxy.metric('pullthrough_requests_total{cache="pass"') >= 9
    assert await proxy.metric('pullthrough_upstream_requests_total{kind="push"') == 9


async def test_pushes_are_denied_unless_they_are_forwarded(proxy: Proxy, registry: PushableRegistry) -> None:
    """405 with what is allowed, and nothing reaches the upstream."""
    for method, path, allowed in (
        ("POST", f"{REPOSITORY}/blobs/uploads/", ""),
        ("PUT", f"{REPOSITORY}/manifests/v1", "GET, HEAD"),
        ("DELETE", f"{REPOSITORY}/blobs/{ONE.digest}", "GET, HEAD"),
    ):
        answer = await send(proxy, method, path, b"x" * 100_000, Host="closed.test")
        assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "UNSUPPORTED", allowed)
    assert not registry.seen


async def test_bodies_are_sent_as_they_come(proxy: Proxy, registry: PushableRegistry) -> None:
    """The upstream has the first bytes while the last are not sent yet; chunked stays chunked, a length stays one."""
    for header, start, end in (
        (f"Content-Length: {2 * MIB}", b"x" * MIB, b"y" * MIB),
        (
            "Transfer-Encoding: chunked",
            b"%x\r\n%b\r\n" % (MIB, b"x" * MIB),
            b"%x\r\n%b\r\n0\r\n\r\n" % (MIB, b"y" * MIB),
        ),
    ):
        reader, writer = await begin(proxy, header)
        writer.write(start)
        await until(lambda: MIB in map(len, registry.uploads.values()))
        writer.write(end)
        assert await status_of(reader) == 202
        writer.close()
        assert registry.seen[-1].headers.get("Content-Length") == (str(2 * MIB) if "Length" in header else None)
        assert registry.uploads.popitem()[1] == b"x" * MIB + b"y" * MIB


async def test_an_upstream_that_takes_nothing_holds_its_client_back(proxy: Proxy, registry: PushableRegistry) -> None:
    """What a client may send ahead of the upstream is what sockets hold, and no blob."""
    registry.arrived = Gate(1)
    size = 256 * MIB
    _, writer = await begin(proxy, f"Content-Length: {size}")
    sent, piece = 0, bytes(MIB)
    try:
        while sent < size:
            async with asyncio.timeout(1):
                writer.write(piece)
                await writer.drain()
            sent += MIB
    except TimeoutError:
        pass
    writer.transport.abort()
    assert sent < 64 * MIB
    registry.arrived.open()
    await until(lambda: registry.broken == 1)


async def test_a_client_that_waits_to_be_told_is_told(proxy: Proxy, registry: PushableRegistry) -> None:
    """`Expect: 100-continue`: 100 once there is somewhere to send it to, then the answer."""
    reader, writer = await begin(proxy, "Content-Length: 5", "Expect: 100-continue")
    assert await status_of(reader) == 100
    writer.write(b"12345")
    assert await status_of(reader) == 202
    writer.close()
    await registry.stop()
    reader, writer = await connect(proxy)
    writer.write(
        f"PUT {REPOSITORY}/manifests/v1 HTTP/1.1\r\nHost: x\r\n".encode()
        + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )
    assert await status_of(reader) == 502
    writer.close()


async def test_a_client_of_http_1_0_is_not_told(proxy: Proxy) -> None:
    """It would take `100 Continue` for the answer."""
    location = (await send(proxy, "POST", f"{REPOSITORY}/blobs/uploads/")).headers["Location"]
    reader, writer = await connect(proxy)
    head = f"PATCH {location} HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    writer.write(head.encode() + b"12345")
    assert await status_of(reader) == 202
    writer.close()


async def test_a_client_that_leaves_midway(proxy: Proxy, registry: PushableRegistry) -> None:
    """The upstream's body breaks off too, with and without a length: nothing that is incomplete looks complete."""
    for header, start in (
        ("Content-Length: 100", b"x" * 50),
        ("Transfer-Encoding: chunked", b"32\r\n%b\r\n" % (b"x" * 50)),
    ):
        broken = registry.broken
        _, writer = await begin(proxy, header)
        writer.write(start)
        await until(lambda: 50 in map(len, registry.uploads.values()))
        writer.close()
        await until(lambda before=broken: registry.broken == before + 1)  # type: ignore[misc]
        registry.uploads.clear()


async def test_a_client_that_sends_no_more(impatient: Proxy, registry: PushableRegistry) -> None:
    """408 when it stops in a body, and the upstream's connection ends."""
    reader, writer = await begin(impatient, "Content-Length: 100")
    writer.write(b"x" * 50)
    assert await status_of(reader) == 408
    writer.close()
    await until(lambda: registry.broken == 1)
    assert await impatient.metric('pullthrough_client_refusals_total{reason="body-timeout"}') == 1
    assert await impatient.metric('pullthrough_upstream_requests_total{kind="push",method="PATCH"') == 0


async def test_a_client_that_sends_byte_by_byte(impatient: Proxy, registry: PushableRegistry) -> None:
    """408 all the same: a MiB, or the rest, has its time, and not each byte."""
    reader, writer = await begin(impatient, "Content-Length: 100")
    answer = asyncio.create_task(status_of(reader))
    for _ in range(50):
        writer.write(b"x")
        await asyncio.wait([answer], timeout=0.05)
        if answer.done():
            break
    assert await answer == 408
    writer.close()
    await until(lambda: registry.broken == 1)


async def test_a_body_that_is_not_what_its_head_says(impatient: Proxy, registry: PushableRegistry) -> None:
    """After chunks that are none nothing more comes: an error, and never a whole upload."""
    reader, writer = await begin(impatient, "Transfer-Encoding: chunked")
    writer.write(b"5\r\nhello\r\n")
    await until(lambda: 5 in map(len, registry.uploads.values()))
    writer.write(b"zz\r\n")
    assert await status_of(reader) in {400, 408}
    writer.close()
    await until(lambda: registry.broken == 1)
    assert await impatient.metric('pullthrough_upstream_requests_total{kind="push",method="PATCH"') == 0


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
async def test_bodies_that_are_too_long(impatient: Proxy, registry: PushableRegistry, chunked: bool) -> None:
    """413, for manifests and for blobs by a limit of their own; nothing of it is there afterwards."""

    async def pieces(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 256 * 1024):
            yield content[start : start + 256 * 1024]

    async def put(path: str, size: int) -> Answer:
        content = bytes(size)
        data = pieces(content) if chunked else io.BytesIO(content)
        async with impatient.session.put(impatient.url + path, data=data) as response:
            return Answer(response.status, response.headers, await response.read())

    begun = await send(impatient, "POST", f"{REPOSITORY}/blobs/uploads/")
    upload = with_digest(begun.headers["Location"], bytes(6 * MIB + 1))
    for path, size in ((f"{REPOSITORY}/manifests/v1", 4 * MIB + 1), (upload, 6 * MIB + 1)):
        answer = await put(path, size)
        assert (answer.status, answer.code) == (413, "SIZE_INVALID")
    assert await impatient.metric('pullthrough_client_refusals_total{reason="body-size"}') == 2
    assert not registry.tags
    assert (await push_blob(impatient, bytes(6 * MIB))).status == 201


async def test_a_blob_may_have_any_size(proxy: Proxy) -> None:
    """Unless there is a limit for it: that of other bodies is not."""
    blob = random_bytes(9 * MIB, 7)
    assert (await push_blob(proxy, blob)).status == 201
    assert (await proxy.get(f"{REPOSITORY}/blobs/{digest_of(blob)}")).body == blob


async def test_an_upstream_that_does_not_answer(
    proxy: Proxy, registry: PushableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """504 when nothing comes after the last byte, and 504 when it takes none."""
    monkeypatch.setattr("proxy.upstream.push._ANSWER_LIMIT", 0.2)
    gate = registry.arrived = Gate(1)
    reader, writer = await begin(proxy, "Content-Length: 5")
    writer.write(b"12345")
    assert await status_of(reader) == 504
    writer.close()
    assert (
        await proxy.metric(
            'pullthrough_upstream_requests_total{kind="push",method="PATCH",registry="registry.test",status="timeout"'
        )
        == 1
    )
    gate.open()


async def test_pushes_that_hold_all_connections(
    settings: MakeSettings, registry: PushableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for a moment, then get a 503 that says so, until a connection is free again; pulls do not wait."""
    monkeypatch.setattr("proxy.upstream.push._TURN_LIMIT", 0.2)
    registry.push("team/app", "v1", ONE)
    async with running(settings({"max_connections": 2}, clusters=CLUSTERS)) as small:
        held = [await begin(small, "Content-Length: 100") for _ in range(2)]
        for _, writer in held:
            writer.write(b"x")
        await until(lambda: [len(upload) for upload in registry.uploads.values()] == [1, 1])
        busy = await send(small, "POST", f"{REPOSITORY}/blobs/uploads/")
        assert (busy.status, busy.code, busy.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
        assert b"connections for pushes are all in use" in busy.body
        assert (await small.get(f"{REPOSITORY}/manifests/v1")).status == 200
        for _, writer in held:
            writer.transport.abort()
        await until(lambda: registry.broken == 2)
        assert (await send(small, "POST", f"{REPOSITORY}/blobs/uploads/")).status == 202


async def test_uploads_take_longer_than_heads_may(
    proxy: Proxy, registry: PushableRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that a head has is not the time of a body."""
    monkeypatch.setattr("proxy.server.handlers._HEAD_DEADLINE", 0.0)
    reader, writer = await begin(proxy, "Content-Length: 5")
    writer.write(b"123")
    await until(lambda: 3 in map(len, registry.uploads.values()))
    writer.write(b"45")
    assert await status_of(reader) == 202
    writer.close()


# Whose rights.


async def test_a_push_has_its_clients_own_rights_and_no_others(
    settings: MakeSettings, registry: PushableRegistry, tmp_path: Path
) -> None:
    """The client's Authorization goes on as it is; without one the upstream's challenge comes back, and neither the
    proxy's own credential nor a token of its own is sent."""
    (tmp_path / "password").write_text("geheim")
    registry.private, registry.passwords = {"team/app": {"me", "own"}}, {"me": "mine", "own": "geheim"}
    upstream = {"credentials": {"username": "own", "password_file": str(tmp_path / "password")}}
    clusters = [{"name": "default", "push": "forward", "credentials": True}]
    async with running(settings(upstream, clusters=clusters)) as proxy:
        refused = await push_manifest(proxy, ONE, "v1")
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        challenge = refused.headers["WWW-Authenticate"]
        assert challenge.startswith(f'Bearer realm="{registry.url}/token"')
        assert registry.count("GET", "/token") == 0
        mine = {"Authorization": "Basic " + base64.b64encode(b"me:mine").decode()}
        async with proxy.session.get(f"{registry.url}/token?scope=repository:team/app:push", headers=mine) as answer:
            token = (await answer.json())["token"]
        registry.seen.clear()
        assert (await push_manifest(proxy, ONE, "v1", Authorization=f"Bearer {token}")).status == 201
        assert (await push_manifest(proxy, ONE, "v1", Authorization="Bearer other")).status == 401
    assert [seen.headers.get("Authorization") for seen in registry.seen] == [f"Bearer {token}", "Bearer other"]


BASIC = "Basic " + base64.b64encode(b"me:mine").decode()
PREFIXED = "/v2/registry.test/team/app"


@pytest.fixture
async def logged_in(settings: MakeSettings, registry: PushableRegistry) -> AsyncIterator[Proxy]:
    """A proxy that asks clients who come by path prefix for user and password, without TLS too."""
    registry.private, registry.passwords = {"team/app": {"me"}, "team/other": {"me"}}, {"me": "mine"}
    async with running(settings(clusters=[{"name": "default", "push": "forward", "allow_plain_login": True}])) as one:
        yield one


def scopes(registry: PushableRegistry) -> list[list[str]]:
    """What each token was asked for."""
    return [parse_qs(seen.query)["scope"] for seen in registry.seen if seen.path == "/token"]


async def test_user_and_password_push_by_path_prefix(logged_in: Proxy, registry: PushableRegistry) -> None:
    """A token for pushes is got for them, once, by the upstream's own name of the repository; a body is sent once."""
    begun = await send(logged_in, "POST", f"{PREFIXED}/blobs/uploads/", Authorization=BASIC)
    assert (begun.status, begun.headers["Location"].startswith(f"{PREFIXED}/blobs/uploads/")) == (202, True)
    patched = await send(logged_in, "PATCH", begun.headers["Location"], b"layer", Authorization=BASIC)
    done = await send(logged_in, "PUT", with_digest(patched.headers["Location"], b"layer"), Authorization=BASIC)
    path = f"{PREFIXED}/manifests/v1"
    pushed = await send(logged_in, "PUT", path, ONE.manifest, Content_Type=ONE.media_type, Authorization=BASIC)
    assert (done.status, pushed.status) == (201, 201)
    assert (await logged_in.get(path, Authorization=BASIC)).body == ONE.manifest
    assert scopes(registry) == [["repository:team/app:pull,push"], ["repository:team/app:pull"]]
    basic = [seen.path for seen in registry.seen if seen.headers.get("Authorization", "").startswith("Basic")]
    assert basic == ["/token", "/token"]
    assert [registry.count(method, "/v2/team/app") for method in ("POST", "PATCH", "PUT")] == [1, 1, 2]


async def test_mounts_and_deletes_ask_for_what_they_need(logged_in: Proxy, registry: PushableRegistry) -> None:
    """The right to read where a blob is mounted from, by the upstream's name of it, and the right to delete."""
    registry.put("team/other", "application/octet-stream", b"layer")
    query = f"?mount={digest_of(b'layer')}&from=registry.test/team/other"
    assert (await send(logged_in, "POST", f"{PREFIXED}/blobs/uploads/{query}", Authorization=BASIC)).status == 201
    assert (
        await send(logged_in, "DELETE", f"{PREFIXED}/blobs/{digest_of(b'layer')}", Authorization=BASIC)
    ).status == 202
    assert scopes(registry) == [
        ["repository:team/app:pull,push", "repository:team/other:pull"],
        ["repository:team/app:pull,push,delete"],
    ]


async def test_who_may_not_push_is_asked_for_a_password(logged_in: Proxy, registry: PushableRegistry) -> None:
    """Nobody, a wrong password, and a token that only may pull: 401 with our own challenge, and nothing was pushed."""
    wrong = "Basic " + base64.b64encode(b"me:guess").decode()
    registry.private = {"team/app": set()}
    for sent in ("", wrong, BASIC):
        answer = await send(logged_in, "PUT", f"{PREFIXED}/manifests/v1", ONE.manifest, Authorization=sent)
        assert (answer.status, answer.headers["WWW-Authenticate"][:6]) == (401, "Basic ")
    assert registry.tags == {}


def ping_is(registry: PushableRegistry, status: int, **headers: str) -> None:
    def fault(request: web.BaseRequest) -> web.Response | None:
        return web.Response(status=status, headers=headers) if request.rel_url.path == "/v2/" else None

    registry.fault = fault


async def test_an_upstream_whose_ping_asks_for_nothing(logged_in: Proxy, registry: PushableRegistry) -> None:
    """What has no body is sent again with what its 401 asks for; what comes after it has that from the start."""
    ping_is(registry, 200)
    begun = await send(logged_in, "POST", f"{PREFIXED}/blobs/uploads/", Authorization=BASIC)
    done = await send(logged_in, "PUT", with_digest(begun.headers["Location"], b"layer"), b"layer", Authorization=BASIC)
    assert (begun.status, done.status) == (202, 201)
    assert [registry.count(method, "/v2/team/app") for method in ("POST", "PUT")] == [2, 1]


async def test_a_manifest_alone_where_the_ping_asks_for_nothing(logged_in: Proxy, registry: PushableRegistry) -> None:
    """It is read whole before it is sent, so that it can be sent again with what its 401 asks for."""
    ping_is(registry, 200)
    large = replace(ONE, manifest=ONE.manifest + b" " * 2 * MIB)
    path = f"{PREFIXED}/manifests/v1"
    answer = await send(logged_in, "PUT", path, large.manifest, Content_Type=ONE.media_type, Authorization=BASIC)
    assert answer.status == 201
    assert registry.content[digest_of(large.manifest)] == (ONE.media_type, large.manifest)
    assert registry.count("PUT", "/manifests/") == 2


@pytest.mark.parametrize(
    ("status", "answered"), [(500, 502), (503, 502), (429, 429), (307, 502), (403, 403), (404, 404)]
)
async def test_a_ping_that_fails(logged_in: Proxy, registry: PushableRegistry, status: int, answered: int) -> None:
    """Nothing leaves without rights where it is not known which are wanted; the client hears what became of it."""
    ping_is(registry, status, Location="/")
    path = f"{PREFIXED}/manifests/v1"
    answer = await send(logged_in, "PUT", path, ONE.manifest, Content_Type=ONE.media_type, Authorization=BASIC)
    assert answer.status == answered
    assert registry.count("PUT", "/") == 0
    told = f'pullthrough_upstream_requests_total{{kind="other",method="GET",registry="registry.test",status="{status}"'
    assert await logged_in.metric(told) == 1


@pytest.mark.parametrize("status", [404, 503])
async def test_a_ping_that_fails_changes_nothing(logged_in: Proxy, registry: PushableRegistry, status: int) -> None:
    """What was to be pushed never left, so what is cached is good; also where the ping's 404 met a DELETE."""
    registry.push("team/app", "v1", ONE)
    path = f"{PREFIXED}/manifests/v1"
    assert (await logged_in.get(path, Authorization=BASIC)).status == 200
    ping_is(registry, status)
    assert (await send(logged_in, "DELETE", path, Authorization=BASIC)).status in {404, 502}
    assert (await logged_in.get(path, Authorization=BASIC)).state.startswith("pullthrough; hit")


async def test_a_token_that_ends_early(logged_in: Proxy, registry: PushableRegistry) -> None:
    """Manifests, and what has no body, go out again with a new one; an upload is sent once, its next try is good."""
    path, uploads = f"{PREFIXED}/manifests/v1", f"{PREFIXED}/blobs/uploads/"

    async def push() -> int:
        headers = {"Content_Type": ONE.media_type, "Authorization": BASIC}
        return (await send(logged_in, "PUT", path, ONE.manifest, **headers)).status

    assert await push() == 201
    registry.revoke_tokens()
    assert await push() == 201
    registry.revoke_tokens()
    begun = await send(logged_in, "POST", uploads, Authorization=BASIC)
    assert begun.status == 202
    registry.revoke_tokens()
    location = with_digest(begun.headers["Location"], b"layer")
    for status in (401, 201):
        sent = len(registry.seen)
        assert (await send(logged_in, "PUT", location, b"layer", Authorization=BASIC)).status == status
        assert [seen.method for seen in registry.seen[sent:]].count("PUT") == 1


@pytest.mark.parametrize("source", ["team/other:push,delete%20repository:team/secret", "..%2Fx", "A%20B", "%ff", "/"])
async def test_scopes_hold_nothing_but_names(logged_in: Proxy, registry: PushableRegistry, source: str) -> None:
    """A `from` that is no name is 400, and nothing is asked for it."""
    answer = await send(
        logged_in, "POST", f"{PREFIXED}/blobs/uploads/?mount={ONE.digest}&from={source}", Authorization=BASIC
    )
    assert (answer.status, answer.code) == (400, "NAME_INVALID")
    assert not registry.seen


async def test_an_empty_from_is_none(logged_in: Proxy, registry: PushableRegistry) -> None:
    """It names nothing, so it goes no further."""
    query = f"?mount={ONE.digest}&from="
    assert (await send(logged_in, "POST", f"{PREFIXED}/blobs/uploads/{query}", Authorization=BASIC)).status == 202
    assert scopes(registry) == [["repository:team/app:pull,push"]]
    assert registry.seen[-1].query == f"mount={ONE.digest}"


async def test_a_realm_that_is_not_the_upstreams_gets_no_password(logged_in: Proxy, registry: PushableRegistry) -> None:
    """A push asks no other realm than a pull would; it is 502, and counted."""
    registry.realm = "http://localhost:1/token"
    answer = await send(logged_in, "POST", f"{PREFIXED}/blobs/uploads/", Authorization=BASIC)
    assert answer.status == 502
    assert await logged_in.metric('pullthrough_upstream_refused_targets_total{reason="realm"') == 1


# What was pushed is seen.


async def test_a_tag_that_moves(proxy: Proxy, registry: PushableRegistry) -> None:
    """What was cached under the tag is not given any more, nor what the lists said."""
    await push_manifest(proxy, ONE, "v1")
    path, tags = f"{REPOSITORY}/manifests/v1", f"{REPOSITORY}/tags/list"
    for image, pushed in ((ONE, "v1"), (TWO, "v1"), (ONE, "v2")):
        assert (await push_manifest(proxy, image, pushed)).status == 201
        found = await proxy.get(f"{REPOSITORY}/manifests/{pushed}")
        assert (found.body, found.state) == (image.manifest, "pullthrough; fwd=miss; stored")
        assert (await proxy.head(f"{REPOSITORY}/manifests/{pushed}")).headers["Docker-Content-Digest"] == image.digest
        assert pushed in json.loads((await proxy.get(tags)).body)["tags"]
    assert (await proxy.get(path)).state.startswith("pullthrough; hit")


async def test_tags_set_by_a_push_by_digest(proxy: Proxy) -> None:
    """`?tag=` moves tags as well."""
    await push_manifest(proxy, ONE, "v1")
    assert (await proxy.get(f"{REPOSITORY}/manifests/v1")).body == ONE.manifest
    assert (await push_manifest(proxy, TWO, f"{TWO.digest}?tag=v1&tag=v2")).status == 201
    for tag in ("v1", "v2"):
        assert (await proxy.get(f"{REPOSITORY}/manifests/{tag}")).body == TWO.manifest


async def test_what_was_missing_is_there_at_once(proxy: Proxy, registry: PushableRegistry) -> None:
    """A 404 that was remembered counts only until the push."""
    blob = ONE.blobs[1]
    paths = [
        f"{REPOSITORY}/manifests/v1",
        f"{REPOSITORY}/manifests/{ONE.digest}",
        f"{REPOSITORY}/blobs/{digest_of(blob)}",
    ]
    for path in paths:
        for _ in range(2):
            assert (await proxy.get(path)).status == 404
        assert registry.count("GET", path) == 1
    assert (await proxy.get(f"{REPOSITORY}/tags/list")).status == 404
    assert (await push_blob(proxy, blob)).status == 201
    assert (await proxy.head(paths[2])).status == 200
    await push_manifest(proxy, ONE, "v1")
    for path in [*paths, f"{REPOSITORY}/tags/list"]:
        assert (await proxy.get(path)).status == 200


async def test_a_subject_changes_the_referrers_of_another(proxy: Proxy) -> None:
    """The list of the subject's referrers is asked for anew, and OCI-Subject goes on."""
    await push_manifest(proxy, ONE, "v1")
    path = f"{REPOSITORY}/referrers/{ONE.digest}"
    assert (await proxy.get(path)).status == 404
    for seed in (5, 6):
        subject = {"mediaType": ONE.media_type, "digest": ONE.digest, "size": len(ONE.manifest)}
        document = json.loads(make_image(seed, seed=seed).manifest) | {"subject": subject}
        image = replace(ONE, manifest=json.dumps(document).encode())
        pushed = await push_manifest(proxy, image, image.digest)
        assert pushed.headers["OCI-Subject"] == ONE.digest
        assert image.digest in (await proxy.get(path)).body.decode()


async def test_what_was_deleted_is_gone_at_once(proxy: Proxy, registry: PushableRegistry) -> None:
    """A manifest with its tags, a tag alone, a blob; what is refused stays."""
    blob = ONE.blobs[1]
    await push_blob(proxy, blob)
    await push_manifest(proxy, ONE, "v1")
    await push_manifest(proxy, TWO, "v2")
    manifest, path = f"{REPOSITORY}/manifests/{ONE.digest}", f"{REPOSITORY}/blobs/{digest_of(blob)}"
    for pulled in (manifest, path, f"{REPOSITORY}/manifests/v1", f"{REPOSITORY}/manifests/v2"):
        assert (await proxy.get(pulled)).status == 200
    await proxy.stored(1)
    assert (await send(proxy, "DELETE", f"{REPOSITORY}/manifests/v2")).status == 202
    assert (await proxy.get(f"{REPOSITORY}/manifests/v2")).status == 404
    assert (await proxy.get(f"{REPOSITORY}/manifests/{TWO.digest}")).status == 200
    assert (await send(proxy, "DELETE", manifest)).status == 202
    for gone in (manifest, f"{REPOSITORY}/manifests/v1"):
        assert (await proxy.get(gone)).status == 404
    assert (await send(proxy, "DELETE", path)).status == 202
    assert [(await proxy.get(path)).status, (await proxy.head(path)).status] == [404, 404]
    again = await send(proxy, "DELETE", path)
    assert (again.status, again.code) == (404, "BLOB_UNKNOWN")


async def test_a_tag_whose_manifest_was_deleted(proxy: Proxy, registry: PushableRegistry) -> None:
    """It is asked for anew: upstream it may have had another manifest for long."""
    registry.push("team/app", "v1", ONE)
    assert (await proxy.get(f"{REPOSITORY}/manifests/v1")).body == ONE.manifest
    registry.push("team/app", "v1", TWO)
    assert (await send(proxy, "DELETE", f"{REPOSITORY}/manifests/{ONE.digest}")).status == 202
    assert (await proxy.get(f"{REPOSITORY}/manifests/v1")).body == TWO.manifest


async def test_an_answer_from_before_the_push_is_not_kept(proxy: Proxy, registry: PushableRegistry) -> None:
    """A pull that the upstream answered before a push, and that ends after it, is nobody's answer but its own."""
    registry.push("team/app", "v1", ONE)
    gate, path = Gate(0), f"{REPOSITORY}/manifests/v1"
    answered = registry._manifest

    async def slowly(request: web.BaseRequest, repository: str, reference: str) -> web.StreamResponse:
        response = await answered(request, repository, reference)
        if not gate.waiting:
            await gate(0)
        return response

    registry._manifest = slowly  # type: ignore[method-assign]
    before = asyncio.create_task(proxy.get(path))
    await gate.reached.wait()
    await push_manifest(proxy, TWO, "v1")
    assert (await proxy.get(path)).body == TWO.manifest
    gate.open()
    assert (await before).body == ONE.manifest
    found = await proxy.get(path)
    assert (found.body, found.state) == (TWO.manifest, "pullthrough; hit; ttl=600")


async def test_a_fill_goes_on_while_others_push(proxy: Proxy, registry: PushableRegistry) -> None:
    """A blob on its way into the cache is not asked for again, whatever is pushed to its repository."""
    blob = random_bytes(4 * MIB, 7)
    path = f"{REPOSITORY}/blobs/{registry.put('team/app', 'application/octet-stream', blob)}"
    gate = registry.pause = Gate(MIB)
    reader = await Reader.open(proxy, path)
    await gate.reached.wait()
    await push_manifest(proxy, ONE, "v1")
    assert (await push_blob(proxy, blob)).status == 201
    gate.open()
    assert await reader.rest() == blob
    await proxy.stored(1)
    assert registry.record.sent_twice(digest_of(blob)) == []


# Pushes of which nobody knows whether they were done.


def losing_answers(registry: PushableRegistry, how: str) -> Gate:
    """Changes are made, and their answer is lost: `drop`, `504`, or the client leaves at the gate."""
    gate, changed = Gate(0), registry._change

    async def change(request: web.BaseRequest) -> web.Response:
        response = await changed(request)
        if how == "drop":
            assert request.transport is not None
            request.transport.abort()
        if how == "leave":
            await gate(0)
        return web.Response(status=504) if how == "504" else response

    registry._change = change  # type: ignore[method-assign]
    return gate


@pytest.mark.parametrize("how", ["drop", "504", "leave"])
async def test_an_answer_that_is_lost(proxy: Proxy, registry: PushableRegistry, how: str) -> None:
    """Whoever pulls next sees what was pushed, and finds it fresh once it was asked for."""
    registry.push("team/app", "v1", ONE)
    path = f"{REPOSITORY}/manifests/v1"
    assert (await proxy.get(path)).body == ONE.manifest
    gate = losing_answers(registry, how)
    push = asyncio.create_task(push_manifest(proxy, TWO, "v1"))
    if how == "leave":
        await gate.reached.wait()
        push.cancel()
        await asyncio.gather(push, return_exceptions=True)
        left = 'pullthrough_requests_total{cache="pass",cluster="default",kind="push",method="PUT"'
        async with asyncio.timeout(10):
            while not await proxy.metric(left):
                await asyncio.sleep(0)
    else:
        assert (await push).status == 502
    assert (await proxy.get(path)).body == TWO.manifest
    assert (await proxy.get(path)).state.startswith("pullthrough; hit")


async def test_a_tag_in_doubt_that_did_not_move(proxy: Proxy, registry: PushableRegistry) -> None:
    """One HEAD says so, and the tag is as fresh as before."""
    registry.push("team/app", "v1", ONE)
    path = f"{REPOSITORY}/manifests/v1"
    await proxy.get(path)
    registry.fault = lambda request: web.Response(status=503) if request.method == "PUT" else None
    assert (await push_manifest(proxy, TWO, f"{TWO.digest}?tag=v1")).status == 502
    assert (await proxy.get(path)).state == "pullthrough; fwd=stale; fwd-status=200; ttl=600"
    assert (await proxy.get(path)).state == "pullthrough; hit; ttl=600"
    assert [registry.count(method, "/manifests/v1") for method in ("GET", "HEAD")] == [1, 1]


async def test_a_tag_in_doubt_is_served_in_an_outage(proxy: Proxy, registry: PushableRegistry) -> None:
    """Nobody takes away what an outage needs by pushing into it."""
    registry.push("team/app", "v1", ONE)
    path, digest = f"{REPOSITORY}/manifests/v1", f"{REPOSITORY}/manifests/{ONE.digest}"
    for pulled in (path, digest):
        assert (await proxy.get(pulled)).status == 200
    registry.fault = lambda request: web.Response(status=503)
    assert (await push_manifest(proxy, TWO, "v1")).status == 502
    for deleted in (path, digest):
        assert (await send(proxy, "DELETE", deleted)).status == 502
    found = await proxy.get(path)
    assert (found.status, found.body, "stale-5xx" in found.state) == (200, ONE.manifest, True)
    assert (await proxy.get(digest)).body == ONE.manifest


async def test_a_push_that_never_left_changes_nothing(proxy: Proxy, registry: PushableRegistry) -> None:
    """Without a connection there is nothing to doubt."""
    registry.push("team/app", "v1", ONE)
    path = f"{REPOSITORY}/manifests/v1"
    await proxy.get(path)
    await registry.stop()
    assert (await push_manifest(proxy, TWO, "v1")).status == 502
    assert (await proxy.get(path)).state.startswith("pullthrough; hit")


@pytest.mark.parametrize("by", ["digest", "tag"])
async def test_a_delete_whose_answer_is_lost(proxy: Proxy, registry: PushableRegistry, by: str) -> None:
    """A tag is asked for anew; content stays until the next try is told that it is not there."""
    registry.push("team/app", "v1", ONE)
    path = f"{REPOSITORY}/manifests/{ONE.digest if by == 'digest' else 'v1'}"
    assert (await proxy.get(path)).status == 200
    losing_answers(registry, "504")
    assert (await send(proxy, "DELETE", path)).status == 502
    assert (await proxy.get(path)).status == (200 if by == "digest" else 404)
    del registry._change
    assert (await send(proxy, "DELETE", path)).status == 404
    assert (await proxy.get(path)).status == 404


async def test_lists_outlive_a_push_into_an_outage(proxy: Proxy, registry: PushableRegistry) -> None:
    """Whoever pushes while the upstream fails takes no list away; once it answers, the list is asked for at once."""
    registry.push("team/app", "v1", ONE)
    path = f"{REPOSITORY}/tags/list"
    before = await proxy.get(path)
    registry.fault = lambda request: web.Response(status=503)
    assert (await push_manifest(proxy, TWO, "v2")).status == 502
    stale = await proxy.get(path)
    assert (stale.status, stale.body) == (200, before.body)
    assert stale.state.startswith("pullthrough; fwd=stale")
    registry.fault = None
    registry.push("team/app", "v2", TWO)
    proxy.clock.advance(60)
    assert b'"v2"' in (await proxy.get(path)).body


async def test_an_upload_whose_answer_is_lost(proxy: Proxy, registry: PushableRegistry) -> None:
    """A 404 from before it counts no longer."""
    path = f"{REPOSITORY}/blobs/{digest_of(b'layer')}"
    begun = await send(proxy, "POST", f"{REPOSITORY}/blobs/uploads/")
    assert (await proxy.get(path)).status == 404
    finished = registry._go_on

    async def go_on(request: web.BaseRequest, name: str, session: str) -> web.Response:
        await finished(request, name, session)
        return web.Response(status=504)

    registry._go_on = go_on  # type: ignore[method-assign]
    assert (await send(proxy, "PUT", with_digest(begun.headers["Location"], b"layer"), b"layer")).status == 502
    assert (await proxy.get(path)).body == b"layer"


# Addresses of uploads.


async def test_uploads_elsewhere_at_the_upstream(proxy: Proxy, registry: PushableRegistry) -> None:
    """Any path of the upstream's own host goes through the client and back; one that a client made up does not."""
    registry.location = lambda name, session: f"{registry.url}{registry.elsewhere}{name}/{session}?_state=a%2Fb"
    assert (await push_blob(proxy, b"content", "/v2/registry.test/team/app")).status == 201
    assert registry.seen[-1].query == f"_state=a%2Fb&digest={digest_of(b'content')}"
    reached = len(registry.seen)
    for session in ("~bm8.AAAAAAAAAAAAAAAAAAAAAA", "~", "..%2f..%2fmanifests", "%2e%2e", "a%20b", "%00"):
        answer = await send(proxy, "PUT", f"{REPOSITORY}/blobs/uploads/{session}?digest={ONE.digest}", b"x")
        assert answer.status in {400, 404, 405}, session
    assert len(registry.seen) == reached


async def test_uploads_on_another_host_are_refused(proxy: Proxy, registry: PushableRegistry) -> None:
    """502 that says so, and nothing is dialled, by whatever the client tries next."""
    other = FakeServer()
    await other.start()
    registry.location = lambda name, session: f"{other.url}/v2/{name}/blobs/uploads/{session}"
    answer = await send(proxy, "POST", f"{REPOSITORY}/blobs/uploads/", Authorization="Bearer geheim")
    assert (answer.status, answer.code) == (502, "UNSUPPORTED")
    assert "Location" not in answer.headers
    assert not other.seen
    assert await proxy.metric('pullthrough_upstream_refused_targets_total{reason="push"') == 1
    await other.stop()


async def test_a_push_is_not_redirected(proxy: Proxy, registry: PushableRegistry) -> None:
    """A redirect is followed by nobody: 502."""
    registry.fault = lambda request: web.Response(status=307, headers={"Location": f"{registry.url}/elsewhere"})
    answer = await push_manifest(proxy, ONE, "v1", Authorization="Bearer geheim")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert "Location" not in answer.headers
    assert len(registry.seen) == 1
    assert await proxy.metric('pullthrough_upstream_refused_targets_total{reason="push"') == 1


async def test_blobs_are_mounted_from_where_the_client_says(proxy: Proxy, registry: PushableRegistry) -> None:
    """`from` is a name as the client uses it, so the registry's prefix is taken off."""
    digest = registry.put("team/base", "application/octet-stream", b"layer")
    query = f"?mount={digest}&from=registry.test%2Fteam%2Fbase&ns=registry.test"
    mounted = await send(proxy, "POST", f"/v2/registry.test/team/app/blobs/uploads/{query}")
    assert mounted.status == 201
    assert mounted.headers["Location"] == f"/v2/registry.test/team/app/blobs/{digest}?ns=registry.test"
    assert (await proxy.get(mounted.headers["Location"])).body == b"layer"
    assert registry.seen[0].query == f"mount={digest}&from=team%2Fbase"


async def test_only_repositories_of_the_cluster_are_pushed_to_and_mounted_from(
    settings: MakeSettings, registry: PushableRegistry
) -> None:
    """404, and nothing reaches the upstream."""
    digest = registry.put("other/base", "application/octet-stream", b"layer")
    cluster = {"name": "default", "push": "forward", "repositories": ["registry.test/team/*"]}
    async with running(settings(clusters=[cluster])) as limited:
        for path in (
            "/v2/other/app/blobs/uploads/", f"{REPOSITORY}/blobs/uploads/?mount={digest}&from=other%2Fbase",
            f"{REPOSITORY}/blobs/uploads/?mount={digest}&from=registry.test%2Fother%2Fbase",
        ):  # fmt: skip
            answer = await send(limited, "POST", path)
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
        assert not registry.seen
        assert (await push_blob(limited, b"layer")).status == 201


# Errors.


async def test_errors_keep_status_and_code(proxy: Proxy, registry: PushableRegistry) -> None:
    """The upstream's own, in our words."""
    begun = await send(proxy, "POST", f"{REPOSITORY}/blobs/uploads/")
    location = begun.headers["Location"]
    wrong = await send(proxy, "PATCH", location, b"x", Content_Range="7-7")
    unknown = await send(proxy, "PATCH", f"{REPOSITORY}/blobs/uploads/none", b"x")
    digest = await send(proxy, "PUT", with_digest(location, b"other"), b"x")
    found = [(answer.status, answer.code) for answer in (wrong, unknown, digest)]
    assert found == [(416, "BLOB_UPLOAD_INVALID"), (404, "BLOB_UPLOAD_UNKNOWN"), (400, "DIGEST_INVALID")]
    for answer in (wrong, unknown, digest):
        assert b"own words" not in answer.body
        assert answer.state == f"pullthrough; fwd=bypass; fwd-status={answer.status}; detail=push"
    assert (await send(proxy, "DELETE", location)).status == 204


@pytest.mark.parametrize(("status", "answered"), [(429, 429), (500, 502), (503, 502), (403, 403), (413, 413)])
async def test_an_upstream_that_fails(proxy: Proxy, registry: PushableRegistry, status: int, answered: int) -> None:
    """Answered before the body was taken, sent once; what was cached stays cached, and is asked for after a 5xx."""
    registry.push("team/app", "v1", ONE)
    await proxy.get(f"{REPOSITORY}/manifests/v1")
    registry.fault = lambda request: web.Response(status=status) if request.method == "PUT" else None
    big = replace(TWO, manifest=TWO.manifest + b" " * MIB)
    assert (await push_manifest(proxy, big, "v1")).status == answered
    assert registry.count("PUT", "/manifests/") == 1
    state = (await proxy.get(f"{REPOSITORY}/manifests/v1")).state
    assert state.startswith("pullthrough; hit" if status < 500 else "pullthrough; fwd=stale; fwd-status=200")
    assert registry.count("GET", "/manifests/") == 1


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_push_is_sent_once(proxy: Proxy, registry: PushableRegistry, method: str) -> None:
    """An upstream that drops the connection is not asked a second time."""

    def drop(request: web.BaseRequest) -> None:
        assert request.transport is not None
        request.transport.abort()

    registry.fault = drop
    answer = await send(proxy, method, f"{REPOSITORY}/manifests/v1", ONE.manifest if method == "PUT" else b"")
    assert answer.status == 502
    assert len(registry.seen) == 1


async def test_a_client_that_resets_everything_leaves_no_trace(proxy: Proxy, registry: PushableRegistry) -> None:
    """Sessions of clients that come and go hold no connection to the upstream."""
    registry.arrived = Gate(1)
    async with aiohttp.ClientSession() as session:
        tasks = [
            asyncio.create_task(session.put(f"{proxy.url}{REPOSITORY}/manifests/v{number}", data=bytes(1000)))
            for number in range(5)
        ]
        await until(lambda: registry.count("PUT", "/manifests/") == 5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: registry.connections == 0)
