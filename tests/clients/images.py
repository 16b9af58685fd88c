"""The images that every client pulls."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.clients.layout import Layer, Layout
from tests.clients.registries import Upstream
from tests.clients.wire import ask

MIB = 1 << 20
TAG = "v1"


@dataclass(frozen=True)
class Image:
    """An image as it was pushed: the tag's digest, and the digest of the manifest for linux/amd64."""

    repository: str
    tag: str
    digest: str
    platform_digest: str
    media_type: str
    blobs: tuple[str, ...]


def pushed(upstream: Upstream, repository: str, tag: str = TAG, headers: dict[str, str] | None = None) -> Image:
    """What the upstream itself says about `repository:tag`, asked with `headers`."""
    top = ask(upstream.port, f"/v2/{repository}/manifests/{tag}", headers=headers)
    assert top.status == 200, top.body
    digest, document = top.digest, json.loads(top.body)
    if "manifests" in document:
        entry = next(item for item in document["manifests"] if item["platform"]["architecture"] == "amd64")
        child = ask(upstream.port, f"/v2/{repository}/manifests/{entry['digest']}", headers=headers)
        assert child.digest == entry["digest"]
        document = json.loads(child.body)
        platform_digest = child.digest
    else:
        platform_digest = digest
    blobs = tuple(item["digest"] for item in [document["config"], *document["layers"]])
    return Image(repository, tag, digest, platform_digest, str(top.headers["Content-Type"]), blobs)


class Images:
    """Makes image layouts below `directory`, once each, and pushes them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._layouts: dict[str, Layout] = {}

    def index(self, upstream: Upstream) -> Image:
        """An OCI index of two platforms."""
        layout = self._layout("index", _two_platforms)
        upstream.push(layout.path, TAG, "team/index")
        return pushed(upstream, "team/index")

    def schema2(self, upstream: Upstream, repository: str = "team/schema2") -> Image:
        """A Docker schema 2 image."""
        layout = self._layout("schema2", lambda made: made.image([Layer("one", 300_000, 1), Layer("two", 5000, 2)]))
        upstream.push(layout.path, TAG, repository, "--format", "v2s2")
        return pushed(upstream, repository)

    def large(self, upstream: Upstream) -> Image:
        """An OCI image whose layers hold from 1 byte to 200 MB; the largest last, since vfs copies what is below."""
        layout = self._layout("large", _every_size)
        upstream.push(layout.path, TAG, "team/large")
        return pushed(upstream, "team/large")

    def blob(self, upstream: Upstream, size: int) -> str:
        """The digest of a layer of `size` bytes and a little, in the repository team/blob."""
        layout = self._layout("blob", lambda made: made.image([Layer("blob", size, 30)]))
        upstream.push(layout.path, TAG, "team/blob")
        return pushed(upstream, "team/blob").blobs[-1]

    def versions(self, upstream: Upstream) -> tuple[str, str]:
        """The digests of two images in the repository team/moving."""
        return self._version(upstream, 1), self._version(upstream, 2)

    def _version(self, upstream: Upstream, number: int) -> str:
        layout = self._layout(f"version{number}", lambda made: made.image([Layer("version", 4000, 40 + number)]))
        upstream.push(layout.path, TAG, "team/moving")
        return pushed(upstream, "team/moving").digest

    def _layout(self, name: str, make: Callable[[Layout], dict[str, object]]) -> Layout:
        if name not in self._layouts:
            layout = Layout(self._directory / name)
            layout.tag(TAG, make(layout))
            self._layouts[name] = layout
        return self._layouts[name]


def _two_platforms(layout: Layout) -> dict[str, object]:
    shared = Layer("shared", 2 * MIB, 10)
    amd64 = layout.image([shared, Layer("amd64", 1000, 11)], "amd64")
    arm64 = layout.image([shared, Layer("arm64", 1000, 12)], "arm64")
    return layout.index([amd64, arm64])


def _every_size(layout: Layout) -> dict[str, object]:
    sizes = [1, 511, 65_536, MIB + 1, 5 * MIB, 200_000_000]
    return layout.image([Layer(f"file{size}", size, 20 + number) for number, size in enumerate(sizes)])
