"""Nodes that are not configured: they mean a registry, and trust an authority that this proxy has the key of."""

import asyncio
import base64
import datetime
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from proxy.server.intercept_ca import create_authority
from tests.fakes.clock import ManualClock
from tests.fakes.proxy import Proxy
from tests.fakes.raw import Raw

NAME, ALIAS = "registry.test", "mirror.test"


@dataclass(frozen=True)
class Signer:
    """The files of an authority by which a listener intercepts."""

    certificate: Path
    key: Path

    @classmethod
    def made_in(cls, directory: Path) -> Self:
        """A new one, for any name."""
        made = create_authority((), datetime.datetime.now(datetime.UTC), datetime.timedelta(days=90))
        signer = cls(directory / "nodes.crt", directory / "nodes.key")
        signer.certificate.write_bytes(made.certificate)
        signer.key.write_bytes(made.key)
        return signer

    def listener(self, address: str = "127.0.0.1:0", **more: Any) -> dict[str, Any]:
        """One of the setting `listen`; keywords are further keys of it."""
        intercept = {"ca_certificate": str(self.certificate), "ca_key": str(self.key)}
        return {"address": address, "intercept": intercept} | more

    def trust(self, any_name: bool = False) -> ssl.SSLContext:
        """What a node goes by; with `any_name` it takes a certificate for whomever."""
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = not any_name
        return context


class Node(Raw):
    """One connection in a registry's name; `host` is what its requests have as their Host."""

    host = NAME

    @classmethod
    async def by_name(
        cls, proxy: Proxy, trust: ssl.SSLContext, name: str = NAME, listener: int = 0, source: str = "127.0.0.1"
    ) -> Self:
        """As if `name` were the proxy's, by a hosts file. Raises ssl.SSLError where it is refused."""
        where = proxy.application.listeners[listener].address
        async with asyncio.timeout(10):
            streams = await asyncio.open_connection(
                where.host, where.port, local_addr=(source, 0), ssl=trust, server_hostname=name
            )
        node = cls(*streams)
        node.host = name
        return node

    @classmethod
    async def by_connect(
        cls, proxy: Proxy, trust: ssl.SSLContext, target: str = f"{NAME}:443", name: str = "", listener: int = 0
    ) -> Self:
        """As if HTTPS_PROXY said the proxy; in TLS it asks for `name`, the target's without another."""
        where = proxy.application.listeners[listener].address
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        async with asyncio.timeout(10):
            await loop.sock_connect(sock, (where.host, where.port))
            await loop.sock_sendall(sock, connect(target))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await loop.sock_recv(sock, 1)
            assert head.startswith(b"HTTP/1.1 200 "), head
            host = target.rpartition(":")[0]
            streams = await asyncio.open_connection(sock=sock, ssl=trust, server_hostname=name or host)
        node = cls(*streams)
        node.host = host if target.endswith(":443") else target
        return node

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", /, **headers: str) -> int:
        """One request and its answer; header names are written with underscores."""
        fields = {"Host": self.host} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            fields |= {"Content-Length": str(len(body))}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        await self.send("\r\n".join(lines).encode() + body)
        return await self.answer(body=method != "HEAD")


def connect(target: str, version: str = "HTTP/1.1") -> bytes:
    """A CONNECT's bytes."""
    return f"CONNECT {target} {version}\r\nHost: {target}\r\n\r\n".encode()


def login(user: str = "alice", password: str = "wonder") -> str:
    """The Authorization of a user with a password."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def real_clock() -> ManualClock:
    """A clock that a test moves, and that begins now: nodes look at their own when they judge certificates."""
    return ManualClock(time.time())
