"""An origin in a process of its own: a registry with one repository that is as slow and as faulty as it is told to be.

Run as `python -m benchmarks.origin OPTIONS` with the fields of `Options` as JSON; it prints its port and what it has,
then serves `/v2/bench/app/…`: blobs with single ranges, and an image `v1` of all its blobs.

`GET /sent` tells the bytes of bodies that were handed to the socket, per blob and per request; `POST /sent` sets them
to nothing. What was handed over may still be on its way when a connection ends, so the send buffer is kept small: a
count is above what the peer got by no more than that buffer and the peer's own. Plain sockets, since a framework would
be what is measured.
"""

import asyncio
import json
import re
import socket
import struct
import sys
from dataclasses import dataclass, field
from typing import Any

from benchmarks.content import Content, Literal, Made, config, layer, sha256

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
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
    rate: float = 0  # over all connections
    connection_rate: float = 0  # over each
    cut_every: int = 0  # bytes of a body, then the connection ends
    cut_with: str = "fin"  # or rst
    latency: float = 0  # seconds before each head
    ignore_ranges: bool = False


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
    """A request for a blob, and what was handed to its socket."""

    method: str
    digest: str
    range: str | None
    status: int = 0
    sent: int = 0


class CutShort(Exception):
    """The connection has to end here."""


class Origin:
    """What is served, at which rate, and what went out."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._all = Bucket(options.rate)
        self._piece = _PIECE if options.rate or options.connection_rate else _UNLIMITED_PIECE
        layers: list[Content] = [layer(options.layer)] if options.layer else [Made(*blob) for blob in options.blobs]
        named = {f"sha256:{sha256(content)}": content for content in layers}
        self.layers = [{"digest": digest, "size": content.size} for digest, content in named.items()]
        image = config(list(named))
        image_digest = f"sha256:{sha256(image)}"
        self._blobs = named | {image_digest: image}
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": image_digest, "size": image.size},
            "layers": [{"mediaType": _LAYER, **entry} for entry in self.layers],
        }
        self._manifest = Literal(json.dumps(document).encode())
        self.manifest_digest = f"sha256:{sha256(self._manifest)}"
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
        method, path, _ = first.split(" ", 2)
        path = path.partition("?")[0]
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if path == "/sent":
            await self._answer_sent(connection, method)
        elif path in {"/v2", "/v2/"}:
            await _send_all(connection, _head(200, 2, "application/json") + b"{}")
        elif path.startswith("/v2/bench/app/manifests/"):
            await self._answer_manifest(connection, method, path.rpartition("/")[2])
        elif path.startswith("/v2/bench/app/blobs/") and path.rpartition("/")[2] in self._blobs:
            request = Request(method, path.rpartition("/")[2], fields.get("range"))
            self._requests.append(request)
            await self._answer_blob(connection, bucket, request)
        else:
            await _send_all(connection, _head(404, 0, "application/json"))

    async def _answer_sent(self, connection: socket.socket, method: str) -> None:
        if method == "POST":
            self._requests = []
        blobs: dict[str, int] = {}
        for request in self._requests:
            blobs[request.digest] = blobs.get(request.digest, 0) + request.sent
        body = json.dumps({"blobs": blobs, "requests": [vars(request) for request in self._requests]}).encode()
        await _send_all(connection, _head(200, len(body), "application/json") + body)

    async def _answer_manifest(self, connection: socket.socket, method: str, reference: str) -> None:
        if reference not in {"v1", self.manifest_digest}:
            await _send_all(connection, _head(404, 0, "application/json"))
            return
        digest = f"Docker-Content-Digest: {self.manifest_digest}"
        body = b"" if method == "HEAD" else self._manifest.read(0, self._manifest.size)
        await _send_all(connection, _head(200, self._manifest.size, MANIFEST, digest) + body)

    async def _answer_blob(self, connection: socket.socket, bucket: Bucket, request: Request) -> None:
        await asyncio.sleep(self._options.latency)
        content = self._blobs[request.digest]
        kind, size = "application/octet-stream", content.size
        wanted = None if self._options.ignore_ranges else _RANGE.match(request.range or "")
        start = int(wanted[1]) if wanted else 0
        stop = min(size, int(wanted[2]) + 1) if wanted and wanted[2] else size
        more = [f"Docker-Content-Digest: {request.digest}"]
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
        content = self._blobs[request.digest]
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
    reason = {200: "OK", 206: "Partial Content", 404: "Not Found", 416: "Range Not Satisfiable"}[status]
    lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {length}", f"Content-Type: {kind}", *more]
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
    origin = Origin(options)
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    told: dict[str, Any] = {"port": listener.getsockname()[1], "blobs": origin.layers}
    print(json.dumps(told | {"manifest": origin.manifest_digest}), flush=True)
    tasks: set[asyncio.Task[None]] = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        task = asyncio.create_task(origin.serve(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(serve(Options(**json.loads(sys.argv[1]))))
