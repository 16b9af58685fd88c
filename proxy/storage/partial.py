"""What a store on disk hands out: finished blobs and fills, open."""

import asyncio
import os
from collections.abc import Awaitable
from typing import BinaryIO, Protocol, TypeVar

from proxy.oci.digest import Digest
from proxy.storage.base import StorageError
from proxy.storage.files import FillFiles
from proxy.storage.fillmap import FillMap


class _Closes(Protocol):
    def close(self) -> object: ...


_Open = TypeVar("_Open", bound=_Closes | None)


class Keeper(Protocol):
    """What becomes of a fill: the store's part of it."""

    async def publish(self, digest: Digest, fill: FillFiles, size: int) -> None:
        """Raises StorageError."""
        ...

    async def discard(self, digest: Digest, fill: FillFiles) -> None:
        """Never raises."""
        ...


class DiskBlob:
    """See `StoredBlob`. The lock on its descriptor is what keeps it from being evicted."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size

    def close(self) -> None:
        """See `StoredBlob.close`."""
        self.file.close()


class DiskPartial:
    """See `PartialBlob`."""

    def __init__(self, keeper: Keeper, digest: Digest, fill: FillFiles, worker: int) -> None:
        self.size = fill.map.size
        self._keeper = keeper
        self._digest = digest
        self._fill = fill
        self._worker = worker
        self._pending = True
        # A worker of the same number may have died waiting.
        self.map.demand(worker, ())

    @property
    def file(self) -> BinaryIO:
        """See `PartialBlob.file`."""
        return self._fill.data

    @property
    def map(self) -> FillMap:
        """See `PartialBlob.map`."""
        return self._fill.map

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `PartialBlob.write`."""
        with memoryview(data) as whole:
            done = 0
            while done < len(whole):
                with whole[done:] as rest:
                    done += os.pwrite(self.file.fileno(), rest, offset + done)

    async def publish(self) -> None:
        """See `PartialBlob.publish`."""
        try:
            await asyncio.to_thread(os.fdatasync, self.file.fileno())
        except OSError as error:
            raise StorageError(f"the blob {self._digest} cannot be stored: {error.strerror}") from error
        await self._keeper.publish(self._digest, self._fill, self.size)
        self._pending = False

    async def discard(self) -> None:
        """See `PartialBlob.discard`."""
        if self._pending:
            self._pending = False
            await self._keeper.discard(self._digest, self._fill)

    def close(self) -> None:
        """See `PartialBlob.close`."""
        if not self._fill.mapped.closed:
            self.map.demand(self._worker, ())
        self._fill.close()


async def opened(opening: Awaitable[_Open]) -> _Open:
    """Wait for what a thread opens. Who is cancelled meanwhile leaves nothing open."""
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_result)
        raise


def _close_result(task: "asyncio.Future[_Open]") -> None:
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        if result is not None:
            result.close()
