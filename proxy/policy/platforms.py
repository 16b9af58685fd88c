"""Which manifests of an index are those of a platform, by the rules that containerd goes by. Pure.

Names are brought into one spelling first: `aarch64` is `arm64`, `arm64/v8` is `arm64`, `amd64/v1` is `amd64`, `arm` is
`arm/v7`. A node takes what is built for it, and where there is nothing, the next best: `amd64/v3` takes v2, v1 and then
386, `arm/v7` takes v6 and v5, `arm64` takes what is for `arm` (containerd's platforms package, `Only`). What names no
platform is everybody's.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from proxy.oci.manifest import Descriptor, Platform

# What nodes are nearly always.
USUAL = (Platform("linux", "amd64"), Platform("linux", "arm64"))
ALL = "all"

_SHAPE = re.compile(
    r"(?P<os>[a-z0-9_-]+)/(?P<architecture>[a-z0-9_-]+)(?:/(?P<variant>[a-z0-9_.-]+))?(?::(?P<version>[a-z0-9._-]+))?"
)
_OSES = {"macos": "darwin"}
_ARCHITECTURES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
# The variant that each is without another word.
_PLAIN = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_LEAST_ARM = 5
# Of a version that exists.
_DIGITS = 2
# 8.(n+5) has everything of 9.n.
_ARM_8_OF_9 = 5


@dataclass(frozen=True, slots=True)
class Chosen:
    """The `manifests` of an index that are wanted; which of the wanted platforms they are for (`found`).

    `offered` are all platforms that the index names.
    """

    manifests: tuple[Descriptor, ...]
    found: frozenset[Platform]
    offered: tuple[Platform, ...]


def parse_platform(text: str) -> Platform:
    """`os/arch[/variant][:os.version]`. Raises ValueError."""
    match = _SHAPE.fullmatch(text.strip().lower()) if len(text) <= 128 else None
    if match is None:
        raise ValueError("not a platform: write linux/amd64, linux/arm/v7 or windows/amd64:10.0.20348")
    return normal(Platform(match["os"], match["architecture"], match["variant"] or "", match["version"] or ""))


def parse_platforms(texts: Sequence[str]) -> tuple[Platform, ...] | None:
    """Those of a list; the usual ones for none, and None, which is everything, for `all`. Raises ValueError."""
    if ALL in texts:
        return None
    return tuple(dict.fromkeys(parse_platform(text) for text in texts)) or USUAL


def normal(platform: Platform) -> Platform:
    """In the one spelling that platforms are compared in."""
    os, architecture, variant = platform.os.lower(), platform.architecture.lower(), platform.variant.lower()
    architecture, known = _ARCHITECTURES.get(architecture, (architecture, None))
    variant = variant if known is None else known
    if variant[:1].isdigit() and architecture in {"arm", "arm64"}:
        variant = f"v{variant}"
    if architecture == "arm":
        variant = variant or _PLAIN["arm"]
    elif variant == _PLAIN.get(architecture):
        variant = ""
    return Platform(_OSES.get(os, os), architecture, variant, platform.os_version)


def choose(listed: Sequence[Descriptor], wanted: Sequence[Platform] | None) -> Chosen:
    """What of the manifests that an index lists is for one of `wanted` (None: everything), in its own order.

    An attestation, whose platform is `unknown/unknown`, goes with the manifest that it speaks of.
    """
    offered = {item: normal(item.platform) for item in listed if item.platform is not None and not _unknown(item)}
    everything = tuple(dict.fromkeys(offered.values()))
    if wanted is None:
        return Chosen(tuple(listed), frozenset(), everything)
    alike: dict[Platform, list[Descriptor]] = {}
    for item, platform in offered.items():
        alike.setdefault(replace(platform, os_version=""), []).append(item)
    best = {platform: _best(alike, platform) for platform in wanted}
    taken = {item for found in best.values() for item in found}
    digests = {item.digest for item in taken}
    attesting = {item for item in listed if _unknown(item) and item.refers_to in digests}
    manifests = tuple(item for item in listed if item.platform is None or item in taken | attesting)
    return Chosen(manifests, frozenset(platform for platform, found in best.items() if found), everything)


def _unknown(item: Descriptor) -> bool:
    return item.platform is not None and item.platform.os in {"", "unknown"}


def _best(alike: dict[Platform, list[Descriptor]], wanted: Platform) -> list[Descriptor]:
    """Of what is offered, by platforms without versions of their systems."""
    for one in _in_turn(wanted):
        same = alike.get(replace(one, os_version=""), [])
        if found := [item for item in same if _has_version(item, one.os_version)]:
            return found
    return []


def _has_version(item: Descriptor, wanted: str) -> bool:
    """That of its system is the one that is wanted, or nobody asked for one."""
    version = item.platform.os_version if item.platform is not None else ""
    return not wanted or f"{version}.".startswith(f"{wanted}.")


def _in_turn(wanted: Platform) -> Iterator[Platform]:
    """What a node of that platform takes, the best first."""
    yield wanted
    number = wanted.variant.removeprefix("v")
    last = int(number) if number.isdigit() and len(number) <= _DIGITS else 0
    if wanted.architecture == "amd64":
        for version in range(last - 1, 0, -1):
            yield normal(replace(wanted, variant=f"v{version}"))
        yield replace(wanted, architecture="386", variant="")
    elif wanted.architecture == "arm":
        for version in range(last - 1, _LEAST_ARM - 1, -1):
            yield replace(wanted, variant=f"v{version}")
    elif wanted.architecture == "arm64":
        for variant in _arm64_before(number or "8"):
            yield normal(replace(wanted, variant=variant))
        yield from _in_turn(replace(wanted, architecture="arm", variant="v8"))


def _arm64_before(number: str) -> Iterator[str]:
    """The variants under `8.2` or `9`, best first; none under what is no such number."""
    major, _, minor = number.partition(".")
    if major not in {"8", "9"} or len(minor) > _DIGITS or not (minor or "0").isdigit():
        return
    below = int(minor or 0)
    if major == "9":
        yield from (_version("9", one) for one in range(below - 1, -1, -1))
        below += _ARM_8_OF_9 + 1
    yield from (_version("8", one) for one in range(below - 1, -1, -1))


def _version(major: str, minor: int) -> str:
    return f"v{major}.{minor}" if minor else f"v{major}"
