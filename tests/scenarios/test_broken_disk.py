"""A finished blob whose file cannot be read, and a fill that cannot be put in place."""

import asyncio
import errno
import os
import resource
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from proxy.server import body
from proxy.settings import Settings
from proxy.storage.base import StorageError
from proxy.storage.partial import DiskPartial
from tests.fakes.content import random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry

BLOB = random_bytes(3_000_000, 40)


async def test_a_bad_sector_is_passed_by(proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a blob's file cannot be read any further the upstream's bytes follow, and the blob is dropped.

    Not in a body from the beginning, which must not complete unless all of it was hashed: that is cut.
    """
    path = f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', BLOB)}"
    await proxy.get(path)
    await proxy.stored(1)
    send = body._send_at_once

    def bad_sector(transport: asyncio.WriteTransport, descriptor: int, position: int, count: int) -> int | None:
        if position > 1_000_000:
            raise OSError(5, os.strerror(5))
        return send(transport, descriptor, position, count)

    with monkeypatch.context() as broken:
        broken.setattr(body, "_send_at_once", bad_sector)
        answer = await proxy.get(path, Range="bytes=5-")
        with pytest.raises(aiohttp.ClientPayloadError):
            await proxy.get(path)
    assert (answer.status, answer.body) == (206, BLOB[5:])
    rest = registry.record.requests[1]
    assert 1_000_000 < rest.start < rest.stop == len(BLOB)
    again = await proxy.get(path)
    assert again.body == BLOB
    await proxy.stored(1)


async def test_a_bad_sector_in_the_middle_of_a_window_cuts_the_body(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second answer is written into a body: it is cut, and the next pull brings the blob anew."""
    path = f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', BLOB)}"
    await proxy.get(path)
    await proxy.stored(1)
    loop = asyncio.get_running_loop()
    sendfile = loop.sendfile

    async def bad_sector(transport: Any, file: Any, offset: int, count: int, **how: Any) -> int:
        if offset > 1_000_000:
            raise OSError(5, os.strerror(5))
        return await sendfile(transport, file, offset, count, **how)

    with monkeypatch.context() as broken:
        # As if the socket took nothing at once, so that asyncio waits for it.
        broken.setattr(body, "_send_at_once", lambda *_: 0)
        broken.setattr(loop, "sendfile", bad_sector)
        with pytest.raises(aiohttp.ClientPayloadError):
            await proxy.get(path)
    answer = await proxy.get(path)
    assert answer.body == BLOB
    assert registry.count("GET", "/blobs/") == 2


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_a_file_system_without_sendfile(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Its bytes are copied, cold and warm, and readers of one file at different offsets do not mix theirs up."""

    def none(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "sendfile", none)
    path = f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', BLOB)}"
    starts = range(0, len(BLOB), 400_000)
    for _ in "cold", "warm":
        answers = await asyncio.gather(*(proxy.get(path, Range=f"bytes={start}-") for start in starts), proxy.get(path))
        assert [answer.body for answer in answers] == [*(BLOB[start:] for start in starts), BLOB]
        await proxy.stored(1)
    assert registry.record.sent_twice(path.rpartition("/")[2]) == []


async def test_a_bad_sector_where_there_is_no_sendfile(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that fails after others succeeded is passed by as well: no byte is sent twice or left out."""
    path = f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', BLOB)}"
    await proxy.get(path)
    await proxy.stored(1)
    pread = os.pread

    def none(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def bad_sector(descriptor: int, count: int, offset: int) -> bytes:
        if offset > 1_000_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, count, offset)

    with monkeypatch.context() as broken:
        broken.setattr(os, "sendfile", none)
        broken.setattr(os, "pread", bad_sector)
        assert (await proxy.get(path, Range="bytes=5-")).body == BLOB[5:]
    rest = registry.record.requests[1]
    assert 1_000_000 < rest.start < rest.stop == len(BLOB)
    assert await proxy.metric("pullthrough_cache_blobs") == 0


async def test_no_descriptors_left_is_no_damage(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that has to be read in while the process may open nothing more is served, and stays in the cache."""
    path = f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', BLOB)}"
    await proxy.get(path)
    await proxy.stored(1)
    read_in = body._read_in
    body._nowhere.cache_clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def without_descriptors(descriptor: int, start: int, end: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            read_in(descriptor, start, end)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(body, "_in_page_cache", lambda *_: False)
    monkeypatch.setattr(body, "_read_in", without_descriptors)
    assert (await proxy.get(path)).body == BLOB
    assert await proxy.metric("pullthrough_cache_blobs") == 1
    assert registry.count("GET", "/blobs/") == 1


async def test_a_fill_that_cannot_be_kept_still_serves_who_joins(
    settings: Callable[..., Settings], registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a blob that was right and could not be kept is given up, another client is served from it all the same."""
    reached, release = asyncio.Event(), asyncio.Event()
    discard = DiskPartial.discard

    async def fails(_partial: DiskPartial) -> None:
        raise StorageError("the disk is gone")

    async def slowly(partial: DiskPartial) -> None:
        reached.set()
        await release.wait()
        await discard(partial)

    monkeypatch.setattr(DiskPartial, "publish", fails)
    monkeypatch.setattr(DiskPartial, "discard", slowly)
    path = f"/v2/a/blobs/{registry.put('a', 'application/octet-stream', BLOB)}"
    async with running(settings()) as proxy:
        # On a connection of its own: the next request must not wait for this one's end.
        assert (await proxy.get(path, Connection="close")).body == BLOB
        await reached.wait()
        second = asyncio.create_task(proxy.get(path))
        assert (await second).body == BLOB
        release.set()
        assert registry.count("GET", "/blobs/") == 1
