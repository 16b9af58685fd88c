"""Names of repositories and tags, and references to manifests (distribution-spec, "Pulling manifests").

A manifest is asked for in a repository by tag (`latest`) or by digest (`sha256:…`); in a path both stand in the same
place and are told apart by the colon, which no tag can hold.
"""

import re
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")

# distribution refuses longer names, and clients count the registry's name in; so nothing longer exists.
MAX_NAME_LENGTH = 255

TagOrDigest = str | Digest


def parse_name(text: str) -> str:
    """A repository's name. Raises OCIError NAME_INVALID where `text` is off the grammar or too long."""
    # Length first: the pattern is linear, but there is no reason to run it over a megabyte.
    if len(text) > MAX_NAME_LENGTH or not _NAME.fullmatch(text):
        raise OCIError("NAME_INVALID", "the repository name does not follow the specification's grammar")
    return text


def parse_tag_or_digest(text: str) -> TagOrDigest:
    """What stands after `/manifests/`. Raises OCIError DIGEST_INVALID or MANIFEST_UNKNOWN.

    The specification has no code for a tag off the grammar; no manifest can have it, so it is unknown (404), which is
    also what the conformance suite expects.
    """
    if ":" in text:
        return Digest.parse(text)
    if not _TAG.fullmatch(text):
        raise OCIError("MANIFEST_UNKNOWN", "the tag does not follow the specification's grammar")
    return text


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at a registry, by the registry's configured name: `docker.io`, `library/nginx`."""

    registry: str
    name: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"
