"""The program's log: what is written, and where to. `lines` says what it looks like, `batches` when it is written."""

import logging
import sys
from typing import Literal

from proxy.telemetry.batches import BatchHandler
from proxy.telemetry.events import RequestFinished
from proxy.telemetry.lines import ACCESS, LOGGER, JSONFormatter, TextFormatter, json_access, text_access

_AUDIT = f"{LOGGER}.audit"
_ROOT = logging.getLogger()
_access = logging.getLogger(ACCESS)


def setup_logging(level: str, form: Literal["text", "json"], access: bool) -> None:
    """Send the program's own lines, and the libraries' warnings, to standard error in the given form."""
    handler = BatchHandler(sys.stderr, json_access if form == "json" else text_access)
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    flush_logging()
    _ROOT.handlers[:] = [handler]
    _ROOT.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level.upper())
    _access.setLevel(logging.INFO if access else logging.CRITICAL)
    # Who changed what is told at every level.
    logging.getLogger(_AUDIT).setLevel(logging.INFO)
    if sys.unraisablehook is sys.__unraisablehook__:
        # Otherwise it is somebody else's, such as a test's.
        sys.unraisablehook = log_unraisable


def flush_logging() -> None:
    """Write the access lines that wait for their batch."""
    for handler in _ROOT.handlers:
        handler.flush()


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


def access_log() -> BatchHandler | None:
    """Where access lines go now; None where none are written. Another one after each `setup_logging`."""
    if _access.isEnabledFor(logging.INFO):
        for handler in _ROOT.handlers:
            if isinstance(handler, BatchHandler):
                return handler
    return None


def log_access(event: RequestFinished) -> None:
    """Write the access line of a request, with its batch."""
    if (log := access_log()) is not None:
        log.write_later(log.access(event).of(log.now(), event.client, event.seconds))
