"""Nodes in a process of their own: they pull images in containerd's order, and tell how it went.

Run as `python -m benchmarks.nodes` with the fields of `Orders` as JSON on standard input; prints a `Report`.

A pull is: HEAD of the tag's manifest, GET of it by digest, GET of the configuration and of the layers, some at a time
(containerd 2.x, core/remotes/docker). Where `buffer` is given, layers come in parallel ranges as containerd fetches
them with `concurrent_layer_fetch_buffer`: the first GET is from 0 on; once its head is there, what is beyond one buffer
comes in open-ended ranges of their own, each read for one buffer and closed early; never more than three requests at a
time. Answers are received into one buffer and dropped; some nodes look at every byte. A node keeps its connections, and
asks once more where one that it kept was closed meanwhile, as clients do.
"""

import asyncio
import hashlib
import json
import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_BUFFER = memoryview(bytearray(256 << 10))
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOTAL = re.compile(rb"\r\ncontent-range: *bytes \d+-\d+/(\d+)", re.IGNORECASE)
_DIGEST = re.compile(rb"\r\ndocker-content-digest: *(\S+)", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation: *http://([^:/]+):(\d+)(\S+)", re.IGNORECASE)
# containerd's own: layers, and requests for them.
_AT_A_TIME = 3
ACCEPT = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"
)


@dataclass(frozen=True)
class Orders:
    """Who pulls what: each pull a repository and a tag, taken by so many nodes, each of which does one at a time."""

    port: int
    pulls: list[tuple[str, str]]
    nodes: int
    namespace: str = ""  # `ns`, as containerd has it
    buffer: int = 0  # bytes
    only_tags: bool = False  # nothing but the HEAD
    check_every: int = 0  # of so many nodes one hashes what it gets
    timeout: float = 120  # seconds for all of it


@dataclass
class Report:
    """Seconds: of each pull, of each HEAD, until all were done; what failed, and bytes of bodies that came."""

    seconds: float = 0
    pulls: list[float] = field(default_factory=list)
    heads: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    received: int = 0


_Place = tuple[str, int]


class Wrong(Exception):
    """Not what was asked for."""


class _Link(asyncio.BufferedProtocol):
    """One connection: a request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] | None = None
        self.head = b""
        self._in_head = True
        self._left = 0
        self._most = 0
        self._is_head = False
        self.received = 0
        self.body: bytearray | None = None
        self.hash: hashlib._Hash | None = None
        self.head_came: asyncio.Event | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("cut"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        piece = _BUFFER[:nbytes]
        if self._in_head:
            self.head += bytes(piece)
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._in_head = False
            if self.head_came is not None:
                self.head_came.set()
            piece = memoryview(self.head)[end + 4 :]
            self.head = self.head[: end + 2]
            length = _LENGTH.search(self.head)
            self._left = 0 if self._is_head or self.status in {204, 304} or length is None else int(length[1])
        if self.body is not None:
            self.body += piece
        if self.hash is not None:
            self.hash.update(piece[: max(0, self._most - self.received)])
        self._left -= len(piece)
        self.received += len(piece)
        if (self._left <= 0 or self.received >= self._most) and self._answered and not self._answered.done():
            self._answered.set_result(None)

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def is_reusable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and self._left == 0

    async def ask(
        self,
        request: bytes,
        most: int = 1 << 60,
        keep: bool = False,
        hash_: "hashlib._Hash | None" = None,
        head_came: asyncio.Event | None = None,
    ) -> None:
        """Send it, and wait for its answer, or `most` bytes of the body, kept or hashed where that is wanted."""
        if self.transport is None:
            raise ConnectionResetError("closed")
        self.head, self._in_head, self._left, self.received = b"", True, 0, 0
        self._most, self._is_head, self.hash, self.head_came = most, request.startswith(b"HEAD"), hash_, head_came
        self.body = bytearray() if keep else None
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._answered


class _Node:
    def __init__(self, orders: Orders, report: Report, number: int) -> None:
        self._orders = orders
        self._report = report
        self._checks = bool(orders.check_every) and number % orders.check_every == 0
        # Each has an address of its own, as nodes have.
        self._address = f"127.1.{number // 250}.{number % 250 + 1}"
        self._links: dict[_Place, list[_Link]] = {}
        self._requests = asyncio.Semaphore(_AT_A_TIME)
        self._query = f"?ns={orders.namespace}" if orders.namespace else ""

    async def pull(self, repository: str, tag: str) -> None:
        """All of one image."""
        began = time.perf_counter()
        base = f"/v2/{repository}"
        head = await self._ask("HEAD", f"{base}/manifests/{tag}")
        self._report.heads.append(time.perf_counter() - began)
        found = _DIGEST.search(head.head)
        if found is None:
            raise Wrong("a head without a digest")
        if not self._orders.only_tags:
            await self._content(base, found[1].decode())
        self._report.pulls.append(time.perf_counter() - began)

    async def _content(self, base: str, digest: str) -> None:
        link = await self._ask("GET", f"{base}/manifests/{digest}", keep=True)
        assert link.body is not None
        document = json.loads(link.body)
        turns = asyncio.Semaphore(_AT_A_TIME)

        async def fetch(descriptor: dict[str, object]) -> None:
            async with turns:
                await self._blob(f"{base}/blobs/{descriptor['digest']}", int(str(descriptor["size"])))

        async with asyncio.TaskGroup() as group:
            for descriptor in [document["config"], *document["layers"]]:
                group.create_task(fetch(descriptor))

    async def _blob(self, path: str, size: int) -> None:
        buffer = self._orders.buffer
        if not buffer:
            hash_ = hashlib.sha256() if self._checks else None
            await self._range(path, "", 0, size, hash_=hash_)
            if hash_ is not None and hash_.hexdigest() != path.rpartition(":")[2]:
                raise Wrong(f"wrong bytes of {path}")
            return
        first, others = asyncio.Event(), iter(range(buffer, size, buffer))

        async def fetch() -> None:
            await first.wait()
            for offset in others:
                await self._range(path, f"bytes={offset}-", offset, min(buffer, size - offset))

        async with asyncio.TaskGroup() as group:
            group.create_task(self._range(path, "bytes=0-", 0, min(buffer, size), head_came=first))
            for _ in range(_AT_A_TIME - 1):
                group.create_task(fetch())

    async def _range(self, path: str, span: str, offset: int, count: int, **more: Any) -> None:
        async with self._requests:
            link = await self._ask("GET", path, span, most=count, **more)
        total = _TOTAL.search(link.head)
        if link.received < count or (span and total is None):
            raise Wrong(f"{link.status}, {link.received} of {count} bytes from {offset} of {path}")

    async def _ask(self, method: str, path: str, span: str = "", place: _Place | None = None, **more: Any) -> _Link:
        """The link with the answer, kept for the next request where that can be. `more`: see `_Link.ask`."""
        host, port = where = place or ("127.0.0.1", self._orders.port)
        links = self._links.setdefault(where, [])
        kept = links.pop() if links else None
        link = kept or await self._connect(port)
        query, extra = ("", "") if place else (self._query, f"Range: {span}\r\n" if span else "")
        lines = f"Host: {host}:{port}\r\nUser-Agent: containerd/v2.4.2\r\nAccept: {ACCEPT}\r\n{extra}\r\n"
        try:
            await link.ask(f"{method} {path}{query} HTTP/1.1\r\n{lines}".encode(), **more)
        except ConnectionError:
            if kept is None or link.head:
                raise
            return await self._ask(method, path, span, place, **more)
        self._report.received += link.received
        if link.is_reusable:
            links.append(link)
        elif link.transport is not None:
            link.transport.close()
        if link.status == 307 and place is None and (target := _LOCATION.search(link.head)) is not None:
            there = target[1].decode(), int(target[2])
            return await self._ask(method, target[3].decode(), span, there, **more)
        if link.status not in {200, 206}:
            raise Wrong(f"{link.status} for {path}")
        return link

    async def _connect(self, port: int) -> _Link:
        _, link = await asyncio.get_running_loop().create_connection(
            _Link, "127.0.0.1", port, local_addr=(self._address, 0)
        )
        return link

    def leave(self) -> None:
        """Close its connections."""
        for link in [link for links in self._links.values() for link in links]:
            if link.transport is not None:
                link.transport.abort()


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def work(orders: Orders) -> Report:
    """Have all pulls done; those that do not end in time have failed."""
    report, left = Report(), iter(orders.pulls)

    async def one(number: int) -> None:
        node = _Node(orders, report, number)
        for repository, tag in left:
            try:
                await node.pull(repository, tag)
            except* (Wrong, OSError) as group:
                report.failed.append(_first(group))
        node.leave()

    began = time.perf_counter()
    try:
        async with asyncio.timeout(orders.timeout), asyncio.TaskGroup() as group:
            for number in range(orders.nodes):
                group.create_task(one(number))
    except TimeoutError:
        report.failed += ["not in time"] * (len(orders.pulls) - len(report.pulls) - len(report.failed))
    report.seconds = time.perf_counter() - began
    return report


def share_of(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(asdict(asyncio.run(work(Orders(**json.load(sys.stdin)))))))
