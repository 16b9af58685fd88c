"""The upstreams: real registries on a free port, whose access log tells what reached them."""

import re
import signal
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.clients.process import Daemon, free_port, run, wait_for
from tests.clients.wire import answers, ask

# A registry's name for the tests, and the program that serves it.
REGISTRIES = {"docker-registry-2.8": "docker-registry", "distribution-3.1": "distribution"}

# Both write Apache's combined format: 127.0.0.1 - - [time] "GET /v2/… HTTP/1.1" 200 123 "" "user agent"
_LINE = re.compile(
    r'^\S+ - - \[[^]]+\] "(?P<method>[A-Z]+) (?P<path>\S+) \S+" (?P<status>\d+) \d+ "[^"]*" "(?P<agent>[^"]*)"'
)
# http.client sends no User-Agent: those are the tests' own questions.
_OURS = ""


@dataclass(frozen=True)
class Request:
    """A request that reached the upstream."""

    method: str
    path: str
    status: int
    agent: str

    @property
    def on_manifest(self) -> bool:
        return "/manifests/" in self.path

    @property
    def on_blob(self) -> bool:
        return "/blobs/" in self.path

    @property
    def is_pull(self) -> bool:
        """What a cache is there to prevent: a manifest's GET (it counts at Docker Hub) or any request for a blob."""
        return self.on_blob or (self.on_manifest and self.method == "GET")


class Upstream:
    """A running registry with its storage below `directory`, or at `storage`.

    It redirects blobs to `redirect_to`, if that is given.

    `auth` is what its configuration says of a token server.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        redirect_to: str | None = None,
        auth: Mapping[str, object] | None = None,
        storage: Path | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        directory.mkdir(parents=True)
        config = directory / "config.yml"
        document: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(storage or directory / "storage")},
                "delete": {"enabled": True},
            },
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "only-for-tests"},
        }
        if redirect_to is not None:
            document["middleware"] = {"storage": [{"name": "redirect", "options": {"baseurl": redirect_to}}]}
        if auth is not None:
            document["auth"] = auth
        config.write_text(yaml.safe_dump(document))
        env = {"OTEL_TRACES_EXPORTER": "none"}
        self._daemon = Daemon([REGISTRIES[name], "serve", config], directory / "log", env)
        self._daemon.wait_until(lambda: answers(self.port, "/v2/", 200 if auth is None else 401))

    def stop(self) -> None:
        self._daemon.stop()

    def kill(self) -> None:
        """End it without a word: nobody listens any more."""
        self._daemon.signal(signal.SIGKILL)
        self._daemon.stop()

    def freeze(self) -> None:
        """Connections are taken, by the system, and nothing is said; until `thaw`."""
        self._daemon.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._daemon.signal(signal.SIGCONT)

    def push(self, layout: Path, tag: str, repository: str, *options: str) -> None:
        """Push what `tag` names in an OCI layout; `--format v2s2` makes it a Docker schema 2 image."""
        target = f"docker://127.0.0.1:{self.port}/{repository}:{tag}"
        command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false", *options]
        run(*command, f"oci:{layout}:{tag}", target)

    def tag(self, repository: str, tag: str, digest: str) -> None:
        """Make `tag` name the manifest `digest`, as a push of the same image under that tag does."""
        stored = ask(self.port, f"/v2/{repository}/manifests/{digest}")
        headers = {"Content-Type": str(stored.headers["Content-Type"])}
        put = ask(self.port, f"/v2/{repository}/manifests/{tag}", "PUT", body=stored.body, headers=headers)
        assert put.status == 201, put.body

    def mark(self) -> int:
        """A place in the log: everything that was answered before stands before it."""
        before = -1
        while before != (count := len(self._settled())):
            before = count
        return count

    def requests(self, since: int = 0) -> Sequence[Request]:
        """What reached the registry after the mark `since`, without the tests' own questions."""
        return self._settled()[since:]

    def _settled(self) -> list[Request]:
        """The log, once a last question of ours stands in it: a line is written just after its answer has left."""
        last = f"/v2/?{uuid.uuid4().hex}"
        ask(self.port, last)
        wait_for("the registry's log", lambda: last in self._daemon.log.read_text(errors="replace"))
        found = map(_LINE.match, self._daemon.log.read_text(errors="replace").splitlines())
        lines = (Request(m["method"], m["path"], int(m["status"]), m["agent"]) for m in found if m)
        return [line for line in lines if line.agent != _OURS]
