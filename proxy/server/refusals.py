"""What clients were refused, or cut off for: counted each time, logged so that a flood of them is not one of lines."""

import logging
from collections.abc import Callable
from typing import Literal

from proxy.telemetry.events import ClientRefused, Tell

_log = logging.getLogger("pullthrough.server")

# Seconds between two lines about the same.
_LOG_INTERVAL = 60.0

Reason = Literal[
    "malformed", "header-size", "url-length", "body-size", "header-timeout", "body-timeout", "send-timeout", "min-rate",
    "connections", "client-connections", "made-room", "requests-per-second",
]  # fmt: skip


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
