"""metadata-only clusters: manifests from the cache, blobs straight from the upstream."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE = make_image(5000, seed=11)
BLOB = IMAGE.blobs[1]
PATH = f"/v2/team/app/blobs/{digest_of(BLOB)}"
CLUSTERS = [
    {"name": "edge", "mode": "metadata-only", "match": {"hosts": ["edge.test"]}},
    {"name": "default"},
]


@pytest.fixture
async def proxy(settings: Callable[..., Settings], registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy with both modes, told apart by host name."""
    async with running(settings(clusters=CLUSTERS)) as started:
        yield started


def kept(directory: Path) -> list[Path]:
    return [file for file in (directory / "cache" / "blobs").rglob("*") if file.is_file()]


async def test_a_blob_is_redirected_to_where_the_upstream_redirects(
    proxy: Proxy, registry: FakeRegistry, storage: FakeStorage, tmp_path: Path
) -> None:
    """307 with the upstream's own signed address, not to be stored; no byte of it comes through here."""
    registry.storage = storage
    registry.push("team/app", "v1", IMAGE)
    answer = await proxy.get(PATH, Host="edge.test")
    assert answer.status == 307
    assert answer.headers["Location"] == f"{storage.url}/{digest_of(BLOB)}?X-Signature=a%2Fb"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.state == "pullthrough; fwd=bypass; detail=metadata-only"
    assert not storage.seen
    assert not kept(tmp_path)


async def test_a_blob_is_streamed_where_the_upstream_does_not_redirect(
    proxy: Proxy, registry: FakeRegistry, tmp_path: Path
) -> None:
    """200 with the bytes, a range as 206, and nothing of it on disk."""
    registry.push("team/app", "v1", IMAGE)
    whole = await proxy.get(PATH, Host="edge.test")
    assert (whole.status, whole.body) == (200, BLOB)
    part = await proxy.get(PATH, Host="edge.test", Range="bytes=100-199")
    assert (part.status, part.body) == (206, BLOB[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(BLOB)}"
    assert not kept(tmp_path)


async def test_the_cache_is_neither_read_nor_filled(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """A blob that another cluster has cached still comes from the upstream."""
    registry.push("team/app", "v1", IMAGE)
    assert (await proxy.get(PATH)).status == 200
    await proxy.stored(1)
    assert len(kept(tmp_path)) == 1
    await proxy.get(PATH, Host="edge.test")
    assert registry.count("GET", "/blobs/") == 2


async def test_head_is_200_from_here(proxy: Proxy, registry: FakeRegistry, storage: FakeStorage) -> None:
    """HEAD of a blob is answered 200 with its length, redirecting upstream or not, and from records the second time."""
    registry.storage = storage
    registry.push("team/app", "v1", IMAGE)
    for state in ("fwd=miss; stored", "hit"):
        head = await proxy.head(PATH, Host="edge.test")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(BLOB)))
        assert head.state == f"pullthrough; {state}"
    assert registry.count("HEAD", "/blobs/") == 1


async def test_manifests_are_cached_for_both(proxy: Proxy, registry: FakeRegistry) -> None:
    """One cluster's manifest is the other's hit: they share entries, and the rate limit is protected."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get("/v2/team/app/manifests/v1")
    answer = await proxy.get("/v2/team/app/manifests/v1", Host="edge.test")
    assert answer.state.startswith("pullthrough; hit")
    assert len(registry.seen) == 1


async def test_a_redirect_to_itself_is_a_stream(proxy: Proxy, registry: FakeRegistry) -> None:
    """A relative redirect stays on the upstream's own host, where a client could not go: its bytes are streamed."""
    registry.push("team/app", "v1", IMAGE)
    from aiohttp import web

    def to_itself(request: web.BaseRequest) -> web.Response | None:
        if request.rel_url.path == PATH and "again" not in request.rel_url.query:
            return web.Response(status=302, headers={"Location": f"{PATH}?again=1"})
        return None

    registry.fault = to_itself
    answer = await proxy.get(PATH, Host="edge.test")
    assert (answer.status, answer.body) == (200, BLOB)
