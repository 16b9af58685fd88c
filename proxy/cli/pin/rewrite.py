"""A file's text with digests in it. Pure: nothing is parsed or dumped, what is appended goes in where it belongs."""

import difflib
from collections.abc import Iterable, Mapping

from proxy.cli.pin.images import Image
from proxy.oci.digest import Digest
from proxy.oci.image import ImageName


def rewritten(text: str, images: Iterable[Image], digests: Mapping[ImageName, Digest]) -> str:
    """`text`, where those of its `images` that `digests` knows have theirs; every other character stays."""
    pieces, before = [], 0
    for image in images:
        if (name := image.wanted) is not None and name in digests:
            pieces += [text[before : image.end], _addition(name, digests[name])]
            before = image.end
    return "".join([*pieces, text[before:]])


def _addition(name: ImageName, digest: Digest) -> str:
    return f"@{digest}" if name.tag is not None else f":latest@{digest}"


def difference(name: str, before: str, after: str) -> str:
    """The unified diff, as `patch` takes it; empty where nothing differs."""
    lines = difflib.unified_diff(_lines(before), _lines(after), name, name)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines(text: str) -> list[str]:
    # Not splitlines, to which form feeds and others end lines too.
    *whole, last = text.split("\n")
    return [*(f"{line}\n" for line in whole), *([last] if last else [])]
