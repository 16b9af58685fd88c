"""The guard that every hermetic test runs under, and the fakes."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.fakes.clock import LoopClock
from tests.fakes.registry import FakeRegistry, FakeStorage


@pytest.fixture(autouse=True)
def block_guard() -> Iterator[BlockBuster]:
    """Whatever of ours blocks the event loop fails the test."""
    with blockbuster_ctx("proxy") as guard:
        # The socket does not block, and the file is in the page cache.
        guard.functions["os.sendfile"].can_block_in("proxy/server/body.py", {"_send_at_once"})
        yield guard


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    """The clock that the timers of the test's loop go by, the proxy's and the clients'."""
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop.time)
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    """A fake registry that runs."""
    fake = FakeRegistry()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def storage() -> AsyncIterator[FakeStorage]:
    """A fake storage host that runs, for registries that redirect."""
    fake = FakeStorage()
    await fake.start()
    yield fake
    await fake.stop()
