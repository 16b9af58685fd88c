"""Docker's engine 20.10 with `registry-mirrors`, which it uses for docker.io only and without naming the registry."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.process import Daemon, environment, program, run
from tests.clients.proxy_process import Proxy


class Docker:
    """The command line of one engine."""

    def __init__(self, host: str, config: Path) -> None:
        self._command = ("docker", "--config", str(config), "--host", host)

    def pull(self, repository: str, reference: str) -> str:
        separator = "@" if ":" in reference else ":"
        name = f"{repository}{separator}{reference}"
        run(*self._command, "pull", "--quiet", name)
        digests = json.loads(run(*self._command, "image", "inspect", "--format", "{{json .RepoDigests}}", name))
        return str(digests[0]).rpartition("@")[2]


@contextlib.contextmanager
def engine(proxy: Proxy, directory: Path) -> Iterator[Docker]:
    """An engine without a network of its own: it needs root, and nothing from the host's settings."""
    host = f"unix://{directory}/d.sock"
    settings = json.loads((proxy.node_files / "docker" / "daemon.json").read_text()) | {
        "data-root": f"{directory}/data",
        "exec-root": f"{directory}/exec",
        "pidfile": f"{directory}/pid",
        "hosts": [host],
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "storage-driver": "vfs",
    }
    config = directory / "daemon.json"
    config.write_text(json.dumps(settings))
    process = Daemon(["dockerd", "--config-file", config], directory / "log")
    try:
        process.wait_until(lambda: _ready(host))
    except AssertionError as error:
        pytest.skip(f"Docker's engine does not start here: {error}")
    try:
        yield Docker(host, directory / "cli")
    finally:
        process.stop()


def _ready(host: str) -> bool:
    words = [program("docker"), "--host", host, "version"]
    return subprocess.run(words, env=environment(), capture_output=True, timeout=30, check=False).returncode == 0
