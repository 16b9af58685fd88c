"""What is done every second, however busy the process's loop is."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as NoConnection

from proxy.storage import beats
from proxy.storage.beats import Beats


class Counted:
    """A server, and the beats that came to it."""

    client: Any = "the client"

    def __init__(self) -> None:
        self.beats: list[str] = []
        self.came = threading.Event()
        self.error: Exception | None = None
        self.connected = self.closed = 0

    def connect(self) -> Any:
        self.connected += 1
        return self

    async def close(self) -> None:
        self.closed += 1

    async def beat(self, client: Any) -> None:
        assert client == self.client
        self.beats.append(threading.current_thread().name)
        self.came.set()
        if self.error is not None:
            raise self.error

    async def some(self, count: int) -> None:
        """Wait for as many more."""
        for _ in range(count):
            self.came.clear()
            assert await asyncio.to_thread(self.came.wait, 10)


class Looks:
    """The time, and how often the thread has looked at it."""

    def __init__(self) -> None:
        self._looked = threading.Semaphore(0)

    def monotonic(self) -> float:
        if threading.current_thread().name.startswith("beats"):
            self._looked.release()
        return time.monotonic()

    async def some(self, count: int) -> None:
        """Wait for as many more."""
        while self._looked.acquire(blocking=False):
            pass
        for _ in range(count):
            assert await asyncio.to_thread(self._looked.acquire, timeout=10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(beats, "BEAT", 0.01)
    return Counted()


@pytest.fixture
async def beating(server: Counted) -> AsyncIterator[Beats]:
    beating = Beats(server.connect, server.beat)
    await beating.start()
    yield beating
    await beating.close()


async def test_it_goes_on_while_the_loop_is_busy(server: Counted, beating: Beats) -> None:
    """With work that gives nothing up for long."""
    await server.some(1)
    before, until = len(server.beats), time.monotonic() + 10
    while len(server.beats) < before + 3 and time.monotonic() < until:
        sum(range(1000))
    assert len(server.beats) >= before + 3
    assert all(name.startswith("beats") for name in server.beats)


async def test_a_loop_that_hangs_is_as_good_as_dead(
    server: Counted, beating: Beats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the thread looks, nothing is heard of it from then on, until it is seen again."""
    await server.some(1)
    looks = Looks()
    monkeypatch.setattr(beats, "time", looks)
    monkeypatch.setattr(beats, "_HUNG", -1.0)
    # One may be under way.
    await looks.some(2)
    before = len(server.beats)
    await looks.some(3)
    assert len(server.beats) == before
    monkeypatch.setattr(beats, "_HUNG", 60.0)
    await server.some(2)


@pytest.mark.parametrize("error", [NoConnection("gone"), OSError("gone"), TimeoutError(), RuntimeError("a mistake")])
async def test_a_beat_that_fails_is_followed_by_others(server: Counted, beating: Beats, error: Exception) -> None:
    """Whatever it met."""
    server.error = error
    await server.some(2)
    server.error = None
    await server.some(2)


async def test_a_beat_that_hangs_ends(server: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and the next one comes."""
    monkeypatch.setattr(beats, "_LIMIT", 0.02)
    ended: list[str] = []

    async def beat(_client: Any) -> None:
        server.came.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    beating = Beats(server.connect, beat)
    await beating.start()
    await server.some(3)
    await beating.close()
    assert len(ended) >= 2


async def test_nothing_comes_after_the_end(server: Counted) -> None:
    """Its connections are closed, the thread has ended; also where it ends as soon as it began, or never did."""
    for waits in (1, 0):
        beating = Beats(server.connect, server.beat)
        await beating.start()
        await server.some(waits)
        await beating.close()
        before = len(server.beats)
        await gone()
        assert len(server.beats) == before
    assert server.closed == server.connected >= 1
    await Beats(server.connect, server.beat).close()
    await gone()


async def test_a_process_that_forgets_to_end_it_ends(server: Counted) -> None:
    """The thread goes with the loop that it speaks for, also one that had no time to begin."""

    def forgetful(beats: int) -> None:
        async def main() -> None:
            await Beats(server.connect, server.beat).start()
            await server.some(beats)

        asyncio.run(main())

    for count in (2, 0):
        await asyncio.to_thread(forgetful, count)
        await gone()


async def test_no_connection_yet(server: Counted) -> None:
    """It is tried again."""
    left = [OSError("no descriptors"), RuntimeError("a mistake")]

    def connect() -> Any:
        if left:
            raise left.pop()
        return server

    beating = Beats(connect, server.beat)
    await beating.start()
    await server.some(1)
    await beating.close()
    assert not left


async def test_a_thread_that_cannot_run(
    server: Counted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Operators hear of it, and the end is one all the same, also a second time."""

    def run(work: Any) -> None:
        work.close()
        raise OSError("no descriptors")

    monkeypatch.setattr("proxy.storage.beats.asyncio.run", run)
    beating = Beats(server.connect, server.beat)
    await beating.start()
    await beating.close()
    await beating.close()
    assert "cannot say that it is there" in caplog.text


async def gone() -> None:
    """Wait for the end of all threads of beats."""
    for one in threading.enumerate():
        if one.name.startswith("beats"):
            await asyncio.to_thread(one.join, 10)
            assert not one.is_alive(), "a thread goes on"
