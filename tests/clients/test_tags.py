"""A tag that moves upstream: sticky for its TTL, for every client alike."""

import time

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.nodes import KINDS
from tests.clients.process import wait_for

REPOSITORY = "team/moving"
TTL = 8.0
SHORT = {"manifests": {"tag_ttl": f"{TTL:.0f}s"}}


@pytest.mark.parametrize("kind", KINDS)
def test_moved_tag(origin: Origin, start_proxy: StartProxy, kind: str) -> None:
    """Within `tag_ttl` a client gets the digest that was cached, after it the new one."""
    old, new = origin.versions
    proxy, tag = start_proxy(**SHORT), kind
    origin.upstream.tag(REPOSITORY, tag, old)
    with KINDS[kind].node(proxy) as client:
        cached = time.monotonic()
        assert proxy.tag_digest(REPOSITORY, tag) == old
        origin.upstream.tag(REPOSITORY, tag, new)

        assert client.pull(REPOSITORY, tag) == old
        assert time.monotonic() - cached < TTL, "this machine is too slow for the test's TTL"

        wait_for("the end of the TTL", lambda: proxy.tag_digest(REPOSITORY, tag) == new, within=2 * TTL)
        assert time.monotonic() - cached >= TTL - 0.1
        assert client.pull(REPOSITORY, tag) == new


@pytest.mark.parametrize("kind", KINDS)
def test_digest_is_never_revalidated(origin: Origin, start_proxy: StartProxy, kind: str) -> None:
    """A pull by digest asks the upstream for nothing once it is cached, not even by HEAD, TTL or not."""
    old, new = origin.versions
    proxy = start_proxy(manifests={"tag_ttl": "0s"})
    with KINDS[kind].node(proxy) as first:
        assert first.pull(REPOSITORY, old) == old
    origin.upstream.tag(REPOSITORY, "v1", new)
    mark = origin.upstream.mark()

    with KINDS[kind].node(proxy) as second:
        assert second.pull(REPOSITORY, old) == old

    assert origin.upstream.requests(mark) == []


def test_lapsed_proof_is_renewed_by_head(origin: Origin, start_proxy: StartProxy) -> None:
    """After `proof_ttl` the upstream is asked once more whether the client may read: by HEAD, which is no pull."""
    old, _ = origin.versions
    proxy = start_proxy(manifests={"tag_ttl": "0s", "proof_ttl": "0s"})
    path = f"/v2/registry.test/{REPOSITORY}/manifests/{old}"
    assert proxy.get(path).status == 200
    mark = origin.upstream.mark()

    assert proxy.get(path).digest == old

    assert [request.method for request in origin.upstream.requests(mark)] == ["HEAD"]
