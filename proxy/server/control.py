"""What a supervisor and its workers say to each other: one message a line, over a socket pair that only they have.

A message is a name, a number and, for some, a value. The value is pickled: it comes from the same program's own parent
or child, over a socket without a name, and from nowhere else.

    supervisor  start (what to do), reload (settings), call (a request of the admin API), drain
    worker      ready, failed (why), reloaded (lines), refused (why), answer (to a call)
    both        news (what one worker has learnt, which the supervisor tells the others)
"""

import asyncio
import base64
import pickle
import socket
from dataclasses import dataclass
from typing import Any

_LONGEST = 64 * 1024 * 1024
# For the name and the number, in bytes.
_ROOM = 1024


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    name: str
    value: Any = None
    # An answer has the number of what it answers.
    number: int = 0


class MessageTooLong(ValueError):
    """Nothing was sent: the other end would take it for the end of all sense."""


class Channel:
    """One end of the pair. Raises ConnectionError where the other end is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """The channel over `end`, which it closes with itself."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LONGEST))

    def post(self, message: Message) -> None:
        """Send it without waiting, whether the other end reads or not. Raises MessageTooLong."""
        value = base64.b64encode(pickle.dumps(message.value))
        if len(value) > _LONGEST - _ROOM:
            raise MessageTooLong(f"{len(value)} bytes are more than processes say to each other at once")
        self._writer.write(f"{message.name} {message.number} ".encode() + value + b"\n")

    @property
    def behind(self) -> int:
        """Bytes that the other end has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def send(self, message: Message) -> None:
        """Send it, and wait while the other end is behind. Raises MessageTooLong."""
        self.post(message)
        await self._writer.drain()

    async def receive(self) -> Message:
        """The next one."""
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the other process is gone")
        name, number, value = line.split(b" ")
        # From our own parent or child alone; see above.
        return Message(name.decode(), pickle.loads(base64.b64decode(value)), int(number))  # noqa: S301

    async def close(self) -> None:
        """Close this end."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            # Gone already.
            return
