"""Replicas of the proxy side by side, an upstream that counts what reaches it, and clients that pull through them."""

import asyncio
import hashlib
import itertools
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import web

from benchmarks.origin import Bucket
from tests.clients.process import Daemon, free_port
from tests.clients.proxy_process import REGISTRY, Listening, Proxy
from tests.clients.wire import MANIFEST_TYPES, Answer, ask
from tests.fakes.acts import Act, BlobRequest
from tests.fakes.content import make_image
from tests.fakes.pushable import PushableRegistry
from tests.fakes.server import Gate

T = TypeVar("T")

MIB = 1 << 20

# The upstream.

_SEND_BUFFER = 256 << 10
# What a body is sent in.
_PIECE = 64 << 10


@dataclass(frozen=True)
class Pushed:
    """An image, as a tag of the upstream names it; `blobs` are digests, the configuration first."""

    repository: str
    tag: str
    digest: str
    blobs: tuple[str, ...]
    size: int  # of all blobs, in bytes

    @property
    def reference(self) -> str:
        """As operators write it."""
        return f"{REGISTRY}/{self.repository}:{self.tag}"


class _Registry(PushableRegistry):
    """What is handed to a socket is on its way, or counted though it was lost: so little can be."""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return await super().answer(request)


class CountingOrigin:
    """A registry on a thread of its own, so that tests may wait for whatever they like. Pushes are welcome."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="the upstream", daemon=True)
        self._thread.start()
        self._gates: list[tuple[str, Gate]] = []
        self._seeds = itertools.count(1)
        self._bucket = Bucket(0)
        self._registry = _Registry(pause=self._pace, script=self._act)
        self._await(self._registry.start())
        self.port = int(self._registry.url.rpartition(":")[2])

    def stop(self) -> None:
        """End it."""
        self._await(self._registry.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def push(self, repository: str, *sizes: int, tag: str = "v1") -> Pushed:
        """Let `tag` name a new image, with layers of so many random bytes."""
        image = make_image(*sizes, seed=next(self._seeds))
        self.do(lambda: self._registry.push(repository, tag, image))
        layers = [layer["digest"] for layer in json.loads(image.manifest)["layers"]]
        config = json.loads(image.manifest)["config"]["digest"]
        return Pushed(repository, tag, image.digest, (config, *layers), sum(map(len, image.blobs)))

    def throttle(self, rate: float) -> None:
        """From now on all bodies of blobs together are so many bytes a second; 0 is as fast as it goes."""
        self._bucket = Bucket(rate)

    def content(self, digest: str) -> bytes:
        """The bytes of a blob or a manifest."""
        return self._registry.content[digest][1]

    def barrier(self, digest: str, offset: int) -> Gate:
        """From now on bodies of this blob stand still at `offset`, until `do(gate.open)`."""
        self._gates.append((digest, gate := Gate(offset)))
        return gate

    def blob_requests(self, *digests: str) -> int:
        """How many requests there were for these blobs, GET and HEAD alike."""
        paths = [seen.path for seen in list(self._registry.seen) if "/blobs/" in seen.path]
        return sum(path.rpartition("/")[2] in digests for path in paths)

    def manifest_gets(self, image: Pushed) -> int:
        """How many GETs of its manifest there were, by tag or by digest."""
        names = (f"{image.repository}/manifests/{name}" for name in (image.tag, image.digest))
        paths = {f"/v2/{name}" for name in names}
        return sum(seen.method == "GET" and seen.path in paths for seen in list(self._registry.seen))

    def sent(self, *digests: str) -> int:
        """Bytes of these blobs that were handed out."""
        requests = list(self._registry.record.requests)
        return sum(one.sent_to - one.sent_from for one in requests if one.digest in digests)

    def do(self, call: Callable[[], T]) -> T:
        """What `call` gives, on the upstream's own thread."""

        async def called() -> T:
            return call()

        return self._await(called())

    def _act(self, asked: BlobRequest) -> Act | None:
        gates = [gate for digest, gate in self._gates if digest == asked.digest]
        return Act(gate=gates[-1]) if gates else None

    async def _pace(self, _offset: int) -> None:
        await self._bucket.take(_PIECE)

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


# The replicas.


class Replica(Proxy):
    """One of them; its ports and its cache stay what they are."""

    def __init__(self, directory: Path, upstream: Listening, shared: Mapping[str, Any] | None, **more: Any) -> None:
        own = f"127.0.0.1:{free_port()}"
        if shared is not None:
            more["shared"] = {**shared, "listen": own, "advertise": f"http://{own}"}
        self.runs = False
        super().__init__(directory, upstream, **more)

    def start(self) -> None:
        """Start it again."""
        self._daemon = self._start()

    def stop(self) -> None:
        """SIGTERM; it has to end well."""
        self.runs = False
        super().stop()

    def kill(self) -> None:
        """kill -9."""
        self.runs = False
        self.signal(signal.SIGKILL)
        self._daemon.stop()

    def signal(self, number: int) -> None:
        """Send it to the process."""
        self._daemon.signal(number)

    def empty(self) -> None:
        """Remove the cache of one that does not run."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def metrics(self) -> dict[str, float]:
        """All samples: name and labels as they are written, and the value."""
        lines = ask(self.admin_port, "/metrics").body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the admin API answers, which has to be good."""
        sent = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if body is not None else {}
        answer = ask(self.admin_port, f"/api/v1/{path}", method, body=sent, headers=headers)
        assert answer.status == 200, (method, path, answer.status, answer.body)
        return json.loads(answer.body)

    def manifest(self, image: Pushed, tag: str | None = None) -> Answer:
        """What it has for a tag."""
        return self.get(f"/v2/{self.registry}/{image.repository}/manifests/{tag or image.tag}")

    def _start(self) -> Daemon:
        daemon = super()._start()
        self.runs = True
        return daemon

    def _write_node_files(self, name: str, _scheme: str, *_options: str | Path) -> Path:
        """Nobody reads them here."""
        return self.directory / name


class Replicas:
    """Some replicas in front of one upstream, to be entered, and stopped when they are left.

    `shared` is what they have in common, but for their addresses; None for replicas that know nothing of each other.
    `more` are other keys of the configuration.
    """

    def __init__(
        self, directory: Path, upstream: Listening, shared: Mapping[str, Any] | None, count: int = 3, **more: Any
    ) -> None:
        if shared is not None:
            directory.mkdir(parents=True, exist_ok=True)
            secret = directory / "secret"
            secret.write_text("the same for all replicas\n" * 2)
            shared = {"secret_file": str(secret), **shared}
        with ThreadPoolExecutor(count) as pool:
            places = [directory / f"replica{number}" for number in range(count)]
            starting = [pool.submit(Replica, place, upstream, shared, **more) for place in places]
        self.all = [one.result() for one in starting if one.exception() is None]
        for one in starting:
            if (error := one.exception()) is not None:
                self.stop()
                raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        else:
            self.stop()

    def __getitem__(self, number: int) -> Replica:
        return self.all[number]

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.all)

    @property
    def ports(self) -> list[int]:
        """Where clients come in."""
        return [one.port for one in self]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric of all replicas, which have to run."""
        return sum(replica.metric(name, **labels) for replica in self)

    def busiest(self) -> Replica:
        """The one that has taken most from the upstream: of a fill that runs, the one that has its lease."""
        return max(self, key=lambda one: one.metric("pullthrough_upstream_bytes_total", registry=REGISTRY))

    def stop(self) -> None:
        """End all that run; they have to end well."""
        with ThreadPoolExecutor() as pool:
            ending = [pool.submit(one.stop) for one in self if one.runs]
        for one in ending:
            one.result()

    def kill(self) -> None:
        """End them, however."""
        for one in self:
            one.kill()


# The clients.


@dataclass
class Load:
    """Clients that pull through `ports`, each beginning at the next one; `errors` is what went wrong, one line each.

    An error is any status from 400 on, a wrong digest, and a request that fails: where `moves`, a connection that is
    refused, cut or silent is gone on with at the next port first, from the byte that is missing, as behind a load
    balancer, and is an error only where that does not help.
    """

    ports: Sequence[int]
    moves: bool = False
    errors: list[str] = field(default_factory=list)
    pulled: int = 0
    moved: int = 0  # requests that were gone on with elsewhere
    slowest: float = 0.0  # of all requests, in seconds until the last byte
    slowest_path: str = ""

    async def pull(self, image: Pushed, clients: int = 60) -> None:
        """All clients pull the same image, at once."""
        async with self.session() as session:
            await asyncio.gather(*(self.one(session, number, image) for number in range(clients)))

    @staticmethod
    def session() -> aiohttp.ClientSession:
        """For any number of clients."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENCE)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, read_bufsize=MIB)

    async def one(self, session: aiohttp.ClientSession, number: int, image: Pushed, by_digest: bool = False) -> None:
        """One client pulls an image, as containerd does: HEAD of the tag, then the manifest, then its blobs."""
        base = f"/v2/{REGISTRY}/{image.repository}"
        client = _Client(self, session, number)
        try:
            if not by_digest:
                await client.read("HEAD", f"{base}/manifests/{image.tag}", image.digest)
            manifest = await client.read("GET", f"{base}/manifests/{image.digest}", image.digest)
            document = json.loads(manifest)
            turns = asyncio.Semaphore(3)

            async def fetch(descriptor: Mapping[str, Any]) -> None:
                async with turns:
                    await client.read("GET", f"{base}/blobs/{descriptor['digest']}", descriptor["digest"])

            async with asyncio.TaskGroup() as group:
                for descriptor in [document["config"], *document["layers"]]:
                    group.create_task(fetch(descriptor))
        except* _Failed as failures:
            self.errors += [f"client {number}: {failure}" for failure in failures.exceptions]
        else:
            self.pulled += 1


_SILENCE = 30.0
# How often a request is made anew, and the pause before it, in seconds: some replica has to be there.
_TRIES, _PAUSE = 12, 0.1
_KEPT = MIB


class _Failed(Exception):
    """What a client cannot go on from."""


@dataclass
class _Body:
    """What has come of a body."""

    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    received: int = 0
    size: int | None = None
    kept: bytearray = field(default_factory=bytearray)

    def take(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.received += len(piece)
        if self.received <= _KEPT:
            self.kept += piece


class _Client:
    """A client, at the port that it is at present."""

    def __init__(self, load: Load, session: aiohttp.ClientSession, number: int) -> None:
        self._load = load
        self._session = session
        self._at = number

    async def read(self, method: str, path: str, digest: str) -> bytes:
        """A body that has this digest; its bytes where they are few. Of HEAD only what it says of itself."""
        began, body = time.monotonic(), _Body()
        for left in reversed(range(_TRIES)):
            at = self._at
            try:
                await self._read_on(method, path, digest, body)
                break
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not self._load.moves or not left:
                    raise _Failed(f"{method} {path} at {body.received}: {type(error).__name__} {error}") from error
                self._load.moved += 1
                # Another request may have moved the client already.
                self._at = at + 1 if self._at == at else self._at
                await asyncio.sleep(_PAUSE)
        if method == "GET" and f"sha256:{body.digest.hexdigest()}" != digest:
            raise _Failed(f"{method} {path}: other bytes, {body.received} of them")
        if (seconds := time.monotonic() - began) > self._load.slowest:
            self._load.slowest, self._load.slowest_path = seconds, path
        return bytes(body.kept)

    async def _read_on(self, method: str, path: str, digest: str, body: _Body) -> None:
        ports = self._load.ports
        headers = {"Accept": MANIFEST_TYPES} | ({"Range": f"bytes={body.received}-"} if body.received else {})
        url = f"http://127.0.0.1:{ports[self._at % len(ports)]}{path}"
        async with self._session.request(method, url, headers=headers) as answer:
            if answer.status != (206 if body.received else 200):
                text = (await answer.read())[:300] if answer.status >= 400 else b""
                raise _Failed(f"{method} {path} from {body.received}: {answer.status} {text!r}")
            if answer.headers.get("Docker-Content-Digest", digest) != digest:
                raise _Failed(f"{method} {path}: said to be {answer.headers['Docker-Content-Digest']}")
            if method == "HEAD":
                return
            async for piece in answer.content.iter_any():
                body.take(piece)
