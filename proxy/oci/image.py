"""Image references as people write them: `nginx`, `ghcr.io/team/app:v1@sha256:…`.

The grammar is that of distribution's reference package; what is left out is filled in as Docker's and containerd's
clients do: docker.io where no registry is named, `library/` before a single name there, `latest` where there is neither
tag nor digest.
"""

import re
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import Repository, parse_name, parse_tag_or_digest

_DOCKER_HUB = "docker.io"
_HUB_ALIASES = {_DOCKER_HUB, "index.docker.io"}
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class ImageName:
    """What a reference names: `tag` and `digest` are None where they are not written."""

    repository: Repository
    tag: str | None
    digest: Digest | None

    @property
    def tag_or_latest(self) -> str:
        """The tag that clients ask for where no digest says more."""
        return self.tag or "latest"


def parse_image(text: str) -> ImageName:
    """Read a reference. Raises OCIError (NAME_INVALID, MANIFEST_UNKNOWN, DIGEST_INVALID) where `text` is none."""
    named, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    # A colon before the last slash is that of a port.
    path, colon, tag = named.rpartition(":")
    if not colon or "/" in tag:
        path, tag = named, ""
    elif not tag or not isinstance(parse_tag_or_digest(tag), str):
        raise OCIError("MANIFEST_UNKNOWN", "there is a colon, and no tag behind it")
    if _IMAGE_ID.fullmatch(path):
        raise OCIError("NAME_INVALID", "it is the ID of an image, not a name")
    return ImageName(_repository(path), tag or None, digest)


def _repository(path: str) -> Repository:
    first, slash, rest = path.partition("/")
    # Docker's rule: what could not be the first part of a name, or is localhost, is a registry.
    if not slash or (not set(first) & set(".:") and first != "localhost" and first == first.lower()):
        first, rest = _DOCKER_HUB, path
    if not _REGISTRY.fullmatch(first):
        raise OCIError("NAME_INVALID", "the registry is not a host's name with or without a port")
    registry = _DOCKER_HUB if first.lower() in _HUB_ALIASES else first.lower()
    if registry == _DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return Repository(registry, parse_name(rest))
