"""Bodies on their way out: files by sendfile, window by window, and streams piece by piece.

Invariants:
- asyncio's sendfile hands everything it is given to one blocking call, so it is given at most a window; a window that
  is not in the page cache is read in by a thread first. The loop never waits for the disk, and sends a few megabytes a
  turn (`windows`).
- A client that does not take what it is handed within `send_timeout` is cut off. Time in which there is nothing for
  it, or its cluster is over its rate, does not count.
- A body that cannot be finished is cut with FIN, after everything before it was flushed: containerd resumes at the
  offset after a FIN, not after a RST.
"""

import asyncio
import errno
import functools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

from aiohttp import web

from proxy.cache.bodies import BlobSource
from proxy.cache.download import Uncacheable
from proxy.server.exchange import Exchange
from proxy.upstream.client import Reply
from proxy.upstream.errors import UpstreamError

# asyncio's own event loop is what this relies on: uvloop has no sendfile. So much is tried at once, and so much of what
# the client does not take at once has one time limit.
_WINDOW = 2 * 1024 * 1024
_WAITED = 1024 * 1024
# How much is read in at a time where the page cache has not got it: a visit to a thread for each window would cost more
# than the window does.
_BATCH = 4 * 1024 * 1024
# What is read at a time where there is no sendfile: on encrypted connections, and on some file systems.
_COPY = 256 * 1024
_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_OF_THE_DISK = {errno.EIO, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA}
# What says nothing of the file that was to be read.
_NOTHING_LEFT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_PROBE_EVERY = 128 * 1024


class BodyCut(ConnectionError):
    """The body ends early. A ConnectionError, on which aiohttp ends the connection quietly: with FIN, after a flush."""


async def send_head(exchange: Exchange, response: web.StreamResponse) -> None:
    """Send the head of a response whose body follows."""
    await response.prepare(exchange.request)
    exchange.status = response.status
    exchange.head_sent = asyncio.get_running_loop().time()
    if exchange.deadline is not None:
        # From here on only silence ends the answer.
        exchange.deadline.reschedule(None)


async def send_source(
    exchange: Exchange, response: web.StreamResponse, source: BlobSource, start: int, stop: int
) -> int:
    """Send the bytes from `start` to `stop` of `source` after the head of `response`; gives where it ended.

    That is before `stop` where the cache cannot go on; what was read is `damaged` then, if it was a file's fault.
    Raises ConnectionError where the client left, or its body had to be cut.
    """
    position, copying = start, False
    while position < stop:
        try:
            end = min(await source.ready(position, from_start=start == 0), stop, position + _WINDOW)
            if exchange.pace is not None:
                end = position + await exchange.pace.portion(end - position)
            if not copying and not _in_page_cache(source.file.fileno(), position, end):
                there = min(position + _BATCH, stop, await source.ready(position, from_start=start == 0))
                await asyncio.to_thread(_read_in, source.file.fileno(), position, there)
            await exchange.windows.turn(end - position)
            sent = None if copying else await _send_file(exchange, source.file, position, end)
            if sent is None:
                copying = True
                sent = await _copy(exchange, response, source.file, position, end)
        except ConnectionError:
            raise
        except UpstreamError as error:
            raise cut(exchange, str(error)) from error
        except Uncacheable:
            return position
        except OSError:
            exchange.damaged = True
            return position
        exchange.bytes_sent += sent
        position += sent
        if not sent:
            exchange.damaged = True
            return position
    return position


async def send_reply(
    exchange: Exchange, response: web.StreamResponse, reply: Reply, skip: int = 0, most: int | None = None
) -> None:
    """Send an upstream's body as it arrives, kept nowhere: without its first `skip` bytes, and `most` of the rest.

    Raises ConnectionError where the client leaves, or what was promised does not come.
    """
    try:
        async for piece in reply.pieces():
            if skip:
                piece, skip = piece[skip:], max(0, skip - len(piece))
            if most is not None:
                piece = piece[:most]
                most -= len(piece)
            if not piece:
                if most == 0:
                    return
                continue
            if exchange.pace is not None:
                await exchange.pace.spend(len(piece))
            async with _patience(exchange):
                await response.write(piece)
            exchange.bytes_sent += len(piece)
    except UpstreamError as error:
        raise cut(exchange, str(error)) from error
    if most:
        raise cut(exchange, "the upstream sent less than it said")


def cut(exchange: Exchange, reason: str) -> BodyCut:
    """What ends a body early: raised, it ends the connection once everything has been closed behind it."""
    exchange.detail = "cut"
    return BodyCut(reason)


@asynccontextmanager
async def _patience(exchange: Exchange) -> AsyncIterator[None]:
    """Let the client take what it is sent, for so long; one that reads nothing holds a file or a connection."""
    try:
        async with asyncio.timeout(exchange.limits.send_timeout):
            yield
    except TimeoutError:
        exchange.detail, exchange.refusal = "client-stalled", "send-timeout"
        # What is buffered will never be read, so there is nothing to flush.
        if (transport := exchange.request.transport) is not None:
            transport.abort()
        raise BodyCut("the client stopped reading") from None


async def _send_file(exchange: Exchange, file: BinaryIO, start: int, stop: int) -> int | None:
    """Send bytes from `start` on, up to `stop`, by sendfile; gives how many, None where there is no sendfile.

    Raises OSError where none were sent, and ConnectionError.
    """
    transport, count = _transport(exchange), stop - start
    sent = _send_at_once(transport, file.fileno(), start, count)
    if sent is None or sent == count:
        return sent
    async with _patience(exchange):
        try:
            # Its own way of copying would move the file's one position, which all of its readers share.
            return sent + await asyncio.get_running_loop().sendfile(
                transport, file, start + sent, min(count - sent, _WAITED), fallback=False
            )
        except asyncio.SendfileNotAvailableError:
            # That does not tell why; asked again at once, the kernel does.
            return sent or _send_at_once(transport, file.fileno(), start, count)
        except OSError as error:
            exchange.damaged = error.errno in _OF_THE_DISK
            # How much was sent before it is not known.
            raise cut(exchange, "the body could not be sent") from error


def _send_at_once(transport: asyncio.WriteTransport, descriptor: int, position: int, count: int) -> int | None:
    """Send what the socket takes now; gives how much that was, None where there is no sendfile.

    It is what asyncio's sendfile tries first, without what it costs to wait. Raises OSError.
    """
    if transport.get_extra_info("sslcontext") is not None:
        return None
    if transport.get_write_buffer_size():
        return 0
    try:
        return os.sendfile(transport.get_extra_info("socket").fileno(), descriptor, position, count)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno in _NO_SENDFILE:
            return None
        if error.errno in _OF_THE_DISK:
            raise
        # All else was said of the client's connection.
        raise ConnectionResetError(error.errno, error.strerror) from error


async def _copy(exchange: Exchange, response: web.StreamResponse, file: BinaryIO, start: int, stop: int) -> int:
    """Send the bytes from `start` to `stop` by reading them; gives how many. Raises OSError where none can be read."""
    sent = 0
    while start + sent < stop:
        count = min(_COPY, stop - start - sent)
        try:
            piece = await asyncio.to_thread(os.pread, file.fileno(), count, start + sent)
        except OSError:
            if not sent:
                raise
            # Met again by whoever sends the next bytes.
            break
        if not piece:
            break
        async with _patience(exchange):
            await response.write(piece)
        sent += len(piece)
    return sent


def _transport(exchange: Exchange) -> asyncio.WriteTransport:
    transport = exchange.request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client left")
    return transport


def _in_page_cache(descriptor: int, start: int, end: int) -> bool:
    """Can the window be read without waiting for the disk? Looked at in a few places, without reading it."""
    probe = [bytearray(1)]
    for offset in _probes(start, end):
        try:
            os.preadv(descriptor, probe, offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL}:
                return False
            raise
    return True


def _read_in(descriptor: int, start: int, end: int) -> None:
    """Bring the bytes into the page cache. Blocks. Raises OSError.

    By sending them to nowhere: the kernel reads ahead as it does for a client, and nothing is copied. To read them
    would copy memory that no CPU has seen yet, half of what a body costs; what is asked for with POSIX_FADV_WILLNEED
    comes in small pages.
    """
    try:
        while start < end and (count := os.sendfile(_nowhere(), descriptor, start, end - start)):
            start += count
    except OSError as error:
        # A file system that has no sendfile is read in threads anyway.
        if error.errno not in _NO_SENDFILE | _NOTHING_LEFT:
            raise


@functools.cache
def _nowhere() -> int:
    """A descriptor that takes everything; opened once, so that no body can lack it."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _probes(start: int, end: int) -> tuple[int, ...]:
    return (*range(start, end, _PROBE_EVERY), end - 1)
