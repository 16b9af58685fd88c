"""Which images a credential is for: the patterns of kubelet's credential providers (`matchImages`, keys of `auth`).

A pattern is a host, with a port or without, and the beginning of a path. `*`, `?` and `[…]` stand for parts of one
label of the host, never for a dot, and are nothing special in port and path (kubelet-config.v1, CredentialProvider).
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase


def image_matches(pattern: str, image: str) -> bool:
    """Is `image` (`registry.example:5000/team/app`, without tag and digest) one that `pattern` means?"""
    wanted, wanted_port, wanted_path = _parts(pattern)
    host, port, path = _parts(image)
    return (
        wanted_port == port
        and path.startswith(wanted_path)
        and len(wanted) == len(host)
        and all(fnmatchcase(label, glob) for glob, label in zip(wanted, host, strict=True))
    )


def by_precision(patterns: Iterable[str]) -> list[str]:
    """In the order in which kubelet tries them: the longer of two that begin alike first, those with `*` last."""
    return sorted(patterns, reverse=True)


def _parts(image: str) -> tuple[list[str], str, str]:
    """The host's labels, its port, and the path with its slash."""
    authority, slash, path = image.partition("/")
    host, _, port = authority.partition(":")
    return host.lower().split("."), port, slash + path
