"""The specification's error codes with their statuses and their JSON body, in one table.

Source: distribution-spec, "Error Codes". Every error that a client of ours sees is one of these.
"""

import json
from collections.abc import Mapping

STATUS_OF_CODE: Mapping[str, int] = {
    "BLOB_UNKNOWN": 404,
    "BLOB_UPLOAD_INVALID": 400,
    "BLOB_UPLOAD_UNKNOWN": 404,
    "DENIED": 403,
    "DIGEST_INVALID": 400,
    "MANIFEST_BLOB_UNKNOWN": 404,
    "MANIFEST_INVALID": 400,
    "MANIFEST_UNKNOWN": 404,
    "NAME_INVALID": 400,
    "NAME_UNKNOWN": 404,
    "SIZE_INVALID": 400,
    "TOOMANYREQUESTS": 429,
    "UNAUTHORIZED": 401,
    "UNSUPPORTED": 405,
    # Not the specification's, but distribution's, which clients know from it.
    "RANGE_INVALID": 416,
    "UNAVAILABLE": 503,
    "UNKNOWN": 500,
}


class OCIError(Exception):
    """An answer to the client that is an error of the specification.

    `code` stands in `STATUS_OF_CODE`; `message` is for people and carries no secret; `status` replaces the table's
    where the same code travels with another status (a gateway's 502, say); `headers` go out with the answer.
    """

    def __init__(
        self, code: str, message: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status or STATUS_OF_CODE[code]
        self.headers = dict(headers or {})


def error_body(code: str, message: str) -> bytes:
    """The JSON body of an error answer: `{"errors":[{"code","message"}]}`."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def code_in_body(body: bytes) -> str | None:
    """The first known code in an error answer's `body`; None where it is not such an answer.

    Only the code is taken: an upstream's own words never reach a client.
    """
    try:
        code = json.loads(body)["errors"][0]["code"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return code if isinstance(code, str) and code in STATUS_OF_CODE else None
