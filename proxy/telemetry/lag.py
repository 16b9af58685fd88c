"""How late is the event loop? A sleep that should take no longer tells what kept it busy."""

import asyncio

from proxy.telemetry.events import LoopLag, Tell

_INTERVAL = 0.25


async def watch_loop_lag(tell: Tell) -> None:
    """Tell the loop's lag four times a second, until cancelled. The clock is the loop's own."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _INTERVAL
        await asyncio.sleep(_INTERVAL)
        tell(LoopLag(max(0.0, loop.time() - due)))
