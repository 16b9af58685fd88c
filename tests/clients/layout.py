"""Makes OCI image layouts: real tar layers, an image or an index of two platforms, ready to be pushed by skopeo."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Layer:
    """A layer of one file of `size` random bytes; the same seed gives the same layer."""

    name: str
    size: int
    seed: int


@dataclass
class Layout:
    """An OCI image layout in `path`."""

    path: Path
    blobs: dict[str, int] = field(default_factory=dict)

    def add(self, content: bytes) -> dict[str, object]:
        """Store `content`; gives digest and size of its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        file = self.path / "blobs" / "sha256" / digest
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.blobs[f"sha256:{digest}"] = len(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def image(self, layers: Iterable[Layer], architecture: str = "amd64") -> dict[str, object]:
        """Store an image; gives its manifest's descriptor."""
        descriptors, diff_ids = [], []
        for layer in layers:
            tar = _tar(layer)
            diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
            # Level 0 and no time of day: the same layer has the same digest everywhere, quickly.
            packed = gzip.compress(tar, compresslevel=0, mtime=0)
            descriptors.append({"mediaType": OCI_LAYER, **self.add(packed)})
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **self.add(_json(config))},
            "layers": descriptors,
        }
        platform = {"architecture": architecture, "os": "linux"}
        return {"mediaType": OCI_MANIFEST, **self.add(_json(manifest)), "platform": platform}

    def index(self, manifests: list[dict[str, object]]) -> dict[str, object]:
        """Store an index of `manifests`; gives its descriptor."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        return {"mediaType": OCI_INDEX, **self.add(_json(document))}

    def tag(self, name: str, descriptor: dict[str, object]) -> None:
        """Make `descriptor` the layout's only entry, under `name`."""
        entry = {key: value for key, value in descriptor.items() if key != "platform"}
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
        (self.path / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
        (self.path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def _tar(layer: Layer) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(layer.name)
        entry.size = layer.size
        tar.addfile(entry, io.BytesIO(random.Random(layer.seed).randbytes(layer.size)))
    return buffer.getvalue()


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
