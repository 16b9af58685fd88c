"""Images for the fake registry."""

import json
import random
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.manifest import OCI_INDEX, OCI_MANIFEST


@dataclass(frozen=True)
class Image:
    """A manifest, its config and its layers, all by digest."""

    manifest: bytes
    blobs: tuple[bytes, ...]
    media_type: str = OCI_MANIFEST

    @property
    def digest(self) -> str:
        return str(Digest.of(self.manifest))


def random_bytes(size: int, seed: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(size)


def digest_of(content: bytes) -> str:
    return str(Digest.of(content))


def make_image(*sizes: int, seed: int = 0) -> Image:
    """An OCI image with layers of `sizes` bytes."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "seed": seed}).encode()
    layers = tuple(random_bytes(size, seed * 100 + number) for number, size in enumerate(sizes))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer) for layer in layers],
    }
    return Image(json.dumps(manifest).encode(), (config, *layers))


def make_index(*images: Image) -> Image:
    """An index of `images`."""
    listed = [_descriptor(image.media_type, image.manifest) for image in images]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    return Image(json.dumps(document).encode(), (), OCI_INDEX)


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}
