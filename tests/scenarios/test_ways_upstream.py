"""How an upstream is reached: its own certificate authority, an HTTP proxy, several names, several registries."""

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import make_settings, running
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(3000, seed=30)
TAG = "/v2/team/app/manifests/v1"


async def test_an_http_proxy_on_the_way(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """With `proxy` the upstream's name is not looked up here: the request goes to the proxy, whole."""
    registry.push("team/app", "v1", IMAGE)
    way = {"url": "http://registry.invalid", "proxy": registry.url}
    async with running(settings(way)) as proxy:
        assert (await proxy.get(TAG)).body == IMAGE.manifest
        assert (await proxy.get(f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}")).body == IMAGE.blobs[1]
    assert registry.seen[0].headers["Host"] == "registry.invalid"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    file = tmp_path / "tls.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {file} -out {tmp_path / 'ca.crt'}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "ca.crt").read_text())
    return file


async def serve_tls(handler: Callable[[web.BaseRequest], object], file: Path) -> tuple[web.ServerRunner, str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    return runner, f"https://127.0.0.1:{runner.addresses[0][1]}"


async def test_a_certificate_authority_of_its_own(tmp_path: Path, registry: FakeRegistry, certificate: Path) -> None:
    """With its `ca` a registry is trusted; without it the client gets 502, and nothing was sent to it."""
    registry.push("team/app", "v1", IMAGE)
    runner, url = await serve_tls(registry._handle, certificate)
    ca = {"url": url, "ca": str(tmp_path / "ca.crt")}
    async with running(make_settings(tmp_path / "one", {"registry.test": ca})) as proxy:
        assert (await proxy.get(TAG)).body == IMAGE.manifest
    seen = len(registry.seen)
    async with running(make_settings(tmp_path / "two", {"registry.test": {"url": url}})) as proxy:
        answer = await proxy.get(TAG)
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert len(registry.seen) == seen
    await runner.cleanup()


async def test_a_redirect_never_leaves_https(tmp_path: Path, registry: FakeRegistry, certificate: Path) -> None:
    """An https upstream that redirects to http is 502; the plain address sees nothing."""
    registry.push("team/app", "v1", IMAGE)

    async def redirect(request: web.BaseRequest) -> web.Response:
        return web.Response(status=307, headers={"Location": registry.url + request.rel_url.raw_path})

    runner, url = await serve_tls(redirect, certificate)
    upstream = {"registry.test": {"url": url, "ca": str(tmp_path / "ca.crt")}}
    clusters = [{"name": "edge", "mode": "metadata-only", "match": {"hosts": ["edge.test"]}}, {"name": "default"}]
    async with running(make_settings(tmp_path / "cache", upstream, clusters=clusters)) as proxy:
        blob = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}"
        assert (await proxy.get(TAG)).status == 502
        assert (await proxy.get(blob)).status == 502
        proxy.clock.advance(600)
        assert (await proxy.get(blob, Host="edge.test")).status == 502
    assert not registry.seen
    await runner.cleanup()


async def test_registries_are_told_apart_in_every_way(tmp_path: Path, registry: FakeRegistry) -> None:
    """`ns`, Host, path prefix and default lead each to their own registry, with library/ for docker.io."""
    hub, other = registry, FakeRegistry()
    await other.start()
    official = make_image(1, seed=31)
    hub.push("library/nginx", "v1", official)
    other.push("nginx", "v1", IMAGE)
    upstreams: dict[str, dict[str, Any]] = {
        "docker.io": {"url": hub.url},
        "other.test:5000": {"url": other.url, "aliases": ["other"]},
    }
    async with running(make_settings(tmp_path / "cache", upstreams)) as proxy:
        for path, host, digest, name in (
            ("/v2/nginx/manifests/v1", "x", official.digest, "docker.io"),
            ("/v2/library/nginx/manifests/v1", "x", official.digest, "docker.io"),
            ("/v2/nginx/manifests/v1?ns=docker.io", "x", official.digest, "docker.io"),
            ("/v2/nginx/manifests/v1?ns=other.test%3A5000", "x", IMAGE.digest, "other.test:5000"),
            ("/v2/nginx/manifests/v1", "other.test:5000", IMAGE.digest, "other.test:5000"),
            ("/v2/nginx/manifests/v1", "other:8080", IMAGE.digest, "other.test:5000"),
            ("/v2/other/nginx/manifests/v1", "x", IMAGE.digest, "other.test:5000"),
            ("/v2/other/nginx/manifests/v1?ns=other.test%3A5000", "x", IMAGE.digest, "other.test:5000"),
            ("/v2/docker.io/nginx/manifests/v1", "x", official.digest, "docker.io"),
        ):
            answer = await proxy.get(path, Host=host)
            assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, digest), path
            assert answer.headers["OCI-Namespace"] == name
    await other.stop()


async def test_a_cluster_is_served_its_own_registries(tmp_path: Path, registry: FakeRegistry) -> None:
    """A registry that is not the cluster's is NAME_UNKNOWN, and nothing is dialled."""
    clusters = [{"name": "default", "upstreams": ["b.test"]}]
    upstreams = {"a.test": {"url": registry.url}, "b.test": {"url": registry.url}}
    async with running(make_settings(tmp_path / "cache", upstreams, clusters=clusters)) as proxy:
        answer = await proxy.get("/v2/team/app/manifests/v1?ns=a.test")
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    assert not registry.seen
