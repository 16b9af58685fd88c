"""A fill: one blob being downloaded into the cache, and any number of readers of it.

Invariants (DESIGN, section 5; here the first, in-order form):
1. Nothing is published under a digest before all its bytes have been hashed to it.
2. Readers never drive or harm a fill. The client that caused it is a reader like the rest; readers come, stop early,
   stall and leave; the fill goes on.
3. No byte is asked of an upstream twice while a fill lives.
4. A reader gets its head as soon as the upstream has confirmed the blob and its length, and bytes as they arrive. They
   arrive in order; a reader further on waits for its offset.
5. A body that began at offset 0 never completes before the hash is right: its last byte is held back until then. On a
   mismatch every open body is cut short and the file is thrown away.
6. The loop never waits for the disk or for hashing: both happen in a thread, in large pieces.
7. Memory does not grow with the blob or with its readers: those read from the file.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import BinaryIO

from proxy.cache.ask import Ask
from proxy.oci.digest import Digest
from proxy.storage.base import BlobStore, PartialBlob, StorageError, StoredBlob
from proxy.telemetry.events import DigestMismatch, FillEnded, FillStarted, Tell
from proxy.upstream.client import Reply
from proxy.upstream.errors import UpstreamError, UpstreamFailure, UpstreamInvalid, WrongDigest

_log = logging.getLogger("pullthrough.cache")

# What is gathered before it is written, hashed and announced to readers, in bytes.
_PIECE = 512 * 1024


class Uncacheable(Exception):
    """This blob cannot go through the cache now (no length, no room, storage trouble): stream it past the cache."""


class Fill:
    """One blob on its way into the store. `run` is its task; everybody else only watches."""

    def __init__(self, digest: Digest, ask: Ask, store: BlobStore, tell: Tell) -> None:
        self.digest = digest
        self.ask = ask
        self.size = 0
        self._store = store
        self._tell = tell
        self._confirmed: asyncio.Future[PartialBlob] = asyncio.get_running_loop().create_future()
        self._progress = asyncio.Event()
        self._partial: PartialBlob | None = None
        self._published: StoredBlob | None = None
        self._arrived = 0
        self.verified = False
        self.over = False
        self.error: Exception | None = None
        self._readers = 0

    def join(self) -> "FillReader":
        """A reader of this fill, which must not be over. Whoever joins closes the reader."""
        self._readers += 1
        return FillReader(self)

    async def confirmed(self) -> PartialBlob:
        """Wait until the upstream has confirmed the blob and room was made for it.

        Raises Uncacheable, or the UpstreamError that the fill met instead, then or since.
        """
        partial = await asyncio.shield(self._confirmed)
        if self.error is not None:
            raise self.error.with_traceback(None)
        return partial

    async def run(
        self,
        request: AbstractAsyncContextManager[Reply],
        grant: Callable[[str, int], Awaitable[object]],
        learn: Callable[[UpstreamError], Awaitable[None]],
    ) -> None:
        """Download, hash, publish.

        `grant` is told the media type and size once the upstream has confirmed them, `learn` what the upstream did
        instead; both before anybody who waits is woken.

        Never raises what concerns this blob only: that goes to those who wait and read.
        """
        self._tell(FillStarted(self.ask.repository.registry))
        try:
            async with request as reply:
                await self._begin(reply, grant)
                await self._receive(reply)
            assert self._partial is not None  # noqa: S101 - `_begin` made it
            await self._partial.publish()
            self._published = await self._store.open(self.digest)
        except UpstreamError as error:
            await learn(error)
            self._fail(error)
        except Uncacheable as error:
            self._fail(error)
        except (StorageError, OSError) as error:
            self._fail(Uncacheable(str(error)))
        except Exception as error:  # noqa: BLE001 - whoever waits must be told, whatever it is
            _log.error("fill of %s from %s failed", self.digest, self.ask.repository, exc_info=error)
            self._fail(UpstreamInvalid(f"{self.ask.repository} {self.digest} could not be filled"))
        except asyncio.CancelledError:
            self._fail(Uncacheable("the proxy is shutting down"))
            raise
        finally:
            self.over = True
            self._tell(FillEnded(self.ask.repository.registry))
            await self._let_go()

    async def _begin(self, reply: Reply, grant: Callable[[str, int], Awaitable[object]]) -> None:
        size = reply.content_length
        if size is None:
            raise Uncacheable(f"{self.ask.repository.registry} does not say how long {self.digest} is")
        self.size = size
        await grant(reply.headers.get("Content-Type", ""), size)
        self._partial = await self._store.begin(self.digest, size)
        self._confirmed.set_result(self._partial)

    async def _receive(self, reply: Reply) -> None:
        hasher = self.digest.hasher()
        partial = self._partial
        assert partial is not None  # noqa: S101 - `_begin` made it

        def keep(offset: int, data: bytes) -> None:
            partial.write(offset, data)
            hasher.update(data)

        waiting = bytearray()
        async for piece in reply.pieces():
            waiting += piece
            if len(waiting) >= _PIECE:
                data, waiting = bytes(waiting), bytearray()
                await self._advance(keep, data)
        await self._advance(keep, bytes(waiting))
        if self._arrived < self.size:
            raise UpstreamFailure("5xx", f"{self.ask.repository.registry} ended {self.digest} early")
        if hasher.hexdigest() != self.digest.hex:
            self._tell(DigestMismatch(self.ask.repository.registry))
            raise WrongDigest(f"{self.ask.repository} {self.digest}: the blob's bytes have another digest")
        self.verified = True
        self._announce()

    async def _advance(self, keep: Callable[[int, bytes], None], data: bytes) -> None:
        if self._arrived + len(data) > self.size:
            raise WrongDigest(f"{self.ask.repository} {self.digest}: the blob is longer than the upstream said")
        if data:
            await asyncio.to_thread(keep, self._arrived, data)
            self._arrived += len(data)
            self._announce()

    def _announce(self) -> None:
        """Wake everybody who waits for progress."""
        event, self._progress = self._progress, asyncio.Event()
        event.set()

    def _fail(self, error: Exception) -> None:
        if self.verified:
            # Every byte is here and right: only keeping it failed, which no reader needs to know.
            _log.warning("blob %s is not kept: %s", self.digest, error)
            return
        self.error = error
        if not self._confirmed.done():
            self._confirmed.set_exception(error)
            # Whoever waits is told; if nobody does, that is no mistake.
            self._confirmed.exception()
        self._announce()

    async def readable(self, position: int, from_start: bool) -> int:
        """Wait until the byte at `position` may be sent; gives the end of what may be sent from there on.

        Raises the error that ended the fill.
        """
        while True:
            held_back = from_start and not self.verified and self._arrived == self.size
            end = self._arrived - 1 if held_back else self._arrived
            if position < end:
                return end
            if self.error is not None:
                # Every reader raises the same exception; with their traces it would keep all of them alive.
                raise self.error.with_traceback(None)
            await self._progress.wait()

    async def leave(self) -> None:
        """A reader is done."""
        self._readers -= 1
        await self._let_go()

    async def _let_go(self) -> None:
        """Close the file once the fill is over and its last reader has left."""
        if not self.over or self._readers:
            return
        partial, self._partial = self._partial, None
        published, self._published = self._published, None
        if partial is not None:
            await partial.discard()
        if published is not None:
            published.close()


class FillReader:
    """One body out of a fill; a `blobs.BlobSource` once it is `confirmed`."""

    file: BinaryIO

    def __init__(self, fill: Fill) -> None:
        self.size = 0
        self._fill = fill
        self._open = True

    async def confirmed(self) -> None:
        """See `Fill.confirmed`. Only then there is a size and a file."""
        self.file = (await self._fill.confirmed()).file
        self.size = self._fill.size

    async def ready(self, position: int, from_start: bool) -> int:
        """See `BlobSource.ready`. Raises UpstreamError or Uncacheable where the fill has failed."""
        return await self._fill.readable(position, from_start)

    async def close(self) -> None:
        """See `BlobSource.close`."""
        if self._open:
            self._open = False
            await self._fill.leave()
