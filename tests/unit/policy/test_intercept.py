"""What becomes of a CONNECT: registries are intercepted, what is allowed is tunnelled, and nothing leads inside."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.policy.dial import Zone, zone_of
from proxy.policy.intercept import (
    Intercepted,
    NotAllowed,
    Tunnelled,
    authority,
    decide,
    server_names,
    token_servers,
    tunnel_refusal,
)
from proxy.settings import UpstreamSettings

REGISTRIES = {"docker.io", "registry-1.docker.io", "reg.test:5000", "local", "[2606:4700::1111]:5000", "10.0.0.7"}
LONGEST = "a" * 253


def upstream(**more: object) -> UpstreamSettings:
    return UpstreamSettings.model_validate({"url": "https://a.test"} | more)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("registry.test:443", ("registry.test", 443)),
        ("x:1", ("x", 1)),
        ("registry.test:65535", ("registry.test", 65535)),
        ("a_b-c.test:8443", ("a_b-c.test", 8443)),
        ("Registry.TEST:443", ("registry.test", 443)),
        ("registry.test.:443", ("registry.test", 443)),
        ("1.1.1.1:80", ("1.1.1.1", 80)),
        ("[2606:4700::1111]:443", ("2606:4700::1111", 443)),
        ("[2606:4700::ABCD]:443", ("2606:4700::abcd", 443)),
        ("[::ffff:1.1.1.1]:8443", ("::ffff:1.1.1.1", 8443)),
        (f"{LONGEST}:443", (LONGEST, 443)),
    ],
)
def test_a_host_with_a_port(target: str, found: tuple[str, int]) -> None:
    """In lower case, without brackets, and without the dot that only says that the name is whole."""
    assert authority(target) == found


@pytest.mark.parametrize(
    "target",
    [
        "", ":", "*", "/v2/", "registry.test", "registry.test:", ":443", ".:443", "...:443", "[..]:443", "[]:443",
        "registry.test:0", "registry.test:00000", "registry.test:65536", "registry.test:99999", "registry.test:100000",
        "registry.test:-1", "registry.test:+443", "registry.test:44x", "registry.test:４４３", "registry.test:٤٤٣",
        " registry.test:443", "registry.test:443 ", "registry.test :443", "registry.test: 443", "registry.test:443\n",
        "\nregistry.test:443", "registry.test\x00:443", "regi\tstry.test:443", "registry\x7f.test:443",
        "registry.test\r\nHost: a:443", "user@registry.test:443", "user:password@registry.test:443",
        "https://registry.test:443", "registry.test:443/", "registry.test:443?a", "registry.test:443#a",
        "registry.test:443:443", "bücher.test:443", "registry。test:443", "regi%73try.test:443", "*.test:443",
        "2606:4700::1111:443", "::1:443", "[2606:4700::1111]", "[2606:4700::1111]443", "[2606:4700::1111]:0",
        "[2606:4700::1111:443", "2606:4700::1111]:443", "[[::1]]:443", "[registry.test]:443", "[fe80::1%eth0]:443",
        "[fe80::1%25eth0]:443", "[::1]x:443", f"{LONGEST}a:443", "a" * 1_000_000, f"[{'0' * 46}]:443",
    ],
)  # fmt: skip
def test_what_is_no_host_with_a_port(target: str) -> None:
    """It is nobody's target, and nothing of it is looked up."""
    assert authority(target) is None
    assert decide(target, {target, "registry.test"}, ["*"]) == NotAllowed("this is no host with a port")


@pytest.mark.parametrize("target", ["[ab]:443", "[1.1.1.1]:443", "[:::]:443", "[1::2::3]:443"])
def test_brackets_are_for_ipv6_addresses(target: str) -> None:
    """Nothing else stands in them (RFC 3986, section 3.2.2)."""
    assert authority(target) is None


def test_names_that_clients_may_ask_for_in_tls() -> None:
    """All registries' and their aliases', without ports, brackets and final dots, each once."""
    upstreams = {
        "docker.io": upstream(aliases=["registry-1.docker.io", "docker.io:443"]),
        "reg.test:5000": upstream(aliases=["reg.test:5001", "Whole.test."]),
        "[::1]:5000": upstream(),
    }
    assert server_names(upstreams) == {"docker.io", "registry-1.docker.io", "reg.test", "whole.test", "::1"}
    assert server_names({}) == set()


def test_where_clients_log_in() -> None:
    """The token servers of all registries, in lower case and with their ports; of none, none."""
    upstreams = {
        "docker.io": upstream(token_realms=["auth.docker.io"]),
        "reg.test": upstream(token_realms=["Auth.docker.io", "login.test:8443"]),
    }
    assert token_servers(upstreams) == {"auth.docker.io", "login.test:8443"}
    assert token_servers({"reg.test": upstream()}) == set()
    mixed = upstream().model_copy(update={"token_realms": ("Auth.Test",)})
    assert token_servers({"reg.test": mixed}) == {"auth.test"}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("docker.io:443", "docker.io"),
        ("registry-1.docker.io:443", "registry-1.docker.io"),
        ("DOCKER.IO:443", "docker.io"),
        ("docker.io.:443", "docker.io"),
        ("local:443", "local"),
        ("reg.test:5000", "reg.test"),
        ("[2606:4700::1111]:5000", "2606:4700::1111"),
        # Registries may stand inside: the operator has named them.
        ("10.0.0.7:443", "10.0.0.7"),
    ],
)
def test_registries_are_intercepted(target: str, name: str) -> None:
    """By their names and aliases, with their port or 443, whatever may be tunnelled besides."""
    for tunnels in ([], ["*"]):
        assert decide(target, REGISTRIES, tunnels) == Intercepted(name)


@pytest.mark.parametrize(
    "target",
    ["docker.io:80", "docker.io:5000", "reg.test:443", "reg.test:5001", "a.docker.io:443", "io:443",
     "xdocker.io:443", "docker.io.test:443", "[2606:4700::1111]:443"],
)  # fmt: skip
def test_what_is_no_registry_is_refused(target: str) -> None:
    """Another port or another name is another server."""
    found = decide(target, REGISTRIES, ["auth.docker.io"])
    assert found == NotAllowed("this is no registry of this proxy, nor anything that it tunnels to")


def test_names_with_their_own_port_443() -> None:
    """Where 443 is written in the configuration it says nothing."""
    assert decide("reg.test:443", {"reg.test:443"}, []) == Intercepted("reg.test")


@pytest.mark.parametrize(
    ("target", "pattern", "allowed"),
    [
        ("auth.docker.io:443", "auth.docker.io", True),
        ("AUTH.docker.io.:443", "auth.docker.io", True),
        ("auth.docker.io:443", "auth.docker.io:443", True),
        ("auth.docker.io:80", "auth.docker.io", False),
        ("xauth.docker.io:443", "auth.docker.io", False),
        ("auth.docker.io.evil.test:443", "auth.docker.io", False),
        ("one.test:8443", "one.test:8443", True),
        ("one.test:443", "one.test:8443", False),
        ("one.test:84430", "one.test:8443", False),
        ("a.b.cdn.test:443", "*.cdn.test", True),
        ("cdn.test:443", "*.cdn.test", False),
        ("acdn.test:443", "*.cdn.test", False),
        ("a.cdn.test:8443", "*.cdn.test", False),
        ("a.cdn.test:8443", "*.cdn.test:8443", True),
        ("node1.test:443", "node?.test", True),
        ("node12.test:443", "node?.test", False),
        ("a.test:443", "*", True),
        ("1.1.1.1:443", "1.1.1.1", True),
        ("[2606:4700::1111]:443", "*", True),
    ],
)
def test_tunnels_by_pattern_and_port(target: str, pattern: str, allowed: bool) -> None:
    """A pattern fits all of the host; without a port it is for 443."""
    found = decide(target, REGISTRIES, ["other.test", pattern])
    if allowed:
        host, _, port = target.lower().rpartition(":")
        assert found == Tunnelled(host.strip("[]").rstrip("."), int(port))
    else:
        assert isinstance(found, NotAllowed)


@pytest.mark.parametrize("pattern", ["*", "mail.*", "mail.test*"])
def test_a_pattern_without_a_port_is_for_443_alone(pattern: str) -> None:
    """Also where it ends in a star: nobody sends mail through a tunnel."""
    assert isinstance(decide("mail.test:25", (), [pattern]), NotAllowed)


@pytest.mark.parametrize("port", [443, 8443])
def test_tunnels_to_an_ipv6_address(port: int) -> None:
    """Settings let one be written as `[2606:4700::1111]`, and token realms too."""
    pattern = "[2606:4700::1111]" if port == 443 else f"[2606:4700::1111]:{port}"
    assert decide(f"[2606:4700::1111]:{port}", (), [pattern]) == Tunnelled("2606:4700::1111", port)


INSIDE = [
    ("10.0.0.1", "private"), ("172.16.0.1", "private"), ("192.168.1.1", "private"), ("100.64.0.1", "private"),
    ("[fc00::1]", "private"), ("[::ffff:10.0.0.1]", "private"), ("[64:ff9b::10.0.0.1]", "private"),
    ("[2002:a00:1::1]", "private"), ("127.0.0.1", "loopback"), ("127.0.0.1.", "loopback"), ("[::1]", "loopback"),
    ("[0:0:0:0:0:0:0:1]", "loopback"), ("[::ffff:127.0.0.1]", "loopback"), ("[::FFFF:7f00:1]", "loopback"),
    ("[64:ff9b::7f00:1]", "loopback"), ("169.254.169.254", "link-local"), ("[fe80::1]", "link-local"),
    ("[::ffff:a9fe:a9fe]", "link-local"), ("[64:ff9b::169.254.169.254]", "link-local"), ("168.63.129.16", "metadata"),
    ("100.100.100.200", "metadata"), ("[fd00:ec2::254]", "metadata"), ("0.0.0.0", "unspecified"),
    ("[::]", "unspecified"), ("224.0.0.1", "multicast"), ("[ff02::1]", "multicast"), ("192.0.2.1", "reserved"),
    ("255.255.255.255", "reserved"), ("[64:ff9b:1::7f00:1]", "reserved"),
    *((host, "a number that is no address") for host in (
        "2130706433", "0x7f000001", "0X7F000001", "017700000001", "127.1", "0177.0.0.1", "127.0.0.0x1", "0", "0x",
        "10.0.0.010", "256.256.256.256", "1.2.3.4.5", "a.1", "a.0x7f.",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("host", "why"), INSIDE)
def test_nothing_is_tunnelled_inside(host: str, why: str) -> None:
    """Also where everything, or this very host, may be tunnelled; told is which kind of address it is."""
    written = host.lower().rstrip(".")
    for tunnels in (["*"], [written, "*"], [f"{written}:443"] if "[" not in host else ["*:443"]):
        assert decide(f"{host}:443", (), tunnels) == NotAllowed(f"nothing is tunnelled there ({why})")


def test_names_are_judged_by_what_they_resolve_to() -> None:
    """Later, when they are dialled, by the same rule: an address with its scope too."""
    for name in ("localhost", "127.0.0.1.nip.test", "metadata.google.internal", "a.b1"):
        assert tunnel_refusal(name) is None
    assert tunnel_refusal("1.1.1.1") is None
    assert tunnel_refusal("fe80::1%eth0") == "link-local"
    assert tunnel_refusal("::ffff:127.0.0.1") == "loopback"


HOSTS = st.text("aA0.:[]-_%x@ 1f\n*é\x00", max_size=20)


@given(st.one_of(st.text(), st.tuples(HOSTS, st.text("0123456789", max_size=6)).map(":".join)), st.lists(st.text()))
@example("[::ffff:1.2.3.4.5]:443", ["*"])
def test_no_target_is_too_odd(target: str, tunnels: list[str]) -> None:
    """Whatever is asked for is decided, and what is let through is a host with a port."""
    for allowed in ([*tunnels, "*"], tunnels):
        found = decide(target, (), allowed)
        assert isinstance(found, Tunnelled | NotAllowed)
        if isinstance(found, Tunnelled):
            assert found.host
            assert 0 < found.port < 65536


def spellings(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[str]:
    """How this address can be written as a host."""
    if address.version == 6:
        return [f"[{address}]", f"[{address.exploded}]", f"[{str(address).upper()}]"]
    number, parts = int(address), str(address).split(".")
    carried = [f"[{ipaddress.IPv6Address(base | number)}]" for base in (0xFFFF << 32, 0x64FF9B << 96)]
    short = f"{parts[0]}.{number & 0xFFFFFF}"
    odd = [str(number), hex(number), f"0{number:o}", short, ".".join(hex(int(part)) for part in parts)]
    return [str(address), f"{address}.", f"[::ffff:{address}]", f"[64:ff9b::{address}]", *carried, *odd]


@given(st.ip_addresses(), st.integers(1, 65535))
@example(ipaddress.ip_address("127.0.0.1"), 443)
@example(ipaddress.ip_address("169.254.169.254"), 80)
@example(ipaddress.ip_address("fd00:ec2::254"), 443)
def test_no_spelling_of_an_address_leads_inside(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    """However it is written: what is tunnelled to is a public address, or the name of none."""
    for host in spellings(address):
        found = decide(f"{host}:{port}", (), ["*", f"*:{port}"])
        if zone_of(str(address)) is not Zone.PUBLIC:
            assert isinstance(found, NotAllowed)
        elif isinstance(found, Tunnelled):
            assert zone_of(found.host) is Zone.PUBLIC
