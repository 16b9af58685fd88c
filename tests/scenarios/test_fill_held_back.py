"""What is not the digest's never passes for it."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.acts import Act, BlobRequest
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import BLOCK, MIB, no_fill_runs, put, until

RIGHT = random_bytes(2 * MIB, 500)
DIGEST = digest_of(RIGHT)
# One byte is another, in the first block.
WRONG = RIGHT[:1000] + bytes([RIGHT[1000] ^ 1]) + RIGHT[1001:]
LARGE = random_bytes(8 * MIB, 501)

MISMATCHES = "pullthrough_digest_mismatches_total"


def wrong_once(count: int = 1) -> list[Act]:
    """The first requests are answered with the wrong bytes."""
    return [Act(body=WRONG)] * count


async def test_a_body_from_zero_waits_for_the_hash(proxy: Proxy, registry: FakeRegistry) -> None:
    """A wrong blob's last byte is never sent to who asked for all of it: the body is cut with FIN, and counted."""
    path = put(registry, RIGHT)
    registry.script = wrong_once()
    reader = await Reader.open(proxy, path)
    body = await reader.rest()
    assert len(body) < len(RIGHT)
    assert WRONG.startswith(body)
    assert reader.end == "fin"
    assert await proxy.metric(MISMATCHES) == 1
    await proxy.stored(0)
    assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_all_but_the_last_byte_comes_as_it_arrives(proxy: Proxy, registry: FakeRegistry) -> None:
    """Only the end is held back: what arrives is passed on while the rest is still on its way."""
    path = put(registry, RIGHT)
    gate = Gate(len(RIGHT) - BLOCK)
    registry.script = [Act(gate=gate)]
    reader = await Reader.open(proxy, path)
    assert await reader.to(len(RIGHT) - BLOCK) == RIGHT[:-BLOCK]
    gate.open()
    assert await reader.rest() == RIGHT
    assert reader.end == "whole"


async def test_a_body_further_on_comes_as_it_arrives(proxy: Proxy, registry: FakeRegistry) -> None:
    """A body that began past 0 is delivered to its end as its bytes arrive, though the front is still to come."""
    path = put(registry, LARGE)
    gate = Gate(0)

    def script(request: BlobRequest) -> Act:
        return Act(gate=gate if request.start < 6 * MIB else None)

    registry.script = script
    reader = await Reader.open(proxy, path, 6 * MIB)
    assert await reader.rest() == LARGE[6 * MIB :]
    assert reader.end == "whole"
    await gate.reached.wait()
    gate.open()
    await proxy.stored(1)


async def test_ranges_get_502_until_negative_ttl_is_over(proxy: Proxy, registry: FakeRegistry) -> None:
    """After a mismatch nobody refills in a loop: ranges past 0 are 502 and ask nobody, until `negative_ttl`."""
    path = put(registry, RIGHT)
    registry.script = wrong_once()
    await (await Reader.open(proxy, path)).rest()
    for _ in range(3):
        answer = await proxy.get(path, Range="bytes=1000000-")
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert len(registry.record.requests) == 1
    proxy.clock.advance(11)
    answer = await proxy.get(path, Range="bytes=1000000-")
    assert (answer.status, answer.body) == (206, RIGHT[1_000_000:])
    await proxy.stored(1)


@pytest.mark.parametrize("header", [None, "bytes=0-", "bytes=0-99"])
async def test_a_request_from_zero_starts_afresh(proxy: Proxy, registry: FakeRegistry, header: str | None) -> None:
    """After a mismatch a request from offset 0 has the whole blob fetched anew, at once; nothing old is used."""
    path = put(registry, RIGHT)
    registry.script = wrong_once()
    await (await Reader.open(proxy, path)).rest()
    answer = await proxy.get(path, **({} if header is None else {"Range": header}))
    assert answer.body == (RIGHT[:100] if header == "bytes=0-99" else RIGHT)
    await proxy.stored(1)
    assert registry.record.asked(DIGEST) == [(0, len(RIGHT))] * 2
    assert await proxy.metric(MISMATCHES) == 1


async def test_a_blob_that_stays_wrong(proxy: Proxy, registry: FakeRegistry) -> None:
    """Each attempt is one download, cut and counted; nothing of it is ever in the cache."""
    path = put(registry, RIGHT)
    registry.script = lambda request: Act(body=WRONG)
    for number in (1, 2, 3):
        reader = await Reader.open(proxy, path)
        await reader.rest()
        assert reader.end == "fin"
        assert await proxy.metric(MISMATCHES) == number
    await no_fill_runs(proxy)
    assert len(registry.record.requests) == 3
    assert (await proxy.metric("pullthrough_cache_blobs"), await proxy.metric("pullthrough_cache_bytes")) == (0, 0)


async def test_every_open_body_is_cut(proxy: Proxy, registry: FakeRegistry) -> None:
    """On a mismatch all bodies that are open end with FIN, wherever they began, before their ends."""
    other = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    path = put(registry, LARGE)
    # At the very end, when all readers are close to it.
    gate = Gate(len(LARGE) - 1)
    registry.script = lambda request: Act(body=other, gate=gate)
    starts = (None, 0, 2 * MIB, 7 * MIB)
    readers = [await Reader.open(proxy, path, start) for start in starts]
    await gate.reached.wait()
    # One of those that began further on reads nothing, so that it is open when the hash is known.
    slow = readers[2]
    others = [reader for reader in readers if reader is not slow]
    for reader in others:
        await reader.to(len(LARGE) - BLOCK)
    gate.open()
    await asyncio.gather(*(reader.rest() for reader in others))
    assert {reader.end for reader in others[:2]} == {"fin"}
    await until(lambda: registry.record.open_now == 0)
    await no_fill_runs(proxy)
    await slow.rest()
    assert slow.end == "fin"
    for reader in readers:
        assert other[reader.start :].startswith(bytes(reader.received))


async def test_no_body_has_bytes_of_two_attempts(proxy: Proxy, registry: FakeRegistry) -> None:
    """A slow reader of a wrong attempt is cut; it is given nothing of the right one that follows."""
    other = bytes(byte ^ 255 for byte in LARGE)
    path = put(registry, LARGE)
    registry.script = lambda request: Act(body=other)
    slow = await Reader.open(proxy, path, 1)
    await slow.read(1000)
    first = await Reader.open(proxy, path)
    await first.rest()
    assert first.end == "fin"
    registry.script = None
    assert (await proxy.get(path)).body == LARGE
    await slow.rest()
    assert other[1:].startswith(bytes(slow.received))
    assert slow.end == "fin"


async def test_one_wrong_range_spoils_the_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """Bytes that are wrong in a later range only are found out as well."""
    other = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    path = put(registry, LARGE)
    registry.script = [Act(), Act(body=other), Act(body=other)]
    reader = await Reader.open(proxy, path)
    body = await reader.rest()
    assert reader.end == "fin"
    assert LARGE[:-1].startswith(body)
    assert await proxy.metric(MISMATCHES) == 1
    registry.script = None
    assert (await proxy.get(path)).body == LARGE
    await proxy.stored(1)


@pytest.mark.usefixtures("quick")
async def test_wrong_bytes_from_a_resume(proxy: Proxy, registry: FakeRegistry) -> None:
    """An upstream that breaks off and goes on with another file's bytes: never a success."""
    path = put(registry, RIGHT)
    registry.script = [Act(fin_at=MIB), Act(body=bytes(len(RIGHT)))]
    reader = await Reader.open(proxy, path)
    body = await reader.rest()
    assert (reader.end, len(body) < len(RIGHT), body[:MIB]) == ("fin", True, RIGHT[:MIB])
    assert await proxy.metric(MISMATCHES) == 1


async def test_nothing_is_left_of_a_wrong_blob(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """Its file is thrown away."""
    path = put(registry, RIGHT)
    registry.script = wrong_once()
    await (await Reader.open(proxy, path)).rest()
    await no_fill_runs(proxy)
    files = [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.name != "stamps"]
    large = [file for file in files if file.stat().st_size >= len(RIGHT)]
    assert large == []


async def test_only_whole_right_blobs_are_published(proxy: Proxy, registry: FakeRegistry, tmp_path: Path) -> None:
    """While a fill is on its way nothing stands under its digest; afterwards the right bytes do, read-only."""
    path = put(registry, RIGHT)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate)]
    reader = await Reader.open(proxy, path)
    await gate.reached.wait()
    blobs = tmp_path / "cache" / "blobs"
    assert [file for file in blobs.rglob("*") if file.is_file()] == []
    gate.open()
    await reader.rest()
    await proxy.stored(1)
    (file,) = (file for file in blobs.rglob("*") if file.is_file())
    digits = DIGEST.partition(":")[2]
    assert file == blobs / "sha256" / digits[:2] / digits
    assert file.read_bytes() == RIGHT
    assert file.stat().st_mode & 0o222 == 0
