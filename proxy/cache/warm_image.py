"""What there is to warm of one image: its manifests are had, and name the blobs.

Everything that a manifest lists is another's word: manifests are walked to a depth and a number, each once, and blobs
are counted, so that no index, however it is made, keeps a job busy without end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from proxy.cache.origin import Content
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.manifest import DOCKER_SCHEMA1, Descriptor, Manifest, ManifestInvalid, Platform, parse_manifest
from proxy.oci.reference import TagOrDigest
from proxy.policy.platforms import Chosen, choose

_DEPTH = 4
_MOST_MANIFESTS = 1000
_MOST_BLOBS = 4000
# Sizes are of 64 bits (image-spec, "Descriptors"); whoever is told of larger ones may not be able to count them.
_LARGEST = 2**63 - 1
# Longer ones are looked at in a thread, in bytes.
_LARGE = 64 * 1024
# Of what a message lists.
_MOST_NAMED = 8
# Layers that registries do not hold: they have addresses of their own (image-spec, "Non-Distributable Layers").
_FOREIGN = (".foreign.", ".nondistributable.")

# Gives a manifest with its body. Raises UpstreamError.
GetManifest = Callable[[TagOrDigest], Awaitable[Content]]


class CannotWarm(Exception):
    """This image cannot be warmed, whatever upstreams do. The message is one line for whoever asked for it."""


@dataclass(slots=True)
class Image:
    """Its own digest, all its `manifests`, and its `blobs` with the sizes in bytes that manifests gave them, in order.

    `missing`: of the wanted platforms those that it has not got.
    """

    digest: Digest
    manifests: tuple[Digest, ...]
    blobs: dict[Digest, int] = field(default_factory=dict)
    missing: tuple[Platform, ...] = ()


async def walk(get: GetManifest, reference: TagOrDigest, wanted: Sequence[Platform] | None) -> Image:
    """The image that `reference` means, for the platforms that are `wanted` (None: all).

    Raises CannotWarm or UpstreamError.
    """
    return await _Walk(get, wanted).run(reference)


class _Walk:
    def __init__(self, get: GetManifest, wanted: Sequence[Platform] | None) -> None:
        self._get = get
        self._wanted = wanted
        self._seen: dict[Digest, None] = {}
        self._blobs: dict[Digest, int] = {}
        self._found: set[Platform] = set()
        self._offered: dict[Platform, None] = {}

    async def run(self, reference: TagOrDigest) -> Image:
        content = await self._get(reference)
        self._seen[content.digest] = None
        await self._take(content, _DEPTH)
        missing = tuple(one for one in self._wanted or () if one not in self._found) if self._offered else ()
        if self._wanted and len(missing) == len(self._wanted):
            raise CannotWarm(f"it is not there for {_listed(missing)}: it is for {_listed(tuple(self._offered))}")
        return Image(content.digest, tuple(self._seen), self._blobs, missing)

    async def _take(self, content: Content, depth: int) -> None:
        manifest, chosen = await _looked_at(content, self._wanted)
        for child in manifest.children:
            if not child.is_manifest and not _is_foreign(child):
                self._blobs.setdefault(_digest(child), _size(child))
        if len(self._blobs) > _MOST_BLOBS:
            raise CannotWarm(f"it lists more than {_MOST_BLOBS} blobs")
        self._found |= chosen.found
        self._offered |= dict.fromkeys(chosen.offered)
        for child in chosen.manifests:
            digest = _digest(child)
            if digest in self._seen:
                continue
            self._seen[digest] = None
            if not depth:
                raise CannotWarm(f"its indexes are nested more than {_DEPTH} deep")
            if len(self._seen) > _MOST_MANIFESTS:
                raise CannotWarm(f"it lists more than {_MOST_MANIFESTS} manifests")
            await self._take(await self._get(digest), depth - 1)


async def _looked_at(content: Content, wanted: Sequence[Platform] | None) -> tuple[Manifest, Chosen]:
    body = content.body or b""
    try:
        if len(body) < _LARGE:
            return _read(body, content.media_type, wanted)
        return await asyncio.to_thread(_read, body, content.media_type, wanted)
    except ManifestInvalid as error:
        raise CannotWarm(str(error)) from error


def _read(body: bytes, media_type: str, wanted: Sequence[Platform] | None) -> tuple[Manifest, Chosen]:
    manifest = parse_manifest(body, media_type)
    if manifest.media_type == DOCKER_SCHEMA1:
        raise CannotWarm("it is of Docker's first schema, which lists no layers by size; push it again in the second")
    return manifest, choose([child for child in manifest.children if child.is_manifest], wanted)


def _size(child: Descriptor) -> int:
    if child.size > _LARGEST:
        raise CannotWarm("it lists a size that nothing can have")
    return max(0, child.size)


def _digest(child: Descriptor) -> Digest:
    try:
        return Digest.parse(child.digest)
    except OCIError as error:
        raise CannotWarm(f"it lists something that no client could check: {error.message}") from error


def _is_foreign(child: Descriptor) -> bool:
    return child.elsewhere and any(word in child.media_type for word in _FOREIGN)


def _listed(platforms: Sequence[Platform]) -> str:
    more = f" and {len(platforms) - _MOST_NAMED} more" if len(platforms) > _MOST_NAMED else ""
    return ", ".join(_shown(str(one)) for one in platforms[:_MOST_NAMED]) + more


def _shown(text: str) -> str:
    """Somebody else's word, fit to be printed."""
    return "".join(one if one.isprintable() else "?" for one in text[:64])
