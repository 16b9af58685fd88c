"""containerd, 1.6 from Debian and 2.x: a daemon with a root of its own, driven by `ctr images pull --hosts-dir`."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.clients.process import Daemon, environment, program, run
from tests.clients.proxy_process import Proxy

# Pulls need no CRI, which would look for a network configuration.
_NO_CRI = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]

_PARALLEL = """
[plugins."io.containerd.transfer.v1.local"]
  concurrent_layer_fetch_buffer = 8388608
"""


class Containerd:
    """`ctr` on one daemon."""

    def __init__(self, ctr: str, socket: Path, proxy: Proxy) -> None:
        self._ctr = ctr
        self._socket = socket
        self._proxy = proxy
        # NAME:PASSWORD, for whoever challenges.
        self.user: str | None = None

    def pull(self, repository: str, reference: str) -> str:
        separator = "@" if ":" in reference else ":"
        name = f"{self._proxy.registry}/{repository}{separator}{reference}"
        run(self._ctr, "-a", self._socket, "images", "pull", "--hosts-dir", self._proxy.node_files,
            *(["--user", self.user] if self.user else []), name)  # fmt: skip
        listed = run(self._ctr, "-a", self._socket, "images", "list", f"name=={name}")
        return next(word for word in listed.split() if word.startswith("sha256:"))


@contextlib.contextmanager
def containerd1(proxy: Proxy, directory: Path) -> Iterator[Containerd]:
    """Debian's 1.6."""
    with _running("containerd", "ctr", 2, "", proxy, directory) as client:
        yield client


@contextlib.contextmanager
def containerd2(proxy: Proxy, directory: Path) -> Iterator[Containerd]:
    """2.x as it comes."""
    with _running("containerd2", "ctr2", 3, "", proxy, directory) as client:
        yield client


@contextlib.contextmanager
def containerd2_parallel(proxy: Proxy, directory: Path) -> Iterator[Containerd]:
    """2.x that fetches a layer in several open-ended ranges, each closed early."""
    with _running("containerd2", "ctr2", 3, _PARALLEL, proxy, directory) as client:
        yield client


@contextlib.contextmanager
def _running(daemon: str, ctr: str, version: int, more: str, proxy: Proxy, directory: Path) -> Iterator[Containerd]:
    socket, config = directory / "c.sock", directory / "config.toml"
    config.write_text(
        f'version = {version}\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f"disabled_plugins = {json.dumps(_NO_CRI)}\n"
        f'[grpc]\n  address = "{socket}"\n{more}'
    )
    process = Daemon([daemon, "--config", config], directory / "log")
    process.wait_until(lambda: _ready(ctr, socket))
    try:
        yield Containerd(ctr, socket, proxy)
    finally:
        process.stop()


def _ready(ctr: str, socket: Path) -> bool:
    if not socket.exists():
        return False
    words = [program(ctr), "-a", str(socket), "version"]
    return subprocess.run(words, env=environment(), capture_output=True, timeout=30, check=False).returncode == 0
