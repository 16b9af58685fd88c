"""Tags and referrers: paged, with links that lead back here, and the upstream's 404 as it is."""

import json

from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(5, seed=13)


def push_tags(registry: FakeRegistry) -> None:
    for tag in ("a", "b", "c"):
        registry.push("team/app", tag, IMAGE)


async def test_tags_are_paged_back_through_here(proxy: Proxy, registry: FakeRegistry) -> None:
    """Following `Link` from page to page gives all tags, with the prefix and `ns` that the client used."""
    push_tags(registry)
    path, tags = "/v2/registry.test/team/app/tags/list?n=2&ns=registry.test", []
    for _ in range(2):
        answer = await proxy.get(path)
        tags += json.loads(answer.body)["tags"]
        link = answer.headers.get("Link")
        if link is not None:
            assert link == '</v2/registry.test/team/app/tags/list?last=b&n=2&ns=registry.test>; rel="next"'
            path = link[1 : link.index(">")]
    assert tags == ["a", "b", "c"]
    assert "Link" not in answer.headers
    assert [seen.query for seen in registry.seen] == ["n=2", "last=b&n=2"]


async def test_a_list_is_kept_like_a_tag(proxy: Proxy, registry: FakeRegistry) -> None:
    """Within tag_ttl a list is a hit; after it the upstream is asked; while that fails the old one is stale."""
    push_tags(registry)
    path = "/v2/team/app/tags/list"
    assert (await proxy.get(path)).state == "pullthrough; fwd=miss; stored"
    assert (await proxy.get(path)).state == "pullthrough; hit; ttl=600"
    proxy.clock.advance(601)
    assert (await proxy.get(path)).state == "pullthrough; fwd=miss; stored"
    await registry.stop()
    proxy.clock.advance(601)
    stale = await proxy.get(path)
    assert stale.state == "pullthrough; fwd=stale; detail=stale-connect"
    assert json.loads(stale.body)["tags"] == ["a", "b", "c"]


async def test_a_repository_that_does_not_exist(proxy: Proxy) -> None:
    """Tags of an unknown repository are NAME_UNKNOWN."""
    answer = await proxy.get("/v2/team/none/tags/list")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


async def test_referrers(proxy: Proxy, registry: FakeRegistry) -> None:
    """An index of referrers is passed on as it is, the query with it."""
    body = b'{"schemaVersion":2,"manifests":[]}'
    registry.referrers[IMAGE.digest] = body
    answer = await proxy.get(f"/v2/team/app/referrers/{IMAGE.digest}?artifactType=a%2Fb&ns=registry.test")
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
    assert registry.seen[0].query == "artifactType=a/b"


async def test_upstreams_404_for_referrers_stays_404(proxy: Proxy) -> None:
    """No empty list is invented: clients go on to the fallback tag."""
    answer = await proxy.get(f"/v2/team/app/referrers/{IMAGE.digest}")
    assert answer.status == 404
