"""method + path + query → a route, or an error of the specification; never anything else."""

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.route import (
    BlobRoute,
    ChangeRoute,
    ManifestRoute,
    Ping,
    ReferrersRoute,
    TagsRoute,
    UploadRoute,
    parse_route,
)

DIGEST = Digest.of(b"x")
PARTS = [
    "v2",
    "..",
    "%2e%2e",
    "manifests",
    "blobs",
    "tags",
    "list",
    "a",
    "",
    "%",
    "%zz",
    "%ff",
    str(DIGEST),
    "\0",
    "referrers",
    "uploads",
]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2/", Ping()),
        ("/v2", Ping()),
        ("/v2/nginx/manifests/latest", ManifestRoute("nginx", "latest")),
        (f"/v2/a/b/c/manifests/{DIGEST}", ManifestRoute("a/b/c", DIGEST)),
        (f"/v2/a/blobs/{DIGEST}", BlobRoute("a", DIGEST)),
        (f"/v2/a/blobs/{quote(str(DIGEST), safe='')}", BlobRoute("a", DIGEST)),
        ("/v2/library%2Fnginx/manifests/latest", ManifestRoute("library/nginx", "latest")),
        ("/v2/manifests/manifests/manifests", ManifestRoute("manifests", "manifests")),
        ("/v2/a/manifests/b/manifests/c", ManifestRoute("a/manifests/b", "c")),
        ("/v2/blobs/tags/list", TagsRoute("blobs")),
        ("/v2/a/tags/manifests/list", ManifestRoute("a/tags", "list")),
        (f"/v2/a/referrers/{DIGEST}", ReferrersRoute("a", DIGEST, ())),
    ],
)
def test_paths_of_the_pull_api(path: str, route: object) -> None:
    """Each endpoint; percent-encoding is taken off once; words of the API may be parts of names."""
    assert parse_route("GET", path, {}) == route


def test_the_query_of_lists_is_kept_without_ns() -> None:
    """Tags take `n` and `last` only; referrers the filter too; unknown keys would only fill the cache."""
    query = {"n": "5", "last": "a b", "ns": "docker.io", "x": "y"}
    tags = parse_route("GET", "/v2/a/tags/list", query)
    assert isinstance(tags, TagsRoute)
    assert dict(tags.query) == {"n": "5", "last": "a b"}
    referrers = parse_route("GET", f"/v2/a/referrers/{DIGEST}", query)
    assert isinstance(referrers, ReferrersRoute)
    assert dict(referrers.query) == {"n": "5", "last": "a b"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", ""])
def test_other_methods_are_unsupported(method: str) -> None:
    """405 UNSUPPORTED, with the methods that are allowed (RFC 9110, 15.5.6)."""
    for path in ("/v2/", "/v2/a/manifests/b", f"/v2/a/blobs/{DIGEST}", "/v2/a/tags/list"):
        with pytest.raises(OCIError) as caught:
            parse_route(method, path, {})
        assert (caught.value.code, caught.value.status) == ("UNSUPPORTED", 405)
        assert caught.value.headers["Allow"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/", 404, "UNSUPPORTED"),
        ("", 404, "UNSUPPORTED"),
        ("/v1/", 404, "UNSUPPORTED"),
        ("//v2/", 404, "UNSUPPORTED"),
        ("/v20/", 404, "UNSUPPORTED"),
        ("/v2/_catalog", 405, "UNSUPPORTED"),
        ("/v2/a/tags/", 405, "UNSUPPORTED"),
        ("/v2/a/tags/list/", 405, "UNSUPPORTED"),
        ("/v2/a/blobs/uploads/", 405, "UNSUPPORTED"),
        ("/v2/manifests/x", 405, "UNSUPPORTED"),
        ("/v2//manifests/x", 405, "UNSUPPORTED"),
        ("/v2/a/manifests/b%2Fc", 405, "UNSUPPORTED"),
        ("/v2/../manifests/x", 400, "NAME_INVALID"),
        ("/v2/%2e%2e/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a/%2E%2E/b/manifests/x", 400, "NAME_INVALID"),
        ("/v2/%252e%252e/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a%2562/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a%00/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a%ff/manifests/x", 400, "NAME_INVALID"),
        ("/v2/A/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a//b/manifests/x", 400, "NAME_INVALID"),
        (f"/v2/{'a' * 256}/manifests/x", 400, "NAME_INVALID"),
        ("/v2/a/manifests/", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/..", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/x%0A", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/latest", 400, "DIGEST_INVALID"),
        (f"/v2/a/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        (f"/v2/a/referrers/md5:{'a' * 32}", 400, "DIGEST_INVALID"),
        (f"/v2/{'a/' * 600}manifests/x", 414, "NAME_INVALID"),
    ],
)
def test_bad_paths_and_their_errors(path: str, status: int, code: str) -> None:
    """404 outside /v2/, 405 for what is not done under it, 400 off the grammar, 414 too long."""
    with pytest.raises(OCIError) as caught:
        parse_route("GET", path, {})
    assert (caught.value.status, caught.value.code) == (status, code)


@given(
    st.sampled_from(["GET", "HEAD", "PUT"]),
    st.text() | st.lists(st.sampled_from(PARTS)).map(lambda parts: "/".join(["", *parts])),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.booleans(),
)  # fmt: skip
@example("GET", "/v2/\ud800/manifests/x", {}, False)
@example("GET", "/v2/a/manifests/" + "%" * 900, {}, False)
def test_no_input_raises_anything_but_an_oci_error(method: str, path: str, query: dict[str, str], pushes: bool) -> None:
    """And what is accepted has a name of the grammar."""
    try:
        route = parse_route(method, path, query, pushes)
    except OCIError:
        return
    name = getattr(route, "name", "a")
    assert not {"", ".", ".."} & set(name.split("/"))


def test_a_long_value_in_the_query_is_refused() -> None:
    """It would become a key of the cache and a part of the upstream's URL."""
    with pytest.raises(OCIError) as caught:
        parse_route("GET", "/v2/a/tags/list", {"last": "x" * 1025})
    assert caught.value.status == 400


def test_head_is_for_manifests_and_blobs() -> None:
    """HEAD of a list is 405."""
    assert parse_route("HEAD", f"/v2/a/blobs/{DIGEST}", {}) == BlobRoute("a", DIGEST)
    with pytest.raises(OCIError, match="UNSUPPORTED"):
        parse_route("HEAD", "/v2/a/tags/list", {})


@pytest.mark.parametrize(("method", "path"), [("GET", "/v2/_catalog"), ("HEAD", "/v2/a/tags/list")])
def test_a_405_says_what_is_allowed(method: str, path: str) -> None:
    """RFC 9110, 15.5.6: MUST send Allow, and what was just refused does not stand in it."""
    with pytest.raises(OCIError) as caught:
        parse_route(method, path, {})
    assert method not in caught.value.headers["Allow"].split(", ")


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", "/v2/a/b/blobs/uploads/", UploadRoute("a/b", "")),
        ("GET", "/v2/a/blobs/uploads/x.y~z", UploadRoute("a", "x.y~z")),
        ("PATCH", "/v2/a/blobs/uploads/x", UploadRoute("a", "x")),
        ("PUT", "/v2/a/blobs/uploads/x", UploadRoute("a", "x")),
        ("DELETE", "/v2/a/blobs/uploads/x", UploadRoute("a", "x")),
        ("PUT", "/v2/a/blobs/uploads/" + "x" * 2000, UploadRoute("a", "x" * 2000)),
        ("POST", "/v2/a/blobs/uploads/blobs/uploads/", UploadRoute("a/blobs/uploads", "")),
        ("PUT", "/v2/a/manifests/v1", ChangeRoute("a", "manifests", "v1")),
        ("PUT", f"/v2/a/manifests/{DIGEST}", ChangeRoute("a", "manifests", DIGEST)),
        ("DELETE", "/v2/a/manifests/v1", ChangeRoute("a", "manifests", "v1")),
        ("DELETE", f"/v2/a/blobs/{DIGEST}", ChangeRoute("a", "blobs", DIGEST)),
        ("GET", "/v2/a/manifests/v1", ManifestRoute("a", "v1")),
        ("HEAD", f"/v2/a/blobs/{DIGEST}", BlobRoute("a", DIGEST)),
        ("GET", "/v2/a/blobs/uploads/tags/list", TagsRoute("a/blobs/uploads")),
    ],
)
def test_paths_of_pushes(method: str, path: str, route: object) -> None:
    """Each endpoint of the push API, where it is served; pulls are what they are without it."""
    assert parse_route(method, path, {}, pushes=True) == route


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/a/blobs/uploads/", "POST"),
        ("POST", "/v2/a/blobs/uploads/x", "GET, PATCH, PUT, DELETE"),
        ("POST", "/v2/a/manifests/v1", "GET, HEAD, PUT, DELETE"),
        ("PUT", f"/v2/a/blobs/{DIGEST}", "GET, HEAD, DELETE"),
        ("DELETE", "/v2/a/tags/list", "GET"),
        ("PUT", "/v2/", "GET, HEAD"),
        ("PUT", "/v2/_catalog", ""),
    ],
)
def test_what_is_not_allowed_where_pushes_are(method: str, path: str, allowed: str) -> None:
    """405 with what is allowed there."""
    with pytest.raises(OCIError) as caught:
        parse_route(method, path, {}, pushes=True)
    assert (caught.value.status, caught.value.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/../blobs/uploads/", 400, "NAME_INVALID"),
        ("/v2/A/blobs/uploads/x", 400, "NAME_INVALID"),
        ("/v2/a/blobs/uploads/" + "x" * 7000, 414, "NAME_INVALID"),
        ("/v2/a/manifests/" + "x" * 2000, 414, "NAME_INVALID"),
        ("/v2/a/manifests/sha256:x", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/uploads", 400, "DIGEST_INVALID"),
    ],
)
def test_bad_paths_where_pushes_are(path: str, status: int, code: str) -> None:
    """The same errors; only addresses of uploads may be longer."""
    with pytest.raises(OCIError) as caught:
        parse_route("PUT", path, {}, pushes=True)
    assert (caught.value.status, caught.value.code) == (status, code)
