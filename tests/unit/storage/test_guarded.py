"""An object store that fails is left alone for a while, and tried by one at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from proxy.oci.digest import Digest
from proxy.storage.base import ObjectStoreError, WrongObject
from proxy.storage.guarded import Guarded
from proxy.telemetry.events import Event, SharedStoreFailed, SharedStoreTurned
from tests.fakes.clock import LoopClock
from tests.fakes.region import FakeKept, FakeObjects, failing

CONTENT = b"blob" * 100_000
DIGEST = Digest.of(CONTENT)
KEPT = FakeKept(DIGEST, len(CONTENT))
# Longer than the first step, shorter than the second; and longer than any.
STEP, LONG = 1.3, 60.0


@pytest.fixture
def objects() -> FakeObjects:
    fake = FakeObjects()
    fake.blobs[DIGEST] = CONTENT
    return fake


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def guarded(objects: FakeObjects, told: list[Event]) -> Guarded:
    return Guarded(objects, told.append)


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    """The time that steps go by, with the steps' chance taken out."""
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop.time)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr("random.random", lambda: 0.5)
    return clock


async def fail(guarded: Guarded, objects: FakeObjects, reason: str = "connect") -> None:
    """Let one who comes meet a failure of the store's own."""
    objects.faults["find"] = failing(reason)
    with pytest.raises(ObjectStoreError) as caught:
        await guarded.find(DIGEST)
    assert caught.value.reason == reason
    objects.faults.clear()


async def refused(guarded: Guarded) -> bool:
    """Is whoever comes now sent away?"""
    try:
        await guarded.find(DIGEST)
    except ObjectStoreError as error:
        assert error.reason == "open"
        return True
    return False


def turns(told: list[Event]) -> list[bool]:
    return [event.up for event in told if isinstance(event, SharedStoreTurned)]


async def read(guarded: Guarded) -> bytes:
    async with aclosing(guarded.read(KEPT, 0, len(CONTENT))) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_what_answers_is_asked(guarded: Guarded, objects: FakeObjects) -> None:
    """All of its methods come through, and nothing is told but that it is there."""
    assert await guarded.find(DIGEST) == KEPT
    assert await read(guarded) == CONTENT
    assert await guarded.address(KEPT, 60) == f"https://objects.test/{DIGEST}?for=60"
    assert await guarded.remove(DIGEST)
    assert guarded.up
    await guarded.close()
    assert objects.closed


@pytest.mark.usefixtures("timers")
async def test_a_failure_opens_it_for_everybody(guarded: Guarded, objects: FakeObjects, told: list[Event]) -> None:
    """Whatever is asked next is refused at once, and the store has peace."""
    await fail(guarded, objects, "5xx")
    assert not guarded.up
    before = list(objects.calls)
    asks: list[Callable[[], Awaitable[object]]] = [
        lambda: guarded.find(DIGEST), lambda: guarded.remove(DIGEST), lambda: read(guarded),
    ]  # fmt: skip
    for ask in asks:
        with pytest.raises(ObjectStoreError) as caught:
            await ask()
        assert caught.value.reason == "open"
    assert objects.calls == before
    # Those who were refused have not met another failure.
    assert [event for event in told if isinstance(event, SharedStoreFailed)] == [SharedStoreFailed("blobs", "5xx")]
    assert turns(told) == [True, False]


async def test_one_who_comes_when_it_is_due_may_try(
    guarded: Guarded, objects: FakeObjects, timers: LoopClock, told: list[Event]
) -> None:
    """The others are refused until that one has ended; an answer closes it for all."""
    await fail(guarded, objects)
    await timers.advance(STEP)
    gate = objects.gates["find"] = asyncio.Event()
    trying = asyncio.create_task(guarded.find(DIGEST))
    while objects.asked("find") < 2:
        await asyncio.sleep(0)
    assert await refused(guarded)
    assert objects.asked("find") == 2
    gate.set()
    assert await trying == KEPT
    assert guarded.up
    assert not await refused(guarded)
    assert turns(told) == [True, False, True]


async def test_steps_double(guarded: Guarded, objects: FakeObjects, timers: LoopClock) -> None:
    """Each failure in a row leaves it alone for twice as long, half a minute at most; an answer begins anew."""
    for step in (1, 2, 4, 8, 16, 30, 30, 30):
        await fail(guarded, objects)
        await timers.advance(step - 0.5)
        assert await refused(guarded)
        await timers.advance(0.6)
    assert not await refused(guarded)
    await fail(guarded, objects)
    await timers.advance(1.1)
    assert not await refused(guarded)


async def test_failures_of_the_same_step_count_once(guarded: Guarded, objects: FakeObjects, timers: LoopClock) -> None:
    """Many who had asked before the first of them failed are one failure of the store."""
    gate = objects.gates["find"] = asyncio.Event()
    objects.faults["find"] = failing()
    asking = [asyncio.create_task(guarded.find(DIGEST)) for _ in range(10)]
    while objects.asked("find") < 10:
        await asyncio.sleep(0)
    gate.set()
    assert all(isinstance(error, ObjectStoreError) for error in await asyncio.gather(*asking, return_exceptions=True))
    objects.faults.clear()
    await timers.advance(STEP)
    assert not await refused(guarded)


async def test_a_try_that_is_cancelled_says_nothing(guarded: Guarded, objects: FakeObjects, timers: LoopClock) -> None:
    """It is still due, and the next one may try."""
    await fail(guarded, objects)
    await timers.advance(STEP)
    objects.gates["find"] = asyncio.Event()
    trying = asyncio.create_task(guarded.find(DIGEST))
    while objects.asked("find") < 2:
        await asyncio.sleep(0)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert not guarded.up
    objects.gates.clear()
    assert not await refused(guarded)
    assert guarded.up


@pytest.mark.usefixtures("timers")
async def test_a_body_that_breaks_off_is_a_failure(guarded: Guarded, objects: FakeObjects) -> None:
    """Like one that never began; what came before it stays with whoever read it."""
    objects.faults["read"], objects.breaks_at = failing("timeout"), 70_000
    received = bytearray()
    with pytest.raises(ObjectStoreError):
        async with aclosing(guarded.read(KEPT, 0, len(CONTENT))) as pieces:
            async for piece in pieces:
                received += piece
    assert received == CONTENT[:70_000]
    assert not guarded.up
    assert await refused(guarded)


async def test_a_reader_that_leaves_is_no_failure(guarded: Guarded, objects: FakeObjects, timers: LoopClock) -> None:
    """Nor does it keep the next one from trying."""
    async with aclosing(guarded.read(KEPT, 0, len(CONTENT))) as pieces:
        await anext(pieces)
    assert guarded.up
    await fail(guarded, objects)
    await timers.advance(STEP)
    async with aclosing(guarded.read(KEPT, 0, len(CONTENT))) as pieces:
        await anext(pieces)
        assert await refused(guarded)
    assert not await refused(guarded)


@pytest.mark.parametrize("had", [None, WrongObject("other bytes")])
async def test_nothing_or_something_wrong_is_an_answer(
    guarded: Guarded, objects: FakeObjects, timers: LoopClock, had: WrongObject | None
) -> None:
    """A store that says so is there: it opens nothing, and closes what was open."""
    for _ in range(2):
        if had is None:
            objects.blobs.clear()
            assert await guarded.find(DIGEST) is None
        else:
            objects.faults["find"] = had
            with pytest.raises(WrongObject):
                await guarded.find(DIGEST)
        assert guarded.up
        await fail(guarded, objects)
        await timers.advance(LONG)


async def test_trouble_of_one_s_own_is_not_the_store_s(guarded: Guarded, tmp_path: object) -> None:
    """A file that cannot be read here says nothing of the store."""
    with open(f"{tmp_path}/blob", "wb") as file:
        with pytest.raises(OSError):
            # Not open for reading.
            await guarded.store(DIGEST, file, len(CONTENT))
    assert guarded.up
