"""Which registry a request means: the four ways, their order, prefixes, library/ and what is not allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository
from proxy.policy.registry import Asked, Registries, choose_repository
from proxy.settings import UpstreamSettings

UPSTREAMS = {
    "docker.io": UpstreamSettings(
        url="https://registry-1.docker.io", aliases=("registry-1.docker.io", "index.docker.io"), default=True
    ),
    "ghcr.io": UpstreamSettings(url="https://ghcr.io"),
    "reg.test:5000": UpstreamSettings(url="http://reg.test:5000", aliases=("local",)),
}
REGISTRIES = Registries.of(UPSTREAMS)


def choose(name: str, ns: str | None = None, host: str = "proxy:5000", allowed: list[str] | None = None) -> Repository:
    return choose_repository(REGISTRIES, allowed, Asked(ns, host, name))


@pytest.mark.parametrize(
    ("name", "ns", "host", "wanted"),
    [
        # 1. ns, containerd's way; it wins over everything else.
        ("library/nginx", "docker.io", "proxy:5000", "docker.io/library/nginx"),
        ("org/app", "ghcr.io", "docker.io", "ghcr.io/org/app"),
        ("org/app", "GHCR.io", "proxy:5000", "ghcr.io/org/app"),
        ("org/app", "reg.test:5000", "proxy:5000", "reg.test:5000/org/app"),
        ("org/app", "local", "proxy:5000", "reg.test:5000/org/app"),
        # 2. Host, as it is, then without its port.
        ("org/app", None, "ghcr.io", "ghcr.io/org/app"),
        ("org/app", None, "ghcr.io:443", "ghcr.io/org/app"),
        ("org/app", None, "reg.test:5000", "reg.test:5000/org/app"),
        ("org/app", None, "index.docker.io", "docker.io/org/app"),
        ("org/app", None, "reg.test", "docker.io/org/app"),
        ("docker.io/org/app", None, "ghcr.io", "ghcr.io/docker.io/org/app"),
        # 3. The first component, podman's and BuildKit's way.
        ("ghcr.io/org/app", None, "proxy:5000", "ghcr.io/org/app"),
        ("index.docker.io/nginx", None, "proxy:5000", "docker.io/library/nginx"),
        ("local/org/app", None, "proxy:5000", "reg.test:5000/org/app"),
        # 4. The default.
        ("library/nginx", None, "proxy:5000", "docker.io/library/nginx"),
        ("org/app", None, "", "docker.io/org/app"),
        ("unknown.example/app", None, "proxy:5000", "docker.io/unknown.example/app"),
    ],
)
def test_the_four_ways(name: str, ns: str | None, host: str, wanted: str) -> None:
    """First match wins: ns, Host, first component, default."""
    assert str(choose(name, ns, host)) == wanted


@pytest.mark.parametrize(
    ("name", "ns", "host", "wanted"),
    [
        ("docker.io/library/nginx", "docker.io", "proxy", "docker.io/library/nginx"),
        ("docker.io/nginx", "docker.io", "proxy", "docker.io/library/nginx"),
        ("registry-1.docker.io/nginx", "docker.io", "proxy", "docker.io/library/nginx"),
        ("local/app", "reg.test:5000", "proxy", "reg.test:5000/app"),
        ("ghcr.io/org/app", None, "ghcr.io", "ghcr.io/org/app"),
        ("docker.io/org/app", None, "proxy", "docker.io/org/app"),
        # Only a prefix that names the chosen registry goes, and only one.
        ("ghcr.io/org/app", "docker.io", "proxy", "docker.io/ghcr.io/org/app"),
        ("docker.io/docker.io/app", "docker.io", "proxy", "docker.io/docker.io/app"),
        # A name of one component is a repository, whatever it is called.
        ("docker.io", "docker.io", "proxy", "docker.io/library/docker.io"),
        ("ghcr.io", None, "proxy", "docker.io/library/ghcr.io"),
    ],
)
def test_a_prefix_that_names_the_chosen_registry_is_stripped(name: str, ns: str | None, host: str, wanted: str) -> None:
    """Whichever rule chose it: BuildKit sends the prefix and ns."""
    assert str(choose(name, ns, host)) == wanted


def test_single_names_get_library_at_docker_hub_only() -> None:
    """`nginx` is `library/nginx` there, and nothing else anywhere else."""
    assert choose("nginx").name == "library/nginx"
    assert choose("nginx", "ghcr.io").name == "nginx"


@pytest.mark.parametrize("ns", ["", "nowhere.example", "docker.io:443", "docker.io/", "0.0.0.0", "x" * 100_000, "\0"])
def test_an_unknown_ns_is_not_dialled(ns: str) -> None:
    """404 NAME_UNKNOWN, so that containerd goes on; the value is a look-up key and is not repeated."""
    with pytest.raises(OCIError) as caught:
        choose("library/nginx", ns)
    assert (caught.value.code, caught.value.status) == ("NAME_UNKNOWN", 404)
    assert len(caught.value.message) < 200


def test_a_registry_not_among_the_clusters_is_unknown_to_it() -> None:
    """By every way, the default's included; an empty list allows nothing."""
    assert choose("org/app", "ghcr.io", allowed=["ghcr.io"]).registry == "ghcr.io"
    for name, ns, allowed in (("org/app", "ghcr.io", ["docker.io"]), ("org/app", None, ["ghcr.io"]), ("a/b", None, [])):
        with pytest.raises(OCIError, match="not served to this cluster") as caught:
            choose(name, ns, allowed=allowed)
        assert caught.value.status == 404


def test_without_a_default_a_request_must_name_its_registry() -> None:
    """404 NAME_UNKNOWN with a message that says so."""
    registries = Registries.of({"ghcr.io": UPSTREAMS["ghcr.io"]})
    with pytest.raises(OCIError, match="names no registry"):
        choose_repository(registries, None, Asked(None, "proxy:5000", "org/app"))


@given(st.text(), st.none() | st.text(), st.text())
def test_only_configured_registries_are_ever_chosen(name: str, ns: str | None, host: str) -> None:
    """Whatever the client says."""
    try:
        assert choose(name, ns, host).registry in UPSTREAMS
    except OCIError as error:
        assert error.code == "NAME_UNKNOWN"


@pytest.mark.parametrize(
    ("name", "ns", "host", "wanted"),
    [
        ("org/app", None, "proxy", "ghcr.io/org/app"),
        ("org/app", None, "", "ghcr.io/org/app"),
        ("local/app", None, "proxy", "ghcr.io/local/app"),
        ("org/app", None, "docker.io", "docker.io/org/app"),
        ("org/app", "docker.io", "proxy", "docker.io/org/app"),
    ],
)
def test_the_tls_server_name(name: str, ns: str | None, host: str, wanted: str) -> None:
    """It stands where the Host names no registry: behind that, before the path."""
    assert str(choose_repository(REGISTRIES, None, Asked(ns, host, name, "ghcr.io"))) == wanted
