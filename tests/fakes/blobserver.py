"""A server of blobs that honours ranges, does what a test's script says, and keeps a record of every byte."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from tests.fakes.acts import Act, BlobRequest, Record, Script
from tests.fakes.server import FakeServer

_PIECE = 64 * 1024


@dataclass
class BlobServer(FakeServer):
    """`script` says what is done with each GET of a blob, `record` what was. The other knobs count for all requests."""

    script: Script | None = None
    record: Record = field(default_factory=Record)
    # Called with the offset of every piece before it leaves.
    pause: Callable[[int], Awaitable[None]] | None = None
    # Every connection ends with FIN before this byte.
    cut_at: int | None = None
    blob_length: bool = True
    honour_ranges: bool = True

    async def send_blob(
        self, request: web.BaseRequest, digest: str, body: bytes, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer a GET of a blob; its head was not asked for."""
        asked = _asked(request, digest, len(body), len(self.record.requests))
        asked.connection = request.transport
        self.record.begin(asked)
        try:
            return await self._act(request, asked, body, dict(headers), self._next_act(asked))
        finally:
            self.record.end(asked)

    def _next_act(self, asked: BlobRequest) -> Act:
        if isinstance(self.script, list):
            return self.script.pop(0) if self.script else Act()
        return (self.script(asked) if self.script is not None else None) or Act()

    async def _act(
        self, request: web.BaseRequest, asked: BlobRequest, body: bytes, headers: dict[str, str], act: Act
    ) -> web.StreamResponse:
        if act.head_gate is not None:
            await act.head_gate(act.head_gate.offset)
        if act.drop:
            raise _ended(request, asked, reset=False)
        if act.status:
            asked.status = act.status
            return web.Response(status=act.status, headers=act.headers)
        body = body if act.body is None else act.body
        start, stop = (asked.start, asked.stop) if asked.ranged else (0, len(body))
        if act.whole or not self.honour_ranges or not asked.ranged:
            asked.status, start, stop = 200, 0, len(body)
        elif start >= len(body):
            asked.status = 416
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
        else:
            stop = min(stop, len(body), stop if act.most is None else start + act.most)
            asked.status = 206
            headers["Content-Range"] = act.content_range or f"bytes {start}-{stop - 1}/{len(body)}"
        asked.sent_from = asked.sent_to = start
        return await self._stream(request, asked, memoryview(body)[start:stop], headers | dict(act.headers), act)

    async def _stream(
        self, request: web.BaseRequest, asked: BlobRequest, body: memoryview, headers: dict[str, str], act: Act
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=asked.status, headers=headers)
        if act.length and self.blob_length:
            response.content_length = len(body)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        end = asked.sent_from + len(body)
        while True:
            offset = asked.sent_to
            await self._before(request, asked, offset, act)
            if offset >= end:
                break
            stop = min((stop for stop in self._stops(act) if stop > offset), default=end)
            stop = min(stop, end, offset + _PIECE)
            await response.write(bytes(body[offset - asked.sent_from : stop - asked.sent_from]))
            asked.sent_to = stop
            self.sent += stop - offset
            if stop == end and end not in self._stops(act):
                # Whoever has all of it may ask for more at once.
                self.record.end(asked)
        await response.write_eof()
        return response

    def _stops(self, act: Act) -> list[int]:
        return [*act.stops(), *([] if self.cut_at is None else [self.cut_at])]

    async def _before(self, request: web.BaseRequest, asked: BlobRequest, offset: int, act: Act) -> None:
        """Whatever has to happen before the byte at `offset` leaves."""
        for pause in (self.pause, act.gate):
            if pause is not None:
                await pause(offset)
        fins = [fin for fin in (act.fin_at, self.cut_at) if fin is not None]
        if fins and offset >= min(fins):
            raise _ended(request, asked, reset=False)
        if act.rst_at is not None and offset >= act.rst_at:
            raise _ended(request, asked, reset=True)
        if act.stall_at is not None and offset >= act.stall_at:
            # Until whoever asked has had enough.
            await asyncio.Event().wait()


def _asked(request: web.BaseRequest, digest: str, size: int, number: int) -> BlobRequest:
    header = request.headers.get("Range")
    start, stop = 0, size
    try:
        span = request.http_range
    except ValueError:
        # What is no range is none, for a registry as for anybody.
        header = None
    if header is not None:
        start = span.start or 0
        start = max(0, size + start) if start < 0 else start
        stop = size if span.stop is None else min(span.stop, size)
    return BlobRequest(number, digest, start, stop, header is not None, size, header)


def _ended(request: web.BaseRequest, asked: BlobRequest, reset: bool) -> ConnectionResetError:
    """End the connection, with RST or with FIN after what was sent; gives what is to be raised."""
    transport, asked.cut, asked.reset = request.transport, True, reset
    if transport is not None and reset:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    elif transport is not None:
        transport.close()
    return ConnectionResetError("as the script says")
