"""Requests that came before, answered by their bytes: below aiohttp's parser, from memory, within one call.

Thousands of nodes send the same bytes. What is looked up here is the whole head of a request, as it came.

Why no request can get another's answer:
- What a request is answered with is decided by its connection, its bytes, the configuration, the records and the time.
  The first two are the key. The configuration is that of the table. Records and time are looked at each time
  (`answers`). Where a cluster's rate is limited nothing is kept, so there is nothing else.
- An answer is kept under bytes only if aiohttp made exactly one request of them, without a body, on a connection where
  nothing came before them that was not a whole request, and nothing after them until it was answered. So the same bytes
  mean the same request wherever one may begin.
- They are looked up only where one may begin, and end with the head's end: the last thing that came on this connection
  was a whole request without a body (`_clean`), all of them are answered (`_waiter`), and the client took what it was
  sent (`_paused`). Two requests at once, half a one, one with a body: all that goes aiohttp's way, as does what is not
  found.
- aiohttp's parser does not see what is answered here. Between two requests it knows nothing that it could miss.

aiohttp's private fields that this rests on, besides those of `connection`: `_waiter` is there and not done just while
its loop waits for a request; `_paused` while the client takes nothing; `_upgraded` after a request that asks for
another protocol; its timer closes a resting connection no sooner than `_next_keepalive_close_time`. Tests hold them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD

from proxy.policy.cluster import IPAddress
from proxy.server.answers import Answer, Answers
from proxy.server.connection import Connection
from proxy.server.entrance import Entrance, peer_address
from proxy.server.gate import Gate
from proxy.settings import Address

_END = b"\r\n\r\n"
# Up to this a body goes out with its head in one piece: to copy it costs less than a second system call.
_TOGETHER = 64 * 1024
# Seconds after which the gate is told anew that a connection is in use.
_TELL_GATE = 0.1

Table = Callable[[], Answers]


class FastConnection(Connection):
    """A connection, at `listener`, whose requests may be answered from the table that counts at present."""

    __slots__ = (
        "_clean",
        "_entrance",
        "_entrance_in",
        "_listener",
        "_raw",
        "_table",
        "_told_gate",
        "address",
        "client",
    )

    def __init__(self, manager: web.Server, gate: Gate, listener: Address, table: Table, **options: Any) -> None:
        self._listener = listener
        self._table = table
        self._entrance: Entrance | None = None
        self._entrance_in: object = None
        self._clean = True
        self._raw: bytes | None = None
        self._told_gate = 0.0
        # The address of who is connected, and as text.
        self.address: IPAddress | None = None
        self.client = ""
        super().__init__(manager, gate, **options)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.address = peer_address(transport)
        self.client = str(self.address or "")
        super().connection_made(transport)

    def entrance(self, table: Answers) -> Entrance | None:
        """Where its requests come in, as `table` tells entrances apart; None once it is closed."""
        if self._entrance_in is not table.name and self.transport is not None:
            self._entrance = table.entrances.of(self._listener, self.transport)
            self._entrance_in = table.name
        return self._entrance if self._entrance_in is table.name else None

    def keep(self, table: Answers, answer: Answer) -> None:
        """`answer` is the one to the request that is being answered; kept under its bytes, if they are known."""
        if table.by_bytes and self._raw is not None and self._entrance_in is table.name:
            table.keep((self._entrance, self._raw), answer, len(self._raw))

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        waiter = self._waiter
        begins = self._clean and waiter is not None and not waiter.done()
        if begins and data[-4:] == _END and self._answered(data):
            return
        before = self._request_count
        super().data_received(data)
        self._clean = (
            self._request_count == before + 1
            and self._body is EMPTY_PAYLOAD
            and not self._upgraded
            and data.endswith(_END)
            and data.find(_END) == len(data) - len(_END)
        )
        self._raw = data if begins and self._clean else None

    def _answered(self, data: bytes) -> bool:
        """Answer the request, if that is known."""
        transport, table = self.transport, self._table()
        if transport is None or not table.by_bytes or self._paused or self._close or self._force_close or self._refused:
            return False
        began, now = self._loop.time(), table.clock()
        answer = table.find((self.entrance(table), data), now)
        if answer is None:
            return False
        head, body = answer.head(now), answer.body
        if len(body) <= _TOGETHER:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        self._was_used(began)
        answer.told(self.client, self._loop.time() - began)
        return True

    def _was_used(self, now: float) -> None:
        """Its time at rest begins anew, for aiohttp and for the gate."""
        self._next_keepalive_close_time = now + self._keepalive_timeout
        if self._timer is not None:
            # That of its first head.
            self._timer.cancel()
            self._timer = None
        if now - self._told_gate > _TELL_GATE:
            self._told_gate = now
            self._gate.busy(self)
            self._gate.rests(self)
