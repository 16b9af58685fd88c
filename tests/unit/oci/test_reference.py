"""Names of repositories and tags."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.oci.reference import MAX_NAME_LENGTH, Repository, parse_name, parse_tag_or_digest

COMPONENT = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(st.lists(COMPONENT, min_size=1, max_size=4).map("/".join))
def test_names_of_the_grammar_are_accepted_as_they_are(name: str) -> None:
    """A name comes back unchanged: nothing is normalised."""
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "a/", "/a", "a//b", "..", "a/..", "a/../b", ".", "a/./b", "a..b", "a___b", "-a", "a-", "_a", "a_",
        "A", "a/B", "a b", "a\n", "\na", "a\0", "a:b", "a@b", "a%2fb", "ä", "a\\b", "a" * 256, "a/" * 500 + "a",
    ],
)  # fmt: skip
def test_names_off_the_grammar_are_refused(name: str) -> None:
    """NAME_INVALID, 400: dots alone, empty components, upper case, control characters, and what is too long."""
    with pytest.raises(OCIError) as caught:
        parse_name(name)
    assert (caught.value.code, caught.value.status) == ("NAME_INVALID", 400)


def test_the_longest_name_is_accepted() -> None:
    """The limit itself still passes."""
    assert len(parse_name("a" * MAX_NAME_LENGTH)) == 255


@given(st.text(alphabet="abz09._-/AÄ:%\\\n\0 ", max_size=40))
def test_whatever_name_is_accepted_stays_inside_its_folder(text: str) -> None:
    """No accepted name has an empty component, a dot component or anything but the grammar's characters."""
    try:
        name = parse_name(text)
    except OCIError:
        return
    assert re.fullmatch(r"[a-z0-9._/-]+", name)
    assert not {"", ".", ".."} & set(name.split("/"))


@given(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True))
def test_tags_of_the_grammar_are_accepted(tag: str) -> None:
    """A tag comes back as the string it was."""
    assert parse_tag_or_digest(tag) == tag


@pytest.mark.parametrize("tag", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "\na", "ä", "a" * 129, "a+b", "%61"])
def test_tags_off_the_grammar_are_unknown_manifests(tag: str) -> None:
    """The specification has no code for them; nothing can have such a tag, so 404 MANIFEST_UNKNOWN."""
    with pytest.raises(OCIError) as caught:
        parse_tag_or_digest(tag)
    assert (caught.value.code, caught.value.status) == ("MANIFEST_UNKNOWN", 404)


def test_a_colon_makes_it_a_digest() -> None:
    """Tags hold no colon, so what holds one is a digest, or DIGEST_INVALID."""
    digest = Digest.of(b"x")
    assert parse_tag_or_digest(str(digest)) == digest
    with pytest.raises(OCIError, match="DIGEST_INVALID"):
        parse_tag_or_digest("latest:")


def test_a_repository_reads_as_people_write_it() -> None:
    """`docker.io/library/nginx`."""
    assert str(Repository("docker.io", "library/nginx")) == "docker.io/library/nginx"
