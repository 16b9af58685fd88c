"""Which cluster a client belongs to, and which address it has."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository
from proxy.policy.cluster import (
    Client,
    check_repository,
    client_address,
    host_without_port,
    parse_ip,
    select_cluster,
)
from proxy.settings import ClusterSettings, MatchSettings, parse_address

LISTENER = parse_address("0.0.0.0:5000")
TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


def cluster(name: str, **match: object) -> ClusterSettings:
    return ClusterSettings(name=name, match=MatchSettings.model_validate(match) if match else None)


def client(address: str = "192.0.2.1", host: str = "proxy:5000", listener: str = "0.0.0.0:5000") -> Client:
    return Client(parse_ip(address), host, parse_address(listener))


def chosen(clusters: list[ClusterSettings], asking: Client) -> str | None:
    found = select_cluster(clusters, asking)
    return found.name if found is not None else None


def test_the_first_that_fits_counts() -> None:
    """In the file's order, not by the longest prefix."""
    clusters = [cluster("wide", networks=["10.0.0.0/8"]), cluster("narrow", networks=["10.1.0.0/16"]), cluster("rest")]
    assert chosen(clusters, client("10.1.2.3")) == "wide"
    assert chosen(clusters, client("192.0.2.1")) == "rest"


def test_no_match_fits_nobody_else() -> None:
    """A client that fits none belongs to none: 403 DENIED."""
    assert chosen([cluster("a", networks=["10.0.0.0/8"])], client()) is None
    assert chosen([], client()) is None


@pytest.mark.parametrize(
    ("address", "fits"),
    [("10.1.255.255", True), ("10.2.0.0", False), ("::ffff:10.1.0.1", True), ("2001:db8::1", True),
     ("2001:db9::1", False), ("2001:db8::1%eth0", True), ("", False), ("unix", False)],
)  # fmt: skip
def test_networks_of_both_families(address: str, fits: bool) -> None:
    """IPv4 that came in by an IPv6 socket is IPv4; a client without an address is in no network."""
    clusters = [cluster("a", networks=["10.1.0.0/16", "2001:db8::/32"])]
    assert (chosen(clusters, client(address)) == "a") is fits


@pytest.mark.parametrize(
    ("host", "fits"),
    [("prod.proxy", True), ("prod.proxy:5000", True), ("other:6000", True), ("other", False), ("other:5000", False),
     ("xprod.proxy", False), ("prod.proxy.evil", False), ("", False), ("[2001:db8::1]:5000", True),
     ("[2001:db8::1]", True)],
)  # fmt: skip
def test_hosts_with_and_without_ports(host: str, fits: bool) -> None:
    """A host in the file fits with any port of the client's; one with a port only with that."""
    clusters = [cluster("a", hosts=["Prod.Proxy", "other:6000", "2001:db8::1"])]
    assert (chosen(clusters, client(host=host)) == "a") is fits


def test_listeners() -> None:
    """Where the client came in."""
    clusters = [cluster("a", listeners=["0.0.0.0:5001", "[::]:5001"])]
    assert chosen(clusters, client(listener="0.0.0.0:5001")) == "a"
    assert chosen(clusters, client(listener="[::]:5001")) == "a"
    assert chosen(clusters, client(listener="0.0.0.0:5000")) is None


def test_every_kind_given_must_fit() -> None:
    """Network, host and listener together; one entry of each is enough."""
    clusters = [
        cluster("a", networks=["10.0.0.0/8"], hosts=["x", "y"], listeners=["0.0.0.0:5000", "0.0.0.0:5001"]),
    ]
    assert chosen(clusters, client("10.0.0.1", "y")) == "a"
    assert chosen(clusters, client("11.0.0.1", "y")) is None
    assert chosen(clusters, client("10.0.0.1", "z")) is None
    assert chosen(clusters, client("10.0.0.1", "y", "0.0.0.0:5002")) is None


@pytest.mark.parametrize(
    ("names", "pattern", "fits"),
    [
        ({"prod"}, "prod", True), ({"prod"}, "PROD", True), ({"a", "b.prod.internal"}, "*.prod.internal", True),
        ({"prod.internal"}, "*.prod.internal", False), ({"xprod"}, "prod", False), (set(), "*", False),
        ({"spiffe://a/ns/x"}, "spiffe://a/ns/*", True), ({"spiffe://a/ns/X"}, "spiffe://a/ns/x", False),
        ({"spiffe://b/spiffe://a/"}, "spiffe://a/*", False),
    ],
)  # fmt: skip
def test_names_of_certificates(names: set[str], pattern: str, fits: bool) -> None:
    """Shell patterns, the whole name; only URIs tell case apart. A client without a certificate has no name."""
    asking = replace(client(), names=frozenset(names))
    assert (chosen([cluster("a", certificates=[pattern])], asking) == "a") is fits


def test_a_certificate_is_one_kind_among_others() -> None:
    """Certificate and network together."""
    clusters = [cluster("a", certificates=["prod"], networks=["10.0.0.0/8"])]
    prod = frozenset({"prod"})
    assert chosen(clusters, replace(client("10.0.0.1"), names=prod)) == "a"
    assert chosen(clusters, client("10.0.0.1")) is None
    assert chosen(clusters, replace(client("11.0.0.1"), names=prod)) is None


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "10.0.0.9", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.5, 198.51.100.7, 10.9.9.9", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", " 198.51.100.7 ", "198.51.100.7"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_forwarded_for_is_believed_of_trusted_proxies_only(peer: str, forwarded: str, address: str) -> None:
    """Read from the right: the first that is no trusted proxy counts, what stands left of it is the client's word."""
    assert client_address(peer, forwarded, TRUSTED) == ipaddress.ip_address(address)


def test_nobody_is_trusted_by_default() -> None:
    """Without `trusted_proxies` the header is nothing."""
    assert client_address("10.0.0.1", "1.2.3.4", []) == ipaddress.ip_address("10.0.0.1")


@given(st.text(), st.text(), st.lists(st.ip_addresses().map(str) | st.text(), max_size=4).map(",".join))
def test_no_header_makes_it_raise(peer: str, garbage: str, forwarded: str) -> None:
    """And an untrusted peer's address is its own, whatever it claims."""
    client_address(peer, garbage, TRUSTED)
    client_address("10.0.0.1", forwarded, TRUSTED)
    assert client_address("192.0.2.1", forwarded, TRUSTED) == ipaddress.ip_address("192.0.2.1")


@pytest.mark.parametrize(
    ("host", "name"),
    [("a", "a"), ("a:5000", "a"), ("[::1]", "::1"), ("[::1]:5000", "::1"), ("::1", "::1"), ("a:b", "a:b"), ("", ""),
     (":5000", ":5000"), ("[", ""), ("a:b:5", "a:b:5")],
)  # fmt: skip
def test_a_host_without_its_port(host: str, name: str) -> None:
    """IPv6 loses its brackets, what is no port stays."""
    assert host_without_port(host) == name


@pytest.mark.parametrize("forwarded", ["198.51.100.7:41234", "[2001:db8::7]:41234", "[2001:db8::7]"])
def test_an_address_with_a_port_is_still_an_address(forwarded: str) -> None:
    """Some load balancers (Azure's Application Gateway) append the client's port."""
    assert client_address("10.0.0.1", forwarded, TRUSTED) != ipaddress.ip_address("10.0.0.1")


def test_a_trusted_proxy_that_says_nonsense_makes_nobody_of_its_client() -> None:
    """Its own address might be in another cluster's network."""
    assert client_address("10.0.0.1", "unknown", TRUSTED) is None


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [(None, True), (["docker.io/library/*"], True), (["docker.io/*"], True), (["*/library/alpine"], True),
     (["ghcr.io/*", "docker.io/library/alpine"], True), (["library/*"], False), (["docker.io/library"], False),
     (["docker.io/library/alp"], False), (["docker.io/Library/*"], False), (["ghcr.io/*"], False)],
)  # fmt: skip
def test_repositories_a_cluster_may_have(patterns: list[str] | None, allowed: bool) -> None:
    """Shell patterns over the whole of registry and repository, `*` also over slashes; 404 for all else."""
    repository = Repository("docker.io", "library/alpine")
    settings = ClusterSettings.model_validate({"name": "a", "repositories": patterns})
    if allowed:
        check_repository(settings, repository)
        return
    with pytest.raises(OCIError) as refused:
        check_repository(settings, repository)
    assert (refused.value.code, refused.value.status) == ("NAME_UNKNOWN", 404)
