"""The admin listener: `/healthz` (alive), `/readyz` (can serve), `/metrics`."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from proxy.storage.base import Usage
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import SharedMetrics

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Admin:
    """Answers the admin listener. `not_ready` says in one line why clients should go elsewhere, or None."""

    def __init__(
        self,
        metrics: Metrics | SharedMetrics,
        not_ready: Callable[[], str | None],
        usage: Callable[[], Awaitable[Usage | None]],
    ) -> None:
        self._metrics = metrics
        self._usage = usage
        self._not_ready = not_ready

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="method not allowed\n", headers={"Allow": "GET, HEAD"})
        match request.rel_url.raw_path:
            case "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                reason = self._not_ready()
                return web.Response(text="ok\n") if reason is None else web.Response(status=503, text=f"{reason}\n")
            case "/metrics":
                if (usage := await self._usage()) is not None:
                    self._metrics.set_cache(usage.bytes, usage.blobs)
                return web.Response(
                    body=await asyncio.to_thread(self._metrics.render), headers={"Content-Type": _METRICS_TYPE}
                )
            case _:
                return web.Response(status=404, text="not found\n")
