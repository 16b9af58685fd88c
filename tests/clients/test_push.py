"""Real clients push through the proxy, by path prefix and to the default upstream, and pull what they pushed."""

import json
import tempfile
import uuid
from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.images import TAG, pushed
from tests.clients.layout import Layer, Layout
from tests.clients.process import run
from tests.clients.proxy_process import REGISTRY, Proxy
from tests.clients.wire import ask

MODES = ["transparent", "metadata-only"]
PREFIXES = ["", f"{REGISTRY}/"]


def made(directory: Path, seed: int) -> Layout:
    """A layout of an image with a large, a small and an empty layer."""
    layout = Layout(directory)
    layout.tag(TAG, layout.image([Layer("big", 30_000_000, seed), Layer("small", 100, seed), Layer("empty", 0, seed)]))
    return layout


def top(layout: Layout) -> str:
    return str(json.loads((layout.path / "index.json").read_text())["manifests"][0]["digest"])


def copy_by_skopeo(layout: Layout, target: str) -> None:
    options = ("--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false")
    run("skopeo", *options, f"oci:{layout.path}:{TAG}", f"docker://{target}:{TAG}")


def push_by_crane(layout: Layout, target: str) -> None:
    with tempfile.TemporaryDirectory() as config:
        run("crane", "push", "--insecure", layout.path, f"{target}:{TAG}", env={"DOCKER_CONFIG": config})


def pulled_digest(proxy: Proxy, repository: str) -> str:
    answer = ask(proxy.port, f"/v2/{repository}/manifests/{TAG}")
    assert answer.status == 200, answer.body
    for blob in json.loads(answer.body)["layers"]:
        assert ask(proxy.port, f"/v2/{repository}/blobs/{blob['digest']}").digest == blob["digest"]
    return answer.digest


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", PREFIXES, ids=["default upstream", "path prefix"])
@pytest.mark.parametrize("client", [copy_by_skopeo, push_by_crane], ids=["skopeo", "crane"])
def test_an_image_is_pushed_and_pulled(  # type: ignore[no-untyped-def]
    origin: Origin, start_proxy: StartProxy, tmp_path: Path, client, prefix: str, mode: str
) -> None:
    """The upstream holds what was pushed, and the proxy serves it at once; a second push under the tag too."""
    proxy = start_proxy(clusters=[{"name": "default", "mode": mode, "push": "forward"}])
    repository = f"pushed/{uuid.uuid4().hex[:8]}"
    for seed in (1, 2):
        layout = made(tmp_path / f"layout{seed}", seed)
        client(layout, f"127.0.0.1:{proxy.port}/{prefix}{repository}")
        assert pushed_digest(origin, repository) == top(layout)
        assert pulled_digest(proxy, f"{prefix}{repository}") == top(layout)


def pushed_digest(origin: Origin, repository: str) -> str:
    return pushed(origin.upstream, repository).digest


def test_a_layer_is_mounted_from_another_repository(origin: Origin, start_proxy: StartProxy, tmp_path: Path) -> None:
    """crane copies within the proxy: layers are mounted where the upstream has them, and none comes twice."""
    proxy = start_proxy(clusters=[{"name": "default", "push": "forward"}])
    first, second = f"pushed/{uuid.uuid4().hex[:8]}", f"pushed/{uuid.uuid4().hex[:8]}"
    layout = made(tmp_path / "layout", 3)
    place = f"127.0.0.1:{proxy.port}/{REGISTRY}"
    push_by_crane(layout, f"{place}/{first}")
    mark = origin.upstream.mark()

    run("crane", "copy", "--insecure", f"{place}/{first}:{TAG}", f"{place}/{second}:{TAG}", env={"DOCKER_CONFIG": "/x"})

    assert pushed_digest(origin, second) == top(layout)
    mounts = [request for request in origin.upstream.requests(mark) if "mount=" in request.path]
    assert mounts
    assert {request.status for request in mounts} == {201}
