"""What clients are refused, or cut off for: counted each time, logged so that a flood of them is not one of lines."""

import logging
from collections.abc import Callable, Mapping
from typing import Literal

from proxy.oci.errors import OCIError
from proxy.telemetry.events import ClientRefused, Tell

_log = logging.getLogger("pullthrough.server")

# Seconds between two lines about the same.
_LOG_INTERVAL = 60.0

Reason = Literal[
    "malformed", "header-size", "url-length", "body-size", "header-timeout", "body-timeout", "send-timeout",
    "connections", "client-connections", "made-room", "requests-per-second", "server-name",
]  # fmt: skip


class Refused(OCIError):
    """A client met a limit; `reason` is which."""

    def __init__(
        self,
        reason: Reason,
        code: str,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, status=status, headers=headers)
        self.reason = reason


def header_too_large(limit: int) -> Refused:
    """What a client is told whose headers are larger than `limit` bytes, or too many."""
    message = f"the headers of the request are larger than {limit} bytes, or too many"
    return Refused("header-size", "UNSUPPORTED", message, status=431)


def body_too_large(limit: int) -> Refused:
    """What a client is told whose body is longer than `limit` bytes."""
    return Refused("body-size", "SIZE_INVALID", f"the body of the request is longer than {limit} bytes", status=413)


class Refusals:
    """Told of every refusal. `clock` in seconds."""

    def __init__(self, tell: Tell, clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._logged: dict[Reason, float] = {}
        self._unlogged: dict[Reason, int] = {}

    def add(self, reason: Reason, client: object) -> None:
        """`client`, its address, was refused something for `reason`."""
        self._tell(ClientRefused(reason))
        now, count = self._clock(), self._unlogged.get(reason, 0) + 1
        if reason in self._logged and abs(now - self._logged[reason]) < _LOG_INTERVAL:
            self._unlogged[reason] = count
            return
        self._logged[reason], self._unlogged[reason] = now, 0
        _log.warning("clients refused: %s, %d since the last such line, now %s", reason, count, client or "unknown")
