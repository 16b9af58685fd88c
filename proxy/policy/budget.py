"""Rate limits as upstreams announce them, and what may be pulled while little is left (DESIGN, section 4).

Docker Hub counts GETs of manifests and says so on every answer: `ratelimit-limit: 100;w=21600` and
`ratelimit-remaining: 76;w=21600` (PROTOCOL, section 3). Others write plain numbers, with or without `X-`, and a
`-reset` in Unix seconds (GitLab) or in seconds from now. What is malformed announces nothing. An answer without the
headers is of what is not limited, so it takes nothing back either.

A limit's window rolls: room comes back at any moment, and all of it has when the window has passed since the limit was
seen. From then on a budget says nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

from proxy.policy.access import Principal

# What is to be sent: a GET instead of what is cached, a GET of what is not, a GET that nobody waits for, a HEAD that
# nobody waits for.
Wanted = Literal["cached", "uncached", "background", "check"]

_COUNT = re.compile(r"([0-9]{1,12})(?:[ \t]*;[ \t]*w=([0-9]{1,12}))?")
_SECONDS = re.compile(r"[0-9]{1,12}")
# Nobody is believed for longer, in seconds.
_LONGEST_WINDOW = 86400.0
# Where no window is announced: the shortest that anybody documents (GitLab's quota is of a minute).
_UNKNOWN_WINDOW = 60.0
# Smaller numbers of a `-reset` are seconds from now.
_FIRST_UNIX_TIME = 1_000_000_000
_SOURCE = re.compile(r"[!-~]{1,64}")


class BudgetKey(NamedTuple):
    """Whose limit at which registry: `principal` is a principal's key, `kind` what it is."""

    registry: str
    kind: Literal["anonymous", "own", "client"]
    principal: str


@dataclass(frozen=True, slots=True)
class Budget:
    """`remaining` of `limit` pulls were left at `seen` (Unix seconds), in a window of `window` seconds.

    `limit` and `window` are None where the upstream does not say. `source` is whom it counts them for: an address, an
    account.
    """

    remaining: int
    limit: int | None
    window: float | None
    seen: float
    source: str | None = None

    @property
    def life(self) -> float:
        """For how many seconds it says something."""
        return self.window or _UNKNOWN_WINDOW

    def is_over(self, now: float) -> bool:
        """Does it say nothing any more? Also where the clock was set back: how old it is nobody knows then."""
        return not self.seen <= now < self.seen + self.life


def limit_of(registry: str, principal: Principal) -> BudgetKey:
    """Whose limit a request counts against that is sent as `principal`."""
    return BudgetKey(registry, principal.kind, principal.key)


def limit_of_pulls(registry: str, principal: Principal) -> BudgetKey:
    """Whose limit pulls for `principal` count against: that of the credential lent to it, where there is one."""
    return limit_of(registry, principal.pulls_as or principal)


def reserved(budget: Budget, reserve: float) -> int:
    """How many pulls are kept for what is not cached; `reserve` is the share of the limit, 0 to 1."""
    return int((budget.limit or 0) * reserve + 1e-9)


def allows(budget: Budget | None, now: float, reserve: float, wanted: Wanted) -> bool:
    """May a request of the kind `wanted` be sent?

    What is not cached is always asked for: a limit that rolls may have room again at any moment, and where it has none
    the 429 costs no more than a refusal of our own would, and opens the circuit that holds the next ones back.
    """
    if budget is None or budget.is_over(now) or wanted == "uncached":
        return True
    return budget.remaining > (0 if wanted == "check" else reserved(budget, reserve))


def announced(headers: Mapping[str, str], now: float) -> Budget | None:
    """The budget that an answer's headers announce, with names in any case; None where they announce none."""
    for prefix in ("ratelimit", "x-ratelimit"):
        remaining, window = _count(headers.get(f"{prefix}-remaining"))
        if remaining is None:
            continue
        limit, other_window = _count(headers.get(f"{prefix}-limit"))
        window = window or other_window or _until_reset(headers.get(f"{prefix}-reset"), now)
        return Budget(remaining, limit, window, now, _source(headers.get("docker-ratelimit-source")))
    return None


def speaks_of_pulls(headers: Mapping[str, str]) -> bool:
    """Are they in Docker Hub's form, with a window? A token server's plain numbers are of its own requests."""
    return ";" in headers.get("ratelimit-remaining", "")


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


def _count(header: str | None) -> tuple[int | None, float | None]:
    """A number and its window in seconds: `76;w=21600`, or `76` alone."""
    match = _COUNT.fullmatch((header or "").strip())
    if match is None:
        return None, None
    window = min(float(match[2] or 0), _LONGEST_WINDOW)
    return int(match[1]), window or None


def _until_reset(header: str | None, now: float) -> float | None:
    text = (header or "").strip()
    if not _SECONDS.fullmatch(text):
        return None
    seconds = float(text) - now if int(text) >= _FIRST_UNIX_TIME else float(text)
    return min(seconds, _LONGEST_WINDOW) if seconds > 0 else None


def _source(header: str | None) -> str | None:
    text = (header or "").strip()
    return text if _SOURCE.fullmatch(text) else None
