"""Rate limits as upstreams announce them (PROTOCOL, section 3)."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

_REMAINING = re.compile(r"([0-9]{1,12})(?:;w=[0-9]+)?")


def ratelimit_remaining(headers: Mapping[str, str]) -> int | None:
    """Pulls left by Docker Hub's `ratelimit-remaining: 76;w=21600`; None where no limit is announced."""
    match = _REMAINING.fullmatch(headers.get("ratelimit-remaining", "").strip())
    return int(match[1]) if match else None


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header: a number, or an HTTP date against `now` (RFC 9110, section 10.2.3)."""
    if not header:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None
