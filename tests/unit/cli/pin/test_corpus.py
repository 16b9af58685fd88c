"""Shapes that YAML has in the wild: only images change, once, and every other byte stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from proxy.cli.pin.documents import documents
from proxy.cli.pin.files import read
from proxy.cli.pin.images import Image, images_in, references_in
from proxy.cli.pin.rewrite import rewritten
from proxy.oci.digest import Digest
from proxy.oci.image import ImageName

CORPUS = Path(__file__).parent / "corpus"
HEX = "0123456789abcdef" * 4

# What is to be pinned in each file, in its order.
PINNED: dict[str, list[str]] = {
    "anchors.yaml": ["ghcr.io/example/app:v1", "nginx"],
    "anchors-again.yaml": ["nginx:1.25", "redis:7"],
    "bom.yaml": ["nginx:1.25"],
    "comments-only.yaml": [],
    "compose-extends.yaml": ["registry.example.com:5000/shop/app:v5", "axllent/mailpit"],
    "compose-v2.yml": ["nginx:alpine", "mariadb:10.11", "redis"],
    "compose-v3.yml": ["traefik:v3.0", "example/reset:1"],
    "crd.yaml": [],
    "cronjob.yaml": [
        "registry.example.com/tools/backup-with-a-rather-long-name/and-a-path:2024.11.30-build.4711",
        "registry.example.com/tools/report:7",
    ],
    "daemonset.yaml": ["registry.example.com:5000/infra/agent:1", "fluent/fluent-bit:3.0"],
    "deployment.yaml": ["ghcr.io/example/migrate:v2.1.0", "ghcr.io/example/shop:2024-11-01", "nginx:1.25"],
    "directives.yaml": ["redis:7.2"],
    "duplicates.yaml": ["nginx:1.24", "nginx:1.25", "redis:7"],
    "empty.yaml": [],
    "gitlab-ci.yaml": [],
    "helm-output.yaml": ["docker.io/bitnami/redis:7.2.3-debian-11-r1", "busybox"],
    "job.yaml": ["alpine:3.19"],
    "knative.yaml": ["ghcr.io/knative/helloworld-go:latest"],
    "kubevirt.yaml": ["quay.io/containerdisks/fedora:40"],
    "kustomization.yaml": [],
    "list.yaml": ["httpd:2.4", "httpd:2.4", "memcached"],
    "long-lines.yaml": ["nginx:1.25", "registry.example.com/a/very/long/path/to/an/image:v1.2.3", "redis:7"],
    "mac.yaml": ["nginx:1.25", "redis"],
    "minified.json": ["a:1", "b", "a:1"],
    "no-newline.yaml": ["nginx"],
    "operator.yaml": ["example/exporter:0.1"],
    "pinned.yaml": ["nginx:1.25"],
    "pod.json": ["docker.io/library/nginx:1.25", "redis"],
    "pod.yaml": ["nginx:1.27"],
    "podtemplate.yaml": ["busybox", "python:3.11-slim", "ghcr.io/example/model:v1"],
    "powershell.yaml": ["nginx:1.25"],
    "replicaset.yaml": ["localhost:5000/team/a", "localhost/team/b:x"],
    "replicationcontroller.yaml": ["docker.io/library/busybox:1.36.1-musl"],
    "rollout.yaml": ["ghcr.io/example/app:v3"],
    "scalar.yaml": [],
    "several.yaml": ["a:1", "b:2"],
    "statefulset.yaml": ["postgres:16", "quay.io/prometheuscommunity/postgres-exporter"],
    "tabs.yaml": ["nginx:1.25", "redis:7"],
    "templates.yaml": ["nginx:1.25"],
    "unicode.yaml": ["nginx:1.25", "nginx:1.26"],
    "values.yaml": [],
    "windows.yaml": ["nginx:1.25", "redis", "alpine:3"],
}
# What is reported instead, and what has its digest already.
PROBLEMS = {
    "compose-v3.yml": ["example/tool:${TAG:-latest}"],
    "cronjob.yaml": ["\ntools:1"],
    "templates.yaml": [
        "{{ .Values.image }}",
        "{{ .Values.repository }}:{{ .Values.tag }}",
        "app:$TAG",
        "ko://github.com/example/cmd",
        "CHANGE_ME",
        "1.25",
    ],
}
HAD = {"pinned.yaml": [f"nginx:1.25@sha256:{HEX}", f"nginx@sha256:{HEX}", f"sha256:{HEX}"]}
# Tabs, and anchors that are given again, are beyond PyYAML.
NOT_PYYAML = {"anchors-again.yaml", "tabs.yaml", "pod.json"}

FILES = pytest.mark.parametrize("name", sorted(PINNED))


def pin(text: str) -> str:
    """The text with a digest of its own for each image."""
    images = images_in(text)
    return rewritten(text, images, digests_of(images))


def digests_of(images: list[Image]) -> dict[ImageName, Digest]:
    return {image.wanted: Digest.of(str(image.wanted).encode()) for image in images if image.wanted is not None}


def pinned(written: str) -> set[str]:
    """What an image may have become."""
    after = pin(f"apiVersion: v1\nkind: Pod\nspec: {{containers: [{{image: '{written}'}}]}}\n")
    return {written, *references_in(after)}


def scalars(node: Node | yaml.Node | None) -> Iterator[tuple[str | None, str]]:
    """Every scalar's tag and value, keys and aliases' targets included, with what stands between."""
    if node is None:
        return
    if isinstance(node, ScalarNode | yaml.ScalarNode):
        yield node.tag, node.value
        return
    yield node.tag, str(len(node.value))
    for inner in node.value:
        parts = inner if isinstance(node, MappingNode | yaml.MappingNode) else [inner]
        for part in parts:
            yield from scalars(part)


def parsed(name: str, text: str) -> list[tuple[str | None, str]]:
    roots = documents(text) if name in NOT_PYYAML else yaml.compose_all(text.removeprefix("\ufeff"), yaml.SafeLoader)
    return [scalar for root in roots for scalar in scalars(root)]


def test_every_file_is_looked_at() -> None:
    """And nothing is missing."""
    assert {file.name for file in CORPUS.iterdir()} == set(PINNED)


@FILES
def test_its_images_are_found(name: str) -> None:
    """What is pinned, what cannot be, what has a digest: nothing else."""
    images = images_in(read(CORPUS / name).text)
    assert [image.written for image in images if image.wanted] == PINNED[name]
    assert [image.written for image in images if image.problem] == PROBLEMS.get(name, [])
    assert [image.written for image in images if image.pinned] == HAD.get(name, [])


@FILES
def test_only_digests_are_added_to_its_bytes(name: str) -> None:
    """Taken out again, the bytes are those of before; there are as many as there are images."""
    file = read(CORPUS / name)
    after = pin(file.text)
    digests = digests_of(images_in(file.text))
    assert sum(after.count(f"@{digest}") for digest in digests.values()) == len(PINNED[name])
    for image, digest in digests.items():
        after = after.replace(f"@{digest}" if image.tag else f":latest@{digest}", "")
    assert after.encode(file.encoding) == file.raw


@FILES
def test_a_parser_sees_that_images_changed_and_nothing_else(name: str) -> None:
    """Every node of every document, with its tag; strings that changed are images with their digests."""
    before = read(CORPUS / name).text
    changed = 0
    for (old_tag, old), (new_tag, new) in zip(parsed(name, before), parsed(name, pin(before)), strict=True):
        assert new_tag == old_tag
        if new != old:
            changed += 1
            assert old in PINNED[name]
            assert new in pinned(old)
    assert changed >= len(PINNED[name])


@FILES
def test_the_second_time_nothing_changes(name: str) -> None:
    """Nor is anything left to be asked for."""
    once = pin(read(CORPUS / name).text)
    assert [image for image in images_in(once) if image.wanted] == []
    assert pin(once) == once


@FILES
def test_its_references_for_warming(name: str) -> None:
    """Those that could be pulled, each once."""
    text = read(CORPUS / name).text
    if name != "scalar.yaml":
        assert sorted(references_in(text)) == sorted({*PINNED[name], *HAD.get(name, [])})
