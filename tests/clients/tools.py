"""The clients without a daemon: skopeo, podman and crane."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tests.clients.process import run
from tests.clients.proxy_process import Proxy

_PLATFORM = ("--override-os", "linux", "--override-arch", "amd64")


class Skopeo:
    """`skopeo copy` of one platform into a folder; `place` is what stands before the repository."""

    def __init__(self, place: str, directory: Path, *options: str) -> None:
        self._place = place
        self._command = ("skopeo", "--insecure-policy", *_PLATFORM, *options, "copy", "--quiet")
        self._targets = (directory / f"image{number}" for number in itertools.count())
        # Where `skopeo login` has put what it was told.
        self.authfile: Path | None = None

    def pull(self, repository: str, reference: str) -> str:
        target = next(self._targets)
        source = f"docker://{self._place}/{_joined(repository, reference)}"
        login = ["--authfile", str(self.authfile)] if self.authfile else []
        run(*self._command, "--src-tls-verify=false", *login, source, f"dir:{target}")
        return "sha256:" + hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest()


@contextlib.contextmanager
def skopeo_by_path(proxy: Proxy, directory: Path) -> Iterator[Skopeo]:
    """The registry as the first part of the path."""
    yield Skopeo(f"127.0.0.1:{proxy.port}/{proxy.registry}", directory)


@contextlib.contextmanager
def skopeo_by_mirror(proxy: Proxy, directory: Path) -> Iterator[Skopeo]:
    """The registry's own name, with the proxy as its mirror in registries.conf."""
    # skopeo 1.9 does not read CONTAINERS_REGISTRIES_CONF; newer ones do, and still know this option.
    yield Skopeo(proxy.registry, directory, "--registries-conf", str(_registries_conf(proxy)))


class Podman:
    """`podman pull` into a storage of its own."""

    def __init__(self, proxy: Proxy, directory: Path) -> None:
        self._registry = proxy.registry
        policy = directory / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._env = {"CONTAINERS_REGISTRIES_CONF": str(_registries_conf(proxy))}
        self._policy = ("--signature-policy", str(policy))
        self._command = (
            *("podman", "--root", str(directory / "root"), "--runroot", str(directory / "run")),
            *("--tmpdir", str(directory / "tmp"), "--storage-driver", "vfs"),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "none"),
        )

    def pull(self, repository: str, reference: str) -> str:
        name = _joined(f"{self._registry}/{repository}", reference)
        run(*self._command, "pull", "--quiet", *self._policy, name, env=self._env)
        return run(*self._command, "image", "inspect", "--format", "{{.Digest}}", name, env=self._env).strip()


@contextlib.contextmanager
def podman(proxy: Proxy, directory: Path) -> Iterator[Podman]:
    """podman with the proxy as a mirror in registries.conf."""
    yield Podman(proxy, directory)


class Crane:
    """`crane pull` of one platform into a layout, the registry as the first part of the path."""

    def __init__(self, proxy: Proxy, directory: Path) -> None:
        self._place = f"127.0.0.1:{proxy.port}/{proxy.registry}"
        self._env = {"DOCKER_CONFIG": str(directory)}
        self._targets = (directory / f"image{number}" for number in itertools.count())

    def pull(self, repository: str, reference: str) -> str:
        target, name = next(self._targets), f"{self._place}/{_joined(repository, reference)}"
        options = ("--insecure", "--platform", "linux/amd64", "--format", "oci")
        run("crane", "pull", *options, name, target, env=self._env)
        return str(json.loads((target / "index.json").read_text())["manifests"][0]["digest"])


@contextlib.contextmanager
def crane(proxy: Proxy, directory: Path) -> Iterator[Crane]:
    """crane without credentials."""
    yield Crane(proxy, directory)


def _joined(name: str, reference: str) -> str:
    return f"{name}@{reference}" if ":" in reference else f"{name}:{reference}"


def _registries_conf(proxy: Proxy) -> Path:
    return proxy.node_files / "podman" / "registries.conf"
