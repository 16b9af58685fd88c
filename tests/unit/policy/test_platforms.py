"""Which manifests of an index a platform's nodes ask for."""

import time

import pytest

from proxy.oci.manifest import Descriptor, Platform
from proxy.policy.platforms import USUAL, choose, normal, parse_platform, parse_platforms


def entry(platform: str | None, digest: str = "", refers_to: str = "") -> Descriptor:
    """What an index lists; its digest is its platform unless another one is given."""
    os, _, rest = (platform or "").partition("/")
    rest, _, version = rest.partition(":")
    architecture, _, variant = rest.partition("/")
    found = Platform(os, architecture, variant, version) if platform is not None else None
    return Descriptor("m", digest or str(platform), 1, True, found, refers_to)


def chosen(offered: list[str], *wanted: str) -> list[str]:
    """The digests of what is chosen of these platforms."""
    return [one.digest for one in choose([entry(one) for one in offered], parse_platforms(wanted)).manifests]


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/i386", Platform("linux", "386")),
        ("windows/amd64:10.0.20348", Platform("windows", "amd64", "", "10.0.20348")),
        ("macos/arm64", Platform("darwin", "arm64")),
    ],
)
def test_platforms_are_written_in_many_ways(text: str, platform: Platform) -> None:
    """Every one of them means the one spelling in which they are compared."""
    assert parse_platform(text) == platform
    assert normal(platform) == platform


@pytest.mark.parametrize("text", ["", "linux", "amd64", "linux/", "linux/amd64/v1/x", "li nux/amd64", "l/" + "a" * 200])
def test_what_is_no_platform(text: str) -> None:
    """Is refused, with the way to write one: an operating system alone would be a guess."""
    with pytest.raises(ValueError, match="write linux/amd64"):
        parse_platform(text)


def test_the_usual_platforms_stand_for_none() -> None:
    """Without a word both kinds of nodes are meant; with `all` everything is."""
    assert parse_platforms([]) == USUAL
    assert parse_platforms(["linux/arm/v7", "all"]) is None
    assert parse_platforms(["linux/arm64", "linux/arm64/v8"]) == (Platform("linux", "arm64"),)


INDEX = ["linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "linux/386", "windows/amd64:10.0.20348.1"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["linux/amd64"], ["linux/amd64"]),
        (["linux/arm64"], ["linux/arm64/v8"]),
        ([], ["linux/amd64", "linux/arm64/v8"]),
        (["linux/amd64/v3"], ["linux/amd64"]),
        (["linux/arm"], ["linux/arm/v7"]),
        (["linux/arm/v8"], ["linux/arm/v7"]),
        (["linux/arm64/v9.2"], ["linux/arm64/v8"]),
        (["windows/amd64"], ["windows/amd64:10.0.20348.1"]),
        (["windows/amd64:10.0.20348"], ["windows/amd64:10.0.20348.1"]),
        (["windows/amd64:10.0.2034"], []),
        (["windows/amd64:10.0.17763"], []),
        (["linux/riscv64"], []),
        (["all"], INDEX),
    ],
)
def test_a_platform_has_what_its_nodes_would_take(wanted: list[str], found: list[str]) -> None:
    """What is built for it, or the next best that containerd would run there."""
    assert chosen(INDEX, *wanted) == found


@pytest.mark.parametrize(
    ("offered", "wanted", "found"),
    [
        (["linux/386"], "linux/amd64", ["linux/386"]),
        (["linux/amd64/v2", "linux/amd64"], "linux/amd64/v3", ["linux/amd64/v2"]),
        (["linux/amd64/v2", "linux/amd64"], "linux/amd64", ["linux/amd64"]),
        (["linux/arm/v5", "linux/arm/v7"], "linux/arm64", ["linux/arm/v7"]),
        (["linux/arm64/v8.1", "linux/arm64"], "linux/arm64/v8.2", ["linux/arm64/v8.1"]),
        (["linux/arm64/v8.5", "linux/arm64"], "linux/arm64/v9", ["linux/arm64/v8.5"]),
        (["linux/arm64/v9.1"], "linux/arm64", []),
        (["windows/amd64:10.0.17763.1", "windows/amd64:10.0.20348.1"], "windows/amd64",
         ["windows/amd64:10.0.17763.1", "windows/amd64:10.0.20348.1"]),
        (["linux/arm64/v8.99999999999"], "linux/arm64/v8.99999999999", ["linux/arm64/v8.99999999999"]),
    ],
)  # fmt: skip
def test_the_best_of_several(offered: list[str], wanted: str, found: list[str]) -> None:
    """Newer variants take older ones, never the other way round; of several systems all, where none was named."""
    assert chosen(offered, wanted) == found


def test_what_names_no_platform_is_everybodys() -> None:
    """Artifacts and nested indexes: containerd looks into all of them."""
    listed = [entry(None, "nested"), entry("linux/amd64"), entry("linux/s390x")]
    assert [one.digest for one in choose(listed, USUAL).manifests] == ["nested", "linux/amd64"]


def test_an_attestation_comes_with_its_manifest() -> None:
    """By the digest in its annotation; those of other platforms stay behind."""
    listed = [
        entry("linux/amd64", "a"), entry("linux/s390x", "b"),
        entry("unknown/unknown", "of a", "a"), entry("unknown/unknown", "of b", "b"),
        entry("unknown/unknown", "of none"),
    ]  # fmt: skip
    found = choose(listed, USUAL)
    assert [one.digest for one in found.manifests] == ["a", "of a"]
    assert found.found == {USUAL[0]}
    assert found.offered == (Platform("linux", "amd64"), Platform("linux", "s390x"))
    assert choose(listed, None).manifests == tuple(listed)


def test_a_long_index_is_looked_through_once() -> None:
    """Whoever pushes it chooses how long it is, and every wanted platform has many that would do."""
    listed = [entry(f"os/{number}", str(number)) for number in range(30_000)]
    wanted = parse_platforms(["linux/amd64/v99", "linux/arm64/v9.99", "linux/arm/v99"])
    before = time.thread_time()
    assert choose(listed, wanted).manifests == ()
    assert time.thread_time() - before < 2.0
