"""An image that was pulled once is pulled again without its upstream."""

from collections.abc import Callable

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image, make_index
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(1, 3000, 700_000, seed=1)
OTHER = make_image(1, 50, seed=2)
INDEX = make_index(IMAGE, OTHER)


def push(registry: FakeRegistry) -> None:
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/app", "other", OTHER)
    registry.push("team/app", "multi", INDEX)


async def pull(proxy: Proxy) -> None:
    """As containerd does: HEAD by tag, then everything by digest."""
    head = await proxy.head("/v2/team/app/manifests/multi?ns=registry.test")
    assert (head.status, head.headers["Docker-Content-Digest"]) == (200, INDEX.digest)
    assert head.headers["Content-Length"] == str(len(INDEX.manifest))
    assert head.headers["Content-Type"] == INDEX.media_type
    for content in (INDEX.manifest, IMAGE.manifest):
        answer = await proxy.get(f"/v2/team/app/manifests/{digest_of(content)}?ns=registry.test")
        assert (answer.status, answer.body) == (200, content)
    for blob in IMAGE.blobs:
        answer = await proxy.get(f"/v2/team/app/blobs/{digest_of(blob)}?ns=registry.test")
        assert (answer.status, answer.body) == (200, blob)


async def test_the_first_pull_costs_one_get_each_and_the_second_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """Each manifest and each blob is asked of the upstream exactly once, however often it is pulled."""
    push(registry)
    await pull(proxy)
    assert registry.count("GET", "/manifests/") == 2
    assert registry.count("HEAD", "/manifests/") == 1
    assert registry.count("GET", "/blobs/") == len(IMAGE.blobs)
    seen = len(registry.seen)
    await pull(proxy)
    assert len(registry.seen) == seen
    assert await proxy.metric("pullthrough_upstream_requests_total") == seen


async def test_a_restart_forgets_nothing(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """Manifests, blobs, proofs and memberships are there after the proxy was stopped and started."""
    push(registry)
    async with running(settings()) as proxy:
        await pull(proxy)
        await proxy.stored(len(IMAGE.blobs))
    seen = len(registry.seen)
    async with running(settings()) as proxy:
        await pull(proxy)
        assert (await proxy.metric("pullthrough_cache_blobs")) == len(IMAGE.blobs)
    assert len(registry.seen) == seen


async def test_every_answer_says_where_it_came_from(proxy: Proxy, registry: FakeRegistry) -> None:
    """Cache-Status, Age and OCI-Namespace stand on manifests and blobs, on HEAD as on GET."""
    push(registry)
    first = await proxy.get("/v2/team/app/manifests/v1")
    assert first.state == "pullthrough; fwd=miss; stored"
    assert first.headers["OCI-Namespace"] == "registry.test"
    proxy.clock.advance(60)
    again = await proxy.get("/v2/team/app/manifests/v1")
    assert (again.state, again.headers["Age"]) == ("pullthrough; hit; ttl=540", "60")
    head = await proxy.head("/v2/team/app/manifests/v1")
    assert (head.state, head.headers["Age"]) == ("pullthrough; hit; ttl=540", "60")
    by_digest = await proxy.get(f"/v2/team/app/manifests/{IMAGE.digest}")
    assert (by_digest.state, by_digest.headers["Age"]) == ("pullthrough; hit", "60")
    blob = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[2])}"
    assert (await proxy.get(blob)).state == "pullthrough; fwd=miss; stored"
    await proxy.stored(1)
    assert (await proxy.get(blob)).state == "pullthrough; hit"
    assert (await proxy.head(blob)).state == "pullthrough; hit"


async def test_a_head_of_an_absent_blob_starts_no_fill(proxy: Proxy, registry: FakeRegistry) -> None:
    """A HEAD is answered from the upstream's HEAD, and nothing is downloaded."""
    push(registry)
    blob = IMAGE.blobs[2]
    head = await proxy.head(f"/v2/team/app/blobs/{digest_of(blob)}")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(blob)))
    assert registry.count("GET", "/blobs/") == 0
    assert await proxy.metric("pullthrough_cache_blobs") == 0
