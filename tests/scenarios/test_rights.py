"""Who may see what: proofs, membership, and clients with credentials of their own."""

import base64

from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(5000, seed=8)
LAYER = IMAGE.blobs[1]


async def test_a_cached_blob_is_not_given_out_under_another_repository(proxy: Proxy, registry: FakeRegistry) -> None:
    """A digest that is in the cache is 404 in a repository that does not have it, as a manifest and as a blob."""
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/other", "v1", make_image(1, seed=9))
    await proxy.get("/v2/team/app/manifests/v1")
    await proxy.get(f"/v2/team/app/blobs/{digest_of(LAYER)}")
    await proxy.stored(1)
    blob = await proxy.get(f"/v2/team/other/blobs/{digest_of(LAYER)}")
    assert (blob.status, blob.code) == (404, "BLOB_UNKNOWN")
    manifest = await proxy.get(f"/v2/team/other/manifests/{IMAGE.digest}")
    assert (manifest.status, manifest.code) == (404, "MANIFEST_UNKNOWN")


async def test_what_a_manifest_lists_proves_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """A repository whose manifest lists another's layer is not given that layer from the cache."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(f"/v2/team/app/blobs/{digest_of(LAYER)}")
    await proxy.stored(1)
    registry.tags["evil/app", "v1"] = IMAGE.digest
    registry.members.add(("evil/app", IMAGE.digest))
    assert (await proxy.get("/v2/evil/app/manifests/v1")).status == 200
    assert (await proxy.get(f"/v2/evil/app/blobs/{digest_of(LAYER)}")).status == 404


async def test_a_shared_layer_costs_one_head_a_repository(proxy: Proxy, registry: FakeRegistry) -> None:
    """A layer that is cached from one repository is served in another for the price of a HEAD."""
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/other", "v1", IMAGE)
    path = digest_of(LAYER)
    await proxy.get(f"/v2/team/app/blobs/{path}")
    await proxy.stored(1)
    answer = await proxy.get(f"/v2/team/other/blobs/{path}")
    assert (answer.body, answer.state) == (LAYER, "pullthrough; fwd=stale; fwd-status=200")
    assert (await proxy.get(f"/v2/team/other/blobs/{path}")).state == "pullthrough; hit"
    assert [(seen.method, seen.path) for seen in registry.seen[1:]] == [("HEAD", f"/v2/team/other/blobs/{path}")]


async def test_where_head_is_not_answered_one_byte_is_asked_for(proxy: Proxy, registry: FakeRegistry) -> None:
    """ECR Public answers HEAD of a blob with 401 where GET works: a range of one byte proves as well."""
    registry.head_blobs = False
    registry.push("team/app", "v1", IMAGE)
    registry.push("team/other", "v1", IMAGE)
    await proxy.get(f"/v2/team/app/blobs/{digest_of(LAYER)}")
    await proxy.stored(1)
    sent = registry.sent
    assert (await proxy.get(f"/v2/team/other/blobs/{digest_of(LAYER)}")).body == LAYER
    assert registry.sent == sent + 1


async def test_an_empty_basic_counts_as_none(proxy: Proxy, registry: FakeRegistry) -> None:
    """Clients that send an empty Basic are anonymous, and are served from the cache."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get("/v2/team/app/manifests/v1")
    empty = "Basic " + base64.b64encode(b":").decode()
    answer = await proxy.get("/v2/team/app/manifests/v1", Authorization=empty)
    assert answer.state.startswith("pullthrough; hit")


async def test_a_refusal_ends_the_proof(proxy: Proxy, registry: FakeRegistry) -> None:
    """A repository that turned private is refused once the proof has lapsed, and in the outage after that too."""
    registry.private = {"team/app": {""}}
    registry.push("team/app", "v1", IMAGE)
    assert (await proxy.get("/v2/team/app/manifests/v1")).status == 200
    registry.private = {"team/app": {"alice"}}
    registry.revoke_tokens()
    proxy.clock.advance(301)
    assert (await proxy.get("/v2/team/app/manifests/v1")).status == 401
    await registry.stop()
    assert (await proxy.get("/v2/team/app/manifests/v1")).status == 502
