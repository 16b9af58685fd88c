"""Log lines, as text or JSON, and the access line: one a request.

Every line is one line: whatever a client or an upstream put into a value, control characters are escaped. Exceptions
are one line too: an operator reads what failed, a traceback appears only at level debug.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from proxy.telemetry.events import RequestFinished

LOGGER = "pullthrough"
_ACCESS = f"{LOGGER}.access"
_AUDIT = f"{LOGGER}.audit"


def setup_logging(level: str, form: Literal["text", "json"], access: bool) -> None:
    """Send the program's own lines, and the libraries' warnings, to standard error in the given form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSONFormatter() if form == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level.upper())
    logging.getLogger(_ACCESS).setLevel(logging.INFO if access else logging.CRITICAL)
    # Who changed what is told at every level.
    logging.getLogger(_AUDIT).setLevel(logging.INFO)
    if sys.unraisablehook is sys.__unraisablehook__:
        # Otherwise it is somebody else's, such as a test's.
        sys.unraisablehook = log_unraisable


def log_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """Write one line of what was raised where nothing could catch it; the interpreter would print a traceback.

    A TLS server name that is no ASCII is met inside of the ssl module, which refuses the client: anybody can send one.
    """
    if isinstance(raised.exc_value, UnicodeDecodeError) and isinstance(raised.object, bytes):
        logging.getLogger(LOGGER).debug("a TLS client asked for a name that is none")
        return
    error = raised.exc_value
    where = (raised.exc_type, error, raised.exc_traceback) if error is not None else None
    logging.getLogger(LOGGER).error("%s", raised.err_msg or "an error nobody could handle", exc_info=where)


def log_access(event: RequestFinished) -> None:
    """Write the access line of a request."""
    logger = logging.getLogger(_ACCESS)
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s %s", event.method, event.status, extra={"fields": _access_fields(event)})


def _access_fields(event: RequestFinished) -> dict[str, Any]:
    return {
        "client": event.client,
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
        "seconds": round(event.seconds, 4),
    }


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        text = _pairs(fields) if fields is not None else _text(record)
        return f"{_when(record)} {record.levelname.lower()} {record.name}: {_one_line(text)}"


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": _when(record), "level": record.levelname.lower(), "logger": record.name}
        fields = getattr(record, "fields", None)
        line |= fields if fields is not None else {"message": _text(record)}
        return json.dumps(line)


def _when(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _pairs(fields: dict[str, Any]) -> str:
    return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value != "")


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if any(char in text for char in ' "=') else text


def _text(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        text += f" ({type(error).__name__}: {error})"
        if logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG):
            text += " " + logging.Formatter().formatException(record.exc_info)
    return text


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
