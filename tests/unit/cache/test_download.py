"""What a download leaves in threads is ended before its file is closed."""

import asyncio
import threading

import pytest

from proxy.cache.download import finished_in_thread


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_who_is_cancelled_waits_for_the_thread(times: int) -> None:
    """However often: a job's fill that was stopped is cancelled once more where the proxy ends."""
    begun, gate, said = threading.Event(), threading.Event(), []

    def write() -> None:
        begun.set()
        gate.wait(10)
        said.append("written")

    async def fill() -> None:
        try:
            await finished_in_thread(write)
        finally:
            said.append("closed")

    task = asyncio.create_task(fill())
    while not begun.is_set():
        await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["written", "closed"]


async def test_errors_of_the_thread() -> None:
    """Are the caller's."""

    def fails() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        await finished_in_thread(fails)
