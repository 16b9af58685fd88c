"""One connection of a client: aiohttp's, held to the limits, with errors of our own form.

Invariants:
- Nothing a client does, or does not do, holds a connection for ever: a head, a body, a client that takes nothing and a
  rest between requests each have their time. There is one timer a connection, set for what is due first.
- A refusal stands in the queue of the connection's requests like one of them, so that it follows the answers to those
  that came before it.
- A refusal is the last word. What still comes is read and thrown away for a moment: to close before that would reset
  the connection, and the client might never see why.

aiohttp offers none of this, so a few of its private fields are used: `_messages` and `_waiter` (its queue of requests),
`_request_count`, `_request_in_progress` and `_force_close`.
"""

import asyncio
import logging
import math
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from proxy.oci.errors import OCIError
from proxy.server.gate import Gate
from proxy.server.refusals import Reason
from proxy.server.respond import error_response, raw_error

_log = logging.getLogger("pullthrough.server")

_NEVER = math.inf
# Seconds, and bytes, for which a client that was refused is listened to; and seconds for which it may begin.
_LAST_WORD = 2.0
_LAST_BYTES = 4 * 1024 * 1024
_FIRST_WORD = 2.0
# Seconds in which the rest of a body that nobody asked for may come, so that the connection can be used again.
_LINGERING = 5.0
# Whoever sends a body waits for its client too, and says more about it when that has taken too long.
_LATER = 1.0
_TOO_MANY_HEADERS = "Too many headers received"
# What blobs are pushed to: a body of any size.
_UPLOADS = "/blobs/uploads/"


class Refused(Exception):
    """A client is told `error`, and then no more; `reason` is what is counted."""

    def __init__(self, reason: Reason, error: OCIError) -> None:
        super().__init__(error.message)
        self.reason = reason
        self.error = error


class Connection(RequestHandler):
    """See above. `gate` is what it shares with the others."""

    __slots__ = (
        "_body", "_body_due", "_body_limit", "_came", "_deaf", "_excess", "_gate", "_head_bytes", "_head_due", "_held",
        "_peer", "_send_due", "_timer", "_unsent",
    )  # fmt: skip

    def __init__(self, manager: web.Server, gate: Gate, **options: Any) -> None:
        limits = gate.limits
        self._gate = gate
        self._peer = ""
        self._timer: asyncio.TimerHandle | None = None
        # When the head that is awaited, the body that comes in and what is sent are too late, in the loop's seconds.
        self._head_due = self._body_due = self._send_due = _NEVER
        self._head_bytes = 0
        self._body: StreamReader = EMPTY_PAYLOAD
        # Bytes of it that have come: in all, and since it was last looked at.
        self._came = [0, 0]
        self._body_limit = 0
        # Did we stop reading it since?
        self._held = False
        self._unsent = 0
        # There will be no further request.
        self._deaf = False
        self._excess: OCIError | None = None
        super().__init__(
            manager,
            # Rests are watched here, with all the rest.
            keepalive_timeout=1e9,
            lingering_time=_LINGERING,
            max_line_size=limits.max_url_length,
            # aiohttp tells the two only by their size.
            max_field_size=limits.max_header_size + (limits.max_header_size == limits.max_url_length),
            **options,
        )

    # Beginning and end.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._head_due = self._loop.time() + self._gate.limits.header_timeout
        try:
            self._excess = self._gate.enter(self, self._peer)
        except ConnectionError:
            self._abort()
            return
        if self._excess is not None:
            self._head_due = min(self._head_due, self._loop.time() + _FIRST_WORD)
        self._watch()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._gate.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._deaf = True
        super().connection_lost(exc)

    def make_room(self) -> None:
        """See `Guest`."""
        if self.transport is not None and self.transport.get_write_buffer_size():
            # It would wait for a client that does not even take its answer.
            self._abort()
        self.force_close()

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._deaf:
            self._came[0] += len(data)
            if self._force_close and self._came[0] > _LAST_BYTES:
                self._abort()
            return
        before, awaited = self._request_count, self._body.is_eof()
        super().data_received(data)
        if self._request_count != before:
            self._requests_came(self._request_count - before, len(data))
        elif not awaited:
            self._body_grows(len(data))
        elif data and (self._head_bytes or data.strip(b"\r\n")):
            # Empty lines before a request are no part of it (RFC 9112, section 2.2).
            self._head_grows(len(data))

    def _requests_came(self, count: int, size: int) -> None:
        limit, head_bytes = self._gate.limits.max_header_size, self._head_bytes + size
        self._head_due, self._head_bytes = _NEVER, 0
        self._gate.busy(self)
        if self._excess is not None:
            error, self._excess = self._excess, None
            self._messages.clear()
            self._refuse(Refused("connections", error))
            return
        if head_bytes > limit:
            # What came may be body, or several requests.
            for place in range(max(0, len(self._messages) - count), len(self._messages)):
                if _header_size(self._messages[place][0]) > limit:
                    while len(self._messages) > place:
                        self._messages.pop()
                    self._refuse(_header_too_large(limit))
                    return
        message, self._body = self._messages[-1]
        if isinstance(message, _ErrInfo):
            self._deaf = True
        elif not self._body.is_eof():
            self._body_limit = 0 if _is_upload(message) else self._gate.limits.max_body_size
            self._await_body()
            self._came[0] = 0

    def _head_grows(self, size: int) -> None:
        limits = self._gate.limits
        if not self._head_bytes and self._request_count:
            # Of the first head the time began with the connection.
            self._head_due = self._loop.time() + limits.header_timeout
            self._watch()
        self._head_bytes += size
        if self._head_bytes > limits.max_header_size + limits.max_url_length:
            self._refuse(_header_too_large(limits.max_header_size))

    def _body_grows(self, size: int) -> None:
        self._came[0] += size
        self._came[1] += size
        if self._body_limit and self._came[0] > self._body_limit and not self._body.is_eof():
            limit = self._body_limit
            self._end_body(Refused("body-size", body_too_large(limit)))

    def _await_body(self) -> None:
        self._body_due = self._loop.time() + self._gate.limits.body_timeout
        self._came[1], self._held = 0, False
        self._watch()

    def pause_reading(self) -> None:
        """See asyncio: whoever reads the body is behind."""
        self._held = True
        super().pause_reading()

    # What goes out.

    def pause_writing(self) -> None:
        """See asyncio: the client does not take what it was sent."""
        super().pause_writing()
        self._await_client()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        self._send_due = _NEVER

    def _await_client(self) -> None:
        if self.transport is not None:
            self._unsent = self.transport.get_write_buffer_size()
            self._send_due = self._loop.time() + self._gate.limits.send_timeout + _LATER
            self._watch()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """See aiohttp: send what the handler has not sent itself."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if self._deaf and self._body.exception() is not None:
                self._listen_on()
            elif not self._messages and not self._deaf:
                self._gate.rests(self)
                if not self._head_bytes:
                    self._head_due = self._loop.time() + self._gate.limits.idle_timeout
                    self._watch()

    # Time.

    def _watch(self) -> None:
        due = min(self._head_due, self._body_due, self._send_due)
        if self._timer is not None:
            if self._timer.when() <= due:
                # It looks again when it fires.
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.transport is None:
            return
        now = self._loop.time()
        if now >= self._send_due:
            self._look_at_client()
        if now >= self._body_due:
            self._look_at_body()
        if now >= self._head_due:
            self._head_due = _NEVER
            self._end_wait()
        if min(self._head_due, self._body_due, self._send_due) < _NEVER:
            self._watch()

    def _look_at_client(self) -> None:
        self._send_due = _NEVER
        if self.transport is not None and self.transport.get_write_buffer_size() < self._unsent:
            self._await_client()
            return
        self._gate.refusals.add("send-timeout", self._peer)
        # What is buffered will never be read, so there is nothing to flush.
        self._abort()

    def _look_at_body(self) -> None:
        self._body_due = _NEVER
        if self._body.is_eof():
            return
        limits = self._gate.limits
        if self._held or self._reading_paused or self._came[1] >= max(1.0, limits.min_rate * limits.body_timeout):
            self._await_body()
            return
        error = OCIError("UNAVAILABLE", "the body of the request came too slowly", status=408)
        self._end_body(Refused("body-timeout", error))

    def _end_wait(self) -> None:
        if self._deaf:
            # It was told all there is to say.
            self._abort()
        elif self._head_bytes:
            error = OCIError("UNAVAILABLE", "the head of the request did not come in time", status=408)
            self._refuse(Refused("header-timeout", error))
        else:
            if not self._request_count and self._excess is None:
                self._gate.refusals.add("header-timeout", self._peer)
            self.make_room()

    # Refusals.

    def _refuse(self, refused: Refused) -> None:
        """Let a refusal be the last request that there is to answer."""
        self._deaf = True
        self._head_due = _NEVER
        self._gate.busy(self)
        self._request_count += 1
        self._messages.append((_ErrInfo(refused.error.status, refused, refused.error.message), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_body(self, refused: Refused) -> None:
        """No more of this body: whoever reads it answers with the error, and where nobody does, this is the end."""
        self._deaf, self._body_due = True, _NEVER
        self._gate.refusals.add(refused.reason, self._peer)
        if self._request_in_progress:
            self._body.set_exception(refused.error)
        else:
            self._listen_on()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never became a request, or what failed outside of the handler."""
        if isinstance(exc, ConnectionError):
            # The client left, or its body was cut: aiohttp ends the connection quietly on this, once it has sent what
            # it had; for that too there is a limit.
            self._deaf, self._head_due = True, self._loop.time() + self._gate.limits.send_timeout
            self._watch()
            raise exc
        if status >= 500 and not isinstance(exc, Refused):
            _log.error("a request from %s failed", request.remote, exc_info=exc)
            if request.writer.output_size > 0:
                raise ConnectionError("the answer was sent in part already")
            response = error_response(OCIError("UNKNOWN", "the proxy failed to answer this request", status=status))
            response.force_close()
            return response
        refused = exc if isinstance(exc, Refused) else self._parse_refusal(exc)
        _log.debug("a request from %s is refused: %s", request.remote, refused)
        if not isinstance(exc, Refused) or refused.reason not in {"connections", "client-connections"}:
            self._gate.refusals.add(refused.reason, self._peer)
        self._end_with(refused.error)
        raise ConnectionError("the connection ends with an error")

    def _parse_refusal(self, exc: BaseException | None) -> Refused:
        if isinstance(exc, LineTooLong) and exc.args[1:2] == (self.max_line_size,):
            message = f"the request's address is longer than {self.max_line_size} bytes"
            return Refused("url-length", OCIError("NAME_INVALID", message, status=414))
        too_many = isinstance(exc, HttpProcessingError) and exc.message == _TOO_MANY_HEADERS
        if isinstance(exc, LineTooLong) or too_many:
            return _header_too_large(self._gate.limits.max_header_size)
        error = OCIError("NAME_INVALID", "the request is not HTTP that this proxy takes", status=400)
        return Refused("malformed", error)

    def _end_with(self, error: OCIError) -> None:
        """Send `error` and end the connection, in a way in which the client can read it."""
        if self.transport is not None:
            self.transport.write(raw_error(error))
            self._listen_on()

    def _listen_on(self) -> None:
        """Everything is said. aiohttp does nothing more with such a connection, and leaves closing it to us."""
        self._deaf = self._force_close = True
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._came[0] = 0
        self._body_due = self._send_due = _NEVER
        self._head_due = self._loop.time() + _LAST_WORD
        self._watch()

    def _abort(self) -> None:
        self._deaf = True
        if self.transport is not None:
            self.transport.abort()


def _is_upload(message: Any) -> bool:
    """Is it a blob that is pushed? Its body may have any size."""
    return message.method in {"POST", "PATCH", "PUT"} and _UPLOADS in message.path.partition("?")[0]


def body_too_large(limit: int) -> OCIError:
    """What a client is told whose body is longer than `limit` bytes."""
    return OCIError("SIZE_INVALID", f"the body of the request is longer than {limit} bytes", status=413)


def _header_too_large(limit: int) -> Refused:
    message = f"the headers of the request are larger than {limit} bytes, or too many"
    return Refused("header-size", OCIError("UNSUPPORTED", message, status=431))


def _header_size(message: Any) -> int:
    """Bytes of the header lines of a parsed head; 0 for what is none."""
    return sum(len(name) + len(value) + 4 for name, value in getattr(message, "raw_headers", ()))
