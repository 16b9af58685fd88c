"""Do two replicas belong to one region? By a secret that both have, which signs what one asks of the other.

The secret itself is never sent. A signature is of one request, and counts for a minute: whoever sees it on its way
could ask for the same once more in that time, and sees the answer anyway.
"""

import hashlib
import hmac

SCHEME = "Pullthrough"
# Seconds, either way: clocks differ.
_COUNTS = 60.0


def region_key(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, the same for all who have `secret`."""
    return hmac.digest(hashlib.sha256(secret).digest(), purpose.encode(), "sha256")


def signature(key: bytes, method: str, target: str, span: str, at: float) -> str:
    """What goes into Authorization: `target` is path and query, `span` the Range header, `at` Unix seconds."""
    when = str(int(at))
    signed = "\n".join((method, target, span, when)).encode(errors="surrogateescape")
    return f"{SCHEME} {when} {hmac.new(key, signed, 'sha256').hexdigest()}"


def is_signed(key: bytes, method: str, target: str, span: str, authorization: str, now: float) -> bool:
    """Was the request signed by a replica of this region, lately?"""
    scheme, _, rest = authorization.partition(" ")
    when, _, _ = rest.partition(" ")
    if scheme != SCHEME or not (when.isascii() and when.isdigit() and len(when) < 12):
        return False
    expected = signature(key, method, target, span, float(when))
    return hmac.compare_digest(expected.encode(), authorization.encode(errors="replace")) and (
        abs(now - float(when)) <= _COUNTS
    )
