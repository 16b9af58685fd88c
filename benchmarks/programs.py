"""The programs of a scenario, each a process of its own with files of its own, all ended with the scenario."""

import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.client import Result, Task
from benchmarks.images import Described
from benchmarks.nodes import ACCEPT, Orders, Report
from benchmarks.origin import Options, Request

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = "bench.test"
_BUILT = Path(os.environ.get("CLIENTS_BIN", ROOT / ".clients" / "bin"))
_STARTS_WITHIN = 30.0
# One processor for what is measured, another one for what asks it and for the origin, where there are two.
SERVER = min(os.sched_getaffinity(0))
LOAD = max(os.sched_getaffinity(0))


class NotStarted(Exception):
    """A program does not start with this configuration, or does not come as far as the scenario needs."""


class NotInstalled(NotStarted):
    """A program is not there."""


def program(*names: str) -> str:
    """The path of the first of these programs that is installed. Raises NotInstalled."""
    for name in names:
        if (_BUILT / name).is_file():
            return str(_BUILT / name)
        if found := shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            return found
    raise NotInstalled(f"{names[0]} is not installed")


# Below the ports that the system gives to connections, which could take one before its listener is there; none twice.
_PORTS = itertools.cycle(random.sample(range(12_000, 32_000), 4_000))


def free_port() -> int:
    """A TCP port that nobody listens on, and that was not given before."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a cycle has no end")


@dataclass(frozen=True)
class Blob:
    """A blob of the origin."""

    digest: str
    size: int

    @property
    def path(self) -> str:
        return f"/v2/bench/app/blobs/{self.digest}"

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")


class Server:
    """A program that listens on `port`."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, for all of its processes."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def pids(self) -> list[int]:
        """Its processes, itself first."""
        found = [self.process.pid]
        for pid in found:
            try:
                threads = list(Path(f"/proc/{pid}/task").iterdir())
                found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
            except FileNotFoundError:
                continue
        return found


class Origin(Server):
    """The benchmark's origin."""

    blobs: Sequence[Blob]
    images: Sequence[Described]

    @property
    def manifest(self) -> str:
        """The digest of `bench/app:v1`."""
        return self.images[0].digest

    def sent(self, blob: Blob | None = None) -> int:
        """The bytes of blobs that it sent since it was reset, of all or of one."""
        blobs = [request for request in self.requests() if request.kind == "blob"]
        return sum(request.sent for request in blobs if blob is None or request.reference == blob.digest)

    def requests(self) -> list[Request]:
        """All requests since it was reset."""
        return [Request(**one) for one in json.loads(get(f"http://127.0.0.1:{self.port}/sent"))]

    def reset(self) -> None:
        """Count from nothing."""
        get(f"http://127.0.0.1:{self.port}/sent", "POST")

    def moved(self, latency: float) -> None:
        """Let it be as far away, in seconds, from now on."""
        get(f"http://127.0.0.1:{self.port}/sent?latency={latency}", "PUT")


class Proxy(Server):
    """The proxy that is measured; `restart` keeps cache and ports."""

    def __init__(self, bench: "Bench", folder: Path, document: Mapping[str, Any], ports: tuple[int, int]) -> None:
        self._bench = bench
        self._folder = folder
        self.cache = Path(document["cache"]["directory"])
        self._admin = ports[1]
        (folder / "proxy.yaml").write_text(json.dumps(document))
        super().__init__(self._start(), ports[0])

    def restart(self) -> None:
        """Start again after `stop` or `kill`."""
        self.process = self._start()

    def metrics(self) -> str:
        """What the admin listener tells."""
        return get(f"http://127.0.0.1:{self._admin}/metrics").decode()

    def file(self, blob: Blob) -> Path:
        """The blob's file, waited for: a body may end before its blob is published."""
        file = self.cache / "blobs" / "sha256" / blob.sha256[:2] / blob.sha256
        _wait_for("the blob's file", file.exists)
        return file

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "proxy", "serve", "--config", str(self._folder / "proxy.yaml")]
        process = self._bench.start(command, self._folder / "log", cwd=self._bench.source)
        self._bench.wait_until(process, f"http://127.0.0.1:{self._admin}/readyz", self._folder / "log")
        return process


class Bench:
    """Starts the programs of one scenario; as a context manager it ends them."""

    def __init__(self, source: Path, turns: int = 5) -> None:
        """`source`: the checkout whose proxy is measured; `turns`: how often what is compared runs."""
        self.source = source
        self.turns = turns
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def callback(self, command: Sequence[str]) -> None:
        """Run a command when the scenario ends."""
        self._stack.callback(subprocess.run, command, check=False)

    def folder(self) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def origin(self, *blobs: tuple[int, int], **options: Any) -> Origin:
        """An origin with these blobs, seed and size of each, and these `Options`."""
        task = json.dumps(asdict(Options(blobs=list(blobs), **options)))
        command = [sys.executable, "-m", "benchmarks.origin", task]
        process = self.start(command, self.folder() / "log", stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        origin = Origin(process, told["port"])
        origin.blobs = [Blob(**blob) for blob in told["blobs"]]
        origin.images = [Described(**image) for image in told["images"]]
        return origin

    def proxy(
        self,
        origin: Origin,
        cache: Path | None = None,
        upstream: Mapping[str, Any] | None = None,
        cache_size: str = "100GiB",
        memory: str = "64MiB",
        **more: Any,
    ) -> Proxy:
        """A proxy with an empty cache; `upstream` and `more` are configuration keys. Raises NotStarted."""
        folder = self.folder()
        ports = free_port(), free_port()
        url = f"http://127.0.0.1:{origin.port}"
        document = {
            "listen": [{"address": f"127.0.0.1:{ports[0]}"}],
            "admin": {"address": f"127.0.0.1:{ports[1]}"},
            "cache": {
                "directory": str(cache or folder / "cache"),
                "max_size": cache_size,
                "memory": memory,
                "min_free": "1MiB",
            },
            "upstreams": {REGISTRY: {"url": url, "default": True, **(upstream or {})}},
            "log": {"access": False},
        }
        return Proxy(self, folder, document | more, ports)

    def clients(self, task: Task) -> "Clients":
        """Clients that begin at once, in a process of their own."""
        command = [sys.executable, "-m", "benchmarks.client", json.dumps(asdict(task))]
        return Clients(self.start(command, self.folder() / "log", stdout=subprocess.PIPE, cwd=ROOT))

    def pull(self, orders: Orders) -> Report:
        """Nodes that pull, awaited."""
        command = [sys.executable, "-m", "benchmarks.nodes"]
        log = self.folder() / "log"
        process = self.start(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        output, _ = process.communicate(json.dumps(asdict(orders)))
        if process.returncode:
            raise NotStarted(log.read_text(errors="replace").strip()[-300:])
        return Report(**json.loads(output))

    def read(self, port: int, blob: Blob, **more: Any) -> list[Result]:
        """Clients that read a blob, awaited."""
        return self.clients(Task(port, blob.path, blob.size, **({"sha256": blob.sha256} | more))).results()

    @contextmanager
    def on(self, *cores: int) -> Iterator[None]:
        """What is started meanwhile runs on these processors only, with its threads and children."""
        usual = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, usual)

    def start(
        self,
        command: Sequence[str],
        log: Path,
        stdout: int | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> "subprocess.Popen[str]":
        """Start a program that is ended with the scenario; what it prints goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        # What is installed is compiled already; a checkout is after its first start.
        not_ours = ("PULLTHROUGH_", "REGISTRY_", "PYTHONDONTWRITEBYTECODE")
        env = {key: value for key, value in os.environ.items() if not key.startswith(not_ours)}
        env |= {"OTEL_TRACES_EXPORTER": "none"}
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=stdout or output, stderr=output, stdin=stdin, cwd=cwd, env=env, text=True
            )
        self._stack.callback(_end, process)
        return process

    def wait_until(self, process: "subprocess.Popen[str]", url: str, log: Path) -> None:
        """Wait until `url` answers. Raises NotStarted, with the program's last words."""

        def answers() -> bool:
            if process.poll() is not None:
                raise NotStarted(log.read_text(errors="replace").strip()[-300:])
            try:
                get(url)
            except urllib.error.HTTPError as error:
                return error.code < 500
            except OSError:
                return False
            return True

        _wait_for(url, answers)


class Clients:
    """Clients at work."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def results(self) -> list[Result]:
        """How it went, when all are done."""
        output, _ = self._process.communicate()
        return [Result(**entry) for entry in json.loads(output)]

    def end(self) -> None:
        """Leave at once."""
        _end(self._process)


def get(url: str, method: str = "GET", timeout: float = 10) -> bytes:
    """The body at `url`."""
    with urllib.request.urlopen(
        urllib.request.Request(url, method=method, headers={"Accept": ACCEPT}), timeout=timeout
    ) as response:
        body: bytes = response.read()
        return body


def _wait_for(what: str, ready: Any) -> None:
    end = time.monotonic() + _STARTS_WITHIN
    while not ready():
        if time.monotonic() > end:
            raise NotStarted(f"{what}: not within {_STARTS_WITHIN} s")
        time.sleep(0.005)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
