"""Manifests and indexes: media types, descriptors, and what a body must satisfy before it is believed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

# What the proxy asks of every upstream, whatever its client asked for: an entry is shared by clients that send
# different Accept headers, and a registry that is sent less may convert or refuse.
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"))

# Content types that gateways put on everything: the document, or what is known of it, has the last word.
SAYS_NOTHING = frozenset({"", "application/json", "application/octet-stream", "text/plain"})

# At least this must pass (distribution-spec, "Pushing manifests"); nothing larger is taken from an upstream.
MAX_MANIFEST_SIZE = 4 * 1024 * 1024

_REFERS_TO = "vnd.docker.reference.digest"

# RFC 6838, section 4.2; what is none must never become a Content-Type of ours.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


class ManifestInvalid(ValueError):
    """A body that is not a manifest the proxy would hand on. The message says why, in words of ours."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on (image-spec, "Image Index", `platform`), as it was written; empty where nothing was."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        version = f":{self.os_version}" if self.os_version else ""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part) + version


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest lists: media type, digest (unparsed: another's word) and size in bytes.

    `platform`: where an index says one. `refers_to`: the digest of the manifest beside it that an attestation speaks of
    (BuildKit's annotation `vnd.docker.reference.digest`). `elsewhere`: it has `urls` of its own.
    """

    media_type: str
    digest: str
    size: int
    is_manifest: bool = False
    platform: Platform | None = None
    refers_to: str = ""
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest's media type and everything it lists, in its own order."""

    media_type: str
    children: tuple[Descriptor, ...]


def content_type_of(header: str) -> str:
    """The media type of a Content-Type header, without parameters (distribution-spec: it MUST have none)."""
    return header.partition(";")[0].strip().lower()


def parse_manifest(body: bytes, content_type: str) -> Manifest:
    """Check `body` as it was answered under `content_type` and give its media type and children.

    Raises ManifestInvalid for what is not a JSON object, for a `mediaType` that contradicts the header, and for a
    document that is an index and an image at once (CVE-2021-41190).
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid("the manifest is not JSON") from error
    if not isinstance(document, dict):
        raise ManifestInvalid("the manifest is not a JSON object")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise ManifestInvalid("the manifest is an index and an image at once")
    return Manifest(_media_type(document, content_type_of(content_type)), tuple(_children(document)))


def _media_type(document: dict[str, Any], content_type: str) -> str:
    own = document.get("mediaType")
    if own is not None and (
        not isinstance(own, str) or not _MEDIA_TYPE.fullmatch(own or "a/b") or own.lower() == "text/html"
    ):
        raise ManifestInvalid("the manifest's mediaType is not a media type")
    # Some registries serve every manifest as JSON; then the document itself has the last word.
    if content_type in SAYS_NOTHING:
        return own or _guess(document)
    if content_type == "text/html":
        raise ManifestInvalid("the manifest was answered as text/html")
    if own and own.lower() != content_type:
        raise ManifestInvalid("the manifest's mediaType differs from its Content-Type")
    return content_type


def _guess(document: dict[str, Any]) -> str:
    if "manifests" in document:
        return OCI_INDEX
    if document.get("schemaVersion") == 1:
        return DOCKER_SCHEMA1
    return OCI_MANIFEST


def _children(document: dict[str, Any]) -> Iterator[Descriptor]:
    """Descriptors in their order; what is malformed is left out, since nothing is ever believed on their word."""
    # `blobs` is what artifact manifests have, which were a part of image-spec before 1.1.
    listed = [document.get("config"), *_list(document, "layers"), *_list(document, "blobs")]
    for entry, is_manifest in [(entry, False) for entry in listed] + [
        (entry, True) for entry in _list(document, "manifests")
    ]:
        if not isinstance(entry, dict):
            continue
        digest, size = entry.get("digest"), entry.get("size")
        if isinstance(digest, str) and isinstance(size, int):
            annotations = entry.get("annotations")
            refers_to = annotations.get(_REFERS_TO) if isinstance(annotations, dict) else None
            yield Descriptor(
                str(entry.get("mediaType", "")),
                digest,
                size,
                is_manifest,
                _platform(entry.get("platform")),
                refers_to if isinstance(refers_to, str) else "",
                bool(entry.get("urls")),
            )


def _platform(value: Any) -> Platform | None:
    if not isinstance(value, dict):
        return None
    words = (value.get(key) for key in ("os", "architecture", "variant", "os.version"))
    return Platform(*(word if isinstance(word, str) else "" for word in words))


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []
