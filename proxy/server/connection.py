"""One connection of a client: aiohttp's, held to the limits, with errors of our own form.

Invariants:
- Nothing a client does, or does not do, holds a connection for ever: its head, what it does not take of an answer, and
  its rest between requests each have their time. Bodies have theirs where they are read and sent.
- A refusal is the last word. What still comes is read and thrown away for a moment: to close before that would reset
  the connection, and the client might never see why.
- A refusal never stands in the middle of another answer: where one is under way, the connection ends after it.

aiohttp bounds lines, single headers and rests by itself; for what it lacks, a few of its private fields are used:
`_messages` and `_waiter` (its queue of requests, and who waits for them), `_request_count`, `_request_handler`,
`_close` (no further request) and `_force_close` (nor any further byte).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from proxy.oci.errors import OCIError
from proxy.server.gate import Gate
from proxy.server.refusals import Refused, header_too_large
from proxy.server.respond import error_response

_log = logging.getLogger("pullthrough.server")

# Seconds for which a client that was refused is listened to, and in which it has to say what it is refused.
_LAST_WORD = 2.0
# Seconds in which the rest of a body that nobody asked for may come, so that the connection can be used again.
_LINGERING = 5.0
# Whoever sends a body waits for its client too, and says more about it when that has taken too long.
_LATER = 1.0
# What a TLS connection keeps of what its client does not take: asyncio's own limit of 512 KiB is much for a thousand.
_TLS_BUFFER = 64 * 1024
_TOO_MANY_HEADERS = "Too many headers received"


class Connection(RequestHandler):
    """See above. `gate` is what it shares with the others."""

    __slots__ = (
        "_body",
        "_gate",
        "_head_bytes",
        "_peer",
        "_refused",
        "_send_timer",
        "_timer",
        "_trailer_bytes",
        "intercepted",
    )

    def __init__(self, manager: web.Server, gate: Gate, **options: Any) -> None:
        limits = gate.limits
        self._gate = gate
        # Its client means to speak to a registry, and knows of no proxy.
        self.intercepted = False
        self._peer = ""
        # It may not stay, whatever it asks.
        self._refused = False
        # Runs before the first head, while one comes, and when the connection ends.
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._trailer_bytes = 0
        # Runs while the client does not take what it is sent.
        self._send_timer: asyncio.TimerHandle | None = None
        # That of the last request; what comes before its end is no head.
        self._body: StreamReader = EMPTY_PAYLOAD
        super().__init__(
            manager,
            keepalive_timeout=limits.idle_timeout,
            lingering_time=_LINGERING,
            max_line_size=limits.max_url_length,
            # aiohttp tells the two only by their size.
            max_field_size=limits.max_header_size + (limits.max_header_size == limits.max_url_length),
            **options,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        if isinstance(transport, asyncio.WriteTransport) and transport.get_extra_info("sslcontext") is not None:
            transport.set_write_buffer_limits(_TLS_BUFFER)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._within(self._gate.limits.header_timeout, self._head_late)
        try:
            excess = self._gate.enter(self, self._peer)
        except ConnectionError:
            self._abort()
            return
        if excess is not None:
            # An answer that came before the request would be nobody's.
            self._refused = True
            self._request_handler = _Refusing(excess)
            self._within(_LAST_WORD, self._head_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio."""
        self._gate.leave(self)
        for timer in (self._timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    async def start(self) -> None:
        """See aiohttp: answer requests until the last. What is still to be sent then has its time too."""
        transport = self.transport
        try:
            await super().start()
        finally:
            if transport is not None and self._manager is not None:
                refused = not transport.is_closing()
                if refused and transport.can_write_eof():
                    # Its client may have left, unseen where nothing is read.
                    with contextlib.suppress(OSError):
                        transport.write_eof()
                self._within(_LAST_WORD if refused else self._gate.limits.send_timeout, transport.abort)

    def make_room(self) -> None:
        """See `Guest`."""
        if self.transport is not None and self.transport.get_write_buffer_size():
            # It would wait for a client that does not even take its answer.
            self._abort()
        self.force_close()

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        before, in_head, came = self._request_count, self._body.is_eof(), self._body.total_bytes
        super().data_received(data)
        if self._request_count != before:
            self._body = self._messages[-1][1]
            self._gate.busy(self)
            self._head_bytes = self._trailer_bytes = 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        # Empty lines before a request are no part of it (RFC 9112, section 2.2).
        elif in_head and not self._close and not self._force_close and (self._head_bytes or data.strip(b"\r\n")):
            self._head_grows(len(data))
        elif not in_head:
            self._trailers_grow(len(data) if self._body.total_bytes == came else 0)

    def _head_grows(self, size: int) -> None:
        limits = self._gate.limits
        if not self._head_bytes:
            # It is no rest any more.
            self.keep_alive(True)
            if self._timer is None:
                self._within(limits.header_timeout, self._head_late)
        self._head_bytes += size
        if self._head_bytes > limits.max_header_size + limits.max_url_length:
            self._refuse(header_too_large(limits.max_header_size))

    def _trailers_grow(self, size: int) -> None:
        """So much came inside of a body without any of it: aiohttp keeps all trailers. 0: some of the body came."""
        self._trailer_bytes = self._trailer_bytes + size if size else 0
        if self._trailer_bytes > self._gate.limits.max_header_size:
            self._gate.refusals.add("header-size", self._peer)
            # The request itself may have been answered already.
            self._abort()

    def _within(self, seconds: float, else_do: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, else_do)

    def _head_late(self) -> None:
        self._timer = None
        if self._head_bytes:
            message = "the head of the request did not come in time"
            self._refuse(Refused("header-timeout", "UNAVAILABLE", message, status=408))
        else:
            self._gate.refusals.add("header-timeout", self._peer)
            self.force_close()

    # What goes out.

    def pause_writing(self) -> None:
        """See asyncio: the client does not take what it was sent."""
        super().pause_writing()
        self._send_timer = self._loop.call_later(self._gate.limits.send_timeout + _LATER, self._not_taken)

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _not_taken(self) -> None:
        self._send_timer = None
        self._gate.refusals.add("send-timeout", self._peer)
        # What is buffered will never be read, so there is nothing to flush.
        self._abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """See aiohttp: send what the handler has not sent itself."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if not self._messages:
                self._gate.rests(self)

    # Refusals.

    def _refuse(self, refused: Refused) -> None:
        """Answer no further request; where nothing is being answered, say why."""
        self._close = True
        self._gate.busy(self)
        if self._waiter is not None and not self._waiter.done():
            self._messages.append((_ErrInfo(refused.status, refused, refused.message), EMPTY_PAYLOAD))
            self._waiter.set_result(None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never became a request, or what failed outside of the handler."""
        if isinstance(exc, ConnectionError):
            # The client left, or its body was cut: aiohttp ends the connection quietly on this.
            raise exc
        if isinstance(exc, Refused) or status < 500:
            refused = exc if isinstance(exc, Refused) else self._parse_refusal(exc)
            _log.debug("a request from %s is refused: %s", self._peer, refused)
            self._gate.refusals.add(refused.reason, self._peer)
            # `start` closes it, once the client had the time to read this.
            self._force_close = True
            return _last_answer(refused)
        _log.error("a request from %s failed", self._peer, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer was sent in part already")
        return _last_answer(OCIError("UNKNOWN", "the proxy failed to answer this request", status=status))

    def _parse_refusal(self, exc: BaseException | None) -> Refused:
        if isinstance(exc, LineTooLong) and exc.args[1] == self.max_line_size:
            message = f"the address of the request is longer than {self.max_line_size} bytes"
            return Refused("url-length", "NAME_INVALID", message, status=414)
        too_many = isinstance(exc, HttpProcessingError) and exc.message == _TOO_MANY_HEADERS
        if isinstance(exc, LineTooLong) or too_many:
            return header_too_large(self._gate.limits.max_header_size)
        return Refused("malformed", "NAME_INVALID", "the request is not HTTP that this proxy takes", status=400)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Refusing:
    """Answers any request with `error`, and ends the connection."""

    def __init__(self, error: OCIError) -> None:
        self._error = error

    async def __call__(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _last_answer(self._error)


def _last_answer(error: OCIError) -> web.Response:
    response = error_response(error)
    response.force_close()
    return response
