"""Digests: the names of content (image-spec, "Descriptors", section "Digests")."""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from proxy.oci.errors import OCIError

_GRAMMAR = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_LOWER_HEX = re.compile(r"[0-9a-f]+")


class Hasher(Protocol):
    """What `hashlib` gives: bytes in, a hexadecimal digest out."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A digest of a registered algorithm: `sha256:<64 lower-case hex>` or `sha512:<128>`."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read `text`. Raises OCIError DIGEST_INVALID for anything that could not be checked against content."""
        algorithm, _, value = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if not _GRAMMAR.fullmatch(text):
            raise OCIError("DIGEST_INVALID", "the digest does not follow the specification's grammar")
        if length is None:
            raise OCIError("DIGEST_INVALID", "the digest's algorithm is not supported: use sha256 or sha512")
        if len(value) != length or not _LOWER_HEX.fullmatch(value):
            raise OCIError("DIGEST_INVALID", f"a {algorithm} digest has {length} lower-case hexadecimal digits")
        return cls(algorithm, value)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> "Digest":
        """The digest of `content`, whole in memory."""
        return cls(algorithm, hashlib.new(algorithm, content).hexdigest())

    def matches(self, content: bytes) -> bool:
        """Is `content` what this digest names?"""
        return Digest.of(content, self.algorithm) == self

    def hasher(self) -> Hasher:
        """A new hash of this digest's algorithm, to be fed piece by piece."""
        return hashlib.new(self.algorithm)
