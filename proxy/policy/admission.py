"""Which connections of clients may stay: so many in all, and so many from one address. Pure.

A connection is busy while a request of it is being answered, and at rest between requests and before the first one.
Where there is no room for a new one, the one that has been at rest the longest makes room: among those of the same
address where that has too many, else among all. Only where none has been at rest for a moment is the new one refused.
So clients that connect and say nothing, however many, push out each other and keep nobody else out.

A client is its IPv4 address, or the /64 of its IPv6 address, which is what one machine is given. Trusted proxies are
not counted: a connection of theirs is many clients'.
"""

import ipaddress
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from proxy.policy.cluster import IPAddress, Network

T = TypeVar("T", bound=Hashable)

Excess = Literal["connections", "client-connections"]

# Seconds in which a connection that is new, or has just been answered, is likely to be used.
_SETTLED = 0.25


@dataclass(frozen=True, slots=True)
class Admitted(Generic[T]):
    """What is to be done with a new connection: `refused` says why it may not stay; `closing` goes in its place."""

    refused: Excess | None = None
    closing: T | None = None


class Admission(Generic[T]):
    """The connections that are there. Those that were refused, and those that are closed, are not among them."""

    def __init__(self) -> None:
        self._clients: dict[T, str | None] = {}
        self._resting: dict[T, float] = {}
        # Of each client all its connections, those at rest in their order.
        self._of_client: dict[str, _Client[T]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def admit(self, connection: T, client: str | None, most: int, most_of_client: int, now: float) -> Admitted[T]:
        """A new one from `client` (None: not counted by address); limits of 0 are none."""
        held = self._of_client.get(client) if client is not None else None
        closing: T | None = None
        if held is not None and most_of_client and held.count >= most_of_client:
            closing = self._settled(held.resting, now)
            if closing is None:
                return Admitted(refused="client-connections")
        elif most and len(self._clients) >= most:
            closing = self._settled(self._resting, now)
            if closing is None:
                return Admitted(refused="connections")
        if closing is not None:
            self.gone(closing)
        self._clients[connection] = client
        if client is not None:
            self._of_client.setdefault(client, _Client()).count += 1
        self.rests(connection, now)
        return Admitted(closing=closing)

    def busy(self, connection: T) -> None:
        """A request came."""
        if self._resting.pop(connection, None) is not None and (held := self._held(connection)) is not None:
            held.resting.pop(connection, None)

    def rests(self, connection: T, now: float) -> None:
        """Nothing of it is left to be answered."""
        if connection not in self._clients or connection in self._resting:
            return
        self._resting[connection] = now
        if (held := self._held(connection)) is not None:
            held.resting[connection] = now

    def gone(self, connection: T) -> None:
        """It was closed, or is being closed."""
        if connection not in self._clients:
            return
        self.busy(connection)
        client = self._clients.pop(connection)
        if client is not None:
            held = self._of_client[client]
            held.count -= 1
            if not held.count:
                del self._of_client[client]

    def _held(self, connection: T) -> "_Client[T] | None":
        client = self._clients.get(connection)
        return self._of_client[client] if client is not None else None

    def _settled(self, resting: dict[T, float], now: float) -> T | None:
        first = next(iter(resting), None)
        return first if first is not None and now - resting[first] >= _SETTLED else None


class _Client(Generic[T]):
    """What one client holds."""

    __slots__ = ("count", "resting")

    def __init__(self) -> None:
        self.count = 0
        self.resting: dict[T, float] = {}


def counted_as(address: IPAddress | None, trusted: Sequence[Network]) -> str | None:
    """Whose connections one from `address` is counted with; None where it is not counted by address."""
    if address is None or any(address in network for network in trusted if network.version == address.version):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
