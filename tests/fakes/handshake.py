"""TLS handshakes in memory, without a socket."""

import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shaken:
    """Both sides of a connection whose handshake is over."""

    client: ssl.SSLObject
    server: Any

    @property
    def shown(self) -> bytes:
        """The server's certificate (DER)."""
        found = self.client.getpeercert(binary_form=True)
        assert found is not None
        return found


def trusting(certificates: bytes) -> ssl.SSLContext:
    """A client that trusts these authorities (PEM), and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.decode())
    return context


def careless() -> ssl.SSLContext:
    """A client that takes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def shake(client: ssl.SSLContext, server: ssl.SSLContext, name: str | None) -> Shaken:
    """A handshake of a client that asks for `name`. Raises ssl.SSLError where either side gives up."""
    to_client, to_server = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    sides = Shaken(client.wrap_bio(*to_client, server_hostname=name), server.wrap_bio(*to_server, server_side=True))
    waiting: list[ssl.SSLObject] = [sides.client, sides.server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
            to_server[0].write(to_client[1].read())
            to_client[0].write(to_server[1].read())
        if not waiting:
            return sides
    raise AssertionError("the handshake comes to no end")
