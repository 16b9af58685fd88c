"""Where an upstream may lead: which addresses, ports and schemes its redirects and token realms may have. Pure.

What is dialled is the operator's word (an upstream's URL) or the registry's (PROTOCOL, section 6). The registry's is
judged by the address that is about to be connected to, whatever name or spelling it came from:

- public addresses are always good;
- private ones (RFC 1918, RFC 4193, RFC 6598) for an upstream that is itself on a private or a loopback address;
- loopback for an upstream that is itself on loopback;
- private ones and loopback in `networks`, which the operator named for this upstream;
- anything else never is: link-local, metadata services of clouds, multicast, unspecified, reserved.

An IPv6 address that carries an IPv4 address is judged by that. Of the upstream's own host an address in the URL is good
whatever it is; a name may resolve to what no registry is at, and then it is not dialled.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Zone(StrEnum):
    """What kind of address one is (IANA's special-purpose registries); the values are those of a metric's label."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    UNSPECIFIED = "unspecified"
    RESERVED = "reserved"


# Why a target is refused: its address' zone, a host that is a number but no address, a port or a scheme that is not
# the web's, a user name in it, a realm that is not the upstream's, or that it is where a push was to go on.
Reason = Zone | Literal["number", "port", "scheme", "url", "realm", "push"]

# Where no registry is that its operator calls by a name.
_NO_REGISTRY = frozenset({Zone.LINK_LOCAL, Zone.METADATA, Zone.MULTICAST, Zone.UNSPECIFIED})

# The first that fits counts.
_ZONES: tuple[tuple[Zone, tuple[str, ...]], ...] = (
    # Azure's is a public address, Alibaba's stands among the shared ones, the IPv6 ones of AWS and Google among the
    # unique-local ones; all others are link-local.
    (Zone.METADATA, ("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::/32", "fd20:ce::/32")),
    (Zone.LOOPBACK, ("127.0.0.0/8", "::1/128")),
    (Zone.LINK_LOCAL, ("169.254.0.0/16", "fe80::/10", "fec0::/10")),
    # 198.18.0.0/15 is for benchmarks, and what local resolvers of some VPNs answer for every name.
    (Zone.PRIVATE, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")),
    (Zone.MULTICAST, ("224.0.0.0/4", "ff00::/8")),
    (Zone.UNSPECIFIED, ("0.0.0.0/8", "::/128")),
    (Zone.RESERVED, (
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "3fff::/20",
    )),
    # All of IPv4 that is left, and of IPv6 what is given out as global unicast.
    (Zone.PUBLIC, ("0.0.0.0/0", "2000::/3")),
)  # fmt: skip
_NETWORKS = tuple((zone, ipaddress.ip_network(text)) for zone, texts in _ZONES for text in texts)

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")

# What browsers refuse to speak HTTP to above 1023 (Fetch standard, "port blocking"), and services without a password.
_NOT_THE_WEBS = frozenset({
    1719, 1720, 1723, 2049, 2375, 2379, 3659, 4045, 4190, 5060, 5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669,
    6679, 6697, 10080, 10250, 11211,
})  # fmt: skip

# The last label of a host that is an IPv4 address to the C library: decimal, octal or hexadecimal (URL standard,
# "ends in a number").
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far an upstream may lead: the strictest zone it was itself seen in (None: not seen yet), and `networks`."""

    own: Zone | None = None
    networks: tuple[Network, ...] = ()


def zone_of(address: str) -> Zone:
    """The zone of an IP address, with or without a scope. Raises ValueError for what is none."""
    return _zone(_bare(address))


def strictest(before: Zone | None, address: str) -> Zone:
    """The zone of an upstream that was seen in `before` and is now dialled at `address`.

    One that was public once stays it: a name's owner must not be able to make it private for a moment.
    """
    zone = zone_of(address)
    if before is Zone.PUBLIC or zone not in {Zone.PRIVATE, Zone.LOOPBACK}:
        # An upstream in an odd place may lead no further than a public one.
        return Zone.PUBLIC
    return Zone.PRIVATE if before is Zone.PRIVATE else zone


def address_refusal(address: str, reach: Reach) -> Zone | None:
    """Why an upstream may not lead to `address`; None where it may. Raises ValueError for what is no address."""
    bare = _bare(address)
    zone = _zone(bare)
    if zone is Zone.PUBLIC:
        return None
    if zone not in {Zone.PRIVATE, Zone.LOOPBACK}:
        return zone
    if any(bare in network for network in reach.networks):
        return None
    near = {Zone.LOOPBACK} if zone is Zone.LOOPBACK else {Zone.PRIVATE, Zone.LOOPBACK}
    return None if reach.own in near else zone


def own_refusal(address: str) -> Zone | None:
    """Why the name of an upstream may not resolve to `address`; None where it may. Raises ValueError as `zone_of`."""
    zone = zone_of(address)
    return zone if zone in _NO_REGISTRY else None


def target_refusal(host: str, port: int, own_port: int, reach: Reach) -> Reason | None:
    """Why an upstream may not lead to `host`, as far as is seen before a name is looked up; None where it may.

    Ports: the web's, the upstream's own (`own_port`), and those from 1024 on that no other protocol is known for.
    """
    if port not in {80, 443, own_port} and (port < 1024 or port in _NOT_THE_WEBS):
        return "port"
    try:
        return address_refusal(host, reach)
    except ValueError:
        # Such as 2130706433, 0x7f.1, 127.1, and 127.0.0.1 with a dot behind it.
        return "number" if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) else None


def _bare(address: str) -> Address:
    """The address, or the IPv4 address that it carries to where it leads."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found
    if found in _MAPPED or found in _NAT64:
        return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    if found in _6TO4:
        return ipaddress.IPv4Address(int(found) >> 80 & 0xFFFFFFFF)
    return found


def _zone(address: Address) -> Zone:
    return next((zone for zone, network in _NETWORKS if address in network), Zone.RESERVED)
