"""What of a connection decides about its requests: two with the same entrance are answered alike, byte for byte."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from proxy.policy.cluster import IPAddress, Network, is_within, networks_around, parse_ip
from proxy.server.tls import TLSConnection, certificate_names
from proxy.settings import Address, ClusterSettings


@dataclass(frozen=True, slots=True)
class _Facts:
    """`trusted`: what it says of its clients' addresses is believed; `networks`: those of which clusters it is in."""

    listener: Address
    server_name: str
    names: frozenset[str]
    trusted: bool
    networks: tuple[bool, ...]


class Entrance:
    """Equal to none but itself: for the same facts there is one at a time (`Entrances`)."""

    __slots__ = ("__weakref__", "trusted")

    def __init__(self, trusted: bool) -> None:
        self.trusted = trusted


class Entrances:
    """Those of one configuration; each lives as long as somebody has it."""

    def __init__(self, clusters: Sequence[ClusterSettings], trusted: Sequence[Network]) -> None:
        self._clusters = clusters
        self._trusted = trusted
        self._known: WeakValueDictionary[_Facts, Entrance] = WeakValueDictionary()

    def of(self, listener: Address, transport: asyncio.BaseTransport) -> Entrance:
        """The entrance of a connection that came in at `listener`."""
        address = peer_address(transport)
        tls = transport.get_extra_info("ssl_object")
        names: frozenset[str] = frozenset()
        server_name = ""
        if isinstance(tls, TLSConnection):
            names, server_name = certificate_names(transport.get_extra_info("peercert")), tls.server_name
        trusted = address is not None and is_within(address, self._trusted)
        facts = _Facts(listener, server_name, names, trusted, networks_around(self._clusters, address))
        if (known := self._known.get(facts)) is None:
            known = self._known[facts] = Entrance(trusted)
        return known


def peer_address(transport: asyncio.BaseTransport) -> IPAddress | None:
    """The address at the other end; None where there is none."""
    peer = transport.get_extra_info("peername")
    return parse_ip(peer[0]) if isinstance(peer, tuple) else None
