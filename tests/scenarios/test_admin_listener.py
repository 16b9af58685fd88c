"""The admin listener over HTTP: who is let in from where, and what strangers' bytes do."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.server.admin_access import COOKIE
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.conftest import MakeSettings
from tests.scenarios.operators import call, done, tags

TOKEN = "the-admin-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
IMAGE = make_image(5, seed=1)
TAG = "/v2/team/app/manifests/v1"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with the token."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
async def open_one(settings: MakeSettings, registry: FakeRegistry, token: Path) -> AsyncIterator[Proxy]:
    """Off loopback, with a token."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(admin={"address": "0.0.0.0:0", "token_file": str(token)})) as started:
        yield started


async def raw(proxy: Proxy, *lines: bytes, end: bytes = b"") -> tuple[int, bytes]:
    """What one request of these bytes is answered: its status, and the answer up to `end`, or all of it."""
    host, _, port = proxy.admin_url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\r\n".join((*lines, b"Connection: close", b"", b"")))
    async with asyncio.timeout(10):
        answer = await (reader.readuntil(end) if end else reader.read())
    writer.transport.abort()
    return int(answer.split(b" ", 2)[1]), answer


async def test_off_loopback_without_a_token(settings: MakeSettings, registry: FakeRegistry) -> None:
    """Health, readiness and metrics only: all else is 403, whatever is brought along."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(admin={"address": "0.0.0.0:0"})) as proxy:
        await proxy.get(TAG)
        for headers in ({}, {"Authorization": "Bearer "}, {"Host": "localhost"}, {"Cookie": f"{COOKIE}=9999999999."}):
            for method, path in (("GET", "tags"), ("GET", "stats"), ("GET", "nothing"), ("POST", "tags/refresh")):
                status, found = await call(proxy, method, path, None, headers)
                assert (status, list(found)) == (403, ["error"])
            assert (await call(proxy, "DELETE", "tags", None, headers, reference="*"))[0] == 403
        for path in ("/healthz", "/readyz", "/metrics"):
            async with proxy.session.get(proxy.admin_url + path) as response:
                assert response.status == 200
    assert len(registry.seen) == 1


async def test_off_loopback_with_a_token(open_one: Proxy, registry: FakeRegistry) -> None:
    """401 with a challenge for all but those who have it, before a body is read or a worker asked."""
    await open_one.get(TAG)
    for method, path in (("GET", "tags"), ("HEAD", "tags"), ("POST", "tags/hold"), ("OPTIONS", "tags"), ("GET", "x")):
        url = f"{open_one.admin_url}/api/v1/{path}"
        async with open_one.session.request(method, url, headers={"Authorization": "Bearer no"}) as response:
            assert (response.status, response.headers["WWW-Authenticate"].partition(" ")[0]) == (401, "Bearer")
            assert "Set-Cookie" not in response.headers
            assert TOKEN not in await response.text()
    assert (await call(open_one, "GET", "tags", None, BEARER))[1]["tags"][0]["pulls"] == 1
    # No page of another origin has the token, so its origin says nothing.
    headers = BEARER | {"Origin": "http://elsewhere.test", "Host": "proxy.internal"}
    assert (await call(open_one, "DELETE", "tags", None, headers, reference="team/app:v1"))[0] == 200


async def test_web_pages_change_nothing_on_loopback(proxy: Proxy, registry: FakeRegistry) -> None:
    """A form or a script of another site, and a site whose name points here, are refused; this machine is not."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    asked = len(registry.seen)
    for headers in (
        {"Origin": "http://evil.test"},
        {"Origin": "null", "Content-Type": "text/plain"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.test"},
        {"Host": "evil.test", "Origin": "http://evil.test", "Sec-Fetch-Site": "same-origin"},
    ):
        for method, path in (("POST", "tags/refresh"), ("POST", "tags/hold"), ("DELETE", "tags")):
            status, _ = await call(proxy, method, path, {"reference": "*"}, headers, reference="*")
            assert status == 403
        if "Host" in headers:
            assert (await call(proxy, "GET", "tags", None, headers))[0] == 403
    assert len(await tags(proxy)) == 1
    assert len(registry.seen) == asked
    await done(proxy, "DELETE", "tags", reference="*")


async def test_a_body_is_read_by_those_who_may_only(open_one: Proxy) -> None:
    """Whoever has no token is answered before the body comes."""
    head = (b"POST /api/v1/tags/refresh HTTP/1.1", b"Host: x", b"Content-Length: 1000000", b"Expect: 100-continue")
    status, answer = await raw(open_one, *head, end=b"}\n")
    assert (status, b"100 Continue" in answer) == (401, False)


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer \xff\xfe",
        b"Authorization: Bearer " + TOKEN.encode() + b"\xff",
        b"Cookie: " + COOKIE.encode() + b"=\xff.\xff",
        b"Cookie: " + COOKIE.encode() + b"=9999999999.\xff",
        b"Cookie: " + COOKIE.encode() + b"=" + b"9" * 5000 + b".00",
        b"Cookie: " + b"\x80" * 100,
    ],
)
async def test_bytes_that_are_no_text(open_one: Proxy, line: bytes) -> None:
    """Are no token and no log-in: 401."""
    status, answer = await raw(open_one, b"GET /api/v1/tags HTTP/1.1", b"Host: x", line)
    assert (status in {400, 401}, TOKEN.encode() in answer) == (True, False)


@pytest.mark.parametrize(
    "target",
    [
        b"/api/v1/tags?last=%ff%fe", b"/api/v1/tags?last=\xff", b"/api/v1/tags?reference=%00*",
        b"/api/v1/tags?reference=*&reference=", b"/api/v1/tags?=&&==", b"/api/v1/%74ags", b"/api/v1/tags%2frefresh",
        b"/api/v1/tags?n=%31", b"/api/v1/tags;x", b"/api/v1//tags", b"/api/v1/../v1/tags", b"/api/v1/\xff",
        b"/api/v1/tags?last=" + b"x" * 7000,
        b"/api/v1/blobs?last=%00", b"/api/v1/blobs?last=sha256:", b"/api/v1/stats?" + b"a=b&" * 1500,
    ],
)  # fmt: skip
async def test_odd_targets(open_one: Proxy, caplog: pytest.LogCaptureFixture, target: bytes) -> None:
    """An answer or an error that says so, never a failure of the proxy's."""
    status, answer = await raw(
        open_one, b"GET " + target + b" HTTP/1.1", b"Host: x", b"Authorization: Bearer the-admin-token"
    )
    assert status in {200, 400, 404}, answer
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_nothing_of_the_token_is_logged(open_one: Proxy, token: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither of the right one nor of a wrong one, nor where the file cannot be read; audit lines name the address."""
    caplog.set_level("DEBUG")
    await open_one.get(TAG)
    await call(open_one, "DELETE", "tags", None, BEARER, reference="team/app:v1")
    await call(open_one, "GET", "tags", None, {"Authorization": f"Bearer {TOKEN}-wrong"})
    token.write_bytes(b"\xff" + TOKEN.encode())
    assert (await call(open_one, "GET", "tags", None, BEARER))[0] == 503
    assert "purge registry.test/team/app:v1 by 127.0.0.1" in caplog.messages
    assert TOKEN not in caplog.text


async def test_answers_are_for_no_cache_and_no_frame(open_one: Proxy) -> None:
    """JSON that nobody keeps, and that no browser takes for something else; errors too."""
    for headers in (BEARER, {}):
        async with open_one.session.get(f"{open_one.admin_url}/api/v1/tags", headers=headers) as response:
            assert response.headers["Content-Type"] == "application/json"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in response.headers
            assert (await response.read()).endswith(b"}\n")
            assert json.loads(await response.read())
