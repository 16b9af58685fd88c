"""The hash of a blob that is still on its way: it follows the front through the file, in threads."""

import asyncio
import os
from collections.abc import Awaitable

from proxy.cache.download import finished_in_thread
from proxy.oci.digest import Hasher
from proxy.storage.base import PartialBlob

# What is hashed at a time, at least and at most, in bytes.
_LEAST = 256 * 1024
_MOST = 1024 * 1024


async def hash_front(hasher: Hasher, partial: PartialBlob, more: asyncio.Event) -> str:
    """Hash the file of `partial` as its front advances, looking again at `more`; gives the digest of the whole in hex.

    Raises OSError.
    """
    buffer, hashed = bytearray(_MOST), 0
    while hashed < partial.size:
        more.clear()
        count = min(partial.map.readable(hashed, _MOST) - hashed, _MOST)
        if count < min(_LEAST, partial.size - hashed):
            await more.wait()
            continue
        piece = memoryview(buffer)[:count]
        await finished_in_thread(_hash_piece, hasher, partial.file.fileno(), hashed, piece)
        hashed += count
    return hasher.hexdigest()


async def unless_hashing_fails(downloading: Awaitable[None], hashing: asyncio.Task[str]) -> None:
    """Await the download; a hash that fails meanwhile ends it. Raises what either of them raises."""
    task = asyncio.ensure_future(downloading)
    try:
        await asyncio.wait({task, hashing}, return_when=asyncio.FIRST_COMPLETED)
        if hashing.done():
            hashing.result()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _hash_piece(hasher: Hasher, descriptor: int, position: int, buffer: memoryview) -> None:
    """Hash the bytes of the file at `position` that fill `buffer`. Blocks. Raises OSError."""
    while buffer:
        count = os.preadv(descriptor, [buffer], position)
        if count == 0:
            raise OSError("the file of a fill is shorter than its blob")
        hasher.update(buffer[:count])
        buffer, position = buffer[count:], position + count
