"""The clients: each comes as a node of its own, with nothing pulled yet, set up by what `hosts-toml` wrote."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.clients import containerd, docker, tools
from tests.clients.images import Image
from tests.clients.process import run
from tests.clients.proxy_process import Proxy


class Client(Protocol):
    """A client on its node."""

    def pull(self, repository: str, reference: str) -> str:
        """Pull by tag or digest; gives the digest under which the client then has the image."""


Factory = Callable[[Proxy, Path], AbstractContextManager[Client]]


@dataclass(frozen=True)
class Kind:
    """A kind of client. `keeps_index`: of a multi-platform image it remembers the index, others its own platform's."""

    factory: Factory
    keeps_index: bool

    @contextlib.contextmanager
    def node(self, proxy: Proxy) -> Iterator[Client]:
        """A fresh node. Its paths are short: a Unix socket's path holds 108 characters."""
        directory = Path(tempfile.mkdtemp(prefix="pt-"))
        try:
            with self.factory(proxy, directory) as client:
                yield client
        finally:
            _unmount_below(directory)
            shutil.rmtree(directory, ignore_errors=True)

    def expects(self, image: Image) -> str:
        return image.digest if self.keeps_index else image.platform_digest


KINDS = {
    "containerd-1.6": Kind(containerd.containerd1, True),
    "containerd-2": Kind(containerd.containerd2, True),
    "containerd-2-parallel": Kind(containerd.containerd2_parallel, True),
    "docker-20.10": Kind(docker.engine, True),
    "podman": Kind(tools.podman, True),
    "skopeo-path": Kind(tools.skopeo_by_path, False),
    "skopeo-mirror": Kind(tools.skopeo_by_mirror, False),
    "crane": Kind(tools.crane, False),
}


def _unmount_below(directory: Path) -> None:
    """What an engine left mounted would keep its folder from being removed."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{directory}/")]):
        run("umount", "--lazy", mount)
