"""One server, two clusters that are told apart by their network."""

from tests.clients.conftest import Origin, StartProxy
from tests.clients.proxy_process import REGISTRY, Proxy, cluster

TRANSPARENT = "127.0.0.1"
METADATA_ONLY = "127.0.0.2"
CLUSTERS = [
    cluster("here", "transparent", f"{TRANSPARENT}/32"),
    cluster("there", "metadata-only", f"{METADATA_ONLY}/32"),
]
REPOSITORY = f"/v2/{REGISTRY}/team/index"


def manifest(origin: Origin, proxy: Proxy, source: str) -> str:
    """Get the image's manifest by tag; gives its Cache-Status."""
    answer = proxy.get(f"{REPOSITORY}/manifests/v1", source=source)
    assert (answer.status, answer.digest) == (200, origin.index.digest)
    return answer.cache_status


def test_transparent_cluster_keeps_the_blob(origin: Origin, start_proxy: StartProxy) -> None:
    """In `transparent` a blob is on disk after its pull, and the next client costs no request upstream."""
    proxy, blob = start_proxy(clusters=CLUSTERS), origin.index.blobs[-1]
    manifest(origin, proxy, TRANSPARENT)

    first = proxy.get(f"{REPOSITORY}/blobs/{blob}", source=TRANSPARENT)

    assert (first.status, first.digest) == (200, blob)
    assert proxy.blob_file(blob).read_bytes() == first.body
    mark = origin.upstream.mark()
    second = proxy.get(f"{REPOSITORY}/blobs/{blob}", source=TRANSPARENT)
    assert second.body == first.body
    assert second.cache_status.startswith("pullthrough; hit")
    assert origin.upstream.requests(mark) == []


def test_metadata_only_cluster_keeps_the_manifest(origin: Origin, start_proxy: StartProxy) -> None:
    """In `metadata-only` the manifest is the one another cluster cached; the blob is streamed and kept nowhere.

    Neither registry redirects to its storage here, so there is nowhere to send the client to.
    """
    proxy, blob = start_proxy(clusters=CLUSTERS), origin.index.blobs[-1]
    manifest(origin, proxy, TRANSPARENT)
    mark = origin.upstream.mark()

    assert manifest(origin, proxy, METADATA_ONLY).startswith("pullthrough; hit")
    answer = proxy.get(f"{REPOSITORY}/blobs/{blob}", source=METADATA_ONLY)

    assert (answer.status, answer.digest) == (200, blob)
    assert answer.cache_status.startswith("pullthrough; fwd=bypass")
    assert {(request.method, request.on_blob) for request in origin.upstream.requests(mark)} == {("GET", True)}
    assert [file for file in proxy.cache.rglob("*") if blob.removeprefix("sha256:") in file.name] == []
    assert proxy.metric("pullthrough_cache_blobs") == 0


def test_client_of_no_cluster_is_denied(origin: Origin, start_proxy: StartProxy) -> None:
    """An address that fits no cluster gets 403 DENIED, and the upstream no request."""
    proxy = start_proxy(clusters=CLUSTERS)
    mark = origin.upstream.mark()

    answer = proxy.get(f"{REPOSITORY}/manifests/v1", source="127.0.0.3")

    assert answer.status == 403
    assert b"DENIED" in answer.body
    assert origin.upstream.requests(mark) == []
