"""What the origin has: images whose layers are made when they are asked for."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.content import Content, Literal, Made, config, layer, sha256

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
REPOSITORY = "bench/app"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
# Beyond those that scenarios choose.
_FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Described:
    """An image, as it is asked for: `blobs` with their sizes, the configuration first."""

    repository: str
    tag: str
    digest: str
    blobs: list[tuple[str, int]]


@dataclass(frozen=True)
class Image:
    """Its manifest, as it is served."""

    manifest: bytes
    digest: str
    media_type: str = MANIFEST


class Store:
    """All images, by repository and by tag or digest."""

    def __init__(
        self, blobs: Sequence[tuple[int, int]], real_layer: int, tags: int, images: int, image_size: int
    ) -> None:
        """See `benchmarks.origin.Options`."""
        self.blobs: dict[str, Content] = {}
        self.listed: list[Described] = []
        self._images: dict[tuple[str, str], Image] = {}
        layers: list[Content] = [layer(real_layer)] if real_layer else [Made(*blob) for blob in blobs]
        self._add(REPOSITORY, "v1", layers)
        self.layers = [{"digest": digest, "size": size} for digest, size in self.listed[0].blobs[1:]]
        for number in range(tags):
            self._add(REPOSITORY, f"t{number}", [Made(_FIRST_SEED + number, 1000)])
        sizes = random.Random(7)
        for number in range(images):
            size = round(image_size * 4 ** sizes.uniform(-1, 1))
            self._add(f"bench/i{number}", "v1", [Made(_FIRST_SEED + tags + number, size)])

    def image(self, repository: str, reference: str) -> Image | None:
        """That of a tag or a digest."""
        return self._images.get((repository, reference))

    def _add(self, repository: str, tag: str, layers: list[Content]) -> None:
        named = {f"sha256:{sha256(content)}": content for content in layers}
        settings = config(list(named))
        settings_digest = f"sha256:{sha256(settings)}"
        self.blobs |= named | {settings_digest: settings}
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": settings_digest, "size": settings.size},
            "layers": [{"mediaType": _LAYER, "digest": name, "size": one.size} for name, one in named.items()],
        }
        manifest = json.dumps(document).encode()
        image = Image(manifest, f"sha256:{sha256(Literal(manifest))}")
        self._images[repository, tag] = self._images[repository, image.digest] = image
        sized = [(settings_digest, settings.size), *((name, one.size) for name, one in named.items())]
        self.listed.append(Described(repository, tag, image.digest, sized))
