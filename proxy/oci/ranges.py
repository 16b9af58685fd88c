"""One byte range of a blob (RFC 9110, section 14), as registries' clients use it."""

import re

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


class RangeUnsatisfiable(Exception):
    """The range starts past the end, or asks for nothing: 416 with `Content-Range: bytes */size`."""


def starts_past_zero(header: str | None) -> bool:
    """May the body that `header` asks for begin past offset 0? Told before the blob's size is known."""
    match = _RANGE.fullmatch(header.strip().replace(" ", "")) if header else None
    return match is not None and (match[1] == "" or int(match[1]) > 0)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The half-open (start, stop) that a Range header means in a body of `size` bytes; None: the whole body.

    `a-b`, `a-` and `-n`, clamped to the end. Anything else (several ranges, other units, garbage) is ignored, which
    the RFC allows and zstd:chunked pulls take well. Raises RangeUnsatisfiable.
    """
    match = _RANGE.fullmatch(header.strip().replace(" ", "")) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if size == 0:
        # No range of an empty blob can be satisfied, and every client means the whole of it.
        return None
    if match[1] == "":
        suffix = int(match[2])
        if suffix == 0:
            raise RangeUnsatisfiable
        return max(0, size - suffix), size
    start = int(match[1])
    last = int(match[2]) if match[2] else None
    if last is not None and last < start:
        return None
    if start >= size:
        raise RangeUnsatisfiable
    return start, size if last is None else min(last + 1, size)
