"""Which registry a request means: the four ways, their order, prefixes, library/, what is not allowed; references."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository
from proxy.policy.registry import Asked, Registries, choose_repository, parse_reference
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


# References as people write them.

MANY = Registries.of(
    UPSTREAMS
    | {
        "localhost:5000": UpstreamSettings(url="http://localhost:5000"),
        "10.1.2.3": UpstreamSettings(url="http://10.1.2.3"),
    }
)
DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1.27@{DIGEST}", f"docker.io/library/nginx:1.27@{DIGEST}"),
        ("org/app", "docker.io/org/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx:v1", "docker.io/library/nginx:v1"),
        ("docker.io", "docker.io/library/docker.io:latest"),
        ("ghcr.io/team/app:V1.0_x-y", "ghcr.io/team/app:V1.0_x-y"),
        ("GHCR.io/team/app", "ghcr.io/team/app:latest"),
        ("Index.Docker.IO/nginx:v1", "docker.io/library/nginx:v1"),
        ("reg.test:5000/app", "reg.test:5000/app:latest"),
        (f"reg.test:5000/a/b/c:v1@{DIGEST}", f"reg.test:5000/a/b/c:v1@{DIGEST}"),
        ("local/app:v1", "reg.test:5000/app:v1"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("10.1.2.3/app:v1", "10.1.2.3/app:v1"),
        # A component without a dot or a colon is a part of the repository.
        ("ghcr/app:v1", "docker.io/ghcr/app:v1"),
    ],
)
def test_references_as_people_write_them(text: str, wanted: str) -> None:
    """As clients read them: `latest` without tag and digest, docker.io without a registry, aliases, in any case."""
    reference = parse_reference(MANY, text)
    assert str(reference) == wanted
    assert parse_reference(MANY, wanted) == reference


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "NAME_INVALID"),
        ("/", "NAME_INVALID"),
        (":v1", "NAME_INVALID"),
        (f"@{DIGEST}", "NAME_INVALID"),
        ("Nginx", "NAME_INVALID"),
        ("ghcr.io/Team/app", "NAME_INVALID"),
        ("ghcr.io/", "NAME_INVALID"),
        ("ghcr.io//app", "NAME_INVALID"),
        ("a:b:c", "NAME_INVALID"),
        ("../../etc/passwd", "NAME_UNKNOWN"),
        ("https://ghcr.io/team/app", "NAME_UNKNOWN"),
        ("ghcr.io/a b", "NAME_INVALID"),
        ("ghcr.io/app\n:v1", "NAME_INVALID"),
        ("ghcr.io/" + "a" * 300, "NAME_INVALID"),
        ("nginx:", "MANIFEST_UNKNOWN"),
        ("nginx:-x", "MANIFEST_UNKNOWN"),
        ("nginx:" + "x" * 129, "MANIFEST_UNKNOWN"),
        ("nginx:v1\n", "MANIFEST_UNKNOWN"),
        ("nginx:v1@", "DIGEST_INVALID"),
        ("nginx@latest", "DIGEST_INVALID"),
        (f"nginx@{DIGEST}@{DIGEST}", "DIGEST_INVALID"),
        ("nginx@sha256:ABCD", "DIGEST_INVALID"),
        ("unknown.example/app", "NAME_UNKNOWN"),
        ("reg.test/app", "NAME_UNKNOWN"),
        ("reg.test:5001/app", "NAME_UNKNOWN"),
        ("localhost/app", "NAME_UNKNOWN"),
    ],
)
def test_what_is_no_reference(text: str, code: str) -> None:
    """An error of the specification, and no guess: a registry that is not configured is not a part of a name."""
    with pytest.raises(OCIError) as caught:
        parse_reference(MANY, text)
    assert caught.value.code == code
    assert "\n" not in caught.value.message


def test_references_where_docker_io_is_not_configured() -> None:
    """The default is meant, without `library/`; where there is none either, only full references mean something."""
    upstreams = {"ghcr.io": UpstreamSettings(url="https://ghcr.io", default=True)}
    assert str(parse_reference(Registries.of(upstreams), "nginx")) == "ghcr.io/nginx:latest"
    bare = Registries.of({"ghcr.io": UpstreamSettings(url="https://ghcr.io")})
    assert str(parse_reference(bare, "ghcr.io/nginx")) == "ghcr.io/nginx:latest"
    with pytest.raises(OCIError, match="names no registry"):
        parse_reference(bare, "nginx")


components = st.from_regex(r"[a-z0-9]{1,4}([._-][a-z0-9]{1,3})?", fullmatch=True)


@given(
    st.sampled_from(["", "docker.io/", "GHCR.io/", "reg.test:5000/", "local/", "localhost:5000/", "10.1.2.3/"]),
    st.lists(components, min_size=1, max_size=3).map("/".join),
    st.none() | st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,9}", fullmatch=True),
    st.none() | st.just(DIGEST),
)
def test_what_it_gives_reads_back(registry: str, name: str, tag: str | None, digest: str | None) -> None:
    """A reference as text, read again, is the same reference: commands can take what the API lists."""
    text = registry + name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    try:
        reference = parse_reference(MANY, text)
    except OCIError as error:
        # The first component looks like a registry that is not there.
        assert error.code == "NAME_UNKNOWN"
        return
    assert parse_reference(MANY, str(reference)) == reference
    assert reference.tag == (tag or (None if digest else "latest"))
    assert reference.repository.registry in MANY.names.values()


@given(st.text(max_size=60))
def test_no_text_is_more_than_refused(text: str) -> None:
    """Whatever it is: a reference that reads back, or one of the specification's errors."""
    try:
        reference = parse_reference(MANY, text)
    except OCIError:
        return
    assert parse_reference(MANY, str(reference)) == reference
