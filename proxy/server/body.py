"""Bodies on their way out: files by sendfile, window by window, and streams piece by piece.

Invariants:
- asyncio's sendfile hands everything it is given to one blocking call, so it is given at most a window; a window that
  is not in the page cache is read in by a thread first. The loop never waits for the disk.
- A body that cannot be finished is cut with FIN, after everything before it was flushed: containerd resumes at the
  offset after a FIN, not after a RST.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from proxy.cache.blobs import BlobSource
from proxy.cache.download import Uncacheable
from proxy.server.exchange import Exchange
from proxy.upstream.client import Reply
from proxy.upstream.errors import UpstreamError

# asyncio's own event loop is what this relies on: uvloop has no sendfile.
_WINDOW = 2 * 1024 * 1024
# How much is read in at a time where the page cache has not got it: a visit to a thread for each window would cost more
# than the window does.
_BATCH = 4 * 1024 * 1024
_NOWHERE = Path(os.devnull)
# What is read at a time where there is no sendfile: on encrypted connections, and on some file systems.
_COPY = 256 * 1024
_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_PROBE_EVERY = 128 * 1024
# Seconds in which a client has to take a window; kubelets give a pull up after five minutes without bytes.
_PATIENCE = 120.0


class BodyCut(ConnectionError):
    """The body ended early and the connection with it. A ConnectionError, so that aiohttp ends quietly."""


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
    position = start
    while position < stop:
        try:
            end = min(await source.ready(position, from_start=start == 0), stop, position + _WINDOW)
            if not _in_page_cache(source.file.fileno(), position, end):
                there = min(position + _BATCH, stop, await source.ready(position, from_start=start == 0))
                await asyncio.to_thread(_read_in, source.file.fileno(), position, there)
            sent = _send_at_once(_transport(exchange), source.file.fileno(), position, end - position)
        except ConnectionError:
            raise
        except UpstreamError as error:
            raise cut(exchange, str(error)) from error
        except Uncacheable:
            return position
        except OSError:
            exchange.damaged = True
            return position
        if sent < end - position:
            async with _patience(exchange):
                sent += await _send_rest(exchange, response, source.file, position + sent, end)
        else:
            # A client that is faster than the disk must not have the loop for itself.
            await asyncio.sleep(0)
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
            async with _patience(exchange):
                await response.write(piece)
            exchange.bytes_sent += len(piece)
    except UpstreamError as error:
        raise cut(exchange, str(error)) from error
    if most:
        raise cut(exchange, "the upstream sent less than it said")


def cut(exchange: Exchange, reason: str) -> BodyCut:
    """End the connection with FIN, after what is buffered; gives what is to be raised."""
    exchange.detail = "cut"
    transport = exchange.request.transport
    if transport is not None:
        transport.close()
    return BodyCut(reason)


@asynccontextmanager
async def _patience(exchange: Exchange) -> AsyncIterator[None]:
    """Let the client take what it is sent, for so long; one that reads nothing holds a file or a connection."""
    try:
        async with asyncio.timeout(_PATIENCE):
            yield
    except TimeoutError:
        exchange.detail = "client-stalled"
        # What is buffered will never be read, so there is nothing to flush.
        if (transport := exchange.request.transport) is not None:
            transport.abort()
        raise BodyCut("the client stopped reading") from None


def _send_at_once(transport: asyncio.WriteTransport, descriptor: int, position: int, count: int) -> int:
    """Send what the socket takes now; gives how much that was.

    It is what asyncio's sendfile tries first, without what it costs to wait. Raises OSError.
    """
    if transport.get_write_buffer_size() or _is_encrypted(transport):
        return 0
    try:
        return os.sendfile(transport.get_extra_info("socket").fileno(), descriptor, position, count)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno in _NO_SENDFILE:
            return 0
        raise _of_whom(error) from error


async def _send_rest(exchange: Exchange, response: web.StreamResponse, file: BinaryIO, start: int, stop: int) -> int:
    """Send the bytes from `start` to `stop` as the client takes them; gives how many that were.

    Raises OSError where it cannot be said how many: the body is over then.
    """
    loop, transport = asyncio.get_running_loop(), _transport(exchange)
    if not _is_encrypted(transport):
        try:
            # Its own way of copying moves the file's one position, which all of its readers share.
            return await loop.sendfile(transport, file, start, stop - start, fallback=False)
        except asyncio.SendfileNotAvailableError:
            pass
        except OSError as error:
            raise _of_whom(error) from error
    sent = 0
    while start + sent < stop:
        piece = await asyncio.to_thread(os.pread, file.fileno(), min(_COPY, stop - start - sent), start + sent)
        if not piece:
            break
        await response.write(piece)
        sent += len(piece)
    return sent


def _is_encrypted(transport: asyncio.WriteTransport) -> bool:
    return transport.get_extra_info("sslcontext") is not None


def _of_whom(error: OSError) -> OSError:
    """What a disk says stays what it is; all else was said of the client's connection."""
    return error if error.errno == errno.EIO else ConnectionResetError(error.errno, error.strerror)


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
    with _NOWHERE.open("wb", buffering=0) as nowhere:
        try:
            while start < end and (count := os.sendfile(nowhere.fileno(), descriptor, start, end - start)):
                start += count
        except OSError as error:
            # A file system that has none is read in threads anyway.
            if error.errno not in _NO_SENDFILE:
                raise


def _probes(start: int, end: int) -> tuple[int, ...]:
    return (*range(start, end, _PROBE_EVERY), end - 1)
