"""The specification's errors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.errors import STATUS_OF_CODE, OCIError, code_in_body, error_body

SPECIFICATION = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS",
}  # fmt: skip


def test_every_code_of_the_specification_has_a_status() -> None:
    """The table is complete, and every status in it is an error."""
    assert set(STATUS_OF_CODE) >= SPECIFICATION
    assert all(400 <= status < 600 for status in STATUS_OF_CODE.values())


def test_an_error_knows_its_status_and_may_be_given_another() -> None:
    """The table's status, unless the same code travels with another one."""
    assert OCIError("DENIED", "no").status == 403
    error = OCIError("UNAVAILABLE", "gone", status=502, headers={"Retry-After": "1"})
    assert (error.status, error.headers) == (502, {"Retry-After": "1"})


@given(st.sampled_from(sorted(STATUS_OF_CODE)), st.text())
def test_a_body_is_json_and_its_code_reads_back(code: str, message: str) -> None:
    """Any message, quotes and control characters included."""
    body = error_body(code, message)
    assert json.loads(body) == {"errors": [{"code": code, "message": message}]}
    assert code_in_body(body) == code


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"errors":[]}', b'{"errors":{}}', b'{"errors":[5]}', b'{"errors":[{"code":5}]}',
     b'{"errors":[{"code":"MADE_UP"}]}', b'{"errors":[{"code":null}]}', b"null", b"5", b"\xff\xfe", b'{"errors":"x"}'],
)  # fmt: skip
def test_a_body_without_a_known_code_has_none(body: bytes) -> None:
    """HTML, other JSON, unknown codes: nothing of it reaches a client."""
    assert code_in_body(body) is None


@given(st.binary(max_size=300))
def test_no_body_makes_it_raise(body: bytes) -> None:
    """Upstreams send what they like."""
    assert code_in_body(body) is None


def test_a_deeply_nested_body_has_no_code() -> None:
    """JSON too deep for the parser is as good as no JSON."""
    assert code_in_body(b"[" * 5000) is None
