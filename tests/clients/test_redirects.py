"""Registries that redirect blobs to their storage, as they do with S3 behind them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.images import Image, Images
from tests.clients.process import Daemon, free_port
from tests.clients.proxy_process import REGISTRY, Proxy, cluster
from tests.clients.registries import REGISTRIES, Upstream
from tests.clients.wire import answers

CLUSTERS = [
    cluster("here", "transparent", "127.0.0.1/32"),
    cluster("there", "metadata-only", "127.0.0.2/32"),
]


@dataclass
class Redirecting:
    """A registry whose blobs lie on another port, what it has, and a proxy in front of it."""

    upstream: Upstream
    storage: Daemon
    storage_url: str
    image: Image
    proxy: Proxy

    def storage_requests(self) -> int:
        return self.storage.log.read_text().count('"GET /')


@pytest.fixture(params=list(REGISTRIES))
def redirecting(request: pytest.FixtureRequest, scratch: Path, made: Images, tmp_path: Path) -> Iterator[Redirecting]:
    """Each of the two registries with its own redirect middleware; Python's file server is the storage."""
    directory, port = tmp_path / "registry", free_port()
    url = f"http://127.0.0.1:{port}"
    upstream = Upstream(request.param, directory, redirect_to=url)
    (directory / "storage").mkdir(exist_ok=True)
    command = ["python3", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    storage = Daemon([*command, "--directory", directory / "storage"], tmp_path / "storage.log")
    storage.wait_until(lambda: answers(port, "/"))
    proxy = Proxy(tmp_path / "proxy", upstream, clusters=CLUSTERS)
    yield Redirecting(upstream, storage, url, made.index(upstream), proxy)
    proxy.stop()
    storage.stop()
    upstream.stop()


def test_metadata_only_client_is_sent_to_the_storage(redirecting: Redirecting) -> None:
    """307 to exactly where the registry redirects; no byte of the blob passes here, and nothing is kept."""
    blob = redirecting.image.blobs[-1]
    before = redirecting.storage_requests()

    answer = redirecting.proxy.get(f"/v2/{REGISTRY}/team/index/blobs/{blob}", source="127.0.0.2")

    hexadecimal = blob.removeprefix("sha256:")
    assert answer.status == 307
    place = f"/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"
    assert answer.headers["Location"] == redirecting.storage_url + place
    assert answer.cache_status.startswith("pullthrough; fwd=bypass")
    assert redirecting.storage_requests() == before
    assert redirecting.proxy.metric("pullthrough_cache_blobs") == 0


def test_transparent_client_is_not_redirected(redirecting: Redirecting) -> None:
    """The proxy follows the redirect itself, once: the second pull costs the storage nothing."""
    proxy, blob = redirecting.proxy, redirecting.image.blobs[-1]
    path = f"/v2/{REGISTRY}/team/index/blobs/{blob}"

    first = proxy.get(path, source="127.0.0.1")

    assert (first.status, first.digest) == (200, blob)
    assert proxy.blob_file(blob).read_bytes() == first.body
    after = redirecting.storage_requests()
    assert proxy.get(path, source="127.0.0.1").body == first.body
    assert redirecting.storage_requests() == after
