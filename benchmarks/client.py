"""Clients in a process of their own, one thread each: they read a blob, hash it, and tell how it went.

Run as `python -m benchmarks.client TASK` with the fields of `Task` as JSON; prints a list of `Result`. A body that is
cut is taken up at its offset with a Range, as containerd does. Sockets and sha256 work outside the interpreter's lock,
so threads do use all cores; a body that is to be thrown away is never copied out of the kernel (MSG_TRUNC).
"""

import hashlib
import json
import re
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass

from benchmarks.content import Made

_BUFFER = 256 << 10
_PAUSE = 0.1
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """What each client does: read the `size` bytes of the blob at `path` from `start` on."""

    port: int
    path: str
    size: int
    sha256: str = ""  # of the bytes from `start` on; empty throws them away unread
    seed: int | None = None  # of what the origin made: every byte is compared, for a fraction of what hashing costs
    clients: int = 1
    start: int = 0
    reopen: int = 0  # how many times a body that is cut is taken up
    stall_after: int = 0  # bytes; then the connection stays open and nothing is read
    timeout: float = 120


@dataclass
class Result:
    """How it went for one client; seconds since all of them began."""

    status: int = 0
    seconds: float = 0
    head_seconds: float = 0
    received: int = 0
    good: bool = False
    fins: int = 0
    resets: int = 0
    error: str = ""


class Failed(Exception):
    """No way to go on."""


class _Client:
    def __init__(self, task: Task, began: float) -> None:
        self._task = task
        self._began = began
        self._position = task.start
        self._buffer = bytearray(_BUFFER)
        self._hash = hashlib.sha256()
        self._content = Made(task.seed, task.size) if task.seed is not None else None
        self.result = Result()

    def run(self) -> None:
        """Read until the end, or until there is no way to it."""
        task, result = self._task, self.result
        try:
            while self._position < task.size:
                if result.fins + result.resets > task.reopen:
                    raise Failed("cut")
                try:
                    if not self._read_once():
                        result.fins += 1
                except ConnectionError:
                    result.resets += 1
                    time.sleep(_PAUSE)
            result.good = not task.sha256 or self._content is not None or self._hash.hexdigest() == task.sha256
        except (Failed, OSError) as error:
            result.error = str(error) or type(error).__name__
        result.received = self._position - task.start
        result.seconds = time.perf_counter() - self._began

    def _read_once(self) -> bool:
        """One request. False when its body ended early."""
        with socket.create_connection(("127.0.0.1", self._task.port), timeout=self._task.timeout) as connection:
            span = f"Range: bytes={self._position}-\r\n" if self._position else ""
            connection.sendall(f"GET {self._task.path} HTTP/1.1\r\nHost: bench.test\r\n{span}\r\n".encode())
            status, length, body = _head(connection)
            self.result.status = self.result.status or status
            self.result.head_seconds = self.result.head_seconds or time.perf_counter() - self._began
            if status not in {200, 206}:
                raise Failed(f"status {status}")
            # A server that ignores the range sends what is before it, too.
            skip = self._position if status == 200 else 0
            if length - skip != self._task.size - self._position:
                raise Failed(f"{length} bytes announced")
            skip -= self._take(memoryview(body), skip)
            return self._read_body(connection, skip)

    def _read_body(self, connection: socket.socket, skip: int) -> bool:
        task, view = self._task, memoryview(self._buffer)
        flags = 0 if task.sha256 else socket.MSG_TRUNC
        while self._position < task.size:
            if task.stall_after and self._position >= task.stall_after:
                threading.Event().wait()
            count = connection.recv_into(view, _BUFFER, flags)
            if not count:
                return False
            skip -= self._take(view[:count], skip)
            if time.perf_counter() - self._began > task.timeout:
                raise Failed("too slow")
        return True

    def _take(self, piece: memoryview, skip: int) -> int:
        """Use what comes after the first `skip` bytes; gives how many were skipped."""
        skipped = min(skip, len(piece))
        if self._content is not None:
            if not self._content.holds(self._position, piece[skipped:]):
                raise Failed(f"wrong bytes at {self._position}")
        elif self._task.sha256:
            self._hash.update(piece[skipped:])
        self._position += len(piece) - skipped
        return skipped


def _head(connection: socket.socket) -> tuple[int, int, bytes]:
    """Status, Content-Length, and what came of the body."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError("no head")
        head += received
    head, _, body = head.partition(b"\r\n\r\n")
    length = _CONTENT_LENGTH.search(head)
    return int(head.split(b" ", 2)[1]), int(length[1]) if length else -1, body


def run(task: Task) -> list[Result]:
    """All clients at once."""
    began = time.perf_counter()
    clients = [_Client(task, began) for _ in range(task.clients)]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [client.result for client in clients]


if __name__ == "__main__":
    print(json.dumps([asdict(result) for result in run(Task(**json.loads(sys.argv[1])))]))
