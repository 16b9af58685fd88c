"""Real clients over TLS, with what `hosts-toml` wrote and certificates of their own."""

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import Origin, StartProxy
from tests.clients.nodes import KINDS
from tests.clients.process import run
from tests.clients.proxy_process import REGISTRY, NodeTLS
from tests.fakes.authority import Authority

BY_CERTIFICATE = [{"name": "prod", "match": {"certificates": ["*.prod.internal"]}}]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Of the proxy and its nodes."""
    return Authority(tmp_path)


def tls(authority: Authority, name: str = "node1.prod.internal") -> NodeTLS:
    return NodeTLS(authority.server(), authority.issue("/CN=node", f"DNS:{name}"), authority.ca)


@pytest.mark.parametrize("kind", ["containerd-1.6", "containerd-2", "containerd-2-parallel"])
def test_containerd(origin: Origin, start_proxy: StartProxy, authority: Authority, kind: str) -> None:
    """Cold and warm, small and of 200 MB: with its certificate it is in the cluster that goes by that."""
    images = (origin.index, origin.large)
    proxy = start_proxy(tls=tls(authority), clusters=BY_CERTIFICATE)
    mark = origin.upstream.mark()
    for pulled in ("cold", "warm"):
        with KINDS[kind].node(proxy) as client:
            for image in images:
                assert client.pull(image.repository, image.tag) == KINDS[kind].expects(image)
        requests = [request for request in origin.upstream.requests(mark) if request.is_pull]
        assert bool(requests) is (pulled == "cold")
        assert {request.agent.partition("/")[0] for request in requests} <= {"pullthrough"}
        mark = origin.upstream.mark()
    assert proxy.metric("pullthrough_requests_total", cluster="prod", cache="hit") > 0


def test_containerd_with_a_certificate_of_another_cluster(
    origin: Origin, start_proxy: StartProxy, authority: Authority
) -> None:
    """It is refused, and goes on to the registry itself; the proxy asks that for nothing."""
    image = origin.index
    proxy = start_proxy(tls=tls(authority, "node1.dev.internal"), clusters=BY_CERTIFICATE)
    mark = origin.upstream.mark()
    with KINDS["containerd-2"].node(proxy) as client:
        client.pull(image.repository, image.tag)
    assert proxy.metric("pullthrough_requests_total", status="403") > 0
    assert {request.agent.partition("/")[0] for request in origin.upstream.requests(mark)} == {"containerd"}


def test_skopeo(origin: Origin, start_proxy: StartProxy, authority: Authority, tmp_path: Path) -> None:
    """By a folder of certificates, as podman and Docker read it; without one of its own it is not let in."""
    made = tls(authority)
    proxy = start_proxy(tls=made, clusters=BY_CERTIFICATE)
    folder = tmp_path / "certs.d"
    folder.mkdir()
    shutil.copyfile(made.ca, folder / "ca.crt")
    image = origin.schema2
    source = f"docker://127.0.0.1:{proxy.port}/{REGISTRY}/{image.repository}:{image.tag}"
    command = ("skopeo", "--insecure-policy", "copy", "--quiet", "--src-cert-dir", folder, source)
    with pytest.raises(AssertionError, match="certificate required"):
        run(*command, f"dir:{tmp_path / 'none'}")
    shutil.copyfile(made.node.certificate, folder / "client.cert")
    shutil.copyfile(made.node.key, folder / "client.key")
    run(*command, f"dir:{tmp_path / 'image'}")
    assert {file.name for file in (tmp_path / "image").iterdir()} >= {blob.partition(":")[2] for blob in image.blobs}


def test_crane(origin: Origin, start_proxy: StartProxy, authority: Authority, tmp_path: Path) -> None:
    """Go's own client, which cannot show a certificate, where none is asked for."""
    made = tls(authority)
    listener = {name: file for name, file in made.listener.items() if name != "client_ca"}
    proxy = start_proxy(tls=made)
    proxy.configure(listen=[{"address": f"127.0.0.1:{proxy.port}", "tls": listener}])
    proxy.restart()
    image = origin.index
    name = f"127.0.0.1:{proxy.port}/{REGISTRY}/{image.repository}:{image.tag}"
    environment = {"SSL_CERT_FILE": str(authority.ca), "DOCKER_CONFIG": str(tmp_path)}
    assert run("crane", "digest", name, env=environment).strip() == image.digest
    run("crane", "pull", "--platform", "linux/amd64", name, tmp_path / "image.tar", env=environment)
