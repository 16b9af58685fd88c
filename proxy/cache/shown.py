"""A fill as its readers see it: how long it is, what of it has come, and how it ends.

Invariants:
- It is confirmed once, with a size and a file that stay what they are; it is verified, or fails, once and not both.
- What a reader may be sent is in the file, and is what the fill got in one attempt.
- The files are closed when the fill is over and its last reader has left.
"""

import asyncio
from typing import BinaryIO

from proxy.cache.ask import Ask
from proxy.cache.readers import FillReader, Readers
from proxy.oci.digest import Digest
from proxy.storage.base import PartialBlob, StoredBlob

# A reader looks so far ahead, in bytes.
_AHEAD = 1024 * 1024


class Shown:
    """What readers are served from. Whoever makes it so is a `fill.Fill`."""

    def __init__(self, digest: Digest, ask: Ask) -> None:
        self.digest = digest
        self.ask = ask
        self.began = asyncio.get_running_loop().time()
        self.size = 0
        self.verified = False
        self.over = False
        # Nobody is to join any more: it has failed, or may be closing its files.
        self.joinable = True
        self.error: Exception | None = None
        self._readers = Readers(self._sendable)
        self._confirmed: asyncio.Future[BinaryIO] = asyncio.get_running_loop().create_future()
        self._partial: PartialBlob | None = None
        self._stored: StoredBlob | None = None
        # The bytes are known to be wrong: nobody gets any more of them.
        self._spoilt = False
        # Set where a reader waits somewhere new.
        self._look: asyncio.Event | None = None

    @property
    def file(self) -> BinaryIO:
        """Where the bytes are, once it is confirmed."""
        return self._confirmed.result()

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes that are in the file, hashed or not, and how many readers there are."""
        arrived = self.size if self.over or self._partial is None else self._partial.map.arrived
        return (0 if self.size == 0 else arrived), len(self._readers)

    def join(self, ask: Ask, reads: bool = True) -> FillReader:
        """A reader with the rights of `ask`, of a fill that is joinable and has the source that `ask` has.

        Whoever joins closes the reader. `reads` False: it only wants the blob to be there, at the fill's own speed.
        """
        reader = FillReader(self)
        self._readers.add(reader, ask, reads)
        return reader

    def vouched(self, reader: object) -> None:
        """The upstream has said that `reader` may have the blob: it may be asked for with its rights from now on."""
        self._readers.vouched(reader)

    async def confirmed(self) -> None:
        """Wait until the upstream has confirmed the blob and room was made for it.

        Raises Uncacheable, or the UpstreamError that the fill met instead, then or since.
        """
        await asyncio.shield(self._confirmed)
        if self.error is not None:
            raise self.error.with_traceback(None)

    async def readable(self, position: int, from_start: bool) -> int:
        """Wait until the byte at `position` may be sent; gives the end of what may be sent from there on.

        Raises the error that ended the fill.
        """
        while (end := self._sendable(position, from_start)) <= position or self._spoilt:
            if self.error is not None:
                # Every reader raises the same exception; with their traces it would keep all of them alive.
                raise self.error.with_traceback(None)
            if self._look is not None:
                self._look.set()
            await self._readers.wait(position, from_start)
        return end

    async def left(self, reader: object) -> None:
        """`reader` is done."""
        self._readers.drop(reader)
        self._let_go()

    def _sendable(self, position: int, from_start: bool) -> int:
        if self.verified:
            return self.size
        if self._partial is None:
            return position
        end = self._partial.map.readable(position, _AHEAD)
        return min(end, self.size - 1) if from_start else end

    # What becomes of it.

    def _verified(self) -> None:
        self.verified = True
        self._readers.wake()

    def _confirm(self, size: int, file: BinaryIO) -> None:
        if not self._confirmed.done():
            self.size = size
            self._confirmed.set_result(file)

    def _fail(self, error: Exception) -> None:
        if self.verified:
            return
        self.error, self.joinable = error, False
        if not self._confirmed.done():
            self._confirmed.set_exception(error)
            # Whoever waits is told; if nobody does, that is no mistake.
            self._confirmed.exception()
        self._readers.wake(everybody=True)

    def _let_go(self) -> None:
        """Close the files once the fill is over and its last reader has left."""
        if not self.over or self._readers:
            return
        partial, self._partial = self._partial, None
        stored, self._stored = self._stored, None
        if partial is not None:
            partial.close()
        if stored is not None:
            stored.close()
