"""The object store of a region, over a real S3 server: what is stored once is there for all, whole, or not at all."""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from proxy.oci.digest import Digest
from proxy.storage import upload as uploads
from proxy.storage.base import ObjectStore, ObjectStoreError, WrongObject
from proxy.storage.object import Bucket
from proxy.storage.sums import PIECE, Record, key_of
from tests.clients.process import wait_for
from tests.clients.s3 import SECRET, FaultyS3, S3Server, url

REGION_SECRET = b"the region's secret"
BLOB = random.Random(7).randbytes(30_000_000)
DAY = 86400.0

_prefixes = itertools.count()


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[S3Server]:
    """The real server, once for all tests."""
    running = S3Server(Path(tempfile.mkdtemp(dir=scratch)))
    yield running
    running.stop()


@pytest.fixture
def way(server: S3Server) -> Iterator[FaultyS3]:
    """A way to it that can be made bad."""
    way = FaultyS3(server)
    yield way
    way.stop()


@pytest.fixture
def prefix(server: S3Server) -> str:
    """A part of the bucket for one test."""
    server.forget_unfinished()
    return f"test/{next(_prefixes)}"


@pytest.fixture(autouse=True)
def credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas have them in their environment."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


@contextlib.asynccontextmanager
async def opened(setting: str, secret: bytes = REGION_SECRET, later: float = 0.0) -> AsyncIterator[ObjectStore]:
    """A replica's view of the store; its clock is `later` than ours."""
    store = Bucket(setting, secret, lambda: time.time() + later)
    yield store
    await store.close()


@contextlib.contextmanager
def file_of(content: bytes) -> Iterator[BinaryIO]:
    """An open file."""
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(content)
        yield file


async def stored(store: ObjectStore, content: bytes, digest: Digest | None = None) -> bool:
    """Store `content`, as `digest` or as what it is."""
    with file_of(content) as file:
        return await store.store(digest or Digest.of(content), file, len(content))


async def read(store: ObjectStore, digest: Digest, start: int = 0, stop: int | None = None) -> bytes:
    """Find and read it, as somebody does who is there for the first time."""
    kept = await store.find(digest)
    assert kept is not None
    assert kept.digest == digest
    return b"".join([piece async for piece in store.read(kept, start, kept.size if stop is None else stop)])


def data_of(server: S3Server, prefix: str) -> list[str]:
    """The data objects below a prefix."""
    return [name for name in server.objects(prefix) if name.startswith("data/")]


def records_of(server: S3Server, prefix: str) -> list[str]:
    """The records below a prefix."""
    return [name for name in server.objects(prefix) if name.startswith("blobs/")]


@contextlib.contextmanager
def fails(reason: str, within: float) -> Iterator[None]:
    """It fails for this reason, in so many seconds, and says so in one line that shows nothing of the request."""
    began = time.monotonic()
    with pytest.raises(ObjectStoreError) as failure:
        yield
    assert failure.value.reason == reason
    assert time.monotonic() - began < within
    text = str(failure.value)
    assert "\n" not in text
    assert not any(word in text for word in ("Debug", "http:", "127.0.0.1", SECRET, "Signature="))


# What is stored is read.


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, uploads.PART, uploads.PART + 1, len(BLOB)])
async def test_what_is_stored_is_read_by_another_replica(server: S3Server, prefix: str, size: int) -> None:
    """Of any size: one object with the bytes, one record, and nothing half done."""
    blob = BLOB[:size]
    async with opened(server.url(prefix)) as mine, opened(server.url(prefix)) as other:
        assert await other.find(Digest.of(blob)) is None
        assert await stored(mine, blob) is True
        assert await read(other, Digest.of(blob)) == blob
        assert await read(mine, Digest.of(blob)) == blob
    (data,), (record,) = data_of(server, prefix), records_of(server, prefix)
    assert server.path(prefix, data).read_bytes() == blob
    digest = Digest.of(blob)
    assert record == f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"
    assert Path(data).parent == Path(f"data/sha256/{digest.hex[:2]}/{digest.hex}")
    assert server.unfinished() == []


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        *[(0, 1), (0, PIECE), (PIECE - 1, PIECE + 1), (PIECE, PIECE), (5, 3 * PIECE + 7), (12_345_678, 23_456_789)],
        *[(len(BLOB) - 1, len(BLOB)), (len(BLOB), len(BLOB)), (28 * PIECE - 3, len(BLOB))],
    ],
)
async def test_a_range(server: S3Server, way: FaultyS3, prefix: str, start: int, stop: int) -> None:
    """Any range of bytes, wherever pieces begin and end; of the server no more than the pieces it is in."""
    async with opened(server.url(prefix)) as mine:
        await stored(mine, BLOB)
    async with opened(way.url(prefix)) as other:
        assert await read(other, Digest.of(BLOB), start, stop) == BLOB[start:stop]
    assert way.count("GET", "/data/") == (start < stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 1001), (5, 4), (1001, 1001)])
async def test_a_range_that_is_not_in_it(server: S3Server, prefix: str, start: int, stop: int) -> None:
    """It is whoever asks for it that is wrong, not the store."""
    async with opened(server.url(prefix)) as store:
        await stored(store, BLOB[:1000])
        with pytest.raises(ValueError, match="not in"):
            await read(store, Digest.of(BLOB[:1000]), start, stop)


async def test_sha512(server: S3Server, prefix: str) -> None:
    """A blob of another algorithm has a place of its own, and is checked by that."""
    blob = BLOB[:1000]
    digest = Digest.of(blob, "sha512")
    async with opened(server.url(prefix)) as store:
        assert await stored(store, blob, digest) is True
        assert await read(store, digest) == blob
        assert await store.find(Digest.of(blob)) is None
        with pytest.raises(WrongObject):
            await stored(store, blob, Digest.of(BLOB, "sha512"))
    assert all(name.split("/")[1] == "sha512" for name in server.objects(prefix))


async def test_what_is_there_is_not_sent_again(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """Whoever stores it a second time, in this replica or another, moves no bytes."""
    async with opened(server.url(prefix)) as mine, opened(way.url(prefix)) as other:
        assert await stored(mine, BLOB) is True
        assert await stored(mine, BLOB) is False
        assert await stored(other, BLOB) is False
    assert way.count("PUT") == way.count("POST") == 0
    assert len(data_of(server, prefix)) == 1


async def test_a_record_is_remembered_for_a_while(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """Ranges of a blob, one after the other, cost one request each."""
    blob = BLOB[:1000]
    async with opened(server.url(prefix)) as mine, opened(way.url(prefix)) as other:
        await stored(mine, blob)
        for start in range(5):
            assert await read(other, Digest.of(blob), start) == blob[start:]
    assert (way.count("GET", "/blobs/sha256"), way.count("GET", "/data/")) == (1, 5)


# Replicas that store at once.


async def test_two_replicas_store_at_once(server: S3Server, prefix: str) -> None:
    """One of them has stored it, the other one sees that it has become so; it is there once."""
    for size in (1000, 20_000_000):
        place, blob = f"{prefix}/{size}", BLOB[:size]
        async with opened(server.url(place)) as mine, opened(server.url(place)) as other:
            results = await asyncio.gather(stored(mine, blob), stored(other, blob))
            assert sorted(results) == [False, True]
            assert await read(mine, Digest.of(blob)) == await read(other, Digest.of(blob)) == blob
        assert len(data_of(server, place)) == len(records_of(server, place)) == 1


async def test_ten_replicas_store_at_once(server: S3Server, prefix: str) -> None:
    """The same for any number."""
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(server.url(prefix))) for _ in range(10)]
        results = await asyncio.gather(*(stored(store, BLOB[:100_000]) for store in stores))
        assert sorted(results) == [False] * 9 + [True]
        assert await read(stores[0], Digest.of(BLOB[:100_000])) == BLOB[:100_000]
    assert len(server.objects(prefix)) == 2


async def test_whoever_loses_touches_nothing_of_the_winner(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """The slow replica, whose bytes are all there when the other one's record comes first, takes its own away."""
    way.fault("delay", "/blobs/", "PUT", seconds=1.0)
    async with opened(way.url(prefix)) as slow, opened(server.url(prefix)) as quick:
        slowly = asyncio.create_task(stored(slow, BLOB))
        await asyncio.to_thread(wait_for, "its record", lambda: way.count("PUT", "/blobs/sha256") == 1)
        assert await stored(quick, BLOB) is True
        mine = set(data_of(server, prefix))
        assert len(mine) == 2
        assert await slowly is False
        assert await read(slow, Digest.of(BLOB)) == BLOB
    assert set(data_of(server, prefix)) < mine


async def test_an_answer_that_is_lost(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """The record was made, nobody heard of it, and trying again finds it there: it is our own, so its data stays."""
    way.fault("lose", "/blobs/", "PUT", times=1)
    async with opened(way.url(prefix)) as store:
        assert await stored(store, BLOB[:1000]) is True
        assert await read(store, Digest.of(BLOB[:1000])) == BLOB[:1000]
    assert way.count("PUT", "/blobs/sha256") == 2


# What is wrong never becomes a blob.


@pytest.mark.parametrize("size", [1000, 20_000_000])
@pytest.mark.parametrize("wrong", ["a bit", "shorter", "longer"])
async def test_other_bytes_are_never_stored(server: S3Server, prefix: str, size: int, wrong: str) -> None:
    """A file that is not what the digest names: WrongObject, and nothing of it is left."""
    blob = BLOB[:size]
    content = {"a bit": blob[:-1] + bytes([blob[-1] ^ 1]), "shorter": blob[:-1], "longer": blob + b"x"}[wrong]
    async with opened(server.url(prefix)) as store:
        with file_of(content) as file, pytest.raises(WrongObject):
            await store.store(Digest.of(blob), file, len(content) if wrong == "longer" else size)
        assert await store.find(Digest.of(blob)) is None
    assert server.objects(prefix) == []
    assert server.unfinished() == []


async def test_parts_that_are_under_way_when_it_turns_out_wrong(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """They arrive before the others are removed, and go as well: none comes afterwards and stays."""
    way.fault("delay", "partNumber", "PUT", seconds=0.4)
    async with opened(way.url(prefix)) as store:
        with pytest.raises(WrongObject):
            await stored(store, BLOB, Digest.of(b"other"))
    parts = [seen for seen in way.seen if "partNumber" in seen.path]
    (removed,) = (seen for seen in way.seen if seen.method == "DELETE")
    assert len(parts) > 2
    assert max(part.ended for part in parts) < removed.began
    assert server.unfinished() == []


@pytest.mark.parametrize("size", [1000, 20_000_000])
async def test_a_file_that_cannot_be_read(server: S3Server, prefix: str, size: int) -> None:
    """It is an OSError, as of any file, and nothing is left."""
    async with opened(server.url(prefix)) as store:
        with file_of(b"") as file, pytest.raises(OSError, match="Bad file descriptor"):
            await store.store(Digest.of(BLOB[:size]), _WriteOnly(file), size)  # type: ignore[arg-type]
    assert server.objects(prefix) == []
    assert server.unfinished() == []


class _WriteOnly:
    """A file that was opened for writing only."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_WRONLY)

    def fileno(self) -> int:
        return self._descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


async def test_a_cancelled_upload_leaves_nothing(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """Neither a blob nor data nor parts."""
    way.fault("delay", "partNumber", "PUT", seconds=0.2)
    async with opened(way.url(prefix)) as store:
        storing = asyncio.create_task(stored(store, BLOB * 10))
        await asyncio.to_thread(wait_for, "some parts", lambda: len(server.unfinished()) > 2)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        await asyncio.sleep(1)
        assert server.objects(prefix) == []
        assert server.unfinished() == []
        assert await store.find(Digest.of(BLOB * 10)) is None


@pytest.mark.parametrize("size", [3 * PIECE, len(BLOB)])
async def test_a_cancelled_upload_lets_go_of_its_file(
    server: S3Server, prefix: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner closes it then, and nobody may read what is opened next under the same number."""
    begun, ended = 0, 0
    original = uploads._read_all

    def slowly(*arguments: int) -> bytes:
        nonlocal begun, ended
        begun += 1
        time.sleep(0.3)
        ended += 1
        return original(*arguments)

    monkeypatch.setattr(uploads, "_read_all", slowly)
    async with opened(server.url(prefix)) as store:
        storing = asyncio.create_task(stored(store, BLOB[:size]))
        await asyncio.to_thread(wait_for, "a read", lambda: begun > ended > 0)
        storing.cancel()
        await asyncio.sleep(0)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        assert (begun, ended) == (ended, begun)
        before = begun
        await asyncio.sleep(0.5)
        assert begun == before


async def test_a_small_upload_that_is_cancelled(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """Its bytes may be there, but no blob is; a day later they go with the next one who stores it."""
    way.fault("stall", "/data/", "PUT")
    blob = BLOB[:1000]
    async with opened(way.url(prefix)) as store:
        storing = asyncio.create_task(stored(store, blob))
        await asyncio.to_thread(wait_for, "the upload", lambda: way.count("PUT", "/data/") == 1)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        way.heal()
        assert await store.find(Digest.of(blob)) is None


# What others do to the bucket.


@pytest.mark.parametrize("size", [1000, 3 * PIECE + 5])
async def test_other_bytes_are_never_read(server: S3Server, prefix: str, size: int) -> None:
    """A bit of an object that was changed: WrongObject, after the pieces before it and before any of its own."""
    blob = BLOB[:size]
    async with opened(server.url(prefix)) as store:
        await stored(store, blob)
        (data,) = data_of(server, prefix)
        wrong = bytearray(blob)
        wrong[-1] ^= 1
        server.path(prefix, data).write_bytes(wrong)
        given = await _read_until_wrong(store, Digest.of(blob))
        assert blob[: size - size % PIECE].startswith(given)
        assert await _read_until_wrong(store, Digest.of(blob), size - 1) == b""


async def _read_until_wrong(store: ObjectStore, digest: Digest, start: int = 0) -> bytes:
    """What was given before WrongObject."""
    kept, given = await store.find(digest), bytearray()
    assert kept is not None
    with pytest.raises(WrongObject):
        async for piece in store.read(kept, start, kept.size):
            given += piece
    return bytes(given)


async def test_bytes_that_change_on_the_way(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """It makes no difference where."""
    way.fault("flip", "/data/", "GET")
    async with opened(way.url(prefix)) as store:
        await stored(store, BLOB)
        given = await _read_until_wrong(store, Digest.of(BLOB))
        assert BLOB[: len(BLOB) // 2 // PIECE * PIECE].startswith(given)
        assert len(given) > 10 * PIECE
        assert await _read_until_wrong(store, Digest.of(BLOB), len(BLOB) - 10) == b""


@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "gone"])
async def test_an_object_of_another_size(server: S3Server, prefix: str, change: str) -> None:
    """WrongObject at once; and whoever stores it next puts it in order, so it heals."""
    blob = BLOB[: PIECE + 100]
    async with opened(server.url(prefix)) as store:
        await stored(store, blob)
        path = server.path(prefix, data_of(server, prefix)[0])
        if change == "gone":
            path.unlink()
        else:
            path.write_bytes({"shorter": blob[:-1], "longer": blob + b"x", "empty": b""}[change])
        assert await _read_until_wrong(store, Digest.of(blob), PIECE + 5) == b""
        assert await _read_until_wrong(store, Digest.of(blob)) == b""
        assert await stored(store, blob) is True
        assert await read(store, Digest.of(blob)) == blob
    assert len(server.objects(prefix)) == 2


@pytest.mark.parametrize("record", ["another secret", "empty", "cut", "another blob's", "endless"])
async def test_a_record_that_is_of_no_use(server: S3Server, prefix: str, record: str) -> None:
    """WrongObject, whoever put it there; storing replaces it, and the data that it had goes."""
    blob, key = BLOB[:1000], key_of(REGION_SECRET)
    async with opened(server.url(prefix)) as store:
        await stored(store, blob)
        (old,) = records_of(server, prefix)
        path = server.path(prefix, old)
        raw = path.read_bytes()
        good = Record.load(raw, Digest.of(blob), key)
        other = Record(Digest.of(b"other"), good.size, good.name, good.sums)
        changed = {"another secret": good.dump(key_of(b"")), "empty": b"", "cut": raw[:-1]}
        changed |= {"another blob's": other.dump(key), "endless": b""}
        path.write_bytes(changed[record])
        if record == "endless":
            os.truncate(path, 4_000_000_000)
    async with opened(server.url(prefix)) as store:
        with pytest.raises(WrongObject):
            await store.find(Digest.of(blob))
        assert await stored(store, blob) is True
        assert await read(store, Digest.of(blob)) == blob
        assert len(server.objects(prefix)) == 2


async def test_another_secret(server: S3Server, prefix: str) -> None:
    """What was stored without the region's secret is not believed."""
    async with opened(server.url(prefix), b"not it") as stranger, opened(server.url(prefix)) as store:
        await stored(stranger, BLOB[:1000])
        with pytest.raises(WrongObject, match="another secret"):
            await store.find(Digest.of(BLOB[:1000]))


async def test_what_was_left_behind_goes_after_a_day(server: S3Server, prefix: str) -> None:
    """Data that no record names is removed by whoever stores that blob next, and only when it is old."""
    blob = BLOB[:1000]
    left = f"{prefix}/data/sha256/{Digest.of(blob).hex[:2]}/{Digest.of(blob).hex}/{'0' * 32}"
    async with opened(server.url(prefix)) as store, opened(server.url(prefix), later=DAY + 100) as tomorrow:
        await stored(store, blob)
        server.path("", left).write_bytes(b"left behind")
        assert await stored(store, blob) is False
        assert server.path("", left).exists()
        assert await stored(tomorrow, blob) is False
        assert not server.path("", left).exists()
        assert await read(tomorrow, Digest.of(blob)) == blob


# Removing, and addresses.


async def test_what_is_removed_is_gone(server: S3Server, prefix: str) -> None:
    """With its data, in the replica that removes it at once; it can be stored again."""
    blob = BLOB[:1000]
    async with opened(server.url(prefix)) as store:
        assert await store.remove(Digest.of(blob)) is False
        await stored(store, blob)
        assert await store.remove(Digest.of(blob)) is True
        assert await store.find(Digest.of(blob)) is None
        assert server.objects(prefix) == []
        assert await store.remove(Digest.of(blob)) is False
        assert await stored(store, blob) is True
        assert await read(store, Digest.of(blob)) == blob


async def test_data_that_is_newer_stays(server: S3Server, prefix: str) -> None:
    """It is of a replica that has just sent it, and is about to make the record."""
    blob = BLOB[:1000]
    async with opened(server.url(prefix)) as store:
        await stored(store, blob)
        newer = server.path(prefix, data_of(server, prefix)[0]).with_name("0" * 32)
        newer.write_bytes(blob)
        os.utime(newer, (time.time() + 5, time.time() + 5))
        assert await store.remove(Digest.of(blob)) is True
    assert len(server.objects(prefix)) == 1
    assert newer.exists()


async def test_what_another_replica_has_removed(server: S3Server, prefix: str) -> None:
    """Whoever still knows it is told by the read, and storing sees what is there and not what is known."""
    blob = BLOB[:1000]
    async with opened(server.url(prefix)) as mine, opened(server.url(prefix)) as other:
        await stored(mine, blob)
        await other.remove(Digest.of(blob))
        assert await _read_until_wrong(mine, Digest.of(blob)) == b""
        assert await mine.find(Digest.of(blob)) is None
        await stored(mine, blob)
        await other.remove(Digest.of(blob))
        assert await stored(mine, blob) is True


async def test_what_another_replica_has_stored_anew(server: S3Server, prefix: str) -> None:
    """Whoever found it before reads what is there now, and leaves it there when storing."""
    blob = BLOB[: PIECE + 5]
    async with opened(server.url(prefix)) as mine, opened(server.url(prefix)) as other:
        await stored(mine, blob)
        kept = await mine.find(Digest.of(blob))
        assert kept is not None
        await other.remove(Digest.of(blob))
        await stored(other, blob)
        there = server.objects(prefix)
        assert b"".join([piece async for piece in mine.read(kept, 3, kept.size)]) == blob[3:]
        await other.remove(Digest.of(blob))
        await stored(other, blob)
        assert await stored(mine, blob) is False
        assert len(server.objects(prefix)) == len(there) == 2


async def test_an_address(server: S3Server, prefix: str) -> None:
    """Anybody has the bytes by it, whole or a range, for a while and for this object only."""
    async with opened(server.url(prefix)) as store:
        await stored(store, BLOB[:100_000])
        kept = await store.find(Digest.of(BLOB[:100_000]))
        assert kept is not None
        address = await store.address(kept, 60)
        short = await store.address(kept, 1)
    assert await asyncio.to_thread(_fetched, address) == BLOB[:100_000]
    assert await asyncio.to_thread(_fetched, address, "bytes=10-19") == BLOB[10:20]
    for other in (address.replace(kept.digest.hex, "0" * 64), address.partition("?")[0]):
        with pytest.raises(urllib.error.HTTPError):
            await asyncio.to_thread(_fetched, other)
    await asyncio.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError):
        await asyncio.to_thread(_fetched, short)


def _fetched(address: str, part: str | None = None) -> bytes:
    request = urllib.request.Request(address, headers={"Range": part} if part else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        content: bytes = answer.read()
    return content


# What goes wrong on the way. Of everything that a replica asks, and in bounded time.

Ask = Callable[[ObjectStore], Coroutine[Any, Any, object]]
SMALL = BLOB[:1000]
ASKED: dict[str, Ask] = {
    "find": lambda store: store.find(Digest.of(SMALL)),
    "store": lambda store: stored(store, SMALL),
    "remove": lambda store: store.remove(Digest.of(SMALL)),
}


@pytest.mark.parametrize("ask", ASKED)
async def test_a_server_that_refuses_connections(way: FaultyS3, prefix: str, ask: str) -> None:
    """It cannot be reached, which is known at once."""
    way.refuse()
    async with opened(way.url(prefix)) as store:
        with fails("connect", within=1.0):
            await ASKED[ask](store)


@pytest.mark.parametrize("ask", ASKED)
async def test_a_server_that_is_overloaded(way: FaultyS3, prefix: str, ask: str) -> None:
    """It fails, which is known at once: whoever asks goes elsewhere."""
    way.fault("503")
    async with opened(way.url(prefix)) as store:
        with fails("5xx", within=1.0):
            await ASKED[ask](store)


@pytest.mark.parametrize(("ask", "within"), [("find", 3.5), ("store", 3.5), ("remove", 5.5)])
async def test_a_server_that_does_not_answer(way: FaultyS3, prefix: str, ask: str, within: float) -> None:
    """Whoever waits for a blob waits three seconds."""
    way.fault("stall")
    async with opened(way.url(prefix)) as store:
        with fails("timeout", within):
            await ASKED[ask](store)


@pytest.mark.parametrize("fault", ["delay", "drip", "hang"])
async def test_a_record_that_comes_slowly(way: FaultyS3, prefix: str, fault: str) -> None:
    """Nor does it matter how the server is slow: after three seconds nobody waits for it."""
    way_is_good = way.url(prefix)
    async with opened(way_is_good) as store:
        await stored(store, BLOB)
    way.fault(fault, "/blobs/sha256", "GET", seconds=4.0)
    async with opened(way_is_good) as store:
        with fails("timeout", within=3.5):
            await store.find(Digest.of(BLOB))


@pytest.mark.parametrize("ask", ASKED)
async def test_a_secret_key_that_is_wrong(server: S3Server, prefix: str, ask: str) -> None:
    """It refuses us, and what it says of the signature is not repeated."""
    async with opened(server.url(prefix, access_key_id="replica", secret_access_key="wrong")) as store:
        with fails("denied", within=1.0):
            await ASKED[ask](store)


@pytest.mark.parametrize("ask", ASKED)
async def test_a_bucket_that_is_not_there(server: S3Server, prefix: str, ask: str) -> None:
    """It is not taken for a blob that is not there."""
    async with opened(url(server.port, prefix).replace("s3://region", "s3://nowhere")) as store:
        with fails("denied", within=1.0):
            await ASKED[ask](store)


async def test_keys_in_the_setting(server: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may stand there instead of in the environment."""
    for name in server.env:
        monkeypatch.delenv(name)
    async with opened(server.url(prefix, access_key_id="replica", secret_access_key=SECRET)) as store:
        assert await stored(store, SMALL) is True


@pytest.mark.parametrize(
    ("fault", "reason", "within"),
    [("503", "5xx", 1), ("stall", "timeout", 5.5), ("hang", "timeout", 5.9), ("cut", "connect", 1)],
)
async def test_a_read_that_fails(
    server: S3Server, way: FaultyS3, prefix: str, fault: str, reason: str, within: float
) -> None:
    """What came before that was right, and given; a stall is one after five seconds."""
    async with opened(server.url(prefix)) as store:
        await stored(store, BLOB)
    way.fault(fault, "/data/", "GET")
    async with opened(way.url(prefix)) as store:
        kept, given = await store.find(Digest.of(BLOB)), bytearray()
        assert kept is not None
        with fails(reason, within):
            async for piece in store.read(kept, 0, kept.size):
                given += piece
        assert BLOB.startswith(given)
        assert len(given) >= (len(BLOB) // 2 // PIECE - 1) * PIECE if fault in {"hang", "cut"} else not given


async def test_a_read_that_drips(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """A byte now and then is no progress: five seconds for a piece, and no more."""
    async with opened(server.url(prefix)) as store:
        await stored(store, BLOB[: 2 * PIECE])
    way.fault("drip", "/data/", "GET", seconds=1.0)
    async with opened(way.url(prefix)) as store:
        with fails("timeout", within=6.5):
            await read(store, Digest.of(BLOB[: 2 * PIECE]))


async def test_a_read_that_waits_for_its_reader(server: S3Server, prefix: str) -> None:
    """A reader that is slow itself is no failure of the store's."""
    async with opened(server.url(prefix)) as store:
        await stored(store, BLOB)
        kept, given = await store.find(Digest.of(BLOB)), bytearray()
        assert kept is not None
        async for piece in store.read(kept, 0, kept.size):
            if given in (b"", BLOB[: 10 * PIECE]):
                await asyncio.sleep(6)
            given += piece
        assert given == BLOB


async def test_a_read_that_is_given_up(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """Whoever leaves in the middle, or is cancelled while waiting, leaves no harm behind."""
    async with opened(server.url(prefix)) as store:
        await stored(store, BLOB)
    async with opened(way.url(prefix)) as store:
        kept = await store.find(Digest.of(BLOB))
        assert kept is not None
        async with contextlib.aclosing(store.read(kept, 0, kept.size)) as pieces:
            async for _ in pieces:
                break
        way.fault("stall", "/data/")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await read(store, Digest.of(BLOB))
        way.heal()
        assert await read(store, Digest.of(BLOB)) == BLOB


async def test_an_upload_survives_a_part_that_fails(server: S3Server, way: FaultyS3, prefix: str) -> None:
    """Of thousands of parts one may be met by an overloaded server."""
    way.fault("503", "partNumber", "PUT", times=2)
    async with opened(way.url(prefix)) as store:
        assert await stored(store, BLOB) is True
        assert await read(store, Digest.of(BLOB)) == BLOB


@pytest.mark.parametrize("which", ["partNumber", "uploads", "uploadId", "/blobs/"])
async def test_an_upload_that_fails(server: S3Server, way: FaultyS3, prefix: str, which: str) -> None:
    """At any step: it is no blob, it can be tried again, and a day later nothing else is there."""
    way.fault("503", which, "P")
    async with opened(way.url(prefix)) as store, opened(way.url(prefix), later=DAY + 100) as tomorrow:
        with fails("5xx", within=12.0):
            await stored(store, BLOB)
        assert records_of(server, prefix) == []
        way.heal()
        assert await stored(store, BLOB) is True
        assert await stored(tomorrow, BLOB) is False
        assert await read(store, Digest.of(BLOB)) == BLOB
    assert len(server.objects(prefix)) == 2
    assert server.unfinished() == []


async def test_an_upload_that_stalls(
    server: S3Server, way: FaultyS3, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes no more of it ends it."""
    monkeypatch.setattr(uploads, "_SILENCE", 1.0)
    way.fault("stall", "partNumber", "PUT")
    async with opened(way.url(prefix)) as store:
        with fails("timeout", within=7.0):
            await stored(store, BLOB * 3)
        with fails("timeout", within=7.0):
            way.fault("stall", "/data/", "PUT")
            await stored(store, SMALL)
        assert await store.find(Digest.of(BLOB * 3)) is None
    assert server.objects(prefix) == []


async def test_what_cannot_be_swept_stays(
    server: S3Server, way: FaultyS3, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A blob that was stored is stored, though what was left behind cannot be listed."""
    caplog.set_level(logging.INFO, "pullthrough.storage")
    way.fault("503", "list-type", "GET")
    async with opened(way.url(prefix)) as store:
        assert await stored(store, SMALL) is True
    assert "stays" in caplog.text
    assert "http" not in caplog.text


async def test_the_server_comes_back(server: S3Server, prefix: str) -> None:
    """A store that has failed is used again: nothing of it has to be made anew."""
    async with opened(server.url(prefix)) as store:
        await stored(store, SMALL)
        await asyncio.to_thread(server.stop)
        try:
            with fails("connect", within=3.5):
                await store.find(Digest.of(b"another one"))
        finally:
            await asyncio.to_thread(server.start)
        assert await store.find(Digest.of(b"another one")) is None
        assert await read(store, Digest.of(SMALL)) == SMALL


# The setting.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("s3://bucket/x?no_such_key=1", "no_such_key"),
        ("s3://bucket/x?virtual_hosted_style_request=maybe", "maybe"),
        ("file:///tmp", "file is no object store"),
        ("memory:///", "memory is no object store"),
        ("az://container/x", "Account must be specified"),
    ],
)
def test_a_setting_that_is_wrong(setting: str, said: str) -> None:
    """It is told in one line, when the store is made."""
    with pytest.raises(ValueError, match=said) as failure:
        Bucket(setting)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "setting", ["gs://bucket/prefix", "az://container/prefix?account_name=a&account_key=YWJj", "s3://bucket"]
)
def test_other_kinds(setting: str) -> None:
    """All that the same library knows."""
    Bucket(setting)


def test_an_authority_of_our_own(tmp_path: Path) -> None:
    """`ca` is a file; one that is not there, or is none, is told when the store is made."""
    with pytest.raises(OSError, match="No such file"):
        Bucket(f"s3://bucket?ca={tmp_path}/none.pem")
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ValueError, match="certificate"):
        Bucket(f"s3://bucket?ca={tmp_path}/ca.pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ca.test", "-days", "2"]
    subprocess.run(
        [*words, "-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.pem"], check=True, capture_output=True
    )
    Bucket(f"s3://bucket?ca={tmp_path}/ca.pem")


def test_parts_of_a_large_blob() -> None:
    """S3 takes ten thousand of them, whatever the size."""
    assert uploads.part_of(1) == uploads.part_of(20 * 10**9) == 8 * PIECE
    for size in (75 * 10**9, 100 * 10**9, 10**12):
        assert -(-size // uploads.part_of(size)) <= 9_000
        assert uploads.part_of(size) % PIECE == 0
