"""Requests off the grammar: OCI error JSON, nothing dialled, nothing written outside of the cache."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy
from tests.fakes.registry import FakeRegistry

GOOD = "sha256:" + "a" * 64


async def raw(proxy: Proxy, request: bytes) -> tuple[int, bytes, bytes]:
    """Send bytes as they are; gives status, head and body."""
    host, _, port = proxy.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), head, body


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/../../etc/passwd", 405, "UNSUPPORTED"),
        ("/v2/../x/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/%2e%2e/x/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/%2e%2e%2f%2e%2e/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/Upper/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a%00b/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/" + "t" * 129, 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/sha256:" + "a" * 63, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/md5:" + "a" * 32, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:" + "g" * 64, 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/nonsense", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/{GOOD}?ns=unknown.test", 404, "NAME_UNKNOWN"),
        (f"/v2/a/blobs/{GOOD}?ns=169.254.169.254", 404, "NAME_UNKNOWN"),
        ("/v2/" + "a" * 300 + "/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/" + "a" * 2000 + "/manifests/v1", 414, "NAME_INVALID"),
        ("/v2/" + "a" * 9000 + "/manifests/v1", 414, "NAME_INVALID"),
        ("/v2/a/uploads/x", 405, "UNSUPPORTED"),
        ("/v2/_catalog", 405, "UNSUPPORTED"),
        ("/", 404, "UNSUPPORTED"),
        ("/v1/_ping", 404, "UNSUPPORTED"),
        ("/metrics", 404, "UNSUPPORTED"),
    ],
)
async def test_a_bad_path_is_an_oci_error(
    proxy: Proxy, registry: FakeRegistry, tmp_path: Path, path: str, status: int, code: str
) -> None:
    """Each bad path has its status and code, exactly as it was sent, and reaches nobody."""
    before = set(tmp_path.rglob("*"))
    got, head, body = await raw(proxy, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (got, json.loads(body)["errors"][0]["code"]) == (status, code)
    assert b"application/json" in head
    assert not registry.seen
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_what_is_no_pull_is_405(proxy: Proxy, registry: FakeRegistry, method: str) -> None:
    """Pushes, deletes and everything else under /v2/ are UNSUPPORTED."""
    answer = await proxy.get("/v2/team/app/manifests/v1", method)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert not registry.seen


async def test_garbage_is_an_oci_error(proxy: Proxy) -> None:
    """Bytes that are no HTTP get 400 as OCI error JSON."""
    status, _, body = await raw(proxy, b"\x16\x03\x01\x02\x00garbage\r\n\r\n")
    assert (status, json.loads(body)["errors"][0]["code"]) == (400, "NAME_INVALID")


async def test_the_ping(proxy: Proxy) -> None:
    """`GET /v2/` and `GET /v2` are 200 without asking anybody."""
    for path in ("/v2/", "/v2"):
        answer = await proxy.get(path)
        assert (answer.status, answer.headers["Docker-Distribution-API-Version"]) == (200, "registry/2.0")
    assert (await proxy.head("/v2/")).status == 200


async def test_a_client_of_no_cluster_is_denied(proxy: Proxy, registry: FakeRegistry, settings, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Where every cluster has a match and none fits: 403 DENIED."""
    from tests.fakes.proxy import make_settings, running

    clusters = [{"name": "far", "match": {"networks": ["10.0.0.0/8"]}}]
    other = make_settings(tmp_path / "other", {"registry.test": {"url": registry.url}}, clusters=clusters)
    async with running(other) as closed:
        for path in ("/v2/", "/v2/team/app/manifests/v1"):
            answer = await closed.get(path)
            assert (answer.status, answer.code) == (403, "DENIED")
    assert not registry.seen


async def test_percent_encoded_colons_are_understood(proxy: Proxy, registry: FakeRegistry) -> None:
    """A client may write a digest's colon as %3A."""
    image = make_image(5, seed=3)
    registry.push("team/app", "v1", image)
    answer = await proxy.get(f"/v2/team/app/manifests/{image.digest.replace(':', '%3A')}")
    assert answer.status == 200
    assert digest_of(answer.body) == image.digest
