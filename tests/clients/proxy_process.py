"""The proxy as its own process, the way people run it: `pullthrough serve`."""

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.clients.process import Daemon, free_port, run, wait_for
from tests.clients.wire import Answer, answers, ask
from tests.fakes.authority import Pair

REGISTRY = "registry.test"
PULLTHROUGH = Path(sys.executable).with_name("pullthrough")


@dataclass(frozen=True)
class NodeTLS:
    """A proxy's certificate, that of its nodes, and the authority of both."""

    server: Pair
    node: Pair
    ca: Path

    @property
    def listener(self) -> dict[str, str]:
        files = {"certificate": self.server.certificate, "key": self.server.key, "client_ca": self.ca}
        return {name: str(file) for name, file in files.items()}

    @property
    def options(self) -> tuple[str | Path, ...]:
        """For `hosts-toml`, so that nodes know what to trust and what to show."""
        return ("--ca", self.ca, "--client", self.node.certificate, self.node.key)


class Listening(Protocol):
    """An upstream: it answers at a port of 127.0.0.1."""

    @property
    def port(self) -> int: ...


class Proxy:
    """A proxy for `upstream` on a port of its own, which it keeps over restarts, as it does its cache.

    The upstream is called registry.test, and is the default too: requests through Docker's `registry-mirrors` name no
    registry.
    """

    def __init__(
        self,
        directory: Path,
        upstream: Listening,
        registry: str = REGISTRY,
        tls: NodeTLS | None = None,
        doors: Sequence[int] = (),
        **more: Any,
    ) -> None:
        """`tls`: it speaks TLS alone, and its nodes show their certificate. `doors` are ports that it has besides."""
        self.registry = registry
        self.port, self.admin_port = free_port(), free_port()
        self.directory = directory
        self.cache = directory / "cache"
        self.config = directory / "proxy.yaml"
        directory.mkdir(parents=True)
        self._document: dict[str, Any] = {
            "listen": [{"address": f"127.0.0.1:{self.port}"}],
            "admin": {"address": f"127.0.0.1:{self.admin_port}"},
            "cache": {"directory": str(self.cache), "max_size": "4GiB", "min_free": "1MiB"},
            "upstreams": {registry: {"url": f"http://127.0.0.1:{upstream.port}", "default": True}},
            "shutdown_timeout": "10s",
        }
        if tls is not None:
            self._document["listen"] = [{"address": f"127.0.0.1:{self.port}", "tls": tls.listener}]
        self._document["listen"] += [{"address": f"127.0.0.1:{door}"} for door in doors]
        self.configure(**more)
        self._daemon = self._start()
        self.node_files = self._write_node_files(
            "nodes", "http" if tls is None else "https", *(tls.options if tls is not None else ())
        )

    def configure(self, **more: Any) -> None:
        """Write the configuration anew, with these keys over the usual ones; counts from the next start on."""
        self._document |= more
        self.config.write_text(yaml.safe_dump(self._document))

    def at(self, door: int, *options: str) -> "Proxy":
        """The same, as the nodes see it that come in at `door`; `options` are for `hosts-toml`."""
        seen = copy.copy(self)
        seen.port = door
        seen.node_files = seen._write_node_files(f"nodes-{door}", "http", *options)
        return seen

    def operate(self, *words: str) -> str:
        """Run one of the commands that speak to a running server; gives what it printed."""
        return run(PULLTHROUGH, *words, "--admin", f"http://127.0.0.1:{self.admin_port}")

    def restart(self) -> None:
        """Stop with SIGTERM, start again on the same cache."""
        self.stop()
        self._daemon = self._start()

    def stop(self) -> None:
        code = self._daemon.stop()
        assert code == 0, f"the proxy ended with {code}:\n{self._daemon.log.read_text()[-4000:]}"

    def get(self, path: str, method: str = "GET", source: str = "127.0.0.1") -> Answer:
        return ask(self.port, path, method, source=source)

    def tag_digest(self, repository: str, tag: str) -> str:
        """The digest that clients are told now."""
        answer = self.get(f"/v2/{self.registry}/{repository}/manifests/{tag}", "HEAD")
        assert answer.status == 200, answer.headers
        return str(answer.headers["Docker-Content-Digest"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        lines = ask(self.admin_port, "/metrics").body.decode().splitlines()
        samples = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in samples if all(label in line for label in wanted))

    def blob_file(self, digest: str) -> Path:
        """The blob's file, as soon as it is there: a body may end a moment before its blob is published."""
        algorithm, _, digits = digest.partition(":")
        file = self.cache / "blobs" / algorithm / digits[:2] / digits
        wait_for(f"{digest} on disk", file.exists, within=10)
        return file

    def log(self) -> str:
        return self._daemon.log.read_text()

    def _write_node_files(self, name: str, scheme: str, *options: str | Path) -> Path:
        out, url = self.directory / name, f"{scheme}://127.0.0.1:{self.port}"
        run(PULLTHROUGH, "hosts-toml", "--config", self.config, "--url", url, "--out", out, *options)
        return out

    def _start(self) -> Daemon:
        daemon = Daemon([PULLTHROUGH, "serve", "--config", self.config], self.directory / "log", cwd=self.directory)
        daemon.wait_until(lambda: answers(self.admin_port, "/readyz"))
        return daemon


def cluster(name: str, mode: str, network: str) -> Mapping[str, Any]:
    """A cluster told by its network."""
    return {"name": name, "mode": mode, "match": {"networks": [network]}}
