"""What a listener that intercepts consists of: made here, and nothing of it is imported where none is configured."""

import asyncio
from collections.abc import Awaitable, Callable

from proxy.policy.intercept import server_names
from proxy.policy.registry import Registries
from proxy.server.gate import Gate
from proxy.server.intercept_connect import Connects
from proxy.server.intercept_entry import Beginnings, Make, NamedEntry
from proxy.server.intercept_tls import Interception
from proxy.server.listener import Interceptor
from proxy.settings import InterceptSettings, ListenSettings, Settings
from proxy.telemetry.events import Tell


def interceptor(
    listen: ListenSettings,
    intercept: InterceptSettings,
    gate: Gate,
    settings: Callable[[], Settings],
    registries: Callable[[], Registries],
    tell: Tell,
    clock: Callable[[], float],
) -> Interceptor:
    """For this listener; `settings` and `registries` as they are at present."""
    interception = Interception(
        listen.address,
        intercept,
        lambda: server_names(settings().upstreams),
        lambda: gate.refusals.add("server-name", ""),
        clock,
    )
    if not listen.connect:
        begun = Beginnings()
        return _Interceptor(interception, begun.close, lambda make: NamedEntry(gate, begun, make, interception.front))
    connects = Connects(listen.address, interception, gate, listen.tunnel, settings, registries, tell)
    return _Interceptor(interception, connects.close, connects.entry)


class _Interceptor:
    """See `Interceptor`."""

    def __init__(
        self, interception: Interception, end: Callable[[], Awaitable[None]], entry: Callable[[Make], asyncio.Protocol]
    ) -> None:
        self.start, self.look, self.entry = interception.start, interception.look, entry
        self._interception = interception
        self._end = end

    async def close(self) -> None:
        """See `Interceptor`."""
        await self._end()
        await self._interception.close()
