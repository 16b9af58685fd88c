"""An object store: versitygw, which speaks S3 over a folder, and what can go wrong on the way to it."""

import contextlib
import http.client
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.clients.process import Daemon, free_port
from tests.clients.wire import answers

ACCESS, SECRET, REGION = "replica", "a-secret-of-tests", "us-east-1"
BUCKET = "region"


class S3Server:
    """The gateway over `directory`, with one bucket in it. `stop` and `start` it as you like: its port stays."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self.bucket = directory / "objects" / BUCKET
        self.bucket.mkdir(parents=True, exist_ok=True)
        self._daemon: Daemon | None = None
        self.start()

    @property
    def env(self) -> dict[str, str]:
        """What a program has to have in its environment to be let in."""
        return {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self._directory / "versitygw.log"
        words = ["versitygw", "--access", ACCESS, "--secret", SECRET, "--port", f"127.0.0.1:{self.port}"]
        words += ["--health", "/health", "--quiet", "posix", str(self.bucket.parent)]
        self._daemon = Daemon(words, log)
        self._daemon.wait_until(lambda: answers(self.port, "/health"))

    def stop(self) -> None:
        """End it; its objects stay."""
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None

    def url(self, prefix: str, **query: str) -> str:
        """The setting for a prefix of the bucket; the keys come from `env`, unless `query` has them."""
        return url(self.port, prefix, **query)

    def objects(self, prefix: str) -> list[str]:
        """The names of all objects below a prefix of the bucket, without it, in their order."""
        root = self.bucket / prefix
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def unfinished(self) -> list[Path]:
        """The parts of uploads that were begun and neither completed nor aborted."""
        return [path for path in (self.bucket / ".sgwtmp").rglob("*") if path.is_file() and path.stat().st_size]

    def forget_unfinished(self) -> None:
        """Remove those parts."""
        for path in self.unfinished():
            path.unlink()

    def path(self, prefix: str, name: str) -> Path:
        """The file that an object is: write to it, and the object has other bytes."""
        return self.bucket / prefix / name


def url(port: int, prefix: str, **query: str) -> str:
    """The setting for a prefix of the bucket, by whoever listens on `port`."""
    words = {"endpoint": f"http://127.0.0.1:{port}", "region": REGION} | query
    return f"s3://{BUCKET}/{prefix}?{urlencode(words)}"


@dataclass
class Fault:
    """What is wrong with the requests whose method and path have these in them."""

    # "503", "delay" (of the answer), "drip" (of its body), "stall" (no answer), "hang" (half of a body, then nothing),
    # "cut" (the same, then the end), "flip" (one byte of the body), "lose" (it is done, but the answer is lost).
    kind: str
    path: str = ""
    method: str = ""
    seconds: float = 0.0
    # How many requests it happens to.
    times: int = 1_000_000
    met: int = 0

    def meets(self, method: str, path: str) -> bool:
        """Is this request one of them?"""
        if self.method not in method or self.path not in path or self.met >= self.times:
            return False
        self.met += 1
        return True


@dataclass
class Seen:
    """A request that came: its method, its path with the query, the length of its body, when it began and ended."""

    method: str
    path: str
    length: int
    began: float
    ended: float = math.inf


class FaultyS3:
    """A way to an S3Server that can be made bad. What is forwarded goes on unchanged, the signed Host included."""

    def __init__(self, server: S3Server) -> None:
        self.port = free_port()
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self._server = server
        self._healed = threading.Event()
        self._listener: _Listener | None = None
        self.accept()

    def url(self, prefix: str, **query: str) -> str:
        """As `S3Server.url`, by this way."""
        return url(self.port, prefix, **query)

    def fault(self, kind: str, path: str = "", method: str = "", seconds: float = 0.0, times: int = 1_000_000) -> Fault:
        """From now on this happens, besides what happens already."""
        self.faults.append(fault := Fault(kind, path, method, seconds, times))
        return fault

    def heal(self) -> None:
        """No faults any more; who was stalled is cut off."""
        self.faults.clear()
        healed, self._healed = self._healed, threading.Event()
        healed.set()

    def count(self, method: str, path: str = "") -> int:
        """How many requests had these in their method and path."""
        return sum(method in seen.method and path in seen.path for seen in list(self.seen))

    def accept(self) -> None:
        """Take connections (again)."""
        if self._listener is None:
            self._listener = _Listener(self.port, self._answer)

    def refuse(self) -> None:
        """Cut all connections and refuse new ones."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def stop(self) -> None:
        """End it."""
        self.heal()
        self.refuse()

    def _answer(self, request: "_Request") -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        self.seen.append(seen := Seen(request.command, request.path, length, time.monotonic()))
        try:
            self._answer_to(request, body)
        finally:
            seen.ended = time.monotonic()

    def _answer_to(self, request: "_Request", body: bytes) -> None:
        healed = self._healed
        met = {fault.kind: fault for fault in list(self.faults) if fault.meets(request.command, request.path)}
        if "delay" in met:
            healed.wait(met["delay"].seconds)
        if "stall" in met:
            healed.wait()
            request.close_connection = True
            return
        if "503" in met:
            request.give(503, [("Content-Type", "application/xml")], _SLOW_DOWN)
            return
        status, headers, answer = self._forward(request, body)
        if "lose" in met:
            request.close_connection = True
            return
        if "flip" in met and answer:
            answer[len(answer) // 2] ^= 1
        if "drip" in met:
            request.drip(status, headers, answer, healed, met["drip"].seconds)
        elif "cut" in met or "hang" in met:
            request.give(status, headers, answer[: len(answer) // 2], len(answer))
            if "hang" in met:
                healed.wait()
            request.close_connection = True
        else:
            request.give(status, headers, answer)

    def _forward(self, request: "_Request", body: bytes) -> tuple[int, list[tuple[str, str]], bytearray]:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), bytearray(answer.read())


_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_OF_THE_CONNECTION = {"connection", "transfer-encoding", "keep-alive"}
_DRIP = 100


class _Request(BaseHTTPRequestHandler):
    """One connection; `answer` is told of each request."""

    protocol_version = "HTTP/1.1"
    answer: Callable[["_Request"], None]

    def give(self, status: int, headers: list[tuple[str, str]], body: bytes | bytearray, length: int = -1) -> None:
        """An answer, whose body is `length` bytes long as it says."""
        said = [(name, value) for name, value in headers if name.lower() not in _OF_THE_CONNECTION]
        if not any(name.lower() == "content-length" for name, _ in said) and status != 204:
            said.append(("Content-Length", str(len(body) if length < 0 else length)))
        self.send_response_only(status)
        for name, value in said:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(
        self, status: int, headers: list[tuple[str, str]], body: bytearray, healed: threading.Event, seconds: float
    ) -> None:
        """The body in small parts, with pauses of `seconds`."""
        self.give(status, headers, b"", len(body))
        for at in range(0, len(body), _DRIP):
            self.wfile.write(body[at : at + _DRIP])
            if healed.wait(seconds):
                break
        self.close_connection = True

    def _answered(self) -> None:
        # The other side may leave at any time.
        with contextlib.suppress(OSError, http.client.HTTPException):
            type(self).answer(self)
            return
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answered  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Listener:
    """A server of its own thread, whose connections end with it."""

    def __init__(self, port: int, answer: Callable[[_Request], None]) -> None:
        handler = type("_Handler", (_Request,), {"answer": staticmethod(answer)})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="a way to S3", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)
