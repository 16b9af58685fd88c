"""Sockets that several processes serve: one for each, on the same address.

The kernel spreads new connections over them (SO_REUSEPORT), and a connection stays in the queue of its socket. So the
supervisor keeps all of them open for as long as it lives: what waits in the queue of a worker that died is answered by
its replacement, which inherits the socket.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from proxy.server.listener import ListenError
from proxy.settings import Address

_BACKLOG = 1024

Resolved = tuple[socket.AddressFamily, tuple[Any, ...]]


def bind_shared(address: Address, count: int) -> list[list[socket.socket]]:
    """`count` sets of sockets bound to `address`: as many in each as the host name has addresses. Blocks.

    Port 0 is one port for all. Raises ListenError, with nothing left open.
    """
    with contextlib.ExitStack() as undo:
        try:
            sets: list[list[socket.socket]] = [[] for _ in range(count)]
            port = address.port
            for family, where in _resolve(address):
                where = (where[0], port, *where[2:])
                if port:
                    _check_free(family, where)
                for members in sets:
                    bound = undo.enter_context(_bound(family, where, shared=True))
                    port = bound.getsockname()[1]
                    where = (where[0], port, *where[2:])
                    members.append(bound)
        except OSError as error:
            raise ListenError(f"{address} cannot be listened on: {error.strerror}") from error
        undo.pop_all()
        return sets


def _resolve(address: Address) -> Iterator[Resolved]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, where in dict.fromkeys(found):
        yield family, where


def _check_free(family: socket.AddressFamily, where: tuple[Any, ...]) -> None:
    """Raise OSError where somebody listens here already: a shared socket would silently get a part of its clients."""
    _bound(family, where, shared=False).close()


def _bound(family: socket.AddressFamily, where: tuple[Any, ...], shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # As asyncio does it: 0.0.0.0 may be listened on besides.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(where)
        if shared:
            made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made
