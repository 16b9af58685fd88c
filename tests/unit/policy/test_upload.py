"""The addresses of upload sessions, there and back."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.reference import Repository
from proxy.policy.upload import (
    ForeignUpload,
    UnknownUpload,
    Uploads,
    client_path,
    values_in,
    with_mount_from,
    without_ns,
)

APP = Repository("registry.test", "team/app")
UPLOADS = Uploads(APP, "https://up.internal:8443/mirror", ("registry.test", "reg.alias"), b"k" * 32)
BASE = "https://up.internal:8443"
HERE = "/mirror/v2/team/app/blobs/uploads/"
ASKED = f"{BASE}{HERE}"
PATHS = st.from_regex(r"/[!-~]{0,60}", fullmatch=True).filter(lambda text: "//" not in text)


@pytest.mark.parametrize(
    "location",
    [
        f"{HERE}abc-1?_state=x%3Dy%2B",
        "abc-1?_state=x%3Dy%2B",
        f"{BASE}{HERE}abc-1?_state=x%3Dy%2B",
        f"https://UP.internal:8443{HERE}abc-1?_state=x%3Dy%2B",
        f"//up.internal:8443{HERE}abc-1?_state=x%3Dy%2B",
        f"http://registry.test{HERE}abc-1?_state=x%3Dy%2B",
        f"https://reg.alias:443{HERE}abc-1?_state=x%3Dy%2B",
        f"{HERE}abc-1?ns=registry.test&_state=x%3Dy%2B",
    ],
)
def test_an_upload_below_the_repository_keeps_its_name(location: str) -> None:
    """Relative or absolute, by the upstream's host or the registry's name: the last part and the query, as written."""
    session, query = UPLOADS.for_client(location, ASKED)
    assert (session, query) == ("abc-1", "_state=x%3Dy%2B")
    brought = f"{query}&digest=sha256%3Aa&ns=registry.test"
    assert UPLOADS.target(session, brought) == f"{HERE}abc-1?_state=x%3Dy%2B&digest=sha256%3Aa"


@pytest.mark.parametrize(
    "location",
    [
        "/mirror/v2/team/app/blobs/upload/abc?x=1",
        "/artifacts-uploads/namespaces/p/uploads/AF%2Bb",
        "/mirror/v2/other/repo/blobs/uploads/abc",
        f"{HERE}a/b",
        f"{HERE}a%2Fb",
        f"{HERE}~sealed",
        f"{HERE}../../manifests/v1",
        HERE,
        "/",
    ],
)
def test_any_other_path_of_the_upstream_is_sealed(location: str) -> None:
    """It comes back exactly, with what the client added; and only for its repository, and only unchanged."""
    session, query = UPLOADS.for_client(location, ASKED)
    assert query == ""
    expected = urlsplit(location if ".." not in location else "/mirror/v2/team/app/manifests/v1")
    written = expected.path + (f"?{expected.query}" if expected.query else "")
    glue = "&" if expected.query else "?"
    assert UPLOADS.target(session, "digest=d&ns=x") == f"{written}{glue}digest=d"
    for other in (
        Uploads(Repository("registry.test", "team/other"), UPLOADS.url, UPLOADS.names, UPLOADS.key),
        Uploads(Repository("other.test", "team/app"), UPLOADS.url, UPLOADS.names, UPLOADS.key),
        Uploads(APP, UPLOADS.url, UPLOADS.names, b"o" * 32),
    ):
        with pytest.raises(UnknownUpload):
            other.target(session, "")


@pytest.mark.parametrize(
    "location",
    [
        f"https://storage.test{HERE}abc",
        f"https://up.internal{HERE}abc",
        f"https://up.internal:8443@evil.test{HERE}abc",
        f"https://user@up.internal:8443{HERE}abc",
        f"https://up.internal:8443.evil.test{HERE}abc",
        f"//evil.test{HERE}abc",
        "http://169.254.169.254/latest",
        "http://[::1]:8443/x",
        "http://[::1/x",
        "https://up.internal:99999/x",
        "ftp://up.internal:8443/x",
        "file:///etc/passwd",
        "",
        "/a b",
        "/a\tb",
        "/ü",
        "/" + "x" * 5000,
    ],
)
def test_another_host_is_refused(location: str) -> None:
    """An upload anywhere else is nowhere we go, and what is no address is none."""
    with pytest.raises(ForeignUpload):
        UPLOADS.for_client(location, ASKED)


@given(PATHS)
def test_whatever_path_the_upstream_chooses_comes_back(path: str) -> None:
    """Through the client and back: the same path and query of the upstream, byte by byte."""
    path = path.partition("#")[0]
    session, query = UPLOADS.for_client(path, ASKED)
    assert "/" not in session
    parts = urlsplit(path)
    if ".." in parts.path or "/." in parts.path:
        return
    query_there = without_ns(parts.query)
    assert UPLOADS.target(session, query) == parts.path + (f"?{query_there}" if query_there else "")


@given(st.text(max_size=80), st.from_regex(r"[!-~]{0,40}", fullmatch=True))
def test_whatever_a_client_brings_stays_within_the_repositorys_uploads(session: str, query: str) -> None:
    """Made up by a client, it is below the uploads of its repository, one part long, or no upload at all."""
    try:
        target = UPLOADS.target(session, query)
    except UnknownUpload:
        return
    path = target.partition("?")[0]
    assert path.startswith(HERE)
    rest = path.removeprefix(HERE)
    assert rest and "/" not in rest and "%" not in rest and rest not in {".", ".."}


@given(st.data())
def test_a_seal_that_was_touched_is_none(data: st.DataObject) -> None:
    """Any other character behind its sign: no upload, unless it says the same."""
    session, _ = UPLOADS.for_client("/elsewhere/x?y=z", ASKED)
    place = data.draw(st.integers(1, len(session) - 1))
    char = data.draw(st.sampled_from("abAB01-_.~%/"))
    touched = session[:place] + char + session[place + 1 :]
    if touched == session:
        return
    try:
        assert UPLOADS.target(touched, "") == "/elsewhere/x?y=z"
    except UnknownUpload:
        return


def test_ns_is_between_the_client_and_us() -> None:
    """Taken off however it is written, the rest as it was written."""
    assert without_ns("a=%2F&ns=x&b&n%73=y&nsx=1") == "a=%2F&b&nsx=1"
    assert without_ns("") == ""


def test_what_a_blob_is_mounted_from() -> None:
    """Once, whatever stood there."""
    assert with_mount_from("mount=d&from=a%2Fb&from=c", "team/other") == "mount=d&from=team%2Fother"


def test_values_in_a_query() -> None:
    """Decoded, all of them, in their order."""
    assert values_in("tag=a&tag=b%2Bc&x=1&tag=", "tag") == ["a", "b+c", ""]


def test_a_path_of_ours() -> None:
    """With the name and the `ns` that the client came by."""
    assert (
        client_path("reg/app", "blobs/uploads/s", "a=b", "reg:5000") == "/v2/reg/app/blobs/uploads/s?a=b&ns=reg%3A5000"
    )
    assert client_path("app", "blobs/uploads/s", "", None) == "/v2/app/blobs/uploads/s"
