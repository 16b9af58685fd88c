"""Connections to an upstream's own origin and to what it led to are kept apart."""

import ipaddress
import socket
from collections.abc import AsyncIterator

import pytest

from proxy.policy.dial import Zone
from proxy.settings import UpstreamSettings
from proxy.upstream.errors import AddressRefused
from proxy.upstream.pools import Pools


@pytest.fixture
async def pools() -> AsyncIterator[Pools]:
    made = Pools(UpstreamSettings(url="https://registry.test"))
    await made.start()
    yield made
    await made.close()


def address(host: str) -> tuple[int, int, int, str, tuple[str, int]]:
    return socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 443)


async def test_no_connection_is_shared_between_the_two(pools: Pools) -> None:
    """What was kept open for the registry itself is never what a redirect goes out by, nor the other way round."""
    names = ("metadata", "blobs", "passing")
    sessions = [pools.pool(name, own) for name in names for own in (True, False)]  # type: ignore[arg-type]
    assert len({id(session.connector) for session in sessions}) == 6


def test_its_own_addresses_are_free_and_say_how_far_it_leads(pools: Pools) -> None:
    """The operator chose where a registry is; before its first connection it leads as far as a public one."""
    assert pools.reach.own is None
    with pytest.raises(AddressRefused):
        pools._foreign_socket(address("10.0.0.1"))
    pools._own_socket(address("10.0.0.9")).close()
    assert pools.reach.own is Zone.PRIVATE
    pools._foreign_socket(address("10.0.0.1")).close()
    pools._own_socket(address("169.254.1.1")).close()
    with pytest.raises(AddressRefused) as caught:
        pools._foreign_socket(address("10.0.0.1"))
    assert caught.value.zone is Zone.PRIVATE


def test_an_address_in_the_url_is_known_at_once() -> None:
    """Also behind an HTTP proxy, where no connection shows it."""
    assert Pools(UpstreamSettings(url="http://10.0.0.1:5000", proxy="http://proxy.test")).reach.own is Zone.PRIVATE
    assert Pools(UpstreamSettings(url="http://[::1]:5000")).reach.own is Zone.LOOPBACK
    networks = (ipaddress.ip_network("10.0.0.0/8"),)
    assert Pools(UpstreamSettings(url="http://r.test", private_networks=networks)).reach.networks == networks
