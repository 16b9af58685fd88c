"""Connections to an upstream's own origin and to what it led to are kept apart."""

import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.policy.dial import Zone
from proxy.settings import UpstreamSettings
from proxy.telemetry.events import Event, TargetWasRefused, Tell, silent
from proxy.upstream.errors import AddressRefused
from proxy.upstream.pools import Pools


def pools_of(tell: Tell = silent, **settings: Any) -> Pools:
    return Pools("registry.test", UpstreamSettings(**settings), tell)


@pytest.fixture
async def pools() -> AsyncIterator[Pools]:
    made = pools_of(url="https://registry.test")
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


def test_its_own_addresses_are_good_and_say_how_far_it_leads(pools: Pools) -> None:
    """The operator chose where a registry is; before its first connection it leads as far as a public one."""
    assert pools.reach.own is None
    with pytest.raises(AddressRefused):
        pools._foreign_socket(address("10.0.0.1"))
    pools._own_socket(address("10.0.0.9")).close()
    assert pools.reach.own is Zone.PRIVATE
    pools._foreign_socket(address("10.0.0.1")).close()
    pools._own_socket(address("240.0.0.1")).close()
    with pytest.raises(AddressRefused) as caught:
        pools._foreign_socket(address("10.0.0.1"))
    assert caught.value.zone is Zone.PRIVATE


def test_an_address_in_the_url_is_known_at_once() -> None:
    """Also behind an HTTP proxy, where no connection shows it."""
    assert pools_of(url="http://10.0.0.1:5000", proxy="http://proxy.test").reach.own is Zone.PRIVATE
    assert pools_of(url="http://[::1]:5000").reach.own is Zone.LOOPBACK
    networks = (ipaddress.ip_network("10.0.0.0/8"),)
    assert pools_of(url="http://r.test", private_networks=networks).reach.networks == networks


@pytest.mark.parametrize("host", ["169.254.169.254", "fd00:ec2::254", "224.0.0.1", "0.0.0.0", "::ffff:169.254.0.1"])
def test_a_name_is_no_registry_where_none_can_be(host: str) -> None:
    """Its own name may not resolve to it, which is told; in the URL such an address is what the operator wants."""
    told: list[Event] = []
    named = pools_of(told.append, url="https://registry.test")
    with pytest.raises(AddressRefused) as caught:
        named._own_socket(address(host))
    assert told == [TargetWasRefused("registry.test", caught.value.zone)]
    assert named.reach.own is None
    literal = f"[{host}]" if ":" in host else host
    pools_of(told.append, url=f"http://{literal}:5000")._own_socket(address(host)).close()
    assert len(told) == 1
