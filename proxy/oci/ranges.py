"""One byte range of a blob (RFC 9110, section 14), as registries' clients use it."""

import re

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", re.IGNORECASE)


class RangeUnsatisfiable(Exception):
    """The range starts past the end, or asks for nothing: 416 with `Content-Range: bytes */size`."""


def first_position(header: str | None) -> int:
    """Where the body that `header` asks for begins, as far as that can be told before the blob's size is known."""
    match = _RANGE.fullmatch(header.strip().replace(" ", "")) if header else None
    return int(match[1]) if match is not None and match[1] else 0


def parse_content_range(header: str | None) -> tuple[int, int, int | None] | None:
    """The half-open (start, stop) and the size, if it is said, of a Content-Range; None for what is none of bytes.

    An unsatisfied one (`bytes */SIZE`) gives (0, 0, SIZE).
    """
    match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    size = int(match[3]) if match[3] != "*" else None
    if match[1] is None:
        return 0, 0, size
    start, stop = int(match[1]), int(match[2]) + 1
    return (start, stop, size) if start < stop and (size is None or stop <= size) else None


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
    # One that runs backwards may be ignored or rejected (RFC 9110, 14.2); the conformance suite wants the second.
    if start >= size or (last is not None and last < start):
        raise RangeUnsatisfiable
    return start, size if last is None else min(last + 1, size)
