"""What a body must satisfy before it is believed to be a manifest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    ManifestInvalid,
    content_type_of,
    parse_manifest,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_an_image_lists_its_config_and_layers_in_order() -> None:
    """Descriptors with media type, digest and size, the config first."""
    document = body(
        mediaType=OCI_MANIFEST,
        config={"mediaType": "c", "digest": "sha256:1", "size": 1},
        layers=[{"mediaType": "l", "digest": "sha256:2", "size": 2}, {"digest": "sha256:3", "size": 3}],
    )
    children = (Descriptor("c", "sha256:1", 1), Descriptor("l", "sha256:2", 2), Descriptor("", "sha256:3", 3))
    assert parse_manifest(document, OCI_MANIFEST) == Manifest(OCI_MANIFEST, children)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, DOCKER_SCHEMA1])
def test_every_known_type_passes_with_or_without_its_own_word(media_type: str) -> None:
    """The Content-Type counts where the document is silent, parameters and case aside."""
    assert parse_manifest(body(mediaType=media_type), media_type).media_type == media_type
    assert parse_manifest(body(schemaVersion=2), f"{media_type.upper()}; charset=utf-8").media_type == media_type


@pytest.mark.parametrize("vague", ["", "application/json", "text/plain; charset=utf-8", "application/octet-stream"])
def test_where_the_header_says_nothing_the_document_has_the_last_word(vague: str) -> None:
    """Its mediaType, or else what its shape says."""
    assert parse_manifest(body(mediaType=DOCKER_LIST), vague).media_type == DOCKER_LIST
    assert parse_manifest(body(manifests=[]), vague).media_type == OCI_INDEX
    assert parse_manifest(body(schemaVersion=1), vague).media_type == DOCKER_SCHEMA1
    assert parse_manifest(body(layers=[]), vague).media_type == OCI_MANIFEST


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", OCI_MANIFEST),
        (b"<html></html>", "text/html"),
        (b"{}", "text/html; charset=utf-8"),
        (b"[]", OCI_MANIFEST),
        (b"5", OCI_MANIFEST),
        (b"\xff\xff", OCI_MANIFEST),
        (b"[" * 100_000, OCI_MANIFEST),
        (b'{"a":' * 100_000, OCI_MANIFEST),
        (b"9" * 10_000, OCI_MANIFEST),
        (body(mediaType=5), OCI_MANIFEST),
        (body(mediaType=OCI_INDEX), OCI_MANIFEST),
        (body(manifests=[], layers=[]), OCI_INDEX),
        (body(manifests=[], config={}), OCI_INDEX),
        (body(manifests=None, layers=None), OCI_INDEX),
    ],
)
def test_what_no_client_may_be_given_is_refused(content: bytes, content_type: str) -> None:
    """No JSON object, HTML, a mediaType against the header, index and image at once (CVE-2021-41190)."""
    with pytest.raises(ManifestInvalid):
        parse_manifest(content, content_type)


@given(st.dictionaries(st.sampled_from(["mediaType", "config", "layers", "manifests", "x"]), JSON_VALUES))
def test_any_document_is_a_manifest_or_invalid(document: dict[str, object]) -> None:
    """No shape of JSON makes it raise anything else, and only whole descriptors are listed."""
    try:
        manifest = parse_manifest(json.dumps(document).encode(), "application/json")
    except ManifestInvalid:
        return
    assert all(isinstance(child.digest, str) and isinstance(child.size, int) for child in manifest.children)


def test_a_content_type_is_taken_without_parameters() -> None:
    """Lower case, and up to the semicolon."""
    assert content_type_of(" Application/JSON ; charset=x") == "application/json"


@pytest.mark.parametrize("own", ["a/b\r\nX-Evil: 1", "text/html", "\ud800", "no-slash"])
def test_the_documents_own_type_must_be_fit_for_a_header(own: str) -> None:
    """Where the header is vague the document's word goes out as Content-Type, so it has to be a media type."""
    with pytest.raises(ManifestInvalid):
        parse_manifest(body(mediaType=own), "application/json")


def test_an_empty_media_type_is_as_good_as_none() -> None:
    """Go's encoders write the empty string for an absent one."""
    assert parse_manifest(body(mediaType=""), OCI_MANIFEST).media_type == OCI_MANIFEST
