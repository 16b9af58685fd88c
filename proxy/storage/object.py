"""Finished blobs in an object store: S3 and what speaks like it, Google's, Azure's, by obstore.

Below the prefix, `data/sha256/<2 hex>/<hex>/<random>` has the bytes of a blob and `blobs/sha256/<2 hex>/<hex>` its
record (`sums`), which names them. Invariants:
- A blob is there when its record is. That is made after all its bytes are there and were right, and only where there is
  none: of replicas that store the same blob at once one wins, and each has written to data of its own only.
- Data is written once and never again; data that no record names is nobody's, and goes when it is a day old.
- What is read is checked piece by piece before it is given.
- Nothing hangs. Small requests have a time that they end within, long ones a time within which they get on.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from proxy.oci.digest import Digest
from proxy.storage.asked import Absent, Exists, asked, translated
from proxy.storage.base import Kept, ObjectStoreError, StorageError, WrongObject
from proxy.storage.bounded import Bounded
from proxy.storage.sums import MOST_BYTES, PIECE, Record, SumChecker, key_of
from proxy.storage.upload import FINISH_WITHIN, Upload

if TYPE_CHECKING:
    from obstore import BytesStream, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

_log = logging.getLogger("pullthrough.storage")

_Store = S3Store | GCSStore | AzureStore

# Seconds. A client waits for these: there is another place to get the blob from.
_CONNECT = 2.0
_FIND = 3.0
_SILENCE = 5.0
# A piece that drips in is as good as none.
_PIECE_WITHIN = 5.0
# Nobody waits for these: to store and to remove.
_SMALL = 10.0
# No request of any length is cut off as long as it gets on.
_ENDLESS = timedelta(days=1)
# A server closes connections that nobody uses after twenty seconds or so.
_IDLE = 15.0

# Records are remembered, so that a blob read in ranges is not looked for each time.
_REMEMBERED = 16 * 1024 * 1024
_REMEMBERED_FOR = 30.0
# Seconds that data without a record stays: it may be of an upload that is about to end.
_LEFT_BEHIND = 86400.0
# Seconds, where a record is neither there nor can be made, as while another replica makes it.
_PAUSES = (0.1, 0.3)
# To check fewer bytes takes less time than to have a thread do it.
_AT_ONCE = 64 * 1024


class Bucket:
    """See `ObjectStore`. Make it in the process that uses it: obstore's threads do not live on in a fork."""

    def __init__(self, url: str, secret: bytes = b"", clock: Callable[[], float] = time.time) -> None:
        """`url` is the setting: s3://bucket/prefix, gs:// or az://, its query obstore's own keys, and `ca`, a file.

        Where it has none, credentials are what obstore finds in the environment. `secret` is the region's (`sums`).
        Raises ValueError or OSError for what cannot be used, in one line.
        """
        # Whoever reads has somebody waiting, and goes elsewhere at once where it fails.
        self._reads = _made(url, _SILENCE, retries=0)
        self._writes = _made(url, FINISH_WITHIN, retries=3)
        self._key = key_of(secret)
        self._clock = clock
        self._known: Bounded[Digest, tuple[Record, float]] = Bounded(_REMEMBERED)

    async def find(self, digest: Digest) -> Record | None:
        """See `ObjectStore.find`; within three seconds."""
        record, until = self._known.get(digest) or (None, 0.0)
        return record if time.monotonic() < until else await self._look(digest)

    async def read(self, kept: Kept, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `ObjectStore.read`. Raises ValueError for what is not in the blob, TypeError for another's `Kept`."""
        if not isinstance(kept, Record):
            raise TypeError("not a blob that this store has found")
        if not 0 <= start <= stop <= kept.size:
            raise ValueError(f"{start} to {stop} is not inside of {kept.size} bytes")
        if start == stop:
            return
        try:
            at = start - start % PIECE
            async with contextlib.aclosing(self._pieces(kept, at, min(-(-stop // PIECE) * PIECE, kept.size))) as pieces:
                async for piece in pieces:
                    yield piece[max(0, start - at) : stop - at]
                    at += len(piece)
        except WrongObject:
            self._known.drop(kept.digest)
            raise

    async def store(self, digest: Digest, file: BinaryIO, size: int) -> bool:
        """See `ObjectStore.store`. Who is cancelled waits up to three seconds until what it has begun is removed."""
        stored = not await self._has(digest) and await self._add(digest, file, size)
        await self._sweep(digest)
        return stored

    async def remove(self, digest: Digest) -> bool:
        """See `ObjectStore.remove`: the record first, then all data that is no newer."""
        self._known.drop(digest)
        try:
            async with asked(_SMALL):
                # No HEAD: its answer has no body, so does not say whether there is a bucket.
                meta = (await obstore.get_async(self._reads, _record_path(digest))).meta
        except Absent:
            return False
        await self._delete(_record_path(digest))
        for data in await self._data(digest):
            # Newer data is of a replica that stores it right now.
            if data["last_modified"] <= meta["last_modified"]:
                await self._delete(data["path"])
        return True

    async def address(self, kept: Kept, seconds: float) -> str:
        """See `ObjectStore.address`."""
        if not isinstance(kept, Record):
            raise TypeError("not a blob that this store has found")
        # Nobody looks at what is sent from there.
        await self._weigh(kept)
        async with asked(_FIND):
            return await obstore.sign_async(self._reads, "GET", _data_path(kept), timedelta(seconds=seconds))

    async def close(self) -> None:
        """See `ObjectStore.close`."""
        del self._reads, self._writes

    # Finding and reading.

    async def _look(self, digest: Digest) -> Record | None:
        """The record as it is there now. Raises ObjectStoreError or WrongObject."""
        self._known.drop(digest)
        try:
            async with asked(_FIND):
                found = await obstore.get_async(self._reads, _record_path(digest))
                if found.meta["size"] > MOST_BYTES:
                    raise WrongObject(f"the record of {digest} is too long")
                raw = bytes(await found.bytes_async())
        except Absent:
            return None
        record = Record.load(raw, digest, self._key)
        self._known.put(digest, (record, time.monotonic() + _REMEMBERED_FOR), len(raw))
        return record

    async def _pieces(self, record: Record, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """The pieces from `start` to `stop`, where pieces begin or the blob ends."""
        record, stream = await self._found(record, start, stop)
        checker = SumChecker(record, self._key, start)
        while start < stop:
            async with asked(_PIECE_WITHIN):
                data = await _next(stream)
            if data is None:
                raise ObjectStoreError("connect", "the object store broke off")
            for piece in await _checked(checker, data):
                start += len(piece)
                yield piece

    async def _found(self, record: Record, start: int, stop: int) -> "tuple[Record, BytesStream]":
        """Its data, or that of whoever has stored the blob anew since it was found."""
        try:
            return record, await self._opened(record, start, stop)
        except WrongObject:
            now = await self._look(record.digest)
            if now is None or now == record or now.size != record.size:
                raise
            return now, await self._opened(now, start, stop)

    async def _opened(self, record: Record, start: int, stop: int) -> "BytesStream":
        try:
            async with asked(_SILENCE):
                found = await obstore.get_async(self._reads, _data_path(record), options={"range": (start, stop)})
        except Absent:
            raise _gone(record) from None
        if found.meta["size"] != record.size or tuple(found.range) != (start, stop):
            raise _of_another_size(record, found.meta["size"])
        return found.stream(min_chunk_size=PIECE)

    # Storing.

    async def _has(self, digest: Digest) -> bool:
        """Is it there, with all its bytes as far as their number says? What is of no use is removed."""
        try:
            record = await self._look(digest)
            if record is not None:
                await self._weigh(record)
        except WrongObject as error:
            _log.warning("%s: it is stored again", error)
            await self.remove(digest)
            return False
        return record is not None

    async def _weigh(self, record: Record) -> None:
        """Raises WrongObject where its data is not there, or of another size."""
        try:
            async with asked(_FIND):
                meta = await obstore.head_async(self._reads, _data_path(record))
        except Absent:
            raise _gone(record) from None
        if meta["size"] != record.size:
            raise _of_another_size(record, meta["size"])

    async def _add(self, digest: Digest, file: BinaryIO, size: int) -> bool:
        name = secrets.token_hex(16)
        upload = Upload(digest, file, size, self._key)
        with translated():
            await upload.sent(partial(obstore.put_async, self._writes, f"{_data_folder(digest)}/{name}"))
        record = Record(digest, size, name, upload.sums)
        # Where this fails nobody knows whether the record was made, so its data stays.
        if not await self._commit(record):
            await self._drop(_data_path(record))
            return False
        return True

    async def _commit(self, record: Record) -> bool:
        """Make the record. False where there is another one."""
        raw = record.dump(self._key)
        for pause in (*_PAUSES, None):
            try:
                async with asked(_SMALL):
                    await obstore.put_async(
                        self._writes, _record_path(record.digest), raw, mode="create", use_multipart=False
                    )
            except Exists:
                if (made := await self._is(record)) is not None:
                    return made
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            else:
                break
        self._known.put(record.digest, (record, time.monotonic() + _REMEMBERED_FOR), len(raw))
        return True

    async def _is(self, record: Record) -> bool | None:
        """Is this the one that is there? It may be: an answer that is lost makes obstore try again, and meet itself.

        None where there is none: another one was about to be made, or was removed.
        """
        try:
            found = await self._look(record.digest)
        except WrongObject:
            return False
        return None if found is None else found == record

    async def _sweep(self, digest: Digest) -> None:
        """Remove what uploads of this blob left behind. Never fails: it is tried again by whoever stores it next."""
        try:
            found, now = await self._data(digest), self._clock()
            old = {data["path"] for data in found if now - data["last_modified"].timestamp() > _LEFT_BEHIND}
            # Looked at afterwards: what is old already and not named now never will be.
            if old and (record := await self._look(digest)) is not None:
                for path in old - {_data_path(record)}:
                    await self._delete(path)
        except StorageError as error:
            _log.info("what was left behind of %s stays: %s", digest, error)

    async def _drop(self, path: str) -> None:
        try:
            await self._delete(path)
        except ObjectStoreError as error:
            _log.info("data that nobody needs stays for a day: %s", error)

    async def _delete(self, path: str) -> None:
        with contextlib.suppress(Absent):
            async with asked(_SMALL):
                await obstore.delete_async(self._writes, path)

    async def _data(self, digest: Digest) -> "Sequence[ObjectMeta]":
        """All data of a blob, whoever has uploaded it."""
        async with asked(_SMALL):
            return await obstore.list(self._reads, _data_folder(digest)).collect_async()


async def _next(stream: "BytesStream") -> memoryview | None:
    try:
        return memoryview(await stream.__anext__())
    except StopAsyncIteration:
        return None


async def _checked(checker: SumChecker, data: memoryview) -> list[bytes]:
    if len(data) <= _AT_ONCE:
        return list(checker.feed(data))
    return await asyncio.to_thread(lambda: list(checker.feed(data)))


# Where things are.


def _record_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def _data_folder(digest: Digest) -> str:
    return f"data/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def _data_path(record: Record) -> str:
    return f"{_data_folder(record.digest)}/{record.name}"


def _gone(record: Record) -> WrongObject:
    return WrongObject(f"the bytes of {record.digest} are gone from the object store")


def _of_another_size(record: Record, size: int) -> WrongObject:
    return WrongObject(f"the object store has {size} bytes of {record.digest}, not {record.size}")


def _made(url: str, silence: float, retries: int) -> _Store:
    """The store that the setting means. Raises ValueError or OSError."""
    parts = urlsplit(url)
    config: dict[str, Any] = dict(parse_qsl(parts.query))
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=_CONNECT),
        "read_timeout": timedelta(seconds=silence),
        "pool_idle_timeout": timedelta(seconds=_IDLE),
        "timeout": _ENDLESS,
        "allow_http": any(value.startswith("http://") for value in config.values()),
    }
    if "ca" in config:
        options["root_certificate"] = Path(config.pop("ca")).read_bytes()
    if parts.scheme == "s3":
        # The server checks what it gets.
        config.setdefault("checksum_algorithm", "SHA256")
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": timedelta(seconds=_SMALL)}
    try:
        plain = parts._replace(query="", fragment="").geturl()
        store = from_url(plain, config=config, client_options=options, retry_config=retry)  # type: ignore[call-overload]
    except BaseError as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    if not isinstance(store, _Store):
        raise ValueError(f"{parts.scheme} is no object store")
    return store
