"""The admin listener: `/healthz` (alive), `/readyz` (can serve), `/metrics`, the API (`/api/v1/`), the status page."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge

from proxy.server.admin_access import AdminAccess
from proxy.server.api import ApiError, ApiRequest, ApiResponse, failed, parse_body
from proxy.server.status import CHALLENGE, StatusPage
from proxy.storage.base import Usage
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.shared import SharedMetrics

_log = logging.getLogger("pullthrough.server")

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_API = "/api/v1/"
_UP = "pullthrough_shared_up"
_LARGEST_BODY = 1024 * 1024

Backend = Callable[[ApiRequest], Awaitable[ApiResponse]]


class Admin:
    """Answers the admin listener. `not_ready` says in one line why clients should go elsewhere, or None."""

    def __init__(
        self,
        metrics: Metrics | SharedMetrics,
        not_ready: Callable[[], str | None],
        usage: Callable[[], Awaitable[Usage | None]],
        drift: Callable[[], Awaitable[Mapping[str, int] | None]],
        access: AdminAccess,
        backend: Backend,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`drift`: by registry, how many tags have moved on upstream; `backend` answers the API."""
        self._metrics = metrics
        self._usage = usage
        self._drift = drift
        self._not_ready = not_ready
        self._access = access
        self._backend = backend
        self._page = StatusPage(backend, access, clock)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.rel_url.raw_path
        if path.startswith(_API):
            return await self._api(request, path.removeprefix(_API))
        if (answer := await self._page.answer(request)) is not None:
            return answer
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, text="method not allowed\n", headers={"Allow": "GET, HEAD"})
        match path:
            case "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                return await self._ready()
            case "/metrics":
                return await self._render_metrics()
            case _:
                return web.Response(status=404, text="not found\n")

    async def _ready(self) -> web.Response:
        """Replicas serve without what they share, so that is no reason to go elsewhere; but it is said."""
        if (reason := self._not_ready()) is not None:
            return web.Response(status=503, text=f"{reason}\n")
        away = await asyncio.to_thread(stores_away, self._metrics)
        return web.Response(text="".join(["ok\n", *(f"the shared {store} store is away\n" for store in away)]))

    async def _render_metrics(self) -> web.Response:
        if (usage := await self._usage()) is not None:
            self._metrics.set_cache(usage.bytes, usage.blobs)
        if (drift := await self._drift()) is not None:
            self._metrics.set_drift(drift)
        self._metrics.flush()
        return web.Response(body=await asyncio.to_thread(self._metrics.render), headers={"Content-Type": _METRICS_TYPE})

    async def _api(self, request: web.BaseRequest, path: str) -> web.Response:
        try:
            await self._access.check(request)
            asked = ApiRequest(
                "GET" if request.method == "HEAD" else request.method,
                request.rel_url.path.removeprefix(_API),
                tuple(request.rel_url.query.items()),
                parse_body(await _body(request)),
                request.remote or "",
            )
            answer = await self._backend(asked)
        except ApiError as error:
            answer = failed(error.status, str(error))
        except ConnectionError:
            # The client left in its body: there is nobody to answer.
            raise
        except Exception as error:  # noqa: BLE001 - whoever asked reads JSON, and operators one line
            _log.error("%s %s failed", request.method, request.rel_url.raw_path, exc_info=error)
            answer = failed(500, "the proxy failed to answer this request")
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        if answer.status == 401:
            headers["WWW-Authenticate"] = CHALLENGE
        return web.Response(
            status=answer.status,
            body=json.dumps(answer.body).encode() + b"\n",
            content_type="application/json",
            headers=headers,
        )


def stores_away(metrics: Metrics | SharedMetrics) -> list[str]:
    """Of what replicas share, what some process does not reach. Blocks."""
    samples = (sample for metric in metrics.collect() if metric.name == _UP for sample in metric.samples)
    return sorted(sample.labels["store"] for sample in samples if not sample.value)


async def _body(request: web.BaseRequest) -> bytes:
    """The request's body. Raises ApiError where it is larger than any that is meant."""
    if (request.content_length or 0) > _LARGEST_BODY:
        raise ApiError(413, f"the body is larger than {_LARGEST_BODY} bytes")
    try:
        return await request.read()
    except HTTPRequestEntityTooLarge as error:
        raise ApiError(413, "the body is too large") from error
