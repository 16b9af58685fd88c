"""Digests: the grammar, the registered algorithms, and content held against them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError

HEX = hashlib.sha256(b"").hexdigest()


@given(st.binary(max_size=200), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_of_content_reads_back_and_matches_only_that_content(content: bytes, algorithm: str) -> None:
    """`of`, `str` and `parse` are each other's inverse; another byte at the end no longer matches."""
    digest = Digest.of(content, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert digest.matches(content)
    assert not digest.matches(content + b"\0")


@given(st.binary(max_size=200), st.integers(0, 200))
def test_a_hasher_fed_in_pieces_agrees_with_the_whole(content: bytes, cut: int) -> None:
    """Where the pieces end makes no difference."""
    digest = Digest.of(content, "sha512")
    hasher = digest.hasher()
    hasher.update(content[:cut])
    hasher.update(content[cut:])
    assert hasher.hexdigest() == digest.hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha256:{'a' * 63}A",
        f"SHA256:{HEX}",
        f"sha256:{HEX}\n",
        f"\nsha256:{HEX}",
        f" sha256:{HEX}",
        f"sha256:{HEX}/../x",
        f"sha256:../{HEX[3:]}",
        f"sha256:{HEX}:{HEX}",
        f"md5:{HEX[:32]}",
        f"sha384:{HEX}",
        f"sha512:{HEX}",
        f"sha256+b64:{HEX}",
        f"sha256:{'g' * 64}",
        f"sha256:{'٠' * 64}",
        f"sha256:{'ａ' * 64}",
        "sha256:" + "0" * 1_000_000,
        "..:" + HEX,
    ],
)
def test_what_cannot_be_checked_against_content_is_refused(text: str) -> None:
    """Upper case, other algorithms, wrong lengths, anchors and dots: each is DIGEST_INVALID, 400."""
    with pytest.raises(OCIError) as caught:
        Digest.parse(text)
    assert (caught.value.code, caught.value.status) == ("DIGEST_INVALID", 400)


@given(st.text() | st.from_regex(r"sha(256|512):[0-9a-fA-F./\n]{0,130}"))
def test_whatever_is_accepted_is_safe_as_a_file_name(text: str) -> None:
    """An accepted digest holds an algorithm and lower-case hex, nothing else; all else raises OCIError."""
    try:
        digest = Digest.parse(text)
    except OCIError:
        return
    assert str(digest) == text
    assert set(digest.hex) <= set("0123456789abcdef")
    assert len(digest.hex) == {"sha256": 64, "sha512": 128}[digest.algorithm]
