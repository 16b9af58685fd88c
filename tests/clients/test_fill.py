"""Many clients for one cold blob: one download."""

from concurrent.futures import ThreadPoolExecutor

from tests.clients.conftest import Origin, StartProxy
from tests.clients.nodes import KINDS
from tests.clients.process import program, run
from tests.clients.proxy_process import REGISTRY

# Room for the image's manifests, which are counted as well.
MANIFESTS = 64 * 1024
CLIENTS = 16


def test_sixteen_clients_cost_one_download(origin: Origin, start_proxy: StartProxy) -> None:
    """16 crane processes want a cold blob of 100 MB at once: the upstream sends each of its bytes once."""
    digest = origin.blob
    proxy = start_proxy()
    mark = origin.upstream.mark()

    reference = f"127.0.0.1:{proxy.port}/{REGISTRY}/team/blob@{digest}"
    pull = f"{program('crane')} blob --insecure {reference} | sha256sum"
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(run, "bash", "-o", "pipefail", "-c", pull) for _ in range(CLIENTS)]
        sums = [client.result().split()[0] for client in running]

    assert sums == [digest.removeprefix("sha256:")] * CLIENTS
    fetched = [request for request in origin.upstream.requests(mark) if request.on_blob]
    # Those that joined are proved by HEAD at most; the bytes come by ranges, one after the other or a few at a time.
    assert {request.method for request in fetched} <= {"GET", "HEAD"}
    size = proxy.blob_file(digest).stat().st_size
    assert size <= proxy.metric("pullthrough_upstream_bytes_total", registry=REGISTRY) <= 1.01 * size
    assert proxy.metric("pullthrough_client_bytes_total", kind="blob") == CLIENTS * size
    assert proxy.metric("pullthrough_requests_total", kind="blob", cache="joined") > 0


def test_parallel_ranges_cost_one_download(origin: Origin, start_proxy: StartProxy) -> None:
    """containerd 2.x fetches a cold layer of 200 MB in open-ended ranges, closed early: each byte is asked for once."""
    kind, image = KINDS["containerd-2-parallel"], origin.large
    proxy = start_proxy()
    mark = origin.upstream.mark()

    with kind.node(proxy) as client:
        assert client.pull(image.repository, image.tag) == image.digest

    fetched = {request.path.rpartition("/")[2] for request in origin.upstream.requests(mark) if request.on_blob}
    assert fetched == set(image.blobs)
    size = sum(proxy.blob_file(digest).stat().st_size for digest in image.blobs)
    assert proxy.metric("pullthrough_upstream_bytes_total", registry=REGISTRY) <= 1.01 * size + MANIFESTS
    ranges = proxy.metric("pullthrough_requests_total", kind="blob", status="206")
    assert ranges > len(image.blobs), "the layer was not fetched in ranges"
