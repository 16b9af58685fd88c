"""A file on its way into an object store: hashed, summed, and held back at its last piece unless all of it is right.

Invariants:
- The last piece is given only where all of them together are what the digest names, so nothing else is completed.
- No thread reads the file once `sent` has ended, however it ends: its owner closes it then.
- An upload that does not get on is given up.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO

from proxy.oci.digest import Digest
from proxy.storage.base import ObjectStoreError, WrongObject
from proxy.storage.sums import PIECE, SumMaker

# S3 takes 10,000 parts.
PART = 8 * 1024 * 1024
_MOST_PARTS = 9_000
_PARTS_AT_ONCE = 4

# Seconds. An upload gets on when it takes another piece; to put all parts together takes a server a while.
_SILENCE = 60.0
FINISH_WITHIN = 300.0
# How long one that is given up may take to remove its parts; and so long it waits before, for those that are under way:
# a part that arrives when the others are removed already would stay.
_GRACE = 3.0
_SETTLE = 1.0

# obstore's `put_async` for one path.
Put = Callable[..., Awaitable[Any]]


class _Stopped(Exception):
    """Nobody wants it any more."""


class Upload:
    """One of them. It is the asynchronous iterator of its pieces that `put` takes them from."""

    def __init__(self, digest: Digest, file: BinaryIO, size: int, key: bytes) -> None:
        """`file` is read at offsets only; `key` is that of the sums."""
        self._digest = digest
        self._file = file
        self._size = size
        self._hasher = digest.hasher()
        self._maker = SumMaker(digest, key)
        self._at = 0
        self._taken = 0
        self._complete = False
        self._stopped = False
        self._reading: asyncio.Future[bytes] | None = None

    @property
    def sums(self) -> bytes:
        """Of all pieces, once it is sent."""
        return self._maker.made()

    def __aiter__(self) -> "Upload":
        return self

    async def __anext__(self) -> bytes:
        self._taken += 1
        if self._complete and not self._stopped:
            raise StopAsyncIteration
        try:
            if self._stopped:
                raise _Stopped
            self._reading = asyncio.get_running_loop().run_in_executor(None, self._read)
            return await asyncio.shield(self._reading)
        except Exception:
            if self._size > PART:
                await asyncio.sleep(_SETTLE)
            raise

    async def sent(self, put: Put) -> None:
        """Have all of it put; small ones at once, others in parts.

        Raises WrongObject where the file has other bytes, OSError where it cannot be read, ObjectStoreError where it
        does not get on, and what `put` raises.
        """
        try:
            if self._size <= PART:
                data = b"".join([piece async for piece in self])
                await self._watched(put(data, use_multipart=False), _SILENCE)
            else:
                part = part_of(self._size)
                await self._watched(
                    put(self, use_multipart=True, chunk_size=part, max_concurrency=_PARTS_AT_ONCE), FINISH_WITHIN
                )
        finally:
            await self._let_go()

    async def _watched(self, putting: Awaitable[Any], finish: float) -> None:
        """Until it is put, or does not get on. Its parts are removed where it fails, if that can be done soon."""
        sent = asyncio.ensure_future(putting)
        try:
            while not sent.done():
                before = self._taken
                await asyncio.wait({sent}, timeout=finish if self._complete else _SILENCE)
                if not sent.done() and self._taken == before:
                    raise ObjectStoreError("timeout", "the object store takes no more of an upload")
            sent.result()
        finally:
            # obstore removes them when the file fails, and not when it is cancelled itself.
            self._stopped = True
            try:
                await asyncio.wait({sent}, timeout=_GRACE)
            finally:
                sent.cancel()
                sent.add_done_callback(_look_at)

    async def _let_go(self) -> None:
        """Until no thread has the file; who is cancelled, however often, waits for that."""
        cancelled = False
        while self._reading is not None and not self._reading.done():
            try:
                await asyncio.wait({self._reading})
            except asyncio.CancelledError:
                cancelled = True
        if self._reading is not None:
            _look_at(self._reading)
        if cancelled:
            raise asyncio.CancelledError

    def _read(self) -> bytes:
        """The next piece. Blocks. Raises OSError or WrongObject."""
        piece = _read_all(self._file.fileno(), self._at, min(PIECE, self._size - self._at))
        self._hasher.update(piece)
        self._maker.add(piece)
        self._at += len(piece)
        if self._at == self._size:
            if self._hasher.hexdigest() != self._digest.hex:
                raise WrongObject(f"the file of {self._digest} has other bytes")
            self._complete = True
        return piece


def part_of(size: int) -> int:
    """How long each part of a blob of `size` bytes is, but for the last one."""
    return max(PART, -(-size // (_MOST_PARTS * PIECE)) * PIECE)


def _read_all(descriptor: int, position: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.pread(descriptor, count, position)
        if not part:
            raise WrongObject("the file is shorter than its blob")
        parts.append(part)
        position, count = position + len(part), count - len(part)
    return b"".join(parts)


def _look_at(ended: "asyncio.Future[Any]") -> None:
    """So that nobody misses what became of it."""
    if not ended.cancelled():
        ended.exception()
