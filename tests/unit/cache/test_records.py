"""Records: JSON in the store, absent where they cannot be read; keys that never meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.cache.records import (
    ListRecord,
    MemberRecord,
    TagRecord,
    dump_proof,
    list_key,
    load_proof,
    manifest_key,
    member_key,
    proof_key,
    tag_key,
)
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import Principal, Proof

REPOSITORY = Repository("docker.io", "library/nginx")
TIMES = st.floats(0, 1e12)


@given(st.binary().map(lambda data: str(Digest.of(data))), TIMES, TIMES, st.none() | st.text())
def test_tag_records_read_back(digest: str, fetched: float, checked: float, upstream: str | None) -> None:
    """Every field, any digest."""
    record = TagRecord(digest, fetched, checked, upstream)
    assert TagRecord.load(record.dump()) == record


@given(st.text(), st.integers(), TIMES, st.text(), st.none() | st.text())
def test_other_records_read_back(text: str, size: int, at: float, body: str, query: str | None) -> None:
    """Members, lists and proofs."""
    member, listed = MemberRecord(text, size, at), ListRecord(text, body, at, query)
    assert MemberRecord.load(member.dump()) == member
    assert ListRecord.load(listed.dump()) == listed
    assert load_proof(dump_proof(Proof(at))) == Proof(at)


@pytest.mark.parametrize(
    "raw",
    [None, b"", b"nonsense", b"\xff", b"[]", b"5", b"null", b"{}", b'{"digest":"x"}', b'{"unknown":1}',
     b"\x80\x04K\x01."],
)  # fmt: skip
def test_what_cannot_be_read_is_absent(raw: bytes | None) -> None:
    """Another version's row, a damaged one, a pickle."""
    assert TagRecord.load(raw) is None
    assert MemberRecord.load(raw) is None
    assert ListRecord.load(raw) is None


@pytest.mark.parametrize("raw", [None, b"", b"x", b"[]", b"{}", b"null", b'"5"', b"\xff"])
def test_a_proof_that_cannot_be_read_is_none(raw: bytes | None) -> None:
    """Then the upstream is asked."""
    assert load_proof(raw) is None


def test_keys_of_different_things_never_meet() -> None:
    """The kind comes first, and what follows cannot hold the sign that divides it."""
    digest = Digest.of(b"x")
    keys = {
        tag_key(REPOSITORY, "latest"),
        tag_key(Repository("docker.io", "library"), "nginx"),
        manifest_key(digest),
        member_key(REPOSITORY, digest),
        proof_key(Principal("anonymous", "anonymous"), REPOSITORY),
        proof_key(Principal("own", "x"), REPOSITORY),
        list_key("tags", REPOSITORY, "tags/list?n=1"),
        list_key("referrers", REPOSITORY, "tags/list?n=1"),
    }
    assert len(keys) == 8


@pytest.mark.parametrize(
    "raw", [b'{"digest":5,"fetched":0,"checked":0}', b'{"digest":"x","fetched":"a","checked":null}', b"[" * 5000]
)
def test_a_record_with_values_of_other_types_is_absent(raw: bytes) -> None:
    """A row of another version may have the same fields with other types."""
    assert TagRecord.load(raw) is None


@pytest.mark.parametrize("raw", [b"9" * 400, b"NaN", b"true"])
def test_a_proof_that_is_no_time_is_none(raw: bytes) -> None:
    """A damaged row must neither fail a request nor prove anything."""
    assert load_proof(raw) is None
