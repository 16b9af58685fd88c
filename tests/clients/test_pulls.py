"""One cold pull, and every client after it: the upstream is left alone."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.images import Image
from tests.clients.nodes import KINDS
from tests.clients.proxy_process import Proxy

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

# containerd 2.x asks for the other platforms' manifests and configs too, so it comes first where all others follow,
# and nowhere second to somebody who asks for less.
MOST_DEMANDING = "containerd-2"


def pull_all(kind: str, proxy: Proxy, *images: Image) -> None:
    """Pull every image on a fresh node and compare digests."""
    with KINDS[kind].node(proxy) as client:
        for image in images:
            assert client.pull(image.repository, image.tag) == KINDS[kind].expects(image), image.repository


@pytest.fixture(scope="module")
def warm(origin: Origin, scratch: Path) -> Iterator[Proxy]:
    """A proxy through which one client has pulled the three images."""
    images = origin.images
    proxy = Proxy(Path(tempfile.mkdtemp(dir=scratch)) / "proxy", origin.upstream)
    pull_all(MOST_DEMANDING, proxy, *images)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def restarted(warm: Proxy) -> Proxy:
    """The same proxy after a restart."""
    warm.restart()
    return warm


def test_images_are_what_they_are_said_to_be(origin: Origin) -> None:
    """The upstream holds a multi-arch OCI index, a Docker schema 2 image and an OCI image of seven blobs."""
    assert [image.media_type for image in origin.images] == [OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST]
    assert origin.index.digest != origin.index.platform_digest
    assert len(set(origin.large.blobs)) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_second_pull_costs_the_upstream_nothing(origin: Origin, warm: Proxy, kind: str) -> None:
    """After one cold pull every client gets the three images: no manifest GET and no blob request upstream."""
    mark = origin.upstream.mark()

    pull_all(kind, warm, *origin.images)

    assert [request for request in origin.upstream.requests(mark) if request.is_pull] == []


@pytest.mark.parametrize("kind", KINDS)
def test_pull_after_a_restart_costs_the_upstream_nothing(origin: Origin, restarted: Proxy, kind: str) -> None:
    """What was cached is still there, manifests and rights included, after SIGTERM and a new start."""
    mark = origin.upstream.mark()

    pull_all(kind, restarted, *origin.images)

    assert [request for request in origin.upstream.requests(mark) if request.is_pull] == []


@pytest.mark.parametrize("kind", KINDS)
def test_cold_pull_of_each_client(origin: Origin, start_proxy: StartProxy, kind: str) -> None:
    """Whoever comes first: everything is asked of the upstream once, by the proxy alone; the next client is free."""
    small = (origin.index, origin.schema2)
    proxy = start_proxy()
    cold = origin.upstream.mark()

    pull_all(kind, proxy, *small)

    requests = origin.upstream.requests(cold)
    asked = [request.path for request in requests if request.is_pull]
    assert {request.agent.partition("/")[0] for request in requests} == {"pullthrough"}
    assert len(asked) == len(set(asked))
    assert {path.rpartition("/")[2] for path in asked} >= {blob for image in small for blob in image.blobs}

    warm = origin.upstream.mark()
    pull_all("crane" if kind != "crane" else "podman", proxy, *small)
    assert [request for request in origin.upstream.requests(warm) if request.is_pull] == []


@pytest.mark.parametrize("kind", KINDS)
def test_official_image_of_docker_hub(origin: Origin, start_proxy: StartProxy, kind: str) -> None:
    """An upstream called docker.io: a single name means library/…, and is the same image to every client."""
    image = origin.official
    proxy = start_proxy(registry="docker.io")
    with KINDS["skopeo-path"].node(proxy) as first:
        assert first.pull("schema2", image.tag) == image.digest
    mark = origin.upstream.mark()

    pull_all(kind, proxy, image)

    assert [request for request in origin.upstream.requests(mark) if request.is_pull] == []
