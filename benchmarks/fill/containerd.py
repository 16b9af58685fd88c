"""A real client that fetches one layer in many ranges at a time."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fill.transfers import MB, attempt
from benchmarks.programs import REGISTRY, Bench, NotStarted, program
from benchmarks.report import Figure, Scenario, at_most

_IMAGE = f"{REGISTRY}/bench/app:v1"
_CONFIG = """
version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = "{folder}/c.sock"
[plugins."io.containerd.transfer.v1.local"]
  concurrent_layer_fetch_buffer = 8388608
"""
_HOSTS = """
server = "{url}"
[host."{url}"]
  capabilities = ["pull", "resolve"]
"""


def _containerd(bench: Bench) -> Iterator[Figure]:
    size = 120 * MB
    origin = bench.origin(layer=size, rate=50 * MB)
    [layer] = origin.blobs
    alone, _ = _pull(bench, f"http://127.0.0.1:{origin.port}")
    direct = origin.sent(layer) / layer.size
    proxy = attempt(bench, origin)
    through, found = _pull(bench, f"http://127.0.0.1:{proxy.port}") if proxy else (None, "")
    sent = origin.sent(layer) / layer.size if proxy else None
    yield Figure("upstream bytes / blob", sent, at_most(1.01), direct)
    yield Figure("wrong image", float(found != origin.manifest), at_most(0))
    yield Figure("seconds", through, None, alone)


def _pull(bench: Bench, url: str) -> tuple[float, str]:
    """Pull from `url` into an empty containerd; gives seconds and the image's digest."""
    folder, ctr = bench.folder(), program("ctr2")
    hosts = folder / "nodes" / REGISTRY
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(_HOSTS.format(url=url))
    (folder / "config.toml").write_text(_CONFIG.format(folder=folder))
    daemon = bench.start([program("containerd2"), "--config", str(folder / "config.toml")], folder / "log")
    address = [ctr, "-a", str(folder / "c.sock")]
    _until_ready(address, folder / "c.sock")
    began = time.perf_counter()
    command = [*address, "images", "pull", "--hosts-dir", str(hosts.parent), _IMAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise NotStarted(f"the pull failed: {done.stderr.strip()[-300:]}")
    listed = subprocess.run([*address, "images", "list"], capture_output=True, text=True, check=True).stdout
    daemon.terminate()
    daemon.wait(20)
    return seconds, next((word for word in listed.split() if word.startswith("sha256:")), "")


def _until_ready(address: list[str], socket: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if socket.exists() and not subprocess.run([*address, "version"], capture_output=True, check=False).returncode:
            return
        time.sleep(0.05)
    raise NotStarted("containerd does not start")


SCENARIOS = {"containerd": Scenario("containerd 2 with parallel ranges, a cold layer of 120 MB", _containerd)}
