"""A mutable tag is sticky for its TTL, and says so."""

from collections.abc import Callable

from proxy.settings import Settings
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry

OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)
TAG = "/v2/team/app/manifests/latest"


async def test_a_moved_tag_is_the_old_one_within_its_ttl_and_the_new_one_after(
    proxy: Proxy, registry: FakeRegistry
) -> None:
    """Until tag_ttl ends everybody gets the cached digest; then one HEAD and one GET by digest bring the new one."""
    registry.push("team/app", "latest", OLD)
    assert (await proxy.get(TAG)).body == OLD.manifest
    registry.push("team/app", "latest", NEW)
    proxy.clock.advance(200)
    assert (await proxy.get(TAG)).body == OLD.manifest
    assert len(registry.seen) == 1
    proxy.clock.advance(401)
    moved = await proxy.get(TAG)
    assert (moved.body, moved.headers["Docker-Content-Digest"]) == (NEW.manifest, NEW.digest)
    assert [(seen.method, seen.path) for seen in registry.seen[1:]] == [
        ("HEAD", TAG),
        ("GET", f"/v2/team/app/manifests/{NEW.digest}"),
    ]


async def test_an_unmoved_tag_costs_a_head(proxy: Proxy, registry: FakeRegistry) -> None:
    """After its TTL a tag that did not move is fresh again by one HEAD, which no rate limit counts."""
    registry.push("team/app", "latest", OLD)
    await proxy.get(TAG)
    proxy.clock.advance(601)
    answer = await proxy.get(TAG)
    assert answer.state == "pullthrough; fwd=stale; fwd-status=200; ttl=600"
    assert answer.headers["Age"] == "0"
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD"]


async def test_head_and_get_agree_while_the_tag_moves(proxy: Proxy, registry: FakeRegistry) -> None:
    """A tag that was only asked for by HEAD keeps that digest for a GET, even when it moved in between."""
    registry.push("team/app", "latest", OLD)
    head = await proxy.head(TAG)
    assert head.headers["Docker-Content-Digest"] == OLD.digest
    registry.push("team/app", "latest", NEW)
    assert (await proxy.get(TAG)).headers["Docker-Content-Digest"] == OLD.digest
    assert registry.count("GET", TAG) == 0


async def test_a_lapsed_proof_keeps_the_tag_and_tells_that_it_moved(proxy: Proxy, registry: FakeRegistry) -> None:
    """When the proof lapses within the TTL a HEAD renews it; a tag that moved stays, with a Warning."""
    registry.push("team/app", "latest", OLD)
    await proxy.get(TAG)
    registry.push("team/app", "latest", NEW)
    proxy.clock.advance(301)
    answer = await proxy.get(TAG)
    assert answer.body == OLD.manifest
    assert NEW.digest in answer.headers["Warning"]
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD"]
    proxy.clock.advance(300)
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_a_digest_is_never_revalidated(proxy: Proxy, registry: FakeRegistry) -> None:
    """A manifest by digest is served without asking, long after every tag has ended, while the proof holds."""
    registry.push("team/app", "latest", OLD)
    path = f"/v2/team/app/manifests/{OLD.digest}"
    await proxy.get(path)
    for number in range(3):
        proxy.clock.advance(290)
        answer = await proxy.get(path)
        assert (answer.body, answer.state) == (OLD.manifest, "pullthrough; hit")
        # Another manifest's pull renews the proof of the repository.
        registry.push("team/app", f"other-{number}", make_image(5, seed=10 + number))
        await proxy.get(f"/v2/team/app/manifests/other-{number}")
        proxy.clock.advance(5)
    assert registry.count("GET", OLD.digest) == 1
    assert registry.count("HEAD", OLD.digest) == 0


async def test_tags_have_ttls_of_their_own(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """A rule's pattern gives its tags another TTL."""
    registry.push("team/app", "latest", OLD)
    registry.push("team/app", "v1", OLD)
    rules = {"tag_rules": [{"tags": "v*", "ttl": "7d"}], "tag_ttl": "1m", "proof_ttl": "30d"}
    async with running(settings(manifests=rules)) as proxy:
        for tag in ("latest", "v1"):
            await proxy.get(f"/v2/team/app/manifests/{tag}")
        proxy.clock.advance(61)
        assert (await proxy.get("/v2/team/app/manifests/v1")).state.startswith("pullthrough; hit; ttl=6047")
        assert (await proxy.get(TAG)).state.startswith("pullthrough; fwd=stale")


async def test_a_tag_that_is_gone_is_gone(proxy: Proxy, registry: FakeRegistry) -> None:
    """When the upstream says 404 after the TTL the tag ends, also for the outage that follows."""
    registry.push("team/app", "latest", OLD)
    await proxy.get(TAG)
    del registry.tags["team/app", "latest"]
    proxy.clock.advance(601)
    answer = await proxy.get(TAG)
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    await registry.stop()
    proxy.clock.advance(11)
    assert (await proxy.get(TAG)).status == 502
