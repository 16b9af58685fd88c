"""A server of plain bytes, at the other end of a tunnel: a test has both ends of each connection in its hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Peer:
    """`address` is `host:port`; `came` are the connections that nobody has taken yet."""

    host: str
    port: int = 0
    came: asyncio.Queue[Streams] = field(default_factory=asyncio.Queue)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def connection(self) -> Streams:
        """The next one."""
        async with asyncio.timeout(10):
            return await self.came.get()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See `asyncio.start_server`."""
        self._writers.append(writer)
        self.came.put_nowait((reader, writer))

    def close(self) -> None:
        """End what is still open."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def peer(host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    """One that listens inside the context."""
    here = Peer(host)
    server = await asyncio.start_server(here.connected, host, 0)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        here.close()
        server.close()
        await server.wait_closed()


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """Everything until the end; one by RST is an end, too."""
    came = bytearray()
    async with asyncio.timeout(20):
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                came += piece
    return bytes(came)
