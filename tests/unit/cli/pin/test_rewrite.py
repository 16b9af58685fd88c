"""Digests are put where images end, however they are written, and nowhere else."""

import itertools
import time
from collections.abc import Callable

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.pin.documents import Unreadable
from proxy.cli.pin.images import images_in, references_in
from proxy.cli.pin.rewrite import difference, rewritten
from proxy.oci.digest import Digest

DIGEST = Digest.of(b"")

# How an image may be written, from its `-` to the end of its line.
STYLES: list[Callable[[str], str]] = [
    lambda image: f"image: {image}",
    lambda image: f"image:    {image}   ",
    lambda image: f"image: {image} # {image}",
    lambda image: f"image: {image}\t# tab",
    lambda image: f"image: '{image}'  # '",
    lambda image: f'"image": "{image}"',
    lambda image: f'{{image: {image}, name: "{{"}}',
    lambda image: f'{{"image":"{image}"}}',
    lambda image: f"{{name: x, 'image': '{image}'}} # }}",
    lambda image: f"{{ image:\n        {image}\n    }}",
    lambda image: f"name: '# {len(image)}'\n    image: {image}",
    lambda image: f"image: >-\n      {image}\n\n",
    lambda image: f"image: |- # comment\n         {image}\n    name: x",
    lambda image: f"image: !!str {image}",
    lambda image: f"image:\n      {image}",
    lambda image: f'image: "{image[:1]}\\\n      {image[1:]}"',
    lambda image: f'image: "\\x{ord(image[0]):02x}{image[1:]}"',
    lambda image: f"? image\n    : {image}\n    ? name\n    : x",
]
BETWEEN = ["", "\n", "  # image: nginx:1\n", "  - name: none\n", "  - [image, x]\n", "  # ünïcödé 😀\n", "      \n"]

parts = st.from_regex(r"[a-z][a-z0-9]{0,5}(?:[._-][a-z0-9]{1,3})?", fullmatch=True)
tags = st.from_regex(r"[A-Za-z_][A-Za-z0-9._-]{0,8}", fullmatch=True)
registries = st.sampled_from(["", "ghcr.io/", "localhost:5000/", "reg.example.com:443/"])
references = st.builds(
    lambda registry, path, tag: registry + "/".join(path) + (f":{tag}" if tag else ""),
    registries,
    st.lists(parts, min_size=1, max_size=3),
    st.one_of(st.none(), tags),
).filter(lambda text: isinstance(yaml.safe_load(text), str) and isinstance(yaml.safe_load(text.split("/")[0]), str))
pieces = st.lists(st.tuples(references, st.sampled_from(STYLES), st.sampled_from(BETWEEN)), min_size=1, max_size=6)


def with_digest(written: str) -> str:
    has_tag = ":" in written.rpartition("/")[2]
    return f"{written}@{DIGEST}" if has_tag else f"{written}:latest@{DIGEST}"


def pin(text: str) -> str:
    images = images_in(text)
    return rewritten(text, images, {image.wanted: DIGEST for image in images if image.wanted is not None})


@given(pieces, st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff", "# c\n---\n"]), st.booleans())
def test_the_text_is_the_one_that_was_written_with_digests(
    parts: list[tuple[str, Callable[[str], str], str]], line_end: str, start: str, ends: bool
) -> None:
    """Every style in any order: the same text comes out as if the digests had been written to begin with."""

    def text(of: Callable[[str], str]) -> str:
        body = "\n".join(f"{between}  - {style(of(image))}" for image, style, between in parts)
        whole = f"{start}kind: Pod\napiVersion: v1\nspec:\n  containers:\n{body}" + ("\n" if ends else "")
        return whole.replace("\n", line_end)

    # Comments hold images too, and stay.
    shown = [image for image, _, _ in parts]
    before = text(lambda image: image)
    after = pin(before)
    assert [image.written for image in images_in(before)] == shown
    assert [image.written for image in images_in(after)] == [with_digest(image) for image in shown]
    assert after.replace(f":latest@{DIGEST}", "").replace(f"@{DIGEST}", "") == before
    assert pin(after) == after


trees = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "image", "name", "x y", "é"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.lists(st.tuples(references, trees), min_size=1, max_size=4),
    st.sampled_from([None, '"', "'", "|", ">"]),
    st.sampled_from([None, True, False]),
    st.integers(20, 100),
)
def test_whatever_a_dumper_writes(
    containers: list[tuple[str, object]], style: str | None, flow: bool | None, width: int
) -> None:
    """Another library's YAML, in all of its styles: it reads back what it wrote, with digests."""

    def document(of: Callable[[str], str]) -> dict[str, object]:
        listed = [{"env": {"v": tree}, "image": of(image), "name": "x"} for image, tree in containers]
        return {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": listed}}

    text = yaml.safe_dump(
        document(str), default_style=style, default_flow_style=flow, width=width, allow_unicode=width % 2 == 0
    )
    assert yaml.safe_load(pin(text)) == document(with_digest)


@given(st.text(alphabet="ab:{}[]-,|>&*!%'\"#@?\\ \n\t\r\ufeff\u2028<0", max_size=60))
def test_what_is_broken_says_so(text: str) -> None:
    """Of any text either the images are given, or the line where it is no YAML."""
    try:
        images_in("kind: a\napiVersion: b\ncontainers: " + text)
        references_in(text)
    except Unreadable as error:
        assert 1 <= error.line <= text.count("\n") + 3


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a: b\n\tc: d\n", 2, "cannot start any token"),
        ("a: [\n", 2, "expected the node content"),
        ("a: b\nc: *d\n", 2, "undefined alias"),
        ("a: 1\nb: \x07\n", 2, "the character #x0007"),
        ("{{- if .Values.on }}\na: b\n{{- end }}\n", 1, "expected the node content"),
        ("a:\n" + "[" * 300, 2, "nested deeper than 200 levels"),
    ],
)
def test_the_line_of_a_mistake(text: str, line: int, why: str) -> None:
    """As editors count, and in words."""
    with pytest.raises(Unreadable, match=why) as broken:
        images_in(text)
    assert broken.value.line == line


def test_anchors_that_are_used_again_and_again_cost_nothing() -> None:
    """2^60 mappings to whoever follows each of them, and one that merges and holds itself."""
    names = [f"a{number}" for number in range(60)]
    lines = [f"{name}: &{name} {{<<: [*{old}, *{old}], x: *{old}}}" for old, name in itertools.pairwise(names)]
    text = "\n".join(["kind: K", "apiVersion: v1", "a0: &a0 {containers: [{image: nginx}]}", *lines, ""])
    began = time.monotonic()
    assert [image.written for image in images_in(text)] == ["nginx"]
    assert [image.written for image in images_in("kind: K\napiVersion: v1\nc: &c {<<: *c, c: [*c]}\n")] == []
    assert time.monotonic() - began < 5


def test_merge_keys_one_behind_the_other() -> None:
    """So many that nobody could follow them are a mistake in the file."""
    lines = [f"a{number}: &a{number} {{<<: *a{number - 1}}}" for number in range(1, 3000)]
    text = "\n".join(["kind: K", "apiVersion: v1", "a0: &a0 {image: nginx}", *lines, "containers: [*a2999]", ""])
    with pytest.raises(Unreadable, match="merge keys"):
        images_in(text)


@pytest.mark.parametrize(
    ("text", "is_shared"),
    [
        ("services: {a: {image: &a redis, container_name: *a}}", True),
        ("services: {a: {container_name: &a redis, image: *a}}", True),
        ("services: {&a redis : {image: *a}}", True),
        ("kind: K\napiVersion: v1\nmetadata: {labels: {app: &a redis}}\ncontainers: [{image: *a}]", True),
        ("kind: K\napiVersion: v1\ncontainers: [{image: &a redis, env: [{name: X, value: *a}]}]", False),
        ("x-images: {web: &a redis}\nservices: {a: {image: *a, environment: {IMAGE: *a}, command: [*a]}}", False),
    ],
)
def test_a_string_that_is_something_else_too(text: str, is_shared: bool) -> None:
    """What a digest would go into besides by an alias, such as a name, must not change: it is said, and left."""
    (image,) = images_in(text)
    assert image.problem == ("an alias has it where no image is; write it out there" if is_shared else "")
    assert (pin(text) == text) is is_shared
    assert references_in(text) == ["redis"]


def test_the_line_of_an_image_is_where_it_ends() -> None:
    """Not where its anchor or its block begins."""
    text = "kind: K\napiVersion: v1\ncontainers:\n- image: &a\n    nginx\n- image: >-\n    redis\n"
    assert [image.line for image in images_in(text)] == [5, 7]


def test_a_list_of_references() -> None:
    """One a line, with comments and empty lines, each once; so is nothing at all."""
    assert references_in("\ufeff# images\nnginx:1.25  # web\r\n\n  ghcr.io/a/b\nnginx:1.25\n") == [
        "nginx:1.25",
        "ghcr.io/a/b",
    ]
    assert references_in("nginx") == ["nginx"]
    assert references_in("") == references_in("# nothing\n") == []


def test_a_list_with_a_mistake_names_its_line() -> None:
    """It reads like a long YAML string, and is not taken for one without images."""
    with pytest.raises(Unreadable, match="'Redis 7' is no reference") as broken:
        references_in("nginx:1.25\nRedis 7\n")
    assert broken.value.line == 2


def test_the_difference_is_one_that_patch_takes() -> None:
    """Line ends of all kinds stay in their lines; a last line without one is marked."""
    before, after = "a\x0cb\u2028c\r\nx\ny", "a\x0cb\u2028c\r\nz\ny!"
    assert difference("f", before, after) == (
        "--- f\n+++ f\n@@ -1,3 +1,3 @@\n a\x0cb\u2028c\r\n-x\n-y\n\\ No newline at end of file\n"
        "+z\n+y!\n\\ No newline at end of file\n"
    )
    assert difference("f", before, before) == ""
