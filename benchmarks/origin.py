"""An origin in a process of its own: a registry that is as far away, as slow and as faulty as it is told to be.

Run as `python -m benchmarks.origin OPTIONS` with the fields of `Options` as JSON; it prints its port and what it has,
then serves `/v2/…`: blobs with single ranges, and in each repository the tag `v1` (and `t0`, `t1`, … where it is told
to have several).

`GET /sent` tells every request, with the bytes of its body that were handed to the socket; `POST /sent` sets them to
nothing. What was handed over may still be on its way when a connection ends, so the send buffer is kept small: a
count is above what the peer got by no more than that buffer and the peer's own. `PUT /sent?latency=SECONDS` changes how
far away it is. Plain sockets, since a framework would be what is measured.
"""

import asyncio
import json
import re
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.images import Image, Store

_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
_SEND_BUFFER = 256 << 10
_PIECE = 64 << 10
_UNLIMITED_PIECE = 512 << 10
# How much of a pause is made good afterwards, in seconds: sleeps are late, the rate must not be.
_CATCH_UP = 0.02


@dataclass(frozen=True)
class Options:
    """What to serve, and how badly. Rates are bytes a second."""

    blobs: list[tuple[int, int]] = field(default_factory=list)  # seed and size
    layer: int = 0  # bytes of a real layer, instead of the blobs
    images: int = 0  # as many more, in repositories of their own, of one layer each
    image_size: int = 0  # bytes of such a layer in the middle; from a quarter to four times of that
    tags: int = 0  # as many more of bench/app, each of an image of its own
    rate: float = 0  # over all connections
    connection_rate: float = 0  # over each
    cut_every: int = 0  # bytes of a body, then the connection ends
    cut_with: str = "fin"  # or rst
    latency: float = 0  # seconds before each head
    ignore_ranges: bool = False
    redirect: bool = False  # blobs are sent from another port
    pulls: int = 0  # manifests that may be had by GET in each window of so many seconds, as Docker Hub counts them
    window: float = 0


class Bucket:
    """A rate of bytes a second, kept by reserving moments; 0 is without limit."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = 0.0

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may go."""
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        start = max(self._next, now - _CATCH_UP)
        self._next = start + count / self._rate
        if start > now:
            await asyncio.sleep(start - now)

    def give_back(self, count: int) -> None:
        """`count` bytes did not go."""
        if self._rate:
            self._next -= count / self._rate


@dataclass
class Request:
    """A request for a blob or a manifest, and what was handed to its socket of the body."""

    method: str
    kind: str
    repository: str
    reference: str  # a blob's digest; a manifest's tag or digest
    range: str | None = None
    status: int = 0
    sent: int = 0


class Pulls:
    """A limit on pulls, in windows that begin with the first one."""

    def __init__(self, limit: int, window: float) -> None:
        self._limit = limit
        self._window = window
        self._used = 0
        self._ends = 0.0

    def take(self, counts: bool, now: float) -> tuple[bool, list[str]]:
        """May it be answered, and the lines of its head that tell of the limit."""
        if not self._limit:
            return True, []
        if now >= self._ends:
            self._used, self._ends = 0, now + self._window
        good = not counts or self._used < self._limit
        self._used += counts and good
        left, window = self._limit - self._used, f";w={self._window:.0f}"
        lines = [f"ratelimit-limit: {self._limit}{window}", f"ratelimit-remaining: {left}{window}"]
        return good, lines if good else [*lines, f"Retry-After: {max(1, round(self._ends - now))}"]


class CutShort(Exception):
    """The connection has to end here."""


class Origin:
    """What is served, at which rate, and what went out."""

    def __init__(self, options: Options, store: Store, data_port: int) -> None:
        self._options = options
        self._store = store
        self._data_port = data_port
        self._latency = options.latency
        self._all = Bucket(options.rate)
        self._pulls = Pulls(options.pulls, options.window)
        self._piece = _PIECE if options.rate or options.connection_rate else _UNLIMITED_PIECE
        self._requests: list[Request] = []

    async def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection until it ends."""
        loop = asyncio.get_running_loop()
        bucket = Bucket(self._options.connection_rate)
        waiting = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in waiting:
                        if not (received := await loop.sock_recv(connection, 65536)):
                            return
                        waiting += received
                    head, _, waiting = waiting.partition(b"\r\n\r\n")
                    await self._answer(connection, bucket, head.decode("latin-1"))
            except CutShort:
                if self._options.cut_with == "rst":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except ConnectionError:
                pass

    async def _answer(self, connection: socket.socket, bucket: Bucket, head: str) -> None:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        path, _, query = target.partition("?")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if path == "/sent":
            await self._answer_sent(connection, method, query)
            return
        await asyncio.sleep(self._latency)
        if path in {"/v2", "/v2/"}:
            await _send_all(connection, _head(200, 2, "application/json") + b"{}")
            return
        name, kind, reference = ["", "", *path.removeprefix("/v2/").rsplit("/", 2)][-3:]
        if kind == "manifests" and (image := self._store.image(name, reference)) is not None:
            self._requests.append(request := Request(method, "manifest", name, reference))
            await self._answer_manifest(connection, request, image)
        elif kind == "blobs" and reference in self._store.blobs:
            self._requests.append(request := Request(method, "blob", name, reference, fields.get("range")))
            await self._answer_blob(connection, bucket, request)
        else:
            await _send_all(connection, _head(404, 0, "application/json"))

    async def _answer_sent(self, connection: socket.socket, method: str, query: str) -> None:
        if method == "POST":
            self._requests = []
        elif method == "PUT":
            self._latency = float(query.removeprefix("latency="))
        body = json.dumps([vars(request) for request in self._requests]).encode()
        await _send_all(connection, _head(200, len(body), "application/json") + body)

    async def _answer_manifest(self, connection: socket.socket, request: Request, image: Image) -> None:
        good, lines = self._pulls.take(request.method == "GET", time.monotonic())
        request.status = 200 if good else 429
        if not good:
            await _send_all(connection, _head(429, 0, "application/json", *lines))
            return
        lines.append(f"Docker-Content-Digest: {image.digest}")
        body = b"" if request.method == "HEAD" else image.manifest
        await _send_all(connection, _head(200, len(image.manifest), image.media_type, *lines) + body)
        request.sent = len(body)

    async def _answer_blob(self, connection: socket.socket, bucket: Bucket, request: Request) -> None:
        content = self._store.blobs[request.reference]
        kind, size, digest = "application/octet-stream", content.size, request.reference
        if self._data_port and connection.getsockname()[1] != self._data_port:
            request.status = 307
            location = f"Location: http://localhost:{self._data_port}/v2/{request.repository}/blobs/{digest}"
            await _send_all(connection, _head(307, 0, kind, location))
            return
        wanted = None if self._options.ignore_ranges else _RANGE.match(request.range or "")
        start = int(wanted[1]) if wanted else 0
        stop = min(size, int(wanted[2]) + 1) if wanted and wanted[2] else size
        more = [f"Docker-Content-Digest: {digest}"]
        if wanted and start >= min(stop, size):
            request.status = 416
            await _send_all(connection, _head(416, 0, kind, f"Content-Range: bytes */{size}"))
            return
        if not self._options.ignore_ranges:
            more.append("Accept-Ranges: bytes")
        if wanted:
            more.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
        request.status = 206 if wanted else 200
        await _send_all(connection, _head(request.status, stop - start, kind, *more))
        if request.method != "HEAD":
            await self._send_body(connection, bucket, request, start, stop)

    async def _send_body(
        self, connection: socket.socket, bucket: Bucket, request: Request, start: int, stop: int
    ) -> None:
        content = self._store.blobs[request.reference]
        end = min(stop, start + self._options.cut_every) if self._options.cut_every else stop
        while start < end:
            piece = memoryview(content.read(start, min(self._piece, end - start)))
            start += len(piece)
            while piece:
                await _writable(connection)
                await bucket.take(len(piece))
                await self._all.take(len(piece))
                try:
                    sent = connection.send(piece)
                except BlockingIOError:
                    sent = 0
                bucket.give_back(len(piece) - sent)
                self._all.give_back(len(piece) - sent)
                request.sent += sent
                piece = piece[sent:]
        if end < stop:
            raise CutShort


def _head(status: int, length: int, kind: str, *more: str) -> bytes:
    phrase = {
        200: "OK", 206: "Partial Content", 307: "Temporary Redirect", 404: "Not Found",
        416: "Range Not Satisfiable", 429: "Too Many Requests",
    }[status]  # fmt: skip
    lines = [f"HTTP/1.1 {status} {phrase}", f"Content-Length: {length}", f"Content-Type: {kind}", *more]
    return "\r\n".join([*lines, "Docker-Distribution-Api-Version: registry/2.0", "", ""]).encode()


async def _send_all(connection: socket.socket, message: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, message)


async def _writable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(connection, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(connection)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def serve(options: Options) -> None:
    """Serve until killed."""
    store = Store(options.blobs, options.layer, options.tags, options.images, options.image_size)
    listeners = [_listener() for _ in range(1 + options.redirect)]
    ports = [listener.getsockname()[1] for listener in listeners]
    origin = Origin(options, store, ports[1] if options.redirect else 0)
    told: dict[str, Any] = {"port": ports[0], "blobs": store.layers, "images": [asdict(one) for one in store.listed]}
    print(json.dumps(told), flush=True)
    await asyncio.gather(*(_accept(origin, listener) for listener in listeners))


def _listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    return listener


async def _accept(origin: Origin, listener: socket.socket) -> None:
    tasks: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        task = asyncio.create_task(origin.serve(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(serve(Options(**json.loads(sys.argv[1]))))
