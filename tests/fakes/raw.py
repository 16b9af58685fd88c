"""A client that sends bytes as they are, well-formed or not, from an address of its choice."""

import asyncio
import json
import socket
import ssl
import struct
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from tests.fakes.proxy import Served


class Raw:
    """One connection. Answers are read one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(
        cls, proxy: Served, sent: bytes = b"", source: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> Self:
        """Connect from `source`, an address of this machine, and send."""
        where = urlsplit(proxy.url)
        name = where.hostname if tls is not None else None
        streams = await asyncio.open_connection(
            where.hostname, where.port, local_addr=(source, 0), ssl=tls, server_hostname=name
        )
        client = cls(*streams)
        await client.send(sent)
        return client

    async def send(self, data: bytes) -> None:
        """Hand it to the system; a proxy that has closed is no error here."""
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self, body: bool = True) -> int:
        """Read an answer; gives its status. Raises IncompleteReadError or ConnectionError where none comes."""
        async with asyncio.timeout(10):
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = (line.partition(":") for line in lines[1:] if line)
            self.headers = {name.lower(): value.strip() for name, _, value in fields}
            self.status = int(lines[0].split()[1])
            self.body = await self._reader.readexactly(int(self.headers.get("content-length", 0))) if body else b""
        return self.status

    @property
    def code(self) -> str:
        """The OCI error code of the last answer; fails where it is no OCI error."""
        assert self.headers["content-type"].startswith("application/json")
        return str(json.loads(self.body)["errors"][0]["code"])

    async def end(self) -> bytes:
        """Wait until the proxy ends the connection; gives what came before."""
        async with asyncio.timeout(10):
            rest = b""
            with suppress(ConnectionError):
                rest = await self._reader.read()
        self.leave()
        return rest

    def leave(self) -> None:
        """Close the connection."""
        self._writer.transport.abort()

    async def reset(self) -> None:
        """End the connection with RST, and wait until it has left."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()
        async with asyncio.timeout(10):
            while sock.fileno() != -1:
                await asyncio.sleep(0)
