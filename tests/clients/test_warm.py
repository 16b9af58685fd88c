"""Images that were warmed are pulled whole while their registry is gone."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.images import Image, Images
from tests.clients.nodes import KINDS
from tests.clients.process import run
from tests.clients.proxy_process import PULLTHROUGH, REGISTRY, Proxy
from tests.clients.registries import REGISTRIES, Upstream


@pytest.fixture(scope="module", params=list(REGISTRIES))
def warmed(request: pytest.FixtureRequest, scratch: Path, made: Images) -> Iterator[tuple[Proxy, list[Image]]]:
    """A proxy that was told to warm three images by a list and on the command line, and whose upstream is gone."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    upstream = Upstream(request.param, directory / "upstream")
    try:
        images = [made.index(upstream), made.schema2(upstream), made.large(upstream)]
        proxy = Proxy(directory / "proxy", upstream)
        try:
            names = [f"{REGISTRY}/{image.repository}:{image.tag}" for image in images]
            listed = directory / "images.txt"
            listed.write_text("".join(f"{name}  # from a list\n" for name in names[1:]))
            admin = f"http://127.0.0.1:{proxy.admin_port}"
            said = run(PULLTHROUGH, "warm", names[0], "--from", listed, "--admin", admin)
            assert said.splitlines()[-1].startswith("3 of 3 images warm")
            upstream.stop()
            yield proxy, images
        finally:
            proxy.stop()
    finally:
        upstream.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_an_outage_after_warming(warmed: tuple[Proxy, list[Image]], kind: str) -> None:
    """Every client has every image whole, by tag and by digest, though the registry cannot be connected to any more."""
    proxy, images = warmed
    with KINDS[kind].node(proxy) as client:
        for image in images:
            assert client.pull(image.repository, image.tag) == KINDS[kind].expects(image)
    with KINDS[kind].node(proxy) as client:
        assert client.pull(images[0].repository, images[0].digest) == KINDS[kind].expects(images[0])
