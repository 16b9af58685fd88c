"""A registry that is gone, or hangs: nodes have what is cached, and hear soon and clearly of what is not."""

import json
import math
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.images import TAG, Images
from tests.clients.nodes import KINDS
from tests.clients.process import environment, program, wait_for
from tests.clients.proxy_process import REGISTRY, Proxy
from tests.clients.registries import Upstream
from tests.clients.wire import ask

HEADS = 200
NODES = 50
# Seconds: containerd and Docker give up at 30.
CLEAR_ERROR = 25.0
CACHED = "team/index"
TTL = 1


@pytest.fixture(params=["killed", "frozen"])
def gone(request: pytest.FixtureRequest, scratch: Path, made: Images) -> Iterator[tuple[Proxy, Upstream, str]]:
    """A proxy of two workers to whom all tags have just ended, its registry, and how that is about to go."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    upstream = Upstream("docker-registry-2.8", directory / "upstream")
    try:
        image = made.index(upstream)
        proxy = Proxy(directory / "proxy", upstream, workers=2, manifests={"tag_ttl": f"{TTL}s"})
        try:
            with KINDS["containerd-2"].node(proxy) as node:
                assert node.pull(CACHED, TAG) == image.digest
            ends = time.monotonic() + TTL
            wait_for("the end of the tag's time", lambda: time.monotonic() > ends)
            yield proxy, upstream, request.param
        finally:
            proxy.stop()
    finally:
        upstream.thaw()
        upstream.stop()


def heads(proxy: Proxy) -> float:
    """Many nodes HEAD a cached tag; gives how long, in seconds, 99 of 100 waited at most."""

    def head(_number: int) -> float:
        began = time.monotonic()
        answer = ask(proxy.port, f"/v2/{REGISTRY}/{CACHED}/manifests/{TAG}", "HEAD")
        assert answer.status == 200
        assert "detail=stale-" in answer.cache_status
        return time.monotonic() - began

    with ThreadPoolExecutor(NODES) as pool:
        return sorted(pool.map(head, range(HEADS)))[math.ceil(HEADS * 0.99) - 1]


def cold_by_hand(proxy: Proxy) -> float:
    """Somebody asks for what is not cached; gives how long that took."""
    began = time.monotonic()
    answer = ask(proxy.port, f"/v2/{REGISTRY}/team/cold/manifests/{TAG}")
    assert answer.status in {502, 504}
    (error,) = json.loads(answer.body)["errors"]
    assert error["code"] == "UNAVAILABLE"
    assert REGISTRY in error["message"]
    return time.monotonic() - began


def cold_by_skopeo(proxy: Proxy) -> str:
    """skopeo, which asks once, wants what is not cached; gives what it says of that."""
    name = f"docker://127.0.0.1:{proxy.port}/{REGISTRY}/team/colder:{TAG}"
    words = [program("skopeo"), "inspect", "--tls-verify=false", name]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stderr


def test_an_outage(gone: tuple[Proxy, Upstream, str]) -> None:
    """99 of 100 HEADs of a cached tag take less than a second, from the first moment on; a new node has the image
    whole; what is not cached is a clear error before clients give up."""
    proxy, upstream, how = gone
    if how == "killed":
        upstream.kill()
    else:
        upstream.freeze()

    assert heads(proxy) < 1

    with ThreadPoolExecutor() as pool:
        by_hand, by_skopeo = pool.submit(cold_by_hand, proxy), pool.submit(cold_by_skopeo, proxy)
        assert heads(proxy) < 1
        # Without a fallback: else it would go to the registry itself for what the proxy does not have.
        with KINDS["containerd-2"].node(proxy.at(proxy.port, "--no-fallback")) as node:
            assert node.pull(CACHED, TAG).startswith("sha256:")
        with KINDS["crane"].node(proxy) as node:
            assert node.pull(CACHED, TAG).startswith("sha256:")
        assert heads(proxy) < 1
        assert by_hand.result() < CLEAR_ERROR
        assert REGISTRY in by_skopeo.result()
