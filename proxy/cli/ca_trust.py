"""What `pullthrough ca trust` says: which file goes where on a node, and what has to be started again then."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from urllib.parse import urlsplit

# What Docker's daemon trusts for Docker Hub is the system's store alone.
_DOCKER_HUB, _HUBS_HOST = "docker.io", "registry-1.docker.io"
_NO_PROXY = "localhost,127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local"


@dataclass(frozen=True, slots=True)
class Node:
    """The authority's `certificate`, the registries with all their names, and how nodes come to the proxy."""

    certificate: str
    registries: Mapping[str, Sequence[str]]
    proxy: str | None = None
    address: str | None = None


def instructions(node: Node) -> str:
    """For people, with commands that can be copied."""
    return "\n".join(line.rstrip() for line in _lines(node)) + "\n"


def _lines(node: Node) -> Iterator[str]:
    file = quote(node.certificate)
    yield f"Copy {file} to each node. One of these makes a node trust it; its key stays with the proxy."
    yield ""
    yield "# Everything on a Debian or Ubuntu node"
    yield f"install -m 0644 {file} /usr/local/share/ca-certificates/pullthrough.crt"
    yield "update-ca-certificates"
    yield "systemctl try-restart containerd docker    # they have read the old ones when they started"
    yield ""
    yield "# Everything on a RHEL, Fedora or Rocky node"
    yield f"install -m 0644 {file} /etc/pki/ca-trust/source/anchors/pullthrough.crt"
    yield "update-ca-trust"
    yield "systemctl try-restart containerd docker"
    yield ""
    yield '# containerd alone (config_path = "/etc/containerd/certs.d"); nothing is to be started again'
    for registry in node.registries:
        yield from _containerd(file, registry)
    yield ""
    yield "# Docker alone; nothing is to be started again"
    for registry, names in node.registries.items():
        if registry == _DOCKER_HUB:
            yield "# Docker Hub's authority is looked for among the system's only: install it for everything, as above"
            continue
        for name in dict.fromkeys(names):
            yield f"install -D -m 0644 {file} /etc/docker/certs.d/{name}/ca.crt"
    yield ""
    yield "# podman, buildah, skopeo and CRI-O alone"
    for registry in node.registries:
        yield f"install -D -m 0644 {file} /etc/containers/certs.d/{registry}/ca.crt"
    if node.address is not None:
        yield from _hosts(node.address, node.registries)
    if node.proxy is not None:
        yield from _proxy(node.proxy)
    if node.address is None and node.proxy is None:
        yield ""
        yield "# How nodes come to the proxy: say --address for a hosts file, --proxy for HTTPS_PROXY"


def _containerd(file: str, registry: str) -> Iterator[str]:
    folder = f"/etc/containerd/certs.d/{registry}"
    yield f"install -D -m 0644 {file} {folder}/ca.crt"
    lines = f'server = "https://{_HUBS_HOST if registry == _DOCKER_HUB else registry}"', f'ca = "{folder}/ca.crt"'
    yield f"printf '%s\\n' {' '.join(map(quote, lines))} > {folder}/hosts.toml"


def _hosts(address: str, registries: Mapping[str, Sequence[str]]) -> Iterator[str]:
    names = {name: None for of_one in registries.values() for name in of_one if ":" not in name}
    if _DOCKER_HUB in registries:
        # What clients connect to for it, whatever its aliases are.
        names[_HUBS_HOST] = None
    yield ""
    yield "# /etc/hosts of each node, or the same names in its DNS; the proxy itself must not see them"
    yield f"{address} {' '.join(names)}"


def _proxy(url: str) -> Iterator[str]:
    no_proxy = f"{_NO_PROXY},{urlsplit(url).hostname or url}"
    # systemd has a meaning for a percent sign.
    variables = [f"{name}={value}".replace("%", "%%") for name, value in (("HTTPS_PROXY", url), ("NO_PROXY", no_proxy))]
    lines = "[Service]", *(f'Environment="{variable}"' for variable in variables)
    yield ""
    yield "# containerd, or Docker (docker.service.d), by HTTPS_PROXY"
    yield "mkdir -p /etc/systemd/system/containerd.service.d"
    yield f"printf '%s\\n' {' '.join(map(quote, lines))} \\"
    yield "  > /etc/systemd/system/containerd.service.d/pullthrough.conf"
    yield "systemctl daemon-reload && systemctl restart containerd"
    yield ""
    yield "# podman, buildah, skopeo, CI jobs"
    yield f"export HTTPS_PROXY={quote(url)} NO_PROXY={quote(no_proxy)}"
