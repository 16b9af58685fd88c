"""A tag that moves upstream: sticky for its TTL, for every client alike."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.nodes import KINDS
from tests.clients.process import wait_for
from tests.clients.proxy_process import Proxy

REPOSITORY = "team/moving"
TTL = 16.0


@pytest.fixture(scope="module")
def pulled(origin: Origin, scratch: Path) -> dict[str, tuple[str, str]]:
    """What each kind of client got within the TTL of a tag of its own that had moved, and after it.

    All of them wait for the same time to pass.
    """
    old, new = origin.versions
    proxy = Proxy(Path(tempfile.mkdtemp(dir=scratch)) / "proxy", origin.upstream, manifests={"tag_ttl": f"{TTL:.0f}s"})
    with ExitStack() as stack:
        stack.callback(proxy.stop)
        nodes = {kind: stack.enter_context(KINDS[kind].node(proxy)) for kind in KINDS}
        for tag in KINDS:
            origin.upstream.tag(REPOSITORY, tag, old)
        began = time.monotonic()
        assert {proxy.tag_digest(REPOSITORY, tag) for tag in KINDS} == {old}
        cached = time.monotonic()
        for tag in KINDS:
            origin.upstream.tag(REPOSITORY, tag, new)

        within = {kind: node.pull(REPOSITORY, kind) for kind, node in nodes.items()}
        assert time.monotonic() - began < TTL, "this machine is too slow for the test's TTL"
        wait_for("the end of the TTL", lambda: time.monotonic() - cached > TTL, within=2 * TTL)
        return {kind: (within[kind], node.pull(REPOSITORY, kind)) for kind, node in nodes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_moved_tag(origin: Origin, pulled: dict[str, tuple[str, str]], kind: str) -> None:
    """Within `tag_ttl` a client gets the digest that was cached, after it the new one."""
    assert pulled[kind] == origin.versions


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
