"""Numbers as people read them. Cut off, not rounded: nothing is shown as whole, or as gone, before it is."""

import math
from datetime import UTC, datetime

NOTHING = "–"

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Seconds in each, the largest first.
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def count(number: int) -> str:
    """`12,345`."""
    return f"{number:,}".replace("-", "−")


def several(number: int, word: str) -> str:
    """`1 blob`, `2 blobs`."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def size(number: int | None) -> str:
    """Bytes as `512 B`, `1.5 MiB`, `120 GiB`; None as a dash."""
    if number is None:
        return NOTHING
    power = min((max(abs(number), 1).bit_length() - 1) // 10, len(_SIZES) - 1)
    # In whole tenths, since a float would round what is just below the next unit up to it.
    tenths = abs(number) * 10 >> 10 * power
    whole = power == 0 or tenths >= 1000
    amount = f"{tenths // 10:,}" if whole else f"{tenths // 10}.{tenths % 10}"
    return f"{'−' if number < 0 else ''}{amount} {_SIZES[power]}"


def ratio(value: float | None) -> str:
    """0.973 as `97.3 %`; None as a dash."""
    if value is None:
        return NOTHING
    # The little more: 0.973 times 1000 is 972.9999….
    tenths = math.floor(value * 1000 + 1e-6) if value < 1 else 1000
    if tenths == 0 and value > 0:
        return "< 0.1 %"
    return f"{tenths // 10} %" if tenths in {0, 1000} else f"{tenths / 10:.1f} %"


def share(part: int, whole: int) -> int:
    """How many whole percent of `whole` is `part`; 100 only when it is all there."""
    return min(100, max(0, part) * 100 // whole) if whole > 0 else 100


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 5 h`: the two largest units, minutes and seconds never together."""
    left = max(0, math.floor(seconds))
    for position, (unit, name) in enumerate(_SPANS):
        if left >= unit:
            first = f"{left // unit} {name}"
            smaller, small_name = _SPANS[min(position + 1, len(_SPANS) - 1)]
            second = left % unit // smaller
            return f"{first} {second} {small_name}" if unit > 60 and second else first
    return "0 s"


def moment(text: str) -> datetime:
    """A time in RFC 3339."""
    return datetime.fromisoformat(text)


def since(text: str, now: float) -> float:
    """Seconds from the time `text` (RFC 3339) to `now` (Unix seconds); negative where it is still to come."""
    return now - moment(text).timestamp()


def clock_time(now: float) -> str:
    """`2026-11-24 13:05:09 UTC`."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"


def short(digest: str) -> str:
    """The algorithm and the first twelve digits, as people tell digests apart."""
    algorithm, colon, digits = digest.partition(":")
    return f"{algorithm}{colon}{digits[:12]}…" if len(digits) > 12 else digest
