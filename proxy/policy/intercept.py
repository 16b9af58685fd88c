"""Whom does a client ask for by CONNECT, or in a TLS handshake, and what becomes of that? Pure.

- Names of configured registries, aliases included, are intercepted: with their port, or 443.
- What the operator allows is tunnelled: `tunnel` of the listener, and the token servers of the registries, so that
  clients log in where they are used to.
- Everything else is refused.

Where a tunnel leads is judged again by the address that is dialled, whatever name it came from (`policy.dial`).
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from proxy.policy.cluster import host_without_port
from proxy.policy.dial import Reach, Zone, address_refusal
from proxy.settings import UpstreamSettings

_TLS = 443
# A host as it may stand in an authority (RFC 9110, section 7.2), of the characters that names and addresses have.
_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})", re.ASCII)
# The last label of a host that is an IPv4 address to the C library.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Intercepted:
    """The registry's name, as its certificate has it: without a port."""

    name: str


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """Where to."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """Why."""

    message: str


Decision = Intercepted | Tunnelled | NotAllowed


def authority(target: str) -> tuple[str, int] | None:
    """Host, in lower case and without brackets, and port of a CONNECT's target; None for what is none."""
    found = _AUTHORITY.fullmatch(target)
    if found is None or not 0 < int(found["port"]) < 65536:
        return None
    host = found["host"].lower().rstrip(".")
    if host.startswith("["):
        host = host.strip("[]")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    return (host, int(found["port"])) if host else None


def server_names(upstreams: Mapping[str, UpstreamSettings]) -> frozenset[str]:
    """The names that clients may ask for in TLS: those of all registries, and their aliases, without ports."""
    names = {name for registry, upstream in upstreams.items() for name in (registry, *upstream.aliases)}
    return frozenset(host_without_port(name).rstrip(".") for name in names)


def token_servers(upstreams: Mapping[str, UpstreamSettings]) -> frozenset[str]:
    """Where clients of the registries log in: hosts, with ports that are not 443."""
    return frozenset(realm.lower() for upstream in upstreams.values() for realm in upstream.token_realms)


def decide(target: str, registries: Collection[str], tunnels: Iterable[str]) -> Decision:
    """What becomes of `CONNECT target`. `registries`: all names and aliases; `tunnels`: shell patterns of hosts, with
    a port where that is not 443."""
    found = authority(target)
    if found is None:
        return NotAllowed("this is no host with a port")
    host, port = found
    written = f"[{host}]" if ":" in host else host
    if f"{written}:{port}" in registries or (port == _TLS and written in registries):
        return Intercepted(host)
    if not any(_allows(pattern, host, port) for pattern in tunnels):
        return NotAllowed("this is no registry of this proxy, nor anything that it tunnels to")
    if (why := tunnel_refusal(host)) is not None:
        return NotAllowed(f"nothing is tunnelled there ({why})")
    return Tunnelled(host, port)


def _allows(pattern: str, host: str, port: int) -> bool:
    """`pattern` is one of a host, with a port where that is not 443; an IPv6 address in it is in brackets."""
    named, colon, number = pattern.rpartition(":")
    if not colon or not number.isdigit() or (named.startswith("[") and not named.endswith("]")):
        named, number = pattern, str(_TLS)
    if int(number) != port:
        return False
    return named.strip("[]") == host if named.startswith("[") else fnmatchcase(host, named.rstrip("."))


def tunnel_refusal(host: str) -> str | None:
    """Why no tunnel leads to `host`, an address or a name that is still to be looked up; None where one may."""
    try:
        zone: Zone | None = address_refusal(host, Reach())
    except ValueError:
        # Such as 2130706433 and 127.1.
        return "a number that is no address" if _NUMBER.fullmatch(host.rpartition(".")[2]) else None
    return str(zone) if zone is not None else None
