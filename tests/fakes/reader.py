"""A client of one body on a socket of its own, which a test lets read, stall and leave byte by byte."""

import asyncio
import socket
import ssl
from typing import Self

from tests.fakes.proxy import Served

# Small, so that a reader that stalls is felt by whoever sends to it.
_BUFFER = 16 * 1024


class Reader:
    """One request and its answer. `received` is the body so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.start = 0
        self.received = bytearray()
        self.status = 0
        self.headers: dict[str, str] = {}
        # How the body ended: whole, with FIN or with RST before its Content-Length; empty as long as it has not.
        self.end = ""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, proxy: Served, tls: ssl.SSLContext | None = None) -> Self:
        """A connection without a request."""
        host, _, port = proxy.url.partition("://")[2].partition(":")
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except OSError:
            sock.close()
            raise
        named = host if tls is not None else None
        return cls(*await asyncio.open_connection(sock=sock, limit=_BUFFER, ssl=tls, server_hostname=named))

    def ask(self, path: str, start: int | None = None, stop: int | None = None) -> None:
        """Ask for the bytes from `start` to before `stop`, or for all; the head is not waited for."""
        last = "" if stop is None else stop - 1
        ranged = "" if start is None else f"Range: bytes={start}-{last}\r\n"
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{ranged}\r\n".encode())
        self.start = start or 0

    @classmethod
    async def send(cls, proxy: Served, path: str, start: int | None = None, stop: int | None = None) -> Self:
        """Connect and ask."""
        reader = await cls.connect(proxy)
        reader.ask(path, start, stop)
        return reader

    @classmethod
    async def open(cls, proxy: Served, path: str, start: int | None = None, stop: int | None = None) -> Self:
        """The same, and wait for the head."""
        reader = await cls.send(proxy, path, start, stop)
        await reader.head()
        return reader

    @property
    def port(self) -> int:
        """Its own port."""
        return int(self._writer.get_extra_info("sockname")[1])

    @property
    def size(self) -> int:
        """How long the body is to be."""
        return int(self.headers["content-length"])

    @property
    def position(self) -> int:
        """The offset of the blob that comes next."""
        return self.start + len(self.received)

    async def head(self) -> None:
        """Wait for status and headers."""
        async with asyncio.timeout(10):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        fields = (line.partition(":") for line in lines[1:] if line)
        self.headers = {name.lower(): value.strip() for name, _, value in fields}

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes more; fewer only where the body ends, or is cut."""
        left = min(count, self.size - len(self.received))
        before = len(self.received)
        async with asyncio.timeout(10):
            while left and not self.end:
                left -= await self._receive(left)
        if len(self.received) == self.size:
            self.end = "whole"
        if self.end:
            self.leave()
        return bytes(self.received[before:])

    async def to(self, offset: int) -> bytes:
        """Up to before `offset` of the blob."""
        return await self.read(offset - self.position)

    async def rest(self) -> bytes:
        """Everything until the body ends, or is cut; gives all of the body."""
        await self.read(self.size)
        return bytes(self.received)

    def leave(self) -> None:
        """Close the connection, however much of the body is left."""
        self._writer.transport.abort()

    async def _receive(self, most: int) -> int:
        try:
            data = await self._reader.read(most)
        except ConnectionResetError:
            self.end = "reset"
            return 0
        if not data:
            self.end = "fin"
        self.received += data
        return len(data)
