"""Which cluster is this client? The first in the file whose `match` fits; one without `match` fits everybody."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository
from proxy.settings import Address, ClusterSettings, MatchSettings

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of who asks: its address (None on a Unix socket), the Host it named and where it came in.

    `names` are those of its verified certificate. `server_name` is what it asked for in TLS, empty without.
    """

    address: IPAddress | None
    host: str
    listener: Address
    names: frozenset[str] = frozenset()
    server_name: str = ""


def parse_ip(text: str) -> IPAddress | None:
    """An IP address out of `text`; IPv4 that came in as IPv6 (`::ffff:10.0.0.1`) is IPv4 again. None if it is none."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def client_address(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> IPAddress | None:
    """The client's address: the peer's, or what trusted proxies say in X-Forwarded-For, read from the right.

    The right-most address that is not itself a trusted proxy counts; everything left of it is only the client's word.
    None where a trusted proxy says something that is no address: the proxy's own might be another cluster's.
    """
    address = parse_ip(peer)
    for claimed in reversed(forwarded_for.split(",") if forwarded_for else []):
        if address is None or not is_within(address, trusted):
            break
        # Some load balancers append the client's port.
        claim = parse_ip(claimed) or parse_ip(host_without_port(claimed.strip()))
        if claim is None:
            return None
        address = claim
    return address


def host_without_port(host: str) -> str:
    """`proxy.internal:5000` → `proxy.internal`, `[::1]:5000` → `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() and ":" not in name else host


def select_cluster(clusters: Sequence[ClusterSettings], client: Client) -> ClusterSettings | None:
    """The cluster of `client`; None where none fits (the client is then refused)."""
    return next((cluster for cluster in clusters if cluster.match is None or _fits(cluster.match, client)), None)


def check_repository(cluster: ClusterSettings, repository: Repository) -> None:
    """Raise OCIError NAME_UNKNOWN (404) where the cluster may not have the repository; containerd then goes on.

    Patterns are shell patterns of `registry/repository`, `*` also over slashes, as in `cache.keep`.
    """
    allowed = cluster.repositories
    if allowed is not None and not any(fnmatchcase(str(repository), pattern) for pattern in allowed):
        raise OCIError("NAME_UNKNOWN", "the repository is not served to this cluster")


def _fits(match: MatchSettings, client: Client) -> bool:
    if match.networks and (client.address is None or not is_within(client.address, match.networks)):
        return False
    if match.hosts and not {client.host, host_without_port(client.host)} & {host.lower() for host in match.hosts}:
        return False
    if match.certificates and not any(_named(name, pattern) for pattern in match.certificates for name in client.names):
        return False
    return not match.listeners or client.listener in match.listeners


def _named(name: str, pattern: str) -> bool:
    """Shell patterns; only URIs tell case apart."""
    return fnmatchcase(name, pattern) if "://" in name else fnmatchcase(name.lower(), pattern.lower())


def networks_around(clusters: Sequence[ClusterSettings], address: IPAddress | None) -> tuple[bool, ...]:
    """For each cluster whether its networks, if it names any, have the address."""
    return tuple(
        address is not None and is_within(address, cluster.match.networks)
        for cluster in clusters
        if cluster.match is not None and cluster.match.networks
    )


def is_within(address: IPAddress, networks: Sequence[Network]) -> bool:
    """Is it in one of them?"""
    return any(address in network for network in networks if network.version == address.version)
