"""Those who want the same thing at the same time share one attempt."""

import asyncio

import pytest

from proxy.cache.singleflight import SingleFlight


async def test_all_who_ask_meanwhile_share_one_attempt() -> None:
    """One run, the same result for all; only the first did not join."""
    flights: SingleFlight[int] = SingleFlight("test")
    gate, runs = asyncio.Event(), 0

    async def attempt() -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return 42

    started = [flights.start("key", attempt) for _ in range(100)]
    gate.set()
    assert await asyncio.gather(*(asyncio.shield(task) for task, _ in started)) == [42] * 100
    assert [joined for _, joined in started] == [False] + [True] * 99
    assert runs == 1


async def test_other_keys_are_other_attempts() -> None:
    """And each task is named, so that a stuck one can be found."""
    flights: SingleFlight[str] = SingleFlight("manifest")

    async def attempt() -> str:
        return "x"

    one, _ = flights.start(("a", 1), attempt)
    other, joined = flights.start(("a", 2), attempt)
    assert one is not other
    assert not joined
    assert one.get_name() == "manifest ('a', 1)"
    await asyncio.gather(one, other)


async def test_the_next_to_ask_starts_a_new_attempt() -> None:
    """A result is shared, not cached."""
    flights: SingleFlight[int] = SingleFlight("test")
    runs = 0

    async def attempt() -> int:
        nonlocal runs
        runs += 1
        return runs

    assert await flights.start("key", attempt)[0] == 1
    await asyncio.sleep(0)
    assert await flights.start("key", attempt)[0] == 2


async def test_a_failure_reaches_everybody_and_is_not_kept() -> None:
    """groupcache's leader that panics strands its followers; here they all get the exception."""
    flights: SingleFlight[int] = SingleFlight("test")

    async def fails() -> int:
        raise LookupError("gone")

    async def works() -> int:
        return 1

    waits = [asyncio.shield(flights.start("key", fails)[0]) for _ in range(3)]
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(result) for result in results] == [LookupError] * 3
    assert await flights.start("key", works)[0] == 1


async def test_nobody_who_waits_ends_the_attempt() -> None:
    """The first client leaves, and the second one has the result; nobody has to be left at all."""
    flights: SingleFlight[int] = SingleFlight("test")
    gate = asyncio.Event()

    async def attempt() -> int:
        await gate.wait()
        return 7

    task, _ = flights.start("key", attempt)

    async def wait() -> int:
        return await asyncio.shield(task)

    leaving, staying = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    gate.set()
    assert await staying == 7


async def test_a_failure_that_nobody_waits_for_is_no_warning() -> None:
    """All have left: the exception is taken note of, so asyncio does not complain."""
    flights: SingleFlight[int] = SingleFlight("test")
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    async def fails() -> int:
        raise LookupError

    flights.start("key", fails)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    import gc

    gc.collect()
    assert complaints == []


async def test_close_ends_what_is_under_way_and_waits_for_it() -> None:
    """Its clean-up is over when close returns."""
    flights: SingleFlight[int] = SingleFlight("test")
    started, cleaned = asyncio.Event(), False

    async def attempt() -> int:
        nonlocal cleaned
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True
        return 0

    task, _ = flights.start("key", attempt)
    await started.wait()
    await flights.close()
    assert cleaned
    with pytest.raises(asyncio.CancelledError):
        await task
    await flights.close()
