"""Upstreams that answer what no registry may answer: nothing of it is kept or handed on."""

import json
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web

from proxy.oci.manifest import OCI_MANIFEST
from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, wrong_digest
from tests.fakes.server import Gate

IMAGE = make_image(5000, seed=12)
TAG = "/v2/team/app/manifests/v1"
BLOB = random_bytes(2_000_000, 5)


def answer_with(body: bytes, content_type: str, digest: str | None = None) -> Callable[[web.BaseRequest], web.Response]:
    headers = {"Content-Type": content_type} | ({"Docker-Content-Digest": digest} if digest else {})
    return lambda request: web.Response(body=body, headers=headers)


AMBIGUOUS = json.dumps({"schemaVersion": 2, "manifests": [], "layers": []}).encode()


@pytest.mark.parametrize(
    ("body", "content_type", "digest"),
    [
        (b"<html>please log in</html>", "text/html", None),
        (b"<html>please log in</html>", OCI_MANIFEST, None),
        (b"[]", OCI_MANIFEST, None),
        (b"[" * 100_000, OCI_MANIFEST, None),
        (b"\xff\xfe", OCI_MANIFEST, None),
        (AMBIGUOUS, OCI_MANIFEST, None),
        (IMAGE.manifest, "application/vnd.oci.image.index.v1+json", None),
        (IMAGE.manifest, OCI_MANIFEST, wrong_digest(IMAGE.manifest)),
        (b" " * (4 * 1024 * 1024 + 1), OCI_MANIFEST, None),
    ],
)
async def test_a_bad_manifest_is_502_and_not_kept(
    proxy: Proxy, registry: FakeRegistry, body: bytes, content_type: str, digest: str | None
) -> None:
    """HTML, no JSON, ambiguous, of another type, with other bytes, too large: 502, and the next good one is served."""
    registry.fault = answer_with(body, content_type, digest)
    answer = await proxy.get(TAG)
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    registry.fault = None
    registry.push("team/app", "v1", IMAGE)
    proxy.clock.advance(3600)
    good = await proxy.get(TAG)
    assert (good.body, good.state) == (IMAGE.manifest, "pullthrough; fwd=miss; stored")


async def test_a_manifest_by_digest_is_held_against_it(proxy: Proxy, registry: FakeRegistry) -> None:
    """Asked for by digest, other bytes are 502 and counted, whatever the upstream's headers say."""
    digest = registry.put("team/app", OCI_MANIFEST, IMAGE.manifest, wrong_digest(IMAGE.manifest))
    answer = await proxy.get(f"/v2/team/app/manifests/{digest}")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert await proxy.metric("pullthrough_digest_mismatches_total") == 1


async def test_html_in_an_outage_serves_the_stale_manifest(proxy: Proxy, registry: FakeRegistry) -> None:
    """A login page in front of the upstream is an outage like any other."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    registry.fault = answer_with(b"<html>", "text/html")
    proxy.clock.advance(601)
    answer = await proxy.get(TAG)
    assert (answer.status, answer.body) == (200, IMAGE.manifest)
    assert answer.headers["Content-Type"] == OCI_MANIFEST


async def test_a_wrong_blob_never_completes(proxy: Proxy, registry: FakeRegistry) -> None:
    """Bytes that are not the digest's never complete at a client, are thrown away and counted; the next is afresh."""
    digest = registry.put("team/app", "application/octet-stream", BLOB, wrong_digest(BLOB))
    for number in (1, 2):
        with pytest.raises(aiohttp.ClientPayloadError):
            await proxy.get(f"/v2/team/app/blobs/{digest}")
        assert await proxy.metric("pullthrough_digest_mismatches_total") == number
        proxy.clock.advance(120)
    assert await proxy.metric("pullthrough_cache_blobs") == 0
    assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_a_blob_that_breaks_off_is_cut_and_not_kept(proxy: Proxy, registry: FakeRegistry, quick: None) -> None:
    """An upstream that ends early cuts the client's body short; nothing is kept, and the next pull is whole."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.cut_at = 1_000_000
    registry.pause = gate = Gate(700_000)
    async with proxy.session.get(f"{proxy.url}/v2/team/app/blobs/{digest}") as response:
        await response.content.readexactly(1000)
        gate.open()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    await proxy.stored(0)
    registry.cut_at = None
    proxy.clock.advance(120)
    assert (await proxy.get(f"/v2/team/app/blobs/{digest}")).body == BLOB


async def test_a_blob_without_length_is_streamed(proxy: Proxy, registry: FakeRegistry) -> None:
    """Where the upstream does not say how long a blob is, it is streamed with 200 and kept nowhere."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.blob_length = False
    answer = await proxy.get(f"/v2/team/app/blobs/{digest}")
    assert (answer.status, answer.body) == (200, BLOB)
    assert answer.state == "pullthrough; fwd=bypass; detail=cache-trouble"
    assert await proxy.metric("pullthrough_cache_blobs") == 0


@pytest.mark.parametrize("location", ["", "ftp://x/y", "file:///etc/passwd", "http://user:pw@h/", "//", "http://[bad"])
async def test_a_redirect_to_nowhere_is_502(proxy: Proxy, registry: FakeRegistry, location: str) -> None:
    """Only web addresses are followed."""
    registry.fault = lambda request: web.Response(status=307, headers={"Location": location})
    answer = await proxy.get(f"/v2/team/app/blobs/{digest_of(BLOB)}")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")


async def test_redirects_end(proxy: Proxy, registry: FakeRegistry) -> None:
    """A redirect to itself without end is 502 after a few."""
    registry.fault = lambda request: web.Response(status=307, headers={"Location": request.rel_url.raw_path})
    assert (await proxy.get(TAG)).status == 502
    assert len(registry.seen) < 10


async def test_a_signed_address_that_is_over_is_no_refusal(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """403 from the host of a redirect is 502, and says nothing about the client's rights."""
    other = FakeRegistry(fault=lambda request: web.Response(status=403))
    await other.start()
    registry.fault = lambda request: web.Response(status=307, headers={"Location": f"{other.url}/signed"})
    async with running(settings()) as proxy:
        answer = await proxy.get(f"/v2/team/app/blobs/{digest_of(BLOB)}")
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    await other.stop()


@pytest.mark.parametrize("header", ["bytes=abc", "bytes=00-", "bytes=-2000000", "bytes=-99999999"])
async def test_every_body_from_zero_is_held_back(proxy: Proxy, registry: FakeRegistry, header: str) -> None:
    """However the whole blob was asked for, wrong bytes never complete."""
    digest = registry.put("team/app", "application/octet-stream", BLOB, wrong_digest(BLOB))
    with pytest.raises(aiohttp.ClientPayloadError):
        await proxy.get(f"/v2/team/app/blobs/{digest}", Range=header)


async def test_the_rest_of_a_wrong_blob_begins_no_new_round(proxy: Proxy, registry: FakeRegistry) -> None:
    """A client that comes back for the rest of what was cut gets 502 until negative_ttl is over."""
    digest = registry.put("team/app", "application/octet-stream", BLOB, wrong_digest(BLOB))
    path = f"/v2/team/app/blobs/{digest}"
    with pytest.raises(aiohttp.ClientPayloadError):
        await proxy.get(path)
    for _ in range(3):
        assert (await proxy.get(path, Range="bytes=1000000-")).status == 502
    assert registry.count("GET", "/blobs/") == 1


async def test_the_range_refused_past_the_cache_is_416(proxy: Proxy, registry: FakeRegistry) -> None:
    """A 416 of the upstream is RANGE_INVALID with its Content-Range."""
    registry.fault = lambda request: web.Response(status=416, headers={"Content-Range": "bytes */7"})
    answer = await proxy.get(f"/v2/a/blobs/{digest_of(BLOB)}", Range="bytes=9-", Authorization="Bearer x")
    assert (answer.status, answer.code, answer.headers["Content-Range"]) == (416, "RANGE_INVALID", "bytes */7")


async def test_a_clients_own_manifest_is_checked_too(proxy: Proxy, registry: FakeRegistry) -> None:
    """With credentials of the client's own, HTML and wrong bytes are 502 as well."""
    registry.fault = answer_with(b"<html>", "text/html")
    assert (await proxy.get(TAG, Authorization="Bearer x")).status == 502
    registry.fault = answer_with(IMAGE.manifest, OCI_MANIFEST)
    wrong = f"/v2/team/app/manifests/{wrong_digest(IMAGE.manifest)}"
    assert (await proxy.get(wrong, Authorization="Bearer x")).status == 502
