"""Connections with the same facts share one entrance, as long as one of them is there."""

import gc
import ipaddress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.policy.cluster import Network
from proxy.server import entrance as module
from proxy.server.entrance import Entrance, Entrances, peer_address
from proxy.settings import Address, ClusterSettings, MatchSettings

HERE, THERE = Address("127.0.0.1", 5000), Address("127.0.0.1", 5001)
CLUSTERS = [
    ClusterSettings(name="edge", match=MatchSettings(networks=(ipaddress.ip_network("10.1.0.0/16"),))),
    ClusterSettings(name="rest"),
]
TRUSTED: list[Network] = [ipaddress.ip_network("10.9.0.0/16")]


class Transport:
    """What is asked of one: a peer, and with `tls` a client's certificate and the name that it dialled."""

    def __init__(self, peer: str | None, server_name: str | None = None, names: frozenset[str] = frozenset()) -> None:
        self._facts: dict[str, Any] = {"peername": (peer, 40000) if peer is not None else "/run/socket"}
        if server_name is not None:
            tls = SpokenTo.__new__(SpokenTo)
            tls.server_name = server_name
            self._facts |= {"ssl_object": tls, "peercert": names}

    def get_extra_info(self, name: str) -> Any:
        return self._facts.get(name)


class SpokenTo:
    """A TLS connection."""

    server_name: str


@pytest.fixture
def entrances(monkeypatch: pytest.MonkeyPatch) -> Entrances:
    """With certificates that are the names that they are good for."""
    monkeypatch.setattr(module, "TLSConnection", SpokenTo)
    monkeypatch.setattr(module, "certificate_names", lambda names: names)
    return Entrances(CLUSTERS, TRUSTED)


def of(entrances: Entrances, transport: Transport, listener: Address = HERE) -> Entrance:
    return entrances.of(listener, cast(Any, transport))


def test_equal_facts_share_one(entrances: Entrances) -> None:
    """Whatever the addresses: those outside of all networks are alike, and those inside of the same ones."""
    outside, inside = of(entrances, Transport("192.0.2.1")), of(entrances, Transport("10.1.0.1"))
    assert of(entrances, Transport("198.51.100.7")) is outside
    assert of(entrances, Transport("10.1.200.9")) is inside
    assert inside is not outside
    assert of(entrances, Transport(None)) is outside


def test_each_fact_makes_another(entrances: Entrances) -> None:
    """The listener, the networks, being trusted, the dialled name, and every name of a certificate."""
    found = [
        of(entrances, Transport("192.0.2.1")),
        of(entrances, Transport("192.0.2.1"), THERE),
        of(entrances, Transport("10.1.0.1")),
        of(entrances, Transport("10.9.0.1")),
        of(entrances, Transport("192.0.2.1", "a.test")),
        of(entrances, Transport("192.0.2.1", "b.test")),
        of(entrances, Transport("192.0.2.1", "a.test", frozenset({"node"}))),
        of(entrances, Transport("192.0.2.1", "a.test", frozenset({"node", "admin"}))),
    ]
    assert len(set(found)) == len(found)
    assert [one.trusted for one in found] == [False, False, False, True, False, False, False, False]


def test_it_goes_with_its_last_connection(entrances: Entrances) -> None:
    """Nothing is kept for clients that have left, however many facts there were."""
    first = of(entrances, Transport("192.0.2.1"))
    second = of(entrances, Transport("192.0.2.2"))
    for number in range(1000):
        of(entrances, Transport("192.0.2.1", f"{number}.test"))
    gc.collect()
    assert len(entrances._known) == 1
    del first
    assert of(entrances, Transport("192.0.2.3")) is second
    del second
    gc.collect()
    assert len(entrances._known) == 0


def test_another_configuration_has_its_own(entrances: Entrances) -> None:
    """Equal facts or not: what was kept for one is found by no connection under the other."""
    assert of(entrances, Transport("192.0.2.1")) is not of(Entrances(CLUSTERS, TRUSTED), Transport("192.0.2.1"))


def test_the_address_at_the_other_end() -> None:
    """None where there is none, as on a Unix socket."""
    assert str(peer_address(cast(Any, Transport("10.1.0.1")))) == "10.1.0.1"
    assert peer_address(cast(Any, Transport(None))) is None
    assert peer_address(cast(Any, SimpleNamespace(get_extra_info=lambda _: None))) is None
