"""Which strings of a file are images. Pure.

- Kubernetes (a document with `apiVersion` and `kind`): wherever they stand in it, `image` of what is listed under
  `containers`, `initContainers` and `ephemeralContainers`, and of what is listed under `volumes` `image.reference` and
  `containerDisk.image` (KubeVirt). So every kind that holds a pod or its template is known, custom ones too.
- Compose (another document with a mapping `services`): `image` of each service. What is built is nobody's to ask for:
  that of a service with `build`, and of others with the same image, as Compose itself has it; nor is that of a service
  whose `pull_policy` is `never` or `build`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proxy.cli.pin.documents import Entries, Unreadable, documents, line_at
from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.image import ImageName, parse_image

_CONTAINERS = {"containers", "initContainers", "ephemeralContainers"}
_OF_VOLUMES = (("image", "reference"), ("containerDisk", "image"))
# Besides what is called an image: of volumes, and of environments.
_MAY_BE_IMAGES = {"reference", "value"}
_NOT_PULLED = {"never", "build"}
_STRING = "tag:yaml.org,2002:str"
# Compose's `!reset` takes away what another file says.
_NOTHING = {"tag:yaml.org,2002:null", "!reset"}
# Helm, Go and Jinja; the shell, compose and Kubernetes' own variables.
_TEMPLATE = re.compile(r"\{\{|\{%|<%|\$")
_TEMPLATED = "a template, not a reference"
_SHARED = "an alias has it where no image is; write it out there"


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it is `written`, on `line` (from 1); what is appended to it goes in before the character `end`.

    `name` is what it means, None where it means nothing. `problem`: why it cannot be pinned.
    """

    written: str
    line: int
    end: int
    name: ImageName | None = None
    problem: str = ""
    pinned: bool = False

    @property
    def wanted(self) -> ImageName | None:
        """What a digest is to be asked for; None where there is one, or none can be."""
        return None if self.pinned or self.problem else self.name


def images_in(text: str) -> list[Image]:
    """The images of a YAML text, in its order, each string once, whatever aliases it has. Raises Unreadable."""
    return _images_of(documents(text), text)


def references_in(text: str) -> list[str]:
    """The references of the images in a YAML text, or in a list with one reference a line and comments behind `#`.

    As they are written, in their order, each once; what is a template, or no reference, is left out of YAML. Raises
    Unreadable for what is neither YAML nor a list.
    """
    lines = [(number, line) for number, line in enumerate(map(_without_comment, text.split("\n")), 1) if line]
    wrong = next(((number, line) for number, line in lines if isinstance(_read(line), str)), None)
    if wrong is None:
        return list(dict.fromkeys(line for _, line in lines))
    roots = documents(text)
    if all(isinstance(root, ScalarNode) for root in roots):
        number, line = wrong
        raise Unreadable(number, f"{line!r} is no reference: {_read(line)}")
    return list(dict.fromkeys(image.written for image in _images_of(roots, text) if image.name is not None))


def _without_comment(line: str) -> str:
    return re.split(r"(?:^|\s)#", line.removeprefix("\ufeff"), maxsplit=1)[0].strip()


def _images_of(roots: list[Node], text: str) -> list[Image]:
    entries = Entries()
    try:
        nodes = {id(node): node for root in roots for node in _nodes(root, entries)}
    except RecursionError as error:
        raise Unreadable(1, "its merge keys lead to hundreds of others, one behind the other") from error
    elsewhere = _used_elsewhere(roots)
    images = (_image(node, text, id(node) in elsewhere) for node in nodes.values())
    return sorted((image for image in images if image is not None), key=lambda image: image.end)


def _nodes(root: Node, entries: Entries) -> Iterator[Node]:
    keys = dict(entries.of(root))
    if "apiVersion" in keys and "kind" in keys:
        yield from _kubernetes(root, entries)
    elif isinstance(keys.get("services"), MappingNode):
        yield from _compose(keys["services"], entries)


def _used_elsewhere(roots: list[Node]) -> set[int]:
    """The strings, by identity, that are or may be something else than an image: an alias can bring one anywhere.

    Whatever is called an image may have a digest too, and so may lists of words, and what stands in an extension field
    of its own (`x-images`) only to be brought in by aliases.
    """
    found, seen, left = set(), set(), list(roots)
    while left:
        node = left.pop()
        if isinstance(node, ScalarNode) or id(node) in seen:
            continue
        seen.add(id(node))
        for inner in node.value:
            key, value = inner if isinstance(node, MappingNode) else (None, inner)
            name = key.value if isinstance(key, ScalarNode) else ""
            if key is not None and name.startswith("x-"):
                continue
            left.append(value)
            if key is not None:
                found.add(id(key))
                left.append(key)
                if name not in _MAY_BE_IMAGES and "image" not in name.lower():
                    found.add(id(value))
    return found


def _kubernetes(root: Node, entries: Entries) -> Iterator[Node]:
    seen, left = set(), [root]
    while left:
        node = left.pop()
        if isinstance(node, ScalarNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            left += node.value
        for key, value in entries.of(node):
            left.append(value)
            if key in _CONTAINERS:
                yield from _listed(value, ("image",), entries)
            elif key == "volumes":
                for path in _OF_VOLUMES:
                    yield from _listed(value, path, entries)


def _listed(node: Node, path: tuple[str, ...], entries: Entries) -> Iterator[Node]:
    """What stands under `path` in each item of a sequence."""
    found = node.value if isinstance(node, SequenceNode) else []
    for step in path:
        found = [value for inner in found for key, value in entries.of(inner) if key == step]
    yield from found


def _compose(services: Node, entries: Entries) -> Iterator[Node]:
    pulled, built = [], set()
    for _, service in entries.of(services):
        images = [value for key, value in entries.of(service) if key == "image"]
        says = {key: value for key, value in entries.of(service) if value.tag not in _NOTHING}
        policy = says["pull_policy"].value if "pull_policy" in says else None
        if "build" in says or policy == "build":
            built |= {image.value for image in images if isinstance(image, ScalarNode)}
        elif policy not in _NOT_PULLED:
            pulled += images
    yield from (image for image in pulled if not isinstance(image, ScalarNode) or image.value not in built)


def _image(node: Node, text: str, elsewhere: bool) -> Image | None:
    """None where there is no image: nothing, or the mapping that some custom resources have in its place.

    `elsewhere`: an alias has it where no image is.
    """
    line = line_at(text, node.start_mark.index)
    if not isinstance(node, ScalarNode):
        # `{{ .Values.image }}` is a mapping in a mapping to YAML.
        start, end = node.start_mark.index, node.end_mark.index
        return Image(text[start:end], line, end, problem=_TEMPLATED) if text.startswith("{{", start) else None
    if node.tag in _NOTHING or not node.value:
        return None
    if node.tag != _STRING:
        return Image(node.value, line, node.end_mark.index, problem="not a string")
    name = _read(node.value)
    if isinstance(name, str):
        return Image(node.value, line, node.end_mark.index, problem=name)
    end = _end(node, text)
    pinned = name.digest is not None or _is_digest(node.value)
    problem = _SHARED if elsewhere and not pinned else ""
    return Image(node.value, line_at(text, end), end, name, problem, pinned)


def _end(node: ScalarNode, text: str) -> int:
    """Where a reference ends in the text. It has no blanks, so whatever the style, its last line has its last part."""
    end = int(node.end_mark.index)
    if node.style in {"'", '"'}:
        return end - 1
    if node.style in {"|", ">"}:
        # Behind it the block's end, blank lines included.
        return text.rindex(node.value, 0, end) + len(node.value)
    return end


def _read(text: str) -> ImageName | str:
    """What `text` names, or why it is no reference."""
    if _TEMPLATE.search(text):
        return _TEMPLATED
    try:
        return parse_image(text)
    except OCIError as error:
        return error.message


def _is_digest(text: str) -> bool:
    """An image's ID, which names its content, and reads like the tag of an image called sha256."""
    try:
        Digest.parse(text)
    except OCIError:
        return False
    return True
