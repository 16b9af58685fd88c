"""How late the event loop is."""

import asyncio

import pytest

from proxy.telemetry import lag
from proxy.telemetry.events import Event, LoopLag


async def test_lag_is_told_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, never negative."""
    monkeypatch.setattr(lag, "_INTERVAL", 0.001)
    told: list[Event] = []
    enough = asyncio.Event()

    def tell(event: Event) -> None:
        told.append(event)
        if len(told) == 3:
            enough.set()

    task = asyncio.create_task(lag.watch_loop_lag(tell))
    async with asyncio.timeout(5):
        await enough.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert all(isinstance(event, LoopLag) and event.seconds >= 0 for event in told)
