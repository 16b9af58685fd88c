"""What log lines look like, as text or JSON; the access line of a request is one of them.

Every line is one line: whatever a client or an upstream put into a value, control characters are escaped. Exceptions
are one line too: an operator reads what failed, a traceback appears only at level debug.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from proxy.telemetry.events import RequestFinished

LOGGER = "pullthrough"
ACCESS = f"{LOGGER}.access"
# Of so many clients it is remembered what lines call them.
_CLIENTS = 4096


@dataclass(frozen=True, slots=True)
class AccessLine:
    """The access line of requests that are the same but for when they ended, for whom, and how long they took."""

    before_time: str
    before_client: str
    client: Callable[[str], str]
    before_seconds: str
    end: str

    def of(self, when: str, client: str, seconds: float) -> str:
        """The line of one of them, with its line end. `when`: see `timestamp`."""
        return (
            f"{self.before_time}{when}{self.before_client}{self.client(client)}"
            f"{self.before_seconds}{round(seconds, 4)}{self.end}"
        )


def text_access(event: RequestFinished) -> AccessLine:
    """What is empty is left out."""
    fields = _access_fields(event).items()
    constant = " ".join(f"{key}={_quoted(value)}" for key, value in fields if value != "")
    return AccessLine("", f" info {ACCESS}: ", _text_client, f"{constant} seconds=", "\n")


def json_access(event: RequestFinished) -> AccessLine:
    """Numbers are numbers."""
    before = f'", "level": "info", "logger": "{ACCESS}", "client": '
    constant = json.dumps(_access_fields(event)).removeprefix("{").removesuffix("}")
    return AccessLine('{"time": "', before, json.dumps, f', {constant}, "seconds": ', "}\n")


def timestamp(seconds: float) -> str:
    """Unix time as RFC 3339 has it, in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{timestamp(record.created)} {record.levelname.lower()} {record.name}: {_one_line(_text(record))}"


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when, level = timestamp(record.created), record.levelname.lower()
        return json.dumps({"time": when, "level": level, "logger": record.name, "message": _text(record)})


def _access_fields(event: RequestFinished) -> dict[str, str | int]:
    """Those between the client, which is the first, and the seconds."""
    return {
        "cluster": event.cluster,
        "registry": event.registry,
        "kind": event.kind,
        "repository": event.repository,
        "reference": event.reference,
        "method": event.method,
        "status": event.status,
        "cache": event.cache,
        "detail": event.detail,
        "bytes": event.bytes_sent,
    }


@lru_cache(maxsize=_CLIENTS)
def _text_client(client: str) -> str:
    return f"client={_quoted(client)} " if client else ""


def _quoted(value: str | int) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or '"' in text or "=" in text else _one_line(text)


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        text += f" ({type(error).__name__}: {error})"
        if logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG):
            text += " " + logging.Formatter().formatException(record.exc_info)
    return text


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
