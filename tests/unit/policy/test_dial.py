"""Where an upstream may lead: zones, how near the upstream is itself, ports, and hosts that are numbers."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.dial import Reach, Zone, address_refusal, own_refusal, strictest, target_refusal, zone_of

ZONES = {
    Zone.PUBLIC: [
        "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0",
        "198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700::1111", "2a00::1", "3ffe::1",
        "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1",
    ],
    Zone.PRIVATE: [
        "10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255",
        "198.18.0.1", "fc00::1", "fdff::1", "::ffff:10.0.0.1", "::ffff:a00:1", "64:ff9b::10.0.0.1", "2002:a00:1::1",
    ],
    Zone.LOOPBACK: [
        "127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::127.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "::1%lo",
    ],
    Zone.LINK_LOCAL: [
        "169.254.169.254", "169.254.170.2", "169.254.0.0", "fe80::1", "fe80::1%eth0", "fe80::1%25eth0", "febf::1",
        "fec0::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
    ],
    Zone.METADATA: [
        "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "::ffff:100.100.100.200",
        "64:ff9b::168.63.129.16",
    ],
    Zone.MULTICAST: ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "::ffff:224.0.0.1"],
    Zone.UNSPECIFIED: ["0.0.0.0", "0.0.0.1", "0.255.255.255", "::", "::ffff:0.0.0.0", "64:ff9b::", "2002::1"],
    Zone.RESERVED: [
        "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.51.100.1", "203.0.113.1", "240.0.0.1",
        "255.255.255.255", "2001::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1", "::7f00:1", "::2",
        "64:ff9b:1::7f00:1", "64:ff9b:1::808:808", "4000::1", "::ffff:0:7f00:1",
    ],
}  # fmt: skip
NEVER = {Zone.LINK_LOCAL, Zone.METADATA, Zone.MULTICAST, Zone.UNSPECIFIED, Zone.RESERVED}


@pytest.mark.parametrize(("zone", "address"), [(zone, one) for zone, listed in ZONES.items() for one in listed])
def test_zones(zone: Zone, address: str) -> None:
    """Every block at its edges; what carries an IPv4 address is in that one's zone."""
    assert zone_of(address) is zone


@pytest.mark.parametrize(
    ("own", "good"),
    [
        (None, {Zone.PUBLIC}),
        (Zone.PUBLIC, {Zone.PUBLIC}),
        (Zone.PRIVATE, {Zone.PUBLIC, Zone.PRIVATE}),
        (Zone.LOOPBACK, {Zone.PUBLIC, Zone.PRIVATE, Zone.LOOPBACK}),
        *((zone, {Zone.PUBLIC}) for zone in NEVER),
    ],
)
def test_an_upstream_leads_no_nearer_than_it_is(own: Zone | None, good: set[Zone]) -> None:
    """Public to public; private to private as well; loopback to loopback as well; nothing to what is never meant."""
    for zone, addresses in ZONES.items():
        for address in addresses:
            assert address_refusal(address, Reach(own)) == (None if zone in good else zone)


@pytest.mark.parametrize("own", list(Zone))
def test_networks_that_the_operator_named(own: Zone) -> None:
    """They open private addresses and loopback, those carried in IPv6 too, and never what is never meant."""
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    for zone, addresses in ZONES.items():
        for address in addresses:
            assert address_refusal(address, Reach(own, everything)) == (zone if zone in NEVER else None)
    some = Reach(Zone.PUBLIC, (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd01::/16")))
    assert address_refusal("10.1.2.3", some) is None
    assert address_refusal("::ffff:10.1.2.3", some) is None
    assert address_refusal("fd01::1", some) is None
    assert address_refusal("10.2.2.3", some) is Zone.PRIVATE
    assert address_refusal("fd02::1", some) is Zone.PRIVATE


@pytest.mark.parametrize(
    ("seen", "zone"),
    [
        (["1.1.1.1"], Zone.PUBLIC),
        (["10.0.0.1"], Zone.PRIVATE),
        (["127.0.0.1", "::1"], Zone.LOOPBACK),
        (["10.0.0.1", "127.0.0.1"], Zone.PRIVATE),
        (["127.0.0.1", "10.0.0.1"], Zone.PRIVATE),
        (["10.0.0.1", "1.1.1.1"], Zone.PUBLIC),
        (["1.1.1.1", "10.0.0.1", "127.0.0.1"], Zone.PUBLIC),
        (["169.254.169.254"], Zone.PUBLIC),
        (["0.0.0.0", "127.0.0.1"], Zone.PUBLIC),
    ],
)
def test_the_strictest_that_was_seen_counts(seen: list[str], zone: Zone) -> None:
    """Whoever owns an upstream's name cannot turn it private for a moment to be let in."""
    own: Zone | None = None
    for address in seen:
        own = strictest(own, address)
    assert own is zone


def test_where_the_name_of_a_registry_may_lead() -> None:
    """Anywhere that a registry can be, its own network's addresses among them."""
    nowhere = {Zone.LINK_LOCAL, Zone.METADATA, Zone.MULTICAST, Zone.UNSPECIFIED}
    for zone, addresses in ZONES.items():
        for address in addresses:
            assert own_refusal(address) == (zone if zone in nowhere else None)


PUBLIC = Reach(Zone.PUBLIC)


@pytest.mark.parametrize("port", [1024, 5000, 8080, 8443, 9000, 65535, 80, 443])
def test_ports_of_the_web_and_high_ones_are_good(port: int) -> None:
    """Object stores stand at 9000."""
    assert target_refusal("storage.test", port, 443, PUBLIC) is None


@pytest.mark.parametrize("port", [0, 1, 22, 25, 53, 79, 81, 442, 445, 1023, 2049, 2375, 6000, 6379, 10250, 11211])
def test_other_protocols_ports_are_refused(port: int) -> None:
    """A port trick: but the upstream's own port is good wherever it leads."""
    assert target_refusal("storage.test", port, 443, PUBLIC) == "port"
    assert target_refusal("storage.test", port, port, PUBLIC) is None


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0x7f000001", "0X7F000001", "017700000001", "127.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.1.",
        "127.0.0.0x1", "1.1.1.1.", "256.256.256.256", "1.2.3.4.5", "0x", "a.0x", "a.1", "a.1.", "0", "10.0.0.010",
    ],
)  # fmt: skip
def test_hosts_that_are_numbers_but_no_addresses(host: str) -> None:
    """The C library takes many of them for addresses, so none is looked up."""
    assert target_refusal(host, 443, 443, Reach(Zone.LOOPBACK)) == "number"


@pytest.mark.parametrize("host", ["a.test", "1.test", "127.0.0.1.nip.test", "0x7f.test", "x1", "a.b1.", "localhost"])
def test_names_are_judged_by_what_they_resolve_to(host: str) -> None:
    """Later, when they are connected to."""
    assert target_refusal(host, 443, 443, PUBLIC) is None


def test_literals_are_judged_at_once() -> None:
    """Also for those who never connect: a client that is sent there, an HTTP proxy."""
    assert target_refusal("169.254.169.254", 80, 443, PUBLIC) is Zone.LINK_LOCAL
    assert target_refusal("::ffff:127.0.0.1", 443, 443, PUBLIC) is Zone.LOOPBACK
    assert target_refusal("fe80::1%25eth0", 443, 443, PUBLIC) is Zone.LINK_LOCAL
    assert target_refusal("1.1.1.1", 443, 443, PUBLIC) is None


@given(st.ip_addresses())
def test_every_address_has_a_zone_and_the_library_agrees(address: ipaddress.IPv4Address) -> None:
    """Nothing that Python's library calls private, loopback, link-local, multicast or unspecified is public here."""
    if zone_of(str(address)) is Zone.PUBLIC and address.version == 4:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_no_ipv6_spelling_gets_round(address: ipaddress.IPv4Address) -> None:
    """Mapped, through NAT64 or by 6to4: the same answer as for the address itself."""
    number, zone = int(address), zone_of(str(address))
    for base in (0xFFFF << 32, 0x64FF9B << 96, 0x2002 << 112):
        carried = number << 80 if base >> 112 == 0x2002 else number
        assert zone_of(str(ipaddress.IPv6Address(base | carried))) is zone
