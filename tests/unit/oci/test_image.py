"""References as people write them mean what they mean to Docker and containerd."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import OCIError
from proxy.oci.image import parse_image

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "repository", "tag"),
    [
        ("nginx", "docker.io/library/nginx", None),
        ("nginx:1.25", "docker.io/library/nginx", "1.25"),
        ("team/app:v1", "docker.io/team/app", "v1"),
        ("docker.io/nginx", "docker.io/library/nginx", None),
        ("index.docker.io/team/app", "docker.io/team/app", None),
        ("ghcr.io/team/app:v1", "ghcr.io/team/app", "v1"),
        ("GHCR.io/team/app", "ghcr.io/team/app", None),
        ("localhost/app:x", "localhost/app", "x"),
        ("localhost:5000/app", "localhost:5000/app", None),
        ("reg:5000/a/b/c:1", "reg:5000/a/b/c", "1"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app", None),
        ("[::1]:5000/app:1", "[::1]:5000/app", "1"),
        ("library/nginx", "docker.io/library/nginx", None),
        ("5000:5000", "docker.io/library/5000", "5000"),
    ],
)
def test_what_is_left_out_is_filled_in(text: str, repository: str, tag: str | None) -> None:
    """The registry, `library/` at docker.io alone; a port is no tag."""
    image = parse_image(text)
    assert (str(image.repository), image.tag, image.digest) == (repository, tag, None)
    assert image.tag_or_latest == (tag or "latest")
    with_digest = parse_image(f"{text}@sha256:{HEX}")
    assert (str(with_digest.repository), with_digest.tag, str(with_digest.digest)) == (repository, tag, f"sha256:{HEX}")


@pytest.mark.parametrize(
    "text",
    [
        "", ":1", "nginx:", "nginx@", "nginx@sha256:abc", "nginx@md5:abc", "NGINX", "nginx:-1", "a b", " nginx",
        "nginx\n", "ko://x/y", "reg:port/x", "a//b", "/a", "a/", "[::1/app", "nginx:1:2", "nginx:a b", "x" * 256, HEX,
        f"{HEX}:1", "nginx:" + "t" * 129, "a_/b", "-.io/x", "ngïnx", "nginx@sha256:" + HEX + "@sha256:" + HEX,
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    """With a reason; an image's ID is no name either."""
    with pytest.raises(OCIError) as refused:
        parse_image(text)
    assert refused.value.message


@given(st.text(alphabet="aA0.:/@-_[]{}$ \n", max_size=40))
def test_anything_is_read_or_refused(text: str) -> None:
    """Nothing else comes out, whatever comes in; what was read has no blanks."""
    try:
        image = parse_image(text)
    except OCIError:
        return
    assert not set(text) & set(" \n")
    assert image.repository.name
